//! A record's JSON → slots, one for each known field of each row, that point into its text.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::Rejection;
use super::plan::{Field, MOST_INPUTS, Node, Object, Plan, SortSlots};
use crate::clock::Timestamp;
use crate::json::{Kind, NotJson, Reader, Span, unescape};
use crate::short::Short;

/// Bytes of the longest record.
const LONGEST: usize = 1 << 30;

/// The rows of one table in one record.
pub(super) struct Rows {
    width: usize,
    /// Of the rows: `slots` would have to be divided for it, which takes longer than a row.
    count: usize,
    /// A row before it is read.
    blank: Vec<Slot>,
    /// Row after row, as they came.
    slots: Vec<Slot>,
    /// In the order of their rows.
    extras: Vec<Extra>,
    /// The rows in the order in which they become columns: what they are ordered by, and where their slots begin.
    order: Vec<(u64, usize)>,
    /// Places in that order whose row may be equal, in what was compared, to the one before.
    ties: Vec<usize>,
}

/// The first eight bytes of a text, so that numbers compare as the texts do.
#[inline]
fn prefix(text: &[u8]) -> u64 {
    match text.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => text.iter().rev().fold(0, |bytes, &byte| bytes >> 8 | u64::from(byte) << 56),
    }
}

/// What a field holds: a short text or a plain amount itself; of anything else where it is, in the record or in the
/// side text, whose offsets go on where the record ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u64);

impl Slot {
    /// Of a field that is null, or not there: no text ends so far from the start.
    pub(super) const NOTHING: Self = Self(Short::MARK - 1);

    #[inline]
    fn of_span(span: Span) -> Self {
        Self(u64::from(span.at) | u64::from(span.len) << 32)
    }

    #[inline]
    fn of_short(text: Short) -> Self {
        Self(text.number())
    }

    /// Of ten-thousandths.
    #[inline]
    fn of_units(units: u64) -> Self {
        Self(units | Short::MARK)
    }

    /// The text of a text field, if it is short.
    #[inline]
    pub(super) fn short(self) -> Option<Short> {
        Short::of_number(self.0)
    }

    /// The ten-thousandths of a number field, if it is a plain amount.
    #[inline]
    pub(super) fn units(self) -> Option<u64> {
        (self.0 & Short::MARK != 0).then_some(self.0 & !Short::MARK)
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves")]
    fn span(self) -> Span {
        Span { at: self.0 as u32, len: (self.0 >> 32) as u32 }
    }

    /// Whether it says everything by itself.
    #[inline]
    pub(super) fn is_whole(self) -> bool {
        self.0 >= Self::NOTHING.0
    }

    /// A number of its own.
    #[inline]
    pub(super) fn number(self) -> u64 {
        self.0
    }
}

/// The text of a field.
#[derive(Clone, Copy)]
pub(super) enum FieldText<'r> {
    Short([u8; 8], usize),
    Long(&'r str),
}

impl FieldText<'_> {
    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Short(chunk, len) => std::str::from_utf8(&chunk[..*len]).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

/// What slots point into.
#[derive(Clone, Copy)]
pub(super) struct Source<'r> {
    /// The record.
    pub record: &'r str,
    /// The strings of it that had escapes, one after the other.
    pub unescaped: &'r str,
}

