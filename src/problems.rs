//! What stands in the way of the daemon's work right now, by stable code, for readiness, metrics and `status`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The standing problems. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Problems(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

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

    /// The codes that stand, in order.
    pub fn standing(&self) -> Vec<&'static str> {
        self.held().keys().copied().collect()
    }

    /// The codes that stand, in order, and for how long each has.
    pub fn ages(&self) -> Vec<(&'static str, Duration)> {
        self.held().iter().map(|(code, since)| (*code, since.elapsed())).collect()
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
