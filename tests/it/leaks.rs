//! Nothing personal and no secret leaves the state and the lake, at the most talkative log level and while things go
//! wrong.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use vinculo::simulate::{SECRET_ID, SECRET_PASSWORD};

use crate::binary::{Simulate, Site, free_address, run};
use crate::harness::{AUTHORIZATION, PEPPER};
use crate::scripted::{EMPLOYMENTS, OWNERS};
use crate::tables;

/// What the faults lead to, each in the log.
const CODES: [&str; 6] = ["api_down", "truncated", "not_json", "rejected_records", "foreign_record", "foreign_next"];

/// What must not be seen, apart by who may see it.
#[derive(Default)]
struct Needles {
    /// In no log, metric or answer, and no table either.
    people: BTreeSet<String>,
    /// In no log, metric or answer.
    work: BTreeSet<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_metrics_and_answers_hold_no_personal_data_and_no_secret() {
    let belvo = free_address();
    let site = Site::new(belvo, &[("VINCULO_LOG_LEVEL", "trace")]);
    let served = site.serve();
    let webhook = site.webhook_url();
    let arguments = [
        "--people",
        "64",
        "--no-limit",
        "--pepper",
        PEPPER,
        "--webhook-latency",
        "200ms",
        "--webhook",
        &webhook,
        "--webhook-authorization",
        AUTHORIZATION,
    ];
    let simulate = Simulate::start(belvo, &arguments);
    for fault in [
        "status,code=500,on=employments,skip=2,times=1",
        "cut,on=owners,times=2",
        "html,on=employments,times=1",
        "wrong_type,key=salaries,on=employments,skip=4,times=1",
        "foreign_record,on=owners,skip=20,times=1",
        "next_elsewhere,on=employments,skip=10,times=1",
        "unknown_field,on=owners,skip=6,times=1",
    ] {
        simulate.tell("faults", &format!("{{\"flag\": \"{fault}\"}}")).await;
    }
    simulate.tell("connect", "").await;
    until_all_is_fetched(&site);
    let needles = needles(&simulate).await;
    assert!(
        needles.people.len() > 64 * 3 && needles.work.len() > 200,
        "{} {}",
        needles.people.len(),
        needles.work.len()
    );

    // Senders who put personal data where it does not belong are not quoted.
    let person = needles.people.iter().next().unwrap().clone();
    let mut answers = String::new();
    for body in [
        format!("{{\"webhook_type\": \"{person}\"}}"),
        format!("[\"{person}\"]"),
        format!("{{\"link_id\": \"{person}\"}}"),
    ] {
        answers += &site.webhook(&body).await.1;
    }
    let stranger = reqwest::Client::new().post(site.webhook_url()).header("authorization", format!("Bearer {person}"));
    answers += &stranger.body("{}").send().await.unwrap().text().await.unwrap();

    // On a busy machine links share a call, and what was wrong with it is told in other words: one link is asked for
    // alone.
    let links: Value = serde_json::from_str(&simulate.ask("links").await).unwrap();
    for (code, fault, resource) in
        [("foreign_record", "foreign_record", "owners"), ("foreign_next", "next_elsewhere", "employments")]
    {
        for link in links.as_array().unwrap().iter().take(3) {
            if site.logs().contains(&format!("\"code\":\"{code}\"")) {
                break;
            }
            simulate.tell("faults", &format!("{{\"flag\": \"{fault},on={resource},times=1\"}}")).await;
            run(&mut site.command(&["refresh", "--link", link["link"].as_str().unwrap(), "--resource", resource]));
        }
    }
    let found = until_all_is_fetched(&site);
    for path in ["/healthz", "/readyz", "/metrics", &format!("/{}", person.replace(' ', "%20"))] {
        answers += &site.ask(path).await.1;
    }
    for command in ["status", "check"] {
        let ended = run(&mut site.command(&[command]));
        answers.extend([ended.out, ended.err]);
    }
    let of_process = std::fs::read(format!("/proc/{}/cmdline", served.pid())).unwrap();
    let of_process = String::from_utf8_lossy(&of_process).into_owned();
    assert!(of_process.contains("serve"), "{of_process}");
    assert_eq!(served.terminate(), Some(0));
    let log = site.logs();
    assert!(
        log.lines().count() > 300 && log.contains("\"level\":\"DEBUG\""),
        "the log is not talkative: {} lines",
        log.lines().count()
    );
    for code in CODES {
        let told: BTreeSet<_> = log.split("\"code\":\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(told.contains(code), "{code} is not among {told:?}");
    }
    assert!(answers.contains("vinculo_refreshes_total"), "{answers}");

    let secrets = [
        SECRET_ID.to_owned(),
        SECRET_PASSWORD.to_owned(),
        BASE64.encode(format!("{SECRET_ID}:{SECRET_PASSWORD}")),
        AUTHORIZATION.to_owned(),
        AUTHORIZATION.replace("Bearer ", ""),
        PEPPER.to_owned(),
    ];
    for (place, text) in [("the log", &log), ("an answer", &answers), ("the process list", &of_process)] {
        for needle in needles.people.iter().chain(&needles.work).chain(&secrets) {
            let around =
                text.find(needle.as_str()).map(|at| text[..at].lines().next_back().unwrap_or_default().to_owned());
            assert!(around.is_none(), "{needle:?} is in {place}, after {around:?}");
        }
    }
    // Analysts may know of work, and not who it is.
    for (table, rows) in &found {
        for value in rows.iter().flat_map(|row| row.values()).flatten() {
            assert!(!needles.people.contains(value), "{value:?} is in {table}");
        }
    }
    println!(
        "{} needles, {} log lines",
        needles.people.len() + needles.work.len() + secrets.len(),
        log.lines().count()
    );
}

/// Everything personal that Belvo tells of, in all spellings.
async fn needles(simulate: &Simulate) -> Needles {
    let links: Value = serde_json::from_str(&simulate.ask("links").await).unwrap();
    let mut needles = Needles::default();
    for link in links.as_array().unwrap() {
        let id = link["link"].as_str().unwrap();
        for owner in list(simulate, OWNERS, id).await {
            for field in ["display_name", "email", "phone_number", "address", "internal_identification"] {
                needles.people.extend(text(&owner[field]));
            }
            needles
                .people
                .extend(text(&owner["document_id"]["document_number"]).iter().flat_map(|number| spellings(number)));
        }
        for job in list(simulate, EMPLOYMENTS, id).await {
            let (name, code) = (text(&job["employer_data"]["name"]), text(&job["employer_data"]["code"]));
            // An employer who is a person is nobody's business, the analysts' neither.
            let is_person = code.as_ref().is_some_and(|code| code.len() == 11);
            let whose = if is_person { &mut needles.people } else { &mut needles.work };
            whose.extend(name);
            whose.extend(code.iter().flat_map(|code| spellings(code)));
            for salary in job["salaries"].as_array().into_iter().flatten() {
                // Shorter ones could be anything.
                needles.work.extend(Some(salary["base_amount"].to_string()).filter(|amount| amount.len() >= 7));
            }
        }
    }
    needles
}

async fn list(simulate: &Simulate, path: &str, link: &str) -> Vec<Value> {
    let url = format!("http://{}{path}?link={link}&page_size=1000", simulate.address);
    let answer = reqwest::Client::new().get(&url).basic_auth(SECRET_ID, Some(SECRET_PASSWORD)).send().await.unwrap();
    let page: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    page["results"].as_array().unwrap().clone()
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| text.len() >= 5).map(str::to_owned)
}

/// A CPF with and without its dots; other codes as they are.
fn spellings(code: &str) -> Vec<String> {
    let digits: String = code.chars().filter(char::is_ascii_digit).collect();
    if digits.len() != 11 {
        return vec![code.to_owned()];
    }
    let dotted = format!("{}.{}.{}-{}", &digits[..3], &digits[3..6], &digits[6..9], &digits[9..]);
    let dashed = format!("{}-{}", &digits[..9], &digits[9..]);
    vec![digits, dotted, dashed]
}

/// The list of one link stays refused, because Belvo keeps saying that it belongs to another.
fn until_all_is_fetched(site: &Site) -> tables::Tables {
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    loop {
        let status = site.status();
        if status["waiting"].as_u64() <= Some(1) && status["snapshot"]["rows"]["owners"].as_u64() >= Some(60) {
            return tables::from_duckdb(&site.lake());
        }
        assert!(std::time::Instant::now() < deadline, "{status:#}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
