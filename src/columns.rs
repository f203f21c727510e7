//! Columns that grow row by row, can be cut back, and become an Arrow batch without a copy.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Int32Array, ListArray, NullBufferBuilder, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{BooleanBuffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

use crate::clock::Timestamp;
use crate::schema::{DECIMAL_PRECISION, DECIMAL_SCALE, Type};

/// Rows of one table, by column. The callers push one cell of each column for each row.
pub struct Columns {
    cells: Vec<Cells>,
}

/// The cells of one column. Pushing a value of another type than the column's is a mistake in the program, and panics.
pub struct Cells {
    values: Values,
    validity: Validity,
}

/// Which cells are not NULL. Most columns have no NULL for long: a run of values is only counted.
struct Validity {
    noted: NullBufferBuilder,
    noted_len: usize,
    valid_run: usize,
}

impl Validity {
    fn new() -> Self {
        Self { noted: NullBufferBuilder::new(1024), noted_len: 0, valid_run: 0 }
    }

    #[inline]
    fn len(&self) -> usize {
        self.noted_len + self.valid_run
    }

    #[inline]
    fn append(&mut self, is_valid: bool) {
        if is_valid { self.valid_run += 1 } else { self.append_nulls(1) }
    }

    fn append_valid(&mut self, count: usize) {
        self.valid_run += count;
    }

    fn append_nulls(&mut self, count: usize) {
        self.note_run();
        self.noted.append_n_nulls(count);
        self.noted_len += count;
    }

    /// Appends what `other` says of `rows`, run by run.
    fn append_like(&mut self, other: &Self, mut rows: Range<usize>) {
        while !rows.is_empty() {
            let is_valid = other.is_valid(rows.start);
            let ends = if rows.start >= other.noted_len {
                None
            } else {
                rows.clone().find(|&row| other.is_valid(row) != is_valid)
            };
            let run = rows.start..ends.unwrap_or(rows.end);
            if is_valid {
                self.append_valid(run.len());
            } else {
                self.append_nulls(run.len());
            }
            rows.start = run.end;
        }
    }

    #[inline]
    fn is_valid(&self, row: usize) -> bool {
        row >= self.noted_len || self.noted.is_valid(row)
    }

    fn truncate(&mut self, len: usize) {
        self.note_run();
        self.noted.truncate(len);
        self.noted_len = self.noted.len();
    }

    fn take(&mut self) -> Option<NullBuffer> {
        self.note_run();
        self.noted_len = 0;
        self.noted.finish()
    }

    fn note_run(&mut self) {
        self.noted.append_n_non_nulls(self.valid_run);
        self.noted_len += self.valid_run;
        self.valid_run = 0;
    }
}

enum Values {
    /// `ends[n]` is where text n ends in `bytes`.
    Text {
        ends: Vec<i32>,
        bytes: Vec<u8>,
    },
    /// `lists[n]` is where list n ends in `ends`.
    TextList {
        lists: Vec<i32>,
        ends: Vec<i32>,
        bytes: Vec<u8>,
    },
    Date(Vec<i32>),
    Timestamp(Vec<i64>),
    Decimal(Vec<i128>),
    Integer(Vec<i32>),
    Boolean(Vec<bool>),
}

