//! An order, carried out by the daemon that holds the state, or here when there is none; with the same progress.

use std::io::{self, Write as _};
use std::time::Duration;

use super::progress::Progress;
use super::work::{self, asked_to_end};
use super::{Exit, Global, streams};
use crate::admin::client::Client;
use crate::clock::Clock;
use crate::config::Needs;
use crate::daemon::{Daemon, Parts};
use crate::operations::Order;
use crate::runs::{Ending, Kind, Reason, Run};
use crate::words;

/// A look at a run here is as patient as one at a daemon's.
const NEWS_WITHIN: Duration = Duration::from_secs(10);

/// What an order needs when there is no daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needed {
    /// What the configuration must hold.
    pub needs: Needs,
    /// What is started.
    pub parts: Parts,
}

/// State and lake alone.
pub const STATE_AND_LAKE: Needed = Needed { needs: Needs { belvo: false, webhook: false }, parts: Parts::WithoutBelvo };

/// Calls to Belvo.
pub const BELVO: Needed = Needed { needs: Needs { belvo: true, webhook: false }, parts: Parts::WithoutListeners };

/// Has `order` carried out and gives its run when that has ended; `None` when a signal came first. A daemon goes on with it
/// then.
///
/// # Errors
/// When the order is not taken, by whoever.
pub fn carry_out(order: Order, needed: Needed, global: &Global) -> anyhow::Result<Option<Run>> {
    let config = global.load_config(Needs::default())?;
    work::block_on(async {
        if let Some(daemon) = Client::find(&config).await? {
            let run = daemon.order(&order).await?;
            let id = run.id.clone();
            let follow = async {
                let progress = Progress::of(&run.kind, global);
                let mut run = run;
                while run.finished_at.is_none() {
                    progress.set(run.progress.ended(), run.progress.total);
                    run = daemon.news(&run.id).await?;
                }
                anyhow::Ok(Some(run))
            };
            return tokio::select! {
                run = follow => run,
                signal = asked_to_end() => {
                    signal?;
                    streams::note(&format!("the daemon goes on with it; GET /v1/runs/{id} tells what came of it"), global)?;
                    Ok(None)
                }
            };
        }
        let config = match needed.parts {
            Parts::JobsOnRequest => global.load_config_with_jobs(needed.needs)?,
            _ => global.load_config(needed.needs)?,
        };
        config.check_folders()?;
        let daemon = Daemon::start(&config, Clock::system(), needed.parts).await?;
        let run = tokio::select! {
            run = follow_here(&daemon, order, needed.parts, global) => run.map(Some),
            signal = asked_to_end() => signal.map(|_| None),
        };
        daemon.stop().await;
        run
    })
}

/// Has `order` carried out by the daemon of this process, and gives its run when that has ended.
///
/// # Errors
/// When the order is not taken.
pub async fn follow_here(daemon: &Daemon, order: Order, parts: Parts, global: &Global) -> anyhow::Result<Run> {
    let id = daemon.operations.start(order, Reason::Command).await?;
    let missing = || anyhow::anyhow!("the run {id} is not on record any more");
    let mut run = daemon.operations.runs.get(&id).await?.ok_or_else(missing)?;
    let progress = Progress::of(&run.kind, global);
    while run.finished_at.is_none() {
        progress.set(run.progress.ended(), run.progress.total);
        run = daemon.operations.runs.get_news(&run, NEWS_WITHIN).await?.ok_or_else(missing)?;
    }
    if parts == Parts::JobsOnRequest {
        // A job only marks what is to be fetched; without a daemon nobody else would fetch it.
        daemon.until_caught_up().await?;
    }
    Ok(run)
}

/// Ends a command that had `run` carried out: complains of what failed, has what came of it told, and gives what the
/// program ends with. Of a run that a signal left behind nobody knows more than that.
///
/// # Errors
/// Those of `tell`.
pub fn finish(
    run: Option<&Run>,
    global: &Global,
    tell: impl FnOnce(&Run) -> anyhow::Result<()>,
) -> anyhow::Result<Exit> {
    if let Some(run) = run {
        complain(run, global)?;
        tell(run)?;
    } else {
        let code = Ending::Interrupted.word();
        say_error("interrupted before it was known what came of it", code, Exit::Interrupted, global)?;
    }
    Ok(exit(run))
}

/// Like [`finish`], of a run that is told in one `line`, unless it failed as a whole; to machines as it is.
///
/// # Errors
/// Those of stdout.
pub fn finish_with_line(run: Option<&Run>, global: &Global, line: impl FnOnce(&Run) -> String) -> anyhow::Result<Exit> {
    finish(run, global, |run| {
        let out = &mut streams::out();
        if global.json {
            writeln!(out, "{}", serde_json::json!(run))?;
        } else if run.message.is_none() {
            writeln!(out, "{}", line(run))?;
        }
        Ok(())
    })
}

/// What the end of `run` ends the program with; `None` is a run that a signal left behind.
fn exit(run: Option<&Run>) -> Exit {
    let Some(run) = run else { return Exit::Interrupted };
    match run.ending() {
        Some(Ending::Done) => Exit::Done,
        Some(Ending::Partly) => Exit::Partly,
        Some(Ending::Interrupted) => Exit::Interrupted,
        Some(Ending::Failed) => {
            // Nothing was done. Belvo's fault has a code of its own when every failure says so.
            let mut exits = run.progress.failed.keys().map(|code| Exit::of_code(code));
            match exits.next() {
                Some(exit @ (Exit::Credentials | Exit::RateLimited | Exit::Down))
                    if exits.all(|other| other == exit) =>
                {
                    exit
                }
                _ => Exit::Failed,
            }
        }
        Some(Ending::Code(code)) => Exit::of_code(code),
        // Whoever follows a run sees its end, and what was ordered is not passed over.
        Some(Ending::Skipped) | None => Exit::Failed,
    }
}

