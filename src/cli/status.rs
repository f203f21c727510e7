//! `vinculo status`: one line for people, a document for machines.

use std::io::{self, Write as _};

use super::{Exit, Global};
use crate::admin::status::Status;
use crate::clock::Clock;
use crate::config::Needs;

/// What `status` takes: nothing of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let status = Status::gather(&config.state.path, &config.lake.path, Clock::system().now())?;
    if let Some(note) = config.state.unkept_promise() {
        writeln!(io::stderr(), "warning: {note}")?;
    }
    let out = &mut io::stdout().lock();
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        writeln!(out, "{status}")?;
    }
    Ok(Exit::Done)
}
