//! `vinculo publish`: makes what changed visible to readers.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context;

use super::{Exit, Global, ordered, streams};
use crate::config::Needs;
use crate::operations::Order;
use crate::publish::{Lake, Manifest};

/// What `publish` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    publish(Order::Publish, global)
}

/// Has `order` carried out, and says what is visible then.
pub(super) fn publish(order: Order, global: &Global) -> anyhow::Result<Exit> {
    let run = ordered::carry_out(order, ordered::STATE_AND_LAKE, global)?;
    ordered::finish(run.as_ref(), global, |run| {
        if run.message.is_none() {
            let lake = global.load_config(Needs::default())?.lake.path;
            tell(run.progress.snapshot.map(|snapshot| manifest(&lake, snapshot)).transpose()?.as_ref(), global)?;
        }
        Ok(())
    })
}

fn manifest(lake: &Path, snapshot: u32) -> anyhow::Result<Manifest> {
    let lake = Lake::look(lake);
    let unreadable = || format!("the manifest in {} cannot be read", lake.folder(snapshot).display());
    lake.manifest(snapshot).with_context(unreadable)
}

/// Says what is visible now.
fn tell(published: Option<&Manifest>, global: &Global) -> io::Result<()> {
    let out = &mut streams::out();
    match published {
        manifest if global.json => writeln!(out, "{}", serde_json::to_string_pretty(&manifest)?),
        None => writeln!(out, "nothing changed since the last snapshot"),
        Some(manifest) => {
            writeln!(out, "snapshot {:06}", manifest.snapshot)?;
            manifest.tables.iter().try_for_each(|table| writeln!(out, "  {:<18} {:>12} rows", table.name, table.rows))
        }
    }
}
