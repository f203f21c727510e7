//! `GET /`: in ten seconds, whether data is fresh, what is wrong and what comes next.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use maud::{Markup, html};

use super::chart::{self, Bar};
use super::health::{self, Freshness, Vitals};
use super::lang::Lang;
use super::layout::{self, Page, Tab, ago, ago_text, badge};
use super::runs::title;
use super::session::Viewer;
use super::{Board, Trouble, escaped, plain};
use crate::chronicle;
use crate::clock::Timestamp;
use crate::links::PAUSED;
use crate::publish::{Lake, Manifest};
use crate::queue::{self, Backlog};
use crate::runs::{self, Filter, Run};
use crate::store::{Error, Tx, args};
use crate::widget;

/// Hours that the charts go back.
const HOURS: usize = 24;

/// Runs in the strip.
const RUNS: usize = 48;

/// Jobs that come next.
const NEXT: usize = 4;

pub(super) fn routes() -> Router<Board> {
    Router::new().route("/", get(show))
}

/// What the page tells.
struct Seen {
    vitals: Vitals,
    backlog: Backlog,
    statuses: Vec<(Option<String>, u64)>,
    paused: u64,
    users_awaited: u64,
    webhooks: Webhooks,
    calls: Vec<u64>,
    runs: Vec<Run>,
}

async fn show(State(board): State<Board>, viewer: Viewer) -> Result<Markup, Trouble> {
    let (lang, now) = (viewer.lang, board.operations.clock.now());
    let asker = board.operations.jobs.clone();
    let seen = board.operations.store.read(move |tx| {
        let jobs: Vec<_> = asker.jobs().collect();
        Ok::<_, Error>(Seen {
            vitals: Vitals::read(tx, jobs.iter().copied(), now)?,
            backlog: queue::backlog(tx)?,
            statuses: tx.all(
                "SELECT status, count(*) FROM links WHERE paused_reason IS NULL OR paused_reason <> $1 GROUP BY 1 ORDER BY 2 DESC",
                args![PAUSED],
                |row| Ok((row.opt_text(0)?, row.count(1)?)),
            )?,
            paused: tx.count("SELECT count(*) FROM links WHERE paused_reason = $1", args![PAUSED])?,
            users_awaited: widget::waiting_count(tx, now)?,
            webhooks: Webhooks::read(tx, now)?,
            calls: chronicle::calls_by_hour(tx, HOURS, now)?,
            runs: runs::list(tx, &Filter::default(), None, RUNS)?.0,
        })
    });
    let lake = board.settings.lake.clone();
    let manifest = tokio::task::spawn_blocking(move || Lake::look(&lake).current());
    let (seen, manifest) = (seen.await?, manifest.await.ok().flatten());
    let body = html! {
        (verdict(&board, &seen, manifest.as_ref(), lang, now))
        div.cards {
            (links(&seen, lang))
            (freshness(&seen.vitals.freshness, lang, now))
            (webhooks(&seen.webhooks, lang))
            (calls(&board, &seen.calls, lang))
            (next_jobs(&seen.vitals, lang, now))
            (strip(&seen.runs, lang, now))
        }
    };
    let title = lang.t("Overview", "Visão geral");
    Ok(Page { tab: Tab::Overview, title, live: Some(Duration::from_secs(10)), body }.show(&viewer))
}

fn verdict(board: &Board, seen: &Seen, manifest: Option<&Manifest>, lang: Lang, now: Timestamp) -> Markup {
    let checks = health::checks(board, &seen.vitals, manifest, lang, now);
    let word = health::overall(&checks);
    html! {
        section class={ "verdict " (word.tone()) } aria-label=(lang.t("Health", "Saúde")) {
            p.word #health { (word.text(lang)) }
            ul.checks {
                @for check in &checks {
                    li class=(check.word.tone()) {
                        a href=(check.place) { (check.name) }
                        span { (check.says) }
                        span.hidden { " (" (check.word.text(lang)) ")" }
                    }
                }
            }
        }
    }
}

