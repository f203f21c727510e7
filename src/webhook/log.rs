//! The inbound log: every webhook that was answered 200, and the quarantine of those that were not understood.
//!
//! *Gives* what came, what became of it, and its body without anything personal. *Not here*: who asks; and the second
//! reading of what is in the quarantine (`webhook/replay.rs`).

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::event::Event;
use super::follow_up::Outcome;
use crate::link_id::LinkId;
use crate::store::{self, Error, Row, Tx, WebhookPlace, args};

/// The words for what becomes of a webhook: one for each [`Outcome`].
pub const OUTCOMES: [&str; Outcome::ALL.len()] = {
    let (mut names, mut at) = ([""; Outcome::ALL.len()], 0);
    while at < names.len() {
        names[at] = Outcome::ALL[at].name();
        at += 1;
    }
    names
};

/// What is shown of a body of which what is kept cannot be opened.
const DAMAGED: &str = "(damaged, and cannot be opened)";

/// Characters of a text that is shown at most.
const LONGEST_SHOWN: usize = 64;

/// A webhook that came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Webhook")]
pub struct Entry {
    /// Its number in the order of arrival.
    pub seq: i64,
    /// When it came.
    pub received_at: String,
    /// Its `webhook_type`, when it has one.
    pub webhook_type: Option<String>,
    /// Its `webhook_code`, when it has one.
    pub webhook_code: Option<String>,
    /// The link it names.
    pub link_id: Option<String>,
    /// The external id that it tells.
    pub external_id: Option<String>,
    /// One of [`OUTCOMES`]: `queued`, `noted`, `quarantined` or `erased`, and `received` until it is followed up, a moment later.
    pub outcome: String,
    /// Why it is in the quarantine.
    pub reason: Option<String>,
    /// When it was last read again.
    pub replayed_at: Option<String>,
}

/// Which webhooks are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only of this type, as it came.
    pub webhook_type: Option<String>,
    /// Only with this outcome.
    pub outcome: Option<String>,
    /// Only of this link.
    pub link: Option<LinkId>,
}

pub(super) const COLUMNS: &str =
    "seq, received_at, webhook_type, webhook_code, link_id, outcome, reason, replayed_at, body";

/// At most `limit` webhooks, the newest first, from before the number `after` on. Gives them and, when there are more,
/// the `after` of the next page.
///
/// # Errors
/// [`Error::Database`].
pub fn list(
    tx: &Tx<'_>,
    filter: &Filter,
    after: Option<i64>,
    limit: usize,
) -> Result<(Vec<Entry>, Option<i64>), Error> {
    // Each wish is a condition of its own, so that its index is used.
    let mut sql = format!("SELECT {COLUMNS} FROM webhooks WHERE seq < $1");
    let is_quarantine = filter.outcome.as_deref() == Some(Outcome::Quarantined.name());
    for (condition, is_wanted) in [
        (" AND webhook_type = $2", filter.webhook_type.is_some()),
        (" AND outcome = $3", filter.outcome.is_some() && !is_quarantine),
        (" AND outcome = 'quarantined'", is_quarantine),
        (" AND link_id = $4", filter.link.is_some()),
    ] {
        if is_wanted {
            sql.push_str(condition);
        }
    }
    sql.push_str(" ORDER BY seq DESC LIMIT $5");
    let (kind, outcome, link) = (filter.webhook_type.as_deref(), filter.outcome.as_deref(), filter.link.as_ref());
    let args = args![after.unwrap_or(i64::MAX), kind, outcome, link, limit.saturating_add(1)];
    Ok(store::page(tx.all(&sql, args, |row| read(tx, row))?, limit, |entry| entry.seq))
}

/// The webhook number `seq` and its body, without anything personal; `None` when there is none.
///
/// # Errors
/// [`Error::Database`].
pub fn show(tx: &Tx<'_>, seq: i64) -> Result<Option<(Entry, Value)>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM webhooks WHERE seq = $1");
    let damaged = || Value::String(DAMAGED.to_owned());
    tx.one(&sql, args![seq], |row| Ok((read(tx, row)?, body(tx, row)?.map_or_else(damaged, |body| redacted(&body)))))
}

/// Whether there is a webhook number `seq`.
///
/// # Errors
/// [`Error::Database`].
pub fn is_there(tx: &Tx<'_>, seq: i64) -> Result<bool, Error> {
    Ok(tx.one("SELECT 1 FROM webhooks WHERE seq = $1", args![seq], |_| Ok(()))?.is_some())
}