impl Columns {
    /// Empty columns of these types.
    pub fn of(kinds: &[Type]) -> Self {
        Self {
            cells: kinds.iter().map(|&kind| Cells { values: Values::of(kind), validity: Validity::new() }).collect(),
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.cells.first().map_or(0, |cells| cells.validity.len())
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text at a row, if it is not NULL.
    pub fn text(&self, column: usize, row: usize) -> Option<&str> {
        let cells = &self.cells[column];
        let Values::Text { ends, bytes } = &cells.values else { mismatch() };
        cells.is_valid(row).then(|| std::str::from_utf8(text_at(ends, bytes, row)).unwrap_or_default())
    }

    /// Bytes of all texts: with the number of rows, what bounds the memory.
    pub fn text_bytes(&self) -> usize {
        self.cells
            .iter()
            .map(|cells| if let Values::Text { bytes, .. } = &cells.values { bytes.len() } else { 0 })
            .sum()
    }

    /// Cuts off the rows from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.cells.iter_mut().for_each(|cells| cells.truncate(len));
    }

    /// Appends row `row` of `other`, which has the same columns.
    pub fn push_row_of(&mut self, other: &Self, row: usize) {
        self.cells.iter_mut().zip(&other.cells).for_each(|(cells, other)| cells.push_cell_of(other, row));
    }

    /// Appends the rows `rows` of `other`, whose columns are these or the first of these, but for the columns `except` and
    /// those that `other` has not: the caller appends to them.
    pub fn push_rows_of(&mut self, other: &Self, rows: Range<usize>, except: &[usize]) {
        let columns = self.cells.iter_mut().zip(&other.cells).enumerate();
        for (_, (cells, other)) in columns.filter(|(column, _)| !except.contains(column)) {
            cells.push_cells_of(other, rows.clone());
        }
    }

    /// The cells of one column.
    pub fn column_mut(&mut self, column: usize) -> &mut Cells {
        &mut self.cells[column]
    }

    /// The instant at a row; 1970 where it is NULL.
    pub fn timestamp(&self, column: usize, row: usize) -> Timestamp {
        match &self.cells[column].values {
            Values::Timestamp(values) => Timestamp::from_micros(values[row]),
            _ => mismatch(),
        }
    }

    /// Sets the instant of a row that has one.
    pub fn set_timestamp(&mut self, column: usize, row: usize, at: Timestamp) {
        let Values::Timestamp(values) = &mut self.cells[column].values else { mismatch() };
        values[row] = at.as_micros();
    }

    /// Takes the rows out as an Arrow batch.
    ///
    /// # Errors
    /// When `schema` is of another table.
    pub fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
        let arrays = self.cells.iter_mut().map(Cells::take).collect::<Result<_, _>>()?;
        RecordBatch::try_new(Arc::clone(schema), arrays)
    }

    /// A new row, to be filled from left to right.
    pub fn row(&mut self) -> NewRow<'_> {
        NewRow(self.cells.iter_mut())
    }

    /// The columns, in order.
    pub fn cells_mut(&mut self) -> impl Iterator<Item = &mut Cells> {
        self.cells.iter_mut()
    }

    /// Compares two rows by the given columns, in their order; NULL comes first.
    pub fn compare(&self, at: &[usize], a: usize, b: usize) -> Ordering {
        self.compare_with(at, a, self, b)
    }

    /// Compares row `a` with row `b` of `other`, which has the same columns.
    pub fn compare_with(&self, at: &[usize], a: usize, other: &Self, b: usize) -> Ordering {
        let mut orders = at.iter().map(|&column| self.cells[column].compare(a, &other.cells[column], b));
        orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    }

    /// Replaces the rows from `start` on by the given ones, in the given order.
    pub fn reorder(&mut self, start: usize, rows: &[usize]) {
        for cells in &mut self.cells {
            let mut ordered = Cells { values: cells.values.empty(), validity: Validity::new() };
            for &row in rows {
                ordered.push_cell_of(cells, row);
            }
            cells.truncate(start);
            (0..rows.len()).for_each(|row| cells.push_cell_of(&ordered, row));
        }
    }

    /// The integer at a row; 0 where it is NULL.
    pub fn integer(&self, column: usize, row: usize) -> i32 {
        let Values::Integer(values) = &self.cells[column].values else { mismatch() };
        values[row]
    }

    /// Sets the integer of a row that has one.
    pub fn set_integer(&mut self, column: usize, row: usize, value: i32) {
        let Values::Integer(values) = &mut self.cells[column].values else { mismatch() };
        values[row] = value;
    }
}

