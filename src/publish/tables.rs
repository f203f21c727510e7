//! The record store → staged Parquet, table by table and cell by cell.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use super::Error;
use super::cells::{Cell, Split};
use super::delta::{self, Delta};
use super::handover::Handover;
use super::output::{Linker, Output, Waiting};
use super::snapshots::{Manifest, Staging, TableEntry};
use crate::clock::Timestamp;
use crate::columns::Columns;
use crate::features::compute::SOURCES;
use crate::flatten::{Flattener, Plan, RecordFacts, Rejection};
use crate::queue::Priority;
use crate::records::{ListTimes, NO_ID, unpack};
use crate::replay::{Replay, Version};
use crate::resources::{Resource, owners};
use crate::schema::{self, Context, Origin, RecordSchema, Schema, Table};
use crate::sensitive::Pepper;
use crate::sinks::FewChanged;
use crate::sinks::parquet::read_texts;
use crate::store::{self, Row, Tx, VersionPlace, args, unless_damaged};

/// The table of records that cannot be flattened.
const REJECTED: &str = "rejected_records";

/// How many links are few: their ids fit into memory, and rows can be replaced link by link.
pub(super) const MOST_FEW: usize = 10_000;

/// Above this many links, whole parts are read; below it, the ids of a quarter of them fit into memory.
const MOST_SPANNED: u64 = 100_000;

/// Stages every table of one snapshot.
pub(super) struct Stager<'s> {
    pub tx: &'s Tx<'s>,
    pub schema: &'static Schema,
    pub staging: &'s Staging,
    /// The last snapshot and its folder, when its files may be taken over.
    pub previous: Option<(&'s Manifest, PathBuf)>,
    /// Takes these over. None when there are none.
    pub linker: Option<Linker>,
    /// Which file of a table holds which links.
    pub split: Split,
    /// Links that there are.
    pub links: u64,
    pub pepper: Option<Pepper>,
    pub confirm_after: Duration,
    /// Whether unmasked rows are published too, under `pii/`.
    pub publishes_pii: bool,
}

/// Which links may have other rows of a table than in the previous snapshot.
pub(super) struct Changed {
    /// Where such links are.
    pub cells: HashSet<Cell>,
    /// The links, when they are few.
    few: Option<HashSet<String>>,
}

impl Changed {
    fn or(mut self, other: &Self) -> Self {
        self.cells.extend(&other.cells);
        self.few = self.few.zip(other.few.as_ref()).map(|(links, more)| &links | more);
        self
    }
}

/// What changed of the rows that do not belong to one resource.
pub(super) struct ChangedLinks {
    /// Records of any resource, and so what is rejected.
    records: Changed,
    /// Complete lists.
    lists: Changed,
    /// Links, or complete lists of theirs.
    links: Changed,
}

/// What changed of one resource: another one's news is no reason to write its tables again.
pub(super) struct ChangedRecords {
    /// What records say.
    pub content: Changed,
    /// When records were last seen; includes `content`.
    pub sightings: Changed,
}

impl ChangedRecords {
    /// What changed of a table.
    pub(super) fn of(&self, table: &Table) -> &Changed {
        let of_sightings =
            |origin: &Origin| matches!(origin, Origin::Context(Context::CreatedAt | Context::CollectedAt));
        let shows_sightings = table.columns.iter().any(|column| of_sightings(&column.origin));
        if shows_sightings { &self.sightings } else { &self.content }
    }
}

/// What is told besides the files of a resource's tables.
#[derive(Default)]
struct Gathered {
    /// Rows of `rejected_records`, where there are any.
    rejected: BTreeMap<Cell, Vec<Rejected>>,
    /// The `person_key` of each link.
    persons: HashMap<String, String>,
    /// By table, when few links may have other rows than in the previous snapshot.
    few_changed: HashMap<String, FewChanged>,
    /// Rows of the links whose features are computed anew, when these are few.
    delta: Option<Delta>,
    /// Bodies that cannot be opened.
    damaged: usize,
}

impl Gathered {
    fn note_person(&mut self, owners: &Table, record: &Stored, rows: &Columns, first: usize) {
        let column = owners.columns.iter().position(|column| column.name == "person_key");
        let person = column.and_then(|column| (first..rows.len()).find_map(|row| rows.text(column, row)));
        if let Some(person) = person {
            self.persons.entry(record.link_id.clone()).or_insert_with(|| person.to_owned());
        }
    }

