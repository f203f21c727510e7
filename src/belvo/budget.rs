//! The request budget: all of it, and never one call more in any window, counted where calls arrive.
//!
//! *Takes* requests for leave to call. *Gives* a [`Permit`] when a call may leave. *Promises* to serve urgent calls
//! first and otherwise in order, to keep a reserve for urgent calls, to starve nobody, and to hold across a restart.
//! *Not here*: what a call is.
//!
//! A call arrives at some moment between its permit and the first byte of its answer, so it occupies its place from the
//! permit until a whole window after that byte.
//!
//! Calls that leave together also free their places together, a window later, and an urgent call in between would find
//! none. So ordinary calls are spread over the window once a first part of the budget is used.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::failure::Code;
use super::ledger::{Ledger, Moment};
use crate::clock::{Clock, Timestamp};
use crate::config;

/// No pause is longer, whoever asks for it: a day at Belvo's word costs less than an address that is blocked for good.
pub const LONGEST_PAUSE: Duration = Duration::from_hours(24);

/// Added to the window, with a thousandth of it: Belvo's clock may run faster than ours.
const SLACK: Duration = Duration::from_millis(1);

/// After so many urgent calls in a row, an ordinary call that waits is served, and likewise a look-up that waits.
const URGENT_IN_A_ROW: u32 = 9;

/// Ordinary calls may leave at once until this part of the budget is used; what follows is spread.
const AT_ONCE: u32 = 3;

/// The spread is a little faster than places come free, so that the window decides and not our own timers.
const SPREAD: f64 = 0.97;

/// Windows after a pause in which ordinary calls are not spread: spreading them would lose as much again as the pause
/// did.
const HURRY: u32 = 2;

/// Calls about links of which Belvo never told take at most one in so many of the budget: whoever has a webhook's token
/// can make such links up.
const LOOK_UPS: usize = 10;
/// Of those calls, at most one in so many lists a link's records; a look-up tells of many links in one call.
const OF_LOOK_UPS: usize = 2;

/// What a call is for; decides when it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Whatever is neither of the others.
    Ordinary,
    /// News from Belvo, or a user who waits: leaves first, and may use the reserve.
    Urgent,
    /// Looks up a link that somebody named: at most a tenth of the budget.
    LookUp,
    /// Lists a link that somebody named and of which Belvo never told: at most half of what look-ups may use.
    Unknown,
}

/// How the budget is used now.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Usage {
    /// Calls in any window.
    pub requests: usize,
    /// Length of the window, in seconds.
    pub per_seconds: f64,
    /// Calls of the window that ends now.
    pub in_use: usize,
    /// Of the budget, what only urgent calls may use.
    pub reserve: usize,
    /// Urgent calls that wait for a place.
    pub waiting_urgent: usize,
    /// Ordinary calls that wait for a place.
    pub waiting_ordinary: usize,
    /// Look-ups of links that wait for a place, and lists of those of which Belvo never told.
    pub waiting_look_ups: usize,
}

