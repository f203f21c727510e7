//! One word for how the daemon is, and why: a handful of checks, each with a sentence and the page that says more.

use std::time::Duration;

use super::lang::Lang;
use super::{Board, layout, plain};
use crate::clock::Timestamp;
use crate::links::freshness;
use crate::publish::Manifest;
use crate::queue;
use crate::resources::{self, Resource};
use crate::runs::{Ending, Run};
use crate::schedule::view::{self, View};
use crate::schedule::{Action, Job};
use crate::store::{Error, Tx, args};
use crate::webhook::log;

/// How something is; the later, the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Word {
    Healthy,
    Starting,
    Attention,
    Trouble,
}

impl Word {
    /// The word itself.
    pub(super) fn text(self, lang: Lang) -> &'static str {
        match self {
            Self::Healthy => lang.t("Healthy", "Saudável"),
            Self::Starting => lang.t("Starting", "Iniciando"),
            Self::Attention => lang.t("Needs attention", "Requer atenção"),
            Self::Trouble => lang.t("In trouble", "Com problemas"),
        }
    }

    /// Its tone in the stylesheet.
    pub(super) fn tone(self) -> &'static str {
        match self {
            Self::Healthy => "good",
            Self::Starting => "busy",
            Self::Attention => "warn",
            Self::Trouble => "bad",
        }
    }
}

/// One thing that was looked at.
pub(super) struct Check {
    pub(super) word: Word,
    pub(super) name: &'static str,
    pub(super) says: String,
    pub(super) place: String,
}

/// What the checks are made from.
pub(super) struct Vitals {
    pub(super) freshness: Vec<Freshness>,
    pub(super) quarantined: u64,
    pub(super) refused: u64,
    pub(super) jobs: Vec<View>,
}

/// How fresh a resource is against its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Freshness {
    pub(super) resource: &'static str,
    /// What the job promises.
    pub(super) target: Duration,
    /// Links that it promises it of.
    pub(super) links: u64,
    /// Of these, those whose last list is young enough,
    pub(super) in_time: u64,
    /// and those without one.
    pub(super) never: u64,
    /// Of the links with one, the oldest.
    pub(super) oldest: Option<Timestamp>,
}

impl Freshness {
    /// Links whose last list is too old.
    pub(super) fn late(&self) -> u64 {
        self.links - self.in_time - self.never
    }
}

impl Vitals {
    /// Reads them, of the daemon's `jobs`.
    pub(super) fn read<'j>(
        tx: &Tx<'_>,
        jobs: impl Iterator<Item = &'j Job> + Clone,
        now: Timestamp,
    ) -> Result<Self, Error> {
        Ok(Self {
            freshness: freshness(tx, jobs.clone(), now)?,
            quarantined: log::count_quarantined(tx)?,
            refused: queue::refused(tx)?,
            jobs: view::list(tx, jobs, now)?,
        })
    }
}

/// How fresh each resource is, against what the shortest of the `fetch` jobs that run promises.
fn freshness<'j>(
    tx: &Tx<'_>,
    jobs: impl Iterator<Item = &'j Job> + Clone,
    now: Timestamp,
) -> Result<Vec<Freshness>, Error> {
    let mut all = Vec::new();
    for resource in resources::ALL {
        let promises = jobs.clone().filter(|job| {
            let is_about_it = job.scope.resources.iter().any(|named| named.name == resource.name);
            job.action == Action::Fetch && job.is_enabled && is_about_it
        });
        if let Some(job) = promises.min_by_key(|job| job.scope.older_than) {
            all.push(measure(tx, resource, job, now)?);
        }
    }
    Ok(all)
}

fn measure(tx: &Tx<'_>, resource: &'static Resource, job: &Job, now: Timestamp) -> Result<Freshness, Error> {
    // What is just too old waits for the next slot.
    let slot = job.next_after(now);
    let between = slot.and_then(|slot| Some(job.next_after(slot)?.since(slot))).unwrap_or_default();
    let since = now - (job.scope.older_than + between);
    let (is_read, is_late) = (freshness::is_read(resource), freshness::is_late("$2"));
    let sql = format!(
        "SELECT count(*), count(CASE WHEN NOT {is_late} THEN 1 END), \
         count(CASE WHEN f.last_fetched_at IS NULL THEN 1 END), min(f.last_fetched_at) FROM links l \
         LEFT JOIN refreshes f ON f.link_id = l.link_id AND f.resource = $1 \
         WHERE {is_read} AND l.paused_reason IS NULL AND (CAST($3 AS TEXT) IS NULL OR l.access_mode = $3)"
    );
    let counted = tx.one(&sql, args![resource.name, since, job.scope.access_mode.as_deref()], |row| {
        Ok((row.count(0)?, row.count(1)?, row.count(2)?, row.opt_at(3)?))
    })?;
    let (links, in_time, never, oldest) = counted.unwrap_or_default();
    Ok(Freshness { resource: resource.name, target: job.scope.older_than, links, in_time, never, oldest })
}

