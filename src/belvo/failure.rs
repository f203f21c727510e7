//! Why a call to Belvo gave nothing, named by what to do next.
//!
//! *Takes* a status, Belvo's error codes and what the network did. *Gives* a [`Failure`]. *Promises* to show no text that
//! Belvo sent: codes are those of the table or `other`, a request id is hexadecimal.

use std::fmt;
use std::time::Duration;

use rand::{Rng, RngExt};
use serde::Deserialize;

use self::Decision::{AskUser, Gone, Refused, Retry, Stop};
use self::Pace::{Patient, Quick, Slow};
use self::Trouble::{Account, Down, Keys, Limit, Link};
use crate::link_id::LinkId;

/// The code of keys that Belvo refuses.
pub const REFUSED_KEYS: &str = "api_auth";

/// The code of an answer of a simulated Belvo where a real one is expected, or the other way round.
pub const SIMULATED_MISMATCH: &str = "simulated_mismatch";

/// Failures in a row after which Belvo should be told.
const REPORTED_AFTER: u32 = 3;

/// What the caller does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Try again after [`Failure::delay`].
    Retry,
    /// Try again after this long; until then the client lets no call leave.
    RetryAfter(Duration),
    /// The link waits for its user, or for news from Belvo.
    AskUser,
    /// Belvo does not know it; ask again before anything ends.
    Gone,
    /// The keys are refused: every call pauses, and an operator is needed.
    Stop,
    /// Belvo refuses this very call, and no user can mend that: its operator is told, and it is asked again, more and more
    /// seldom, because whoever mends it at Belvo tells nobody here.
    Refused,
}

/// How soon a retry is worth it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Seconds.
    Quick,
    /// Minutes.
    Slow,
    /// Within the minute at first, and then more and more seldom, for what only somebody elsewhere can mend.
    Patient,
    /// As many minutes as Belvo named.
    Minutes(u64),
}

impl Pace {
    fn wait(self, attempts: u32, rng: &mut impl Rng) -> Duration {
        let seconds = match (self, attempts) {
            (Quick, 0..=4) => 3 << attempts,
            (Quick, 5..=14) => 48,
            (Quick, _) => 240,
            (Slow, 0..=3) => 300 << attempts,
            (Patient, 0) => 5,
            (Patient, 1) => 15,
            (Patient, 2) => 30,
            // With its jitter still within the minute in which all is right again, for ten minutes.
            (Patient, 3..=14) => 45,
            (Patient, 15..=18) => 300,
            (Patient, 19..=26) => 900,
            (Slow | Patient, _) => 3600,
            (Pace::Minutes(minutes), _) => 60 * minutes,
        };
        let wait = Duration::from_secs(seconds);
        wait + spread(wait, rng)
    }
}

/// How long to wait after `attempts` failed tries for what only somebody elsewhere can mend: up to a minute for ten minutes,
/// then up to an hour.
pub fn patience(attempts: u32, rng: &mut impl Rng) -> Duration {
    Patient.wait(attempts, rng)
}

/// A call that gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do next.
    pub kind: Decision,
    /// Our own stable code, for logs, metrics and `status`.
    pub code: &'static str,
    /// Status of the answer, when one came.
    pub http_status: Option<u16>,
    /// Belvo's code: one that it documents, or `other`.
    pub belvo_code: Option<&'static str>,
    /// Belvo's request id, for its support: 32 hexadecimal digits.
    pub request_id: Option<String>,
    /// How it was asked.
    method: &'static str,
    /// What was asked for, as it may be shown.
    path: String,
    pace: Pace,
    /// Whether no byte of the call can have left.
    is_unsent: bool,
}

impl Failure {
    /// A failure that no answer's status tells; `code` is one of [`OWN`].
    pub(crate) fn own(code: &'static str, path: &str) -> Self {
        let kind = OWN.iter().find(|own| own.code == code).map_or(Retry, |own| own.kind);
        Self {
            kind,
            code,
            http_status: None,
            belvo_code: None,
            request_id: None,
            method: "GET",
            path: shown(path),
            pace: if matches!(kind, Refused | Gone) { Patient } else { Quick },
            is_unsent: false,
        }
    }

