//! The most memory that a reconciliation of a million links ever holds.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime;

use crate::children::{Running, Simulator};
use crate::measure::aim_below;

const LINKS: u32 = 1_000_000;

/// Longest time for one reconciliation.
const LONGEST: Duration = Duration::from_mins(10);

pub(crate) fn run() -> anyhow::Result<bool> {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    let simulator = Simulator::alone(LINKS, &[])?;
    // Links alone: what they hold would fill the machine.
    let connect = reqwest::Client::new().post(format!("{}/_sim/connect", simulator.base_url));
    let connected = runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        connect.body(r#"{"fetch_resources": []}"#).send().await?.error_for_status()?.bytes().await
    })?;
    anyhow::ensure!(connected.len() > 36 * LINKS as usize, "the simulator has fewer links");
    let state_url = format!("sqlite://{}", folder.path().join("state.db").display());
    let lake_url = folder.path().join("lake").display().to_string();
    let mut settings = simulator.settings().to_vec();
    settings.extend([
        ("state.url", state_url.as_str()),
        ("lake.url", &lake_url),
        ("pii.pepper", "pepper-of-the-bench"),
    ]);
    let mut is_reached = true;
    for what in ["a million new links", "a million known links"] {
        let started = Instant::now();
        let mut sync = Running::start(&["links", "sync"], &settings)?;
        let mut highest = 0.0_f64;
        while sync.ended()?.is_none() {
            anyhow::ensure!(started.elapsed() < LONGEST, "{what} were not reconciled within {} s", LONGEST.as_secs());
            highest = sync.high_water().unwrap_or_default().max(highest);
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::ensure!(sync.ended()? == Some(true), "`links sync` failed");
        println!("  {what}, {:.1} s", started.elapsed().as_secs_f64());
        is_reached &= aim_below("highest resident size of links sync in MiB", highest, 300.0);
    }
    Ok(is_reached)
}
