//! The API's paths: who may call, what they answer.
//!
//! A call is counted when it arrives, then held against the limit, the keys, and the guard that refuses what is not
//! documented; only then is it answered, and only then do faults strike.

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, Method, Response, header};
use axum::serve::ListenerExt;
use base64::Engine;
use bytes::Bytes;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::answer::Answer;
use super::faults::{Call, Hits};
use super::json::Json;
use super::links::{INSTITUTION, Link, Resource, Wish};
use super::people::documents;
use super::query::{self, Page, Query};
use super::random::hex32;
use super::token;
use super::truth::Answered;
use super::webhooks::About;
use super::widget;
use super::world::{Prepared, listed};
use super::{Arrival, Limit, Simulation, State, control};
use crate::clock::{Clock, Timestamp};

/// Answers calls until `shutdown`.
pub(super) async fn serve(
    simulation: Simulation,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = Router::new().fallback(answer).with_state(simulation);
    // A full page is worth sending at once.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let stopping = shutdown.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { stopping.cancelled().await });
    tokio::select! {
        ended = server => ended,
        // Some answers are made never to end.
        () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => Ok(()),
    }
}

/// Deleting links is limited on its own.
const DELETIONS: Limit = Limit { requests: 5, per: Duration::from_mins(1) };

/// A link may be refreshed again after this time.
const COOLDOWN: Duration = Duration::from_mins(10);

/// Bodies of requests are small.
const MAX_REQUEST: usize = 256 * 1_024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Probe,
    Token,
    Links,
    Link(String),
    Refresh(String),
    List(Resource),
    One(Resource, String),
    Institutions,
    Institution(String),
    Unknown,
}

impl Route {
    pub(super) fn of(path: &str) -> Self {
        let parts: Vec<&str> = path.split('/').collect();
        let id = |id: &str| id.to_owned();
        match parts[..] {
            ["", "api", ""] => Self::Probe,
            ["", "api", "token", ""] => Self::Token,
            ["", "api", "links", ""] => Self::Links,
            ["", "api", "links", link, ""] => Self::Link(id(link)),
            ["", "api", "links", link, "refresh", ""] => Self::Refresh(id(link)),
            ["", "api", "br", "employments", ""] => Self::List(Resource::Employments),
            ["", "api", "br", "employments", record, ""] => Self::One(Resource::Employments, id(record)),
            ["", "api", "owners", ""] => Self::List(Resource::Owners),
            ["", "api", "owners", record, ""] => Self::One(Resource::Owners, id(record)),
            ["", "api", "institutions", ""] => Self::Institutions,
            ["", "api", "institutions", institution, ""] => Self::Institution(id(institution)),
            _ => Self::Unknown,
        }
    }

    /// The name by which faults are narrowed, one of [`ROUTES`](super::faults::ROUTES).
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Token => "token",
            Self::Links => "links",
            Self::Link(_) => "link",
            Self::Refresh(_) => "refresh",
            Self::List(resource) => resource.name(),
            Self::One(Resource::Employments, _) => "employment",
            Self::One(Resource::Owners, _) => "owner",
            Self::Institutions => "institutions",
            Self::Institution(_) => "institution",
            Self::Unknown => "unknown",
        }
    }

    fn resource(&self) -> Option<Resource> {
        match self {
            Self::List(resource) | Self::One(resource, _) => Some(*resource),
            _ => None,
        }
    }

    /// The links that the query asks for together.
    fn together(&self, query: &str) -> Vec<String> {
        match self {
            Self::List(_) => url::form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == "link__in")
                .map_or_else(Vec::new, |(_, ids)| ids.split(',').map(str::to_owned).collect()),
            _ => Vec::new(),
        }
    }

    /// The link that the path or the query names.
    fn link(&self, query: &str) -> Option<String> {
        match self {
            Self::Link(id) | Self::Refresh(id) => Some(id.clone()),
            _ => url::form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == "link")
                .map(|(_, id)| id.into_owned()),
        }
    }
}

/// One call, on its way to an answer.
struct Asked<'a> {
    simulation: &'a Simulation,
    route: &'a Route,
    method: &'a Method,
    /// Scheme, host and path.
    url: String,
    query: &'a str,
    headers: &'a HeaderMap,
    body: Value,
    hits: &'a Hits,
    request_id: &'a str,
}

