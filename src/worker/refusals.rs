//! How long those wait that Belvo refuses, or fails at for long.
//!
//! *Takes* refusals by link, and what ends them. *Gives* a wait. *Promises* that all that Belvo refuses takes a small
//! part of the budget, and that some are asked for soon all the same, so that the end of it is found out. *Not here*:
//! what is kept: a restart forgets them, and they gather again. What Belvo has failed at for long counts as refused
//! here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::belvo::{Code, Decision, Usage};
use crate::clock::Timestamp;
use crate::link_id::LinkId;

/// All that Belvo refuses takes no more than this part of the budget.
const REFUSED_PART: u32 = 10;

/// Upper bound of the wait that grows with the number of refused links.
const LONGEST_REFUSAL: Duration = Duration::from_hours(24);

/// Refused refreshes that wait no longer than their own failure says, however many there are.
const SCOUTS: usize = 20;

/// The same of those at which Belvo fails: each may take half a minute of somebody's time, and not a moment.
const FAILING_SCOUTS: usize = 3;

/// A refused refresh this overdue was paused, stopped or erased meanwhile; it no longer counts.
const LAPSE: Duration = Duration::from_mins(10);

/// Links that Belvo refuses now, by resource and code. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Refusals(Arc<Mutex<HashMap<Refusal, Refused>>>);

/// Name of a resource, and why.
type Refusal = (&'static str, Code);

impl Refusals {
    /// Notes that the link is refused for `code`, and gives how long it waits: as its failure says, which is `own`, and
    /// longer while so many are refused that asking for them again would take what others need of the budget, of which
    /// `usage` tells. A few go ahead of them all, so that the end of it is found out in time.
    pub(super) fn wait(
        &self,
        resource: &'static str,
        link_id: &LinkId,
        (code, own): (Code, Duration),
        now: Timestamp,
        usage: impl FnOnce() -> Usage,
    ) -> Duration {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, refused) in all.iter_mut().filter(|((of, other), _)| *of == resource && *other != code) {
            refused.remove(link_id);
        }
        let scouts = if code.decision() == Decision::Retry { FAILING_SCOUTS } else { SCOUTS };
        all.entry((resource, code)).or_default().add(link_id, now, scouts, |is_scout, refused| {
            if is_scout {
                return own;
            }
            let usage = usage();
            let for_them = usage.requests as f64 / f64::from(REFUSED_PART);
            let of_their_number = Duration::try_from_secs_f64(refused as f64 * usage.per_seconds / for_them);
            own.max(of_their_number.unwrap_or(LONGEST_REFUSAL).min(LONGEST_REFUSAL))
        })
    }

    /// Forgets the link, which is asked for no more: nobody waits behind it.
    pub(super) fn forget(&self, resource: &str, link_id: &LinkId) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, refused) in all.iter_mut().filter(|((of, _), _)| *of == resource) {
            refused.remove(link_id);
        }
    }

    /// Forgets the link, which came through, and all others that were refused as it was; gives their codes.
    pub(super) fn end(&self, resource: &str, link_id: &LinkId) -> Vec<Code> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut codes = Vec::new();
        all.retain(|(of, code), refused| {
            let is_over = *of == resource && refused.links.contains_key(link_id);
            if is_over && refused.links.len() > 1 {
                codes.push(*code);
            }
            !is_over
        });
        codes
    }
}

/// Links that are refused alike.
#[derive(Default)]
struct Refused {
    links: HashMap<LinkId, RefusedLink>,
    scouts: usize,
    /// When those were last forgotten that lapsed.
    swept_at: Option<Timestamp>,
}

impl Refused {
    /// Adds the link, if it is not there yet; of all, `most_scouts` go ahead. `wait_of` says how long it waits when it
    /// does, or does not, and how many there are.
    fn add(
        &mut self,
        link_id: &LinkId,
        now: Timestamp,
        most_scouts: usize,
        wait_of: impl FnOnce(bool, usize) -> Duration,
    ) -> Duration {
        self.sweep(now);
        let is_scout = self.links.get(link_id).map_or(self.scouts < most_scouts, |known| known.is_scout);
        self.remove(link_id);
        let wait = wait_of(is_scout, self.links.len() + 1);
        self.links.insert(link_id.clone(), RefusedLink { is_scout, until: now + wait });
        self.scouts += usize::from(is_scout);
        wait
    }

    fn remove(&mut self, link_id: &LinkId) {
        self.scouts -= usize::from(self.links.remove(link_id).is_some_and(|known| known.is_scout));
    }

    /// Forgets now and then those that lapsed.
    fn sweep(&mut self, now: Timestamp) {
        let swept_at = *self.swept_at.get_or_insert(now);
        if now.since(swept_at) >= LAPSE {
            self.links.retain(|_, link| now.since(link.until) < LAPSE);
            self.scouts = self.links.values().filter(|link| link.is_scout).count();
            self.swept_at = Some(now);
        }
    }
}

/// One link that Belvo refuses.
struct RefusedLink {
    /// Whether it goes ahead of the others.
    is_scout: bool,
    until: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(n: u32) -> LinkId {
        format!("{n:08}-0000-4000-8000-000000000000").parse().unwrap()
    }

    #[test]
    fn refusals_of_many_links_leave_the_budget_to_others_and_some_go_ahead() {
        let refusals = Refusals::default();
        let own = Duration::from_secs(5);
        let usage = || Usage {
            requests: 10_000,
            per_seconds: 1.0,
            in_use: 0,
            reserve: 0,
            waiting_urgent: 0,
            waiting_ordinary: 0,
            waiting_look_ups: 0,
        };
        let wait_for = |code, n, now| refusals.wait("owners", &link(n), (code, own), now, usage);
        let now = Timestamp::from_micros(1_000_000);
        let wait = |n| wait_for(Code::TooLarge, n, now);
        let mut waits: Vec<Duration> = (0..30_000).map(wait).collect();
        assert!(waits.drain(..SCOUTS).all(|wait| wait == own));
        // A tenth of 10,000 requests a second.
        assert_eq!(waits.pop(), Some(Duration::from_secs(30)));
        assert_eq!(wait(0), own);
        // Of those at which Belvo fails fewer go ahead.
        let failing = |n: u32| wait_for(Code::Timeout, 50_000 + n, now);
        for n in 0..30_000 {
            failing(n);
        }
        let ahead = (0..20).take_while(|n| failing(*n) == own).count();
        assert_eq!((ahead, wait(19)), (FAILING_SCOUTS, own));
        // The same link refused for another reason counts there alone.
        wait_for(Code::NotFound, 3, now);
        assert_eq!(wait(40_000), own, "somebody else goes ahead");
        // Of one that is asked for no more another takes the place.
        refusals.forget("owners", &link(5));
        assert_eq!(wait(40_001), own);
        // Nobody tells of a link that was paused, and it does not keep its place for ever.
        let later = now + LAPSE * 2;
        for n in [40_002, 3, 4] {
            assert_eq!(wait_for(Code::TooLarge, n, later), own, "few are left");
        }
        assert_eq!(refusals.end("owners", &link(6)), []);
        assert_eq!(refusals.end("owners", &link(4)), [Code::TooLarge]);
    }
}
