//! The records of a list, read: what each is, and what of it no schema knows.
//!
//! *Takes* a list as it came. *Gives* a [`Listing`], ready to be kept. *Promises* that long lists hold up no async
//! thread, and that those of one answer are read side by side. *Not here*: what is new about the records (`records`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::fetch::RawPages;
use crate::flatten::Inspection;
use crate::lane::in_background;
use crate::queue::Refresh;
use crate::records::{Drift, Foreign, Listing, Record};
use crate::resources::Resource;

/// Bytes of a list that are read where it came in: a thousandth of a second's work, for which another thread is not
/// worth waking.
const READ_IN_PLACE: usize = 256 << 10;

/// Threads that read the lists of one answer side by side.
const READERS: usize = 4;

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

/// Reads the records, away from the async threads when there are many.
pub(super) async fn read(refresh: &Refresh, pages: RawPages, inspections: &Inspections) -> Result<Listing, Foreign> {
    if pages.size() <= READ_IN_PLACE {
        return read_here(refresh, &pages, inspections);
    }
    let (refresh, inspections) = (refresh.clone(), inspections.clone());
    in_background(move || read_here(&refresh, &pages, &inspections)).await
}

/// Reads the lists of one answer, which has `size` bytes, side by side. Each task gives some of them.
pub(super) fn read_side_by_side(
    lists: Vec<(Refresh, RawPages)>,
    size: usize,
    inspections: &Inspections,
) -> JoinSet<Vec<(Refresh, Result<Listing, Foreign>)>> {
    let readers = size.div_ceil(READ_IN_PLACE).clamp(1, READERS);
    let mut parts: Vec<Vec<(Refresh, RawPages)>> = (0..readers).map(|_| Vec::new()).collect();
    lists.into_iter().enumerate().for_each(|(at, one)| parts[at % readers].push(one));
    let mut reading = JoinSet::new();
    for part in parts {
        let inspections = inspections.clone();
        reading.spawn_blocking(move || {
            let read = |(refresh, pages)| {
                let read = read_here(&refresh, &pages, &inspections);
                (refresh, read)
            };
            part.into_iter().map(read).collect()
        });
    }
    reading
}

fn read_here(refresh: &Refresh, pages: &RawPages, inspections: &Inspections) -> Result<Listing, Foreign> {
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
        let record = Record::read(resource, link_id, json)?;
        drift.unknown_values += usize::from(record.is_ahead(pages.fetched_at));
        Ok(record)
    });
    let records = records.collect::<Result<Vec<_>, Foreign>>();
    inspections.give_back(resource, inspection);
    Ok(Listing { started_at: pages.started_at, fetched_at: pages.fetched_at, records: records?, drift })
}

/// Counts, for the metrics, what no schema knows of records that brought something new.
pub(super) fn count_drift(drift: &Drift, resource: &'static str) {
    for (kind, count) in [("field", drift.unknown_fields), ("value", drift.unknown_values)] {
        if count > 0 {
            metrics::counter!("vinculo_schema_drift_total", "resource" => resource, "kind" => kind)
                .increment(count as u64);
        }
    }
    if drift.rejected > 0 {
        metrics::counter!("vinculo_rejected_records_total", "resource" => resource).increment(drift.rejected as u64);
        tracing::warn!(
            code = "rejected_records",
            resource,
            count = drift.rejected,
            "records cannot be flattened; see rejected_records"
        );
    }
}
