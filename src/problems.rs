//! What stands in the way of the daemon's work right now, by stable code, for readiness, metrics and `status`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The standing problems. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Problems(Arc<Mutex<BTreeSet<&'static str>>>);

impl Problems {
    /// From now on `code` stands in the way.
    pub fn raise(&self, code: &'static str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(code) {
            metrics::gauge!("vinculo_problem", "code" => code).set(1.0);
        }
    }

    /// `code` no longer stands in the way, if it did.
    pub fn clear(&self, code: &'static str) {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(code) {
            metrics::gauge!("vinculo_problem", "code" => code).set(0.0);
        }
    }

    /// The codes that stand, in order.
    pub fn standing(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}
