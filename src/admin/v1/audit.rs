//! `GET /v1/audit?link=`: who ordered what over the API, when, and what came of it; and what was erased, restored and
//! removed because it was kept for long enough. The newest line first.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::route::Route;
use super::{Api, Problem, query};
use crate::audit::{self, Line};
use crate::link_id::LinkId;
use crate::operations::Refused;

pub(super) fn routes() -> Vec<Route> {
    vec![Route::get::<Lines, _, _>("/v1/audit", "Lists the lines of the audit, the newest first", list).query::<Wish>()]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// Only what was asked for this link.
    link: Option<String>,
    /// How many at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// A page of the audit.
#[derive(Serialize, JsonSchema)]
struct Lines {
    lines: Vec<Line>,
    /// The `after` of the next page.
    next: Option<String>,
}

async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Lines>, Problem> {
    let Wish { link, limit, after } = query(&uri)?;
    let limit = super::limit(limit)?;
    let link: Option<LinkId> = link.map(|link| link.parse()).transpose().map_err(Refused::from)?;
    let after = after.map(|after| after.parse()).transpose().map_err(|_| Problem::invalid("after is a number"))?;
    let read = move |tx: &crate::store::Tx<'_>| audit::list(tx, link.as_ref(), after, limit);
    let (lines, next) = api.operations.store.read(read).await?;
    Ok(Json(Lines { lines, next: next.map(|seq| seq.to_string()) }))
}
