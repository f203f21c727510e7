//! Which dates `credit_features` is published for: recorded in the state, so that a rebuild repeats them.
//!
//! *Promises* one run for each date and mode. The clocks of a strict run are final once its day is over in UTC; a retro
//! run is replaced by the next one of its date. *Not here*: how a row is computed.

use std::fmt;

use chrono::{Datelike, Days, NaiveDate, NaiveTime};

use crate::clock::Timestamp;
use crate::store::{self, Row, Store, Tx, args};

/// What may have been known to a row.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// What was known by the end of the date, in UTC: for decisions and training.
    Strict,
    /// What is known now, cut back to the date: later corrections may be in it.
    Retro,
}

impl Mode {
    /// As the column `pit_mode` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Retro => "retro",
        }
    }

    /// The mode that the state calls so.
    pub(super) fn by_name(name: &str) -> Result<Self, store::Error> {
        let found = [Self::Strict, Self::Retro].into_iter().find(|mode| mode.name() == name);
        found.ok_or(store::Error::Unreadable("the mode of a run of features"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What somebody wants to have computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The date; today in UTC, by the clock of whoever records it, unless told.
    pub as_of: Option<NaiveDate>,
    /// What may have been known.
    pub mode: Mode,
    /// Months before the date's own that are not yet complete.
    pub lag_months: u32,
}

/// One run: what a partition of `credit_features` is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// The date.
    pub as_of: NaiveDate,
    /// What may have been known.
    pub mode: Mode,
    /// The instant up to which anything known is used.
    pub known_at: Timestamp,
    /// Months before the date's own that are not yet complete.
    pub lag_months: u32,
    /// When it was asked for.
    pub ran_at: Timestamp,
    /// The change of the record store that recorded it.
    pub change: i64,
}

impl Run {
    /// What it is called on record.
    pub fn name(&self) -> String {
        format!("{} {}", self.as_of, self.mode)
    }

    /// Links that were first seen later are none of the run's.
    pub fn until(&self) -> Timestamp {
        self.known_at.max(self.ran_at)
    }

    /// Whether it stays as it is, whoever asks for it at `now`.
    pub fn is_final(&self, now: Timestamp) -> bool {
        self.mode == Mode::Strict && self.known_at < now
    }
}

/// Dates of earlier years are slips, and each would stay a partition that is published for ever.
const FIRST_YEAR: i32 = 1900;

/// Why a run is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The date has not begun.
    #[error("{0} has not begun in UTC: nothing can be known of it; name today or an earlier date")]
    Future(NaiveDate),
    /// Nobody had a job in Belvo's records then.
    #[error("{0} is before {FIRST_YEAR}, and nothing can be known of it; name a later date")]
    Ancient(NaiveDate),
    /// A strict run is final.
    #[error(
        "the strict run of {as_of} is final, with a lag of {lag_months} months: decisions may have used it; \
         `--mode retro` computes another one beside it"
    )]
    Final {
        /// Its date.
        as_of: NaiveDate,
        /// Its lag.
        lag_months: u32,
    },
    /// The state.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Future(_) | Self::Ancient(_) | Self::Final { .. } => "features_refused",
            Self::Store(error) => error.code(),
        }
    }
}

/// The clock K of a date and mode at `now`: retro for today is strict.
///
/// # Errors
/// [`Error::Future`], [`Error::Ancient`].
pub fn clocks(as_of: NaiveDate, mode: Mode, now: Timestamp) -> Result<(Mode, Timestamp), Error> {
    let today = now.to_utc().date_naive();
    if as_of > today {
        return Err(Error::Future(as_of));
    }
    if as_of.year() < FIRST_YEAR {
        return Err(Error::Ancient(as_of));
    }
    if mode == Mode::Retro && as_of < today { Ok((Mode::Retro, now)) } else { Ok((Mode::Strict, end_of(as_of))) }
}

/// The last microsecond of a day in UTC.
pub fn end_of(day: NaiveDate) -> Timestamp {
    let next = day.checked_add_days(Days::new(1)).unwrap_or(day).and_time(NaiveTime::MIN).and_utc();
    Timestamp::from_micros(Timestamp::from(next).as_micros() - 1)
}

/// Records a run, so that the next publish computes it, and gives it. A strict one whose day is over stays as it is.
///
/// # Errors
/// [`Error`].
pub fn record(tx: &Tx<'_>, wanted: Wanted, now: Timestamp) -> Result<Run, Error> {
    let Wanted { as_of, mode, lag_months } = wanted;
    let as_of = as_of.unwrap_or_else(|| now.to_utc().date_naive());
    let (mode, known_at) = clocks(as_of, mode, now)?;
    let standing = all(tx)?.into_iter().find(|run| (run.as_of, run.mode) == (as_of, mode));
    if let Some(standing) = standing.filter(|run| run.is_final(now)) {
        return if standing.lag_months == lag_months {
            Ok(standing)
        } else {
            Err(Error::Final { as_of, lag_months: standing.lag_months })
        };
    }
    let change = tx.change()?;
    let date = as_of.to_string();
    tx.execute(
        "INSERT INTO feature_runs (as_of_date, pit_mode, known_at, lag_months, ran_at, changed_seq) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (as_of_date, pit_mode) DO UPDATE SET known_at = excluded.known_at, \
         lag_months = excluded.lag_months, ran_at = excluded.ran_at, changed_seq = excluded.changed_seq",
        args![date.as_str(), mode.name(), known_at, lag_months, now, change],
    )?;
    Ok(Run { as_of, mode, known_at, lag_months, ran_at: now, change })
}

