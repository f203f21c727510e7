//! `POST /v1/widget-sessions`, `POST /v1/links/recollect`, `POST /v1/links/{link_id}/delete`: what is asked of Belvo
//! itself, for a user, at a price, or for good.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::links::{ManyWanted, NO_LINK, named, which};
use super::route::Route;
use super::{Api, Problem, body};
use crate::admin::role::Role;
use crate::belvo::Trouble;
use crate::link_id::LinkId;
use crate::operations::{Order, Refused};
use crate::widget::{self, Session, SessionRequest};

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post::<Session, _, _>(
            "/v1/widget-sessions",
            Role::Operate,
            "Opens Belvo's widget for a user",
            StatusCode::CREATED,
            widget_session,
        )
        .body::<SessionRequest>()
        .fails(&[(502, "Belvo gave no token"), (503, "Belvo asks for patience, or the state cannot be written")]),
        Route::order(
            "/v1/links/recollect",
            Role::Operate,
            "Asks Belvo to read institutions again, which is on its bill",
            recollect,
        )
        .body::<ManyWanted>()
        .fails(NO_LINK),
        Route::order(
            "/v1/links/{link_id}/delete",
            Role::Erase,
            "Deletes a link at Belvo for good; the rows stay",
            delete,
        )
        .fails(&[(409, "it cannot be done now")]),
    ]
}

async fn widget_session(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let request: SessionRequest = body(request).await?;
    let names_link = request.link.is_some();
    match api.operations.widgets.create(request).await {
        Ok(session) => Ok((StatusCode::CREATED, Json(session)).into_response()),
        Err(error) => refuse(error, names_link),
    }
}

/// `names_link` says whether a link was named that Belvo may not know.
fn refuse(error: widget::Error, names_link: bool) -> Result<Response, Problem> {
    let (code, message) = (error.code(), error.to_string());
    match error {
        widget::Error::Invalid(violations) => {
            let error = json!({ "error": { "code": code, "message": message, "fields": violations } });
            Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(error)).into_response())
        }
        widget::Error::Belvo(failure) => {
            tracing::warn!(code, request_id = failure.request_id, "no widget token: {failure}");
            if names_link && failure.is_belvos_not_found() {
                return Err(Problem::missing("not_found", "Belvo does not know this link: look at its id"));
            }
            let is_our_wait = failure.code.trouble() == Trouble::Limit;
            let status = if is_our_wait { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::BAD_GATEWAY };
            Err(Problem { status, code: code.into(), message })
        }
        widget::Error::Store(error) => Err(error.into()),
    }
}

async fn recollect(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let ManyWanted { links, resources } = body(request).await?;
    api.order(Order::Recollect { links: which(links)?, resources: named(&resources)? }).await
}

async fn delete(State(api): State<Api>, Path(link_id): Path<String>) -> Result<Response, Problem> {
    let link: LinkId = link_id.parse().map_err(Refused::from)?;
    api.order(Order::Delete(link)).await
}
