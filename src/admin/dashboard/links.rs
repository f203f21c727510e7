//! `GET /links`, `GET /links/{link_id}` and its orders: a link is found, looked at, refreshed, paused, and given a
//! widget.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use maud::{Markup, html};

use super::lang::Lang;
use super::layout::{self, Page, Tab, ago_text, badge, signature};
use super::months::{self, Months};
use super::session::{Ordered, Viewer};
use super::{About, Board, Trouble, chart, escaped, plain, query};
use crate::clock::Timestamp;
use crate::coverage::in_turn;
use crate::link_id::LinkId;
use crate::links::view::{self, Filter, ResourceView, View};
use crate::links::{self, PAUSED};
use crate::operations::{Links, Order};
use crate::store::{Error, Tx};
use crate::widget::{self, SessionRequest};

/// Links of a page.
const PAGE: usize = 50;

pub(super) fn routes() -> Router<Board> {
    Router::new()
        .route("/links", get(list))
        .route("/links/{link_id}", get(show))
        .route("/links/{link_id}/refresh", post(refresh))
        .route("/links/{link_id}/pause", post(pause))
        .route("/links/{link_id}/resume", post(resume))
        .route("/links/{link_id}/widget", post(widget_of_link))
        .route("/widget", post(widget_of_person))
}

async fn list(State(board): State<Board>, viewer: Viewer, uri: Uri) -> Result<Response, Trouble> {
    let (lang, now, query) = (viewer.lang, board.operations.clock.now(), query(&uri));
    let text = |name: &str| query.get(name).map(|text| text.trim().to_owned());
    let (sought, status, after) = (text("q"), text("status"), text("after"));
    let id: Option<LinkId> = sought.as_deref().and_then(|sought| sought.to_ascii_lowercase().parse().ok());
    let filter = Filter { external_id: sought.clone(), status: status.clone() };
    let (start, wanted) = (after.clone().unwrap_or_default(), filter.clone());
    let read = move |tx: &Tx<'_>| {
        if let Some(id) = &id
            && view::show(tx, id, now)?.is_some()
        {
            return Ok((Some(id.to_string()), (Vec::new(), None), None));
        }
        let (found, next) = view::list(tx, &wanted, &start, PAGE, now)?;
        let only =
            if wanted.external_id.is_some() && start.is_empty() && found.len() == 1 { found.first() } else { None };
        let only = only.map(|link| link.link_id.clone());
        Ok::<_, Error>((only, (found, next), widget::awaited(tx, wanted.external_id.as_deref(), now)?))
    };
    let (only, (found, next), awaited) = board.operations.store.read(read).await?;
    if let Some(only) = only {
        return Ok(Redirect::to(&format!("/links/{only}")).into_response());
    }
    let base = [("q", &sought), ("status", &status)]
        .into_iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_ref()?))))
        .fold("/links".to_owned(), |base, pair| format!("{base}{}{pair}", if base.contains('?') { '&' } else { '?' }));
    let body = html! {
        form.search method="get" action="/links" role="search" {
            div {
                label for="q" { (lang.t("Link id or external id", "Id do link ou id externo")) }
                input #q type="search" name="q" value=[&sought] autocomplete="off" spellcheck="false";
            }
            button type="submit" { (lang.t("Find", "Buscar")) }
        }
        ul.filters aria-label=(lang.t("By status", "Por situação")) {
            li { a href="/links" aria-current=[status.is_none().then_some("true")] { (lang.t("all", "todos")) } }
            @for known in links::STATUSES {
                li {
                    a href={ "/links?status=" (known) } aria-current=[(status.as_deref() == Some(known)).then_some("true")] {
                        (plain::status_word(Some(known), lang).1)
                    }
                }
            }
        }
        @if let Some(awaited) = &awaited {
            p.notice {
                (lang.t("A widget session of this external id waits for its user; its token ends ", "Uma sessão do widget deste id externo espera o usuário; seu token termina "))
                (ago_text(lang, Some(&awaited.expires_at), now)) "."
            }
        }
        @if found.is_empty() {
            (layout::nothing(if sought.is_some() {
                lang.t("No tracked link has this id.", "Nenhum link acompanhado tem este id.")
            } else {
                lang.t("No link here yet.", "Nenhum link aqui ainda.")
            }))
        } @else {
            div.table { table {
                thead { tr {
                    th { "Link" } th { (lang.t("Status", "Situação")) } th { (lang.t("Access", "Acesso")) }
                    th { (lang.t("Oldest data", "Dado mais antigo")) } th { (lang.t("What to do", "O que fazer")) }
                } }
                tbody { @for link in &found { (row(link, lang, now)) } }
            } }
        }
        (layout::pager(lang, &base, after.is_some(), next.as_deref()))
        @if viewer.may_operate() { (new_person(&viewer)) }
    };
    Ok(Page { tab: Tab::Links, title: "Links", live: None, body }.show(&viewer).into_response())
}

