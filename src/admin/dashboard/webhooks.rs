//! `GET /webhooks`, `GET /webhooks/{seq}` and their orders: what came, what became of it, and what is read again.

use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::Uri;
use axum::response::Redirect;
use axum::routing::{get, post};
use maud::{Markup, html};
use serde_json::Value;

use super::lang::Lang;
use super::layout::{self, Page, Tab, ago_text, badge};
use super::session::{Ordered, Viewer};
use super::{About, Board, Trouble, escaped, place, query};
use crate::clock::Timestamp;
use crate::operations::{Order, Replay};
use crate::store::Tx;
use crate::webhook::log::{self, Entry, Filter};

/// Webhooks of a page.
const PAGE: usize = 50;

pub(super) fn routes() -> Router<Board> {
    Router::new()
        .route("/webhooks", get(list))
        .route("/webhooks/replay", post(replay_quarantined))
        .route("/webhooks/{seq}", get(show))
        .route("/webhooks/{seq}/replay", post(replay))
}

async fn list(State(board): State<Board>, viewer: Viewer, uri: Uri) -> Result<Markup, Trouble> {
    let (lang, now, query) = (viewer.lang, board.operations.clock.now(), query(&uri));
    let (outcome, link, after) =
        (query.get("outcome").cloned(), query.get("link").cloned(), query.get("after").cloned());
    let before = after.as_deref().and_then(|after| after.parse().ok());
    let wanted = link.as_deref().map(str::parse).transpose();
    let filter = wanted.map(|link| Filter { webhook_type: None, outcome: outcome.clone(), link });
    let read = move |tx: &Tx<'_>| {
        // What is no link's id is none of any webhook.
        let found = filter.map_or_else(|_| Ok((Vec::new(), None)), |filter| log::list(tx, &filter, before, PAGE))?;
        Ok((found, log::count_quarantined(tx)?))
    };
    let ((found, next), quarantined) = board.operations.store.read(read).await?;
    let next = next.map(|seq| seq.to_string());
    let base = place("/webhooks", [("outcome", outcome.as_deref()), ("link", link.as_deref())]);
    let body = html! {
        ul.filters aria-label=(lang.t("By outcome", "Por resultado")) {
            li { a href="/webhooks" aria-current=[outcome.is_none().then_some("true")] { (lang.t("all", "todos")) } }
            @for known in log::OUTCOMES {
                li { a href={ "/webhooks?outcome=" (known) } aria-current=[(outcome.as_deref() == Some(known)).then_some("true")] { (word(known, lang).1) } }
            }
        }
        @if quarantined > 0 {
            div.notice.warn {
                p { (lang.count(quarantined, lang.t("webhook is", "webhook está"), lang.t("webhooks are", "webhooks estão")))
                    (lang.t(" in the quarantine: kept, not understood, and not lost.", " na quarentena: guardados, não entendidos e não perdidos.")) }
                (layout::button(&viewer, "/webhooks/replay", lang.t("Read all of them again", "Ler todos de novo")))
            }
            div.gap {}
        }
        @if found.is_empty() { (layout::nothing(lang.t("No webhook here yet.", "Nenhum webhook aqui ainda."))) } @else {
            div.table { table {
                thead { tr {
                    th { (lang.t("Webhook", "Webhook")) } th { (lang.t("Outcome", "Resultado")) } th { (lang.t("Came", "Chegou")) }
                    th { "Link" } th { (lang.t("Replayed", "Reprocessado")) }
                } }
                tbody { @for entry in &found { (row(entry, lang, now)) } }
            } }
        }
        (layout::pager(lang, &base, after.is_some(), next.as_deref()))
    };
    let live = after.is_none().then_some(Duration::from_secs(10));
    Ok(Page { tab: Tab::Webhooks, title: "Webhooks", live, body }.show(&viewer))
}

fn row(entry: &Entry, lang: Lang, now: Timestamp) -> Markup {
    let (tone, word) = word(&entry.outcome, lang);
    html! {
        tr {
            td.lead { a href={ "/webhooks/" (entry.seq) } { "#" (entry.seq) " " (name(entry)) } }
            td data-label=(lang.t("Outcome", "Resultado")) { (badge(tone, word)) }
            td data-label=(lang.t("Came", "Chegou")) { (ago_text(lang, Some(&entry.received_at), now)) }
            td data-label="Link" { (link(entry)) }
            td data-label=(lang.t("Replayed", "Reprocessado")) { (ago_text(lang, entry.replayed_at.as_deref(), now)) }
        }
    }
}

fn link(entry: &Entry) -> Markup {
    html! {
        @match &entry.link_id {
            Some(id) => a.id href={ "/links/" (escaped(id)) } { (id.get(..8).unwrap_or(id)) "…" },
            None => span.quiet { "–" },
        }
    }
}

