//! The cells of one column in one row group → the pages of a Parquet column chunk.
//!
//! `parquet`'s own writer looks each cell up in a table of values, and gives each decimal a piece of memory of its own; with
//! it, writing took longer than flattening. Here a text that comes again costs a comparison of two numbers, because it
//! comes as the number of a text already.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Date32Type, Decimal128Type, Int32Type, TimestampMicrosecondType};
use bytes::Bytes;
use foldhash::fast::RandomState;
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

/// A dictionary with more than this share of the cells, and of more bytes than a page, only costs.
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
    /// Texts, as numbers in a dictionary.
    Texts(Dictionary<Texts>),
    /// Dates and integers, as numbers in a dictionary.
    Integers(Dictionary<Integers>),
    /// Instants, one after the other.
    Instants { bytes: Vec<u8>, range: Option<(i64, i64)> },
    /// Amounts, one after the other.
    Decimals { bytes: Vec<u8> },
}

impl Chunk {
    /// For the column of that type; `None` for types that `parquet` writes itself.
    pub(super) fn of(kind: Type, column: ColumnDescPtr, has_statistics: bool) -> Option<Self> {
        let values = match kind {
            Type::Text => Values::Texts(Dictionary::default()),
            Type::Date | Type::Integer => Values::Integers(Dictionary::default()),
            Type::Timestamp => Values::Instants { bytes: Vec::new(), range: None },
            Type::Decimal => Values::Decimals { bytes: Vec::new() },
            Type::Boolean | Type::TextList => return None,
        };
        Some(Self { column, has_statistics, presence: Runs::default(), rows: 0, nulls: 0, values })
    }

    /// Appends the cells of `array`, which is of the column's type.
    pub(super) fn append(&mut self, array: &dyn Array) {
        self.rows += length(array.len());
        self.nulls += length(array.null_count());
        note(&mut self.presence, array.nulls(), array.len());
        let is_valid = |row| array.nulls().is_none_or(|nulls| nulls.is_valid(row));
        match &mut self.values {
            Values::Texts(dictionary) => {
                let array = array.as_dictionary::<Int32Type>();
                let texts = array.values().as_string::<i32>();
                // What each text of the batch is in the dictionary, once it was met.
                let mut known = vec![None; texts.len()];
                let mut last = None;
                for (row, &key) in array.keys().values().iter().enumerate() {
                    if array.null_count() > 0 && !is_valid(row) {
                        continue;
                    }
                    let number = match last {
                        Some((last, number)) if last == key => number,
                        _ => {
                            let at = usize::try_from(key).unwrap_or_default();
                            *known[at].get_or_insert_with(|| dictionary.values.number(texts.value(at).as_bytes()))
                        }
                    };
                    last = Some((key, number));
                    dictionary.cells.push(number, 1);
                }
            }
            Values::Integers(dictionary) => {
                let integers = match array.data_type() {
                    arrow::datatypes::DataType::Date32 => array.as_primitive::<Date32Type>().values(),
                    _ => array.as_primitive::<Int32Type>().values(),
                };
                for (_, &integer) in integers.iter().enumerate().filter(|&(row, _)| is_valid(row)) {
                    dictionary.cells.push(dictionary.values.number(integer), 1);
                }
            }
            Values::Instants { bytes, range } => {
                let instants = array.as_primitive::<TimestampMicrosecondType>().values();
                bytes.reserve(instants.len() * size_of::<i64>());
                for (_, &instant) in instants.iter().enumerate().filter(|&(row, _)| is_valid(row)) {
                    bytes.extend_from_slice(&instant.to_le_bytes());
                    *range =
                        Some(range.map_or((instant, instant), |(least, most)| (least.min(instant), most.max(instant))));
                }
            }
            Values::Decimals { bytes } => {
                let amounts = array.as_primitive::<Decimal128Type>().values();
                bytes.reserve(amounts.len() * DECIMAL_BYTES);
                for (_, &amount) in amounts.iter().enumerate().filter(|&(row, _)| is_valid(row)) {
                    bytes.extend_from_slice(&amount.to_be_bytes()[size_of::<i128>() - DECIMAL_BYTES..]);
                }
            }
        }
    }

