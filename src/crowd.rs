//! How many connections are served at once, and who makes room.
//!
//! *Promises* that a connection whose request is here and under way is never ended for another, and that one which says
//! nothing, or not all of it, is: silence is free for who sends it, so it must not keep others out. Whoever has the
//! most connections loses one first, the longest silent, so that a flood from one address drives out itself and nobody
//! else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::Counter;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::guesses::network;

/// The connections that are open.
pub struct Crowd {
    places: Arc<Semaphore>,
    silent: Arc<Mutex<Silent>>,
    /// Told of each connection that falls silent.
    fell_silent: Arc<Notify>,
    evicted: Counter,
}

/// Connections without a request under way, in the order in which they fell silent.
#[derive(Default)]
struct Silent {
    next: u64,
    waiting: BTreeMap<u64, (IpAddr, CancellationToken)>,
    /// Connections by address, those with a request under way too.
    held: HashMap<IpAddr, usize>,
}

impl Silent {
    /// Takes out who has to make room.
    fn pop(&mut self) -> Option<CancellationToken> {
        // Behind a proxy all are of one address, and nobody has to be looked for.
        if self.held.len() == 1 {
            return self.waiting.pop_first().map(|(_, (_, leave))| leave);
        }
        let rank = |number: u64, address: &IpAddr| (self.held.get(address).copied(), Reverse(number));
        let first = self.waiting.iter().max_by_key(|(number, (address, _))| rank(**number, address));
        let number = *first?.0;
        self.waiting.remove(&number).map(|(_, leave)| leave)
    }
}

impl Crowd {
    /// A crowd of at most `places`; `evicted` counts those that made room.
    pub fn new(places: usize, evicted: Counter) -> Self {
        let places = Arc::new(Semaphore::new(places.max(1)));
        Self { places, silent: Arc::default(), fell_silent: Arc::default(), evicted }
    }

    /// Waits for a place for a connection from `address`; a silent one makes room when there is none.
    pub async fn admit(&self, address: IpAddr) -> Guest {
        let place = self.place().await;
        let address = network(address);
        *lock(&self.silent).held.entry(address).or_default() += 1;
        let guest = Guest {
            _place: place,
            address,
            silent: Arc::clone(&self.silent),
            fell_silent: Arc::clone(&self.fell_silent),
            leave: CancellationToken::new(),
            number: Mutex::new(None),
        };
        guest.fall_silent();
        guest
    }

    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        let free = || Arc::clone(&self.places).acquire_owned();
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Some(place);
            }
            let leaving = lock(&self.silent).pop();
            if let Some(leave) = leaving {
                self.evicted.increment(1);
                leave.cancel();
                return free().await.ok();
            }
            // All are busy: the first that leaves or falls silent makes room.
            tokio::select! {
                place = free() => return place.ok(),
                () = self.fell_silent.notified() => {}
            }
        }
    }
}

/// One connection's place.
pub struct Guest {
    _place: Option<OwnedSemaphorePermit>,
    address: IpAddr,
    silent: Arc<Mutex<Silent>>,
    fell_silent: Arc<Notify>,
    leave: CancellationToken,
    /// Its number among the silent.
    number: Mutex<Option<u64>>,
}

impl Guest {
    /// Ends when the connection has to make room.
    pub async fn asked_to_leave(&self) {
        self.leave.cancelled().await;
    }

    /// Whether no request is under way.
    pub fn is_silent(&self) -> bool {
        self.number().is_some()
    }

