//! Reconciles the tracked links with Belvo's whole list.
//!
//! *Takes* the list, page by page. *Gives* what it says to [`keep`], and lookups of the links that it lacks. *Promises*
//! that a reconciliation holds one page in memory, however many links there are: which links a list showed is marked in
//! the state. *Not here*: what becomes of a link that the list lacks, which `lookup.rs` finds out.

use super::{DELETED, Directory, NOT_FOUND, News, Told, keep};
use crate::belvo::links::{LinkObject, LinkPage};
use crate::belvo::{self, Class, Code, Decision, Failure, Leave, Patience};
use crate::clock::Timestamp;
use crate::origin;
use crate::store::{Error, args};

/// How often a page of the whole list is asked for again before the reconciliation fails.
const MOST_RETRIES: u32 = 5;

/// The same when somebody waits for it, who can ask again.
const MOST_RETRIES_IN_HASTE: u32 = 1;

/// Lookups that one transaction asks for, so that webhooks between two of them are not kept waiting.
const LOOKUPS_AT_ONCE: usize = 5_000;

/// What a reconciliation found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Synced {
    /// Links that Belvo listed.
    pub listed: u64,
    /// Of these, those that were not tracked before.
    pub new: u64,
    /// Of these, those of which something differs from what was known.
    pub changed: u64,
    /// Tracked links that the list lacked; each is looked up on its own now.
    pub missing: u64,
}

/// Why links could not be reconciled.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// Belvo gave no list.
    #[error(transparent)]
    Belvo(#[from] Failure),
    /// The list could not be kept.
    #[error(transparent)]
    Store(#[from] Error),
}

impl SyncError {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Belvo(failure) => failure.code.name(),
            Self::Store(error) => error.code(),
        }
    }
}

impl Directory {
    /// Reconciles with Belvo's whole list: new links are tracked, known ones brought up to date, and those that the
    /// list lacks are looked up one by one before anything is said of them, because rows come and go between two pages.
    ///
    /// # Errors
    /// [`SyncError`]; what was listed until then is kept, and nothing is missing yet.
    pub async fn sync(&self) -> Result<Synced, SyncError> {
        self.sync_with(Patience::Long).await
    }

    /// The same for somebody who waits so long for a Belvo that is down.
    ///
    /// # Errors
    /// As [`Directory::sync`].
    pub async fn sync_with(&self, patience: Patience) -> Result<Synced, SyncError> {
        let started_at = self.clock.now();
        let sync = self.store.write(|tx| tx.next_number("syncs")).await?;
        let mut synced = Synced::default();
        for number in 1.. {
            let asked_at = self.clock.now();
            let Some(page) = self.page(number, patience).await? else { break };
            if page.unreadable > 0 {
                tracing::warn!(
                    code = "unreadable_link",
                    count = page.unreadable,
                    "items of Belvo's list are no links, and are left out"
                );
            }
            let (has_next, rows) = (page.has_next, page.links.len() + page.unreadable);
            let kept = self.keep_page(page.links, asked_at, sync).await?;
            let (counted, repeated) =
                kept.ok_or_else(|| Failure::own(Code::SimulatedMismatch, belvo::links::PATH).with_status(200))?;
            synced.listed += counted.listed;
            synced.new += counted.new;
            synced.changed += counted.changed;
            if !has_next {
                break;
            }
            // A page with a next one but only known items means endless paging.
            if rows == repeated {
                return Err(belvo::links::inconsistent().into());
            }
        }
        synced.missing = self.look_up_missing(sync, started_at).await?;
        self.queue.announce();
        tracing::info!(
            listed = synced.listed,
            new = synced.new,
            changed = synced.changed,
            missing = synced.missing,
            "the links were reconciled with Belvo's list"
        );
        Ok(synced)
    }