/// The body of a row of [`COLUMNS`], as it came; `None` when what is kept of it is damaged, which must hold up no
/// other.
pub(super) fn body<'r>(tx: &Tx<'_>, row: &'r Row<'_>) -> Result<Option<Cow<'r, [u8]>>, Error> {
    let link_id = row.opt_text(4)?;
    let place = WebhookPlace { link_id: link_id.as_deref(), received_at: row.int(1)? };
    store::unless_damaged(place.open(tx, row.bytes(8)?))
}

fn read(tx: &Tx<'_>, row: &Row<'_>) -> Result<Entry, Error> {
    Ok(Entry {
        seq: row.int(0)?,
        received_at: row.at(1)?.to_string(),
        webhook_type: row.opt_text(2)?,
        webhook_code: row.opt_text(3)?,
        link_id: row.opt_text(4)?,
        external_id: body(tx, row)?.and_then(|body| Event::read(&body)?.external_id),
        outcome: row.text(5)?,
        reason: row.opt_text(6)?,
        replayed_at: row.opt_at(7)?.map(|at| at.to_string()),
    })
}

/// Fields whose texts say nothing of a person.
const SHOWN: [&str; 6] = ["webhook_id", "webhook_type", "webhook_code", "link_id", "external_id", "request_id"];

/// The body with the texts and numbers of unknown fields taken out: what Belvo may add is anybody's guess.
fn redacted(body: &[u8]) -> Value {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => {
            Value::Object(fields.into_iter().map(|(name, value)| redacted_field(name, value, true)).collect())
        }
        _ => Value::String(format!("({} bytes that cannot be shown)", body.len())),
    }
}

/// A field of the body itself, or of something in it, where a name means what its sender likes.
fn redacted_field(name: String, value: Value, is_outermost: bool) -> (String, Value) {
    let is_link = |text: &str| name != "link_id" || text.parse::<LinkId>().is_ok();
    let is_plain = |text: &str| is_outermost && SHOWN.contains(&name.as_str()) && is_link(text);
    let is_count = name.starts_with("total_") || name.starts_with("new_");
    let value = match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| redacted_field(name, value, false));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::String(format!("({} items)", items.len())),
        Value::String(text) if is_plain(&text) && text.chars().count() <= LONGEST_SHOWN => Value::String(text),
        Value::String(text) => Value::String(format!("({} characters)", text.chars().count())),
        Value::Number(number) if is_count => Value::Number(number),
        Value::Number(_) => Value::String("(a number)".to_owned()),
        other @ (Value::Null | Value::Bool(_)) => other,
    };
    // A name can hold anything, too.
    let is_name = name.len() <= LONGEST_SHOWN && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (if is_name { name } else { format!("({} characters)", name.chars().count()) }, value)
}

/// Numbers of at most `limit` webhooks in the quarantine after the number `after`, in the order of arrival.
///
/// # Errors
/// [`Error::Database`].
pub fn quarantined(tx: &Tx<'_>, after: i64, limit: usize) -> Result<Vec<i64>, Error> {
    tx.all(
        "SELECT seq FROM webhooks WHERE outcome = 'quarantined' AND seq > $1 ORDER BY seq LIMIT $2",
        args![after, limit],
        |row| row.int(0),
    )
}

/// How many webhooks are in the quarantine.
///
/// # Errors
/// [`Error::Database`].
pub fn count_quarantined(tx: &Tx<'_>) -> Result<u64, Error> {
    tx.count("SELECT count(*) FROM webhooks WHERE outcome = 'quarantined'", args![])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_body_holds_nothing_of_a_person() {
        let body = r#"{"webhook_type":"OWNERS","external_id":"us-1","data":{"total_owners":2,"name":"Maria","99911122233":{"pay":12.5},
            "list":["Maria"],"external_id":"Maria"},"link_id":"Maria"}"#;
        let shown = redacted(body.as_bytes()).to_string();
        for personal in ["Maria", "999", "12.5"] {
            assert!(!shown.contains(personal), "{shown}");
        }
        for plain in ["us-1", "OWNERS", r#""total_owners":2"#, "(1 items)"] {
            assert!(shown.contains(plain), "{shown}");
        }
        assert_eq!(redacted(b"\xff"), Value::String("(1 bytes that cannot be shown)".to_owned()));
    }
}
