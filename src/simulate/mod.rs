//! A fake Belvo: its paths, shapes, rules, limits and errors, and people whose lives are worth analysing.
//!
//! *Takes* [`Settings`]. *Gives* a [`Simulation`]: a server to point the program at, webhooks that come when Belvo's
//! would, faults by name, and the truth, which is what the tables should hold. *Promises* the same bytes for the same
//! seed, person *i* from (seed, *i*) alone, and time that moves only when it is told to. *Not here*: anything the rest
//! of the program knows. The truth is computed from the people, with no code outside this folder but the clock's.
//!
//! Everything a test can do with the handle can also be done over HTTP, below `/_sim/`, as the module `control` lists.

mod answer;
mod calendar;
mod control;
mod faults;
mod json;
mod limit;
mod links;
mod ndjson;
mod people;
mod query;
mod random;
mod records;
mod server;
mod token;
mod truth;
mod webhooks;
mod widget;
mod world;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::clock::Timestamp;
pub use faults::{Fault, KINDS as FAULT_KINDS, Kind as FaultKind, ROWS as FAULT_ROWS};
pub use limit::Limit;
pub use links::Resource;
pub use ndjson::write_ndjson;
pub use people::archetypes::NAMES as ARCHETYPES;
pub use webhooks::{Delivered, Tally};
pub use world::Advance;

/// The secret id that the simulator accepts unless told otherwise: openly fake.
pub const SECRET_ID: &str = "simulated-secret-id";

/// The password that goes with [`SECRET_ID`].
pub const SECRET_PASSWORD: &str = "simulated-secret-password";

/// What a simulation is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many people connect when all are told to: persons from 0 on, of whom the first 16 are the archetypes. Those
    /// after them may still connect, one by one.
    pub people: u32,
    /// Decides everybody's life.
    pub seed: u64,
    /// Where events are sent; without it data still becomes available, but nobody is told.
    pub webhook: Option<Url>,
    /// The `Authorization` header of webhooks; empty: none is sent.
    pub webhook_authorization: String,
    /// The user of Basic authentication.
    pub secret_id: String,
    /// Its password.
    pub secret_password: String,
    /// Belvo's limit; none lifts it.
    pub limit: Option<Limit>,
    /// Mean time from a link's creation to its event. Each event has its own, from half to one and a half of it.
    pub webhook_latency: Duration,
    /// The pause before the first repeat of a refused event; the second is twice as long, and so on.
    pub webhook_backoff: Duration,
    /// How long each answer is held back.
    pub response_latency: Duration,
    /// Key of `person_key` and `employer_key` in the truth; none gives NULL.
    pub pepper: Option<String>,
    /// What `next` and `previous` begin with; by default the `Host` of the request.
    pub base_url: Option<Url>,
    /// Where the simulated clock starts.
    pub start: Timestamp,
    /// Faults that are on from the start.
    pub faults: Vec<Fault>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            people: 500,
            seed: 1,
            webhook: None,
            webhook_authorization: String::new(),
            secret_id: SECRET_ID.to_owned(),
            secret_password: SECRET_PASSWORD.to_owned(),
            limit: Some(Limit { requests: 80, per: Duration::from_secs(30) }),
            webhook_latency: Duration::from_secs(15),
            webhook_backoff: Duration::from_secs(5),
            response_latency: Duration::ZERO,
            pepper: None,
            base_url: None,
            // 2026-11-20T12:00:00Z
            start: Timestamp::from_micros(1_795_176_000_000_000),
            faults: Vec::new(),
        }
    }
}

/// A running fake Belvo. Clones are handles on the same one.
#[derive(Clone)]
pub struct Simulation(Arc<Inner>);

struct Inner {
    settings: Settings,
    state: Mutex<State>,
    post: webhooks::PostOffice,
}

/// What changes.
struct State {
    world: world::World,
    faults: faults::Faults,
    window: limit::Window,
    deletions: limit::Window,
    arrivals: Vec<Arrival>,
    answered: Vec<truth::Answered>,
    requests: u64,
    /// Events so far, by the position of the link and their `webhook_type`.
    events: BTreeMap<(usize, &'static str), u64>,
    /// Widget tokens, and what each may do.
    sessions: BTreeMap<String, token::Session>,
    callbacks: token::Remembered,
}

/// One call of the API, as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When, by a clock that only goes forward.
    pub at: Instant,
    /// `GET`, `POST`, …
    pub method: String,
    /// The path, without its query.
    pub path: String,
    /// The link it named, in the path or the query.
    pub link: Option<String>,
    /// The links that it asked for together.
    pub together: Vec<String>,
    /// Whether it was one too many for the limit.
    pub refused: bool,
}

impl Simulation {
    /// A simulation without links. Nothing runs yet.
    pub fn new(settings: Settings) -> Self {
        let mut faults = faults::Faults::default();
        settings.faults.iter().cloned().for_each(|fault| faults.arm(fault));
        let state = State {
            world: world::World::new(settings.seed, settings.start),
            faults,
            window: limit::Window::default(),
            deletions: limit::Window::default(),
            arrivals: Vec::new(),
            answered: Vec::new(),
            requests: 0,
            events: BTreeMap::new(),
            sessions: BTreeMap::new(),
            callbacks: token::Remembered::default(),
        };
        let post = webhooks::PostOffice::new(&settings);
        Self(Arc::new(Inner { settings, state: Mutex::new(state), post }))
    }

