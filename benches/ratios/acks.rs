//! Webhooks made durable, against a commit for each event and against nothing but the disk.
//!
//! The listener is the real one, on its own runtime and its own state file on the disk of the build folder; no refresh
//! runs, because what is measured is the way from the request to the 200. Events all differ, and so do their links: the
//! dearest case, since each adds a row to three tables.
//!
//! A commit for each event is measured twice: behind a plain listener, as whoever sends webhooks meets it, and alone,
//! as fast as the disk gives it. All of it is then done once more on a disk whose syncs take longer, in a process that
//! has such a one.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use rusqlite::{Connection, TransactionBehavior, params};
use serde::Deserialize;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio_util::sync::CancellationToken;
use vinculo::clock::Clock;
use vinculo::config::{Config, Needs};
use vinculo::queue::Queue;
use vinculo::store::Store;
use vinculo::webhook;

use crate::measure::{aim, aim_below};

/// Rounds of each, one after the other; of their ratios the middle one counts, because a disk is not the same from one
/// second to the next.
const ROUNDS: usize = 5;
/// Length of one round of one thing.
const ROUND: Duration = Duration::from_secs(2);
/// Connections that are kept, each with one event under way.
const CONNECTIONS: u64 = 512;
/// Events a second that come whether or not the earlier ones are answered,
const STEADY_RATE: u64 = 2_000;
/// and for how long.
const STEADY: Duration = Duration::from_secs(12);

/// How much longer a sync takes on the slower disk, in microseconds: between a disk in the machine and one over a
/// network.
const SLOWER: u32 = 2_000;
/// Names the file that says so: see `tests/disk/syncs.c`.
const SYNCS: &str = "SYNCS";

const AUTHORIZATION: &str = "Bearer the-bench-is-the-sender";

pub(crate) fn run() -> anyhow::Result<bool> {
    if std::env::var_os(SYNCS).is_some() {
        return measure();
    }
    let reached = measure()?;
    println!("\nacks, each sync {SLOWER} µs longer");
    Ok(reached & on_a_slower_disk()?)
}

/// Measures in a process whose syncs take longer.
fn on_a_slower_disk() -> anyhow::Result<bool> {
    let folder = tempfile::tempdir()?;
    let (library, told) = (folder.path().join("syncs.so"), folder.path().join("told"));
    fs::write(&told, SLOWER.to_string())?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk/syncs.c");
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]).arg("-ldl").status()?;
    anyhow::ensure!(compiled.success(), "{} does not compile", source.display());
    let mut measuring = Command::new(std::env::current_exe()?);
    Ok(measuring.args(["acks", "--bench"]).env("LD_PRELOAD", library).env(SYNCS, told).status()?.success())
}

