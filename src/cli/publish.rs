//! `vinculo publish`: makes what changed visible to readers.

use std::io::{self, Write as _};

use super::{Exit, Global, work};
use crate::config::Needs;
use crate::publish::{Manifest, Scope};

/// What `publish` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let published = work::publish(&config, Scope::Changed)?;
    tell(published.as_ref(), global)?;
    Ok(Exit::Done)
}

/// Says what is visible now.
pub(super) fn tell(published: Option<&Manifest>, global: &Global) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    match published {
        manifest if global.json => writeln!(out, "{}", serde_json::to_string_pretty(&manifest)?),
        None => writeln!(out, "nothing changed since the last snapshot"),
        Some(manifest) => {
            writeln!(out, "snapshot {:06}", manifest.snapshot)?;
            manifest.tables.iter().try_for_each(|table| writeln!(out, "  {:<18} {:>12} rows", table.name, table.rows))
        }
    }
}
