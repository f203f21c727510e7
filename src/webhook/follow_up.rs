//! What follows from a webhook: it is kept as it came, and a moment later its link and its resource know of it.
//!
//! *Takes* an [`Event`] and its body, inside the caller's transaction. *Gives* its row in `webhooks`, later a mark in
//! the queue or a status of its link, and an [`Outcome`]. *Promises* that one which cannot be followed up holds up no
//! other, and that of a link which was erased only the fact is kept that something came. *Not here*: when that is done
//! (`store/writer.rs`).

use super::event::{Event, Meaning, NOT_FOLLOWED_UP};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::links;
use crate::queue;
use crate::store::{Error, Row, Tx, WebhookPlace, args};
use crate::tombstones;

/// What becomes of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable, and about to be followed up.
    Received,
    /// A fetch is due.
    Queued,
    /// The status of its link is noted.
    Noted,
    /// Nobody understands it, or what it says could not be done.
    Quarantined,
    /// It is of an erased link.
    Erased,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Received, Self::Queued, Self::Noted, Self::Quarantined, Self::Erased];

    /// Its word in the state, in lists and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Queued => "queued",
            Self::Noted => "noted",
            Self::Quarantined => "quarantined",
            Self::Erased => "erased",
        }
    }

    /// What becomes of `event` once it is followed up.
    pub(super) fn of(event: &Event) -> Self {
        match (event.reason, &event.meaning) {
            (Some(_), _) | (None, Meaning::Unknown) => Self::Quarantined,
            (None, Meaning::Resource(..)) => Self::Queued,
            (None, Meaning::Status(_)) => Self::Noted,
        }
    }
}

/// Keeps the event. What follows from it is done by [`follow_up`].
pub(super) fn record(tx: &Tx<'_>, event: &Event, received_at: Timestamp, body: &[u8]) -> Result<(), Error> {
    // What names no link goes to the quarantine as it came: it may name one where nobody looks.
    let is_erased = match &event.link_id {
        Some(link_id) => tombstones::is_erased(tx, link_id)?,
        None => tombstones::are_named_in(tx, body)? || is_of_erased_user(tx, event)?,
    };
    if is_erased {
        return count_erased(tx, event, received_at);
    }
    // Of an event with consequences the link is noted together with them.
    let has_consequences = event.link_id.is_some() && event.meaning != Meaning::Unknown;
    let outcome = if has_consequences { Outcome::Received } else { Outcome::of(event) };
    let link_id = event.link_id.as_ref().filter(|_| !has_consequences);
    let place = WebhookPlace { link_id: link_id.map(LinkId::as_str), received_at: received_at.as_micros() };
    tx.execute(
        "INSERT INTO webhooks (received_at, webhook_type, webhook_code, link_id, outcome, reason, body) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        args![
            received_at,
            event.webhook_type.as_deref(),
            event.webhook_code.as_deref(),
            link_id,
            outcome.name(),
            event.reason,
            &*place.seal(tx, body)?
        ],
    )
    .map(drop)
}

/// Whether an event without a link is of a user who was erased and has not come back since: nothing is held under the
/// `external_id` then, as whoever connects again has opened the widget or has a link.
fn is_of_erased_user(tx: &Tx<'_>, event: &Event) -> Result<bool, Error> {
    let Some(external_id) = &event.external_id else { return Ok(false) };
    if !tombstones::is_erased_user(tx, external_id)? {
        return Ok(false);
    }
    let again =
        "SELECT 1 FROM links WHERE external_id = $1 UNION ALL SELECT 1 FROM widget_sessions WHERE external_id = $1";
    Ok(tx.one(again, args![external_id], |_| Ok(()))?.is_none())
}

/// A webhook that is durable and not followed up yet.
struct Waiting {
    seq: i64,
    received_at: Timestamp,
    event: Event,
    body: Vec<u8>,
}

impl Waiting {
    fn read(tx: &Tx<'_>, row: &Row<'_>) -> Result<Self, Error> {
        let received_at = row.at(1)?;
        let place = WebhookPlace { link_id: None, received_at: received_at.as_micros() };
        let body = place.open(tx, row.bytes(2)?)?.into_owned();
        let event = Event::read(&body).ok_or(Error::Unreadable("a webhook"))?;
        Ok(Self { seq: row.int(0)?, received_at, event, body })
    }

