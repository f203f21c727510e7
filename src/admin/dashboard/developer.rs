//! `GET /developer` and its orders, beside a simulated Belvo only: its people, what goes wrong, the clock, and events
//! at will.
//!
//! The simulator is known by its address alone, below `/_sim/`, as any test would know it. *Promises* that nothing is
//! ever sent to a Belvo that is not on this machine.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use reqwest::Method;
use serde_json::{Value, json};
use url::{Host, Url};

use super::layout::{Page, Tab, signature};
use super::session::{Ordered, Viewer};
use super::{About, Board, Trouble, escaped};
use crate::config;
use crate::link_id::LinkId;

/// The simulator answers at once, or is not there.
const PATIENCE: Duration = Duration::from_secs(3);

/// People of the page.
const SHOWN: usize = 50;

/// What can be made to go wrong: what it is called here, in both languages, and by the simulator.
const SCENARIOS: [(&str, &str, &str); 6] = [
    ("Belvo answers 500 to every other call", "A Belvo responde 500 a cada duas chamadas", "status,code=500,share=0.5"),
    (
        "Belvo asks for patience once (429)",
        "A Belvo pede paciência uma vez (429)",
        "status,code=429,retry_after=5,times=1",
    ),
    ("Belvo refuses the keys, twice (401)", "A Belvo recusa as chaves, duas vezes (401)", "status,code=401,times=2"),
    ("Answers are cut short, five times", "Respostas chegam cortadas, cinco vezes", "cut,times=5"),
    (
        "A page of HTML instead of a list, five times",
        "Uma página HTML em vez de uma lista, cinco vezes",
        "html,times=5",
    ),
    (
        "Records have fields that no schema knows",
        "Registros têm campos que nenhum schema conhece",
        "unknown_field,share=0.2",
    ),
];

/// Events that can be sent: code, and what it says in both languages.
const EVENTS: [(&str, &str, &str); 5] = [
    ("new_employments_available", "new employments", "novos vínculos"),
    ("new_owners_available", "new owners", "novos titulares"),
    ("historical_update", "everything anew", "tudo de novo"),
    ("invalid_credentials", "credentials no longer good", "credenciais não servem mais"),
    ("token_required", "a token is needed", "um token é necessário"),
];

/// A simulated Belvo on this machine.
#[derive(Clone)]
pub(super) struct Simulator {
    base: Url,
    http: reqwest::Client,
}

impl Simulator {
    /// The Belvo of `settings`, if it can be a simulated one: the real one is never on this machine.
    pub(super) fn of(settings: &config::Belvo) -> Option<Self> {
        let is_here = match settings.base_url.host()? {
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
            Host::Domain(name) => name == "localhost",
        };
        if !is_here || settings.base_url.scheme() != "http" {
            return None;
        }
        let builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let http = builder.tls_certs_only([]).timeout(PATIENCE).build().ok()?;
        Some(Self { base: settings.base_url.clone(), http })
    }

    async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        let away = || {
            Trouble::new(
                StatusCode::BAD_GATEWAY,
                "No simulator answers at belvo.base_url: start one with vinculo simulate.",
                "Nenhum simulador responde em belvo.base_url: inicie um com vinculo simulate.",
            )
        };
        let url = self.base.join(&format!("/_sim/{path}")).map_err(|_| away())?;
        let mut request = self.http.request(method, url);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(|_| away())?;
        let (status, bytes) = (answer.status(), answer.bytes().await.map_err(|_| away())?);
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| away())?;
        if status.is_success() {
            return Ok(value);
        }
        let why = value["error"].as_str().unwrap_or("?").to_owned();
        Err(Trouble::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("The simulator did not do it: {why}."),
            format!("O simulador não fez isso: {why}."),
        ))
    }
}

pub(super) fn routes() -> Router<Board> {
    Router::new()
        .route("/developer", get(show))
        .route("/developer/connect", post(connect))
        .route("/developer/advance", post(advance))
        .route("/developer/scenario", post(scenario))
        .route("/developer/webhook", post(webhook))
}

fn simulator(board: &Board) -> Result<&Simulator, Trouble> {
    let missing =
        || Trouble::missing("This page is for a simulated Belvo only.", "Esta página é só para uma Belvo simulada.");
    board.settings.simulator.as_ref().ok_or_else(missing)
}

