//! `POST /v1/exports` `{asked_for, links}`: notes that everything held on somebody is read out. The data itself never
//! comes here: `vinculo subject` reads it on the machine of the state.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::route::Route;
use super::{Api, Problem, body};
use crate::admin::role::Role;
use crate::audit;
use crate::link_id::LinkId;
use crate::operations::Refused;
use crate::tombstones::Kind;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::post::<Noted, _, _>(
            "/v1/exports",
            Role::Erase,
            "Notes in the audit that everything held on somebody is read out",
            StatusCode::CREATED,
            note,
        )
        .body::<Export>(),
    ]
}

/// What is read out.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// What kind of name was given: `link`, `external_id` or `person`.
    pub asked_for: String,
    /// The links that it means, by id.
    pub links: Vec<String>,
}

/// That it is noted.
#[derive(Serialize, JsonSchema)]
struct Noted {
    /// Hash of the line in the audit.
    audit_hash: String,
}

async fn note(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let Export { asked_for, links } = body(request).await?;
    let kinds = [Kind::Link, Kind::ExternalId, Kind::Person].map(Kind::name);
    // Anything else may be a name.
    if !kinds.contains(&asked_for.as_str()) {
        return Err(Problem::invalid(format!("asked_for is one of {}", kinds.join(", "))));
    }
    let links = links.iter().map(|link| link.parse()).collect::<Result<Vec<LinkId>, _>>().map_err(Refused::from)?;
    let now = api.operations.clock.now();
    let audit_hash = api.operations.store.write(move |tx| audit::note_export(tx, now, &asked_for, &links)).await?;
    Ok((StatusCode::CREATED, Json(Noted { audit_hash })).into_response())
}