    fn follow_up(&self, tx: &Tx<'_>) -> Result<(), Error> {
        let Self { seq, received_at, event, body } = self;
        if let Some(link_id) = &event.link_id
            && tombstones::is_erased(tx, link_id)?
        {
            tx.execute("DELETE FROM webhooks WHERE seq = $1", args![*seq])?;
            return count_erased(tx, event, *received_at);
        }
        let link_id = event.link_id.as_ref();
        let place = WebhookPlace { link_id: link_id.map(LinkId::as_str), received_at: received_at.as_micros() };
        tx.execute(
            "UPDATE webhooks SET link_id = $2, outcome = $3, body = $4 WHERE seq = $1",
            args![*seq, link_id, Outcome::of(event).name(), &*place.seal(tx, body)?],
        )?;
        follow(tx, event, *received_at)
    }
}

/// Does what follows from the oldest webhooks that are only received, `most` at a time, and gives their number; see
/// [`Store::follow_up_by`](crate::store::Store::follow_up_by).
///
/// # Errors
/// [`Error::Database`], when the state cannot be written. What cannot be followed up for another reason goes to the
/// quarantine.
pub fn follow_up(tx: &Tx<'_>, most: usize) -> Result<usize, Error> {
    let (mut received, mut failed) = (Vec::new(), Vec::new());
    tx.each(
        "SELECT seq, received_at, body FROM webhooks WHERE outcome = 'received' ORDER BY seq LIMIT $1",
        args![most],
        |row| {
            match Waiting::read(tx, row) {
                Ok(one) => received.push(one),
                Err(Error::Unreadable(_)) => failed.push(row.int(0)?),
                Err(error) => return Err(error),
            }
            Ok(())
        },
    )?;
    // Rows of one link lie together; its events stay in their order.
    received.sort_by(|a, b| {
        a.event.link_id.as_ref().map(LinkId::as_str).cmp(&b.event.link_id.as_ref().map(LinkId::as_str))
    });
    let count = received.len() + failed.len();
    let follow_all = |webhooks: &[Waiting]| {
        let mut error = None;
        let is_done = tx.attempt(|| {
            error = webhooks.iter().try_for_each(|webhook| webhook.follow_up(tx)).err();
            error.is_none()
        })?;
        match error {
            // Nobody can be served while the state itself fails.
            Some(error) if !error.is_about_one_write() => Err(error),
            _ => Ok(is_done),
        }
    };
    if !follow_all(&received)? {
        for webhook in &received {
            if !follow_all(std::slice::from_ref(webhook))? {
                failed.push(webhook.seq);
            }
        }
    }
    for seq in failed {
        tracing::error!(
            code = "not_followed_up",
            seq,
            "what a webhook says could not be done, and it is kept in the quarantine: this is a defect to report; \
             `vinculo webhooks replay` tries it again"
        );
        let quarantine = "UPDATE webhooks SET outcome = $2, reason = $3 WHERE seq = $1";
        tx.execute(quarantine, args![seq, Outcome::Quarantined.name(), NOT_FOLLOWED_UP])?;
    }
    Ok(count)
}

/// Does what the event says.
pub(super) fn follow(tx: &Tx<'_>, event: &Event, received_at: Timestamp) -> Result<(), Error> {
    let Some(link_id) = &event.link_id else { return Ok(()) };
    match &event.meaning {
        Meaning::Resource(resource, count) => {
            let paused = links::note_webhook(tx, link_id, event.external_id.as_deref(), received_at)?;
            queue::mark_news(tx, link_id, resource, *count, received_at)?;
            if let Some(reason) = paused {
                links::note_news(tx, link_id, &reason, received_at)?;
            }
        }
        Meaning::Status(status) => {
            links::note_webhook(tx, link_id, event.external_id.as_deref(), received_at)?;
            links::note_status(tx, link_id, status, received_at)?;
        }
        Meaning::Unknown => {}
    }
    Ok(())
}