fn row(link: &View, lang: Lang, now: Timestamp) -> Markup {
    let (tone, word) = plain::status(link, lang);
    let oldest = link.resources.iter().map(|resource| resource.last_fetched_at.as_deref()).min().flatten();
    html! {
        tr {
            td.lead { a.id href={ "/links/" (link.link_id) } { (link.link_id) } }
            td data-label=(lang.t("Status", "Situação")) { (badge(tone, word)) }
            td data-label=(lang.t("Access", "Acesso")) { (access(link.access_mode.as_deref(), lang)) }
            td data-label=(lang.t("Oldest data", "Dado mais antigo")) { (ago_text(lang, oldest, now)) }
            td.long data-label=(lang.t("What to do", "O que fazer")) { span { (plain::what_to_do(&link.next, lang)) } }
        }
    }
}

fn access(mode: Option<&str>, lang: Lang) -> &str {
    match mode {
        Some("recurrent") => lang.t("recurrent", "recorrente"),
        Some("single") => lang.t("single", "único"),
        Some(other) => other,
        None => "–",
    }
}

fn new_person(viewer: &Viewer) -> Markup {
    let lang = viewer.lang;
    html! {
        details.card {
            summary { (lang.t("Connect somebody new", "Conectar alguém novo")) }
            form.search method="post" action="/widget" {
                (signature(viewer))
                div {
                    label for="external_id" { (lang.t("External id", "Id externo")) }
                    input #external_id name="external_id" required minlength="3" maxlength="256" autocomplete="off" spellcheck="false";
                }
                div {
                    label for="access_mode" { (lang.t("Access", "Acesso")) }
                    select #access_mode name="access_mode" {
                        option value="recurrent" { (access(Some("recurrent"), lang)) }
                        option value="single" { (access(Some("single"), lang)) }
                    }
                }
                button type="submit" { (lang.t("Make a widget URL", "Criar URL do widget")) }
            }
        }
    }
}

async fn show(State(board): State<Board>, viewer: Viewer, Path(id): Path<String>) -> Result<Markup, Trouble> {
    let (lang, now) = (viewer.lang, board.operations.clock.now());
    let (id, link) = tracked(&board, &id).await?;
    let lake = board.settings.lake.clone();
    let months = in_turn(move || months::read(&lake, &id)).await;
    let (tone, word) = plain::status(&link, lang);
    let is_busy = link.resources.iter().any(|resource| resource.state.is_on_its_way());
    let body = html! {
        div.card {
            p { (badge(tone, word)) " " span.quiet { (lang.t("access: ", "acesso: ")) (access(link.access_mode.as_deref(), lang)) } }
            p { strong { (lang.t("What to do: ", "O que fazer: ")) } (plain::what_to_do(&link.next, lang)) }
            (last_error(&link, lang, now))
        }
        @if viewer.may_operate() { (actions(&viewer, &link)) }
        (resources(&link.resources, lang, now))
        section.card {
            h2 { (lang.t("Coverage by month", "Cobertura por mês")) }
            (coverage(months.as_ref(), lang))
        }
        section.card {
            h2 { (lang.t("At Belvo", "Na Belvo")) }
            (facts(&link, lang, now))
            p { a href={ "/webhooks?link=" (link.link_id) } { (lang.t("Webhooks of this link", "Webhooks deste link")) } }
        }
    };
    let title = format!("Link {}", link.link_id);
    let live = Some(Duration::from_secs(if is_busy { 2 } else { 30 }));
    Ok(Page { tab: Tab::Links, title: &title, live, body }.show(&viewer))
}

