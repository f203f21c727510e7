//! The versions of one record: what is held of it, and what a list adds.
//!
//! *Takes* a record of a list, with its key. *Gives* it as a new record, as a new version, as an older answer, or as
//! seen again. *Promises* that a record which says the same has no new version, however it is spelt, and that an older
//! answer takes back nothing that a newer one said. *Not here*: records that a list lacks (`absence`).

use super::body::{pack, unpack};
use super::content::{content, say_the_same};
use super::{Compare, LinkRecords, ListTimes, Loss, NO_ID, Record};
use crate::clock::{Timestamp, credible};
use crate::store::{Error, VersionPlace, args, unless_damaged};

impl Record {
    /// Whether the record is an older answer than what is held. For a record that is gone the time of the whole list
    /// decides, and not the record's own: one that comes back may itself have been collected long ago.
    pub(super) fn is_late(&self, held: &Held, list: ListTimes) -> bool {
        if held.is_gone() {
            is_older(list.collected_at, held.collected())
        } else {
            self.is_older_than(held, list.fetched_at)
        }
    }

    /// Whether Belvo surely read the record, which was fetched at `fetched_at`, before what is held.
    pub(super) fn is_older_than(&self, held: &Held, fetched_at: Timestamp) -> bool {
        is_older(self.collected(fetched_at), held.collected())
    }
}

/// Whether Belvo surely read the first before the second.
pub(super) fn is_older(collected_at: Option<Timestamp>, than: Option<Timestamp>) -> bool {
    collected_at.zip(than).is_some_and(|(collected_at, than)| collected_at < than)
}

/// The `content_hash` of a record that is gone; no content has this hash.
pub(super) const GONE: &[u8] = &[];

/// A record that is held already; of one that is gone, as of the list that said so.
pub(super) struct Held {
    pub(super) record_id: String,
    pub(super) likeness: String,
    pub(super) hash: Vec<u8>,
    pub(super) version: i64,
    pub(super) created_at: Option<Timestamp>,
    pub(super) collected_at: Option<Timestamp>,
    pub(super) seen_started_at: Timestamp,
    pub(super) seen_fetched_at: Timestamp,
}

impl Held {
    /// Whether two lists agreed that it is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.hash == GONE
    }

    /// When Belvo collected it, as far as that can be true.
    pub(super) fn collected(&self) -> Option<Timestamp> {
        credible(self.collected_at, self.seen_fetched_at)
    }

    /// What its last sighting told beside its content.
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts { record_id: &self.record_id, created_at: self.created_at, collected_at: self.collected_at }
    }
}

/// What Belvo may renew in a record although it says the same.
#[derive(PartialEq, Eq)]
pub(super) struct Facts<'s> {
    pub(super) record_id: &'s str,
    created_at: Option<Timestamp>,
    collected_at: Option<Timestamp>,
}

/// The JSON of a record before and after it changed.
pub(super) struct Change {
    pub(super) old: String,
    pub(super) new: String,
}

/// One record of a list, on its way into the store.
pub(super) struct Sighting<'s> {
    pub(super) of: LinkRecords<'s>,
    pub(super) list: ListTimes,
    pub(super) record: &'s Record,
    pub(super) key: &'s str,
}