/// The budget of all calls to Belvo. Cheap to clone.
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    window: Mutex<Window>,
    ledger: Option<Ledger>,
    clock: Clock,
    /// Calls since the start.
    calls: AtomicU64,
    /// Told of each pause that begins, or is made longer.
    pauses: watch::Sender<()>,
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
                let (ledger, left) = Ledger::open(path, window.limit, per, LONGEST_PAUSE, Moment::now(&clock))?;
                window.restore(&left.slots, now);
                // No pause took time that a hurry is to make good.
                if !left.pause.is_zero() {
                    window.pause(now + left.pause);
                }
                window.slow_until = (!left.slow.is_zero()).then(|| now + left.slow);
                Some(ledger)
            }
            None => None,
        };
        let (window, calls, pauses) = (Mutex::new(window), AtomicU64::new(0), watch::Sender::new(()));
        Ok(Self(Arc::new(Shared { window, ledger, clock, calls, pauses })))
    }

    /// Waits until a call may leave. Calls of one class leave in the order in which they asked.
    pub async fn acquire(&self, class: Class) -> Permit {
        let asked = Instant::now();
        let ticket = Ticket::take(&self.0, class);
        loop {
            let verdict = self.0.lock().decide(ticket.number, class, Instant::now());
            match verdict {
                Verdict::Granted(slot) => {
                    metrics::histogram!("vinculo_belvo_budget_wait_seconds").record(asked.elapsed());
                    // Before the ticket leaves its line, so that an end in between frees the slot.
                    return Permit::new(&self.0, slot, class);
                }
                Verdict::NotBefore(instant) => {
                    // Woken or not: the next round decides.
                    let _ = tokio::time::timeout_at(instant.into(), ticket.turn.notified()).await;
                }
                Verdict::WhenWoken => ticket.turn.notified().await,
            }
        }
    }

    /// Waits while no call may leave: a pause may have begun since a call got its place.
    pub async fn until_unpaused(&self) {
        loop {
            let paused_until = self.0.lock().paused_until;
            match paused_until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => return,
            }
        }
    }

    /// Waits until calls pause for longer than `length` from then on, and says why.
    pub async fn until_paused_longer_than(&self, length: Duration) -> Code {
        let mut pauses = self.0.pauses.subscribe();
        loop {
            pauses.mark_unchanged();
            if let Some(why) = self.paused_longer_than(length) {
                return why;
            }
            // Its sender lives as long as this.
            let _ = pauses.changed().await;
        }
    }

    /// Why calls pause, if they do for longer than `length` from now on.
    pub fn paused_longer_than(&self, length: Duration) -> Option<Code> {
        let window = self.0.lock();
        window.paused_until.filter(|until| *until > Instant::now() + length).map(|_| window.paused_by)
    }

    /// Leave for a call that may leave at this moment.
    pub fn try_acquire(&self, class: Class) -> Option<Permit> {
        let ticket = Ticket::take(&self.0, class);
        let verdict = self.0.lock().decide(ticket.number, class, Instant::now());
        match verdict {
            Verdict::Granted(slot) => Some(Permit::new(&self.0, slot, class)),
            Verdict::NotBefore(_) | Verdict::WhenWoken => None,
        }
    }

    /// No call leaves for `length`, at most [`LONGEST_PAUSE`], because of `why`. A pause that stands is never cut
    /// short: of two the one that ends later says why.
    pub fn pause(&self, length: Duration, why: Code) {
        let length = length.min(LONGEST_PAUSE);
        let mut window = self.0.lock();
        if window.pause(Instant::now() + length) {
            window.paused_by = why;
            if let Some(ledger) = &self.0.ledger {
                ledger.paused(Moment::now(&self.0.clock).after(length));
            }
            self.0.pauses.send_replace(());
        }
    }

    /// Halves the budget for `length`, for a server that has been hit too hard.
    pub fn slow_down(&self, length: Duration) {
        let mut window = self.0.lock();
        let until = Some(Instant::now() + length);
        if window.slow_until < until {
            window.slow_until = until;
            if let Some(ledger) = &self.0.ledger {
                ledger.slowed(Moment::now(&self.0.clock).after(length));
            }
        }
    }

    /// Until when no call leaves; `None` when calls may leave.
    pub fn paused_until(&self) -> Option<Timestamp> {
        let left = self.0.lock().paused_until?.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| self.0.clock.now() + left)
    }

    /// Why no call leaves now: [`Code::ApiBlocked`] or [`Code::RateLimited`]; `None` when calls leave.
    pub fn paused_by(&self) -> Option<Code> {
        self.paused_longer_than(Duration::ZERO)
    }

    /// Calls that were let go since this was opened.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// How it is used now.
    pub fn usage(&self) -> Usage {
        let mut window = self.0.lock();
        window.free_what_is_over(Instant::now());
        let waiting = |class| window.line(class).len();
        Usage {
            requests: window.limit,
            per_seconds: window.per.as_secs_f64(),
            in_use: window.in_use(),
            reserve: window.reserve,
            waiting_urgent: waiting(Class::Urgent),
            waiting_ordinary: waiting(Class::Ordinary),
            waiting_look_ups: waiting(Class::LookUp) + waiting(Class::Unknown),
        }
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
    class: Class,
    is_used: bool,
}

impl Permit {
    fn new(budget: &Arc<Shared>, slot: usize, class: Class) -> Self {
        if let Some(ledger) = &budget.ledger {
            ledger.opened(slot);
        }
        Self { budget: Arc::clone(budget), slot, class, is_used: true }
    }

    /// There was no call after all: its place is free again at once.
    pub fn unused(mut self) {
        self.is_used = false;
    }

