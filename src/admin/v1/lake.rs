//! `POST /v1/publish`, `POST /v1/rebuild`: what a command asks for that may not touch the lake beside the daemon.

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;

use super::{Api, Problem};
use crate::operations::Order;

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/v1/publish", post(publish)).route("/v1/rebuild", post(rebuild))
}

async fn publish(State(api): State<Api>) -> Result<Response, Problem> {
    api.order(Order::Publish).await
}

async fn rebuild(State(api): State<Api>) -> Result<Response, Problem> {
    api.order(Order::Rebuild).await
}