impl<'r> Source<'r> {
    /// A text field; `None` where it is null or was not sent.
    #[inline]
    pub(super) fn text(self, slot: Slot) -> Option<FieldText<'r>> {
        if let Some(short) = slot.short() {
            return Some(FieldText::Short(short.chunk(), short.len()));
        }
        self.long_text(slot).map(FieldText::Long)
    }

    /// A text field that is not short.
    #[inline]
    pub(super) fn long_text(self, slot: Slot) -> Option<&'r str> {
        match self.record.get(slot.span().range()) {
            None => std::str::from_utf8(self.beyond(slot)?).ok(),
            text => text,
        }
    }

    /// The bytes of a field that is not whole by itself.
    #[inline]
    pub(super) fn bytes(self, slot: Slot) -> Option<&'r [u8]> {
        match self.record.as_bytes().get(slot.span().range()) {
            None => self.beyond(slot),
            bytes => bytes,
        }
    }

    #[inline]
    fn beyond(self, slot: Slot) -> Option<&'r [u8]> {
        if slot == Slot::NOTHING {
            return None;
        }
        let Span { at, len } = slot.span();
        let at = (at as usize).checked_sub(self.record.len())?;
        self.unescaped.as_bytes().get(at..at + len as usize)
    }

    /// Gives `reader` the texts of fields.
    #[inline]
    pub(super) fn give<R>(self, fields: [Slot; MOST_INPUTS], reader: impl FnOnce(&[Option<&str>]) -> R) -> R {
        let [first, second] = fields;
        let (first, second) = (self.text(first), self.text(second));
        reader(&[first.as_ref().map(FieldText::as_str), second.as_ref().map(FieldText::as_str)])
    }

    /// Compares the texts of two fields.
    fn compare(self, (a, b): (Slot, Slot)) -> Ordering {
        if a == b {
            return Ordering::Equal;
        }
        self.rank(a).cmp(&self.rank(b)).then_with(|| {
            let (a, b) = (self.text(a), self.text(b));
            a.as_ref().map(FieldText::as_str).cmp(&b.as_ref().map(FieldText::as_str))
        })
    }

    /// Compares as the texts of two fields do, as far as it can.
    #[inline]
    fn rank(self, slot: Slot) -> u64 {
        match slot.short() {
            Some(text) => text.rank(),
            None => self.bytes(slot).map_or(0, prefix),
        }
    }
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
        let blank = vec![Slot::NOTHING; width];
        Self { width, count: 0, blank, slots: Vec::new(), extras: Vec::new(), order: Vec::new(), ties: Vec::new() }
    }

    pub(super) fn clear(&mut self) {
        self.count = 0;
        self.slots.clear();
        self.extras.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// One field of each row, in the order in which they become columns.
    #[inline]
    pub(super) fn column(&self, slot: u16) -> impl Iterator<Item = Slot> {
        self.order.iter().map(move |&(_, base)| self.slots[base + usize::from(slot)])
    }

    /// Two fields of each row, in that order; the second is nothing where there is only one slot.
    #[inline]
    pub(super) fn inputs(&self, slots: &[u16]) -> impl Iterator<Item = [Slot; MOST_INPUTS]> {
        let (first, second) = (usize::from(slots[0]), slots.get(1).copied().map(usize::from));
        self.order.iter().map(move |&(_, base)| {
            [self.slots[base + first], second.map_or(Slot::NOTHING, |second| self.slots[base + second])]
        })
    }

    /// The number, in the record, of the row at `place` in the order in which they become columns.
    pub(super) fn number(&self, place: usize) -> usize {
        self.order[place].1 / self.width
    }

    /// Places in that order whose row may be equal, in what was compared, to the one before.
    pub(super) fn ties(&self) -> &[usize] {
        &self.ties
    }

    /// Finds the order of the rows by the texts in `by`. The first eight bytes of the first text decide nearly always,
    /// and are compared as one number.
    pub(super) fn sort(&mut self, by: &SortSlots, source: Source<'_>) {
        let Self { width, count, ref slots, ref mut order, ref mut ties, .. } = *self;
        let first = by.texts.first().map(|&slot| usize::from(slot));
        order.clear();
        ties.clear();
        let (mut is_sorted, mut last) = (true, 0);
        for (row, base) in (0..count).zip((0..).step_by(width)) {
            let rank = first.map_or(0, |first| source.rank(slots[base + first]));
            is_sorted &= last <= rank;
            if last == rank && row > 0 {
                ties.push(row);
            }
            last = rank;
            order.push((rank, base));
        }
        if !is_sorted {
            // Whoever does not begin with the oldest begins with the newest.
            order.reverse();
            if !order.is_sorted_by_key(|&(rank, _)| rank) {
                order.sort_unstable();
            }
            ties.clear();
            ties.extend((1..order.len()).filter(|&at| order[at - 1].0 == order[at].0));
        }
        let compare_texts = |a: usize, b: usize| {
            let slots_of = |&slot: &u16| (slots[a + usize::from(slot)], slots[b + usize::from(slot)]);
            by.texts
                .iter()
                .map(|slot| source.compare(slots_of(slot)))
                .find(|order| order.is_ne())
                .unwrap_or(Ordering::Equal)
        };
        let amount = move |slot: Slot| {
            slot.units().map_or_else(|| source.bytes(slot).map(super::decimal), |units| Some(Ok(units.into())))
        };
        let amounts = |base: usize| by.amounts.iter().map(move |&slot| amount(slots[base + usize::from(slot)]));
        for group in ties.chunk_by(|a, b| a + 1 == *b) {
            let tied = &mut order[group[0] - 1..group[0] + group.len()];
            tied.sort_by(|&(_, a), &(_, b)| compare_texts(a, b).then_with(|| amounts(a).cmp(amounts(b))));
        }
    }

    pub(super) fn unknown_fields(&self) -> usize {
        self.extras.len()
    }

    pub(super) fn have_unknown_fields(&self) -> bool {
        !self.extras.is_empty()
    }

    /// Appends the unknown fields of the row with this number as one JSON object, nested as they came; false when it
    /// has none.
    pub(super) fn extra(&self, row: usize, record: &str, out: &mut String) -> bool {
        let mut tree = Branch::default();
        let of_row = &self.extras[self.extras.partition_point(|extra| extra.row < row)..];
        for extra in of_row.iter().take_while(|extra| extra.row == row) {
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
        self.count += 1;
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
    // Then the side text has no offset that a span cannot hold.
    if text.len() > LONGEST {
        return Err(Rejection { path: "the record".into(), reason: "is too long" });
    }
    let mut parser = Parser { reader: Reader::new(text), text, rows, unescaped, order, name: String::new() };
    if parser.reader.kind()? != Kind::Object {
        return Err(Rejection { path: "the record".into(), reason: "is not an object" });
    }
    let base = parser.rows[0].add();
    parser.object(&plan.record, 0, base)?;
    parser.reader.end()?;
    Ok(())
}

/// For each object of a plan, which field came after which the last time: Belvo sends the fields of one kind of object
/// in one order, whatever it is.
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
        // Nearly every field is one of these.
        let found = match &field.node {
            Node::Text(slot) => self.reader.short_text().map(|text| (*slot, Slot::of_short(text))),
            Node::Number(slot) => self.amount().map(|amount| (*slot, amount)),
            _ => None,
        };
        match found {
            Some((slot, value)) => {
                self.rows[table].slots[base + usize::from(slot)] = value;
                Ok(())
            }
            None => self.any_field(field, table, base),
        }
    }

    /// Goes past a plain amount, if that is what comes next.
    #[inline]
    fn amount(&mut self) -> Option<Slot> {
        /// From a number of decimals to four.
        const SHIFT: [u64; 5] = [10_000, 1_000, 100, 10, 1];

        let (digits, decimals) = self.reader.plain_number(SHIFT.len() - 1)?;
        Some(Slot::of_units(digits * SHIFT[decimals]))
    }

    fn any_field(&mut self, field: &Field, table: usize, base: usize) -> Result<(), Rejection> {
        let kind = self.reader.kind()?;
        if kind == Kind::Null {
            self.reader.word()?;
            return if matches!(field.node, Node::Id) { Err(self.reject(field, table, "is null")) } else { Ok(()) };
        }
        match (&field.node, kind) {
            (Node::Text(slot), Kind::Text) => {
                let text = self.reader.text()?;
                let span = if text.is_escaped { self.unescape(text.span) } else { text.span };
                self.rows[table].slots[base + usize::from(*slot)] = Slot::of_span(span);
            }
            (Node::Number(slot), Kind::Number) => {
                let span = self.reader.number()?;
                self.rows[table].slots[base + usize::from(*slot)] = Slot::of_span(span);
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
                let text = self.reader.text()?.plain(self.text);
                if Timestamp::parse(&text).is_none() {
                    return Err(self.reject(field, table, "is not a timestamp"));
                }
            }
            (Node::Name | Node::Id, Kind::Text) => drop(self.reader.text()?),
            (Node::Known, _) => drop(self.reader.any()?),
            (Node::Text(_) | Node::Instant | Node::Name | Node::Id, _) => {
                return Err(self.reject(field, table, "is not a text"));
            }
            (Node::Number(_), _) => return Err(self.reject(field, table, "is not a number")),
            (Node::Object(_), _) => return Err(self.reject(field, table, "is not an object")),
            (Node::Rows(..), _) => return Err(self.reject(field, table, "is not a list")),
        }
        Ok(())
    }

    /// Puts a string without its escapes into the side text.
    #[cold]
    fn unescape(&mut self, escaped: Span) -> Span {
        let at = self.text.len() + self.unescaped.len();
        unescape(escaped.of(self.text), self.unescaped);
        Span::between(at, self.text.len() + self.unescaped.len())
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
