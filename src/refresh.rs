//! One refresh, from the question to the commit. Read this first.
//!
//! *Takes* a leased [`Refresh`], or several of one resource that go in one request. *Gives* the outcome of each in the
//! store: new versions, the snapshot row and the queue entry in one transaction. *Promises* that nothing partial is
//! kept, that whoever lost its lease keeps nothing, and that no link spoils another's answer: what looks odd in an
//! answer for many is asked for alone.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::belvo::{Class, Client, Code, Failure, Permit};
use crate::fetch::many::{Lists, Useless, fetch_many};
use crate::fetch::trust::{self, Trust, Way};
use crate::fetch::{RawPages, fetch};
use crate::flatten::Comparison;
use crate::lane::result_of;
use crate::link_id::LinkId;
use crate::links;
use crate::origin;
use crate::queue::{self, Outcome, Refresh, Trigger};
use crate::records::{self, Foreign, Kept, Listing};
use crate::resources::Resource;
use crate::store::{Error as StoreError, Store};

mod reading;

pub use reading::Inspections;
use reading::{count_drift, read, read_side_by_side};

/// How often an empty list is fetched again, when a webhook counted records, before it is believed.
const MOST_INCOMPLETE: u32 = 5;

/// What a refresh needs.
#[derive(Clone)]
pub struct Refresher {
    /// Who is asked.
    pub client: Client,
    /// Where the answer is kept.
    pub store: Store,
    /// Between the two lists that agree that a row is gone.
    pub confirm_after: Duration,
    /// Idle inspections, kept for reuse because making one for each list costs time.
    pub inspections: Inspections,
    /// Whether many links go in one request.
    pub trust: Trust,
}

/// Why a refresh came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Belvo gave no complete list.
    #[error(transparent)]
    Belvo(#[from] Failure),
    /// Belvo gave a record of another link.
    #[error(transparent)]
    Foreign(#[from] Foreign),
    /// A webhook counted records, and the list has none yet.
    #[error("the list is still empty although a webhook counted records")]
    Incomplete,
    /// The answer for many links cannot be relied on for this one.
    #[error("it is asked for alone")]
    Alone,
    /// The answer could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Belvo(failure) => failure.code.name(),
            Self::Foreign(_) => "foreign_record",
            Self::Incomplete => queue::INCOMPLETE,
            Self::Alone => "alone",
            Self::Store(error) => error.code(),
        }
    }
}

impl Refresher {
    /// Lists the link's resource and keeps the answer. The first request leaves with `permit`.
    ///
    /// # Errors
    /// [`Error`]; then nothing was kept, and the lease still stands.
    pub async fn run(&self, refresh: &Refresh, permit: Option<Permit>) -> Result<Kept, Error> {
        let Refresh { link_id, resource, .. } = refresh;
        let fetched = fetch(&self.client, resource, link_id, refresh.class(), permit).await;
        let pages = fetched.inspect_err(|failure| {
            if !self.is_about_all(failure) {
                self.trust.keep_alone(resource, link_id);
            }
        })?;
        self.trust.saw(resource, link_id, &pages);
        // Only a refresh that a webhook asked for is held against a webhook's count.
        if pages.is_empty()
            && refresh.is_urgent()
            && refresh.webhook_count.is_some_and(|count| count > 0)
            && refresh.incomplete < MOST_INCOMPLETE
        {
            return Err(Error::Incomplete);
        }
        let listing = read(refresh, pages, &self.inspections).await?;
        self.keep(refresh, listing).await
    }

    /// Lists all of `refreshes`, which are of one resource, in one request that leaves with `permit`, and keeps each
    /// answer on its own. Gives what came of each.
    pub async fn run_many(&self, refreshes: Vec<Refresh>, permit: Permit) -> Vec<(Refresh, Result<Kept, Error>)> {
        let Some(resource) = refreshes.first().map(|first| first.resource) else {
            permit.unused();
            return Vec::new();
        };
        let Some(way) = self.way(resource).await else {
            // The proof has just become void.
            permit.unused();
            return refreshes.into_iter().map(|refresh| (refresh, Err(Error::Alone))).collect();
        };
        let links: Vec<LinkId> = refreshes.iter().map(|refresh| refresh.link_id.clone()).collect();
        let classes = || refreshes.iter().map(Refresh::class);
        let class = classes().find(|class| *class != Class::Ordinary).unwrap_or(Class::Ordinary);
        let fetched = fetch_many(&self.client, resource, way.form, &links, &way.canary, class, Some(permit)).await;
        match fetched {
            Ok(lists) => self.keep_many(resource, refreshes, lists).await,
            Err(Useless::Failed(failure)) if self.is_about_all(&failure) => {
                // The block may be due to asking for many links at once; trying that again could pause all calls again.
                if failure.code == Code::ApiBlocked {
                    self.trust.was_refused(resource, &way);
                }
                refreshes.into_iter().map(|refresh| (refresh, Err((*failure).clone().into()))).collect()
            }
            Err(useless) => {
                let is_doubtful = match &useless {
                    Useless::Failed(failure) => trust::is_refusal(failure),
                    Useless::Wrong(_) => true,
                };
                if is_doubtful {
                    self.trust.was_wrong(resource, &way);
                }
                tracing::warn!(
                    code = "many_links",
                    resource = resource.name,
                    links = links.len(),
                    "{useless}; each link is asked for alone"
                );
                refreshes.into_iter().map(|refresh| self.leave_alone(refresh)).collect()
            }
        }
    }

