//! `GET /schedule`, `POST /schedule/{name}/run`: the jobs, when each runs next, and what came of each last.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Redirect;
use axum::routing::{get, post};
use chrono::DateTime;
use maud::{Markup, html};

use super::lang::Lang;
use super::layout::{self, Page, Tab, ago_text, badge};
use super::session::{Ordered, Viewer};
use super::{About, Board, Trouble, escaped, plain};
use crate::clock::Timestamp;
use crate::operations::Order;
use crate::schedule::view::{self, View};

/// Slots of each job that are told.
const SLOTS: usize = 3;

pub(super) fn routes() -> Router<Board> {
    Router::new().route("/schedule", get(list)).route("/schedule/{name}/run", post(run))
}

async fn list(State(board): State<Board>, viewer: Viewer) -> Result<Markup, Trouble> {
    let (lang, now, asker) = (viewer.lang, board.operations.clock.now(), board.operations.jobs.clone());
    let jobs = board.operations.store.read(move |tx| view::list(tx, asker.jobs(), now)).await?;
    let body = html! {
        @if jobs.is_empty() {
            (layout::nothing(lang.t("There is no job: put a file into the folder of jobs.", "Não há tarefas: coloque um arquivo na pasta de tarefas.")))
        } @else {
            div.table { table {
                thead { tr {
                    th { (lang.t("Job", "Tarefa")) } th { (lang.t("Schedule", "Agenda")) } th { (lang.t("Next", "Próximas")) }
                    th { (lang.t("Last run", "Última execução")) }
                    @if viewer.may_operate() { th { span.hidden { (lang.t("Order", "Ordem")) } } }
                } }
                tbody { @for job in &jobs { (row(&viewer, job, now)) } }
            } }
        }
    };
    let live = Some(Duration::from_secs(15));
    Ok(Page { tab: Tab::Schedule, title: lang.t("Schedule", "Agenda"), live, body }.show(&viewer))
}

fn row(viewer: &Viewer, job: &View, now: Timestamp) -> Markup {
    let lang = viewer.lang;
    html! {
        tr {
            td.lead { (job.name) br; span.quiet { (plain::kind(job.action, lang)) } }
            td data-label=(lang.t("Schedule", "Agenda")) { span { code { (job.schedule) } " " span.quiet { (job.timezone) } } }
            td data-label=(lang.t("Next", "Próximas")) { span {
                @if job.next.is_empty() { (badge("idle", lang.t("off", "desligada"))) }
                @for (place, slot) in job.next.iter().take(SLOTS).enumerate() {
                    @if place > 0 { br; }
                    span.quiet[place > 0] { (local(slot, lang)) }
                    @if place == 0 { " " span.quiet { (ago_text(lang, Some(slot), now)) } }
                }
            } }
            td data-label=(lang.t("Last run", "Última")) {
                @match &job.last_run {
                    Some(run) => span {
                        a href=(layout::run_place(&run.id)) { (ago_text(lang, Some(&run.started_at), now)) } " "
                        (layout::outcome(lang, run))
                    },
                    None => span.quiet { (lang.t("never", "nunca")) },
                }
            }
            @if viewer.may_operate() {
                td {
                    form method="post" action={ "/schedule/" (escaped(&job.name)) "/run" } {
                        (layout::signature(viewer))
                        button.second.small type="submit" aria-label={ (lang.t("Run now: ", "Executar agora: ")) (job.name) } { (lang.t("Run now", "Executar agora")) }
                    }
                }
            }
        }
    }
}

/// A time by the job's own clock.
fn local(slot: &str, lang: Lang) -> String {
    let form = lang.t("%a %d %b, %H:%M", "%d/%m, %H:%M");
    DateTime::parse_from_rfc3339(slot).map_or_else(|_| slot.to_owned(), |slot| slot.format(form).to_string())
}

async fn run(State(board): State<Board>, Path(name): Path<String>, ordered: Ordered) -> Result<Redirect, Trouble> {
    // What is no job may be anything, also a name.
    let job = board.operations.jobs.knows(&name).then(|| name.clone());
    let about = About { operation: "POST /schedule/{name}/run", job, ..About::default() };
    board.order(&ordered.0.viewer, about, Order::Job(name)).await
}