fn last_error(link: &View, lang: Lang, now: Timestamp) -> Markup {
    html! {
        @if let Some(error) = &link.last_error {
            p {
                strong { (lang.t("Last error: ", "Último erro: ")) }
                (layout::code(lang, &error.code)) ", " (ago_text(lang, error.at.as_deref(), now))
                @if let Some(resource) = &error.resource { ", " (resource) }
                "."
                @if let Some(detail) = &error.detail { " " span.quiet { (lang.t("For Belvo's support: ", "Para o suporte da Belvo: ")) code { (detail) } } }
            }
        }
    }
}

fn actions(viewer: &Viewer, link: &View) -> Markup {
    let (lang, base) = (viewer.lang, format!("/links/{}", link.link_id));
    let is_paused = link.paused_reason.as_deref() == Some(PAUSED);
    let order = |action: &str, class: &str, label: &str| {
        html! {
            form.inline method="post" action={ (base) "/" (action) } {
                (signature(viewer))
                button class=(class) type="submit" { (label) }
            }
        }
    };
    html! {
        div.actions {
            (order("refresh", "", lang.t("Refresh", "Atualizar")))
            @if link.external_id.is_some() { (order("widget", "second", lang.t("Widget URL", "URL do widget"))) }
            @if is_paused {
                (order("resume", "second", lang.t("Resume", "Retomar")))
            } @else {
                (order("pause", "second", lang.t("Pause", "Pausar")))
            }
        }
    }
}

fn resources(resources: &[ResourceView], lang: Lang, now: Timestamp) -> Markup {
    html! {
        div.table { table {
            caption { (lang.t("Freshness", "Atualidade")) }
            thead { tr {
                th { (lang.t("Resource", "Recurso")) } th { (lang.t("State", "Estado")) } th { (lang.t("Fetched", "Buscado")) }
                th { (lang.t("Collected at the institution", "Coletado na instituição")) } th.number { (lang.t("Records", "Registros")) }
                th { (lang.t("Next", "Próxima")) }
            } }
            tbody { @for resource in resources {
                @let (tone, word) = plain::resource_state(resource.state, lang);
                tr {
                    td.lead { (resource.resource) }
                    td data-label=(lang.t("State", "Estado")) { span {
                        (badge(tone, word))
                        @if let Some(code) = &resource.last_error_code { " " span.quiet { (plain::what(code, lang)) } }
                    } }
                    td data-label=(lang.t("Fetched", "Buscado")) { (ago_text(lang, resource.last_fetched_at.as_deref(), now)) }
                    td data-label=(lang.t("Collected", "Coletado")) { (ago_text(lang, resource.last_collected_at.as_deref(), now)) }
                    td.number data-label=(lang.t("Records", "Registros")) {
                        @match resource.item_count { Some(count) => (lang.number(count.unsigned_abs())), None => "–" }
                    }
                    td data-label=(lang.t("Next", "Próxima")) { (ago_text(lang, resource.due_at.as_deref(), now)) }
                }
            } }
        } }
        div.gap {}
    }
}

