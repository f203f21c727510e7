//! A day in two minutes: what the daemon says and shows is what its state holds, and it needs no more at the end than
//! in the middle.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::{Served, Simulate, Site, free_address, run};
use crate::dashboard::Browser;
use crate::harness::{AUTHORIZATION, TOKEN};
use crate::tables;

const PEOPLE: usize = 2_000;

/// What Belvo and the network do wrong, each to a share of calls or webhooks.
const FAULTS: [&str; 6] = [
    "status,code=500,share=0.03",
    "status,code=429,share=0.005,retry_after=1",
    "cut,share=0.02",
    "html,share=0.01",
    "next_malformed,share=0.02",
    "same_ids",
];

/// What a process holds, as the system counts it.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    resident_mib: u64,
    handles: usize,
    threads: u64,
}

fn footprint(served: &Served) -> Footprint {
    let folder = format!("/proc/{}", served.pid());
    let status = fs::read_to_string(format!("{folder}/status")).unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    Footprint {
        resident_mib: field("VmRSS:") / 1024,
        handles: fs::read_dir(format!("{folder}/fd")).unwrap().count(),
        threads: field("Threads:"),
    }
}

/// What the admin listener answers to `path`.
async fn ask(site: &Site, path: &str) -> Value {
    let request = reqwest::Client::new().get(format!("http://{}{path}", site.admin)).bearer_auth(TOKEN);
    serde_json::from_str(&request.send().await.unwrap().text().await.unwrap()).unwrap()
}

