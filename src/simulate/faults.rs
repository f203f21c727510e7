//! Everything that Belvo or the network can do wrong, switched on by name.
//!
//! *Takes* a text (`status,code=429,retry_after=7,link=…,times=3`) or the same as a JSON object. *Promises* that each
//! kind is one line of [`KINDS`]: a name, the rows of the fault list it stands for, what it takes and does, and the
//! function that does it; and that each row of that list which Belvo or the network can cause is one line of [`ROWS`],
//! so that `AP5` alone says as much as a kind with its details.
//!
//! Any fault may be narrowed: `link`, `resource`, `on` (a route, such as `token` or `links`), `skip` (so many calls go
//! well first), `times` (so many are hit; no end otherwise), `share` (of calls, from 0 to 1) and `seconds` (for so long
//! from when it is switched on).

#![allow(clippy::ptr_arg, reason = "all functions of one stage have one signature")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::answer::{Answer, Delivery};
use super::json::Json;
use super::links::Resource;
use super::query::Page;
use super::random::digest;
use crate::clock::Clock;

/// What can go wrong.
pub struct Kind {
    /// Its name in flags and requests.
    pub name: &'static str,
    /// The rows of the fault list that it stands for.
    pub rows: &'static str,
    /// What it does, and what it takes.
    pub does: &'static str,
    /// The keys that it takes, beside those that narrow any fault.
    pub takes: &'static [&'static str],
    effect: Effect,
}

/// Where a fault strikes.
#[derive(Clone, Copy)]
enum Effect {
    /// The records of a list, before they are filtered and counted.
    Records(fn(&mut Vec<Json>, &Details)),
    /// The envelope of a page.
    Page(fn(&mut Page, &Details)),
    /// The whole answer.
    Answer(fn(&mut Answer, &Details)),
    /// The webhooks that stand for one event.
    Event(fn(&mut Vec<Json>, &Details)),
}

use Effect::{Answer as A, Event as E, Page as P, Records as R};

const fn kind(
    name: &'static str,
    rows: &'static str,
    effect: Effect,
    takes: &'static [&'static str],
    does: &'static str,
) -> Kind {
    Kind { name, rows, does, takes, effect }
}

/// What narrows any fault.
const NARROWS: &[&str] = &["link", "resource", "on", "skip", "times", "share", "seconds"];

