//! The request budget: all of it, and never one call more in any window, counted where calls arrive.
//!
//! *Takes* the wish to call. *Gives* a [`Permit`] when a call may leave. A call arrives somewhere between its permit and
//! the first byte of its answer, so its place is taken from the one until a whole window after the other. *Promises* to
//! serve in order, the urgent first, to keep a part for them, and to hold across a restart. *Not here*: what a call is.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::ledger::Ledger;
use crate::clock::{Clock, Timestamp};
use crate::config;

/// No pause is longer, whoever asks for it.
pub const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Added to the window, with a thousandth of it: Belvo's clock may run faster than ours.
const SLACK: Duration = Duration::from_millis(1);

/// The budget of all calls to Belvo. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    window: Mutex<Window>,
    ledger: Option<Ledger>,
    clock: Clock,
}

impl Budget {
    /// The budget of `settings`, with the share `reserve` (0 to 1) kept for urgent calls. `ledger` names the file that
    /// carries the count across a restart; `None` keeps it in memory alone.
    ///
    /// # Errors
    /// When the file cannot be opened, read or written.
    pub fn open(settings: config::Budget, reserve: f64, ledger: Option<&Path>, clock: Clock) -> io::Result<Self> {
        let per = settings.per + settings.per / 1000 + SLACK;
        let mut window = Window::new(settings.requests, reserve, per);
        let now = Instant::now();
        let ledger = match ledger {
            Some(path) => {
                let (ledger, left) = Ledger::open(path, window.limit, per, LONGEST_PAUSE, clock.now())?;
                window.restore(&left.slots, now);
                window.pause(now + left.pause);
                Some(ledger)
            }
            None => None,
        };
        Ok(Self(Arc::new(Shared { window: Mutex::new(window), ledger, clock })))
    }

    /// Waits until a call may leave. Calls of one urgency leave in the order in which they asked.
    pub async fn acquire(&self, is_urgent: bool) -> Permit {
        let asked = Instant::now();
        let ticket = Ticket::take(&self.0, is_urgent);
        loop {
            let verdict = self.0.lock().decide(ticket.number, is_urgent, Instant::now());
            match verdict {
                Verdict::Granted(slot) => {
                    // Before the ticket leaves its line, so that an end in between frees the slot.
                    let permit = Permit { budget: Arc::clone(&self.0), slot };
                    if let Some(ledger) = &self.0.ledger {
                        ledger.opened(slot);
                    }
                    metrics::counter!("vinculo_belvo_grants_total", "urgent" => if is_urgent { "true" } else { "false" }).increment(1);
                    metrics::histogram!("vinculo_belvo_budget_wait_seconds").record(asked.elapsed());
                    return permit;
                }
                Verdict::NotBefore(instant) => {
                    // Woken or not: the next round decides.
                    let _ = tokio::time::timeout_at(instant.into(), ticket.turn.notified()).await;
                }
                Verdict::WhenWoken => ticket.turn.notified().await,
            }
        }
    }

    /// No call leaves for `length`, at most [`LONGEST_PAUSE`]. A pause that stands is never cut short.
    pub fn pause(&self, length: Duration) {
        let length = length.min(LONGEST_PAUSE);
        let mut window = self.0.lock();
        if window.pause(Instant::now() + length)
            && let Some(ledger) = &self.0.ledger
        {
            ledger.paused(self.0.clock.now() + length);
        }
    }

    /// Halves the budget for `length`, for a server that has been hit too hard.
    pub fn slow_down(&self, length: Duration) {
        let mut window = self.0.lock();
        window.slow_until = window.slow_until.max(Some(Instant::now() + length));
    }

