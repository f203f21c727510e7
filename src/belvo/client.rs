//! The HTTP client of Belvo's API.
//!
//! *Takes* a path, and what is sent with it. *Gives* the body of a successful answer, or a [`Failure`] that names the
//! next step. *Promises* that a call goes to the configured origin and nowhere else, leaves within the budget, ends in
//! time and within bounds, and is sent once: retries are durable, so they belong to the queue.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, redirect, retry, tls};
use secrecy::ExposeSecret;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use tracing::Instrument as _;
use tracing::field::Empty;
use url::Url;

use super::budget::{Budget, Class, LONGEST_PAUSE, Permit, Usage};
use super::failure::{Code, Failure};
use super::gate::{Down, Ending, Gate, Patience, Shut};
use crate::backoff::doubled;
use crate::clock::{Clock, Timestamp};
use crate::config;

/// What is read of an answer that is an error.
const ERROR_BODY: usize = 64 << 10;
/// How long that is waited for: the status alone says what to do next, nearly always.
const ERROR_BODY_WITHIN: Duration = Duration::from_secs(5);
/// Each body may grow to so many bytes beside all others. What grows beyond waits for its part of [`LARGE_BODIES`].
const SMALL_BODY: usize = 4 << 20;
/// So many MiB may all larger bodies come to that are read at the same time: endless ones must not fill the memory.
const LARGE_BODIES: u32 = 128;
/// What a server may send of all bodies of an HTTP/2 connection before they are read: those that wait for their part
/// must not hold up the others.
const HTTP2_WINDOW: u32 = 32 << 20;
/// The header in which a simulated Belvo says that it is one.
const SIMULATED: &str = "x-vinculo-simulated";
/// First pause of all calls when Belvo's gate refuses the address, a whole window of its limit. It doubles each time.
const FIRST_COOL_DOWN: Duration = Duration::from_secs(30);
/// The longest pause that this leads to. It is long, because an address that goes on may be blocked for good.
const LAST_COOL_DOWN: Duration = Duration::from_mins(10);
/// First pause when Belvo asks for patience without saying how long. It is short, because calls keep within the budget:
/// it was others who were too many. It doubles each time.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// The longest pause that this leads to: what waited for its end follows within the minute in which all is right again.
const LAST_PATIENCE: Duration = Duration::from_secs(45);
/// A call of somebody who waits for it does not wait for the end of a pause that lasts longer.
const SHORT_PAUSE: Duration = Duration::from_secs(10);
/// An HTTP/2 connection with calls under way is asked this often whether it still stands, and given up after as long
/// without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// No budget is halved for longer than this, however long a pause was.
const LONGEST_SLOW_DOWN: Duration = Duration::from_hours(10);

/// A connection to Belvo. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    authorization: HeaderValue,
    settings: config::Belvo,
    budget: Budget,
    gate: Gate,
    clock: Clock,
    /// A permit for each MiB of [`LARGE_BODIES`].
    large_bodies: Semaphore,
    cool_downs: std::sync::Mutex<u32>,
    origin: std::sync::Mutex<Origin>,
}

/// Whether answers come from a simulated Belvo.
#[derive(Default)]
struct Origin {
    /// What is expected, once it is known.
    is_simulated: Option<bool>,
    /// Whether the latest answer was of the other kind.
    is_mixed: bool,
}

/// A body with status 200.
pub struct Answer {
    /// The status, one that the call expects.
    pub status: u16,
    /// The unpacked bytes.
    pub body: Bytes,
    /// When the call left.
    pub started_at: Timestamp,
    /// When the last byte was here.
    pub fetched_at: Timestamp,
}

/// A call, before it leaves.
pub(super) struct Call<'a> {
    /// How the path is called.
    pub method: Method,
    /// Path and query, from the slash on.
    pub path: &'a str,
    /// The JSON that is sent.
    pub body: Option<Bytes>,
    /// Whether Belvo is to answer before the work is done.
    pub is_async: bool,
    /// Whether it goes to the token's own host, with the keys in the body alone.
    pub is_for_token: bool,
    /// Statuses that say that it went well.
    pub expects: &'static [u16],
}

impl<'a> Call<'a> {
    /// Reads `path`.
    pub(super) fn get(path: &'a str) -> Self {
        Self::with_method(Method::GET, path, &[200])
    }

    /// Posts `body`.
    pub(super) fn post(path: &'a str, body: &serde_json::Value, expects: &'static [u16]) -> Self {
        Self { body: Some(body.to_string().into()), ..Self::with_method(Method::POST, path, expects) }
    }

