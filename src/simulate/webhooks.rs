//! Events: what they say, when they are sent, and how often they are tried.
//!
//! An event is sent once its time has come; anything but a 2xx within five seconds is tried up to five times more, each
//! pause one backoff longer than the one before, and then given up.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use super::faults::{Call, Hits, WEBHOOK};
use super::json::Json;
use super::links::{Link, Resource};
use super::random::{Stream, hex32, uuid};
use super::{Settings, Simulation};

/// What an event is about.
#[derive(Clone, Debug)]
pub(super) enum About {
    /// All there is, for the first time or again.
    Historical(Resource),
    /// A recurrent link was read again; so many records are new or changed.
    New(Resource, usize),
    /// The password is no longer good.
    InvalidCredentials,
    /// The institution wants a token.
    TokenRequired,
    /// The link was deleted.
    Deleted,
}

impl About {
    /// The `webhook_type` of its events.
    fn kind(&self) -> &'static str {
        match self.resource() {
            Some(Resource::Employments) => "EMPLOYMENTS",
            Some(Resource::Owners) => "OWNERS",
            None => "LINK",
        }
    }

    fn resource(&self) -> Option<Resource> {
        match self {
            Self::Historical(resource) | Self::New(resource, _) => Some(*resource),
            _ => None,
        }
    }
}

/// How many events there were, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that were to be sent, copies included.
    pub scheduled: u64,
    /// Answered with 2xx.
    pub delivered: u64,
    /// Never answered with 2xx, and no longer tried.
    pub given_up: u64,
    /// Still to be sent, or sent again.
    pub outstanding: u64,
    /// Requests made.
    pub attempts: u64,
}

/// One attempt to deliver an event.
#[derive(Clone, Debug)]
pub struct Delivered {
    /// The event's link.
    pub link: Option<String>,
    /// The event's resource.
    pub resource: Option<Resource>,
    /// When the attempt began.
    pub sent_at: Instant,
    /// How long the answer took.
    pub took: Duration,
    /// The status; none when no answer came in time.
    pub status: Option<u16>,
}

/// Sends events, and counts them.
pub(super) struct PostOffice {
    client: reqwest::Client,
    tally: watch::Sender<Tally>,
    deliveries: Mutex<Vec<Delivered>>,
    senders: Semaphore,
}

/// Belvo wants an answer within this time.
const DEADLINE: Duration = Duration::from_secs(5);

/// How often a refused event is sent again.
const REPEATS: u32 = 5;

impl PostOffice {
    /// Nothing sent yet.
    pub(super) fn new(settings: &Settings) -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DEADLINE)
            .user_agent("vinculo-simulate")
            .build()
            .expect("the TLS library starts");
        let senders = if settings.webhook.is_some() { 64 } else { Semaphore::MAX_PERMITS };
        Self {
            client,
            tally: watch::Sender::new(Tally::default()),
            deliveries: Mutex::default(),
            senders: Semaphore::new(senders),
        }
    }

    /// What became of the events so far.
    pub(super) fn tally(&self) -> Tally {
        *self.tally.borrow()
    }

    /// Waits until nothing is outstanding.
    pub(super) async fn idle(&self) {
        let mut tally = self.tally.subscribe();
        // The sender lives as long as `self`.
        let _ = tally.wait_for(|tally| tally.outstanding == 0).await;
    }

    /// Every attempt so far.
    pub(super) fn deliveries(&self) -> Vec<Delivered> {
        self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn count(&self, change: impl FnOnce(&mut Tally)) {
        self.tally.send_modify(change);
    }
}

impl Simulation {
    /// Sends an event for the link at `position`, after `latency` or the simulation's own.
    pub(super) fn announce(&self, position: usize, about: About, latency: Option<Duration>) {
        self.0.post.count(|tally| {
            tally.scheduled += 1;
            tally.outstanding += 1;
        });
        let latency = latency.unwrap_or_else(|| self.latency(position, &about));
        let simulation = self.clone();
        tokio::spawn(async move {
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            let Written { bodies, link, hang_up, again } = simulation.write(position, &about);
            let times = if again.is_some() { 2 } else { 1 };
            let sent = bodies.len() as u64 * times;
            simulation.0.post.count(|tally| {
                tally.scheduled = tally.scheduled + sent - 1;
                tally.outstanding = tally.outstanding + sent - 1;
            });
            let post = |bodies: &[Vec<u8>]| {
                for body in bodies {
                    simulation.post(body.clone(), Some(link.clone()), about.resource(), hang_up);
                }
            };
            post(&bodies);
            if let Some(after) = again {
                tokio::time::sleep(after).await;
                post(&bodies);
            }
        });
    }

    /// Sends a body that no event of the simulation has, `copies` times.
    pub(super) fn send_raw(&self, body: &Json, copies: u32) {
        self.0.post.count(|tally| {
            tally.scheduled += u64::from(copies);
            tally.outstanding += u64::from(copies);
        });
        let link = body.get("link_id").and_then(Json::as_text).map(str::to_owned);
        for _ in 0..copies {
            self.post(body.to_bytes(), link.clone(), None, None);
        }
    }

    fn latency(&self, position: usize, about: &About) -> Duration {
        let mean = self.0.settings.webhook_latency;
        let person = self.state().world.link(position).person;
        let purpose = about.resource().map_or("latency", Resource::name);
        mean / 2 + mean * Stream::new(self.0.settings.seed, person, purpose).below(1_000) / 1_000
    }

