//! A state for tests, into which lists of one link's jobs come.

use std::time::Duration;

use super::*;
use crate::flatten::Comparison;
use crate::queue::{self, Trigger};
use crate::resources::employments;
use crate::store::Store;

pub(super) const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
const CONFIRM_AFTER: Duration = Duration::from_hours(1);
/// Minute 0: midnight of the day on which Belvo collects every [`job`].
const START: i64 = 1_767_225_600 * 1_000_000;

/// The minute of an instant.
pub(super) fn minute(at: Timestamp) -> i64 {
    (at.as_micros() - START) / 60_000_000
}

/// A state, and the refresh of one link's jobs in it.
pub(super) struct TestState {
    store: Store,
    confirm_after: Duration,
    _folder: tempfile::TempDir,
}

/// What analysts see of a job: its key, its latest id and its number of contents.
pub(super) type Seen = Vec<(String, String, i64)>;

impl TestState {
    pub(super) async fn new() -> Self {
        Self::confirming_after(CONFIRM_AFTER).await
    }

    /// One in which a second list agrees so much later.
    pub(super) async fn confirming_after(confirm_after: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let link_id: LinkId = LINK.parse().unwrap();
        let now = Timestamp::from_micros(START);
        store.write(move |tx| queue::mark(tx, &link_id, &employments::RESOURCE, Trigger::Webhook, now)).await.unwrap();
        Self { store, confirm_after, _folder: folder }
    }

    /// A list at `minutes`, of which a webhook told when it is empty.
    pub(super) async fn list(&self, minutes: i64, jobs: &[String]) -> Kept {
        self.list_counting(minutes, jobs, jobs.is_empty().then_some(0)).await
    }

    /// A list at `minutes`, of which a webhook counted this many jobs, if one told of it.
    pub(super) async fn list_counting(&self, minutes: i64, jobs: &[String], webhook_count: Option<i64>) -> Kept {
        let at = Timestamp::from_micros(START + minutes * 60_000_000);
        let link_id: LinkId = LINK.parse().unwrap();
        let records = jobs.iter().map(|job| Record::read(&employments::RESOURCE, &link_id, job).unwrap()).collect();
        let listing = Listing { started_at: at, fetched_at: at, records, drift: Drift::default() };
        let confirm_after = self.confirm_after;
        self.store
            .write(move |tx| {
                let mut comparison = Comparison::of(&employments::RESOURCE);
                let compare = &mut |old: &str, new: &str| comparison.loss(old, new);
                let resource = &employments::RESOURCE;
                let kept = keep(tx, &link_id, resource, &listing, webhook_count, confirm_after, compare)?;
                if let Some(at) = kept.confirm_at {
                    queue::mark(tx, &link_id, resource, Trigger::Confirm, at)?;
                }
                Ok(kept)
            })
            .await
            .unwrap()
    }

    pub(super) async fn set_status(&self, status: &'static str) {
        let now = Timestamp::from_micros(0);
        let change = move |tx: &Tx<'_>| {
            tx.execute(
                "INSERT INTO links (link_id, status, first_seen_at, changed_seq) VALUES ($1, $2, $3, 1) \
                 ON CONFLICT (link_id) DO UPDATE SET status = excluded.status",
                args![LINK, status, now],
            )
        };
        self.store.write(change).await.unwrap();
    }

    /// Damages the body of a version of the only record.
    pub(super) async fn damage(&self, version: i64) {
        let cut = "UPDATE record_versions SET body = substr(body, 1, length(body) - 6) WHERE version = $1";
        assert_eq!(self.store.write(move |tx| tx.execute(cut, args![version])).await.unwrap(), 1);
    }

    pub(super) async fn forget_marks(&self) {
        self.store.write(|tx| tx.execute("UPDATE refreshes SET due_at = NULL", args![])).await.unwrap();
    }

    /// For each version: in which minute it could have been known, and whether it says that the record is gone.
    pub(super) async fn versions(&self) -> Vec<(i64, bool)> {
        let read = |tx: &Tx<'_>| {
            tx.all("SELECT known_from, body FROM record_versions ORDER BY version", args![], |row| {
                Ok((minute(row.at(0)?), unpack(row.bytes(1)?)?.is_empty()))
            })
        };
        self.store.read(read).await.unwrap()
    }

    /// For each answer that came too late: in which minute its list was complete, and whether it has no body.
    pub(super) async fn lists_of_late_versions(&self) -> Vec<(i64, bool)> {
        let sql = "SELECT fetched_at, body FROM record_versions WHERE is_late = 1 ORDER BY version";
        let read =
            |tx: &Tx<'_>| tx.all(sql, args![], |row| Ok((minute(row.at(0)?), unpack(row.bytes(1)?)?.is_empty())));
        self.store.read(read).await.unwrap()
    }

    pub(super) async fn seen(&self) -> Seen {
        let read = |tx: &Tx<'_>| {
            tx.all("SELECT record_key, record_id, version FROM records ORDER BY record_key", args![], |row| {
                Ok((row.text(0)?, row.text(1)?, row.int(2)?))
            })
        };
        self.store.read(read).await.unwrap()
    }

    pub(super) async fn due(&self) -> Option<i64> {
        let read = |tx: &Tx<'_>| tx.one("SELECT due_at FROM refreshes", args![], |row| row.opt_at(0));
        self.store.read(read).await.unwrap().flatten().map(minute)
    }
}

/// A job as Belvo lists it.
pub(super) fn job(id: u32, code: &str, start: &str, end: &str, collected_minute: u32) -> String {
    format!(
        r#"{{"id":"{id:08}-0000-4000-8000-000000000000","link":"{LINK}","created_at":"2026-01-01T00:00:00.000Z",
        "collected_at":"2026-01-01T00:{collected_minute:02}:00.000Z","start_date":"{start}","end_date":{end},
        "employer_data":{{"code":"{code}"}}}}"#
    )
}

/// A whole job whose pay was of these months.
pub(crate) fn paid(months: &[u32], collected_minute: u32) -> String {
    let pay = |month| {
        format!(
            r#"{{"month":"2020-{month:02}","base_amount":1.00,"retained_amount":null,"type":null,"currency":"BRL"}}"#
        )
    };
    let salaries: Vec<String> = months.iter().map(pay).collect();
    let employer = r#"{"name":"EMPRESA","code":"99000042","economic_activity":null}"#;
    job(1, "99000042", "2020-01-01", "null", collected_minute).replace(
        r#"{"code":"99000042"}"#,
        &format!(r#"{employer},"occupations":[],"salaries":[{}]"#, salaries.join(",")),
    )
}