impl Sighting<'_> {
    /// Keeps a record that was never seen before.
    pub(super) fn add_record(&self) -> Result<(), Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, list, record, key } = *self;
        tx.execute(
            "INSERT INTO records (link_id, resource, record_key, record_id, likeness, created_at, collected_at, \
             seen_started_at, seen_fetched_at, content_hash, version, version_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, $9)",
            args![
                link_id,
                resource.name,
                key,
                &record.id,
                record.likeness.as_deref().unwrap_or_default(),
                record.created_at,
                record.collected_at,
                list.started_at,
                list.fetched_at,
                record.hash.as_slice()
            ],
        )?;
        self.insert_version(1, false, self.first_known(), &record.body)
    }

    /// What is held of the record, beside its content, once it was seen again.
    pub(super) fn facts<'f>(&'f self, held: &'f Held) -> Facts<'f> {
        // An older answer with the same content does not take back what a newer one said; what was gone says nothing.
        if !held.is_gone() && self.record.is_older_than(held, self.list.fetched_at) {
            return held.facts();
        }
        // Where a broken record lacks a fact, the one that is held stays.
        let Record { id, created_at, collected_at, .. } = self.record;
        Facts {
            record_id: if id.starts_with(NO_ID) { &held.record_id } else { id },
            created_at: created_at.or(held.created_at),
            collected_at: collected_at.or(held.collected_at.filter(|_| !held.is_gone())),
        }
    }

    /// Keeps when the record was seen again, and under which id.
    pub(super) fn see_again(&self, held: &Held) -> Result<(), Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, list, key, .. } = *self;
        let Facts { record_id, created_at, collected_at } = self.facts(held);
        tx.execute(
            "UPDATE records SET record_id = $4, created_at = $5, collected_at = $6, seen_started_at = $7, seen_fetched_at = $8 \
             WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![
                link_id,
                resource.name,
                key,
                record_id,
                created_at,
                collected_at,
                list.started_at,
                list.fetched_at
            ],
        )?;
        Ok(())
    }

    /// Keeps a new content; `shown_at` is the start of the last list that showed what was held.
    pub(super) fn add_version(&self, held: &Held, shown_at: Timestamp) -> Result<(), Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, list, record, key } = *self;
        let version = self.latest_version()? + 1;
        tx.execute(
            "UPDATE records SET likeness = $4, content_hash = $5, version = $6, version_at = $7 \
             WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![
                link_id,
                resource.name,
                key,
                record.likeness.as_deref().unwrap_or(&held.likeness),
                record.hash.as_slice(),
                version,
                list.fetched_at
            ],
        )?;
        self.see_again(held)?;
        self.insert_version(version, false, self.first_known().max(shown_at), &record.body)
    }

    /// Keeps an answer that is older than the one held; false when it was kept before. Then a version without a body
    /// says that this list, too, is no evidence of what is current.
    pub(super) fn add_late_version(&self, held: &Held) -> Result<bool, Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, list, record, key } = *self;
        let mut latest = None;
        tx.each(
            "SELECT body, version FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 AND is_late = 1 \
             ORDER BY version DESC",
            args![link_id, resource.name, key],
            |row| {
                if latest.is_none() {
                    let body = self.of.body(key, row.int(1)?, row.bytes(0)?)?;
                    latest = body.filter(|body| !body.is_empty());
                }
                Ok::<_, Error>(())
            },
        )?;
        self.of.note_shown(key, list.fetched_at)?;
        let is_known = latest.is_some_and(|body| content(&body) == record.content);
        let version = self.latest_version()?.max(held.version) + 1;
        let body = if is_known { pack("") } else { record.body.clone() };
        self.insert_version(version, true, self.first_known(), &body)?;
        Ok(!is_known)
    }

    fn first_known(&self) -> Timestamp {
        self.record.collected(self.list.fetched_at).unwrap_or(self.list.fetched_at)
    }

    fn latest_version(&self) -> Result<i64, Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, key, .. } = *self;
        let latest = tx.one(
            "SELECT max(version) FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3",
            args![link_id, resource.name, key],
            |row| row.int(0),
        )?;
        latest.ok_or(Error::Unreadable("a record's versions"))
    }

    fn insert_version(&self, version: i64, is_late: bool, known_from: Timestamp, body: &[u8]) -> Result<(), Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, list, record, key } = *self;
        let body = self.of.place(key, version).seal(tx, body)?;
        tx.execute(
            "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, created_at, collected_at, \
             known_from, started_at, fetched_at, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            args![
                link_id,
                resource.name,
                key,
                version,
                is_late,
                &record.id,
                record.created_at,
                record.collected_at,
                known_from,
                list.started_at,
                list.fetched_at,
                &*body
            ],
        )?;
        Ok(())
    }

    /// The contents that its record had.
    pub(super) fn contents(&self) -> Contents<'_> {
        Contents { of: self.of, key: self.key }
    }

    /// What changed since what is held; `None` when that says the same, however it is spelt.
    pub(super) fn change_of(&self, held: &Held) -> Result<Option<Change>, Error> {
        if held.hash == self.record.hash {
            return Ok(None);
        }
        // Where what is held is damaged, any other content is news.
        let (version, old) = self.contents().latest_before(held.version + 1)?.unwrap_or_default();
        let new = unpack(&self.record.body)?;
        let is_same = version == held.version && !held.is_gone() && say_the_same(&old, &new);
        Ok((!is_same).then_some(Change { old, new }))
    }

    /// Keeps that the record has this id.
    pub(super) fn note_id(&self) -> Result<(), Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, record, key, .. } = *self;
        tx.execute(
            "INSERT INTO record_ids (link_id, resource, record_id, record_key) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (link_id, resource, record_id) DO UPDATE SET record_key = excluded.record_key",
            args![link_id, resource.name, &record.id, key],
        )?;
        Ok(())
    }
}

