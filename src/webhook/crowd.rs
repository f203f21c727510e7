//! How many connections are served at once, and who makes room.
//!
//! *Promises* that a connection with a request under way is never ended for another, and that one which says nothing is,
//! the longest silent first: silence is free for who sends it, so it must not keep others out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The connections that are open.
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
}

/// Connections without a request under way, in the order in which they fell silent.
#[derive(Default)]
struct Silent {
    next: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl Crowd {
    pub(super) fn new(places: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places.max(1))), silent: Arc::default() }
    }

    /// Waits for a place; the longest silent connection makes room when there is none.
    pub(super) async fn admit(&self) -> Guest {
        let mut place = Arc::clone(&self.places).try_acquire_owned().ok();
        if place.is_none() {
            let longest_silent = lock(&self.silent).waiting.pop_first();
            if let Some((_, leave)) = longest_silent {
                metrics::counter!("vinculo_webhook_connections_evicted_total").increment(1);
                leave.cancel();
            }
            place = Arc::clone(&self.places).acquire_owned().await.ok();
        }
        let guest = Guest {
            _place: place,
            silent: Arc::clone(&self.silent),
            leave: CancellationToken::new(),
            number: Mutex::new(None),
        };
        guest.fall_silent();
        guest
    }
}

/// One connection's place.
pub(super) struct Guest {
    _place: Option<OwnedSemaphorePermit>,
    silent: Arc<Mutex<Silent>>,
    leave: CancellationToken,
    /// Its number among the silent.
    number: Mutex<Option<u64>>,
}

impl Guest {
    /// Ends when the connection has to make room.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.cancelled().await;
    }

    /// Whether no request is under way.
    pub(super) fn is_silent(&self) -> bool {
        self.number().is_some()
    }

    /// A request is under way until this is dropped.
    pub(super) fn busy(self: &Arc<Self>) -> Busy {
        self.speak();
        Busy(Arc::clone(self))
    }

    fn fall_silent(&self) {
        let mut number = self.number();
        let mut silent = lock(&self.silent);
        silent.next += 1;
        *number = Some(silent.next);
        let last = silent.next;
        silent.waiting.insert(last, self.leave.clone());
    }

    fn speak(&self) {
        if let Some(number) = self.number().take() {
            lock(&self.silent).waiting.remove(&number);
        }
    }

    fn number(&self) -> MutexGuard<'_, Option<u64>> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.speak();
    }
}

/// A request is under way.
pub(super) struct Busy(Arc<Guest>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fall_silent();
    }
}

fn lock(silent: &Mutex<Silent>) -> MutexGuard<'_, Silent> {
    silent.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_longest_silent_makes_room_and_the_busy_never() {
        let crowd = Crowd::new(2);
        let first = Arc::new(crowd.admit().await);
        let second = Arc::new(crowd.admit().await);
        let busy = first.busy();
        assert!(timeout(Duration::from_millis(20), crowd.admit()).await.is_err());
        assert!(second.leave.is_cancelled() && !first.leave.is_cancelled());
        drop(second);
        let third = timeout(Duration::from_secs(1), crowd.admit()).await.expect("a place is free");
        drop(busy);
        assert!(timeout(Duration::from_millis(20), crowd.admit()).await.is_err());
        assert!(third.leave.is_cancelled() && !first.leave.is_cancelled(), "the third was silent for longer");
        drop((first, third));
        assert!(lock(&crowd.silent).waiting.is_empty());
    }
}
