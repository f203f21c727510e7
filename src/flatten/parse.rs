//! A record's JSON → slots, one for each known field of each row, that point into its text.

use std::collections::BTreeMap;

use super::Rejection;
use super::plan::{Field, Node, Object, Plan, SortSlots};
use crate::clock::Timestamp;
use crate::json::{Kind, NotJson, Reader, Span, unescape};

/// The rows of one table in one record.
pub(super) struct Rows {
    width: usize,
    /// A row before it is read.
    blank: Vec<Slot>,
    slots: Vec<Slot>,
    extras: Vec<Extra>,
    /// The rows in the order in which they become columns, with what they are ordered by.
    order: Vec<(u64, u32)>,
}

/// The first eight bytes of a text, so that numbers compare as the texts do.
#[inline]
fn prefix(text: &[u8]) -> u64 {
    if let Some(first) = text.first_chunk() {
        return u64::from_be_bytes(*first);
    }
    // Two words, one over the other, are faster than a loop; a month has seven bytes.
    if let (Some(head), Some(tail)) = (text.first_chunk(), text.last_chunk()) {
        let tail = u32::from_be_bytes(*tail).unbounded_shl(8 * (8 - u32::try_from(text.len()).unwrap_or(8)));
        return u64::from(u32::from_be_bytes(*head)) << 32 | u64::from(tail);
    }
    text.iter().rev().fold(0, |bytes, &byte| bytes >> 8 | u64::from(byte) << 56)
}

/// Where a field's value is.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    span: Span,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// Null, or not there.
    #[default]
    Nowhere,
    /// In the record, as it stands.
    Record,
    /// A string that had escapes, in the side text.
    Unescaped,
}

/// An unknown field.
struct Extra {
    row: usize,
    /// The known objects that it lies in, from the outside.
    parents: Vec<String>,
    name: String,
    value: Span,
}

/// Unknown fields on their way into one JSON object.
#[derive(Default)]
struct Branch<'r> {
    leaves: Vec<(&'r str, &'r str)>,
    branches: BTreeMap<String, Branch<'r>>,
}

impl Branch<'_> {
    fn write(&self, out: &mut String) {
        let mut separator = '{';
        let mut name = |name: &str, out: &mut String| {
            out.push(std::mem::replace(&mut separator, ','));
            out.push_str(&serde_json::Value::from(name).to_string());
            out.push(':');
        };
        for (leaf, value) in &self.leaves {
            name(leaf, out);
            out.push_str(value);
        }
        for (branch, below) in &self.branches {
            name(branch, out);
            below.write(out);
        }
        out.push('}');
    }
}

