//! Widget tokens: the rules of `POST /api/token/`, and what a token may do until it ends.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use serde_json::Value;
use url::Url;

use super::answer::Answer;
use super::json::Json;
use super::links::{Resource, Wish};
use crate::clock::Timestamp;

/// A token ends after this simulated time, or with its first use.
const LASTS: Duration = Duration::from_mins(10);

const CONNECT: &str = "read_institutions,write_links";
const UPDATE: &str = "read_institutions,write_links,read_links";

/// Where the widget leads.
#[derive(Clone, Debug)]
pub(super) struct Callbacks {
    /// After a link was made.
    pub success: String,
    /// After the user left.
    pub exit: String,
    /// After something went wrong.
    pub event: String,
}

impl Callbacks {
    /// Those that `body` names: all three, or the rules refuse it.
    fn named(body: &Value) -> Option<Self> {
        let url = |name: &str| body["widget"]["callback_urls"][name].as_str().map(str::to_owned);
        Some(Self { success: url("success")?, exit: url("exit")?, event: url("event")? })
    }

    /// Those of whoever never named any.
    fn nowhere() -> Self {
        let [success, exit, event] = ["success", "exit", "event"].map(|name| format!("simulated://{name}"));
        Self { success, exit, event }
    }
}

/// The callback URLs that sessions named. The body of a token that updates a link has no place for any, and yet its
/// user is to come back to the application. So those of the session that made the link hold; for a link that no session
/// made, the last that any session of these keys named.
#[derive(Default)]
pub(super) struct Remembered {
    last: Option<Callbacks>,
    of_link: BTreeMap<String, Callbacks>,
}

impl Remembered {
    /// The callback URLs of a session that is asked for with `body`.
    pub(super) fn of(&mut self, body: &Value) -> Callbacks {
        if let Some(named) = Callbacks::named(body) {
            return self.last.insert(named).clone();
        }
        let of_link = body["link_id"].as_str().map(|link| self.of_link.get(link).or(self.last.as_ref()));
        of_link.flatten().cloned().unwrap_or_else(Callbacks::nowhere)
    }

    /// Notes that a session with `callbacks` made `link`.
    pub(super) fn made(&mut self, link: &str, callbacks: Callbacks) {
        self.of_link.insert(link.to_owned(), callbacks);
    }
}

/// What a token was asked for with.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Where the widget leads.
    pub callbacks: Callbacks,
    /// The link to update; none for a new one.
    pub link: Option<String>,
    /// Whether somebody connected with it.
    pub is_used: bool,
    stale_in: Option<String>,
    credentials_storage: Option<String>,
    fetch_resources: Option<Vec<String>>,
    made_at: Timestamp,
}

impl Session {
    /// The session of a body that broke no rule.
    pub(super) fn new(body: &Value, callbacks: Callbacks, now: Timestamp) -> Self {
        let text = |name: &str| body[name].as_str().map(str::to_owned);
        Self {
            callbacks,
            link: text("link_id"),
            is_used: false,
            stale_in: text("stale_in"),
            credentials_storage: text("credentials_storage"),
            fetch_resources: body["fetch_resources"]
                .as_array()
                .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            made_at: now,
        }
    }

    /// Whether the token is good at `now`.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        !self.is_used && now.since(self.made_at) < LASTS
    }

    /// The link that its user makes; none when such a link cannot be.
    pub(super) fn wish(&self, access_mode: Option<String>, external_id: Option<String>) -> Option<Wish> {
        // Without a word the widget makes recurrent links.
        let access_mode = access_mode.unwrap_or_else(|| "recurrent".to_owned());
        let is_kept = self.credentials_storage.as_deref().is_none_or(|storage| storage == "store");
        let can_be = access_mode == "single" || (access_mode == "recurrent" && is_kept);
        can_be.then(|| Wish {
            access_mode: Some(access_mode),
            external_id,
            fetch_resources: self.fetch_resources.clone(),
            credentials_storage: self.credentials_storage.clone(),
            stale_in: self.stale_in.clone(),
        })
    }
}

/// A token of the kind `kind`: in the form of a JWT, and openly no real one.
pub(super) fn text(kind: &str, request_id: &str) -> String {
    let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let claims = format!("{{\"token_type\":\"{kind}\",\"jti\":\"{request_id}\",\"iss\":\"vinculo-simulate\"}}");
    format!("{}.{}.{}", part("{\"typ\":\"JWT\",\"alg\":\"none\"}"), part(&claims), part("simulated"))
}