/// A row that is being filled; each call is the next column.
pub struct NewRow<'c>(std::slice::IterMut<'c, Cells>);

impl NewRow<'_> {
    /// A text, or NULL.
    pub fn text(&mut self, value: Option<&str>) {
        self.next().push_text(value);
    }

    /// A list of texts, or NULL.
    pub fn text_list(&mut self, value: Option<&[String]>) {
        self.next().push_text_list(value);
    }

    /// An instant, or NULL.
    pub fn timestamp(&mut self, value: Option<Timestamp>) {
        self.next().push_timestamp(value);
    }

    /// An integer, or NULL.
    pub fn integer(&mut self, value: Option<i32>) {
        self.next().push_integer(value);
    }

    /// True or false.
    pub fn boolean(&mut self, value: bool) {
        self.next().push_boolean(value);
    }

    fn next(&mut self) -> &mut Cells {
        self.0.next().unwrap_or_else(|| unreachable!("a row was given more cells than its table has columns"))
    }
}

impl Cells {
    /// Appends a text, or NULL.
    #[inline]
    pub fn push_text(&mut self, value: Option<&str>) {
        let Values::Text { ends, bytes } = &mut self.values else { mismatch() };
        bytes.extend_from_slice(value.unwrap_or_default().as_bytes());
        ends.push(end(bytes.len()));
        self.validity.append(value.is_some());
    }

    /// Appends one text to `count` rows.
    pub fn push_text_times(&mut self, value: &str, count: usize) {
        let Values::Text { ends, bytes } = &mut self.values else { mismatch() };
        let start = bytes.len();
        let total = value.len() * count;
        bytes.reserve(total);
        // The copies of the text are copied themselves, twice as many each time.
        bytes.extend_from_slice(&value.as_bytes()[..if count == 0 { 0 } else { value.len() }]);
        while bytes.len() - start < total {
            let copied = (bytes.len() - start).min(total - (bytes.len() - start));
            bytes.extend_from_within(start..start + copied);
        }
        ends.extend((1..=count).map(|copy| end(start + copy * value.len())));
        self.validity.append_valid(count);
    }

    /// Appends NULL to `count` rows of texts.
    pub fn push_no_text_times(&mut self, count: usize) {
        let Values::Text { ends, bytes } = &mut self.values else { mismatch() };
        ends.extend(std::iter::repeat_n(end(bytes.len()), count));
        self.validity.append_nulls(count);
    }

    /// Appends days since 1970-01-01, or NULL.
    #[inline]
    pub fn push_date(&mut self, value: Option<i32>) {
        let Values::Date(values) = &mut self.values else { mismatch() };
        values.push(value.unwrap_or_default());
        self.validity.append(value.is_some());
    }

    /// Appends an instant, or NULL.
    #[inline]
    pub fn push_timestamp(&mut self, value: Option<Timestamp>) {
        let Values::Timestamp(values) = &mut self.values else { mismatch() };
        values.push(value.map_or(0, Timestamp::as_micros));
        self.validity.append(value.is_some());
    }

    /// Appends ten-thousandths, or NULL.
    #[inline]
    pub fn push_decimal(&mut self, value: Option<i128>) {
        let Values::Decimal(values) = &mut self.values else { mismatch() };
        values.push(value.unwrap_or_default());
        self.validity.append(value.is_some());
    }

    /// Appends an integer, or NULL.
    #[inline]
    pub fn push_integer(&mut self, value: Option<i32>) {
        let Values::Integer(values) = &mut self.values else { mismatch() };
        values.push(value.unwrap_or_default());
        self.validity.append(value.is_some());
    }

    /// Appends a list of texts, or NULL.
    pub fn push_text_list(&mut self, value: Option<&[String]>) {
        let Values::TextList { lists, ends, bytes } = &mut self.values else { mismatch() };
        for text in value.unwrap_or_default() {
            bytes.extend_from_slice(text.as_bytes());
            ends.push(end(bytes.len()));
        }
        lists.push(end(ends.len()));
        self.validity.append(value.is_some());
    }

