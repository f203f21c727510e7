//! A whole sync, from the first question to tables that readers see, against a script that keeps no promise.
//!
//! Both sides list the links and then fetch the employments of each, one link a request, from the same simulator, which
//! is a process of its own and sends nothing by itself. Ours marks the links as an operator's `refresh --all --resource
//! employments` would: a webhook would add its own work to our side, and the script has none to take. Time counts from
//! before the first request until the last file is there: for ours that includes the durable record store, for the
//! script its files.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use tokio::runtime;
use vinculo::clock::Clock;
use vinculo::config::{Config, Needs};
use vinculo::daemon::{Daemon, Parts};
use vinculo::publish::{self, Lake, Scope};
use vinculo::queue::{self, Trigger};
use vinculo::resources::employments;
use vinculo::simulate::{SECRET_ID, SECRET_PASSWORD};

use crate::children::Simulator;
use crate::measure::{aim, cpu};

const LINKS: u32 = 2_000;
/// Rounds of each, one after the other; the best of each counts.
const ROUNDS: usize = 5;

pub(crate) fn run() -> anyhow::Result<bool> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    let simulator = Simulator::start(LINKS, &[])?;
    runtime.block_on(simulator.until_loaded())?;
    let (mut theirs, mut ours, mut with_duckdb) = (Vec::new(), Vec::new(), Vec::new());
    // Removed at the end: for some seconds ext4 looks at each inode that was just freed before it gives another.
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    for round in 0..ROUNDS {
        let folder = |side: &str| folder.path().join(format!("{side}-{round}"));
        theirs.push(script(&simulator, &folder("script"))?);
        ours.push(runtime.block_on(sync(&simulator, "parquet", &folder("ours")))?);
        with_duckdb.push(runtime.block_on(sync(&simulator, "parquet,duckdb", &folder("with-duckdb")))?);
    }
    let best =
        |rounds: &[Synced]| rounds.iter().copied().min_by_key(|synced| synced.whole).context("there were rounds");
    let (theirs, ours, with_duckdb) = (best(&theirs)?, best(&ours)?, best(&with_duckdb)?);
    anyhow::ensure!(
        ours.salaries == theirs.salaries,
        "the script has {} salary rows, and we have {}",
        theirs.salaries,
        ours.salaries
    );
    println!("  {LINKS} links, {} salary rows", ours.salaries);
    println!("  the script: {:.0} salary rows/s ({:.2} s)", theirs.rate(), theirs.whole.as_secs_f64());
    println!(
        "  ours, Parquet: {:.0} salary rows/s ({:.2} s, {:.2} CPU-seconds)",
        ours.rate(),
        ours.whole.as_secs_f64(),
        ours.cpu.unwrap_or_default().as_secs_f64()
    );
    println!(
        "  ours, Parquet and DuckDB: {:.0} salary rows/s ({:.2} s)",
        with_duckdb.rate(),
        with_duckdb.whole.as_secs_f64()
    );
    println!("  ours, durable in the record store: {:.0} links/s", f64::from(LINKS) / ours.fetched.as_secs_f64());
    Ok(aim("synced / the script", ours.rate() / theirs.rate(), 4.0))
}

#[derive(Clone, Copy)]
struct Synced {
    salaries: u64,
    /// Until every list was durable.
    fetched: Duration,
    /// Until everything was published.
    whole: Duration,
    /// Of this process, as far as it is known.
    cpu: Option<Duration>,
}

impl Synced {
    fn rate(&self) -> f64 {
        self.salaries as f64 / self.whole.as_secs_f64()
    }
}

async fn sync(simulator: &Simulator, sinks: &str, folder: &Path) -> anyhow::Result<Synced> {
    std::fs::create_dir(folder)?;
    let (state, lake) = (folder.join("state.db"), folder.join("lake"));
    let state = format!("sqlite://{}", state.display());
    let lake = lake.to_string_lossy();
    let mut settings = simulator.settings().to_vec();
    settings.extend([
        ("state.url", state.as_str()),
        ("lake.url", &lake),
        ("lake.sinks", sinks),
        // We publish when the last list is durable: what is measured is work, not the pause that exists to save it.
        ("lake.publish_quiet", "1h"),
        ("lake.publish_max_wait", "1h"),
        ("pii.pepper", "pepper-of-the-bench"),
        // The script has as many requests in flight; here some of them wait for the disk.
        ("belvo.workers", "32"),
    ]);
    let config = Config::load(None, [], &settings, Needs { belvo: true, webhook: false })?;
    let clock = Clock::system();
    let daemon = Daemon::start(&config, clock.clone(), Parts::WithoutListeners).await?;
    daemon.until_published().await?;

    let (started, cpu_before) = (Instant::now(), cpu());
    daemon.links.sync().await?;
    let now = clock.now();
    let marked = daemon.store.write(move |tx| {
        let links = vinculo::links::all(tx)?;
        links.iter().try_for_each(|link| queue::mark(tx, link, &employments::RESOURCE, Trigger::Operator, now))?;
        Ok(links.len())
    });
    anyhow::ensure!(marked.await? == LINKS as usize, "the simulator has {LINKS} links");
    daemon.queue.announce();
    // Asking costs our side something, so it is not asked at every one.
    while daemon.store.read(queue::backlog).await?.pending > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let fetched = started.elapsed();
    publish::publish_in_background(&daemon.publisher, Scope::Changed).await?;
    let whole = started.elapsed();
    let cpu = cpu().saturating_sub(cpu_before);

    let manifest = Lake::open(&config.lake.path)?.current().context("something was published")?;
    let salaries = manifest.table("salaries").context("salaries are published")?.rows;
    daemon.stop().await;
    Ok(Synced { salaries, fetched, whole, cpu: Some(cpu) })
}

fn script(simulator: &Simulator, out: &Path) -> anyhow::Result<Synced> {
    let python =
        std::env::var_os("VINCULO_BENCH_PYTHON").context("VINCULO_BENCH_PYTHON is not set: use `make bench`")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/naive_sync.py");
    let output = Command::new(python)
        .arg(script)
        .args(["--base-url", &simulator.base_url, "--id", SECRET_ID, "--password", SECRET_PASSWORD])
        .args(["--links", &LINKS.to_string(), "--out"])
        .arg(out)
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let whole = Duration::from_secs_f64(said["seconds"].as_f64().context("a figure is missing")?);
    Ok(Synced {
        salaries: said["salary_rows"].as_u64().context("a figure is missing")?,
        fetched: whole,
        whole,
        cpu: None,
    })
}
