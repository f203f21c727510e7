//! Every row and every value of every table is what the simulator says of the people.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use vinculo::publish::{self, Scope};
use vinculo::simulate::{ARCHETYPES, Advance};

use crate::binary::{self, Ended, Simulate, Site, free_address, vinculo};
use crate::harness::{AUTHORIZATION, Flow, PEPPER};
use crate::tables::{self, CLOCKS, Tables};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_connect_and_analysts_see_them_exactly() {
    let flow = Flow::start(64).await;
    assert_eq!(flow.simulation.connect_all(), 64);
    flow.until_idle().await;

    let (found, truth) = (flow.running.tables(), flow.truth());
    tables::assert_true(&found, &truth, &[]);
    assert_eq!(found["links"].len(), 64);
    assert!(ARCHETYPES.len() == 16 && found["salaries"].len() > 64 * 12, "{} salaries", found["salaries"].len());
    for (table, rows) in &truth {
        assert_eq!(found[table].len(), rows.len(), "{table}");
    }
    assert!(found["rejected_records"].is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn months_pass_and_the_tables_follow() {
    // Long enough for two lists, short enough to wait for.
    let flow = Flow::start_with(64, |_| {}, &[("belvo.confirm_after", "100ms")]).await;
    flow.simulation.connect_all();
    flow.until_idle().await;

    let clock = flow.running.clock.clone();
    for step in 1..=4 {
        let events = flow.simulation.advance(Advance { months: 1, ..Advance::default() });
        assert!(events > 60, "{events} events in month {step}");
        clock.advance(Duration::from_hours(24 * 31));
        flow.until_idle().await;
        let mut counted = flow.truth();
        counted.retain(|table, _| table == "link_snapshots");
        tables::assert_true(&flow.running.tables(), &counted, &[]);
        // As the job sync-links does: no webhook tells when Belvo last used a link.
        flow.running.daemon.links.sync().await.unwrap();
        flow.running.until_idle().await;
        publish::publish_in_background(&flow.running.daemon.publisher, Scope::Changed).await.unwrap();
        // `known_from` also depends on when this program last saw the version before, which the simulator cannot know;
        // and the job looks again where Belvo was and nothing came, so that the newest list is one that no webhook
        // counted.
        tables::assert_true(&flow.running.tables(), &flow.truth(), &["known_from", "webhook_count"]);
    }
}

#[test]
fn two_demos_give_the_same_rows_and_they_are_the_truth() {
    let folder = tempfile::tempdir().unwrap();
    let demo = |name: &str| -> Tables {
        let dir = folder.path().join(name);
        let ended = binary::run(vinculo().args(["demo", "--people", "500", "--dir"]).arg(&dir));
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        summary_helps_a_newcomer(&ended, &dir);
        let found = tables::from_duckdb(&dir.join("lake"));
        tables::assert_same(&tables::from_parquet(&dir.join("lake")), &found, &[]);
        tables::assert_keys_are_unique(&found);
        tables::assert_histories_agree(&found);
        found
    };
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| demo("second"));
        (demo("first"), second.join().unwrap())
    });
    tables::assert_same(&first, &second, &CLOCKS);

    // The same seed and people, and nobody who listens: the truth alone.
    let truth = runtime().block_on(async {
        let pepper = "demo-pepper-for-simulated-people";
        let simulate =
            Simulate::start(free_address(), &["--people", "500", "--pepper", pepper, "--webhook-latency", "10ms"]);
        simulate.tell("connect", "").await;
        simulate.ask("truth").await
    });
    tables::assert_true(&first, &tables::from_truth(&serde_json::from_str(&truth).unwrap()), &[]);
    let file = folder.path().join("truth.json");
    std::fs::write(&file, truth).unwrap();
    readers_agree(&folder.path().join("first/lake"), &file, &[]);
}

