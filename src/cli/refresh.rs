//! `vinculo refresh`: queues refreshes and runs them, with progress.

use std::time::Duration;

use clap::builder::PossibleValuesParser;

use crate::belvo::LinkId;
use crate::resources;

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
#[derive(Debug, clap::Args)]
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
