//! Looks now and then at what the parts cannot see themselves.
//!
//! *Takes* the running parts. *Gives* what stands in the way, the beat of the watchdog, and the gauges of the budget
//! and the queue. *Promises* to end with the daemon, and that no call to Belvo goes uncounted while the state takes
//! writes. *Not here*: what a part knows of itself, which it raises and clears on its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::clock_step::{LOOKED_AT, TwoClocks, move_due_back};
use crate::admin::Recorder;
use crate::belvo::Code;
use crate::chronicle;
use crate::lane::in_background;
use crate::link_id::LinkId;
use crate::links;
use crate::operations::{Erasure, Operations, Order};
use crate::problems::Problems;
use crate::publish;
use crate::queue;
use crate::runs::Reason;
use crate::store::{self, Tx};
use crate::subject::Subject;
use crate::vitals::Vitals;

/// How often it is looked whether something outside stands in the way.
pub(super) const LOOK_AROUND: Duration = Duration::from_secs(2);

/// Stands until the lake has what the state had at the start.
pub(super) const STARTING: &str = "starting";

/// Raises and clears what the parts cannot see themselves: whether Belvo takes calls, the state takes writes, and
/// readers have a snapshot.
pub(super) async fn look_around(
    operations: Operations,
    problems: Problems,
    vitals: Vitals,
    shutdown: CancellationToken,
) {
    let mut published = operations.published.subscribe();
    let mut lookout = Lookout::new(operations, problems, vitals);
    loop {
        lookout.look().await;
        tokio::select! {
            _ = published.changed() => lookout.problems.clear(STARTING),
            () = tokio::time::sleep(LOOK_AROUND) => {}
            () = shutdown.cancelled() => {
                // What is not counted now never is.
                let _ = lookout.count_calls().await;
                return;
            }
        }
    }
}

/// What is looked at, and what was seen of it the last time.
struct Lookout {
    operations: Operations,
    problems: Problems,
    vitals: Vitals,
    clocks: TwoClocks,
    /// What stood in the way of calls to Belvo.
    trouble: Option<Code>,
    /// How many calls to Belvo are counted.
    counted: u64,
    /// The links of erased users whose erasure is ordered.
    erasing: HashSet<LinkId>,
}

impl Lookout {
    fn new(operations: Operations, problems: Problems, vitals: Vitals) -> Self {
        let (clocks, counted) = (TwoClocks::new(operations.clock.now()), operations.client.budget().calls());
        Self { operations, problems, vitals, clocks, trouble: None, counted, erasing: HashSet::new() }
    }

    /// Looks once at everything.
    async fn look(&mut self) {
        self.hear_of_belvo();
        self.show_what_waits().await;
        Recorder::global().condense();
        self.probe_state().await;
        self.erase_links_of_the_erased().await;
        self.look_at_lake().await;
        // That the state takes no writes was just told.
        let _ = self.count_calls().await;
    }

    /// Tells what stands in the way of calls to Belvo.
    fn hear_of_belvo(&mut self) {
        let now = self.operations.client.trouble();
        if now == self.trouble {
            return;
        }
        if let Some(code) = self.trouble {
            self.problems.clear(code.name());
        }
        if let Some(code) = now {
            self.problems.raise(code.name());
        }
        self.trouble = now;
    }

    /// Shows how the request budget is used, and what waits for it.
    async fn show_what_waits(&self) {
        let Operations { client, store, clock, .. } = &self.operations;
        let now = clock.now();
        let usage = client.usage();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        metrics::gauge!("vinculo_belvo_budget_requests").set(count(usage.requests));
        metrics::gauge!("vinculo_belvo_budget_in_use").set(count(usage.in_use));
        for (class, waiting) in [
            ("urgent", usage.waiting_urgent),
            ("ordinary", usage.waiting_ordinary),
            ("look_up", usage.waiting_look_ups),
        ] {
            metrics::gauge!("vinculo_belvo_budget_waiting", "class" => class).set(count(waiting));
        }
        let paused_by = client.budget().paused_by();
        for code in [Code::RateLimited, Code::ApiBlocked] {
            metrics::gauge!("vinculo_belvo_paused", "code" => code.name()).set(u8::from(paused_by == Some(code)));
        }
        // A state that cannot be read is told where it is written.
        let Ok((due, oldest)) = store.read(move |tx| Ok((queue::due(tx, now)?, queue::oldest_due(tx, now)?))).await
        else {
            return;
        };
        let waited = oldest.map_or(0, |since| now.as_micros() - since.as_micros());
        metrics::gauge!("vinculo_refreshes_oldest_due_seconds").set(waited as f64 / 1e6);
        for (trigger, due) in
            [("webhook", due.webhook), ("operator", due.operator), ("schedule", due.schedule), ("confirm", due.confirm)]
        {
            metrics::gauge!("vinculo_refreshes_due", "trigger" => trigger).set(u32::try_from(due).unwrap_or(u32::MAX));
        }
    }

