//! Everything that is held on one person.
//!
//! *Takes* a link, an `external_id` or a person's key. *Gives* its links, and the rows of every table of the state that
//! name them, each body opened, with the webhooks in the quarantine that name them in a place of their own. *Promises*
//! nobody else's rows. *Not here*: what of it is published, which is SQL on the lake, and the line in the audit.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use crate::clock::Timestamp;
use crate::json::{self, Fields};
use crate::link_id::LinkId;
use crate::records::unpack;
use crate::resources::owners;
use crate::sensitive::Pepper;
use crate::store::{self, Cell, FrozenPlace, Readers, Row, Tx, VersionPlace, WebhookPlace, args, unless_damaged};
use crate::tombstones::Kind;

/// Why it cannot be said what is held of somebody.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody of that name.
    #[error("nothing is held of this {0}: look at the spelling; what was erased before stays erased")]
    NotHeld(&'static str),
    /// Persons have no key without a pepper.
    #[error("pii.pepper is empty, so that persons have no key: name a link or an external_id")]
    NoPepper,
    /// The state refused.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotHeld(_) => "not_held",
            Self::NoPepper => "no_pepper",
            Self::Store(error) => error.code(),
        }
    }
}

/// Whom an erasure or an export is about. It has no printed form.
#[derive(Clone, PartialEq, Eq)]
pub enum Subject {
    /// One link.
    Link(LinkId),
    /// Every link of an `external_id`.
    ExternalId(String),
    /// Every link of a `person_key`.
    Person(String),
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({})", self.kind().name())
    }
}

impl Subject {
    /// What kind of name it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Link(_) => Kind::Link,
            Self::ExternalId(_) => Kind::ExternalId,
            Self::Person(_) => Kind::Person,
        }
    }

    /// The names under which rows of it may be held. Blocks for long when it is a person: only the bodies say who that
    /// is.
    ///
    /// # Errors
    /// [`Error::NoPepper`], [`Error::Store`].
    pub fn names(&self, tx: &Tx<'_>, pepper: Option<&Pepper>) -> Result<Names, Error> {
        let links = match self {
            // Also one that is not tracked: a webhook in the quarantine may be all that names it.
            Self::Link(id) => vec![id.as_str().to_owned()],
            Self::ExternalId(id) => {
                tx.all("SELECT link_id FROM links WHERE external_id = $1 ORDER BY link_id", args![id], |row| {
                    row.text(0)
                })?
            }
            Self::Person(key) => {
                let persons = persons(tx, pepper.ok_or(Error::NoPepper)?)?;
                let found: BTreeSet<String> =
                    persons.into_iter().filter(|(_, person)| person == key).map(|(link, _)| link).collect();
                found.into_iter().collect()
            }
        };
        let mut external_ids = own_external_ids(tx, &links)?;
        if let Self::ExternalId(id) = self {
            // Its user may have opened the widget and never connected.
            external_ids.insert(id.clone());
        }
        Ok(Names { links, external_ids })
    }
}

/// Under what somebody's rows are held.
pub struct Names {
    /// The links, by id.
    pub links: Vec<String>,
    /// The `external_id`s that no other link has.
    pub external_ids: BTreeSet<String>,
}

impl Names {
    /// Gives the rows, of each table, that name one of the `external_id`s and none of the links.
    ///
    /// # Errors
    /// [`store::Error`], or what `each` gave.
    pub fn each_without_link(
        &self,
        tx: &Tx<'_>,
        mut each: impl FnMut(&str, Vec<(String, Cell)>) -> Result<(), store::Error>,
    ) -> Result<(), store::Error> {
        for table in tx.tables_with("external_id")? {
            let sql = format!("SELECT * FROM {table} WHERE external_id = $1");
            for external_id in &self.external_ids {
                tx.each(&sql, args![external_id], |row| {
                    let cells = row.cells()?;
                    match text_of(&cells, "link_id") {
                        Some(link) if self.links.iter().any(|known| known == link) => Ok(()),
                        _ => each(&table, cells),
                    }
                })?;
            }
        }
        Ok(())
    }
}

