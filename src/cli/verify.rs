//! `vinculo verify`: holds every published file and the state against what was written.

use std::io::Write as _;

use super::progress::Progress;
use super::{Exit, Global, streams};
use crate::config::Needs;
use crate::publish::integrity::Damage;
use crate::verify;

/// What `verify` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let progress = Progress::of("verify", global);
    let report = verify::check(&config.state, &config.lake.path, |done, total| progress.set(done, Some(total)))?;
    drop(progress);
    let out = &mut streams::out();
    let exit = if report.ok { Exit::Done } else { Exit::Damaged };
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(exit);
    }
    for Damage { file, code, what } in &report.lake.damage {
        writeln!(out, "{file}: {what} ({code})")?;
    }
    if report.unnamed() > 0 {
        writeln!(out, "and {} more bodies that cannot be opened", report.unnamed())?;
    }
    let (files, snapshots, bodies) = (report.lake.files, report.lake.snapshots, report.bodies_opened);
    match report.damaged() {
        0 => writeln!(out, "whole: {files} files of {snapshots} snapshots, and the state with its {bodies} bodies")?,
        damaged => writeln!(
            out,
            "{damaged} damaged, of {files} files of {snapshots} snapshots and the state: `vinculo rebuild` mends the lake, \
             `vinculo restore` the state"
        )?,
    }
    Ok(exit)
}
