//! `vinculo webhooks`: the inbound log and its quarantine.

use std::io::Write as _;

use anyhow::bail;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use super::table::Table;
use super::{Exit, Global, ordered, streams};
use crate::admin::v1::PAGE;
use crate::config::Needs;
use crate::link_id::LinkId;
use crate::operations::{Order, Replay};
use crate::store::Readers;
use crate::webhook::log::{self, Filter, OUTCOMES};

/// What `webhooks` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do [default: list]
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done with the webhooks that came.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List them, the newest first
    List(List),
    /// Show one, its body without anything personal
    Show(Show),
    /// Read one again, or all in the quarantine [default: all]
    Replay(Again),
}

/// Which webhooks to list.
#[derive(Debug, Default, clap::Args)]
pub struct List {
    /// Only those of this type, such as EMPLOYMENTS
    #[arg(long = "type", value_name = "T")]
    pub webhook_type: Option<String>,
    /// Only those with this outcome
    #[arg(long, value_name = "O", value_parser = PossibleValuesParser::new(OUTCOMES))]
    pub outcome: Option<String>,
    /// Only those of this link
    #[arg(long, value_name = "ID")]
    pub link: Option<LinkId>,
    /// At most so many [default: 100]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only those that came before this number
    #[arg(long, value_name = "SEQ")]
    pub after: Option<i64>,
}

/// Which webhook to show.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Its number
    #[arg(value_name = "SEQ")]
    pub seq: i64,
}

/// Which webhooks to read again; all in the quarantine, unless one is named.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Again {
    /// The one with this number
    #[arg(value_name = "SEQ")]
    pub seq: Option<i64>,
    /// All in the quarantine
    #[arg(long)]
    pub quarantined: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    match &args.command {
        None => list(&List::default(), global),
        Some(Command::List(wish)) => list(wish, global),
        Some(Command::Show(wish)) => show(wish.seq, global),
        Some(Command::Replay(wish)) => replay(wish.seq.map_or(Replay::Quarantined, Replay::One), global),
    }
}

fn list(wish: &List, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let (webhook_type, outcome) = (wish.webhook_type.clone(), wish.outcome.clone());
    let filter = Filter { webhook_type, outcome, link: wish.link.clone() };
    let limit = wish.limit.unwrap_or(PAGE);
    let (entries, next) = Readers::configured(&config.state).read(|tx| log::list(tx, &filter, wish.after, limit))?;
    let out = &mut streams::out();
    if global.json {
        entries.iter().try_for_each(|entry| writeln!(out, "{}", json!(entry)))?;
    } else {
        let columns = [
            ("seq", true),
            ("received_at", false),
            ("type", false),
            ("code", false),
            ("link_id", false),
            ("outcome", false),
            ("reason", false),
        ];
        let mut table = Table::new(columns.map(|(name, is_number)| (name.to_owned(), is_number)));
        for entry in &entries {
            table.push([
                Some(entry.seq.to_string()),
                Some(entry.received_at.clone()),
                Some(entry.webhook_type.clone().unwrap_or_default()),
                Some(entry.webhook_code.clone().unwrap_or_default()),
                Some(entry.link_id.clone().unwrap_or_default()),
                Some(entry.outcome.clone()),
                Some(entry.reason.clone().unwrap_or_default()),
            ]);
        }
        table.write(out)?;
    }
    if let Some(next) = next {
        streams::note(&format!("there are more: --after {next} shows them"), global)?;
    }
    Ok(Exit::Done)
}

fn show(seq: i64, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let Some((webhook, body)) = Readers::configured(&config.state).read(|tx| log::show(tx, seq))? else {
        bail!("there is no webhook {seq} in the log: `vinculo webhooks list` shows them");
    };
    let document = json!({ "webhook": webhook, "body": body });
    writeln!(streams::out(), "{}", serde_json::to_string_pretty(&document)?)?;
    Ok(Exit::Done)
}

fn replay(which: Replay, global: &Global) -> anyhow::Result<Exit> {
    let run = ordered::carry_out(Order::Replay(which), ordered::STATE_AND_LAKE, global)?;
    ordered::finish_with_line(run.as_ref(), global, |run| {
        let left: u64 = run.progress.failed.values().sum();
        format!("{} understood, {left} still in the quarantine", run.progress.done)
    })
}
