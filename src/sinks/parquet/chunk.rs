//! The cells of one column in one row group → the pages of a Parquet column chunk.
//!
//! `parquet`'s own writer looks each cell up in a table of values, and gives each decimal a piece of memory of its own;
//! with it, writing took longer than flattening. Here a text that comes again costs a comparison of two numbers,
//! because it comes as the number of a text already.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash};
use std::ops::Range;

use arrow::array::{Array, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Date32Type, Decimal128Type, Int32Type, TimestampMicrosecondType};
use bytes::Bytes;
use foldhash::fast::RandomState;
use hashbrown::HashTable;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::runs::{self, Runs};
use crate::schema::Type;

/// Rows of a page, as in other writers: a reader unpacks one at a time.
const PAGE_ROWS: u32 = 20_480;

/// Bytes of values in a page, before compression.
const PAGE_BYTES: usize = 1 << 20;

/// A dictionary only costs, unless its values come so often on the average.
const WORTH_A_DICTIONARY: usize = 2;

/// The cells of one column of the row group that is being written.
pub(super) struct Chunk {
    column: ColumnDescPtr,
    has_statistics: bool,
    /// 1 for a cell, 0 for NULL.
    presence: Runs,
    rows: u32,
    nulls: u32,
    values: Values,
}

enum Values {
    Texts(Dictionary<Texts>),
    /// Dates and integers.
    Integers(Dictionary<Numbers<i32>>),
    Instants(Dictionary<Numbers<i64>>),
    /// Amounts, one after the other: too many are met once only.
    Decimals(Vec<u8>),
    /// Flags, 1 for true.
    Flags(Runs),
}

impl Chunk {
    /// For the column of that type; `None` for types that `parquet` writes itself.
    pub(super) fn of(kind: Type, column: ColumnDescPtr, has_statistics: bool) -> Option<Self> {
        let values = match kind {
            Type::Text => Values::Texts(Dictionary::default()),
            Type::Date | Type::Integer => Values::Integers(Dictionary::default()),
            Type::Timestamp => Values::Instants(Dictionary::default()),
            Type::Decimal => Values::Decimals(Vec::new()),
            Type::Boolean => Values::Flags(Runs::default()),
            Type::TextList | Type::BigInteger => return None,
        };
        Some(Self { column, has_statistics, presence: Runs::default(), rows: 0, nulls: 0, values })
    }

    /// Appends the cells of `array`, which is of the column's type.
    pub(super) fn append(&mut self, array: &dyn Array) {
        self.rows += length(array.len());
        self.nulls += length(array.null_count());
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        note(&mut self.presence, nulls, array.len());
        match &mut self.values {
            Values::Texts(dictionary) => {
                let array = array.as_dictionary::<Int32Type>();
                let texts = array.values().as_string::<i32>();
                dictionary.values.known.clear();
                dictionary.values.known.resize(texts.len(), NONE);
                dictionary.append(array.keys().values(), nulls, |distinct, key| {
                    let at = usize::try_from(key).unwrap_or_default();
                    if distinct.known[at] == NONE {
                        distinct.known[at] = distinct.number(texts.value(at).as_bytes());
                    }
                    distinct.known[at]
                });
            }
            Values::Integers(dictionary) => {
                let integers = match array.data_type() {
                    arrow::datatypes::DataType::Date32 => array.as_primitive::<Date32Type>().values(),
                    _ => array.as_primitive::<Int32Type>().values(),
                };
                dictionary.append(integers, nulls, Numbers::number);
            }
            Values::Instants(dictionary) => {
                let instants = array.as_primitive::<TimestampMicrosecondType>().values();
                dictionary.append(instants, nulls, Numbers::number);
            }
            Values::Flags(flags) => {
                let array = array.as_boolean().values();
                for row in present(nulls, array.len()).flatten() {
                    flags.push(u32::from(array.value(row)), 1);
                }
            }
            Values::Decimals(bytes) => {
                let amounts = array.as_primitive::<Decimal128Type>().values();
                for present in present(nulls, amounts.len()) {
                    let start = bytes.len();
                    bytes.resize(start + present.len() * DECIMAL_BYTES, 0);
                    for (bytes, amount) in bytes[start..].chunks_exact_mut(DECIMAL_BYTES).zip(&amounts[present]) {
                        bytes.copy_from_slice(&amount.to_be_bytes()[size_of::<i128>() - DECIMAL_BYTES..]);
                    }
                }
            }
        }
    }

