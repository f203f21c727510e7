//! The API for operators and for commands beside a running daemon, below `/v1`: one file for each family of paths.
//!
//! *Takes* requests that carried the token. *Gives* JSON. A list has at most `limit` items, 100 unless told otherwise
//! and 1000 at most, and `next`, which is the `after` of the next page, or null. What takes time is ordered: 202, with
//! the run that `/v1/runs/{id}` follows. An error is `{"error": {"code", "message"}}`: 400 no JSON, 404 no such thing,
//! 405, 413, 415, 422 a value that cannot be, 503 the state takes no writes. *Not here*: who may ask; see
//! [`super::Admin`].

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::json;

use route::Route;

use crate::belvo::Budget;
use crate::config::{self, Config};
use crate::erase;
use crate::operations::{Operations, Order, Refused};
use crate::problems::Problems;
use crate::publish::BuiltFrom;
use crate::reference::Reference;
use crate::runs::Reason;
use crate::store;
use crate::subject;

pub mod audit;
pub mod belvo;
pub mod erasures;
pub mod exports;
pub mod jobs;
pub mod lake;
pub mod links;
pub mod openapi;
mod route;
pub mod runs;
pub mod status;
pub mod webhooks;

/// Bytes of a body.
const LARGEST_BODY: usize = 64 << 10;

/// Items of a page, unless told otherwise, and at most.
pub const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// What the API answers from. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    operations: Operations,
    budget: Budget,
    problems: Problems,
    limit: config::Budget,
    places: Arc<Places>,
    reference: Arc<Reference>,
    lag_months: u32,
}

/// Where state and lake are.
struct Places {
    state: PathBuf,
    lake: PathBuf,
}

impl Api {
    /// An API that orders from `operations`, and tells how much of `budget` is in use and which `problems` stand.
    pub fn new(operations: Operations, budget: Budget, problems: Problems, config: &Config) -> Self {
        let places = Places { state: config.state.path.clone(), lake: config.lake.path.clone() };
        let (limit, lag_months) = (config.belvo.budget, config.features.lag_months);
        let reference = Arc::clone(&config.lake.reference);
        Self { operations, budget, problems, limit, places: Arc::new(places), reference, lag_months }
    }

    /// Takes an order: 202, where its run is followed, and the run.
    async fn order(&self, order: Order) -> Result<Response, Problem> {
        let id = self.operations.start(order, Reason::Api).await?;
        let run = self.operations.runs.get(&id).await?;
        let place = format!("/v1/runs/{id}");
        Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(json!({ "run": run }))).into_response())
    }
}

/// The paths below `/v1`.
pub fn routes(api: Api) -> Router {
    let add = |router: Router<Api>, route: Route| router.route(route.path, route.guarded(&api));
    all().into_iter().fold(Router::new(), add).with_state(api.clone())
}

/// Every operation of the API.
fn all() -> Vec<Route> {
    let families = [
        links::routes(),
        jobs::routes(),
        runs::routes(),
        webhooks::routes(),
        status::routes(),
        lake::routes(),
        belvo::routes(),
        erasures::routes(),
        exports::routes(),
        audit::routes(),
        openapi::routes(),
    ];
    [Route::get::<Index, _, _>("/v1", "Tells which state this daemon holds", index)]
        .into_iter()
        .chain(families.into_iter().flatten())
        .collect()
}

/// Which daemon this is.
#[derive(Serialize, JsonSchema)]
struct Index {
    /// `vinculo`.
    name: &'static str,
    /// Version of the program.
    version: &'static str,
    /// Names the state.
    state_id: String,
}

/// Which state this daemon holds, so that a command knows that it has found the right one.
async fn index(State(api): State<Api>) -> Result<Json<Index>, Problem> {
    let state = api.operations.store.read(BuiltFrom::of).await?;
    Ok(Json(Index { name: "vinculo", version: env!("CARGO_PKG_VERSION"), state_id: state.state_id }))
}

/// How many items a page has, as asked for.
fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=LARGEST_PAGE => Ok(limit),
        _ => Err(Problem::invalid(format!("limit is a number from 1 to {LARGEST_PAGE}"))),
    }
}

/// Reads the query; what is unknown or cannot be is told.
fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let told = |error: QueryRejection| {
        let text = error.body_text();
        // What stands before may be what was sent.
        let expected = text.rsplit_once(", expected ").map(|(_, expected)| format!(": expected {expected}"));
        Problem::invalid(format!("the query is not understood{}", expected.unwrap_or_default()))
    };
    let Query(query) = Query::try_from_uri(uri).map_err(told)?;
    Ok(query)
}