    /// How several links are asked for together; `None` while nothing is proven, or the canary may not be asked for any
    /// more.
    async fn way(&self, resource: &'static Resource) -> Option<Way> {
        let way = self.trust.way(resource)?;
        let canary = way.canary.clone();
        if self.store.read(move |tx| links::is_asked_for(tx, &canary)).await.unwrap_or(false) {
            return Some(way);
        }
        self.trust.forget(resource, &way);
        None
    }

    fn leave_alone(&self, refresh: Refresh) -> (Refresh, Result<Kept, Error>) {
        self.trust.keep_alone(refresh.resource, &refresh.link_id);
        (refresh, Err(Error::Alone))
    }

    /// Whether the failure is about every call, so that asking in another way would help nobody.
    fn is_about_all(&self, failure: &Failure) -> bool {
        matches!(failure.code, Code::RateLimited | Code::ApiBlocked | Code::ApiAuth | Code::SimulatedMismatch)
            || self.client.trouble() == Some(Code::ApiDown)
    }

    async fn keep_many(
        &self,
        resource: &'static Resource,
        refreshes: Vec<Refresh>,
        lists: Lists,
    ) -> Vec<(Refresh, Result<Kept, Error>)> {
        self.trust.was_right(resource, refreshes.len(), lists.records, lists.size);
        let (sure, unsure): (Vec<_>, Vec<_>) =
            refreshes.into_iter().zip(lists.of_links).partition(|(refresh, pages)| !lacks_records(refresh, pages));
        let mut ended: Vec<_> = unsure.into_iter().map(|(refresh, _)| self.leave_alone(refresh)).collect();

        let mut reading = read_side_by_side(sure, lists.size, &self.inspections);
        let mut keeping = JoinSet::new();
        while let Some(part) = reading.join_next().await {
            for (refresh, read) in result_of(part) {
                match read {
                    Ok(listing) => {
                        let this = self.clone();
                        keeping.spawn(async move {
                            let kept = this.keep(&refresh, listing).await;
                            (refresh, kept)
                        });
                    }
                    Err(foreign) => ended.push((refresh, Err(foreign.into()))),
                }
            }
        }
        while let Some(kept) = keeping.join_next().await {
            ended.push(result_of(kept));
        }
        ended
    }

    async fn keep(&self, refresh: &Refresh, listing: Listing) -> Result<Kept, Error> {
        let (refresh, confirm_after, name) = (refresh.clone(), self.confirm_after, refresh.resource.name);
        let drift = listing.drift;
        let endpoint = refresh.resource.endpoint;
        let is_simulated = self.client.is_simulated().unwrap_or_default();
        let kept = self
            .store
            .write(move |tx| {
                if !origin::agrees(tx, is_simulated)? {
                    return Ok(None);
                }
                let Refresh { link_id, resource, webhook_count, .. } = &refresh;
                let mut comparison = None;
                let compare = &mut |old: &str, new: &str| {
                    comparison.get_or_insert_with(|| Comparison::of(resource)).loss(old, new)
                };
                let kept = records::keep(tx, link_id, resource, &listing, *webhook_count, confirm_after, compare)?;
                if let Some(at) = kept.confirm_at {
                    queue::mark(tx, link_id, resource, Trigger::Confirm, at)?;
                }
                let change = kept.change;
                let outcome = Outcome::Listed {
                    started_at: listing.started_at,
                    fetched_at: listing.fetched_at,
                    collected_at: kept.collected_at,
                    content_seq: kept.changed.then_some(change),
                    sighted_seq: kept.sighted.then_some(change),
                    touched_seq: change,
                };
                if queue::settle(tx, &refresh, outcome)? {
                    links::note_listed(tx, link_id, resource, listing.records.is_empty(), listing.fetched_at)?;
                    Ok(Some(kept))
                } else {
                    Err(StoreError::Overtaken("this refresh"))
                }
            })
            .await?;
        let Some(kept) = kept else {
            // From now on the client itself refuses such answers.
            self.client.expect_simulated(!is_simulated);
            return Err(Failure::own(Code::SimulatedMismatch, endpoint).into());
        };
        if kept.versions > 0 {
            count_drift(&drift, name);
        }
        Ok(kept)
    }
}

/// Whether an answer for many links has fewer records of this link than expected; then the link is asked for alone.
/// Before its first list at least one record is expected, because Belvo may leave out a link that it does not know at
/// all.
fn lacks_records(refresh: &Refresh, pages: &RawPages) -> bool {
    let expected = refresh.last_count.unwrap_or(1).max(refresh.webhook_count.unwrap_or(0));
    i64::try_from(pages.len()).is_ok_and(|found| found < expected)
}
