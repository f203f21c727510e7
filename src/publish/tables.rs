//! The record store → staged Parquet, table by table and bucket by bucket.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::array::RecordBatch;

use super::Error;
use super::snapshots::{FileEntry, Manifest, Staging, TableEntry};
use crate::clock::Timestamp;
use crate::columns::Columns;
use crate::flatten::{Flattener, Plan, RecordFacts, Rejection};
use crate::records::{List, NO_ID, unpack};
use crate::replay::{Replay, Rows, Version};
use crate::resources::{Resource, owners};
use crate::schema::{Context, Origin, RecordSchema, Schema, Table};
use crate::sensitive::Pepper;
use crate::sinks;
use crate::sinks::parquet::{Kit, TableWriter, read_texts};
use crate::store::{self, Row, Tx, VersionPlace, args};

/// Rows that wait in memory for a file, over all buckets of a table.
const WAITING_ROWS: usize = 8_192;

/// Bytes of text that wait in memory for a file, over all buckets of a table.
const WAITING_BYTES: usize = 4 << 20;

/// Batches of a table that wait to be encoded.
const WAITING_BATCHES: usize = 4;

/// Stages every table of one snapshot.
pub(super) struct Stager<'s> {
    pub tx: &'s Tx<'s>,
    pub schema: &'static Schema,
    pub staging: &'s Staging,
    /// The last snapshot and its folder, when its files may be taken over.
    pub previous: Option<(&'s Manifest, PathBuf)>,
    pub buckets: u32,
    /// Files of each bucket, each for a range of links: see [`parts`].
    pub parts: u32,
    pub pepper: Option<Pepper>,
    pub confirm_after: Duration,
    /// Whether unmasked rows are published too, under `pii/`.
    pub publishes_pii: bool,
}

/// Lakes with fewer links are written so fast that files of parts would be in the way only.
const WORTH_PARTS: u64 = 1_000;
/// Links of a part: of a lake in which one link in a hundred changed, most parts did not.
const LINKS_IN_A_PART: u64 = 8;
const MOST_PARTS: u64 = 128;
/// Files that a table has at most.
const MOST_FILES: u64 = 1_024;

/// Into how many files a bucket is split when the lake has so many links, so that a link's news are no reason to write all
/// others of its bucket again. A power of two.
pub(super) fn parts(links: u64, buckets: u32) -> u32 {
    let buckets = u64::from(buckets.max(1));
    let wanted = if links < WORTH_PARTS { 1 } else { links / (LINKS_IN_A_PART * buckets) };
    let most = wanted.min(MOST_PARTS).min(MOST_FILES / buckets).max(1);
    u32::try_from(1 << most.ilog2()).unwrap_or(1)
}

/// The part of a link's bucket: a range of its id's first eight digits, so that parts follow each other as links do.
fn part_of(link_id: &str, parts: u32) -> u32 {
    let head = u32::from_str_radix(link_id.get(..8).unwrap_or_default(), 16).unwrap_or_default();
    u32::try_from((u64::from(head) * u64::from(parts)) >> 32).unwrap_or_default()
}

/// What stands before every link of the part, and after those of the part before.
fn start_of(part: u32, parts: u32) -> String {
    match (u64::from(part) << 32) / u64::from(parts) {
        start if start > u64::from(u32::MAX) => "g".to_owned(),
        start => format!("{start:08x}"),
    }
}

/// A file of a table: the place of its bucket, after those of all buckets in the parts before.
pub(super) type Cell = u32;

/// Cells in which rows that do not belong to one resource may have changed since the previous snapshot.
struct Changed {
    /// Records of any resource, and so what is rejected.
    records: HashSet<Cell>,
    /// Complete lists.
    lists: HashSet<Cell>,
    /// Links, or complete lists of theirs.
    links: HashSet<Cell>,
}

/// The same for the rows of one resource: another resource's news is no reason to write its tables again.
pub(super) struct ChangedRecords {
    /// What records say.
    pub content: HashSet<Cell>,
    /// When records were last seen; includes `content`.
    pub sightings: HashSet<Cell>,
}

/// What the records of all resources tell besides their own tables.
struct Gathered {
    /// Rows of `rejected_records`, for each bucket.
    rejected: Vec<Columns>,
    /// The `person_key` of each link.
    persons: HashMap<String, String>,
}

