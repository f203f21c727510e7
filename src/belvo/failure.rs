//! Why a call to Belvo gave nothing, named by what to do next.
//!
//! *Takes* a status, Belvo's error codes and what the network did. *Gives* a [`Failure`]. *Promises* to show no text
//! that Belvo sent: codes are those of the table or `other`, a request id is hexadecimal.

use std::fmt;
use std::time::Duration;

use rand::{Rng, RngExt};
use serde::Deserialize;

use self::Decision::{AskUser, Gone, Refused, Retry, Stop};
use self::Pace::{Patient, Quick, Slow};
use self::Trouble::{Account, Down, Keys, Limit, Link};
use crate::link_id::LinkId;

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
    /// Belvo refuses this very call, and no user can mend that: its operator is told, and it is asked again, more and
    /// more seldom, because whoever mends it at Belvo tells nobody here.
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
            // With its jitter within the minute in which all is right again, however long that took to come.
            (Quick, _) => 48,
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

/// How long to wait after `attempts` failed tries for what only somebody elsewhere can mend: up to a minute for ten
/// minutes, then up to an hour.
pub fn patience(attempts: u32, rng: &mut impl Rng) -> Duration {
    Patient.wait(attempts, rng)
}

/// A call that gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do next.
    pub kind: Decision,
    /// Our own stable code, for logs, metrics and `status`.
    pub code: Code,
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
    /// A failure that no answer's status tells.
    pub(crate) fn own(code: Code, path: &str) -> Self {
        let kind = code.decision();
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

    /// The same answer, where it counts that nobody knows whose word it is.
    pub(super) fn of_whomever(self) -> Self {
        let code = Code::UnexpectedStatus;
        Self { kind: code.decision(), code, pace: Quick, ..self }
    }

    /// What an answer with `status`, which is not 200, and `body` means.
    pub(super) fn of_answer(path: &str, status: u16, body: &[u8]) -> Self {
        let said = serde_json::from_slice::<Said>(body).ok().map(Said::into_list);
        let request_id = said.iter().flatten().find_map(|error| hexadecimal(error.request_id.as_deref()?));
        let rule = said
            .iter()
            .flatten()
            .find_map(|error| rule(status, error))
            .unwrap_or_else(|| fallback(status, matches!(body.trim_ascii_start().first(), Some(b'[' | b'{'))));
        let belvo_code = match said.iter().flatten().find_map(|error| error.code.as_deref()) {
            Some(_) if rule.belvo_code.is_empty() => Some("other"),
            Some(_) => Some(rule.belvo_code),
            None => None,
        };
        Self {
            kind: rule.code.decision(),
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
    /// then every minute; minutes to an hour when an institution is down; up to a minute for ten minutes, then up to an
    /// hour, when Belvo refuses the call itself.
    pub fn delay(&self, attempts: u32, rng: &mut impl Rng) -> Duration {
        if let Decision::RetryAfter(wait) = self.kind {
            return wait + spread(wait.min(Duration::from_secs(30)), rng);
        }
        self.pace.wait(attempts, rng)
    }

    /// Whether the `attempt`-th failure in a row is the one that Belvo wants to hear of: it asks that its own errors
    /// and time-outs are tried three times, and then reported.
    pub fn is_worth_a_report(&self, attempt: u32) -> bool {
        attempt == REPORTED_AFTER && matches!(self.code, Code::ApiDown | Code::ApiTimeout)
    }

    /// Whether Belvo may do all the same what the call asked for, because no answer says that it will not: none came,
    /// it was cut off, or Belvo failed on the way.
    pub fn may_have_arrived(&self) -> bool {
        !self.is_unsent
            && !matches!(self.code, Code::ApiAuth | Code::TlsRefused | Code::SimulatedMismatch)
            && self.http_status.is_none_or(|status| matches!(status, 200..=299 | 408 | 500..=599))
    }

    /// Whether Belvo refuses the call, or does not know what it is about.
    pub fn is_refused(&self) -> bool {
        self.code.is_refused()
    }

    /// Whether Belvo itself says that it does not know what the call is about: what stands before it has no such word.
    pub fn is_belvos_not_found(&self) -> bool {
        self.code == Code::NotFound && self.belvo_code == Some("not_found")
    }

    /// What an operator does about it.
    pub fn advice(&self) -> &'static str {
        self.code.advice()
    }
}

/// Up to a quarter of `wait`.
fn spread(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(0.0..0.25))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.method, self.path, self.code.what())?;
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

