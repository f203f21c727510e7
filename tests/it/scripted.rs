//! A Belvo that says what it is told to, byte for byte: any server that speaks the contract will do for the program.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::harness::ANY_PORT;

/// An answer.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// 200 with `body`.
    pub(crate) fn ok(body: impl Into<String>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into() }
    }
}

/// A running server.
pub(crate) struct Belvo {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Script {
    /// By path and link.
    lists: BTreeMap<(String, String), String>,
    /// Link objects, by id.
    links: BTreeMap<String, String>,
    /// What is said first, by path.
    next: BTreeMap<String, VecDeque<Answer>>,
    /// Path and query of each call.
    calls: Vec<String>,
}

impl Drop for Belvo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Path of the list of employments.
pub(crate) const EMPLOYMENTS: &str = "/api/br/employments/";

/// Path of the list of owners.
pub(crate) const OWNERS: &str = "/api/owners/";

impl Belvo {
    /// A Belvo that holds nothing.
    pub(crate) async fn start() -> Self {
        let script = Arc::<Mutex<Script>>::default();
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, script, task }
    }

    /// The list at `path` for `link` is `page`, from now on.
    pub(crate) fn lists(&self, path: &str, link: &str, page: impl Into<String>) {
        self.script.lock().unwrap().lists.insert((path.into(), link.into()), page.into());
    }

    /// There is this link.
    pub(crate) fn has_link(&self, id: &str, object: impl Into<String>) {
        self.script.lock().unwrap().links.insert(id.into(), object.into());
    }

    /// The next call of `path` is answered so; then the one after it, and so on.
    pub(crate) fn says_next(&self, path: &str, answer: Answer) {
        self.script.lock().unwrap().next.entry(path.into()).or_default().push_back(answer);
    }

    /// Calls of `path` so far, with their queries.
    pub(crate) fn calls(&self, path: &str) -> Vec<String> {
        let script = self.script.lock().unwrap();
        script.calls.iter().filter(|call| call.split('?').next() == Some(path)).cloned().collect()
    }
}

const NOT_FOUND: &str =
    r#"[{"code":"not_found","message":"Not found","request_id":"b5d0106ac9cc43d5b36199fe831f6bbe"}]"#;

/// One page with `records`, which are JSON already.
pub(crate) fn page(records: &[&str]) -> String {
    format!(r#"{{"count":{},"next":null,"previous":null,"results":[{}]}}"#, records.len(), records.join(","))
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request) -> Response<Body> {
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let mut script = script.lock().unwrap();
    script.calls.push(format!("{path}?{query}"));
    let parameter = |name: &str| {
        url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let answer = if let Some(next) = script.next.get_mut(&path).and_then(VecDeque::pop_front) {
        next
    } else if path == "/api/links/" {
        let ids = parameter("id__in");
        let wanted = |id: &str| ids.as_ref().is_none_or(|ids| ids.split(',').any(|each| each == id));
        let links: Vec<&str> =
            script.links.iter().filter(|(id, _)| wanted(id)).map(|(_, link)| link.as_str()).collect();
        Answer::ok(page(&links))
    } else if let Some(id) = path.strip_prefix("/api/links/") {
        let link = script.links.get(id.trim_end_matches('/'));
        link.map_or(Answer { status: 404, headers: Vec::new(), body: NOT_FOUND.into() }, |link| {
            Answer::ok(link.clone())
        })
    } else if let Some(page) = parameter("link").and_then(|link| script.lists.get(&(path.clone(), link))) {
        Answer::ok(page.clone())
    } else {
        Answer::ok(page(&[]))
    };
    let mut response = Response::builder().status(answer.status).header("content-type", "application/json");
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    response.body(Body::from(answer.body)).unwrap()
}
