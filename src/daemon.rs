//! Builds everything once, starts the tasks, and owns their end.
//!
//! The only module that knows everyone. Commands that do a daemon's work without one start the same parts without the
//! listeners and the schedule.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::role::Tokens;
use crate::admin::{Admin, Recorder, dashboard, v1};
use crate::belvo::{Budget, Client};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config};
use crate::delete::Deleter;
use crate::erase::{self, Eraser, Unfinished};
use crate::fetch::trust::Trust;
use crate::lane::in_background;
use crate::links::{self, Directory};
use crate::operations::Operations;
use crate::problems::Problems;
use crate::publish::{self, Pace, Publisher};
use crate::queue::{self, Queue};
use crate::recollect::Recollector;
use crate::refresh::{Inspections, Refresher};
use crate::retention::Retention;
use crate::runs::Runs;
use crate::schedule::{self, Asked, Asker, Times};
use crate::sensitive::Pepper;
use crate::store::{Ownership, Store};
use crate::tombstones::FileError;
use crate::vitals::Vitals;
use crate::webhook::{self, Inbox, Senders};
use crate::widget::Widgets;
use crate::{delete, origin, recollect, restore, worker};

mod clock_step;
mod jobs;
mod look_around;

use clock_step::go_back_with_the_clock;
use jobs::DaemonActions;
use look_around::{LOOK_AROUND, STARTING, look_around};

/// How long the tasks have to end; what does not is cut off, and nothing is lost by that.
const STOP_WITHIN: Duration = Duration::from_secs(9);

/// How often to ask whether all work is done: the question reads every refresh.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The running parts.
pub struct Daemon {
    /// The record store.
    pub store: Store,
    /// The refreshes.
    pub queue: Queue,
    /// The links.
    pub links: Directory,
    /// The door to readers.
    pub publisher: Arc<Publisher>,
    /// What a person can order.
    pub operations: Operations,
    /// Where webhooks are taken; `None` without listeners.
    pub webhook_address: Option<SocketAddr>,
    /// Where operators ask; `None` without listeners.
    pub admin_address: Option<SocketAddr>,
    /// Whether it does its work.
    pub vitals: Vitals,
    /// What stands in the way.
    problems: Problems,
    /// Who may send webhooks, and who may ask; a reload replaces them.
    senders: Senders,
    tokens: Tokens,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Nobody else calls Belvo on this budget.
    _counts_calls: Option<Ownership>,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Listeners, schedule, workers, publisher.
    All,
    /// Workers and publisher: what a command needs that does a daemon's work.
    WithoutListeners,
    /// The same, and the jobs, each of which runs only when it is asked for.
    JobsOnRequest,
    /// No workers either: what a command needs that calls Belvo by itself, and counts its calls.
    WithoutTasks,
    /// The same, for a command that works on state and lake alone, and has no keys of Belvo's.
    WithoutBelvo,
}

impl Parts {
    /// Whether webhooks and operators' requests are taken, and jobs run in their own time.
    fn listens(self) -> bool {
        self == Self::All
    }

    /// Whether jobs are run at all.
    fn has_jobs(self) -> bool {
        matches!(self, Self::All | Self::JobsOnRequest)
    }

    /// Whether refreshes, publishes and the rest go on by themselves.
    fn has_tasks(self) -> bool {
        !matches!(self, Self::WithoutTasks | Self::WithoutBelvo)
    }

    /// Whether Belvo is called.
    fn calls_belvo(self) -> bool {
        self != Self::WithoutBelvo
    }
}

