//! `POST /v1/publish`, `POST /v1/rebuild`, `POST /v1/features`, `POST /v1/features/freeze`: what a command asks for
//! that may not touch the lake beside the daemon.

use axum::extract::{Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;

use super::route::Route;
use super::{Api, Problem, body};
use crate::admin::role::Role;
use crate::features::frozen::Decision;
use crate::features::runs::{Mode, Wanted};
use crate::operations::{Order, Refused};

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::order("/v1/publish", Role::Operate, "Publishes what changed", publish),
        Route::order("/v1/rebuild", Role::Operate, "Builds the lake anew from the record store", rebuild),
        Route::order("/v1/features", Role::Operate, "Computes and publishes the features of a date", features)
            .body::<Asked>(),
        Route::order("/v1/features/freeze", Role::Operate, "Keeps the row of features that a decision used", freeze)
            .body::<Freeze>()
            .fails(&[(404, "there is no such row, or the link was erased"), (409, "the decision keeps another row")]),
    ]
}

async fn publish(State(api): State<Api>) -> Result<Response, Problem> {
    api.order(Order::Publish).await
}

async fn rebuild(State(api): State<Api>) -> Result<Response, Problem> {
    api.order(Order::Rebuild).await
}

/// `{"as_of_date": "2026-05-31", "mode": "retro", "lag_months": 1}`; by default of today, strict, and with the lag of
/// the configuration.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// A date such as 2026-05-31; today in UTC unless told otherwise.
    #[schemars(regex(pattern = r"^\d{4}-\d{2}-\d{2}$"))]
    as_of_date: Option<String>,
    /// Strict, unless told otherwise.
    mode: Option<Mode>,
    /// Months before the date's own that are not yet complete; those of the configuration unless told otherwise.
    #[schemars(range(max = 24))]
    lag_months: Option<u32>,
}

async fn features(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let Asked { as_of_date, mode, lag_months } = body(request).await?;
    let as_of = as_of_date.map(|date| date.parse()).transpose();
    let as_of = as_of.map_err(|_| Problem::invalid("as_of_date is a date such as 2026-05-31"))?;
    let lag_months = lag_months.unwrap_or(api.lag_months);
    if lag_months > 24 {
        return Err(Problem::invalid("lag_months is a number from 0 to 24"));
    }
    api.order(Order::Features(Wanted { as_of, mode: mode.unwrap_or(Mode::Strict), lag_months })).await
}

/// `{"decision_id": "d-1", "link_id": "…", "as_of_date": "2026-05-31", "mode": "strict"}`; strict unless told
/// otherwise.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Freeze {
    /// Your id of the decision; it keeps one row for ever.
    decision_id: String,
    /// The link.
    link_id: String,
    /// The date of the row, such as 2026-05-31.
    #[schemars(regex(pattern = r"^\d{4}-\d{2}-\d{2}$"))]
    as_of_date: String,
    /// Strict, unless told otherwise.
    mode: Option<Mode>,
}

async fn freeze(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let Freeze { decision_id, link_id, as_of_date, mode } = body(request).await?;
    let as_of = as_of_date.parse().map_err(|_| Problem::invalid("as_of_date is a date such as 2026-05-31"))?;
    if decision_id.is_empty() {
        return Err(Problem::invalid("decision_id is your id of the decision"));
    }
    let link_id = link_id.parse().map_err(Refused::from)?;
    let decision = Decision { decision_id, link_id, as_of, mode: mode.unwrap_or(Mode::Strict) };
    api.order(Order::Freeze(decision)).await
}
