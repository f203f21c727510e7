//! The months of a link that the lake has pay for, year by year.

use std::collections::BTreeMap;
use std::path::Path;

use super::chart::Year;
use crate::coverage;
use crate::link_id::LinkId;

/// Years that are shown; careers are longer.
const YEARS: usize = 10;

/// The months that a link has pay for.
pub(super) struct Months {
    /// The latest years, the newest first, without a gap.
    pub(super) years: Vec<Year>,
    /// Months with pay, of all years.
    pub(super) count: usize,
    /// The first and the last of them, such as `2026-03`.
    pub(super) span: Option<(String, String)>,
}

/// Reads them from the current snapshot of the lake at `lake`; `None` when it has no DuckDB file to ask. Blocks.
pub(super) fn read(lake: &Path, link: &LinkId) -> Option<Months> {
    let months = coverage::months(lake, link)?;
    let mut years = BTreeMap::<i32, [u32; 12]>::new();
    for (&(year, month), &count) in &months {
        if let Some(place) = years.entry(year).or_default().get_mut(month.saturating_sub(1) as usize) {
            *place = count;
        }
    }
    let last = years.keys().next_back().copied().unwrap_or_default();
    let first = years.keys().next().copied().unwrap_or_default();
    let shown = (first..=last).rev().take(if years.is_empty() { 0 } else { YEARS });
    let shown = shown.map(|year| Year { year, months: years.get(&year).copied().unwrap_or_default() }).collect();
    let text = |&(year, month): &(i32, u32)| format!("{year}-{month:02}");
    let span = months.keys().next().map(text).zip(months.keys().next_back().map(text));
    Some(Months { years: shown, count: months.len(), span })
}
