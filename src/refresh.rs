//! One refresh, from the question to the commit. Read this first.
//!
//! *Takes* a leased [`Refresh`]. *Gives* its outcome in the store: new versions, the snapshot row and the queue entry in one
//! transaction. *Promises* that nothing partial is kept, and that whoever lost its lease keeps nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::belvo::{Client, Failure};
use crate::fetch::{RawPages, fetch};
use crate::flatten::Inspection;
use crate::links;
use crate::queue::{self, Outcome, Refresh, next_number};
use crate::records::{self, Drift, Foreign, Kept, Listing, Record};
use crate::resources::Resource;
use crate::store::{Error as StoreError, Store};

/// An empty list although a webhook counted something is asked for again this often before it is believed.
const MOST_INCOMPLETE: u32 = 5;

/// Bytes of a list that are read where it came in: a thousandth of a second's work, for which another thread is not worth
/// waking.
const READ_IN_PLACE: usize = 256 << 10;

/// What a refresh needs.
#[derive(Clone)]
pub struct Refresher {
    /// Who is asked.
    pub client: Client,
    /// Where the answer is kept.
    pub store: Store,
    /// Between the two lists that agree that a row is gone.
    pub confirm_after: Duration,
    /// Between two lists, so that not each makes its own.
    pub inspections: Inspections,
}

/// Inspections that nobody uses just now, by resource. Cheap to clone.
#[derive(Clone, Default)]
pub struct Inspections(Arc<Mutex<HashMap<&'static str, Vec<Inspection>>>>);

impl Inspections {
    fn take(&self, resource: &'static Resource) -> Inspection {
        let idle = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(resource.name).and_then(Vec::pop);
        idle.unwrap_or_else(|| Inspection::of(resource))
    }

    fn give_back(&self, resource: &'static Resource, inspection: Inspection) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(resource.name).or_default().push(inspection);
    }
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
    /// The answer could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Belvo(failure) => failure.code,
            Self::Foreign(_) => "foreign_record",
            Self::Incomplete => "incomplete",
            Self::Store(error) => error.code(),
        }
    }
}

impl Refresher {
    /// Lists the link's resource and keeps the answer.
    ///
    /// # Errors
    /// [`Error`]; then nothing was kept, and the lease still stands.
    pub async fn run(&self, refresh: &Refresh) -> Result<Kept, Error> {
        let pages = fetch(&self.client, refresh.resource, &refresh.link_id, refresh.is_urgent).await?;
        // What an earlier webhook counted says nothing about a list that nobody promised.
        if pages.is_empty()
            && refresh.is_urgent
            && refresh.webhook_count.is_some_and(|count| count > 0)
            && refresh.attempts < MOST_INCOMPLETE
        {
            return Err(Error::Incomplete);
        }
        let (listing, drift) = self.read(refresh, pages).await?;
        let kept = self.keep(refresh, listing).await?;
        if kept.versions > 0 {
            drift.count(refresh.resource.name);
        }
        Ok(kept)
    }

    /// Reads the records, away from the async threads when there are many.
    async fn read(&self, refresh: &Refresh, pages: RawPages) -> Result<(Listing, Drift), Error> {
        if pages.size() <= READ_IN_PLACE {
            return Ok(read(refresh, &pages, &self.inspections)?);
        }
        let (refresh, inspections) = (refresh.clone(), self.inspections.clone());
        let reading = tokio::task::spawn_blocking(move || read(&refresh, &pages, &inspections));
        // Only a panic ends it otherwise, and then the refresh panics with it.
        Ok(reading.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
    }

    async fn keep(&self, refresh: &Refresh, listing: Listing) -> Result<Kept, StoreError> {
        let (refresh, confirm_after) = (refresh.clone(), self.confirm_after);
        self.store
            .write(move |tx| {
                let Refresh { link_id, resource, webhook_count, .. } = &refresh;
                let loses_rows = &mut |old: &str, new: &str| Inspection::loses_rows(resource, old, new);
                let kept = records::keep(tx, link_id, resource, &listing, *webhook_count, confirm_after, loses_rows)?;
                let change = next_number(tx, "changes")?;
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
                    Ok(kept)
                } else {
                    Err(StoreError::Overtaken("this refresh"))
                }
            })
            .await
    }
}

impl Drift {
    fn count(&self, resource: &'static str) {
        for (kind, count) in [("field", self.unknown_fields), ("value", self.unknown_values)] {
            if count > 0 {
                metrics::counter!("vinculo_schema_drift_total", "resource" => resource, "kind" => kind)
                    .increment(count as u64);
            }
        }
        if self.rejected > 0 {
            metrics::counter!("vinculo_rejected_records_total", "resource" => resource).increment(self.rejected as u64);
            tracing::warn!(
                code = "rejected_records",
                resource,
                count = self.rejected,
                "records cannot be flattened; see rejected_records"
            );
        }
    }
}

fn read(refresh: &Refresh, pages: &RawPages, inspections: &Inspections) -> Result<(Listing, Drift), Foreign> {
    let Refresh { link_id, resource, .. } = refresh;
    let mut drift = Drift::default();
    let mut inspection = inspections.take(resource);
    let records = pages.records().map(|json| {
        match inspection.inspect(json) {
            Ok(found) => {
                drift.unknown_fields += found.unknown_fields;
                drift.unknown_values += found.unknown_values;
            }
            Err(_) => drift.rejected += 1,
        }
        Record::read(resource, link_id, json)
    });
    let records = records.collect::<Result<Vec<_>, Foreign>>();
    inspections.give_back(resource, inspection);
    Ok((Listing { started_at: pages.started_at, fetched_at: pages.fetched_at, records: records?, drift }, drift))
}