    /// Until when no call leaves; `None` when calls may leave.
    pub fn paused_until(&self) -> Option<Timestamp> {
        let left = self.0.lock().paused_until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| self.0.clock.now() + left)
    }

    /// Places that are taken now.
    pub fn in_use(&self) -> usize {
        let mut window = self.0.lock();
        window.free_what_is_over(Instant::now());
        window.in_use()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave for one call. Its place is free again one window after [`Permit::answered`], or after the permit is dropped.
#[must_use = "a permit that is dropped counts as a call"]
pub struct Permit {
    budget: Arc<Shared>,
    slot: usize,
}

impl Permit {
    /// The call has surely arrived: its answer began, or it failed.
    pub fn answered(self) {
        drop(self);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut window = self.budget.lock();
        window.answered(self.slot, Instant::now());
        if let Some(ledger) = &self.budget.ledger {
            ledger.answered(self.slot, self.budget.clock.now());
        }
    }
}

/// A place in the line, left when it is dropped.
struct Ticket<'a> {
    shared: &'a Shared,
    number: u64,
    is_urgent: bool,
    turn: Arc<Notify>,
}

impl<'a> Ticket<'a> {
    fn take(shared: &'a Shared, is_urgent: bool) -> Self {
        let turn = Arc::new(Notify::new());
        let number = shared.lock().queue(is_urgent, Arc::clone(&turn));
        Self { shared, number, is_urgent, turn }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.lock().leave(self.number, self.is_urgent);
    }
}

/// What one look at the window gives.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The call may leave in this slot.
    Granted(usize),
    /// Nothing changes before this instant.
    NotBefore(Instant),
    /// Nothing changes until an answer comes or the line moves.
    WhenWoken,
}

/// The count, without a clock of its own.
struct Window {
    limit: usize,
    reserve: usize,
    per: Duration,
    /// Slots that were never taken start here.
    fresh: usize,
    free: Vec<usize>,
    /// Calls without an answer yet.
    open: usize,
    /// Answered calls and when their slots are free, the soonest first.
    cooling: VecDeque<(Instant, usize)>,
    paused_until: Option<Instant>,
    slow_until: Option<Instant>,
    /// Those who wait: others, and the urgent.
    lines: [VecDeque<(u64, Arc<Notify>)>; 2],
    tickets: u64,
}

