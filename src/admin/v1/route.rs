//! One operation of the API: its method, path and role, what it takes and gives, and what answers it. The router is
//! made of the same list as the document, and what everything under `/v1` shares is put around each operation here: the
//! role that it needs, and the audit of what is ordered.

use std::sync::Arc;

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Map;

use super::{Api, Problem};
use crate::admin::role::{Caller, Role};
use crate::audit::{self, Asked};
use crate::operations::Operations;
use crate::store;

/// The schema of a type, made when the document is.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One operation.
pub(super) struct Route {
    pub(super) method: Method,
    /// As axum writes it, which is how OpenAPI does.
    pub(super) path: &'static str,
    /// What a caller needs at least.
    pub(super) role: Role,
    /// What it does, for people.
    pub(super) summary: &'static str,
    /// The members are parameters of the query.
    pub(super) query: Option<SchemaOf>,
    pub(super) body: Option<SchemaOf>,
    /// Whether nothing may be said instead of a body.
    pub(super) is_body_optional: bool,
    /// The status of success, and what it gives.
    pub(super) success: (StatusCode, SchemaOf),
    /// Statuses of failure of its own, with their meaning.
    pub(super) failures: &'static [(u16, &'static str)],
    handler: MethodRouter<Api>,
}

/// An answer of 202: the run that was begun.
pub(super) const ORDERED: StatusCode = StatusCode::ACCEPTED;

impl Route {
    /// One that looks at something, and gives a `G`.
    pub(super) fn get<G: JsonSchema, H: Handler<T, Api>, T: 'static>(
        path: &'static str,
        summary: &'static str,
        handler: H,
    ) -> Self {
        let success = (StatusCode::OK, SchemaGenerator::subschema_for::<G> as SchemaOf);
        Self::new(Method::GET, path, Role::Read, summary, success, on(MethodFilter::GET, handler))
    }

    /// One that orders something, for which a caller needs `role`, and gives the run that was begun.
    pub(super) fn order<H: Handler<T, Api>, T: 'static>(
        path: &'static str,
        role: Role,
        summary: &'static str,
        handler: H,
    ) -> Self {
        Self::post::<super::runs::One, H, T>(path, role, summary, ORDERED, handler)
    }

    /// One that changes something, for which a caller needs `role`, and gives a `G` with `status`.
    pub(super) fn post<G: JsonSchema, H: Handler<T, Api>, T: 'static>(
        path: &'static str,
        role: Role,
        summary: &'static str,
        status: StatusCode,
        handler: H,
    ) -> Self {
        let success = (status, SchemaGenerator::subschema_for::<G> as SchemaOf);
        Self::new(Method::POST, path, role, summary, success, on(MethodFilter::POST, handler))
    }

    fn new(
        method: Method,
        path: &'static str,
        role: Role,
        summary: &'static str,
        success: (StatusCode, SchemaOf),
        handler: MethodRouter<Api>,
    ) -> Self {
        let (query, body) = (None, None);
        Self { method, path, role, summary, query, body, is_body_optional: false, success, failures: &[], handler }
    }

    /// The same, with the members of `Q` in the query.
    pub(super) fn query<Q: JsonSchema>(self) -> Self {
        Self { query: Some(SchemaGenerator::subschema_for::<Q>), ..self }
    }

    /// The same, with a body.
    pub(super) fn body<B: JsonSchema>(self) -> Self {
        Self { body: Some(SchemaGenerator::subschema_for::<B>), ..self }
    }

    /// The same, with a body that may be left out.
    pub(super) fn optional_body<B: JsonSchema>(self) -> Self {
        Self { is_body_optional: true, ..self.body::<B>() }
    }

    /// The same, with failures of its own.
    pub(super) fn fails(self, failures: &'static [(u16, &'static str)]) -> Self {
        Self { failures, ..self }
    }

    /// What answers it, to those who may ask.
    pub(super) fn guarded(self, api: &Api) -> MethodRouter<Api> {
        let guard = Guard { api: api.clone(), method: self.method, path: self.path, role: self.role };
        self.handler.route_layer(middleware::from_fn_with_state(guard, let_in))
    }
}

/// What is around an operation.
#[derive(Clone)]
struct Guard {
    api: Api,
    method: Method,
    path: &'static str,
    role: Role,
}

/// Nothing is done for a caller whose role is too low, or of whom nothing is known; and nothing is changed that is not
/// in the audit first.
async fn let_in(
    State(guard): State<Guard>,
    parameters: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    let needed = guard.role;
    let message = match request.extensions().get::<Caller>() {
        Some(caller) if caller.role.may(needed) => {
            let Ok(parameters) = parameters else {
                return Problem::invalid("the path holds text that is not UTF-8").into_response();
            };
            if guard.method == Method::GET {
                return next.run(request).await;
            }
            let caller = caller.clone();
            let answer = guard.audited(&caller, &parameters, next.run(request)).await;
            return answer.unwrap_or_else(|error| Problem::from(error).into_response());
        }
        Some(Caller { name, role }) => {
            tracing::warn!(code = "role_too_low", caller = %name, %role, %needed, "a request to the API needs another role");
            format!("this needs the role {needed}, and {name} has {role}")
        }
        None => format!("this needs the role {needed}"),
    };
    ::metrics::counter!("vinculo_admin_refused_total").increment(1);
    Problem { status: StatusCode::FORBIDDEN, code: "role_too_low".into(), message }.into_response()
}

impl Guard {
    /// Does `work` between two lines of the audit: who asked for what, and what was answered.
    async fn audited(
        &self,
        caller: &Caller,
        parameters: &RawPathParams,
        work: impl Future<Output = Response>,
    ) -> Result<Response, store::Error> {
        let Operations { store, clock, jobs, .. } = &self.api.operations;
        let (mut link, mut about) = (None, Map::new());
        for (name, value) in parameters {
            // What is not an id or a number may be anything, also a name.
            match name {
                "link_id" => link = value.parse().ok(),
                "seq" => {
                    about.insert("seq".to_owned(), value.parse::<i64>().ok().into());
                }
                "name" => {
                    let job = jobs.jobs().any(|job| job.name == value).then_some(value);
                    about.insert("job".to_owned(), job.into());
                }
                _ => {}
            }
        }
        let Caller { name, role } = caller;
        let operation = format!("{} {}", self.method, self.path);
        let asked = Asked { caller: Arc::clone(name), role: role.name(), operation, link, about };
        let line = audit::note_asked(store, clock.now(), asked).await?;
        let answer = work.await;
        let run = answer.headers().get(header::LOCATION).and_then(|place| place.to_str().ok());
        let run = run.map(|place| place.trim_start_matches("/v1/runs/"));
        audit::note_answered(store, clock.now(), line, answer.status().as_u16(), run).await;
        Ok(answer)
    }
}
