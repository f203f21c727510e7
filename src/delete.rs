//! Deletes links at Belvo, with all that it holds of them. What is kept here stays; erasing that is another command.
//!
//! *Takes* a link. *Gives* Belvo's answer that it is deleting the link, and later that the link is gone. *Promises*
//! that nothing of the link is fetched from the request on; that the link counts as gone only when Belvo says so, by a
//! webhook or by not knowing it twice in a row; and that a request which a crash or the network cut off is sent again,
//! until Belvo takes it or refuses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::doubled;
use crate::belvo::links::Deletion;
use crate::belvo::{self, Client, Decision, Failure, Patience};
use crate::clock::{Clock, Timestamp};
use crate::deadlines::{self, Deadlines};
use crate::link_id::LinkId;
use crate::links::{self, DELETED, DELETING};
use crate::queue::Queue;
use crate::store::{self, Store, Tx, args};
use crate::tombstones;

/// How long to wait for the webhook before Belvo is asked, where webhooks can come.
pub const WITH_WEBHOOKS: Duration = Duration::from_mins(1);

/// The same where none can, because nothing listens.
pub const WITHOUT_WEBHOOKS: Duration = Duration::from_secs(2);

/// Belvo may forget a link for a moment: one that it does not know is asked for once more so much later.
const ONCE_MORE: Duration = Duration::from_secs(2);

/// Longest time between two looks.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// Deadlines are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a link could not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Belvo did not take the wish, and the link is as it was; or nobody knows whether it did, and the wish is sent
    /// again.
    #[error(transparent)]
    Belvo(#[from] Failure),
    /// Belvo took the wish and refused it when it was sent again.
    #[error("Belvo refuses now what it had taken, and the link is as it was: the log says why")]
    Refused,
    /// The wish could not be written down; nothing was sent.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Belvo(failure) => failure.code.name(),
            Self::Refused => "delete_refused",
            Self::Store(error) => error.code(),
        }
    }
}

/// Whether Belvo may have taken a wish already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    First,
    Again,
}

/// Deletes, and sees to the end of it. Cheap to clone.
#[derive(Clone)]
pub struct Deleter {
    client: Client,
    store: Store,
    queue: Queue,
    clock: Clock,
    patience: Duration,
    /// Links that Belvo did not know when it was asked last, and since when. After a restart it is asked twice again.
    unknown: Arc<Mutex<HashMap<LinkId, Timestamp>>>,
}

impl Deleter {
    /// One that asks `client`, and looks whether a link is gone after `patience`: [`WITH_WEBHOOKS`] or
    /// [`WITHOUT_WEBHOOKS`].
    pub fn new(client: Client, store: Store, queue: Queue, clock: Clock, patience: Duration) -> Self {
        Self { client, store, queue, clock, patience, unknown: Arc::default() }
    }

    /// Lets Belvo delete `link`, for somebody who waits. Unless it is [`Deletion::Done`], it will be gone soon.
    ///
    /// # Errors
    /// [`Error`]. When nobody knows whether the wish arrived, it is sent again later.
    pub async fn delete(&self, link: &LinkId) -> Result<Deletion, Error> {
        let (wish, now, patience) = (link.clone(), self.clock.now(), self.patience);
        let sending = self.store.write(move |tx| note_wish(tx, &wish, now, now + patience)).await?;
        self.send(link, sending, Patience::Short).await
    }

    /// Whether Belvo has said that `link` is gone, or nobody asks any more because it was erased here.
    ///
    /// # Errors
    /// [`Error::Refused`], when the wish has come to nothing; [`Error::Store`].
    pub async fn is_gone(&self, link: &LinkId) -> Result<bool, Error> {
        let link = link.clone();
        let wanted = "SELECT EXISTS (SELECT 1 FROM deletions d WHERE d.link_id = l.link_id AND d.due_at IS NOT NULL) \
            FROM links l WHERE l.link_id = $1 AND coalesce(l.status, '') <> $2";
        let standing = self.store.read(move |tx| tx.one(wanted, args![&link, DELETED], |row| Ok(row.int(0)? == 1)));
        match standing.await? {
            None => Ok(true),
            Some(true) => Ok(false),
            Some(false) => Err(Error::Refused),
        }
    }

