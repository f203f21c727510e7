//! `credit_features`, a partition for each date that somebody asked for.
//!
//! *Takes* the recorded runs, and the Parquet files of the other tables. *Gives* one file a date. *Promises* that a
//! partition has the rows that a rebuild would give it; that one whose instant had passed when it was last written is
//! taken over as it is, but for links of which something came in later that Belvo had collected by then; that only
//! links that changed are computed again in the others; and that no partition has rows of a link whose jobs are not
//! kept any more.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use chrono::NaiveDate;

use super::Error;
use super::delta;
use super::snapshots::{FileEntry, Manifest, Staging, TableEntry, checksum};
use super::tables::MOST_FEW;
use crate::clock::Timestamp;
use crate::features::TABLE;
use crate::features::compute::{self, Computer};
use crate::features::dictionary;
use crate::features::runs::{self, Mode, Run};
use crate::reference::Reference;
use crate::resources::employments;
use crate::sinks::{self, parquet};
use crate::store::{self, Tx, args};

/// What the state says about features, read together with the tables.
pub(super) struct Partitions {
    dates: BTreeMap<NaiveDate, Vec<Wanted>>,
    /// Links that have changed since the previous snapshot; `None` when every partition is computed anew.
    changed: Option<Vec<String>>,
    latest: Latest,
    news: News,
    /// Link, resource and code of each latest refresh that failed.
    pub(super) errors: Vec<(String, String, String)>,
}

/// One run of a date.
struct Wanted {
    run: Run,
    /// How many of the [`News`] are late for it: something that could have been known to it may have come in, or was
    /// removed by retention, since the previous snapshot.
    late: usize,
}

/// Links of which something came in since the previous snapshot, by when that could have been known, the earliest
/// first: of each of many runs the first of them are late.
#[derive(Default)]
struct News {
    known: Vec<Timestamp>,
    links: Vec<String>,
}

impl News {
    /// How many could have been known to `run`.
    fn late_for(&self, run: &Run) -> usize {
        self.known.partition_point(|known| *known <= run.known_at)
    }
}

/// The links that were first seen after the earliest run of those that are computed, the earliest first: each of many
/// runs leaves out the last of them.
#[derive(Default)]
struct Latest {
    seen_at: Vec<Timestamp>,
    links: Vec<String>,
}

impl Latest {
    fn read(tx: &Tx<'_>, until: Timestamp) -> Result<Self, store::Error> {
        let mut latest = Self::default();
        let sql = "SELECT first_seen_at, link_id FROM links WHERE first_seen_at > $1 ORDER BY first_seen_at, link_id";
        tx.each(sql, args![until], |row| {
            latest.seen_at.push(row.at(0)?);
            latest.links.push(row.text(1)?);
            Ok::<_, store::Error>(())
        })?;
        Ok(latest)
    }

    /// The links that were first seen after `run`, of which it says nothing.
    fn after(&self, run: &Run) -> &[String] {
        &self.links[self.seen_at.partition_point(|seen_at| *seen_at <= run.until())..]
    }
}

