//! Builds everything once, starts the tasks, and owns their end.
//!
//! The only module that knows everyone. Commands that do a daemon's work without one start the same parts without the
//! listeners and the schedule.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::role::Tokens;
use crate::admin::{Admin, Recorder, dashboard, v1};
use crate::belvo::{Budget, Client, Code, Patience, advice};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config};
use crate::delete::Deleter;
use crate::erase::{self, Eraser, Unfinished};
use crate::features::runs::{self, Mode, Wanted};
use crate::fetch::trust::Trust;
use crate::lane::in_background;
use crate::links::Directory;
use crate::operations::Operations;
use crate::problems::Problems;
use crate::publish::integrity::Damage;
use crate::publish::{self, Manifest, Pace, Publisher, Scope};
use crate::queue::{self, Queue};
use crate::recollect::Recollector;
use crate::refresh::{Inspections, Refresher};
use crate::retention::Retention;
use crate::runs::Failed;
use crate::runs::Runs;
use crate::schedule::{self, Action, Actions, Asked, Asker, Job, Times};
use crate::sensitive::Pepper;
use crate::store::{self, Ownership, Store, Tx, args};
use crate::tombstones::FileError;
use crate::vitals::Vitals;
use crate::webhook::{self, Inbox, Senders};
use crate::widget::Widgets;
use crate::{backup, chronicle, delete, origin, recollect, restore, verify, worker};

/// How long the tasks have to end; what does not is cut off, and nothing is lost by that.
const STOP_WITHIN: Duration = Duration::from_secs(9);

/// How often it is looked whether something outside stands in the way.
const LOOK_AROUND: Duration = Duration::from_secs(2);

/// A clock that is set back by less than this is corrected; what is due then may wait for as much.
const CORRECTION: Duration = Duration::from_secs(5);

/// How often to ask whether all work is done: the question reads every refresh.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Name in `meta` of the instant at which a daemon last wrote that it runs.
const LOOKED_AT: &str = "looked_at";

/// Stands until the lake has what the state had at the start.
const STARTING: &str = "starting";

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
    /// Told of each refresh and lookup that has ended.
    settled: watch::Sender<()>,
    /// The change of the store that the latest snapshot of this process has.
    published: watch::Sender<i64>,
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

