//! What was done with personal data, and what was ordered over the API: lines that cannot be changed, taken out or put
//! in between without being noticed.
//!
//! *Takes* actions inside the caller's transaction. *Gives* lines, each under the hash of the one before. *Promises*
//! that no line names a person: who writes one gives counts, random ids and salted hashes only. Whoever can write the
//! whole file can write a new chain; note the last hash elsewhere if that matters.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::salt;
use crate::sensitive::hex;
use crate::store::{self, Error, Row, Store, Tx, args};

/// Action of a line that says who asked for what over the API; it is written before anything is done.
pub const ASKED: &str = "asked";

/// Action of a line that says what was answered to the line of whose hash it tells.
pub const ANSWERED: &str = "answered";

/// Action of a line that says that everything held on somebody was read out.
pub const EXPORT: &str = "export";

/// Action of a line that says that somebody sent a wrong token.
pub const SIGN_IN_FAILED: &str = "sign_in_failed";

/// Name in `meta` of the hash of the last line.
const END: &str = "audit_end";

/// Name of the salt under which links are called something in the audit.
const SALT: &str = "audit_salt";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Line {
    /// Its number.
    pub seq: i64,
    /// When it was written.
    pub at: String,
    /// What was done: `asked` and `answered` for the API, `erase`, `export`, `restore`, `retention`, `sign_in_failed`.
    pub action: String,
    /// What there is to say of it; other members for each action.
    pub detail: Map<String, Value>,
    /// Of an answer whose run has ended: what came of the run.
    pub outcome: Option<String>,
    /// SHA-256 over the hash of the line before and the rest of this one.
    pub hash: String,
}

/// At most `limit` lines, the newest first, from before the line `after` on; of `link` alone, when one is named: those
/// that asked for something of it, or say that it was read out. Gives them and, when there are more, the `after` of the
/// next page.
///
/// # Errors
/// [`Error::Database`].
pub fn list(
    tx: &Tx<'_>,
    link: Option<&LinkId>,
    after: Option<i64>,
    limit: usize,
) -> Result<(Vec<Line>, Option<i64>), Error> {
    let name = match link {
        Some(link) => match salt::held(tx, SALT)? {
            Some(salt) => Some(salt::hash(&salt, link.as_str())),
            None => return Ok((Vec::new(), None)),
        },
        None => None,
    };
    let sql = format!(
        "SELECT seq, at, action, detail, hash FROM audit WHERE seq < $1 {} ORDER BY seq DESC LIMIT $2",
        if name.is_some() { "AND detail LIKE $3" } else { "" }
    );
    // Whatever the member is called: no other one holds such a text.
    let pattern = name.map(|name| format!("%\"{name}\"%"));
    let args = args![after.unwrap_or(i64::MAX), limit.saturating_add(1), pattern.as_deref()];
    let (mut lines, next) = store::page(tx.all(&sql, args, read)?, limit, |line| line.seq);
    for line in lines.iter_mut().filter(|line| line.action == ANSWERED) {
        let run = line.detail.get("run").and_then(Value::as_str).and_then(|run| run.parse::<i64>().ok());
        let Some(run) = run else { continue };
        let outcome = tx.one("SELECT outcome FROM runs WHERE run_id = $1", args![run], |row| row.opt_text(0))?;
        line.outcome = outcome.flatten();
    }
    Ok((lines, next))
}

fn read(row: &Row<'_>) -> Result<Line, Error> {
    Ok(Line {
        seq: row.int(0)?,
        at: Timestamp::from_micros(row.int(1)?).to_string(),
        action: row.text(2)?,
        detail: serde_json::from_str(row.str(3)?).map_err(|_| Error::Unreadable("a line of the audit"))?,
        outcome: None,
        hash: row.text(4)?,
    })
}

/// What `link` is called here: an HMAC-SHA-256 under a salt of this state, in hex.
///
/// # Errors
/// [`Error::Database`].
pub fn name_of(tx: &Tx<'_>, link: &LinkId) -> Result<String, Error> {
    Ok(salt::hash(&salt::made(tx, SALT)?, link.as_str()))
}