macro_rules! codes {
    ($($code:ident, $name:literal, $decision:expr, $trouble:expr, $what:literal, $advice:literal;)*) => {
        /// Why a call gave nothing: our own stable codes, each with all that is known of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $(
                #[doc = concat!($what, ".")]
                $code,
            )*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$code),*];

            /// Its name in logs, metrics, the state and `status`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                }
            }

            /// What the caller does.
            pub const fn decision(self) -> Decision {
                match self {
                    $(Self::$code => $decision,)*
                }
            }

            /// Whose trouble it is.
            pub const fn trouble(self) -> Trouble {
                match self {
                    $(Self::$code => $trouble,)*
                }
            }

            /// What happened, in words for people.
            pub const fn what(self) -> &'static str {
                match self {
                    $(Self::$code => $what,)*
                }
            }

            /// What an operator does.
            pub const fn advice(self) -> &'static str {
                match self {
                    $(Self::$code => $advice,)*
                }
            }
        }
    };
}

codes! {
    ApiAuth, "api_auth", Stop, Keys, "Belvo refuses the keys", "check belvo.secret_id, belvo.secret_password and that they belong to belvo.base_url";
    ApiForbidden, "api_forbidden", Refused, Account, "Belvo forbids this call to the account", "ask Belvo to enable the resource; it is asked for again by itself, at last once an hour";
    InstitutionRefuses, "institution_refuses", Retry, Down, "the institution refuses Belvo", "it is tried again in some minutes";
    InstitutionDown, "institution_down", Retry, Down, "the institution is down", "look at Belvo's status page; it is tried again in some minutes";
    LinkCooling, "link_cooling", Retry, Link, "the link was refreshed minutes ago", "it is tried again in some minutes";
    ApiBlocked, "api_blocked", Retry, Limit, "Belvo refuses this address or account for now", "all calls pause and then go slower; lower belvo.budget when it recurs, and ask Belvo when it stays";
    RateLimited, "rate_limited", Retry, Limit, "Belvo asks for patience", "all calls pause as long as it asked; lower belvo.budget when it recurs";
    LinkNeedsUser, "link_needs_user", AskUser, Link, "the link needs its user", "let the user open the widget in update mode";
    LinkExpired, "link_expired", AskUser, Link, "the link's credentials have expired at Belvo", "let the user connect again";
    LinkDeleted, "link_deleted", AskUser, Link, "the link was deleted at Belvo", "its rows stay; let the user connect again for new data";
    ResourceRefused, "resource_refused", Refused, Link, "the institution does not offer this resource for the link", "leave it out of the link's fetch_resources; it is asked for again by itself, at last once an hour";
    NotFound, "not_found", Gone, Link, "Belvo does not know it", "it is asked for again before anything ends; let the user connect again when it stays";
    BadRequest, "bad_request", Refused, Link, "Belvo finds the request wrong", "report this with Belvo's request id; it is asked for again by itself, at last once an hour";
    ApiDown, "api_down", Retry, Down, "Belvo failed", "it is tried again by itself; report Belvo's request id when it stays";
    ApiTimeout, "api_timeout", Retry, Down, "Belvo took too long", "it is tried again by itself";
    UnexpectedStatus, "unexpected_status", Retry, Down, "an answer that is no list", "check belvo.base_url; it is tried again by itself";
    Redirected, "redirected", Retry, Down, "the answer leads elsewhere and is not followed", "check belvo.base_url; it is tried again by itself";
    Unreachable, "unreachable", Retry, Down, "no connection", "check belvo.base_url, DNS and the network; it is tried again by itself";
    TlsRefused, "tls_refused", Retry, Down, "the server's certificate is not trusted, so nothing was sent", "check belvo.base_url and ca-certificates";
    Timeout, "timeout", Retry, Down, "no answer in time", "it is tried again by itself; see belvo.idle_timeout and belvo.total_timeout";
    Truncated, "truncated", Retry, Down, "the answer was cut short and thrown away", "it is tried again by itself";
    TooLarge, "too_large", Refused, Link, "the answer is larger than belvo.max_body", "raise belvo.max_body or lower belvo.page_size";
    NotJson, "not_json", Retry, Down, "the answer is not JSON", "check belvo.base_url; it is tried again by itself";
    NotAList, "not_a_list", Retry, Down, "the answer has no list of results", "check belvo.base_url; it is tried again by itself";
    ForeignNext, "foreign_next", Retry, Down, "the next page lies on another host and is not followed", "check belvo.base_url; it is tried again by itself";
    SimulatedMismatch, "simulated_mismatch", Refused, Down, "a simulated Belvo and a real one do not share a state", "check belvo.base_url, or use another state and lake; nothing of the answer was kept";
    InconsistentPages, "inconsistent_pages", Retry, Down, "the pages do not make one list", "it is tried again by itself";
}