    /// Deletes `path`.
    pub(super) fn delete(path: &'a str, expects: &'static [u16]) -> Self {
        Self::with_method(Method::DELETE, path, expects)
    }

    fn with_method(method: Method, path: &'a str, expects: &'static [u16]) -> Self {
        Self { method, path, body: None, is_async: false, is_for_token: false, expects }
    }

    fn method_name(&self) -> &'static str {
        match self.method {
            Method::POST => "POST",
            Method::DELETE => "DELETE",
            _ => "GET",
        }
    }
}

/// How a call gets its leave.
pub struct Leave {
    class: Class,
    permit: Option<Permit>,
    is_trial: bool,
    patience: Patience,
}

impl Leave {
    /// It waits for a place among those of its class.
    pub fn of(class: Class) -> Self {
        Self { class, permit: None, is_trial: false, patience: Patience::Long }
    }

    /// It has its place already.
    pub fn with(class: Class, permit: Permit) -> Self {
        Self { permit: Some(permit), ..Self::of(class) }
    }

    /// An ordinary call that tries what may not be answered: when the gate before the API refuses it, that is about
    /// this call, and the others go on.
    pub fn for_a_trial() -> Self {
        Self { is_trial: true, ..Self::of(Class::Ordinary) }
    }

    /// The same for a call that waits so long for a Belvo that is down. One that does not leave for want of patience
    /// fails as the last one did.
    #[must_use]
    pub fn waiting(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer({} bytes)", self.body.len())
    }
}