/// Writes a line and gives its hash.
///
/// # Errors
/// [`Error::Database`].
pub fn note(tx: &Tx<'_>, at: Timestamp, action: &str, detail: &Value) -> Result<String, Error> {
    let last = "SELECT hash FROM audit ORDER BY seq DESC LIMIT 1";
    let previous = tx.one(last, args![], |row| row.text(0))?.unwrap_or_default();
    let detail = detail.to_string();
    let hash = hash_of(&previous, at.as_micros(), action, &detail);
    tx.execute(
        "INSERT INTO audit (at, action, detail, previous, hash) VALUES ($1, $2, $3, $4, $5)",
        args![at, action, &detail, &previous, &hash],
    )?;
    tx.set_meta(END, &hash)?;
    Ok(hash)
}

/// Writes that everything held on `links`, which somebody `asked_for`, is read out, and gives the line's hash.
///
/// # Errors
/// [`Error::Database`].
pub fn note_export(tx: &Tx<'_>, at: Timestamp, asked_for: &str, links: &[LinkId]) -> Result<String, Error> {
    let hashes = links.iter().map(|link| name_of(tx, link)).collect::<Result<Vec<_>, _>>()?;
    note(tx, at, EXPORT, &json!({ "asked_for": asked_for, "links": links.len(), "link_hashes": hashes }))
}

/// What somebody asks for.
#[derive(Debug)]
pub struct Asked {
    /// Where the token stands in the configuration.
    pub caller: Arc<str>,
    /// The word for what the token may be used for.
    pub role: &'static str,
    /// Method and path, without what stands for their parameters.
    pub operation: String,
    /// The link that it is about; the line has its hash.
    pub link: Option<LinkId>,
    /// What else it is about: numbers, and names of ours.
    pub about: Map<String, Value>,
}

/// Writes who asks for what, before anything is done, and gives the line's hash.
///
/// # Errors
/// Those of [`Store::write`].
pub async fn note_asked(store: &Store, at: Timestamp, asked: Asked) -> Result<String, Error> {
    let Asked { caller, role, operation, link, about: mut line } = asked;
    line.extend(
        [("caller", &*caller), ("role", role), ("operation", &*operation)]
            .map(|(name, word)| (name.to_owned(), word.into())),
    );
    let note_it = move |tx: &Tx<'_>| {
        if let Some(link) = &link {
            line.insert("link_hash".to_owned(), name_of(tx, link)?.into());
        }
        note(tx, at, ASKED, &Value::Object(line))
    };
    store.write(note_it).await
}

/// Writes what was answered to the line with the hash `asked`: the `status`, and the run that was begun. A line that
/// cannot be written is told in the log: it is done all the same, and that it was asked for is on record.
pub async fn note_answered(store: &Store, at: Timestamp, asked: String, status: u16, run: Option<&str>) {
    let mut line = json!({ "asked": asked, "status": status });
    if let Some(run) = run {
        line["run"] = run.into();
    }
    if let Err(error) = store.write(move |tx| note(tx, at, ANSWERED, &line)).await {
        tracing::error!(code = error.code(), "an answer is missing in the audit: {error}");
    }
}

/// Writes that a wrong token came to `door`, `api` or `dashboard`. Nothing is said of whose it was; who calls this sees
/// to it that many guesses are few lines. A line that cannot be written is told in the log: the token is refused all
/// the same.
pub async fn note_failed_sign_in(store: &Store, at: Timestamp, door: &'static str) {
    let noted = store.write(move |tx| note(tx, at, SIGN_IN_FAILED, &json!({ "door": door }))).await;
    if let Err(error) = noted {
        tracing::error!(code = error.code(), "a failed sign-in is missing in the audit: {error}");
    }
}

/// The number of lines, and the first that is not under the hash of the one before, or is not there although another
/// one came after it, or was the last.
///
/// # Errors
/// [`Error::Database`].
pub fn check(tx: &Tx<'_>) -> Result<(u64, Option<i64>), Error> {
    let (mut lines, mut broken, mut expected, mut last) = (0, None, String::new(), 0);
    tx.each("SELECT seq, at, action, detail, previous, hash FROM audit ORDER BY seq", args![], |row| {
        lines += 1;
        let hash = hash_of(row.str(4)?, row.int(1)?, row.str(2)?, row.str(3)?);
        if broken.is_none() && (row.str(4)? != expected || row.str(5)? != hash) {
            broken = Some(row.int(0)?);
        }
        expected = hash;
        last = row.int(0)?;
        Ok::<_, Error>(())
    })?;
    // One from before the end was noted has none.
    let is_cut = tx.meta(END)?.is_some_and(|end| end != expected);
    Ok((lines, broken.or(is_cut.then_some(last + 1))))
}

