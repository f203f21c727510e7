//! What a publish costs when little changed, against one that writes everything, of the same lake.
//!
//! Three snapshots of 2,000 links: everything; after all links were asked again and had nothing new; and after one link
//! in a hundred had its next month. Both sinks, with one bucket and with sixteen.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use tokio::runtime;
use vinculo::clock::Clock;
use vinculo::config::{Config, Needs};
use vinculo::daemon::{Daemon, Parts};
use vinculo::link_id::LinkId;
use vinculo::publish::{self, Lake, Scope};
use vinculo::queue::{self, Trigger};
use vinculo::resources;

use crate::children::Simulator;
use crate::measure::aim_below;

const LINKS: u32 = 2_000;
/// Every so many links have news in the last round.
const ONE_IN: usize = 100;
/// Times that each is done; the best counts.
const ROUNDS: usize = 3;

pub(crate) fn run() -> anyhow::Result<bool> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut all_reached = true;
    for buckets in [1, 16] {
        all_reached &= runtime.block_on(with_buckets(buckets))?;
    }
    Ok(all_reached)
}

async fn with_buckets(buckets: u32) -> anyhow::Result<bool> {
    let simulator = Simulator::start(LINKS, &[])?;
    simulator.until_loaded().await?;
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let state = format!("sqlite://{}", folder.path().join("state.db").display());
    let lake = folder.path().join("lake").display().to_string();
    let buckets_text = buckets.to_string();
    let mut settings = simulator.settings().to_vec();
    settings.extend([
        ("state.url", state.as_str()),
        ("lake.url", &lake),
        ("lake.link_buckets", &buckets_text),
        // Each publish here is asked for.
        ("lake.publish_quiet", "1h"),
        ("lake.publish_max_wait", "1h"),
        ("pii.pepper", "pepper-of-the-bench"),
    ]);
    let config = Config::load(None, [], &settings, Needs { belvo: true, webhook: false })?;
    let daemon = Daemon::start(&config, Clock::system(), Parts::WithoutListeners).await?;
    daemon.until_published().await?;
    daemon.links.sync().await?;
    let all = daemon.store.read(vinculo::links::all).await?;
    anyhow::ensure!(all.len() == LINKS as usize, "the simulator has {LINKS} links");
    refresh(&daemon, &all).await?;

    let mut full = Duration::MAX;
    for _ in 0..ROUNDS {
        full = full.min(publish(&daemon, Scope::Everything).await?);
    }
    let lake = Lake::open(&config.lake.path)?;
    let snapshot = |lake: &Lake| lake.current().map(|manifest| lake.folder(manifest.snapshot));
    let whole = bytes(&snapshot(&lake).context("something was published")?, None)?;

    let mut unchanged = Duration::MAX;
    for _ in 0..ROUNDS {
        refresh(&daemon, &all).await?;
        unchanged = unchanged.min(publish(&daemon, Scope::Changed).await?);
    }

    let some: Vec<LinkId> = all.iter().step_by(ONE_IN).cloned().collect();
    let (mut changed, mut written) = (Duration::MAX, 0);
    for _ in 0..ROUNDS {
        let client = reqwest::Client::new();
        let advance = client.post(format!("{}/_sim/advance", simulator.base_url)).body(r#"{"months": 1}"#);
        advance.send().await?.error_for_status()?;
        let before = snapshot(&lake).context("something was published")?;
        refresh(&daemon, &some).await?;
        changed = changed.min(publish(&daemon, Scope::Changed).await?);
        written = bytes(&snapshot(&lake).context("something was published")?, Some(&before))?;
    }
    daemon.stop().await;

    println!("  {buckets} buckets: everything {:.3} s, {whole} bytes of Parquet", full.as_secs_f64());
    let percent = |part: f64, whole: f64| 100.0 * part / whole;
    let of_full = |part: Duration| percent(part.as_secs_f64(), full.as_secs_f64());
    let mut all_reached = aim_below("unchanged, % of the time for everything", of_full(unchanged), 5.0);
    all_reached &= aim_below("1 % changed, % of the time for everything", of_full(changed), 10.0);
    let share = percent(written as f64, whole as f64);
    all_reached &=
        aim_below("1 % changed, % of the bytes written again", share, if buckets == 1 { 100.1 } else { 20.0 });
    Ok(all_reached)
}

/// Asks for everything about `links`, and waits until it is durable.
async fn refresh(daemon: &Daemon, links: &[LinkId]) -> anyhow::Result<()> {
    let links = links.to_vec();
    let now = Clock::system().now();
    let marked = daemon.store.write(move |tx| {
        links.iter().try_for_each(|link| {
            resources::ALL.iter().try_for_each(|resource| queue::mark(tx, link, resource, Trigger::Operator, now))
        })
    });
    marked.await?;
    daemon.queue.announce();
    while daemon.store.read(queue::backlog).await?.pending > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn publish(daemon: &Daemon, scope: Scope) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let manifest = publish::publish_in_background(&daemon.publisher, scope).await?;
    anyhow::ensure!(manifest.is_some(), "there was something to publish");
    Ok(started.elapsed())
}

/// Bytes of the Parquet files in a snapshot's folder that are not in that of `before`, too.
fn bytes(folder: &Path, before: Option<&Path>) -> anyhow::Result<u64> {
    let held: HashSet<u64> = match before {
        Some(before) => files(before)?.into_iter().map(|(inode, _)| inode).collect(),
        None => HashSet::new(),
    };
    Ok(files(folder)?.into_iter().filter(|(inode, _)| !held.contains(inode)).map(|(_, bytes)| bytes).sum())
}

/// Inode and size of each Parquet file below a folder.
fn files(folder: &Path) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            let metadata = path.metadata()?;
            found.push((metadata.ino(), metadata.len()));
        }
    }
    Ok(found)
}