fn coverage(months: Option<&Months>, lang: Lang) -> Markup {
    let Some(months) = months else {
        return layout::nothing(lang.t("Nothing published to read it from yet.", "Nada publicado ainda de onde ler."));
    };
    let Some((first, last)) = &months.span else {
        return layout::nothing(lang.t("No month with pay.", "Nenhum mês com pagamento."));
    };
    let many = lang.count(
        months.count as u64,
        lang.t("month with pay", "mês com pagamento"),
        lang.t("months with pay", "meses com pagamento"),
    );
    let summary = format!("{many}, {first} – {last}");
    let unit = |count: u32| {
        lang.count(
            u64::from(count),
            lang.t("job with pay", "emprego com pagamento"),
            lang.t("jobs with pay", "empregos com pagamento"),
        )
    };
    html! {
        (chart::months(&months.years, lang.t("JFMAMJJASOND", "JFMAMJJASOND"), &summary, unit))
        p.quiet { (summary) "." }
    }
}

fn facts(link: &View, lang: Lang, now: Timestamp) -> Markup {
    html! {
        dl.facts {
            dt { (lang.t("Institution", "Instituição")) } dd { (link.institution.as_deref().unwrap_or("–")) }
            dt { (lang.t("Made", "Criado")) } dd { (ago_text(lang, link.created_at.as_deref(), now)) }
            dt { (lang.t("Last read there", "Última leitura lá")) } dd { (ago_text(lang, link.last_accessed_at.as_deref(), now)) }
            dt { (lang.t("Last webhook", "Último webhook")) } dd { (ago_text(lang, link.last_webhook_at.as_deref(), now)) }
            dt { (lang.t("Read by itself", "Leitura automática")) } dd { (link.refresh_rate.as_deref().unwrap_or("–")) }
            dt { (lang.t("Kept there for", "Mantido lá por")) } dd { (link.stale_in.as_deref().unwrap_or("–")) }
            @if let Some(paused_at) = &link.paused_at {
                dt { (lang.t("Paused", "Pausado")) }
                dd { (ago_text(lang, Some(paused_at), now)) }
            }
        }
    }
}

async fn refresh(State(board): State<Board>, Path(id): Path<String>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let id = tracked(&board, &id).await?.0;
    let about = About { operation: "POST /links/{link_id}/refresh", link: Some(id.clone()), ..About::default() };
    let order = Order::Refresh { links: Links::LinkId(id.to_string()), resources: Vec::new() };
    board.order(&ordered.0.viewer, about, order).await
}

async fn pause(State(board): State<Board>, Path(id): Path<String>, ordered: Ordered) -> Result<Redirect, Trouble> {
    change(&board, &id, &ordered, "POST /links/{link_id}/pause", links::pause_by_operator).await
}

async fn resume(State(board): State<Board>, Path(id): Path<String>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let shown = change(&board, &id, &ordered, "POST /links/{link_id}/resume", links::resume_by_operator).await?;
    board.operations.queue.announce();
    Ok(shown)
}