impl Partitions {
    /// Reads the runs, and what changed since the snapshot `previous`, whose files may be taken over from their folder.
    pub(super) fn read(tx: &Tx<'_>, previous: Option<&(&Manifest, PathBuf)>) -> Result<Self, store::Error> {
        let manifest = previous.map(|(manifest, _)| *manifest);
        let mut dates: BTreeMap<NaiveDate, Vec<Wanted>> = BTreeMap::new();
        let runs = runs::all(tx)?;
        let news = manifest.filter(|_| !runs.is_empty()).map_or(Ok(News::default()), |manifest| news(tx, manifest))?;
        for run in runs {
            let late = news.late_for(&run);
            dates.entry(run.as_of).or_default().push(Wanted { run, late });
        }
        // Whom an erasure has removed, no partition says.
        let erasing = tx.one("SELECT 1 FROM erasures WHERE step = 'removed'", args![], |_| Ok(()))?;
        let changed = manifest.filter(|_| erasing.is_none()).map(|manifest| {
            tx.all(
                "SELECT link_id FROM links WHERE changed_seq > $1 UNION SELECT link_id FROM refreshes WHERE touched_seq > $1",
                args![manifest.built_from.change],
                |row| row.text(0),
            )
        });
        let partitions = Self {
            dates,
            changed: changed.transpose()?,
            latest: Latest::default(),
            news,
            errors: tx.all(
                "SELECT link_id, resource, last_error_code FROM refreshes WHERE last_error_code IS NOT NULL \
                 ORDER BY link_id, resource",
                args![],
                |row| Ok((row.text(0)?, row.text(1)?, row.text(2)?)),
            )?,
        };
        let computed = partitions.dates.iter().filter(|(date, wanted)| {
            let earlier = partitions.earlier(previous, &path_of(**date));
            !earlier.is_some_and(|earlier| partitions.stands(wanted, &earlier))
        });
        let first = computed.flat_map(|(_, wanted)| wanted).map(|wanted| wanted.run.until()).min();
        let latest = first.map(|first| Latest::read(tx, first)).transpose()?.unwrap_or_default();
        Ok(Self { latest, ..partitions })
    }