/// All kinds.
pub const KINDS: &[Kind] = &[
    // answers
    kind(
        "status",
        "AP1-AP6, AP20",
        A(status),
        &["code", "error", "message", "retry_after", "retry_date", "html"],
        "answers `code` (500) with Belvo's body for it; `error` names another code, `message` another text; `retry_after` seconds, or `retry_date` seconds from now as a date; `html=true` sends a page",
    ),
    kind("html", "AP7", A(html), &[], "answers 200 with an HTML page"),
    kind("empty", "AP7", A(empty), &["code"], "answers `code` (200, or 204) without a body"),
    kind("cut", "AP8", A(cut), &["after"], "breaks the connection after `after` bytes (half of the body)"),
    kind("drip", "AP9", A(drip), &["bytes", "every_ms"], "sends `bytes` (1) every `every_ms` (1000)"),
    kind("silence", "AP9", A(silence), &[], "sends headers, and nothing more"),
    kind("hang", "AP9", A(hang), &[], "takes the request, and never answers"),
    kind("endless", "AP10", A(endless), &[], "sends a JSON body that never ends"),
    kind("gzip_bomb", "AP10", A(gzip_bomb), &[], "sends a small gzip body that unpacks to more than 400 MB"),
    kind("redirect", "AP12", A(redirect), &["to"], "answers 302 to `to` (another host)"),
    // pages
    kind("next_elsewhere", "AP12", P(next_elsewhere), &["to"], "`next` points to `to` (another host)"),
    kind("next_loop", "AP14", P(next_loop), &[], "`next` is the page itself"),
    kind("next_malformed", "AP14", P(next_malformed), &[], "`next` lacks its `&`, as in Belvo's own example"),
    kind("next_relative", "AP14", P(next_relative), &[], "`next` is a path without a host"),
    kind(
        "slip",
        "AP13",
        P(slip),
        &[],
        "a row left page 1 meanwhile: each later page begins a row further on, and `count` is one less",
    ),
    kind("wrong_count", "AP13", P(wrong_count), &["count"], "`count` is `count` (one more than there are)"),
    kind(
        "foreign_record",
        "AP19",
        P(foreign_record),
        &[],
        "the first record of a page says it belongs to another link",
    ),
    // lists of many links
    kind(
        LINK_IN,
        "AP2, AP19",
        R(as_it_is),
        &["how"],
        "a list with `link__in` and no `link` is, as `how` says: refuse (400, the default), forbid (403 as JSON), gate (403 as a page), all (everybody's), nothing, first (the first link's only), no_link (records without `link`)",
    ),
    // records
    kind("list_empty", "AP15", R(list_empty), &[], "the list is empty, whatever the webhook counted"),
    kind("shrink", "AP15", R(shrink), &["keep"], "only the first `keep` (1) records are there"),
    kind("many_salaries", "AP10", R(many_salaries), &["rows"], "each job has `rows` (10000) salary rows at least"),
    kind("older", "AP16", R(older), &[], "`collected_at` is three years older"),
    kind(
        "unknown_field",
        "AP17, IN4",
        R(unknown_field),
        &["at", "name", "value"],
        "adds `name` (shoe_size) = `value` (42) `at` record, employer, occupation or salary",
    ),
    kind(
        "new_enum",
        "AP17",
        R(new_enum),
        &["locale"],
        "pay of July becomes BONUS; `locale=true`: every locale becomes Marítima",
    ),
    kind(
        "missing_key",
        "AP18",
        R(missing_key),
        &["key", "first"],
        "takes `key` (employer_data) out of each record, or of the first only with `first=true`",
    ),
    kind("wrong_type", "AP18", R(wrong_type), &["key"], "`key` (salaries) holds the number 17"),
    kind("repeat_record", "AP13", R(repeat_record), &[], "the first record is there twice"),
    kind("shuffle", "IN4", R(shuffle), &[], "rows, and the keys of each record, in another order"),
    // webhooks
    kind("copies", "IN1", E(copies), &["n"], "each event is sent `n` (100) times at once"),
    kind("same_ids", "IN3", E(same_ids), &[], "every event has one `webhook_id` and one `request_id`"),
    kind("moved_fields", "IN4", E(moved_fields), &[], "events have their keys reversed, and a nested one more"),
    kind("unknown_link", "IN5", E(unknown_link), &[], "events name a link that does not exist"),
    kind("unknown_type", "IN6", E(unknown_type), &[], "events are of a type nobody knows"),
    kind("no_link", "IN6", E(no_link), &[], "events have no `link_id`"),
    kind(
        "needs_user",
        "IN7",
        E(needs_user),
        &["code"],
        "events say that the link needs its user, and so it does: `code` is invalid_credentials (the default) or token_required",
    ),
    kind("again", "IN2", E(keep), &["after_ms"], "each event is sent once more, `after_ms` (6000) later"),
    kind("hang_up", "IN12", E(keep), &["after_ms"], "the sender leaves `after_ms` (5) after it has sent"),
    kind("lost", "IN5, TM3", E(lost), &[], "events are never sent"),
];

const LINK_IN: &str = "link_in";

/// Rows of the fault list, by id, and the fault that each switches on unless told more.
pub const ROWS: &[(&str, &str)] = &[
    ("AP1", "status,code=401"),
    ("AP2", "status,code=403,html=true"),
    ("AP3", "status,code=404"),
    ("AP4", "status,code=428,error=token_required"),
    ("AP5", "status,code=429,retry_after=7"),
    ("AP6", "status,code=500"),
    ("AP7", "html"),
    ("AP8", "cut"),
    ("AP9", "silence"),
    ("AP10", "endless"),
    ("AP12", "redirect"),
    ("AP13", "slip,share=0.3"),
    ("AP14", "next_loop"),
    ("AP15", "list_empty"),
    ("AP16", "older"),
    ("AP17", "unknown_field"),
    ("AP18", "missing_key"),
    ("AP19", "foreign_record"),
    ("AP20", "status,code=503,seconds=1800"),
    ("IN1", "copies"),
    ("IN2", "again"),
    ("IN3", "same_ids"),
    ("IN4", "moved_fields"),
    ("IN5", "unknown_link"),
    ("IN6", "unknown_type"),
    ("IN7", "needs_user"),
    ("IN12", "hang_up"),
];

/// The row that nothing here can cause, and why.
const NOT_HERE: (&str, &str) = (
    "AP11",
    "AP11 is a certificate that is not to be trusted, and the simulator speaks plain HTTP, which has none: put a TLS proxy \
     with such a certificate before it",
);

/// A fault that is switched on.
#[derive(Clone, Debug)]
pub struct Fault {
    kind: usize,
    details: Details,
    hits: u32,
    calls: u32,
    /// When it was read.
    since: Instant,
}

/// What was said beside the name.
#[derive(Clone, Debug, Default)]
pub(super) struct Details(BTreeMap<String, String>);