    /// Gives the chunk's bytes and what the file says about it, and begins the next one.
    pub(super) fn finish(&mut self, codec: &mut Codec) -> Result<(Bytes, ColumnCloseResult)> {
        let mut pages = Pages::new(codec);
        let mut cells =
            Cells { presence: self.column.max_def_level() > 0, cursor: self.presence.cursor(), rows: self.rows };
        let present = (self.rows - self.nulls) as usize;
        match &self.values {
            Values::Texts(dictionary) => dictionary.write(present, &mut cells, &mut pages)?,
            Values::Integers(dictionary) => dictionary.write(present, &mut cells, &mut pages)?,
            Values::Instants(dictionary) => dictionary.write(present, &mut cells, &mut pages)?,
            Values::Decimals(bytes) => {
                let mut rest = bytes.as_slice();
                pages.write_cells(&mut cells, DECIMAL_BYTES, Encoding::PLAIN, |present, page| {
                    let (amounts, after) = rest.split_at(present as usize * DECIMAL_BYTES);
                    page.extend_from_slice(amounts);
                    rest = after;
                })?;
            }
            Values::Flags(flags) => {
                let mut flags = flags.cursor();
                pages.write_cells(&mut cells, 1, Encoding::PLAIN, |present, page| {
                    runs::pack_flags(flags.take(present), page);
                })?;
            }
        }
        let closed = pages.finish(&self.column, self.rows, self.statistics())?;
        self.clear();
        Ok(closed)
    }

    /// Least and greatest value, where readers may use them.
    fn statistics(&self) -> Option<Statistics> {
        let nulls = Some(u64::from(self.nulls));
        Some(match &self.values {
            _ if !self.has_statistics => return None,
            Values::Texts(dictionary) => {
                let (least, most) = dictionary.values.range()?;
                let [least, most] = [least, most].map(|text| ByteArray::from(text.to_vec()));
                Statistics::byte_array(Some(least), Some(most), None, nulls, false)
            }
            Values::Integers(dictionary) => {
                let values = &dictionary.values.values;
                Statistics::int32(values.iter().min().copied(), values.iter().max().copied(), None, nulls, false)
            }
            Values::Instants(dictionary) => {
                let values = &dictionary.values.values;
                Statistics::int64(values.iter().min().copied(), values.iter().max().copied(), None, nulls, false)
            }
            Values::Decimals(_) | Values::Flags(_) => return None,
        })
    }

    fn clear(&mut self) {
        self.presence.clear();
        (self.rows, self.nulls) = (0, 0);
        match &mut self.values {
            Values::Texts(dictionary) => dictionary.clear(),
            Values::Integers(dictionary) => dictionary.clear(),
            Values::Instants(dictionary) => dictionary.clear(),
            Values::Decimals(bytes) => bytes.clear(),
            Values::Flags(flags) => flags.clear(),
        }
    }
}

/// Bytes of a DECIMAL(19,4), the fewest that hold every amount.
const DECIMAL_BYTES: usize = 9;

fn note(presence: &mut Runs, nulls: Option<&NullBuffer>, rows: usize) {
    let mut row = 0;
    for present in present(nulls, rows) {
        presence.push(0, length(present.start - row));
        presence.push(1, length(present.len()));
        row = present.end;
    }
    presence.push(0, length(rows - row));
}

/// The rows that are not NULL, as runs.
fn present(nulls: Option<&NullBuffer>, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let all = nulls.is_none().then_some(0..rows);
    let some = nulls.into_iter().flat_map(|nulls| nulls.valid_slices().map(|(start, end)| start..end));
    all.into_iter().chain(some)
}

/// A number of rows; a row group has far fewer than would not fit.
fn length(rows: usize) -> u32 {
    u32::try_from(rows).unwrap_or(u32::MAX)
}

/// Cells as numbers of distinct values.
#[derive(Default)]
struct Dictionary<V> {
    values: V,
    /// The cells that are not NULL.
    cells: Runs,
}