    async fn send(&self, link: &LinkId, sending: Sending, patience: Patience) -> Result<Deletion, Error> {
        if sending == Sending::First {
            self.lock_unknown().remove(link);
        }
        let asked_at = self.clock.now();
        let sent = belvo::links::delete(&self.client, link, patience).await;
        let (link, now) = (link.clone(), self.clock.now());
        match sent {
            Ok(Deletion::Done) => {
                self.note_gone(&link, now).await?;
                Ok(Deletion::Done)
            }
            Ok(Deletion::Unknown) => {
                let is_gone = self.note_unknown(&link, asked_at).await?;
                Ok(if is_gone { Deletion::Done } else { Deletion::Unknown })
            }
            Ok(Deletion::Accepted) => Ok(Deletion::Accepted),
            Err(failure) => {
                tracing::warn!(
                    code = failure.code.name(),
                    link = link.log_tag(),
                    request_id = failure.request_id,
                    "not deleted: {failure}"
                );
                // What was taken once is taken back only by a refusal; haste or a pause of Belvo's is none.
                let is_refused = matches!(failure.kind, Decision::Refused | Decision::AskUser);
                if is_refused || sending == Sending::First && !failure.may_have_arrived() {
                    self.store.write(move |tx| note_refused(tx, &link, now)).await?;
                    self.queue.announce();
                }
                Err(failure.into())
            }
        }
    }

    /// Notes that Belvo did not know `link` when it was asked at `asked_at`, and whether it is gone by that; if not,
    /// Belvo is asked once more soon.
    async fn note_unknown(&self, link: &LinkId, asked_at: Timestamp) -> Result<bool, store::Error> {
        let since = *self.lock_unknown().entry(link.clone()).or_insert(asked_at);
        if asked_at.since(since) >= ONCE_MORE {
            self.note_gone(link, asked_at).await?;
            return Ok(true);
        }
        let (link, again) = (link.clone(), since + ONCE_MORE);
        let soon = "UPDATE deletions SET due_at = $2 WHERE link_id = $1 AND due_at IS NOT NULL";
        self.store.write(move |tx| tx.execute(soon, args![&link, again])).await?;
        Ok(false)
    }

    async fn note_gone(&self, link: &LinkId, now: Timestamp) -> Result<(), store::Error> {
        self.lock_unknown().remove(link);
        let link = link.clone();
        self.store.write(move |tx| note_gone(tx, &link, now)).await?;
        self.queue.announce();
        Ok(())
    }

    fn lock_unknown(&self) -> MutexGuard<'_, HashMap<LinkId, Timestamp>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after deadlines until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        deadlines::run(&self, LOOK_EVERY, "deletions", shutdown).await;
    }
}

impl Deadlines for Deleter {
    /// Asks Belvo for the links that should be gone by now. Gives how many are.
    ///
    /// # Errors
    /// [`store::Error`].
    async fn follow_up(&self) -> Result<usize, store::Error> {
        let now = self.clock.now();
        let mut gone = 0;
        for (link, attempts) in self.store.write(move |tx| overdue(tx, now)).await? {
            let asked_at = self.clock.now();
            match belvo::links::get(&self.client, &link).await {
                Err(failure) if failure.is_belvos_not_found() => {
                    gone += usize::from(self.note_unknown(&link, asked_at).await?);
                }
                answer => {
                    let wait = doubled(self.patience, attempts, LONGEST_WAIT);
                    let (later, until) = (link.clone(), self.clock.now() + wait);
                    let postpone = "UPDATE deletions SET due_at = $2, attempts = attempts + 1 WHERE link_id = $1";
                    self.store.write(move |tx| tx.execute(postpone, args![&later, until])).await?;
                    // Still there after some looks, or although Belvo had not known it: the wish is sent again, and its
                    // failure is logged.
                    let was_unknown = answer.is_ok() && self.lock_unknown().remove(&link).is_some();
                    if was_unknown || answer.is_ok() && attempts % 4 == 3 {
                        let _ = self.send(&link, Sending::Again, Patience::Long).await;
                    }
                }
            }
        }
        Ok(gone)
    }
}

