//! `GET /v1/webhooks?type=&outcome=&link=`, `GET /v1/webhooks/{seq}`, `POST /v1/webhooks/{seq}/replay`,
//! `POST /v1/webhooks/replay`: the inbound log and its quarantine.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::route::Route;
use super::{Api, Problem, query};
use crate::admin::role::Role;
use crate::operations::{Order, Refused, Replay};
use crate::webhook::log::{self, Entry, Filter, OUTCOMES};

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::get::<Webhooks, _, _>("/v1/webhooks", "Lists the webhooks that came, the newest first", list)
            .query::<Wish>(),
        Route::order("/v1/webhooks/replay", Role::Operate, "Reads the quarantined webhooks again", replay_quarantined),
        Route::get::<Shown, _, _>("/v1/webhooks/{seq}", "Shows one webhook, its body without personal data", show),
        Route::order("/v1/webhooks/{seq}/replay", Role::Operate, "Reads one webhook again", replay),
    ]
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// Only those of this `webhook_type`.
    #[serde(rename = "type")]
    webhook_type: Option<String>,
    /// Only those of which this became: `received`, `queued`, `noted`, `quarantined` or `erased`.
    outcome: Option<String>,
    /// Only those that name this link.
    link: Option<String>,
    /// How many at most.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// A page of the log.
#[derive(Serialize, JsonSchema)]
struct Webhooks {
    webhooks: Vec<Entry>,
    /// The `after` of the next page.
    next: Option<String>,
}

/// One webhook.
#[derive(Serialize, JsonSchema)]
struct Shown {
    webhook: Entry,
    /// Its body, in which every text that may be personal is replaced.
    body: Value,
}

async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Webhooks>, Problem> {
    let Wish { webhook_type, outcome, link, limit, after } = query(&uri)?;
    let limit = super::limit(limit)?;
    if outcome.as_deref().is_some_and(|outcome| !OUTCOMES.contains(&outcome)) {
        return Err(Problem::invalid(format!("outcome is one of {}", OUTCOMES.join(", "))));
    }
    let link = link.map(|link| link.parse()).transpose().map_err(Refused::from)?;
    let after = after.map(|after| after.parse()).transpose().map_err(|_| Problem::invalid("after is a number"))?;
    let filter = Filter { webhook_type, outcome, link };
    let read = move |tx: &crate::store::Tx<'_>| log::list(tx, &filter, after, limit);
    let (webhooks, next) = api.operations.store.read(read).await?;
    Ok(Json(Webhooks { webhooks, next: next.map(|seq| seq.to_string()) }))
}

async fn show(State(api): State<Api>, Path(seq): Path<String>) -> Result<Json<Shown>, Problem> {
    let seq = number(&seq)?;
    match api.operations.store.read(move |tx| log::show(tx, seq)).await? {
        Some((webhook, body)) => Ok(Json(Shown { webhook, body })),
        None => Err(Refused::NoWebhook(seq).into()),
    }
}

async fn replay(State(api): State<Api>, Path(seq): Path<String>) -> Result<Response, Problem> {
    api.order(Order::Replay(Replay::One(number(&seq)?))).await
}

async fn replay_quarantined(State(api): State<Api>) -> Result<Response, Problem> {
    api.order(Order::Replay(Replay::Quarantined)).await
}

fn number(seq: &str) -> Result<i64, Problem> {
    seq.parse().map_err(|_| Problem::missing("no_such_webhook", "a webhook has a number; GET /v1/webhooks lists them"))
}