fn state(site: &Site) -> rusqlite::Connection {
    let path = site.folder.path().join("var/state.db");
    rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// One number of the state's own.
fn count(site: &Site, sql: &str) -> u64 {
    let state = state(site);
    let found: i64 = state.query_row(sql, [], |row| row.get(0)).unwrap();
    found.cast_unsigned()
}

/// The ids of seven links.
fn some_links(site: &Site) -> Vec<String> {
    let state = state(site);
    let mut found = state.prepare("SELECT link_id FROM links ORDER BY link_id LIMIT 7").unwrap();
    found.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// The numbers of the Overview, as they follow from the state.
fn expected(site: &Site) -> Vec<(&'static str, Vec<String>)> {
    let shown = |sql: &str| vinculo::admin::status::grouped(count(site, sql));
    let of_status = |status: &str| shown(&format!("SELECT count(*) FROM links WHERE status = '{status}'"));
    let of_outcome = |condition: &str| shown(&format!("SELECT count(*) FROM webhooks WHERE outcome {condition}"));
    let of_runs = |condition: &str| shown(&format!("SELECT count(*) FROM runs WHERE {condition}"));
    let waiting = |condition: &str| shown(&format!("SELECT count(*) FROM refreshes WHERE {condition}"));
    let links = vec![
        format!("Links {}", shown("SELECT count(*) FROM links")),
        format!(" working {}", of_status("valid")),
        format!(" needs its user {}", of_status("invalid")),
        format!(" {} waiting,", waiting("due_at IS NOT NULL OR lease IS NOT NULL")),
        format!(" {} waiting for a person", waiting("blocked_reason IS NOT NULL")),
    ];
    let (queued, quarantined) = (of_outcome("= 'queued'"), of_outcome("= 'quarantined'"));
    let webhooks = vec![
        format!("Webhooks 24 h {}", of_outcome("IS NOT NULL")),
        format!(
            "{queued} led to a fetch, {} noted, {quarantined} in quarantine",
            of_outcome("NOT IN ('queued', 'quarantined')")
        ),
    ];
    let budget = vec![format!("API budget 24 h {}", shown("SELECT sum(calls) FROM belvo_hours"))];
    let runs = vec![format!("Runs {} of {} well", of_runs("outcome = 'done'"), of_runs("finished_at IS NOT NULL"))];
    vec![("Links", links), ("Webhooks", webhooks), ("API budget", budget), ("Runs", runs)]
}

/// Holds the pages against the state and the lake.
async fn look_at_the_pages(site: &Site) {
    let browser = Browser::signed_in_at(site.admin, TOKEN).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    // Calls are counted every other second, so that it takes a moment until state and page are of one.
    let (wanted, overview) = loop {
        let before = expected(site);
        let overview = browser.get("/").await.text;
        if before == expected(site) {
            break (before, overview);
        }
        assert!(Instant::now() < deadline, "the state does not come to rest");
    };
    for (title, texts) in wanted {
        let card = overview.split("<section class=\"card\">").map(words).find(|card| card.starts_with(title));
        let card = card.unwrap_or_else(|| panic!("no {title} in {overview}"));
        for text in texts {
            println!("overview: {text}");
            assert!(card.contains(&text), "{text:?} is not in {card:?}");
        }
    }
    let data = browser.get("/data").await.text;
    let lake = tables::connect(&site.lake().join("vinculo.duckdb"));
    let rows: Vec<(String, u64)> = data
        .split("<tr>")
        .filter_map(|row| row.split_once("<td class=\"lead\">"))
        .map(|(_, row)| words(row))
        .map(|row| {
            let mut cells = row.split(' ');
            (cells.next().unwrap().to_owned(), cells.next().unwrap().replace(',', "").parse().unwrap())
        })
        .collect();
    assert!(rows.len() >= 11, "{data}");
    for (table, rows) in rows {
        let held: u64 = lake.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, held, "{table}");
    }
}

/// What a page says, without its marks.
fn words(html: &str) -> String {
    let texts = html
        .split('<')
        .enumerate()
        .map(|(at, part)| if at == 0 { part } else { part.split_once('>').map_or("", |(_, text)| text) });
    texts.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Handles and threads that may come on top of those of noon.
const MORE_HANDLES: usize = 8;
const MORE_THREADS: u64 = 2;

/// How large the program is once what is under way has let go of its handles; what leaks keeps them.
async fn at_rest(served: &Served, noon: &Footprint) -> Footprint {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = footprint(served);
        let is_flat = now.handles <= noon.handles + MORE_HANDLES && now.threads <= noon.threads + MORE_THREADS;
        if is_flat || Instant::now() > deadline {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until nothing waits and readers have every answer and every job that the state has; how things stand then.
async fn until_caught_up(site: &Site) -> Value {
    let deadline = Instant::now() + Duration::from_mins(3);
    loop {
        let status = ask(site, "/v1/status").await;
        let rows = &status["snapshot"]["rows"];
        let is_published = rows["link_snapshots"] == count(site, "SELECT count(*) FROM link_snapshots")
            && rows["employments"] == count(site, "SELECT count(*) FROM records WHERE resource = 'employments'");
        if status["links"] == PEOPLE && status["waiting"] == 0 && is_published {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: `make soak`"]
async fn a_day_of_two_thousand_links_with_faults_ends_true_and_no_larger() {
    let belvo = free_address();
    let site = Site::new(belvo, &[("VINCULO_LOG_LEVEL", "error,vinculo::cli::serve=info")]);
    let served = site.serve();
    let (people, webhook) = (PEOPLE.to_string(), site.webhook_url());
    let mut arguments = vec!["--people", &people, "--no-limit", "--webhook-latency", "200ms"];
    arguments.extend(["--webhook", &webhook, "--webhook-authorization", AUTHORIZATION]);
    arguments.extend(FAULTS.iter().flat_map(|fault| ["--fault", fault]));
    let simulate = Simulate::start(belvo, &arguments);
    let begun = Instant::now();
    simulate.tell("connect", "{}").await;
    println!("{PEOPLE} connected after {:.0?}; {:?}", begun.elapsed(), footprint(&served));

    // Twenty-four hours; in each Belvo reads some links again. The first half fills what may be kept.
    let mut noon = footprint(&served);
    for hour in 1..=24 {
        simulate.tell("advance", r#"{"seconds": 3600}"#).await;
        until_caught_up(&site).await;
        if hour == 12 {
            noon = footprint(&served);
            println!("noon after {:.0?}: {noon:?}", begun.elapsed());
        }
    }

    // At night nothing goes wrong, and what is left is done.
    let cleared = reqwest::Client::new().delete(format!("http://{belvo}/_sim/faults")).send().await.unwrap();
    assert!(cleared.status().is_success());
    let status = until_caught_up(&site).await;
    let night = at_rest(&served, &noon).await;
    println!("night after {:.0?}: {night:?}", begun.elapsed());

    // The numbers that are shown are those of the state and of the lake.
    assert_eq!(status["links"], count(&site, "SELECT count(*) FROM links"));
    assert_eq!(status["blocked"], 0, "{status:#}");
    let shown: u64 = status["webhooks"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(shown, count(&site, "SELECT count(*) FROM webhooks"));
    assert!(shown > 2 * PEOPLE as u64, "{status:#}");
    let lake = tables::connect(&site.lake().join("vinculo.duckdb"));
    for (table, rows) in status["snapshot"]["rows"].as_object().unwrap() {
        let held: u64 = lake.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        assert_eq!(rows, held, "{table}");
    }

    // Something of everything on the pages.
    for link in some_links(&site) {
        let expired = format!(r#"{{"webhook_type":"LINK","webhook_code":"invalid_credentials","link_id":"{link}"}}"#);
        assert_eq!(site.webhook(&expired).await.0, 200);
        assert_eq!(site.webhook(&expired.replace("LINK\"", "PLANETS\"")).await.0, 200);
    }
    for _ in 0..3 {
        assert_eq!(run(&mut site.command(&["publish"])).code, Some(0));
    }
    look_at_the_pages(&site).await;

    // Flat: neither memory nor handles nor threads follow the number of hours.
    assert!(night.resident_mib <= noon.resident_mib * 6 / 5 + 32, "{noon:?}, then {night:?}");
    assert!(night.resident_mib <= 512, "{night:?}");
    assert!(night.handles <= noon.handles + MORE_HANDLES && night.handles <= 1_024, "{noon:?}, then {night:?}");
    assert!(night.threads <= noon.threads + MORE_THREADS, "{noon:?}, then {night:?}");
    assert_eq!(served.terminate(), Some(0));
}