/// Writes the wish down before it is sent, and stops what is due of the link. Says whether Belvo may have taken it
/// before.
fn note_wish(tx: &Tx<'_>, link: &LinkId, now: Timestamp, due_at: Timestamp) -> Result<Sending, store::Error> {
    if tombstones::is_erased(tx, link)? {
        return Ok(Sending::First);
    }
    let is_open = "SELECT 1 FROM deletions WHERE link_id = $1 AND due_at IS NOT NULL";
    let is_open = tx.one(is_open, args![link], |_| Ok(()))?.is_some();
    links::note_wish(tx, link, now)?;
    let before = links::status(tx, link)?.filter(|status| status != DELETING);
    links::note_status(tx, link, DELETING, now)?;
    links::need_no_look_up(tx, link)?;
    tx.execute(
        "INSERT INTO deletions (link_id, asked_at, due_at, status_before) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (link_id) DO UPDATE SET asked_at = excluded.asked_at, due_at = excluded.due_at, attempts = 0, \
         status_before = coalesce(excluded.status_before, deletions.status_before)",
        args![link, now, due_at, before.as_deref()],
    )?;
    Ok(if is_open { Sending::Again } else { Sending::First })
}

fn note_gone(tx: &Tx<'_>, link: &LinkId, now: Timestamp) -> Result<(), store::Error> {
    links::note_status(tx, link, DELETED, now)?;
    links::need_no_look_up(tx, link)?;
    tx.execute("UPDATE deletions SET due_at = NULL WHERE link_id = $1", args![link])?;
    Ok(())
}

fn note_refused(tx: &Tx<'_>, link: &LinkId, now: Timestamp) -> Result<(), store::Error> {
    let before = "SELECT status_before FROM deletions WHERE link_id = $1";
    let before = tx.one(before, args![link], |row| row.opt_text(0))?.flatten();
    links::note_kept(tx, link, before.as_deref(), now)?;
    tx.execute("UPDATE deletions SET due_at = NULL WHERE link_id = $1", args![link])?;
    Ok(())
}

/// Closes the deletions that a webhook has confirmed. It runs every few seconds where everybody writes, so it looks at
/// the links of open deletions and at no others.
const CLOSE_CONFIRMED: &str = "UPDATE deletions SET due_at = NULL WHERE due_at IS NOT NULL \
    AND EXISTS (SELECT 1 FROM links l WHERE l.link_id = deletions.link_id AND l.status = $1)";

