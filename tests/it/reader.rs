//! Readers see one whole snapshot, hold nobody up, and find only finished, read-only files.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use vinculo::daemon::Daemon;
use vinculo::link_id::LinkId;
use vinculo::publish::{self, Lake, Scope};
use vinculo::queue::{self, Trigger};
use vinculo::resources;
use vinculo::simulate::{self, Fault, Resource, Simulation};
use vinculo::store::Tx;

use crate::binary::Site;
use crate::harness::{ANY_PORT, AUTHORIZATION, Flow, PEPPER, Serving, until_delivered};
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
    let slow = |settings: &mut simulate::Settings| settings.webhook_latency = Duration::from_secs(4);
    let flow = Flow::start_with(60, slow, &[("lake.publish_quiet", "0s")]).await;
    let lake = flow.running.lake();
    let done = Arc::new(AtomicBool::new(false));
    let reading = std::thread::spawn({
        let (lake, done) = (lake.clone(), done.clone());
        move || {
            let (mut snapshots, mut reads) = (BTreeSet::new(), 0);
            while !done.load(Ordering::SeqCst) {
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
    done.store(true, Ordering::SeqCst);
    let (snapshots, reads) = reading.join().unwrap();
    println!("{reads} reads of {snapshots} snapshots");
    assert!(snapshots >= 2 && reads >= snapshots, "{reads} reads of {snapshots} snapshots");
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
}

/// How often readers look.
const POLL: Duration = Duration::from_millis(50);

/// Publishes, unless `VINCULO_PUBLISHES` asks for more, and kills among them.
const PUBLISHES: u32 = 40;
const KILLS: u32 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_readers_see_whole_snapshots_while_many_are_published_and_the_daemon_is_killed() {
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let site = Site::new(
        listener.local_addr().unwrap(),
        &[
            ("VINCULO_LAKE__PUBLISH_QUIET", "0s"),
            ("VINCULO_LAKE__PUBLISH_MAX_WAIT", "0s"),
            ("VINCULO_LAKE__KEEP_FOR", "20s"),
        ],
    );
    let simulation = Simulation::new(simulate::Settings {
        people: 24,
        webhook: Some(site.webhook_url().parse().unwrap()),
        webhook_authorization: AUTHORIZATION.into(),
        webhook_latency: Duration::from_millis(10),
        webhook_backoff: Duration::from_millis(300),
        limit: None,
        pepper: Some(PEPPER.into()),
        ..simulate::Settings::default()
    });
    let _serving = Serving::start(&simulation, listener);
    simulation.connect_all();
    let lake = site.lake();
    let done = Arc::new(AtomicBool::new(false));
    // Where there is Python, half of the eight are pyarrow's and polars'.
    let python = poll_with_python(&lake);
    let threads = if python.is_some() { 4 } else { 8 };
    let readers: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn({
                let (lake, done) = (lake.clone(), done.clone());
                move || poll(&lake, &done)
            })
        })
        .collect();

    let publishes = std::env::var("VINCULO_PUBLISHES").ok().and_then(|text| text.parse().ok()).unwrap_or(PUBLISHES);
    let published = || Lake::look(&lake).current().map_or(0, |current| current.snapshot);
    let links = simulation.link_ids();
    let deadline = Instant::now() + Duration::from_secs(10) * publishes;
    let (mut served, mut kills, mut next) = (site.serve(), 0, 0);
    while published() < publishes {
        assert!(Instant::now() < deadline, "only {} publishes and {kills} kills", published());
        // Something is new all the time: often a look alone, now and then a month.
        simulation.send_again(&links[next % links.len()], Resource::ALL[next % 2], 1);
        next += 1;
        if next % 100 == 0 {
            simulation.advance(simulate::Advance { days: 7, ..simulate::Advance::default() });
        }
        if published() > (kills + 1) * publishes / (KILLS + 1) {
            served.kill();
            served = site.serve();
            kills += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(kills, KILLS);
    done.store(true, Ordering::SeqCst);
    let (mut reads, mut snapshots) = (0, BTreeSet::new());
    for reader in readers {
        let (count, seen) = reader.join().unwrap();
        reads += count;
        snapshots.extend(seen);
    }
    println!("{reads} reads of {} among {} snapshots, {kills} kills", snapshots.len(), published());
    assert!(reads > publishes && snapshots.len() > 10, "{reads} reads of {} snapshots", snapshots.len());
    if let Some(mut python) = python {
        drop(python.stdin.take());
        let ended = python.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{told}");
        println!("pyarrow and polars: {told}");
    }
    assert_eq!(served.terminate(), Some(0));
}

/// Opens the file every [`POLL`] until `done`: each time it is one snapshot, with each key once. Gives the reads, and
/// the snapshots that were seen.
fn poll(lake: &Path, done: &AtomicBool) -> (u32, BTreeSet<i64>) {
    let (mut reads, mut snapshots) = (0, BTreeSet::new());
    while !done.load(Ordering::SeqCst) {
        std::thread::sleep(POLL);
        if !lake.join("vinculo.duckdb").exists() {
            continue;
        }
        let analyst = tables::connect(&lake.join("vinculo.duckdb"));
        let one = |sql: &str| -> i64 { analyst.query_row(sql, [], |row| row.get(0)).unwrap() };
        let snapshot = one("SELECT snapshot FROM meta_snapshot");
        let counted = one("SELECT coalesce(sum(salary_count), 0)::BIGINT FROM employments");
        assert_eq!(one("SELECT count(*) FROM salaries"), counted, "snapshot {snapshot} is mixed");
        assert_eq!(one("SELECT count(*) FROM employments ANTI JOIN links USING (link_id)"), 0, "snapshot {snapshot}");
        for (table, key) in [
            ("links", "link_id"),
            ("employments", "employment_key"),
            ("salaries", "(employment_key, month_text, salary_type, seq)"),
            ("salaries_history", "(employment_key, month_text, salary_type, seq, known_from)"),
            ("link_snapshots", "(link_id, resource, fetched_at)"),
        ] {
            let twice = one(&format!("SELECT count(*) - count(DISTINCT {key}) FROM {table}"));
            assert_eq!(twice, 0, "{table} of snapshot {snapshot} has a key twice");
        }
        assert_eq!(one("SELECT snapshot FROM meta_snapshot"), snapshot, "the file changed under its reader");
        snapshots.insert(snapshot);
        reads += 1;
    }
    (reads, snapshots)
}

/// Readers of other makes, where `make test` has installed them.
fn poll_with_python(lake: &Path) -> Option<Child> {
    let Some(python) = std::env::var_os("VINCULO_READERS") else {
        eprintln!("SKIPPED: pyarrow and polars; set VINCULO_READERS=$(scripts/readers-python.sh), as `make test` does");
        return None;
    };
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/readers/poll.py"].iter().collect();
    let mut command = Command::new(python);
    command.arg(script).arg(lake).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command.spawn().unwrap())
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
async fn one_link_in_a_hundred_changes_a_fifth_of_the_bytes_at_most_and_all_rows_are_right() {
    let quiet = [("lake.link_buckets", "16"), ("lake.publish_quiet", "1h"), ("lake.publish_max_wait", "1h")];
    let flow = Flow::start_with(1_000, |_| (), &quiet).await;
    flow.simulation.connect_all();
    until_delivered(&flow.simulation).await;
    let daemon = &flow.running.daemon;
    flow.running.until_fetched().await;

    // One record each of these cannot be flattened, and is listed.
    let all: Vec<LinkId> = flow.simulation.link_ids().iter().map(|link| link.parse().unwrap()).collect();
    let broken = &all[1..4];
    for link in broken {
        let fault = format!("missing_key,key=employer_data,first=true,resource=employments,link={link}");
        flow.simulation.arm(Fault::parse(&fault).unwrap());
    }
    fetch_again(daemon, broken).await;
    flow.running.until_fetched().await;
    publish::publish_in_background(&daemon.publisher, Scope::Changed).await.unwrap().unwrap();

    // The next months of ten links; what the others have is not asked for.
    flow.simulation.arm(Fault::parse("lost").unwrap());
    let links: Vec<LinkId> = all.iter().step_by(100).cloned().collect();
    let mut before = fs::canonicalize(flow.running.lake().join("current")).unwrap();
    for month in 1..=3 {
        flow.simulation.advance(simulate::Advance { months: 1, ..simulate::Advance::default() });
        until_delivered(&flow.simulation).await;
        flow.running.clock.advance(Duration::from_hours(24 * 31));
        // As when Belvo tells of the others what is held already.
        let told = "UPDATE links SET last_webhook_at = coalesce(last_webhook_at, 0) + 1";
        daemon.store.write(move |tx| tx.execute(told, &[])).await.unwrap();
        fetch_again(daemon, &links).await;
        flow.running.until_fetched().await;
        publish::publish_in_background(&daemon.publisher, Scope::Changed).await.unwrap().unwrap();
        let after = fs::canonicalize(flow.running.lake().join("current")).unwrap();
        assert_ne!(before, after);
        let (held, now) = (parquet_bytes(&before), parquet_bytes(&after));
        let written: u64 = now.iter().filter(|(inode, _)| !held.contains_key(inode)).map(|(_, bytes)| bytes).sum();
        let whole: u64 = now.values().sum();
        assert!(written * 5 < whole, "month {month}: {written} of {whole} bytes were written again");
        // In a file that was taken over, rows that were replaced have left gaps.
        let database = tables::connect(&after.join("vinculo.duckdb"));
        let gaps = database.query_row("SELECT max(rowid) + 1 - count(*) FROM salaries", [], |row| row.get::<_, i64>(0));
        assert!(gaps.unwrap() > 0, "month {month}: all of the database was written again");
        before = after;
    }

    let found = flow.running.tables();
    assert_eq!(found["rejected_records"].len(), 3);
    publish::publish_in_background(&daemon.publisher, Scope::Everything).await.unwrap().unwrap();
    // A webhook that is no news is shown once its link is written for another reason.
    tables::assert_same(&flow.running.tables(), &found, &["last_webhook_at"]);
}

/// Orders both resources of these links, as an operator does.
async fn fetch_again(daemon: &Daemon, links: &[LinkId]) {
    let (links, now) = (links.to_vec(), vinculo::clock::Timestamp::from_micros(0));
    let mark = move |tx: &Tx<'_>| {
        let each =
            |link| resources::ALL.iter().try_for_each(|&each| queue::mark(tx, link, each, Trigger::Operator, now));
        links.iter().try_for_each(each)
    };
    daemon.store.write(mark).await.unwrap();
    daemon.queue.announce();
}

/// Inode and bytes of each Parquet file of a snapshot.
fn parquet_bytes(snapshot: &Path) -> HashMap<u64, u64> {
    let tables = fs::read_dir(snapshot).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let files = tables.flat_map(|table| tables::parquet_files(&table));
    files.map(|file| fs::metadata(file).unwrap()).map(|file| (file.ino(), file.len())).collect()
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
async fn a_table_of_an_older_schema_is_written_anew_with_its_whole_history() {
    let flow = Flow::start_with(16, |_| {}, &[("belvo.confirm_after", "100ms")]).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    flow.simulation.advance(simulate::Advance { months: 3, ..simulate::Advance::default() });
    flow.running.clock.advance(Duration::from_hours(24 * 92));
    flow.until_idle().await;
    let before = flow.running.tables();
    assert!(before["salaries_history"].iter().any(|row| row["known_to"].is_some()), "nothing has a past");

    // As an older program left it: with an earlier version, and without a column.
    let current = fs::canonicalize(flow.running.lake().join("current")).unwrap();
    for table in ["salaries", "salaries_history"] {
        for file in tables::parquet_files(&current.join(table)) {
            let shorter = file.with_extension("shorter");
            let sql = format!(
                "COPY (SELECT * EXCLUDE (extra) FROM read_parquet('{}', hive_partitioning = false)) TO '{}' (FORMAT parquet)",
                file.display(),
                shorter.display()
            );
            duckdb::Connection::open_in_memory().unwrap().execute_batch(&sql).unwrap();
            fs::rename(shorter, file).unwrap();
        }
    }
    let file = current.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for table in manifest["tables"].as_array_mut().unwrap() {
        table["schema_version"] = 0.into();
    }
    fs::remove_file(&file).unwrap();
    fs::write(&file, manifest.to_string()).unwrap();

    let calls = flow.simulation.arrivals().len();
    publish::publish_in_background(&flow.running.daemon.publisher, Scope::Changed).await.unwrap();
    tables::assert_same(&flow.running.tables(), &before, &[]);
    assert_eq!(flow.simulation.arrivals().len(), calls, "Belvo was asked");
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