impl Daemon {
    /// Opens state and lake, binds the listeners, and starts the tasks.
    ///
    /// # Errors
    /// When a job is wrong, the state is held or newer, a folder cannot be used, or an address is taken; nothing runs
    /// then.
    pub async fn start(config: &Config, clock: Clock, parts: Parts) -> anyhow::Result<Self> {
        // What is wrong in a file is told before anything is made or held.
        let jobs = if parts.has_jobs() {
            schedule::load(config.jobs_dir.as_deref()).map_err(config::ConfigErrors)?
        } else {
            Vec::new()
        };
        let store = Store::configured(&config.state)?;
        restore::clear_left_over(&config.state.path);
        store.follow_up_by(webhook::follow_up).await?;
        let pepper = config.pii.pepper.clone().map(Pepper::new);
        learn_of_erased(&store, &config.state.path, pepper.clone(), clock.now()).await?;
        let (lake, confirm_after) = (config.lake.clone(), config.belvo.confirm_after);
        let publisher = Publisher::open(store.clone(), lake, confirm_after, pepper.clone(), clock.clone())?;
        let publisher = Arc::new(publisher.with_pii(config.pii.publish));
        go_back_with_the_clock(&store, clock.now()).await?;
        let queue = Queue::open(store.clone(), clock.clone()).await?;
        // A fetch of a link may have been under way that was paused meanwhile.
        store.write(links::hold_all).await?;
        let ledger = ledger(&config.state.path);
        // Two states in one folder would each count only their own calls.
        let counts_calls = parts.calls_belvo().then(|| Ownership::take(&ledger)).transpose()?;
        let budget = budget(&config.belvo, &ledger, clock.clone())?;
        let client = Client::new(&config.belvo, budget.clone(), clock.clone());
        let client = client.context("the connection to Belvo cannot be set up")?;
        // Before the first answer: the client judges each by it.
        origin::recall(&store, &client).await?;
        let links = Directory::new(client.clone(), store.clone(), queue.clone(), clock.clone());
        // Where nothing listens, no webhook tells that Belvo is done.
        let (read_within, deleted_within) = if parts.listens() {
            (recollect::WITH_WEBHOOKS, delete::WITH_WEBHOOKS)
        } else {
            (recollect::WITHOUT_WEBHOOKS, delete::WITHOUT_WEBHOOKS)
        };
        let widgets = Widgets::new(client.clone(), store.clone(), queue.clone(), clock.clone(), config.widget.clone());
        let recollector = Recollector::new(client.clone(), store.clone(), queue.clone(), clock.clone(), read_within);
        let deleter = Deleter::new(client.clone(), store.clone(), queue.clone(), clock.clone(), deleted_within);
        let (eraser, left) = Eraser::new(
            store.clone(),
            Arc::clone(&publisher),
            parts.calls_belvo().then(|| deleter.clone()),
            pepper,
            &config.state.path,
            clock.clone(),
        );
        // Before anybody reads or writes; the rest, which may take long or fail, is done by a task.
        let mut begun = eraser.resume().await?;
        if !parts.listens() {
            begun = eraser.finish_now(begun).await;
        }
        let listeners = if parts.listens() {
            let webhooks = bind(config.webhook.listen, "webhook.listen").await?;
            Some((webhooks, bind(config.admin.listen, "admin.listen").await?))
        } else {
            None
        };
        let has_jobs = !jobs.is_empty();
        let (jobs, asked) = Asker::new(jobs);

        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let operations = Operations {
            runs: Runs::open(store.clone(), clock.clone(), tasks.clone(), shutdown.clone()).await?,
            store: store.clone(),
            queue: queue.clone(),
            links: links.clone(),
            client,
            widgets,
            recollector,
            deleter,
            eraser,
            publisher: Arc::clone(&publisher),
            jobs,
            clock,
            settled: watch::Sender::new(()),
            published: watch::Sender::new(0),
        };
        let mut daemon = Self {
            store,
            queue,
            links,
            publisher,
            operations,
            webhook_address: None,
            admin_address: None,
            vitals: Vitals::new(),
            problems: Problems::default(),
            senders: Senders::new(&config.webhook.authorization),
            tokens: Tokens::of(&config.admin),
            tasks,
            shutdown,
            _counts_calls: counts_calls,
        };
        if !parts.has_tasks() {
            return Ok(daemon);
        }
        daemon.spawn_tasks(config, begun, left);
        if has_jobs {
            let times = if parts.listens() { Times::Slots } else { Times::OnRequest };
            daemon.spawn_schedule(config, asked, times);
        }
        if let Some((webhooks, operators)) = listeners {
            daemon.listen(config, webhooks, operators, budget)?;
        }
        Ok(daemon)
    }