    /// The call has surely arrived: its answer began, or it failed.
    pub fn answered(self) {
        drop(self);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut window = self.budget.lock();
        if self.is_used {
            self.budget.calls.fetch_add(1, Ordering::Relaxed);
            let is_urgent = if self.class == Class::Urgent { "true" } else { "false" };
            metrics::counter!("vinculo_belvo_grants_total", "urgent" => is_urgent).increment(1);
            window.answered(self.slot, Instant::now());
        } else {
            window.given_back(self.slot, self.class);
        }
        if let Some(ledger) = &self.budget.ledger {
            if self.is_used {
                ledger.answered(self.slot, Moment::now(&self.budget.clock));
            } else {
                ledger.given_back(self.slot);
            }
        }
    }
}

/// A place in the line, left when it is dropped.
struct Ticket<'a> {
    shared: &'a Shared,
    number: u64,
    class: Class,
    turn: Arc<Notify>,
}

impl<'a> Ticket<'a> {
    fn take(shared: &'a Shared, class: Class) -> Self {
        let turn = Arc::new(Notify::new());
        let number = shared.lock().queue(class, Arc::clone(&turn));
        Self { shared, number, class, turn }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.shared.lock().leave(self.number, self.class);
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
    /// Why, of the last pause.
    paused_by: Code,
    slow_until: Option<Instant>,
    /// Those who wait, by class.
    lines: [VecDeque<(u64, Arc<Notify>)>; 4],
    tickets: u64,
    /// Urgent calls since the last ordinary one, while an ordinary one waited.
    urgent_in_a_row: u32,
    /// Urgent calls since the last look-up or list of an unknown link, while one of these waited.
    urgent_past_look_ups: u32,
    /// When the spread has its next ordinary call.
    next_ordinary: Option<Instant>,
    /// Whether an ordinary call has found the window full: then no unused time counts as saved up.
    was_full: bool,
    /// Until when ordinary calls are not spread, because a pause took time from them.
    hurry_until: Option<Instant>,
    /// When each look-up, and each list of an unknown link, leaves the window; the soonest first.
    look_ups: VecDeque<Instant>,
    /// The same of lists of unknown links alone.
    unknown: VecDeque<Instant>,
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
            // At least one place stays for calls that may not use the reserve.
            reserve: reserve.min(limit - 1),
            per,
            fresh: 0,
            free: Vec::new(),
            open: 0,
            cooling: VecDeque::new(),
            paused_until: None,
            // A pause that outlived a restart says no more than that.
            paused_by: Code::RateLimited,
            slow_until: None,
            lines: [const { VecDeque::new() }; 4],
            tickets: 0,
            urgent_in_a_row: 0,
            urgent_past_look_ups: 0,
            next_ordinary: None,
            was_full: false,
            hurry_until: None,
            look_ups: VecDeque::new(),
            unknown: VecDeque::new(),
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

    fn line(&self, class: Class) -> &VecDeque<(u64, Arc<Notify>)> {
        &self.lines[class as usize]
    }

    fn queue(&mut self, class: Class, turn: Arc<Notify>) -> u64 {
        self.tickets += 1;
        self.lines[class as usize].push_back((self.tickets, turn));
        self.tickets
    }

    fn leave(&mut self, number: u64, class: Class) {
        self.lines[class as usize].retain(|(waiting, _)| *waiting != number);
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

    fn decide(&mut self, number: u64, class: Class, now: Instant) -> Verdict {
        let is_first = self.line(class).front().is_some_and(|(waiting, _)| *waiting == number);
        let slow_until = self.slow_until.filter(|until| *until > now);
        let limit = if slow_until.is_some() { self.limit.div_ceil(2) } else { self.limit };
        let next_look_up = [Class::LookUp, Class::Unknown].into_iter().find(|class| !self.line(*class).is_empty());
        let turn = self.turn(next_look_up, limit, now);
        let goes_behind = match turn {
            Some(turn) => turn != class,
            None => matches!(class, Class::LookUp | Class::Unknown) && next_look_up != Some(class),
        };
        if !is_first || goes_behind {
            // Whose turn it is changes with time and with each arrival; the call that has it now may still wait to be
            // woken.
            if let Some((_, first)) = turn.or(next_look_up).and_then(|class| self.line(class).front()) {
                first.notify_one();
            }
            return Verdict::WhenWoken;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Verdict::NotBefore(until);
        }
        self.free_what_is_over(now);
        let is_in_reserve = turn == Some(class) && class != Class::Ordinary;
        let share = if is_in_reserve { limit } else { limit.saturating_sub(self.reserve).max(1) };
        let in_use = self.in_use();
        metrics::gauge!("vinculo_belvo_budget_in_use").set(u32::try_from(in_use).unwrap_or(u32::MAX));
        if in_use >= share {
            self.was_full |= class == Class::Ordinary;
            let enough_free = self.cooling.get(in_use - share).map(|(until, _)| *until);
            return match (enough_free, slow_until) {
                (Some(free), Some(slow)) => Verdict::NotBefore(free.min(slow)),
                (Some(instant), None) | (None, Some(instant)) => Verdict::NotBefore(instant),
                (None, None) => Verdict::WhenWoken,
            };
        }
        let not_yet = match class {
            Class::Urgent => None,
            Class::Ordinary => self.spread(share, turn == Some(class), now),
            Class::LookUp | Class::Unknown => self.look_up_from(limit, class, now),
        };
        if let Some(instant) = not_yet {
            return Verdict::NotBefore(instant);
        }
        self.urgent_in_a_row = match class {
            Class::Urgent if !self.line(Class::Ordinary).is_empty() => self.urgent_in_a_row + 1,
            Class::Urgent | Class::Ordinary => 0,
            Class::LookUp | Class::Unknown => self.urgent_in_a_row,
        };
        self.urgent_past_look_ups = match class {
            Class::Urgent if next_look_up.is_some() => self.urgent_past_look_ups + 1,
            Class::Ordinary => self.urgent_past_look_ups,
            Class::Urgent | Class::LookUp | Class::Unknown => 0,
        };
        if matches!(class, Class::LookUp | Class::Unknown) {
            self.note_look_up(class, now);
        }
        self.open += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        });
        Verdict::Granted(slot)
    }