impl Code {
    /// The code of that name: of a [`Failure`], or why a link is paused; `None` for codes of other parts.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// Whether Belvo refuses the call, or does not know what it is about, until somebody has mended it. What is not
    /// taken from another Belvo is no refusal of Belvo's.
    pub fn is_refused(self) -> bool {
        matches!(self.decision(), Refused | Gone) && self != Self::SimulatedMismatch
    }

    /// The codes of what Belvo refuses, or does not know.
    pub fn refused() -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(|code| code.is_refused())
    }
}

/// What a status and a code of Belvo's mean.
#[derive(Debug, Clone, Copy)]
struct Rule {
    status: u16,
    belvo_code: &'static str,
    pace: Pace,
    code: Code,
}

macro_rules! rules {
    ($($status:literal, $belvo:literal, $pace:expr, $code:ident;)*) => {
        /// Belvo's documented codes; what is not here, [`fallback`] decides.
        static RULES: &[Rule] = &[$(Rule { status: $status, belvo_code: $belvo, pace: $pace, code: Code::$code }),*];
    };
}

rules! {
    400, "activation_failed", Quick, LinkNeedsUser;
    400, "blank", Patient, BadRequest;
    400, "does_not_exist", Patient, BadRequest;
    400, "duplicated", Patient, BadRequest;
    400, "null", Patient, BadRequest;
    400, "required", Patient, BadRequest;
    400, "invalid", Patient, BadRequest;
    400, "invalid_choice", Patient, BadRequest;
    400, "not_a_list", Patient, BadRequest;
    400, "parse_error", Patient, BadRequest;
    400, "validation_error", Patient, BadRequest;
    400, "invalid_credentials_storage", Patient, BadRequest;
    400, "invalid_fetch_resources", Patient, BadRequest;
    400, "invalid_period", Patient, BadRequest;
    400, "institution_down", Slow, InstitutionDown;
    400, "institution_unavailable", Slow, InstitutionDown;
    400, "institution_inactive", Slow, InstitutionDown;
    400, "invalid_link", Quick, LinkNeedsUser;
    400, "login_error", Quick, LinkNeedsUser;
    400, "session_expired", Quick, LinkNeedsUser;
    400, "session_expired_ob", Quick, LinkNeedsUser;
    400, "too_many_sessions", Quick, InstitutionRefuses;
    400, "unavailable_data", Slow, InstitutionDown;
    400, "unconfirmed_link", Quick, LinkNeedsUser;
    400, "unsupported_operation", Patient, ResourceRefused;
    400, "operational_limits_reached", Patient, ResourceRefused;
    401, "authentication_failed", Quick, ApiAuth;
    401, "consent_without_accounts", Patient, ResourceRefused;
    403, "access_to_production_denied", Patient, ApiForbidden;
    403, "access_to_resource_denied", Patient, ApiForbidden;
    403, "permission_denied", Slow, InstitutionRefuses;
    403, "quota_limit_reached", Patient, ApiForbidden;
    403, "forbidden_by_host", Slow, InstitutionRefuses;
    404, "not_found", Patient, NotFound;
    404, "expired_credentials", Quick, LinkExpired;
    405, "method_not_allowed", Patient, BadRequest;
    408, "request_timeout", Quick, ApiTimeout;
    409, "link_refreshed", Slow, LinkCooling;
    428, "activation_required", Quick, LinkNeedsUser;
    428, "token_required", Quick, LinkNeedsUser;
    500, "service_unavailable", Quick, ApiDown;
    500, "unexpected_error", Quick, ApiDown;
}

/// Of `login_error`'s messages, the one that is no fault of the user's.
const LOGIN_FAILED_BY_CHANCE: &str = "something unexpected";

fn rule(status: u16, error: &BelvoError) -> Option<Rule> {
    let code = error.code.as_deref().unwrap_or("null");
    let mut rule = *RULES.iter().find(|rule| rule.status == status && rule.belvo_code == code)?;
    let message = error.message.as_deref().unwrap_or_default().to_ascii_lowercase();
    if rule.code == Code::LinkCooling
        && let Some(minutes) = message.split_whitespace().find_map(|word| word.parse::<u64>().ok())
    {
        rule.pace = Pace::Minutes(minutes.clamp(1, 60));
    }
    if code == "login_error" && message.contains(LOGIN_FAILED_BY_CHANCE) {
        rule = Rule { pace: Slow, code: Code::InstitutionRefuses, ..rule };
    }
    Some(rule)
}