    /// What goes on from the start to the end, whoever asks or not.
    fn spawn_tasks(&self, config: &Config, erasures: Vec<Unfinished>, left: mpsc::UnboundedReceiver<Unfinished>) {
        let Operations { client, store, queue, links, clock, .. } = &self.operations;
        self.problems.raise(STARTING);
        let (problems, vitals, shutdown) = (self.problems.clone(), self.vitals.clone(), self.shutdown.clone());
        self.spawn("look_around", look_around(self.operations.clone(), problems, vitals, shutdown));
        let refresher = Refresher {
            client: client.clone(),
            store: store.clone(),
            confirm_after: config.belvo.confirm_after,
            inspections: Inspections::default(),
            trust: Trust::new(config.belvo.page_size),
        };
        let (settled, shutdown) = (self.operations.settled.clone(), self.shutdown.clone());
        let worker = worker::run(refresher, queue.clone(), clock.clone(), config.belvo.workers, settled, shutdown);
        self.spawn("worker", worker);
        self.spawn("widgets", self.operations.widgets.clone().run(self.shutdown.clone()));
        self.spawn("recollects", self.operations.recollector.clone().run(self.shutdown.clone()));
        self.spawn("deletions", self.operations.deleter.clone().run(self.shutdown.clone()));
        let (eraser, problems, shutdown) =
            (self.operations.eraser.clone(), self.problems.clone(), self.shutdown.clone());
        self.spawn("erasures", eraser.run(erasures, left, problems, shutdown));
        self.spawn("lookups", links.clone().run(self.operations.settled.clone(), self.shutdown.clone()));
        let publisher = publish::run(
            Arc::clone(&self.publisher),
            Pace { quiet: config.lake.publish_quiet, max_wait: config.lake.publish_max_wait },
            self.operations.settled.subscribe(),
            self.operations.published.clone(),
            self.problems.clone(),
            self.shutdown.clone(),
        );
        self.spawn("publisher", publisher);
    }

    /// Runs the jobs that are `asked` for, at their `times`.
    fn spawn_schedule(&self, config: &Config, asked: Asked, times: Times) {
        let Operations { store, clock, .. } = &self.operations;
        let actions = Arc::new(DaemonActions {
            operations: self.operations.clone(),
            retention: Retention::new(config.retention, config.belvo.confirm_after, store.clone(), clock.clone()),
            state: config.state.clone(),
            lake: config.lake.path.clone(),
            lag_months: config.features.lag_months,
        });
        let (store, clock) = (store.clone(), clock.clone());
        self.spawn("schedule", schedule::run(asked, times, store, clock, actions, self.shutdown.clone()));
    }

    /// Takes webhooks and operators' requests.
    fn listen(
        &mut self,
        config: &Config,
        webhooks: TcpListener,
        operators: TcpListener,
        budget: Budget,
    ) -> io::Result<()> {
        (self.webhook_address, self.admin_address) = (Some(webhooks.local_addr()?), Some(operators.local_addr()?));
        let Operations { store, queue, clock, .. } = self.operations.clone();
        let (problems, settled) = (self.problems.clone(), self.operations.settled.clone());
        let inbox = Inbox { queue, store: store.clone(), clock: clock.clone(), settled, problems };
        let (settings, senders) = (config.webhook.clone(), self.senders.clone());
        self.spawn("webhooks", webhook::run(webhooks, settings, senders, inbox, self.shutdown.clone()));
        let (operations, problems, tokens) = (self.operations.clone(), self.problems.clone(), self.tokens.clone());
        let board = dashboard::Board::new(operations.clone(), budget.clone(), problems.clone(), tokens.clone(), config);
        let api = v1::Api::new(operations, budget, problems.clone(), config);
        let (api, pages) = (v1::routes(api), dashboard::routes(board));
        let admin = Admin::new(problems, Recorder::global(), &config.admin, tokens, (store, clock), api, pages);
        self.spawn("admin", admin.serve(operators, self.shutdown.clone()));
        Ok(())
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let watched = self.vitals.clone().watch(name, Box::pin(task), self.problems.clone(), self.shutdown.clone());
        self.tasks.spawn(watched);
    }

