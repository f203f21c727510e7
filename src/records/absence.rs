//! What a list lacks, records and rows of them, and when that is gone.
//!
//! *Takes* a list of which each record is kept, and the lists before it. *Gives* versions that say a record is gone,
//! and the instant at which another list is wanted. *Promises* that no list ends anything alone, however soon a second
//! one agrees; that an older list says nothing about what it lacks, nor does one with a record without an id, or an
//! empty one of a link that is not in order; and that what is missing is asked for until it is settled, and not again.
//! *Not here*: since when a row of a record that stays is gone (`replay`).

use std::collections::HashSet;
use std::time::Duration;

use super::body::pack;
use super::versions::{Contents, GONE, Held};
use super::{Compare, Keeping, LinkRecords, ListTimes, NO_ID};
use crate::clock::Timestamp;
use crate::links;
use crate::store::{Error, Tx, args};

/// An empty list of a link that is not in order is asked for again so much later.
const LINK_RECOVERS: Duration = Duration::from_hours(24);

impl<'k> Keeping<'k> {
    /// Ends the records that both this list and an earlier one lack. Another list is wanted instead where the earlier
    /// one is too recent, where there is none, or where this list is no evidence. Gives the keys of the records that it
    /// ended.
    pub(super) fn end_missing(&mut self, webhook_count: Option<i64>) -> Result<HashSet<&'k str>, Error> {
        let mut ended = HashSet::new();
        // An older answer says nothing of what came later. An empty list says that records are gone only when a webhook
        // counted none and the link is in order: Belvo drops what it holds without a word.
        let is_empty = self.records.is_empty();
        let is_evidence = if is_empty { webhook_count == Some(0) } else { !self.is_stale };
        let ends = is_evidence && (!is_empty || self.of.is_valid()?);
        let is_doubtful = is_evidence && self.has_nameless_record();
        let now = self.list.fetched_at;
        for (key, held) in self.missing() {
            let first = self.of.first_list_without(held)?;
            if is_doubtful {
                self.of.note_shown(key, now)?;
                if first.is_some() {
                    // This list had been asked for, and cannot say which record it lacks.
                    self.kept.want_list_at(now + self.wait_for_another());
                }
                continue;
            }
            let Some(absent_since) = first.or(is_evidence.then_some(now)) else { continue };
            if first.is_none() || now < absent_since + self.confirm_after {
                self.kept.want_list_at(absent_since + self.confirm_after);
            } else if ends {
                self.of.end_record(key, self.list, self.kept.collected_at)?;
                ended.insert(key);
                self.kept.gone += 1;
            } else {
                // The list that was asked for came, and settled nothing.
                self.kept.want_list_at(now + self.wait_for_another());
            }
        }
        Ok(ended)
    }

    /// The held records, with their keys, that the list would show if they were not gone.
    fn missing(&self) -> Vec<(&'k str, &'k Held)> {
        let shown: HashSet<&str> = self.keys.iter().map(String::as_str).collect();
        let held = self.known.by_key.iter().map(|(key, held)| (key.as_str(), held));
        held.filter(|(key, held)| !shown.contains(key) && !held.is_gone()).collect()
    }

    /// How long after a list that settles nothing another one is wanted.
    fn wait_for_another(&self) -> Duration {
        // The link may be in order again by then.
        if self.records.is_empty() { self.confirm_after.max(LINK_RECOVERS) } else { self.confirm_after }
    }

    /// Whether the list has a record without an id that matches no record known by an id: it may be one that seems
    /// missing.
    fn has_nameless_record(&self) -> bool {
        let named: HashSet<&String> =
            self.known.key_of_id.iter().filter(|(id, _)| !id.starts_with(NO_ID)).map(|(_, key)| key).collect();
        let mut nameless = self.records.iter().zip(self.keys).filter(|(record, _)| record.id.starts_with(NO_ID));
        nameless.any(|(_, key)| !named.contains(key))
    }

    /// Finds rows that an earlier version of their record lacked, and of which this list, as the second, says that they
    /// are gone. Another list is wanted where this one cannot say so, because it is empty or an older answer, or comes
    /// too soon. Records that are gone, from before or because they have just `ended`, have no rows to lose.
    pub(super) fn settle_lost_rows(&mut self, ended: &HashSet<&str>, compare: &mut Compare<'_>) -> Result<(), Error> {
        let Self { of, known, confirm_after, is_stale, .. } = *self;
        if known.by_key.values().all(|held| held.version <= 1) {
            return Ok(());
        }
        let (is_empty, now) = (self.records.is_empty(), self.list.fetched_at);
        let counted = of.last_list_that_counts()?.unwrap_or(Timestamp::from_micros(0));
        for (key, at) in of.lost_rows(counted - confirm_after, now - confirm_after, compare)? {
            let is_gone = known.by_key.get(&key).is_some_and(Held::is_gone) || ended.contains(key.as_str());
            if is_gone || is_settled(of.tx, of.link_id.as_str(), of.resource.name, at + confirm_after)? {
                continue;
            }
            // Neither an older answer nor an empty one can confirm that they are gone: another list has to.
            if is_empty || is_stale {
                self.kept.want_list_at(now + self.wait_for_another());
            } else {
                self.kept.changed = true;
            }
        }
        // This list may have come too early to agree, and has taken the place of the one that was asked for.
        if let Some((_, at)) = of.lost_rows(now - confirm_after, now, compare)?.first() {
            self.kept.want_list_at(*at + confirm_after);
        }
        Ok(())
    }
}

