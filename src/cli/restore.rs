//! `vinculo restore`: a backup in the place of the state, without whoever was erased since, and the lake built from it.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::json;

use super::progress::Progress;
use super::{Exit, Global, ordered, streams, work};
use crate::clock::Clock;
use crate::config::Needs;
use crate::operations::Order;
use crate::restore;

/// What `restore` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    config.check_folders()?;
    let progress = Progress::of("restore", global);
    let restored = work::block_on(async { Ok(restore::restore(&config, &args.file, Clock::system().now()).await?) })?;
    drop(progress);
    // The lake is of the state that was replaced.
    let run = ordered::carry_out(Order::Rebuild, ordered::STATE_AND_LAKE, global).with_context(|| {
        let erased = restored.erased_again;
        format!(
            "the state of {} is restored, {erased} link(s) in it are erased again, and the lake is not built from it \
                 yet: `vinculo rebuild` does that",
            restored.made_at
        )
    })?;
    let published = run.as_ref().and_then(|run| run.progress.snapshot);
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{:#}", json!({ "restored": restored, "snapshot": published }))?;
    } else {
        writeln!(out, "restored the state of {}, change {}", restored.made_at, restored.state.change)?;
        writeln!(out, "{} link(s) in it had been erased since, and are gone again", restored.erased_again)?;
        published.iter().try_for_each(|snapshot| writeln!(out, "snapshot {snapshot:06} was built from it"))?;
    }
    ordered::finish(run.as_ref(), global, |_| Ok(()))
}