    /// The same failure, with the status of the answer that was no use.
    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.http_status = Some(status);
        self
    }

    /// The same failure of a call with another method than GET.
    pub(super) fn with_method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    /// The same failure of a call of which no byte has left.
    pub(super) fn of_no_connection(self) -> Self {
        Self { is_unsent: true, ..self }
    }

    /// The same failure, to be tried again after `wait`, unless trying again is no use.
    pub(super) fn after(mut self, wait: Duration) -> Self {
        if self.kind == Retry {
            self.kind = Decision::RetryAfter(wait);
        }
        self
    }

    /// What an answer with `status`, which is not 200, and `body` means.
    pub(super) fn of_answer(path: &str, status: u16, body: &[u8]) -> Self {
        let said = serde_json::from_slice::<Said>(body).ok().map(Said::into_list);
        let request_id = said.iter().flatten().find_map(|error| hexadecimal(error.request_id.as_deref()?));
        let rule = said
            .iter()
            .flatten()
            .find_map(|error| rule(status, error))
            .unwrap_or_else(|| fallback(status, said.is_some()));
        let belvo_code = match said.iter().flatten().find_map(|error| error.code.as_deref()) {
            Some(_) if rule.belvo_code.is_empty() => Some("other"),
            Some(_) => Some(rule.belvo_code),
            None => None,
        };
        Self {
            kind: rule.kind,
            code: rule.code,
            http_status: Some(status),
            belvo_code,
            request_id,
            method: "GET",
            path: shown(path),
            pace: rule.pace,
            is_unsent: false,
        }
    }

    /// How long to wait before the next try after `attempts` failed ones. Belvo's own schedule with some jitter on top,
    /// then every minute, later every five; minutes to an hour when an institution is down; up to a minute for ten minutes,
    /// then up to an hour, when Belvo refuses the call itself.
    pub fn delay(&self, attempts: u32, rng: &mut impl Rng) -> Duration {
        if let Decision::RetryAfter(wait) = self.kind {
            return wait + spread(wait.min(Duration::from_secs(30)), rng);
        }
        self.pace.wait(attempts, rng)
    }

    /// Whether the `attempt`-th failure in a row is the one that Belvo wants to hear of: it asks that its own errors and
    /// time-outs are tried three times, and then reported.
    pub fn is_worth_a_report(&self, attempt: u32) -> bool {
        attempt == REPORTED_AFTER && matches!(self.code, "api_down" | "api_timeout")
    }

    /// Whether Belvo may do all the same what the call asked for, because no answer says that it will not: none came, it was
    /// cut off, or Belvo failed on the way.
    pub fn may_have_arrived(&self) -> bool {
        !self.is_unsent
            && !matches!(self.code, "api_auth" | "tls_refused" | SIMULATED_MISMATCH)
            && self.http_status.is_none_or(|status| matches!(status, 200..=299 | 408 | 500..=599))
    }

    /// Whether Belvo refuses the call, or does not know what it is about.
    pub fn is_refused(&self) -> bool {
        is_refused(self.kind, self.code)
    }

    /// What an operator does about it.
    pub fn advice(&self) -> &'static str {
        advice(self.code)
    }
}

/// What an operator does about a failure with the stable code `code`.
pub fn advice(code: &str) -> &'static str {
    let own = OWN.iter().find(|own| own.code == code);
    own.map_or("it is tried again by itself", |own| own.advice)
}

/// Up to a quarter of `wait`.
fn spread(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(0.0..0.25))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = OWN.iter().find(|own| own.code == self.code).map_or("failed", |own| own.what);
        write!(f, "{} {}: {what}", self.method, self.path)?;
        let mut separator = " (";
        for (name, value) in [
            ("status", self.http_status.map(|status| status.to_string())),
            ("code", self.belvo_code.map(str::to_owned)),
            ("Belvo's request id", self.request_id.clone()),
        ] {
            if let Some(value) = value {
                write!(f, "{separator}{name} {value}")?;
                separator = ", ";
            }
        }
        let end = if separator == ", " { ")" } else { "" };
        write!(f, "{end}; {}", self.advice())
    }
}

impl std::error::Error for Failure {}

/// Whose trouble a failure is, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The keys are refused.
    Keys,
    /// The account may not do this.
    Account,
    /// Belvo's limit was reached.
    Limit,
    /// Belvo, the institution or the way to them is down.
    Down,
    /// It is about this link or request alone.
    Link,
}

/// What one of our codes means, in words for people.
#[derive(Debug, Clone, Copy)]
pub struct Meaning {
    /// Whose trouble it is.
    pub trouble: Trouble,
    /// What happened.
    pub what: &'static str,
    /// What to do next.
    pub advice: &'static str,
}