/// Closes the deletions that a webhook has confirmed, and gives those that are to be looked at.
fn overdue(tx: &Tx<'_>, now: Timestamp) -> Result<Vec<(LinkId, u32)>, store::Error> {
    tx.execute(CLOSE_CONFIRMED, args![DELETED])?;
    tx.all("SELECT link_id, attempts FROM deletions WHERE due_at <= $1", args![now], |row| {
        Ok((row.link_id(0)?, u32::try_from(row.int(1)?).unwrap_or(u32::MAX)))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU16, Ordering};

    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Hand;
    use crate::queue::{self, Trigger};
    use crate::resources;

    const ID: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    struct Place {
        deleter: Deleter,
        hand: Hand,
        _folder: tempfile::TempDir,
    }

    fn link() -> LinkId {
        ID.parse().unwrap()
    }

    impl Place {
        /// A place with one link that has a refresh due.
        async fn new(client: Client) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let start = Timestamp::parse("2026-11-23T10:00:00Z").unwrap();
            let hand = Hand::at(start);
            let clock = hand.clock();
            let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
            let track = move |tx: &Tx<'_>| {
                links::note_wish(tx, &link(), start)?;
                links::note_status(tx, &link(), "valid", start)?;
                queue::mark(tx, &link(), resources::ALL[0], Trigger::Webhook, start)
            };
            store.write(track).await.unwrap();
            Self { deleter: Deleter::new(client, store, queue, clock, WITH_WEBHOOKS), hand, _folder: folder }
        }

        async fn status(&self) -> (Option<String>, i64) {
            let sql = "SELECT status, (SELECT count(*) FROM refreshes WHERE due_at IS NOT NULL) FROM links";
            let row =
                self.deleter.store.read(move |tx| tx.one(sql, args![], |row| Ok((row.opt_text(0)?, row.int(1)?))));
            row.await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn a_link_is_deleted_without_waiting_and_gone_when_belvo_does_not_know_it_twice() {
        /// A 404 that whatever stands before Belvo says, and not Belvo.
        const PAGE: u16 = 0;
        let looked_up = Arc::new(AtomicU16::new(200));
        let answer = Arc::clone(&looked_up);
        let script = Script::start(move |head| match head {
            head if head.starts_with("DELETE") => scripted::json(202, r#"{"request_id":"x"}"#),
            _ => match answer.load(Ordering::SeqCst) {
                PAGE => scripted::json(404, "<html>"),
                404 => scripted::json(404, r#"[{"code":"not_found"}]"#),
                status => scripted::json(status, &format!(r#"{{"id":"{ID}"}}"#)),
            },
        })
        .await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.deleter.delete(&link()).await.unwrap(), Deletion::Accepted);
        let head = script.requests().remove(0).to_ascii_lowercase();
        assert!(head.starts_with(&format!("delete /api/links/{ID}/ http")), "{head}");
        assert!(head.contains("x-belvo-request-mode: async\r\n"), "{head}");
        assert_eq!(place.status().await, (Some(DELETING.to_owned()), 0));
        assert_eq!(place.deleter.follow_up().await.unwrap(), 0);
        for (status, gone) in [(200, 0), (PAGE, 0), (PAGE, 0), (404, 0), (404, 1), (404, 0)] {
            looked_up.store(status, Ordering::SeqCst);
            place.hand.pass(LONGEST_WAIT);
            assert_eq!(place.deleter.follow_up().await.unwrap(), gone);
        }
        assert!(place.deleter.is_gone(&link()).await.unwrap());
        assert_eq!(script.requests().len(), 6);
    }

    #[tokio::test]
    async fn what_belvo_forgets_for_a_moment_is_asked_to_be_deleted_once_more() {
        let script = Script::start({
            // From the last to the first.
            let answers = Mutex::new(vec![("GET", 404), ("GET", 404), ("DELETE", 202), ("GET", 200), ("DELETE", 404)]);
            move |head| {
                let (method, status) = answers.lock().unwrap().pop().unwrap();
                assert!(head.starts_with(method), "{head}");
                let said =
                    if status == 404 { r#"[{"code":"not_found"}]"#.to_owned() } else { format!(r#"{{"id":"{ID}"}}"#) };
                scripted::json(status, &said)
            }
        })
        .await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.deleter.delete(&link()).await.unwrap(), Deletion::Unknown);
        assert_eq!(place.deleter.follow_up().await.unwrap(), 0, "it is too soon to ask again");
        assert_eq!(script.requests().len(), 1);
        place.hand.pass(ONCE_MORE);
        assert_eq!(place.deleter.follow_up().await.unwrap(), 0);
        assert_eq!(script.requests().len(), 3, "it is there, and the wish is sent again");
        place.hand.pass(LONGEST_WAIT);
        assert_eq!(place.deleter.follow_up().await.unwrap(), 0);
        assert_eq!(place.status().await.0, Some(DELETING.to_owned()));
        place.hand.pass(ONCE_MORE);
        assert_eq!(place.deleter.follow_up().await.unwrap(), 1);
        assert_eq!(place.status().await.0, Some(DELETED.to_owned()));
    }

    #[tokio::test]
    async fn what_belvo_took_is_ended_by_a_refusal_only() {
        let answers = Arc::new(AtomicU16::new(202));
        let deletes = Arc::clone(&answers);
        let script = Script::start(move |head| match head {
            head if head.starts_with("DELETE") => match deletes.load(Ordering::SeqCst) {
                202 => scripted::json(202, r#"{"request_id":"x"}"#),
                status => scripted::json(status, r#"[{"code":"permission"}]"#),
            },
            _ => scripted::json(200, &format!(r#"{{"id":"{ID}"}}"#)),
        })
        .await;
        let place = Place::new(script.client()).await;
        place.deleter.delete(&link()).await.unwrap();
        let again = async |status| {
            answers.store(status, Ordering::SeqCst);
            for _ in 0..4 {
                place.hand.pass(LONGEST_WAIT);
                assert_eq!(place.deleter.follow_up().await.unwrap(), 0);
            }
            (place.status().await.0, place.deleter.is_gone(&link()).await.map_err(|error| error.code()))
        };
        assert_eq!(again(503).await, (Some(DELETING.to_owned()), Ok(false)));
        // Whoever orders it once more is no first.
        answers.store(429, Ordering::SeqCst);
        assert_eq!(place.deleter.delete(&link()).await.unwrap_err().code(), "rate_limited");
        assert_eq!(place.status().await.0, Some(DELETING.to_owned()));
        assert_eq!(again(403).await, (Some("valid".to_owned()), Err("delete_refused")));
    }

    #[tokio::test]
    async fn a_wish_on_which_belvo_failed_may_have_arrived() {
        let script = Script::start(|_| scripted::json(503, r#"[{"code":"x"}]"#)).await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.deleter.delete(&link()).await.unwrap_err().code(), "api_down");
        assert_eq!(place.status().await, (Some(DELETING.to_owned()), 0));
    }

    #[tokio::test]
    async fn a_link_that_belvo_does_not_know_is_gone_when_it_was_asked_once_more() {
        let script = Script::start(|_| scripted::json(404, r#"[{"code":"not_found"}]"#)).await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.deleter.delete(&link()).await.unwrap(), Deletion::Unknown);
        assert_eq!(place.status().await, (Some(DELETING.to_owned()), 0));
        place.hand.pass(ONCE_MORE);
        assert_eq!(place.deleter.follow_up().await.unwrap(), 1);
        assert_eq!(place.status().await, (Some(DELETED.to_owned()), 0));
    }

    #[tokio::test]
    async fn a_page_that_is_not_found_is_no_word_of_belvos() {
        let script = Script::start(|_| scripted::json(404, "<html>")).await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.deleter.delete(&link()).await.unwrap_err().code(), "unexpected_status");
        assert_eq!(place.status().await, (Some("valid".to_owned()), 1), "the link is as it was");
    }

    #[tokio::test]
    async fn deletions_are_closed_without_reading_every_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let plan = format!("EXPLAIN QUERY PLAN {CLOSE_CONFIRMED}");
        let plan = store.read(move |tx| tx.all(&plan, args![DELETED], |row| row.text(3))).await.unwrap();
        assert!(plan.iter().any(|step| step.contains("deletions_due")), "{plan:?}");
        assert!(plan.iter().any(|step| step.starts_with("SEARCH l ")), "{plan:?}");
    }

    #[tokio::test]
    async fn a_webhook_ends_the_wait_and_a_refusal_leaves_the_link() {
        let script = Script::start(|_| scripted::json(202, r#"{"request_id":"x"}"#)).await;
        let place = Place::new(script.client()).await;
        place.deleter.delete(&link()).await.unwrap();
        let now = place.deleter.clock.now();
        place.deleter.store.write(move |tx| links::note_status(tx, &link(), DELETED, now)).await.unwrap();
        place.hand.pass(LONGEST_WAIT);
        assert_eq!(place.deleter.follow_up().await.unwrap(), 0);
        assert_eq!(script.requests().len(), 1);

        let script = Script::start(|_| scripted::json(403, r#"[{"code":"access_to_resource_denied"}]"#)).await;
        let place = Place::new(script.client()).await;
        assert_eq!(place.deleter.delete(&link()).await.unwrap_err().code(), "api_forbidden");
        assert_eq!(place.status().await, (Some("valid".to_owned()), 1));
    }

    #[tokio::test]
    async fn a_link_that_is_not_deleted_after_all_stands_as_before() {
        let script = Script::start(|_| scripted::json(403, r#"[{"code":"access_to_resource_denied"}]"#)).await;
        for before in ["valid", "invalid", "token_required", DELETED] {
            let place = Place::new(script.client()).await;
            let now = place.deleter.clock.now();
            let standing = |tx: &Tx<'_>| {
                let sql = "SELECT coalesce(paused_reason, '') FROM links UNION ALL \
                    SELECT coalesce(blocked_reason, '') FROM refreshes";
                tx.all(sql, args![], |row| row.text(0))
            };
            let set = move |tx: &Tx<'_>| {
                links::note_status(tx, &link(), before, now)?;
                standing(tx)
            };
            let expected = place.deleter.store.write(set).await.unwrap();
            place.hand.pass(ONCE_MORE);
            for _ in 0..2 {
                assert_eq!(place.deleter.delete(&link()).await.unwrap_err().code(), "api_forbidden");
                assert_eq!(place.status().await.0.as_deref(), Some(before));
                assert_eq!(place.deleter.store.read(standing).await.unwrap(), expected, "{before}");
            }
        }
    }
}