    /// The file of a date in the previous snapshot, when it may be of use.
    fn earlier<'m>(&self, previous: Option<&'m (&'m Manifest, PathBuf)>, path: &Path) -> Option<Earlier<'m>> {
        let (manifest, folder) = previous.filter(|_| self.changed.is_some())?;
        Earlier::find(manifest, folder, path)
    }

    /// Whether the earlier file of a date has all that is wanted of it.
    fn stands(&self, wanted: &[Wanted], earlier: &Earlier<'_>) -> bool {
        let nothing_changed = self.changed.as_ref().is_none_or(Vec::is_empty);
        wanted.iter().all(|wanted| earlier.has(&wanted.run) && (nothing_changed || earlier.stands(wanted)))
    }

    /// The links whose rows are computed anew in files of the `previous` snapshot; `None` when these are not few, or
    /// there are no such files.
    pub(super) fn recomputed(&self, previous: Option<&(&Manifest, PathBuf)>) -> Option<BTreeSet<String>> {
        let changed = self.changed.as_ref().filter(|changed| (1..=MOST_FEW).contains(&changed.len()))?;
        let (manifest, folder) = previous?;
        let is_recomputed = |(date, wanted): (&NaiveDate, &Vec<Wanted>)| {
            let path = path_of(*date);
            let earlier = Earlier::find(manifest, folder, &path);
            earlier
                .is_some_and(|earlier| wanted.iter().any(|wanted| earlier.has(&wanted.run) && !earlier.stands(wanted)))
        };
        self.dates.iter().any(is_recomputed).then(|| changed.iter().cloned().collect())
    }

    /// Writes or takes over the file of each date. `tables` are staged already, and `delta` holds the rows of the links
    /// that are [`recomputed`](Self::recomputed), if these are few; `previous` is the last snapshot.
    pub(super) fn stage(
        &self,
        staging: &Staging,
        tables: &[TableEntry],
        delta: Option<&delta::Files>,
        previous: Option<(&Manifest, PathBuf)>,
        reference: &Reference,
    ) -> Result<TableEntry, Error> {
        let mut files = Vec::new();
        let mut computer = None;
        for (date, wanted) in &self.dates {
            let path = path_of(*date);
            let earlier = self.earlier(previous.as_ref(), &path);
            if let Some(earlier) = earlier.as_ref().filter(|earlier| self.stands(wanted, earlier)) {
                staging.take_over(earlier.folder, earlier.file)?;
                files.push(earlier.file.clone());
                continue;
            }
            let earlier = earlier.filter(Earlier::is_undamaged);
            let computer = match &mut computer {
                Some(computer) => computer,
                None => computer.insert(Self::computer(staging, tables, delta, reference)?),
            };
            let mut kept = Vec::new();
            for wanted in wanted {
                kept.extend(self.add(computer, wanted, earlier.as_ref()).map_err(sinks::Error::from)?);
            }
            let whole = staging.folder.join(&path);
            let folder = whole.parent().unwrap_or(&staging.folder);
            fs::create_dir_all(folder).map_err(|source| Error::at(folder, source))?;
            let rows = Self::splice(computer, earlier.filter(|_| !kept.is_empty()).as_ref(), &kept, &whole)?;
            files.push(staging.checked(&path, Some(rows))?);
        }
        Ok(TableEntry {
            name: TABLE.to_owned(),
            schema_version: dictionary::version(),
            key: dictionary::relation(TABLE).key.clone(),
            rows: files.iter().filter_map(|file| file.rows).sum(),
            files,
        })
    }

    fn computer(
        staging: &Staging,
        tables: &[TableEntry],
        delta: Option<&delta::Files>,
        reference: &Reference,
    ) -> Result<Computer, Error> {
        let all = |table: &str| {
            let entry = tables.iter().find(|entry| entry.name == table);
            entry.into_iter().flat_map(|entry| &entry.files).map(|file| staging.folder.join(&file.path)).collect()
        };
        let of_wanted = |table: &str| delta?.of(table);
        Ok(Computer::over_parquet(all, of_wanted, &staging.folder, reference).map_err(sinks::Error::from)?)
    }

    /// Computes the rows of a run; says which of the earlier file stay as they are, if any do.
    fn add<'s>(
        &'s self,
        computer: &Computer,
        wanted: &'s Wanted,
        earlier: Option<&Earlier<'_>>,
    ) -> duckdb::Result<Option<RowsToKeep<'s>>> {
        let Wanted { run, late } = wanted;
        let later = self.latest.after(run);
        let Some((earlier, changed)) = earlier.filter(|earlier| earlier.has(run)).zip(self.changed.as_ref()) else {
            computer.add(run, None, later)?;
            return Ok(None);
        };
        let changed = if earlier.is_final(run) { &self.news.links[..*late] } else { changed };
        computer.add(run, Some(changed), later)?;
        Ok(Some(RowsToKeep { mode: run.mode, all_but: changed.iter().map(String::as_bytes).collect() }))
    }

    /// Writes what was computed and, from the file before, what is `kept`; gives the number of rows. Also where nothing
    /// is kept: what DuckDB writes shows values of its columns outside of them.
    fn splice(
        computer: &Computer,
        earlier: Option<&Earlier<'_>>,
        kept: &[RowsToKeep<'_>],
        whole: &Path,
    ) -> Result<u64, Error> {
        let [computed, none] = ["computed", "none"].map(|extension| whole.with_extension(extension));
        computer.write(&computed).map_err(sinks::Error::from)?;
        if earlier.is_none() {
            computer.write(&none).map_err(sinks::Error::from)?;
        }
        let before = earlier.map_or_else(|| none.clone(), |earlier| earlier.folder.join(&earlier.file.path));
        let stays = |[link_id, mode]: parquet::Key<'_>| {
            kept.iter().any(|kept| kept.mode.name().as_bytes() == mode && !kept.all_but.contains(link_id))
        };
        let rows = parquet::splice([&before, &computed], whole, compute::KEY, stays)?;
        for done in std::iter::once(&computed).chain(earlier.is_none().then_some(&none)) {
            fs::remove_file(done).map_err(|source| Error::at(done, source))?;
        }
        Ok(rows)
    }
}

/// The rows of the file before that stay in a date's file: those of one mode,
struct RowsToKeep<'l> {
    mode: Mode,
    /// but for those of these links.
    all_but: HashSet<&'l [u8]>,
}

/// The file of a date in the previous snapshot.
struct Earlier<'m> {
    folder: &'m Path,
    file: &'m FileEntry,
    change: i64,
    published_at: Option<Timestamp>,
}