impl Client {
    /// A client of `settings.base_url` whose calls leave within `budget`.
    ///
    /// # Errors
    /// When TLS cannot be set up, as on a machine without root certificates.
    pub fn new(settings: &config::Belvo, budget: Budget, clock: Clock) -> io::Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("vinculo/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .no_proxy()
            .referer(false)
            .gzip(true)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(Duration::from_secs(20))
            // Whatever takes the connection after a call that never ended on it would fail as that did.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE)
            .http2_initial_connection_window_size(HTTP2_WINDOW)
            .tcp_nodelay(true);
        builder = if settings.base_url.scheme() == "http" {
            // No certificate is ever looked at, so a machine without any will do.
            builder.tls_certs_only([])
        } else {
            builder.https_only(true).tls_version_min(tls::Version::TLS_1_2)
        };
        let http = builder.build().map_err(io::Error::other)?;
        let inner = Inner {
            http,
            authorization: authorization(settings)?,
            settings: settings.clone(),
            budget,
            gate: Gate::new(),
            clock,
            large_bodies: Semaphore::new(LARGE_BODIES as usize),
            cool_downs: std::sync::Mutex::default(),
            origin: std::sync::Mutex::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Calls `path_and_query`, which begins with a slash. An urgent call may use the reserve of the budget.
    ///
    /// # Errors
    /// A [`Failure`], also when the call did not leave because the keys are refused.
    pub async fn get(&self, path_and_query: &str, leave: Leave) -> Result<Answer, Failure> {
        self.call(&Call::get(path_and_query), leave).await
    }

    /// Makes one call, with a leave of the caller's choice.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(super) async fn call(&self, call: &Call<'_>, leave: Leave) -> Result<Answer, Failure> {
        let failed = |failure: Failure| failure.with_method(call.method_name());
        let Leave { class, permit, is_trial, patience } = leave;
        let in_vain = |code: Code| failed(Failure::own(code, call.path).of_no_connection());
        // The place in the budget comes first, as with the worker: a call that waited for one while it is the only call
        // that the gate lets through would wait for places of calls that wait behind it at the gate.
        let permit = match permit {
            Some(permit) => permit,
            None if patience == Patience::Long => self.0.budget.acquire(class).await,
            // Those that wait for Belvo may have all places.
            None => tokio::select! {
                biased;
                code = self.0.budget.until_paused_longer_than(SHORT_PAUSE) => return Err(in_vain(code)),
                permit = self.0.budget.acquire(class) => permit,
                down = self.0.gate.until_down() => return Err(in_vain(down.code)),
            },
        };
        let pass = match self.0.gate.enter(class == Class::Urgent, patience).await {
            Ok(pass) => pass,
            Err(shut) => {
                permit.unused();
                return Err(match shut {
                    Shut::Refused => failed(Failure::own(Code::ApiAuth, call.path)),
                    Shut::Down(down) => in_vain(down.code),
                });
            }
        };
        // Belvo may have asked for patience since the place was taken.
        if patience == Patience::Long {
            self.0.budget.until_unpaused().await;
        } else if let Err(code) = self.until_soon_unpaused().await {
            permit.unused();
            return Err(in_vain(code));
        }
        let (left, started_at) = (Instant::now(), self.0.clock.now());
        let span = tracing::debug_span!("call", method = call.method_name(), outcome = Empty, otel.kind = "client");
        let exchange = self.exchange(call, permit, is_trial).instrument(span.clone());
        let result = match timeout(self.0.settings.total_timeout, exchange).await {
            Ok(Ok((status, body))) => Ok(Answer { status, body, started_at, fetched_at: self.0.clock.now() }),
            Ok(Err(failure)) => Err(failed(failure)),
            Err(_) => Err(failed(Failure::own(Code::Timeout, call.path))),
        };
        let outcome = result.as_ref().map_or_else(|failure| failure.code.name(), |_| "ok");
        span.record("outcome", outcome);
        metrics::counter!("vinculo_belvo_requests_total", "outcome" => outcome).increment(1);
        metrics::histogram!("vinculo_belvo_request_seconds").record(left.elapsed());
        pass.ended(fingerprint(call.path), ending(&result));
        result
    }

    /// Waits until calls do not pause; says why they do when that is not soon.
    async fn until_soon_unpaused(&self) -> Result<(), Code> {
        tokio::select! {
            biased;
            code = self.0.budget.until_paused_longer_than(SHORT_PAUSE) => Err(code),
            () = self.0.budget.until_unpaused() => Ok(()),
        }
    }

    /// Why a call of somebody impatient would not leave now: Belvo is down, or calls pause for long.
    pub fn in_vain(&self) -> Option<Code> {
        self.down().map(|down| down.code).or_else(|| self.0.budget.paused_longer_than(SHORT_PAUSE))
    }

    /// Waits until calls make sense: while the keys are refused, or Belvo asked for patience, there is no use in taking
    /// up work.
    pub async fn until_open(&self) {
        self.0.gate.until_keys_may_be_tried().await;
        while let Some(until) = self.0.budget.paused_until() {
            tokio::time::sleep(until.since(self.0.clock.now()).max(Duration::from_millis(1))).await;
        }
    }

    /// Why calls pause now, or come to nothing: [`Code::SimulatedMismatch`], [`Code::ApiAuth`], [`Code::ApiDown`],
    /// [`Code::ApiBlocked`] or [`Code::RateLimited`]; `None` when they go.
    pub fn trouble(&self) -> Option<Code> {
        if self.lock_origin().is_mixed {
            return Some(Code::SimulatedMismatch);
        }
        self.0.gate.trouble().or_else(|| self.0.budget.paused_by())
    }

    /// What is known of a Belvo that is down; `None` when it is not.
    pub fn down(&self) -> Option<Down> {
        self.0.gate.down()
    }

    /// Whether Belvo refuses the keys, so that no call leaves until somebody mends them.
    pub fn refuses_keys(&self) -> bool {
        self.trouble() == Some(Code::ApiAuth)
    }

    /// How often the keys were found to be refused so far, so that it can be told whether they were once more.
    pub fn keys_refused(&self) -> u64 {
        self.0.gate.keys_refused()
    }

    /// Lets one call try refused keys now: somebody says that they are mended.
    pub fn try_keys_now(&self) {
        self.0.gate.try_keys_now();
    }

    /// Waits until keys that were refused are good again.
    pub async fn until_keys_are_mended(&self) {
        self.0.gate.until_keys_are_mended().await;
    }

    /// Whether answers come from a simulated Belvo; `None` before the first.
    pub fn is_simulated(&self) -> Option<bool> {
        self.lock_origin().is_simulated
    }

    /// From now on only answers of a simulated Belvo are taken, or only those of a real one.
    pub fn expect_simulated(&self, is_simulated: bool) {
        let mut origin = self.lock_origin();
        origin.is_mixed |= origin.is_simulated.is_some_and(|found| found != is_simulated);
        origin.is_simulated = Some(is_simulated);
    }

    /// The budget of all calls.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// How the budget is used now.
    pub fn usage(&self) -> Usage {
        self.0.budget.usage()
    }

    /// Where calls go.
    pub fn base_url(&self) -> &Url {
        &self.0.settings.base_url
    }

    /// Items asked for in a page.
    pub fn page_size(&self) -> u32 {
        self.0.settings.page_size
    }

    /// Largest body, unpacked, in bytes.
    pub fn max_body(&self) -> u64 {
        self.0.settings.max_body
    }

    /// The clock of [`Answer`]'s instants.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The configured settings, for calls whose body is made of them.
    pub(crate) fn settings(&self) -> &config::Belvo {
        &self.0.settings
    }

    async fn exchange(&self, call: &Call<'_>, permit: Permit, is_trial: bool) -> Result<(u16, Bytes), Failure> {
        let (settings, path) = (&self.0.settings, call.path);
        let sent = self.request(call).send();
        let response = timeout(settings.connect_timeout + settings.idle_timeout, sent).await;
        permit.answered();
        let response = match response {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                let failure = Failure::own(transport_code(&error, Code::Unreachable), path);
                return Err(if error.is_connect() { failure.of_no_connection() } else { failure });
            }
            Err(_) => return Err(Failure::own(Code::Timeout, path)),
        };
        let status = response.status().as_u16();
        let patience = retry_after(response.headers(), self.0.clock.now());
        // The pause begins with the headers: other calls must not leave while the body drips in.
        let wait = patience.or_else(|| (status == 429).then(|| self.next_cool_down(FIRST_PATIENCE, LAST_PATIENCE)));
        if let Some(wait) = wait {
            self.0.budget.pause(wait, Code::RateLimited);
        }
        if call.expects.contains(&status) {
            if wait.is_none() {
                *self.lock_cool_downs() = 0;
            }
            if !call.is_for_token && !self.is_of_one_origin(&response) {
                return Err(Failure::own(Code::SimulatedMismatch, path).with_status(status));
            }
            return self
                .body(response, settings.max_body)
                .await
                .map(|body| (status, body))
                .map_err(|code| Failure::own(code, path).with_status(status));
        }
        // Another Belvo's word that it does not know something is none of ours. What stands before Belvo says no such
        // thing.
        if status == 404 && !call.is_for_token && !self.is_of_one_origin(&response) {
            return Err(Failure::own(Code::SimulatedMismatch, path).with_status(status));
        }
        let said = self.error_body(response).await;
        let failure = Failure::of_answer(path, status, &said);
        // The gate refuses what it does not know; whether it is about this address, the next ordinary call will tell.
        if is_trial && failure.code == Code::ApiBlocked && patience.is_none() {
            return Err(failure);
        }
        Err(self.cool_down(failure, wait))
    }