impl Gathered {
    fn note_person(&mut self, owners: &Table, record: &Stored, rows: &Columns, first: usize) {
        let column = owners.columns.iter().position(|column| column.name == "person_key");
        let person = column.and_then(|column| (first..rows.len()).find_map(|row| rows.text(column, row)));
        if let Some(person) = person {
            self.persons.entry(record.link_id.clone()).or_insert_with(|| person.to_owned());
        }
    }

    fn note_rejection(&mut self, bucket: u32, resource: &Resource, record: &Stored, rejection: &Rejection) {
        let mut cells = self.rejected[bucket as usize].row();
        cells.text(Some(&record.link_id));
        cells.text(Some(resource.name));
        cells.text(Some(record.record_id.as_str()).filter(|id| !id.starts_with(NO_ID)));
        cells.text(Some(&rejection.path));
        cells.text(Some(rejection.reason));
        cells.timestamp(record.versions.iter().rfind(|version| !version.is_late).map(|version| version.fetched_at));
    }
}

impl Stager<'_> {
    /// Writes or takes over each table's files.
    pub(super) fn stage(&self) -> Result<Vec<TableEntry>, Error> {
        let changed = self.changed()?;
        let rejected_table = Output::whole(self, self.schema.table("rejected_records"), &changed.records);
        let mut gathered = Gathered { rejected: rejected_table.columns(), persons: HashMap::new() };
        let mut entries = Vec::new();
        for records in &self.schema.records {
            entries.extend(self.stage_records(records, &changed, &mut gathered)?);
        }
        entries.push(self.stage_links(&changed.links, &gathered.persons)?);
        entries.push(self.stage_link_snapshots(&changed.lists)?);
        entries.push(rejected_table.finish(&mut gathered.rejected)?);
        if self.publishes_pii {
            entries.extend(self.stage_pii()?);
        }
        Ok(entries)
    }

    fn changed(&self) -> Result<Changed, Error> {
        let mut links = self.cells("SELECT link_id FROM links WHERE changed_seq > $1", None)?;
        let lists = self.cells("SELECT link_id FROM refreshes WHERE touched_seq > $1", None)?;
        links.extend(&lists);
        Ok(Changed { records: self.cells("SELECT link_id FROM refreshes WHERE content_seq > $1", None)?, lists, links })
    }

    pub(super) fn changed_records(&self, resource: &Resource) -> Result<ChangedRecords, Error> {
        let of = |sql| self.cells(sql, Some(resource));
        Ok(ChangedRecords {
            content: of("SELECT link_id FROM refreshes WHERE content_seq > $1 AND resource = $2")?,
            sightings: of("SELECT link_id FROM refreshes WHERE sighted_seq > $1 AND resource = $2")?,
        })
    }

    /// The cells of the links that `sql` gives for the changes since the previous snapshot; all, when none is to be kept.
    fn cells(&self, sql: &str, resource: Option<&Resource>) -> Result<HashSet<Cell>, Error> {
        let Some((previous, _)) = &self.previous else { return Ok(self.all_cells().collect()) };
        let since = store::Value::from(previous.built_from.change);
        let resource = resource.map(|resource| store::Value::from(resource.name));
        let args: Vec<_> = std::iter::once(since).chain(resource).collect();
        let mut cells = HashSet::new();
        self.tx.each(sql, &args, |row| {
            cells.insert(self.cell(row.str(0)?));
            Ok::<_, store::Error>(())
        })?;
        Ok(cells)
    }

    /// Stages the tables of one resource.
    fn stage_records(
        &self,
        records: &'static RecordSchema,
        changed: &Changed,
        gathered: &mut Gathered,
    ) -> Result<Vec<TableEntry>, Error> {
        let resource = records.resource;
        let ChangedRecords { content, sightings } = self.changed_records(resource)?;
        let flattener = Flattener::new(Plan::for_resource(resource), self.pepper.clone());
        let tables = |places: &'static [usize]| places.iter().map(|&table| &self.schema.tables[table]);
        let mut replay = Replay::new(flattener, tables(&records.tables), self.confirm_after);
        let current = tables(&records.tables)
            .map(|table| Output::new(self, table, if shows_sightings(table) { &sightings } else { &content }));
        let history = tables(&records.history).map(|table| Output::new(self, table, &content));
        let mut waiting = Waiting::new(self, current.chain(history).collect(), &replay);
        let names_persons = resource == &owners::RESOURCE;
        let has_news = |cell: Cell| sightings.contains(&cell) || changed.records.contains(&cell);
        // Who owns a link is needed for `links`, which changes most of the time.
        let unread: HashSet<Cell> = self
            .all_cells()
            .filter(|&cell| names_persons && !has_news(cell))
            .filter(|&cell| !self.take_over_persons(cell, &mut gathered.persons))
            .collect();
        let is_needed = |cell: Cell| has_news(cell) || unread.contains(&cell);
        self.each_record(resource, is_needed, |record| {
            let lists = self.lists(resource, record)?;
            let rows = waiting.rows_of(&record.link_id)?;
            let first = rows.current[0].len();
            let appended = replay.append(&record.versions, &record.facts(), &lists, rows);
            if names_persons {
                gathered.note_person(self.schema.table("owners"), record, &rows.current[0], first);
            }
            if let Err(rejection) = appended {
                gathered.note_rejection(self.bucket(&record.link_id), resource, record, &rejection);
            }
            waiting.flush(&record.link_id)
        })?;
        waiting.finish()
    }

    /// Notes who owns the links of a cell as the file says that is taken over; false when it cannot be read.
    fn take_over_persons(&self, cell: Cell, persons: &mut HashMap<String, String>) -> bool {
        let path = path_of(self.schema.table("owners"), cell, self.buckets);
        let Some((manifest, folder)) = &self.previous else { return false };
        let files = manifest.table("owners").map_or(&[][..], |entry| &entry.files);
        let mut found = HashMap::new();
        let is_read = files.iter().filter(|file| path == file.path).all(|file| {
            read_texts(&folder.join(&file.path), ["link_id", "person_key"], |row| {
                if let [Some(link_id), Some(person)] = row {
                    found.entry(link_id.to_owned()).or_insert_with(|| person.to_owned());
                }
            })
            .is_ok()
        });
        if is_read {
            persons.extend(found);
        }
        is_read
    }

    /// Gives each record of the resource in the cells that are needed, with its versions, by link and key.
    pub(super) fn each_record(
        &self,
        resource: &Resource,
        is_needed: impl Fn(Cell) -> bool,
        mut each: impl FnMut(&Stored) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let is_part_needed = |part: u32| (0..self.buckets).any(|bucket| is_needed(part * self.buckets + bucket));
        let mut part = 0;
        while part < self.parts {
            let first = part;
            while part < self.parts && is_part_needed(part) {
                part += 1;
            }
            if first < part {
                let (from, to) = (start_of(first, self.parts), start_of(part, self.parts));
                self.each_record_between(resource, &from, &to, &is_needed, &mut each)?;
            }
            part += 1;
        }
        Ok(())
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
                if !is_needed(self.cell(row.str(0)?)) {
                    return Ok(());
                }
                let (link_id, record_key) = (row.str(0)?, row.str(1)?);
                let place = VersionPlace { link_id, resource: resource.name, record_key, version: row.int(12)? };
                let version = Version {
                    body: unpack(&place.open(self.tx, row.bytes(4)?)?)?,
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
    /// says nothing about a record but what was concluded from it when it came.
    pub(super) fn lists(&self, resource: &Resource, record: &Stored) -> Result<Vec<List>, Error> {
        if record.versions.len() == 1 {
            return Ok(Vec::new());
        }
        Ok(self.tx.all(
            "SELECT started_at, fetched_at FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND item_count > 0 \
             ORDER BY fetched_at",
            args![&record.link_id, resource.name],
            |row| Ok(List { started_at: row.at(0)?, fetched_at: row.at(1)? }),
        )?)
    }

    fn stage_links(&self, changed: &HashSet<Cell>, persons: &HashMap<String, String>) -> Result<TableEntry, Error> {
        let mut output = Output::whole(self, self.schema.table("links"), changed);
        let mut waiting = output.columns();
        self.tx.each(
            "SELECT l.link_id, l.external_id, l.institution, l.access_mode, l.status, l.refresh_rate, l.credentials_storage, \
             l.stale_in, l.fetch_resources, l.created_at, l.last_accessed_at, \
             max(CASE WHEN f.resource = 'employments' THEN f.last_collected_at END), \
             max(CASE WHEN f.resource = 'owners' THEN f.last_collected_at END), \
             max(f.last_fetched_at), l.last_webhook_at, min(f.due_at), \
             max(CASE WHEN f.marks > f.cleared AND f.priority < 2 THEN 1 ELSE 0 END) \
             FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id GROUP BY l.link_id ORDER BY l.link_id",
            args![],
            |row| {
                let link_id = row.str(0)?;
                let bucket = self.bucket(link_id);
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
        output.finish(&mut waiting)
    }

    fn stage_link_snapshots(&self, changed: &HashSet<Cell>) -> Result<TableEntry, Error> {
        let mut output = Output::whole(self, self.schema.table("link_snapshots"), changed);
        let mut waiting = output.columns();
        let integer = |count: i64| i32::try_from(count).unwrap_or(i32::MAX);
        self.tx.each(
            "SELECT link_id, resource, collected_at, fetched_at, item_count, webhook_count, changed FROM link_snapshots \
             ORDER BY link_id, resource, fetched_at",
            args![],
            |row| {
                let bucket = self.bucket(row.str(0)?);
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
        output.finish(&mut waiting)
    }

    /// The bucket of a link: the last eight digits of its id, which are random in every kind of UUID, modulo the number
    /// of buckets.
    pub(super) fn bucket(&self, link_id: &str) -> u32 {
        let tail = link_id.get(link_id.len().saturating_sub(8)..).unwrap_or_default();
        u32::from_str_radix(tail, 16).unwrap_or_default() % self.buckets
    }

    fn cell(&self, link_id: &str) -> Cell {
        part_of(link_id, self.parts) * self.buckets + self.bucket(link_id)
    }

    fn all_cells(&self) -> impl Iterator<Item = Cell> + use<> {
        0..self.parts * self.buckets
    }
}

/// The tables of one resource on their way into their files, link by link in the order of their ids.
pub(super) struct Waiting<'s> {
    stager: &'s Stager<'s>,
    outputs: Vec<Output<'s>>,
    /// For each bucket, the rows of the part that the links have come to.
    rows: Vec<Rows>,
    part: u32,
}

impl<'s> Waiting<'s> {
    /// No rows yet. The outputs are those of the current tables, and then in the same order of their histories.
    pub(super) fn new(stager: &'s Stager<'s>, outputs: Vec<Output<'s>>, replay: &Replay<'_>) -> Self {
        Self { stager, outputs, rows: (0..stager.buckets).map(|_| replay.rows()).collect(), part: 0 }
    }

    /// Where the link's rows wait. What waits of the parts before the link's is written first.
    pub(super) fn rows_of(&mut self, link_id: &str) -> Result<&mut Rows, Error> {
        let part = part_of(link_id, self.stager.parts);
        if part != self.part {
            for (table, output) in self.outputs.iter_mut().enumerate() {
                output.end_part(self.rows.iter_mut().filter_map(|rows| rows.of_table(table)))?;
                output.part = part;
            }
            self.part = part;
        }
        Ok(&mut self.rows[self.stager.bucket(link_id) as usize])
    }

    /// Takes the rows of the link's bucket out of memory when they are many.
    pub(super) fn flush(&mut self, link_id: &str) -> Result<(), Error> {
        let bucket = self.stager.bucket(link_id);
        let rows = &mut self.rows[bucket as usize];
        let columns = rows.current.iter_mut().chain(&mut rows.history);
        self.outputs.iter_mut().zip(columns).try_for_each(|(output, columns)| output.flush(bucket, columns))
    }

    /// Writes what still waits, and says what each table consists of.
    pub(super) fn finish(mut self) -> Result<Vec<TableEntry>, Error> {
        let mut entries = Vec::new();
        for (table, output) in self.outputs.into_iter().enumerate() {
            entries.push(output.finish(self.rows.iter_mut().filter_map(|rows| rows.of_table(table)))?);
        }
        Ok(entries)
    }
}

/// Whether the table says when its records were last seen.
pub(super) fn shows_sightings(table: &Table) -> bool {
    let of_sightings = |origin: &Origin| matches!(origin, Origin::Context(Context::CreatedAt | Context::CollectedAt));
    table.columns.iter().any(|column| of_sightings(&column.origin))
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

/// One table on its way into its files, a cell each.
pub(super) struct Output<'s> {
    table: &'static Table,
    staging: &'s Staging,
    previous: Option<(&'s TableEntry, &'s PathBuf)>,
    buckets: u32,
    /// For each cell, whether nothing in it changed, so that the previous file is taken over.
    is_unchanged: Vec<bool>,
    /// The part that is written now.
    part: u32,
    /// None before the first rows that are many enough to be written.
    encoder: Option<Encoder>,
    most_rows: usize,
    most_bytes: usize,
}

/// What the thread of an [`Encoder`] is told.
enum Order {
    /// These rows belong into the file of the cell.
    Write(Cell, RecordBatch),
    /// No more rows come for the files so far.
    Close,
}

/// Writes the files of one table on a thread of its own: encoding takes about as long as flattening, and both then go on
/// at the same time. The thread ends with this.
struct Encoder {
    /// None once there is nothing more to come.
    orders: Option<SyncSender<Order>>,
    /// None once it was waited for.
    thread: Option<JoinHandle<Result<BTreeMap<Cell, u64>, sinks::Error>>>,
}

impl Encoder {
    fn start(table: &'static Table, folder: &Path, buckets: u32) -> Result<Self, Error> {
        let (orders, coming) = sync_channel::<Order>(WAITING_BATCHES);
        let folder = folder.to_owned();
        let encode = move || {
            let (mut open, mut rows) = (BTreeMap::<Cell, TableWriter>::new(), BTreeMap::new());
            let mut spare: Vec<Kit> = Vec::new();
            let mut close = |open: &mut BTreeMap<Cell, TableWriter>, spare: &mut Vec<Kit>| {
                std::mem::take(open).into_iter().try_for_each(|(cell, writer)| {
                    let (written, kit) = writer.finish()?;
                    spare.push(kit);
                    rows.insert(cell, written);
                    Ok::<_, sinks::Error>(())
                })
            };
            for order in coming {
                match order {
                    Order::Write(cell, batch) => {
                        let writer = match open.entry(cell) {
                            Entry::Occupied(writer) => writer.into_mut(),
                            Entry::Vacant(place) => {
                                let path = folder.join(path_of(table, cell, buckets));
                                let kit = spare.pop().map_or_else(|| Kit::new(table), Ok)?;
                                place.insert(TableWriter::create(&path, kit)?)
                            }
                        };
                        writer.write(&batch)?;
                    }
                    Order::Close => close(&mut open, &mut spare)?,
                }
            }
            close(&mut open, &mut spare)?;
            Ok(rows)
        };
        let thread = std::thread::Builder::new().name("lake-encoder".into()).spawn(encode);
        let thread = thread.map_err(|source| Error::at(Path::new("a thread"), source))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    fn tell(&mut self, order: Order) -> Result<(), Error> {
        match self.orders.as_ref().map(|orders| orders.send(order)) {
            Some(Ok(())) => Ok(()),
            // The thread has failed, and says why.
            _ => self.end().map(drop),
        }
    }

    /// Ends the files and gives the rows of each.
    fn end(&mut self) -> Result<BTreeMap<Cell, u64>, Error> {
        self.orders = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(rows)) => Ok(rows?),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(BTreeMap::new()),
        }
    }
}

impl Drop for Encoder {
    /// Nothing is written any more afterwards: the folder may be removed.
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<'s> Output<'s> {
    /// An output of which the `changed` cells are written.
    pub(super) fn new(stager: &'s Stager<'_>, table: &'static Table, changed: &HashSet<Cell>) -> Self {
        Self::with_cells(stager, table, stager.all_cells().map(|cell| !changed.contains(&cell)).collect())
    }

    /// An output whose buckets are a file each, for small tables of which most rows change together.
    fn whole(stager: &'s Stager<'_>, table: &'static Table, changed: &HashSet<Cell>) -> Self {
        let changed: HashSet<u32> = changed.iter().map(|cell| cell % stager.buckets).collect();
        Self::with_cells(stager, table, (0..stager.buckets).map(|bucket| !changed.contains(&bucket)).collect())
    }

    fn with_cells(stager: &'s Stager<'_>, table: &'static Table, is_unchanged: Vec<bool>) -> Self {
        let previous =
            stager.previous.as_ref().and_then(|(manifest, folder)| Some((manifest.table(&table.name)?, folder)));
        let share = stager.buckets.max(1) as usize;
        Self {
            table,
            staging: stager.staging,
            previous,
            buckets: stager.buckets,
            is_unchanged,
            part: 0,
            encoder: None,
            most_rows: (WAITING_ROWS / share).max(256),
            most_bytes: (WAITING_BYTES / share).max(1 << 16),
        }
    }

    /// Empty columns for each bucket, for [`Output::flush`] and [`Output::finish`].
    fn columns(&self) -> Vec<Columns> {
        (0..self.buckets)
            .map(|_| Columns::of(&self.table.columns.iter().map(|column| column.kind).collect::<Vec<_>>()))
            .collect()
    }

    /// Takes the rows of a bucket out of memory when they are many.
    fn flush(&mut self, bucket: u32, columns: &mut Columns) -> Result<(), Error> {
        if columns.len() >= self.most_rows || columns.text_bytes() >= self.most_bytes {
            self.write(bucket, columns)?;
        }
        Ok(())
    }

    fn write(&mut self, bucket: u32, columns: &mut Columns) -> Result<(), Error> {
        let cell = self.part * self.buckets + bucket;
        if self.is_unchanged[cell as usize] {
            columns.truncate(0);
            return Ok(());
        }
        // Readers learn a table's columns from its first part; others need not be there for no rows.
        if columns.is_empty() && self.part > 0 {
            return Ok(());
        }
        let batch = columns.take(&self.table.batch).map_err(sinks::Error::from)?;
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            none => none.insert(Encoder::start(self.table, &self.staging.folder, self.buckets)?),
        };
        encoder.tell(Order::Write(cell, batch))
    }

    /// Writes what still waits of the part, a bucket each, and ends its files.
    fn end_part<'c>(&mut self, waiting: impl IntoIterator<Item = &'c mut Columns>) -> Result<(), Error> {
        for (bucket, columns) in (0..).zip(waiting) {
            self.write(bucket, columns)?;
        }
        self.encoder.as_mut().map_or(Ok(()), |encoder| encoder.tell(Order::Close))
    }

    /// Writes what still waits, ends the files, takes over the others, and says what the table consists of.
    fn finish<'c>(mut self, waiting: impl IntoIterator<Item = &'c mut Columns>) -> Result<TableEntry, Error> {
        self.end_part(waiting)?;
        let written = self.encoder.as_mut().map(Encoder::end).transpose()?.unwrap_or_default();
        let previous: HashMap<&str, &FileEntry> =
            self.previous.iter().flat_map(|(entry, _)| &entry.files).map(|file| (file.path.as_str(), file)).collect();
        let mut files = Vec::new();
        for (cell, is_unchanged) in (0..).zip(&self.is_unchanged) {
            let path = path_of(self.table, cell, self.buckets);
            if let Some(&rows) = written.get(&cell) {
                files.push(self.staging.checked(Path::new(&path), Some(rows))?);
            } else if let (true, Some(file), Some((_, folder))) =
                (is_unchanged, previous.get(path.as_str()), self.previous)
            {
                self.staging.take_over(folder, file)?;
                files.push((*file).clone());
            }
        }
        Ok(TableEntry {
            name: self.table.name.clone(),
            schema_version: self.table.version,
            key: self.table.key.clone(),
            rows: files.iter().filter_map(|file| file.rows).sum(),
            files,
        })
    }
}

fn path_of(table: &Table, cell: Cell, buckets: u32) -> String {
    format!("{}/link_bucket={}/part-{}.parquet", table.name, cell % buckets, cell / buckets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_lakes_are_one_file_and_no_lake_has_more_files_than_a_table_should() {
        assert_eq!(parts(0, 1), 1);
        assert_eq!(parts(999, 1), 1);
        assert_eq!(parts(1_000, 1), 64);
        assert_eq!(parts(2_000, 1), 128);
        assert_eq!(parts(2_000, 16), 8);
        assert_eq!(parts(1_000_000, 1), 128);
        assert_eq!(parts(1_000_000, 16), 64);
        assert_eq!(parts(1_000_000, 64), 16);
        assert_eq!(parts(1_000_000, 4_096), 1);
    }

    #[test]
    fn parts_follow_each_other_as_links_do() {
        for parts in [1, 2, 8, 128] {
            let mut before = 0;
            for head in (0..=u32::MAX).step_by(1 << 23).chain([u32::MAX]) {
                let link_id = format!("{head:08x}-0000-4000-8000-000000000000");
                let part = part_of(&link_id, parts);
                assert!((before..parts).contains(&part));
                assert!(
                    start_of(part, parts) <= link_id && link_id < start_of(part + 1, parts),
                    "{link_id} of {parts}"
                );
                before = part;
            }
            assert_eq!(before, parts - 1);
        }
    }
}
