//! `vinculo subject`: everything held on one link or person, as JSON. That it was read out is in the audit.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use duckdb::Connection;
use serde::Serialize;
use serde_json::{Map, Value};

use super::erase::Whom;
use super::sql::{self, Form};
use super::{Exit, Global, streams, work};
use crate::admin::client::Client;
use crate::admin::v1::exports::Export;
use crate::clock::Clock;
use crate::config::{Config, Needs};
use crate::database::{self, quoted};
use crate::publish::{Lake, Manifest, OwnLake};
use crate::sensitive::Pepper;
use crate::store::{Readers, Store};
use crate::{audit, features, schema, store, subject};

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
    let lake = Lake::look(&config.lake.path);
    // Of a lake that is not mounted nobody can say that it has nothing.
    readers.read::<_, store::Error>(|tx| OwnLake::of(tx, &lake))?.is_in(&lake)?;
    let lake = published(&config.lake.path, &held.links)?;
    // Before anything is told. Nobody reads a person out without a line that says so.
    let export = Export { asked_for: subject.kind().name().to_owned(), links: held.links.clone() };
    work::block_on(note(&config, export))?;
    writeln!(streams::out(), "{}", document(&held, &lake)?)?;
    if held.damaged == 0 {
        return Ok(Exit::Done);
    }
    let note = format!(
        "{} of these rows have a body that is damaged in the state, and say `body_is_damaged` instead: `vinculo verify` names \
         them, and a backup has them",
        held.damaged
    );
    streams::note(&note, global)?;
    Ok(Exit::Damaged)
}

/// What is printed. It does not become a [`Value`] first, in which a number has no more digits than a float.
fn document(held: &subject::Held, lake: &Map<String, Value>) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Document<'d> {
        lake: &'d Map<String, Value>,
        links: &'d [String],
        state: &'d subject::Tables,
    }

    serde_json::to_string_pretty(&Document { lake, links: &held.links, state: &held.tables })
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

/// The rows of the links in each table of the snapshot that readers see, those under `pii/` too when it has them.
fn published(path: &Path, links: &[String]) -> anyhow::Result<Map<String, Value>> {
    let lake = Lake::look(path);
    let Some(manifest) = lake.current() else {
        // An export must not look whole when nobody knows what else there is.
        ensure!(
            matches!(path.join("current").symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound),
            "the manifest of the current snapshot in {} cannot be read: `vinculo verify` says what is wrong with it, \
             `vinculo rebuild` writes it anew",
            path.display()
        );
        return Ok(Map::new());
    };
    if links.is_empty() {
        return Ok(Map::new());
    }
    // One folder for all tables: `current` may move meanwhile.
    let folder = lake.folder(manifest.snapshot).canonicalize()?;
    let snapshot = Snapshot::open(folder, manifest)?;
    let names: Vec<String> = links.iter().map(|link| quoted(link)).collect();
    let of_links = |table: &&schema::Table| table.columns.iter().any(|column| column.name == "link_id");
    let masked = schema::get().tables.iter().filter(of_links).map(|table| table.name.as_str()).chain([features::TABLE]);
    let unmasked = schema::pii().tables.iter().map(|table| table.name.as_str());
    let tables = masked.chain(unmasked.filter(|table| snapshot.manifest.table(table).is_some()));
    tables
        .map(|table| {
            let rows = snapshot.rows(table, &format!("link_id IN ({})", names.join(", ")));
            Ok((table.to_owned(), rows.with_context(|| format!("{table} of the lake cannot be read"))?.into()))
        })
        .collect()
}

/// A published snapshot, to read.
struct Snapshot {
    folder: PathBuf,
    manifest: Manifest,
    /// The tables for analysts; `None` when there are only Parquet files of them.
    database: Option<Connection>,
    files: Connection,
}

impl Snapshot {
    fn open(folder: PathBuf, manifest: Manifest) -> duckdb::Result<Self> {
        let has_database = manifest.files.iter().any(|file| file.path == database::FILE);
        let database = has_database.then(|| database::open(&folder.join(database::FILE))).transpose()?;
        let files = database::over_files(&folder)?;
        Ok(Self { folder, manifest, database, files })
    }