async fn answer(Shared(simulation): Shared<Simulation>, request: Request) -> Response<Body> {
    let arrived = Instant::now();
    let (parts, body) = request.into_parts();
    let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
    if path.starts_with("/_sim/") {
        let body = axum::body::to_bytes(body, MAX_REQUEST).await.unwrap_or_default();
        return control::answer(&simulation, &parts.method, path, query, &body)
            .await
            .into_response()
            .unwrap_or_default();
    }
    if path.starts_with("/widget/") {
        return widget::answer(&simulation, path, query).into_response().unwrap_or_default();
    }
    let route = Route::of(path);
    let link = route.link(query);
    let together = route.together(query);
    let (request_id, admitted) = simulation.arrive(arrived, &parts.method, path, link.clone(), together.clone());
    let call = Call { on: route.name(), link: link.as_deref(), together: &together, resource: route.resource() };
    let hits = if admitted { simulation.state().faults.draw(call) } else { Hits::default() };
    let mut answer = if admitted {
        // A body that does not arrive is an empty one.
        let body = axum::body::to_bytes(body, MAX_REQUEST).await.unwrap_or_default();
        let body = if body.is_empty() { Some(Value::Null) } else { serde_json::from_slice(&body).ok() };
        let url = simulation.url(&parts.headers, path);
        match body {
            _ if route != Route::Token && !simulation.knows(&parts.headers) => {
                Answer::error(401, "authentication_failed", "Invalid Secret Keys", &request_id, None)
            }
            None => Answer::error(400, "parse_error", "JSON parse error", &request_id, None),
            Some(body) => {
                let (route, method, headers) = (&route, &parts.method, &parts.headers);
                let request_id = &request_id;
                dispatch(&Asked {
                    simulation: &simulation,
                    route,
                    method,
                    url,
                    query,
                    headers,
                    body,
                    hits: &hits,
                    request_id,
                })
            }
        }
    } else {
        Answer::html(403, "Forbidden")
    };
    answer.request_id = request_id;
    hits.answer(&mut answer);
    if !simulation.0.settings.response_latency.is_zero() {
        tokio::time::sleep(simulation.0.settings.response_latency).await;
    }
    match answer.into_response() {
        Some(response) => response,
        None => std::future::pending().await,
    }
}

fn dispatch(asked: &Asked<'_>) -> Answer {
    let (get, post) = (*asked.method == Method::GET, *asked.method == Method::POST);
    let (patch, put, delete) =
        (*asked.method == Method::PATCH, *asked.method == Method::PUT, *asked.method == Method::DELETE);
    match asked.route {
        Route::Probe if get => Answer::json(200, "{}"),
        Route::Token if post => asked.token(),
        Route::Links if get => asked.links(),
        Route::Links if post => asked.create_link(),
        Route::Link(id) if get => asked.link(id),
        Route::Link(id) if patch => asked.patch_link(id),
        Route::Link(id) if put => asked.put_link(id),
        Route::Link(id) if delete => asked.delete_link(id),
        Route::Refresh(id) if post => asked.refresh_link(id),
        Route::List(resource) if get => asked.list(*resource),
        Route::List(resource) if post => asked.collect(*resource),
        Route::Links | Route::List(Resource::Owners) if patch => {
            asked.error(400, "session_expired", "Impossible to resume a session, please start from the beginning")
        }
        Route::One(resource, id) if get || delete => asked.one(*resource, id, delete),
        Route::Institutions if get => asked.institutions(),
        Route::Institution(id) if get => asked.institution(id),
        Route::Unknown => asked.not_found(),
        _ => asked.error(405, "method_not_allowed", &format!("Method \"{}\" not allowed.", asked.method)),
    }
}