impl LinkRecords<'_> {
    /// Whether Belvo says that the link is in order.
    fn is_valid(self) -> Result<bool, Error> {
        Ok(links::status(self.tx, self.link_id)?.as_deref() == Some(links::VALID))
    }

    /// The first list after `held` was last seen that counts as evidence that it is gone.
    fn first_list_without(self, held: &Held) -> Result<Option<Timestamp>, Error> {
        let Self { tx, link_id, resource } = self;
        let first = tx.one(
            "SELECT min(fetched_at) FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND fetched_at > $3 \
             AND (item_count > 0 OR webhook_count = 0) AND is_stale = 0",
            args![link_id, resource.name, held.seen_fetched_at],
            |row| row.opt_at(0),
        )?;
        Ok(first.flatten())
    }

    /// Keeps that a record is gone: a version without a body, as of the list that says so, which Belvo collected at
    /// `collected_at`.
    fn end_record(self, key: &str, list: ListTimes, collected_at: Option<Timestamp>) -> Result<(), Error> {
        let Self { tx, link_id, resource } = self;
        // An empty list has no such time, and ours is not Belvo's.
        tx.execute(
            "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, created_at, collected_at, \
             known_from, started_at, fetched_at, body) \
             SELECT r.link_id, r.resource, r.record_key, max(v.version) + 1, 0, r.record_id, r.created_at, \
             coalesce($7, r.collected_at), \
             $4, $5, $4, $6 FROM records r \
             JOIN record_versions v ON v.link_id = r.link_id AND v.resource = r.resource AND v.record_key = r.record_key \
             WHERE r.link_id = $1 AND r.resource = $2 AND r.record_key = $3 \
             GROUP BY r.link_id, r.resource, r.record_key",
            args![link_id, resource.name, key, list.fetched_at, list.started_at, pack("").as_slice(), collected_at],
        )?;
        tx.execute(
            "UPDATE records SET content_hash = $4, version_at = $5, collected_at = coalesce($6, collected_at), version = \
             (SELECT max(version) FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3) \
             WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![link_id, resource.name, key, GONE, list.fetched_at, collected_at],
        )?;
        Ok(())
    }

    /// When the last list before this one that counts for what it lacks was complete.
    fn last_list_that_counts(self) -> Result<Option<Timestamp>, Error> {
        let Self { tx, link_id, resource } = self;
        let last = tx.one(
            "SELECT max(fetched_at) FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND item_count > 0 AND is_stale = 0",
            args![link_id, resource.name],
            |row| row.opt_at(0),
        )?;
        Ok(last.flatten())
    }

    /// Versions that came after `after` and up to `until` and lack rows of the version before: the key of the record
    /// and when the version came, the earliest first.
    fn lost_rows(
        self,
        after: Timestamp,
        until: Timestamp,
        compare: &mut Compare<'_>,
    ) -> Result<Vec<(String, Timestamp)>, Error> {
        let Self { tx, link_id, resource } = self;
        let versions = tx.all(
            "SELECT record_key, version, fetched_at FROM record_versions WHERE link_id = $1 AND resource = $2 AND version > 1 \
             AND is_late = 0 AND fetched_at > $3 AND fetched_at <= $4 ORDER BY fetched_at",
            args![link_id, resource.name, after, until],
            |row| Ok((row.text(0)?, row.int(1)?, row.at(2)?)),
        )?;
        let mut lost = Vec::new();
        for (key, version, at) in versions {
            let of_record = Contents { of: self, key: &key };
            // One that is damaged lacks nothing that anybody knows of.
            if let Some((readable, new)) = of_record.latest_before(version + 1)?
                && readable == version
                && let Some((earlier, old)) = of_record.latest_before(version)?
                && of_record.loses_rows(earlier, old, &new, compare)?
            {
                lost.push((key, at));
            }
        }
        Ok(lost)
    }
}