/// Rows per table, one question answered, where things are, what to try.
fn summary_helps_a_newcomer(ended: &Ended, dir: &Path) {
    let said = &ended.out;
    for table in tables::ALL {
        assert!(said.contains(&format!("  {table} ")), "no {table} in: {said}");
    }
    for part in [
        "500 simulated people",
        "rows",
        "cnae_section",
        "Try next:",
        "vinculo sql --config",
        &dir.display().to_string(),
    ] {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_and_belvo_as_two_processes_hold_the_same() {
    let belvo = free_address();
    let site = Site::new(belvo, &[("VINCULO_LAKE__PUBLISH_QUIET", "500ms")]);
    let served = site.serve();
    let webhook = site.webhook_url();
    let arguments = [
        "--people",
        "500",
        "--no-limit",
        "--pepper",
        PEPPER,
        "--webhook-latency",
        "500ms",
        "--webhook",
        &webhook,
        "--webhook-authorization",
        AUTHORIZATION,
    ];
    let simulate = Simulate::start(belvo, &arguments);
    simulate.tell("connect", "").await;
    let truth = simulate.ask("truth").await;
    let tables = tables::from_truth(&serde_json::from_str(&truth).unwrap());
    let found = site.until_true(&|| tables.clone(), &[]);
    assert_eq!(found["links"].len(), 500);
    assert_eq!(served.terminate(), Some(0));

    // The commands do it without the daemon too: the lake is made anew from the record store, and answers.
    let rebuilt = binary::run(&mut site.command(&["rebuild"]));
    assert_eq!(rebuilt.code, Some(0), "{}", rebuilt.err);
    let again = tables::from_duckdb(&site.lake());
    tables::assert_same(&again, &found, &CLOCKS);
    tables::assert_same(&tables::from_parquet(&site.lake()), &again, &[]);

    // Other buckets are a matter of the configuration and of the next publish.
    for buckets in ["16", "64", "1"] {
        let published = binary::run(site.command(&["publish"]).env("VINCULO_LAKE__LINK_BUCKETS", buckets));
        assert_eq!(published.code, Some(0), "{}", published.err);
        tables::assert_same(&tables::from_parquet(&site.lake()), &again, &[]);
        let salaries = binary::names_in(&site.lake().join("current/salaries"));
        assert_eq!(salaries.len().to_string(), buckets, "{salaries:?}");
        tables::assert_same(&tables::from_duckdb(&site.lake()), &again, &[]);
    }
    // So is another pepper: every person has another key, and none is left of the one before.
    let persons = |tables: &Tables| -> BTreeSet<_> {
        let keys = ["links", "owners", "owners_history"].into_iter().flat_map(|name| &tables[name]);
        keys.filter_map(|row| row["person_key"].clone()).collect()
    };
    for (pepper, is_same) in [("another-pepper-for-simulated-people", false), (PEPPER, true)] {
        let published = binary::run(site.command(&["publish"]).env("VINCULO_PII__PEPPER", pepper));
        assert_eq!(published.code, Some(0), "{}", published.err);
        let found = persons(&tables::from_duckdb(&site.lake()));
        assert_eq!(found.is_disjoint(&persons(&again)), !is_same);
        assert_eq!(found.len(), persons(&again).len());
    }
    let answer = binary::run(&mut site.command(&["sql", "--json", "SELECT count(*) AS people FROM links"]));
    assert_eq!((answer.code, answer.out.trim()), (Some(0), "{\"people\":500}"), "{}", answer.err);
    let file = site.folder.path().join("truth.json");
    std::fs::write(&file, truth).unwrap();
    readers_agree(&site.lake(), &file, &["--duckdb", "2.0.0"]);
}

/// DuckDB 1.1.3, 1.5.6 and 2.0.0 (unless `more` picks one), pyarrow, polars and pandas, where `make test` has installed
/// them.
fn readers_agree(lake: &Path, truth: &Path, more: &[&str]) {
    let Some(python) = std::env::var_os("VINCULO_READERS") else {
        eprintln!("SKIPPED: the readers; set VINCULO_READERS=$(scripts/readers-python.sh), as `make test` does");
        return;
    };
    let check = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/readers/check.py");
    let mut command = std::process::Command::new(python);
    command.arg(check).arg(lake).arg("--truth").arg(truth).args(["--allow-empty", "rejected_records"]).args(more);
    let ended = binary::run(&mut command);
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    println!("{}", ended.out.lines().last().unwrap_or_default());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}
