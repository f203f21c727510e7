//! A day in two minutes: what the daemon says is what its state holds, and it needs no more at the end than in the middle.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::{Served, Simulate, Site, free_address};
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

/// One number of the state's own.
fn count(site: &Site, sql: &str) -> u64 {
    let state = site.folder.path().join("var/state.db");
    let state = rusqlite::Connection::open_with_flags(state, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let found: i64 = state.query_row(sql, [], |row| row.get(0)).unwrap();
    found.cast_unsigned()
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
    let night = footprint(&served);
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

    // Flat: neither memory nor handles nor threads follow the number of hours.
    assert!(night.resident_mib <= noon.resident_mib * 6 / 5 + 32, "{noon:?}, then {night:?}");
    assert!(night.resident_mib <= 512, "{night:?}");
    assert!(night.handles <= noon.handles + 8 && night.handles <= 1_024, "{noon:?}, then {night:?}");
    assert!(night.threads <= noon.threads + 2, "{noon:?}, then {night:?}");
    assert_eq!(served.terminate(), Some(0));
}
