//! Bad input gets the documented status or exit code, and a message that says what to do.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use vinculo::simulate::Fault;

use crate::binary::{Ended, Simulate, Site, free_address, run};
use crate::harness::{ANY_PORT, AUTHORIZATION, Flow};
use crate::scripted::{Answer, Belvo, EMPLOYMENTS};
use crate::tables;

/// How `serve` ends in a site whose configuration was changed.
fn serve_ends(site: &Site) -> Ended {
    run(&mut site.command(&["serve"]))
}

fn site() -> Site {
    Site::new(free_address(), &[])
}

fn change(site: &Site, from: &str, to: &str) {
    let text = fs::read_to_string(site.config()).unwrap();
    assert!(text.contains(from), "{from} is not in the configuration");
    fs::write(site.config(), text.replace(from, to)).unwrap();
}

/// The exit code is `code`, every part of `says` is in the message, and nothing was made.
#[track_caller]
fn refused(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.err);
    for part in says {
        assert!(ended.err.contains(part), "no {part:?} in: {}", ended.err);
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let site = site();
    change(&site, "[belvo]", "[belvo]\npagesize = 10");
    refused(&serve_ends(&site), 4, &["vinculo.toml: belvo.pagesize: unknown key; did you mean belvo.page_size?"]);
    assert!(!site.folder.path().join("var").exists() && !site.lake().exists(), "something was made");
}

#[test]
fn a_missing_secret_is_named_with_the_ways_to_give_it() {
    let site = site();
    change(&site, "secret_password = ", "#");
    let says = ["belvo.secret_password: is missing", "VINCULO_BELVO__SECRET_PASSWORD or belvo.secret_password_file"];
    refused(&serve_ends(&site), 4, &says);
    let site = self::site();
    change(&site, "authorization = ", "#");
    let says = ["webhook.authorization: is missing", "16 characters or more", "VINCULO_WEBHOOK__AUTHORIZATION"];
    refused(&serve_ends(&site), 4, &says);
}

#[test]
fn a_bad_cron_is_named_with_its_file() {
    let site = site();
    let job = "schedule = \"*/15 25 * * *\"\ntimezone = \"America/Sao_Paulo\"\naction = \"sync-links\"\n";
    fs::write(site.folder.path().join("jobs/nightly.toml"), job).unwrap();
    refused(&serve_ends(&site), 4, &["jobs/nightly.toml", "schedule", "*/15 25 * * *"]);
    refused(&run(&mut site.command(&["check"])), 4, &["jobs/nightly.toml", "schedule"]);
    refused(&run(&mut site.command(&["jobs", "run", "nightly"])), 4, &["jobs/nightly.toml", "schedule"]);
    // Together with what is wrong elsewhere, and before anything is made.
    change(&site, "[belvo]", "[belvo]\npagesize = 10");
    refused(&serve_ends(&site), 4, &["has 2 errors", "belvo.pagesize", "jobs/nightly.toml"]);
    assert!(!site.folder.path().join("var").exists() && !site.lake().exists(), "something was made");
}

#[test]
fn a_port_in_use_is_named() {
    let site = site();
    let _taken = TcpListener::bind(site.webhooks).unwrap();
    let says = ["webhook.listen", &site.webhooks.to_string(), "free the port, or set another one"];
    refused(&serve_ends(&site), 1, &says);
}