/// Every rule that `body` breaks, as Belvo answers it; none when it keeps them all.
pub(super) fn refusal(body: &Value, request_id: &str) -> Option<Answer> {
    let mut rules = Rules { body, request_id, broken: Vec::new() };
    rules.required("id");
    rules.required("password");
    let scopes = if body.get("link_id").is_some() { UPDATE } else { CONNECT };
    if rules.required("scopes") && body["scopes"] != scopes {
        rules.breaks("invalid_choice", "The scopes are not those of the widget.", "scopes");
    }
    if scopes == CONNECT {
        rules.data();
        rules.widget();
    } else if !body["link_id"].is_string() {
        rules.breaks("invalid", "Must be a valid UUID.", "link_id");
    }
    (!rules.broken.is_empty()).then(|| Answer::json(400, Json::List(rules.broken).to_bytes()))
}

struct Rules<'a> {
    body: &'a Value,
    request_id: &'a str,
    broken: Vec<Json>,
}

impl Rules<'_> {
    fn breaks(&mut self, code: &str, message: &str, field: &str) {
        self.broken.push(Json::object([
            ("code", code.into()),
            ("message", message.into()),
            ("request_id", self.request_id.into()),
            ("field", field.into()),
        ]));
    }

    /// Whether the text `field` is there.
    fn required(&mut self, field: &str) -> bool {
        let pointer = format!("/{}", field.replace('.', "/"));
        let found = self.body.pointer(&pointer).and_then(Value::as_str);
        match found {
            None => self.breaks("required", "This field is required.", field),
            Some("") => self.breaks("blank", "This field may not be blank.", field),
            Some(_) => return true,
        }
        false
    }

    fn data(&mut self) {
        let text = |name: &str| self.body[name].as_str().unwrap_or_default().to_owned();
        let (stale_in, storage) = (text("stale_in"), text("credentials_storage"));
        if self.required("stale_in") && !is_days(&stale_in) {
            self.breaks("invalid", "This value does not match the required pattern.", "stale_in");
        }
        if self.body.get("credentials_storage").is_some()
            && !(matches!(storage.as_str(), "store" | "nostore") || is_days(&storage))
        {
            self.breaks("invalid", "This value does not match the required pattern.", "credentials_storage");
        }
        let field = "fetch_resources";
        match self.body.get(field) {
            None => self.breaks("required", "This field is required.", field),
            Some(Value::Array(names)) => {
                let is_known = |name: &Value| Resource::ALL.iter().any(|resource| name == resource.wire());
                if !names.iter().all(is_known) {
                    self.breaks("invalid_choice", "Not a valid choice.", field);
                }
                if storage == "nostore" && names.is_empty() {
                    let message = "Credentials that are not stored need resources to fetch.";
                    self.breaks("invalid_fetch_resources", message, field);
                }
            }
            Some(_) => self.breaks("not_a_list", "Expected a list of items.", field),
        }
    }

    fn widget(&mut self) {
        let Some(widget) = self.body.get("widget").filter(|widget| widget.is_object()) else {
            return self.breaks("required", "This field is required.", "widget");
        };
        // Only the hosted widget leads somewhere.
        if widget.get("callback_urls").is_some() {
            for name in ["success", "exit", "event"] {
                self.required(&format!("widget.callback_urls.{name}"));
            }
        }
        for name in ["company_icon", "company_logo", "company_terms_url"] {
            let field = format!("widget.branding.{name}");
            let is_url = widget["branding"][name].as_str().is_some_and(|text| text.parse::<Url>().is_ok());
            if self.required(&field) && !is_url {
                self.breaks("invalid", "Enter a valid URL.", &field);
            }
        }
        self.required("widget.branding.company_name");
        match widget.get("theme") {
            Some(Value::Array(items)) if !items.iter().all(is_colour) => {
                self.breaks("required", "This field is required.", "widget.theme");
            }
            None | Some(Value::Array(_)) => {}
            Some(_) => self.breaks("not_a_list", "Expected a list of items.", "widget.theme"),
        }
    }
}

fn is_colour(item: &Value) -> bool {
    item["css_key"].is_string() && item["value"].is_string()
}

fn is_days(text: &str) -> bool {
    text.strip_suffix('d')
        .is_some_and(|days| (1..=3).contains(&days.len()) && days.bytes().all(|digit| digit.is_ascii_digit()))
}
