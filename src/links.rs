//! The tracked links: what Belvo says of them, and when it was asked.
//!
//! *Takes* sightings in webhooks, and Belvo's link objects. *Gives* the rows of the table `links`. *Not here*: their
//! records.

use crate::belvo::LinkId;
use crate::clock::Timestamp;
use crate::queue::next_number;
use crate::store::{Error, Tx, args};

/// Notes that a webhook named the link, inside the caller's transaction. An unknown link is tracked from now on, and is
/// looked up at Belvo once.
///
/// # Errors
/// [`Error::Database`].
pub fn note_webhook(tx: &Tx<'_>, link_id: &LinkId, external_id: Option<&str>, at: Timestamp) -> Result<(), Error> {
    let seq = next_number(tx, "changes")?;
    tx.execute(
        "INSERT INTO links (link_id, external_id, first_seen_at, last_webhook_at, lookup_due_at, changed_seq) \
         VALUES ($1, $2, $3, $3, $3, $4) ON CONFLICT (link_id) DO UPDATE SET last_webhook_at = excluded.last_webhook_at, \
         external_id = coalesce(links.external_id, excluded.external_id), changed_seq = excluded.changed_seq",
        args![link_id, external_id, at, seq],
    )?;
    Ok(())
}

/// Notes a status that a webhook told, inside the caller's transaction.
///
/// # Errors
/// [`Error::Database`].
pub fn note_status(tx: &Tx<'_>, link_id: &LinkId, status: &str) -> Result<(), Error> {
    tx.execute("UPDATE links SET status = $2 WHERE link_id = $1", args![link_id, status])?;
    Ok(())
}
