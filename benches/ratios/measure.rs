//! Clocks, and how a figure is printed.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// What one thing cost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost {
    /// CPU time of all its threads, user and system.
    pub cpu: Duration,
}

/// Runs `work` and says what it cost this process.
pub(crate) fn cost<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Cost)> {
    let before = cpu();
    let result = work()?;
    Ok((result, Cost { cpu: cpu().saturating_sub(before) }))
}

/// CPU time of all threads of this process so far, user and system.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Prints a ratio with its aim and says whether it was reached.
pub(crate) fn aim(what: &str, ratio: f64, at_least: f64) -> bool {
    let verdict = if ratio >= at_least { "reached" } else { "MISSED" };
    println!("  {what}: {ratio:.2} (aim: at least {at_least}) {verdict}");
    ratio >= at_least
}

/// Prints a figure with its aim and says whether it was reached.
pub(crate) fn aim_below(what: &str, figure: f64, limit: f64) -> bool {
    let verdict = if figure < limit { "reached" } else { "MISSED" };
    println!("  {what}: {figure:.1} (aim: below {limit}) {verdict}");
    figure < limit
}