/// The meaning of `code`, the code of a [`Failure`] or why a link is paused; `None` for codes of other parts.
pub fn meaning(code: &str) -> Option<Meaning> {
    let own = OWN.iter().find(|own| own.code == code)?;
    Some(Meaning { trouble: own.trouble, what: own.what, advice: own.advice })
}

/// The codes of what Belvo refuses, or does not know, until somebody has mended it.
pub fn refused_codes() -> impl Iterator<Item = &'static str> {
    OWN.iter().filter(|own| is_refused(own.kind, own.code)).map(|own| own.code)
}

/// What is not taken from another Belvo is no refusal of Belvo's.
fn is_refused(kind: Decision, code: &str) -> bool {
    matches!(kind, Refused | Gone) && code != SIMULATED_MISMATCH
}

/// Every code that [`meaning`] knows.
pub fn codes() -> impl Iterator<Item = &'static str> {
    OWN.iter().map(|own| own.code)
}

/// One of our codes: what happened, what the caller does, whose trouble it is, and what an operator does.
struct Own {
    code: &'static str,
    kind: Decision,
    trouble: Trouble,
    what: &'static str,
    advice: &'static str,
}

macro_rules! own {
    ($($code:expr, $kind:expr, $trouble:expr, $what:literal, $advice:literal;)*) => {
        /// Every code that a [`Failure`] can have.
        static OWN: &[Own] = &[$(Own { code: $code, kind: $kind, trouble: $trouble, what: $what, advice: $advice }),*];
    };
}

own! {
    "api_auth", Stop, Keys, "Belvo refuses the keys", "check belvo.secret_id, belvo.secret_password and that they belong to belvo.base_url";
    "api_forbidden", Refused, Account, "Belvo forbids this call to the account", "ask Belvo to enable the resource; it is asked for again by itself, at last once an hour";
    "institution_refuses", Retry, Down, "the institution refuses Belvo", "it is tried again in some minutes";
    "institution_down", Retry, Down, "the institution is down", "look at Belvo's status page; it is tried again in some minutes";
    "link_cooling", Retry, Link, "the link was refreshed minutes ago", "it is tried again in some minutes";
    "api_blocked", Retry, Limit, "Belvo's gate refuses this address", "all calls pause and then go slower; lower belvo.budget when it recurs";
    "rate_limited", Retry, Limit, "Belvo asks for patience", "all calls pause as long as it asked; lower belvo.budget when it recurs";
    "link_needs_user", AskUser, Link, "the link needs its user", "let the user open the widget in update mode";
    "link_expired", AskUser, Link, "the link's credentials have expired at Belvo", "let the user connect again";
    "link_deleted", AskUser, Link, "the link was deleted at Belvo", "its rows stay; let the user connect again for new data";
    "resource_refused", Refused, Link, "the institution does not offer this resource for the link", "leave it out of the link's fetch_resources; it is asked for again by itself, at last once an hour";
    "not_found", Gone, Link, "Belvo does not know it", "it is asked for again before anything ends; let the user connect again when it stays";
    "bad_request", Refused, Link, "Belvo finds the request wrong", "report this with Belvo's request id; it is asked for again by itself, at last once an hour";
    "api_down", Retry, Down, "Belvo failed", "it is tried again by itself; report Belvo's request id when it stays";
    "api_timeout", Retry, Down, "Belvo took too long", "it is tried again by itself";
    "unexpected_status", Retry, Down, "an answer that is no list", "check belvo.base_url; it is tried again by itself";
    "redirected", Retry, Down, "the answer leads elsewhere and is not followed", "check belvo.base_url; it is tried again by itself";
    "unreachable", Retry, Down, "no connection", "check belvo.base_url, DNS and the network; it is tried again by itself";
    "tls_refused", Retry, Down, "the server's certificate is not trusted, so nothing was sent", "check belvo.base_url and ca-certificates";
    "timeout", Retry, Down, "no answer in time", "it is tried again by itself; see belvo.idle_timeout and belvo.total_timeout";
    "truncated", Retry, Down, "the answer was cut short and thrown away", "it is tried again by itself";
    "too_large", Refused, Link, "the answer is larger than belvo.max_body", "raise belvo.max_body or lower belvo.page_size";
    "not_json", Retry, Down, "the answer is not JSON", "check belvo.base_url; it is tried again by itself";
    "not_a_list", Retry, Down, "the answer has no list of results", "check belvo.base_url; it is tried again by itself";
    "foreign_next", Retry, Down, "the next page lies on another host and is not followed", "check belvo.base_url; it is tried again by itself";
    SIMULATED_MISMATCH, Refused, Down, "a simulated Belvo and a real one do not share a state", "check belvo.base_url, or use another state and lake; nothing of the answer was kept";
    "inconsistent_pages", Retry, Down, "the pages do not make one list", "it is tried again by itself";
}