fn measure() -> anyhow::Result<bool> {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let sender = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listening = Listening::start(&folder.path().join("ours/state.db"))?;
    let single = Arc::new(Mutex::new(Single::open(&folder.path().join("single/state.db"))?));
    let plain = PlainListener::start(Arc::clone(&single))?;
    let (next, next_of_theirs) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let disk = syncs_per_second(&folder.path().join("raw"))?;
        let commits = single.lock().unwrap_or_else(PoisonError::into_inner).commits_per_second(&next_of_theirs)?;
        let theirs = sender.block_on(acks_per_second(plain.address, &next_of_theirs))?;
        let (started, before) = (Instant::now(), next.load(Ordering::SeqCst));
        let ours = sender.block_on(acks_per_second(listening.address, &next))?;
        // Nothing is left for the others' time, and it is told what the rest took.
        listening.until_followed_up()?;
        let whole = (next.load(Ordering::SeqCst) - before) as f64 / started.elapsed().as_secs_f64();
        rounds.push((ours, theirs, commits, disk, whole));
    }
    rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (ours, theirs, commits, disk, whole) = rounds[ROUNDS / 2];
    println!(
        "  acknowledged with {CONNECTIONS} connections: {ours:.0}/s; with a commit for each event: {theirs:.0}/s; such commits \
         alone: {commits:.0}/s; fsync alone: {disk:.0}/s"
    );
    println!("  acknowledged / such commits alone: {:.2}; / fsync alone: {:.2}", ours / commits, ours / disk);
    println!("  until all was followed up, too: {whole:.0}/s, {:.2} of a commit for each event", whole / theirs);
    let mut reached = aim("acknowledged / with a commit for each event", ours / theirs, 10.0);

    let mut latencies = sender.block_on(at_a_steady_rate(listening.address, &next))?;
    latencies.sort_unstable();
    let at = |per_mille: usize| latencies[(latencies.len() - 1) * per_mille / 1000].as_secs_f64() * 1e3;
    println!(
        "  {STEADY_RATE}/s for {} s: {} of {} acknowledged, p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        STEADY.as_secs(),
        latencies.len(),
        STEADY_RATE * STEADY.as_secs(),
        at(500),
        at(990),
        at(1000)
    );
    reached &= aim_below("p99 in ms", at(990), 50.0);

    let state = listening.stop();
    let (kept, sent) = (count(&state)?, i64::try_from(next.load(Ordering::SeqCst))?);
    anyhow::ensure!(kept == [sent; 3], "{sent} events were acknowledged, and the state holds {kept:?}");
    let (kept, sent) = (count(&plain.stop())?, i64::try_from(next_of_theirs.load(Ordering::SeqCst))?);
    anyhow::ensure!(kept == [sent; 3], "{sent} events were committed, and the state holds {kept:?}");
    Ok(reached)
}

/// The body of event `number`: of the size that Belvo's have, and of a link of its own.
fn body(number: u64) -> String {
    format!(
        r#"{{"webhook_id":"{number:032x}","webhook_type":"EMPLOYMENTS","webhook_code":"historical_update","link_id":"{}","request_id":"{number:032x}","external_id":"customer-{number}","data":{{"total_employments":2}}}}"#,
        link(number)
    )
}

fn link(number: u64) -> String {
    // Ids come in no order.
    let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    format!("{:08x}-{:04x}-4000-8000-{number:012x}", random >> 32, random & 0xffff)
}

/// The listener on a runtime of its own.
struct Listening {
    address: SocketAddr,
    state: PathBuf,
    runtime: Runtime,
    store: Store,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Listening {
    fn start(state: &Path) -> anyhow::Result<Self> {
        let settings = [
            ("webhook.listen", "127.0.0.1:0"),
            ("webhook.allow_ips", "127.0.0.1"),
            ("webhook.authorization", AUTHORIZATION),
        ];
        let mut webhook = Config::load(None, [], &settings, Needs { belvo: false, webhook: true })?.webhook;
        webhook.max_connections = 2 * usize::try_from(CONNECTIONS)?;
        let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
        let store = Store::open(state)?;
        let shutdown = CancellationToken::new();
        let (address, serving) = runtime.block_on(async {
            let listener = TcpListener::bind(webhook.listen).await?;
            let address = listener.local_addr()?;
            store.follow_up_by(webhook::follow_up).await?;
            let queue = Queue::open(store.clone(), Clock::system()).await?;
            let serving = {
                let senders = webhook::Senders::new(&webhook.authorization);
                let (clock, settled) = (Clock::system(), tokio::sync::watch::Sender::new(()));
                let problems = vinculo::problems::Problems::default();
                let inbox = webhook::Inbox { queue, store: store.clone(), clock, settled, problems };
                webhook::run(listener, webhook, senders, inbox, shutdown.clone())
            };
            anyhow::Ok((address, tokio::spawn(serving)))
        })?;
        Ok(Self { address, state: state.to_owned(), runtime, store, shutdown, serving })
    }

    /// Waits until everything is done that follows from what was acknowledged.
    fn until_followed_up(&self) -> anyhow::Result<()> {
        Ok(self.runtime.block_on(self.store.write(|_| Ok(())))?)
    }

    /// Gives the place of its state.
    fn stop(self) -> PathBuf {
        self.shutdown.cancel();
        let _ = self.runtime.block_on(self.serving);
        let _ = self.runtime.block_on(self.store.write(|_| Ok(())));
        self.state
    }
}

/// A kept connection.
struct Sender {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Sender {
    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::with_capacity(1_024) })
    }

    /// Sends event `number` and waits for its 200.
    async fn send(&mut self, number: u64) -> anyhow::Result<()> {
        let body = body(number);
        let request = format!(
            "POST /webhooks/belvo HTTP/1.1\r\nHost: bench\r\nAuthorization: {AUTHORIZATION}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.received.clear();
        // Every 200 has the same short body.
        while !self.received.ends_with(b"\"accepted\"}") {
            let read = self.stream.read_buf(&mut self.received).await?;
            anyhow::ensure!(read > 0, "the listener ended a connection: {}", String::from_utf8_lossy(&self.received));
        }
        anyhow::ensure!(self.received.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.received));
        Ok(())
    }
}

