//! A webhook that is read again: one of the quarantine, by a program that understands more, or any other.
//!
//! *Takes* the number of a webhook, inside the caller's transaction. *Gives* what came of it. *Promises* that it goes
//! through the same reading as a fresh one, stays one row, and takes back nothing that was learnt after it came. *Not
//! here*: who asks.

use std::borrow::Cow;

use super::event::{Event, Meaning};
use super::follow_up::{Outcome, follow};
use super::log::{self, COLUMNS};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::links;
use crate::store::{Error, Tx, WebhookPlace, args};
use crate::tombstones;

/// What came of a webhook that was read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replayed {
    /// It is understood, and what it says is done.
    Understood,
    /// It stays in the quarantine.
    StillQuarantined,
    /// There is no such webhook.
    Missing,
}

/// Reads the webhook number `seq` again, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn replay(tx: &Tx<'_>, seq: i64, now: Timestamp) -> Result<Replayed, Error> {
    let sql = format!("SELECT {COLUMNS} FROM webhooks WHERE seq = $1");
    let stored = tx.one(&sql, args![seq], |row| Ok((row.at(1)?, log::body(tx, row)?.map(Cow::into_owned))))?;
    let Some((received_at, body)) = stored else { return Ok(Replayed::Missing) };
    // A damaged body says as little as one that is not understood, and must hold up no other.
    let body = body.unwrap_or_default();
    let Some(event) = Event::read(&body) else {
        tx.execute("UPDATE webhooks SET replayed_at = $2 WHERE seq = $1", args![seq, now])?;
        return Ok(Replayed::StillQuarantined);
    };
    if let Some(link_id) = &event.link_id
        && tombstones::is_erased(tx, link_id)?
    {
        tx.execute("DELETE FROM webhooks WHERE seq = $1", args![seq])?;
        return Ok(Replayed::Understood);
    }
    let outcome = Outcome::of(&event);
    // Under the key of the link that it is now known to name.
    let link_id = event.link_id.as_ref().map(LinkId::as_str);
    let body = WebhookPlace { link_id, received_at: received_at.as_micros() }.seal(tx, &body)?;
    tx.execute(
        "UPDATE webhooks SET webhook_type = $2, webhook_code = $3, link_id = $4, outcome = $5, reason = $6, replayed_at = $7, \
         body = $8 WHERE seq = $1",
        args![
            seq,
            event.webhook_type.as_deref(),
            event.webhook_code.as_deref(),
            event.link_id.as_ref(),
            outcome.name(),
            event.reason,
            now,
            &*body
        ],
    )?;
    follow_late(tx, &event, received_at, now)?;
    let is_understood = outcome != Outcome::Quarantined;
    let label = if is_understood { "understood" } else { "quarantined" };
    metrics::counter!("vinculo_webhooks_replayed_total", "type" => event.label(), "outcome" => label).increment(1);
    Ok(if is_understood { Replayed::Understood } else { Replayed::StillQuarantined })
}

