//! Texts of a column, most of which come again and again: a row only holds the number of its text.

use super::{end, offset};

/// One text may have several numbers.
pub(super) struct Texts {
    /// The number of each row's text; any for NULL.
    pub(super) keys: Vec<i32>,
    /// `ends[n]` is where text n ends in `bytes`.
    pub(super) ends: Vec<i32>,
    pub(super) bytes: Vec<u8>,
    /// Numbers of short texts that came lately: months, types, currencies. See [`packed`].
    recent: Vec<(u64, i32)>,
}

/// How many short texts are remembered.
const RECENT: usize = 256;

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
        match packed(text) {
            Some(packed) => self.key_of_short(packed, text),
            None => self.key_of_long(text),
        }
    }

    /// The same for one that is [`packed`].
    #[inline]
    fn key_of_short(&mut self, packed: u64, text: &[u8]) -> i32 {
        match self.recent.get(place_of(packed)) {
            Some(&(known, key)) if known == packed => key,
            _ => self.add_short(packed, text),
        }
    }

    /// The same for one that cannot be [`packed`].
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
    fn add_short(&mut self, packed: u64, text: &[u8]) -> i32 {
        let key = self.add(text);
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
    (packed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as usize % RECENT
}

/// A text of at most seven bytes as one number that is not 0, different for each.
#[inline]
fn packed(text: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| bytes.first_chunk().map_or(0, |four| u64::from(u32::from_le_bytes(*four)));
    let bytes = match text.len() {
        4..=7 => word(text) | (word(&text[text.len() - 4..]) << (8 * (text.len() - 4))),
        // The middle one is the first or the last one, too, when there are fewer.
        len @ 1..=3 => {
            u64::from(text[0])
                | u64::from(text[len / 2]) << (8 * (len / 2))
                | u64::from(text[len - 1]) << (8 * (len - 1))
        }
        0 => 0,
        _ => return None,
    };
    Some(bytes | ((text.len() as u64 + 1) << 56))
}
