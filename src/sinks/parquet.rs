//! Batches of one table and bucket → one Parquet file.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::Error;
use crate::schema::{Table, Type};

/// Rows of a row group: as many as DuckDB scans in one piece, and few enough that a writer needs little memory.
const ROW_GROUP: usize = 122_880;

/// Level 3 costs more and saves nothing here: most pages are dictionaries, and the rest is amounts.
const ZSTD_LEVEL: i32 = 1;

/// Writes one file of one table, batch by batch.
pub struct TableWriter {
    writer: ArrowWriter<File>,
    rows: u64,
}

impl TableWriter {
    /// Begins the file `path` of `table`, and makes its folder.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Parquet`].
    pub fn create(path: &Path, table: &Table) -> Result<Self, Error> {
        let unwritable = |source| Error::File { path: path.to_owned(), source };
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(unwritable)?;
        let file = File::create_new(path).map_err(unwritable)?;
        let options = ArrowWriterOptions::new().with_properties(properties(table)?);
        let writer = ArrowWriter::try_new_with_options(file, Arc::clone(&table.arrow), options)?;
        Ok(Self { writer, rows: 0 })
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        self.rows += batch.num_rows() as u64;
        self.writer.write(batch)?;
        Ok(())
    }

    /// Ends the file and gives its rows.
    ///
    /// # Errors
    /// [`Error::Parquet`].
    pub fn finish(self) -> Result<u64, Error> {
        self.writer.close()?;
        Ok(self.rows)
    }
}

fn properties(table: &Table) -> Result<WriterProperties, Error> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_created_by(concat!("vinculo ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(vec![
            KeyValue::new("vinculo.table".to_owned(), table.name.clone()),
            KeyValue::new("vinculo.schema_version".to_owned(), table.version.to_string()),
        ]))
        .set_sorting_columns(Some(sorting(table)));
    let columns = table.columns.iter().map(|column| (column, ColumnPath::from(column.name.as_str())));
    Ok(columns
        .fold(properties, |properties, (column, path)| {
            // Amounts hardly repeat, and instants repeat in runs: a dictionary costs a third more time on 1.6 million
            // salaries, and a fifth more space.
            let properties = match column.kind {
                Type::Decimal | Type::Timestamp => properties.set_column_dictionary_enabled(path.clone(), false),
                _ => properties,
            };
            // Readers skip row groups by link and by time. Least and greatest values of anything else would only be
            // pieces of personal data in the footer.
            match column.kind {
                Type::Date | Type::Timestamp => {
                    properties.set_column_statistics_enabled(path, EnabledStatistics::Chunk)
                }
                _ if column.name == "link_id" => {
                    properties.set_column_statistics_enabled(path, EnabledStatistics::Chunk)
                }
                _ => properties,
            }
        })
        .build())
}

/// By link, and then by the key of the table.
fn sorting(table: &Table) -> Vec<SortingColumn> {
    let sorted = ["link_id"].into_iter().chain(table.key.iter().map(String::as_str).filter(|&name| name != "link_id"));
    sorted
        .filter_map(|name| table.columns.iter().position(|column| column.name == name))
        .map(|at| SortingColumn {
            column_idx: i32::try_from(at).unwrap_or(i32::MAX),
            descending: false,
            nulls_first: true,
        })
        .collect()
}
