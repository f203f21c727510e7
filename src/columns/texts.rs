//! Texts of a column, most of which come again and again: a row only holds the number of its text.

use super::{end, offset};

/// One text may have several numbers.
pub(super) struct Texts {
    /// The number of each row's text; any for NULL.
    pub(super) keys: Vec<i32>,
    /// `ends[n]` is where text n ends in `bytes`.
    pub(super) ends: Vec<i32>,
    pub(super) bytes: Vec<u8>,
    /// Numbers of short texts that came lately: months, types, currencies. See [`Short::packed`].
    recent: Vec<(u64, i32)>,
}

/// How many short texts are remembered.
const RECENT: usize = 512;

impl Texts {
    pub(super) fn with_capacity(rows: usize, texts: usize, bytes: usize) -> Self {
        Self {
            keys: Vec::with_capacity(rows),
            ends: Vec::with_capacity(texts),
            bytes: Vec::with_capacity(bytes),
            recent: Vec::new(),
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
    pub(super) fn key_of_short(&mut self, short: Short) -> i32 {
        let Some(packed) = short.packed() else { return self.key_of_long(&short.word.to_le_bytes()) };
        match self.recent.get(place_of(packed)) {
            Some(&(known, key)) if known == packed => key,
            _ => self.add_short(packed),
        }
    }

    /// The same for one that cannot be [`Short::packed`].
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
    fn add_short(&mut self, packed: u64) -> i32 {
        let (word, start) = Short::unpacked(packed);
        let key = self.add(&word[start..]);
        self.recent.resize(RECENT, (0, 0));
        self.recent[place_of(packed)] = (packed, key);
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

/// Where a short text is remembered, by Fibonacci hashing: the upper bits of the product are well mixed.
#[inline]
fn place_of(packed: u64) -> usize {
    (packed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 55) as usize % RECENT
}

/// A text or number of at most eight bytes, as one word.
#[derive(Debug, Clone, Copy)]
pub struct Short {
    /// Its bytes, the last one uppermost, above bytes that are 0.
    pub word: u64,
    /// How many they are.
    pub len: u32,
}

impl Short {
    /// One of at most seven bytes as one number that is not 0, different for each.
    #[inline]
    fn packed(self) -> Option<u64> {
        // Of a word with fewer than eight bytes the lowest is free.
        (self.len < 8).then(|| self.word | u64::from(self.len + 1))
    }

    /// The other way round.
    fn unpacked(packed: u64) -> ([u8; 8], usize) {
        let [length, ..] = packed.to_le_bytes();
        (packed.to_le_bytes(), 9 - usize::from(length))
    }

    #[inline]
    fn of(text: &[u8]) -> Option<Self> {
        let len = u32::try_from(text.len()).ok().filter(|len| *len <= 8)?;
        let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |four| u64::from(u32::from_le_bytes(*four)));
        let bytes = match text.len() {
            4.. => word(text) | (word(&text[text.len() - 4..]) << (8 * (text.len() - 4))),
            // The middle one is the first or the last one, too, when there are fewer.
            len @ 1..4 => {
                u64::from(text[0])
                    | u64::from(text[len / 2]) << (8 * (len / 2))
                    | u64::from(text[len - 1]) << (8 * (len - 1))
            }
            0 => 0,
        };
        Some(Self { word: bytes.unbounded_shl(64 - 8 * len), len })
    }
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

        #[test]
        fn a_short_text_is_its_last_bytes_above_zeroes(text in "[a-z]{1,8}") {
            let mut bytes = [0; 8];
            bytes[8 - text.len()..].copy_from_slice(text.as_bytes());
            let short = Short::of(text.as_bytes()).unwrap();
            prop_assert_eq!((short.word, short.len as usize), (u64::from_le_bytes(bytes), text.len()));
            if let Some(packed) = short.packed() {
                let (word, start) = Short::unpacked(packed);
                prop_assert_eq!(&word[start..], text.as_bytes());
            }
        }
    }
}
