//! The daemon in this process, with Belvo's address, the settings and the clock in the test's hand.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use vinculo::clock::{Clock, Timestamp};
use vinculo::config::{Config, Needs};
use vinculo::daemon::{Daemon, Parts};
use vinculo::queue;
use vinculo::simulate::{self, Simulation};
use vinculo::store;

use crate::tables::{self, Tables};

/// What Belvo sends with its webhooks.
pub(crate) const AUTHORIZATION: &str = "Bearer it-webhook-authorization";

/// What operators send to the admin listener.
pub(crate) const TOKEN: &str = "it-token-of-the-operator";

/// The key of `person_key`.
pub(crate) const PEPPER: &str = "it-pepper-for-simulated-people";

/// The key of the keys that bodies are encrypted with.
pub(crate) const ENCRYPTION_KEY: &str = "aXQtZW5jcnlwdGlvbi1rZXktb2YtMzItYnl0ZXMhISE=";

/// Nothing here takes so long unless it is stuck.
const STUCK: Duration = Duration::from_mins(3);

/// A configuration for Belvo at `belvo`, with everything else in its own folder.
pub(crate) fn config_text(belvo: SocketAddr, webhooks: SocketAddr, admin: SocketAddr) -> String {
    format!(
        r#"[belvo]
base_url = "http://{belvo}"
token_url = "http://{belvo}"
widget_url = "http://{belvo}/widget/"
secret_id = "{}"
secret_password = "{}"
budget = {{ requests = 1000000, per = "30s" }}
[widget]
callback_urls = {{ success = "it://success", exit = "it://exit", event = "it://event" }}
[widget.branding]
company_icon = "https://it.example/icon.svg"
company_logo = "https://it.example/logo.svg"
company_name = "It"
company_terms_url = "https://it.example/terms/"
[webhook]
listen = "{webhooks}"
authorization = ["{AUTHORIZATION}"]
allow_ips = ["127.0.0.1"]
[admin]
listen = "{admin}"
token = "{TOKEN}"
[state]
encryption_key = "{ENCRYPTION_KEY}"
[lake]
url = "lake"
publish_quiet = "50ms"
publish_max_wait = "1s"
[pii]
pepper = "{PEPPER}"
"#,
        simulate::SECRET_ID,
        simulate::SECRET_PASSWORD,
    )
}

/// An address of this machine whose port the system chooses.
pub(crate) const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A clock that goes as the machine's does, from an instant of the test's choice, and jumps when told to.
#[derive(Clone, Default)]
pub(crate) struct TestClock(Arc<AtomicI64>);

impl TestClock {
    /// One that shows `start` now.
    pub(crate) fn starting_at(start: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(start.as_micros() - Clock::system().now().as_micros())))
    }

    /// Moves on.
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }

    /// Microseconds that it is ahead of the machine's clock.
    pub(crate) fn ahead(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn clock(&self) -> Clock {
        let offset = Arc::clone(&self.0);
        Clock::from_fn(move || {
            Timestamp::from_micros(Clock::system().now().as_micros() + offset.load(Ordering::SeqCst))
        })
    }
}

/// A running daemon with a folder of its own.
pub(crate) struct Running {
    pub(crate) daemon: Daemon,
    pub(crate) clock: TestClock,
    config: Config,
    _folder: TempDir,
}

