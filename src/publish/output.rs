//! Rows → the Parquet files of a table, a cell each.
//!
//! *Takes* rows, link by link in the order of their ids. *Gives* what each table consists of: files that are written,
//! and those of the snapshot before that stand. *Promises* bounded memory, whatever the rows.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::mpsc::Receiver;

use arrow::array::RecordBatch;

use super::Error;
use super::cells::{Cell, Split};
use super::snapshots::{FileEntry, Staging, TableEntry};
use super::tables::{Changed, Stager};
use crate::columns::Columns;
use crate::lane::Lane;
use crate::replay::{Replay, Rows};
use crate::schema::Table;
use crate::sinks;
use crate::sinks::parquet::{Kit, TableWriter};

/// Rows that wait in memory for a file, over all buckets of a table.
const WAITING_ROWS: usize = 8_192;

/// Bytes of text that wait in memory for a file, over all buckets of a table.
const WAITING_BYTES: usize = 4 << 20;

/// Batches of a table that wait to be encoded.
const WAITING_BATCHES: usize = 4;

/// The tables of one resource on their way into their files, link by link in the order of their ids.
pub(super) struct Waiting<'s> {
    split: Split,
    outputs: Vec<Output<'s>>,
    /// For each bucket, the rows of the part that the links have come to.
    rows: Vec<Rows>,
}

impl<'s> Waiting<'s> {
    /// No rows yet. The outputs are those of the current tables, and then in the same order of their histories.
    pub(super) fn new(split: Split, outputs: Vec<Output<'s>>, replay: &Replay<'_>) -> Self {
        Self { split, outputs, rows: (0..split.buckets).map(|_| replay.rows()).collect() }
    }

    /// Where the link's rows wait. What waits of the parts before the link's is written first.
    pub(super) fn rows_of(&mut self, link_id: &str) -> Result<&mut Rows, Error> {
        let part = self.split.part(link_id);
        for (table, output) in self.outputs.iter_mut().enumerate().filter(|(_, output)| output.part != part) {
            output.end_part(self.rows.iter_mut().filter_map(|rows| rows.of_table(table)))?;
            output.part = part;
        }
        Ok(&mut self.rows[self.split.bucket(link_id) as usize])
    }

