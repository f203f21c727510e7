//! Batches of one table and bucket → one Parquet file.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, ProjectionMask, add_encoded_arrow_schema_to_metadata};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::TypePtr;

use self::chunk::{Chunk, Codec, compression};
use super::Error;
use crate::schema::{Column, Table, Type};

mod chunk;
mod runs;
mod splice;

pub use splice::{Key, splice};

/// Rows of a row group: as many as DuckDB scans in one piece, and few enough that a writer needs little memory.
const ROW_GROUP: usize = 122_880;

/// What every file of a table is written with, one after the other: making it takes longer than a small file.
pub struct Kit {
    table: &'static Table,
    schema: TypePtr,
    properties: Arc<WriterProperties>,
    columns: Vec<ColumnWriter>,
    codec: Codec,
}

/// Who wrote a file, as it says itself.
const CREATED_BY: &str = concat!("vinculo ", env!("CARGO_PKG_VERSION"));

/// Writes one file of one table, batch by batch.
pub struct TableWriter {
    file: SerializedFileWriter<File>,
    kit: Kit,
    rows_in_group: usize,
    rows: u64,
}

/// The column of the row group that is being written.
enum ColumnWriter {
    Ours(Chunk),
    /// Of a type that is rare: lists.
    Theirs(Box<Option<ArrowColumnWriter>>),
}

impl Kit {
    /// What files of `table` are written with.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn new(table: &'static Table) -> Result<Self, Error> {
        let schema = ArrowSchemaConverter::new().convert(&table.arrow)?;
        let columns = table.columns.iter().zip(schema.columns());
        let columns = columns.map(|(column, descriptor)| {
            match Chunk::of(column.kind, Arc::clone(descriptor), has_statistics(column)) {
                Some(chunk) => ColumnWriter::Ours(chunk),
                None => ColumnWriter::Theirs(Box::new(None)),
            }
        });
        let columns = columns.collect();
        let (schema, properties) = (schema.root_schema_ptr(), Arc::new(properties(table)?));
        Ok(Self { table, schema, properties, columns, codec: Codec::new()? })
    }
}

impl TableWriter {
    /// Begins the file `path`, and makes its folder.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Parquet`].
    pub fn create(path: &Path, kit: Kit) -> Result<Self, Error> {
        let unwritable = |source| Error::File { path: path.to_owned(), source };
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(unwritable)?;
        let file = File::create_new(path).map_err(unwritable)?;
        let file = SerializedFileWriter::new(file, Arc::clone(&kit.schema), Arc::clone(&kit.properties))?;
        Ok(Self { file, kit, rows_in_group: 0, rows: 0 })
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let mut start = 0;
        while start < batch.num_rows() {
            let count = (ROW_GROUP - self.rows_in_group).min(batch.num_rows() - start);
            self.append(&batch.slice(start, count))?;
            start += count;
            if self.rows_in_group == ROW_GROUP {
                self.end_group()?;
            }
        }
        Ok(())
    }

    /// Ends the file, and gives its rows and what the next one can be written with.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn finish(mut self) -> Result<(u64, Kit), Error> {
        self.end_group()?;
        self.file.close()?;
        Ok((self.rows, self.kit))
    }

    fn append(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        if self.rows_in_group == 0 {
            self.begin_group()?;
        }
        self.rows_in_group += batch.num_rows();
        self.rows += batch.num_rows() as u64;
        for ((array, field), column) in
            batch.columns().iter().zip(self.kit.table.arrow.fields()).zip(&mut self.kit.columns)
        {
            match column {
                ColumnWriter::Ours(chunk) => chunk.append(array),
                ColumnWriter::Theirs(writer) => {
                    for leaf in compute_leaves(field, array)? {
                        writer.as_mut().as_mut().map_or(Ok(()), |writer| writer.write(&leaf))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn begin_group(&mut self) -> Result<(), Error> {
        if self.kit.columns.iter().all(|column| matches!(column, ColumnWriter::Ours(_))) {
            return Ok(());
        }
        let factory = ArrowRowGroupWriterFactory::new(&self.file, Arc::clone(&self.kit.table.arrow));
        let number = self.file.flushed_row_groups().len();
        for (column, begun) in self.kit.columns.iter_mut().zip(factory.create_column_writers(number)?) {
            if let ColumnWriter::Theirs(writer) = column {
                **writer = Some(begun);
            }
        }
        Ok(())
    }

    fn end_group(&mut self) -> Result<(), Error> {
        if self.rows_in_group == 0 {
            return Ok(());
        }
        self.rows_in_group = 0;
        let mut group = self.file.next_row_group()?;
        for column in &mut self.kit.columns {
            match column {
                ColumnWriter::Ours(chunk) => {
                    let (bytes, closed) = chunk.finish(&mut self.kit.codec)?;
                    group.append_column(&bytes, closed)?;
                }
                ColumnWriter::Theirs(writer) => {
                    if let Some(writer) = writer.take() {
                        writer.close()?.append_to_row_group(&mut group)?;
                    }
                }
            }
        }
        group.close()?;
        Ok(())
    }
}

/// Gives the texts of two columns of a file that a [`TableWriter`] wrote, row by row.
///
/// # Errors
/// [`Error::File`], [`Error::Parquet`], [`Error::Arrow`]; rows before the failure have been given.
pub fn read_texts(path: &Path, columns: [&str; 2], mut each: impl FnMut([Option<&str>; 2])) -> Result<(), Error> {
    let file = File::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let wanted = ProjectionMask::columns(reader.parquet_schema(), columns);
    for batch in reader.with_projection(wanted).build()? {
        let batch = batch?;
        let texts = columns.map(|name| batch.column_by_name(name).and_then(|array| array.as_string_opt::<i32>()));
        for row in 0..batch.num_rows() {
            each(texts.map(|texts| texts.filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row))));
        }
    }
    Ok(())
}

fn properties(table: &Table) -> Result<WriterProperties, Error> {
    let mut properties = WriterProperties::builder()
        .set_compression(compression()?)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_created_by(CREATED_BY.to_owned())
        .set_key_value_metadata(Some(vec![
            KeyValue::new("vinculo.table".to_owned(), table.name.clone()),
            KeyValue::new("vinculo.schema_version".to_owned(), table.version.to_string()),
        ]))
        .set_sorting_columns(Some(sorting(table)))
        .build();
    // Readers that know Arrow get the descriptions and the time zone.
    add_encoded_arrow_schema_to_metadata(&table.arrow, &mut properties);
    Ok(properties)
}

/// Readers skip row groups by link and by time. Least and greatest values of anything else would only be pieces of
/// personal data in the footer.
fn has_statistics(column: &Column) -> bool {
    matches!(column.kind, Type::Date | Type::Timestamp) || column.name == "link_id"
}

/// By link, and then by the key of the table.
fn sorting(table: &Table) -> Vec<SortingColumn> {
    let sorted = ["link_id"].into_iter().chain(table.key.iter().map(String::as_str).filter(|&name| name != "link_id"));
    sorted_by(sorted.filter_map(|name| table.columns.iter().position(|column| column.name == name)))
}

/// Ascending by the columns at these places, NULL first.
fn sorted_by(places: impl Iterator<Item = usize>) -> Vec<SortingColumn> {
    places
        .map(|at| SortingColumn {
            column_idx: i32::try_from(at).unwrap_or(i32::MAX),
            descending: false,
            nulls_first: true,
        })
        .collect()
}