impl<V: Distinct> Dictionary<V> {
    /// Appends the cells that are not NULL; `number` gives the number of each, for equal ones that follow each other
    /// once.
    fn append<C: Copy + PartialEq>(
        &mut self,
        cells: &[C],
        nulls: Option<&NullBuffer>,
        mut number: impl FnMut(&mut V, C) -> u32,
    ) {
        for present in present(nulls, cells.len()) {
            for equal in cells[present].chunk_by(|a, b| a == b) {
                self.cells.push(number(&mut self.values, equal[0]), length(equal.len()));
            }
        }
    }

    /// Writes all cells, of which `present` are not NULL.
    fn write(&self, present: usize, cells: &mut Cells<'_>, pages: &mut Pages<'_>) -> Result<()> {
        if self.values.len() * WORTH_A_DICTIONARY <= present {
            self.write_numbers(cells, pages)
        } else {
            self.write_values(cells, pages)
        }
    }

    /// The values once, and a number for each cell.
    fn write_numbers(&self, cells: &mut Cells<'_>, pages: &mut Pages<'_>) -> Result<()> {
        let count = length(self.values.len());
        let mut plain = pages.codec.page();
        (0..count).for_each(|number| self.values.push_plain(number, &mut plain));
        pages.write_dictionary(plain, count)?;
        let bits = runs::bits_for(count.saturating_sub(1));
        let mut numbers = self.cells.cursor();
        pages.write_cells(cells, 1, Encoding::RLE_DICTIONARY, |present, page| {
            page.push(bits);
            runs::encode(numbers.take(present), bits, page);
        })
    }

    /// The value of each cell.
    fn write_values(&self, cells: &mut Cells<'_>, pages: &mut Pages<'_>) -> Result<()> {
        let longest = (0..length(self.values.len())).map(|number| self.values.plain_size(number)).max();
        let mut numbers = self.cells.cursor();
        pages.write_cells(cells, longest.unwrap_or(1), Encoding::PLAIN, |present, page| {
            for (number, count) in numbers.take(present) {
                (0..count).for_each(|_| self.values.push_plain(number, page));
            }
        })
    }

    fn clear(&mut self) {
        self.values.clear();
        self.cells.clear();
    }
}

/// Distinct values, numbered in the order in which they came.
trait Distinct {
    fn len(&self) -> usize;

    /// Bytes of one value, as Parquet has it.
    fn plain_size(&self, number: u32) -> usize;

    /// Appends one value as Parquet has it.
    fn push_plain(&self, number: u32, out: &mut Vec<u8>);

    /// Forgets all, but not the memory: the next row group has as many.
    fn clear(&mut self);
}

/// Distinct texts.
#[derive(Default)]
struct Texts {
    /// Where each text ends in `bytes`.
    ends: Vec<usize>,
    bytes: Vec<u8>,
    hashes: Vec<u64>,
    numbers: HashTable<u32>,
    hasher: RandomState,
    /// The number of each text of the batch that is being appended, once it was met.
    known: Vec<u32>,
}

impl Distinct for Texts {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn plain_size(&self, number: u32) -> usize {
        size_of::<u32>() + self.at(number).len()
    }

    fn push_plain(&self, number: u32, out: &mut Vec<u8>) {
        let text = self.at(number);
        out.extend_from_slice(&length(text.len()).to_le_bytes());
        out.extend_from_slice(text);
    }

    fn clear(&mut self) {
        self.ends.clear();
        self.bytes.clear();
        self.hashes.clear();
        self.numbers.clear();
    }
}

impl Texts {
    fn number(&mut self, text: &[u8]) -> u32 {
        let Self { ends, bytes, hashes, numbers, hasher, .. } = self;
        let hash = hasher.hash_one(text);
        if let Some(&number) = numbers.find(hash, |&number| slice(ends, bytes, number) == text) {
            return number;
        }
        let number = length(ends.len());
        numbers.insert_unique(hash, number, |&number| hashes[number as usize]);
        hashes.push(hash);
        bytes.extend_from_slice(text);
        ends.push(bytes.len());
        number
    }

    fn at(&self, number: u32) -> &[u8] {
        slice(&self.ends, &self.bytes, number)
    }

    fn range(&self) -> Option<(&[u8], &[u8])> {
        let all = || (0..length(self.len())).map(|number| self.at(number));
        all().min().zip(all().max())
    }
}