impl Daemon {
    /// Opens state and lake, binds the listeners, and starts the tasks.
    ///
    /// # Errors
    /// When a job is wrong, the state is held or newer, a folder cannot be used, or an address is taken; nothing runs then.
    pub async fn start(config: &Config, clock: Clock, parts: Parts) -> anyhow::Result<Self> {
        // What is wrong in a file is told before anything is made or held.
        let jobs = match parts {
            Parts::All | Parts::JobsOnRequest => {
                schedule::load(config.jobs_dir.as_deref()).map_err(config::ConfigErrors)?
            }
            Parts::WithoutListeners | Parts::WithoutTasks | Parts::WithoutBelvo => Vec::new(),
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
        let ledger = ledger(&config.state.path);
        // Two states in one folder would each count only their own calls.
        let counts_calls = if parts == Parts::WithoutBelvo { None } else { Some(Ownership::take(&ledger)?) };
        let budget = budget(&config.belvo, &ledger, clock.clone())?;
        let client = Client::new(&config.belvo, budget.clone(), clock.clone());
        let client = client.context("the connection to Belvo cannot be set up")?;
        // Before the first answer: the client judges each by it.
        origin::recall(&store, &client).await?;
        let links = Directory::new(client.clone(), store.clone(), queue.clone(), clock.clone());
        // Where nothing listens, no webhook tells that Belvo is done.
        let (read_within, deleted_within) = match parts {
            Parts::All => (recollect::WITH_WEBHOOKS, delete::WITH_WEBHOOKS),
            _ => (recollect::WITHOUT_WEBHOOKS, delete::WITHOUT_WEBHOOKS),
        };
        let widgets = Widgets::new(client.clone(), store.clone(), queue.clone(), clock.clone(), config.widget.clone());
        let recollector = Recollector::new(client.clone(), store.clone(), queue.clone(), clock.clone(), read_within);
        let deleter = Deleter::new(client.clone(), store.clone(), queue.clone(), clock.clone(), deleted_within);
        let (eraser, left) = Eraser::new(
            store.clone(),
            Arc::clone(&publisher),
            (parts != Parts::WithoutBelvo).then(|| deleter.clone()),
            pepper,
            &config.state.path,
            clock.clone(),
        );
        // Before anybody reads or writes; the rest, which may take long or fail, is done by a task.
        let mut begun = eraser.resume().await?;
        if parts != Parts::All {
            begun = eraser.finish_now(begun).await;
        }
        let listeners = match parts {
            Parts::All => Some((
                bind(config.webhook.listen, "webhook.listen").await?,
                bind(config.admin.listen, "admin.listen").await?,
            )),
            _ => None,
        };
        let has_jobs = !jobs.is_empty();
        let (jobs, asked) = Asker::new(jobs);

        let (settled, published) = (watch::Sender::new(()), watch::Sender::new(0));
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
            settled: settled.clone(),
            published: published.clone(),
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
            settled,
            published,
            tasks,
            shutdown,
            _counts_calls: counts_calls,
        };
        if matches!(parts, Parts::WithoutTasks | Parts::WithoutBelvo) {
            return Ok(daemon);
        }
        daemon.spawn_tasks(config, begun, left);
        if has_jobs {
            let times = if parts == Parts::All { Times::Slots } else { Times::OnRequest };
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
        let (settled, shutdown) = (self.settled.clone(), self.shutdown.clone());
        let worker = worker::run(refresher, queue.clone(), clock.clone(), config.belvo.workers, settled, shutdown);
        self.spawn("worker", worker);
        self.spawn("widgets", self.operations.widgets.clone().run(self.shutdown.clone()));
        self.spawn("recollects", self.operations.recollector.clone().run(self.shutdown.clone()));
        self.spawn("deletions", self.operations.deleter.clone().run(self.shutdown.clone()));
        let (eraser, problems, shutdown) =
            (self.operations.eraser.clone(), self.problems.clone(), self.shutdown.clone());
        self.spawn("erasures", eraser.run(erasures, left, problems, shutdown));
        self.spawn("lookups", links.clone().run(self.settled.clone(), self.shutdown.clone()));
        let publisher = publish::run(
            Arc::clone(&self.publisher),
            Pace { quiet: config.lake.publish_quiet, max_wait: config.lake.publish_max_wait },
            self.settled.subscribe(),
            self.published.clone(),
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
            retention: Retention::new(config.retention, store.clone(), clock.clone()),
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
        let (problems, settled) = (self.problems.clone(), self.settled.clone());
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

    /// Waits until nothing is left to do that is due: no refresh, no lookup, and every change published.
    ///
    /// # Errors
    /// When the state cannot be read, or a publish fails.
    pub async fn until_idle(&self) -> anyhow::Result<()> {
        let (mut settled, mut published) = (self.settled.subscribe(), self.published.subscribe());
        loop {
            settled.mark_unchanged();
            published.mark_unchanged();
            let waiting = self.store.read(|tx| {
                // Whether Belvo knows a link again that it had forgotten is asked for a long time.
                let sql = "SELECT count(*) FROM links WHERE lookup_due_at IS NOT NULL AND coalesce(status, '') <> 'not_found'";
                Ok(queue::backlog(tx)?.pending > 0 || tx.count(sql, args![])? > 0)
            });
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

    /// Waits until no refresh runs or is due, and every change is published. What failed waits for its next try, and may
    /// wait for hours; while Belvo refuses the keys, nothing else is waited for either.
    ///
    /// # Errors
    /// When the state cannot be read, or a publish fails.
    pub async fn until_caught_up(&self) -> anyhow::Result<()> {
        let mut settled = self.settled.subscribe();
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
        Ok(self.publisher.until_published(self.published.subscribe()).await?)
    }

    /// Takes over what `config` says of who may send webhooks and who may ask: `webhook.authorization` and the tokens of
    /// `[admin]`. Everything else stays as it was at the start.
    pub fn reload(&self, config: &Config) {
        self.senders.replace(&config.webhook.authorization);
        self.tokens.replace(&config.admin);
    }

    /// The announcements of refreshes and lookups that have ended.
    pub fn settled(&self) -> watch::Receiver<()> {
        self.settled.subscribe()
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

/// Lets a state that is new in its folder, or an older one that was put back, know who was erased there, before it hears of
/// anybody else. One that has tombstones of its own does its work all the same: it is told when they are to be written.
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

/// What the daemon does for its jobs.
struct DaemonActions {
    /// What a person can order too.
    operations: Operations,
    retention: Retention,
    state: config::State,
    lake: PathBuf,
    lag_months: u32,
}

impl Actions for DaemonActions {
    async fn run(&self, job: &Job) -> Result<u64, Failed> {
        match job.action {
            Action::SyncLinks => self.operations.compare_links(Patience::Long).await,
            Action::Publish => {
                let published = self.operations.publish(Scope::Changed).await?;
                Ok(published.as_ref().map_or(0, Manifest::rows))
            }
            Action::Recollect => self.recollect(&job.scope).await,
            Action::Retention => {
                let gone = self.retention.apply().await;
                self.operations.settled.send_replace(());
                Ok(gone?)
            }
            Action::Backup => self.back_up().await,
            Action::Verify => self.verify().await,
            Action::Features => self.features().await,
            Action::Fetch => {
                let Operations { store, queue, clock, .. } = &self.operations;
                Ok(schedule::fetch(&job.scope, store, queue, clock.now()).await?)
            }
        }
    }
}

impl DaemonActions {
    /// Copies the state, and gives the number of copies that there are.
    async fn back_up(&self) -> Result<u64, Failed> {
        let (state, now) = (self.state.clone(), self.operations.clock.now());
        let copied = in_background(move || backup::make_another(&state, now)).await;
        copied.map_err(|error| Failed::of(error.code(), error))
    }

    /// Looks at everything that is kept, and gives the number of files.
    async fn verify(&self) -> Result<u64, Failed> {
        let (state, lake) = (self.state.clone(), self.lake.clone());
        let looked = in_background(move || verify::check(&state, &lake, |_, _| {})).await;
        let report = looked.map_err(|error| Failed { code: "verify_failed", message: format!("{error:#}") })?;
        match report.lake.damage.first() {
            None => Ok(report.lake.files as u64),
            Some(Damage { file, what, .. }) => {
                let count = report.damaged();
                let message = format!("{count} damaged, first {file}, which {what}: `vinculo verify` names all");
                Err(Failed { code: "damaged", message })
            }
        }
    }

    /// Computes today's features, and gives how many rows they have.
    async fn features(&self) -> Result<u64, Failed> {
        let now = self.operations.clock.now();
        let wanted = Wanted { as_of: now.to_utc().date_naive(), mode: Mode::Strict, lag_months: self.lag_months };
        let refused = |error: runs::Error| Failed::of("features_refused", error);
        let run = runs::schedule(&self.operations.store, wanted, now).await.map_err(refused)?;
        self.operations.publish(Scope::Changed).await?;
        Ok(self.operations.feature_rows(run.as_of).await)
    }

    /// Asks Belvo to read again what is in `scope`, and gives how many calls that put on its bill.
    async fn recollect(&self, scope: &schedule::Scope) -> Result<u64, Failed> {
        let schedule::Scope { access_mode, older_than, resources } = scope.clone();
        let (wanted, now) =
            (recollect::Scope { access_mode, older_than, resources: resources.clone() }, self.operations.clock.now());
        let links = self.operations.store.read(move |tx| recollect::in_scope(tx, &wanted, now)).await?;
        let outcome = self.operations.recollector.recollect(links, &resources, Patience::Long).await?;
        match outcome.failed.iter().next() {
            Some((&code, count)) if outcome.asked.is_empty() => Err(Failed {
                code,
                message: format!("none of the links was taken, and {count} failed so: {}", advice(code)),
            }),
            _ => Ok(outcome.asked.len() as u64),
        }
    }
}

/// Raises and clears what the parts cannot see themselves: whether Belvo takes calls, the state takes writes, and readers
/// have a snapshot.
async fn look_around(operations: Operations, problems: Problems, vitals: Vitals, shutdown: CancellationToken) {
    let Operations { client, store, queue, clock, publisher, published, .. } = operations;
    let (mut published, mut clocks) = (published.subscribe(), TwoClocks::new(clock.now()));
    let (mut trouble, mut counted) = (None, client.budget().calls());
    loop {
        let now = client.trouble();
        if now != trouble {
            if let Some(code) = trouble {
                problems.clear(code.name());
            }
            if let Some(code) = now {
                problems.raise(code.name());
            }
            trouble = now;
        }
        show_what_waits(&client, &store, clock.now()).await;
        Recorder::global().condense();
        // SQLite skips unchanged rows, so the probe must write a new value to detect a failing disk.
        let looked_at = clock.now().as_micros().to_string();
        let answer = store.write(move |tx| tx.set_meta(LOOKED_AT, &looked_at)).await;
        hear(&answer, || store.impediment(), &problems, &vitals);
        if let Some(step) = clocks.went_back(clock.now()) {
            tell_of_step_back(step);
            // If this write fails, the next mark of each refresh corrects its due time.
            let _ = store.write(move |tx| queue::go_back(tx, step)).await;
            queue.announce();
        }
        // A quiet daemon publishes nothing, and would not hear of it.
        let lake = Arc::clone(&publisher);
        if in_background(move || lake.is_missing()).await {
            problems.raise(publish::MISSING);
        } else {
            problems.clear(publish::MISSING);
        }
        // That the state takes no writes was just told.
        let _ = count_calls(&client, &store, clock.now(), &mut counted).await;
        tokio::select! {
            _ = published.changed() => problems.clear(STARTING),
            () = tokio::time::sleep(LOOK_AROUND) => {}
            () = shutdown.cancelled() => {
                // What is not counted now never is.
                let _ = count_calls(&client, &store, clock.now(), &mut counted).await;
                return;
            }
        }
    }
}

fn tell_of_step_back(step: Duration) {
    tracing::warn!(code = "clock_went_back", seconds = step.as_secs(), "what is due goes with the clock");
}

/// Lets everything be due earlier by as much as the clock was set back while nothing ran.
async fn go_back_with_the_clock(store: &Store, now: Timestamp) -> Result<(), store::Error> {
    let go_back = move |tx: &Tx<'_>| {
        let looked_at = tx.meta(LOOKED_AT)?.and_then(|text| text.parse().ok()).map(Timestamp::from_micros);
        let Some(step) = looked_at.map(|at| at.since(now)).filter(|step| *step > CORRECTION) else { return Ok(()) };
        tell_of_step_back(step);
        queue::go_back(tx, step)?;
        // In the same transaction, or whoever starts next would do it once more.
        tx.set_meta(LOOKED_AT, &now.as_micros().to_string())
    };
    store.write(go_back).await
}

/// The wall clock beside one that only goes on.
struct TwoClocks {
    wall: Timestamp,
    steady: Instant,
}

impl TwoClocks {
    fn new(wall: Timestamp) -> Self {
        Self { wall, steady: Instant::now() }
    }

    /// By how much the wall clock was set back since the last look, if by more than it is ever corrected.
    fn went_back(&mut self, wall: Timestamp) -> Option<Duration> {
        let expected = self.wall + self.steady.elapsed();
        *self = Self::new(wall);
        Some(expected.since(wall)).filter(|step| *step > CORRECTION)
    }
}

/// Tells what the state answered to a write, and what stands in the way `otherwise`. A state that is closed answers nobody any
/// more, which is no sign of life: the service manager's watchdog then starts the daemon anew.
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

/// Counts the calls since the last count; a count that fails is made up for by the next.
async fn count_calls(client: &Client, store: &Store, now: Timestamp, counted: &mut u64) -> Result<(), store::Error> {
    let calls = client.budget().calls();
    if calls > *counted {
        let new = calls - *counted;
        store.write(move |tx| chronicle::note_calls(tx, new, now)).await?;
        *counted = calls;
    }
    Ok(())
}

/// Shows how the request budget is used, and what waits for it.
async fn show_what_waits(client: &Client, store: &Store, now: Timestamp) {
    let usage = client.usage();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    metrics::gauge!("vinculo_belvo_budget_requests").set(count(usage.requests));
    metrics::gauge!("vinculo_belvo_budget_in_use").set(count(usage.in_use));
    for (class, waiting) in
        [("urgent", usage.waiting_urgent), ("ordinary", usage.waiting_ordinary), ("look_up", usage.waiting_look_ups)]
    {
        metrics::gauge!("vinculo_belvo_budget_waiting", "class" => class).set(count(waiting));
    }
    let paused_by = client.paused_by();
    for code in [Code::RateLimited, Code::ApiBlocked] {
        metrics::gauge!("vinculo_belvo_paused", "code" => code.name()).set(u8::from(paused_by == Some(code)));
    }
    // A state that cannot be read is told where it is written.
    let Ok((due, oldest)) = store.read(move |tx| Ok((queue::due(tx, now)?, queue::oldest_due(tx, now)?))).await else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::STATE_NOT_WRITABLE;

    #[test]
    fn a_clock_that_is_set_back_is_noticed_and_one_that_is_corrected_or_goes_ahead_is_not() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let mut clocks = TwoClocks::new(at(10_000));
        for (wall, expected) in [(10_004, false), (10_001, false), (40_000, false), (32_800, true), (32_801, false)] {
            assert_eq!(clocks.went_back(at(wall)).is_some(), expected, "{wall}");
        }
    }

    #[tokio::test]
    async fn what_is_due_goes_once_with_a_clock_that_was_set_back_while_nothing_ran() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let insert = move |tx: &Tx<'_>| {
            tx.set_meta(LOOKED_AT, &at(10_000).as_micros().to_string())?;
            let sql = "INSERT INTO deletions (link_id, asked_at, due_at) VALUES ('a', $1, $2)";
            tx.execute(sql, args![at(9_990), at(10_050)])
        };
        store.write(insert).await.unwrap();
        for (now, due) in [(9_996, 10_050), (2_000, 2_050), (2_001, 2_050), (5_000, 2_050)] {
            go_back_with_the_clock(&store, at(now)).await.unwrap();
            let found = store.read(|tx| tx.one("SELECT due_at FROM deletions", args![], |row| row.at(0))).await;
            assert_eq!(found.unwrap(), Some(at(due)), "{now}");
        }
    }

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
}
