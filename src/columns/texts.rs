//! Texts of a column, most of which come again and again: a row only holds the number of its text.

use super::{end, offset};
use crate::short::{Recent, Short};

/// One text may have several numbers.
pub(super) struct Texts {
    /// The number of each row's text; any for NULL.
    pub(super) keys: Vec<i32>,
    /// `ends[n]` is where text n ends in `bytes`.
    pub(super) ends: Vec<i32>,
    pub(super) bytes: Vec<u8>,
    /// Short texts that came lately, such as months, types and currencies, with their numbers here.
    recent: Recent<1, i32>,
}

impl Texts {
    pub(super) fn with_capacity(rows: usize, texts: usize, bytes: usize) -> Self {
        Self {
            keys: Vec::with_capacity(rows),
            ends: Vec::with_capacity(texts),
            bytes: Vec::with_capacity(bytes),
            recent: Recent::default(),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, text: &[u8]) {
        let key = self.key_of(text);
        self.keys.push(key);
    }

    /// The number of a text; a new one when it is not the last and not among the recent ones.
    #[inline]
    pub(super) fn key_of(&mut self, text: &[u8]) -> i32 {
        match Short::of(text) {
            Some(short) => self.key_of_short(short),
            None => self.key_of_long(text),
        }
    }

    /// The same for a short one.
    #[inline]
    pub(super) fn key_of_short(&mut self, text: Short) -> i32 {
        match self.recent.find([text.number()]) {
            Some(key) => *key,
            None => self.add_short(text),
        }
    }

    /// The same for one that is not short.
    fn key_of_long(&mut self, text: &[u8]) -> i32 {
        match self.ends.len().checked_sub(1) {
            Some(last) if text_at(&self.ends, &self.bytes, last) == text => end(last),
            _ => self.add(text),
        }
    }

    #[inline]
    pub(super) fn at(&self, row: usize) -> &[u8] {
        text_at(&self.ends, &self.bytes, offset(self.keys[row]))
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.keys.truncate(len);
        // What only rows used that are gone is kept until all are: it may be one of the recent ones.
        if len == 0 {
            self.ends.clear();
            self.bytes.clear();
            self.recent.clear();
        }
    }

    #[cold]
    fn add_short(&mut self, text: Short) -> i32 {
        let key = self.add(&text.chunk()[..text.len()]);
        self.recent.keep([text.number()], key);
        key
    }

    fn add(&mut self, text: &[u8]) -> i32 {
        self.bytes.extend_from_slice(text);
        self.ends.push(end(self.bytes.len()));
        end(self.ends.len() - 1)
    }
}

pub(super) fn text_at<'b>(ends: &[i32], bytes: &'b [u8], row: usize) -> &'b [u8] {
    let start = if row == 0 { 0 } else { offset(ends[row - 1]) };
    &bytes[start..offset(ends[row])]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_row_has_its_text_however_it_was_appended(texts in prop::collection::vec("[ab\0é]{0,9}", 0..80)) {
            let mut column = Texts::with_capacity(0, 0, 0);
            let mut expected = Vec::new();
            for text in &texts {
                let text = text.as_bytes();
                column.push(text);
                expected.push(text);
                if let Some(short) = Short::of(text) {
                    let key = column.key_of_short(short);
                    column.keys.push(key);
                    expected.push(text);
                    prop_assert_eq!(key, column.key_of(text));
                }
            }
            let rows: Vec<&[u8]> = (0..expected.len()).map(|row| column.at(row)).collect();
            prop_assert_eq!(rows, expected);
        }
    }
}