fn slice<'b>(ends: &[usize], bytes: &'b [u8], number: u32) -> &'b [u8] {
    let number = number as usize;
    &bytes[number.checked_sub(1).map_or(0, |before| ends[before])..ends[number]]
}

/// Distinct integers of one width.
#[derive(Default)]
struct Numbers<N> {
    values: Vec<N>,
    known: HashMap<N, u32, RandomState>,
    /// The integers that came lately, each at the place that its last bits say: days and counters lie close together.
    recent: Vec<(N, u32)>,
}

/// How many integers are remembered.
const RECENT: usize = 1 << 12;

/// An integer as columns have it.
trait Number: Copy + Eq + Hash + Default {
    /// Its last bits.
    fn place(self) -> usize;

    /// Its bytes, as Parquet has them.
    fn push(self, out: &mut Vec<u8>);
}

impl Number for i32 {
    fn place(self) -> usize {
        self.cast_unsigned() as usize % RECENT
    }

    fn push(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

impl Number for i64 {
    #[expect(clippy::cast_possible_truncation, reason = "only the last bits count")]
    fn place(self) -> usize {
        self.cast_unsigned() as usize % RECENT
    }

    fn push(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

impl<N: Number> Distinct for Numbers<N> {
    fn len(&self) -> usize {
        self.values.len()
    }

    fn plain_size(&self, _number: u32) -> usize {
        size_of::<N>()
    }

    fn push_plain(&self, number: u32, out: &mut Vec<u8>) {
        self.values[number as usize].push(out);
    }

    fn clear(&mut self) {
        self.values.clear();
        self.known.clear();
        self.recent.clear();
    }
}

impl<N: Number> Numbers<N> {
    #[inline]
    fn number(&mut self, value: N) -> u32 {
        let place = value.place();
        match self.recent.get(place) {
            Some(&(known, number)) if known == value && number != NONE => number,
            _ => {
                let number = self.look_up(value);
                self.recent.resize(RECENT, (N::default(), NONE));
                self.recent[place] = (value, number);
                number
            }
        }
    }

    fn look_up(&mut self, value: N) -> u32 {
        let Self { values, known, .. } = self;
        *known.entry(value).or_insert_with(|| {
            values.push(value);
            length(values.len() - 1)
        })
    }
}

/// Number of no value.
const NONE: u32 = u32::MAX;

/// The rows of a chunk, cut into pages.
struct Cells<'c> {
    /// Whether the column may hold NULL, so that pages say which cells do.
    presence: bool,
    cursor: runs::Cursor<'c>,
    rows: u32,
}

/// A page on its way.
struct RawPage {
    rows: u32,
    bytes: Vec<u8>,
}

impl Cells<'_> {
    /// The next page, with its levels written, and the number of its cells that are not NULL, which take up to `width`
    /// bytes each; `None` after the last.
    fn page(&mut self, width: usize, codec: &mut Codec) -> Option<(u32, RawPage)> {
        let rows = self.rows.min(PAGE_ROWS).min(length(PAGE_BYTES / width).max(1));
        if rows == 0 {
            return None;
        }
        self.rows -= rows;
        let mut present = 0;
        let levels = self.cursor.take(rows).inspect(|&(is_present, count)| present += is_present * count);
        let mut bytes = codec.page();
        if self.presence {
            bytes.extend_from_slice(&[0; 4]);
            runs::encode(levels, 1, &mut bytes);
            let size = length(bytes.len() - 4);
            bytes[..4].copy_from_slice(&size.to_le_bytes());
        } else {
            levels.for_each(drop);
        }
        Some((present, RawPage { rows, bytes }))
    }
}

/// The pages of one chunk, written and measured.
struct Pages<'c> {
    sink: TrackedWrite<Vec<u8>>,
    codec: &'c mut Codec,
    offsets: OffsetIndexBuilder,
    has_dictionary: bool,
    data_offset: Option<i64>,
    uncompressed: i64,
    encoding: Encoding,
}

impl<'c> Pages<'c> {
    fn new(codec: &'c mut Codec) -> Self {
        Self {
            sink: TrackedWrite::new(Vec::new()),
            codec,
            offsets: OffsetIndexBuilder::new(),
            has_dictionary: false,
            data_offset: None,
            uncompressed: 0,
            encoding: Encoding::PLAIN,
        }
    }