    /// Waits until nothing is left to do: no refresh, also none that is due only in hours, such as a second look at
    /// what a list lacked; no lookup; and every change published.
    ///
    /// # Errors
    /// When the state cannot be read, or a publish fails.
    pub async fn until_idle(&self) -> anyhow::Result<()> {
        let (mut settled, mut published) = (self.operations.settled.subscribe(), self.operations.published.subscribe());
        loop {
            settled.mark_unchanged();
            published.mark_unchanged();
            let waiting = self.store.read(|tx| Ok(queue::backlog(tx)?.pending > 0 || links::lookups_pending(tx)? > 0));
            if waiting.await? {
                tokio::select! {
                    _ = settled.changed() => {}
                    _ = published.changed() => {}
                }
            } else {
                let publisher = Arc::clone(&self.publisher);
                if !in_background(move || publisher.is_behind()).await? {
                    return Ok(());
                }
                self.until_published().await?;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Waits until no refresh runs or is due, and every change is published. What failed waits for its next try, and
    /// may wait for hours; while Belvo refuses the keys, nothing else is waited for either.
    ///
    /// # Errors
    /// When the state cannot be read, or a publish fails.
    pub async fn until_caught_up(&self) -> anyhow::Result<()> {
        let mut settled = self.operations.settled.subscribe();
        loop {
            settled.mark_unchanged();
            let now = self.operations.clock.now();
            let is_busy = self.store.read(move |tx| queue::is_busy(tx, now));
            if !is_busy.await? || self.operations.client.refuses_keys() {
                return self.until_published().await;
            }
            // Refused keys do not end a refresh, so no event arrives: look again.
            let _ = tokio::time::timeout(LOOK_AROUND, settled.changed()).await;
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Waits until every change so far is published.
    ///
    /// # Errors
    /// When a publish fails.
    pub async fn until_published(&self) -> anyhow::Result<()> {
        Ok(self.publisher.until_published(self.operations.published.subscribe()).await?)
    }

    /// Takes over what `config` says of who may send webhooks and who may ask: `webhook.authorization` and the tokens
    /// of `[admin]`. Everything else stays as it was at the start.
    pub fn reload(&self, config: &Config) {
        self.senders.replace(&config.webhook.authorization);
        self.tokens.replace(&config.admin);
    }

    /// The announcements of refreshes and lookups that have ended.
    pub fn settled(&self) -> watch::Receiver<()> {
        self.operations.settled.subscribe()
    }

    /// Ends the tasks: running refreshes come to their end, webhooks that came are answered.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                code = "stopped_early",
                "some tasks were cut off; what they did is done again after the next start"
            );
        }
    }
}

/// Lets a state that is new in its folder, or an older one that was put back, learn who was erased there, before it
/// hears of anybody else. If the file of tombstones is another state's, the daemon starts all the same; only erasing is
/// refused.
async fn learn_of_erased(
    store: &Store,
    state: &Path,
    pepper: Option<Pepper>,
    now: Timestamp,
) -> Result<(), erase::Error> {
    match erase::learn(store, state, pepper, now).await {
        Err(error @ erase::Error::Tombstones(FileError::Foreign(_))) => {
            tracing::warn!(code = error.code(), "nobody can be erased: {error}");
            Ok(())
        }
        learnt => learnt.map(drop),
    }
}

/// Where the calls are counted, beside the state.
pub(crate) fn ledger(state: &Path) -> PathBuf {
    state.with_file_name("budget.ledger")
}

/// The budget of all calls, which outlives a crash: its ledger lies beside the state.
pub(crate) fn budget(settings: &config::Belvo, ledger: &Path, clock: Clock) -> anyhow::Result<Budget> {
    Budget::open(settings.budget, settings.reserve, Some(ledger), clock)
        .with_context(|| format!("the request ledger {} cannot be used", ledger.display()))
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{key} {address} cannot be listened on: free the port, or set another one"))
}