impl Details {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.text(key).and_then(|text| text.parse().ok()).unwrap_or(otherwise)
    }

    fn says(&self, key: &str) -> bool {
        self.text(key) == Some("true")
    }
}

/// What routes are called; first those whose answers hold records.
pub(super) const ROUTES: [&str; 12] = [
    "employments",
    "owners",
    "employment",
    "owner",
    "probe",
    "token",
    "links",
    "link",
    "refresh",
    "institutions",
    "institution",
    "unknown",
];

/// The routes whose answers hold records.
const OF_RECORDS: &[&str] = ROUTES.split_at(4).0;

/// What an event is called among calls.
pub(super) const WEBHOOK: &str = "webhook";

/// A call, as far as faults are narrowed by it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// One of [`ROUTES`], or [`WEBHOOK`] for an event.
    pub on: &'static str,
    /// The link it is about.
    pub link: Option<&'a str>,
    /// The links that it asks for together.
    pub together: &'a [String],
    /// The resource it is about.
    pub resource: Option<Resource>,
}

impl Fault {
    /// Reads `name,key=value,…`, in which the name is that of a kind or the id of a row of the fault list.
    ///
    /// # Errors
    /// When the kind is not known, or takes no such key or value, or a part is not `key=value`; the text says which.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default().trim();
        let mut details = BTreeMap::new();
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("`{part}` in a fault is not key=value"))?;
            details.insert(key.trim().to_owned(), value.trim().to_owned());
        }
        Self::named(name, details)
    }

    /// Reads `{"fault": name, key: value, …}`; a row of the fault list may also be called `id`.
    ///
    /// # Errors
    /// As [`Fault::parse`].
    pub fn from_json(value: &Value) -> Result<Self, String> {
        let Value::Object(members) = value else { return Err("a fault is an object with the key `fault`".to_owned()) };
        let named = ["fault", "id"].into_iter().find(|key| members.get(*key).is_some_and(Value::is_string));
        let named = named.ok_or("a fault needs the key `fault`, or `id` with a row of the fault list")?;
        let name = members.get(named).and_then(Value::as_str).unwrap_or_default();
        let details = members
            .iter()
            .filter(|(key, value)| *key != named && !value.is_null())
            .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        Self::named(name, details.collect())
    }

    fn named(name: &str, mut details: BTreeMap<String, String>) -> Result<Self, String> {
        if name == NOT_HERE.0 {
            return Err(NOT_HERE.1.to_owned());
        }
        let kind = if let Some((_, usual)) = ROWS.iter().find(|(id, _)| *id == name) {
            let usual = Self::parse(usual)?;
            for (key, value) in usual.details.0 {
                details.entry(key).or_insert(value);
            }
            usual.kind
        } else {
            KINDS.iter().position(|kind| kind.name == name).ok_or_else(|| {
                let ids = ROWS.iter().map(|(id, _)| *id);
                let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).chain(ids).collect();
                format!("there is no fault `{name}`; known are {}", known.join(", "))
            })?
        };
        let known = [KINDS[kind].takes, NARROWS].concat();
        if let Some(unknown) = details.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(format!("the fault `{name}` takes no `{unknown}`; known are {}", known.join(", ")));
        }
        // With a value that nothing understands it would never strike, or always.
        for (key, value) in &details {
            expected(&KINDS[kind], key, value)
                .map_err(|expected| format!("`{key}` of the fault `{name}` is {expected}, and not `{value}`"))?;
        }
        Ok(Self { kind, details: Details(details), hits: 0, calls: 0, since: Instant::now() })
    }

    fn kind(&self) -> &'static Kind {
        &KINDS[self.kind]
    }

    fn concerns(&self, call: Call<'_>) -> bool {
        let stage = matches!(self.kind().effect, E(_)) == (call.on == WEBHOOK);
        let lists = !matches!(self.kind().effect, R(_)) || call.resource.is_some();
        let same = |key: &str, value: Option<&str>| self.details.text(key).is_none_or(|wanted| value == Some(wanted));
        let resource =
            self.details.text("resource").is_none_or(|r| call.resource.is_some_and(|c| Resource::parse(r) == Some(c)));
        let link = same("link", call.link) || call.together.iter().any(|link| same("link", Some(link)));
        let together = self.kind().name != LINK_IN || !call.together.is_empty();
        stage && lists && together && resource && link && same("on", Some(call.on))
    }

    /// Counts one call that the fault concerns, and says whether it is hit.
    fn strikes(&mut self) -> bool {
        self.calls += 1;
        let lasts = self.details.text("seconds").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        if lasts.is_some_and(|lasts| self.since.elapsed() >= lasts) {
            return false;
        }
        if u64::from(self.calls) <= self.details.number("skip", 0) {
            return false;
        }
        if self.details.text("times").is_some() && u64::from(self.hits) >= self.details.number("times", 0) {
            return false;
        }
        if let Some(share) = self.details.text("share").and_then(|share| share.parse::<f64>().ok()) {
            let drawn = digest(0, self.calls, self.kind().name)[0];
            if f64::from(drawn) / 256.0 >= share {
                return false;
            }
        }
        self.hits += 1;
        true
    }

    fn lasting(&self) -> bool {
        ["times", "share", "skip", "seconds"].iter().all(|key| self.details.text(key).is_none())
    }
}

