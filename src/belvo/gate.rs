//! Whether calling Belvo makes sense at all now.
//!
//! *Takes* how calls ended. *Gives* leave to call. *Promises* that refused keys cost three calls and then one now and
//! then, that a Belvo which fails for everyone is asked by one call at a time, further and further apart, until it
//! answers, that a few requests which fail while others are answered are no such Belvo, and that a call for which
//! somebody waits goes first, and no longer waits once another was in vain.
//! *Not here*: how many calls may leave ([`super::budget`]), and when one refresh is tried again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use super::failure::Code;
use crate::backoff::doubled;

/// Answers 401 in a row after which all calls pause.
const REFUSALS: u32 = 3;
/// One call tries refused keys again after so long: once they are mended, all goes on within a minute.
const KEYS_AGAIN: Duration = Duration::from_secs(45);
/// Different requests that failed in a row, after which Belvo counts as down.
const FAILING: usize = 5;
/// A request that failed on so many occasions, with others answered in between, says nothing of Belvo.
const OCCASIONS: u8 = 3;
/// So many requests are remembered that failed while others were answered.
const MOST_BAD: usize = 1_000;
/// First pause between two calls to a Belvo that is down. It doubles each time.
const PROBE_FIRST: Duration = Duration::from_secs(3);
/// The longest such pause.
const PROBE_LAST: Duration = Duration::from_secs(30);

/// How a call ended, as far as the gate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Belvo is there and knows the keys.
    Answered,
    /// Belvo refused the keys.
    Refused,
    /// No answer, or one that says that Belvo failed; with the code of that.
    Failed(Code),
}

/// How long a call waits for a Belvo that is down, or asked for patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as it takes: nobody waits for it.
    Long,
    /// Until the next call has shown it, whosever that is, or for a pause of some seconds: somebody waits, and can ask
    /// again.
    Short,
}

/// A Belvo that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Down {
    /// The code of the last failure.
    pub code: Code,
    /// How often Belvo was found to be down, so that it can be told whether that was once more.
    pub found: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Calls go.
    Open,
    /// Nobody knows yet whether the keys are good: one call at a time.
    Unproven,
    /// The keys are refused.
    Refused { until: Instant },
    /// Belvo is down: one call at a time, others not before `until`; the last was in vain at `failed_at`.
    Down { until: Instant, apart: Duration, failed_at: Instant },
}

pub(super) struct Gate {
    state: watch::Sender<State>,
    single: Semaphore,
    /// Impatient calls that wait to be the only one.
    impatient: AtomicUsize,
}

struct State {
    mode: Mode,
    refusals: u32,
    /// Requests that failed since the last answer, as far as that says something of Belvo.
    failing: HashSet<u64>,
    /// On how many occasions requests failed while others were answered, since they were answered themselves.
    bad: HashMap<u64, u8>,
    found: Down,
    /// How often the keys were found to be refused, so that all calls pause.
    keys_refused: u64,
}

impl State {
    fn new(mode: Mode) -> Self {
        let found = Down { code: Code::ApiDown, found: 0 };
        Self { mode, refusals: 0, failing: HashSet::new(), bad: HashMap::new(), found, keys_refused: 0 }
    }

    fn down(&self) -> Option<Down> {
        matches!(self.mode, Mode::Down { .. }).then_some(self.found)
    }
}

/// Why a call does not leave.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// All calls pause, because the keys are refused.
    Refused,
    /// Belvo is down, and the call is impatient.
    Down(Down),
}

/// Leave for one call.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    _single: Option<SemaphorePermit<'a>>,
}

impl Gate {
    pub(super) fn new() -> Self {
        let state = State::new(Mode::Unproven);
        Self { state: watch::Sender::new(state), single: Semaphore::new(1), impatient: AtomicUsize::new(0) }
    }

