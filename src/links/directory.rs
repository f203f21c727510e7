//! Asks Belvo about links: the new ones, many in one call, and now and then all of them.
//!
//! *Takes* lookups that are due. *Gives* what Belvo says to [`super::keep`]. *Promises* that a reconciliation holds one
//! page in memory, however many links there are: which links a list showed is marked in the state; that a link is called
//! gone only when Belvo does not know it when asked for it alone; and that an unknown link is asked for once.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{DELETED, DELETING, NOT_FOUND, News, keep, note_status};
use crate::belvo::links::{LinkObject, LinkPage, MOST_IDS};
use crate::belvo::{self, Client, Decision, Failure, LinkId};
use crate::clock::{Clock, Timestamp};
use crate::queue::Queue;
use crate::store::{Error, Store, args};

/// New links are gathered for so long, because one call can look up many.
const GATHER_FOR: Duration = Duration::from_millis(200);

/// Longest time without a look at what is due, in case a clock was set.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// How often a page of the whole list is asked for again before the reconciliation fails.
const MOST_RETRIES: u32 = 5;

/// Lookups that one transaction asks for, so that webhooks between two of them are not kept waiting.
const LOOKUPS_AT_ONCE: i64 = 5_000;

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

/// Looks up tracked links at Belvo, many in one call, and reconciles them with Belvo's list.
#[derive(Clone)]
pub struct Directory {
    client: Client,
    store: Store,
    queue: Queue,
    clock: Clock,
}

impl Directory {
    /// A directory that asks `client`.
    pub fn new(client: Client, store: Store, queue: Queue, clock: Clock) -> Self {
        Self { client, store, queue, clock }
    }

    /// Looks up links as they become known, until `shutdown`. `settled` is told of each answer.
    pub async fn run(self, settled: watch::Sender<()>, shutdown: CancellationToken) {
        let mut news = self.queue.news();
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
        let known: Vec<LinkObject> =
            found.into_iter().filter(|link| known.iter().any(|(id, _)| link.id == *id)).collect();
        self.keep_all(known, now).await?;
        for (id, attempts) in rest {
            let now = self.clock.now();
            match belvo::links::get(&self.client, &id).await {
                Ok(link) => self.keep_all(vec![link], now).await?,
                Err(failure) if failure.kind == Decision::Gone => self.note_not_found(id, now).await?,
                Err(failure) => drop(self.postpone(vec![(id, attempts)], &failure).await?),
            }
        }
        // A link that works again may have refreshes that waited for it.
        self.queue.announce();
        Ok(ids.len())
    }

    async fn keep_all(&self, links: Vec<LinkObject>, asked_at: Timestamp) -> Result<(), Error> {
        self.store.write(move |tx| links.iter().try_for_each(|link| keep(tx, link, asked_at, None).map(drop))).await
    }

    async fn note_not_found(&self, id: LinkId, asked_at: Timestamp) -> Result<(), Error> {
        tracing::warn!(
            code = "unknown_link",
            link = id.log_tag(),
            "Belvo does not know this link; its rows stay, and nothing of it is asked for"
        );
        self.store
            .write(move |tx| {
                tx.execute(
                    "UPDATE links SET looked_up_at = $2, lookup_due_at = NULL, lookup_attempts = 0 WHERE link_id = $1",
                    args![&id, asked_at],
                )?;
                let known = "SELECT coalesce(status, '') FROM links WHERE link_id = $1";
                // That it was to be deleted says more.
                let status = match tx.one(known, args![&id], |row| row.text(0))?.as_deref() {
                    Some(DELETING | DELETED) => DELETED,
                    _ => NOT_FOUND,
                };
                note_status(tx, &id, status, asked_at)
            })
            .await
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
    /// lacks are looked up one by one before anything is said of them, because rows come and go between two pages.
    ///
    /// # Errors
    /// [`SyncError`]; what was listed until then is kept, and nothing is missing yet.
    pub async fn sync(&self) -> Result<Synced, SyncError> {
        let started_at = self.clock.now();
        let sync = self.store.write(|tx| tx.next_number("syncs")).await?;
        let mut synced = Synced::default();
        for number in 1.. {
            let asked_at = self.clock.now();
            let Some(page) = self.page(number).await? else { break };
            if page.unreadable > 0 {
                tracing::warn!(
                    code = "unreadable_link",
                    count = page.unreadable,
                    "items of Belvo's list are no links, and are left out"
                );
            }
            let (has_next, rows) = (page.has_next, page.links.len() + page.unreadable);
            let (counted, repeated) = self.keep_page(page.links, asked_at, sync).await?;
            synced.listed += counted.listed;
            synced.new += counted.new;
            synced.changed += counted.changed;
            if !has_next {
                break;
            }
            // A page that leads on and shows nothing new leads nowhere.
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
    async fn page(&self, number: u32) -> Result<Option<LinkPage>, SyncError> {
        let mut attempts = 0;
        loop {
            match belvo::links::list_page(&self.client, number, self.client.page_size()).await {
                Ok(page) => return Ok(Some(page)),
                // The list has become shorter meanwhile.
                Err(failure) if failure.kind == Decision::Gone && number > 1 => return Ok(None),
                Err(failure)
                    if attempts < MOST_RETRIES && matches!(failure.kind, Decision::Retry | Decision::RetryAfter(_)) =>
                {
                    let wait = failure.delay(attempts, &mut rand::rng());
                    tracing::warn!(code = failure.code, request_id = failure.request_id, page = number, "{failure}");
                    tokio::time::sleep(wait).await;
                    attempts += 1;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Keeps a page of reconciliation `sync`; its counts, and how many links an earlier page had shown.
    async fn keep_page(
        &self,
        links: Vec<LinkObject>,
        asked_at: Timestamp,
        sync: i64,
    ) -> Result<(Synced, usize), Error> {
        self.store
            .write(move |tx| {
                let (mut counted, mut repeated) = (Synced::default(), 0);
                for link in &links {
                    let sql = "SELECT 1 FROM links WHERE link_id = $1 AND sync_number = $2";
                    if tx.one(sql, args![&link.id, sync], |_| Ok(()))?.is_some() {
                        repeated += 1;
                        continue;
                    }
                    counted.listed += 1;
                    match keep(tx, link, asked_at, Some(sync))? {
                        News::New => counted.new += 1,
                        News::Changed => counted.changed += 1,
                        News::Same => {}
                    }
                }
                Ok((counted, repeated))
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
            if i64::try_from(found).unwrap_or(i64::MAX) < LOOKUPS_AT_ONCE {
                return Ok(missing);
            }
        }
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
