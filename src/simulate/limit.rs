//! So many calls in a window, counted at arrival, to the call.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many calls fit in any window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Calls.
    pub requests: usize,
    /// Length of the window.
    pub per: Duration,
}

/// Counts admitted calls in a sliding window.
#[derive(Default)]
pub(super) struct Window(VecDeque<Instant>);

impl Window {
    /// Whether a call that arrives at `now` is admitted. A refused call takes no place.
    pub(super) fn admits(&mut self, now: Instant, limit: Limit) -> bool {
        while self.0.front().is_some_and(|first| now.saturating_duration_since(*first) >= limit.per) {
            self.0.pop_front();
        }
        let admitted = self.0.len() < limit.requests;
        if admitted {
            self.0.push_back(now);
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_eightieth_call_passes_and_the_next_waits_for_the_first_to_leave() {
        let limit = Limit { requests: 80, per: Duration::from_secs(30) };
        let (mut window, start) = (Window::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert!((0..80).all(|n| window.admits(at(n), limit)));
        assert!(!window.admits(at(80), limit));
        assert!(!window.admits(at(29_999), limit));
        assert!(window.admits(at(30_000), limit));
        assert!(!window.admits(at(30_000), limit));
        assert!(window.admits(at(30_001), limit));
    }
}
