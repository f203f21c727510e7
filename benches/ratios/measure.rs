//! Clocks, and how a figure is printed.

use std::time::Duration;

/// What one thing cost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cost {
    /// CPU time of all its threads, user and system.
    pub cpu: Duration,
}

/// Runs `work` and says what it cost this process.
pub(crate) fn cost<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Cost)> {
    let before = cpu()?;
    let result = work()?;
    Ok((result, Cost { cpu: cpu()?.saturating_sub(before) }))
}

/// CPU time of all threads of this process so far, user and system.
pub(crate) fn cpu() -> anyhow::Result<Duration> {
    // The kernel counts in hundredths of a second here, whatever its own tick.
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
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