/// Does what the event says as far as nothing newer is known.
fn follow_late(tx: &Tx<'_>, event: &Event, received_at: Timestamp, now: Timestamp) -> Result<(), Error> {
    let Some(link_id) = &event.link_id else { return Ok(()) };
    let link = tx.one(
        "SELECT last_webhook_at, looked_up_at, paused_at FROM links WHERE link_id = $1",
        args![link_id],
        |row| Ok((row.opt_at(0)?, row.opt_at(1)?, row.opt_at(2)?)),
    )?;
    let (last_webhook_at, looked_up_at, paused_at) = link.unwrap_or_default();
    let is_later = |at: Option<Timestamp>| at.is_some_and(|at| at >= received_at);
    match &event.meaning {
        // Belvo told the status after this event, or the link was paused after it: Belvo is asked once more rather than
        // overruled.
        Meaning::Status(_) if is_later(looked_up_at) => return links::look_up(tx, link_id, now),
        Meaning::Resource(..) if is_later(paused_at) => return links::look_up(tx, link_id, now),
        // A link that is new is so from now on: whatever was published of the time before lacks it.
        Meaning::Status(_) => follow(tx, event, if link.is_none() { now } else { received_at })?,
        Meaning::Resource(resource, _) => {
            let standing = tx.one(
                "SELECT webhook_count, last_started_at FROM refreshes WHERE link_id = $1 AND resource = $2",
                args![link_id, resource.name],
                |row| Ok((row.opt_int(0)?, row.opt_at(1)?)),
            )?;
            follow(tx, event, now)?;
            if let Some((count, Some(started))) = standing
                && started >= received_at
            {
                // What it counted was listed since.
                tx.execute(
                    "UPDATE refreshes SET webhook_count = $3 WHERE link_id = $1 AND resource = $2",
                    args![link_id, resource.name, count],
                )?;
            }
        }
        Meaning::Unknown => {}
    }
    let came = last_webhook_at.map_or(received_at, |last| last.max(received_at));
    tx.execute("UPDATE links SET last_webhook_at = $2 WHERE link_id = $1", args![link_id, came])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::store::{Readers, Store};
    use crate::webhook::log::{Filter, count_quarantined, list, quarantined, show};

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// A state with one quarantined webhook, of `body`, that came at second 100.
    async fn quarantine(body: &str) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let body = body.as_bytes().to_vec();
        let insert = move |tx: &Tx<'_>| {
            let sql = "INSERT INTO webhooks (received_at, outcome, reason, body) VALUES ($1, 'quarantined', 'x', $2)";
            tx.execute(sql, args![at(100), body.as_slice()])
        };
        store.write(insert).await.unwrap();
        (folder, store)
    }

    fn owners(code: &str) -> String {
        format!(
            r#"{{"webhook_type":"OWNERS","webhook_code":"{code}","link_id":"{LINK}","external_id":"us-1","data":{{"total_owners":0}}}}"#
        )
    }

    #[tokio::test]
    async fn a_link_that_a_status_read_again_brings_is_new_from_then_on() {
        let event = format!(r#"{{"webhook_type":"LINK","webhook_code":"token_required","link_id":"{LINK}"}}"#);
        let (_folder, store) = quarantine(&event).await;
        let seq = store.read(|tx| quarantined(tx, 0, 1)).await.unwrap()[0];
        store.write(move |tx| replay(tx, seq, at(500))).await.unwrap();
        let first_seen = "SELECT first_seen_at FROM links";
        let first_seen = store.read(move |tx| tx.one(first_seen, args![], |row| row.at(0))).await.unwrap();
        assert_eq!(first_seen, Some(at(500)));
    }

    #[tokio::test]
    async fn a_damaged_body_hides_no_other_webhook_and_keeps_none_from_being_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let key = Some("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned().into());
        let store =
            Store::configured(&config::State { path, encryption_key: key, encryption_key_previous: None }).unwrap();
        let insert = |tx: &Tx<'_>| {
            for outcome in ["queued", "quarantined", "quarantined"] {
                let place = WebhookPlace { link_id: None, received_at: at(100).as_micros() };
                let body = owners("historical_update");
                let body = place.seal(tx, body.as_bytes())?;
                let sql = "INSERT INTO webhooks (received_at, outcome, body) VALUES ($1, $2, $3)";
                tx.execute(sql, args![at(100), outcome, &*body])?;
            }
            tx.execute("UPDATE webhooks SET body = substr(body, 1, length(body) - 6) WHERE seq <= 2", args![])
        };
        store.write(insert).await.unwrap();
        let read = |tx: &Tx<'_>| Ok((list(tx, &Filter::default(), None, 10)?.0, show(tx, 2)?.unwrap().1));
        let (all, shown) = store.read(read).await.unwrap();
        let told: Vec<_> = all.iter().map(|entry| entry.external_id.as_deref()).collect();
        assert_eq!(told, [Some("us-1"), None, None]);
        assert_eq!(shown, serde_json::json!("(damaged, and cannot be opened)"));
        let again =
            |tx: &Tx<'_>| [1, 2, 3].into_iter().map(|seq| replay(tx, seq, at(500))).collect::<Result<Vec<_>, _>>();
        let damaged = Replayed::StillQuarantined;
        assert_eq!(store.write(again).await.unwrap(), [damaged, damaged, Replayed::Understood]);
        let (all, _) = store.read(read).await.unwrap();
        assert!(all.iter().all(|entry| entry.replayed_at.is_some()));
        let outcomes: Vec<_> = all.iter().map(|entry| entry.outcome.as_str()).collect();
        assert_eq!(outcomes, ["queued", "quarantined", "queued"], "what was followed up once stays so");
    }

    #[tokio::test]
    async fn a_replay_does_what_the_event_says_and_leaves_one_row() {
        let (folder, store) = quarantine(&owners("historical_update")).await;
        assert_eq!(store.write(|tx| replay(tx, 1, at(500))).await.unwrap(), Replayed::Understood);
        let readers = Readers::of(&folder.path().join("state.db"));
        let read = |tx: &Tx<'_>| {
            let (all, _) = list(tx, &Filter::default(), None, 10)?;
            let due =
                tx.one("SELECT due_at, webhook_count FROM refreshes", args![], |row| Ok((row.at(0)?, row.int(1)?)))?;
            let link = tx.one("SELECT last_webhook_at FROM links", args![], |row| row.at(0))?;
            Ok::<_, Error>((all, due, link))
        };
        let (all, due, link) = readers.read(read).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].outcome.as_str(), &all[0].reason), ("queued", &None));
        assert_eq!(
            (all[0].external_id.as_deref(), all[0].replayed_at.clone()),
            (Some("us-1"), Some(at(500).to_string()))
        );
        assert_eq!((due, link), (Some((at(500), 0)), Some(at(100))));
        assert!(readers.read(|tx| quarantined(tx, 0, 10)).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_replay_takes_back_nothing_that_was_learnt_since() {
        let (folder, store) = quarantine(&owners("historical_update")).await;
        let known = |tx: &Tx<'_>| {
            tx.execute(
                "INSERT INTO links (link_id, status, first_seen_at, last_webhook_at, looked_up_at, changed_seq) \
                 VALUES ($1, 'valid', 0, $2, $2, 0)",
                args![LINK, at(300)],
            )?;
            tx.execute(
                "INSERT INTO refreshes (link_id, resource, marks, cleared, priority, webhook_count, last_started_at) \
                 VALUES ($1, 'owners', 1, 1, 0, 2, $2)",
                args![LINK, at(300)],
            )?;
            let expired =
                format!(r#"{{"webhook_type":"LINK","webhook_code":"invalid_credentials","link_id":"{LINK}"}}"#);
            let sql = "INSERT INTO webhooks (received_at, outcome, body) VALUES ($1, 'quarantined', $2)";
            tx.execute(sql, args![at(200), expired.as_bytes()])
        };
        store.write(known).await.unwrap();
        for seq in [1, 2] {
            assert_eq!(store.write(move |tx| replay(tx, seq, at(500))).await.unwrap(), Replayed::Understood);
        }
        let read = |tx: &Tx<'_>| {
            let count = tx.one("SELECT webhook_count FROM refreshes", args![], |row| row.int(0))?;
            let sql = "SELECT status, last_webhook_at, lookup_due_at FROM links";
            let link = tx.one(sql, args![], |row| Ok((row.text(0)?, row.at(1)?, row.at(2)?)))?;
            Ok::<_, Error>((count, link))
        };
        let found = Readers::of(&folder.path().join("state.db")).read(read).unwrap();
        assert_eq!(found, (Some(2), Some(("valid".to_owned(), at(300), at(500)))));
    }

    #[tokio::test]
    async fn what_is_still_not_understood_stays_and_what_is_not_there_is_told() {
        let (_folder, store) = quarantine(&owners("something_new")).await;
        assert_eq!(store.write(|tx| replay(tx, 1, at(500))).await.unwrap(), Replayed::StillQuarantined);
        assert_eq!(store.write(|tx| replay(tx, 7, at(500))).await.unwrap(), Replayed::Missing);
        assert_eq!(store.read(|tx| quarantined(tx, 0, 10)).await.unwrap(), [1]);
        assert_eq!(store.read(count_quarantined).await.unwrap(), 1);
    }
}
