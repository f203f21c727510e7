//! `vinculo jobs`: the schedule, and one job of it now.

use std::io::Write as _;

use serde_json::json;

use super::ordered::{self, Needed};
use super::table::Table;
use super::{Exit, Global, streams};
use crate::clock::Clock;
use crate::config::{ConfigErrors, Needs};
use crate::daemon::Parts;
use crate::operations::Order;
use crate::schedule::{self, view};
use crate::store::Readers;

/// What `jobs` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do [default: list]
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done with the jobs.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List them, with their next times and what came of each last
    List,
    /// Run one now
    Run(RunNow),
}

/// Which job to run.
#[derive(Debug, clap::Args)]
pub struct RunNow {
    /// The job
    #[arg(value_name = "NAME")]
    pub name: String,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    match &args.command {
        None | Some(Command::List) => list(global),
        Some(Command::Run(wish)) => run_now(&wish.name, global),
    }
}

fn list(global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let jobs = schedule::load(config.jobs_dir.as_deref()).map_err(ConfigErrors)?;
    let jobs = Readers::of(&config.state.path).read(|tx| view::list(tx, &jobs, Clock::system().now()))?;
    let out = &mut streams::out();
    if global.json {
        jobs.iter().try_for_each(|job| writeln!(out, "{}", json!(job)))?;
        return Ok(Exit::Done);
    }
    let columns = ["job", "action", "schedule", "timezone", "next", "last run", "outcome"];
    let mut table = Table::new(columns.map(|name| (name.to_owned(), false)));
    for job in jobs {
        let last = job.last_run.as_ref();
        table.push([
            Some(job.name),
            Some(job.action.to_owned()),
            Some(job.schedule),
            Some(job.timezone.to_owned()),
            Some(job.next.into_iter().next().unwrap_or_else(|| "off".to_owned())),
            Some(last.map_or_else(|| "never".to_owned(), |run| run.started_at.clone())),
            Some(last.map_or_else(String::new, |run| run.outcome.clone().unwrap_or_else(|| "running".to_owned()))),
        ]);
    }
    table.write(out)?;
    Ok(Exit::Done)
}

fn run_now(name: &str, global: &Global) -> anyhow::Result<Exit> {
    let needed = Needed { needs: Needs { belvo: true, webhook: false }, parts: Parts::JobsOnRequest };
    let run = ordered::carry_out(Order::Job(name.to_owned()), needed, global)?;
    ordered::finish_with_line(run.as_ref(), global, |run| format!("{name} ran and touched {}", run.progress.done))
}
