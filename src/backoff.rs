//! How waits grow while something fails again and again.
//!
//! *Gives* the next wait, twice the one before, between a first and a longest one: as a [`Backoff`] for whoever counts
//! failures by it, and as [`doubled`] for whoever has their number on record. *Not here*: chance, which spreads the
//! waits of many (`belvo::Failure::delay`).

use std::time::Duration;

/// A wait that doubles with each failure in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    now: Duration,
}

impl Backoff {
    /// One of which nothing has failed yet.
    pub const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, now: Duration::ZERO }
    }

    /// How long to wait now; zero while nothing has failed.
    pub const fn wait(&self) -> Duration {
        self.now
    }

    /// Something failed, once more: how long to wait.
    pub fn next_wait(&mut self) -> Duration {
        self.now = self.now.saturating_mul(2).clamp(self.first, self.most);
        self.now
    }

    /// Nothing fails any more.
    pub fn reset(&mut self) {
        self.now = Duration::ZERO;
    }
}

/// The wait after `attempts` that failed before the last one: `first`, doubled so often, and at most `most`.
pub fn doubled(first: Duration, attempts: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(attempts)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(2);

    const MOST: Duration = Duration::from_mins(1);

    #[test]
    fn a_wait_doubles_with_each_failure_up_to_the_longest_and_begins_anew() {
        let mut backoff = Backoff::new(FIRST, MOST);
        assert_eq!(backoff.wait(), Duration::ZERO);
        let waits: Vec<_> = (0..8).map(|_| backoff.next_wait().as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff.wait(), MOST);
        backoff.reset();
        assert_eq!((backoff.wait(), backoff.next_wait()), (Duration::ZERO, FIRST));
    }

    #[test]
    fn the_wait_after_any_number_of_failures_is_the_same() {
        let mut backoff = Backoff::new(FIRST, MOST);
        for attempts in 0..40 {
            assert_eq!(doubled(FIRST, attempts, MOST), backoff.next_wait(), "{attempts}");
        }
        assert_eq!(doubled(FIRST, u32::MAX, MOST), MOST);
        assert_eq!(doubled(Duration::ZERO, 3, MOST), Duration::ZERO);
    }
}