/// Records a run in a transaction of its own.
///
/// # Errors
/// [`Error`].
pub async fn record_in_store(store: &Store, wanted: Wanted, now: Timestamp) -> Result<Run, Error> {
    // A refused run has written nothing, so its transaction may stand.
    let recorded = store.write(move |tx| match record(tx, wanted, now) {
        Err(Error::Store(error)) => Err(error),
        other => Ok(other),
    });
    recorded.await?
}

/// How many of the tracked links the run does not hold, because they came later.
///
/// # Errors
/// [`store::Error`].
pub fn left_out(tx: &Tx<'_>, run: &Run) -> Result<u64, store::Error> {
    tx.count("SELECT count(*) FROM links WHERE first_seen_at > $1", args![run.until()])
}

/// Every run, by date and mode.
///
/// # Errors
/// [`store::Error`].
pub fn all(tx: &Tx<'_>) -> Result<Vec<Run>, store::Error> {
    tx.all(
        "SELECT as_of_date, pit_mode, known_at, lag_months, ran_at, changed_seq FROM feature_runs \
         ORDER BY as_of_date, pit_mode DESC",
        args![],
        read,
    )
}

fn read(row: &Row<'_>) -> Result<Run, store::Error> {
    Ok(Run {
        as_of: row.str(0)?.parse().map_err(|_| store::Error::Unreadable("a run of features"))?,
        mode: Mode::by_name(row.str(1)?)?,
        known_at: row.at(2)?,
        lag_months: u32::try_from(row.int(3)?).map_err(|_| store::Error::Unreadable("a run of features"))?,
        ran_at: row.at(4)?,
        change: row.int(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    fn day(text: &str) -> NaiveDate {
        text.parse().unwrap()
    }

    #[test]
    fn strict_knows_until_the_day_is_over_and_retro_for_today_is_strict() {
        let now = at("2026-06-15T12:00:00Z");
        let end = at("2026-06-15T23:59:59.999999Z");
        assert_eq!(clocks(day("2026-06-15"), Mode::Strict, now).unwrap(), (Mode::Strict, end));
        assert_eq!(clocks(day("2026-06-15"), Mode::Retro, now).unwrap(), (Mode::Strict, end));
        assert_eq!(clocks(day("2026-06-14"), Mode::Retro, now).unwrap(), (Mode::Retro, now));
        assert!(matches!(clocks(day("2026-06-16"), Mode::Strict, now), Err(Error::Future(_))));
        assert!(matches!(clocks(day("0226-06-15"), Mode::Strict, now), Err(Error::Ancient(_))));
    }

    #[tokio::test]
    async fn a_second_retro_run_replaces_the_first_and_a_strict_one_is_final_after_its_day() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let record = async |date: &'static str, mode, lag, now: &'static str| {
            let wanted = Wanted { as_of: Some(day(date)), mode, lag_months: lag };
            record_in_store(&store, wanted, at(now)).await
        };
        let of_today = Wanted { as_of: None, mode: Mode::Retro, lag_months: 1 };
        let of_today = record_in_store(&store, of_today, at("2026-06-15T09:00:00Z")).await.unwrap();
        assert_eq!(of_today.name(), "2026-06-15 strict");
        record("2026-05-31", Mode::Retro, 1, "2026-06-15T10:00:00Z").await.unwrap();
        record("2026-05-31", Mode::Retro, 2, "2026-06-15T11:00:00Z").await.unwrap();
        record("2026-06-15", Mode::Strict, 1, "2026-06-15T10:00:00Z").await.unwrap();
        // Not over yet.
        record("2026-06-15", Mode::Strict, 2, "2026-06-15T11:00:00Z").await.unwrap();
        let kept = record("2026-06-15", Mode::Strict, 2, "2026-06-16T00:00:00Z").await.unwrap();
        assert_eq!(kept.ran_at, at("2026-06-15T11:00:00Z"));
        let refused = record("2026-06-15", Mode::Strict, 1, "2026-06-16T00:00:00Z").await;
        assert!(matches!(refused, Err(Error::Final { lag_months: 2, .. })));
        let insert = |tx: &Tx<'_>| {
            let sql = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, $2, 0)";
            for (link, seen) in
                [("a", "2026-06-15T10:00:00Z"), ("b", "2026-06-16T00:00:00Z"), ("c", "2026-06-17T00:00:00Z")]
            {
                tx.execute(sql, args![link, at(seen)])?;
            }
            Ok(())
        };
        store.write(insert).await.unwrap();
        assert_eq!(store.read(move |tx| left_out(tx, &kept)).await.unwrap(), 2);
        let runs = store.read(all).await.unwrap();
        let seen: Vec<_> =
            runs.iter().map(|run| (run.as_of.to_string(), run.mode, run.lag_months, run.known_at)).collect();
        assert_eq!(
            seen,
            [
                ("2026-05-31".to_owned(), Mode::Retro, 2, at("2026-06-15T11:00:00Z")),
                ("2026-06-15".to_owned(), Mode::Strict, 2, at("2026-06-15T23:59:59.999999Z")),
            ]
        );
    }
}
