//! The tracked links: what Belvo says of them, and when it was asked.
//!
//! *Takes* sightings in webhooks, and Belvo's link objects. *Gives* the rows of the table `links`. *Not here*: their
//! records.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::belvo::links::{LinkObject, MOST_IDS};
use crate::belvo::{self, Client, Decision, Failure, LinkId};
use crate::clock::{Clock, Timestamp};
use crate::queue::next_number;
use crate::store::{Error, Store, Tx, args};
use crate::tombstones;

/// New links are gathered for so long, because one call can look up many.
const GATHER_FOR: Duration = Duration::from_millis(200);

/// Longest time without a look at what is due, in case a clock was set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

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

/// Tracks a link that an operator names, inside the caller's transaction; what is tracked already stays as it is.
///
/// # Errors
/// [`Error::Database`].
pub fn note_wish(tx: &Tx<'_>, link_id: &LinkId, at: Timestamp) -> Result<(), Error> {
    if tombstones::is_erased(tx, link_id)? {
        return Ok(());
    }
    let seq = next_number(tx, "changes")?;
    tx.execute(
        "INSERT INTO links (link_id, first_seen_at, lookup_due_at, changed_seq) VALUES ($1, $2, $2, $3) \
         ON CONFLICT (link_id) DO NOTHING",
        args![link_id, at, seq],
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

/// The ids of all tracked links.
///
/// # Errors
/// [`Error::Database`].
pub fn all(tx: &Tx<'_>) -> Result<Vec<LinkId>, Error> {
    tx.all("SELECT link_id FROM links", args![], |row| row.link_id(0))
}

/// What Belvo says of a link that it does not list any more.
pub const NOT_FOUND: &str = "not_found";

/// Keeps what Belvo says of a link, inside the caller's transaction. True when the link was not tracked before.
///
/// # Errors
/// [`Error::Database`].
pub fn keep(tx: &Tx<'_>, link: &LinkObject, at: Timestamp) -> Result<bool, Error> {
    let is_new = tx.one("SELECT 1 FROM links WHERE link_id = $1", args![&link.id], |_| Ok(()))?.is_none();
    if is_new && tombstones::is_erased(tx, &link.id)? {
        return Ok(false);
    }
    let resources = link.fetch_resources.as_ref().map(|names| serde_json::Value::from(names.clone()).to_string());
    let seq = next_number(tx, "changes")?;
    tx.execute(
        "INSERT INTO links (link_id, external_id, institution, access_mode, status, refresh_rate, credentials_storage, stale_in, \
         fetch_resources, created_at, last_accessed_at, first_seen_at, looked_up_at, changed_seq) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13) \
         ON CONFLICT (link_id) DO UPDATE SET external_id = coalesce(excluded.external_id, links.external_id), \
         institution = excluded.institution, access_mode = excluded.access_mode, status = excluded.status, \
         refresh_rate = excluded.refresh_rate, credentials_storage = excluded.credentials_storage, stale_in = excluded.stale_in, \
         fetch_resources = excluded.fetch_resources, created_at = excluded.created_at, \
         last_accessed_at = excluded.last_accessed_at, looked_up_at = excluded.looked_up_at, lookup_due_at = NULL, \
         lookup_attempts = 0, changed_seq = excluded.changed_seq",
        args![
            &link.id,
            link.external_id.as_deref(),
            link.institution.as_deref(),
            link.access_mode.as_deref(),
            link.status.as_deref(),
            link.refresh_rate.as_deref(),
            link.credentials_storage.as_deref(),
            link.stale_in.as_deref(),
            resources.as_deref(),
            link.created_at,
            link.last_accessed_at,
            at,
            seq
        ],
    )?;
    Ok(is_new)
}

/// Looks up tracked links at Belvo, many in one call, and reconciles them with Belvo's list.
#[derive(Clone)]
pub struct Directory {
    client: Client,
    store: Store,
    clock: Clock,
}

impl Directory {
    /// A directory that asks `client`.
    pub fn new(client: Client, store: Store, clock: Clock) -> Self {
        Self { client, store, clock }
    }

    /// Looks up links as they become known, until `shutdown`. `settled` is told of each answer.
    pub async fn run(self, mut news: watch::Receiver<()>, settled: watch::Sender<()>, shutdown: CancellationToken) {
        let looking = async {
            loop {
                news.mark_unchanged();
                let looked_up = self.look_up_due().await;
                match looked_up {
                    Ok(0) => {}
                    Ok(_) => {
                        settled.send_replace(());
                        continue;
                    }
                    Err(error) => tracing::error!(code = error.code(), "links could not be looked up: {error}"),
                }
                let wait = self.until_due().await;
                tokio::select! {
                    _ = news.changed() => tokio::time::sleep(GATHER_FOR).await,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        };
        tokio::select! {
            () = looking => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Looks up the links that are due, at most as many as fit one call, and gives their number.
    async fn look_up_due(&self) -> Result<usize, Error> {
        let now = self.clock.now();
        let due = self
            .store
            .read(move |tx| {
                tx.all(
                    "SELECT link_id, lookup_attempts FROM links WHERE lookup_due_at <= $1 ORDER BY lookup_due_at LIMIT $2",
                    args![now, i64::try_from(MOST_IDS).unwrap_or(i64::MAX)],
                    |row| Ok((row.link_id(0)?, u32::try_from(row.int(1)?).unwrap_or(u32::MAX))),
                )
            })
            .await?;
        let ids: Vec<LinkId> = due.iter().map(|(id, _)| id.clone()).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let found = match belvo::links::by_ids(&self.client, &ids).await {
            Ok(found) => found,
            // Whatever this filter gives, one link at a time is what every server answers.
            Err(failure) if matches!(failure.kind, Decision::Never | Decision::Gone) => Vec::new(),
            Err(failure) => return self.postpone(due, &failure).await,
        };
        let (known, rest): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|(id, _)| found.iter().any(|link| link.id == *id));
        self.store
            .write(move |tx| {
                let asked_for = found.iter().filter(|link| known.iter().any(|(id, _)| link.id == *id));
                asked_for.into_iter().try_for_each(|link| keep(tx, link, now).map(drop))
            })
            .await?;
        for (id, attempts) in rest {
            match belvo::links::get(&self.client, &id).await {
                Ok(link) => drop(self.store.write(move |tx| keep(tx, &link, now)).await?),
                Err(failure) if failure.kind == Decision::Gone => self.note_not_found(id).await?,
                Err(failure) => drop(self.postpone(vec![(id, attempts)], &failure).await?),
            }
        }
        Ok(ids.len())
    }

    async fn note_not_found(&self, id: LinkId) -> Result<(), Error> {
        tracing::warn!(code = "unknown_link", link_id = %id, "Belvo does not know this link; its rows stay");
        let now = self.clock.now();
        self.store
            .write(move |tx| {
                let seq = next_number(tx, "changes")?;
                tx.execute(
                    "UPDATE links SET status = $2, looked_up_at = $3, lookup_due_at = NULL, changed_seq = $4 WHERE link_id = $1",
                    args![&id, NOT_FOUND, now, seq],
                )
            })
            .await
            .map(drop)
    }

    async fn postpone(&self, due: Vec<(LinkId, u32)>, failure: &Failure) -> Result<usize, Error> {
        let attempts = due.iter().map(|(_, attempts)| *attempts).max().unwrap_or_default();
        let until = self.clock.now() + failure.delay(attempts, &mut rand::rng());
        tracing::warn!(code = failure.code, links = due.len(), request_id = failure.request_id, "{failure}");
        self.store
            .write(move |tx| {
                due.iter().try_for_each(|(id, _)| {
                    tx.execute(
                        "UPDATE links SET lookup_due_at = $2, lookup_attempts = lookup_attempts + 1 WHERE link_id = $1",
                        args![id, until],
                    )
                    .map(drop)
                })
            })
            .await?;
        Ok(0)
    }

    /// How long until the next link is due.
    async fn until_due(&self) -> Duration {
        let next =
            self.store.read(|tx| tx.one("SELECT min(lookup_due_at) FROM links", args![], |row| row.opt_at(0))).await;
        let next = next.ok().flatten().flatten();
        next.map_or(LONGEST_WAIT, |due| due.since(self.clock.now()).clamp(GATHER_FOR, LONGEST_WAIT))
    }

    /// Reconciles with Belvo's whole list: new links are tracked, known ones brought up to date, and those that the list
    /// lacks are looked up one by one before anything is said of them. Gives the number of links listed.
    ///
    /// # Errors
    /// [`SyncError`]; what was listed until then is kept.
    pub async fn sync(&self) -> Result<u64, SyncError> {
        let started = self.clock.now();
        let mut listed = 0;
        for page in 1.. {
            let links = belvo::links::list_page(&self.client, page, self.client.page_size()).await?;
            listed += links.links.len() as u64;
            let has_next = links.has_next;
            let at = self.clock.now();
            self.store.write(move |tx| links.links.iter().try_for_each(|link| keep(tx, link, at).map(drop))).await?;
            if !has_next {
                break;
            }
        }
        self.store
            .write(move |tx| {
                tx.execute(
                    "UPDATE links SET lookup_due_at = $1 WHERE lookup_due_at IS NULL AND (looked_up_at IS NULL OR looked_up_at < $1) \
                     AND coalesce(status, '') <> $2",
                    args![started, NOT_FOUND],
                )
            })
            .await?;
        Ok(listed)
    }
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
            Self::Belvo(failure) => failure.code,
            Self::Store(error) => error.code(),
        }
    }
}