impl Rows {
    pub(super) fn of_width(width: usize) -> Self {
        let width = width.max(1);
        let blank = vec![Slot::default(); width];
        Self { width, blank, slots: Vec::new(), extras: Vec::new(), order: Vec::new() }
    }

    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.extras.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() / self.width
    }

    /// The rows in the order in which they become columns.
    pub(super) fn in_order(&self) -> impl Iterator<Item = usize> {
        self.order.iter().map(|&(_, row)| row as usize)
    }

    /// Places in that order at which a row may be equal, in what was compared, to the one before.
    pub(super) fn ties(&self) -> impl Iterator<Item = usize> {
        (1..self.order.len()).filter(|&at| self.order[at - 1].0 == self.order[at].0)
    }

    /// Puts the rows in the order of the texts in `slots`. The first eight bytes of the first text decide nearly always,
    /// and are compared as one number.
    pub(super) fn sort(&mut self, slots: &SortSlots, record: &str, unescaped: &str) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend((0..).take(self.len()).map(|row| {
            let first = slots.texts.first();
            let first = first.and_then(|&slot| self.bytes(row as usize, slot, record.as_bytes(), unescaped.as_bytes()));
            (first.map_or(0, prefix), row)
        }));
        if !order.is_sorted_by_key(|&(prefix, _)| prefix) {
            order.sort_unstable();
        }
        let rows = &*self;
        let field = |row: u32, slot: u16| rows.text(row as usize, slot, record, unescaped);
        let texts = |row: u32| slots.texts.iter().map(move |&slot| field(row, slot));
        let amounts = |row: u32| {
            slots.amounts.iter().map(move |&slot| field(row, slot).map(|text| super::decimal(text.as_bytes())))
        };
        for ties in order.chunk_by_mut(|a, b| a.0 == b.0).filter(|ties| ties.len() > 1) {
            ties.sort_by(|&(_, a), &(_, b)| texts(a).cmp(texts(b)).then_with(|| amounts(a).cmp(amounts(b))));
        }
        self.order = order;
    }

    pub(super) fn unknown_fields(&self) -> usize {
        self.extras.len()
    }

    /// A text field; `None` where it is null or was not sent.
    #[inline]
    pub(super) fn text<'r>(&self, row: usize, slot: u16, record: &'r str, unescaped: &'r str) -> Option<&'r str> {
        let slot = self.slots[row * self.width + usize::from(slot)];
        match slot.place {
            Place::Nowhere => None,
            Place::Record => Some(slot.span.of(record)),
            Place::Unescaped => Some(slot.span.of(unescaped)),
        }
    }

    /// The bytes of a text or number field, as [`Rows::text`] gives them.
    #[inline]
    pub(super) fn bytes<'r>(&self, row: usize, slot: u16, record: &'r [u8], unescaped: &'r [u8]) -> Option<&'r [u8]> {
        let slot = self.slots[row * self.width + usize::from(slot)];
        match slot.place {
            Place::Nowhere => None,
            Place::Record => Some(slot.span.bytes_of(record)),
            Place::Unescaped => Some(slot.span.bytes_of(unescaped)),
        }
    }

    pub(super) fn have_unknown_fields(&self) -> bool {
        !self.extras.is_empty()
    }

    /// Appends the row's unknown fields as one JSON object, nested as they came; false when it has none.
    pub(super) fn extra(&self, row: usize, record: &str, out: &mut String) -> bool {
        let mut tree = Branch::default();
        for extra in self.extras.iter().filter(|extra| extra.row == row) {
            let place =
                extra.parents.iter().fold(&mut tree, |branch, name| branch.branches.entry(name.clone()).or_default());
            place.leaves.push((&extra.name, extra.value.of(record)));
        }
        let is_given = !tree.leaves.is_empty() || !tree.branches.is_empty();
        if is_given {
            tree.write(out);
        }
        is_given
    }

    /// Adds a row of empty slots and gives the first one's position.
    fn add(&mut self) -> usize {
        let base = self.slots.len();
        self.slots.extend_from_slice(&self.blank);
        base
    }
}

impl From<NotJson> for Rejection {
    fn from(_: NotJson) -> Self {
        Self { path: "the record".into(), reason: "is not JSON" }
    }
}

/// Reads the record into `rows`, one entry for each table of `plan`; strings that had escapes go to `unescaped`.
pub(super) fn record(
    plan: &Plan,
    text: &str,
    rows: &mut [Rows],
    unescaped: &mut String,
    order: &mut FieldOrder,
) -> Result<(), Rejection> {
    let mut parser = Parser { reader: Reader::new(text), text, rows, unescaped, order, name: String::new() };
    if parser.reader.kind()? != Kind::Object {
        return Err(Rejection { path: "the record".into(), reason: "is not an object" });
    }
    let base = parser.rows[0].add();
    parser.object(&plan.record, 0, base)?;
    parser.reader.end()?;
    Ok(())
}

/// For each object of a plan, which field came after which the last time: Belvo sends the fields of one kind of object in
/// one order, whatever it is.
pub(super) struct FieldOrder(Vec<[u8; 65]>);

impl FieldOrder {
    pub(super) fn of(plan: &Plan) -> Self {
        // At first each field is expected after the one that stands before it in the schema.
        let schema_order = std::array::from_fn(|at| u8::try_from(at).unwrap_or_default());
        Self(vec![schema_order; plan.objects])
    }
}

struct Parser<'t, 'r> {
    reader: Reader<'t>,
    text: &'t str,
    rows: &'r mut [Rows],
    unescaped: &'r mut String,
    order: &'r mut FieldOrder,
    /// The key that was read last.
    name: String,
}

