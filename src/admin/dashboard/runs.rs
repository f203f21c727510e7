//! `GET /runs`, `GET /runs/{id}`: what was ordered or was due, how far it is, and what came of it.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::routing::get;
use maud::{Markup, html};

use super::lang::Lang;
use super::layout::{self, Page, Tab, ago_text};
use super::session::Viewer;
use super::{Board, Trouble, escaped, place, plain, query};
use crate::clock::Timestamp;
use crate::runs::{self, Ending, Filter, Kind, Run};

/// Runs of a page.
const PAGE: usize = 50;

pub(super) fn routes() -> Router<Board> {
    Router::new().route("/runs", get(list)).route("/runs/{id}", get(show))
}

async fn list(State(board): State<Board>, viewer: Viewer, uri: Uri) -> Result<Markup, Trouble> {
    let (lang, now, query) = (viewer.lang, board.operations.clock.now(), query(&uri));
    let (kind, name, after) = (query.get("kind").cloned(), query.get("name").cloned(), query.get("after").cloned());
    let (filter, start) = (Filter { kind: kind.clone(), name: name.clone() }, after.clone());
    let found = board.operations.store.read(move |tx| runs::list(tx, &filter, start.as_deref(), PAGE)).await?;
    let (found, next) = found;
    let found: Vec<Run> = found.into_iter().map(|run| board.operations.runs.brought_up_to_date(run)).collect();
    let base = place("/runs", [("kind", kind.as_deref()), ("name", name.as_deref())]);
    let body = html! {
        ul.filters aria-label=(lang.t("By kind", "Por tipo")) {
            li { a href="/runs" aria-current=[kind.is_none().then_some("true")] { (lang.t("all", "todas")) } }
            @for known in Kind::ALL.map(Kind::name) {
                li { a href={ "/runs?kind=" (known) } aria-current=[(kind.as_deref() == Some(known)).then_some("true")] { (plain::kind(known, lang)) } }
            }
        }
        @if found.is_empty() { (layout::nothing(lang.t("Nothing ran yet.", "Nada rodou ainda."))) } @else { (table(&found, lang, now)) }
        (layout::pager(lang, &base, after.is_some(), next.as_deref()))
    };
    let live = after.is_none().then_some(Duration::from_secs(10));
    Ok(Page { tab: Tab::Runs, title: lang.t("Runs", "Execuções"), live, body }.show(&viewer))
}

fn table(found: &[Run], lang: Lang, now: Timestamp) -> Markup {
    html! {
        div.table { table {
            thead { tr {
                th { (lang.t("Run", "Execução")) } th { (lang.t("Outcome", "Resultado")) } th { (lang.t("Began", "Início")) }
                th { (lang.t("Ordered by", "Pedida por")) } th.number { (lang.t("Took", "Durou")) } th.number { (lang.t("Done", "Feitos")) }
            } }
            tbody { @for run in found {
                tr {
                    td.lead { a href=(layout::run_place(&run.id)) { (title(run, lang)) } }
                    td data-label=(lang.t("Outcome", "Resultado")) { (layout::outcome(lang, run)) }
                    td data-label=(lang.t("Began", "Início")) { (ago_text(lang, Some(&run.started_at), now)) }
                    td data-label=(lang.t("Ordered by", "Pedida por")) { (plain::reason(&run.reason, lang)) }
                    td.number data-label=(lang.t("Took", "Durou")) { @match run.duration_ms { Some(millis) => (lang.seconds(millis)), None => "–" } }
                    td.number data-label=(lang.t("Done", "Feitos")) { (done(run, lang)) }
                }
            } }
        } }
    }
}

/// The kind, and what it was about unless that is a person's business.
pub(super) fn title(run: &Run, lang: Lang) -> String {
    let kind = plain::kind(&run.kind, lang);
    match &run.name {
        Some(name) if run.kind == "job" || run.kind == "features" => format!("{kind}: {name}"),
        _ => kind,
    }
}

fn done(run: &Run, lang: Lang) -> String {
    match run.progress.total {
        Some(total) => format!("{} / {}", lang.number(run.progress.done), lang.number(total)),
        None => lang.number(run.progress.done),
    }
}

async fn show(State(board): State<Board>, viewer: Viewer, Path(id): Path<String>) -> Result<Markup, Trouble> {
    let (lang, now) = (viewer.lang, board.operations.clock.now());
    let run = board.operations.runs.get(&id).await?;
    let run = run.ok_or_else(|| Trouble::missing("There is no such run.", "Não existe essa execução."))?;
    let is_going = run.finished_at.is_none();
    let ended = run.progress.ended();
    let body = html! {
        div.card {
            p #outcome role="status" { (layout::outcome(lang, &run)) }
            @if is_going {
                @match run.progress.total {
                    Some(total) => progress max=(total.max(1)) value=(ended) aria-label=(lang.t("Progress", "Progresso")) {},
                    None => progress aria-label=(lang.t("Progress", "Progresso")) {},
                }
            }
            dl.facts {
                dt { (lang.t("Done", "Feitos")) } dd { (done(&run, lang)) }
                dt { (lang.t("Began", "Início")) } dd { (ago_text(lang, Some(&run.started_at), now)) }
                @if let Some(finished) = &run.finished_at { dt { (lang.t("Ended", "Fim")) } dd { (ago_text(lang, Some(finished), now)) } }
                @if let Some(millis) = run.duration_ms { dt { (lang.t("Took", "Durou")) } dd { (lang.seconds(millis)) } }
                dt { (lang.t("Ordered by", "Pedida por")) } dd { (plain::reason(&run.reason, lang)) }
                @if let Some(snapshot) = run.progress.snapshot { dt { "Snapshot" } dd { (snapshot) } }
            }
        }
        (failures(&run, lang))
        @if matches!(run.kind.as_str(), "delete" | "untrack") && let Some(link) = &run.name {
            p { a href={ "/links/" (escaped(link)) } { "Link " span.id { (link) } } }
        }
        p { a href="/runs" { (lang.t("All runs", "Todas as execuções")) } }
    };
    let live = is_going.then_some(Duration::from_secs(1));
    Ok(Page { tab: Tab::Runs, title: &title(&run, lang), live, body }.show(&viewer))
}

fn failures(run: &Run, lang: Lang) -> Markup {
    // Of what went wrong in part the failures tell.
    let own = match run.ending() {
        Some(ending @ (Ending::Interrupted | Ending::Code(_))) => Some(ending.word()),
        Some(Ending::Done | Ending::Partly | Ending::Failed | Ending::Skipped) | None => None,
    };
    html! {
        @if own.is_some() || run.message.is_some() || !run.progress.failed.is_empty() {
            section.card {
                h2 { (lang.t("What went wrong", "O que deu errado")) }
                @if let Some(code) = own { p { (layout::code(lang, code)) ". " (plain::advice(code, lang)) } }
                @if let Some(message) = &run.message { p.quiet lang="en" { (message) } }
                @for (code, count) in &run.progress.failed {
                    p { strong { (lang.number(*count)) " × " } (layout::code(lang, code)) ". " (plain::advice(code, lang)) }
                }
            }
        }
    }
}
