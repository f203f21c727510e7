//! A sorted file and the rows that are new → the sorted file with them, where most rows only pass by.
//!
//! Whoever sorts and writes a million rows because ten thousand are new does a hundred times the work. Here each column
//! is carried over by itself, without a look at what it means, and several at a time.
//!
//! *Takes* two files with the same columns, each sorted by a key of two texts. *Gives* a third. *Promises* memory for a
//! few row groups, however long the files are. *Not here*: which rows are new, and who wrote them.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use parquet::basic::{Repetition, Type};
use parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use parquet::column::writer::{ColumnCloseResult, get_column_writer, get_typed_column_writer};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type, Int64Type,
};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesPtr};
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::file::writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite};
use parquet::schema::types::{ColumnDescPtr, ColumnPath, SchemaDescriptor, Type as Schema, TypePtr};

use super::chunk::compression;
use super::{CREATED_BY, Error, ROW_GROUP, sorted_by};

/// Columns that are carried over at a time; each is in memory for one row group.
const MOST_WORKERS: usize = 4;

/// What tells rows apart.
pub type Key<'k> = [&'k [u8]; 2];

/// Writes into `out` all rows of `new`, and those of `earlier` for whose key `stays` holds, which is not for any in
/// `new`. The texts of a row's key are in the columns `key`, and rows stand in their order in all three files. Gives
/// the number of rows.
///
/// # Errors
/// [`Error::File`]; [`Error::Parquet`] also when the files do not have the same columns, or one has a row without a
/// key, or both have a row with the same one.
pub fn splice(
    [earlier, new]: [&Path; 2],
    out: &Path,
    key: [&str; 2],
    stays: impl Fn(Key<'_>) -> bool,
) -> std::result::Result<u64, Error> {
    let [earlier, new] = [open(earlier)?, open(new)?];
    let metadata = new.metadata().file_metadata();
    let roots = [&earlier, &new].map(|file| file.metadata().file_metadata().schema_descr().root_schema_ptr());
    let schema = SchemaDescriptor::new(common(&roots[0], &roots[1])?);
    let place_of = |name: &str| schema.columns().iter().position(|column| column.name() == name);
    let key_columns = key.into_iter().filter_map(place_of);
    let properties = WriterProperties::builder()
        .set_compression(compression()?)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_column_statistics_enabled(ColumnPath::from(key[0]), EnabledStatistics::Chunk)
        .set_created_by(CREATED_BY.to_owned())
        .set_key_value_metadata(metadata.key_value_metadata().cloned())
        .set_sorting_columns(Some(sorted_by(key_columns)));
    let properties: WriterPropertiesPtr = Arc::new(properties.build());

    let mut keys = [Keys::of(&earlier, key)?, Keys::of(&new, key)?];
    let columns = schema.columns().iter().enumerate().map(|(at, column)| {
        let wider = may_be_null(schema.root_schema(), column.path());
        let levels = |root: &Schema| levels(&may_be_null(root, column.path()), &wider);
        let sources = [(&earlier, levels(&roots[0])), (&new, levels(&roots[1]))];
        columns_of(column, sources.map(|(source, levels)| Place { source, column: at, levels }))
    });
    let mut columns = columns.collect::<Result<Vec<_>>>()?;
    let file = File::create_new(out).map_err(|source| Error::File { path: out.to_owned(), source })?;
    let mut file = SerializedFileWriter::new(file, schema.root_schema_ptr(), Arc::clone(&properties))?;
    let mut rows = 0;
    loop {
        let (steps, count) = next_group(&mut keys, &stays)?;
        if count == 0 {
            break;
        }
        rows += count as u64;
        let mut group = file.next_row_group()?;
        for (bytes, closed) in carry_over(&mut columns, &steps, &properties)? {
            group.append_column(&bytes, closed)?;
        }
        group.close()?;
    }
    order_by_type(&file.into_inner()?, schema.num_columns())?;
    Ok(rows)
}

/// Makes the finished `file` readable for those who have not heard of the total order of IEEE 754. `parquet` names it
/// as the order of least and greatest values in each column of floats, and most readers from before 2026 then refuse
/// the whole file. Such columns have no least and greatest values here, so that their order says nothing.
fn order_by_type(file: &File, columns: usize) -> Result<()> {
    // In Thrift's compact protocol: field 1 or 2 of a union, and in it a struct without fields.
    const BY_TYPE: [u8; 3] = [0x1c, 0, 0];
    const TOTAL: [u8; 3] = [0x2c, 0, 0];
    /// After the metadata, which the orders of the columns are the last field of, come its length and the magic number.
    const AFTER: u64 = 8;

    let mut orders = vec![0; columns * BY_TYPE.len() + 1];
    let from_end = AFTER + orders.len() as u64;
    let at = file.metadata()?.len().checked_sub(from_end).ok_or_else(|| damaged("a file ends too early"))?;
    file.read_exact_at(&mut orders, at)?;
    if orders.pop() != Some(0) || orders.chunks_exact(BY_TYPE.len()).any(|order| order != BY_TYPE && order != TOTAL) {
        return Err(damaged("a footer does not end with the orders of the columns"));
    }
    Ok(file.write_all_at(&BY_TYPE.repeat(columns), at)?)
}

/// The columns of two files, each of which may be NULL: DuckDB says of those that never were so in one file that they
/// never are, and readers that take all files of a table to be like the first would read a NULL of another as 0.
fn common(a: &TypePtr, b: &TypePtr) -> Result<TypePtr> {
    let (of_a, of_b) = (a.get_basic_info(), b.get_basic_info());
    let is_alike = |a: &Schema, b: &Schema| match (a, b) {
        (
            Schema::PrimitiveType { physical_type, type_length, scale, precision, .. },
            Schema::PrimitiveType {
                physical_type: b_type,
                type_length: b_length,
                scale: b_scale,
                precision: b_precision,
                ..
            },
        ) => (physical_type, type_length, scale, precision) == (b_type, b_length, b_scale, b_precision),
        (Schema::GroupType { fields, .. }, Schema::GroupType { fields: b_fields, .. }) => {
            fields.len() == b_fields.len()
        }
        _ => false,
    };
    let are_alike = is_alike(a, b)
        && a.name() == b.name()
        && of_a.converted_type() == of_b.converted_type()
        && of_a.logical_type_ref() == of_b.logical_type_ref()
        && (a.is_schema()
            || (of_a.repetition() == Repetition::REPEATED) == (of_b.repetition() == Repetition::REPEATED));
    if !are_alike {
        return Err(damaged("the new rows have other columns than those before"));
    }
    let is_repeated = !a.is_schema() && of_a.repetition() == Repetition::REPEATED;
    let repetition = if is_repeated { Repetition::REPEATED } else { Repetition::OPTIONAL };
    if let Schema::PrimitiveType { physical_type, type_length, scale, precision, .. } = &**a {
        let column = Schema::primitive_type_builder(a.name(), *physical_type)
            .with_repetition(repetition)
            .with_converted_type(of_a.converted_type())
            .with_logical_type(of_a.logical_type_ref().cloned())
            .with_length(*type_length)
            .with_scale(*scale)
            .with_precision(*precision);
        return Ok(Arc::new(column.build()?));
    }
    let fields = a.get_fields().iter().zip(b.get_fields()).map(|(a, b)| common(a, b)).collect::<Result<_>>()?;
    let group = Schema::group_type_builder(a.name())
        .with_fields(fields)
        .with_converted_type(of_a.converted_type())
        .with_logical_type(of_a.logical_type_ref().cloned());
    let group = if a.is_schema() { group } else { group.with_repetition(repetition) };
    Ok(Arc::new(group.build()?))
}

/// Of each step of the way to a column, whether it need not be there.
fn may_be_null(root: &Schema, path: &ColumnPath) -> Vec<bool> {
    let mut steps = Vec::new();
    let mut at = root;
    for name in path.parts() {
        let Some(next) = at.get_fields().iter().find(|field| field.name() == name) else { break };
        steps.push(next.get_basic_info().repetition() != Repetition::REQUIRED);
        at = next;
    }
    steps
}

/// What each definition level of a column is in a file with more steps that need not be there.
fn levels(steps: &[bool], wider: &[bool]) -> Vec<i16> {
    let mut level = 0;
    let mut levels = Vec::new();
    for (may_be_null, wider) in steps.iter().zip(wider) {
        if *may_be_null {
            levels.push(level);
        }
        level += i16::from(*wider);
    }
    levels.push(level);
    levels
}

/// A column of a file.
struct Place<'s> {
    source: &'s Source,
    column: usize,
    /// See [`levels`].
    levels: Vec<i16>,
}