/// What a status and a code of Belvo's mean.
#[derive(Debug, Clone, Copy)]
struct Rule {
    status: u16,
    belvo_code: &'static str,
    kind: Decision,
    pace: Pace,
    code: &'static str,
}

macro_rules! rules {
    ($($status:literal, $belvo:literal, $kind:expr, $pace:expr, $code:literal;)*) => {
        /// Belvo's documented codes; what is not here, [`fallback`] decides.
        static RULES: &[Rule] = &[$(Rule { status: $status, belvo_code: $belvo, kind: $kind, pace: $pace, code: $code }),*];
    };
}

rules! {
    400, "activation_failed", AskUser, Quick, "link_needs_user";
    400, "blank", Refused, Patient, "bad_request";
    400, "does_not_exist", Refused, Patient, "bad_request";
    400, "duplicated", Refused, Patient, "bad_request";
    400, "null", Refused, Patient, "bad_request";
    400, "required", Refused, Patient, "bad_request";
    400, "invalid", Refused, Patient, "bad_request";
    400, "invalid_choice", Refused, Patient, "bad_request";
    400, "not_a_list", Refused, Patient, "bad_request";
    400, "parse_error", Refused, Patient, "bad_request";
    400, "validation_error", Refused, Patient, "bad_request";
    400, "invalid_credentials_storage", Refused, Patient, "bad_request";
    400, "invalid_fetch_resources", Refused, Patient, "bad_request";
    400, "invalid_period", Refused, Patient, "bad_request";
    400, "institution_down", Retry, Slow, "institution_down";
    400, "institution_unavailable", Retry, Slow, "institution_down";
    400, "institution_inactive", Retry, Slow, "institution_down";
    400, "invalid_link", AskUser, Quick, "link_needs_user";
    400, "login_error", AskUser, Quick, "link_needs_user";
    400, "session_expired", AskUser, Quick, "link_needs_user";
    400, "session_expired_ob", AskUser, Quick, "link_needs_user";
    400, "too_many_sessions", Retry, Quick, "institution_refuses";
    400, "unavailable_data", Retry, Slow, "institution_down";
    400, "unconfirmed_link", AskUser, Quick, "link_needs_user";
    400, "unsupported_operation", Refused, Patient, "resource_refused";
    400, "operational_limits_reached", Refused, Patient, "resource_refused";
    401, "authentication_failed", Stop, Quick, "api_auth";
    401, "consent_without_accounts", Refused, Patient, "resource_refused";
    403, "access_to_production_denied", Refused, Patient, "api_forbidden";
    403, "access_to_resource_denied", Refused, Patient, "api_forbidden";
    403, "permission_denied", Retry, Slow, "institution_refuses";
    403, "quota_limit_reached", Refused, Patient, "api_forbidden";
    403, "forbidden_by_host", Retry, Slow, "institution_refuses";
    404, "not_found", Gone, Patient, "not_found";
    404, "expired_credentials", AskUser, Quick, "link_expired";
    405, "method_not_allowed", Refused, Patient, "bad_request";
    408, "request_timeout", Retry, Quick, "api_timeout";
    409, "link_refreshed", Retry, Slow, "link_cooling";
    428, "activation_required", AskUser, Quick, "link_needs_user";
    428, "token_required", AskUser, Quick, "link_needs_user";
    500, "service_unavailable", Retry, Quick, "api_down";
    500, "unexpected_error", Retry, Quick, "api_down";
}

/// Of `login_error`'s messages, the one that is no fault of the user's.
const LOGIN_FAILED_BY_CHANCE: &str = "something unexpected";