#[test]
fn a_state_held_by_another_instance_is_left_alone_and_its_holder_named() {
    let site = site();
    let served = site.serve();
    // Ports of its own, so that the state is what they meet at.
    let (webhooks, admin) = (free_address().to_string(), free_address().to_string());
    let mut second = site.command(&["serve"]);
    second.env("VINCULO_WEBHOOK__LISTEN", webhooks).env("VINCULO_ADMIN__LISTEN", admin);
    refused(&run(&mut second), 8, &["held", &served.pid().to_string()]);
    // A command that may ask the holder does so; one that may not leaves the state alone.
    assert_eq!(run(&mut site.command(&["publish"])).code, Some(0));
    let mut without_token = site.command(&["publish"]);
    without_token.env("VINCULO_ADMIN__TOKEN", "");
    refused(&run(&mut without_token), 8, &["admin.token", &served.pid().to_string()]);
    // Another state in the same folder would share the request budget, which one process counts.
    for arguments in [&["refresh", "--all"][..], &["widget", "--external-id", "user-1"]] {
        let mut neighbour = site.command(arguments);
        neighbour.env("VINCULO_STATE__URL", "sqlite://var/other.db");
        refused(&run(&mut neighbour), 8, &["budget.ledger", &served.pid().to_string()]);
    }
    assert_eq!(served.terminate(), Some(0));
    // No stale lock: after a kill it starts at once.
    site.serve().kill();
    assert_eq!(site.serve().terminate(), Some(0));
}

#[test]
fn a_lake_that_cannot_be_written_is_named() {
    let site = site();
    // Below a file there can be no folder, whoever asks.
    fs::write(site.folder.path().join("file"), "").unwrap();
    change(&site, "url = \"lake\"", "url = \"file/lake\"");
    let says = ["lake.url", "file/lake cannot be used", "name a folder that this user may write"];
    refused(&serve_ends(&site), 4, &says);
    change(&site, "url = \"file/lake\"", "url = \"lake\"");
    let ended = run(site.command(&["serve"]).env("VINCULO_STATE__URL", "sqlite://file/state.db"));
    refused(&ended, 4, &["state.url", "name a folder that this user may write"]);
}

