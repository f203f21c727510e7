//! The dashboard: what a platform engineer wants to see in ten seconds, as pages that the program writes itself.
//!
//! One module a page. *Takes* what the daemon has: its [`Operations`], budget and problems. *Gives* HTML in English and
//! Portuguese, one stylesheet and one small script, all compiled in. *Promises* that nothing but the sign-in page is
//! shown without a session or a token; that every order of a form is signed by the session that it was shown to, taken
//! only from a role that may operate, and in the audit before it is done; that no page loads anything from elsewhere,
//! runs a script of its own text, or may be framed; and that no page holds personal data: link ids are shown, external
//! ids can be searched for and are not shown. *Not here*: what is ordered; that is [`Operations`], as for the API.
//!
//! Pages are written with `maud`: HTML checked and escaped when the program is compiled, with no files to ship.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use serde_json::Value;

use crate::audit::{self, Asked};
use crate::belvo::Budget;
use crate::config::{self, Config};
use crate::guesses::Guesses;
use crate::link_id::LinkId;
use crate::operations::{Operations, Order, Refused};
use crate::problems::Problems;
use crate::runs::Reason;
use crate::store;

use super::role::{Caller, Tokens};
use developer::Simulator;
use lang::Lang;
use session::{Sessions, Viewer};

mod chart;
mod data;
mod developer;
mod errors;
mod health;
mod lang;
mod layout;
mod links;
mod months;
mod overview;
mod plain;
mod runs;
mod schedule;
mod session;
mod sign_in;
mod webhooks;

/// Pages load from here alone, run no text as script, and are shown in no frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
     form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What the pages are made from. Cheap to clone.
#[derive(Clone)]
pub struct Board {
    operations: Operations,
    budget: Budget,
    problems: Problems,
    tokens: Tokens,
    sessions: Sessions,
    guesses: Guesses,
    settings: Arc<Settings>,
}

/// What the pages tell of the configuration.
struct Settings {
    lake: PathBuf,
    budget: config::Budget,
    /// Only where Belvo may be a simulated one.
    simulator: Option<Simulator>,
}

impl Board {
    /// Pages about the daemon of `operations`, whose calls `budget` counts and whose standing problems are `problems`,
    /// for whoever has one of `tokens`.
    pub fn new(operations: Operations, budget: Budget, problems: Problems, tokens: Tokens, config: &Config) -> Self {
        let settings = Settings {
            lake: config.lake.path.clone(),
            budget: config.belvo.budget,
            simulator: Simulator::of(&config.belvo),
        };
        let (sessions, guesses) = (Sessions::default(), Guesses::default());
        Self { operations, budget, problems, tokens, sessions, guesses, settings: Arc::new(settings) }
    }

    /// Takes an order of `viewer` about something, and leads to the page of its run.
    async fn order(&self, viewer: &Viewer, about: About, order: Order) -> Result<Redirect, Trouble> {
        let line = self.note_asked(viewer, about).await?;
        let started = self.operations.start(order, Reason::Api).await.map_err(Trouble::from);
        let status = started.as_ref().map_or_else(|trouble| trouble.status, |_| StatusCode::SEE_OTHER);
        self.note_answered(line, status, started.as_deref().ok()).await;
        Ok(Redirect::to(&layout::run_place(&started?)))
    }

    /// Does `work`, which `viewer` asked for, between two lines of the audit.
    async fn audited<T>(
        &self,
        viewer: &Viewer,
        about: About,
        work: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let line = self.note_asked(viewer, about).await?;
        let done = work.await;
        let status = done.as_ref().map_or_else(|trouble| trouble.status, |_| StatusCode::OK);
        self.note_answered(line, status, None).await;
        done
    }

    /// Writes down who asked for what, before anything is done.
    async fn note_asked(&self, viewer: &Viewer, about: About) -> Result<String, Trouble> {
        let Caller { name, role } = &viewer.caller;
        let About { operation, link, seq, job } = about;
        let about = [("seq", seq.map(Value::from)), ("job", job.map(Value::from))];
        let about = about.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        let asked = Asked { caller: Arc::clone(name), role: role.name(), operation: operation.to_owned(), link, about };
        Ok(audit::note_asked(&self.operations.store, self.operations.clock.now(), asked).await?)
    }

    /// Writes down what was answered to the line `asked`.
    async fn note_answered(&self, asked: String, status: StatusCode, run: Option<&str>) {
        let Operations { store, clock, .. } = &self.operations;
        audit::note_answered(store, clock.now(), asked, status.as_u16(), run).await;
    }
}

/// What an order is about, for the audit.
#[derive(Default)]
struct About {
    /// Method and path of the form.
    operation: &'static str,
    link: Option<LinkId>,
    /// Of a webhook.
    seq: Option<i64>,
    job: Option<String>,
}