fn rule(status: u16, error: &BelvoError) -> Option<Rule> {
    let code = error.code.as_deref().unwrap_or("null");
    let mut rule = *RULES.iter().find(|rule| rule.status == status && rule.belvo_code == code)?;
    let message = error.message.as_deref().unwrap_or_default().to_ascii_lowercase();
    if rule.code == "link_cooling"
        && let Some(minutes) = message.split_whitespace().find_map(|word| word.parse::<u64>().ok())
    {
        rule.pace = Pace::Minutes(minutes.clamp(1, 60));
    }
    if code == "login_error" && message.contains(LOGIN_FAILED_BY_CHANCE) {
        rule = Rule { kind: Retry, pace: Slow, code: "institution_refuses", ..rule };
    }
    Some(rule)
}

/// What a status means when no documented code comes with it. A 403 that is not Belvo's JSON comes from the gate before
/// the API, and is about this address.
fn fallback(status: u16, is_belvos_json: bool) -> Rule {
    let (kind, pace, code) = match status {
        401 => (Stop, Quick, "api_auth"),
        403 if is_belvos_json => (Refused, Patient, "api_forbidden"),
        403 => (Retry, Quick, "api_blocked"),
        404 | 410 => (Gone, Patient, "not_found"),
        408 => (Retry, Quick, "api_timeout"),
        409 => (Retry, Slow, "link_cooling"),
        425 | 500..=599 => (Retry, Quick, "api_down"),
        428 => (AskUser, Quick, "link_needs_user"),
        429 => (Retry, Quick, "rate_limited"),
        400..=499 => (Refused, Patient, "bad_request"),
        300..=399 => (Retry, Quick, "redirected"),
        _ => (Retry, Quick, "unexpected_status"),
    };
    Rule { status, belvo_code: "", kind, pace, code }
}

/// Belvo's error body: a list of errors, or by accident one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    List(Vec<BelvoError>),
    One(BelvoError),
}

impl Said {
    fn into_list(self) -> Vec<BelvoError> {
        match self {
            Self::List(list) => list,
            Self::One(error) => vec![error],
        }
    }
}

#[derive(Deserialize)]
struct BelvoError {
    #[serde(default, deserialize_with = "text")]
    code: Option<String>,
    #[serde(default, deserialize_with = "text")]
    message: Option<String>,
    #[serde(default, deserialize_with = "text")]
    request_id: Option<String>,
}

/// A string, or nothing when it is of another type.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    })
}

fn hexadecimal(id: &str) -> Option<String> {
    let hex: String = id.chars().filter(|char| *char != '-').take(33).collect();
    (hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| hex.to_ascii_lowercase())
}