/// Says why a run failed, on stderr, when it did as a whole; for machines and of webhooks, when it did in part, too: people see
/// in the result of the others what of it failed.
///
/// # Errors
/// None: what cannot be said is not said.
fn complain(run: &Run, global: &Global) -> io::Result<()> {
    let Some((what, code)) = complaint(run) else { return Ok(()) };
    let is_told = global.json || run.message.is_some() || run.kind == Kind::Replay.name();
    if is_told { say_error(&what, code, exit(Some(run)), global) } else { Ok(()) }
}

fn say_error(what: &str, code: &str, exit: Exit, global: &Global) -> io::Result<()> {
    if global.json {
        writeln!(streams::err(), "{}", serde_json::json!({ "error": what, "code": code, "exit_code": exit as u8 }))
    } else {
        writeln!(streams::err(), "error: {what} ({code})")
    }
}

/// Why a run is not done, and the code of that.
fn complaint(run: &Run) -> Option<(String, &str)> {
    let outcome = run.outcome.as_deref().unwrap_or_default();
    if let Some(message) = &run.message {
        return Some((message.clone(), outcome));
    }
    if exit(Some(run)) == Exit::Done {
        return None;
    }
    let mut codes = run.progress.failed.keys();
    let code = match (codes.next(), codes.next()) {
        (Some(only), None) => only,
        _ => outcome,
    };
    let failures: Vec<_> = run.progress.failed.iter().map(|(code, count)| failure(code, *count)).collect();
    let what = match words::english(code) {
        _ if !failures.is_empty() => failures.join("; "),
        Some((what, advice)) => format!("{what}; {advice}"),
        None => "not all of it was done; the log says more".to_owned(),
    };
    Some((what, code))
}

/// What failed so often with `code`, and what to do about it.
pub fn failure(code: &str, count: u64) -> String {
    let stay = |what: &str, them: &str| {
        format!(
            "{count} {what} in the quarantine: `vinculo webhooks list --outcome quarantined` shows {them}; upgrade vinculo, or \
             mend who sends {them}, and replay {them} then"
        )
    };
    match words::english(code) {
        _ if code == "quarantined" && count == 1 => stay("webhook stays", "it"),
        _ if code == "quarantined" => stay("webhooks stay", "them"),
        Some((what, advice)) => format!("failed {count}: {code}: {what}; {advice}"),
        None => format!("failed {count}: {code}; the log says more"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runs;

    fn run(outcome: &str, failed: &[&str]) -> Run {
        let failed: BTreeMap<_, _> = failed.iter().map(|code| ((*code).to_owned(), 1)).collect();
        Run {
            id: "1".to_owned(),
            kind: "refresh".to_owned(),
            name: None,
            reason: "command".to_owned(),
            started_at: String::new(),
            finished_at: Some(String::new()),
            duration_ms: Some(0),
            outcome: Some(outcome.to_owned()),
            progress: runs::Progress { failed, ..runs::Progress::default() },
            message: None,
        }
    }

    #[test]
    fn every_run_that_is_not_done_says_why_and_what_to_do() {
        let said: Vec<_> = [
            run("done", &[]),
            run("partly", &["foreign_record", "paused_by_operator"]),
            run("failed", &["api_auth"]),
            run("failed", &["quarantined"]),
            run("interrupted", &[]),
            Run { message: Some("no room".to_owned()), ..run("disk_full", &[]) },
        ]
        .iter()
        .map(|run| complaint(run).map_or("nothing".to_owned(), |(what, code)| format!("{code}: {what}")))
        .collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
nothing
partly: failed 1: foreign_record: Belvo sent a record of another link; nothing of it is published; report it to Belvo with the request id; failed 1: paused_by_operator: an operator paused the link; press Resume on its page of the dashboard when it may be asked for again
api_auth: failed 1: api_auth: Belvo refuses the keys; check belvo.secret_id, belvo.secret_password and that they belong to belvo.base_url
quarantined: 1 webhook stays in the quarantine: `vinculo webhooks list --outcome quarantined` shows it; upgrade vinculo, or mend who sends it, and replay it then
interrupted: it was cut off by the end of the program; order it again if it still matters
disk_full: no room
"#);
    }

    #[test]
    fn a_run_that_did_nothing_failed_and_one_that_did_something_is_partly_done() {
        let ended = |outcome: &str, failed: &[&str]| exit(Some(&run(outcome, failed)));
        assert_eq!(ended("done", &[]), Exit::Done);
        assert_eq!(ended("partly", &["api_auth"]), Exit::Partly);
        assert_eq!(ended("failed", &["link_needs_user"]), Exit::Failed);
        assert_eq!(ended("failed", &["api_auth"]), Exit::Credentials);
        assert_eq!(ended("failed", &["unreachable", "timeout"]), Exit::Down);
        // Not every one of these is Belvo's fault, and these are not the same one.
        assert_eq!(ended("failed", &["api_auth", "link_needs_user"]), Exit::Failed);
        assert_eq!(ended("failed", &["rate_limited", "unreachable"]), Exit::Failed);
        assert_eq!(ended("disk_full", &[]), Exit::Failed);
        assert_eq!(exit(None), Exit::Interrupted);
    }
}