/// Whether a list that counts for what it lacks has come at `since` or later, so that the matter is settled.
///
/// # Errors
/// [`Error::Database`].
pub fn is_settled(tx: &Tx<'_>, link_id: &str, resource: &str, since: Timestamp) -> Result<bool, Error> {
    let settled = tx.one(
        "SELECT 1 FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND fetched_at >= $3 AND item_count > 0 \
         AND is_stale = 0 LIMIT 1",
        args![link_id, resource, since],
        |_| Ok(()),
    )?;
    Ok(settled.is_some())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::records::test_state::{TestState, job, minute, paid};

    #[tokio::test]
    async fn the_same_older_answer_twice_agrees_with_nothing() {
        let state = TestState::new().await;
        state.list(0, &[paid(&[1, 2], 30)]).await;
        state.forget_marks().await;
        state.list(10, &[paid(&[1], 40)]).await;
        assert_eq!(state.due().await, Some(70), "a row is missing");
        for minutes in [20, 75] {
            state.forget_marks().await;
            let late = state.list(minutes, &[paid(&[1, 2, 3], 20)]).await;
            assert_eq!((late.versions, late.late), (0, usize::from(minutes == 20)));
        }
        assert_eq!(state.due().await, Some(135), "a list that agrees is still wanted");
        let versions = state.lists_of_late_versions().await;
        assert_eq!(versions, [(20, false), (75, true)], "the second says no more than that it is no evidence");
        for (minutes, jobs) in [(135, vec![paid(&[1, 2, 4], 20)]), (195, vec![])] {
            state.forget_marks().await;
            state.list(minutes, &jobs).await;
            assert_eq!(state.due().await, Some(minutes + 60), "nor does another old one, or an empty one");
        }
        state.forget_marks().await;
        assert!(state.list(255, &[paid(&[1], 40)]).await.changed, "this one does");
        assert!(!state.list(265, &[paid(&[1], 40)]).await.changed, "and once");
        assert_eq!(state.due().await, None);
    }

    #[tokio::test]
    async fn a_content_that_cannot_be_read_hides_no_row_that_is_lost() {
        let state = TestState::new().await;
        state.list(0, &[paid(&[1, 2], 0)]).await;
        state.list(10, &[paid(&[1, 2], 10).replace("1.00", "\"one\"")]).await;
        state.forget_marks().await;
        state.list(20, &[paid(&[1], 20)]).await;
        assert_eq!(state.due().await, Some(80));
        assert!(state.list(80, &[paid(&[1], 20)]).await.changed, "two lists agree");
    }

    #[tokio::test]
    async fn what_empty_lists_ended_comes_back_as_it_was() {
        let state = TestState::new().await;
        state.set_status("valid").await;
        let jobs = [job(1, "99000042", "2020-01-01", "null", 0)];
        state.list(0, &jobs).await;
        state.list(100, &[]).await;
        assert_eq!(state.list(200, &[]).await.gone, 1);
        state.forget_marks().await;
        let again = state.list(300, &[]).await;
        assert_eq!((again.changed, state.due().await), (false, None), "nothing is left to be asked");
        let back = state.list(400, &jobs).await;
        assert_eq!((back.versions, back.late), (1, 0));
    }

    #[tokio::test]
    async fn an_older_list_says_nothing_about_what_it_lacks() {
        let state = TestState::new().await;
        let stays = |minute| job(1, "99000042", "2020-01-01", "null", minute);
        let newer = job(2, "99000077", "2021-01-01", "null", 30);
        state.list(0, &[stays(30), newer.clone()]).await;
        state.forget_marks().await;
        state.list(10, &[stays(20)]).await;
        assert_eq!(state.due().await, None, "nothing is missing from an older list");
        assert_eq!(state.list(500, &[stays(20)]).await.gone, 0);
        // Nor is it the first of two that agree.
        assert_eq!(state.list(600, &[stays(40)]).await.gone, 0);
        assert_eq!(state.due().await, Some(660));
        assert_eq!(state.list(660, &[stays(40)]).await.gone, 1);
    }

    #[tokio::test]
    async fn a_list_that_says_nothing_leaves_a_missing_job_to_be_asked_for() {
        let stays = |minute| job(1, "99000042", "2020-01-01", "null", minute);
        let (older, nothing) = (vec![stays(5)], vec![]);
        // What comes before the wanted list leaves it wanted; what comes in its place is followed by another.
        for (says_nothing, minutes, due) in
            [(&older, 30, 70), (&older, 70, 130), (&nothing, 30, 70), (&nothing, 70, 70 + 24 * 60)]
        {
            let state = TestState::new().await;
            state.list(0, &[stays(10), job(2, "99000077", "2021-01-01", "null", 10)]).await;
            state.list(10, &[stays(20)]).await;
            state.forget_marks().await;
            let kept = state.list_counting(minutes, says_nothing, None).await;
            assert_eq!((kept.gone, state.due().await), (0, Some(due)), "{says_nothing:?} at {minutes}");
            state.forget_marks().await;
            assert_eq!(state.list(due, &[stays(30)]).await.gone, 1);
            assert_eq!(state.due().await, None);
        }
    }

    #[tokio::test]
    async fn one_list_ends_nothing_however_soon_a_second_may_agree() {
        let state = TestState::confirming_after(Duration::ZERO).await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        state.list(0, &[stays.clone(), goes]).await;
        assert_eq!(state.list(10, std::slice::from_ref(&stays)).await.gone, 0);
        assert_eq!(state.list(11, std::slice::from_ref(&stays)).await.gone, 1);
    }

    #[tokio::test]
    async fn a_record_without_an_id_may_be_any_that_seems_to_be_missing() {
        let state = TestState::new().await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        state.list(0, &[stays.clone(), goes.clone()]).await;
        let nameless = r#"{"link":null,"collected_at":"2026-01-01T00:00:00.000Z"}"#.to_owned();
        for minutes in [10, 500] {
            assert_eq!(state.list(minutes, &[stays.clone(), nameless.clone()]).await.gone, 0, "at {minutes}");
        }
        // Nor is it the second list that was asked for: another one is.
        state.list(510, std::slice::from_ref(&stays)).await;
        for (minutes, due) in [(580, Some(640)), (640, None)] {
            state.forget_marks().await;
            assert_eq!(state.list(minutes, &[stays.clone(), nameless.clone()]).await.gone, 0, "at {minutes}");
            assert_eq!(state.due().await, due, "and once");
        }
        // Once it has an id again, two lists have to agree as ever; the nameless one is gone after as many.
        state.list(700, std::slice::from_ref(&stays)).await;
        assert_eq!(state.list(800, std::slice::from_ref(&stays)).await.gone, 2);
    }

    #[tokio::test]
    async fn a_missing_job_is_asked_for_again_and_not_for_ever() {
        let state = TestState::new().await;
        let (stays, goes) = (job(1, "99000042", "2020-01-01", "null", 0), job(2, "99000077", "2021-01-01", "null", 0));
        state.list(0, &[stays.clone(), goes]).await;
        assert!(!state.list(10, std::slice::from_ref(&stays)).await.changed);
        assert_eq!(state.due().await, Some(0), "the mark of the state is still there, and earlier");
        state.forget_marks().await;
        state.list(20, std::slice::from_ref(&stays)).await;
        assert_eq!(state.due().await, Some(70));
        state.forget_marks().await;
        assert!(state.list(75, std::slice::from_ref(&stays)).await.changed, "two lists agree");
        assert_eq!(state.due().await, None);
    }

    /// A job for each of these numbers, none alike.
    fn jobs(numbers: std::ops::Range<u32>) -> Vec<String> {
        numbers.map(|number| job(number, &format!("990001{number:02}"), "2021-01-01", "null", 0)).collect()
    }

    #[tokio::test]
    async fn of_jobs_that_went_missing_at_different_lists_the_first_says_when_to_look_again() {
        let state = TestState::new().await;
        // Ten go after it, so that it is hardly ever the last of them, in whatever order they are held.
        let jobs = jobs(0..12);
        let (stay, follow) = (&jobs[..1], &jobs[..11]);
        state.list(0, &jobs).await;
        state.list(10, follow).await;
        state.forget_marks().await;
        state.list(20, stay).await;
        assert_eq!(state.due().await, Some(70));
        for (minutes, gone, due) in [(70, 1, Some(80)), (80, 10, None)] {
            state.forget_marks().await;
            assert_eq!(state.list(minutes, stay).await.gone, gone);
            assert_eq!(state.due().await, due);
        }
    }

    #[tokio::test]
    async fn what_waits_until_a_link_is_in_order_puts_off_no_other_look() {
        let state = TestState::new().await;
        state.set_status("invalid").await;
        let jobs = jobs(0..11);
        state.list(0, &jobs).await;
        state.list(10, &jobs[..1]).await;
        // Ten of the jobs have waited for as long as they had to, and now wait for the link; the other one has just
        // gone.
        for (minutes, due) in [(75, 75 + 60), (135, 135 + 24 * 60)] {
            state.forget_marks().await;
            state.list(minutes, &[]).await;
            assert_eq!(state.due().await, Some(due));
        }
    }

    #[tokio::test]
    async fn an_empty_list_ends_jobs_of_a_valid_link_only() {
        let state = TestState::new().await;
        state.set_status("invalid").await;
        state.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        state.forget_marks().await;
        state.list(10, &[]).await;
        assert_eq!(state.due().await, Some(70));
        state.forget_marks().await;
        assert_eq!(state.list(80, &[]).await.gone, 0);
        assert_eq!(state.due().await, Some(80 + 24 * 60), "the link may be valid by then");
        state.set_status("valid").await;
        let third = state.list(80 + 24 * 60, &[]).await;
        assert_eq!((third.gone, third.changed), (1, true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn looks_at_what_went_missing_are_in_time_to_come_and_come_to_an_end(
            lists in proptest::collection::vec((1_i64..90, 0_u32..1 << 5), 1..8),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let state = TestState::new().await;
                state.set_status("valid").await;
                let jobs = jobs(0..5);
                let (mut now, mut shown) = (0, jobs.clone());
                let mut kept = state.list(now, &shown).await;
                for (minutes, which) in lists {
                    now += minutes;
                    shown = (0..).zip(&jobs).filter(|(at, _)| which >> at & 1 == 1).map(|(_, job)| job.clone()).collect();
                    kept = state.list(now, &shown).await;
                }
                let mut looks = 0;
                while let Some(wanted) = kept.confirm_at {
                    let wanted = wanted.as_micros() / 60_000_000;
                    prop_assert!(wanted > now, "{} after {}", wanted, now);
                    now = wanted;
                    kept = state.list(now, &shown).await;
                    looks += 1;
                    prop_assert!(looks <= jobs.len(), "each look ends what it was for");
                }
                let later = state.list(now + 1_000, &shown).await;
                prop_assert_eq!((later.changed, later.confirm_at), (false, None));
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn an_older_answer_that_says_the_same_is_no_second_list() {
        let state = TestState::new().await;
        state.list(0, &[paid(&[1, 2], 10)]).await;
        assert_eq!(state.list(10, &[paid(&[2], 18)]).await.confirm_at.map(minute), Some(70));
        // As it was before the first month was paid.
        let stale = state.list(80, &[paid(&[2], 5)]).await;
        assert_eq!((stale.changed, stale.confirm_at.map(minute)), (false, Some(140)));
        assert!(state.list(140, &[paid(&[2], 20)]).await.changed, "this one agrees");
    }

    #[tokio::test]
    async fn lists_after_the_clock_was_set_back_come_after_those_before() {
        let state = TestState::new().await;
        state.list(720, &[paid(&[1, 2], 10)]).await;
        state.list(630, &[paid(&[2], 11)]).await;
        for minutes in [635, 715] {
            assert!(!state.list(minutes, &[paid(&[2], 12)]).await.changed, "at {minutes}");
        }
        assert!(state.list(781, &[paid(&[2], 13)]).await.changed, "an hour after the first");
    }

    #[tokio::test]
    async fn a_job_goes_also_when_it_was_collected_after_those_that_stay() {
        let state = TestState::new().await;
        let (stays, goes) =
            (job(1, "99000042", "2020-01-01", "null", 10), job(2, "99000077", "2021-01-01", "null", 20));
        state.list(0, &[stays.clone(), goes]).await;
        assert_eq!(state.list(10, std::slice::from_ref(&stays)).await.confirm_at.map(minute), Some(70));
        assert_eq!(state.list(70, &[stays]).await.gone, 1);
    }
}