/// Every check, in the order in which one would ask.
pub(super) fn checks(
    board: &Board,
    vitals: &Vitals,
    manifest: Option<&Manifest>,
    lang: Lang,
    now: Timestamp,
) -> Vec<Check> {
    let mut checks = standing(board, lang);
    checks.push(publishing(manifest, lang, now));
    checks.push(fresh(&vitals.freshness, lang));
    checks.push(ran(&vitals.jobs, lang));
    checks.push(calls(board, vitals.refused, lang, now));
    let quarantined = vitals.quarantined;
    checks.push(Check {
        word: if quarantined == 0 { Word::Healthy } else { Word::Attention },
        name: "Webhooks",
        says: match quarantined {
            0 => lang.t("every one was understood", "todos foram entendidos").to_owned(),
            1 => lang.t("1 is in the quarantine", "1 está na quarentena").to_owned(),
            many => format!("{} {}", lang.number(many), lang.t("are in the quarantine", "estão na quarentena")),
        },
        place: if quarantined == 0 { "/webhooks".to_owned() } else { "/webhooks?outcome=quarantined".to_owned() },
    });
    checks
}

/// The worst of the checks.
pub(super) fn overall(checks: &[Check]) -> Word {
    checks.iter().map(|check| check.word).max().unwrap_or(Word::Healthy)
}

/// What stands in the way of the daemon's work.
fn standing(board: &Board, lang: Lang) -> Vec<Check> {
    let check = |code: &'static str| Check {
        word: if code == "starting" { Word::Starting } else { Word::Trouble },
        name: lang.t("In the way", "No caminho"),
        says: format!("{}. {}", plain::what(code, lang), plain::advice(code, lang)),
        place: "/errors".to_owned(),
    };
    board.problems.standing().into_iter().map(check).collect()
}

fn publishing(manifest: Option<&Manifest>, lang: Lang, now: Timestamp) -> Check {
    let (word, says) = match manifest {
        None => (Word::Starting, lang.t("nothing is published yet", "nada foi publicado ainda").to_owned()),
        Some(manifest) => {
            let at = Timestamp::parse(&manifest.published_at).unwrap_or(now);
            let ago = lang.relative(at, now);
            let number = manifest.snapshot;
            (Word::Healthy, lang.t(format!("snapshot {number}, {ago}"), format!("snapshot {number}, {ago}")))
        }
    };
    Check { word, name: lang.t("Published", "Publicado"), says, place: "/data".to_owned() }
}

fn fresh(freshness: &[Freshness], lang: Lang) -> Check {
    let sum = |count: fn(&Freshness) -> u64| freshness.iter().map(count).sum::<u64>();
    let (links, late, never) = (sum(|one| one.links), sum(Freshness::late), sum(|one| one.never));
    let of = |count: u64| format!("{} {} {}", lang.number(count), lang.t("of", "de"), lang.number(links));
    let word = match (late, never) {
        (0, never) if never > 0 && never == links => Word::Starting,
        _ if late * 2 > links => Word::Trouble,
        _ if (late + never) * 20 > links => Word::Attention,
        _ => Word::Healthy,
    };
    let says = match (freshness.is_empty(), late, never) {
        (true, ..) => lang.t("no job promises an age", "nenhuma tarefa promete uma idade").to_owned(),
        (_, 0, 0) => lang.t("all within target", "tudo dentro da meta").to_owned(),
        (_, 0, never) => {
            let of = of(never);
            lang.t(format!("{of} lists never came yet"), format!("{of} listas ainda não vieram"))
        }
        (_, late, never) => {
            let of = of(late);
            let late =
                lang.t(format!("{of} lists are older than their target"), format!("{of} listas passaram da meta"));
            let never = (never > 0).then(|| lang.number(never));
            let waiting =
                never.map(|never| lang.t(format!(", {never} never came yet"), format!(", {never} ainda não vieram")));
            late + &waiting.unwrap_or_default()
        }
    };
    Check { word, name: lang.t("Freshness", "Atualidade"), says, place: "/links".to_owned() }
}