    /// Lets the data be seen, and writes what is to be sent.
    pub(super) fn write(&self, position: usize, about: &About) -> Written {
        let mut state = self.state();
        let state = &mut *state;
        let total = match about {
            About::Historical(resource) if !state.world.link(position).deleted => state.world.load(position, *resource),
            _ => 0,
        };
        let link = state.world.link(position);
        let nth = state.events.entry((position, about.kind())).or_default();
        *nth += 1;
        let body = event(self.0.settings.seed, link, about, total, *nth);
        let hits: Hits =
            state.faults.draw(Call { on: WEBHOOK, link: Some(&link.id), together: &[], resource: about.resource() });
        let link = link.id.clone();
        if let Some(status) = hits.link_status() {
            state.world.set_status(position, status);
        }
        let bodies = hits.event(body).iter().map(Json::to_bytes).collect();
        Written { bodies, link, hang_up: hits.hang_up(), again: hits.again() }
    }

    fn post(&self, body: Vec<u8>, link: Option<String>, resource: Option<Resource>, mut hang_up: Option<Duration>) {
        let simulation = self.clone();
        tokio::spawn(async move {
            let post = &simulation.0.post;
            let mut delivered = simulation.0.settings.webhook.is_none();
            for attempt in 0..=REPEATS {
                if delivered {
                    break;
                }
                if attempt > 0 {
                    tokio::time::sleep(simulation.0.settings.webhook_backoff * attempt).await;
                }
                // The permit is held for the request only, so that one that waits for its repeat blocks nobody.
                let permit = post.senders.acquire().await;
                let sent_at = Instant::now();
                let status = simulation.send_once(&body, hang_up.take()).await;
                drop(permit);
                delivered = status.is_some_and(|status| (200..300).contains(&status));
                post.count(|tally| tally.attempts += 1);
                let attempt = Delivered { link: link.clone(), resource, sent_at, took: sent_at.elapsed(), status };
                post.deliveries.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
            }
            post.count(|tally| {
                tally.outstanding -= 1;
                if delivered {
                    tally.delivered += 1;
                } else {
                    tally.given_up += 1;
                }
            });
        });
    }

    async fn send_once(&self, body: &[u8], hang_up: Option<Duration>) -> Option<u16> {
        let settings = &self.0.settings;
        let mut request = self.0.post.client.post(settings.webhook.clone()?).header("content-type", "application/json");
        if !settings.webhook_authorization.is_empty() {
            request = request.header("authorization", &settings.webhook_authorization);
        }
        let answer = request.body(body.to_vec()).timeout(hang_up.unwrap_or(DEADLINE)).send().await.ok()?;
        Some(answer.status().as_u16())
    }
}

/// What is to be sent for one event.
pub(super) struct Written {
    /// The bodies of the requests.
    pub bodies: Vec<Vec<u8>>,
    /// The link's id.
    link: String,
    /// When the sender leaves, if it does.
    hang_up: Option<Duration>,
    /// When all of it is sent once more, if it is.
    again: Option<Duration>,
}

/// The body of an event, the `nth` of its kind for the link. Both resources of a link come with one `request_id`, as in
/// Belvo's samples.
fn event(seed: u64, link: &Link, about: &About, total: usize, nth: u64) -> Json {
    let (kind, process, code, data) = match about {
        About::Historical(Resource::Employments) => {
            ("EMPLOYMENTS", "historical_update", "historical_update", number("total_employments", total))
        }
        About::Historical(Resource::Owners) => {
            ("OWNERS", "historical_update", "historical_update", number("total_owners", total))
        }
        About::New(Resource::Employments, changed) => {
            ("EMPLOYMENTS", "recurrent_update", "new_employments_available", number("new_employments", *changed))
        }
        About::New(Resource::Owners, changed) => {
            ("OWNERS", "recurrent_update", "new_owners_available", number("new_owners", *changed))
        }
        About::InvalidCredentials => ("LINK", "recurrent_update", "invalid_credentials", user_problem(false)),
        About::TokenRequired => ("LINK", "recurrent_update", "token_required", user_problem(true)),
        About::Deleted => ("LINK", "recurrent_update", "link_deleted", Json::Object(Vec::new())),
    };
    Json::object([
        ("webhook_id", hex32(seed, link.person, &format!("webhook {kind} {} {nth}", link.ordinal)).into()),
        ("webhook_type", kind.into()),
        ("process_type", process.into()),
        ("webhook_code", code.into()),
        ("link_id", link.id.as_str().into()),
        ("request_id", uuid(seed, link.person, &format!("request {}", link.ordinal)).into()),
        ("external_id", link.external_id.clone().into()),
        ("data", data),
    ])
}

fn number(key: &'static str, value: usize) -> Json {
    Json::object([(key, value.into())])
}

/// What an event says of a link that needs its user: a token, or another password.
pub(super) fn user_problem(is_token: bool) -> Json {
    if is_token {
        problem("token_required", "A MFA token is required by the institution to login", 428)
    } else {
        problem("login_error", "Invalid credentials provided to login to the institution", 400)
    }
}

fn problem(code: &str, message: &str, status: usize) -> Json {
    Json::object([("error_code", code.into()), ("error_message", message.into()), ("status", status.into())])
}
