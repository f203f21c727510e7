//! What erasing somebody would remove.
//!
//! *Takes* whom it is about. *Gives* the rows, links and users that would go, and the bytes that must not be found
//! afterwards. *Promises* to write nothing. *Not here*: the lake and the backups, which
//! [`Eraser::plan`](super::Eraser::plan) adds.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Error;
use crate::backup::Made;
use crate::json::{self, Fields};
use crate::sensitive::{Cpf, Pepper};
use crate::store::{self, Traces, Tx, args};
use crate::subject::{self, Bodies, Names, Subject, each_body, unnamed_webhooks};

/// Bytes from the middle of a body that tell it from all others.
const TRACE: usize = 32;

/// What would go.
#[derive(Serialize)]
pub struct Plan {
    /// The links, by id.
    pub links: Vec<String>,
    /// The `external_id`s that no other link has.
    pub external_ids: Vec<String>,
    /// Rows of each table of the state.
    pub rows: BTreeMap<String, u64>,
    /// Snapshots that are there, of which none stays.
    pub snapshots: Vec<u32>,
    /// Backups that hold them.
    pub backups: Vec<Made>,
    #[serde(skip)]
    pub(super) subject: Subject,
    #[serde(skip)]
    pub(super) traces: Traces,
}

/// What erasing `subject` would remove from the state. Blocks.
///
/// # Errors
/// [`Error::Subject`], [`Error::Store`].
pub fn plan(tx: &Tx<'_>, subject: Subject, pepper: Option<&Pepper>) -> Result<Plan, Error> {
    let names = subject.names(tx, pepper)?;
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    for table in tx.tables_with("link_id")? {
        let sql = format!("SELECT count(*) FROM {table} WHERE link_id = $1");
        for link in &names.links {
            let count = tx.one(&sql, args![link], |row| row.int(0))?.unwrap_or_default().cast_unsigned();
            *rows.entry(table.clone()).or_default() += count;
        }
    }
    names.each_without_link(tx, |table, _| {
        *rows.entry(table.to_owned()).or_default() += 1;
        Ok(())
    })?;
    *rows.entry("webhooks".to_owned()).or_default() +=
        unnamed_webhooks(tx, names.links.iter().chain(&names.external_ids))?.len() as u64;
    rows.retain(|_, count| *count > 0);
    if rows.is_empty() {
        return Err(subject::Error::NotHeld(subject.kind().name()).into());
    }
    let Names { links, external_ids } = names;
    let traces = traces(tx, &links, &external_ids)?;
    Ok(Plan {
        links,
        external_ids: external_ids.into_iter().collect(),
        rows,
        snapshots: Vec::new(),
        backups: Vec::new(),
        subject,
        traces,
    })
}

/// What must not be found in the state's file once it is done.
fn traces(tx: &Tx<'_>, links: &[String], external_ids: &BTreeSet<String>) -> Result<Traces, store::Error> {
    let mut traces = Traces::default();
    for name in links {
        traces.add(name.as_bytes());
    }
    for name in external_ids {
        // Where somebody else's name holds it, nobody can tell what is left of it.
        if !stands_in_others(tx, name, links)? {
            traces.add(name.as_bytes());
        }
    }
    for link in links {
        each_body(tx, Bodies::OfLink(link), |_, body| {
            add_texts(&body, json::MAX_DEPTH, &mut traces);
            Ok(())
        })?;
        // Bodies that were kept without a key are in the file as they are; those under one are noise without it.
        for sql in [
            "SELECT wrapped FROM link_keys WHERE link_id = $1",
            "SELECT body FROM record_versions WHERE link_id = $1",
            "SELECT body FROM webhooks WHERE link_id = $1",
            "SELECT body FROM frozen_features WHERE link_id = $1",
        ] {
            tx.each(sql, args![link], |row| {
                let bytes = row.bytes(0)?;
                let middle = bytes.len() / 2;
                traces.add(&bytes[middle..bytes.len().min(middle + TRACE)]);
                Ok::<_, store::Error>(())
            })?;
        }
    }
    Ok(traces)
}

/// Whether `external_id` is a part of what others are called than these `links`.
fn stands_in_others(tx: &Tx<'_>, external_id: &str, links: &[String]) -> Result<bool, store::Error> {
    let mut stands = false;
    let holders = "SELECT link_id FROM links WHERE replace(external_id, $1, '') <> external_id";
    tx.each(holders, args![external_id], |row| {
        stands |= !links.contains(&row.text(0)?);
        Ok::<_, store::Error>(())
    })?;
    let holders =
        "SELECT 1 FROM widget_sessions WHERE replace(external_id, $1, '') <> external_id AND external_id <> $1";
    Ok(stands || tx.one(holders, args![external_id], |_| Ok(()))?.is_some())
}

/// Adds what tells a person apart from others: ids, documents, addresses. A name or a place may be another's too. What
/// lies deeper than records are read is left out.
fn add_texts(value: &str, depth: u32, traces: &mut Traces) {
    const TELLING: [&str; 6] = ["id", "document_number", "email", "phone_number", "internal_identification", "code"];
    let Some(depth) = depth.checked_sub(1) else { return };
    if let Some(fields) = Fields::read(value) {
        for (name, value) in fields.pairs() {
            match json::text(value) {
                Some(text) if TELLING.contains(&name) => {
                    // An employer's code is another's too, unless it is a person's.
                    if name != "code" || Cpf::parse(&text).is_some() {
                        traces.add(text.as_bytes());
                    }
                    if let Some(cpf) = Cpf::parse(&text) {
                        traces.add(cpf.digits());
                    }
                }
                _ => add_texts(value, depth, traces),
            }
        }
    } else if let Some(items) = json::items(value) {
        for item in items {
            add_texts(item, depth, traces);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tells_a_person_is_found_beside_what_no_float_and_no_text_holds() {
        let traces = |body: &str| {
            let mut traces = Traces::default();
            add_texts(body, json::MAX_DEPTH, &mut traces);
            traces
        };
        let mut expected = Traces::default();
        for text in ["c749315b-eec2-435d-a458-06912878564f", "529.982.247-25", "52998224725", "pessoa@exemplo.com.br"] {
            expected.add(text.as_bytes());
        }
        let body = r#"{"id":"c749315b-eec2-435d-a458-06912878564f","display_name":"PESSOA FICTICIA","odd":null,
            "document_id":{"document_number":"529.982.247\u002d25"},"more":[{"email":"pessoa@exemplo.com.br"}],
            "employer_data":{"code":"11222333000181"}}"#;
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for odd in ["null", "1e999", r#""\ud83d""#, deep.as_str()] {
            let found = traces(&body.replace("null", odd));
            assert!(found == expected, "{odd:.20}");
        }
        assert!(traces("not JSON") == Traces::default());
    }
}