/// What a status means when no documented code comes with it. A 403 that is no JSON, as far as it came, comes from the
/// gate before the API, and is about this address.
fn fallback(status: u16, is_json: bool) -> Rule {
    let (pace, code) = match status {
        401 => (Quick, Code::ApiAuth),
        403 if is_json => (Patient, Code::ApiForbidden),
        403 => (Quick, Code::ApiBlocked),
        404 | 410 => (Patient, Code::NotFound),
        408 => (Quick, Code::ApiTimeout),
        409 => (Slow, Code::LinkCooling),
        425 | 500..=599 => (Quick, Code::ApiDown),
        428 => (Quick, Code::LinkNeedsUser),
        429 => (Quick, Code::RateLimited),
        400..=499 => (Patient, Code::BadRequest),
        300..=399 => (Quick, Code::Redirected),
        _ => (Quick, Code::UnexpectedStatus),
    };
    Rule { status, belvo_code: "", pace, code }
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
    fn every_documented_code_has_its_decision() {
        for rule in RULES {
            let failure = answered(rule.status, &body(rule.belvo_code, "a message"));
            assert_eq!((failure.kind, failure.code), (rule.code.decision(), rule.code), "{rule:?}");
            assert_eq!(failure.belvo_code, Some(rule.belvo_code));
            assert_eq!(failure.request_id.as_deref(), Some("2675b703b9d04a9a8f3d6b8f0c0a4d2e"));
        }
    }

    #[test]
    fn a_code_is_found_by_its_name_and_no_two_have_one() {
        for code in Code::ALL {
            assert_eq!(Code::by_name(code.name()), Some(*code));
        }
        assert_eq!(Code::by_name("panic"), None);
    }

    #[test]
    fn the_contracts_table_is_all_there() {
        let codes: Vec<String> = RULES.iter().map(|rule| format!("{} {}", rule.status, rule.belvo_code)).collect();
        assert_eq!(codes.len(), 42);
        for (status, body, kind, code) in [
            (403, "<html><center>openresty</center></html>", Retry, Code::ApiBlocked),
            (403, r#"[{"code":"waf","message":"no"}]"#, Refused, Code::ApiForbidden),
            // It was cut off.
            (403, r#"[{"code":"permi"#, Refused, Code::ApiForbidden),
            (403, "", Retry, Code::ApiBlocked),
            (429, "", Retry, Code::RateLimited),
            (401, "<html>", Stop, Code::ApiAuth),
            (404, "", Gone, Code::NotFound),
            (400, r#"[{"code":null,"message":"x","field":"link"}]"#, Refused, Code::BadRequest),
            (428, "[]", AskUser, Code::LinkNeedsUser),
            (502, "<html>", Retry, Code::ApiDown),
            (302, "", Retry, Code::Redirected),
            (204, "", Retry, Code::UnexpectedStatus),
            (418, "", Refused, Code::BadRequest),
            (400, r#"{"code":"invalid_link"}"#, AskUser, Code::LinkNeedsUser),
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
        let of_a_link = Failure::own(Code::Timeout, "/api/links/2f5d361d-dad6-45d4-a0bf-26d479766067/refresh/");
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
            Failure::own(Code::Timeout, "/api/owners/").to_string(),
            "GET /api/owners/: no answer in time; it is tried again by itself; see belvo.idle_timeout and belvo.total_timeout"
        );
    }

    #[test]
    fn retries_keep_belvos_schedule_and_then_go_slowly_for_ever() {
        let mut rng = rand::rng();
        let quick = Failure::own(Code::ApiDown, "/");
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
            (&quick, u32::MAX, 48),
            (&slow, 0, 300),
            (&slow, 3, 2400),
            (&slow, 99, 3600),
        ] {
            let delay = failure.delay(attempts, &mut rng).as_secs_f64();
            let least = f64::from(least);
            assert!((least..=least * 1.25).contains(&delay), "{:?} after {attempts}: {delay}", failure.code);
        }
        // Nobody tells that Belvo answers again, and a minute later all is to be right.
        for attempts in 0..40 {
            assert!(quick.delay(attempts, &mut rng) <= Duration::from_mins(1), "after {attempts}");
        }
        let asked = Failure { kind: Decision::RetryAfter(Duration::from_secs(7)), ..quick };
        assert!(asked.delay(9, &mut rng) >= Duration::from_secs(7));
    }
}
