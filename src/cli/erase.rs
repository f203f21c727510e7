//! `vinculo erase`: one link or person, everywhere.

use std::io::{self, Write as _};

use anyhow::Context;
use serde_json::json;

use super::{Exit, Global, work};
use crate::belvo::LinkId;
use crate::clock::Clock;
use crate::config::{Config, Needs};
use crate::erase::{Eraser, Plan, Subject, receipts_of};
use crate::sensitive::Pepper;

/// What `erase` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whom.
    #[command(flatten)]
    pub whom: Whom,
    /// Why, for the receipt: a ticket's number rather than a name
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub reason: String,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// One link or person.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// This link
    #[arg(long, value_name = "ID", value_parser = link_id)]
    pub link: Option<LinkId>,
    /// Every link of this external_id
    #[arg(long, value_name = "X")]
    pub external_id: Option<String>,
    /// Every link of the person with this person_key
    #[arg(long, value_name = "KEY")]
    pub person: Option<String>,
}

fn link_id(text: &str) -> Result<LinkId, &'static str> {
    text.parse().map_err(|_| "a link's id is a UUID")
}

impl Whom {
    /// The same for the library.
    pub fn subject(&self) -> anyhow::Result<Subject> {
        let link = self.link.clone().map(Subject::Link);
        let external_id = || self.external_id.clone().map(Subject::ExternalId);
        let person = || self.person.clone().map(Subject::Person);
        link.or_else(external_id).or_else(person).context("name a link, an external_id or a person")
    }
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    config.check_folders()?;
    let subject = args.whom.subject()?;
    work::block_on(async {
        let eraser = eraser(&config)?;
        let plan = eraser.plan(subject).await?;
        if args.dry_run {
            tell_plan(&plan, global)?;
            return Ok(Exit::Done);
        }
        eraser.resume().await?;
        let receipt = eraser.erase(plan, &args.reason).await?;
        let out = &mut io::stdout().lock();
        let files = receipts_of(&config.state.path, &receipt.erasure);
        if global.json {
            writeln!(out, "{:#}", json!({ "receipt": receipt, "files": files }))?;
        } else {
            writeln!(out, "{receipt}")?;
            files.iter().try_for_each(|file| writeln!(out, "kept in {}", file.display()))?;
        }
        Ok(Exit::Done)
    })
}

/// One for the state and lake of `config`, which no daemon holds.
fn eraser(config: &Config) -> anyhow::Result<Eraser> {
    let (store, publisher) = work::open(config)?;
    let pepper = config.pii.pepper.clone().map(Pepper::new);
    Ok(Eraser::new(store, publisher, pepper, &config.state.path, Clock::system()))
}

fn tell_plan(plan: &Plan, global: &Global) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    if global.json {
        return writeln!(out, "{}", serde_json::to_string_pretty(plan)?);
    }
    writeln!(out, "would erase {} link(s):", plan.links.len())?;
    plan.links.iter().try_for_each(|link| writeln!(out, "  {link}"))?;
    plan.rows.iter().try_for_each(|(table, rows)| writeln!(out, "  {rows:>8} row(s) of {table}"))?;
    writeln!(out, "would build the lake anew and drop {} snapshot(s)", plan.snapshots.len())?;
    plan.backups.iter().try_for_each(|made| writeln!(out, "backup to destroy: {}, made at {}", made.file, made.made_at))
}