const JSON: (&str, &str) = ("content-type", "application/json");
const AUTH: (&str, &str) = ("authorization", AUTHORIZATION);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_webhook_is_refused_with_the_reason_and_nothing_is_kept() {
    let site = site();
    let _served = site.serve();
    let post = |body: Vec<u8>, headers: &'static [(&'static str, &'static str)]| {
        let mut request = reqwest::Client::new().post(site.webhook_url()).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async move {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        }
    };
    let body = || br#"{"webhook_type":"EMPLOYMENTS"}"#.to_vec();

    let none = post(body(), &[JSON]).await;
    let wrong = post(body(), &[JSON, ("authorization", "Bearer some-other-value-0123")]).await;
    let double = post(body(), &[JSON, AUTH, AUTH]).await;
    assert_eq!((none.0, wrong.0, double.0), (401, 401, 401));
    assert!(none.1 == wrong.1 && wrong.1 == double.1 && none.1.contains("webhook.authorization"), "{none:?} {wrong:?}");

    let large = post(vec![b' '; 65 * 1_024], &[JSON, AUTH]).await;
    assert!(large.0 == 413 && large.1.contains("webhook.max_body"), "{large:?}");
    for not_an_object in ["", "webhook", "[1]", "{\"webhook_type\":", "17", "\u{feff}{}"] {
        let answer = post(not_an_object.into(), &[JSON, AUTH]).await;
        assert!(answer.0 == 400 && answer.1.contains("send one JSON object"), "{not_an_object:?}: {answer:?}");
    }
    let form = post(body(), &[("content-type", "text/plain"), AUTH]).await;
    assert!(form.0 == 415 && form.1.contains("application/json"), "{form:?}");
    let packed = post(body(), &[JSON, AUTH, ("content-encoding", "gzip")]).await;
    assert_eq!(packed.0, 415);
    let get = reqwest::Client::new().get(site.webhook_url()).send().await.unwrap();
    assert_eq!(get.status().as_u16(), 405);
    let elsewhere = reqwest::Client::new().post(format!("http://{}/other", site.webhooks)).send().await.unwrap();
    assert_eq!(elsewhere.status().as_u16(), 404);
    assert_eq!(site.status()["webhooks"], serde_json::json!({}));

    // An object that is not understood is kept, and told of.
    let strange = post(br#"{"webhook_type":"WEATHER"}"#.to_vec(), &[JSON, AUTH]).await;
    assert_eq!(strange.0, 200);
    assert_eq!(site.status()["webhooks"], serde_json::json!({"quarantined": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_by_address() {
    let site = Site::new(free_address(), &[("VINCULO_WEBHOOK__ALLOW_IPS", "[\"192.0.2.7\"]")]);
    let _served = site.serve();
    let (status, text) = site.webhook("{}").await;
    assert!(status == 403 && text.contains("webhook.allow_ips"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_json_is_thrown_away_whole_and_asked_for_again() {
    let belvo = Belvo::start().await;
    let site = Site::new(belvo.address, &[]);
    let _served = site.serve();
    let link = "99000000-0000-4000-8000-000000000001";
    let job = include_str!("../fixtures/employments/guide.json");
    // Of a link that Belvo does not know nothing is asked for again.
    belvo.has_link(link, format!(r#"{{"id":"{link}","status":"valid","access_mode":"recurrent"}}"#));
    belvo.lists(EMPLOYMENTS, link, job);
    belvo.says_next(EMPLOYMENTS, Answer::ok(&job[..job.len() / 2]));

    let body = format!(
        r#"{{"webhook_type":"EMPLOYMENTS","webhook_code":"historical_update","link_id":"{link}","data":{{"total_employments":1}}}}"#
    );
    assert_eq!(site.webhook(&body).await.0, 200);
    let found = until_employments(&site, 1).await;
    assert_eq!(found["rejected_records"].len(), 0);
    assert_eq!(belvo.calls(EMPLOYMENTS).len(), 2);
    let log = site.logs();
    let line = log.lines().find(|line| line.contains("\"code\":\"truncated\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(
        line.contains(&vinculo::link_id::log_tag(link)) && line.contains("employments") && line.contains("attempt"),
        "{line}"
    );
    assert!(!log.contains("Wayne"), "the body is in the log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_cut_short_is_thrown_away_whole_and_asked_for_again() {
    let flow = Flow::start(4).await;
    flow.simulation.arm(Fault::parse("cut,on=employments,times=2").unwrap());
    flow.simulation.connect_all();
    flow.until_idle().await;
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
    assert_eq!(flow.simulation.calls(EMPLOYMENTS, None), 4 + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_next_page_on_another_host_is_never_called() {
    let canary = TcpListener::bind(ANY_PORT).unwrap();
    canary.set_nonblocking(true).unwrap();
    let belvo = free_address();
    let site = Site::new(belvo, &[]);
    let _served = site.serve();
    let fault = format!(
        "next_elsewhere,on=employments,times=1,to=http://{}/api/br/employments/?page=2",
        canary.local_addr().unwrap()
    );
    let webhook = site.webhook_url();
    let arguments =
        ["--people", "1", "--webhook-latency", "0s", "--webhook", &webhook, "--webhook-authorization", AUTHORIZATION];
    let simulate =
        Simulate::start(belvo, &[&arguments[..], &["--pepper", crate::harness::PEPPER, "--fault", &fault]].concat());
    simulate.tell("connect", "").await;

    // It is asked again, and then Belvo says where the end is.
    let truth = tables::from_truth(&serde_json::from_str(&simulate.ask("truth").await).unwrap());
    site.until_true(&|| truth.clone(), &[]);
    let log = site.logs();
    let line = log.lines().find(|line| line.contains("\"code\":\"foreign_next\"")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("is not followed"), "{line}");
    let called = canary.accept();
    assert!(called.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{called:?}");
}

/// Waits until analysts see so many employments.
async fn until_employments(site: &Site, count: usize) -> tables::Tables {
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    loop {
        if site.lake().join("current").exists() {
            let found = tables::from_duckdb(&site.lake());
            if found["employments"].len() == count {
                return found;
            }
        }
        assert!(std::time::Instant::now() < deadline, "{}", site.logs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