    /// Gives the chunk's bytes and what the file says about it, and begins the next one.
    pub(super) fn finish(&mut self, codec: &mut Codec) -> Result<(Bytes, ColumnCloseResult)> {
        let mut pages = Pages::new(codec);
        let mut cells =
            Cells { presence: self.column.max_def_level() > 0, cursor: self.presence.cursor(), rows: self.rows };
        match &self.values {
            Values::Texts(dictionary) if dictionary.is_worth_it() => {
                pages.write_dictionary(dictionary.values.plain(), dictionary.values.len())?;
                dictionary.write_cells(&mut cells, &mut pages)?;
            }
            Values::Texts(dictionary) => {
                let mut numbers = dictionary.cells.cursor();
                let longest = dictionary.values.longest() + 4;
                while let Some((present, mut page)) = cells.page(longest) {
                    for (number, count) in numbers.take(present) {
                        (0..count).for_each(|_| dictionary.values.push_plain(number, &mut page.bytes));
                    }
                    pages.write(page, Encoding::PLAIN)?;
                }
            }
            Values::Integers(dictionary) => {
                let plain = dictionary.values.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                pages.write_dictionary(plain, dictionary.values.values.len())?;
                dictionary.write_cells(&mut cells, &mut pages)?;
            }
            Values::Instants { bytes, .. } => pages.write_plain(&mut cells, bytes, size_of::<i64>())?,
            Values::Decimals { bytes } => pages.write_plain(&mut cells, bytes, DECIMAL_BYTES)?,
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
            Values::Instants { range, .. } => {
                Statistics::int64(range.map(|range| range.0), range.map(|range| range.1), None, nulls, false)
            }
            Values::Decimals { .. } => return None,
        })
    }

    fn clear(&mut self) {
        self.presence.clear();
        (self.rows, self.nulls) = (0, 0);
        match &mut self.values {
            Values::Texts(dictionary) => *dictionary = Dictionary::default(),
            Values::Integers(dictionary) => *dictionary = Dictionary::default(),
            Values::Instants { bytes, range } => {
                bytes.clear();
                *range = None;
            }
            Values::Decimals { bytes } => bytes.clear(),
        }
    }
}

/// Bytes of a DECIMAL(19,4), the fewest that hold every amount.
const DECIMAL_BYTES: usize = 9;

fn note(presence: &mut Runs, nulls: Option<&NullBuffer>, rows: usize) {
    let Some(nulls) = nulls else { return presence.push(1, length(rows)) };
    let mut row = 0;
    for (start, end) in nulls.valid_slices() {
        presence.push(0, length(start - row));
        presence.push(1, length(end - start));
        row = end;
    }
    presence.push(0, length(rows - row));
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
    fn write_cells(&self, cells: &mut Cells<'_>, pages: &mut Pages<'_>) -> Result<()> {
        let bits = runs::bits_for(length(self.values.len()).saturating_sub(1));
        let mut numbers = self.cells.cursor();
        while let Some((present, mut page)) = cells.page(1) {
            page.bytes.push(bits);
            runs::encode(numbers.take(present), bits, &mut page.bytes);
            pages.write(page, Encoding::RLE_DICTIONARY)?;
        }
        Ok(())
    }
}

impl Dictionary<Texts> {
    fn is_worth_it(&self) -> bool {
        let cells: usize = self.cells.cursor().take(u32::MAX).map(|(_, count)| count as usize).sum();
        self.values.bytes.len() <= PAGE_BYTES || self.values.len() * WORTH_A_DICTIONARY <= cells
    }
}

/// Distinct values, numbered in the order in which they came.
trait Distinct {
    fn len(&self) -> usize;
}

/// Distinct texts.
#[derive(Default)]
struct Texts {
    /// Where each text ends in `bytes`.
    ends: Vec<usize>,
    bytes: Vec<u8>,
    numbers: HashMap<Box<[u8]>, u32, RandomState>,
}