    /// Writes into the state, and moves what is due with a clock that was set back.
    async fn probe_state(&mut self) {
        let Operations { store, queue, clock, .. } = &self.operations;
        let looked_at = clock.now();
        let step = self.clocks.notice_step_back(looked_at);
        // SQLite skips unchanged rows, so the probe must write a new value to detect a failing disk. What is due is
        // moved with it, or a restart in between would find nothing left to move for.
        let look = move |tx: &Tx<'_>| {
            tx.set_meta(LOOKED_AT, &looked_at.as_micros().to_string())?;
            step.map_or(Ok(()), |step| move_due_back(tx, step, looked_at))
        };
        let answer = store.write(look).await;
        hear(&answer, || store.impediment(), &self.problems, &self.vitals);
        if step.is_some() && answer.is_ok() {
            self.clocks.was_followed();
            queue.announce();
        }
    }

    /// Orders the erasure of links whose users were erased before Belvo told of them, each once: it is gone on with
    /// until it is done.
    async fn erase_links_of_the_erased(&mut self) {
        let wanted = self.operations.store.read(links::erased_before).await.unwrap_or_default();
        self.erasing.retain(|link| wanted.contains(link));
        for link in wanted {
            if !self.erasing.insert(link.clone()) {
                continue;
            }
            let reason = "everything of its user was erased, and the link was made before that".to_owned();
            let order = Order::Erase(Erasure { subject: Subject::Link(link), reason, is_remote: false });
            if let Err(refused) = self.operations.start(order, Reason::Daemon).await {
                tracing::error!(
                    code = refused.code(),
                    "a link of an erased user is erased at the next start only, because now it is refused: {refused}"
                );
            }
        }
    }

    /// Tells whether the lake is in its place: a quiet daemon publishes nothing, and would not hear of it.
    async fn look_at_lake(&self) {
        let publisher = Arc::clone(&self.operations.publisher);
        if in_background(move || publisher.is_missing()).await {
            self.problems.raise(publish::LAKE_MISSING);
        } else {
            self.problems.clear(publish::LAKE_MISSING);
        }
    }

    /// Counts the calls since the last count; a count that fails is made up for by the next.
    async fn count_calls(&mut self) -> Result<(), store::Error> {
        let Operations { client, store, clock, .. } = &self.operations;
        let (now, calls) = (clock.now(), client.budget().calls());
        if calls > self.counted {
            let new = calls - self.counted;
            store.write(move |tx| chronicle::note_calls(tx, new, now)).await?;
            self.counted = calls;
        }
        Ok(())
    }
}

/// Tells what the state answered to a write, and what stands in the way `otherwise`. A state that is closed answers
/// nobody any more, which is no sign of life: the service manager's watchdog then starts the daemon anew.
fn hear(
    answer: &Result<(), store::Error>,
    otherwise: impl FnOnce() -> Option<&'static str>,
    problems: &Problems,
    vitals: &Vitals,
) {
    problems.hear_of_state(answer.as_ref().err().map(store::Error::code), otherwise);
    if !matches!(answer, Err(store::Error::Closed)) {
        vitals.beat();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::{Config, Needs};
    use crate::daemon::{Daemon, Parts};
    use crate::problems::STATE_NOT_WRITABLE;
    use crate::store::args;

    #[test]
    fn the_states_own_failure_stands_in_the_way_and_a_closed_state_is_no_sign_of_life() {
        let (problems, vitals) = (Problems::default(), Vitals::new());
        let hear = |answer: Result<(), store::Error>, has_room: bool| {
            let before = vitals.answered_at();
            hear(&answer, || (!has_room).then_some(store::DISK_FULL), &problems, &vitals);
            (problems.standing(), vitals.answered_at() > before)
        };
        assert_eq!(hear(Ok(()), false), (vec![store::DISK_FULL], true));
        let heard = |answer| hear(answer, true);
        assert_eq!(heard(Err(store::Error::NotDurable("disk_full"))), (vec!["disk_full"], true));
        assert_eq!(heard(Err(store::Error::NotDurable("state_locked"))), (vec!["state_locked"], true));
        assert_eq!(heard(Err(store::Error::NotDurable("state_failed"))), (vec![STATE_NOT_WRITABLE], true));
        assert_eq!(heard(Err(store::Error::Closed)), (vec!["state_closed"], false));
        assert_eq!(heard(Ok(())), (vec![], true));
    }

    #[tokio::test]
    async fn a_link_of_an_erased_user_is_erased_once_and_by_the_daemons_own_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vinculo.toml");
        let text = "[belvo]\nbase_url = \"http://127.0.0.1:1\"\nsecret_id = \"id\"\nsecret_password = \"password\"\n";
        std::fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file), [], &[], Needs { belvo: true, webhook: false }).unwrap();
        config.check_folders().unwrap();
        let daemon = Daemon::start(&config, Clock::system(), Parts::WithoutTasks).await.unwrap();
        let link = "INSERT INTO links (link_id, first_seen_at, changed_seq, paused_reason) \
                    VALUES ('00000000-0000-4000-8000-000000000001', 0, 0, 'erased_before')";
        daemon.store.write(|tx| tx.execute(link, args![])).await.unwrap();
        let mut lookout = Lookout::new(daemon.operations.clone(), Problems::default(), Vitals::new());
        for _ in 0..2 {
            lookout.erase_links_of_the_erased().await;
        }
        let ordered = |tx: &Tx<'_>| {
            tx.all("SELECT kind, reason FROM runs", args![], |row| Ok::<_, store::Error>((row.text(0)?, row.text(1)?)))
        };
        let ordered = daemon.store.read(ordered).await.unwrap();
        assert_eq!(ordered, [("erase".to_owned(), Reason::Daemon.name().to_owned())]);
        daemon.stop().await;
    }
}
