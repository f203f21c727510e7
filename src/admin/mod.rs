//! The listener for operators: health, readiness, metrics, the API under `/v1`, and the dashboard.
//!
//! *Takes* a bound listener, the standing [`Problems`], the recorder of metrics, the routes of the API and the pages of
//! the dashboard. *Promises* that nothing it answers holds personal data; that a page in a browser cannot reach it
//! under a name of its own (`admin.allowed_hosts`), and cannot order anything from another site; and that nothing under
//! `/v1` is answered, not even that it is not there, without a token. *Not here*: what the API can do, and for whom;
//! see [`v1`], [`role`] and [`dashboard`], whose pages ask for a session or a token themselves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::guesses::Guesses;
use crate::problems::Problems;
use crate::store::Store;
use crate::{audit, config};

pub mod client;
mod connections;
pub mod dashboard;
pub mod metrics;
pub mod role;
pub mod status;
pub mod v1;

pub use metrics::Recorder;

use role::{Caller, Tokens};

/// What the answers are made of. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    problems: Problems,
    recorder: Recorder,
    allowed_hosts: Arc<[String]>,
    tokens: Tokens,
    guesses: Guesses,
    /// Where failed sign-ins are written down, and when.
    audited: (Store, Clock),
    api: Router,
    pages: Router,
}

impl Admin {
    /// Answers from `problems`, `recorder`, `api`, the routes under `/v1`, and `pages`, those of the dashboard, as
    /// `settings` say, to whoever has one of `tokens`. That somebody had a wrong one is noted in the state, at the
    /// clock's time, of `audited`.
    pub fn new(
        problems: Problems,
        recorder: Recorder,
        settings: &config::Admin,
        tokens: Tokens,
        audited: (Store, Clock),
        api: Router,
        pages: Router,
    ) -> Self {
        let allowed_hosts = settings.allowed_hosts.as_slice().into();
        Self { problems, recorder, allowed_hosts, tokens, guesses: Guesses::default(), audited, api, pages }
    }

    /// Serves `listener` until `shutdown`.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        connections::serve(listener, self.routes(), shutdown).await;
    }

    fn routes(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(readiness))
            .route("/metrics", get(render_metrics))
            .with_state(self.clone())
            .merge(self.api.clone())
            .merge(self.pages.clone())
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .layer(middleware::from_fn_with_state(self.clone(), check_token))
            .layer(middleware::from_fn(check_origin))
            .layer(middleware::from_fn_with_state(self, check_host))
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
    error(
        StatusCode::NOT_FOUND,
        "not_found",
        "there are the dashboard at /, /healthz, /readyz, /metrics and the paths under /v1",
    )
}

async fn method_not_allowed() -> Response {
    error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has other methods; see the header Allow")
}