impl Distinct for Texts {
    fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Texts {
    fn number(&mut self, text: &[u8]) -> u32 {
        if let Some(&number) = self.numbers.get(text) {
            return number;
        }
        let number = length(self.ends.len());
        self.numbers.insert(text.into(), number);
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
        number
    }

    fn at(&self, number: u32) -> &[u8] {
        slice(&self.ends, &self.bytes, number)
    }

    fn range(&self) -> Option<(&[u8], &[u8])> {
        let all = || (0..length(self.len())).map(|number| self.at(number));
        all().min().zip(all().max())
    }

    fn longest(&self) -> usize {
        (0..length(self.len())).map(|number| self.at(number).len()).max().unwrap_or_default()
    }

    fn push_plain(&self, number: u32, out: &mut Vec<u8>) {
        let text = self.at(number);
        out.extend_from_slice(&length(text.len()).to_le_bytes());
        out.extend_from_slice(text);
    }

    fn plain(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len() + 4 * self.len());
        (0..length(self.len())).for_each(|number| self.push_plain(number, &mut out));
        out
    }
}

fn slice<'b>(ends: &[usize], bytes: &'b [u8], number: u32) -> &'b [u8] {
    let number = number as usize;
    &bytes[number.checked_sub(1).map_or(0, |before| ends[before])..ends[number]]
}

/// Distinct integers.
#[derive(Default)]
struct Integers {
    values: Vec<i32>,
    numbers: HashMap<i32, u32, RandomState>,
    /// The integers that came lately, each at the place that its last bits say: days and counters lie close together.
    recent: Vec<(i32, u32)>,
}

/// How many integers are remembered.
const RECENT: usize = 1 << 12;

impl Distinct for Integers {
    fn len(&self) -> usize {
        self.values.len()
    }
}

impl Integers {
    #[inline]
    fn number(&mut self, value: i32) -> u32 {
        let place = value.cast_unsigned() as usize % RECENT;
        match self.recent.get(place) {
            Some(&(known, number)) if known == value && number != NONE => number,
            _ => {
                let number = self.look_up(value);
                self.recent.resize(RECENT, (0, NONE));
                self.recent[place] = (value, number);
                number
            }
        }
    }

    fn look_up(&mut self, value: i32) -> u32 {
        let Self { values, numbers, .. } = self;
        *numbers.entry(value).or_insert_with(|| {
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
    fn page(&mut self, width: usize) -> Option<(u32, RawPage)> {
        let rows = self.rows.min(PAGE_ROWS).min(length(PAGE_BYTES / width).max(1));
        if rows == 0 {
            return None;
        }
        self.rows -= rows;
        let mut present = 0;
        let levels = self.cursor.take(rows).inspect(|&(is_present, count)| present += is_present * count);
        let mut bytes = Vec::new();
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

    fn write_dictionary(&mut self, plain: Vec<u8>, values: usize) -> Result<()> {
        let size = plain.len();
        let buf = self.codec.compress(&plain)?;
        let page =
            Page::DictionaryPage { buf, num_values: length(values), encoding: Encoding::PLAIN, is_sorted: false };
        self.has_dictionary = true;
        self.put(page, size).map(drop)
    }

    /// Cells of `width` bytes each, one after the other.
    fn write_plain(&mut self, cells: &mut Cells<'_>, values: &[u8], width: usize) -> Result<()> {
        let mut rest = values;
        while let Some((present, mut page)) = cells.page(width) {
            let (cells, after) = rest.split_at(present as usize * width);
            page.bytes.extend_from_slice(cells);
            rest = after;
            self.write(page, Encoding::PLAIN)?;
        }
        Ok(())
    }

    fn write(&mut self, page: RawPage, encoding: Encoding) -> Result<()> {
        let RawPage { rows, bytes } = page;
        self.encoding = encoding;
        let page = Page::DataPage {
            buf: self.codec.compress(&bytes)?,
            num_values: rows,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let (offset, size) = self.put(page, bytes.len())?;
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
pub(super) struct Codec(zstd::bulk::Compressor<'static>);

impl Codec {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(zstd::bulk::Compressor::new(ZSTD_LEVEL)?))
    }

    fn compress(&mut self, page: &[u8]) -> Result<Bytes> {
        Ok(self.0.compress(page)?.into())
    }
}
