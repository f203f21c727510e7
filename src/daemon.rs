//! Builds everything once, starts the tasks, and owns their end.
//!
//! The only module that knows everyone. Commands that do a daemon's work without one start the same parts without the
//! listeners and the schedule.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{Admin, Recorder};
use crate::belvo::{Budget, Client};
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Config};
use crate::fetch::trust::Trust;
use crate::links::Directory;
use crate::problems::Problems;
use crate::publish::{self, Pace, Publisher, Scope};
use crate::queue::{self, Queue};
use crate::refresh::{Inspections, Refresher};
use crate::schedule::{self, Action, Actions, Failed, Job};
use crate::sensitive::Pepper;
use crate::store::{Store, args};
use crate::{webhook, worker};

/// How long the tasks have to end; what does not is cut off, and nothing is lost by that.
const STOP_WITHIN: Duration = Duration::from_secs(9);

/// How often it is looked whether something outside stands in the way.
const LOOK_AROUND: Duration = Duration::from_secs(2);

/// Whoever waits for the end of much work asks at most this often, because asking looks at every refresh.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// Stands until the lake has what the state had at the start.
const STARTING: &str = "starting";

/// Stands while the state takes no writes.
const STATE_PROBLEM: &str = "state_not_writable";

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
    /// Where webhooks are taken; `None` without listeners.
    pub webhook_address: Option<SocketAddr>,
    /// Where operators ask; `None` without listeners.
    pub admin_address: Option<SocketAddr>,
    /// Told of each refresh and lookup that has ended.
    settled: watch::Sender<()>,
    /// The change of the store that the latest snapshot of this process has.
    published: watch::Sender<i64>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parts {
    /// Listeners, schedule, workers, publisher.
    All,
    /// Workers and publisher: what a command needs that does a daemon's work.
    WithoutListeners,
}

impl Daemon {
    /// Opens state and lake, binds the listeners, and starts the tasks.
    ///
    /// # Errors
    /// When the state is held or newer, a folder cannot be used, or an address is taken; nothing runs then.
    pub async fn start(config: &Config, clock: Clock, parts: Parts) -> anyhow::Result<Self> {
        let store = Store::open(&config.state.path)?;
        let pepper = config.pii.pepper.clone().map(Pepper::new);
        let (lake, confirm_after) = (config.lake.clone(), config.belvo.confirm_after);
        let publisher = Arc::new(Publisher::open(store.readers(), lake, confirm_after, pepper, clock.clone())?);
        let queue = Queue::open(store.clone(), clock.clone()).await?;
        let client = client(&config.belvo, &config.state.path, clock.clone())?;
        let links = Directory::new(client.clone(), store.clone(), clock.clone());
        let listeners = match parts {
            Parts::All => Some((
                bind(config.webhook.listen, "webhook.listen").await?,
                bind(config.admin.listen, "admin.listen").await?,
                schedule::load(config.jobs_dir.as_deref())?,
            )),
            Parts::WithoutListeners => None,
        };

        let (settled, published) = (watch::Sender::new(()), watch::Sender::new(0));
        let (tasks, shutdown, problems) = (TaskTracker::new(), CancellationToken::new(), Problems::default());
        problems.raise(STARTING);
        tasks.spawn(look_around(
            client.clone(),
            store.clone(),
            clock.clone(),
            problems.clone(),
            published.subscribe(),
            shutdown.clone(),
        ));
        let refresher = Refresher {
            client,
            store: store.clone(),
            confirm_after: config.belvo.confirm_after,
            inspections: Inspections::default(),
            trust: Trust::new(config.belvo.page_size),
        };
        tasks.spawn(worker::run(
            refresher,
            queue.clone(),
            clock.clone(),
            config.belvo.workers,
            settled.clone(),
            shutdown.clone(),
        ));
        tasks.spawn(links.clone().run(queue.news(), settled.clone(), shutdown.clone()));
        let pace = Pace { quiet: config.lake.publish_quiet, max_wait: config.lake.publish_max_wait };
        tasks.spawn(publish::run(
            Arc::clone(&publisher),
            pace,
            settled.subscribe(),
            published.clone(),
            problems.clone(),
            shutdown.clone(),
        ));
        let (mut webhook_address, mut admin_address) = (None, None);
        if let Some((webhooks, operators, jobs)) = listeners {
            (webhook_address, admin_address) = (Some(webhooks.local_addr()?), Some(operators.local_addr()?));
            let settings = config.webhook.clone();
            tasks.spawn(webhook::run(
                webhooks,
                settings,
                queue.clone(),
                store.clone(),
                clock.clone(),
                shutdown.clone(),
            ));
            let admin = Admin::new(problems, Recorder::global(), &config.admin.allowed_hosts);
            let end = shutdown.clone();
            tasks.spawn(async move {
                if let Err(error) = admin.serve(operators, end).await {
                    tracing::error!(code = "admin_failed", "the admin listener ended: {error}");
                }
            });
            let actions = Arc::new(DaemonActions {
                links: links.clone(),
                publisher: Arc::clone(&publisher),
                settled: settled.clone(),
            });
            tasks.spawn(schedule::run(jobs, store.clone(), queue.clone(), clock, actions, shutdown.clone()));
        }
        tasks.close();
        Ok(Self { store, queue, links, publisher, webhook_address, admin_address, settled, published, tasks, shutdown })
    }