impl Running {
    /// Starts it for Belvo at `belvo`, with `overrides` such as `("belvo.page_size", "2")`.
    pub(crate) async fn start(belvo: SocketAddr, overrides: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), TestClock::default(), belvo, overrides).await
    }

    /// The same in `folder`, with state and lake where they are, on `clock`.
    pub(crate) async fn start_in(
        folder: TempDir,
        clock: TestClock,
        belvo: SocketAddr,
        overrides: &[(&str, &str)],
    ) -> Self {
        let file = folder.path().join("vinculo.toml");
        std::fs::write(&file, config_text(belvo, ANY_PORT, ANY_PORT)).unwrap();
        // No jobs: what is fetched is fetched because a webhook said so.
        std::fs::create_dir_all(folder.path().join("jobs")).unwrap();
        let config = Config::load(Some(&file), [], overrides, Needs { belvo: true, webhook: true }).unwrap();
        config.check_folders().unwrap();
        let daemon = Daemon::start(&config, clock.clock(), Parts::All).await.unwrap();
        Self { daemon, clock, config, _folder: folder }
    }

    /// Ends it, and starts it anew in the same folder, for Belvo at `belvo`.
    pub(crate) async fn restart(self, belvo: SocketAddr, overrides: &[(&str, &str)]) -> Self {
        let Self { daemon, clock, config, _folder: folder } = self;
        daemon.stop().await;
        // The last who writes frees the state, and tells nobody.
        let deadline = Instant::now() + STUCK;
        while store::holder(&config.state.path).is_some() {
            assert!(Instant::now() < deadline, "the state is still held");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self::start_in(folder, clock, belvo, overrides).await
    }

    /// Where webhooks go.
    pub(crate) fn webhook_url(&self) -> String {
        format!("http://{}{}", self.daemon.webhook_address.unwrap(), self.config.webhook.path)
    }

    /// Where Belvo is, with a slash at the end.
    pub(crate) fn belvo_url(&self) -> String {
        self.config.belvo.base_url.to_string()
    }

    /// The lake's folder.
    pub(crate) fn lake(&self) -> PathBuf {
        self.config.lake.path.clone()
    }

    /// The state's file.
    pub(crate) fn state(&self) -> PathBuf {
        self.config.state.path.clone()
    }

    /// Waits until every refresh has run and every change is published.
    pub(crate) async fn until_idle(&self) {
        if in_time(self.daemon.until_idle()).await.is_none() {
            let backlog = self.daemon.store.read(queue::backlog).await.unwrap();
            panic!("still busy after {STUCK:?}: {backlog:?}");
        }
    }

    /// Waits until every refresh has run, published or not.
    pub(crate) async fn until_fetched(&self) {
        let mut settled = self.daemon.settled();
        loop {
            settled.mark_unchanged();
            let pending = self.daemon.store.read(queue::backlog).await.unwrap().pending;
            if pending == 0 {
                return;
            }
            let heard = tokio::time::timeout(Duration::from_mins(1), settled.changed()).await;
            assert!(heard.is_ok(), "{pending} refreshes are stuck");
            // Asking looks at every refresh.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until every change so far is published.
    pub(crate) async fn until_published(&self) {
        assert!(in_time(self.daemon.until_published()).await.is_some(), "nothing was published in {STUCK:?}");
    }

    /// What analysts see, in DuckDB; Parquet holds the same.
    pub(crate) fn tables(&self) -> Tables {
        let current = || std::fs::read_link(self.lake().join("current")).unwrap();
        let (tables, same) = loop {
            let before = current();
            let both = (tables::from_duckdb(&self.lake()), tables::from_parquet(&self.lake()));
            // The daemon publishes whenever it has news, so between the two as well.
            if current() == before {
                break both;
            }
        };
        tables::assert_same(&same, &tables, &[]);
        tables::assert_keys_are_unique(&tables);
        tables::assert_histories_agree(&tables);
        tables
    }

    /// Sends these as Belvo does: each sequence in its order, all of them at once.
    pub(crate) async fn webhooks(&self, sequences: Vec<Vec<String>>) {
        let client = reqwest::Client::new();
        let mut sending = tokio::task::JoinSet::new();
        for bodies in sequences {
            let (client, url) = (client.clone(), self.webhook_url());
            sending.spawn(async move {
                for body in bodies {
                    let request = client.post(&url).header("content-type", "application/json");
                    let answer = request.header("authorization", AUTHORIZATION).body(body).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                }
            });
        }
        sending.join_all().await;
    }

    /// Sends `body` as Belvo does, and gives the status of the answer.
    pub(crate) async fn webhook(&self, body: &str) -> u16 {
        let request = reqwest::Client::new().post(self.webhook_url()).header("content-type", "application/json");
        request.header("authorization", AUTHORIZATION).body(body.to_owned()).send().await.unwrap().status().as_u16()
    }
}

async fn in_time<T>(work: impl Future<Output = anyhow::Result<T>>) -> Option<T> {
    tokio::time::timeout(STUCK, work).await.ok().map(Result::unwrap)
}

/// A simulated Belvo with its webhooks, and the daemon they go to.
pub(crate) struct Flow {
    pub(crate) simulation: Simulation,
    pub(crate) running: Running,
    _serving: Serving,
}

impl Flow {
    /// Starts both; nobody is connected yet.
    pub(crate) async fn start(people: u32) -> Self {
        Self::start_with(people, |_| {}, &[]).await
    }

    /// The same, with the simulator's settings and the program's `overrides`.
    pub(crate) async fn start_with(
        people: u32,
        set: impl FnOnce(&mut simulate::Settings),
        overrides: &[(&str, &str)],
    ) -> Self {
        Self::start_with_jobs(&[], people, set, overrides).await
    }

    /// The same, with these jobs, as name and text.
    pub(crate) async fn start_with_jobs(
        jobs: &[(&str, &str)],
        people: u32,
        set: impl FnOnce(&mut simulate::Settings),
        overrides: &[(&str, &str)],
    ) -> Self {
        let mut settings = simulate::Settings {
            people,
            webhook_authorization: AUTHORIZATION.into(),
            webhook_latency: Duration::from_millis(200),
            webhook_backoff: Duration::from_millis(100),
            limit: None,
            pepper: Some(PEPPER.into()),
            ..simulate::Settings::default()
        };
        set(&mut settings);
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let clock = TestClock::starting_at(settings.start);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("jobs")).unwrap();
        for (name, text) in jobs {
            std::fs::write(folder.path().join(format!("jobs/{name}.toml")), text).unwrap();
        }
        let running = Running::start_in(folder, clock, listener.local_addr().unwrap(), overrides).await;
        settings.webhook = Some(running.webhook_url().parse().unwrap());
        let simulation = Simulation::new(settings);
        let serving = Serving::start(&simulation, listener);
        Self { simulation, running, _serving: serving }
    }

    /// Waits until every webhook is answered, every refresh has run and every change is published.
    pub(crate) async fn until_idle(&self) {
        until_delivered(&self.simulation).await;
        self.running.until_idle().await;
    }

    /// What the tables should hold.
    pub(crate) fn truth(&self) -> Tables {
        tables::from_truth(&self.simulation.truth())
    }
}

/// Waits until every webhook of `simulation` is answered.
pub(crate) async fn until_delivered(simulation: &Simulation) {
    let delivered = tokio::time::timeout(STUCK, simulation.wait_until_delivered()).await;
    assert!(delivered.is_ok(), "webhooks are still outstanding after {STUCK:?}: {:?}", simulation.webhooks());
    assert_eq!(simulation.webhooks().given_up, 0, "{:?}", simulation.webhooks());
}

/// A simulation that answers until this is dropped.
pub(crate) struct Serving {
    _end: DropGuard,
    _task: JoinHandle<std::io::Result<()>>,
}

impl Serving {
    /// Answers on `listener`.
    pub(crate) fn start(simulation: &Simulation, listener: TcpListener) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(simulation.clone().serve(listener, shutdown.clone()));
        Self { _end: shutdown.drop_guard(), _task: task }
    }
}
