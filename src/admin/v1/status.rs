//! `GET /v1/status`: how things stand, with what only the running daemon knows.

use axum::Json;
use axum::extract::State;

use super::route::Route;
use super::{Api, Problem};

use crate::admin::status::{BudgetUse, Standing, Status};
use crate::store;

pub(super) fn routes() -> Vec<Route> {
    vec![Route::get::<Status, _, _>("/v1/status", "Tells how things stand", show)]
}

async fn show(State(api): State<Api>) -> Result<Json<Status>, Problem> {
    let (places, now) = (api.places.clone(), api.operations.clock.now());
    let gathering = tokio::task::spawn_blocking(move || Status::gather(&places.state, &places.lake, now));
    let mut status = gathering.await.map_err(|_| store::Error::Closed)??;
    status.reference = api.reference.expiries();
    status.budget = Some(BudgetUse::of(&api.budget, api.limit));
    status.problems = Some(Standing::of(&api.problems, now));
    Ok(Json(status))
}