/// The text in the column `name` of a row.
fn text_of<'c>(cells: &'c [(String, Cell)], name: &str) -> Option<&'c str> {
    match cells.iter().find(|(found, _)| found == name) {
        Some((_, Cell::Text(text))) => Some(text),
        _ => None,
    }
}

/// Every link with the key of every person that it ever named as its owner.
///
/// # Errors
/// [`store::Error`].
pub fn persons(tx: &Tx<'_>, pepper: &Pepper) -> Result<Vec<(String, String)>, store::Error> {
    let mut persons = Vec::new();
    each_body(tx, Bodies::OfResource(owners::RESOURCE.name), |place, body| {
        if let Some(person) = person_of(&body, pepper) {
            persons.push((place.link_id.to_owned(), person));
        }
        Ok(())
    })?;
    Ok(persons)
}

/// The key of the person that an owner's body names, read as for the tables: a published key finds whom it is of.
fn person_of(body: &str, pepper: &Pepper) -> Option<String> {
    let document = Fields::read(Fields::read(body)?.get("document_id")?)?;
    let (number, kind) = (document.text("document_number"), document.text("document_type"));
    owners::person_of(number.as_deref(), kind.as_deref(), pepper)
}

/// Which bodies.
#[derive(Debug, Clone, Copy)]
pub enum Bodies<'a> {
    /// Those of one link.
    OfLink(&'a str),
    /// Those of a resource, by its name.
    OfResource(&'a str),
}

/// Gives every version of every record, opened.
///
/// # Errors
/// [`store::Error`]; a body that cannot be opened is left out, so that damage does not keep anybody.
pub fn each_body(
    tx: &Tx<'_>,
    which: Bodies<'_>,
    mut each: impl FnMut(VersionPlace<'_>, String) -> Result<(), store::Error>,
) -> Result<(), store::Error> {
    let (column, value) = match which {
        Bodies::OfLink(link) => ("link_id", link),
        Bodies::OfResource(resource) => ("resource", resource),
    };
    let sql = format!(
        "SELECT link_id, resource, record_key, version, body FROM record_versions WHERE {column} = $1 \
         ORDER BY link_id, resource, record_key, version"
    );
    tx.each(&sql, args![value], |row: &Row<'_>| {
        let place =
            VersionPlace { link_id: row.str(0)?, resource: row.str(1)?, record_key: row.str(2)?, version: row.int(3)? };
        let body = unless_damaged(place.open(tx, row.bytes(4)?).and_then(|packed| unpack(&packed)))?;
        body.map_or(Ok(()), |body| each(place, body))
    })
}

/// What the state holds.
pub struct Held {
    /// The links, by id.
    pub links: Vec<String>,
    /// Rows of each table.
    pub tables: Tables,
    /// How many of these say `body_is_damaged`.
    pub damaged: usize,
}

/// Rows by their table.
pub type Tables = BTreeMap<String, Vec<HeldRow>>;

/// A row by its columns, each as JSON: a body keeps every digit that Belvo sent.
pub type HeldRow = BTreeMap<String, Box<RawValue>>;

/// Told of a row whose body cannot be opened: what else is held of somebody is theirs to know all the same.
const IS_DAMAGED: &str = "body_is_damaged";

/// Everything that the state behind `readers` holds of `subject`. Blocks.
///
/// # Errors
/// [`Error::NotHeld`] when no table has anything, [`Error::NoPepper`], [`Error::Store`].
pub fn held(readers: &Readers, subject: &Subject, pepper: Option<&Pepper>) -> Result<Held, Error> {
    readers.read(|tx| {
        let names = subject.names(tx, pepper)?;
        let (tables, damaged) = of_state(tx, &names)?;
        if tables.is_empty() {
            return Err(Error::NotHeld(subject.kind().name()));
        }
        Ok(Held { links: names.links, tables, damaged })
    })
}

/// The rows of each table that has a column `link_id` or `external_id`, and those that name somebody in another place.
/// Says also how many bodies are damaged.
fn of_state(tx: &Tx<'_>, names: &Names) -> Result<(Tables, usize), store::Error> {
    let mut tables = Tables::new();
    let mut damaged = 0;
    let mut keep = |table: &str, cells| {
        let row = of_row(tx, table, cells)?;
        damaged += usize::from(row.contains_key(IS_DAMAGED));
        tables.entry(table.to_owned()).or_default().push(row);
        Ok::<_, store::Error>(())
    };
    // A key is no datum of the person, and an export must not hold one.
    for table in tx.tables_with("link_id")?.iter().filter(|table| *table != "link_keys") {
        let sql = format!("SELECT * FROM {table} WHERE link_id = $1");
        for link in &names.links {
            tx.each(&sql, args![link], |row| keep(table, row.cells()?))?;
        }
    }
    names.each_without_link(tx, &mut keep)?;
    for seq in unnamed_webhooks(tx, names.links.iter().chain(&names.external_ids))? {
        tx.each("SELECT * FROM webhooks WHERE seq = $1", args![seq], |row| keep("webhooks", row.cells()?))?;
    }
    for run in runs_of(tx, &names.links)? {
        tx.each("SELECT * FROM runs WHERE run_id = $1", args![run], |row| keep("runs", row.cells()?))?;
    }
    Ok((tables, damaged))
}

/// A row by its columns, its body opened.
fn of_row(tx: &Tx<'_>, table: &str, cells: Vec<(String, Cell)>) -> Result<HeldRow, store::Error> {
    let text = |name: &str| text_of(&cells, name).unwrap_or_default();
    let int = |name: &str| match cells.iter().find(|(found, _)| found == name) {
        Some((_, Cell::Int(int))) => *int,
        _ => 0,
    };
    let open = |stored: &[u8]| -> Result<Option<Box<RawValue>>, store::Error> {
        let plain = |body: Cow<'_, [u8]>| String::from_utf8_lossy(&body).into_owned();
        let opened = match table {
            "record_versions" => {
                let place = VersionPlace {
                    link_id: text("link_id"),
                    resource: text("resource"),
                    record_key: text("record_key"),
                    version: int("version"),
                };
                place.open(tx, stored).and_then(|packed| unpack(&packed))
            }
            "frozen_features" => {
                let place = FrozenPlace { link_id: text("link_id"), decision_id: text("decision_id") };
                place.open(tx, stored).map(plain)
            }
            "webhooks" => {
                let place = WebhookPlace { link_id: text_of(&cells, "link_id"), received_at: int("received_at") };
                place.open(tx, stored).map(plain)
            }
            // Another table with a body needs to say here how it is opened.
            _ => return Err(store::Error::Unreadable("a body")),
        };
        Ok(unless_damaged(opened)?.map(told))
    };
    let mut row = HeldRow::new();
    for (name, cell) in &cells {
        let value = match cell {
            Cell::Null => json_of(&()),
            Cell::Int(micros) if is_instant(name) => json_of(&Timestamp::from_micros(*micros).to_string()),
            Cell::Int(flag) if is_flag(name) => json_of(&(*flag != 0)),
            Cell::Int(int) => json_of(int),
            Cell::Text(text) => json_of(text),
            Cell::Bytes(bytes) if name == "body" => {
                let body = open(bytes)?;
                if body.is_none() {
                    row.insert(IS_DAMAGED.to_owned(), json_of(&true));
                }
                body.unwrap_or_else(|| json_of(&()))
            }
            Cell::Bytes(bytes) => json_of(&BASE64_STANDARD.encode(bytes)),
        };
        row.insert(name.clone(), value);
    }
    Ok(row)
}

/// Whether a column of the state holds microseconds since 1970: whoever reads what is held of them reads an instant.
fn is_instant(column: &str) -> bool {
    column.ends_with("_at") || column == "known_from"
}

/// Whether a column of the state holds 1 for true and 0 for false.
fn is_flag(column: &str) -> bool {
    column.starts_with("is_") || column == "changed"
}

/// A body as it came; a text of it when not every reader would take it for JSON.
fn told(body: String) -> Box<RawValue> {
    if !json::is_json(&body) {
        return json_of(&body);
    }
    RawValue::from_string(body).unwrap_or_else(|error| unreachable!("{error}"))
}

fn json_of(value: &(impl Serialize + ?Sized)) -> Box<RawValue> {
    to_raw_value(value).unwrap_or_else(|error| unreachable!("{error}"))
}

/// The `external_id`s of `links` that no other link has.
///
/// # Errors
/// [`store::Error`].
pub fn own_external_ids(tx: &Tx<'_>, links: &[String]) -> Result<BTreeSet<String>, store::Error> {
    let mut external_ids = BTreeSet::new();
    for link in links {
        let sql = "SELECT external_id FROM links WHERE link_id = $1";
        let Some(external_id) = tx.one(sql, args![link], |row| row.opt_text(0))?.flatten() else { continue };
        if !is_of_another(tx, &external_id, links)? {
            external_ids.insert(external_id);
        }
    }
    Ok(external_ids)
}

/// Whether a link that is none of `links` has the `external_id`.
///
/// # Errors
/// [`store::Error`].
pub fn is_of_another(tx: &Tx<'_>, external_id: &str, links: &[String]) -> Result<bool, store::Error> {
    let sql = "SELECT link_id FROM links WHERE external_id = $1";
    Ok(tx.all(sql, args![external_id], |row| row.text(0))?.iter().any(|link| !links.contains(link)))
}

/// Numbers of the webhooks of no known link that name one of `names`, which are links and `external_id`s: they were not
/// understood, and have the name in some place of their own.
///
/// # Errors
/// [`store::Error`].
pub fn unnamed_webhooks<'n>(tx: &Tx<'_>, names: impl Iterator<Item = &'n String>) -> Result<Vec<i64>, store::Error> {
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let mut found = Vec::new();
    tx.each("SELECT seq, received_at, body FROM webhooks WHERE link_id IS NULL ORDER BY seq", args![], |row| {
        let place = WebhookPlace { link_id: None, received_at: row.int(1)? };
        // One that cannot be opened says nothing.
        if place.open(tx, row.bytes(2)?).is_ok_and(|body| are_named_in(&body, &names)) {
            found.push(row.int(0)?);
        }
        Ok::<_, store::Error>(())
    })?;
    Ok(found)
}