/// The address of a call as it may be shown: without its query, and without the links it names.
fn shown(path: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let shown = path.split('/').map(|part| if part.parse::<LinkId>().is_ok() { "{id}" } else { part });
    shown.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &str) -> Failure {
        Failure::of_answer("/api/owners/?link=secret", status, body.as_bytes())
    }

    fn body(code: &str, message: &str) -> String {
        format!(r#"[{{"code":"{code}","message":"{message}","request_id":"2675B703B9D04A9A8F3D6B8F0C0A4D2E"}}]"#)
    }

    #[test]
    fn every_documented_code_has_its_decision_and_every_one_of_ours_its_words() {
        for rule in RULES {
            let failure = answered(rule.status, &body(rule.belvo_code, "a message"));
            assert_eq!((failure.kind, failure.code), (rule.kind, rule.code), "{rule:?}");
            assert_eq!(failure.belvo_code, Some(rule.belvo_code));
            assert_eq!(failure.request_id.as_deref(), Some("2675b703b9d04a9a8f3d6b8f0c0a4d2e"));
            let own =
                OWN.iter().find(|own| own.code == rule.code).unwrap_or_else(|| panic!("{} has no words", rule.code));
            assert_eq!(own.kind, rule.kind, "{rule:?}: one code of ours means one decision");
        }
        for status in 100..600 {
            for is_json in [true, false] {
                let rule = fallback(status, is_json);
                let own = OWN
                    .iter()
                    .find(|own| own.code == rule.code)
                    .unwrap_or_else(|| panic!("{} has no words", rule.code));
                assert_eq!(own.kind, rule.kind, "{status}");
            }
        }
    }

    #[test]
    fn the_contracts_table_is_all_there() {
        let codes: Vec<String> = RULES.iter().map(|rule| format!("{} {}", rule.status, rule.belvo_code)).collect();
        assert_eq!(codes.len(), 42);
        for (status, body, kind, code) in [
            (403, "<html><center>openresty</center></html>", Retry, "api_blocked"),
            (403, r#"[{"code":"waf","message":"no"}]"#, Refused, "api_forbidden"),
            (429, "", Retry, "rate_limited"),
            (401, "<html>", Stop, "api_auth"),
            (404, "", Gone, "not_found"),
            (400, r#"[{"code":null,"message":"x","field":"link"}]"#, Refused, "bad_request"),
            (428, "[]", AskUser, "link_needs_user"),
            (502, "<html>", Retry, "api_down"),
            (302, "", Retry, "redirected"),
            (204, "", Retry, "unexpected_status"),
            (418, "", Refused, "bad_request"),
            (400, r#"{"code":"invalid_link"}"#, AskUser, "link_needs_user"),
        ] {
            let failure = answered(status, body);
            assert_eq!((failure.kind, failure.code), (kind, code), "{status} {body}");
        }
    }

    #[test]
    fn a_login_error_by_chance_is_tried_again_and_any_other_waits_for_the_user() {
        let chance =
            answered(400, &body("login_error", "Impossible to login, something unexpected happened. Try again later"));
        assert_eq!((chance.kind, chance.pace), (Retry, Slow));
        assert_eq!(answered(400, &body("login_error", "Invalid credentials")).kind, AskUser);
    }

    #[test]
    fn a_link_that_was_refreshed_waits_the_minutes_that_belvo_names() {
        let cooling =
            |message: &str| answered(409, &body("link_refreshed", message)).delay(0, &mut rand::rng()).as_secs();
        assert!((420..=525).contains(&cooling("Please wait 7 minutes before trying again.")));
        assert!((300..=375).contains(&cooling("Please wait.")));
        assert!(cooling("Please wait 99999999 minutes.") <= 4500);
    }

    #[test]
    fn no_text_of_belvos_no_link_and_no_query_is_shown() {
        let of_a_link = Failure::own("timeout", "/api/links/2f5d361d-dad6-45d4-a0bf-26d479766067/refresh/");
        assert!(of_a_link.to_string().starts_with("GET /api/links/{id}/refresh/: "), "{of_a_link}");
        let failure =
            answered(400, r#"[{"code":"99000000191","message":"Maria","request_id":"Maria","field":"99000000191"}]"#);
        assert_eq!(failure.belvo_code, Some("other"));
        let shown = format!("{failure} {failure:?}");
        assert!(!shown.contains("99000000191") && !shown.contains("Maria") && !shown.contains("secret"), "{shown}");
        assert_eq!(
            answered(404, &body("not_found", "")).to_string(),
            "GET /api/owners/: Belvo does not know it (status 404, code not_found, Belvo's request id 2675b703b9d04a9a8f3d6b8f0c0a4d2e); \
             it is asked for again before anything ends; let the user connect again when it stays"
        );
        assert_eq!(
            Failure::own("timeout", "/api/owners/").to_string(),
            "GET /api/owners/: no answer in time; it is tried again by itself; see belvo.idle_timeout and belvo.total_timeout"
        );
    }

    #[test]
    fn retries_keep_belvos_schedule_and_then_go_slowly_for_ever() {
        let mut rng = rand::rng();
        let quick = Failure::own("api_down", "/");
        let slow = answered(400, &body("institution_down", ""));
        let patient = answered(403, &body("access_to_resource_denied", ""));
        for (failure, attempts, least) in [
            (&patient, 0, 5),
            (&patient, 1, 15),
            (&patient, 2, 30),
            (&patient, 3, 45),
            (&patient, 14, 45),
            (&patient, 15, 300),
            (&patient, 19, 900),
            (&patient, 999, 3600),
            (&quick, 0, 3),
            (&quick, 1, 6),
            (&quick, 2, 12),
            (&quick, 3, 24),
            (&quick, 4, 48),
            (&quick, 9, 48),
            (&quick, 15, 240),
            (&quick, u32::MAX, 240),
            (&slow, 0, 300),
            (&slow, 3, 2400),
            (&slow, 99, 3600),
        ] {
            let delay = failure.delay(attempts, &mut rng).as_secs_f64();
            let least = f64::from(least);
            assert!((least..=least * 1.25).contains(&delay), "{} after {attempts}: {delay}", failure.code);
        }
        let asked = Failure { kind: Decision::RetryAfter(Duration::from_secs(7)), ..quick };
        assert!(asked.delay(9, &mut rng) >= Duration::from_secs(7));
    }
}
