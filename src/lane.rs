//! Work away from the async threads: a [`Lane`] processes items in order while their producer carries on, and
//! [`in_background`] does one thing that blocks.
//!
//! *Promises* that a thread ends with its [`Lane`]: whatever it writes to may be removed afterwards; and that a panic
//! there is a panic of whoever waits for it.

use std::io;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use tokio::task::JoinError;

/// Does `work`, which blocks, away from the async threads.
pub async fn in_background<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    result_of(tokio::task::spawn_blocking(work).await)
}

/// The result of a task that nobody aborts.
pub fn result_of<R>(ended: Result<R, JoinError>) -> R {
    ended.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))
}

/// A worker thread that processes items of type `T` in order and returns one result at the end.
pub struct Lane<T, R> {
    /// None once there is nothing more to come.
    things: Option<SyncSender<T>>,
    /// None once it was waited for.
    thread: Option<JoinHandle<R>>,
}

impl<T: Send + 'static, R: Send + 'static> Lane<T, R> {
    /// Starts the thread `name`, which does `work`. At most so many things wait for it; then whoever brings one does.
    ///
    /// # Errors
    /// The system's, when it has no thread left.
    pub fn start(
        name: &str,
        most_waiting: usize,
        work: impl FnOnce(Receiver<T>) -> R + Send + 'static,
    ) -> io::Result<Self> {
        let (things, coming) = sync_channel(most_waiting);
        let thread = Builder::new().name(name.to_owned()).spawn(move || work(coming))?;
        Ok(Self { things: Some(things), thread: Some(thread) })
    }
}

impl<T, R> Lane<T, R> {
    /// Hands a thing over. False when the thread has ended already; [`Lane::finish`] says why.
    pub fn take(&self, thing: T) -> bool {
        self.things.as_ref().is_some_and(|things| things.send(thing).is_ok())
    }

    /// Waits until everything is done.
    ///
    /// # Panics
    /// When the thread did.
    pub fn finish(mut self) -> R {
        match self.join() {
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("a lane is finished once"),
        }
    }

    fn join(&mut self) -> Option<std::thread::Result<R>> {
        self.things = None;
        self.thread.take().map(JoinHandle::join)
    }
}

impl<T, R> Drop for Lane<T, R> {
    fn drop(&mut self) {
        let _ = self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_done_in_order_and_the_result_is_given_once_all_are() {
        let lane = Lane::start("test", 1, |coming: Receiver<u32>| coming.iter().collect::<Vec<_>>()).unwrap();
        assert!((0..100).all(|number| lane.take(number)));
        assert_eq!(lane.finish(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_thread_that_has_failed_takes_no_more_and_says_why() {
        let lane = Lane::start("test", 1, |coming: Receiver<u32>| coming.iter().try_for_each(Err::<(), u32>)).unwrap();
        assert!((0..100).any(|number| !lane.take(number)));
        assert_eq!(lane.finish(), Err(0));
    }

    #[test]
    fn nothing_is_done_any_more_once_a_lane_is_dropped() {
        let (done, seen) = std::sync::mpsc::channel();
        let lane = Lane::start("test", 8, move |coming: Receiver<u32>| coming.iter().try_for_each(|it| done.send(it)));
        let lane = lane.unwrap();
        assert!((0..8).all(|number| lane.take(number)));
        drop(lane);
        // The sender is gone with the thread, so this ends.
        assert_eq!(seen.iter().count(), 8);
    }
}