/// Numbers of the runs that name one of `links`, or a decision that keeps a row of it: what was ordered for it.
///
/// # Errors
/// [`store::Error`].
pub fn runs_of(tx: &Tx<'_>, links: &[String]) -> Result<BTreeSet<i64>, store::Error> {
    let mut found = BTreeSet::new();
    for link in links {
        let sql = "SELECT run_id FROM runs WHERE name = $1 OR message LIKE '%' || $1 || '%' OR (kind = 'freeze' \
                   AND name IN (SELECT decision_id FROM frozen_features WHERE link_id = $1))";
        found.extend(tx.all(sql, args![link], |row| row.int(0))?);
    }
    Ok(found)
}

/// Whether a webhook's body names one of `names`. A part of another name is none: `customer-1` is not in `customer-12`.
fn are_named_in(body: &[u8], names: &BTreeSet<&str>) -> bool {
    let mut are_named = false;
    each_name_in(body, &mut |name| are_named |= names.contains(name));
    are_named
}

/// Gives whatever may be a name in a webhook's body: each text and number that is a value, and the ids of links in
/// texts.
pub fn each_name_in(body: &[u8], each: &mut dyn FnMut(&str)) {
    if let Ok(json) = serde_json::from_slice(body) {
        return each_name(&json, each);
    }
    // Not every reader takes it for JSON: what stands between quotes, or between bytes that names rarely have.
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.@\\".contains(byte);
    let texts = body.split(|byte| *byte == b'"').chain(body.split(|byte| !is_part(byte)));
    texts.filter_map(|text| str::from_utf8(text).ok()).for_each(&mut *each);
    LinkId::all_in(body).for_each(|link| each(link.as_str()));
}

