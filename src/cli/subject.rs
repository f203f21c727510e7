//! `vinculo subject`: everything held on one link or person, as JSON. That it was read out is in the audit.

use std::io::Write as _;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::erase::Whom;
use super::sql::{self, Form};
use super::{Exit, Global, streams, work};
use crate::admin::client::Client;
use crate::admin::v1::exports::Export;
use crate::clock::Clock;
use crate::config::{Config, Needs};
use crate::database::{self, quoted};
use crate::sensitive::Pepper;
use crate::store::{Readers, Store};
use crate::{audit, features, schema, subject};

/// What `subject` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Whom.
    #[command(flatten)]
    pub whom: Whom,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let readers = Readers::configured(&config.state);
    let pepper = config.pii.pepper.clone().map(Pepper::new);
    let subject = args.whom.subject()?;
    let held = subject::held(&readers, &subject, pepper.as_ref())?;
    let lake = published(&config.lake.path, &held.links)?;
    // Before anything is told. Nobody reads a person out without a line that says so.
    let export = Export { asked_for: subject.kind().name().to_owned(), links: held.links.clone() };
    work::block_on(note(&config, export))?;
    let document = json!({ "links": held.links, "state": held.tables, "lake": lake });
    writeln!(streams::out(), "{document:#}")?;
    Ok(Exit::Done)
}

/// Has the daemon that holds the state note the export, or does it here.
async fn note(config: &Config, export: Export) -> anyhow::Result<()> {
    if let Some(daemon) = Client::find(config).await? {
        return Ok(daemon.note_export(&export).await?);
    }
    let Export { asked_for, links } = export;
    let links = links.iter().map(|link| link.parse()).collect::<Result<Vec<_>, _>>()?;
    let (store, now) = (Store::configured(&config.state)?, Clock::system().now());
    store.write(move |tx| audit::note_export(tx, now, &asked_for, &links)).await?;
    Ok(())
}

/// The rows of the links in each published table.
fn published(lake: &Path, links: &[String]) -> anyhow::Result<Map<String, Value>> {
    let mut tables = Map::new();
    if links.is_empty() || !lake.join(database::FILE).exists() {
        return Ok(tables);
    }
    let names: Vec<String> = links.iter().map(|link| quoted(link)).collect();
    let of_links = |table: &&schema::Table| table.columns.iter().any(|column| column.name == "link_id");
    let of_links = schema::get().tables.iter().filter(of_links).map(|table| table.name.as_str());
    for table in of_links.chain([features::TABLE]) {
        let question = format!("SELECT * FROM {table} WHERE link_id IN ({})", names.join(", "));
        let mut answer = Vec::new();
        sql::query(lake, &question, Form::Json, &mut answer)?;
        let rows =
            String::from_utf8_lossy(&answer).lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        tables.insert(table.to_owned(), rows.into());
    }
    Ok(tables)
}
