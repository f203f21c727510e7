//! `GET /v1/runs?kind=&name=`, `GET /v1/runs/{id}?wait=`: what was ordered or was due, and what came of it.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::route::Route;
use super::{Api, Problem, query};

use crate::runs::{self, Filter, Run};

/// Longest time that an answer waits for news, in seconds.
const LONGEST_WAIT: u64 = 30;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<Page, _, _>("/v1/runs", "Lists what was ordered or was due, the newest first", list)
            .query::<Wish>(),
        Route::get::<One, _, _>("/v1/runs/{id}", "Shows one run, also while it goes on", show).query::<Patience>(),
    ]
}

/// A page of the runs.
#[derive(Serialize, JsonSchema)]
struct Page {
    runs: Vec<Run>,
    /// The `after` of the next page.
    next: Option<String>,
}

/// One run.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "OneRun")]
pub(super) struct One {
    pub(super) run: Run,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// Only those of this kind.
    kind: Option<String>,
    /// Only those with this `name`: of a job, a link, and so on.
    name: Option<String>,
    /// How many at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Page>, Problem> {
    let Wish { kind, name, limit, after } = query(&uri)?;
    let (limit, filter) = (super::limit(limit)?, Filter { kind, name });
    let read = move |tx: &crate::store::Tx<'_>| runs::list(tx, &filter, after.as_deref(), limit);
    let (runs, next) = api.operations.store.read(read).await?;
    let runs: Vec<Run> = runs.into_iter().map(|run| api.operations.runs.brought_up_to_date(run)).collect();
    Ok(Json(Page { runs, next }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Patience {
    /// Seconds that the answer may wait for what happens next to a run that goes on.
    #[serde(default)]
    wait: u64,
}

async fn show(State(api): State<Api>, Path(id): Path<String>, uri: Uri) -> Result<Json<One>, Problem> {
    let Patience { wait } = query(&uri)?;
    let mut run = api.operations.runs.get(&id).await?;
    if let (Some(seen), 1..) = (&run, wait) {
        run = api.operations.runs.get_news(seen, Duration::from_secs(wait.min(LONGEST_WAIT))).await?;
    }
    match run {
        Some(run) => Ok(Json(One { run })),
        None => Err(Problem::missing("no_such_run", "there is no such run; GET /v1/runs lists them")),
    }
}