    /// Answers calls on `listener` until `shutdown`; then open answers have a second to end.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        server::serve(self, listener, shutdown).await
    }

    /// Makes a link for each of [`Settings::people`] who has none, as the widget would, and announces both resources of
    /// each after the webhook latency. Gives the number of new links. Needs a tokio runtime.
    pub fn connect_all(&self) -> usize {
        self.connect(0, self.0.settings.people)
    }

    /// The same for `count` persons from `first` on.
    pub fn connect(&self, first: u32, count: u32) -> usize {
        let mut made = 0;
        for person in first..first.saturating_add(count) {
            if !self.state().world.is_connected(person) {
                self.connect_one(person, links::Wish::default());
                made += 1;
            }
        }
        made
    }

    /// Makes one more link for `person`, who may have some: a user who connects twice. Needs a tokio runtime.
    pub fn connect_again(&self, person: u32) {
        self.connect_one(person, links::Wish::default());
    }

    /// Moves the simulated clock. Recurrent links that are due are read again, and an event tells of each
    /// (`new_employments_available`, `new_owners_available`). Gives the number of events. Needs a tokio runtime.
    pub fn advance(&self, by: Advance) -> usize {
        let recollected = self.state().world.advance(by);
        for again in &recollected {
            self.announce(again.link, webhooks::About::New(again.resource, again.changed), None);
        }
        recollected.len()
    }

    /// Switches a fault on.
    pub fn arm(&self, fault: Fault) {
        self.state().faults.arm(fault);
    }

    /// Switches all faults off.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Webhooks that are neither delivered nor given up.
    pub fn outstanding_webhooks(&self) -> u64 {
        self.0.post.tally().outstanding
    }

    /// Waits until no webhook is outstanding.
    pub async fn wait_until_delivered(&self) {
        self.0.post.idle().await;
    }

    /// What became of the webhooks so far.
    pub fn webhooks(&self) -> Tally {
        self.0.post.tally()
    }

    /// Every attempt to deliver a webhook.
    pub fn deliveries(&self) -> Vec<Delivered> {
        self.0.post.deliveries()
    }

    /// What the current tables should hold: `{table: [row, …]}`, by column name.
    pub fn truth(&self) -> Value {
        let state = self.state();
        truth::truth(&state.world, &state.faults, self.0.settings.pepper.as_deref())
    }

    /// Every list of one or several links that was answered, in order: `[{link, resource, answered_at, rows}]`, with
    /// the rows that it should come to, before any fault: `{table, key, content, passing, collected_at}`, where a
    /// change of `passing` alone starts no version. Records that were deleted one by one are missing from all of them.
    pub fn ledger(&self) -> Value {
        let state = self.state();
        truth::ledger(&state.world, &state.faults, self.0.settings.pepper.as_deref(), &state.answered)
    }

    /// All calls of the API, in the order in which they arrived.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.state().arrivals.clone()
    }

    /// How many calls a path had that named a link, alone or together with others, or in all with `None`. Refused calls
    /// count.
    pub fn calls(&self, path: &str, link: Option<&str>) -> u64 {
        let state = self.state();
        let of = |arrival: &&Arrival| {
            let names = |link: &str| {
                arrival.link.as_deref() == Some(link) || arrival.together.iter().any(|together| together == link)
            };
            arrival.path == path && link.is_none_or(names)
        };
        state.arrivals.iter().filter(of).count() as u64
    }

    /// Calls that were one too many for the limit.
    pub fn breaches(&self) -> usize {
        self.state().arrivals.iter().filter(|arrival| arrival.refused).count()
    }

    /// The ids of all links that are there, in the order in which they were made.
    pub fn link_ids(&self) -> Vec<String> {
        self.state().world.links().map(|(_, link)| link.id.clone()).collect()
    }

    /// Sends an event of `resource` for the link `id` at once, `copies` times: a historical update with the present
    /// total. Gives whether the link exists. Needs a tokio runtime.
    pub fn send_again(&self, id: &str, resource: Resource, copies: u32) -> bool {
        let Some(position) = self.state().world.find(id) else { return false };
        for _ in 0..copies {
            self.announce(position, webhooks::About::Historical(resource), Some(Duration::ZERO));
        }
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of the lock panics")
    }

    fn connect_one(&self, person: u32, wish: links::Wish) -> usize {
        let position = self.state().world.connect(person, wish);
        self.announce_all(position);
        position
    }

    /// Announces all that the link at `position` fetches by itself.
    fn announce_all(&self, position: usize) {
        let resources = self.state().world.link(position).fetch_resources.clone();
        for resource in resources.iter().filter_map(|name| Resource::parse(name)) {
            self.announce(position, webhooks::About::Historical(resource), None);
        }
    }
}

#[cfg(test)]
mod tests;