    fn write_dictionary(&mut self, plain: Vec<u8>, values: u32) -> Result<()> {
        let size = plain.len();
        let buf = self.codec.compress(plain)?;
        let page = Page::DictionaryPage { buf, num_values: values, encoding: Encoding::PLAIN, is_sorted: false };
        self.has_dictionary = true;
        self.put(page, size).map(drop)
    }

    /// Writes all cells, which take up to `width` bytes each: `append` appends the next ones that are not NULL, as many
    /// as it is told, to a page.
    fn write_cells(
        &mut self,
        cells: &mut Cells<'_>,
        width: usize,
        encoding: Encoding,
        mut append: impl FnMut(u32, &mut Vec<u8>),
    ) -> Result<()> {
        while let Some((present, mut page)) = cells.page(width, self.codec) {
            append(present, &mut page.bytes);
            self.write(page, encoding)?;
        }
        Ok(())
    }

    fn write(&mut self, page: RawPage, encoding: Encoding) -> Result<()> {
        let RawPage { rows, bytes } = page;
        self.encoding = encoding;
        let uncompressed = bytes.len();
        let page = Page::DataPage {
            buf: self.codec.compress(bytes)?,
            num_values: rows,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let (offset, size) = self.put(page, uncompressed)?;
        self.data_offset.get_or_insert(offset);
        self.offsets.append_row_count(i64::from(rows));
        self.offsets.append_offset_and_size(offset, size);
        Ok(())
    }

    /// Writes a page and gives its place and size.
    fn put(&mut self, page: Page, uncompressed: usize) -> Result<(i64, i32)> {
        let spec = SerializedPageWriter::new(&mut self.sink).write_page(CompressedPage::new(page, uncompressed))?;
        self.uncompressed += whole(spec.uncompressed_size)?;
        let size = i32::try_from(spec.compressed_size).map_err(|_| too_large())?;
        Ok((i64::try_from(spec.offset).map_err(|_| too_large())?, size))
    }

    fn finish(
        self,
        column: &ColumnDescPtr,
        rows: u32,
        statistics: Option<Statistics>,
    ) -> Result<(Bytes, ColumnCloseResult)> {
        let bytes = Bytes::from(self.sink.into_inner()?);
        let mut encodings = vec![Encoding::PLAIN, Encoding::RLE];
        if self.has_dictionary {
            encodings.push(self.encoding);
        }
        let mut metadata = ColumnChunkMetaData::builder(column.clone())
            .set_compression(compression()?)
            .set_encodings(encodings)
            .set_num_values(i64::from(rows))
            .set_total_compressed_size(whole(bytes.len())?)
            .set_total_uncompressed_size(self.uncompressed)
            .set_data_page_offset(self.data_offset.unwrap_or_default())
            .set_dictionary_page_offset(self.has_dictionary.then_some(0));
        if let Some(statistics) = statistics {
            metadata = metadata.set_statistics(statistics);
        }
        let closed = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: u64::from(rows),
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(self.offsets.build()),
        };
        Ok((bytes, closed))
    }
}

fn whole(size: usize) -> Result<i64> {
    i64::try_from(size).map_err(|_| too_large())
}

fn too_large() -> ParquetError {
    ParquetError::General("a page is too large".to_owned())
}

/// Level 3 costs more and saves nothing here: most pages are dictionaries, and the rest is amounts.
const ZSTD_LEVEL: i32 = 1;

/// The compression of every page.
///
/// # Errors
/// None: the level is one that zstd knows.
pub(super) fn compression() -> Result<Compression> {
    Ok(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
}

/// Compresses pages, one after the other.
pub(super) struct Codec {
    compressor: zstd::bulk::Compressor<'static>,
    /// The last page that was compressed, whose memory the next one takes.
    page: Vec<u8>,
    compressed: Vec<u8>,
}

impl Codec {
    pub(super) fn new() -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
        Ok(Self { compressor, page: Vec::new(), compressed: Vec::new() })
    }

    /// An empty page.
    fn page(&mut self) -> Vec<u8> {
        self.page.clear();
        std::mem::take(&mut self.page)
    }

    fn compress(&mut self, page: Vec<u8>) -> Result<Bytes> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(page.len()));
        self.compressor.compress_to_buffer(&page, &mut self.compressed)?;
        self.page = page;
        Ok(Bytes::copy_from_slice(&self.compressed))
    }
}
