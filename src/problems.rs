//! What stands in the way of the daemon's work right now, by stable code, for readiness, metrics and `status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::store::FAILED;

/// Stands while the state takes no writes and nothing says why.
pub const STATE_NOT_WRITABLE: &str = "state_not_writable";

/// The standing problems. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Problems(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    held: Mutex<BTreeMap<&'static str, Instant>>,
    /// Which of them the state is in the way with.
    of_state: Mutex<Option<&'static str>>,
}

impl Problems {
    /// From now on `code` stands in the way.
    pub fn raise(&self, code: &'static str) {
        self.held().entry(code).or_insert_with(|| {
            metrics::gauge!("vinculo_problem", "code" => code).set(1.0);
            Instant::now()
        });
    }

    /// `code` no longer stands in the way, if it did.
    pub fn clear(&self, code: &'static str) {
        if self.held().remove(code).is_some() {
            metrics::gauge!("vinculo_problem", "code" => code).set(0.0);
        }
    }

    /// The state has just answered a write: it took it, or refused it with that code. While it refuses, one code of it
    /// stands, and once it does not, what stands in its way `otherwise`, such as a disk on which the next may have no
    /// room.
    pub fn hear_of_state(&self, refused: Option<&'static str>, otherwise: impl FnOnce() -> Option<&'static str>) {
        let mut standing = self.of_state();
        let now = match refused {
            Some(FAILED) => Some(STATE_NOT_WRITABLE),
            Some(code) => Some(code),
            None => otherwise(),
        };
        if *standing != now {
            if let Some(code) = now {
                self.raise(code);
            }
            if let Some(code) = *standing {
                self.clear(code);
            }
            *standing = now;
        }
    }

    /// Whether something of the state stands.
    pub fn has_state(&self) -> bool {
        self.of_state().is_some()
    }

    /// The codes that stand, in order.
    pub fn standing(&self) -> Vec<&'static str> {
        self.held().keys().copied().collect()
    }

    /// The codes that stand, in order, and for how long each has.
    pub fn ages(&self) -> Vec<(&'static str, Duration)> {
        self.held().iter().map(|(code, since)| (*code, since.elapsed())).collect()
    }

    fn of_state(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.0.of_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_stands_since_it_was_first_raised() {
        let problems = Problems::default();
        problems.raise("disk_full");
        let raised = problems.held()["disk_full"];
        problems.raise("api_auth");
        problems.raise("disk_full");
        assert_eq!(problems.held()["disk_full"], raised, "it stands already");
        let codes = problems.ages().into_iter().map(|(code, age)| (code, age <= raised.elapsed())).collect::<Vec<_>>();
        assert_eq!(codes, [("api_auth", true), ("disk_full", true)]);
        problems.clear("disk_full");
        assert_eq!(problems.standing(), ["api_auth"]);
    }
}