    /// The rows of a table for which `condition` holds.
    fn rows(&self, table: &str, condition: &str) -> anyhow::Result<Vec<Value>> {
        // Whose rows are unmasked is in no database.
        let is_unmasked = schema::pii().tables.iter().any(|unmasked| unmasked.name == table);
        let (connection, sources) = match &self.database {
            Some(database) if !is_unmasked => (database, vec![format!("SELECT * FROM {table}")]),
            _ => (&self.files, self.sources(table)?),
        };
        let mut rows = Vec::new();
        for source in sources {
            let mut answer = Vec::new();
            sql::ask(connection, &format!("{source} WHERE {condition}"), Form::Json, &mut answer)?;
            for line in String::from_utf8_lossy(&answer).lines() {
                rows.push(serde_json::from_str(line)?);
            }
        }
        Ok(rows)
    }

    /// The rows of each of a table's files, as SQL.
    fn sources(&self, table: &str) -> anyhow::Result<Vec<String>> {
        let files = self.manifest.table(table).into_iter().flat_map(|table| &table.files);
        files
            .map(|file| {
                let rows = database::rows_of(&self.folder.join(&file.path));
                if table != features::TABLE {
                    return Ok(format!("SELECT * FROM {rows}"));
                }
                // The date is in the folder's name alone.
                let date = file.path.split('/').find_map(|part| part.strip_prefix("as_of_date="));
                let date = date.with_context(|| format!("{} says no date", file.path))?;
                Ok(format!("SELECT DATE {} AS as_of_date, * FROM {rows}", quoted(date)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;
    use crate::store::args;
    use crate::subject::Subject;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    /// A lake whose current snapshot has a link, its features of two dates and its owner, and the same of another link.
    /// Somebody gave its folders names that are more than names elsewhere.
    fn lake(has_database: bool) -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("env=it's [1]*").tempdir().unwrap();
        let snapshot = folder.path().join("snapshots/000007");
        let connection = Connection::open_in_memory().unwrap();
        let both =
            |columns: &str| format!("SELECT * FROM (VALUES ('{LINK}'), ('other')) t(link_id), (SELECT {columns})");
        let rows = [
            ("links", "links/link_bucket=0/part-0.parquet", both("'user-1' AS external_id, ['A', 'B'] AS dq_flags")),
            (
                "credit_features",
                "credit_features/as_of_date=2026-01-31/part-0.parquet",
                both("1.5::DECIMAL(19,4) AS pay"),
            ),
            (
                "credit_features",
                "credit_features/as_of_date=2026-02-28/part-0.parquet",
                both("2.5::DECIMAL(19,4) AS pay"),
            ),
            ("pii/owners", "pii/owners/link_bucket=0/part-0.parquet", both("'PESSOA FICTÍCIA' AS display_name")),
        ];
        let plain = tempfile::NamedTempFile::new().unwrap();
        let mut tables: Vec<Value> = Vec::new();
        for (table, path, sql) in &rows {
            std::fs::create_dir_all(snapshot.join(path).parent().unwrap()).unwrap();
            let to = quoted(plain.path().to_str().unwrap());
            connection.execute_batch(&format!("COPY ({sql}) TO {to} (FORMAT parquet)")).unwrap();
            std::fs::copy(plain.path(), snapshot.join(path)).unwrap();
            let file = json!({ "path": path, "rows": 2, "bytes": 1, "sha256": "" });
            match tables.iter_mut().find(|entry| entry["name"] == *table) {
                Some(entry) => entry["files"].as_array_mut().unwrap().push(file),
                None => {
                    tables.push(json!({ "name": table, "schema_version": 1, "key": [], "rows": 2, "files": [file] }));
                }
            }
        }
        let mut files = Vec::new();
        if has_database {
            let database = Connection::open(snapshot.join(database::FILE)).unwrap();
            for table in &schema::get().tables {
                database.execute_batch(&format!("CREATE TABLE {} (link_id VARCHAR)", table.name)).unwrap();
            }
            let features = both("DATE '2026-03-31' AS as_of_date");
            let links = both("'user-1' AS external_id");
            let sql = format!("CREATE TABLE credit_features AS {features}; CREATE OR REPLACE TABLE links AS {links}");
            database.execute_batch(&sql).unwrap();
            files.push(json!({ "path": database::FILE, "bytes": 1, "sha256": "" }));
        }
        let manifest = json!({
            "snapshot": 7, "schema_version": 1, "published_at": "2026-03-02T12:00:00Z", "vinculo_version": "0.1.0",
            "built_from": { "state_id": "a", "change": 1 }, "link_buckets": 1, "tables": tables, "files": files,
        });
        std::fs::write(snapshot.join("manifest.json"), manifest.to_string()).unwrap();
        symlink("snapshots/000007", folder.path().join("current")).unwrap();
        folder
    }

    fn told(lake: &Path) -> Map<String, Value> {
        published(lake, &[LINK.to_owned()]).unwrap()
    }

    #[test]
    fn a_lake_without_a_database_is_read_from_its_parquet_files() {
        let told = told(lake(false).path());
        assert_eq!(told["links"], json!([{ "link_id": LINK, "external_id": "user-1", "dq_flags": ["A", "B"] }]));
        let of_date = |date: &str, pay: &str| json!({ "as_of_date": date, "link_id": LINK, "pay": pay });
        let features = json!([of_date("2026-01-31", "1.5000"), of_date("2026-02-28", "2.5000")]);
        assert_eq!(told["credit_features"], features);
        assert_eq!(told["salaries_history"], json!([]), "a table without files has no rows");
    }

    #[test]
    fn what_stands_unmasked_under_pii_is_told_too_where_it_is_published() {
        for has_database in [false, true] {
            let told = told(lake(has_database).path());
            assert_eq!(told["pii/owners"], json!([{ "link_id": LINK, "display_name": "PESSOA FICTÍCIA" }]));
            assert!(!told.contains_key("pii/employers"), "it is not published");
        }
    }

    #[test]
    fn a_lake_with_a_database_is_read_from_it() {
        let told = told(lake(true).path());
        assert_eq!(told["links"], json!([{ "link_id": LINK, "external_id": "user-1" }]));
        assert_eq!(told["credit_features"], json!([{ "link_id": LINK, "as_of_date": "2026-03-31" }]));
    }

    #[tokio::test]
    async fn an_export_has_every_digit_that_belvo_sent() {
        let body = r#"{"base_amount":999999999999999.99,"n":12345678901234567890123}"#;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let packed = zstd::encode_all(body.as_bytes(), 1).unwrap();
        let sql = "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, \
                   known_from, started_at, fetched_at, body) VALUES ($1, 'employments', 'k', 1, 0, 'i', 0, 0, 0, $2)";
        store.write(move |tx| tx.execute(sql, args![LINK, packed.as_slice()])).await.unwrap();
        let held = subject::held(&store.readers(), &Subject::Link(LINK.parse().unwrap()), None).unwrap();
        let told = document(&held, &Map::new()).unwrap();
        assert!(told.contains(body), "{told}");
        assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["links"], json!([LINK]));
    }

    #[test]
    fn a_lake_that_cannot_be_read_is_no_empty_one() {
        let nothing = tempfile::tempdir().unwrap();
        assert!(published(nothing.path(), &[LINK.to_owned()]).unwrap().is_empty());
        let lake = lake(false);
        let file = lake.path().join("snapshots/000007/links/link_bucket=0/part-0.parquet");
        std::fs::remove_file(file).unwrap();
        let error = published(lake.path(), &[LINK.to_owned()]).unwrap_err();
        assert!(error.to_string().contains("links of the lake cannot be read"), "{error}");
        std::fs::write(lake.path().join("current/manifest.json"), "{").unwrap();
        let error = published(lake.path(), &[LINK.to_owned()]).unwrap_err();
        assert!(error.to_string().contains("vinculo verify"), "{error}");
    }
}