/// Whether `value` can be that of `key`; what can, otherwise.
fn expected(kind: &Kind, key: &str, value: &str) -> Result<(), String> {
    let one_of = |known: &[&str]| {
        if known.contains(&value) { Ok(()) } else { Err(format!("one of {}", known.join(", "))) }
    };
    let when = |fits: bool, expected: &str| if fits { Ok(()) } else { Err(expected.to_owned()) };
    match key {
        "on" => one_of(match kind.effect {
            E(_) => &[WEBHOOK],
            R(_) => OF_RECORDS,
            A(_) | P(_) => &ROUTES,
        }),
        "resource" if Resource::parse(value).is_some() => Ok(()),
        "resource" => one_of(&Resource::ALL.map(Resource::name)),
        "share" => when(value.parse().is_ok_and(|share: f64| (0.0..=1.0).contains(&share)), "a number from 0 to 1"),
        "code" if matches!(kind.effect, A(_)) => {
            when(value.parse().is_ok_and(|code: u16| (200..600).contains(&code)), "a status from 200 to 599")
        }
        "code" => one_of(&["invalid_credentials", "token_required"]),
        "first" | "html" | "locale" => one_of(&["true", "false"]),
        "at" => one_of(&["record", "employer", "occupation", "salary"]),
        "how" => one_of(&["refuse", "forbid", "gate", "all", "nothing", "first", "no_link"]),
        "skip" | "times" | "seconds" | "after" | "after_ms" | "bytes" | "every_ms" | "count" | "keep" | "rows"
        | "n" | "retry_date" => when(value.parse::<u32>().is_ok(), "a whole number"),
        _ => Ok(()),
    }
}

/// The faults that are switched on.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Switches one more on.
    pub(super) fn arm(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// Switches all off.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The faults that hit this call; each call is drawn for once.
    pub(super) fn draw(&mut self, call: Call<'_>) -> Hits {
        if self.0.is_empty() {
            return Hits::default();
        }
        Hits(
            self.0
                .iter_mut()
                .filter(|fault| fault.concerns(call))
                .filter_map(|f| f.strikes().then(|| f.clone()))
                .collect(),
        )
    }

    /// What the lasting faults make of a list, for the truth: the fields they add, by place, and whether enums are new.
    pub(super) fn content(&self, link: &str, resource: Resource) -> Content {
        let call = Call { on: resource.name(), link: Some(link), together: &[], resource: Some(resource) };
        let mut content = Content::default();
        for fault in self.0.iter().filter(|fault| fault.lasting() && fault.concerns(call)) {
            match fault.kind().name {
                "unknown_field" => {
                    let (at, name, value) = unknown(&fault.details);
                    content.extra.entry(at).or_default().insert(name, value);
                }
                "new_enum" if fault.details.says("locale") => content.new_locale = true,
                "new_enum" => content.new_kind = true,
                _ => {}
            }
        }
        content
    }

    /// What is on, and what there is.
    pub(super) fn describe(&self) -> Value {
        let on: Vec<Value> = self
            .0
            .iter()
            .map(|fault| json!({"fault": fault.kind().name, "with": fault.details.0, "calls": fault.calls, "hits": fault.hits}))
            .collect();
        let kinds: Vec<Value> =
            KINDS.iter().map(|kind| json!({"fault": kind.name, "rows": kind.rows, "does": kind.does})).collect();
        let rows: Vec<Value> = ROWS.iter().map(|(id, is)| json!({"id": id, "is": is})).collect();
        json!({"on": on, "kinds": kinds, "rows": rows})
    }
}

/// What lasting faults add to the content of records.
#[derive(Default)]
pub(super) struct Content {
    /// Unknown fields, by `record`, `employer`, `occupation` or `salary`.
    pub extra: BTreeMap<String, serde_json::Map<String, Value>>,
    /// Pay of July is `BONUS`.
    pub new_kind: bool,
    /// Every locale is `Marítima`.
    pub new_locale: bool,
}