    fn note_changed(&mut self, split: Split, table: &Table, changed: &Changed) {
        let Some(few) = &changed.few else { return };
        let cells: HashSet<Cell> = few.iter().map(|link_id| split.cell(link_id)).collect();
        let files = cells.into_iter().map(|cell| split.path(table, cell).into()).collect();
        self.few_changed.insert(table.name.clone(), FewChanged { links: few.iter().cloned().collect(), files });
    }

    /// Begins the files of those of `histories` that features are computed from.
    fn begin_delta(&mut self, histories: &[&'static Table]) -> Result<(), Error> {
        let Some(delta) = &mut self.delta else { return Ok(()) };
        let mut wanted = histories.iter().filter(|table| SOURCES.contains(&table.name.as_str()));
        wanted.try_for_each(|table| delta.begin(table))
    }

    fn note_rejection(&mut self, cell: Cell, resource: &Resource, record: &Stored, rejection: &Rejection) {
        self.rejected.entry(cell).or_default().push(Rejected {
            link_id: record.link_id.clone(),
            resource: resource.name,
            record_id: Some(record.record_id.clone()).filter(|id| !id.starts_with(NO_ID)),
            path: rejection.path.clone(),
            reason: rejection.reason,
            fetched_at: record.versions.iter().rfind(|version| !version.is_late).map(|version| version.fetched_at),
        });
    }
}

/// A row of `rejected_records`, in the order of its table.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rejected {
    link_id: String,
    resource: &'static str,
    record_id: Option<String>,
    path: String,
    reason: &'static str,
    fetched_at: Option<Timestamp>,
}

impl Rejected {
    /// The columns of `rows`, which came resource by resource.
    fn columns(mut rows: Vec<Self>) -> Columns {
        rows.sort_unstable();
        let mut columns = Columns::of_table(schema::get().table(REJECTED));
        for row in rows {
            let mut cells = columns.row();
            cells.text(Some(&row.link_id));
            cells.text(Some(row.resource));
            cells.text(row.record_id.as_deref());
            cells.text(Some(&row.path));
            cells.text(Some(row.reason));
            cells.timestamp(row.fetched_at);
        }
        columns
    }
}