/// As many events as the listener takes, each connection waiting for its answer.
async fn acks_per_second(address: SocketAddr, next: &Arc<AtomicU64>) -> anyhow::Result<f64> {
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        senders.push(Sender::connect(address).await?);
    }
    let started = Instant::now();
    let sending = senders.into_iter().map(|mut sender| {
        let next = Arc::clone(next);
        tokio::spawn(async move {
            let mut sent = 0_u64;
            while started.elapsed() < ROUND {
                sender.send(next.fetch_add(1, Ordering::SeqCst)).await?;
                sent += 1;
            }
            anyhow::Ok(sent)
        })
    });
    let mut sent = 0;
    for sending in sending.collect::<Vec<_>>() {
        sent += sending.await??;
    }
    Ok(sent as f64 / started.elapsed().as_secs_f64())
}

/// How long each of the events took that came at their own times. An event that waits for a connection waits on the
/// clock.
async fn at_a_steady_rate(address: SocketAddr, next: &Arc<AtomicU64>) -> anyhow::Result<Vec<Duration>> {
    let total = STEADY_RATE * STEADY.as_secs();
    let first = next.fetch_add(total, Ordering::SeqCst);
    let mut sending = Vec::new();
    let started = tokio::time::Instant::now() + Duration::from_millis(200);
    for connection in 0..CONNECTIONS {
        let mut sender = Sender::connect(address).await?;
        sending.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            let mut number = connection;
            while number < total {
                let due = started + Duration::from_nanos(1_000_000_000 / STEADY_RATE * number);
                tokio::time::sleep_until(due).await;
                sender.send(first + number).await?;
                latencies.push(due.elapsed());
                number += CONNECTIONS;
            }
            anyhow::Ok(latencies)
        }));
    }
    let mut latencies = Vec::new();
    for sending in sending {
        latencies.extend(sending.await??);
    }
    Ok(latencies)
}

/// What most write first: the same schema, settings and statements, and a commit for each event.
struct Single {
    connection: Connection,
    path: PathBuf,
}

/// What it reads of an event.
#[derive(Deserialize)]
struct Told {
    link_id: String,
    external_id: String,
}

