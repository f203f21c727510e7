//! `vinculo refresh`: queues refreshes and runs them, with progress.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::{Exit, Global, ordered};
use crate::belvo::LinkId;
use crate::operations::{Links, Order};
use crate::resources::{self, Resource};
use crate::runs::{Progress, Run};

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
    let resources = args.resource.iter().filter_map(|name| Resource::by_name(name)).collect();
    let order = Order::Refresh { links: args.scope.links(), resources };
    let run = ordered::carry_out(order, ordered::BELVO, global)?;
    if let Some(run) = &run {
        ordered::complain(run, global)?;
        tell(run, global)?;
    }
    Ok(ordered::exit(run.as_ref()))
}

impl Scope {
    fn links(&self) -> Links {
        match self {
            Self { link: Some(link_id), .. } => Links::LinkId(link_id.as_str().to_owned()),
            Self { external_id: Some(external_id), .. } => Links::ExternalId(external_id.clone()),
            Self { older_than: Some(age), .. } => Links::OlderThanSeconds(age.as_secs()),
            _ => Links::All(true),
        }
    }
}

fn tell(run: &Run, global: &Global) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    let Progress { done, failed, .. } = &run.progress;
    if global.json {
        return writeln!(out, "{}", json!({ "refreshed": done, "failed": failed, "run": run.id }));
    }
    writeln!(out, "refreshed {done}")?;
    failed.iter().try_for_each(|(code, count)| writeln!(out, "failed {count}: {code}; the log says more"))
}
