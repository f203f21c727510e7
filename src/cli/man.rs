//! `vinculo man`: the manual page, for packagers.

use std::io::Write as _;

use clap::CommandFactory;
use clap_mangen::Man;

use super::{Cli, Exit, Global, streams};

/// What `man` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The command whose page is wanted, such as `refresh`; the program's own when absent
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let mut program = Cli::command();
    program.build();
    let page = match &args.command {
        None => program,
        Some(name) => {
            let command = program.find_subcommand(name).cloned();
            let Some(command) = command else {
                writeln!(streams::err(), "error: there is no command {name}: `vinculo help` lists them")?;
                return Ok(Exit::Usage);
            };
            command
        }
    };
    // Into memory first, so that a closed pipe is an error like every other.
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::json!({ "page": String::from_utf8_lossy(&text) }))?;
    } else {
        out.write_all(&text)?;
    }
    Ok(Exit::Done)
}
