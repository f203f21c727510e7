//! What is due goes with a clock that is set back.
//!
//! *Takes* the wall clock, beside one that only goes on while the daemon runs, and beside what it wrote last while it
//! did not. *Gives* by how much the clock was set back. *Promises* that what is due is moved once for each step, also
//! over a restart, and that a clock that is only corrected moves nothing.

use std::time::{Duration, Instant};

use crate::clock::Timestamp;
use crate::queue;
use crate::store::{self, Store, Tx, args};

/// A clock that is set back by less than this is corrected; what is due then may wait for as much.
const CORRECTION: Duration = Duration::from_secs(5);

/// Name in `meta` of the instant at which a daemon last wrote that it runs.
pub(super) const LOOKED_AT: &str = "looked_at";

/// Lets everything be due earlier by as much as the clock was set back while nothing ran.
pub(super) async fn go_back_with_the_clock(store: &Store, now: Timestamp) -> Result<(), store::Error> {
    let go_back = move |tx: &Tx<'_>| {
        let looked_at = tx.meta(LOOKED_AT)?.and_then(|text| text.parse().ok()).map(Timestamp::from_micros);
        let Some(step) = looked_at.map(|at| at.since(now)).filter(|step| *step > CORRECTION) else { return Ok(()) };
        tell_of_step_back(step);
        move_due_back(tx, step, now)?;
        // In the same transaction, or whoever starts next would do it once more.
        tx.set_meta(LOOKED_AT, &now.as_micros().to_string())
    };
    store.write(go_back).await
}

/// Lets everything be due earlier by as much as the clock was set back, to `now`: it would wait for so much longer.
/// What was learnt by the clock that was ahead was learnt by now: whatever comes would be older.
pub(super) fn move_due_back(tx: &Tx<'_>, by: Duration, now: Timestamp) -> Result<(), store::Error> {
    queue::move_back(tx, by)?;
    for (table, due) in [
        ("links", "lookup_due_at"),
        ("recollects", "free_at"),
        ("recollects", "due_at"),
        ("widget_sessions", "due_at"),
        ("deletions", "due_at"),
    ] {
        tx.execute(&format!("UPDATE {table} SET {due} = {due} - $1 WHERE {due} IS NOT NULL"), args![by])?;
    }
    for (table, learnt) in
        [("links", "status_at"), ("links", "paused_at"), ("links", "looked_up_at"), ("refreshes", "last_fetched_at")]
    {
        tx.execute(&format!("UPDATE {table} SET {learnt} = $1 WHERE {learnt} > $1"), args![now])?;
    }
    Ok(())
}

fn tell_of_step_back(step: Duration) {
    tracing::warn!(code = "clock_went_back", seconds = step.as_secs(), "what is due goes with the clock");
}

/// The wall clock beside one that only goes on.
pub(super) struct TwoClocks {
    wall: Timestamp,
    steady: Instant,
    /// By how much the wall clock was set back since [`TwoClocks::was_followed`].
    step: Duration,
}

impl TwoClocks {
    pub(super) fn new(wall: Timestamp) -> Self {
        Self { wall, steady: Instant::now(), step: Duration::ZERO }
    }

    /// Notices whether the wall clock was set back since the last time, and tells of it. Gives by how much it was, each
    /// time by more than it is ever corrected, since what is due was moved for it.
    pub(super) fn notice_step_back(&mut self, wall: Timestamp) -> Option<Duration> {
        let step = (self.wall + self.steady.elapsed()).since(wall);
        if step > CORRECTION {
            tell_of_step_back(step);
            self.step += step;
        }
        (self.wall, self.steady) = (wall, Instant::now());
        Some(self.step).filter(|step| !step.is_zero())
    }

    /// What is due was moved.
    pub(super) fn was_followed(&mut self) {
        self.step = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Trigger, mark};
    use crate::resources::owners;

    #[test]
    fn a_clock_that_is_set_back_is_noticed_and_one_that_is_corrected_or_goes_ahead_is_not() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let mut clocks = TwoClocks::new(at(10_000));
        for (wall, expected) in [(10_004, false), (10_001, false), (40_000, false), (32_800, true), (32_801, false)] {
            assert_eq!(clocks.notice_step_back(at(wall)).is_some(), expected, "{wall}");
            clocks.was_followed();
        }
        // Whoever could not move what is due is told of both steps the next time.
        let steps = [32_700, 32_701, 32_600].map(|wall| clocks.notice_step_back(at(wall)).map(|step| step.as_secs()));
        assert_eq!(steps, [Some(101), Some(101), Some(202)]);
    }

    #[tokio::test]
    async fn what_is_due_goes_once_with_a_clock_that_was_set_back_while_nothing_ran() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let insert = move |tx: &Tx<'_>| {
            tx.set_meta(LOOKED_AT, &at(10_000).as_micros().to_string())?;
            let sql = "INSERT INTO deletions (link_id, asked_at, due_at) VALUES ('a', $1, $2)";
            tx.execute(sql, args![at(9_990), at(10_050)])
        };
        store.write(insert).await.unwrap();
        for (now, due) in [(9_996, 10_050), (2_000, 2_050), (2_001, 2_050), (5_000, 2_050)] {
            go_back_with_the_clock(&store, at(now)).await.unwrap();
            let found = store.read(|tx| tx.one("SELECT due_at FROM deletions", args![], |row| row.at(0))).await;
            assert_eq!(found.unwrap(), Some(at(due)), "{now}");
        }
    }

    #[tokio::test]
    async fn what_is_due_goes_back_with_the_clock_and_a_second_look_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |minutes: i64| Timestamp::from_micros(minutes * 60_000_000);
        let (wanted, confirmed) = ("00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002");
        let due = move |tx: &Tx<'_>| {
            for (link, trigger) in [(wanted, Trigger::Webhook), (confirmed, Trigger::Confirm)] {
                mark(tx, &link.parse().unwrap(), &owners::RESOURCE, trigger, at(500))?;
            }
            let others = [
                "INSERT INTO links (link_id, first_seen_at, lookup_due_at, status_at, changed_seq) VALUES ($1, 0, $2, $2, 0)",
                "INSERT INTO recollects (link_id, resources, asked_at, free_at, change, due_at) VALUES ($1, '', 0, $2, 0, $2)",
                "INSERT INTO widget_sessions (external_id, asked_at, due_at) VALUES ($1, 0, $2)",
                "INSERT INTO deletions (link_id, asked_at, due_at) VALUES ($1, 0, $2)",
            ];
            others.iter().try_for_each(|sql| tx.execute(sql, args![wanted, at(500)]).map(drop))?;
            move_due_back(tx, Duration::from_hours(2), at(400))?;
            let others = "SELECT lookup_due_at FROM links UNION ALL SELECT free_at FROM recollects \
                UNION ALL SELECT due_at FROM recollects UNION ALL SELECT due_at FROM widget_sessions \
                UNION ALL SELECT due_at FROM deletions";
            let learnt = tx.one("SELECT status_at FROM links", args![], |row| row.opt_at(0))?.flatten();
            assert_eq!(learnt, Some(at(400)));
            let refreshes = "SELECT due_at FROM refreshes ORDER BY priority";
            Ok((tx.all(refreshes, args![], |row| row.at(0))?, tx.all(others, args![], |row| row.at(0))?))
        };
        assert_eq!(store.write(due).await.unwrap(), (vec![at(380), at(500)], vec![at(380); 5]));
    }
}
