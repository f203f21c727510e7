//! The versions of a record → its current rows, each known since its own content began.
//!
//! *Takes* every content that the record ever had, in order. *Gives* the rows that hold now. *Promises* that a row whose
//! content stays keeps its `known_from` however often the rest of the record changes, that a row which is missing from one
//! list stays until a second list, `confirm_after` later, agrees, and that a version which cannot be flattened changes
//! nothing. It is a function of the record store alone, so that the lake can be built again from it.

use std::cmp::Ordering;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::columns::Columns;
use crate::flatten::{Flattener, RecordFacts, Rejection};

/// One content of a record.
pub struct Version {
    /// Belvo's JSON.
    pub body: String,
    /// Since when it could have been known.
    pub known_from: Timestamp,
    /// When the list that brought it was complete.
    pub fetched_at: Timestamp,
}

/// Replays records of one resource, one after the other.
pub struct Replay<'p> {
    flattener: Flattener<'p>,
    confirm_after: Duration,
}

impl<'p> Replay<'p> {
    /// A replay on `flattener`, for lists that agree when they are `confirm_after` apart.
    pub fn new(flattener: Flattener<'p>, confirm_after: Duration) -> Self {
        Self { flattener, confirm_after }
    }

    /// Empty columns for [`Replay::append`].
    pub fn columns(&self) -> Vec<Columns> {
        self.flattener.columns()
    }

    /// Appends the current rows of a record with these versions, oldest first. `facts` are of its latest sighting, but for
    /// `known_from`, which is each version's; `lists` are the instants at which the complete lists that showed the record
    /// were complete, in order.
    ///
    /// # Errors
    /// The [`Rejection`] of the latest version. The rows of the last good one are appended all the same.
    pub fn append(
        &mut self,
        versions: &[Version],
        facts: &RecordFacts<'_>,
        lists: &[Timestamp],
        columns: &mut [Columns],
    ) -> Result<(), Rejection> {
        if let [only] = versions {
            return self.flattener.flatten(&only.body, &RecordFacts { known_from: only.known_from, ..*facts }, columns);
        }
        let mut current: Vec<Standing> = Vec::new();
        let mut latest = Ok(());
        for version in versions {
            let mut next = self.flattener.columns();
            let facts = RecordFacts { known_from: version.known_from, ..*facts };
            latest = self.flattener.flatten(&version.body, &facts, &mut next);
            if latest.is_err() {
                continue;
            }
            current = if current.is_empty() {
                next.into_iter().map(Standing::all_present).collect()
            } else {
                let lists = &lists[..lists.partition_point(|&list| list < version.fetched_at)];
                let tables = current.into_iter().zip(next).enumerate();
                tables
                    .map(|(table, (before, next))| self.succeed(table, before, next, version.fetched_at, lists))
                    .collect()
            };
        }
        for (columns, standing) in columns.iter_mut().zip(&current) {
            for row in 0..standing.rows.len() {
                let is_gone = standing.absent_since[row].is_some_and(|since| self.is_gone(since, lists));
                if !is_gone {
                    columns.push_row_of(&standing.rows, row);
                }
            }
        }
        latest
    }

    /// Whether one of the lists agreed that a row is gone which was missing at `since` for the first time.
    fn is_gone(&self, since: Timestamp, lists: &[Timestamp]) -> bool {
        lists.last().is_some_and(|&last| last >= since + self.confirm_after)
    }

    /// The rows that stand once `next` has come, at `at`, after `before` and the `lists` up to then.
    fn succeed(
        &self,
        table: usize,
        before: Standing,
        mut next: Columns,
        at: Timestamp,
        lists: &[Timestamp],
    ) -> Standing {
        let mut standing = Standing { rows: self.flattener.columns().swap_remove(table), absent_since: Vec::new() };
        let (mut old, mut new) = (0, 0);
        loop {
            let order = match (old < before.rows.len(), new < next.len()) {
                (true, true) => self.flattener.compare_keys(table, &before.rows, old, &next, new),
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                (false, false) => return standing,
            };
            if order.is_lt() {
                let since = before.absent_since[old].unwrap_or(at);
                if !self.is_gone(since, lists) && at < since + self.confirm_after {
                    standing.rows.push_row_of(&before.rows, old);
                    standing.absent_since.push(Some(since));
                }
                old += 1;
                continue;
            }
            if order.is_eq() {
                let ended = before.absent_since[old].is_some_and(|since| self.is_gone(since, lists));
                if !ended && self.flattener.same_content(table, &before.rows, old, &next, new) {
                    self.flattener.keep_known_from(table, &before.rows, old, &mut next, new);
                }
                old += 1;
            }
            standing.rows.push_row_of(&next, new);
            standing.absent_since.push(None);
            new += 1;
        }
    }
}

/// Rows of one table, and since when each is missing from the lists.
struct Standing {
    rows: Columns,
    absent_since: Vec<Option<Timestamp>>,
}

impl Standing {
    fn all_present(rows: Columns) -> Self {
        let absent_since = vec![None; rows.len()];
        Self { rows, absent_since }
    }
}
