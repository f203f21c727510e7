//! Everything that is held on one person.
//!
//! *Takes* a link, an `external_id` or a person's key. *Gives* the rows of every table of the state that name the links,
//! each body opened, and the webhooks in the quarantine that name them in a place of their own. *Promises* nobody else's
//! rows. *Not here*: what of it is published, which is SQL on the lake, and the line in the audit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::erase::{Error, Subject, own_external_ids, unnamed_webhooks};
use crate::records::unpack;
use crate::sensitive::Pepper;
use crate::store::{self, Cell, FrozenPlace, Readers, Tx, VersionPlace, WebhookPlace, args};

/// What the state holds.
pub struct Held {
    /// The links, by id.
    pub links: Vec<String>,
    /// Rows of each table.
    pub tables: Map<String, Value>,
}

/// Everything that the state behind `readers` holds of `subject`. Blocks.
///
/// # Errors
/// [`Error::NotHeld`], [`Error::NoPepper`], [`Error::Store`].
pub fn held(readers: &Readers, subject: &Subject, pepper: Option<&Pepper>) -> Result<Held, Error> {
    readers.read(|tx| {
        let links = subject.links(tx, pepper)?;
        if links.is_empty() {
            return Err(Error::NotHeld(subject.kind().name()));
        }
        let tables = of_state(tx, &links)?;
        Ok(Held { links, tables })
    })
}

/// The rows of each table that has a column `link_id` or `external_id`.
fn of_state(tx: &Tx<'_>, links: &[String]) -> Result<Map<String, Value>, store::Error> {
    let mut external_ids = Vec::new();
    for link in links {
        let sql = "SELECT external_id FROM links WHERE link_id = $1";
        external_ids.extend(tx.one(sql, args![link], |row| row.opt_text(0))?.flatten());
    }
    let by_link = tx.tables_with("link_id")?;
    let mut tables: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut gather = |table: &str, sql: &str, names: &[String]| {
        for name in names {
            tx.each(sql, args![name], |row| {
                tables.entry(table.to_owned()).or_default().push(of_row(tx, table, row.cells()?)?);
                Ok::<_, store::Error>(())
            })?;
        }
        Ok::<_, store::Error>(())
    };
    // A key is no datum of the person, and an export must not hold one.
    for table in by_link.iter().filter(|table| *table != "link_keys") {
        gather(table, &format!("SELECT * FROM {table} WHERE link_id = $1"), links)?;
    }
    for table in tx.tables_with("external_id")?.iter().filter(|table| !by_link.contains(table)) {
        gather(table, &format!("SELECT * FROM {table} WHERE external_id = $1"), &external_ids)?;
    }
    let own = own_external_ids(tx, links)?;
    for seq in unnamed_webhooks(tx, links.iter().chain(&own))? {
        gather("webhooks", "SELECT * FROM webhooks WHERE seq = CAST($1 AS BIGINT)", &[seq.to_string()])?;
    }
    Ok(tables.into_iter().map(|(table, rows)| (table, rows.into())).collect())
}

/// A row by its columns, its body opened.
fn of_row(tx: &Tx<'_>, table: &str, cells: Vec<(String, Cell)>) -> Result<Value, store::Error> {
    let named = |name: &str| match cells.iter().find(|(found, _)| found == name) {
        Some((_, Cell::Text(text))) => Some(text.as_str()),
        _ => None,
    };
    let text = |name: &str| named(name).unwrap_or_default();
    let int = |name: &str| match cells.iter().find(|(found, _)| found == name) {
        Some((_, Cell::Int(int))) => *int,
        _ => 0,
    };
    let open = |stored: &[u8]| -> Result<Value, store::Error> {
        let plain = |body: Cow<'_, [u8]>| String::from_utf8_lossy(&body).into_owned();
        let body = match table {
            "record_versions" => {
                let place = VersionPlace {
                    link_id: text("link_id"),
                    resource: text("resource"),
                    record_key: text("record_key"),
                    version: int("version"),
                };
                unpack(&place.open(tx, stored)?)?
            }
            "frozen_features" => {
                let place = FrozenPlace { link_id: text("link_id"), decision_id: text("decision_id") };
                plain(place.open(tx, stored)?)
            }
            "webhooks" => {
                let place = WebhookPlace { link_id: named("link_id"), received_at: int("received_at") };
                plain(place.open(tx, stored)?)
            }
            // Another table with a body needs to say here how it is opened.
            _ => return Err(store::Error::Unreadable("a body")),
        };
        // As it came when it is no JSON that can be told again.
        Ok(serde_json::from_str(&body).unwrap_or(Value::String(body)))
    };
    let mut row = Map::new();
    for (name, cell) in &cells {
        let value = match cell {
            Cell::Null => Value::Null,
            Cell::Int(int) => json!(int),
            Cell::Text(text) => json!(text),
            Cell::Bytes(bytes) if name == "body" => open(bytes)?,
            Cell::Bytes(bytes) => json!(BASE64_STANDARD.encode(bytes)),
        };
        row.insert(name.clone(), value);
    }
    Ok(row.into())
}