/// Nothing under `/v1` without a token, and nothing of it is kept by anybody on the way. Whose token it was goes along.
async fn check_token(
    State(admin): State<Admin>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    uri: Uri,
    mut request: Request,
    next: Next,
) -> Response {
    if uri.path() != "/v1" && !uri.path().starts_with("/v1/") {
        return next.run(request).await;
    }
    let given = bearer(request.headers());
    if let Some(wait) = given.and_then(|_| admin.guesses.wait(peer.ip(), Instant::now())) {
        ::metrics::counter!("vinculo_admin_refused_total").increment(1);
        let message = "too many wrong tokens came from this address: wait as long as Retry-After says";
        let mut answer = error(StatusCode::TOO_MANY_REQUESTS, "too_many_guesses", message);
        answer.headers_mut().insert(header::RETRY_AFTER, (wait.as_secs() + 1).into());
        return answer;
    }
    let caller = given.and_then(|token| admin.tokens.recognise(token));
    if let (Some(token), None) = (given, &caller)
        && admin.guesses.note_new(peer.ip(), token, Instant::now())
    {
        let (store, clock) = &admin.audited;
        audit::note_failed_sign_in(store, clock.now(), "api").await;
    }
    let mut answer = match caller {
        Some(caller) => {
            request.extensions_mut().insert::<Caller>(caller);
            next.run(request).await
        }
        None if admin.tokens.is_empty() => error(
            StatusCode::UNAUTHORIZED,
            "no_token_configured",
            "set admin.token in the configuration and start the daemon again",
        ),
        None => {
            error(StatusCode::UNAUTHORIZED, "unauthorized", "send the header Authorization: Bearer and the admin.token")
        }
    };
    if answer.status() == StatusCode::UNAUTHORIZED {
        ::metrics::counter!("vinculo_admin_refused_total").increment(1);
        tracing::warn!(code = "unauthorized", "a request to the API had no right token");
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// What stands after `Bearer` in the only `Authorization` that there is.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (only, None) = (values.next()?, values.next()) else { return None };
    let (scheme, token) = only.as_bytes().split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// What changes something does not come from another site's page. A program sends no `Origin`, and passes.
async fn check_origin(uri: Uri, headers: HeaderMap, request: Request, next: Next) -> Response {
    let is_harmless = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if is_harmless || is_from_here(&uri, &headers) {
        next.run(request).await
    } else {
        error(StatusCode::FORBIDDEN, "cross_site", "a page of another site may not order anything here")
    }
}

fn is_from_here(uri: &Uri, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let asked = uri.authority().map(Authority::as_str).or_else(|| text("host"));
    let is_same_origin = text("origin").is_none_or(|origin| {
        let origin = origin.split_once("://").map(|(_, host)| host);
        origin.is_some() && origin.zip(asked).is_some_and(|(origin, asked)| origin.eq_ignore_ascii_case(asked))
    });
    is_same_origin && text("sec-fetch-site").is_none_or(|site| matches!(site, "same-origin" | "none"))
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

    const TOKEN: &str = "token-of-the-operator";

    struct Served {
        address: SocketAddr,
        problems: Problems,
        client: reqwest::Client,
        store: Store,
        _folder: tempfile::TempDir,
        _end: tokio_util::sync::DropGuard,
    }

    impl Served {
        async fn start() -> Self {
            Self::with_token(Some(TOKEN)).await
        }

        /// With an API that answers at `/v1/here`.
        async fn with_token(token: Option<&str>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, problems, end) =
                (listener.local_addr().unwrap(), Problems::default(), CancellationToken::new());
            let settings = config::Admin {
                listen: address,
                token: token.map(|token| token.to_owned().into()),
                operate_tokens: Vec::new(),
                read_tokens: Vec::new(),
                allowed_hosts: vec!["127.0.0.1".to_owned(), "::1".to_owned()],
            };
            let api = Router::new().route("/v1/here", get(|| async { "yes" }).post(|| async { "done" }));
            let pages = Router::new();
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let (tokens, audited) = (Tokens::of(&settings), (store.clone(), Clock::system()));
            let admin = Admin::new(problems.clone(), Recorder::global(), &settings, tokens, audited, api, pages);
            tokio::spawn(admin.serve(listener, end.clone()));
            let client = reqwest::Client::new();
            Self { address, problems, client, store, _folder: folder, _end: end.drop_guard() }
        }

        async fn get(&self, path: &str, host: &str) -> (u16, String) {
            self.say(Method::GET, path, &[("host", host)]).await
        }

        async fn say(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
            let mut request = self.client.request(method, format!("http://{}{path}", self.address));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
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
        let (status, text) = served.get("/unknown", "127.0.0.1").await;
        assert!(status == 404 && text.contains("not_found"), "{status} {text}");
        let (status, text) = served.say(Method::POST, "/metrics", &[]).await;
        assert!(status == 405 && text.contains("method_not_allowed"), "{status} {text}");
    }

    #[tokio::test]
    async fn nothing_under_v1_is_answered_without_the_token() {
        let served = Served::start().await;
        let right = format!("Bearer {TOKEN}");
        let wrong = [
            vec![],
            vec![("authorization", "")],
            vec![("authorization", "Bearer ")],
            vec![("authorization", TOKEN)],
            vec![("authorization", "Bearer token-of-the-operatoR")],
            vec![("authorization", "Basic token-of-the-operator")],
            vec![("authorization", right.as_str()), ("authorization", "Bearer other")],
        ];
        for headers in &wrong {
            for path in ["/v1", "/v1/here", "/v1/unknown"] {
                let (status, text) = served.say(Method::GET, path, headers).await;
                assert!(status == 401 && text.contains(r#""code":"unauthorized""#), "{path} {headers:?} {text}");
            }
            assert_eq!(served.say(Method::POST, "/v1/here", headers).await.0, 401, "{headers:?}");
        }
        let headers = [("authorization", right.as_str())];
        assert_eq!(served.say(Method::GET, "/v1/here", &headers).await, (200, "yes".to_owned()));
        assert_eq!(served.say(Method::GET, "/v1/unknown", &headers).await.0, 404);
        let (status, text) = served.say(Method::DELETE, "/v1/here", &headers).await;
        assert!(status == 405 && text.contains("method_not_allowed"), "{status} {text}");
    }

    #[tokio::test]
    async fn who_guesses_tokens_waits_and_who_sends_none_does_not() {
        let served = Served::start().await;
        let right = format!("Bearer {TOKEN}");
        for number in 0..20 {
            let guess = format!("Bearer token-of-the-operator-{number}");
            assert_eq!(served.say(Method::GET, "/v1/here", &[("authorization", &guess)]).await.0, 401);
        }
        let (status, text) = served.say(Method::GET, "/v1/here", &[("authorization", &right)]).await;
        assert!(status == 429 && text.contains("too_many_guesses"), "{status} {text}");
        // Each of them is a line of the audit, which holds nothing of it.
        let (lines, _) = served.store.read(|tx| audit::list(tx, None, None, 100)).await.unwrap();
        let lines: Vec<_> = lines.into_iter().map(|line| (line.action, json!(line.detail))).collect();
        assert_eq!(lines, vec![(audit::SIGN_IN_FAILED.to_owned(), json!({ "door": "api" })); 20]);
        assert_eq!(served.say(Method::GET, "/v1/here", &[]).await.0, 401);
        assert_eq!(served.get("/healthz", "127.0.0.1").await.0, 200);
    }

    #[tokio::test]
    async fn without_a_configured_token_v1_says_which_key_to_set() {
        let served = Served::with_token(None).await;
        for headers in [vec![], vec![("authorization", "Bearer ")]] {
            let (status, text) = served.say(Method::GET, "/v1/here", &headers).await;
            assert!(status == 401 && text.contains("admin.token"), "{status} {text}");
        }
        assert_eq!(served.get("/healthz", "127.0.0.1").await.0, 200);
    }

    #[tokio::test]
    async fn a_page_of_another_site_orders_nothing() {
        let served = Served::start().await;
        let (right, own) = (format!("Bearer {TOKEN}"), format!("http://{}", served.address));
        for (name, value, expected) in [
            ("origin", "https://attacker.example", 403),
            ("origin", "null", 403),
            ("origin", "http://127.0.0.1:1", 403),
            ("sec-fetch-site", "cross-site", 403),
            ("sec-fetch-site", "same-site", 403),
            ("origin", own.as_str(), 200),
            ("sec-fetch-site", "same-origin", 200),
            ("x-other", "x", 200),
        ] {
            let headers = [("authorization", right.as_str()), (name, value)];
            assert_eq!(served.say(Method::POST, "/v1/here", &headers).await.0, expected, "{name}: {value}");
        }
        let (status, _) = served.say(Method::POST, "/v1/here", &[("origin", "https://attacker.example")]).await;
        assert_eq!(status, 403);
    }

    #[tokio::test]
    async fn metrics_tell_which_build_this_is() {
        let served = Served::start().await;
        let (status, text) = served.get("/metrics", "127.0.0.1").await;
        assert_eq!(status, 200);
        assert!(text.contains(&format!("vinculo_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))), "{text}");
    }
}
