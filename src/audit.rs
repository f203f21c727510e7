//! What was done with personal data: lines that cannot be changed, taken out or put in between without being noticed.
//!
//! *Takes* actions inside the caller's transaction. *Gives* lines, each under the hash of the one before. *Promises* that
//! no line names a person: who writes one gives counts and random ids only. Whoever can write the whole file can write
//! a new chain; note the last hash elsewhere if that matters.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::sensitive::hex;
use crate::store::{Error, Tx, args};

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
    Ok(hash)
}

/// The number of lines, and the first that is not under the hash of the one before.
///
/// # Errors
/// [`Error::Database`].
pub fn check(tx: &Tx<'_>) -> Result<(u64, Option<i64>), Error> {
    let (mut lines, mut broken, mut expected) = (0, None, String::new());
    tx.each("SELECT seq, at, action, detail, previous, hash FROM audit ORDER BY seq", args![], |row| {
        lines += 1;
        let hash = hash_of(row.str(4)?, row.int(1)?, row.str(2)?, row.str(3)?);
        if broken.is_none() && (row.str(4)? != expected || row.str(5)? != hash) {
            broken = Some(row.int(0)?);
        }
        expected = hash;
        Ok::<_, Error>(())
    })?;
    Ok((lines, broken))
}

fn hash_of(previous: &str, at: i64, action: &str, detail: &str) -> String {
    let line = Value::from(vec![previous, &at.to_string(), action, detail]);
    hex(&Sha256::digest(line.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Store;

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
        assert_eq!(check_after("UPDATE meta SET value = value").await, "whole");
    }
}