    /// Waits until a call makes sense. An urgent or impatient one does not wait for a Belvo that is down longer than
    /// [`PROBE_FIRST`].
    ///
    /// # Errors
    /// [`Shut::Refused`], at once; [`Shut::Down`] for an impatient one when another was in vain meanwhile.
    pub(super) async fn enter(&self, is_urgent: bool, patience: Patience) -> Result<Pass<'_>, Shut> {
        let mut changes = self.state.subscribe();
        let (is_impatient, came) = (patience == Patience::Short, changes.borrow().found.found);
        loop {
            let (mode, down) = {
                let state = changes.borrow_and_update();
                (state.mode, state.down())
            };
            if let Some(down) = down.filter(|down| is_impatient && down.found > came) {
                return Err(Shut::Down(down));
            }
            let not_before = match mode {
                Mode::Open => return Ok(Pass { gate: self, _single: None }),
                Mode::Refused { until } if until > Instant::now() => return Err(Shut::Refused),
                Mode::Refused { .. } | Mode::Unproven => None,
                Mode::Down { until, failed_at, .. } => {
                    Some(if is_urgent || is_impatient { failed_at + PROBE_FIRST } else { until })
                }
            };
            if let Some(instant) = not_before.filter(|instant| *instant > Instant::now()) {
                // Either way the next round looks again.
                let _ = tokio::time::timeout_at(instant, changes.changed()).await;
                continue;
            }
            let turn = is_impatient.then(|| Turn::wanted(&self.impatient));
            let single = tokio::select! {
                single = self.single.acquire() => single.ok(),
                _ = changes.changed() => continue,
            };
            drop(turn);
            if !is_impatient && self.impatient.load(Ordering::Relaxed) > 0 {
                // It is the turn of those; this one queues up again behind them.
                continue;
            }
            if changes.borrow_and_update().mode == mode {
                return Ok(Pass { gate: self, _single: single });
            }
        }
    }

    /// Waits until the keys may be tried; at once when they are not refused.
    pub(super) async fn until_keys_may_be_tried(&self) {
        let mut changes = self.state.subscribe();
        loop {
            let Mode::Refused { until } = changes.borrow_and_update().mode else { return };
            if until <= Instant::now() {
                return;
            }
            let _ = tokio::time::timeout_at(until, changes.changed()).await;
        }
    }

    /// Lets one call try refused keys now: somebody says that they are mended.
    pub(super) fn try_keys_now(&self) {
        self.state.send_if_modified(|state| {
            let are_refused = matches!(state.mode, Mode::Refused { .. });
            if are_refused {
                state.mode = Mode::Refused { until: Instant::now() };
            }
            are_refused
        });
    }

    /// How often the keys were found to be refused so far, so that it can be told whether they were once more.
    pub(super) fn keys_refused(&self) -> u64 {
        self.state.borrow().keys_refused
    }

    /// Waits until keys that were refused are good again.
    pub(super) async fn until_keys_are_mended(&self) {
        let mut changes = self.state.subscribe();
        let mut were_refused = false;
        loop {
            match changes.borrow_and_update().mode {
                Mode::Refused { .. } => were_refused = true,
                Mode::Open if were_refused => return,
                _ => {}
            }
            // Its sender lives as long as this.
            let _ = changes.changed().await;
        }
    }

    /// Waits until Belvo is found to be down, once more if it is already.
    pub(super) async fn until_down(&self) -> Down {
        let mut changes = self.state.subscribe();
        let came = changes.borrow().found.found;
        loop {
            if let Some(down) = changes.borrow_and_update().down().filter(|down| down.found > came) {
                return down;
            }
            // Its sender lives as long as this.
            let _ = changes.changed().await;
        }
    }

    /// What is known of a Belvo that is down; `None` when it is not.
    pub(super) fn down(&self) -> Option<Down> {
        self.state.borrow().down()
    }

    /// [`Code::ApiAuth`] or [`Code::ApiDown`] while calls pause for that.
    pub(super) fn trouble(&self) -> Option<Code> {
        match self.state.borrow().mode {
            Mode::Open | Mode::Unproven => None,
            Mode::Refused { .. } => Some(Code::ApiAuth),
            Mode::Down { .. } => Some(Code::ApiDown),
        }
    }
}