fn links(seen: &Seen, lang: Lang) -> Markup {
    let total = seen.statuses.iter().map(|(_, count)| count).sum::<u64>() + seen.paused;
    let mut parts: Vec<(&'static str, u64)> = Vec::new();
    for (status, count) in &seen.statuses {
        parts.push((plain::status_word(status.as_deref(), lang).0, *count));
    }
    parts.push(("idle", seen.paused));
    let order = ["good", "busy", "warn", "bad", "idle"];
    parts.sort_by_key(|(tone, _)| order.iter().position(|known| known == tone));
    let summary = lang.t("Links by status", "Links por situação");
    html! {
        section.card {
            h2 { "Links" }
            p.figure { (lang.number(total)) }
            (chart::share(&parts, summary))
            dl.legend {
                @for (status, count) in &seen.statuses {
                    @let (tone, word) = plain::status_word(status.as_deref(), lang);
                    div class=(tone) {
                        dt { @match status {
                            Some(status) => a href={ "/links?status=" (escaped(status)) } { (word) },
                            None => (word),
                        } }
                        dd { (lang.number(*count)) }
                    }
                }
                @if seen.paused > 0 {
                    div.idle { dt { (lang.t("paused by an operator", "pausados por um operador")) } dd { (lang.number(seen.paused)) } }
                }
            }
            p.quiet {
                (lang.number(seen.backlog.pending)) (lang.t(" waiting, ", " na fila, "))
                (lang.number(seen.backlog.retrying)) (lang.t(" retrying, ", " tentando de novo, "))
                (lang.number(seen.backlog.blocked)) (lang.t(" waiting for a person", " esperando uma pessoa"))
                @if seen.users_awaited > 0 {
                    ", " (lang.count(seen.users_awaited, lang.t("user still to connect", "usuário ainda por conectar"), lang.t("users still to connect", "usuários ainda por conectar")))
                }
            }
        }
    }
}

fn freshness(freshness: &[Freshness], lang: Lang, now: Timestamp) -> Markup {
    html! {
        section.card {
            h2 { (lang.t("Data age", "Idade dos dados")) }
            @if freshness.is_empty() {
                (layout::nothing(lang.t("No job that runs fetches by age, so there is no target.", "Nenhuma tarefa ativa busca por idade, então não há meta.")))
            }
            @for one in freshness {
                @let known = one.in_time + one.late();
                @let summary = format!("{}: {} {}", one.resource, Lang::percent(one.in_time, known), lang.t("within target", "dentro da meta"));
                div.measure {
                    p {
                        strong { (one.resource) }
                        span.figure.small { (Lang::percent(one.in_time, known)) }
                    }
                    (chart::share(&[("good", one.in_time), ("warn", one.late()), ("idle", one.never)], &summary))
                    p.quiet {
                        (lang.t("target ", "meta ")) (lang.span(one.target))
                        " · " (lang.number(one.in_time)) (lang.t(" in time", " em dia"))
                        " · " (lang.number(one.late())) (lang.t(" late", " atrasados"))
                        @if one.never > 0 { " · " (lang.number(one.never)) (lang.t(" without data yet", " ainda sem dados")) }
                        @if let Some(oldest) = one.oldest { " · " (lang.t("oldest ", "mais antigo ")) (ago(lang, oldest, now)) }
                    }
                }
            }
        }
    }
}

/// Webhooks of the last hours, by hour and outcome.
struct Webhooks {
    hours: Vec<[u64; 3]>,
}

impl Webhooks {
    fn read(tx: &Tx<'_>, now: Timestamp) -> Result<Self, Error> {
        const HOUR: i64 = 3_600_000_000;
        let last = now.as_micros().div_euclid(HOUR);
        let first = last - i64::try_from(HOURS).unwrap_or(24) + 1;
        let mut hours = vec![[0; 3]; HOURS];
        let sql = "SELECT received_at / 3600000000, outcome, count(*) FROM webhooks WHERE seq >= $1 AND received_at >= $2 GROUP BY 1, 2";
        tx.each(sql, args![first_after(tx, first * HOUR)?, first * HOUR], |row| {
            let outcome = match row.str(1)? {
                "quarantined" => 2,
                "queued" | "received" => 0,
                _ => 1,
            };
            let place = usize::try_from(row.int(0)? - first).unwrap_or(usize::MAX);
            if let Some(hour) = hours.get_mut(place) {
                hour[outcome] += row.count(2)?;
            }
            Ok::<_, Error>(())
        })?;
        Ok(Self { hours })
    }

    fn sum(&self, outcome: usize) -> u64 {
        self.hours.iter().map(|hour| hour[outcome]).sum()
    }
}

/// The number of the first webhook that came at `at` or later. They are numbered as they come, so that halving finds it
/// and the whole log need not be read.
fn first_after(tx: &Tx<'_>, at: i64) -> Result<i64, Error> {
    let ends = "SELECT coalesce(min(seq), 1), coalesce(max(seq), 0) + 1 FROM webhooks";
    let (mut low, mut high) = tx.one(ends, args![], |row| Ok((row.int(0)?, row.int(1)?)))?.unwrap_or((1, 1));
    while low < high {
        let middle = low + (high - low) / 2;
        let next = "SELECT received_at FROM webhooks WHERE seq >= $1 ORDER BY seq LIMIT 1";
        let came = tx.one(next, args![middle], |row| row.int(0))?;
        if came.is_some_and(|came| came < at) { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

fn webhooks(webhooks: &Webhooks, lang: Lang) -> Markup {
    let [queued, noted, quarantined] = [0, 1, 2].map(|outcome| webhooks.sum(outcome));
    let bars: Vec<Bar> = webhooks
        .hours
        .iter()
        .enumerate()
        .map(|(hour, &[queued, noted, quarantined])| Bar {
            parts: vec![("good", queued), ("idle", noted), ("bad", quarantined)],
            label: format!("{}: {}", hours_back(hour, lang), lang.number(queued + noted + quarantined)),
        })
        .collect();
    let total = lang.number(queued + noted + quarantined);
    html! {
        section.card {
            h2 { a href="/webhooks" { "Webhooks" } " " span.quiet { "24 h" } }
            p.figure { (total) }
            (chart::bars(&bars, &format!("{}: {total}", lang.t("Webhooks in each of the last 24 hours", "Webhooks em cada uma das últimas 24 horas"))))
            p.quiet {
                (lang.number(queued)) (lang.t(" led to a fetch, ", " levaram a uma busca, "))
                (lang.number(noted)) (lang.t(" noted, ", " anotados, "))
                (lang.number(quarantined)) (lang.t(" in quarantine", " em quarentena"))
            }
        }
    }
}

fn hours_back(place: usize, lang: Lang) -> String {
    match HOURS - 1 - place {
        0 => lang.t("this hour", "esta hora").to_owned(),
        back => lang.t(format!("{back} h ago"), format!("há {back} h")),
    }
}

fn calls(board: &Board, calls: &[u64], lang: Lang) -> Markup {
    let (usage, settings) = (board.budget.usage(), board.settings.budget);
    let per_day =
        u64::from(settings.requests) * 86_400_000 / u64::try_from(settings.per.as_millis()).unwrap_or(1).max(1);
    let total = calls.iter().sum::<u64>();
    let bars: Vec<Bar> = calls
        .iter()
        .enumerate()
        .map(|(hour, &calls)| Bar {
            parts: vec![("busy", calls)],
            label: format!("{}: {}", hours_back(hour, lang), lang.number(calls)),
        })
        .collect();
    let summary = lang.t(
        "Calls of Belvo's API in each of the last 24 hours",
        "Chamadas à API da Belvo em cada uma das últimas 24 horas",
    );
    html! {
        section.card {
            h2 { (lang.t("API budget", "Orçamento da API")) " " span.quiet { "24 h" } }
            p.figure { (lang.number(total)) }
            (chart::bars(&bars, &format!("{summary}: {}", lang.number(total))))
            p.quiet {
                (lang.t("calls, ", "chamadas, ")) (Lang::percent(total, per_day)) (lang.t(" of a day's budget", " do orçamento de um dia"))
                " · " (lang.t("now ", "agora ")) (lang.number(usage.in_use as u64)) (lang.t(" of ", " de "))
                (lang.number(u64::from(settings.requests))) (lang.t(" per ", " por ")) (lang.span(settings.per))
            }
        }
    }
}

fn next_jobs(vitals: &Vitals, lang: Lang, now: Timestamp) -> Markup {
    let mut jobs: Vec<_> =
        vitals.jobs.iter().filter_map(|job| Some((Timestamp::parse(job.next.first()?)?, job))).collect();
    jobs.sort_by_key(|(at, _)| *at);
    html! {
        section.card {
            h2 { a href="/schedule" { (lang.t("Next jobs", "Próximas tarefas")) } }
            @if jobs.is_empty() { (layout::nothing(lang.t("No job runs by itself.", "Nenhuma tarefa roda sozinha."))) }
            dl.rows {
                @for (at, job) in jobs.into_iter().take(NEXT) {
                    div { dt { (job.name) } dd { (ago(lang, at, now)) } }
                }
            }
        }
    }
}

fn strip(runs: &[Run], lang: Lang, now: Timestamp) -> Markup {
    // Lengths differ by thousands: their magnitude is what is shown.
    let height = |run: &Run| u64::from(run.duration_ms.unwrap_or(1).max(1).ilog2()) + 2;
    let before = (runs.len()..RUNS).map(|_| Bar { parts: Vec::new(), label: lang.t("before", "antes").to_owned() });
    let bars: Vec<Bar> = before
        .chain(runs.iter().rev().map(|run| Bar {
            parts: vec![(layout::tone(run), height(run))],
            label: format!(
                    "{}: {}",
                    title(run, lang),
                    run.duration_ms
                        .map_or_else(|| lang.t("running", "em andamento").to_owned(), |millis| lang.seconds(millis))
                ),
        }))
        .collect();
    let count = |word: &str| runs.iter().filter(|run| layout::tone(run) == word).count() as u64;
    html! {
        section.card {
            h2 { a href="/runs" { (lang.t("Runs", "Execuções")) } }
            @match runs.first() {
                None => (layout::nothing(lang.t("Nothing ran yet.", "Nada rodou ainda."))),
                Some(last) => {
                    p.figure { (lang.number(count("good"))) span.quiet { (lang.t(" of ", " de ")) (lang.number(runs.len() as u64)) (lang.t(" well", " bem")) } }
                    (chart::bars(&bars, lang.t("The latest runs, the newest on the right; higher took longer", "As últimas execuções, a mais nova à direita; mais alta demorou mais")))
                    p.quiet {
                        (lang.t("last: ", "última: ")) a href=(layout::run_place(&last.id)) { (plain::kind(&last.kind, lang)) } " "
                        (ago_text(lang, Some(&last.started_at), now))
                        @if count("bad") > 0 { " " (badge("bad", &lang.count(count("bad"), lang.t("failed", "falhou"), lang.t("failed", "falharam")))) }
                    }
                }
            }
        }
    }
}
