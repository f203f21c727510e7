//! `vinculo backup`: the state in one file, also while a daemon runs.

use std::io::Write as _;
use std::path::PathBuf;

use super::progress::Progress;
use super::{Exit, Global, streams};
use crate::backup;
use crate::clock::Clock;
use crate::config::Needs;

/// What `backup` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The new file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let progress = Progress::of("backup", global);
    let made = backup::make(&config.state, &args.file, Clock::system().now())?;
    drop(progress);
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&made)?)?;
    } else {
        writeln!(out, "wrote {}, {} bytes, as of change {}", made.file, made.bytes, made.state.change)?;
        writeln!(out, "it holds no key: keep state.encryption_key and pii.pepper elsewhere, or it cannot be read")?;
    }
    Ok(Exit::Done)
}