    /// The class whose turn it is; `None` when none goes before the others. `next_look_up` is the first of the two
    /// classes of look-ups in which a call waits.
    fn turn(&mut self, next_look_up: Option<Class>, limit: usize, now: Instant) -> Option<Class> {
        let may_look_up = |class: &Class| self.look_up_from(limit, *class, now).is_none();
        let look_up = next_look_up.filter(may_look_up).filter(|_| self.urgent_past_look_ups >= URGENT_IN_A_ROW);
        let ordinary = (self.urgent_in_a_row >= URGENT_IN_A_ROW).then_some(Class::Ordinary);
        let is_waiting = |class: &Class| !self.line(*class).is_empty();
        look_up.or(ordinary.filter(is_waiting)).or(Some(Class::Urgent).filter(is_waiting))
    }

    /// Takes the next place of the spread; the instant before which there is none, unless it is the call's `turn`.
    fn spread(&mut self, share: usize, is_turn: bool, now: Instant) -> Option<Instant> {
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let apart = self.per.mul_f64(SPREAD) / share;
        // Time before the first call, and time without work, is saved up to the part that may leave at once.
        let saved = apart * (share / AT_ONCE);
        let earliest = if self.was_full { now } else { now.checked_sub(saved).unwrap_or(now) };
        let place = self.next_ordinary.map_or(earliest, |next| next.max(earliest));
        let is_in_a_hurry = self.hurry_until.is_some_and(|until| now < until);
        if place > now && !is_turn && !is_in_a_hurry {
            return Some(place);
        }
        self.was_full = false;
        self.next_ordinary = Some(if is_in_a_hurry { now } else { place } + apart);
        None
    }

    /// The instant before which no look-up, or no list of an unknown link, may leave; `None` when one may. Once half of
    /// their part is used, look-ups are spread: links then gather for a moment and share the next call, where otherwise
    /// each would take a call for itself and the next link would wait for a whole window.
    fn look_up_from(&mut self, limit: usize, class: Class, now: Instant) -> Option<Instant> {
        for over in [&mut self.look_ups, &mut self.unknown] {
            while over.pop_front_if(|over| *over <= now).is_some() {}
        }
        let most = (limit / LOOK_UPS).max(1);
        if self.look_ups.len() >= most {
            return self.look_ups.get(self.look_ups.len() - most).copied();
        }
        if class == Class::Unknown {
            let most = (most / OF_LOOK_UPS).max(1);
            if self.unknown.len() >= most {
                return self.unknown.get(self.unknown.len() - most).copied();
            }
        } else if self.look_ups.len() >= most.div_ceil(2)
            && let Some(latest) = self.look_ups.back().and_then(|over| over.checked_sub(self.per))
        {
            let next = latest + self.per / u32::try_from(most).unwrap_or(u32::MAX);
            if next > now {
                return Some(next);
            }
        }
        None
    }