/// Of an event for a link that was erased only the fact is kept that it came.
fn count_erased(tx: &Tx<'_>, event: &Event, received_at: Timestamp) -> Result<(), Error> {
    metrics::counter!("vinculo_webhooks_for_erased_links_total").increment(1);
    let nothing: &[u8] = &[];
    tx.execute(
        "INSERT INTO webhooks (received_at, webhook_type, outcome, body) VALUES ($1, $2, $3, $4)",
        args![received_at, event.label(), Outcome::Erased.name(), nothing],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::store::Store;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    fn event(link: &str) -> String {
        format!(r#"{{"webhook_type":"OWNERS","webhook_code":"historical_update","link_id":"{link}"}}"#)
    }

    /// Appends an event as the listener does, to a state that nobody follows up.
    async fn append(store: &Store, body: String) {
        let event = Event::read(body.as_bytes()).unwrap();
        let received_at = Clock::system().now();
        store.append(move |tx| record(tx, &event, received_at, body.as_bytes())).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_acknowledged_before_a_crash_is_followed_up_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let store = Store::open(&path).unwrap();
        for number in 0..100 {
            append(&store, event(&format!("2f5d361d-dad6-45d4-a0bf-{:012}", number / 2))).await;
        }
        let marks = "SELECT count(*), coalesce(sum(marks), 0) FROM refreshes";
        let marked = move |tx: &Tx<'_>| tx.one(marks, args![], |row| Ok((row.int(0)?, row.int(1)?)));
        assert_eq!(store.read(marked).await.unwrap(), Some((0, 0)));
        assert_eq!(store.read(queue::backlog).await.unwrap().pending, 100);
        tokio::task::spawn_blocking(move || store.close()).await.unwrap();

        let store = Store::open(&path).unwrap();
        store.follow_up_by(follow_up).await.unwrap();
        assert_eq!(store.read(marked).await.unwrap(), Some((50, 100)));
        let queued = "SELECT count(*) FROM webhooks WHERE outcome = 'queued' AND link_id IS NOT NULL";
        assert_eq!(store.read(move |tx| tx.one(queued, args![], |row| row.int(0))).await.unwrap(), Some(100));
    }

    #[tokio::test]
    async fn a_webhook_that_cannot_be_followed_up_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        append(&store, event(LINK)).await;
        let damaged = "INSERT INTO webhooks (received_at, outcome, body) VALUES (7, 'received', $1)";
        store.write(move |tx| tx.execute(damaged, args![b"{".as_slice()])).await.unwrap();
        store.follow_up_by(follow_up).await.unwrap();
        let outcomes = store
            .read(|tx| tx.all("SELECT outcome FROM webhooks ORDER BY seq", args![], |row| row.text(0)))
            .await
            .unwrap();
        assert_eq!(outcomes, ["queued", "quarantined"]);
    }

    #[tokio::test]
    async fn a_late_event_without_a_link_brings_no_erased_user_back_and_a_new_consent_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = Timestamp::from_micros;
        let comes = |body: String| {
            let store = store.clone();
            async move {
                let keep = move |tx: &Tx<'_>| {
                    record(tx, &Event::read(body.as_bytes()).unwrap(), at(9), body.as_bytes())?;
                    let last = "SELECT outcome FROM webhooks ORDER BY seq DESC LIMIT 1";
                    tx.one(last, args![], |row| row.text(0))
                };
                store.write(keep).await.unwrap().unwrap()
            }
        };
        let nameless = || r#"{"webhook_type":"PLANETS","external_id":"us-1"}"#.to_owned();
        assert_eq!(comes(nameless()).await, "quarantined");
        let erased = move |tx: &Tx<'_>| {
            tx.execute("DELETE FROM webhooks", args![])?;
            tombstones::bury(tx, tombstones::Kind::ExternalId, "us-1", at(8)).map(drop)
        };
        store.write(erased).await.unwrap();
        assert_eq!(comes(nameless()).await, "erased");
        assert_eq!(comes(nameless().replace("us-1", "us-12")).await, "quarantined");
        // Whoever connects again is named with a link, or has opened the widget.
        assert_eq!(comes(event(LINK)).await, "received");
        let session = "INSERT INTO widget_sessions (external_id, asked_at) VALUES ('us-1', 9)";
        store.write(move |tx| tx.execute(session, args![])).await.unwrap();
        assert_eq!(comes(nameless()).await, "quarantined");
    }
}
