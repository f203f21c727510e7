//! `vinculo erase`: one link or person, everywhere.

use std::io::Write as _;

use anyhow::Context;
use serde_json::{Value, json};

use super::{Exit, Global, ordered, streams};
use crate::backup;
use crate::config::Needs;
use crate::erase::{Plan, plan, receipts_of};
use crate::link_id::LinkId;
use crate::operations::{Erasure, Order};
use crate::publish::{Lake, OwnLake};
use crate::sensitive::Pepper;
use crate::store::{self, Readers};
use crate::subject::Subject;

/// What `erase` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whom.
    #[command(flatten)]
    pub whom: Whom,
    /// Why, for the receipt: a ticket's number rather than a name
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub reason: String,
    /// Delete the links at Belvo too
    #[arg(long)]
    pub remote: bool,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
}

/// One link or person.
#[derive(Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// This link
    #[arg(long, value_name = "ID")]
    pub link: Option<LinkId>,
    /// Every link of this external id
    #[arg(long, value_name = "X")]
    pub external_id: Option<String>,
    /// Every link of the person with this key, as in `links.person_key`
    #[arg(long, value_name = "KEY")]
    pub person: Option<String>,
}

impl std::fmt::Debug for Whom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Whom(…)")
    }
}

impl Whom {
    /// The same for the library.
    ///
    /// # Errors
    /// When nobody is named, which the command line refuses before.
    pub fn subject(&self) -> anyhow::Result<Subject> {
        let link = self.link.clone().map(Subject::Link);
        let external_id = || self.external_id.clone().map(Subject::ExternalId);
        let person = || self.person.clone().map(Subject::Person);
        link.or_else(external_id).or_else(person).context("name a link, an external_id or a person")
    }
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let subject = args.whom.subject()?;
    if args.dry_run {
        return tell_plan(subject, global);
    }
    let needed = if args.remote { ordered::BELVO } else { ordered::STATE_AND_LAKE };
    let order = Order::Erase(Erasure { subject, reason: args.reason.clone(), is_remote: args.remote });
    let run = ordered::carry_out(order, needed, global)?;
    ordered::finish(run.as_ref(), global, |run| {
        if let (None, Some(erasure)) = (&run.message, &run.name) {
            let config = global.load_config(Needs::default())?;
            let files @ [document, page] = &receipts_of(&config.state.path, erasure);
            let read = |path: &std::path::Path| {
                std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
            };
            let out = &mut streams::out();
            if global.json {
                let receipt: Value = serde_json::from_str(&read(document)?)?;
                writeln!(out, "{:#}", json!({ "receipt": receipt, "files": files }))?;
            } else {
                writeln!(out, "{}", read(page)?)?;
                files.iter().try_for_each(|file| writeln!(out, "kept in {}", file.display()))?;
            }
        }
        Ok(())
    })
}

/// Says what would go, also while a daemon runs.
fn tell_plan(subject: Subject, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let pepper = config.pii.pepper.clone().map(Pepper::new);
    let (readers, lake) = (Readers::configured(&config.state), Lake::look(&config.lake.path));
    let mut plan: Plan = readers.read(|tx| plan(tx, subject, pepper.as_ref()))?;
    let own = readers.read::<_, store::Error>(|tx| OwnLake::of(tx, &lake))?;
    own.is_in(&lake)?;
    plan.snapshots = lake.all()?;
    plan.backups = backup::made(&config.state.path);
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(Exit::Done);
    }
    writeln!(out, "would erase {} link(s):", plan.links.len())?;
    plan.links.iter().try_for_each(|link| writeln!(out, "  {link}"))?;
    plan.rows.iter().try_for_each(|(table, rows)| writeln!(out, "  {rows:>8} row(s) of {table}"))?;
    writeln!(out, "would build the lake anew and drop {} snapshot(s)", plan.snapshots.len())?;
    for made in &plan.backups {
        writeln!(out, "backup to destroy: {}, made at {}", made.file, made.made_at)?;
    }
    Ok(Exit::Done)
}