impl Window {
    fn new(requests: u32, reserve: f64, per: Duration) -> Self {
        let limit = usize::try_from(requests).unwrap_or(usize::MAX).max(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a u32; the cast saturates"
        )]
        let reserve = (f64::from(requests) * reserve).ceil() as usize;
        Self {
            limit,
            // Others would never be served from nothing.
            reserve: reserve.min(limit - 1),
            per,
            fresh: 0,
            free: Vec::new(),
            open: 0,
            cooling: VecDeque::new(),
            paused_until: None,
            slow_until: None,
            lines: [VecDeque::new(), VecDeque::new()],
            tickets: 0,
        }
    }

    /// Takes over the slots of an earlier process.
    fn restore(&mut self, slots: &[Duration], now: Instant) {
        self.fresh = slots.len();
        let mut taken = Vec::new();
        for (slot, rest) in slots.iter().enumerate() {
            if rest.is_zero() {
                self.free.push(slot);
            } else {
                taken.push((now + *rest, slot));
            }
        }
        taken.sort_unstable();
        self.cooling = taken.into();
    }

    fn queue(&mut self, is_urgent: bool, turn: Arc<Notify>) -> u64 {
        self.tickets += 1;
        self.lines[usize::from(is_urgent)].push_back((self.tickets, turn));
        self.tickets
    }

    fn leave(&mut self, number: u64, is_urgent: bool) {
        self.lines[usize::from(is_urgent)].retain(|(waiting, _)| *waiting != number);
        self.wake();
    }

    /// Those at the front look again.
    fn wake(&self) {
        for line in &self.lines {
            if let Some((_, turn)) = line.front() {
                turn.notify_one();
            }
        }
    }

    fn in_use(&self) -> usize {
        self.open + self.cooling.len()
    }

    fn free_what_is_over(&mut self, now: Instant) {
        while let Some((_, slot)) = self.cooling.pop_front_if(|(until, _)| *until <= now) {
            self.free.push(slot);
        }
    }

    fn decide(&mut self, number: u64, is_urgent: bool, now: Instant) -> Verdict {
        let is_first = self.lines[usize::from(is_urgent)].front().is_some_and(|(waiting, _)| *waiting == number);
        if !is_first || (!is_urgent && !self.lines[1].is_empty()) {
            return Verdict::WhenWoken;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Verdict::NotBefore(until);
        }
        self.free_what_is_over(now);
        let slow_until = self.slow_until.filter(|until| *until > now);
        let limit = if slow_until.is_some() { self.limit.div_ceil(2) } else { self.limit };
        let share = if is_urgent { limit } else { limit.saturating_sub(self.reserve).max(1) };
        let in_use = self.in_use();
        metrics::gauge!("vinculo_belvo_budget_in_use").set(u32::try_from(in_use).unwrap_or(u32::MAX));
        if in_use < share {
            self.open += 1;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.fresh += 1;
                self.fresh - 1
            });
            return Verdict::Granted(slot);
        }
        let enough_free = self.cooling.get(in_use - share).map(|(until, _)| *until);
        match (enough_free, slow_until) {
            (Some(free), Some(slow)) => Verdict::NotBefore(free.min(slow)),
            (Some(instant), None) | (None, Some(instant)) => Verdict::NotBefore(instant),
            (None, None) => Verdict::WhenWoken,
        }
    }

    fn answered(&mut self, slot: usize, now: Instant) {
        self.open -= 1;
        self.cooling.push_back((now + self.per, slot));
        self.wake();
    }

    /// False when a longer pause stands.
    fn pause(&mut self, until: Instant) -> bool {
        let is_longer = self.paused_until.is_none_or(|standing| standing < until);
        if is_longer {
            self.paused_until = Some(until);
        }
        is_longer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn window(requests: u32, reserve: f64) -> Window {
        Window::new(requests, reserve, 100 * MS)
    }

    fn ask(window: &mut Window, is_urgent: bool, now: Instant) -> Verdict {
        let number = window.queue(is_urgent, Arc::default());
        let verdict = window.decide(number, is_urgent, now);
        window.leave(number, is_urgent);
        verdict
    }

    proptest! {
        /// Calls that wait for their turn one by one, each answered after its own latency, having arrived at its own
        /// moment in between.
        #[test]
        fn no_window_ever_sees_one_call_more_and_all_of_it_is_used(
            requests in 1_u32..8,
            calls in prop::collection::vec((0_u64..250, 0.0_f64..=1.0, any::<bool>()), 1..80),
        ) {
            let start = Instant::now();
            let mut window = window(requests, 0.0);
            let mut now = start;
            let mut under_way: Vec<(Instant, usize)> = Vec::new();
            let mut arrivals: Vec<Instant> = Vec::new();
            for (latency, arrives, is_urgent) in calls {
                let number = window.queue(is_urgent, Arc::default());
                loop {
                    under_way.sort_unstable();
                    while under_way.first().is_some_and(|(answer, _)| *answer <= now) {
                        let (answer, slot) = under_way.remove(0);
                        window.answered(slot, answer);
                    }
                    let next_answer = under_way.first().map(|(answer, _)| *answer);
                    match window.decide(number, is_urgent, now) {
                        Verdict::Granted(slot) => {
                            arrivals.push(now + MS.mul_f64(latency as f64 * arrives));
                            under_way.push((now + MS * u32::try_from(latency).unwrap(), slot));
                            break;
                        }
                        Verdict::NotBefore(instant) => {
                            prop_assert!(instant > now);
                            now = next_answer.map_or(instant, |answer| answer.min(instant));
                        }
                        Verdict::WhenWoken => now = next_answer.expect("an answer is awaited"),
                    }
                }
                window.leave(number, is_urgent);
            }
            arrivals.sort_unstable();
            let requests = usize::try_from(requests).unwrap();
            for crowd in arrivals.windows(requests + 1) {
                prop_assert!(crowd[requests] - crowd[0] >= 100 * MS);
            }
        }
    }

    #[test]
    fn the_whole_budget_is_used_and_comes_back_window_by_window() {
        let mut window = window(5, 0.0);
        let mut now = Instant::now();
        for _ in 0..4 {
            for _ in 0..5 {
                let Verdict::Granted(slot) = ask(&mut window, false, now) else { panic!("a place is free") };
                window.answered(slot, now);
            }
            assert_eq!(ask(&mut window, false, now), Verdict::NotBefore(now + 100 * MS));
            now += 100 * MS;
        }
        assert!(window.fresh <= 5, "slots are used again");
    }

    #[test]
    fn the_last_part_is_kept_for_the_urgent() {
        let (mut window, mut tiny) = (window(10, 0.11), window(1, 1.0));
        let now = Instant::now();
        let granted = |verdict| matches!(verdict, Verdict::Granted(_));
        assert_eq!((0..10).filter(|_| granted(ask(&mut window, false, now))).count(), 8);
        assert_eq!((0..10).filter(|_| granted(ask(&mut window, true, now))).count(), 2);
        assert!(granted(ask(&mut tiny, false, now)), "a reserve never takes all");
    }

    #[test]
    fn others_wait_behind_the_urgent_and_each_line_keeps_its_order() {
        let mut window = window(2, 0.0);
        let now = Instant::now();
        let others: Vec<u64> = (0..2).map(|_| window.queue(false, Arc::default())).collect();
        let urgent: Vec<u64> = (0..2).map(|_| window.queue(true, Arc::default())).collect();
        assert_eq!(window.decide(others[0], false, now), Verdict::WhenWoken);
        assert_eq!(window.decide(urgent[1], true, now), Verdict::WhenWoken);
        assert_eq!(window.decide(urgent[0], true, now), Verdict::Granted(0));
        window.leave(urgent[0], true);
        window.leave(urgent[1], true);
        assert_eq!(window.decide(others[1], false, now), Verdict::WhenWoken);
        assert_eq!(window.decide(others[0], false, now), Verdict::Granted(1));
    }

    #[test]
    fn nobody_leaves_within_a_pause_and_half_leave_after_a_breach() {
        let mut window = window(10, 0.0);
        let now = Instant::now();
        assert!(window.pause(now + 50 * MS));
        assert!(!window.pause(now + 20 * MS));
        assert_eq!(ask(&mut window, true, now), Verdict::NotBefore(now + 50 * MS));
        window.slow_until = Some(now + 70 * MS);
        let later = now + 50 * MS;
        assert_eq!((0..10).filter(|_| matches!(ask(&mut window, true, later), Verdict::Granted(_))).count(), 5);
        assert_eq!(ask(&mut window, true, later), Verdict::NotBefore(now + 70 * MS));
    }

    #[tokio::test]
    async fn a_budget_is_shared_in_order_and_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let settings = config::Budget { requests: 3, per: Duration::from_millis(400) };
        let open = || Budget::open(settings, 0.0, Some(&path), Clock::system()).unwrap();
        let budget = open();
        let started = Instant::now();
        budget.acquire(false).await.answered();
        drop(budget.acquire(true).await);
        // A process that is killed says nothing of its last call.
        std::mem::forget(budget.acquire(false).await);
        assert!(started.elapsed() < Duration::from_millis(300));
        assert!(tokio::time::timeout(Duration::from_millis(50), budget.acquire(true)).await.is_err(), "all is taken");

        let restarted = Instant::now();
        let budget = open();
        assert_eq!(budget.in_use(), 3);
        let calls = (0..3).map(|_| {
            let budget = budget.clone();
            tokio::spawn(async move { budget.acquire(false).await.answered() })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        assert!(restarted.elapsed() >= Duration::from_millis(400), "the killed process's call may have arrived last");
        budget.pause(Duration::from_secs(5));
        assert!(open().paused_until().is_some(), "nor is a pause forgotten");
    }

    #[tokio::test]
    async fn one_who_gives_up_does_not_hold_the_line() {
        let settings = config::Budget { requests: 1, per: Duration::from_millis(100) };
        let budget = Budget::open(settings, 0.0, None, Clock::system()).unwrap();
        let permit = budget.acquire(false).await;
        let first = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(true).await.answered() }
        });
        let second = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(false).await.answered() }
        });
        tokio::task::yield_now().await;
        first.abort();
        permit.answered();
        tokio::time::timeout(Duration::from_secs(2), second).await.expect("the line moved on").unwrap();
    }
}
