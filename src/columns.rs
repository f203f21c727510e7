//! Columns that grow row by row, can be cut back, and become an Arrow batch without a copy.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, DictionaryArray, Int32Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{BooleanBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

use crate::clock::Timestamp;
use crate::schema::{DECIMAL_PRECISION, DECIMAL_SCALE, Table, Type};
use crate::short::Short;

mod texts;
mod validity;

use texts::Texts;
use validity::Validity;

/// Rows of one table, by column. The callers push one cell of each column for each row.
pub struct Columns {
    cells: Vec<Cells>,
}

/// The cells of one column. Pushing a value of another type than the column's is a mistake in the program, and panics.
pub struct Cells {
    values: Values,
    validity: Validity,
}

enum Values {
    Text(Texts),
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

    /// Empty columns of a table.
    pub fn of_table(table: &Table) -> Self {
        Self::of(&table.columns.iter().map(|column| column.kind).collect::<Vec<_>>())
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
        let Values::Text(texts) = &cells.values else { mismatch() };
        cells.is_valid(row).then(|| texts.str_at(row))
    }

    /// Bytes of all texts: with the number of rows, what bounds the memory.
    pub fn text_bytes(&self) -> usize {
        self.cells.iter().map(|cells| if let Values::Text(texts) = &cells.values { texts.bytes() } else { 0 }).sum()
    }

    /// Cuts off the rows from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.cells.iter_mut().for_each(|cells| cells.truncate(len));
    }

    /// Appends row `row` of `other`, which has the same columns.
    pub fn push_row_of(&mut self, other: &Self, row: usize) {
        self.cells.iter_mut().zip(&other.cells).for_each(|(cells, other)| cells.push_cell_of(other, row));
    }

    /// Appends the rows `rows` of `other`, whose columns are these or the first of these, but for the columns `except`
    /// and those that `other` has not: the caller appends to them.
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

    /// Sets the instant of a row that has one.
    pub fn set_timestamp(&mut self, column: usize, row: usize, at: Timestamp) {
        let Values::Timestamp(values) = &mut self.cells[column].values else { mismatch() };
        values[row] = at.as_micros();
    }

    /// Takes the rows out as an Arrow batch, texts as dictionaries.
    ///
    /// # Errors
    /// When `schema` is not the [`batch`](crate::schema::Table::batch) of the columns' table.
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

/// Where texts are appended to a column.
pub struct NewTexts<'c> {
    texts: &'c mut Texts,
    validity: &'c mut Validity,
}

impl NewTexts<'_> {
    /// Appends a text, or NULL.
    #[inline]
    pub fn push(&mut self, cell: Option<&str>) {
        match cell {
            Some(text) => {
                self.texts.push(text);
                self.validity.append(true);
            }
            None => self.push_null(),
        }
    }

    /// Appends NULL.
    #[inline]
    pub fn push_null(&mut self) {
        self.texts.keys.push(0);
        self.validity.append(false);
    }

    /// Appends a text.
    #[inline]
    pub fn push_short(&mut self, text: Short) {
        let key = self.texts.key_of_short(text);
        self.texts.keys.push(key);
        self.validity.append(true);
    }
}

/// Where dates or amounts are appended to a column.
pub struct NewValues<'c, T> {
    values: &'c mut Vec<T>,
    validity: &'c mut Validity,
}

impl<T: Default> NewValues<'_, T> {
    /// Appends a value.
    #[inline]
    pub fn push(&mut self, value: T) {
        self.values.push(value);
        self.validity.append(true);
    }

    /// Appends NULL.
    #[inline]
    pub fn push_null(&mut self) {
        self.values.push(T::default());
        self.validity.append(false);
    }

    /// Appends values.
    #[inline]
    pub fn extend(&mut self, values: impl Iterator<Item = T>) {
        let start = self.values.len();
        self.values.extend(values);
        self.validity.append_times(true, self.values.len() - start);
    }
}

impl Cells {
    /// Appends a text, or NULL.
    #[inline]
    pub fn push_text(&mut self, value: Option<&str>) {
        self.texts().push(value);
    }