impl Asked<'_> {
    fn error(&self, status: u16, code: &str, message: &str) -> Answer {
        Answer::error(status, code, message, self.request_id, None)
    }

    fn not_found(&self) -> Answer {
        self.error(404, "not_found", "Not found")
    }

    /// Belvo's guard in front of the API refuses with a page.
    fn guarded() -> Answer {
        Answer::html(403, "Forbidden")
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    fn required(&self, field: &str) -> Answer {
        Answer::error(400, "required", "This field is required.", self.request_id, Some(field))
    }

    fn is_async(&self) -> bool {
        self.headers.get("x-belvo-request-mode").is_some_and(|mode| mode == "async")
    }

    fn accepted(&self) -> Answer {
        Answer::json(202, Json::object([("request_id", self.request_id.into())]).to_bytes())
    }

    fn token(&self) -> Answer {
        let settings = &self.simulation.0.settings;
        if let Some(refused) = token::refusal(&self.body, self.request_id) {
            return refused;
        }
        if self.field("id") != Some(settings.secret_id.as_str())
            || self.field("password") != Some(settings.secret_password.as_str())
        {
            return self.error(401, "authentication_failed", "Invalid Secret Keys");
        }
        let mut state = self.simulation.state();
        if self.field("link_id").is_some_and(|id| state.world.find(id).is_none()) {
            return self.not_found();
        }
        let (access, refresh) = (token::text("access", self.request_id), token::text("refresh", self.request_id));
        let callbacks = state.callbacks.of(&self.body);
        let session = token::Session::new(&self.body, callbacks, state.world.now);
        state.sessions.insert(access.clone(), session);
        Answer::json(200, Json::object([("access", access.into()), ("refresh", refresh.into())]).to_bytes())
    }

    fn links(&self) -> Answer {
        let Some(query) = Query::parse(self.query, query::LINKS) else { return Self::guarded() };
        let page = {
            let state = self.simulation.state();
            let json = |link: &Link| link.json(state.world.now);
            let links = state.world.links().map(|(_, link)| link);
            let picked = links.filter(|link| query.picks_all() || query.picks(&json(link))).collect();
            query.page_of(picked, &self.url, json)
        };
        self.answer_page(page)
    }

    fn page(&self, query: &Query, records: Vec<Json>) -> Answer {
        self.answer_page(query.page_of(records, &self.url, |record| record))
    }

    fn answer_page(&self, page: Option<Page>) -> Answer {
        let Some(mut page) = page else { return self.not_found() };
        self.hits.page(&mut page);
        Answer::json(200, page.into_bytes())
    }

    fn link(&self, id: &str) -> Answer {
        let state = self.simulation.state();
        let Some(position) = state.world.find(id) else { return self.not_found() };
        Answer::json(200, state.world.link(position).json(state.world.now).to_bytes())
    }

    fn create_link(&self) -> Answer {
        for field in ["institution", "username", "password"] {
            if self.field(field).is_none_or(str::is_empty) {
                return self.required(field);
            }
        }
        if self.field("institution") != Some(INSTITUTION) {
            return Answer::error(
                400,
                "does_not_exist",
                "Institution does not exist.",
                self.request_id,
                Some("institution"),
            );
        }
        if !self.field("password").is_some_and(|password| (8..=70).contains(&password.len())) {
            return Answer::error(
                400,
                "invalid",
                "The password has 8 to 70 characters.",
                self.request_id,
                Some("password"),
            );
        }
        let cpf: String = self.field("username").unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
        let person = cpf.get(2..9).and_then(|number| number.parse::<u32>().ok());
        let Some(person) = person.filter(|person| documents::cpf(*person) == cpf) else {
            return self.error(400, "login_error", "Invalid credentials provided to login to the institution");
        };
        let wish = match self.wish() {
            Ok(wish) => wish,
            Err(refused) => return refused,
        };
        if self.simulation.state().world.is_connected(person) {
            return self.duplicated(person);
        }
        let position = self.simulation.connect_one(person, wish);
        let state = self.simulation.state();
        Answer::json(201, state.world.link(position).json(state.world.now).to_bytes())
    }

    fn wish(&self) -> Result<Wish, Answer> {
        let text = |field| self.field(field).map(str::to_owned);
        let wish = Wish {
            access_mode: text("access_mode").or_else(|| Some("recurrent".to_owned())),
            external_id: text("external_id"),
            fetch_resources: match self.body.get("fetch_resources") {
                None => None,
                Some(Value::Array(names)) => Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
                Some(_) => {
                    return Err(Answer::error(
                        400,
                        "not_a_list",
                        "Expected a list of items.",
                        self.request_id,
                        Some("fetch_resources"),
                    ));
                }
            },
            credentials_storage: text("credentials_storage"),
            stale_in: text("stale_in"),
        };
        let invalid = |field, message| Err(Answer::error(400, "invalid_choice", message, self.request_id, Some(field)));
        if !matches!(wish.access_mode.as_deref(), Some("single" | "recurrent")) {
            return invalid("access_mode", "The access mode is single or recurrent.");
        }
        if wish
            .fetch_resources
            .as_ref()
            .is_some_and(|names| names.iter().any(|name| !["EMPLOYMENTS", "OWNERS"].contains(&name.as_str())))
        {
            return invalid(
                "fetch_resources",
                "The institution only supports the following resources: EMPLOYMENTS, OWNERS",
            );
        }
        if !wish.stale_in.as_deref().is_none_or(is_days) {
            return invalid("stale_in", "The value must be a number of days, such as 365d.");
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if wish.external_id.as_ref().is_some_and(|id| !(3..=256).contains(&id.len()) || !id.bytes().all(allowed)) {
            return invalid("external_id", "The external id has 3 to 256 letters, digits, dashes and underscores.");
        }
        if wish.access_mode.as_deref() == Some("recurrent")
            && wish.credentials_storage.as_deref().is_some_and(|storage| storage != "store")
        {
            return Err(self.error(400, "invalid_credentials_storage", "Recurrent links must store the credentials"));
        }
        if wish.credentials_storage.as_deref() == Some("nostore")
            && wish.fetch_resources.as_ref().is_none_or(Vec::is_empty)
        {
            return Err(self.error(
                400,
                "invalid_fetch_resources",
                "Single links without stored credentials must fetch resources",
            ));
        }
        Ok(wish)
    }

    fn duplicated(&self, person: u32) -> Answer {
        let link =
            Link::new(self.simulation.0.settings.seed, person, 0, self.simulation.0.settings.start, Wish::default());
        let object = Json::object([
            ("code", "duplicated".into()),
            ("message", "A link for this user and institution exists already.".into()),
            ("request_id", self.request_id.into()),
            ("institution_user_id", link.institution_user_id().into()),
        ]);
        Answer::json(400, Json::List(vec![object]).to_bytes())
    }

    fn patch_link(&self, id: &str) -> Answer {
        let mut state = self.simulation.state();
        let Some(position) = state.world.find(id) else { return self.not_found() };
        let was_recurrent = state.world.link(position).access_mode == "recurrent";
        let recurrent = match self.field("access_mode") {
            Some("recurrent") => true,
            Some("single") => false,
            None if self.body.is_object() => was_recurrent,
            _ => {
                return Answer::error(
                    400,
                    "invalid_choice",
                    "The access mode is single or recurrent.",
                    self.request_id,
                    Some("access_mode"),
                );
            }
        };
        if !self.field("stale_in").is_none_or(is_days) {
            let message = "The value must be a number of days, such as 365d.";
            return Answer::error(400, "invalid_choice", message, self.request_id, Some("stale_in"));
        }
        let link = state.world.link_mut(position);
        if let Some(stale_in) = self.field("stale_in") {
            link.stale_in = Some(stale_in.to_owned());
        }
        if let Some(Value::Array(names)) = self.body.get("fetch_resources") {
            link.fetch_resources = names.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        if recurrent != was_recurrent {
            link.set_access_mode(recurrent);
        }
        let json = link.clone().json(state.world.now).to_bytes();
        drop(state);
        if recurrent && !was_recurrent {
            // Belvo reads the link anew on the next day, and tells.
            self.simulation.announce_all(position);
        }
        Answer::json(200, json)
    }

    fn put_link(&self, id: &str) -> Answer {
        if self.field("password").is_none() {
            return self.required("password");
        }
        let mut state = self.simulation.state();
        let Some(position) = state.world.find(id) else { return self.not_found() };
        state.world.set_status(position, "valid");
        state.world.collect(position);
        let recurrent = state.world.link(position).access_mode == "recurrent";
        let json = state.world.link(position).json(state.world.now).to_bytes();
        drop(state);
        if recurrent {
            self.simulation.announce_all(position);
        }
        Answer::json(200, json)
    }

    fn delete_link(&self, id: &str) -> Answer {
        let mut state = self.simulation.state();
        let Some(position) = state.world.find(id) else { return self.not_found() };
        if !self.is_async() && !state.deletions.admits(Instant::now(), DELETIONS) {
            return Answer::html(429, "Too Many Requests");
        }
        state.world.delete(position);
        drop(state);
        if self.is_async() {
            self.simulation.announce(position, About::Deleted, None);
            return self.accepted();
        }
        Answer::nothing(204)
    }

    fn refresh_link(&self, id: &str) -> Answer {
        let mut state = self.simulation.state();
        let Some(position) = state.world.find(id) else { return self.not_found() };
        let now = state.world.now;
        if state.world.link(position).status != "valid" {
            return self.error(
                400,
                "invalid_link",
                "The link has been invalidated. You may need to update link credentials",
            );
        }
        if let Some(left) = state.world.link(position).refreshed_at.and_then(|at| COOLDOWN.checked_sub(now.since(at)))
            && !left.is_zero()
        {
            let minutes = left.as_secs().div_ceil(60);
            let message =
                format!("The link has already been refreshed. Please wait {minutes} minutes before trying again.");
            return self.error(409, "link_refreshed", &message);
        }
        state.world.link_mut(position).refreshed_at = Some(now);
        state.world.collect(position);
        let stored = state.world.link(position).fetch_resources.clone();
        drop(state);
        let asked = self.body.get("fetch_resources").and_then(Value::as_array);
        let names = asked.map_or(stored, |names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        for resource in names.iter().filter_map(|name| Resource::parse(name)) {
            self.simulation.announce(position, About::Historical(resource), None);
        }
        self.accepted()
    }

    fn list(&self, resource: Resource) -> Answer {
        let known = if resource == Resource::Employments { query::EMPLOYMENTS } else { query::OWNERS };
        let Some(query) = Query::parse(self.query, known) else { return Self::guarded() };
        let link = query.get("link");
        if link.is_none() && query.get("link__in").is_none() && resource == Resource::Employments {
            return Self::guarded();
        }
        let Some(id) = link else { return self.list_of_many(resource, &query) };
        let (position, link, now) = {
            let state = self.simulation.state();
            let Some(position) = state.world.find(id) else { return self.not_found() };
            let prepared = state.world.prepared(position, resource);
            if let Some(prepared) =
                prepared.filter(|_| self.plain(&query)).filter(|prepared| prepared.count <= query.page_size())
            {
                drop(state);
                self.note_answer(&[(position, prepared.at)], resource);
                return Answer::json(200, prepared.body);
            }
            (position, state.world.link(position).clone(), state.world.now)
        };
        let mut records = listed(self.simulation.0.settings.seed, &link, resource, now);
        self.hits.records(&mut records);
        records.retain(|record| query.picks(record));
        let count = records.len();
        let answer = self.page(&query, records);
        let at = link.held(resource).loaded.then(|| link.collections.latest(now));
        if answer.status == 200 && query.page() == 1 {
            self.note_answer(&[(position, at)], resource);
        }
        if self.plain(&query) && count <= query.page_size() && answer.status == 200 {
            self.simulation.state().world.keep(position, resource, Prepared { at, count, body: answer.body.clone() });
        }
        answer
    }

    /// Writes down which collections of `resource` a first page showed, by the positions of their links.
    fn note_answer(&self, shown: &[(usize, Option<Timestamp>)], resource: Resource) {
        let at = Clock::system().now();
        let answered = shown.iter().map(|&(link, collection)| Answered { link, resource, collection, at });
        self.simulation.state().answered.extend(answered);
    }

    /// Whether the answer is the same for everybody who asks for the first page.
    fn plain(&self, query: &Query) -> bool {
        if query.get("link").is_some() && query.get("link__in").is_some() {
            return false;
        }
        query.is_plain() && query.page() == 1 && !self.hits.touch_content()
    }

    /// The list of several links, or of all.
    fn list_of_many(&self, resource: Resource, query: &Query) -> Answer {
        let how = self.hits.link_in();
        match how {
            Some("refuse") => return self.error(400, "validation_error", "This request is not valid"),
            Some("forbid") => return Answer::error_for(403, None, None, self.request_id),
            Some("gate") => return Self::guarded(),
            _ => {}
        }
        let mut wanted: Vec<&str> = query.get("link__in").map_or_else(Vec::new, |ids| ids.split(',').collect());
        if how == Some("first") {
            wanted.truncate(1);
        }
        let is_of_all = query.get("link__in").is_none() || how == Some("all");
        if self.plain(query) && !is_of_all {
            let lists = self.lists(resource, &wanted);
            if lists.iter().map(|(_, list)| list.count).sum::<usize>() <= query.page_size() {
                self.note_answer(&lists.iter().map(|(link, list)| (*link, list.at)).collect::<Vec<_>>(), resource);
                let bodies: Vec<(usize, Bytes)> = lists.into_iter().map(|(_, list)| (list.count, list.body)).collect();
                return Answer::json(200, Page::joined(&bodies));
            }
        }
        let (links, now): (Vec<(usize, Link)>, _) = {
            let state = self.simulation.state();
            let is_wanted = |link: &Link| is_of_all || wanted.contains(&link.id.as_str());
            let links = state.world.links().filter(|(_, link)| is_wanted(link));
            (links.map(|(position, link)| (position, link.clone())).collect(), state.world.now)
        };
        let seed = self.simulation.0.settings.seed;
        let mut records: Vec<Json> = links
            .iter()
            .flat_map(|(_, link)| {
                let mut records = listed(seed, link, resource, now);
                self.hits.records_of(Some(&link.id), &mut records);
                records
            })
            .collect();
        match how {
            Some("nothing") => records.clear(),
            Some("no_link") => records.iter_mut().for_each(|record| record.remove("link")),
            Some("all") => {}
            _ => records.retain(|record| query.picks(record)),
        }
        let answer = self.page(query, records);
        if answer.status == 200 && query.page() == 1 && how.is_none() {
            let shown = links
                .iter()
                .map(|(position, link)| (*position, link.held(resource).loaded.then(|| link.collections.latest(now))));
            self.note_answer(&shown.collect::<Vec<_>>(), resource);
        }
        answer
    }

    /// The whole list of each of `ids` that is a link, as the only page, with the link's position.
    fn lists(&self, resource: Resource, ids: &[&str]) -> Vec<(usize, Prepared)> {
        let list = |id: &&str| {
            let (position, link, now) = {
                let state = self.simulation.state();
                let position = state.world.find(id)?;
                if let Some(prepared) = state.world.prepared(position, resource) {
                    return Some((position, prepared));
                }
                (position, state.world.link(position).clone(), state.world.now)
            };
            let results = listed(self.simulation.0.settings.seed, &link, resource, now);
            let count = results.len();
            let page = Page { count, next: None, previous: None, results, this: String::new() };
            let body = Bytes::from(page.into_bytes());
            let at = link.held(resource).loaded.then(|| link.collections.latest(now));
            let prepared = Prepared { at, count, body };
            self.simulation.state().world.keep(position, resource, prepared.clone());
            Some((position, prepared))
        };
        ids.iter().filter_map(list).collect()
    }

    fn collect(&self, resource: Resource) -> Answer {
        let Some(id) = self.field("link") else { return self.required("link") };
        if let (Some(from), Some(to)) = (self.field("date_from"), self.field("date_to"))
            && from > to
        {
            return self.error(400, "invalid_period", "date_from must not be after date_to");
        }
        let mut state = self.simulation.state();
        let today = state.world.now.to_utc().date_naive().to_string();
        if self.field("date_to").is_some_and(|to| to > today.as_str()) {
            return self.error(400, "invalid_period", "date_to must not be in the future");
        }
        let Some(position) = state.world.find(id) else {
            return Answer::error(400, "does_not_exist", "The link does not exist.", self.request_id, Some("link"));
        };
        if state.world.link(position).status != "valid" {
            return self.error(
                400,
                "invalid_link",
                "The link has been invalidated. You may need to update link credentials",
            );
        }
        let save = self.body.get("save_data").and_then(Value::as_bool).unwrap_or(true);
        if self.is_async() && resource == Resource::Employments {
            state.world.collect(position);
            drop(state);
            self.simulation.announce(position, About::Historical(resource), None);
            return self.accepted();
        }
        let mut records = if save {
            state.world.collect(position);
            state.world.load(position, resource);
            state.world.records(position, resource)
        } else {
            // Nothing is kept: the records are made for this answer, and belong to no link that could be asked again.
            let mut link = state.world.link(position).clone();
            let now = state.world.now;
            link.collect(now);
            link.held_mut(resource).loaded = true;
            let mut records = listed(self.simulation.0.settings.seed, &link, resource, now);
            for record in &mut records {
                record.set("link", Json::Null);
            }
            records
        };
        drop(state);
        self.hits.records(&mut records);
        Answer::json(if save { 201 } else { 200 }, Json::List(records).to_bytes())
    }

    fn one(&self, resource: Resource, id: &str, delete: bool) -> Answer {
        let (links, now): (Vec<Link>, _) = {
            let state = self.simulation.state();
            (state.world.links().map(|(_, link)| link.clone()).collect(), state.world.now)
        };
        let seed = self.simulation.0.settings.seed;
        let found = links
            .iter()
            .flat_map(|link| listed(seed, link, resource, now).into_iter().map(move |record| (link, record)))
            .find(|(_, record)| record.get("id").and_then(Json::as_text) == Some(id));
        match found {
            None => self.not_found(),
            Some((link, _)) if delete => {
                let mut state = self.simulation.state();
                if let Some(position) = state.world.find(&link.id) {
                    state.world.link_mut(position).held_mut(resource).deleted.insert(id.to_owned());
                    state.world.forget(position, resource);
                }
                Answer::nothing(204)
            }
            Some((_, record)) => {
                let mut records = vec![record];
                self.hits.records(&mut records);
                records.first().map_or_else(|| self.not_found(), |record| Answer::json(200, record.to_bytes()))
            }
        }
    }

    fn institutions(&self) -> Answer {
        let Some(query) = Query::parse(self.query, query::INSTITUTIONS) else { return Self::guarded() };
        let records = [institution()].into_iter().filter(|record| query.picks(record)).collect();
        self.page(&query, records)
    }

    fn institution(&self, id: &str) -> Answer {
        if id == INSTITUTION_ID { Answer::json(200, institution().to_bytes()) } else { self.not_found() }
    }
}

/// The institution's numeric id.
const INSTITUTION_ID: &str = "9901";

fn institution() -> Json {
    let field = |name: &str, kind: &str, label: &str, validation: &str, placeholder: &str| {
        Json::object([
            ("name", name.into()),
            ("type", kind.into()),
            ("label", label.into()),
            ("validation", validation.into()),
            ("placeholder", placeholder.into()),
            ("validation_message", format!("{label} inválido").into()),
            ("values", Json::List(Vec::new())),
        ])
    };
    let fields = vec![
        field("username", "cpf", "CPF", "^\\d{3}\\.?\\d{3}\\.?\\d{3}-?\\d{2}$", "000.000.000-00"),
        field("password", "password", "Senha", "^.{8,70}$", "********"),
    ];
    Json::object([
        ("id", Json::Number(INSTITUTION_ID.to_owned())),
        ("name", INSTITUTION.into()),
        ("type", "employment".into()),
        ("website", "https://inss.simulated.example/".into()),
        ("display_name", "INSS (simulado)".into()),
        ("country_codes", Json::List(vec!["BR".into()])),
        ("primary_color", "#056dae".into()),
        ("logo", Json::Null),
        ("icon_logo", Json::Null),
        ("text_logo", Json::Null),
        ("code", Json::Null),
        ("form_fields", Json::List(fields)),
        ("features", Json::List(Vec::new())),
        ("resources", Json::List(vec!["EMPLOYMENTS".into(), "OWNERS".into()])),
        ("integration_type", "credentials".into()),
        ("status", "healthy".into()),
        ("openbanking_information", Json::Null),
    ])
}

impl Simulation {
    /// Writes an arrival down, and says its request id and whether the limit admits it.
    fn arrive(
        &self,
        at: Instant,
        method: &Method,
        path: &str,
        link: Option<String>,
        together: Vec<String>,
    ) -> (String, bool) {
        let mut state = self.state();
        let State { window, arrivals, requests, .. } = &mut *state;
        let admitted = self.0.settings.limit.is_none_or(|limit| window.admits(at, limit));
        *requests += 1;
        arrivals.push(Arrival {
            at,
            method: method.to_string(),
            path: path.to_owned(),
            link,
            together,
            refused: !admitted,
        });
        (hex32(self.0.settings.seed, 0, &format!("request {requests}")), admitted)
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let settings = &self.0.settings;
        let pair = format!("{}:{}", settings.secret_id, settings.secret_password);
        let expected = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
        headers.get(header::AUTHORIZATION).is_some_and(|given| given.as_bytes() == expected.as_bytes())
    }

    fn url(&self, headers: &HeaderMap, path: &str) -> String {
        let mut url = match &self.0.settings.base_url {
            Some(base) => base.as_str().trim_end_matches('/').to_owned(),
            None => format!(
                "http://{}",
                headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost")
            ),
        };
        let _ = write!(url, "{path}");
        url
    }
}

/// Bytes of a JSON document that serde made.
pub(super) fn json_bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// Whether `text` is a number of days as Belvo writes them.
fn is_days(text: &str) -> bool {
    let digits = text.strip_suffix('d').unwrap_or_default();
    (1..=3).contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_digit())
}