    /// Appends true or false.
    #[inline]
    pub fn push_boolean(&mut self, value: bool) {
        let Values::Boolean(values) = &mut self.values else { mismatch() };
        values.push(value);
        self.validity.append(true);
    }

    fn is_valid(&self, row: usize) -> bool {
        self.validity.is_valid(row)
    }

    fn push_cell_of(&mut self, other: &Self, row: usize) {
        match (&mut self.values, &other.values) {
            (Values::Text { ends, bytes }, Values::Text { ends: from, bytes: source }) => {
                bytes.extend_from_slice(text_at(from, source, row));
                ends.push(end(bytes.len()));
            }
            (Values::Date(values), Values::Date(from)) | (Values::Integer(values), Values::Integer(from)) => {
                values.push(from[row]);
            }
            (Values::Timestamp(values), Values::Timestamp(from)) => values.push(from[row]),
            (Values::Decimal(values), Values::Decimal(from)) => values.push(from[row]),
            (Values::Boolean(values), Values::Boolean(from)) => values.push(from[row]),
            // Lists only stand in tables whose rows nobody rearranges.
            _ => mismatch(),
        }
        self.validity.append(other.is_valid(row));
    }

    fn push_cells_of(&mut self, other: &Self, rows: Range<usize>) {
        match (&mut self.values, &other.values) {
            (Values::Text { ends, bytes }, Values::Text { ends: from, bytes: source }) => {
                let (before, start) = (bytes.len(), start_of(from, rows.start));
                bytes.extend_from_slice(&source[start..start_of(from, rows.end)]);
                ends.extend(from[rows.clone()].iter().map(|&ending| end(before + offset(ending) - start)));
            }
            (Values::Date(values), Values::Date(from)) | (Values::Integer(values), Values::Integer(from)) => {
                values.extend_from_slice(&from[rows.clone()]);
            }
            (Values::Timestamp(values), Values::Timestamp(from)) => values.extend_from_slice(&from[rows.clone()]),
            (Values::Decimal(values), Values::Decimal(from)) => values.extend_from_slice(&from[rows.clone()]),
            (Values::Boolean(values), Values::Boolean(from)) => values.extend_from_slice(&from[rows.clone()]),
            // Lists only stand in tables without a history.
            _ => mismatch(),
        }
        self.validity.append_like(&other.validity, rows);
    }

    fn compare(&self, a: usize, other: &Self, b: usize) -> Ordering {
        match (self.is_valid(a), other.is_valid(b)) {
            (true, true) => {}
            (a, b) => return a.cmp(&b),
        }
        match (&self.values, &other.values) {
            (Values::Text { ends, bytes }, Values::Text { ends: others, bytes: source }) => {
                text_at(ends, bytes, a).cmp(text_at(others, source, b))
            }
            (Values::Date(values), Values::Date(from)) | (Values::Integer(values), Values::Integer(from)) => {
                values[a].cmp(&from[b])
            }
            (Values::Timestamp(values), Values::Timestamp(from)) => values[a].cmp(&from[b]),
            (Values::Decimal(values), Values::Decimal(from)) => values[a].cmp(&from[b]),
            (Values::Boolean(values), Values::Boolean(from)) => values[a].cmp(&from[b]),
            _ => mismatch(),
        }
    }

    fn truncate(&mut self, len: usize) {
        match &mut self.values {
            Values::Text { ends, bytes } => {
                ends.truncate(len);
                bytes.truncate(ends.last().map_or(0, |&end| offset(end)));
            }
            Values::TextList { lists, ends, bytes } => {
                lists.truncate(len);
                ends.truncate(lists.last().map_or(0, |&end| offset(end)));
                bytes.truncate(ends.last().map_or(0, |&end| offset(end)));
            }
            Values::Date(values) | Values::Integer(values) => values.truncate(len),
            Values::Timestamp(values) => values.truncate(len),
            Values::Decimal(values) => values.truncate(len),
            Values::Boolean(values) => values.truncate(len),
        }
        self.validity.truncate(len);
    }