    /// Where texts are appended.
    #[inline]
    pub fn texts(&mut self) -> NewTexts<'_> {
        let Values::Text(texts) = &mut self.values else { mismatch() };
        NewTexts { texts, validity: &mut self.validity }
    }

    /// Where days since 1970-01-01 are appended.
    #[inline]
    pub fn dates(&mut self) -> NewValues<'_, i32> {
        let Values::Date(values) = &mut self.values else { mismatch() };
        NewValues { values, validity: &mut self.validity }
    }

    /// Where ten-thousandths are appended.
    #[inline]
    pub fn decimals(&mut self) -> NewValues<'_, i128> {
        let Values::Decimal(values) = &mut self.values else { mismatch() };
        NewValues { values, validity: &mut self.validity }
    }

    /// Whether none of the last `count` cells is NULL, all of which were appended since the last one was taken away.
    pub fn ends_without_null(&self, count: usize) -> bool {
        self.validity.ends_valid(count)
    }

    /// Appends one text to `count` rows.
    pub fn push_text_times(&mut self, value: &str, count: usize) {
        let Values::Text(texts) = &mut self.values else { mismatch() };
        if count > 0 {
            let key = texts.key_of(value);
            texts.keys.extend(std::iter::repeat_n(key, count));
        }
        self.validity.append_times(true, count);
    }

    /// Appends NULL to `count` rows of texts.
    pub fn push_no_text_times(&mut self, count: usize) {
        let Values::Text(texts) = &mut self.values else { mismatch() };
        texts.keys.extend(std::iter::repeat_n(0, count));
        self.validity.append_times(false, count);
    }

    /// Appends an instant, or NULL.
    #[inline]
    pub fn push_timestamp(&mut self, value: Option<Timestamp>) {
        let Values::Timestamp(values) = &mut self.values else { mismatch() };
        values.push(value.map_or(0, Timestamp::as_micros));
        self.validity.append(value.is_some());
    }

    /// Appends one instant, or NULL, to `count` rows.
    pub fn push_timestamp_times(&mut self, value: Option<Timestamp>, count: usize) {
        let Values::Timestamp(values) = &mut self.values else { mismatch() };
        values.extend(std::iter::repeat_n(value.map_or(0, Timestamp::as_micros), count));
        self.validity.append_times(value.is_some(), count);
    }

    /// Appends an integer, or NULL.
    #[inline]
    pub fn push_integer(&mut self, value: Option<i32>) {
        let Values::Integer(values) = &mut self.values else { mismatch() };
        values.push(value.unwrap_or_default());
        self.validity.append(value.is_some());
    }

    /// Appends one integer to `count` rows.
    pub fn push_integer_times(&mut self, value: i32, count: usize) {
        let Values::Integer(values) = &mut self.values else { mismatch() };
        values.extend(std::iter::repeat_n(value, count));
        self.validity.append_times(true, count);
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
            (Values::Text(texts), Values::Text(from)) if other.is_valid(row) => texts.push(from.str_at(row)),
            (Values::Text(texts), Values::Text(_)) => texts.keys.push(0),
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
            (Values::Text(texts), Values::Text(from)) => {
                let mut last = None;
                for row in rows.clone() {
                    let key = match last {
                        Some((known, key)) if known == from.keys[row] => key,
                        _ if other.is_valid(row) => texts.key_of(from.str_at(row)),
                        _ => 0,
                    };
                    last = other.is_valid(row).then_some((from.keys[row], key));
                    texts.keys.push(key);
                }
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
            (Values::Text(texts), Values::Text(from)) if std::ptr::eq(texts, from) => texts.compare(a, b),
            (Values::Text(texts), Values::Text(from)) => texts.at(a).cmp(from.at(b)),
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
            Values::Text(texts) => texts.truncate(len),
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
            Values::Text(texts) => {
                let (keys, texts) = texts.finish();
                Arc::new(DictionaryArray::try_new(Int32Array::new(keys.into(), nulls), Arc::new(texts))?)
            }
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
            Type::Text => Self::Text(Texts::new()),
            Type::Date => Self::Date(Vec::new()),
            Type::Timestamp => Self::Timestamp(Vec::new()),
            Type::Decimal => Self::Decimal(Vec::new()),
            Type::Integer => Self::Integer(Vec::new()),
            Type::BigInteger => unreachable!("only tables that no batch holds have one"),
            Type::Boolean => Self::Boolean(Vec::new()),
            Type::TextList => Self::TextList { lists: Vec::new(), ends: Vec::new(), bytes: Vec::new() },
        }
    }

    /// Empty, with room for as much as this holds and a little more: the next batch is about as long, and one that is
    /// longer would be copied.
    fn empty(&self) -> Self {
        let room = |len: usize| len + len / 16;
        match self {
            Self::Text(texts) => Self::Text(texts.empty(room)),
            Self::TextList { .. } => Self::of(Type::TextList),
            Self::Date(values) => Self::Date(Vec::with_capacity(room(values.len()))),
            Self::Timestamp(values) => Self::Timestamp(Vec::with_capacity(room(values.len()))),
            Self::Decimal(values) => Self::Decimal(Vec::with_capacity(room(values.len()))),
            Self::Integer(values) => Self::Integer(Vec::with_capacity(room(values.len()))),
            Self::Boolean(values) => Self::Boolean(Vec::with_capacity(room(values.len()))),
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

/// The other way round than [`end`].
fn offset(end: i32) -> usize {
    usize::try_from(end).unwrap_or_default()
}

/// A column's cells are made from the same schema as what fills them.
#[cold]
fn mismatch() -> ! {
    unreachable!("a column was given a value of another type")
}
