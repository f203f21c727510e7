//! What happened when, in counts: failed refreshes by code, and calls of Belvo's API by hour.
//!
//! *Takes* what fails and what is called, inside the caller's transaction. *Gives* both to people who look at it later.
//! *Promises* few rows: one for each code, and one for each of the last `KEEP` hours. *Not here*: what stands now; that
//! is in `refreshes` and `links`.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::store::{Error, Tx, args};

/// A code that was not seen for so long begins anew.
const QUIET: Duration = Duration::from_hours(7 * 24);

/// How long hours are kept.
const KEEP: Duration = Duration::from_hours(14 * 24);

const HOUR: i64 = 3_600_000_000;

/// Failures with one code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// The stable code.
    pub code: String,
    /// The first of them since a week without any.
    pub first_at: Timestamp,
    /// The last of them.
    pub last_at: Timestamp,
    /// How many there were.
    pub count: u64,
}

/// Counts a refresh that failed with `code`, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn note_failure(tx: &Tx<'_>, code: &str, at: Timestamp) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO failures (code, first_at, last_at, count) VALUES ($1, $2, $2, 1) ON CONFLICT (code) DO UPDATE SET \
         first_at = CASE WHEN failures.last_at < $3 THEN excluded.first_at ELSE failures.first_at END, \
         count = CASE WHEN failures.last_at < $3 THEN 1 ELSE failures.count + 1 END, last_at = excluded.last_at",
        args![code, at, at - QUIET],
    )?;
    Ok(())
}

/// Every code that was ever noted, the latest first.
///
/// # Errors
/// [`Error::Database`].
pub fn failures(tx: &Tx<'_>) -> Result<Vec<Failures>, Error> {
    tx.all("SELECT code, first_at, last_at, count FROM failures ORDER BY last_at DESC, code", args![], |row| {
        Ok(Failures { code: row.text(0)?, first_at: row.at(1)?, last_at: row.at(2)?, count: row.count(3)? })
    })
}

/// Counts `calls` of Belvo's API in the hour of `at`, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn note_calls(tx: &Tx<'_>, calls: u64, at: Timestamp) -> Result<(), Error> {
    let hour = at.as_micros().div_euclid(HOUR) * HOUR;
    let count = "INSERT INTO belvo_hours (hour_at, calls) VALUES ($1, $2) \
                 ON CONFLICT (hour_at) DO UPDATE SET calls = belvo_hours.calls + excluded.calls";
    tx.execute(count, args![hour, calls])?;
    tx.execute("DELETE FROM belvo_hours WHERE hour_at < $1", args![at - KEEP])?;
    Ok(())
}

/// Calls of Belvo's API in each of the last `hours` hours, the one of `now` last.
///
/// # Errors
/// [`Error::Database`].
pub fn calls_by_hour(tx: &Tx<'_>, hours: usize, now: Timestamp) -> Result<Vec<u64>, Error> {
    let last = now.as_micros().div_euclid(HOUR);
    let first = last - i64::try_from(hours).unwrap_or(i64::MAX) + 1;
    let mut calls = vec![0; hours];
    tx.each("SELECT hour_at, calls FROM belvo_hours WHERE hour_at >= $1", args![first * HOUR], |row| {
        let place = usize::try_from(row.int(0)? / HOUR - first).unwrap_or(usize::MAX);
        if let Some(hour) = calls.get_mut(place) {
            *hour = row.count(1)?;
        }
        Ok::<_, Error>(())
    })?;
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const DAY: i64 = 24 * HOUR;

    #[tokio::test]
    async fn failures_are_grouped_by_code_until_a_week_is_quiet() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |days: i64| Timestamp::from_micros(days * DAY);
        let note = move |tx: &Tx<'_>| {
            for (code, day) in [("timeout", 1), ("api_down", 1), ("timeout", 3), ("timeout", 9), ("api_down", 12)] {
                note_failure(tx, code, at(day))?;
            }
            failures(tx)
        };
        let group = |code: &str, first, last, count| Failures {
            code: code.to_owned(),
            first_at: at(first),
            last_at: at(last),
            count,
        };
        assert_eq!(store.write(note).await.unwrap(), [group("api_down", 12, 12, 1), group("timeout", 1, 9, 3)]);
    }

    #[tokio::test]
    async fn calls_are_counted_by_the_hour_and_not_kept_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |hours: i64, minutes: i64| Timestamp::from_micros(hours * HOUR + minutes * 60_000_000);
        let note = move |tx: &Tx<'_>| {
            for (calls, at) in [(9, at(0, 5)), (1, at(1000, 10)), (2, at(1000, 59)), (5, at(1002, 0))] {
                note_calls(tx, calls, at)?;
            }
            let kept = tx.one("SELECT count(*) FROM belvo_hours", args![], |row| row.int(0))?;
            Ok((calls_by_hour(tx, 4, at(1002, 30))?, kept))
        };
        assert_eq!(store.write(note).await.unwrap(), (vec![0, 3, 0, 5], Some(2)));
    }
}
