//! `vinculo status`: one line for people, a document for machines.

use std::io::Write as _;

use super::{Exit, Global, streams, work};
use crate::admin::client::{Client, Live};
use crate::admin::status::Status;
use crate::clock::Clock;
use crate::config::{Config, Needs};

/// What `status` takes: nothing of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let now = Clock::system().now();
    let mut status = Status::gather(&config.state.path, &config.lake.path, now)?;
    status.reference = config.lake.reference.expiries();
    for expiry in status.reference.iter().filter(|expiry| expiry.is_near(now)) {
        let (table, until) = (expiry.table, expiry.valid_to);
        let mend = "put the next one into reference.dir, or features that need it are NULL";
        streams::note(&format!("warning: {table} knows the law until {until}; {mend}"), global)?;
    }
    // Only the daemon knows; without it, or without its token, the rest is told all the same.
    if let Some(live) = work::block_on(async { Ok(ask_daemon(&config).await) })? {
        (status.budget, status.problems) = (live.budget, live.problems);
    }
    if let Some(note) = config.state.unkept_promise() {
        streams::note(&format!("warning: {note}"), global)?;
    }
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        writeln!(out, "{status}")?;
    }
    Ok(Exit::Done)
}

async fn ask_daemon(config: &Config) -> Option<Live> {
    Client::find(config).await.ok().flatten()?.live().await.ok()
}