/// What serde says of a mistake, without what was sent, which may be a person's.
fn without_values(mistake: &str) -> String {
    // Names of fields that are missing or there twice are ours.
    if mistake.starts_with("missing field `") || mistake.starts_with("duplicate field `") {
        return mistake.to_owned();
    }
    let (sent, expected) = mistake.rsplit_once(", expected ").unwrap_or((mistake, ""));
    let sent = sent.split(['`', '"']).next().unwrap_or_default().trim_end();
    match expected {
        "" => sent.to_owned(),
        whole if whole.starts_with("struct ") => format!("{sent}, expected an object"),
        _ => format!("{sent}, expected {expected}"),
    }
}

/// Reads a JSON body; an empty one is `T`'s own idea of nothing said.
async fn body<T: DeserializeOwned + Default>(request: Request) -> Result<T, Problem> {
    let media = request.headers().get(header::CONTENT_TYPE).map(|media| media.to_str().unwrap_or_default());
    let essence = media.map(|media| media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let bytes = axum::body::to_bytes(request.into_body(), LARGEST_BODY).await.map_err(|_| Problem {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        code: "too_large".into(),
        message: format!("a body has at most {LARGEST_BODY} bytes"),
    })?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    if essence.is_none_or(|essence| essence != "application/json") {
        let message = "send JSON, with the header Content-Type: application/json".to_owned();
        return Err(Problem { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, code: "not_json".into(), message });
    }
    // A struct is read from a list of its values, too, in the order of its fields, which nobody promises.
    let is_object = bytes.trim_ascii_start().starts_with(b"{");
    if !is_object && serde_json::from_slice::<IgnoredAny>(&bytes).is_ok() {
        return Err(Problem::invalid("the body is not a JSON object"));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        if error.is_data() {
            return Problem::invalid(without_values(&error.to_string()));
        }
        let message = format!("the body is not JSON: {error}");
        Problem { status: StatusCode::BAD_REQUEST, code: "bad_json".into(), message }
    })
}

/// Why a request is not served.
#[derive(Debug)]
struct Problem {
    status: StatusCode,
    code: std::borrow::Cow<'static, str>,
    message: String,
}

impl Problem {
    fn invalid(message: impl Into<String>) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, code: "invalid".into(), message: message.into() }
    }

    fn missing(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, code: code.into(), message: message.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        super::error(self.status, &self.code, &self.message)
    }
}

impl From<store::Error> for Problem {
    fn from(error: store::Error) -> Self {
        tracing::error!(code = error.code(), "an operator was not answered: {error}");
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: error.code().into(),
            message: "the state cannot be read or written; the daemon's log says more".to_owned(),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::Store(error) | Refused::Erase(erase::Error::Store(error)) => return error.into(),
            Refused::NotALinkId(_) | Refused::Features(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refused::NoLink
            | Refused::Unlinked { .. }
            | Refused::UnknownLink
            | Refused::Erased
            | Refused::NoJob { .. }
            | Refused::NoWebhook(_)
            | Refused::NoRow(..)
            | Refused::Erase(erase::Error::Subject(subject::Error::NotHeld(_))) => StatusCode::NOT_FOUND,
            Refused::Erase(_) | Refused::DecisionTaken => StatusCode::CONFLICT,
            Refused::Lake(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self { status, code: refused.code().into(), message: refused.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        #[serde(rename = "external_id")]
        _external_id: String,
    }

    #[test]
    fn a_wrong_query_is_told_without_what_was_sent() {
        let told = |uri: &'static str| query::<Asked>(&Uri::from_static(uri)).unwrap_err().message;
        let expected = "the query is not understood: expected `external_id`";
        assert_eq!(told("/v1/links?52998224725=x"), expected);
        assert_eq!(told("/v1/links?52998224725,+expected+a=x"), expected);
        assert_eq!(told("/v1/links"), "the query is not understood");
    }

    #[test]
    fn a_mistake_is_told_without_what_was_sent() {
        let told = |body: &str| without_values(&serde_json::from_str::<Asked>(body).unwrap_err().to_string());
        for (body, expected) in [
            (r#"{"external_id":52998224725}"#, "invalid type: integer, expected a string"),
            (r#"{"a, expected b":"52998224725"}"#, "unknown field, expected `external_id`"),
            ("{}", "missing field `external_id`"),
            (r#"{"missing field `52998224725":1}"#, "unknown field, expected `external_id`"),
            ("[]", "invalid length 0, expected an object"),
        ] {
            assert_eq!(told(body).split(" at line ").next(), Some(expected));
        }
    }
}