/// The word that pay of July has under `new_enum`.
pub(super) const NEW_KIND: &str = "BONUS";

/// The locale under `new_enum,locale=true`.
pub(super) const NEW_LOCALE: &str = "Marítima";

/// The faults that hit one call.
#[derive(Default)]
pub(super) struct Hits(Vec<Fault>);

impl Hits {
    /// Whether the records or their page are touched, so that no prepared body will do.
    pub(super) fn touch_content(&self) -> bool {
        self.0.iter().any(|fault| matches!(fault.kind().effect, R(_) | P(_)))
    }

    /// Strikes the records of a list.
    pub(super) fn records(&self, records: &mut Vec<Json>) {
        self.records_of(None, records);
    }

    /// Strikes the records of one of the links that are listed together.
    pub(super) fn records_of(&self, link: Option<&str>, records: &mut Vec<Json>) {
        for fault in &self.0 {
            let is_of_another = link.is_some() && fault.details.text("link").is_some_and(|of| link != Some(of));
            if let R(effect) = fault.kind().effect
                && !is_of_another
            {
                effect(records, &fault.details);
            }
        }
    }

    /// What becomes of a list with `link__in`, if it is not answered rightly.
    pub(super) fn link_in(&self) -> Option<&str> {
        let fault = self.0.iter().find(|fault| fault.kind().name == LINK_IN)?;
        Some(fault.details.text("how").unwrap_or("refuse"))
    }

    /// Strikes a page.
    pub(super) fn page(&self, page: &mut Page) {
        for fault in &self.0 {
            if let P(effect) = fault.kind().effect {
                effect(page, &fault.details);
            }
        }
    }

    /// Strikes the answer.
    pub(super) fn answer(&self, answer: &mut Answer) {
        for fault in &self.0 {
            if let A(effect) = fault.kind().effect {
                effect(answer, &fault.details);
            }
        }
    }

    /// The bodies to be sent for one event.
    pub(super) fn event(&self, body: Json) -> Vec<Json> {
        let mut bodies = vec![body];
        for fault in &self.0 {
            if let E(effect) = fault.kind().effect {
                effect(&mut bodies, &fault.details);
            }
        }
        bodies
    }

    /// When the sender of a webhook leaves, if it does.
    pub(super) fn hang_up(&self) -> Option<Duration> {
        let fault = self.0.iter().find(|fault| fault.kind().name == "hang_up")?;
        Some(Duration::from_millis(fault.details.number("after_ms", 5)))
    }
}

impl Hits {
    /// The status that the link of an event has from now on, if the event says that its user is needed.
    pub(super) fn link_status(&self) -> Option<&'static str> {
        let fault = self.0.iter().find(|fault| fault.kind().name == "needs_user")?;
        Some(if fault.details.text("code") == Some("token_required") { "token_required" } else { "invalid" })
    }

    /// When an event is sent once more, if it is.
    pub(super) fn again(&self) -> Option<Duration> {
        let fault = self.0.iter().find(|fault| fault.kind().name == "again")?;
        Some(Duration::from_millis(fault.details.number("after_ms", 6_000)))
    }
}

const ELSEWHERE: &str = "http://elsewhere.invalid/api/br/employments/?page=2";

fn status(answer: &mut Answer, details: &Details) {
    let code = u16::try_from(details.number("code", 500)).unwrap_or(500);
    let in_so_many = |seconds| SystemTime::from((Clock::system().now() + Duration::from_secs(seconds)).to_utc());
    let date = details.text("retry_date").map(|_| httpdate::fmt_http_date(in_so_many(details.number("retry_date", 7))));
    let retry_after = details.text("retry_after").map(str::to_owned).or(date);
    *answer = if details.says("html") {
        Answer::html(code, "The simulator was told to answer so")
    } else {
        Answer::error_for(code, details.text("error"), details.text("message"), &answer.request_id)
    };
    if let Some(retry_after) = retry_after {
        answer.headers.push(("retry-after", retry_after));
    }
}

fn html(answer: &mut Answer, _: &Details) {
    *answer = Answer::html(200, "Maintenance");
}

fn empty(answer: &mut Answer, details: &Details) {
    answer.status = u16::try_from(details.number("code", 200)).unwrap_or(200);
    answer.body = bytes::Bytes::new();
}

fn cut(answer: &mut Answer, details: &Details) {
    let after = usize::try_from(details.number("after", answer.body.len() as u64 / 2)).unwrap_or(0);
    answer.delivery = Delivery::Cut { after: after.min(answer.body.len().saturating_sub(1)) };
}