impl Pass<'_> {
    /// Tells how the call ended; `request` tells requests apart.
    pub(super) fn ended(self, request: u64, ending: Ending) {
        self.gate.state.send_if_modified(|state| state.note(request, ending, Instant::now()));
    }
}

/// An impatient call that waits to be the only one.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    fn wanted(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Belvo is down, and is asked again after `apart`.
fn down(now: Instant, apart: Duration) -> Mode {
    Mode::Down { until: now + apart, apart, failed_at: now }
}

impl State {
    /// True when the mode changed.
    fn note(&mut self, request: u64, ending: Ending, now: Instant) -> bool {
        let before = self.mode;
        match ending {
            Ending::Answered => {
                // Of what is never asked for again nobody hears any more: those that still fail are soon known again.
                if self.bad.len() + self.failing.len() > MOST_BAD {
                    self.bad.clear();
                }
                for failed in self.failing.drain() {
                    let occasions = self.bad.entry(failed).or_default();
                    *occasions = occasions.saturating_add(1);
                }
                self.bad.remove(&request);
                self.refusals = 0;
                self.mode = Mode::Open;
            }
            Ending::Refused => {
                self.refusals = self.refusals.saturating_add(1);
                self.failing.clear();
                self.mode = match self.mode {
                    Mode::Refused { until } if until > now => self.mode,
                    _ if self.refusals >= REFUSALS => Mode::Refused { until: now + KEYS_AGAIN },
                    _ => Mode::Unproven,
                };
            }
            Ending::Failed(code) => {
                self.found.code = code;
                let is_bad = self.bad.get(&request).is_some_and(|occasions| *occasions >= OCCASIONS);
                if self.failing.len() < FAILING && !is_bad {
                    self.failing.insert(request);
                }
                self.mode = match self.mode {
                    // A call that left before says nothing new.
                    Mode::Down { failed_at, .. } if now < failed_at + PROBE_FIRST => self.mode,
                    // One that somebody waits for went before the others, who wait no longer for it.
                    Mode::Down { until, apart, .. } if now < until => Mode::Down { until, apart, failed_at: now },
                    Mode::Down { apart, .. } => down(now, doubled(apart, 1, PROBE_LAST)),
                    Mode::Refused { .. } => Mode::Refused { until: now + KEYS_AGAIN },
                    Mode::Open | Mode::Unproven if self.failing.len() >= FAILING => down(now, PROBE_FIRST),
                    mode => mode,
                };
            }
        }
        if before != self.mode {
            self.found.found += u64::from(matches!(self.mode, Mode::Down { .. }));
            self.keys_refused += u64::from(matches!(self.mode, Mode::Refused { .. }));
        }
        metrics::gauge!("vinculo_belvo_paused", "code" => Code::ApiAuth.name())
            .set(u8::from(matches!(self.mode, Mode::Refused { .. })));
        metrics::gauge!("vinculo_belvo_paused", "code" => Code::ApiDown.name())
            .set(u8::from(matches!(self.mode, Mode::Down { .. })));
        match (before, self.mode) {
            (Mode::Refused { .. } | Mode::Down { .. }, Mode::Open) => {
                tracing::info!("Belvo answers again; calls go on");
            }
            (Mode::Open | Mode::Unproven | Mode::Down { .. }, Mode::Refused { .. }) => {
                tracing::error!(
                    code = Code::ApiAuth.name(),
                    "Belvo refuses the keys; all calls pause: check belvo.secret_id, belvo.secret_password and belvo.base_url"
                );
            }
            (Mode::Open | Mode::Unproven, Mode::Down { .. }) => tracing::warn!(
                code = Code::ApiDown.name(),
                "Belvo fails for every request; one call at a time asks whether it is back"
            ),
            _ => {}
        }
        before != self.mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: Ending = Ending::Failed(Code::Unreachable);

    #[tokio::test]
    async fn refused_keys_are_tried_once_when_somebody_says_that_they_are_mended_and_all_hear_when_they_are() {
        let gate = Gate::new();
        let refuse = |times| {
            let gate = &gate;
            async move {
                for _ in 0..times {
                    gate.enter(false, Patience::Long).await.unwrap().ended(1, Ending::Refused);
                }
            }
        };
        refuse(3).await;
        gate.try_keys_now();
        refuse(1).await;
        assert_eq!(gate.enter(true, Patience::Short).await.err(), Some(Shut::Refused));
        assert_eq!(gate.keys_refused(), 2);
        gate.try_keys_now();
        let mend = async {
            tokio::task::yield_now().await;
            gate.enter(false, Patience::Long).await.unwrap().ended(1, Ending::Answered);
        };
        let heard = tokio::time::timeout(Duration::from_secs(5), gate.until_keys_are_mended());
        tokio::join!(heard, mend).0.unwrap();
        assert_eq!((gate.trouble(), gate.keys_refused()), (None, 2));
    }

    fn state() -> State {
        State::new(Mode::Open)
    }

    #[tokio::test]
    async fn until_the_keys_are_proven_calls_go_one_by_one_and_after_three_refusals_none() {
        let gate = Gate::new();
        for _ in 0..3 {
            let pass = gate.enter(false, Patience::Long).await.unwrap();
            assert!(
                tokio::time::timeout(Duration::from_millis(20), gate.enter(true, Patience::Long)).await.is_err(),
                "one at a time"
            );
            pass.ended(1, Ending::Refused);
        }
        assert_eq!(gate.enter(true, Patience::Long).await.err(), Some(Shut::Refused));
        assert_eq!(gate.trouble(), Some(Code::ApiAuth));
    }

    #[tokio::test]
    async fn those_who_wait_go_on_together_once_the_keys_are_proven() {
        let gate = std::sync::Arc::new(Gate::new());
        let first = gate.enter(false, Patience::Long).await.unwrap();
        let others: Vec<_> = (0..8)
            .map(|_| {
                let gate = std::sync::Arc::clone(&gate);
                tokio::spawn(async move { gate.enter(false, Patience::Long).await.is_ok() })
            })
            .collect();
        tokio::task::yield_now().await;
        first.ended(1, Ending::Answered);
        for other in others {
            assert!(tokio::time::timeout(Duration::from_secs(2), other).await.unwrap().unwrap());
        }
    }

    #[test]
    fn refused_keys_are_tried_again_once_a_minute() {
        let (mut state, now) = (state(), Instant::now());
        for _ in 0..16 {
            state.note(1, Ending::Refused, now);
        }
        assert_eq!(state.mode, Mode::Refused { until: now + KEYS_AGAIN });
        let later = now + KEYS_AGAIN;
        state.note(1, Ending::Refused, later);
        assert_eq!(state.mode, Mode::Refused { until: later + KEYS_AGAIN });
        state.note(1, Ending::Answered, later);
        assert_eq!(state.mode, Mode::Open);
    }

    #[test]
    fn one_failing_link_is_not_a_failing_belvo_and_five_are() {
        let (mut state, mut now) = (state(), Instant::now());
        for _ in 0..20 {
            state.note(7, FAILED, now);
        }
        assert_eq!(state.mode, Mode::Open);
        for request in 0..4 {
            state.note(request, FAILED, now);
        }
        assert_eq!(state.mode, down(now, PROBE_FIRST));
        state.note(9, FAILED, now);
        assert_eq!(state.mode, down(now, PROBE_FIRST), "it left before");
        for seconds in [6, 12, 24, 30, 30] {
            let Mode::Down { until, .. } = state.mode else { panic!("still down") };
            now = until;
            state.note(9, FAILED, now);
            assert_eq!(state.mode, down(now, Duration::from_secs(seconds)));
        }
        state.note(9, Ending::Answered, now);
        assert_eq!(state.mode, Mode::Open);
    }

    #[test]
    fn what_fails_again_and_again_while_others_are_answered_says_nothing_of_belvo_until_it_is_answered_itself() {
        let (mut state, now) = (state(), Instant::now());
        let fail = |state: &mut State, requests: std::ops::Range<u64>| {
            for request in requests {
                state.note(request, FAILED, now);
            }
            matches!(state.mode, Mode::Down { .. })
        };
        for _ in 0..OCCASIONS {
            assert!(
                fail(&mut state, 0..5),
                "nobody knows better yet, as in an outage that Belvo gets through in parts"
            );
            state.note(99, Ending::Answered, now);
        }
        for _ in 0..9 {
            assert!(!fail(&mut state, 0..5), "others were answered, each time");
        }
        // Those others count, and so does one that has been answered since.
        assert!(!fail(&mut state, 10..14));
        assert!(fail(&mut state, 99..100));
        state.note(0, Ending::Answered, now);
        assert!(!fail(&mut state, 15..19));
        assert!(fail(&mut state, 0..1));
        // However many have failed once, they are not remembered for ever.
        for request in 1_000..9_000 {
            state.note(request, FAILED, now);
            state.note(99, Ending::Answered, now);
        }
        assert!(state.bad.len() <= MOST_BAD, "{}", state.bad.len());
    }

    #[test]
    fn an_urgent_call_in_vain_lets_nobody_wait_longer_who_waits_already() {
        let (mut state, start) = (state(), Instant::now());
        state.mode = down(start, PROBE_LAST);
        for tries in 1..10 {
            let now = start + PROBE_FIRST * tries;
            assert!(state.note(1, FAILED, now), "whoever is impatient hears of each");
            let Mode::Down { until, failed_at, .. } = state.mode else { panic!("still down") };
            assert_eq!((until, failed_at), (start + PROBE_LAST, now));
        }
        let now = start + PROBE_LAST;
        state.note(2, FAILED, now);
        assert_eq!(state.mode, down(now, PROBE_LAST));
    }

    #[tokio::test]
    async fn whoever_is_impatient_ends_with_the_call_that_was_in_vain_and_others_wait_on() {
        let gate = Gate::new();
        for request in 0..4 {
            gate.enter(false, Patience::Long).await.unwrap().ended(request, FAILED);
        }
        let last = gate.enter(false, Patience::Long).await.unwrap();
        let in_vain = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            last.ended(9, FAILED);
        };
        let patient = tokio::time::timeout(Duration::from_millis(100), gate.enter(false, Patience::Long));
        let ((), shut, found, patient) =
            tokio::join!(in_vain, gate.enter(false, Patience::Short), gate.until_down(), patient);
        let down = Down { code: Code::Unreachable, found: 1 };
        assert_eq!((shut.err(), found, gate.down()), (Some(Shut::Down(down)), down, Some(down)));
        assert!(patient.is_err(), "it waits for its own turn");
        // One that comes only now is told what comes of the next call, and not of the last.
        let late = tokio::time::timeout(Duration::from_millis(20), gate.enter(false, Patience::Short));
        assert!(late.await.is_err());
    }

    #[tokio::test]
    async fn whoever_is_impatient_is_the_next_probe_however_many_wait_for_it() {
        let gate = std::sync::Arc::new(Gate::new());
        let first = gate.enter(false, Patience::Long).await.unwrap();
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        let mut waiting = tokio::task::JoinSet::new();
        for (number, patience) in
            [Patience::Long, Patience::Long, Patience::Long, Patience::Short].into_iter().enumerate()
        {
            let (gate, told) = (std::sync::Arc::clone(&gate), told.clone());
            waiting.spawn(async move {
                let pass = gate.enter(false, patience).await.unwrap();
                told.send(number).unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
                pass.ended(1, FAILED);
            });
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.ended(1, FAILED);
        waiting.join_all().await;
        assert_eq!(order.recv().await, Some(3));
    }
}
