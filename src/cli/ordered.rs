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
use crate::runs::{Reason, Run};

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

/// What the end of `run` ends the program with; `None` is a run that a signal left behind.
pub fn exit(run: Option<&Run>) -> Exit {
    let Some(run) = run else { return Exit::Interrupted };
    match run.outcome.as_deref() {
        Some("done") => Exit::Done,
        Some("partly") => Exit::Partly,
        Some("interrupted") => Exit::Interrupted,
        Some("failed") => {
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
        Some(code) => Exit::of_code(code),
        None => Exit::Failed,
    }
}

/// Says why a run failed, on stderr, when it did as a whole.
///
/// # Errors
/// Those of stderr.
pub fn complain(run: &Run, global: &Global) -> io::Result<()> {
    let Some(message) = &run.message else { return Ok(()) };
    let code = run.outcome.as_deref().unwrap_or_default();
    if global.json {
        let exit = exit(Some(run)) as u8;
        writeln!(streams::err(), "{}", serde_json::json!({ "error": message, "code": code, "exit_code": exit }))
    } else {
        writeln!(streams::err(), "error: {message} ({code})")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runs;

    #[test]
    fn a_run_that_did_nothing_failed_and_one_that_did_something_is_partly_done() {
        let ended = |outcome: &str, failed: &[&str]| {
            let failed: BTreeMap<_, _> = failed.iter().map(|code| ((*code).to_owned(), 1)).collect();
            let run = Run {
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
            };
            exit(Some(&run))
        };
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