    /// Waits until nothing is left to do that is due: no refresh, no lookup, and every change published.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub async fn until_idle(&self) -> anyhow::Result<()> {
        let (mut settled, mut published) = (self.settled.subscribe(), self.published.subscribe());
        loop {
            settled.mark_unchanged();
            published.mark_unchanged();
            let waiting = self.store.read(|tx| {
                let lookups =
                    tx.one("SELECT count(*) FROM links WHERE lookup_due_at IS NOT NULL", args![], |row| row.int(0))?;
                Ok(queue::backlog(tx)?.pending > 0 || lookups.unwrap_or_default() > 0)
            });
            let publisher = Arc::clone(&self.publisher);
            if !waiting.await? && !tokio::task::spawn_blocking(move || publisher.is_behind()).await?? {
                return Ok(());
            }
            tokio::select! {
                _ = settled.changed() => {}
                _ = published.changed() => {}
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// Waits until every change so far is published.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub async fn until_published(&self) -> anyhow::Result<()> {
        let mut published = self.published.subscribe();
        loop {
            published.mark_unchanged();
            let publisher = Arc::clone(&self.publisher);
            if !tokio::task::spawn_blocking(move || publisher.is_behind()).await?? {
                return Ok(());
            }
            published.changed().await?;
        }
    }

    /// The announcements of refreshes and lookups that have ended.
    pub fn settled(&self) -> watch::Receiver<()> {
        self.settled.subscribe()
    }

    /// Ends the tasks: running refreshes come to their end, webhooks that came are answered.
    pub async fn stop(self) {
        self.shutdown.cancel();
        if tokio::time::timeout(STOP_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!(
                code = "stopped_early",
                "some tasks were cut off; what they did is done again after the next start"
            );
        }
    }
}

/// What the daemon does for its jobs.
struct DaemonActions {
    links: Directory,
    publisher: Arc<Publisher>,
    /// Told when links have changed, so that they are published.
    settled: watch::Sender<()>,
}

impl Actions for DaemonActions {
    async fn run(&self, job: &Job) -> Result<u64, Failed> {
        match job.action {
            Action::SyncLinks => {
                let synced = self.links.sync().await;
                self.settled.send_replace(());
                synced.map_err(|error| Failed { code: error.code(), message: error.to_string() })
            }
            Action::Publish => match publish::publish_in_background(&self.publisher, Scope::Changed).await {
                Ok(published) => {
                    Ok(published.map_or(0, |manifest| manifest.tables.iter().map(|table| table.rows).sum()))
                }
                Err(error) => Err(Failed { code: error.code(), message: error.to_string() }),
            },
            Action::Fetch => Ok(0),
        }
    }
}

/// Raises and clears what the parts cannot see themselves: whether Belvo takes calls, the state takes writes, and readers
/// have a snapshot.
async fn look_around(
    client: Client,
    store: Store,
    clock: Clock,
    problems: Problems,
    mut published: watch::Receiver<i64>,
    shutdown: CancellationToken,
) {
    let mut trouble = None;
    loop {
        let now = client.trouble();
        if now != trouble {
            if let Some(code) = trouble {
                problems.clear(code);
            }
            if let Some(code) = now {
                problems.raise(code);
            }
            trouble = now;
        }
        show_what_waits(&client, &store, clock.now()).await;
        match store.write(|tx| tx.execute("UPDATE meta SET value = value WHERE name = 'schema_version'", args![])).await
        {
            Ok(_) => problems.clear(STATE_PROBLEM),
            Err(_) => problems.raise(STATE_PROBLEM),
        }
        tokio::select! {
            _ = published.changed() => problems.clear(STARTING),
            () = tokio::time::sleep(LOOK_AROUND) => {}
            () = shutdown.cancelled() => return,
        }
    }
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
    // A state that cannot be read is told where it is written.
    let Ok(due) = store.read(move |tx| queue::due(tx, now)).await else { return };
    for (trigger, due) in
        [("webhook", due.webhook), ("operator", due.operator), ("schedule", due.schedule), ("confirm", due.confirm)]
    {
        metrics::gauge!("vinculo_refreshes_due", "trigger" => trigger).set(u32::try_from(due).unwrap_or(u32::MAX));
    }
}

/// The client, with a budget that outlives a crash: its ledger lies beside the state.
fn client(settings: &config::Belvo, state: &Path, clock: Clock) -> anyhow::Result<Client> {
    let ledger = state.with_file_name("budget.ledger");
    let budget = Budget::open(settings.budget, settings.reserve, Some(&ledger), clock.clone())
        .with_context(|| format!("the request ledger {} cannot be used", ledger.display()))?;
    Client::new(settings, budget, clock).context("the connection to Belvo cannot be set up")
}

async fn bind(address: SocketAddr, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{key} {address} cannot be listened on: free the port, or set another one"))
}