/// The pages, from `/` on.
pub fn routes(board: Board) -> Router {
    Router::new()
        .merge(sign_in::routes())
        .merge(overview::routes())
        .merge(links::routes())
        .merge(runs::routes())
        .merge(webhooks::routes())
        .merge(schedule::routes())
        .merge(errors::routes())
        .merge(data::routes())
        .merge(developer::routes())
        .route("/assets/style.css", get(async || asset("text/css; charset=utf-8", include_str!("style.css"))))
        .route("/assets/live.js", get(async || asset("text/javascript; charset=utf-8", include_str!("live.js"))))
        .route("/assets/icon.svg", get(async || asset("image/svg+xml", include_str!("icon.svg"))))
        .route_layer(middleware::from_fn(guard))
        .with_state(board)
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    // Asked for anew with each page: the next version of the program may have another.
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// What every answer carries; and what went wrong is told in the language of whoever asked.
async fn guard(request: Request, next: Next) -> Response {
    let lang = Lang::of(request.headers());
    let mut answer = next.run(request).await;
    if let Some(trouble) = answer.extensions_mut().remove::<Trouble>() {
        answer = (trouble.status, layout::bare(lang, trouble.title(lang), &trouble.body(lang))).into_response();
    }
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: with it a browser sends forms with `Origin: null`.
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Why a page cannot be shown, or an order not be taken.
#[derive(Debug, Clone)]
struct Trouble {
    status: StatusCode,
    en: String,
    pt: String,
}

impl Trouble {
    fn new(status: StatusCode, en: impl Into<String>, pt: impl Into<String>) -> Self {
        Self { status, en: en.into(), pt: pt.into() }
    }

    fn missing(en: &str, pt: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, en, pt)
    }

    fn title(&self, lang: Lang) -> &'static str {
        match self.status {
            StatusCode::NOT_FOUND => lang.t("Not found", "Não encontrado"),
            StatusCode::FORBIDDEN => lang.t("Refused", "Recusado"),
            status if status.is_server_error() => lang.t("Not now", "Agora não"),
            _ => lang.t("Not done", "Não foi feito"),
        }
    }

    fn body(&self, lang: Lang) -> maud::Markup {
        maud::html! {
            p { (lang.t(&self.en, &self.pt)) }
            p { a href="/" { (lang.t("Back to the overview", "Voltar à visão geral")) } }
        }
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let mut answer = self.status.into_response();
        answer.extensions_mut().insert(self);
        answer
    }
}

impl From<store::Error> for Trouble {
    fn from(error: store::Error) -> Self {
        tracing::error!(code = error.code(), "a page could not be shown: {error}");
        let code = error.code();
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("The state cannot be read or written ({code}). The daemon's log says more."),
            format!("O estado não pode ser lido ou gravado ({code}). O log do daemon diz mais."),
        )
    }
}

impl From<Refused> for Trouble {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Store(error) => error.into(),
            other => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("This was not ordered: {other}."),
                format!("Não foi ordenado ({}): {other}.", other.code()),
            ),
        }
    }
}

/// A value as part of an address.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'@' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// `path` with those of the fields that are given as its query.
fn place<const N: usize>(path: &str, fields: [(&str, Option<&str>); N]) -> String {
    let given = fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", escaped(value?))));
    let given: Vec<String> = given.collect();
    if given.is_empty() { path.to_owned() } else { format!("{path}?{}", given.join("&")) }
}

/// The fields of the query, by name; the last of two alike.
fn query(uri: &axum::http::Uri) -> std::collections::BTreeMap<String, String> {
    let pairs = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.into_owned().filter(|(_, value)| !value.trim().is_empty()).collect()
}

/// Brings `path` back when it is one of our own, so that nobody is led elsewhere.
fn own_place(path: &str) -> &str {
    let is_strange = |char: char| char == '\\' || char.is_control();
    let is_ours = path.starts_with('/') && !path.starts_with("//") && !path.contains(is_strange);
    if is_ours { path } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_led_elsewhere() {
        for (given, expected) in [
            ("/links?q=1", "/links?q=1"),
            ("//attacker.example", "/"),
            ("/\\attacker.example", "/"),
            ("/links\u{1}", "/"),
            ("https://attacker.example", "/"),
            ("", "/"),
        ] {
            assert_eq!(own_place(given), expected, "{given}");
        }
        assert_eq!(escaped("a job@1/ü"), "a%20job@1%2F%C3%BC");
        assert_eq!(place("/runs", [("kind", None), ("name", Some("a b")), ("x", Some("1"))]), "/runs?name=a%20b&x=1");
        assert_eq!(place("/runs", [("kind", None)]), "/runs");
    }
}
