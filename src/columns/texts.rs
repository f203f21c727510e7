//! Texts of a column, most of which come again and again: a row only holds the number of its text.

use std::cmp::Ordering;

use arrow::array::{StringArray, StringBuilder};

use super::{end, offset};
use crate::short::{Recent, Short};

/// One text may have several numbers.
pub(super) struct Texts {
    /// The number of each row's text; any for NULL.
    pub(super) keys: Vec<i32>,
    /// The texts, by number. They come as text and leave as one, and so need not be proved to be.
    known: StringBuilder,
    /// Short texts that came lately, such as months, types and currencies, with their numbers here.
    recent: Recent<1, i32>,
    /// The one that came last, as currencies and types of pay do row after row, with its number here.
    last: (u64, i32),
}

impl Texts {
    pub(super) fn new() -> Self {
        Self::with_capacity(0, 0, 0)
    }

    fn with_capacity(rows: usize, texts: usize, bytes: usize) -> Self {
        Self {
            keys: Vec::with_capacity(rows),
            known: StringBuilder::with_capacity(texts, bytes),
            recent: Recent::default(),
            last: (0, 0),
        }
    }

    /// None, but room for what `room` says of the rows, texts and bytes of these.
    pub(super) fn empty(&self, room: impl Fn(usize) -> usize) -> Self {
        Self::with_capacity(room(self.keys.len()), room(self.count()), room(self.bytes()))
    }

    /// Bytes of all texts.
    pub(super) fn bytes(&self) -> usize {
        self.known.values_slice().len()
    }

    #[inline]
    pub(super) fn push(&mut self, text: &str) {
        let key = self.key_of(text);
        self.keys.push(key);
    }

    /// The number of a text; a new one when it is not the last and not among the recent ones.
    #[inline]
    pub(super) fn key_of(&mut self, text: &str) -> i32 {
        match Short::of(text.as_bytes()) {
            Some(short) => self.key_of_short(short),
            None => self.key_of_long(text),
        }
    }

    /// The same for a short one.
    #[inline]
    pub(super) fn key_of_short(&mut self, text: Short) -> i32 {
        if self.last.0 != text.number() {
            let key = match self.recent.find([text.number()]) {
                Some(key) => *key,
                None => self.add_short(text),
            };
            self.last = (text.number(), key);
        }
        self.last.1
    }

    /// The same for one that is not short.
    fn key_of_long(&mut self, text: &str) -> i32 {
        // Ids differ at their ends, which is seen at once.
        let tail = |bytes: &[u8]| bytes.last_chunk::<8>().map(|tail| u64::from_le_bytes(*tail));
        if tail(self.known.values_slice()) == tail(text.as_bytes())
            && let Some(last) = self.count().checked_sub(1)
            && self.text(last) == text.as_bytes()
        {
            return end(last);
        }
        self.add(text)
    }

    /// The text of a row that is not NULL.
    #[inline]
    pub(super) fn at(&self, row: usize) -> &[u8] {
        self.text(offset(self.keys[row]))
    }

    /// The same, to be pushed elsewhere.
    pub(super) fn str_at(&self, row: usize) -> &str {
        std::str::from_utf8(self.at(row)).unwrap_or_default()
    }

    /// Compares the texts of two rows.
    pub(super) fn compare(&self, a: usize, b: usize) -> Ordering {
        if self.keys[a] == self.keys[b] { Ordering::Equal } else { self.at(a).cmp(self.at(b)) }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
        // What only rows used that are gone is kept until all are: it may be one of the recent ones.
        if len == 0 && self.count() > 0 {
            self.known = StringBuilder::with_capacity(self.count(), self.bytes());
            self.recent.clear();
            self.last = (0, 0);
        }
    }

    /// The numbers of the rows' texts, and the texts.
    pub(super) fn finish(mut self) -> (Vec<i32>, StringArray) {
        (self.keys, self.known.finish())
    }

    /// How many texts there are.
    fn count(&self) -> usize {
        self.known.offsets_slice().len() - 1
    }

    #[inline]
    fn text(&self, number: usize) -> &[u8] {
        let ends = self.known.offsets_slice();
        &self.known.values_slice()[offset(ends[number])..offset(ends[number + 1])]
    }

    #[cold]
    fn add_short(&mut self, text: Short) -> i32 {
        let key = self.add(std::str::from_utf8(&text.chunk()[..text.len()]).unwrap_or_default());
        self.recent.keep([text.number()], key);
        key
    }

    fn add(&mut self, text: &str) -> i32 {
        self.known.append_value(text);
        end(self.count() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_row_has_its_text_however_it_was_appended(texts in prop::collection::vec("[ab\0é]{0,9}", 0..80)) {
            let mut column = Texts::new();
            let mut expected = Vec::new();
            for text in &texts {
                column.push(text);
                expected.push(text.as_bytes());
                if let Some(short) = Short::of(text.as_bytes()) {
                    let key = column.key_of_short(short);
                    column.keys.push(key);
                    expected.push(text.as_bytes());
                    prop_assert_eq!(key, column.key_of(text));
                }
            }
            let rows: Vec<&[u8]> = (0..expected.len()).map(|row| column.at(row)).collect();
            prop_assert_eq!(rows, expected);
        }
    }
}