fn drip(answer: &mut Answer, details: &Details) {
    let bytes = usize::try_from(details.number("bytes", 1)).unwrap_or(1).max(1);
    answer.delivery = Delivery::Drip { bytes, every: Duration::from_millis(details.number("every_ms", 1_000)) };
}

fn silence(answer: &mut Answer, _: &Details) {
    answer.delivery = Delivery::Silence;
}

fn hang(answer: &mut Answer, _: &Details) {
    answer.delivery = Delivery::Never;
}

fn endless(answer: &mut Answer, _: &Details) {
    answer.body = bytes::Bytes::from_static(b"{\"count\":1,\"next\":null,\"previous\":null,\"results\":[");
    answer.delivery = Delivery::Endless;
}

fn gzip_bomb(answer: &mut Answer, _: &Details) {
    answer.headers.push(("content-encoding", "gzip".to_owned()));
    answer.body = super::answer::gzip_bomb();
}

fn redirect(answer: &mut Answer, details: &Details) {
    answer.status = 302;
    answer.headers.push(("location", details.text("to").unwrap_or(ELSEWHERE).to_owned()));
    answer.body = bytes::Bytes::new();
}

fn next_elsewhere(page: &mut Page, details: &Details) {
    page.next = Some(details.text("to").unwrap_or(ELSEWHERE).to_owned());
}

fn next_loop(page: &mut Page, _: &Details) {
    page.next = Some(page.this.clone());
}

fn next_malformed(page: &mut Page, _: &Details) {
    page.next = Some(format!("{}page=2", page.this));
}

fn next_relative(page: &mut Page, _: &Details) {
    let path = page.this.splitn(4, '/').nth(3).unwrap_or_default();
    page.next = Some(format!("/{path}{}page=2", if path.contains('?') { "&" } else { "?" }));
}

fn slip(page: &mut Page, _: &Details) {
    if page.previous.is_some() && !page.results.is_empty() {
        page.results.remove(0);
        page.count = page.count.saturating_sub(1);
    }
}

fn wrong_count(page: &mut Page, details: &Details) {
    page.count = usize::try_from(details.number("count", page.count as u64 + 1)).unwrap_or(0);
}

fn foreign_record(page: &mut Page, _: &Details) {
    if let Some(first) = page.results.first_mut() {
        first.set("link", super::random::uuid(0, u32::MAX, "another link").into());
    }
}

fn as_it_is(_: &mut Vec<Json>, _: &Details) {}

fn list_empty(records: &mut Vec<Json>, _: &Details) {
    records.clear();
}

fn shrink(records: &mut Vec<Json>, details: &Details) {
    records.truncate(usize::try_from(details.number("keep", 1)).unwrap_or(1));
}

fn many_salaries(records: &mut Vec<Json>, details: &Details) {
    let rows = usize::try_from(details.number("rows", 10_000)).unwrap_or(0);
    for record in records {
        if let Some(Json::List(salaries)) = record.get_mut("salaries")
            && let Some(last) = salaries.last().cloned()
        {
            salaries.resize(rows.max(salaries.len()), last);
        }
    }
}

fn older(records: &mut Vec<Json>, _: &Details) {
    for record in records {
        if let Some(Json::Text(text)) = record.get_mut("collected_at")
            && let Ok(year) = text[..4].parse::<u32>()
        {
            // The 29th of February has no older twin three years before.
            *text = format!("{:04}{}", year - 3, text[4..].replace("-02-29", "-02-28"));
        }
    }
}

fn unknown(details: &Details) -> (String, String, Value) {
    let value = details.text("value").unwrap_or("42");
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    let text = |key, otherwise: &str| details.text(key).unwrap_or(otherwise).to_owned();
    (text("at", "record"), text("name", "shoe_size"), value)
}

fn unknown_field(records: &mut Vec<Json>, details: &Details) {
    let (at, name, value) = unknown(details);
    let value = Json::from(value);
    for record in records {
        match at.as_str() {
            "record" => record.set(&name, value.clone()),
            "employer" => {
                if let Some(employer) = record.get_mut("employer_data") {
                    employer.set(&name, value.clone());
                }
            }
            place => {
                let list = if place == "occupation" { "occupations" } else { "salaries" };
                for row in record.get_mut(list).into_iter().flat_map(Json::items_mut) {
                    row.set(&name, value.clone());
                }
            }
        }
    }
}

