//! The listener for operators: health, readiness and metrics.
//!
//! *Takes* a bound listener, the standing [`Problems`] and the recorder of metrics. *Promises* that nothing it answers
//! holds personal data, and that a page in a browser cannot reach it under a name of its own (`admin.allowed_hosts`).

use std::io;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::problems::Problems;

mod metrics;
pub mod status;

pub use metrics::Recorder;

/// What the answers are made of. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    problems: Problems,
    recorder: Recorder,
    allowed_hosts: Arc<[String]>,
}

impl Admin {
    /// Answers from `problems` and `recorder` to requests for `allowed_hosts`, names without port.
    pub fn new(problems: Problems, recorder: Recorder, allowed_hosts: &[String]) -> Self {
        Self { problems, recorder, allowed_hosts: allowed_hosts.into() }
    }

    /// Serves `listener` until `shutdown`.
    ///
    /// # Errors
    /// Those of the listener.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> io::Result<()> {
        axum::serve(listener, self.routes()).with_graceful_shutdown(shutdown.cancelled_owned()).await
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readiness))
            .route("/metrics", get(render_metrics))
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(middleware::from_fn_with_state(self.clone(), check_host))
            .with_state(self)
    }
}

/// 200 when nothing stands in the way; 503 with the codes of what does.
async fn readiness(State(admin): State<Admin>) -> Response {
    let problems = admin.problems.standing();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": problems.is_empty(), "problems": problems }))).into_response()
}

async fn render_metrics(State(admin): State<Admin>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.recorder.render()).into_response()
}

async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "not_found", "there are /healthz, /readyz and /metrics")
}

async fn method_not_allowed() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "use GET")
}

/// A page elsewhere that makes its own name point here must not read the answers.
async fn check_host(
    State(admin): State<Admin>,
    uri: Uri,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let asked = uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok()).map(without_port);
    if asked.is_some_and(|host| admin.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))) {
        next.run(request).await
    } else {
        error(StatusCode::MISDIRECTED_REQUEST, "host_not_allowed", "add the name to admin.allowed_hosts")
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Served {
        address: std::net::SocketAddr,
        problems: Problems,
        client: reqwest::Client,
        _end: tokio_util::sync::DropGuard,
    }

    impl Served {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, problems, end) =
                (listener.local_addr().unwrap(), Problems::default(), CancellationToken::new());
            let admin = Admin::new(problems.clone(), Recorder::global(), &["127.0.0.1".to_owned(), "::1".to_owned()]);
            tokio::spawn(admin.serve(listener, end.clone()));
            Self { address, problems, client: reqwest::Client::new(), _end: end.drop_guard() }
        }

        async fn get(&self, path: &str, host: &str) -> (u16, String) {
            let request = self.client.get(format!("http://{}{path}", self.address)).header("host", host);
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        }
    }

    #[tokio::test]
    async fn readiness_names_what_stands_in_the_way_and_health_does_not_care() {
        let served = Served::start().await;
        assert_eq!(served.get("/readyz", "127.0.0.1").await, (200, r#"{"problems":[],"ready":true}"#.to_owned()));
        served.problems.raise("lake_not_writable");
        assert_eq!(
            served.get("/readyz", "[::1]:9090").await,
            (503, r#"{"problems":["lake_not_writable"],"ready":false}"#.to_owned())
        );
        assert_eq!(served.get("/healthz", "127.0.0.1:9090").await.0, 200);
        served.problems.clear("lake_not_writable");
        assert_eq!(served.get("/readyz", "127.0.0.1").await.0, 200);
    }

    #[tokio::test]
    async fn a_foreign_host_an_unknown_path_and_another_method_are_refused() {
        let served = Served::start().await;
        assert_eq!(served.get("/metrics", "attacker.example").await.0, 421);
        let (status, text) = served.get("/v1/links", "127.0.0.1").await;
        assert!(status == 404 && text.contains("not_found"), "{status} {text}");
        let posted = served.client.post(format!("http://{}/metrics", served.address)).send().await.unwrap();
        assert_eq!(posted.status().as_u16(), 405);
    }

    #[tokio::test]
    async fn metrics_tell_which_build_this_is() {
        let served = Served::start().await;
        let (status, text) = served.get("/metrics", "127.0.0.1").await;
        assert_eq!(status, 200);
        assert!(text.contains(&format!("vinculo_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))), "{text}");
    }
}