    /// Takes the rows of the link's bucket out of memory when they are many.
    pub(super) fn flush(&mut self, link_id: &str) -> Result<(), Error> {
        let bucket = self.split.bucket(link_id);
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

/// One table on its way into its files, a cell each.
pub(super) struct Output<'s> {
    table: &'static Table,
    staging: &'s Staging,
    previous: Option<&'s TableEntry>,
    linker: Option<&'s Linker>,
    split: Split,
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

/// Writes the files of one table on a thread of its own: encoding takes about as long as flattening, and both then go
/// on at the same time. Gives the rows of each file.
struct Encoder(Lane<Order, Result<BTreeMap<Cell, u64>, sinks::Error>>);

impl Encoder {
    fn start(table: &'static Table, folder: &Path, split: Split) -> Result<Self, Error> {
        let folder = folder.to_owned();
        let encode = move |coming: Receiver<Order>| {
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
                                let path = folder.join(split.path(table, cell));
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
        Ok(Self(Lane::start("lake-encoder", WAITING_BATCHES, encode).map_err(Error::Thread)?))
    }
}

/// Takes files over from the snapshot before, on a thread of its own: a lake has a thousand, and each waits for the
/// disk's folders.
pub(super) struct Linker(Lane<FileEntry, Result<(), Error>>);

/// Files that wait to be taken over.
const WAITING_FILES: usize = 1_024;

impl Linker {
    /// Takes files of the snapshot in the folder `earlier` over.
    pub(super) fn start(earlier: &Path, staging: &Staging) -> Result<Self, Error> {
        let (earlier, staging) = (earlier.to_owned(), staging.clone());
        let link =
            move |coming: Receiver<FileEntry>| coming.iter().try_for_each(|file| staging.take_over(&earlier, &file));
        Ok(Self(Lane::start("lake-linker", WAITING_FILES, link).map_err(Error::Thread)?))
    }

    fn take_over(&self, file: FileEntry) {
        // When the thread has failed, it says so at the end.
        self.0.take(file);
    }

    /// Waits until all files are taken over.
    pub(super) fn finish(self) -> Result<(), Error> {
        self.0.finish()
    }
}

impl<'s> Output<'s> {
    /// An output of which the cells are written that `changed`.
    pub(super) fn new(stager: &'s Stager<'_>, table: &'static Table, changed: &Changed) -> Self {
        Self::of(stager, table, stager.split, |cell| changed.cells.contains(&cell))
    }

    /// An output whose buckets are a file each, for small tables of which most rows change together.
    pub(super) fn whole(stager: &'s Stager<'_>, table: &'static Table, changed: &Changed) -> Self {
        let buckets: HashSet<u32> = changed.cells.iter().map(|cell| cell % stager.split.buckets).collect();
        Self::of(stager, table, stager.split.whole(), |bucket| buckets.contains(&bucket))
    }

    fn of(stager: &'s Stager<'_>, table: &'static Table, split: Split, is_changed: impl Fn(Cell) -> bool) -> Self {
        let previous = stager.previous.as_ref().and_then(|(manifest, _)| manifest.table(&table.name));
        let share = split.buckets.max(1) as usize;
        Self {
            table,
            staging: stager.staging,
            previous,
            linker: stager.linker.as_ref(),
            split,
            is_unchanged: split.cells().map(|cell| !is_changed(cell)).collect(),
            part: 0,
            encoder: None,
            most_rows: (WAITING_ROWS / share).max(256),
            most_bytes: (WAITING_BYTES / share).max(1 << 16),
        }
    }

    /// Empty columns for each bucket, for [`Output::flush`] and [`Output::finish`].
    pub(super) fn columns(&self) -> Vec<Columns> {
        (0..self.split.buckets).map(|_| Columns::of_table(self.table)).collect()
    }

    /// Takes the rows of a bucket out of memory when they are many.
    pub(super) fn flush(&mut self, bucket: u32, columns: &mut Columns) -> Result<(), Error> {
        if columns.len() >= self.most_rows || columns.text_bytes() >= self.most_bytes {
            self.write(bucket, columns)?;
        }
        Ok(())
    }

    fn write(&mut self, bucket: u32, columns: &mut Columns) -> Result<(), Error> {
        let cell = self.split.cell_of(self.part, bucket);
        if self.is_unchanged[cell as usize] {
            columns.truncate(0);
            return Ok(());
        }
        // Readers learn a table's columns from its first part; others need not be there for no rows.
        if columns.is_empty() && self.part > 0 {
            return Ok(());
        }
        let batch = columns.take(&self.table.batch).map_err(sinks::Error::from)?;
        if self.encoder.is_none() {
            self.encoder = Some(Encoder::start(self.table, &self.staging.folder, self.split)?);
        }
        self.tell(Order::Write(cell, batch))
    }

    fn tell(&mut self, order: Order) -> Result<(), Error> {
        // A thread that takes nothing has failed, and says why.
        let is_taken = self.encoder.as_ref().is_some_and(|Encoder(lane)| lane.take(order));
        if is_taken { Ok(()) } else { self.end_encoder().map(drop) }
    }

    /// Ends the files, and gives the rows of each.
    fn end_encoder(&mut self) -> Result<BTreeMap<Cell, u64>, Error> {
        self.encoder.take().map_or_else(|| Ok(BTreeMap::new()), |Encoder(lane)| Ok(lane.finish()?))
    }

    /// Writes what still waits of the part, a bucket each, and ends its files.
    pub(super) fn end_part<'c>(&mut self, waiting: impl IntoIterator<Item = &'c mut Columns>) -> Result<(), Error> {
        for (bucket, columns) in (0..).zip(waiting) {
            self.write(bucket, columns)?;
        }
        if self.encoder.is_some() { self.tell(Order::Close) } else { Ok(()) }
    }

    /// Writes the rows of whole cells, and goes on as [`Output::finish`] does.
    pub(super) fn finish_with(mut self, mut cells: BTreeMap<Cell, Columns>) -> Result<TableEntry, Error> {
        let table = self.table;
        let mut first_part: Vec<Columns> = (0..self.split.buckets)
            .map(|cell| cells.remove(&cell).unwrap_or_else(|| Columns::of_table(table)))
            .collect();
        self.end_part(&mut first_part)?;
        for (cell, mut columns) in cells {
            self.part = cell / self.split.buckets;
            self.write(cell % self.split.buckets, &mut columns)?;
        }
        self.finish([])
    }

    /// Writes what still waits, ends the files, takes over the others, and says what the table consists of.
    pub(super) fn finish<'c>(
        mut self,
        waiting: impl IntoIterator<Item = &'c mut Columns>,
    ) -> Result<TableEntry, Error> {
        self.end_part(waiting)?;
        let written = self.end_encoder()?;
        let previous: HashMap<&str, &FileEntry> =
            self.previous.iter().flat_map(|entry| &entry.files).map(|file| (file.path.as_str(), file)).collect();
        let mut files = Vec::new();
        for (cell, is_unchanged) in (0..).zip(&self.is_unchanged) {
            let path = self.split.path(self.table, cell);
            if let Some(&rows) = written.get(&cell) {
                files.push(self.staging.checked(Path::new(&path), Some(rows))?);
            } else if let (true, Some(&file), Some(linker)) = (is_unchanged, previous.get(path.as_str()), self.linker) {
                linker.take_over(file.clone());
                files.push(file.clone());
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
