//! The most memory that `serve` ever holds while it syncs.

use std::time::{Duration, Instant};

use anyhow::Context;
use tempfile::TempDir;
use tokio::runtime;
use vinculo::publish::{BuiltFrom, Lake};
use vinculo::queue;
use vinculo::store::Readers;

use crate::children::{Running, Simulator, free_address};
use crate::measure::aim_below;

const PEOPLE: u32 = 5_000;
/// Longest time for all of it.
const LONGEST: Duration = Duration::from_mins(5);

const AUTHORIZATION: &str = "Bearer the-bench-is-the-sender";

pub(crate) fn run() -> anyhow::Result<bool> {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (webhooks, admin) = (free_address()?, free_address()?);
    let simulator = Simulator::start(
        PEOPLE,
        &["--webhook", &format!("http://{webhooks}/webhooks/belvo"), "--webhook-authorization", AUTHORIZATION],
    )?;
    let (state, lake) = (folder.path().join("state.db"), folder.path().join("lake"));
    let state_url = format!("sqlite://{}", state.display());
    let lake_url = lake.to_string_lossy();
    let mut settings = simulator.settings().to_vec();
    settings.extend([
        ("webhook.listen", webhooks.as_str()),
        ("webhook.authorization", AUTHORIZATION),
        ("webhook.allow_ips", "127.0.0.1"),
        ("admin.listen", &admin),
        ("state.url", &state_url),
        ("lake.url", &lake_url),
        ("pii.pepper", "pepper-of-the-bench"),
    ]);
    let started = Instant::now();
    let serve = Running::serve(&settings)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let readers = Readers::of(&state);
    let manifest = loop {
        anyhow::ensure!(started.elapsed() < LONGEST, "{PEOPLE} people were not synced within {} s", LONGEST.as_secs());
        std::thread::sleep(Duration::from_millis(200));
        if !runtime.block_on(simulator.is_loaded())? || readers.read(queue::backlog)?.pending > 0 {
            continue;
        }
        let latest = readers.read(BuiltFrom::of)?;
        if let Some(manifest) = Lake::open(&lake)?.current().filter(|manifest| manifest.built_from == latest) {
            break manifest;
        }
    };
    let took = started.elapsed();
    let highest = serve.high_water().context("the kernel tells the highest size")?;
    let rows = |table: &str| manifest.table(table).map(|table| table.rows).context("every table is published");
    anyhow::ensure!(rows("links")? == u64::from(PEOPLE), "{} links were published", rows("links")?);
    anyhow::ensure!(rows("owners")? >= u64::from(PEOPLE), "{} owners were published", rows("owners")?);
    println!(
        "  {PEOPLE} people by webhook, {} salary rows, {} snapshots, {:.1} s",
        rows("salaries")?,
        manifest.snapshot,
        took.as_secs_f64()
    );
    Ok(aim_below("highest resident size of serve in MiB", highest, 256.0))
}