impl<'m> Earlier<'m> {
    fn find(manifest: &'m Manifest, folder: &'m Path, path: &Path) -> Option<Self> {
        let file = manifest.table(TABLE)?.files.iter().find(|file| Path::new(&file.path) == path)?;
        let published_at = Timestamp::parse(&manifest.published_at);
        Some(Self { folder, file, change: manifest.built_from.change, published_at })
    }

    /// Whether the run was known when the file was written.
    fn has(&self, run: &Run) -> bool {
        run.change <= self.change
    }

    /// Whether the file is as it was published. One that is not is made anew.
    fn is_undamaged(&self) -> bool {
        let path = self.folder.join(&self.file.path);
        let is_undamaged = checksum(&path).is_ok_and(|(_, sha256)| sha256 == self.file.sha256);
        if !is_undamaged {
            let path = path.display();
            tracing::warn!(code = "damaged_snapshot", "{path} is damaged, and its date is computed anew");
        }
        is_undamaged
    }

    /// Whether the instant of the run had passed when the file was written.
    fn is_final(&self, run: &Run) -> bool {
        run.mode == Mode::Retro || self.published_at.is_some_and(|published| published > run.known_at)
    }

    /// Whether every row of the run is what it was.
    fn stands(&self, wanted: &Wanted) -> bool {
        self.is_final(&wanted.run) && wanted.late == 0
    }
}

/// Links of which something new has come in since `previous`, each with the earliest instant at which that could have
/// been known: Belvo may have collected it long before it was fetched. What retention removed is not known at any time.
fn news(tx: &Tx<'_>, previous: &Manifest) -> Result<News, store::Error> {
    let (resource, before) = (employments::RESOURCE.name, previous.built_from.change);
    let mut news = HashMap::<String, Timestamp>::new();
    let mut note = |link_id: &str, known: Timestamp| match news.get_mut(link_id) {
        Some(earliest) => *earliest = known.min(*earliest),
        None => drop(news.insert(link_id.to_owned(), known)),
    };
    // Not grouped by link: the lists would be walked link by link, those without news too.
    tx.each(
        "SELECT s.link_id, s.collected_at, s.fetched_at, v.collected_at FROM link_snapshots s LEFT JOIN record_versions v \
         ON v.link_id = s.link_id AND v.resource = s.resource AND v.fetched_at = s.fetched_at \
         WHERE s.news_seq > $2 AND s.resource = $1",
        args![resource, before],
        |row| {
            let instants = [row.opt_at(1)?, Some(row.at(2)?), row.opt_at(3)?];
            if let Some(known) = instants.into_iter().flatten().min() {
                note(row.str(0)?, known);
            }
            Ok::<_, store::Error>(())
        },
    )?;
    // Another version gives an answer that came too late another place in the history, however old that is: not before
    // Belvo had collected it.
    tx.each(
        "SELECT v.link_id, coalesce(v.collected_at, v.fetched_at) FROM refreshes r JOIN record_versions v \
         ON v.link_id = r.link_id AND v.resource = r.resource WHERE r.resource = $1 AND r.content_seq > $2 AND v.is_late = 1",
        args![resource, before],
        |row| {
            note(row.str(0)?, row.at(1)?);
            Ok::<_, store::Error>(())
        },
    )?;
    tx.each(
        "SELECT link_id FROM refreshes WHERE resource = $1 AND removed_seq > $2",
        args![resource, before],
        |row| {
            note(row.str(0)?, Timestamp::from_micros(0));
            Ok::<_, store::Error>(())
        },
    )?;
    let mut news: Vec<(Timestamp, String)> = news.into_iter().map(|(link_id, known)| (known, link_id)).collect();
    news.sort_unstable();
    let (known, links) = news.into_iter().unzip();
    Ok(News { known, links })
}

/// The Parquet file of a date, when one is published.
pub(super) fn file(manifest: &Manifest, date: NaiveDate) -> Option<&FileEntry> {
    let path = path_of(date);
    manifest.table(TABLE)?.files.iter().find(|file| Path::new(&file.path) == path)
}