async fn show(State(board): State<Board>, viewer: Viewer) -> Result<Markup, Trouble> {
    let (lang, simulator) = (viewer.lang, simulator(&board)?);
    let state = simulator.ask(Method::GET, "state", None).await?;
    let links = simulator.ask(Method::GET, "links", None).await?;
    let faults = simulator.ask(Method::GET, "faults", None).await?;
    let links = links.as_array().map_or(&[][..], Vec::as_slice);
    let number = |value: &Value| lang.number(value.as_u64().unwrap_or_default());
    let body = html! {
        div.card {
            dl.facts {
                dt { (lang.t("People", "Pessoas")) } dd { (number(&state["people"])) }
                dt { (lang.t("Connected", "Conectadas")) } dd { (number(&state["links"])) }
                dt { (lang.t("Its clock", "O relógio dele")) } dd { (state["now"].as_str().unwrap_or("–")) }
                dt { "Webhooks" } dd { (number(&state["webhooks"]["delivered"])) (lang.t(" delivered, ", " entregues, ")) (number(&state["webhooks"]["outstanding"])) (lang.t(" on their way", " a caminho")) }
                dt { (lang.t("Calls", "Chamadas")) } dd { (number(&state["calls"])) (lang.t(", refused ", ", recusadas ")) (number(&state["refused"])) }
            }
        }
        @if viewer.may_operate() {
            div.cards {
                (forms(&viewer, links))
            }
            div.gap {}
        }
        section.card {
            h2 { (lang.t("What goes wrong now", "O que dá errado agora")) }
            pre tabindex="0" { code { (serde_json::to_string_pretty(&faults["on"]).unwrap_or_default()) } }
        }
        div.table { table {
            caption { (lang.t("People who connected", "Pessoas conectadas")) }
            thead { tr { th { "Link" } th.number { (lang.t("Person", "Pessoa")) } th { (lang.t("Story", "História")) } } }
            tbody { @for link in links.iter().take(SHOWN) {
                @let id = link["link"].as_str().unwrap_or_default();
                tr {
                    td.lead { a.id href={ "/links/" (escaped(id)) } { (id) } }
                    td.number data-label=(lang.t("Person", "Pessoa")) { (number(&link["person"])) }
                    td data-label=(lang.t("Story", "História")) { (link["archetype"].as_str().unwrap_or("–")) }
                }
            } }
        } }
    };
    let title = lang.t("Developer", "Desenvolvimento");
    Ok(Page { tab: Tab::Developer, title, live: None, body }.show(&viewer))
}

fn forms(viewer: &Viewer, links: &[Value]) -> Markup {
    let lang = viewer.lang;
    html! {
        section.card {
            h2 { (lang.t("People", "Pessoas")) }
            p.quiet { (lang.t("The next person connects, as with the widget.", "A próxima pessoa se conecta, como pelo widget.")) }
            form method="post" action="/developer/connect" { (signature(viewer)) button type="submit" { (lang.t("Connect one", "Conectar uma")) } }
            div.gap {}
            p.quiet { (lang.t("A month goes by: new pay, new webhooks.", "Um mês passa: novos pagamentos, novos webhooks.")) }
            form method="post" action="/developer/advance" { (signature(viewer)) button.second type="submit" { (lang.t("A month later", "Um mês depois")) } }
            div.gap {}
            p { a href="/links" { (lang.t("A widget URL for somebody new", "Uma URL do widget para alguém novo")) } }
        }
        section.card {
            h2 { (lang.t("Scenario", "Cenário")) }
            form method="post" action="/developer/scenario" {
                (signature(viewer))
                p { label for="scenario" { (lang.t("From now on", "De agora em diante")) }
                    select #scenario name="scenario" {
                        option value="" { (lang.t("all goes well again", "tudo volta a dar certo")) }
                        @for (en, pt, flag) in SCENARIOS { option value=(flag) { (lang.t(en, pt)) } }
                    } }
                button type="submit" { (lang.t("Let it happen", "Deixar acontecer")) }
            }
        }
        section.card {
            h2 { (lang.t("Fire a webhook", "Disparar um webhook")) }
            form method="post" action="/developer/webhook" {
                (signature(viewer))
                p { label for="link" { "Link" }
                    select #link name="link" {
                        @for link in links.iter().take(SHOWN) { @let id = link["link"].as_str().unwrap_or_default(); option value=(id) { (id) } }
                    } }
                p { label for="event" { (lang.t("It says", "Ele diz")) }
                    select #event name="event" { @for (code, en, pt) in EVENTS { option value=(code) { (lang.t(en, pt)) } } } }
                button type="submit" { (lang.t("Fire", "Disparar")) }
            }
        }
    }
}

/// Orders something of the simulator, and shows the page again.
async fn tell(
    board: &Board,
    ordered: &Ordered,
    about: About,
    calls: &[(Method, &str, Value)],
) -> Result<Redirect, Trouble> {
    let simulator = simulator(board)?;
    let telling = async {
        for (method, path, body) in calls {
            simulator.ask(method.clone(), path, Some(body)).await?;
        }
        Ok(Redirect::to("/developer"))
    };
    board.audited(&ordered.0.viewer, about, telling).await
}

async fn connect(State(board): State<Board>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let first = simulator(&board)?.ask(Method::GET, "state", None).await?["next_person"].take();
    let about = About { operation: "POST /developer/connect", ..About::default() };
    tell(&board, &ordered, about, &[(Method::POST, "connect", json!({ "first": first, "count": 1 }))]).await
}

async fn advance(State(board): State<Board>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let about = About { operation: "POST /developer/advance", ..About::default() };
    tell(&board, &ordered, about, &[(Method::POST, "advance", json!({ "months": 1 }))]).await
}

async fn scenario(State(board): State<Board>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let flag = ordered.0.field("scenario");
    let mut calls = vec![(Method::DELETE, "faults", json!({}))];
    if SCENARIOS.iter().any(|(_, _, known)| *known == flag) {
        calls.push((Method::POST, "faults", json!({ "flag": flag })));
    }
    let about = About { operation: "POST /developer/scenario", ..About::default() };
    tell(&board, &ordered, about, &calls).await
}

async fn webhook(State(board): State<Board>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let link: Option<LinkId> = ordered.0.field("link").parse().ok();
    let id = link.as_ref().map(ToString::to_string).unwrap_or_default();
    let about = About { operation: "POST /developer/webhook", link, ..About::default() };
    let event = json!({ "link": id, "code": ordered.0.field("event") });
    let fired = tell(&board, &ordered, about, &[(Method::POST, "webhooks", event)]).await;
    // Where it is seen to arrive.
    fired.map(|_| Redirect::to("/webhooks"))
}