impl Stager<'_> {
    /// Writes or takes over each table's files, and hands the tables over, but for those under `pii/`. Gives also the
    /// files of `delta`, if there is one.
    pub(super) fn stage(
        &mut self,
        changed: &ChangedLinks,
        delta: Option<Delta>,
        handover: &mut Handover<'_>,
    ) -> Result<(Vec<TableEntry>, Option<delta::Files>), Error> {
        let mut gathered = Gathered { delta, ..Gathered::default() };
        let entries = self.stage_tables(changed, &mut gathered, handover)?;
        self.linker.take().map_or(Ok(()), Linker::finish)?;
        Ok((entries, gathered.delta.map(Delta::finish).transpose()?))
    }

    fn stage_tables(
        &self,
        changed: &ChangedLinks,
        gathered: &mut Gathered,
        handover: &mut Handover<'_>,
    ) -> Result<Vec<TableEntry>, Error> {
        let mut entries = Vec::new();
        let mut hand_over = |gathered: &mut Gathered, staged: Vec<TableEntry>| {
            for table in &staged {
                handover.take(table, gathered.few_changed.remove(&table.name));
            }
            entries.extend(staged);
        };
        for records in &self.schema.records {
            let staged = self.stage_records(records, changed, gathered)?;
            hand_over(gathered, staged);
        }
        if gathered.damaged > 0 {
            tracing::error!(
                code = "body_damaged",
                bodies = gathered.damaged,
                "bodies of records are damaged in the state: their records are listed in rejected_records, and the last good \
                 versions stay; `vinculo verify` names them, and a backup has them"
            );
        }
        // Not those of `links`: its rows show when webhooks came, which alone is no reason to write any.
        let [snapshots, rejected] = ["link_snapshots", REJECTED].map(|name| self.schema.table(name));
        gathered.note_changed(self.split.whole(), snapshots, &changed.lists);
        gathered.note_changed(self.split, rejected, &changed.records);
        let links = self.begin_links(&changed.links, &gathered.persons)?;
        // The rows of `links` are encoded meanwhile.
        let snapshots = self.begin_link_snapshots(&changed.lists)?;
        hand_over(gathered, vec![links.finish([])?]);
        hand_over(gathered, vec![snapshots.finish([])?]);
        let rejected = Output::new(self, rejected, &changed.records);
        let rows = std::mem::take(&mut gathered.rejected).into_iter();
        let rejected = rejected.finish_with(rows.map(|(cell, rows)| (cell, Rejected::columns(rows))).collect())?;
        hand_over(gathered, vec![rejected]);
        if self.publishes_pii {
            entries.extend(self.stage_pii()?);
        }
        Ok(entries)
    }

    /// What changed since the previous snapshot.
    pub(super) fn changed_links(&self) -> Result<ChangedLinks, Error> {
        let links = self.changed("SELECT link_id FROM links WHERE changed_seq > $1", None)?;
        let lists = self.changed("SELECT link_id FROM refreshes WHERE touched_seq > $1", None)?;
        let records = self.changed("SELECT link_id FROM refreshes WHERE content_seq > $1", None)?;
        Ok(ChangedLinks { records, links: links.or(&lists), lists })
    }

    /// Whether most files of records stand in the next snapshot.
    pub(super) fn leaves_most(&self, changed: &ChangedLinks) -> bool {
        changed.records.cells.len() * 2 < self.split.cells().len()
    }

    pub(super) fn changed_records(&self, resource: &Resource) -> Result<ChangedRecords, Error> {
        let of = |sql| self.changed(sql, Some(resource));
        Ok(ChangedRecords {
            content: of("SELECT link_id FROM refreshes WHERE content_seq > $1 AND resource = $2")?,
            sightings: of("SELECT link_id FROM refreshes WHERE sighted_seq > $1 AND resource = $2")?,
        })
    }

    /// The links that `sql` gives for the changes since the previous snapshot; all, when none is to be kept.
    fn changed(&self, sql: &str, resource: Option<&Resource>) -> Result<Changed, Error> {
        let Some((previous, _)) = &self.previous else {
            return Ok(Changed { cells: self.split.cells().collect(), few: None });
        };
        let since = store::Value::from(previous.built_from.change);
        let resource = resource.map(|resource| store::Value::from(resource.name));
        let args: Vec<_> = std::iter::once(since).chain(resource).collect();
        let most = usize::try_from(self.links / 4).map_or(MOST_FEW, |quarter| quarter.min(MOST_FEW));
        let mut changed = Changed { cells: HashSet::new(), few: Some(HashSet::new()) };
        self.tx.each(sql, &args, |row| {
            changed.cells.insert(self.split.cell(row.str(0)?));
            if let Some(few) = &mut changed.few {
                few.insert(row.text(0)?);
            }
            changed.few = changed.few.take().filter(|few| few.len() <= most);
            Ok::<_, store::Error>(())
        })?;
        Ok(changed)
    }

    /// Stages the tables of one resource.
    fn stage_records(
        &self,
        records: &'static RecordSchema,
        changed_links: &ChangedLinks,
        gathered: &mut Gathered,
    ) -> Result<Vec<TableEntry>, Error> {
        let resource = records.resource;
        let changed = self.changed_records(resource)?;
        let flattener = Flattener::new(Plan::for_resource(resource), self.pepper.clone());
        let tables = |places: &'static [usize]| places.iter().map(|&table| &self.schema.tables[table]);
        let mut replay = Replay::new(flattener, tables(&records.tables), self.confirm_after);
        let published = tables(&records.tables).chain(tables(&records.history));
        let outputs = published.map(|table| {
            gathered.note_changed(self.split, table, changed.of(table));
            Output::new(self, table, changed.of(table))
        });
        let mut waiting = Waiting::new(self.split, outputs.collect(), &replay);
        let names_persons = resource == &owners::RESOURCE;
        let has_news =
            |cell: Cell| changed.sightings.cells.contains(&cell) || changed_links.records.cells.contains(&cell);
        // Who owns a link is needed for `links`, which changes most of the time.
        let persons_before = if names_persons { self.persons_before() } else { None };
        let are_persons_unread = names_persons && persons_before.is_none();
        let persons_before = persons_before.unwrap_or_default().into_iter();
        gathered.persons.extend(persons_before.filter(|(link_id, _)| !has_news(self.split.cell(link_id))));
        let is_needed = |cell: Cell| are_persons_unread || has_news(cell);
        let histories: Vec<&'static Table> = tables(&records.history).collect();
        gathered.begin_delta(&histories)?;
        self.each_record(resource, is_needed, |record| {
            let lists = self.lists(resource, record)?;
            let rows = waiting.rows_of(&record.link_id)?;
            let first = rows.current[0].len();
            let delta = gathered.delta.as_mut().filter(|delta| delta.has(&record.link_id));
            let delta = delta.map(|delta| (delta, rows.history.iter().map(Columns::len).collect::<Vec<_>>()));
            let appended = replay.append(&record.versions, &record.facts(), &lists, rows);
            gathered.damaged += record.versions.iter().filter(|version| version.is_damaged).count();
            if let Some((delta, firsts)) = delta {
                let mut rows = histories.iter().zip(&rows.history).zip(firsts);
                rows.try_for_each(|((table, rows), first)| delta.take(table, rows, first))?;
            }
            if names_persons {
                gathered.note_person(self.schema.table("owners"), record, &rows.current[0], first);
            }
            if let Err(rejection) = appended {
                gathered.note_rejection(self.split.cell(&record.link_id), resource, record, &rejection);
            }
            waiting.flush(&record.link_id)
        })?;
        self.complete_delta(records, &mut replay, is_needed, gathered)?;
        waiting.finish()
    }

    /// Adds the rows of the links that did not pass by, because no file that holds them is written: they were asked
    /// for, and nothing was new.
    fn complete_delta(
        &self,
        records: &'static RecordSchema,
        replay: &mut Replay<'_>,
        has_passed: impl Fn(Cell) -> bool,
        gathered: &mut Gathered,
    ) -> Result<(), Error> {
        let is_begun = |delta: &Delta| records.history.iter().any(|&table| delta.has_begun(&self.schema.tables[table]));
        let Some(delta) = gathered.delta.as_mut().filter(|delta| is_begun(delta)) else { return Ok(()) };
        let resource = records.resource;
        let missing = delta.links().filter(|link_id| !has_passed(self.split.cell(link_id)));
        let missing: Vec<String> = missing.map(str::to_owned).collect();
        let mut rows = replay.rows();
        for link_id in missing {
            // No other link stands between these two.
            let after = format!("{link_id} ");
            self.each_record_between(resource, &link_id, &after, &|_| true, &mut |record| {
                // What cannot be flattened is listed already.
                let _ = replay.append(&record.versions, &record.facts(), &self.lists(resource, record)?, &mut rows);
                for (&table, rows) in records.history.iter().zip(&mut rows.history) {
                    delta.take(&self.schema.tables[table], rows, 0)?;
                    rows.truncate(0);
                }
                rows.current.iter_mut().for_each(|rows| rows.truncate(0));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Who owns each link, as the previous snapshot says; `None` when it cannot be read.
    fn persons_before(&self) -> Option<HashMap<String, String>> {
        let (manifest, folder) = self.previous.as_ref()?;
        let mut persons = HashMap::new();
        for file in &manifest.table("links")?.files {
            let note = |row: [Option<&str>; 2]| {
                if let [Some(link_id), Some(person)] = row {
                    persons.insert(link_id.to_owned(), person.to_owned());
                }
            };
            read_texts(&folder.join(&file.path), ["link_id", "person_key"], note).ok()?;
        }
        Some(persons)
    }

    /// Gives each record of the resource in the cells that are needed, with its versions, by link and key.
    pub(super) fn each_record(
        &self,
        resource: &Resource,
        is_needed: impl Fn(Cell) -> bool,
        mut each: impl FnMut(&Stored) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let split = self.split;
        let is_part_needed = |part: u32| (0..split.buckets).any(|bucket| is_needed(split.cell_of(part, bucket)));
        let mut part = 0;
        while part < split.parts {
            let first = part;
            while part < split.parts && is_part_needed(part) {
                part += 1;
            }
            for (from, to) in self.spans(resource, first..part, &is_needed)? {
                self.each_record_between(resource, &from, &to, &is_needed, &mut each)?;
            }
            part += 1;
        }
        Ok(())
    }

    /// From which link to before which one to read, for the cells that are needed of some parts: all at once, unless
    /// most links are in other buckets, whose versions would be stepped over one by one.
    fn spans(
        &self,
        resource: &Resource,
        parts: Range<u32>,
        is_needed: impl Fn(Cell) -> bool,
    ) -> Result<Vec<(String, String)>, Error> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let split = self.split;
        let (from, to) = (split.start_of(parts.start), split.start_of(parts.end));
        let cells = split.cell_of(parts.start, 0)..split.cell_of(parts.end, 0);
        let needed = cells.clone().filter(|&cell| is_needed(cell)).count();
        if needed * 4 > cells.len() || self.links > MOST_SPANNED {
            return Ok(vec![(from, to)]);
        }
        let mut spans: Vec<(String, String)> = Vec::new();
        let mut is_open = false;
        self.tx.each(
            "SELECT DISTINCT link_id FROM records WHERE link_id >= $1 AND link_id < $2 AND resource = $3 ORDER BY link_id",
            args![&from, &to, resource.name],
            |row| {
                let link_id = row.str(0)?;
                let is_needed = is_needed(split.cell(link_id));
                match spans.last_mut() {
                    Some((_, end)) if is_open && !is_needed => link_id.clone_into(end),
                    _ if !is_open && is_needed => spans.push((link_id.to_owned(), to.clone())),
                    _ => {}
                }
                is_open = is_needed;
                Ok::<_, store::Error>(())
            },
        )?;
        Ok(spans)
    }

    /// The same for the links from `from` on and before `to`.
    fn each_record_between(
        &self,
        resource: &Resource,
        from: &str,
        to: &str,
        is_needed: &impl Fn(Cell) -> bool,
        each: &mut impl FnMut(&Stored) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut gathered: Option<Stored> = None;
        self.tx.each(
            "SELECT v.link_id, v.record_key, v.known_from, v.fetched_at, v.body, v.is_late, v.record_id, v.created_at, \
             v.collected_at, r.record_id, r.created_at, r.collected_at, v.version \
             FROM record_versions v \
             JOIN records r ON r.link_id = v.link_id AND r.resource = v.resource AND r.record_key = v.record_key \
             WHERE v.link_id >= $1 AND v.link_id < $2 AND v.resource = $3 \
             ORDER BY v.link_id, v.resource, v.record_key, v.version",
            args![from, to, resource.name],
            |row| {
                // Before its body is read.
                if !is_needed(self.split.cell(row.str(0)?)) {
                    return Ok(());
                }
                let (link_id, record_key) = (row.str(0)?, row.str(1)?);
                let place = VersionPlace { link_id, resource: resource.name, record_key, version: row.int(12)? };
                let opened = row.bytes(4).and_then(|body| place.open(self.tx, body));
                let body = unless_damaged(opened.and_then(|packed| unpack(&packed)))?;
                let version = Version {
                    is_damaged: body.is_none(),
                    body: body.unwrap_or_default(),
                    is_late: row.int(5)? == 1,
                    record_id: row.text(6)?,
                    created_at: row.opt_at(7)?,
                    collected_at: row.opt_at(8)?,
                    known_from: row.at(2)?,
                    fetched_at: row.at(3)?,
                };
                match &mut gathered {
                    Some(record) if record.link_id == row.str(0)? && record.record_key == row.str(1)? => {
                        record.versions.push(version);
                    }
                    _ => {
                        let next = Stored::read(row, version)?;
                        if let Some(record) = gathered.replace(next) {
                            each(&record)?;
                        }
                    }
                }
                Ok::<_, Error>(())
            },
        )?;
        gathered.iter().try_for_each(each)
    }

    /// The lists that count against what they lack; not needed, and none, for a record that never changed. An empty one
    /// says nothing about a record but what was concluded from it when it came, and an older answer nothing at all.
    pub(super) fn lists(&self, resource: &Resource, record: &Stored) -> Result<Vec<ListTimes>, Error> {
        if record.versions.len() == 1 {
            return Ok(Vec::new());
        }
        Ok(self.tx.all(
            "SELECT started_at, fetched_at, collected_at FROM link_snapshots WHERE link_id = $1 AND resource = $2 \
             AND item_count > 0 AND is_stale = 0 ORDER BY fetched_at",
            args![&record.link_id, resource.name],
            |row| Ok(ListTimes { started_at: row.at(0)?, fetched_at: row.at(1)?, collected_at: row.opt_at(2)? }),
        )?)
    }

    /// Gives the output of `links`, which all rows were told.
    fn begin_links(&self, changed: &Changed, persons: &HashMap<String, String>) -> Result<Output<'_>, Error> {
        let mut output = Output::whole(self, self.schema.table("links"), changed);
        let mut waiting = output.columns();
        self.tx.each(
            "SELECT l.link_id, l.external_id, l.institution, l.access_mode, l.status, l.refresh_rate, l.credentials_storage, \
             l.stale_in, l.fetch_resources, l.created_at, l.last_accessed_at, \
             max(CASE WHEN f.resource = 'employments' THEN f.last_collected_at END), \
             max(CASE WHEN f.resource = 'owners' THEN f.last_collected_at END), \
             max(f.last_fetched_at), l.last_webhook_at, min(f.due_at), \
             max(CASE WHEN f.marks > f.cleared AND f.priority NOT IN ($1, $2) THEN 1 ELSE 0 END) \
             FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id GROUP BY l.link_id ORDER BY l.link_id",
            args![Priority::Schedule.number(), Priority::Confirm.number()],
            |row| {
                let link_id = row.str(0)?;
                let bucket = self.split.bucket(link_id);
                let columns = &mut waiting[bucket as usize];
                let mut cells = columns.row();
                cells.text(Some(link_id));
                cells.text(row.opt_text(1)?.as_deref());
                cells.text(persons.get(link_id).map(String::as_str));
                for column in 2..8 {
                    cells.text(row.opt_text(column)?.as_deref());
                }
                let resources = row.opt_text(8)?.and_then(|text| serde_json::from_str::<Vec<String>>(&text).ok());
                cells.text_list(resources.as_deref());
                for column in 9..16 {
                    cells.timestamp(row.opt_at(column)?);
                }
                cells.boolean(row.opt_int(16)? == Some(1));
                output.flush(bucket, columns)
            },
        )?;
        output.end_part(&mut waiting)?;
        Ok(output)
    }

    /// Gives the output of `link_snapshots`, which all rows were told.
    fn begin_link_snapshots(&self, changed: &Changed) -> Result<Output<'_>, Error> {
        let mut output = Output::whole(self, self.schema.table("link_snapshots"), changed);
        let mut waiting = output.columns();
        let integer = |count: i64| i32::try_from(count).unwrap_or(i32::MAX);
        self.tx.each(
            "SELECT link_id, resource, collected_at, fetched_at, item_count, webhook_count, changed FROM link_snapshots \
             ORDER BY link_id, resource, fetched_at",
            args![],
            |row| {
                let bucket = self.split.bucket(row.str(0)?);
                let columns = &mut waiting[bucket as usize];
                let mut cells = columns.row();
                cells.text(Some(row.str(0)?));
                cells.text(Some(row.str(1)?));
                cells.timestamp(row.opt_at(2)?);
                cells.timestamp(Some(row.at(3)?));
                cells.integer(Some(integer(row.int(4)?)));
                cells.integer(row.opt_int(5)?.map(integer));
                cells.boolean(row.int(6)? == 1);
                output.flush(bucket, columns)
            },
        )?;
        output.end_part(&mut waiting)?;
        Ok(output)
    }
}

/// A record with every content that it ever had.
pub(super) struct Stored {
    pub link_id: String,
    record_key: String,
    record_id: String,
    created_at: Option<Timestamp>,
    collected_at: Option<Timestamp>,
    pub versions: Vec<Version>,
}

impl Stored {
    fn read(row: &Row<'_>, first: Version) -> Result<Self, store::Error> {
        Ok(Self {
            link_id: row.text(0)?,
            record_key: row.text(1)?,
            record_id: row.text(9)?,
            created_at: row.opt_at(10)?,
            collected_at: row.opt_at(11)?,
            versions: vec![first],
        })
    }

    pub(super) fn facts(&self) -> RecordFacts<'_> {
        RecordFacts {
            link_id: &self.link_id,
            record_key: &self.record_key,
            record_id: &self.record_id,
            created_at: self.created_at,
            collected_at: self.collected_at,
            known_from: self.versions[0].known_from,
        }
    }
}
