//! The state's schema, version by version. A version that was released is never edited; a change is a new one.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::Error;

/// The statements that lead from version n to n + 1, in the SQL that SQLite and PostgreSQL share but for two words:
/// `{bytes}` and `{counter}`.
const VERSIONS: [&str; 10] = [
    include_str!("v1.sql"),
    include_str!("v2.sql"),
    include_str!("v3.sql"),
    include_str!("v4.sql"),
    include_str!("v5.sql"),
    include_str!("v6.sql"),
    include_str!("v7.sql"),
    include_str!("v8.sql"),
    include_str!("v9.sql"),
    include_str!("v10.sql"),
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

    #[test]
    fn lists_from_before_version_9_that_are_older_than_one_before_them_are_no_evidence() {
        let connection = Connection::open_in_memory().unwrap();
        for statements in &VERSIONS[..8] {
            connection.execute_batch(&statements.replace("{bytes}", BYTES).replace("{counter}", COUNTER)).unwrap();
        }
        // The day on which Belvo collected each list; the last one is empty. Another resource has times of its own.
        let lists = [("employments", [Some(1), Some(5), Some(3), Some(5), None]), ("owners", [Some(4); 5])];
        for (resource, days) in lists {
            for (fetched_at, collected_at) in (0..).zip(days) {
                let list = "INSERT INTO link_snapshots (link_id, resource, fetched_at, started_at, collected_at, item_count, \
                     changed) VALUES ('l', ?1, ?2, ?2, ?3, 1, 0)";
                connection.execute(list, (resource, fetched_at, collected_at)).unwrap();
            }
        }
        connection.execute_batch(VERSIONS[8]).unwrap();
        let mut older =
            connection.prepare("SELECT resource, fetched_at FROM link_snapshots WHERE is_stale = 1").unwrap();
        let older = older.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?))).unwrap();
        assert_eq!(older.map(Result::unwrap).collect::<Vec<_>>(), [("employments".to_owned(), 2)]);
    }
}