    /// Whether the answer is simulated as all others are, or is not, as no other is.
    fn is_of_one_origin(&self, response: &Response) -> bool {
        let is_simulated = response.headers().get(SIMULATED).is_some_and(|value| value == "true");
        let mut origin = self.lock_origin();
        let expected = *origin.is_simulated.get_or_insert(is_simulated);
        origin.is_mixed = expected != is_simulated;
        !origin.is_mixed
    }

    fn request(&self, call: &Call<'_>) -> reqwest::RequestBuilder {
        let settings = &self.0.settings;
        let base = if call.is_for_token { &settings.token_url } else { &settings.base_url };
        let mut request = self.0.http.request(call.method.clone(), address(base, call.path));
        if !call.is_for_token {
            request = request.header(AUTHORIZATION, self.0.authorization.clone());
        }
        if call.is_async {
            request = request.header("x-belvo-request-mode", "async");
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        request
    }

    /// The body, or the code of what went wrong.
    async fn body(&self, mut response: Response, limit: u64) -> Result<Bytes, Code> {
        let announced = response.content_length();
        if announced.is_some_and(|length| length > limit) {
            return Err(Code::TooLarge);
        }
        let length = usize::try_from(announced.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut body = Vec::with_capacity(length.min(SMALL_BODY));
        let mut part = None;
        loop {
            let chunk = timeout(self.0.settings.idle_timeout, response.chunk()).await.map_err(|_| Code::Timeout)?;
            let Some(chunk) = chunk.map_err(|error| transport_code(&error, Code::Truncated))? else {
                return Ok(body.into());
            };
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(Code::TooLarge);
            }
            if part.is_none() && body.len() + chunk.len() > SMALL_BODY {
                part = self.part_of_large_bodies(announced.unwrap_or(limit)).await;
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Waits for the part of a body that may come to `size` bytes, or for all there is.
    async fn part_of_large_bodies(&self, size: u64) -> Option<SemaphorePermit<'_>> {
        let part = u32::try_from(size.div_ceil(1 << 20)).map_or(LARGE_BODIES, |mib| mib.min(LARGE_BODIES));
        // Nobody closes it.
        self.0.large_bodies.acquire_many(part).await.ok()
    }

    /// As much of an error's body as is worth reading, and as comes in time.
    async fn error_body(&self, mut response: Response) -> Vec<u8> {
        let mut body = Vec::new();
        let reading = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                let fits = chunk.len().min(ERROR_BODY - body.len());
                body.extend_from_slice(&chunk[..fits]);
                if body.len() == ERROR_BODY {
                    return;
                }
            }
        };
        let _ = timeout(ERROR_BODY_WITHIN.min(self.0.settings.idle_timeout), reading).await;
        body
    }

    /// Lets every call pause when the answer was about all of them; `wait` is the pause that began with its headers.
    fn cool_down(&self, failure: Failure, wait: Option<Duration>) -> Failure {
        let is_about_all = matches!(failure.code, Code::RateLimited | Code::ApiBlocked);
        if !is_about_all && wait.is_none() {
            return failure;
        }
        let is_block = failure.code == Code::ApiBlocked;
        let begun = wait.is_some();
        let (first, last) = if is_block { (FIRST_COOL_DOWN, LAST_COOL_DOWN) } else { (FIRST_PATIENCE, LAST_PATIENCE) };
        let wait = wait.unwrap_or_else(|| self.next_cool_down(first, last));
        // The headers did not say yet that it is a block.
        if !begun || is_block {
            self.0.budget.pause(wait, failure.code);
        }
        if is_block {
            self.0.budget.slow_down((wait * 10).min(LONGEST_SLOW_DOWN));
        }
        if is_about_all {
            tracing::warn!(code = failure.code.name(), seconds = wait.as_secs(), "all calls to Belvo pause: {failure}");
        }
        failure.after(wait)
    }

    /// Answers to calls that left before a pause began do not make the next one longer.
    fn next_cool_down(&self, first: Duration, last: Duration) -> Duration {
        let mut cool_downs = self.lock_cool_downs();
        if self.0.budget.paused_until().is_none() {
            *cool_downs = (*cool_downs + 1).min(16);
        }
        doubled(first, cool_downs.saturating_sub(1), last)
    }

    fn lock_origin(&self) -> std::sync::MutexGuard<'_, Origin> {
        self.0.origin.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock_cool_downs(&self) -> std::sync::MutexGuard<'_, u32> {
        self.0.cool_downs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn authorization(settings: &config::Belvo) -> io::Result<HeaderValue> {
    let pair = format!("{}:{}", settings.secret_id.expose_secret(), settings.secret_password.expose_secret());
    let mut value =
        HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair))).map_err(io::Error::other)?;
    value.set_sensitive(true);
    Ok(value)
}