/// The contents of one record that were current once.
pub(super) struct Contents<'s> {
    pub(super) of: LinkRecords<'s>,
    pub(super) key: &'s str,
}

impl Contents<'_> {
    /// Whether `new` lacks rows of the content before it: of `old`, which is that of `version`, or, where that cannot
    /// be read, of the last one that can.
    pub(super) fn loses_rows(
        &self,
        mut version: i64,
        mut old: String,
        new: &str,
        compare: &mut Compare<'_>,
    ) -> Result<bool, Error> {
        // Of a record that was gone nothing is left to be lost.
        while !old.is_empty() {
            match compare(&old, new) {
                Loss::Nothing => return Ok(false),
                Loss::Rows => return Ok(true),
                Loss::Unknown => match self.latest_before(version)? {
                    Some(earlier) => (version, old) = earlier,
                    None => return Ok(false),
                },
            }
        }
        Ok(false)
    }

    /// The last version before `version` that can be opened, and its content. Damaged ones are passed over, so that
    /// they do not keep a later list from being kept.
    pub(super) fn latest_before(&self, mut version: i64) -> Result<Option<(i64, String)>, Error> {
        let Self { of: LinkRecords { tx, link_id, resource }, key } = *self;
        loop {
            let found = tx.one(
                "SELECT version, body FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 \
                 AND is_late = 0 AND version < $4 ORDER BY version DESC LIMIT 1",
                args![link_id, resource.name, key, version],
                |row| {
                    let version = row.int(0)?;
                    Ok((version, self.of.body(key, version, row.bytes(1)?)?))
                },
            )?;
            match found {
                Some((earlier, None)) => version = earlier,
                Some((earlier, Some(body))) => return Ok(Some((earlier, body))),
                None => return Ok(None),
            }
        }
    }
}