fn path_of(date: NaiveDate) -> PathBuf {
    format!("{TABLE}/as_of_date={date}/part-0.parquet").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn another_version_is_news_of_the_time_of_each_answer_that_came_too_late_before() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let fill = |tx: &Tx<'_>| {
            // Collected at 500, 100 and 700; published between the second and the third.
            for (version, is_late, collected, fetched) in [(1, 0, 500, 510), (2, 1, 100, 520), (3, 0, 700, 710)] {
                tx.execute(
                    "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, collected_at, \
                     known_from, started_at, fetched_at, body) VALUES ('a', $1, 'r', $2, $3, 'r', $4, $4, $5, $5, $6)",
                    args![employments::RESOURCE.name, version, is_late, collected, fetched, [].as_slice()],
                )?;
            }
            tx.execute(
                "INSERT INTO link_snapshots (link_id, resource, fetched_at, started_at, collected_at, item_count, changed, \
                 news_seq) VALUES ('a', $1, 710, 710, 700, 1, 1, 9)",
                args![employments::RESOURCE.name],
            )?;
            tx.execute(
                "INSERT INTO refreshes (link_id, resource, marks, priority, content_seq) VALUES ('a', $1, 1, 0, 9)",
                args![employments::RESOURCE.name],
            )
        };
        store.write(fill).await.unwrap();
        for (change, known) in [(8, Some(100)), (9, None)] {
            let previous = serde_json::from_value(serde_json::json!({
                "snapshot": 1, "schema_version": 1, "published_at": "", "vinculo_version": "", "link_buckets": 1,
                "built_from": { "state_id": "", "change": change }, "tables": [], "files": [],
            }));
            let previous: Manifest = previous.unwrap();
            let news = store.read(move |tx| news(tx, &previous)).await.unwrap();
            let known = Vec::from_iter(known.map(Timestamp::from_micros));
            assert_eq!((news.links, news.known), (vec!["a".to_owned(); known.len()], known), "since {change}");
        }
    }

    #[tokio::test]
    async fn links_that_came_later_are_read_once_for_all_runs_and_for_none_that_stands() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let fill = |tx: &Tx<'_>| {
            for (link, seen) in [("early", 50), ("b", 150), ("a", 250)] {
                let sql = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, $2, 1)";
                tx.execute(sql, args![link, seen])?;
            }
            for (date, known) in [("2026-01-31", 100), ("2026-02-28", 200)] {
                let sql = "INSERT INTO feature_runs (as_of_date, pit_mode, known_at, lag_months, ran_at, changed_seq) \
                           VALUES ($1, 'strict', $2, 1, $2, 1)";
                tx.execute(sql, args![date, known])?;
            }
            Ok(())
        };
        store.write(fill).await.unwrap();
        let file = |date: &str| {
            let path = path_of(date.parse().unwrap());
            serde_json::json!({ "path": path, "rows": 1, "bytes": 1, "sha256": "" })
        };
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "snapshot": 1, "schema_version": 1, "published_at": "2026-03-01T00:00:00Z", "vinculo_version": "",
            "link_buckets": 1, "built_from": { "state_id": "", "change": 1 }, "files": [], "tables": [{
                "name": TABLE, "schema_version": 1, "key": [], "rows": 2,
                "files": [file("2026-01-31"), file("2026-02-28")],
            }],
        }))
        .unwrap();
        let read = |previous: Option<Manifest>| {
            store.read(move |tx| {
                let previous = previous.as_ref().map(|manifest| (manifest, PathBuf::new()));
                let read = Partitions::read(tx, previous.as_ref())?;
                let runs: Vec<Run> = read.dates.values().flatten().map(|wanted| wanted.run).collect();
                Ok::<_, store::Error>(runs.iter().map(|run| read.latest.after(run).to_vec()).collect::<Vec<_>>())
            })
        };
        let nobody: &[&str] = &[];
        assert_eq!(read(None).await.unwrap(), [&["b", "a"][..], &["a"]]);
        assert_eq!(read(Some(manifest)).await.unwrap(), [nobody, nobody]);
    }
}
