//! The state's schema, version by version. A version that was released is never edited; a change is a new one.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::Error;

/// The statements that lead from version n to n + 1, in the SQL that SQLite and PostgreSQL share but for two words:
/// `{bytes}` and `{counter}`.
const VERSIONS: [&str; 9] = [
    include_str!("v1.sql"),
    include_str!("v2.sql"),
    include_str!("v3.sql"),
    include_str!("v4.sql"),
    include_str!("v5.sql"),
    include_str!("v6.sql"),
    include_str!("v7.sql"),
    include_str!("v8.sql"),
    include_str!("v9.sql"),
];

const BYTES: &str = "BLOB";
const COUNTER: &str = "INTEGER PRIMARY KEY";

/// Brings the state to the latest version, each step whole or not at all.
pub(super) fn run(connection: &mut Connection, path: &Path) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = version(&transaction)?;
    refuse_newer(found, path)?;
    for (number, statements) in (1..).zip(VERSIONS).skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(&statements.replace("{bytes}", BYTES).replace("{counter}", COUNTER))?;
        transaction.execute(
            "INSERT INTO meta (name, value) VALUES ('schema_version', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            [number.to_string()],
        )?;
    }
    transaction.commit()?;
    Ok(())
}

/// Refuses a state that this program must not read.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), Error> {
    let found = version(connection)?;
    refuse_newer(found, path)?;
    if found == 0 { Err(Error::Missing(path.to_owned())) } else { Ok(()) }
}

fn refuse_newer(found: i64, path: &Path) -> Result<(), Error> {
    let known = i64::try_from(VERSIONS.len()).unwrap_or(i64::MAX);
    if found > known { Err(Error::Newer { path: path.to_owned(), found, known }) } else { Ok(()) }
}

/// The version of the state, 0 for an empty file.
fn version(connection: &Connection) -> Result<i64, Error> {
    let made = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'meta'";
    if connection.query_row(made, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(0);
    }
    let version = connection
        .query_row("SELECT value FROM meta WHERE name = 'schema_version'", [], |row| row.get::<_, String>(0))
        .optional()?;
    version.and_then(|text| text.parse().ok()).ok_or(Error::Unreadable("its schema version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_a_later_version_is_refused_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut connection = Connection::open(&path).unwrap();
        run(&mut connection, &path).unwrap();
        run(&mut connection, &path).unwrap();
        connection.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'", []).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(matches!(run(&mut connection, &path), Err(Error::Newer { found: 99, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
