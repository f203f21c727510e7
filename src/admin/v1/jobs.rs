//! `GET /v1/jobs`, `POST /v1/jobs/{name}/run`: the schedule, and one job of it between its slots.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::route::Route;
use super::{Api, Problem};
use crate::admin::role::Role;
use crate::operations::Order;
use crate::schedule::view::{self, View};

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<Jobs, _, _>("/v1/jobs", "Lists the jobs, when each runs next, and what came of it last", list),
        Route::order("/v1/jobs/{name}/run", Role::Operate, "Runs a job now", run),
    ]
}

/// The schedule.
#[derive(Serialize, JsonSchema)]
struct Jobs {
    jobs: Vec<View>,
}

async fn list(State(api): State<Api>) -> Result<Json<Jobs>, Problem> {
    let (asker, now) = (api.operations.jobs.clone(), api.operations.clock.now());
    let jobs = api.operations.store.read(move |tx| view::list(tx, asker.jobs(), now)).await?;
    Ok(Json(Jobs { jobs }))
}

async fn run(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    api.order(Order::Job(name)).await
}
