//! `GET /errors`: what goes wrong and went wrong, grouped, with its first and last time and what to do.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use maud::{Markup, html};

use super::lang::Lang;
use super::layout::{self, Page, Tab, ago, badge};
use super::session::Viewer;
use super::{Board, Trouble, plain, webhooks};
use crate::chronicle;
use crate::clock::Timestamp;
use crate::queue;
use crate::runs::{self, Ending};
use crate::store::{Error, Tx, args};

pub(super) fn routes() -> Router<Board> {
    Router::new().route("/errors", get(show))
}

/// Where a group comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Refreshes,
    Runs,
    Webhooks,
}

/// Failures of one kind.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    source: Source,
    /// A stable code, or why a webhook is in the quarantine.
    code: String,
    count: u64,
    first_at: Timestamp,
    last_at: Timestamp,
    /// Refreshes that it still stands for, or webhooks.
    standing: u64,
}

async fn show(State(board): State<Board>, viewer: Viewer) -> Result<Markup, Trouble> {
    let (lang, now) = (viewer.lang, board.operations.clock.now());
    let groups = board.operations.store.read(groups).await?;
    let standing = board.problems.standing();
    let kept_days = runs::KEEP.as_secs() / (24 * 60 * 60);
    let body = html! {
        @for code in &standing {
            div.notice.bad { p { strong { (plain::sentence(&plain::what(code, lang))) } " " (plain::advice(code, lang)) " " code { (code) } } }
            div.gap {}
        }
        @if groups.is_empty() {
            (layout::nothing(lang.t("Nothing went wrong, as far as is on record.", "Nada deu errado, até onde há registro.")))
        } @else {
            div.table { table {
                thead { tr {
                    th { (lang.t("What", "O quê")) } th { (lang.t("Where", "Onde")) } th.number { (lang.t("Times", "Vezes")) }
                    th.number { (lang.t("Stands for", "Ainda em")) } th { (lang.t("First", "Primeira vez")) } th { (lang.t("Last", "Última vez")) }
                } }
                tbody { @for group in &groups { (row(group, lang, now)) } }
            } }
            p.quiet { (lang.t(
                format!("Failures of refreshes begin anew after a week without one; runs are kept for {kept_days} days."),
                format!("Falhas de atualização recomeçam após uma semana sem nenhuma; execuções ficam por {kept_days} dias."),
            )) }
        }
    };
    let live = Some(Duration::from_secs(15));
    Ok(Page { tab: Tab::Errors, title: lang.t("Errors", "Erros"), live, body }.show(&viewer))
}

/// Every group: what stands first, then the latest.
fn groups(tx: &Tx<'_>) -> Result<Vec<Group>, Error> {
    let mut groups = Vec::new();
    let standing = queue::errors(tx)?;
    for failures in chronicle::failures(tx)? {
        let standing = standing.get(&failures.code).copied().unwrap_or_default();
        let chronicle::Failures { code, first_at, last_at, count } = failures;
        groups.push(Group { source: Source::Refreshes, code, count, first_at, last_at, standing });
    }
    for (source, sql) in [
        (
            Source::Runs,
            "SELECT outcome, count(*), min(started_at), max(started_at) FROM \
             (SELECT outcome, started_at FROM runs UNION ALL \
             SELECT outcome, started_at FROM job_runs WHERE reason <> 'first-start') AS every \
             WHERE outcome IS NOT NULL GROUP BY 1",
        ),
        (
            Source::Webhooks,
            "SELECT coalesce(reason, 'quarantined'), count(*), min(received_at), max(received_at) FROM webhooks \
             WHERE outcome = 'quarantined' GROUP BY 1",
        ),
    ] {
        tx.each(sql, args![], |row| {
            let (code, count) = (row.text(0)?, row.count(1)?);
            if source == Source::Runs && !Ending::of(&code).is_trouble() {
                return Ok(());
            }
            let standing = if source == Source::Webhooks { count } else { 0 };
            groups.push(Group { source, code, count, first_at: row.at(2)?, last_at: row.at(3)?, standing });
            Ok::<_, Error>(())
        })?;
    }
    groups.sort_by_key(|group| (group.standing == 0, std::cmp::Reverse(group.last_at)));
    Ok(groups)
}

fn row(group: &Group, lang: Lang, now: Timestamp) -> Markup {
    let (place, name) = match group.source {
        Source::Refreshes => ("/links", lang.t("refreshes", "atualizações")),
        Source::Runs => ("/runs", lang.t("runs", "execuções")),
        Source::Webhooks => ("/webhooks?outcome=quarantined", "webhooks"),
    };
    html! {
        tr {
            td.lead {
                @if group.source == Source::Webhooks {
                    (plain::sentence(&webhooks::reason(&group.code, lang))) " "
                    span.quiet { (lang.t("It is kept: upgrade the program, then replay it.", "Fica guardado: atualize o programa e reprocesse.")) }
                } @else {
                    (plain::sentence(&plain::what(&group.code, lang))) " " span.quiet { (plain::advice(&group.code, lang)) " " code { (group.code) } }
                }
            }
            td data-label=(lang.t("Where", "Onde")) { a href=(place) { (name) } }
            td.number data-label=(lang.t("Times", "Vezes")) { (lang.number(group.count)) }
            td.number data-label=(lang.t("Stands for", "Ainda em")) {
                @if group.standing > 0 { (badge("warn", &lang.number(group.standing))) } @else { span.quiet { "0" } }
            }
            td data-label=(lang.t("First", "Primeira vez")) { (ago(lang, group.first_at, now)) }
            td data-label=(lang.t("Last", "Última vez")) { (ago(lang, group.last_at, now)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn what_still_stands_comes_first_and_each_group_has_its_times() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = Timestamp::from_micros;
        let write = move |tx: &Tx<'_>| {
            chronicle::note_failure(tx, "timeout", at(1))?;
            chronicle::note_failure(tx, "timeout", at(5))?;
            chronicle::note_failure(tx, "api_down", at(90))?;
            tx.execute(
                "INSERT INTO refreshes (link_id, resource, marks, priority, last_error_code) VALUES ('a', 'owners', 1, 0, 'timeout')",
                args![],
            )?;
            for (started, outcome) in [(3, "done"), (4, "disk_full"), (6, "interrupted"), (8, "disk_full")] {
                let sql = "INSERT INTO runs (kind, reason, started_at, outcome) VALUES ('publish', 'api', $1, $2)";
                tx.execute(sql, args![at(started), outcome])?;
            }
            groups(tx)
        };
        let seen = store.write(write).await.unwrap();
        let told: Vec<_> = seen
            .iter()
            .map(|group| (group.code.as_str(), group.count, group.first_at, group.last_at, group.standing))
            .collect();
        assert_eq!(
            told,
            [("timeout", 2, at(1), at(5), 1), ("api_down", 1, at(90), at(90), 0), ("disk_full", 2, at(4), at(8), 0)]
        );
    }
}
