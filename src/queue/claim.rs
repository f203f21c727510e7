//! Which due refreshes a claim takes.
//!
//! *Takes* how many requests may leave, and for whom. *Gives* for each request the most urgent and longest waiting
//! refresh, and those of its resource that fit the request with it. *Promises* that a link of which Belvo never told
//! goes with its like only. *Not here*: when a claim is made, which the worker decides.

use std::collections::{HashMap, VecDeque};

use super::{INCOMPLETE, Lane, Priority, Refresh};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::resources::Resource;
use crate::store::{Error, Tx, args};

/// How many refreshes of the resource, at least one, fit a request that the link's goes with.
pub type Fit = Box<dyn Fn(&LinkId, &'static Resource) -> usize + Send>;

/// What a claim may take.
pub struct ClaimRequest {
    /// Whose turn it is.
    pub lane: Lane,
    /// Whether the last in the lane's order are served first this time, so that nobody waits for ever.
    pub is_reversed: bool,
    /// How many requests may leave.
    pub requests: usize,
    /// How many refreshes of a resource, at least one, fit the request that this one goes with.
    pub fit: Fit,
}

/// What a claim took.
#[derive(Debug, Default)]
pub struct Claimed {
    /// For each request its refreshes, all of one resource.
    pub requests: Vec<Vec<Refresh>>,
    /// Due refreshes that were seen, of each resource, these among them.
    pub due: HashMap<&'static str, usize>,
}

/// Due refreshes of each priority that a claim looks at; more than fit its requests, because some are of another
/// resource.
const LOOK_AHEAD: usize = 200;

/// A due refresh, before it is leased.
pub(super) struct DueRefresh {
    link_id: LinkId,
    resource: &'static Resource,
    due_at: Timestamp,
}

type Chosen = (Vec<Vec<DueRefresh>>, HashMap<&'static str, usize>);

/// The refreshes for each request of `claim`, and how many of each resource are due.
pub(super) fn choose(tx: &Tx<'_>, claim: &ClaimRequest, now: Timestamp) -> Result<Chosen, Error> {
    let limit = LOOK_AHEAD.max(claim.requests * 2);
    // A line for each priority.
    let mut waiting: [VecDeque<DueRefresh>; Priority::ALL.len()] = Default::default();
    let mut due = HashMap::new();
    for (priority, line) in Priority::ALL.into_iter().zip(&mut waiting) {
        *line = tx
            .all(
                "SELECT link_id, resource, due_at FROM refreshes WHERE priority = $1 AND due_at <= $2 AND lease IS NULL \
                 ORDER BY due_at LIMIT $3",
                args![priority.number(), now, limit],
                |row| {
                    let (link_id, resource) = (row.link_id(0)?, read_resource(row.str(1)?)?);
                    Ok(DueRefresh { link_id, resource, due_at: row.at(2)? })
                },
            )?
            .into();
        for refresh in line.iter() {
            *due.entry(refresh.resource.name).or_default() += 1;
        }
    }
    let mut order: Vec<usize> = claim.lane.priorities().iter().map(|priority| *priority as usize).collect();
    if claim.is_reversed {
        order.reverse();
    }
    let mut requests = Vec::new();
    while requests.len() < claim.requests {
        let Some(first) = order.iter().find_map(|priority| waiting[*priority].pop_front()) else { break };
        let fit = (claim.fit)(&first.link_id, first.resource);
        let mut request = vec![first];
        // A link that may be made up goes with its like only: whatever it does to an answer, it does to those.
        let goes_along = |priority: Priority| (priority == Priority::Unknown) == (claim.lane == Lane::Unknown);
        for (_, line) in Priority::ALL.into_iter().zip(&mut waiting).filter(|(priority, _)| goes_along(*priority)) {
            let mut others = VecDeque::new();
            while request.len() < fit
                && let Some(next) = line.pop_front()
            {
                if next.resource == request[0].resource && (claim.fit)(&next.link_id, next.resource) > 1 {
                    request.push(next);
                } else {
                    others.push_back(next);
                }
            }
            others.append(line);
            *line = others;
        }
        requests.push(request);
    }
    Ok((requests, due))
}

/// Leases the refresh; `None` when it is gone.
pub(super) fn take(tx: &Tx<'_>, refresh: &DueRefresh, lease: i64, now: Timestamp) -> Result<Option<Refresh>, Error> {
    let DueRefresh { link_id, resource, due_at } = refresh;
    tx.one(
        "UPDATE refreshes SET lease = $3, lease_marks = marks, last_started_at = $4, due_at = NULL \
         WHERE link_id = $1 AND resource = $2 RETURNING priority, attempts, webhook_count, \
         CASE WHEN last_error_code = $5 THEN attempts ELSE 0 END, (SELECT s.item_count FROM link_snapshots s \
         WHERE s.link_id = refreshes.link_id AND s.resource = refreshes.resource ORDER BY s.fetched_at DESC LIMIT 1)",
        args![link_id, resource.name, lease, now, INCOMPLETE],
        |row| {
            let count = |column| row.int(column).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
            Ok(Refresh {
                link_id: link_id.clone(),
                resource,
                attempts: count(1)?,
                incomplete: count(3)?,
                webhook_count: row.opt_int(2)?,
                last_count: row.opt_int(4)?,
                lease,
                priority: Priority::of(row.int(0)?)?,
                due_at: *due_at,
            })
        },
    )
}

fn read_resource(name: &str) -> Result<&'static Resource, Error> {
    Resource::by_name(name).ok_or(Error::Unreadable("a resource's name"))
}