/// The path under `base`: whatever `path_and_query` holds, the origin is ours.
fn address(base: &Url, path_and_query: &str) -> Url {
    let (path, query) =
        path_and_query.split_once('?').map_or((path_and_query, None), |(path, query)| (path, Some(query)));
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url.set_query(query);
    url
}

/// Tells requests apart without keeping them.
fn fingerprint(request: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.hash(&mut hasher);
    hasher.finish()
}

fn ending(result: &Result<Answer, Failure>) -> Ending {
    match result {
        Ok(_) => Ending::Answered,
        Err(failure) if failure.code == Code::ApiAuth => Ending::Refused,
        Err(failure) => match failure.code {
            Code::ApiDown
            | Code::ApiTimeout
            | Code::Timeout
            | Code::Unreachable
            | Code::TlsRefused
            | Code::Truncated => Ending::Failed(failure.code),
            _ => Ending::Answered,
        },
    }
}

/// The code of a failure of the network; `otherwise` when nothing better is known.
fn transport_code(error: &reqwest::Error, otherwise: Code) -> Code {
    if error.is_timeout() && !error.is_connect() {
        return Code::Timeout;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.to_string().contains("certificate") {
            return Code::TlsRefused;
        }
        cause = error.source();
    }
    otherwise
}

/// `Retry-After` in seconds or as a date, within bounds. A date counts from the answer's own `Date`, so that our clock
/// may be wrong.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let until = httpdate::parse_http_date(text).ok()?;
        let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let date = date.unwrap_or_else(|| std::time::UNIX_EPOCH + now.since(Timestamp::from_micros(0)));
        until.duration_since(date).unwrap_or_default()
    };
    Some(wait.clamp(Duration::from_secs(1), LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::Decision;
    use crate::belvo::scripted::{self, Script};

    #[tokio::test]
    async fn a_call_carries_the_keys_and_gives_the_body() {
        let script = Script::start(|_| scripted::json(200, r#"{"results":[]}"#)).await;
        let answer = script.client().get("/api/owners/?link=x", Leave::of(Class::Ordinary)).await.unwrap();
        assert_eq!(&answer.body[..], br#"{"results":[]}"#);
        let request = script.requests().remove(0).to_ascii_lowercase();
        assert!(request.starts_with("get /api/owners/?link=x http/1.1\r\n"), "{request}");
        assert!(request.contains(&format!(
            "authorization: basic {}\r\n",
            BASE64_STANDARD.encode("id:password").to_ascii_lowercase()
        )));
        assert!(request.contains(concat!("user-agent: vinculo/", env!("CARGO_PKG_VERSION"))));
    }

    #[tokio::test]
    async fn what_the_network_does_has_its_code() {
        let large = "x".repeat(5000);
        let cases: Vec<(Vec<u8>, Code)> = vec![
            (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{\"a\"".to_vec(), Code::Truncated),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"a\":".to_vec(), Code::Truncated),
            (
                b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n".to_vec(),
                Code::Redirected,
            ),
            (b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), Code::UnexpectedStatus),
            (scripted::json(200, &large), Code::TooLarge),
            (gzipped(1 << 20), Code::TooLarge),
            (b"HTTP/1.1 200 OK\r\n".to_vec(), Code::Unreachable),
            (b"SSH-2.0\r\n".to_vec(), Code::Unreachable),
            (scripted::json(500, "<html>"), Code::ApiDown),
        ];
        for (answer, code) in cases {
            let script = Script::start(move |_| answer.clone()).await;
            let failure = script.client().get("/", Leave::of(Class::Ordinary)).await.unwrap_err();
            assert_eq!(failure.code, code, "{failure}");
        }
    }

    #[tokio::test]
    async fn large_bodies_wait_for_each_other_and_so_many_end_by_their_size() {
        const LARGEST: u64 = 6 << 20;
        let script = Script::endless().await;
        let client = script.client_with(|settings| {
            settings.total_timeout = Duration::from_mins(5);
            settings.max_body = LARGEST;
        });
        // The keys are proven, so that calls go side by side.
        client.0.gate.enter(false, Patience::Long).await.unwrap().ended(1, Ending::Answered);
        let all = client.part_of_large_bodies(1 << 40).await.expect("nobody closes it");
        assert_eq!((all.num_permits(), client.0.large_bodies.available_permits()), (128, 0));
        let mut calls: tokio::task::JoinSet<_> = (0..16)
            .map(|_| {
                let client = client.clone();
                async move { client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err().code }
            })
            .collect();
        // Longer than any silence of the server's may last.
        let soon = client.settings().idle_timeout * 2;
        assert!(timeout(soon, calls.join_next()).await.is_err(), "none grows beyond its small part, and none fails");
        drop(all);
        while let Some(code) = calls.join_next().await {
            assert_eq!(code.unwrap(), Code::TooLarge);
        }
        assert_eq!(client.part_of_large_bodies(LARGEST).await.unwrap().num_permits(), 6);
        assert_eq!(client.0.large_bodies.available_permits(), 128);
    }

    #[tokio::test]
    async fn silence_and_dripping_end_and_free_their_place() {
        for (answer, wait) in [(&b""[..], true), (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", true)] {
            let script = Script::silent(answer.to_vec(), wait).await;
            let client = script.client();
            let started = Instant::now();
            assert_eq!(client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err().code, Code::Timeout);
            assert!(started.elapsed() < Duration::from_secs(3));
        }
        let script = Script::dripping(b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n").await;
        let started = Instant::now();
        assert_eq!(script.client().get("/", Leave::of(Class::Ordinary)).await.unwrap_err().code, Code::Timeout);
        assert!(
            (Duration::from_millis(1400)..Duration::from_secs(4)).contains(&started.elapsed()),
            "{:?}",
            started.elapsed()
        );
    }

    #[tokio::test]
    async fn the_status_of_an_error_counts_although_its_body_never_ends() {
        for (said, code) in [
            (&b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 999\r\n\r\n["[..], Code::ApiAuth),
            (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 999\r\n\r\n[{\"code\":\"", Code::ApiForbidden),
            (b"HTTP/1.1 403 Forbidden\r\ncontent-length: 999\r\n\r\n<html>", Code::ApiBlocked),
        ] {
            let script = Script::dripping(said).await;
            let started = Instant::now();
            let failure = script.client().get("/", Leave::of(Class::Ordinary)).await.unwrap_err();
            assert_eq!(failure.code, code, "{failure}");
            assert!(started.elapsed() < Duration::from_millis(1400), "{:?}", started.elapsed());
        }
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let client = scripted::client(address);
        let failure = client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err();
        assert_eq!((failure.code, failure.may_have_arrived()), (Code::Unreachable, false));
    }

    #[tokio::test]
    async fn who_waits_for_the_budget_keeps_nobody_from_calling_who_has_a_place() {
        let script = Script::start(|_| scripted::json(200, "{}")).await;
        let client = script.client_within(1);
        let permit = client.budget().acquire(Class::Ordinary).await;
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.get("/without", Leave::of(Class::Ordinary)).await }
        });
        while client.budget().usage().waiting_ordinary == 0 {
            tokio::task::yield_now().await;
        }
        // Nobody has called yet, so that one call goes first.
        let first = client.get("/with", Leave::with(Class::Ordinary, permit));
        timeout(Duration::from_secs(5), first).await.expect("it has its place").unwrap();
        timeout(Duration::from_secs(5), waiting).await.expect("the place is free again").unwrap().unwrap();
    }

    #[tokio::test]
    async fn patience_that_belvo_asks_for_holds_for_every_call() {
        let script =
            Script::start(|_| b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        let client = script.client();
        let failure = client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err();
        assert_eq!((failure.kind, failure.code), (Decision::RetryAfter(Duration::from_secs(7)), Code::RateLimited));
        assert_eq!(client.trouble(), Some(Code::RateLimited));
        assert!(timeout(Duration::from_millis(100), client.get("/", Leave::of(Class::Urgent))).await.is_err());
        assert_eq!(script.requests().len(), 1);
    }

    #[tokio::test]
    async fn patience_of_which_belvo_does_not_say_how_long_ends_within_the_minute_and_a_block_may_not() {
        for (status, wait) in [(429, LAST_PATIENCE), (403, LAST_COOL_DOWN)] {
            let script = Script::start(move |_| scripted::json(status, "<html>")).await;
            let client = script.client();
            // Nine came before, each after the pause of the one before it.
            *client.lock_cool_downs() = 9;
            let failure = client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err();
            assert_eq!(failure.kind, Decision::RetryAfter(wait));
            assert!(client.budget().paused_until().unwrap() <= client.clock().now() + wait);
            let is_within_the_minute = failure.delay(9, &mut rand::rng()) <= Duration::from_mins(1);
            assert_eq!(is_within_the_minute, status == 429);
        }
    }

    #[tokio::test]
    async fn a_pause_begins_with_the_headers_and_holds_whoever_has_a_place_already() {
        let head = b"HTTP/1.1 429 Too Many\r\nretry-after: 7\r\ncontent-length: 99\r\n\r\n[";
        let script = Script::silent(head.to_vec(), true).await;
        let client = script.client();
        let permit = client.budget().acquire(Class::Urgent).await;
        let calling = tokio::spawn({
            let client = client.clone();
            async move { client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err() }
        });
        let started = Instant::now();
        while client.budget().paused_until().is_none() {
            assert!(started.elapsed() < Duration::from_secs(5), "the body is waited for");
            tokio::task::yield_now().await;
        }
        assert!(!calling.is_finished(), "the rest of the body is still to come");
        assert_eq!(calling.await.unwrap().code, Code::RateLimited);
        let second = client.get("/", Leave::with(Class::Urgent, permit));
        assert!(timeout(Duration::from_millis(100), second).await.is_err(), "it left within the pause");
        assert_eq!(script.requests().len(), 1);
    }

    #[tokio::test]
    async fn somebody_who_waits_is_told_of_a_long_pause_at_once_and_waits_for_the_end_of_a_short_one() {
        let script = Script::start(|_| scripted::json(200, "{}")).await;
        let client = script.client();
        let call = |class| {
            let client = client.clone();
            async move { client.get("/", Leave::of(class).waiting(Patience::Short)).await }
        };
        client.budget().pause(Duration::from_millis(200), Code::RateLimited);
        assert!(client.in_vain().is_none() && call(Class::Urgent).await.is_ok());
        // One that begins while it waits counts, too.
        client.budget().pause(Duration::from_secs(5), Code::RateLimited);
        let waiting = tokio::spawn(call(Class::Ordinary));
        assert!(timeout(Duration::from_millis(100), call(Class::Urgent)).await.is_err());
        client.budget().pause(Duration::from_mins(10), Code::ApiBlocked);
        let failure = timeout(Duration::from_secs(4), waiting).await.expect("it is told").unwrap().unwrap_err();
        assert_eq!((failure.code, failure.may_have_arrived()), (Code::ApiBlocked, false));
        assert_eq!(call(Class::Urgent).await.unwrap_err().code, Code::ApiBlocked);
        assert_eq!((client.in_vain(), script.requests().len()), (Some(Code::ApiBlocked), 1));
    }

    #[tokio::test]
    async fn simulated_and_real_answers_do_not_mix() {
        let calls = std::sync::atomic::AtomicU32::new(0);
        let script = Script::start(move |_| {
            let said = if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 { "x-other" } else { SIMULATED };
            format!("HTTP/1.1 200 OK\r\n{said}: true\r\ncontent-length: 2\r\n\r\n{{}}").into_bytes()
        })
        .await;
        let client = script.client();
        let get = async || client.get("/", Leave::of(Class::Ordinary)).await.map(drop).map_err(|failure| failure.code);
        assert_eq!((get().await, client.is_simulated(), client.trouble()), (Ok(()), Some(true), None));
        assert_eq!((get().await, client.trouble()), (Err(Code::SimulatedMismatch), Some(Code::SimulatedMismatch)));
        assert_eq!((get().await, client.trouble()), (Ok(()), None));
        client.expect_simulated(false);
        assert_eq!(client.trouble(), Some(Code::SimulatedMismatch), "the state holds real ones");
        assert_eq!(get().await, Err(Code::SimulatedMismatch));
    }

    #[tokio::test]
    async fn a_forbidden_page_cools_everything_down_and_a_forbidden_resource_does_not() {
        let script = Script::start(|_| scripted::json(403, "<html><center>openresty</center></html>")).await;
        let client = script.client();
        assert_eq!(
            client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err().kind,
            Decision::RetryAfter(FIRST_COOL_DOWN)
        );
        assert_eq!(client.trouble(), Some(Code::ApiBlocked));
        let page = "HTTP/1.1 403 Forbidden\r\nretry-after: 9\r\ncontent-length: 6\r\n\r\n<html>";
        let script = Script::start(move |_| page.as_bytes().to_vec()).await;
        let client = script.client();
        assert_eq!(client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err().code, Code::ApiBlocked);
        assert_eq!(client.trouble(), Some(Code::ApiBlocked), "its patience came first");
        let script = Script::start(|_| scripted::json(403, r#"[{"code":"access_to_resource_denied"}]"#)).await;
        let client = script.client();
        assert_eq!(client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err().kind, Decision::Refused);
        assert_eq!(client.trouble(), None);
    }

    #[tokio::test]
    async fn refused_keys_cost_three_calls() {
        let script = Script::start(|_| scripted::json(401, r#"[{"code":"authentication_failed"}]"#)).await;
        let client = script.client();
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.get("/", Leave::of(Class::Ordinary)).await.unwrap_err().kind })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), Decision::Stop);
        }
        assert_eq!(script.requests().len(), 3);
        assert_eq!(client.trouble(), Some(Code::ApiAuth));
    }

    #[test]
    fn both_forms_of_retry_after_are_read_and_bounded() {
        let now = Timestamp::parse("1994-11-06T08:49:37Z").unwrap();
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (value, date, expected) in [
            ("7", None, Some(7)),
            ("0", None, Some(1)),
            ("86400", None, Some(86_400)),
            ("90000", None, Some(86_400)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", None, Some(30)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some("Sun, 06 Nov 1994 08:50:02 GMT"), Some(5)),
            (date, Some("nonsense"), Some(1)),
            ("Sat, 06 Nov 1993 08:49:37 GMT", None, Some(1)),
            ("-5", None, None),
            ("soon", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            if let Some(date) = date {
                headers.insert(DATE, HeaderValue::from_static(date));
            }
            assert_eq!(retry_after(&headers, now), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn whatever_is_asked_for_the_origin_is_ours() {
        let base = Url::parse("https://api.belvo.com").unwrap();
        for path in ["//evil.example/", "/\\evil.example", "/@evil.example/?a=b", "https://evil.example/"] {
            assert_eq!(address(&base, path).origin(), base.origin(), "{path}");
        }
        let behind = Url::parse("http://localhost:9/belvo/").unwrap();
        assert_eq!(address(&behind, "/api/owners/?a=b").as_str(), "http://localhost:9/belvo/api/owners/?a=b");
    }

    /// An answer whose body unpacks to `size` times the digit 0, packed anew each time by the `gzip` of the machine.
    fn gzipped(size: usize) -> Vec<u8> {
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let mut gzip = Command::new("gzip").arg("-9c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        gzip.stdin.take().unwrap().write_all(&vec![b'0'; size]).unwrap();
        let packed = gzip.wait_with_output().unwrap().stdout;
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", packed.len())
                .into_bytes();
        answer.extend(packed);
        answer
    }
}
