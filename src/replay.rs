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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flatten::Plan;
    use crate::resources::employments;
    use crate::schema;

    const CONFIRM_AFTER: Duration = Duration::from_hours(1);

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_micros(minutes * 60_000_000)
    }

    /// A version that a list at `minutes` brought, with these months and their pay.
    fn version(minutes: i64, pays: &[(&str, u32)]) -> Version {
        let salaries: Vec<String> = pays
            .iter()
            .map(|(month, base)| {
                format!(r#"{{"base_amount":{base}.00,"retained_amount":0.01,"month":"{month}","currency":"BRL"}}"#)
            })
            .collect();
        let body = format!(
            r#"{{"id":"1","link":null,"created_at":null,"collected_at":null,"start_date":"2020-01-01","end_date":null,
            "employer_data":{{"name":"EMPRESA FICTÍCIA","code":"99000042","economic_activity":"6421-2"}},
            "occupations":[],"salaries":[{}]}}"#,
            salaries.join(",")
        );
        Version { body, known_from: at(minutes), fetched_at: at(minutes) }
    }

    /// Month, pay, and since which minute the row is known.
    type Salary = (String, String, i64);

    /// The salaries that stand after lists at `lists`.
    fn salaries(versions: &[Version], lists: &[i64]) -> (Vec<Salary>, Result<(), Rejection>) {
        let mut replay = Replay::new(Flattener::new(Plan::for_resource(&employments::RESOURCE), None), CONFIRM_AFTER);
        let mut columns = replay.columns();
        let facts = RecordFacts {
            link_id: "l",
            record_key: "k",
            record_id: "1",
            created_at: None,
            collected_at: None,
            known_from: at(0),
        };
        let lists: Vec<Timestamp> = lists.iter().map(|&minutes| at(minutes)).collect();
        let appended = replay.append(versions, &facts, &lists, &mut columns);
        let table = schema::get().table("salaries");
        let column = |name: &str| table.columns.iter().position(|column| column.name == name).unwrap();
        let (month, known_from) = (column("month_text"), column("known_from"));
        let rows = (0..columns[2].len()).map(|row| {
            let minutes = columns[2].timestamp(known_from, row).as_micros() / 60_000_000;
            (columns[2].text(month, row).unwrap().to_owned(), minutes)
        });
        let rows: Vec<_> = rows.collect();
        let batch = columns[2].take(&table.batch).unwrap();
        let amounts = batch.column_by_name("base_amount").unwrap();
        let amount = |row| arrow::util::display::array_value_to_string(amounts, row).unwrap();
        (rows.into_iter().enumerate().map(|(row, (month, minutes))| (month, amount(row), minutes)).collect(), appended)
    }

    fn row(month: &str, base: &str, minutes: i64) -> (String, String, i64) {
        (month.to_owned(), base.to_owned(), minutes)
    }

    #[test]
    fn a_row_is_known_since_its_own_content_began() {
        let versions = [
            version(0, &[("2025-01", 100)]),
            version(10, &[("2025-02", 200), ("2025-01", 100)]),
            version(20, &[("2025-01", 100), ("2025-02", 250)]),
        ];
        let (rows, appended) = salaries(&versions, &[0, 10, 20]);
        assert_eq!(rows, [row("2025-01", "100.0000", 0), row("2025-02", "250.0000", 20)]);
        assert_eq!(appended, Ok(()));
    }

    #[test]
    fn a_missing_row_stays_until_a_second_list_agrees() {
        let versions = [version(0, &[("2025-01", 100), ("2025-02", 200)]), version(10, &[("2025-02", 200)])];
        let both = [row("2025-01", "100.0000", 0), row("2025-02", "200.0000", 0)];
        assert_eq!(salaries(&versions, &[0, 10]).0, both);
        assert_eq!(salaries(&versions, &[0, 10, 69]).0, both);
        assert_eq!(salaries(&versions, &[0, 10, 70]).0, both[1..]);
    }

    #[test]
    fn a_row_that_comes_back_in_time_never_went() {
        let whole = [("2025-01", 100), ("2025-02", 200)];
        let versions = [version(0, &whole), version(10, &[("2025-02", 200)]), version(20, &whole)];
        assert_eq!(salaries(&versions, &[0, 10, 20]).0, [row("2025-01", "100.0000", 0), row("2025-02", "200.0000", 0)]);
    }

    #[test]
    fn a_row_that_comes_back_after_it_was_gone_is_known_anew() {
        let whole = [("2025-01", 100), ("2025-02", 200)];
        let versions = [version(0, &whole), version(10, &[("2025-02", 200)]), version(200, &whole)];
        let (rows, _) = salaries(&versions, &[0, 10, 100, 200]);
        assert_eq!(rows, [row("2025-01", "100.0000", 200), row("2025-02", "200.0000", 0)]);
    }

    #[test]
    fn a_version_that_cannot_be_flattened_changes_nothing() {
        let mut broken = version(10, &[("2025-01", 300)]);
        broken.body = broken.body.replace("2020-01-01", "2020-13-01");
        let versions = [version(0, &[("2025-01", 100)]), broken];
        let (rows, appended) = salaries(&versions, &[0, 10]);
        assert_eq!(rows, [row("2025-01", "100.0000", 0)]);
        assert_eq!(appended.unwrap_err().path, "start_date");
    }
}