impl Single {
    fn open(path: &Path) -> anyhow::Result<Self> {
        // Makes the schema.
        drop(Store::open(path)?);
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(3))?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", vinculo::store::SYNCHRONOUS)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn commits_per_second(&mut self, next: &AtomicU64) -> anyhow::Result<f64> {
        let (started, before) = (Instant::now(), next.load(Ordering::SeqCst));
        while started.elapsed() < ROUND {
            self.keep(body(next.fetch_add(1, Ordering::SeqCst)).as_bytes())?;
        }
        Ok((next.load(Ordering::SeqCst) - before) as f64 / started.elapsed().as_secs_f64())
    }

    /// What the listener does for an event of a new link.
    fn keep(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let Told { link_id: link, external_id } = serde_json::from_slice(body)?;
        let at = 1_795_176_000_000_000_i64;
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.prepare_cached(
            "INSERT INTO webhooks (received_at, webhook_type, webhook_code, link_id, outcome, reason, body) \
             VALUES (?1, 'EMPLOYMENTS', 'historical_update', ?2, 'queued', NULL, ?3)",
        )?
        .execute(params![at, link, body])?;
        let seq: i64 = tx
            .prepare_cached(
                "INSERT INTO meta (name, value) VALUES ('changes', '1') ON CONFLICT (name) DO UPDATE \
                 SET value = CAST(CAST(meta.value AS BIGINT) + 1 AS TEXT) RETURNING CAST(value AS BIGINT)",
            )?
            .query_row([], |row| row.get(0))?;
        let is_known = |sql: &str| tx.prepare_cached(sql)?.exists([&link]);
        let are_known = is_known("SELECT paused_reason FROM links WHERE link_id = ?1")?
            || is_known(
                "SELECT due_at, priority, attempts, last_started_at FROM refreshes WHERE link_id = ?1 AND resource = 'employments'",
            )?;
        anyhow::ensure!(!are_known, "each event has a link of its own");
        tx.prepare_cached(
            "INSERT INTO links (link_id, external_id, first_seen_at, last_webhook_at, lookup_due_at, changed_seq) \
             VALUES (?1, ?2, ?3, ?3, ?3, ?4)",
        )?
        .execute(params![link, external_id, at, seq])?;
        tx.prepare_cached(
            "INSERT INTO refreshes (link_id, resource, marks, due_at, priority, webhook_count) \
             VALUES (?1, 'employments', 1, ?2, 0, 2)",
        )?
        .execute(params![link, at])?;
        Ok(tx.commit()?)
    }
}

/// A listener that commits each event before it answers; on a runtime of its own, as ours is.
struct PlainListener {
    address: SocketAddr,
    single: Arc<Mutex<Single>>,
    _runtime: Runtime,
}

impl PlainListener {
    fn start(single: Arc<Mutex<Single>>) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
        let kept = Arc::clone(&single);
        let keep = move |headers: HeaderMap, body: Bytes| {
            let single = Arc::clone(&kept);
            async move {
                if headers.get("authorization").is_none_or(|value| value != AUTHORIZATION) {
                    return (StatusCode::UNAUTHORIZED, "");
                }
                let keep = move || single.lock().unwrap_or_else(PoisonError::into_inner).keep(&body);
                match tokio::task::spawn_blocking(keep).await {
                    Ok(Ok(())) => (StatusCode::OK, r#"{"status":"accepted"}"#),
                    _ => (StatusCode::SERVICE_UNAVAILABLE, ""),
                }
            }
        };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/webhooks/belvo", post(keep));
        runtime.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, single, _runtime: runtime })
    }

    /// Gives the place of its state.
    fn stop(self) -> PathBuf {
        self.single.lock().unwrap_or_else(PoisonError::into_inner).path.clone()
    }
}

/// What the disk can do: a page appended and made durable, as SQLite's log does it.
fn syncs_per_second(path: &Path) -> anyhow::Result<f64> {
    let file = File::create(path)?;
    let (page, mut syncs) = ([7_u8; 4_096], 0_u64);
    let started = Instant::now();
    while started.elapsed() < ROUND {
        file.write_all_at(&page, syncs * 4_096)?;
        file.sync_data()?;
        syncs += 1;
    }
    let elapsed = started.elapsed();
    fs::remove_file(path)?;
    Ok(syncs as f64 / elapsed.as_secs_f64())
}

/// Rows of the three tables that an event adds to.
fn count(state: &Path) -> anyhow::Result<[i64; 3]> {
    let connection = Connection::open(state).context("the state is there")?;
    let rows = |table: &str| connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0));
    Ok([rows("webhooks")?, rows("links")?, rows("refreshes")?])
}