fn new_enum(records: &mut Vec<Json>, details: &Details) {
    for record in records {
        if details.says("locale") {
            for row in record.get_mut("occupations").into_iter().flat_map(Json::items_mut) {
                row.set("locale", NEW_LOCALE.into());
            }
        } else {
            for row in record.get_mut("salaries").into_iter().flat_map(Json::items_mut) {
                if row.get("month").and_then(Json::as_text).is_some_and(|month| month.ends_with("-07")) {
                    row.set("type", NEW_KIND.into());
                }
            }
        }
    }
}

fn missing_key(records: &mut Vec<Json>, details: &Details) {
    let some = if details.says("first") { 1 } else { usize::MAX };
    for record in records.iter_mut().take(some) {
        record.remove(details.text("key").unwrap_or("employer_data"));
    }
}

fn wrong_type(records: &mut Vec<Json>, details: &Details) {
    for record in records {
        record.set(details.text("key").unwrap_or("salaries"), Json::Number("17".to_owned()));
    }
}

fn repeat_record(records: &mut Vec<Json>, _: &Details) {
    if let Some(first) = records.first().cloned() {
        records.push(first);
    }
}

fn shuffle(records: &mut Vec<Json>, _: &Details) {
    records.reverse();
    for record in records {
        for list in ["occupations", "salaries"] {
            if let Some(Json::List(rows)) = record.get_mut(list) {
                let half = rows.len() / 2;
                rows.rotate_left(half);
                rows.reverse();
            }
        }
        if let Json::Object(members) = record {
            members.reverse();
        }
    }
}

fn copies(bodies: &mut Vec<Json>, details: &Details) {
    let n = usize::try_from(details.number("n", 100)).unwrap_or(100);
    *bodies = std::iter::repeat_n(bodies.clone(), n).flatten().collect();
}

fn same_ids(bodies: &mut Vec<Json>, _: &Details) {
    for body in bodies {
        body.set("webhook_id", super::random::hex32(0, 0, "one webhook id").into());
        body.set("request_id", super::random::uuid(0, 0, "one request id").into());
    }
}

fn moved_fields(bodies: &mut Vec<Json>, _: &Details) {
    for body in bodies {
        body.set("meta", Json::object([("attempt", 1_usize.into()), ("link_id", "not this one".into())]));
        if let Json::Object(members) = body {
            members.reverse();
        }
    }
}

fn unknown_link(bodies: &mut Vec<Json>, _: &Details) {
    for body in bodies {
        body.set("link_id", super::random::uuid(0, u32::MAX, "unknown link").into());
    }
}

fn unknown_type(bodies: &mut Vec<Json>, _: &Details) {
    for body in bodies {
        body.set("webhook_type", "HOROSCOPES".into());
    }
}

fn no_link(bodies: &mut Vec<Json>, _: &Details) {
    for body in bodies {
        body.remove("link_id");
    }
}

fn needs_user(bodies: &mut Vec<Json>, details: &Details) {
    let code = if details.text("code") == Some("token_required") { "token_required" } else { "invalid_credentials" };
    for body in bodies {
        body.set("webhook_type", "LINK".into());
        body.set("process_type", "recurrent_update".into());
        body.set("webhook_code", code.into());
        body.set("data", super::webhooks::user_problem(code == "token_required"));
    }
}

fn lost(bodies: &mut Vec<Json>, _: &Details) {
    bodies.clear();
}