/// Type and code, as far as they are words of Belvo's form: what a stranger sent is not repeated.
fn name(entry: &Entry) -> String {
    let is_word = |text: &&str| text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let word = |text: &Option<String>| text.as_deref().filter(is_word).unwrap_or("…").to_owned();
    format!("{} · {}", word(&entry.webhook_type), word(&entry.webhook_code))
}

fn word(outcome: &str, lang: Lang) -> (&'static str, &'static str) {
    match outcome {
        "received" => ("busy", lang.t("received", "recebido")),
        "queued" => ("good", lang.t("led to a fetch", "levou a uma busca")),
        "noted" => ("idle", lang.t("noted", "anotado")),
        "quarantined" => ("warn", lang.t("in quarantine", "em quarentena")),
        "erased" => ("idle", lang.t("of an erased link", "de um link eliminado")),
        _ => ("idle", lang.t("other", "outro")),
    }
}

/// Why a webhook is in the quarantine, in the viewer's language.
pub(super) fn reason(reason: &str, lang: Lang) -> String {
    let pt = match reason {
        "webhook_type is missing or no short text" => "webhook_type falta ou não é um texto curto",
        "webhook_type is unknown" => "webhook_type é desconhecido",
        "webhook_code is missing or unknown" => "webhook_code falta ou é desconhecido",
        "link_id is missing or no UUID" => "link_id falta ou não é um UUID",
        "could not be followed up" => "o que ele diz não pôde ser feito",
        other => other,
    };
    lang.t(reason, pt).to_owned()
}

async fn show(State(board): State<Board>, viewer: Viewer, Path(seq): Path<String>) -> Result<Markup, Trouble> {
    let (lang, now, seq) = (viewer.lang, board.operations.clock.now(), number(&seq)?);
    let (entry, body) = board.operations.store.read(move |tx| log::show(tx, seq)).await?.ok_or_else(missing)?;
    let (tone, word) = word(&entry.outcome, lang);
    let body = html! {
        div.card {
            p #outcome { (badge(tone, word)) }
            dl.facts {
                dt { (lang.t("What", "O quê")) } dd { (name(&entry)) }
                dt { (lang.t("Came", "Chegou")) } dd { (ago_text(lang, Some(&entry.received_at), now)) }
                dt { "Link" } dd { @match &entry.link_id { Some(id) => a.id href={ "/links/" (escaped(id)) } { (id) }, None => "–" } }
                @if let Some(why) = &entry.reason { dt { (lang.t("Why", "Por quê")) } dd { (reason(why, lang)) } }
                @if entry.replayed_at.is_some() { dt { (lang.t("Replayed", "Reprocessado")) } dd { (ago_text(lang, entry.replayed_at.as_deref(), now)) } }
            }
        }
        @if viewer.may_operate() {
            div.actions { (layout::button(&viewer, &format!("/webhooks/{seq}/replay"), lang.t("Replay", "Reprocessar"))) }
        }
        section.card {
            h2 { (lang.t("Body, without what may be personal", "Corpo, sem o que possa ser pessoal")) }
            pre tabindex="0" { code { (serde_json::to_string_pretty(&without_external_id(body)).unwrap_or_default()) } }
        }
        p { a href="/webhooks" { (lang.t("All webhooks", "Todos os webhooks")) } }
    };
    Ok(Page { tab: Tab::Webhooks, title: &format!("Webhook #{seq}"), live: None, body }.show(&viewer))
}

/// An application's id of its user is looked for, and not shown.
fn without_external_id(mut body: Value) -> Value {
    if let Some(id) = body.get_mut("external_id").filter(|id| id.is_string()) {
        *id = Value::from("(not shown)");
    }
    body
}

async fn replay(State(board): State<Board>, Path(seq): Path<String>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let seq = number(&seq)?;
    let about = About { operation: "POST /webhooks/{seq}/replay", seq: Some(seq), ..About::default() };
    board.order(&ordered.0.viewer, about, Order::Replay(Replay::One(seq))).await
}

async fn replay_quarantined(State(board): State<Board>, ordered: Ordered) -> Result<Redirect, Trouble> {
    let about = About { operation: "POST /webhooks/replay", ..About::default() };
    board.order(&ordered.0.viewer, about, Order::Replay(Replay::Quarantined)).await
}

fn number(seq: &str) -> Result<i64, Trouble> {
    seq.parse().map_err(|_| missing())
}

fn missing() -> Trouble {
    Trouble::missing("There is no such webhook in the log.", "Não existe esse webhook no log.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::REASONS;

    #[test]
    fn every_outcome_and_every_reason_has_words_in_both_languages() {
        for lang in [Lang::En, Lang::Pt] {
            let words = log::OUTCOMES.map(|outcome| word(outcome, lang).1);
            assert!(!words.contains(&word("never heard of", lang).1), "{words:?}");
        }
        for outcome in log::OUTCOMES {
            assert_ne!(word(outcome, Lang::En).1, word(outcome, Lang::Pt).1);
        }
        for known in REASONS {
            assert_eq!(reason(known, Lang::En), known);
            assert_ne!(reason(known, Lang::Pt), known);
        }
    }
}
