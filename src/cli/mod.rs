//! The command line: one file per command, one list of commands, and what every command shares.
//!
//! *Promises*: results go to stdout, progress and logs to stderr; an error says what happened, to what, and what to do
//! next; and the exit code is one of [`Exit`].

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;

use crate::config::{Config, ConfigErrors, Needs};
use crate::schedule;

pub mod backup;
pub mod check;
pub mod completions;
pub mod demo;
pub mod docs;
pub mod doctor;
pub mod erase;
pub mod exit;
pub mod features;
pub mod init;
pub mod jobs;
pub mod links;
pub mod log;
pub mod man;
pub mod ordered;
pub mod progress;
pub mod publish;
pub mod rebuild;
pub mod refresh;
pub mod restore;
pub mod serve;
pub mod simulate;
pub mod sql;
pub mod status;
mod streams;
pub mod subject;
pub mod table;
#[cfg(feature = "otlp")]
pub mod traces;
pub mod verify;
pub mod webhooks;
pub mod widget;
pub mod work;

pub use exit::Exit;

/// Keeps Brazilian employment data from Belvo fresh in a lake that credit-risk analysts query.
#[derive(Debug, Parser)]
#[command(name = "vinculo", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The configuration [default: ./vinculo.toml, then /etc/vinculo/vinculo.toml]
    #[arg(long, value_name = "FILE", global = true, env = "VINCULO_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Print JSON for machines
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as `vinculo::fetch=debug`
    #[arg(
        long,
        value_name = "FILTER",
        global = true,
        env = "VINCULO_LOG_LEVEL",
        hide_env_values = true,
        default_value = "info"
    )]
    #[arg(value_parser = log::check_filter)]
    pub log_level: String,
    /// How to log [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", global = true, env = "VINCULO_LOG_FORMAT", hide_env_values = true)]
    pub log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Every command, in the order of the help.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a commented vinculo.toml and jobs/
    Init(init::Args),
    /// Build a lake of simulated people, offline and without an account
    Demo(demo::Args),
    /// Run the daemon
    Serve(serve::Args),
    /// Run a fake Belvo
    Simulate(simulate::Args),
    /// Fetch what Belvo holds of some links now
    Refresh(refresh::Args),
    /// Publish what changed
    Publish(publish::Args),
    /// Build the lake anew from the record store
    Rebuild(rebuild::Args),
    /// Hold every published file and the state against what was written
    Verify(verify::Args),
    /// Compute credit features as of a date, explain them, keep what a decision used
    Features(features::Args),
    /// List, show, reconcile or delete the tracked links
    Links(links::Args),
    /// Open Belvo's widget for a user, to connect or to give a link new credentials
    Widget(widget::Args),
    /// List the jobs, or run one now
    Jobs(jobs::Args),
    /// List, show or replay the webhooks that came
    Webhooks(webhooks::Args),
    /// Run SQL on the published tables
    Sql(sql::Args),
    /// Erase one link or person, everywhere
    Erase(erase::Args),
    /// Print everything held on one link or person
    Subject(subject::Args),
    /// Print what every table and column means
    Docs(docs::Args),
    /// Parse config, jobs and schemas, and print when each job runs next
    Check(check::Args),
    /// Look for what is wrong, here and outside, and say what mends it
    Doctor(doctor::Args),
    /// Tell what is tracked, waiting, failing and published
    Status(status::Args),
    /// Copy the state into one file, also while a daemon runs
    Backup(backup::Args),
    /// Put a backup in the place of the state
    Restore(restore::Args),
    /// Print the completions of a shell
    Completions(completions::Args),
    /// Print the manual page
    Man(man::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let Cli { global, command } = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    let _log = log::start(&global);
    let result = match command {
        Command::Init(args) => init::run(&args, &global),
        Command::Demo(args) => demo::run(&args, &global),
        Command::Serve(args) => serve::run(&args, &global),
        Command::Simulate(args) => simulate::run(&args, &global),
        Command::Refresh(args) => refresh::run(&args, &global),
        Command::Publish(args) => publish::run(&args, &global),
        Command::Rebuild(args) => rebuild::run(&args, &global),
        Command::Verify(args) => verify::run(&args, &global),
        Command::Features(args) => features::run(&args, &global),
        Command::Links(args) => links::run(&args, &global),
        Command::Widget(args) => widget::run(&args, &global),
        Command::Jobs(args) => jobs::run(&args, &global),
        Command::Webhooks(args) => webhooks::run(&args, &global),
        Command::Sql(args) => sql::run(&args, &global),
        Command::Erase(args) => erase::run(&args, &global),
        Command::Subject(args) => subject::run(&args, &global),
        Command::Docs(args) => docs::run(&args, &global),
        Command::Check(args) => check::run(&args, &global),
        Command::Doctor(args) => doctor::run(&args, &global),
        Command::Status(args) => status::run(&args, &global),
        Command::Backup(args) => backup::run(&args, &global),
        Command::Restore(args) => restore::run(&args, &global),
        Command::Completions(args) => completions::run(&args, &global),
        Command::Man(args) => man::run(&args, &global),
    };
    match result {
        Ok(exit) => exit.into(),
        // Whoever reads along has seen enough, as in `vinculo sql … | head`; others write to `streams`.
        Err(error) if is_closed_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            let exit = Exit::of(&error);
            tell(&error, exit, global.json);
            exit.into()
        }
    }
}