    fn note_look_up(&mut self, class: Class, now: Instant) {
        self.look_ups.push_back(now + self.per);
        if class == Class::Unknown {
            self.unknown.push_back(now + self.per);
        }
    }

    /// A slot that was granted and never used.
    fn given_back(&mut self, slot: usize, class: Class) {
        self.open -= 1;
        self.free.push(slot);
        if matches!(class, Class::LookUp | Class::Unknown) {
            self.look_ups.pop_back();
        }
        if class == Class::Unknown {
            self.unknown.pop_back();
        }
        self.wake();
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
            self.hurry_until = Some(until + self.per * HURRY);
            self.paused_until = Some(until);
        }
        is_longer
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn window(requests: u32, reserve: f64) -> Window {
        Window::new(requests, reserve, 100 * MS)
    }

    fn ask(window: &mut Window, class: Class, now: Instant) -> Verdict {
        let number = window.queue(class, Arc::default());
        let verdict = window.decide(number, class, now);
        window.leave(number, class);
        verdict
    }

    fn is_granted(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Granted(_))
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
                let class = if is_urgent { Class::Urgent } else { Class::Ordinary };
                let number = window.queue(class, Arc::default());
                loop {
                    under_way.sort_unstable();
                    while under_way.first().is_some_and(|(answer, _)| *answer <= now) {
                        let (answer, slot) = under_way.remove(0);
                        window.answered(slot, answer);
                    }
                    let next_answer = under_way.first().map(|(answer, _)| *answer);
                    match window.decide(number, class, now) {
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
                window.leave(number, class);
            }
            arrivals.sort_unstable();
            let requests = usize::try_from(requests).unwrap();
            for crowd in arrivals.windows(requests + 1) {
                prop_assert!(crowd[requests] - crowd[0] >= 100 * MS);
            }
        }
    }

    /// One who waits for a place, as [`Budget::acquire`] does.
    struct Waiter {
        number: u64,
        class: Class,
        turn: Arc<Notify>,
        timer: Option<Instant>,
    }

    impl Waiter {
        fn new(window: &mut Window, class: Class) -> Self {
            let turn = Arc::new(Notify::new());
            // Whoever has just come looks at once.
            turn.notify_one();
            Self { number: window.queue(class, Arc::clone(&turn)), class, turn, timer: None }
        }

        fn is_told(&self) -> bool {
            pin!(self.turn.notified()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Urgent calls that take all of it, and now and then one of the others: as long as anybody waits, somebody has
        /// a timer or a call is under way whose answer wakes others.
        #[test]
        fn nobody_waits_for_what_never_comes(
            requests in 10_u32..80,
            urgent in 2_usize..7,
            ordinary in 0_usize..4,
            random in prop::collection::vec(0_u32..1_000, 997),
        ) {
            let mut window = Window::new(requests, 0.04, 3_000 * MS);
            let mut random = random.into_iter().cycle();
            let mut up_to = |most: u32| MS * (random.next().unwrap() * most / 1_000 + 1);
            let mut now = Instant::now();
            let mut coming: Vec<(Instant, Class)> = Vec::new();
            for (class, count) in
                [(Class::Urgent, urgent), (Class::Ordinary, ordinary), (Class::LookUp, 1), (Class::Unknown, 1)]
            {
                coming.extend((0..count).map(|_| (now, class)));
            }
            let (mut waiting, mut open): (Vec<Waiter>, Vec<(Instant, usize, Class)>) = (Vec::new(), Vec::new());
            for _ in 0..20_000 {
                for come in coming.extract_if(.., |(at, _)| *at <= now) {
                    waiting.push(Waiter::new(&mut window, come.1));
                }
                for (_, slot, class) in open.extract_if(.., |(answer, ..)| *answer <= now) {
                    window.answered(slot, now);
                    let pause = if matches!(class, Class::LookUp | Class::Unknown) { 600 } else { 40 };
                    coming.push((now + up_to(pause), class));
                }
                while let Some(at) =
                    waiting.iter().position(|one| one.timer.is_some_and(|timer| timer <= now) || one.is_told())
                {
                    let Waiter { number, class, .. } = waiting[at];
                    match window.decide(number, class, now) {
                        Verdict::Granted(slot) => {
                            waiting.remove(at);
                            window.leave(number, class);
                            open.push((now + up_to(35), slot, class));
                        }
                        Verdict::NotBefore(instant) => waiting[at].timer = Some(instant.max(now + MS)),
                        Verdict::WhenWoken => waiting[at].timer = None,
                    }
                }
                let timers = waiting.iter().filter_map(|one| one.timer);
                let next = timers.chain(open.iter().map(|(answer, ..)| *answer)).min();
                prop_assert!(waiting.is_empty() || next.is_some(), "{} wait, and nothing will wake them", waiting.len());
                now = next.into_iter().chain(coming.iter().map(|(at, _)| *at)).min().unwrap();
            }
        }
    }

    #[test]
    fn the_whole_budget_is_used_and_comes_back_window_by_window() {
        let mut window = window(5, 0.0);
        let mut now = Instant::now();
        for _ in 0..4 {
            for _ in 0..5 {
                let Verdict::Granted(slot) = ask(&mut window, Class::Urgent, now) else { panic!("a place is free") };
                window.answered(slot, now);
            }
            assert_eq!(ask(&mut window, Class::Ordinary, now), Verdict::NotBefore(now + 100 * MS));
            now += 100 * MS;
        }
        assert!(window.fresh <= 5, "slots are used again");
    }

    #[test]
    fn the_last_part_is_kept_for_the_urgent() {
        let (mut window, mut tiny) = (window(10, 0.11), window(1, 1.0));
        let start = Instant::now();
        let ordinary = (0..20).filter(|at| is_granted(&ask(&mut window, Class::Ordinary, start + 4 * MS * *at)));
        assert_eq!(ordinary.count(), 8);
        assert_eq!((0..10).filter(|_| is_granted(&ask(&mut window, Class::Urgent, start + 80 * MS))).count(), 2);
        assert!(is_granted(&ask(&mut tiny, Class::Ordinary, start)), "a reserve never takes all");
    }

    #[test]
    fn others_wait_behind_the_urgent_and_each_line_keeps_its_order() {
        let mut window = window(2, 0.0);
        let now = Instant::now();
        let [others, urgent] =
            [Class::Ordinary, Class::Urgent].map(|class| [(); 2].map(|()| window.queue(class, Arc::default())));
        assert_eq!(window.decide(others[0], Class::Ordinary, now), Verdict::WhenWoken);
        assert_eq!(window.decide(urgent[1], Class::Urgent, now), Verdict::WhenWoken);
        assert_eq!(window.decide(urgent[0], Class::Urgent, now), Verdict::Granted(0));
        window.leave(urgent[0], Class::Urgent);
        window.leave(urgent[1], Class::Urgent);
        assert_eq!(window.decide(others[1], Class::Ordinary, now), Verdict::WhenWoken);
        assert_eq!(window.decide(others[0], Class::Ordinary, now), Verdict::Granted(1));
    }

    #[test]
    fn after_nine_urgent_calls_one_that_waits_is_served() {
        let mut window = window(1000, 0.0);
        let now = Instant::now();
        let served: String = (0..40)
            .map(|_| {
                let [urgent, ordinary] =
                    [Class::Urgent, Class::Ordinary].map(|class| (window.queue(class, Arc::default()), class));
                let mut both = [urgent, ordinary].into_iter();
                let (_, class) = both
                    .find(|(number, class)| is_granted(&window.decide(*number, *class, now)))
                    .expect("one is served");
                window.leave(urgent.0, urgent.1);
                window.leave(ordinary.0, ordinary.1);
                if class == Class::Urgent { 'u' } else { 'o' }
            })
            .collect();
        assert_eq!(served, "uuuuuuuuuo".repeat(4));
    }

    #[test]
    fn look_ups_have_a_turn_while_urgent_calls_take_all_there_is() {
        let mut window = window(20, 0.25);
        let start = Instant::now();
        let look_up = window.queue(Class::LookUp, Arc::default());
        let mut urgent = window.queue(Class::Urgent, Arc::default());
        let mut before = 0;
        for at in 0..300 {
            let now = start + MS * at;
            if is_granted(&window.decide(look_up, Class::LookUp, now)) {
                break;
            }
            if let Verdict::Granted(slot) = window.decide(urgent, Class::Urgent, now) {
                window.answered(slot, now);
                window.leave(urgent, Class::Urgent);
                // The next one is urgent at once.
                urgent = window.queue(Class::Urgent, Arc::default());
                before += 1;
            }
        }
        assert_eq!(before, URGENT_IN_A_ROW);
    }

    #[tokio::test]
    async fn a_turn_that_comes_with_time_is_taken() {
        let settings = config::Budget { requests: 20, per: Duration::from_millis(100) };
        let budget = Budget::open(settings, 0.2, None, Clock::system()).unwrap();
        let calls = |class, count| {
            let budget = budget.clone();
            tokio::spawn(async move {
                for _ in 0..count {
                    budget.acquire(class).await.answered();
                }
            })
        };
        let all =
            [(Class::Urgent, 80), (Class::Urgent, 80), (Class::LookUp, 8), (Class::Unknown, 4), (Class::Ordinary, 20)];
        for ended in all.map(|(class, count)| calls(class, count)) {
            tokio::time::timeout(Duration::from_secs(20), ended).await.expect("nobody waits for ever").unwrap();
        }
    }

    #[test]
    fn ordinary_calls_are_spread_so_that_places_come_free_all_the_time() {
        let mut window = Window::new(30, 0.0, 3000 * MS);
        let start = Instant::now();
        let mut granted: Vec<u128> = Vec::new();
        for at in 0..12_000 {
            if let Verdict::Granted(slot) = ask(&mut window, Class::Ordinary, start + MS * at) {
                window.answered(slot, start + MS * at);
                granted.push(u128::from(at));
            }
        }
        assert_eq!(granted.iter().filter(|at| **at < 50).count(), 11, "a third at once");
        // All of the budget in each window,
        assert!(granted.len() >= 119, "{} calls", granted.len());
        // and after the first no long gap.
        let later: Vec<u128> = granted.into_iter().filter(|at| *at > 4000).collect();
        let longest = later.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest <= 250, "{longest} ms without a call");
    }

    #[test]
    fn time_in_which_nobody_could_call_is_made_good() {
        // Each pause takes a thirtieth of the window, or a third.
        for (until, every, length, at_least, of) in
            [(12_000_u32, 1_000, 100, 117, 120), (30_000, 5_000, 1_000, 294, 300)]
        {
            let mut window = Window::new(30, 0.0, 3000 * MS);
            let start = Instant::now();
            let mut calls = 0;
            for at in 0..until {
                if at % every == every / 2 {
                    window.pause(start + MS * (at + length));
                }
                if let Verdict::Granted(slot) = ask(&mut window, Class::Ordinary, start + MS * at) {
                    window.answered(slot, start + MS * at);
                    calls += 1;
                }
            }
            assert!(calls >= at_least, "{calls} calls of {of}");
        }
    }

    #[test]
    fn looking_up_links_takes_a_tenth_of_the_budget_at_most() {
        let mut window = window(40, 0.0);
        let now = Instant::now();
        assert_eq!((0..10).filter(|_| is_granted(&ask(&mut window, Class::LookUp, now))).count(), 2);
        assert_eq!(ask(&mut window, Class::LookUp, now), Verdict::NotBefore(now + 25 * MS), "the rest is spread");
        assert!(is_granted(&ask(&mut window, Class::LookUp, now + 25 * MS)));
        assert!(is_granted(&ask(&mut window, Class::LookUp, now + 50 * MS)));
        assert_eq!(ask(&mut window, Class::LookUp, now + 75 * MS), Verdict::NotBefore(now + 100 * MS));
        assert!(is_granted(&ask(&mut window, Class::Ordinary, now)), "others go on");
        assert!(is_granted(&ask(&mut window, Class::LookUp, now + 100 * MS)));
    }

    #[test]
    fn lists_of_unknown_links_take_half_of_what_look_ups_may_and_go_behind_them() {
        let mut window = window(40, 0.0);
        let now = Instant::now();
        assert_eq!((0..10).filter(|_| is_granted(&ask(&mut window, Class::Unknown, now))).count(), 2);
        assert_eq!(ask(&mut window, Class::Unknown, now + 99 * MS), Verdict::NotBefore(now + 100 * MS));
        let later = now + 200 * MS;
        let waiting = window.queue(Class::LookUp, Arc::default());
        assert_eq!(ask(&mut window, Class::Unknown, later), Verdict::WhenWoken);
        let Verdict::Granted(slot) = window.decide(waiting, Class::LookUp, later) else { panic!("it is free") };
        window.leave(waiting, Class::LookUp);
        assert!(is_granted(&ask(&mut window, Class::Unknown, later)));
        // What was not used counts for nobody.
        window.given_back(slot, Class::LookUp);
        assert!(is_granted(&ask(&mut window, Class::LookUp, later)));
    }

    #[test]
    fn nobody_leaves_within_a_pause_and_half_leave_after_a_breach() {
        let mut window = window(10, 0.0);
        let now = Instant::now();
        assert!(window.pause(now + 50 * MS));
        assert!(!window.pause(now + 20 * MS));
        assert_eq!(ask(&mut window, Class::Urgent, now), Verdict::NotBefore(now + 50 * MS));
        window.slow_until = Some(now + 70 * MS);
        let later = now + 50 * MS;
        assert_eq!((0..10).filter(|_| is_granted(&ask(&mut window, Class::Urgent, later))).count(), 5);
        assert_eq!(ask(&mut window, Class::Urgent, later), Verdict::NotBefore(now + 70 * MS));
    }

    #[test]
    fn a_place_that_was_not_used_is_free_at_once() {
        let settings = config::Budget { requests: 1, per: Duration::from_hours(1) };
        let budget = Budget::open(settings, 0.0, None, Clock::system()).unwrap();
        let permit = budget.try_acquire(Class::Urgent).unwrap();
        assert!(budget.try_acquire(Class::Urgent).is_none());
        permit.unused();
        assert_eq!(budget.usage().in_use, 0);
        budget.try_acquire(Class::Urgent).unwrap().answered();
        assert_eq!(budget.usage().in_use, 1);
        assert!(budget.try_acquire(Class::Urgent).is_none());
    }

    #[tokio::test]
    async fn a_budget_is_shared_in_order_and_outlives_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let settings = config::Budget { requests: 3, per: Duration::from_millis(400) };
        let open = || Budget::open(settings, 0.0, Some(&path), Clock::system()).unwrap();
        let budget = open();
        let started = Instant::now();
        budget.acquire(Class::Ordinary).await.answered();
        drop(budget.acquire(Class::Urgent).await);
        // A process that is killed says nothing of its last call.
        std::mem::forget(budget.acquire(Class::Ordinary).await);
        assert!(started.elapsed() < Duration::from_millis(300));
        assert!(
            tokio::time::timeout(Duration::from_millis(50), budget.acquire(Class::Urgent)).await.is_err(),
            "all is taken"
        );

        let restarted = Instant::now();
        let budget = open();
        assert_eq!(budget.usage().in_use, 3);
        let calls = (0..3).map(|_| {
            let budget = budget.clone();
            tokio::spawn(async move { budget.acquire(Class::Ordinary).await.answered() })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        assert!(restarted.elapsed() >= Duration::from_millis(400), "the killed process's call may have arrived last");
        budget.pause(Duration::from_secs(5), Code::RateLimited);
        budget.slow_down(Duration::from_secs(50));
        let restarted = open();
        assert!(restarted.paused_until().is_some(), "nor is a pause forgotten");
        assert!(restarted.0.lock().slow_until.is_some(), "nor that half of the budget is to be used");
    }

    #[test]
    fn a_start_without_a_pause_before_it_spreads_ordinary_calls_from_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let settings = config::Budget { requests: 30, per: Duration::from_secs(3) };
        let budget = Budget::open(settings, 0.0, Some(&folder.path().join("budget")), Clock::system()).unwrap();
        let granted: Vec<Permit> = (0..30).map_while(|_| budget.try_acquire(Class::Ordinary)).collect();
        assert!((11..=15).contains(&granted.len()), "{} at once, and not a third", granted.len());
        assert!(budget.try_acquire(Class::Urgent).is_some());
    }

    #[tokio::test]
    async fn one_who_gives_up_does_not_hold_the_line() {
        let settings = config::Budget { requests: 1, per: Duration::from_millis(100) };
        let budget = Budget::open(settings, 0.0, None, Clock::system()).unwrap();
        let permit = budget.acquire(Class::Ordinary).await;
        let first = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(Class::Urgent).await.answered() }
        });
        let second = tokio::spawn({
            let budget = budget.clone();
            async move { budget.acquire(Class::Ordinary).await.answered() }
        });
        tokio::task::yield_now().await;
        first.abort();
        permit.answered();
        tokio::time::timeout(Duration::from_secs(2), second).await.expect("the line moved on").unwrap();
    }
}
