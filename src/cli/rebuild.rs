//! `vinculo rebuild`: makes the lake anew from the record store, whatever happened to it.

use super::{Exit, Global, publish, work};
use crate::config::Needs;
use crate::publish::{Scope, verify};

/// What `rebuild` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let published = work::publish(&config, Scope::Everything)?;
    for snapshot in verify::drop_damaged(&config.lake.path)? {
        tracing::warn!(code = "damaged_snapshot", snapshot, "an older snapshot was damaged and is gone");
    }
    publish::tell(published.as_ref(), global)?;
    Ok(Exit::Done)
}