impl Global {
    /// The configuration that this command works with.
    ///
    /// # Errors
    /// Every mistake in it at once.
    pub fn load_config(&self, needs: Needs) -> Result<Config, ConfigErrors> {
        Config::load(self.config.as_deref(), environment(), &[], needs)
    }

    /// The same for a command that runs jobs, which are read too.
    ///
    /// # Errors
    /// Every mistake in it and in the jobs at once.
    pub fn load_config_with_jobs(&self, needs: Needs) -> Result<Config, ConfigErrors> {
        let (config, mut mistakes) = Config::examine(self.config.as_deref(), environment(), &[], needs);
        if let Err(wrong) = schedule::load(config.jobs_dir.as_deref()) {
            mistakes.extend(wrong);
        }
        ConfigErrors::check(mistakes).map(|()| config)
    }
}

/// The environment; text that is not Unicode is replaced, so that a variable of somebody else does no harm.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Ends the program as a wrong command line does, or with the help that was asked for.
fn refuse(error: &clap::Error) -> ! {
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        tell(&anyhow::anyhow!(mistake(&error.to_string())), Exit::Usage, true);
        std::process::exit(Exit::Usage as i32);
    }
    error.exit()
}

/// What is wrong with a command line, in one line, of the text that tells it: what comes after is how to write it.
fn mistake(text: &str) -> String {
    let lines = text.trim_start_matches("error: ").lines().map(str::trim);
    lines.take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// The error and its causes, each once: some say themselves what they came from.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

fn tell(error: &anyhow::Error, exit: Exit, is_json: bool) {
    use io::Write as _;
    let text = told(error);
    let line =
        if is_json { json!({ "error": text, "exit_code": exit as u8 }).to_string() } else { format!("error: {text}") };
    // Nobody is left to tell when this fails.
    let _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_told_in_one_line_with_all_that_is_wrong() {
        let wrong = Cli::command().try_get_matches_from(["vinculo", "refresh"]).unwrap_err().to_string();
        let told = mistake(&wrong);
        assert!(told.starts_with("the following required arguments were not provided: <--"), "{told}");
        assert!(!told.contains('\n') && !told.contains("Usage"), "{told}");
    }

    #[test]
    fn a_cause_that_was_told_is_not_told_again() {
        let missing = || io::Error::from_raw_os_error(2);
        let error = anyhow::Error::from(crate::backup::Error::File { path: "nofile".into(), source: missing() });
        assert_eq!(told(&error), "nofile cannot be used: No such file or directory (os error 2)");
        let error = anyhow::Error::from(missing()).context("the ledger cannot be used");
        assert_eq!(told(&error), "the ledger cannot be used: No such file or directory (os error 2)");
    }

    #[test]
    fn every_command_says_what_it_does() {
        let help = Cli::command().render_help().to_string();
        insta::assert_snapshot!(help, @r#"
Keeps Brazilian employment data from Belvo fresh in a lake that credit-risk analysts query

Usage: vinculo [OPTIONS] <COMMAND>

Commands:
  init         Write a commented vinculo.toml and jobs/
  demo         Build a lake of simulated people, offline and without an account
  serve        Run the daemon
  simulate     Run a fake Belvo
  refresh      Fetch what Belvo holds of some links now
  publish      Publish what changed
  rebuild      Build the lake anew from the record store
  verify       Hold every published file and the state against what was written
  features     Compute credit features as of a date, explain them, keep what a decision used
  links        List, show, reconcile or delete the tracked links
  widget       Open Belvo's widget for a user, to connect or to give a link new credentials
  jobs         List the jobs, or run one now
  webhooks     List, show or replay the webhooks that came
  sql          Run SQL on the published tables
  erase        Erase one link or person, everywhere
  subject      Print everything held on one link or person
  docs         Print what every table and column means
  check        Parse config, jobs and schemas, and print when each job runs next
  doctor       Look for what is wrong, here and outside, and say what mends it
  status       Tell what is tracked, waiting, failing and published
  backup       Copy the state into one file, also while a daemon runs
  restore      Put a backup in the place of the state
  completions  Print the completions of a shell
  man          Print the manual page
  help         Print this message or the help of the given subcommand(s)

Options:
  -h, --help     Print help (see more with '--help')
  -V, --version  Print version

Global options:
      --config <FILE>        The configuration [default: ./vinculo.toml, then
                             /etc/vinculo/vinculo.toml] [env: VINCULO_CONFIG]
      --json                 Print JSON for machines
      --log-level <FILTER>   What to log to stderr: error, warn, info, debug, trace, or a filter
                             such as `vinculo::fetch=debug` [env: VINCULO_LOG_LEVEL] [default: info]
      --log-format <FORMAT>  How to log [default: text on a terminal, else json] [env:
                             VINCULO_LOG_FORMAT] [possible values: text, json]
"#);
    }
}