/// Does something with a link, and shows the link.
async fn change(
    board: &Board,
    id: &str,
    ordered: &Ordered,
    operation: &'static str,
    work: fn(&Tx<'_>, &LinkId, Timestamp) -> Result<bool, Error>,
) -> Result<Redirect, Trouble> {
    let (id, now) = (tracked(board, id).await?.0, board.operations.clock.now());
    let about = About { operation, link: Some(id.clone()), ..About::default() };
    let done = async {
        let link = id.clone();
        if board.operations.store.write(move |tx| work(tx, &link, now)).await? {
            return Ok(Redirect::to(&format!("/links/{id}")));
        }
        Err(Trouble::new(
            StatusCode::CONFLICT,
            "Nothing was changed: the link is gone at Belvo, or already is as you want it.",
            "Nada mudou: o link não existe mais na Belvo ou já está como você quer.",
        ))
    };
    board.audited(&ordered.0.viewer, about, done).await
}

async fn widget_of_link(
    State(board): State<Board>,
    Path(id): Path<String>,
    ordered: Ordered,
) -> Result<Markup, Trouble> {
    let (id, link) = tracked(&board, &id).await?;
    let external_id = link.external_id.unwrap_or_default();
    let locale = Some(ordered.0.viewer.lang.tag().to_owned());
    let request = SessionRequest { external_id, link: Some(id.to_string()), locale, ..SessionRequest::default() };
    let about = About { operation: "POST /links/{link_id}/widget", link: Some(id.clone()), ..About::default() };
    let back = format!("/links/{id}");
    board.audited(&ordered.0.viewer, about, widget(&board, &ordered, request, &back)).await
}

async fn widget_of_person(State(board): State<Board>, ordered: Ordered) -> Result<Markup, Trouble> {
    let access_mode = Some(ordered.0.field("access_mode").to_owned()).filter(|mode| !mode.is_empty());
    let external_id = ordered.0.field("external_id").to_owned();
    let locale = Some(ordered.0.viewer.lang.tag().to_owned());
    let request = SessionRequest { external_id, access_mode, locale, ..SessionRequest::default() };
    let about = About { operation: "POST /widget", ..About::default() };
    board.audited(&ordered.0.viewer, about, widget(&board, &ordered, request, "/links")).await
}

/// Asks for a session, and shows its URL once: it holds a token, and is kept nowhere.
async fn widget(board: &Board, ordered: &Ordered, request: SessionRequest, back: &str) -> Result<Markup, Trouble> {
    let (lang, now) = (ordered.0.viewer.lang, board.operations.clock.now());
    let made = board.operations.widgets.create(request).await;
    let session = made.map_err(|error| match error {
        widget::Error::Store(error) => error.into(),
        widget::Error::Invalid(_) => Trouble::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("No widget URL was made. {}.", plain::sentence(&error.to_string()).trim_end_matches('.')),
            format!("Nenhuma URL foi criada. {}.", plain::sentence(&error.to_string()).trim_end_matches('.')),
        ),
        widget::Error::Belvo(ref failure) => Trouble::new(
            StatusCode::BAD_GATEWAY,
            format!(
                "No widget URL: {}. {}",
                plain::what(failure.code.name(), Lang::En),
                plain::advice(failure.code.name(), Lang::En)
            ),
            format!(
                "Nenhuma URL: {}. {}",
                plain::what(failure.code.name(), Lang::Pt),
                plain::advice(failure.code.name(), Lang::Pt)
            ),
        ),
    })?;
    let body = html! {
        div.card {
            p {
                (lang.t("Send this to its user. It works once and ends ", "Envie ao usuário. Funciona uma vez e termina "))
                (layout::ago(lang, session.expires_at, now))
                (lang.t("; it is shown only now, and kept nowhere.", "; é mostrada só agora e não é guardada."))
            }
            p { label for="url" { "URL" } textarea #url rows="4" readonly spellcheck="false" { (session.url) } }
            p { a.button href=(session.url) target="_blank" rel="noopener noreferrer" { (lang.t("Open the widget", "Abrir o widget")) } }
            p { a href=(back) { (lang.t("Back", "Voltar")) } }
        }
    };
    let title = lang.t("Widget URL", "URL do widget");
    // A language switch would lead to where only a form leads.
    let viewer = Viewer { place: back.to_owned(), ..ordered.0.viewer.clone() };
    Ok(Page { tab: Tab::Links, title, live: None, body }.show(&viewer))
}

/// The link called `id`. An address is not the place to make one known by a slip of the hand.
async fn tracked(board: &Board, id: &str) -> Result<(LinkId, View), Trouble> {
    let not_tracked = || Trouble::missing("No such link is tracked.", "Nenhum link assim é acompanhado.");
    let (id, now): (LinkId, _) = (id.parse().map_err(|_| not_tracked())?, board.operations.clock.now());
    let link = id.clone();
    let found = board.operations.store.read(move |tx| view::show(tx, &link, now)).await?;
    Ok((id, found.ok_or_else(not_tracked)?))
}
