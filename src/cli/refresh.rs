//! `vinculo refresh`: queues refreshes and runs them, with progress.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use anyhow::bail;
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use super::work::{self, asked_to_end};
use super::{Exit, Global};
use crate::belvo::{LinkId, Meaning, meaning};
use crate::clock::{Clock, Timestamp};
use crate::config::Needs;
use crate::daemon::{Daemon, Parts};
use crate::queue::{self, Trigger};
use crate::resources::{self, Resource};
use crate::store::{self, Store, Tx, args};

/// Progress is looked at this often at most, because a look goes through everything that is wanted.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What `refresh` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which links
    #[command(flatten)]
    pub scope: Scope,
    /// Only this resource
    #[arg(long, value_name = "R", value_parser = PossibleValuesParser::new(resources::ALL.map(|resource| resource.name)))]
    pub resource: Option<String>,
}

/// Which links to refresh; exactly one is given.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Scope {
    /// This link
    #[arg(long, value_name = "ID")]
    pub link: Option<LinkId>,
    /// The links of this external id
    #[arg(long, value_name = "X")]
    pub external_id: Option<String>,
    /// Every tracked link
    #[arg(long)]
    pub all: bool,
    /// Every link whose data was not fetched for so long, such as 24h
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs { belvo: true, webhook: false })?;
    config.check_folders()?;
    let resources: Vec<&'static Resource> = match &args.resource {
        Some(name) => Resource::by_name(name).into_iter().collect(),
        None => resources::ALL.to_vec(),
    };
    work::block_on(async {
        let clock = Clock::system();
        let daemon = Daemon::start(&config, clock.clone(), Parts::WithoutListeners).await?;
        let wanted = mark(&daemon, &args.scope, &resources, clock.now()).await?;
        if wanted.is_empty() {
            daemon.stop().await;
            bail!("no tracked link fits: name one with --link, or let the daemon hear of them first");
        }
        let outcome = tokio::select! {
            outcome = follow(&daemon, &wanted) => Some(outcome?),
            signal = asked_to_end() => signal.map(|_| None)?,
        };
        let exit = match outcome {
            Some(outcome) => {
                daemon.until_published().await?;
                outcome.tell(global)?;
                outcome.exit()
            }
            None => Exit::Interrupted,
        };
        daemon.stop().await;
        Ok(exit)
    })
}

type Wanted = Vec<(LinkId, &'static Resource)>;

/// Marks what the operator asks for, and gives it.
async fn mark(
    daemon: &Daemon,
    scope: &Scope,
    resources: &[&'static Resource],
    now: Timestamp,
) -> anyhow::Result<Wanted> {
    let (scope, resources) = (scope.clone(), resources.to_vec());
    let wanted = daemon.store.write(move |tx| {
        let mut wanted = Vec::new();
        for resource in resources {
            for link_id in links(tx, &scope, resource, now)? {
                queue::mark(tx, &link_id, resource, Trigger::Operator, now)?;
                wanted.push((link_id, resource));
            }
        }
        Ok(wanted)
    });
    let wanted = wanted.await?;
    daemon.queue.announce();
    Ok(wanted)
}

fn links(tx: &Tx<'_>, scope: &Scope, resource: &Resource, now: Timestamp) -> Result<Vec<LinkId>, store::Error> {
    match scope {
        Scope { link: Some(link_id), .. } => {
            crate::links::note_wish(tx, link_id, now)?;
            Ok(vec![link_id.clone()])
        }
        Scope { external_id: Some(external_id), .. } => {
            tx.all("SELECT link_id FROM links WHERE external_id = $1", args![external_id], |row| row.link_id(0))
        }
        Scope { older_than: Some(age), .. } => tx.all(
            "SELECT l.link_id FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id AND f.resource = $1 \
             WHERE f.last_fetched_at IS NULL OR f.last_fetched_at <= $2",
            args![resource.name, now.as_micros() - i64::try_from(age.as_micros()).unwrap_or(i64::MAX)],
            |row| row.link_id(0),
        ),
        _ => crate::links::all(tx),
    }
}

/// What the refreshes came to.
#[derive(Debug, Default)]
struct Outcome {
    done: usize,
    /// How many failed, by code.
    failed: BTreeMap<String, usize>,
}

/// Waits until each refresh has come to something: an answer, or a first failure.
async fn follow(daemon: &Daemon, wanted: &Wanted) -> anyhow::Result<Outcome> {
    let draw = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(wanted.len() as u64), draw);
    let mut settled = daemon.settled();
    loop {
        settled.mark_unchanged();
        let (outcome, waiting) = look(&daemon.store, wanted.clone()).await?;
        bar.set_position((wanted.len() - waiting) as u64);
        if waiting == 0 {
            bar.finish_and_clear();
            return Ok(outcome);
        }
        settled.changed().await?;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn look(store: &Store, wanted: Wanted) -> Result<(Outcome, usize), store::Error> {
    store
        .read(move |tx| {
            let (mut outcome, mut waiting) = (Outcome::default(), 0);
            for (link_id, resource) in &wanted {
                let state = tx.one(
                    "SELECT coalesce(last_error_code, blocked_reason), due_at IS NULL AND lease IS NULL, attempts > 0 FROM refreshes \
                     WHERE link_id = $1 AND resource = $2",
                    args![link_id, resource.name],
                    |row| Ok((row.opt_text(0)?, row.int(1)? == 1, row.int(2)? == 1)),
                )?;
                match state {
                    Some((Some(code), is_idle, has_failed)) if is_idle || has_failed => {
                        *outcome.failed.entry(code).or_default() += 1;
                    }
                    Some((_, true, _)) => outcome.done += 1,
                    _ => waiting += 1,
                }
            }
            Ok((outcome, waiting))
        })
        .await
}

impl Outcome {
    fn tell(&self, global: &Global) -> io::Result<()> {
        let out = &mut io::stdout().lock();
        if global.json {
            return writeln!(out, "{}", json!({ "refreshed": self.done, "failed": self.failed }));
        }
        writeln!(out, "refreshed {}", self.done)?;
        self.failed.iter().try_for_each(|(code, count)| match meaning(code) {
            Some(Meaning { what, advice, .. }) => writeln!(out, "failed {count}: {code}: {what}; {advice}"),
            None => writeln!(out, "failed {count}: {code}; the log says more"),
        })
    }

    fn exit(&self) -> Exit {
        if self.failed.is_empty() {
            return Exit::Done;
        }
        let exits: Vec<Exit> = self.failed.keys().map(|code| Exit::of_code(code)).collect();
        match exits[..] {
            // What every link has in common is no matter of the links.
            [exit, ..] if self.done == 0 && exit != Exit::Failed && exits.iter().all(|other| *other == exit) => exit,
            _ => Exit::Partly,
        }
    }
}