fn each_name(json: &Value, each: &mut dyn FnMut(&str)) {
    match json {
        Value::String(text) => {
            each(text);
            LinkId::all_in(text.as_bytes()).for_each(|link| each(link.as_str()));
        }
        Value::Number(number) => each(&number.to_string()),
        Value::Array(items) => items.iter().for_each(|item| each_name(item, each)),
        Value::Object(fields) => fields.values().for_each(|value| each_name(value, each)),
        Value::Null | Value::Bool(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flatten::{Flattener, Plan, RecordFacts};
    use crate::schema;
    use crate::store::Store;

    #[tokio::test]
    async fn the_sessions_of_a_user_who_never_connected_are_told_and_no_other_ones() {
        const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let fill = |tx: &Tx<'_>| {
            let sql = "INSERT INTO widget_sessions (external_id, link_id, asked_at) VALUES ($1, $2, $3)";
            tx.execute(sql, args!["user-1", None::<&str>, 1])?;
            tx.execute(sql, args!["user-2", None::<&str>, 2])?;
            tx.execute(sql, args!["user-2", LINK, 3])?;
            let link =
                "INSERT INTO links (link_id, external_id, first_seen_at, changed_seq) VALUES ($1, 'user-2', 0, 0)";
            tx.execute(link, args![LINK])
        };
        store.write(fill).await.unwrap();
        let sessions = |subject: Subject| {
            let held = held(&store.readers(), &subject, None)?;
            let asked: Vec<String> =
                held.tables["widget_sessions"].iter().map(|row| row["asked_at"].get().to_owned()).collect();
            Ok::<_, Error>((held.links.len(), asked))
        };
        let at = |micros: i64| format!("\"1970-01-01T00:00:00.{micros:06}Z\"");
        assert_eq!(sessions(Subject::ExternalId("user-1".to_owned())).unwrap(), (0, vec![at(1)]));
        let (links, mut asked) = sessions(Subject::ExternalId("user-2".to_owned())).unwrap();
        asked.sort_unstable();
        assert_eq!((links, asked), (1, vec![at(2), at(3)]), "each once");
        let nobody = sessions(Subject::ExternalId("user-3".to_owned())).unwrap_err();
        assert_eq!(nobody.code(), "not_held");
    }

    #[tokio::test]
    async fn what_was_ordered_for_a_link_is_told_once_and_nobody_elses_orders() {
        const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let fill = |tx: &Tx<'_>| {
            let message = format!("the link {LINK} is not known");
            for (kind, name, message) in [
                ("untrack", Some(LINK), None),
                ("delete", Some(LINK), Some(message.as_str())),
                ("replay", None, Some(message.as_str())),
                ("freeze", Some("decision-1"), None),
                ("freeze", Some("decision-2"), None),
                // A job may be called what a decision is.
                ("job", Some("decision-1"), None),
                ("untrack", Some("3f5d361d-dad6-45d4-a0bf-26d479766067"), None),
                ("publish", None, None),
            ] {
                let sql = "INSERT INTO runs (kind, name, reason, started_at, message) VALUES ($1, $2, 'api', 7, $3)";
                tx.execute(sql, args![kind, name, message])?;
            }
            for (decision, link) in [("decision-1", LINK), ("decision-2", "3f5d361d-dad6-45d4-a0bf-26d479766067")] {
                let place = FrozenPlace { link_id: link, decision_id: decision };
                let sql = "INSERT INTO frozen_features (decision_id, link_id, as_of_date, pit_mode, frozen_at, body) \
                           VALUES ($1, $2, '2026-01-31', 'strict', 7, $3)";
                tx.execute(sql, args![decision, link, place.seal(tx, b"{}")?.as_ref()])?;
            }
            Ok(())
        };
        store.write(fill).await.unwrap();
        let held = held(&store.readers(), &Subject::Link(LINK.parse().unwrap()), None).unwrap();
        let runs = held.tables["runs"].iter();
        let told: Vec<_> = runs.map(|run| ["kind", "name"].map(|column| run[column].get().trim_matches('"'))).collect();
        let expected = [["untrack", LINK], ["delete", LINK], ["replay", "null"], ["freeze", "decision-1"]];
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn a_damaged_body_is_marked_and_the_rest_is_told() {
        const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let fill = |tx: &Tx<'_>| {
            let good = zstd::encode_all(br#"{"id":"good"}"#.as_slice(), 1).unwrap();
            for (version, body) in [(1, b"damaged".as_slice()), (2, good.as_slice())] {
                let sql = "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, known_from, \
                           started_at, fetched_at, body) VALUES ($1, 'owners', 'k', $2, 0, 'i', 0, 0, 0, $3)";
                tx.execute(sql, args![LINK, version, body])?;
            }
            Ok::<_, store::Error>(())
        };
        store.write(fill).await.unwrap();
        let held = held(&store.readers(), &Subject::Link(LINK.parse().unwrap()), None).unwrap();
        let versions = held.tables["record_versions"].iter();
        let told: Vec<_> =
            versions.map(|row| (row["body"].get(), row.get(IS_DAMAGED).map(|told| told.get()))).collect();
        assert_eq!(told, [("null", Some("true")), (r#"{"id":"good"}"#, None)]);
        assert_eq!(held.damaged, 1);
    }

    #[test]
    fn a_body_is_told_to_the_digit_and_as_a_text_when_it_is_no_json() {
        let exact = r#"{"base_amount":999999999999999.99, "retained_amount":1033.0900,"n":12345678901234567890123}"#;
        assert_eq!(told(exact.to_owned()).get(), exact);
        for odd in ["not JSON", r#"{"a":"\ud83d"}"#, ""] {
            assert_eq!(told(odd.to_owned()).get(), serde_json::to_string(odd).unwrap());
        }
    }

    #[test]
    fn whoever_has_a_published_key_is_found_by_it() {
        let pepper = Pepper::new("pepper-for-tests".into());
        let owner = r#"{"id":"1","link":null,"internal_identification":null,"collected_at":"2026-01-01T00:00:00Z",
            "display_name":"PESSOA","email":null,"phone_number":null,"address":null,"score":1e999,
            "document_id":{"document_type":"CPF","document_number":"529.982.247\u002d25","of":[-1e999]}}"#;
        let facts = RecordFacts {
            link_id: "",
            record_key: "",
            record_id: "",
            created_at: None,
            collected_at: None,
            known_from: Timestamp::from_micros(0),
        };
        let mut flattener = Flattener::new(Plan::for_resource(&owners::RESOURCE), Some(pepper.clone()));
        let mut rows = flattener.columns();
        flattener.flatten(owner, &facts, &mut rows).unwrap();
        let columns = &schema::get().table("owners").columns;
        let key = columns.iter().position(|column| column.name == "person_key").unwrap();
        let published = rows[0].text(key, 0).unwrap();
        assert_eq!(person_of(owner, &pepper).as_deref(), Some(published));
        // Of one that is listed as rejected, an earlier version may be published.
        let rejected = owner.replace("PESSOA", r"\ud83d");
        assert!(flattener.flatten(&rejected, &facts, &mut rows).is_err());
        assert_eq!(person_of(&rejected, &pepper), person_of(owner, &pepper));
        for nobody in ["", "{}", r#"{"document_id":null}"#, r#"{"document_id":{"document_number":52998224725}}"#] {
            assert_eq!(person_of(nobody, &pepper), None, "{nobody}");
        }
    }

    #[test]
    fn a_name_is_found_wherever_a_value_is_it_and_in_no_longer_one() {
        const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
        let names = BTreeSet::from([LINK, "user-1", "4711"]);
        for (json, expected) in [
            (r#"{"external_id":"user-1"}"#, true),
            (r#"{"data":[{"of":"us\u0065r-1"}]}"#, true),
            (r#"{"external_id":"user-12"}"#, false),
            (r#"{"user-1":"x"}"#, false),
            (r#"{"external_id":4711}"#, true),
            (r#"{"external_id":47110}"#, false),
            (r#"{"about":"https://x/links/2F5D361D-dad6-45d4-a0bf-26d479766067/"}"#, true),
            (r#"{"about":"3f5d361d-dad6-45d4-a0bf-26d479766067"}"#, false),
            (r#"{"external_id":"user-1","other":"\ud83d"}"#, true),
            (r#"{"external_id":"user-12","other":"\ud83d"}"#, false),
            (r#"{"external_id":4711,"other":"\ud83d"}"#, true),
            (r#"{"about":"x/2F5D361D-dad6-45d4-a0bf-26d479766067/","other":"\ud83d"}"#, true),
        ] {
            assert_eq!(are_named_in(json.as_bytes(), &names), expected, "{json}");
        }
    }
}