    /// A page of the whole list, asked for again when that may help; `None` beyond the last one.
    async fn page(&self, number: u32, patience: Patience) -> Result<Option<LinkPage>, SyncError> {
        let mut attempts = 0;
        loop {
            let leave = Leave::of(Class::Ordinary).waiting(patience);
            match belvo::links::list_page(&self.client, number, self.client.page_size(), leave).await {
                Ok(page) => return Ok(Some(page)),
                // The list has become shorter meanwhile.
                Err(failure) if failure.kind == Decision::Gone && number > 1 => return Ok(None),
                Err(failure) if attempts < self.most_retries(&failure, patience) => {
                    let wait = failure.delay(attempts, &mut rand::rng());
                    tracing::warn!(
                        code = failure.code.name(),
                        request_id = failure.request_id,
                        page = number,
                        "{failure}"
                    );
                    tokio::time::sleep(wait).await;
                    attempts += 1;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// How often a page that failed so is asked for again.
    fn most_retries(&self, failure: &Failure, patience: Patience) -> u32 {
        match (failure.kind, patience) {
            (_, Patience::Short) if self.client.in_vain().is_some() => 0,
            (Decision::RetryAfter(_), _) | (Decision::Retry, Patience::Long) => MOST_RETRIES,
            (Decision::Retry, Patience::Short) => MOST_RETRIES_IN_HASTE,
            _ => 0,
        }
    }

    /// Keeps a page of reconciliation `sync`; its counts, and how many links an earlier page had shown. `None` when it
    /// is not the Belvo whose answers the state holds.
    async fn keep_page(
        &self,
        links: Vec<LinkObject>,
        asked_at: Timestamp,
        sync: i64,
    ) -> Result<Option<(Synced, usize)>, Error> {
        let (is_simulated, clock) = (self.client.is_simulated().unwrap_or_default(), self.clock.clone());
        self.store
            .write(move |tx| {
                if !origin::agrees(tx, is_simulated)? {
                    return Ok(None);
                }
                let (mut counted, mut repeated) = (Synced::default(), 0);
                for link in &links {
                    let sql = "SELECT 1 FROM links WHERE link_id = $1 AND sync_number = $2";
                    if tx.one(sql, args![&link.id, sync], |_| Ok(()))?.is_some() {
                        repeated += 1;
                        continue;
                    }
                    counted.listed += 1;
                    match keep(tx, link, Told { asked_at, kept_at: clock.now() }, Some(sync))? {
                        News::New => counted.new += 1,
                        News::Changed => counted.changed += 1,
                        News::Same => {}
                    }
                }
                Ok(Some((counted, repeated)))
            })
            .await
    }

    /// Has every link looked up that reconciliation `sync` did not show although it was tracked before it began.
    async fn look_up_missing(&self, sync: i64, started_at: Timestamp) -> Result<u64, Error> {
        let mut missing = 0;
        loop {
            let now = self.clock.now();
            let found = self
                .store
                .write(move |tx| {
                    tx.execute(
                        "UPDATE links SET lookup_due_at = $1 WHERE link_id IN (SELECT link_id FROM links \
                         WHERE lookup_due_at IS NULL AND (sync_number IS NULL OR sync_number < $2) \
                         AND (looked_up_at IS NULL OR looked_up_at < $3) AND coalesce(status, '') NOT IN ($4, $5) LIMIT $6)",
                        args![now, sync, started_at, NOT_FOUND, DELETED, LOOKUPS_AT_ONCE],
                    )
                })
                .await?;
            missing += found as u64;
            if found < LOOKUPS_AT_ONCE {
                return Ok(missing);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::{Clock, Hand};
    use crate::links::{erased_before, note_wish};
    use crate::queue::Queue;
    use crate::store::{Store, Tx};
    use crate::tombstones::{self, Kind};

    #[tokio::test]
    async fn what_only_the_list_shows_is_listed_once_unless_a_job_will() {
        let link = |(n, status, access_mode): (u32, &str, &str)| {
            format!(
                r#"{{"id":"{n:08}-0000-4000-8000-000000000000","institution":"inss_br_employment","status":"{status}","access_mode":{access_mode}}}"#
            )
        };
        let told = [
            (1, "valid", r#""recurrent""#),
            (2, "valid", r#""single""#),
            (3, "valid", "null"),
            (4, "invalid", r#""recurrent""#),
            (5, "token_required", r#""single""#),
        ];
        let told = told.map(link).join(",");
        let script =
            Script::start(move |_| scripted::json(200, &format!(r#"{{"results":[{told}],"next":null}}"#))).await;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let clock = Clock::from_fn(|| Timestamp::from_micros(1_000_000));
        let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
        Directory::new(script.client(), store.clone(), queue, clock).sync().await.unwrap();
        let due = "SELECT DISTINCT link_id FROM refreshes WHERE due_at IS NOT NULL ORDER BY 1";
        let due = store.read(move |tx| tx.all(due, args![], |row| Ok(row.text(0)?[7..8].to_owned()))).await.unwrap();
        assert_eq!(due, ["2", "3", "4", "5"]);
    }

    #[tokio::test]
    async fn a_link_that_an_erased_user_had_made_before_is_not_kept_and_a_new_consent_is() {
        let link = |number: u32, hour: u32, user: u32| {
            format!(
                r#"{{"id":"0000000{number}-0000-4000-8000-000000000000","status":"valid","access_mode":"recurrent",
                "external_id":"user-{user}","created_at":"2026-11-23T{hour}:00:00Z"}}"#
            )
        };
        let links = [link(1, 11, 1), link(2, 13, 1), link(3, 11, 1), link(4, 11, 2)].join(",");
        let page = format!(r#"{{"results":[{links}],"next":null}}"#);
        let script = Script::start(move |_| scripted::json(200, &page)).await;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let queue = Queue::open(store.clone(), Clock::system()).await.unwrap();
        let erase = |tx: &Tx<'_>| {
            let noon = Timestamp::parse("2026-11-23T12:00:00Z").unwrap();
            for user in ["user-1", "user-2"] {
                tombstones::bury(tx, Kind::ExternalId, user, noon)?;
            }
            // Belvo's clock is behind.
            let session = "INSERT INTO widget_sessions (external_id, asked_at, due_at) VALUES ('user-2', $1, $1)";
            tx.execute(session, args![noon])?;
            // A webhook told of the third.
            note_wish(tx, &"00000003-0000-4000-8000-000000000000".parse().unwrap(), noon)
        };
        store.write(erase).await.unwrap();
        Directory::new(script.client(), store.clone(), queue, Clock::system()).sync().await.unwrap();
        let look = |tx: &Tx<'_>| {
            let kept =
                tx.all("SELECT link_id FROM links ORDER BY 1", args![], |row| Ok(row.text(0)?[7..8].to_owned()))?;
            let is_erased = |link: &str| tombstones::is_erased(tx, &link.parse().unwrap());
            Ok((kept, is_erased("00000001-0000-4000-8000-000000000000")?, erased_before(tx)?))
        };
        let (kept, is_erased, wanted) = store.read(look).await.unwrap();
        assert_eq!((kept, is_erased), (["2", "3", "4"].map(str::to_owned).to_vec(), true));
        assert!(wanted.len() == 1 && wanted[0].as_str().starts_with("00000003"), "it is to be erased");
    }

    #[tokio::test]
    async fn a_link_is_first_seen_when_it_is_kept_and_not_when_its_page_was_asked_for() {
        let hand = Hand::at(Timestamp::from_micros(1));
        let page = r#"{"results":[{"id":"00000001-0000-4000-8000-000000000000","status":"valid"}],"next":null}"#;
        let script = Script::start({
            let hand = hand.clone();
            move |_| {
                // Meanwhile features of this day are asked for.
                hand.set(Timestamp::from_micros(5));
                scripted::json(200, page)
            }
        });
        let script = script.await;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let queue = Queue::open(store.clone(), hand.clock()).await.unwrap();
        Directory::new(script.client(), store.clone(), queue, hand.clock()).sync().await.unwrap();
        let instants = "SELECT first_seen_at, looked_up_at, status_at FROM links";
        let read = move |tx: &Tx<'_>| tx.one(instants, args![], |row| Ok([row.int(0)?, row.int(1)?, row.int(2)?]));
        assert_eq!(store.read(read).await.unwrap(), Some([5, 1, 1]), "Belvo's word is as old as the question");
    }

    #[tokio::test]
    async fn whoever_orders_a_list_is_told_soon_that_nobody_answers_however_much_waits() {
        // Nobody listens there any more.
        let client = Script::silent(Vec::new(), false).await.client();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let queue = Queue::open(store.clone(), Clock::system()).await.unwrap();
        let directory = Directory::new(client.clone(), store, queue, Clock::system());
        let sync = async || {
            let begun = Instant::now();
            let error = directory.sync_with(Patience::Short).await.unwrap_err();
            (error.code(), begun.elapsed())
        };
        // Nobody has asked before.
        let (code, took) = sync().await;
        assert_eq!(code, "unreachable");
        assert!(took < Duration::from_secs(30), "{took:?}");
        let mut waiting = tokio::task::JoinSet::new();
        for number in 0..50 {
            let client = client.clone();
            waiting.spawn(async move { client.get(&format!("/{number}"), Leave::of(Class::Urgent)).await.map(drop) });
        }
        while client.down().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (code, took) = sync().await;
        assert_eq!(code, "unreachable");
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
}