impl<'s> LinkRecords<'s> {
    /// Where the body of a version is kept.
    fn place<'k>(self, key: &'k str, version: i64) -> VersionPlace<'k>
    where
        's: 'k,
    {
        VersionPlace { link_id: self.link_id.as_str(), resource: self.resource.name, record_key: key, version }
    }

    /// What is kept of a version; `None` when that is damaged.
    fn body(self, key: &str, version: i64, stored: &[u8]) -> Result<Option<String>, Error> {
        unless_damaged(self.place(key, version).open(self.tx, stored).and_then(|packed| unpack(&packed)))
    }

    /// Notes that a list may have shown a record.
    pub(super) fn note_shown(self, key: &str, at: Timestamp) -> Result<(), Error> {
        self.tx
            .execute(
                "UPDATE records SET seen_fetched_at = $4 WHERE link_id = $1 AND resource = $2 AND record_key = $3",
                args![self.link_id, self.resource.name, key, at],
            )
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use crate::records::test_state::{TestState, job};

    #[tokio::test]
    async fn a_job_that_is_spelt_otherwise_has_no_new_version() {
        let state = TestState::new().await;
        let plain = job(1, "99000042", "2020-01-01", "null", 0).replace("}}", r#"},"later":{"a":"é","b":[1, 2]}}"#);
        state.list(0, std::slice::from_ref(&plain)).await;
        let spelt = plain.replace(r#"{"a":"é","b":[1, 2]}"#, r#"{ "b":[1,2], "a":"\u00e9" }"#);
        assert_ne!(spelt, plain);
        let again = state.list(10, std::slice::from_ref(&spelt)).await;
        assert_eq!((again.versions, again.changed), (0, false));
        let other = state.list(20, &[spelt.replace("[1,2]", "[2,1]")]).await;
        assert_eq!((other.versions, other.changed), (1, true));
    }

    #[tokio::test]
    async fn a_job_that_comes_back_broken_where_belvo_renews_it_is_a_version_and_takes_back_nothing() {
        let sound = job(1, "99000042", "2020-01-01", "null", 0);
        let id = r#""id":"00000001-0000-4000-8000-000000000000","#;
        for (from, to, is_broken) in [
            (id, r#""id":null,"#, true),
            (id, r#""id":7,"#, true),
            (id, "", true),
            (r#""created_at":"2026-01-01T00:00:00.000Z""#, r#""created_at":"yesterday""#, true),
            (r#""collected_at":"2026-01-01T00:00:00.000Z","#, "", true),
            (r#""collected_at":"2026-01-01T00:00:00.000Z""#, r#""collected_at":"2026-01-02T00:00:00.000Z""#, false),
        ] {
            let state = TestState::new().await;
            state.list(0, std::slice::from_ref(&sound)).await;
            let before = state.seen().await;
            let broken = sound.replace(from, to);
            assert_ne!(broken, sound);
            let kept = state.list(10, std::slice::from_ref(&broken)).await;
            assert_eq!(kept.versions, usize::from(is_broken), "{to}");
            let after = state.seen().await;
            assert_eq!((&after[0].0, &after[0].1), (&before[0].0, &before[0].1), "{to}");
            state.list(20, std::slice::from_ref(&sound)).await;
            assert_eq!(state.seen().await[0].1, before[0].1, "{to}");
        }
    }

    #[tokio::test]
    async fn a_job_keeps_its_key_under_another_id_although_its_start_was_broken_in_between() {
        let state = TestState::new().await;
        state.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        let key = state.seen().await.remove(0).0;
        state.list(10, &[job(1, "99000042", "2020-02-30", "null", 10)]).await;
        state.list(20, &[job(2, "99000042", "2020-01-01", "null", 20)]).await;
        let keys: Vec<String> = state.seen().await.into_iter().map(|seen| seen.0).collect();
        assert_eq!(keys, [key]);
    }

    #[tokio::test]
    async fn a_damaged_body_keeps_no_later_list_from_being_kept() {
        let state = TestState::new().await;
        let [first, second] = ["null", "\"2020-12-31\""].map(|end| job(1, "99000042", "2020-01-01", end, 0));
        state.list(0, std::slice::from_ref(&first)).await;
        state.list(10, &[second]).await;
        state.damage(2).await;
        // Not what is held, although it is what was held before.
        assert_eq!(state.list(20, std::slice::from_ref(&first)).await.versions, 1);
        state.damage(1).await;
        state.damage(3).await;
        assert_eq!(state.list(30, &[first]).await.versions, 0, "its content is known by its hash");
        assert_eq!(state.list(40, &[job(1, "99000042", "2020-01-02", "null", 0)]).await.versions, 1);
    }

    #[tokio::test]
    async fn an_older_answer_is_kept_and_never_current() {
        let state = TestState::new().await;
        state.list(0, &[job(1, "99000042", "2020-01-01", "null", 30)]).await;
        let late = state.list(10, &[job(1, "99000042", "2020-01-01", "\"2020-12-31\"", 20)]).await;
        assert_eq!((late.versions, late.late), (0, 1));
        let again = state.list(20, &[job(1, "99000042", "2020-01-01", "\"2020-12-31\"", 20)]).await;
        assert_eq!(again.late, 0, "it was kept before");
        assert_eq!(state.seen().await[0].2, 1);
    }
}
