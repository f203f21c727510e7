//! Values of DuckDB as JSON.
//!
//! *Takes* a column. *Gives* each of its values as JSON: lists as arrays, structs and maps as objects. *Promises* that no
//! reader rounds a decimal: what is neither a whole number, a float nor a truth value is text, as the other forms print it.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray as _};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, FieldRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// The values of one column.
pub(super) struct Values<'a> {
    /// Of a NULL without a type, too.
    nulls: Option<NullBuffer>,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Plain(ArrayFormatter<'a>, &'a DataType),
    List(Spans<'a>, Box<Values<'a>>),
    Struct(Vec<(&'a str, Values<'a>)>),
    Map(&'a [i32], ArrayFormatter<'a>, Box<Values<'a>>),
}

/// Where the items of each list are.
enum Spans<'a> {
    Short(&'a [i32]),
    Long(&'a [i64]),
    Even(usize),
}

impl<'a> Values<'a> {
    /// Those of `column`.
    pub(super) fn of(column: &'a ArrayRef, options: &FormatOptions<'a>) -> Result<Self, ArrowError> {
        let items = |values: &'a ArrayRef| Self::of(values, options).map(Box::new);
        let kind = match column.data_type() {
            DataType::List(_) => {
                let lists = column.as_list::<i32>();
                Kind::List(Spans::Short(lists.value_offsets()), items(lists.values())?)
            }
            DataType::LargeList(_) => {
                let lists = column.as_list::<i64>();
                Kind::List(Spans::Long(lists.value_offsets()), items(lists.values())?)
            }
            DataType::FixedSizeList(_, length) => {
                let length = usize::try_from(*length).unwrap_or_default();
                Kind::List(Spans::Even(length), items(column.as_fixed_size_list().values())?)
            }
            DataType::Struct(fields) => {
                let columns = column.as_struct().columns();
                let field = |(field, column): (&'a FieldRef, &'a ArrayRef)| {
                    Ok((field.name().as_str(), Self::of(column, options)?))
                };
                Kind::Struct(fields.iter().zip(columns).map(field).collect::<Result<_, ArrowError>>()?)
            }
            DataType::Map(..) => {
                let map = column.as_map();
                let keys = ArrayFormatter::try_new(map.keys(), options)?;
                Kind::Map(map.value_offsets(), keys, items(map.values())?)
            }
            data_type => Kind::Plain(ArrayFormatter::try_new(column, options)?, data_type),
        };
        Ok(Self { nulls: column.logical_nulls(), kind })
    }

    /// Adds the value of `row` to `out`.
    pub(super) fn write(&self, row: usize, out: &mut String) -> Result<(), ArrowError> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
            out.push_str("null");
            return Ok(());
        }
        match &self.kind {
            Kind::Plain(cells, data_type) => out.push_str(&plain(cells.value(row).try_to_string()?, data_type)),
            Kind::List(spans, items) => each(spans.of(row), '[', ']', out, |item, out| items.write(item, out))?,
            // One without names is a tuple.
            Kind::Struct(fields) if fields.iter().all(|(name, _)| name.is_empty()) => {
                each(0..fields.len(), '[', ']', out, |at, out| fields[at].1.write(row, out))?;
            }
            Kind::Struct(fields) => each(0..fields.len(), '{', '}', out, |at, out| {
                let (name, values) = &fields[at];
                push_name(name, out);
                values.write(row, out)
            })?,
            Kind::Map(offsets, keys, values) => each(span(offsets, row), '{', '}', out, |item, out| {
                push_name(&keys.value(item).try_to_string()?, out);
                values.write(item, out)
            })?,
        }
        Ok(())
    }
}

impl Spans<'_> {
    fn of(&self, row: usize) -> Range<usize> {
        match self {
            Self::Short(offsets) => span(offsets, row),
            Self::Long(offsets) => span(offsets, row),
            Self::Even(length) => row * length..(row + 1) * length,
        }
    }
}

fn span<O: Copy + TryInto<usize>>(offsets: &[O], row: usize) -> Range<usize> {
    let at = |place: usize| offsets[place].try_into().unwrap_or_default();
    at(row)..at(row + 1)
}

/// Adds `items` between `open` and `close`.
fn each(
    items: Range<usize>,
    open: char,
    close: char,
    out: &mut String,
    mut write: impl FnMut(usize, &mut String) -> Result<(), ArrowError>,
) -> Result<(), ArrowError> {
    out.push(open);
    let first = items.start;
    for item in items {
        if item > first {
            out.push(',');
        }
        write(item, out)?;
    }
    out.push(close);
    Ok(())
}

/// Adds the name of a member to `out`.
pub(super) fn push_name(name: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(name).to_string());
    out.push(':');
}

/// Whole numbers, floats and truth values as JSON has them; all else as text.
fn plain(text: String, data_type: &DataType) -> String {
    if *data_type == DataType::Boolean || data_type.is_integer() {
        return text;
    }
    if data_type.is_floating() && text.parse::<f64>().is_ok_and(f64::is_finite) {
        return text;
    }
    serde_json::Value::from(text).to_string()
}