impl Parser<'_, '_> {
    /// Reads an object into the row of `table` whose slots start at `base`.
    fn object(&mut self, object: &Object, table: usize, base: usize) -> Result<(), Rejection> {
        let mut seen = 0_u64;
        // The place after the field that came last; 0 before the first.
        let mut place = 0;
        let mut more = self.reader.enter()?;
        while more {
            let expected = usize::from(self.order.0[object.number][place]);
            let known = match object.fields.get(expected) {
                Some(field) if self.reader.pass_key(&field.name) => Some(expected),
                _ => {
                    let known = self.key(object)?;
                    if let Some(at) = known {
                        self.order.0[object.number][place] = u8::try_from(at).unwrap_or_default();
                    }
                    known
                }
            };
            if let Some(at) = known {
                let field = &object.fields[at];
                if seen & (1 << at) != 0 {
                    return Err(self.reject(field, table, "is there twice"));
                }
                seen |= 1 << at;
                place = at + 1;
                self.field(field, table, base)?;
            } else {
                let value = self.reader.any()?;
                let rows = &mut self.rows[table];
                let (row, parents, name) = (base / rows.width, object.parents.clone(), self.name.clone());
                rows.extras.push(Extra { row, parents, name, value });
            }
            more = self.reader.another(b'}')?;
        }
        let missing = object.required & !seen;
        if missing != 0 {
            let field = &object.fields[missing.trailing_zeros() as usize];
            return Err(self.reject(field, table, "is missing"));
        }
        Ok(())
    }

    /// Reads a key into `name` and gives the field that it is, if it is known.
    fn key(&mut self, object: &Object) -> Result<Option<usize>, Rejection> {
        let key = self.reader.key()?;
        self.name.clear();
        unescape(key.span.of(self.text), &mut self.name);
        Ok(object.fields.iter().position(|field| field.name.as_str() == self.name))
    }

    #[inline]
    fn field(&mut self, field: &Field, table: usize, base: usize) -> Result<(), Rejection> {
        let kind = self.reader.kind()?;
        if kind == Kind::Null {
            self.reader.word()?;
            return Ok(());
        }
        match (&field.node, kind) {
            (Node::Text(slot), Kind::Text) => {
                let text = self.reader.text()?;
                let slot = &mut self.rows[table].slots[base + usize::from(*slot)];
                if text.is_escaped {
                    let at = self.unescaped.len();
                    unescape(text.span.of(self.text), self.unescaped);
                    *slot = Slot { span: Span::between(at, self.unescaped.len()), place: Place::Unescaped };
                } else {
                    *slot = Slot { span: text.span, place: Place::Record };
                }
            }
            (Node::Number(slot), Kind::Number) => {
                let span = self.reader.number()?;
                self.rows[table].slots[base + usize::from(*slot)] = Slot { span, place: Place::Record };
            }
            (Node::Object(inner), Kind::Object) => self.object(inner, table, base)?,
            (Node::Rows(items, inner), Kind::Array) => {
                let mut more = self.reader.enter()?;
                while more {
                    if self.reader.kind()? != Kind::Object {
                        return Err(self.reject(field, *items, "has an item that is not an object"));
                    }
                    let base = self.rows[*items].add();
                    self.object(inner, *items, base)?;
                    more = self.reader.another(b']')?;
                }
            }
            (Node::Instant, Kind::Text) => {
                let text = self.reader.text()?.span.of(self.text);
                if Timestamp::parse(text).is_none() {
                    return Err(self.reject(field, table, "is not a timestamp"));
                }
            }
            (Node::Known, _) => drop(self.reader.any()?),
            (Node::Text(_) | Node::Instant, _) => return Err(self.reject(field, table, "is not a text")),
            (Node::Number(_), _) => return Err(self.reject(field, table, "is not a number")),
            (Node::Object(_), _) => return Err(self.reject(field, table, "is not an object")),
            (Node::Rows(..), _) => return Err(self.reject(field, table, "is not a list")),
        }
        Ok(())
    }

    #[cold]
    fn reject(&self, field: &Field, table: usize, reason: &'static str) -> Rejection {
        Rejection::at(&field.path, self.rows[table].len().saturating_sub(1), reason)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prefixes_compare_as_the_first_eight_bytes_do(a in "[0-9a-c-]{0,10}", b in "[0-9a-c-]{0,10}") {
            let first = |text: &str| -> [u8; 8] { std::array::from_fn(|at| *text.as_bytes().get(at).unwrap_or(&0)) };
            prop_assert_eq!(prefix(a.as_bytes()), u64::from_be_bytes(first(&a)));
            prop_assert_eq!(prefix(a.as_bytes()).cmp(&prefix(b.as_bytes())), first(&a).cmp(&first(&b)));
        }
    }
}
