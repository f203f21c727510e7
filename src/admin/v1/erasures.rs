//! `POST /v1/erasures` `{link_id | external_id | person_key, reason, remote?}`: erases one link or person, everywhere.
//! The run is named by the erasure's id, under which the receipt lies beside the state.

use axum::extract::{Request, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::route::Route;
use super::{Api, Problem, body};
use crate::admin::role::Role;
use crate::operations::{Erasure, Order, Refused};
use crate::subject::Subject;

pub(super) fn routes() -> Vec<Route> {
    vec![
        Route::order("/v1/erasures", Role::Erase, "Erases one link or person, everywhere", erase)
            .body::<Wish>()
            .fails(&[(404, "nothing is held of them"), (409, "it cannot be done now")]),
    ]
}

/// A wish as it is written.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Erasure")]
pub struct Wish {
    /// This link,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_id: Option<String>,
    /// or every link of this external id,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<String>,
    /// or every link of this person.
    #[serde(skip_serializing_if = "Option::is_none")]
    person_key: Option<String>,
    /// Why, for the receipt.
    reason: String,
    /// Whether Belvo deletes its links too.
    #[serde(default)]
    remote: bool,
}

impl Wish {
    /// `erasure` as it is written.
    pub fn of(erasure: &Erasure) -> Self {
        let mut wish = Self { reason: erasure.reason.clone(), remote: erasure.is_remote, ..Self::default() };
        match &erasure.subject {
            Subject::Link(id) => wish.link_id = Some(id.to_string()),
            Subject::ExternalId(id) => wish.external_id = Some(id.clone()),
            Subject::Person(key) => wish.person_key = Some(key.clone()),
        }
        wish
    }
}

async fn erase(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let wish: Wish = body(request).await?;
    let subject = match (wish.link_id, wish.external_id, wish.person_key) {
        (Some(id), None, None) => Subject::Link(id.parse().map_err(Refused::from)?),
        (None, Some(id), None) => Subject::ExternalId(id),
        (None, None, Some(key)) => Subject::Person(key),
        _ => return Err(Problem::invalid("name one of link_id, external_id and person_key")),
    };
    if wish.reason.trim().is_empty() {
        return Err(Problem::invalid("reason is missing: the receipt quotes it"));
    }
    api.order(Order::Erase(Erasure { subject, reason: wish.reason, is_remote: wish.remote })).await
}