fn hash_of(previous: &str, at: i64, action: &str, detail: &str) -> String {
    let line = Value::from(vec![previous, &at.to_string(), action, detail]);
    hex(&Sha256::digest(line.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_export_is_found_by_each_of_its_links_and_names_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let id = |digit: u8| -> LinkId { format!("00000000-0000-4000-8000-00000000000{digit}").parse().unwrap() };
        let read = move |tx: &Tx<'_>| {
            note_export(tx, Timestamp::from_micros(7), "person", &[id(1), id(2)])?;
            let count = |link: Option<LinkId>| list(tx, link.as_ref(), None, 10).map(|(lines, _)| lines.len());
            let (lines, _) = list(tx, None, None, 10)?;
            Ok((lines, count(Some(id(1)))?, count(Some(id(2)))?, count(Some(id(3)))?))
        };
        let (lines, first, second, other) = store.write(read).await.unwrap();
        assert_eq!((lines.len(), first, second, other), (1, 1, 1, 0));
        assert_eq!((lines[0].action.as_str(), &lines[0].detail["links"]), (EXPORT, &json!(2)));
        assert!(!json!(lines).to_string().contains("00000000-0000"), "{lines:?}");
    }

    #[tokio::test]
    async fn an_order_is_two_lines_that_name_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let link: LinkId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        let (at, operation) = (Timestamp::from_micros(7), "POST /v1/links/{link_id}/refresh".to_owned());
        let about = Map::from_iter([("seq".to_owned(), Value::Null)]);
        let asked = Asked { caller: "admin.token".into(), role: "operate", operation, link: Some(link.clone()), about };
        let hash = note_asked(&store, at, asked).await.unwrap();
        note_answered(&store, at, hash.clone(), 202, Some("3")).await;
        let read = move |tx: &Tx<'_>| Ok::<_, Error>((list(tx, None, None, 10)?.0, list(tx, Some(&link), None, 10)?.0));
        let (lines, of_link) = store.read(read).await.unwrap();
        assert_eq!(lines.iter().map(|line| &*line.action).collect::<Vec<_>>(), [ANSWERED, ASKED]);
        assert_eq!(Value::Object(lines[0].detail.clone()), json!({ "asked": hash, "status": 202, "run": "3" }));
        let mut said = lines[1].detail.clone();
        let name = said.remove("link_hash").unwrap();
        assert_eq!(name.as_str().map(str::len), Some(64));
        let operation = "POST /v1/links/{link_id}/refresh";
        let expected = json!({ "caller": "admin.token", "role": "operate", "operation": operation, "seq": null });
        assert_eq!(Value::Object(said), expected);
        assert_eq!(of_link, lines[1..]);
    }

    #[tokio::test]
    async fn a_line_that_was_changed_or_taken_out_breaks_the_chain() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = Timestamp::from_micros(7);
        let check_after = |sql: &'static str| {
            let store = store.clone();
            async move {
                let looked = store.write(move |tx| {
                    tx.execute(sql, args![])?;
                    let found = check(tx)?;
                    // Only looked at: the failure takes the change back.
                    Err::<(), _>(Error::NotDurable(if found.1.is_some() { "broken" } else { "whole" }))
                });
                looked.await.unwrap_err().code()
            }
        };
        store
            .write(move |tx| {
                (1..=3).try_for_each(|number| note(tx, at, "erase", &json!({ "links": number })).map(drop))
            })
            .await
            .unwrap();
        assert_eq!(store.read(check).await.unwrap(), (3, None));
        assert_eq!(check_after("UPDATE audit SET detail = '{\"links\":9}' WHERE seq = 2").await, "broken");
        assert_eq!(check_after("DELETE FROM audit WHERE seq = 2").await, "broken");
        assert_eq!(check_after("DELETE FROM audit WHERE seq = 1").await, "broken");
        assert_eq!(check_after("DELETE FROM audit WHERE seq = 3").await, "broken");
        assert_eq!(check_after("DELETE FROM audit").await, "broken");
        assert_eq!(check_after("UPDATE meta SET value = value").await, "whole");
    }
}