    /// A request is under way until this is dropped.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.speak();
        Busy(Arc::clone(self))
    }

    /// Counts as silent, in the middle of a request, while `waiting` lasts: nobody else has to wait for that.
    pub async fn silently<T>(&self, waiting: impl Future<Output = T>) -> T {
        self.fall_silent();
        // Also when the client leaves and the wait is dropped.
        let _speaks_again = SpeaksAgain(self);
        waiting.await
    }

    fn fall_silent(&self) {
        let mut number = self.number();
        let mut silent = lock(&self.silent);
        silent.next += 1;
        *number = Some(silent.next);
        let last = silent.next;
        silent.waiting.insert(last, (self.address, self.leave.clone()));
        drop(silent);
        self.fell_silent.notify_one();
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
        let mut silent = lock(&self.silent);
        if let Some(held) = silent.held.get_mut(&self.address) {
            *held -= 1;
            if *held == 0 {
                silent.held.remove(&self.address);
            }
        }
    }
}

struct SpeaksAgain<'g>(&'g Guest);

impl Drop for SpeaksAgain<'_> {
    fn drop(&mut self) {
        self.0.speak();
    }
}

/// A request is under way.
pub struct Busy(Arc<Guest>);

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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn the_longest_silent_makes_room_and_the_busy_never() {
        let crowd = Crowd::new(2, Counter::noop());
        let first = Arc::new(crowd.admit(HERE).await);
        let second = Arc::new(crowd.admit(HERE).await);
        let busy = first.busy();
        assert!(timeout(Duration::from_millis(20), crowd.admit(HERE)).await.is_err());
        assert!(second.leave.is_cancelled() && !first.leave.is_cancelled());
        drop(second);
        let third = timeout(Duration::from_secs(1), crowd.admit(HERE)).await.expect("a place is free");
        drop(busy);
        assert!(timeout(Duration::from_millis(20), crowd.admit(HERE)).await.is_err());
        assert!(third.leave.is_cancelled() && !first.leave.is_cancelled(), "the third was silent for longer");
        drop((first, third));
        let silent = lock(&crowd.silent);
        assert!(silent.waiting.is_empty() && silent.held.is_empty());
    }

    #[tokio::test]
    async fn whoever_falls_silent_while_another_waits_for_a_place_makes_room() {
        let crowd = Crowd::new(1, Counter::noop());
        let only = Arc::new(crowd.admit(HERE).await);
        let busy = only.busy();
        let next = crowd.admit(HERE);
        tokio::pin!(next);
        assert!(timeout(Duration::from_millis(20), &mut next).await.is_err());
        assert!(!only.leave.is_cancelled());
        drop(busy);
        assert!(timeout(Duration::from_millis(20), &mut next).await.is_err());
        assert!(only.leave.is_cancelled());
        drop(only);
        timeout(Duration::from_secs(1), next).await.expect("a place is free");
    }

    #[tokio::test]
    async fn a_wait_that_is_cut_off_leaves_nobody_among_the_silent() {
        let crowd = Crowd::new(1, Counter::noop());
        let guest = Arc::new(crowd.admit(HERE).await);
        let busy = guest.busy();
        let waiting = guest.silently(std::future::pending::<()>());
        assert!(timeout(Duration::from_millis(1), waiting).await.is_err());
        assert!(!guest.is_silent());
        drop((busy, guest));
        assert!(lock(&crowd.silent).waiting.is_empty());
    }

    #[tokio::test]
    async fn a_flood_from_one_address_drives_out_itself_alone() {
        let crowd = Crowd::new(8, Counter::noop());
        let honest = crowd.admit("192.0.2.1".parse().unwrap()).await;
        let mut flood = Vec::new();
        for number in 0..7 {
            flood.push(crowd.admit(format!("2001:db8::{number}").parse().unwrap()).await);
        }
        for number in 7..100 {
            let address = format!("2001:db8::{number}").parse().unwrap();
            assert!(timeout(Duration::from_millis(1), crowd.admit(address)).await.is_err());
            let left = flood.iter().position(|guest| guest.leave.is_cancelled()).expect("one of the flood leaves");
            drop(flood.remove(left));
            flood.push(timeout(Duration::from_secs(1), crowd.admit(address)).await.expect("its place is free"));
        }
        assert!(!honest.leave.is_cancelled());
    }
}