fn ran(jobs: &[View], lang: Lang) -> Check {
    let has_failed = |job: &&View| job.last_run.as_ref().and_then(Run::ending).is_some_and(Ending::is_trouble);
    let failed: Vec<&View> = jobs.iter().filter(has_failed).collect();
    let (word, says, place) = match failed.first().and_then(|job| Some((job, job.last_run.as_ref()?))) {
        None => (
            Word::Healthy,
            lang.t("the last run of each job went well", "a última execução de cada tarefa deu certo").to_owned(),
            "/schedule".to_owned(),
        ),
        Some((job, run)) => {
            let more = if failed.len() > 1 { format!(" (+{})", failed.len() - 1) } else { String::new() };
            let what = plain::what(run.outcome.as_deref().unwrap_or_default(), lang);
            (Word::Attention, format!("{}: {what}{more}", job.name), layout::run_place(&run.id))
        }
    };
    Check { word, name: lang.t("Last runs", "Últimas execuções"), says, place }
}

fn calls(board: &Board, refused: u64, lang: Lang, now: Timestamp) -> Check {
    let (word, says) = match (board.budget.paused_until(), refused) {
        (Some(until), _) => {
            let until = lang.relative(until, now);
            (
                Word::Attention,
                lang.t(format!("calls pause; they go on {until}"), format!("chamadas em pausa; voltam {until}")),
            )
        }
        (None, 0) => {
            (Word::Healthy, lang.t("calls leave and are answered", "chamadas saem e são respondidas").to_owned())
        }
        (None, refused) => {
            let count = lang.number(refused);
            let says =
                lang.t(format!("Belvo refuses {count} refreshes"), format!("a Belvo recusa {count} atualizações"));
            (Word::Attention, says)
        }
    };
    Check { word, name: "Belvo", says, place: "/errors".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_job_that_a_restart_interrupted_leaves_the_health_at_healthy_and_one_that_failed_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let text = "schedule = \"*/15 * * * *\"\ntimezone = \"UTC\"\naction = \"backup\"\n";
        let job = Job::parse("daily", "jobs/daily.toml", text).unwrap();
        let now = Timestamp::parse("2026-03-02T12:00:00Z").unwrap();
        let ended = async |outcome: &'static str| {
            let job = job.clone();
            let work = move |tx: &Tx<'_>| {
                let sql = "INSERT INTO job_runs (job, slot_at, started_at, finished_at, reason, outcome) \
                           VALUES ('daily', $1, $1, $1, 'schedule', $2) ON CONFLICT DO UPDATE SET outcome = $2";
                tx.execute(sql, args![now, outcome])?;
                view::list(tx, [&job], now)
            };
            ran(&store.write(work).await.unwrap(), Lang::En).word
        };
        assert_eq!(ended("interrupted").await, Word::Healthy);
        assert_eq!(ended("disk_full").await, Word::Attention);
        assert_eq!(ended("done").await, Word::Healthy);
    }

    #[tokio::test]
    async fn what_belvo_does_not_read_is_never_late_and_what_never_came_is_not_within_target() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let text = "schedule = \"*/15 * * * *\"\ntimezone = \"UTC\"\naction = \"fetch\"\n[scope]\nolder_than = \"24h\"\n\
            resources = [\"owners\"]";
        let job = Job::parse("fetch", "jobs/fetch.toml", text).unwrap();
        let now = Timestamp::parse("2026-03-02T12:00:00Z").unwrap();
        let listed = move |tx: &Tx<'_>, link: &str, hours: u64| {
            let sql = "INSERT INTO refreshes (link_id, resource, marks, priority, last_fetched_at) VALUES ($1, 'owners', 1, 0, $2)";
            tx.execute(sql, args![link, now - Duration::from_hours(hours)]).map(drop)
        };
        let says = async || {
            let job = job.clone();
            let freshness = store.read(move |tx| freshness(tx, [&job].into_iter(), now)).await.unwrap();
            let check = fresh(&freshness, Lang::En);
            (freshness[0].late(), check.word, check.says)
        };
        let add = move |tx: &Tx<'_>| {
            for (link, reads) in [("a", None), ("b", Some("[\"EMPLOYMENTS\"]"))] {
                let sql =
                    "INSERT INTO links (link_id, fetch_resources, first_seen_at, changed_seq) VALUES ($1, $2, 0, 0)";
                tx.execute(sql, args![link, reads])?;
            }
            // As an order for all of a link's resources does.
            listed(tx, "b", 50)
        };
        store.write(add).await.unwrap();
        assert_eq!(says().await, (0, Word::Starting, "1 of 1 lists never came yet".to_owned()));
        store.write(move |tx| listed(tx, "a", 3)).await.unwrap();
        assert_eq!(says().await, (0, Word::Healthy, "all within target".to_owned()));
        store.write(|tx| tx.execute("UPDATE refreshes SET last_fetched_at = 0", args![])).await.unwrap();
        assert_eq!(says().await, (1, Word::Trouble, "1 of 1 lists are older than their target".to_owned()));
    }
}
