//! `vinculo completions`: what a shell completes, for packagers.

use std::io::Write as _;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Exit, Global, streams};

/// What `completions` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    pub shell: Shell,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    // Into memory first: the generator panics on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vinculo", &mut script);
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::json!({ "script": String::from_utf8_lossy(&script) }))?;
    } else {
        out.write_all(&script)?;
    }
    Ok(Exit::Done)
}