    fn take(&mut self) -> Result<ArrayRef, ArrowError> {
        let nulls = self.validity.take();
        let empty = self.values.empty();
        Ok(match std::mem::replace(&mut self.values, empty) {
            Values::Text { ends, bytes } => Arc::new(StringArray::try_new(offsets(ends), bytes.into(), nulls)?),
            Values::TextList { lists, ends, bytes } => {
                let DataType::List(item) = Type::TextList.arrow() else { mismatch() };
                let texts = StringArray::try_new(offsets(ends), bytes.into(), None)?;
                Arc::new(ListArray::try_new(item, offsets(lists), Arc::new(texts), nulls)?)
            }
            Values::Date(values) => Arc::new(Date32Array::new(values.into(), nulls)),
            Values::Timestamp(values) => {
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone("UTC"))
            }
            Values::Decimal(values) => Arc::new(
                Decimal128Array::new(values.into(), nulls)
                    .with_precision_and_scale(DECIMAL_PRECISION, DECIMAL_SCALE)?,
            ),
            Values::Integer(values) => Arc::new(Int32Array::new(values.into(), nulls)),
            Values::Boolean(values) => Arc::new(BooleanArray::new(BooleanBuffer::from(values), nulls)),
        })
    }
}

impl Values {
    fn of(kind: Type) -> Self {
        match kind {
            Type::Text => Self::Text { ends: Vec::new(), bytes: Vec::new() },
            Type::Date => Self::Date(Vec::new()),
            Type::Timestamp => Self::Timestamp(Vec::new()),
            Type::Decimal => Self::Decimal(Vec::new()),
            Type::Integer => Self::Integer(Vec::new()),
            Type::Boolean => Self::Boolean(Vec::new()),
            Type::TextList => Self::TextList { lists: Vec::new(), ends: Vec::new(), bytes: Vec::new() },
        }
    }

    /// Empty, with room for as much as this holds.
    fn empty(&self) -> Self {
        match self {
            Self::Text { ends, bytes } => {
                Self::Text { ends: Vec::with_capacity(ends.len() + 1), bytes: Vec::with_capacity(bytes.len()) }
            }
            Self::TextList { .. } => Self::of(Type::TextList),
            Self::Date(values) => Self::Date(Vec::with_capacity(values.len())),
            Self::Timestamp(values) => Self::Timestamp(Vec::with_capacity(values.len())),
            Self::Decimal(values) => Self::Decimal(Vec::with_capacity(values.len())),
            Self::Integer(values) => Self::Integer(Vec::with_capacity(values.len())),
            Self::Boolean(values) => Self::Boolean(Vec::with_capacity(values.len())),
        }
    }
}

/// An offset as Arrow wants it. Batches are cut long before two gigabytes of text.
#[inline]
fn end(offset: usize) -> i32 {
    i32::try_from(offset).unwrap_or(i32::MAX)
}

fn offsets(mut ends: Vec<i32>) -> OffsetBuffer<i32> {
    ends.insert(0, 0);
    OffsetBuffer::new(ScalarBuffer::from(ends))
}

fn text_at<'b>(ends: &[i32], bytes: &'b [u8], row: usize) -> &'b [u8] {
    &bytes[start_of(ends, row)..offset(ends[row])]
}

fn start_of(ends: &[i32], row: usize) -> usize {
    if row == 0 { 0 } else { offset(ends[row - 1]) }
}

/// The other way round than [`end`].
fn offset(end: i32) -> usize {
    usize::try_from(end).unwrap_or_default()
}

/// A column's cells are made from the same schema as what fills them.
#[cold]
fn mismatch() -> ! {
    unreachable!("a column was given a value of another type")
}
