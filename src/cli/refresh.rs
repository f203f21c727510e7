//! `vinculo refresh`: queues refreshes and runs them, with progress.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::{Exit, Global, ordered, streams};
use crate::clock::Clock;
use crate::config::Needs;
use crate::link_id::LinkId;
use crate::operations::{Links, Order};
use crate::recollect::{self, Estimate};
use crate::resources::{self, Resource};
use crate::runs::{Progress, Run};
use crate::store::Readers;

/// What `refresh` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which links
    #[command(flatten)]
    pub scope: Scope,
    /// Only this resource
    #[arg(long, value_name = "R", value_parser = PossibleValuesParser::new(resources::ALL.map(|resource| resource.name)))]
    pub resource: Option<String>,
    /// Let Belvo read the institution again first; each link is one call on its bill
    #[arg(long)]
    pub recollect: bool,
    /// Do not ask before many calls on the bill
    #[arg(long, requires = "recollect")]
    pub yes: bool,
}

/// Which links to refresh; exactly one way is given.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Scope {
    /// These links
    #[arg(long, value_name = "ID", num_args = 1..)]
    pub link: Vec<LinkId>,
    /// The links of these external ids
    #[arg(long, value_name = "X", num_args = 1..)]
    pub external_id: Vec<String>,
    /// Every tracked link
    #[arg(long)]
    pub all: bool,
    /// Every link whose data was not fetched for so long, such as 24h
    #[arg(long, value_name = "D", value_parser = humantime::parse_duration)]
    pub older_than: Option<Duration>,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let resources: Vec<_> = args.resource.iter().filter_map(|name| Resource::by_name(name)).collect();
    let links = args.scope.links();
    let order = if args.recollect {
        if let Some(exit) = (!args.yes).then(|| refusal(&links, &resources, global)).transpose()?.flatten() {
            return Ok(exit);
        }
        Order::Recollect { links, resources }
    } else {
        Order::Refresh { links, resources }
    };
    let run = ordered::carry_out(order, ordered::BELVO, global)?;
    ordered::finish(run.as_ref(), global, |run| Ok(tell(run, global)?))
}

/// What the command ends with when the operator does not want what `links` would put on the bill; `None` when they do.
/// One link is never asked about.
fn refusal(links: &Links, resources: &[&'static Resource], global: &Global) -> anyhow::Result<Option<Exit>> {
    if links.ids().is_some_and(|ids| ids.len() == 1) {
        return Ok(None);
    }
    let resources = if resources.is_empty() { &resources::ALL } else { resources };
    let config = global.load_config(Needs::default())?;
    let now = Clock::system().now();
    let Estimate { billed_calls, cooling, unfit } = Readers::of(&config.state.path).read(|tx| {
        let mut wanted: Vec<LinkId> = match links.ids() {
            Some(ids) => ids.iter().filter_map(|id| id.parse().ok()).collect(),
            None => links.tracked(tx, resources, now)?.into_iter().map(|(link_id, _)| link_id).collect(),
        };
        wanted.sort_unstable();
        wanted.dedup();
        recollect::estimate(tx, &wanted, now)
    })?;
    if billed_calls < 2 {
        return Ok(None);
    }
    streams::note(&format!("Belvo would read {billed_calls} links again: {billed_calls} calls on its bill"), global)?;
    if cooling + unfit > 0 {
        let left_out = format!("left out: {cooling} read minutes ago, {unfit} gone or in need of their user");
        streams::note(&left_out, global)?;
    }
    if !io::stdin().is_terminal() {
        super::tell(&anyhow!("nobody is there to agree: say --yes; nothing was done"), Exit::Usage, global.json);
        return Ok(Some(Exit::Usage));
    }
    write!(streams::err(), "Go on? [y/N] ")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    let agrees = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    Ok((!agrees).then_some(Exit::Interrupted))
}

impl Scope {
    fn links(&self) -> Links {
        match self {
            Self { older_than: Some(age), .. } => Links::OlderThanSeconds(age.as_secs()),
            Self { all: true, .. } => Links::All(true),
            Self { link, external_id, .. } if link.is_empty() => Links::ExternalIds(external_id.clone()),
            Self { link, .. } => Links::LinkIds(link.iter().map(|link_id| link_id.as_str().to_owned()).collect()),
        }
    }
}

fn tell(run: &Run, global: &Global) -> io::Result<()> {
    let out = &mut streams::out();
    let Progress { done, failed, .. } = &run.progress;
    if global.json {
        return writeln!(out, "{}", json!({ "refreshed": done, "failed": failed, "run": run.id }));
    }
    writeln!(out, "refreshed {done}")?;
    failed.iter().try_for_each(|(code, count)| writeln!(out, "{}", ordered::failure(code, *count)))
}