type Source = Arc<SerializedFileReader<Shared>>;

fn open(path: &Path) -> std::result::Result<Source, Error> {
    let file = File::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    Ok(Arc::new(SerializedFileReader::new(Shared(Arc::new(file)))?))
}

/// A file that several threads read at a time; a [`File`] by itself is read at the one place where all of them left it.
struct Shared(Arc<File>);

/// A [`Shared`] file, from a place on.
struct Onward {
    file: Arc<File>,
    at: u64,
}

impl Length for Shared {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Shared {
    type T = BufReader<Onward>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BufReader::new(Onward { file: Arc::clone(&self.0), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

impl Read for Onward {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(bytes, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

fn damaged(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

/// Rows of one file that follow each other, on their way into the next row group or out of sight.
struct Step {
    from: usize,
    rows: usize,
    is_kept: bool,
}

/// What the next row group is made of, and how many rows that are.
fn next_group(keys: &mut [Keys; 2], stays: &impl Fn(Key<'_>) -> bool) -> Result<(Vec<Step>, usize)> {
    let mut steps: Vec<Step> = Vec::new();
    let mut count = 0;
    while count < ROW_GROUP {
        let [earlier, new] = keys.each_mut().map(Keys::peek);
        let (from, is_kept) = match (earlier?, new?) {
            (None, None) => break,
            (Some(earlier), _) if !stays(earlier) => (0, false),
            (Some(earlier), Some(new)) => match earlier.cmp(&new) {
                Ordering::Less => (0, true),
                Ordering::Greater => (1, true),
                Ordering::Equal => return Err(damaged("a row stays and is new, too")),
            },
            (Some(_), None) => (0, true),
            (None, Some(_)) => (1, true),
        };
        keys[from].pass();
        count += usize::from(is_kept);
        match steps.last_mut() {
            Some(step) if (step.from, step.is_kept) == (from, is_kept) => step.rows += 1,
            _ => steps.push(Step { from, rows: 1, is_kept }),
        }
    }
    Ok((steps, count))
}

/// The keys of a file, row by row; those of one row group are in memory.
struct Keys {
    columns: [Cells<ByteArrayType>; 2],
    texts: [Vec<ByteArray>; 2],
    at: usize,
}

impl Keys {
    fn of(source: &Source, key: [&str; 2]) -> Result<Self> {
        let columns = source.metadata().file_metadata().schema_descr().columns();
        let [first, second] = key.map(|name| {
            let at = columns.iter().position(|column| column.name() == name);
            let at = at.filter(|&at| columns[at].physical_type() == Type::BYTE_ARRAY);
            let place = |column| Place { source, column, levels: vec![0, 1] };
            at.map(|at| Cells::of(place(at))).ok_or_else(|| damaged("there is no key"))
        });
        Ok(Self { columns: [first?, second?], texts: Default::default(), at: 0 })
    }

    /// The key of the next row; `None` after the last.
    fn peek(&mut self) -> Result<Option<Key<'_>>> {
        if self.at == self.texts[0].len() {
            self.at = 0;
            for (cells, texts) in self.columns.iter_mut().zip(&mut self.texts) {
                let rows = cells.left_in_group()?;
                let mut cut = Cut::default();
                cells.read(rows, &mut cut)?;
                if cut.values.len() != rows {
                    return Err(damaged("a row has no key"));
                }
                *texts = cut.values;
            }
        }
        let text = |column: usize| self.texts[column].get(self.at).map(ByteArray::data);
        Ok(text(0).zip(text(1)).map(|(first, second)| [first, second]))
    }

    fn pass(&mut self) {
        self.at += 1;
    }
}

/// The cells of one column of a file, read from the first to the last.
struct Cells<T: DataType> {
    source: Source,
    column: usize,
    levels: Vec<i16>,
    /// The row group after the one that is being read.
    next_group: usize,
    reader: Option<ColumnReaderImpl<T>>,
    /// Rows of the group that are not read.
    left: usize,
}

impl<T: DataType> Cells<T> {
    fn of(Place { source, column, levels }: Place<'_>) -> Self {
        Self { source: Arc::clone(source), column, levels, next_group: 0, reader: None, left: 0 }
    }

    /// Rows that are left of a row group, which is the next one when none are of this; 0 at the end of the file.
    fn left_in_group(&mut self) -> Result<usize> {
        while self.left == 0 && self.next_group < self.source.num_row_groups() {
            let group = self.source.get_row_group(self.next_group)?;
            self.left = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
            self.reader = Some(get_typed_column_reader(group.get_column_reader(self.column)?));
            self.next_group += 1;
        }
        Ok(self.left)
    }

    /// Appends the next `rows`.
    fn read(&mut self, rows: usize, into: &mut Cut<T>) -> Result<()> {
        let Cut { definitions, repetitions, values } = into;
        self.each_part(rows, |reader, levels, part| {
            let first = definitions.len();
            let (records, _, count) = reader.read_records(part, Some(definitions), Some(repetitions), values)?;
            // Of a column that is never NULL there is none.
            definitions.resize(first + count, 0);
            for level in &mut definitions[first..] {
                *level = usize::try_from(*level).ok().and_then(|level| levels.get(level)).copied().unwrap_or_default();
            }
            Ok(records)
        })
    }

    /// Passes by the next `rows`.
    fn skip(&mut self, rows: usize) -> Result<()> {
        self.each_part(rows, |reader, _, part| reader.skip_records(part))
    }

    fn each_part(
        &mut self,
        mut rows: usize,
        mut work: impl FnMut(&mut ColumnReaderImpl<T>, &[i16], usize) -> Result<usize>,
    ) -> Result<()> {
        while rows > 0 {
            let part = rows.min(self.left_in_group()?);
            let done = self.reader.as_mut().map_or(Ok(0), |reader| work(reader, &self.levels, part))?;
            if part == 0 || done != part {
                return Err(damaged("a column has fewer rows than its file"));
            }
            self.left -= part;
            rows -= part;
        }
        Ok(())
    }
}

/// Cells as Parquet has them.
struct Cut<T: DataType> {
    /// For each value or NULL, how much of its path is there.
    definitions: Vec<i16>,
    /// For each value or NULL of a column of lists, which list it goes on with.
    repetitions: Vec<i16>,
    /// What is not NULL.
    values: Vec<T::T>,
}

impl<T: DataType> Default for Cut<T> {
    fn default() -> Self {
        Self { definitions: Vec::new(), repetitions: Vec::new(), values: Vec::new() }
    }
}

/// A column on its way.
trait Column: Send {
    /// Its part of the row group that `steps` make.
    fn carry_over(&mut self, steps: &[Step], properties: &WriterPropertiesPtr) -> Result<(Bytes, ColumnCloseResult)>;
}

struct Typed<T: DataType> {
    descriptor: ColumnDescPtr,
    sources: [Cells<T>; 2],
}

impl<T: DataType> Column for Typed<T> {
    fn carry_over(&mut self, steps: &[Step], properties: &WriterPropertiesPtr) -> Result<(Bytes, ColumnCloseResult)> {
        let mut cells = Cut::default();
        for step in steps {
            let source = &mut self.sources[step.from];
            if step.is_kept { source.read(step.rows, &mut cells)? } else { source.skip(step.rows)? }
        }
        let mut sink = TrackedWrite::new(Vec::new());
        let pages = Box::new(SerializedPageWriter::new(&mut sink));
        let writer = get_column_writer(Arc::clone(&self.descriptor), Arc::clone(properties), pages);
        let mut writer = get_typed_column_writer::<T>(writer);
        let Cut { definitions, repetitions, values } = &cells;
        let definitions = (self.descriptor.max_def_level() > 0).then_some(definitions.as_slice());
        let repetitions = (self.descriptor.max_rep_level() > 0).then_some(repetitions.as_slice());
        writer.write_batch(values, definitions, repetitions)?;
        let closed = writer.close()?;
        Ok((Bytes::from(sink.into_inner()?), closed))
    }
}

/// The column at its places in both files.
fn columns_of(descriptor: &ColumnDescPtr, places: [Place<'_>; 2]) -> Result<Box<dyn Column>> {
    fn typed<T: DataType>(descriptor: &ColumnDescPtr, places: [Place<'_>; 2]) -> Box<dyn Column> {
        Box::new(Typed::<T> { descriptor: Arc::clone(descriptor), sources: places.map(Cells::of) })
    }
    Ok(match descriptor.physical_type() {
        Type::BOOLEAN => typed::<BoolType>(descriptor, places),
        Type::INT32 => typed::<Int32Type>(descriptor, places),
        Type::INT64 => typed::<Int64Type>(descriptor, places),
        Type::FLOAT => typed::<FloatType>(descriptor, places),
        Type::DOUBLE => typed::<DoubleType>(descriptor, places),
        Type::BYTE_ARRAY => typed::<ByteArrayType>(descriptor, places),
        Type::FIXED_LEN_BYTE_ARRAY => typed::<FixedLenByteArrayType>(descriptor, places),
        Type::INT96 => return Err(damaged("a column of an old kind of instants cannot be carried over")),
    })
}

/// The row group that `steps` make, column by column.
fn carry_over(
    columns: &mut [Box<dyn Column>],
    steps: &[Step],
    properties: &WriterPropertiesPtr,
) -> Result<Vec<(Bytes, ColumnCloseResult)>> {
    let mut done: Vec<_> = columns.iter().map(|_| None).collect();
    let left = Mutex::new(columns.iter_mut().zip(&mut done));
    let work = || {
        loop {
            // Not in the loop's head, where the others would wait until the column is done.
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((column, done)) = next else { return };
            *done = Some(column.carry_over(steps, properties));
        }
    };
    thread::scope(|scope| {
        for _ in 1..thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS) {
            scope.spawn(work);
        }
        work();
    });
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use duckdb::Connection;
    use parquet::basic::ColumnOrder;

    use super::*;

    /// Rows of a range of numbers, with a column of each type that features have.
    fn rows(sign: &str, numbers: &str, condition: &str) -> String {
        format!(
            "SELECT lpad(n::VARCHAR, 6, '0') AS link_id, mode, CASE WHEN n % 7 > 0 THEN {sign}n::INTEGER END AS whole, \
             CASE WHEN n % 5 > 0 THEN '{sign}' || n % 50 END AS text, ({sign}n / 8)::DECIMAL(19, 4) AS amount, \
             ({sign}n / 8)::DECIMAL(25, 4) AS large, n % 3 = 0 AS flag, {sign}sqrt(n) AS real, \
             make_timestamptz({sign}n) AS instant, NULL::DATE AS never, \
             CASE WHEN n % 11 > 0 THEN list_transform(range(n % 4), lambda x: nullif(x, 2)::VARCHAR) END AS list, \
             CASE WHEN '{sign}' = '' THEN n END AS once, CASE WHEN '{sign}' <> '' THEN [n::VARCHAR] END AS now \
             FROM {numbers} AS numbers(n), (VALUES ('strict'), ('retro')) AS modes(mode) WHERE {condition}"
        )
    }

    /// Two files and what they are spliced into, and the number of rows.
    fn spliced(
        connection: &Connection,
        folder: &Path,
        [before, now]: [&str; 2],
        stays: impl Fn(Key<'_>) -> bool,
    ) -> (String, std::result::Result<u64, Error>) {
        let [earlier, new, out] = ["earlier", "new", "out"].map(|name| folder.join(name));
        for (sql, file) in [(before, &earlier), (now, &new)] {
            // Of a table DuckDB knows which columns are never NULL, and writes it into the file.
            let write = format!(
                "CREATE OR REPLACE TABLE t AS {sql}; COPY (FROM t ORDER BY link_id, mode) TO '{}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 4096)",
                file.display()
            );
            connection.execute_batch(&write).unwrap();
        }
        let count = splice([&earlier, &new], &out, ["link_id", "mode"], stays);
        (out.display().to_string(), count)
    }

    #[test]
    fn new_rows_stand_among_those_that_stay() {
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open_in_memory().unwrap();
        let one = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap();
        // Of some links one row only is new, and the other goes.
        let before = rows("", "range(140000)", "n % 3 < 2 AND (n % 100 > 0 OR mode = 'strict')");
        let now = rows("-", "range(140100)", "n % 10 = 1 AND (n % 40 > 1 OR mode = 'retro') OR n > 139_900");
        let stays = |[link_id, _]: Key<'_>| !link_id.ends_with(b"1") && link_id <= b"139900".as_slice();
        let (out, count) = spliced(&connection, folder.path(), [&before, &now], stays);
        let [earlier, new] = ["earlier", "new"].map(|name| folder.path().join(name).display().to_string());
        let other = format!(
            "SELECT count(*) FROM parquet_schema('{earlier}') e JOIN parquet_schema('{new}') n USING (name) \
             WHERE e.repetition_type <> n.repetition_type AND e.name IN ('once', 'now')"
        );
        assert_eq!(one(&other), 2, "each file says of another column that it is never NULL");
        let expected = format!("{before} AND n % 10 <> 1 AND n <= 139_900 UNION ALL {now}");
        let groups = format!("SELECT count(DISTINCT row_group_id) FROM parquet_metadata('{out}')");
        assert_eq!(one(&groups), 2, "readers go on in the middle of their row groups");
        let never_null = format!(
            "SELECT count(*) FROM parquet_schema('{out}') WHERE repetition_type = 'REQUIRED' AND name <> 'duckdb_schema'"
        );
        assert_eq!(one(&never_null), 0, "all files of a table have one schema, whatever rows they have");
        let orders = SerializedFileReader::new(File::open(&out).unwrap()).unwrap();
        let orders = orders.metadata().file_metadata().column_orders().unwrap();
        assert!(orders.iter().all(|order| matches!(order, ColumnOrder::TYPE_DEFINED_ORDER(_))), "{orders:?}");
        let out = format!("SELECT * EXCLUDE (file_row_number) FROM read_parquet('{out}', file_row_number = true)");
        for count in [count.unwrap(), one(&format!("SELECT count(*) FROM ({out})"))] {
            assert_eq!(count, one(&format!("SELECT count(*) FROM ({expected})")));
        }
        assert_eq!(one(&format!("SELECT count(*) FROM ({out} EXCEPT ALL ({expected}))")), 0);
        let types = |sql: &str| {
            let types = format!("SELECT string_agg(column_name || column_type) FROM (DESCRIBE {sql})");
            connection.query_row(&types, [], |row| row.get::<_, String>(0)).unwrap()
        };
        assert_eq!(types(&out), types(&expected));
        let numbered = out.replace("* EXCLUDE (file_row_number)", "link_id, mode, file_row_number AS at");
        let unordered = format!(
            "SELECT count(*) FROM ({numbered}) a JOIN ({numbered}) b ON b.at = a.at + 1 \
             WHERE (a.link_id, a.mode) >= (b.link_id, b.mode)"
        );
        assert_eq!(one(&unordered), 0);

        // And what was spliced can be spliced again.
        let [out, new, again] = ["out", "new", "again"].map(|name| folder.path().join(name));
        let count = splice([&out, &new], &again, ["link_id", "mode"], |key| key[0].is_empty());
        assert_eq!(count.unwrap(), one(&format!("SELECT count(*) FROM ({now})")));
    }

    #[test]
    fn either_file_may_have_no_rows_and_no_row_may_stand_in_both() {
        let connection = Connection::open_in_memory().unwrap();
        let (some, none) = (rows("", "range(7)", "true"), rows("", "range(7)", "false"));
        for (before, now, stay, expected) in [
            (&some, &none, true, Some(14)),
            (&some, &none, false, Some(0)),
            (&none, &some, true, Some(14)),
            (&none, &none, true, Some(0)),
            (&some, &some, false, Some(14)),
            (&some, &some, true, None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let (out, count) = spliced(&connection, folder.path(), [before, now], |_| stay);
            assert_eq!(count.ok(), expected);
            if let Some(expected) = expected {
                let sql = format!("SELECT count(*) FROM read_parquet('{out}')");
                assert_eq!(connection.query_row(&sql, [], |row| row.get::<_, u64>(0)).unwrap(), expected);
            }
        }
    }
}
