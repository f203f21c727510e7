//! Readers see one whole snapshot, hold nobody up, and find only finished, read-only files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use vinculo::publish::{self, Lake, Scope};
use vinculo::simulate::Resource;

use crate::harness::Flow;
use crate::tables;

/// Longer than webhooks for a link that was just fetched are gathered.
const SETTLED: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_analyst_who_holds_the_file_open_blocks_no_publish_and_sees_one_snapshot() {
    let flow = Flow::start(30).await;
    flow.simulation.connect(0, 5);
    flow.until_idle().await;

    let analyst = tables::connect(&flow.running.lake().join("vinculo.duckdb"));
    let resolved = fs::canonicalize(flow.running.lake().join("current")).unwrap();
    let before = tables::query(&analyst, "salaries");
    for publish in 1..=5 {
        flow.simulation.connect(5 * publish, 5);
        flow.until_idle().await;
        let current = Lake::open(&flow.running.lake()).unwrap().current().unwrap();
        assert!(current.snapshot > publish, "{publish} publishes, snapshot {}", current.snapshot);
        assert_eq!(tables::query(&analyst, "salaries"), before, "the analyst's snapshot changed");
        let links: Vec<_> = tables::query(&analyst, "links");
        assert_eq!(links.len(), 5);
    }
    let found = flow.running.tables();
    tables::assert_true(&found, &flow.truth(), &[]);
    assert!(found["links"].len() == 30 && found["salaries"].len() > before.len());

    // Six snapshots or more, and `keep_for` is an hour: what was resolved at the start is still there, whole.
    let files = tables::parquet_files(&resolved);
    assert!(!files.is_empty() && files.iter().all(|file| fs::metadata(file).unwrap().len() > 0));
    let folder = flow.running.lake().join("snapshots");
    assert!(fs::read_dir(folder).unwrap().count() >= 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tables_never_come_from_two_snapshots() {
    // Webhooks over four seconds, so that there is something to publish all the time.
    let slow = |settings: &mut vinculo::simulate::Settings| settings.webhook_latency = Duration::from_secs(4);
    let flow = Flow::start_with(60, slow, &[("lake.publish_quiet", "0s")]).await;
    let lake = flow.running.lake();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let reading = std::thread::spawn({
        let (lake, done) = (lake.clone(), done.clone());
        move || {
            let (mut snapshots, mut reads) = (std::collections::BTreeSet::new(), 0);
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                if lake.join("vinculo.duckdb").exists() {
                    let analyst = tables::connect(&lake.join("vinculo.duckdb"));
                    let one = |sql: &str| -> i64 { analyst.query_row(sql, [], |row| row.get(0)).unwrap() };
                    let counted = one("SELECT coalesce(sum(salary_count), 0)::BIGINT FROM employments");
                    assert_eq!(one("SELECT count(*) FROM salaries"), counted, "two snapshots in one file");
                    assert_eq!(one("SELECT count(*) FROM employments ANTI JOIN links USING (link_id)"), 0);
                    snapshots.insert(one("SELECT snapshot FROM meta_snapshot"));
                    reads += 1;
                }
            }
            (snapshots.len(), reads)
        }
    });
    flow.simulation.connect_all();
    flow.until_idle().await;
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    let (snapshots, reads) = reading.join().unwrap();
    println!("{reads} reads of {snapshots} snapshots");
    assert!(snapshots >= 2 && reads >= snapshots, "{reads} reads of {snapshots} snapshots");
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_tables_are_the_same_files_in_the_next_snapshot() {
    let flow = Flow::start(20).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let before = fs::canonicalize(flow.running.lake().join("current")).unwrap();

    // Belvo sends the owners again, and nothing in them is new.
    flow.running.clock.advance(SETTLED);
    let link = flow.simulation.link_ids().remove(0);
    flow.simulation.send_again(&link, Resource::Owners, 1);
    flow.until_idle().await;
    let after = fs::canonicalize(flow.running.lake().join("current")).unwrap();
    assert_ne!(before, after, "the look itself is news in link_snapshots");
    let inode = |snapshot: &Path, table: &str| -> Vec<u64> {
        tables::parquet_files(&snapshot.join(table)).iter().map(|file| fs::metadata(file).unwrap().ino()).collect()
    };
    for table in ["employments", "occupations", "salaries"] {
        assert_eq!(inode(&before, table), inode(&after, table), "{table} was written again");
    }
    assert_ne!(inode(&before, "link_snapshots"), inode(&after, "link_snapshots"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_gives_the_same_rows_and_belvo_is_not_asked() {
    let flow = Flow::start(30).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let (before, calls) = (flow.running.tables(), flow.simulation.arrivals().len());

    // Rebuilt beside the old files, and once more after somebody deleted the whole lake.
    for deletes in [false, true] {
        if deletes {
            fs::remove_dir_all(flow.running.lake().join("snapshots")).unwrap();
            fs::remove_file(flow.running.lake().join("current")).unwrap();
            fs::create_dir(flow.running.lake().join("snapshots")).unwrap();
        }
        publish::publish_in_background(&flow.running.daemon.publisher, Scope::Everything).await.unwrap().unwrap();
        tables::assert_same(&flow.running.tables(), &before, &[]);
    }
    assert_eq!(flow.simulation.arrivals().len(), calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_files_are_sealed_and_the_state_is_its_owners_alone() {
    let flow = Flow::start(5).await;
    flow.simulation.connect_all();
    flow.until_idle().await;

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let current = fs::canonicalize(flow.running.lake().join("current")).unwrap();
    let files =
        tables::parquet_files(&current).into_iter().chain(["vinculo.duckdb", "manifest.json"].map(|f| current.join(f)));
    let mut sealed = 0;
    for file in files {
        assert_eq!(mode(&file), 0o440, "{}", file.display());
        sealed += 1;
    }
    assert!(sealed >= 9, "{sealed} files");
    let state = flow.running.state();
    assert_eq!(mode(state.parent().unwrap()), 0o700);
    for entry in fs::read_dir(state.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_snapshots_go_and_the_last_few_stay() {
    let flow = Flow::start_with(30, |_| {}, &[("lake.keep_for", "0s"), ("lake.keep_snapshots", "2")]).await;
    for publish in 0..5 {
        flow.simulation.connect(5 * publish, 5);
        flow.until_idle().await;
    }
    // Old snapshots are dropped after the new one is told of.
    let deadline = Instant::now() + Duration::from_secs(10);
    let left = || fs::read_dir(flow.running.lake().join("snapshots")).unwrap().count();
    while left() > 2 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(left(), 2);
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
}
