//! `GET /v1/jobs`, `POST /v1/jobs/{name}/run`: the schedule, and one job of it between its slots.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::route::Route;
use super::{Api, Problem};
use crate::admin::role::Role;
use crate::clock::Timestamp;
use crate::operations::Order;
use crate::runs::{self, Run};
use crate::schedule::Job;
use crate::store::{self, Tx};

/// How many fire times of each job are told.
const SLOTS: usize = 5;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<Jobs, _, _>("/v1/jobs", "Lists the jobs, when each runs next, and what came of it last", list),
        Route::order("/v1/jobs/{name}/run", Role::Operate, "Runs a job now", run),
    ]
}

/// A job, when it runs next, and what came of it last.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub struct JobView {
    /// The stem of its file.
    pub name: String,
    /// Whether it runs at its times, and not only when asked for.
    pub enabled: bool,
    /// What it does.
    pub action: &'static str,
    /// The five fields.
    pub schedule: String,
    /// The zone whose clock the schedule means.
    pub timezone: &'static str,
    /// The next times, in that zone.
    pub next: Vec<String>,
    /// Its last run; absent before the first.
    pub last_run: Option<Run>,
}

/// Each of `jobs` as it stands at `now`.
///
/// # Errors
/// [`store::Error::Database`].
pub fn views<'j>(
    tx: &Tx<'_>,
    jobs: impl IntoIterator<Item = &'j Job>,
    now: Timestamp,
) -> Result<Vec<JobView>, store::Error> {
    let view = |job: &Job| {
        let slots = std::iter::successors(job.next_after(now), |&slot| job.next_after(slot)).take(SLOTS);
        Ok(JobView {
            name: job.name.clone(),
            enabled: job.is_enabled,
            action: job.action.name(),
            schedule: job.schedule.clone(),
            timezone: job.zone.name(),
            next: slots.map(|slot| slot.to_utc().with_timezone(&job.zone).to_rfc3339()).collect(),
            last_run: runs::last_of_job(tx, &job.name)?,
        })
    };
    jobs.into_iter().map(view).collect()
}

/// The schedule.
#[derive(Serialize, JsonSchema)]
struct Jobs {
    jobs: Vec<JobView>,
}

async fn list(State(api): State<Api>) -> Result<Json<Jobs>, Problem> {
    let (asker, now) = (api.operations.jobs.clone(), api.operations.clock.now());
    let jobs = api.operations.store.read(move |tx| views(tx, asker.jobs(), now)).await?;
    Ok(Json(Jobs { jobs }))
}

async fn run(State(api): State<Api>, Path(name): Path<String>) -> Result<Response, Problem> {
    api.order(Order::Job(name)).await
}
