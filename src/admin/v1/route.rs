//! One operation of the API: its method, path and role, and what answers it. The router is made of the same list as the
//! document.

use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};

use super::{Api, Problem};
use crate::admin::role::{Caller, Role};

/// One operation.
pub(super) struct Route {
    pub(super) method: Method,
    /// As axum writes it, which is how OpenAPI does.
    pub(super) path: &'static str,
    /// What a caller needs at least.
    pub(super) role: Role,
    handler: MethodRouter<Api>,
}

impl Route {
    /// One that looks at something.
    pub(super) fn get<H: Handler<T, Api>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::GET, path, role: Role::Read, handler: on(MethodFilter::GET, handler) }
    }

    /// One that changes something, for which a caller needs `role`.
    pub(super) fn post<H: Handler<T, Api>, T: 'static>(path: &'static str, role: Role, handler: H) -> Self {
        Self { method: Method::POST, path, role, handler: on(MethodFilter::POST, handler) }
    }

    /// What answers it, to those who may ask.
    pub(super) fn guarded(self) -> MethodRouter<Api> {
        self.handler.route_layer(middleware::from_fn_with_state(self.role, check_role))
    }
}

/// Nothing is done for a caller whose role is too low, or of whom nothing is known.
async fn check_role(State(needed): State<Role>, request: Request, next: Next) -> Response {
    let message = match request.extensions().get::<Caller>() {
        Some(caller) if caller.role.may(needed) => return next.run(request).await,
        Some(Caller { name, role }) => {
            tracing::warn!(code = "role_too_low", caller = %name, %role, %needed, "a request to the API needs another role");
            format!("this needs the role {needed}, and {name} has {role}")
        }
        None => format!("this needs the role {needed}"),
    };
    ::metrics::counter!("vinculo_admin_refused_total").increment(1);
    Problem { status: StatusCode::FORBIDDEN, code: "role_too_low".into(), message }.into_response()
}