fn keep(_: &mut Vec<Json>, _: &Details) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_hits_as_often_and_where_it_is_told() {
        let mut faults = Faults::default();
        faults.arm(Fault::parse("status,code=429,on=employments,skip=1,times=2").unwrap());
        let call = Call { on: "employments", link: Some("x"), together: &[], resource: Some(Resource::Employments) };
        let hits: Vec<usize> = (0..5).map(|_| faults.draw(call).0.len()).collect();
        assert_eq!(hits, [0, 1, 1, 0, 0]);
        assert_eq!(faults.draw(Call { on: "links", ..call }).0.len(), 0);
    }

    #[test]
    fn every_row_of_the_fault_list_is_switched_on_by_its_id_and_more_may_be_said() {
        let wanted = (1..=20).filter(|n| *n != 11).map(|n| format!("AP{n}"));
        let wanted: Vec<String> = wanted.chain([1, 2, 3, 4, 5, 6, 7, 12].map(|n| format!("IN{n}"))).collect();
        assert_eq!(ROWS.iter().map(|(id, _)| (*id).to_owned()).collect::<Vec<_>>(), wanted);
        for (id, is) in ROWS {
            let fault = Fault::parse(id).unwrap();
            assert!(
                fault.kind().rows.split(", ").any(|rows| covers(rows, id)),
                "{} does not stand for {id}",
                fault.kind().name
            );
            assert_eq!(fault.details.0, Fault::parse(is).unwrap().details.0);
            for json in [json!({"fault": id}), json!({"id": id})] {
                let same = Fault::from_json(&json).unwrap();
                assert_eq!((same.kind, same.details.0), (fault.kind, fault.details.0.clone()), "{id}");
            }
        }
        let more = Fault::parse("AP5,retry_after=1,link=x").unwrap();
        assert_eq!((more.details.text("retry_after"), more.details.text("code")), (Some("1"), Some("429")));
        assert!(Fault::parse("AP11").unwrap_err().contains("plain HTTP"));
    }

    /// Whether `rows`, such as `AP1-AP6`, hold the row `id`.
    fn covers(rows: &str, id: &str) -> bool {
        let number = |id: &str| id[2..].parse::<u32>().unwrap();
        let (first, last) = rows.split_once('-').unwrap_or((rows, rows));
        first[..2] == id[..2] && (number(first)..=number(last)).contains(&number(id))
    }

    #[test]
    fn a_fault_of_some_seconds_is_over_after_them() {
        let mut faults = Faults::default();
        let mut fault = Fault::parse("AP20,seconds=60").unwrap();
        let call = Call { on: "links", link: None, together: &[], resource: None };
        faults.arm(fault.clone());
        assert_eq!(faults.draw(call).0.len(), 1);
        fault.since = Instant::now().checked_sub(Duration::from_mins(1)).unwrap();
        faults.clear();
        faults.arm(fault);
        assert_eq!(faults.draw(call).0.len(), 0);
    }

    #[test]
    fn a_key_that_a_fault_does_not_take_is_refused_with_those_that_it_takes() {
        let error = Fault::parse("status,code=503,foo=1").unwrap_err();
        assert!(
            error.contains("takes no `foo`") && error.contains("retry_after") && error.contains("times"),
            "{error}"
        );
        let error = Fault::from_json(&json!({"id": "AP10", "code": 503})).unwrap_err();
        assert!(error.contains("`AP10` takes no `code`; known are link"), "{error}");
        for kind in KINDS {
            let is_told = |key: &&str| kind.does.contains(&format!("`{key}"));
            assert!(kind.takes.iter().all(is_told), "{} does not say what it takes", kind.name);
        }
    }

    #[test]
    fn a_value_that_would_go_unheard_is_refused_with_what_can_be() {
        for (fault, expected) in [
            ("status,code=abc", "a status from 200 to 599"),
            // No answer of a server has it.
            ("status,code=100", "a status from 200 to 599"),
            ("needs_user,code=500", "one of invalid_credentials, token_required"),
            ("status,share=1.5", "a number from 0 to 1"),
            ("status,on=nowhere", "one of employments, owners"),
            ("status,on=webhook", "one of employments, owners"),
            ("lost,on=links", "one of webhook"),
            ("older,on=token", "one of employments, owners"),
            ("status,resource=incomes", "owners"),
            ("status,times=many", "a whole number"),
            ("status,html=yes", "true, false"),
            ("unknown_field,at=owner", "record, employer"),
            ("link_in,how=never", "refuse, forbid"),
        ] {
            let error = Fault::parse(fault).unwrap_err();
            assert!(error.contains(expected), "{fault}: {error}");
        }
        for fault in
            ["status,code=429,retry_after=soon", "cut,on=unknown", "older,on=owner", "status,resource=OWNERS,share=0.5"]
        {
            assert!(Fault::parse(fault).is_ok(), "{fault}");
        }
    }

    #[test]
    fn a_fault_can_be_narrowed_to_each_route() {
        let paths = ["", "token/", "links/", "links/x/", "links/x/refresh/", "br/employments/", "br/employments/x/"];
        let others = ["owners/", "owners/x/", "institutions/", "institutions/x/", "nowhere/"];
        for path in paths.iter().chain(&others) {
            let name = super::super::server::Route::of(&format!("/api/{path}")).name();
            assert!(Fault::parse(&format!("status,on={name}")).is_ok(), "{name}");
        }
        assert_eq!(paths.len() + others.len(), ROUTES.len());
    }

    #[test]
    fn an_unknown_fault_is_refused_with_the_known_ones() {
        let error = Fault::parse("typhoon").unwrap_err();
        assert!(error.contains("`typhoon`") && error.contains("gzip_bomb"), "{error}");
        assert!(Fault::parse("cut,after").unwrap_err().contains("key=value"));
        assert!(Fault::from_json(&json!({"fault": "status", "code": 401, "link": null})).is_ok());
    }
}
