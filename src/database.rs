//! The database that readers see: where it is, how it is opened, and how its SQL is written.
//!
//! *Gives* connections that read the one file, or those of one folder, and nothing else; and which versions of DuckDB
//! it can be written for. *Not here*: how it is made (`sinks::duckdb`), and what is asked.

use std::io;
use std::path::{Path, PathBuf};

use duckdb::{AccessMode, Config, Connection};

/// Its name, in the lake and in each snapshot.
pub const FILE: &str = "vinculo.duckdb";

/// Memory for DuckDB where it works beside others. One that writes a file goes on in temporary files beyond it.
pub const LITTLE_MEMORY: &str = "96MiB";

/// Why there is no published database to read.
#[derive(Debug, thiserror::Error)]
pub enum Unpublished {
    /// There is none.
    #[error(
        "nothing is published in {0}: run `vinculo serve` or `vinculo publish` first, with \"duckdb\" in lake.sinks"
    )]
    Nothing(PathBuf),
    /// Nobody can say whether there is one.
    #[error("the lake in {path} cannot be read: {source}; let this user read there, or run this as one who may")]
    Unreadable {
        /// The folder of the lake.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Unpublished {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Nothing(_) => "nothing_published",
            Self::Unreadable { .. } => "lake_not_readable",
        }
    }
}

/// The database of the snapshot that is current now: whoever asks several questions asks one snapshot.
///
/// # Errors
/// [`Unpublished`].
pub fn published(lake: &Path) -> Result<PathBuf, Unpublished> {
    let path = || lake.to_owned();
    std::fs::canonicalize(lake.join(FILE)).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Unpublished::Nothing(path()),
        _ => Unpublished::Unreadable { path: path(), source },
    })
}

/// Opens a published database for reading. Nothing else can be read or loaded through it, and nothing personal is
/// written into temporary files.
///
/// # Errors
/// DuckDB's.
pub fn open(file: &Path) -> duckdb::Result<Connection> {
    open_with(file, without_extensions()?)
}

/// The same for questions that are asked beside work which must not wait: on one thread, in little memory.
///
/// # Errors
/// DuckDB's.
pub fn open_aside(file: &Path) -> duckdb::Result<Connection> {
    open_with(file, without_extensions()?.with("threads", "1")?.with("memory_limit", LITTLE_MEMORY)?)
}

fn open_with(file: &Path, settings: Config) -> duckdb::Result<Connection> {
    let connection = Connection::open_with_flags(file, settings.access_mode(AccessMode::ReadOnly)?)?;
    connection
        .execute_batch("SET temp_directory = ''; SET enable_external_access = false; SET lock_configuration = true;")?;
    Ok(connection)
}

/// A connection that holds nothing, to read the Parquet files below `folder` where there is no database of them.
/// Nothing else can be read or loaded through it, and nothing personal is written into temporary files.
///
/// # Errors
/// DuckDB's.
pub fn over_files(folder: &Path) -> duckdb::Result<Connection> {
    let connection = Connection::open_in_memory_with_flags(without_extensions()?)?;
    connection.execute_batch(&format!(
        // It is asked for before a pattern is looked into, and again for what is found.
        "SET temp_directory = ''; SET allowed_directories = [{}, {}]; SET enable_external_access = false; \
         SET lock_configuration = true;",
        quoted(&folder.to_string_lossy()),
        quoted(&pattern(folder)),
    ))?;
    Ok(connection)
}

/// Settings with which nothing is loaded from elsewhere.
///
/// # Errors
/// DuckDB's.
pub fn without_extensions() -> duckdb::Result<Config> {
    Config::default()
        .enable_autoload_extension(false)?
        .with("autoinstall_known_extensions", "false")?
        .with("allow_community_extensions", "false")
}

/// Whether files can be written for readers of DuckDB `version`, such as `v1.0.0`.
pub fn writes_version(version: &str) -> bool {
    let attach = format!("ATTACH ':memory:' AS probe (STORAGE_VERSION {})", quoted(version));
    Connection::open_in_memory().is_ok_and(|connection| connection.execute_batch(&attach).is_ok())
}

/// The rows of a Parquet file, as SQL: no name in its path is taken for a pattern, or for a column.
pub fn rows_of(file: &Path) -> String {
    format!("read_parquet({}, hive_partitioning = false)", quoted(&pattern(file)))
}

/// The pattern that finds this path alone.
fn pattern(path: &Path) -> String {
    let mut pattern = String::new();
    for letter in path.to_string_lossy().chars() {
        match letter {
            '*' | '?' | '[' => pattern.extend(['[', letter, ']']),
            _ => pattern.push(letter),
        }
    }
    pattern
}

/// A text as an SQL literal.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lake_in_which_nothing_stands_is_told_from_one_that_cannot_be_looked_into() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(published(folder.path()).unwrap_err().code(), "nothing_published");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = published(&file).unwrap_err();
        assert!(error.code() == "lake_not_readable" && error.to_string().contains("Not a directory"), "{error}");
    }

    #[test]
    fn a_file_is_read_whatever_its_folders_are_called_and_no_other_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = Connection::open_in_memory().unwrap();
        // The last two are what a pattern made of others would find.
        let names =
            ["it's", "[ab]", "a*", "a?", "back\\slash", "year=2026", "a \"b\", c", "100%", "ção", "{a}", "a", "ab"];
        let file = |name: &str| folder.path().join(name).join("part-0.parquet");
        for (number, name) in names.iter().enumerate() {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            let plain = folder.path().join("plain.parquet");
            write
                .execute_batch(&format!("COPY (SELECT {number} AS n) TO {}", quoted(plain.to_str().unwrap())))
                .unwrap();
            std::fs::rename(plain, file(name)).unwrap();
        }
        for (number, name) in names.iter().enumerate() {
            let connection = over_files(&folder.path().join(name)).unwrap();
            let ask = |name: &str| {
                let sql = format!("SELECT string_agg(n, ',') FROM (SELECT * FROM {}) t(n)", rows_of(&file(name)));
                connection.query_row(&sql, [], |row| row.get::<_, String>(0))
            };
            assert_eq!(ask(name).map_err(|error| error.to_string()), Ok(number.to_string()), "{name}");
            assert!(ask(names[(number + 1) % names.len()]).is_err(), "{name} has no wall around it");
        }
    }

    #[test]
    fn questions_aside_take_one_thread_and_little_memory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        Connection::open(&file).unwrap();
        let connection = open_aside(&file).unwrap();
        let sql = "SELECT current_setting('threads'), current_setting('memory_limit')";
        let settings: (i64, String) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(settings, (1, "96.0 MiB".to_owned()));
    }
}
