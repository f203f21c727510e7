//! A strict JSON reader that copies nothing: the fast half of flattening.
//!
//! *Takes* a text. *Gives* its pieces as [`Span`]s of that text, in order, with numbers untouched, so that an amount
//! never passes through a float. *Promises* to refuse whatever RFC 8259 does, in the parts it is told to skip too, and
//! to stop at [`MAX_DEPTH`]; but half a surrogate pair, or depth, hides no field of [`Fields`] and no item of a list.
//! *Not here*: what the pieces mean.
//!
//! `serde_json` does this at about half the speed for the shape of Belvo's records, does not say which field of which
//! item was wrong, and leaves skipped fields unchecked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde_json::value::RawValue;

use crate::short::Short;

/// Deepest nesting of arrays and objects that is read.
pub const MAX_DEPTH: u32 = 64;

/// A piece of the text: `len` bytes from `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub at: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Span {
    /// From one offset to another.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a reader takes no text of 4 GiB or more")]
    pub fn between(start: usize, end: usize) -> Self {
        Self { at: start as u32, len: (end - start) as u32 }
    }

    /// The offsets that this covers.
    #[inline]
    pub fn range(self) -> Range<usize> {
        self.at as usize..self.at as usize + self.len as usize
    }

    /// The piece of `text` that this covers.
    pub fn of(self, text: &str) -> &str {
        &text[self.range()]
    }
}

/// What begins at the reader's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    Text,
    /// A digit or `-`.
    Number,
    /// `true` or `false`
    Boolean,
    /// `null`
    Null,
}

/// A string: its span without the quotes, and whether it holds a backslash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Text {
    /// Between the quotes.
    pub span: Span,
    /// Whether [`unescape`] has something to do.
    pub is_escaped: bool,
}

impl Text {
    /// What the string in `json` stands for.
    pub fn plain(self, json: &str) -> Cow<'_, str> {
        let raw = self.span.of(json);
        if !self.is_escaped {
            return Cow::Borrowed(raw);
        }
        let mut plain = String::new();
        unescape(raw, &mut plain);
        Cow::Owned(plain)
    }
}

/// The names and values of an object; the values as they stand in its text.
pub struct Fields<'j>(Vec<(Cow<'j, str>, &'j str)>);

impl<'j> Fields<'j> {
    /// Those of `json`; `None` when it is not an object. Half a surrogate pair somewhere, or a value of any depth,
    /// hides no field: a page of Belvo's may hold such a record, which has to be the same one in every list.
    pub fn read(json: &'j str) -> Option<Self> {
        if !json.starts_with('{') {
            return None;
        }
        Self::read_strictly(json).or_else(|| Self::read_loosely(json))
    }

    fn read_strictly(json: &'j str) -> Option<Self> {
        let mut reader = Reader::new(json);
        let mut fields = Vec::with_capacity(16);
        let mut more = reader.enter().ok()?;
        while more {
            let name = reader.key().ok()?.plain(json);
            fields.push((name, reader.any().ok()?.of(json)));
            more = reader.another(b'}').ok()?;
        }
        Some(Self(fields))
    }

    #[cold]
    fn read_loosely(json: &'j str) -> Option<Self> {
        let fields: BTreeMap<LooseName, &RawValue> = serde_json::from_str(json).ok()?;
        Some(Self(fields.into_iter().map(|(LooseName(name), value)| (name.into(), value.get())).collect()))
    }

    /// The JSON of the field called `name`, if it is there.
    pub fn get(&self, name: &str) -> Option<&'j str> {
        Some(self.0.iter().find(|(found, _)| found == name)?.1)
    }

    /// The field called `name`, if it is there and a text.
    pub fn text(&self, name: &str) -> Option<Cow<'j, str>> {
        text(self.get(name)?)
    }

    /// All of them.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &'j str)> {
        self.0.iter().map(|(name, value)| (&**name, *value))
    }

    /// All of them, by name.
    pub fn sorted(&mut self) -> &[(Cow<'j, str>, &'j str)] {
        self.0.sort_unstable();
        &self.0
    }
}

/// A field's name, of which half of a surrogate pair is a character that cannot be read.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct LooseName(String);

impl<'de> Deserialize<'de> for LooseName {
    fn deserialize<D: Deserializer<'de>>(name: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl Visitor<'_> for Bytes {
            type Value = LooseName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_bytes<E: Error>(self, name: &[u8]) -> Result<LooseName, E> {
                Ok(LooseName(String::from_utf8_lossy(name).into_owned()))
            }
        }

        // As a text it would be refused.
        name.deserialize_bytes(Bytes)
    }
}

/// What `value` stands for when it is a string.
pub fn text(value: &str) -> Option<Cow<'_, str>> {
    match value.strip_prefix('"')?.strip_suffix('"')? {
        plain if !plain.contains('\\') => Some(plain.into()),
        _ => serde_json::from_str::<String>(value).ok().map(Cow::Owned),
    }
}

/// The items of `list`, as they stand in its text; `None` when it is not an array. As with [`Fields::read`], nothing
/// within an item hides it.
pub fn items(list: &str) -> Option<Vec<&str>> {
    fn strictly(list: &str) -> Option<Vec<&str>> {
        let mut reader = Reader::new(list);
        let mut items = Vec::new();
        let mut more = reader.enter().ok()?;
        while more {
            items.push(reader.any().ok()?.of(list));
            more = reader.another(b']').ok()?;
        }
        Some(items)
    }

    if !list.starts_with('[') {
        return None;
    }
    strictly(list).or_else(|| {
        let items: Vec<&RawValue> = serde_json::from_str(list).ok()?;
        Some(items.into_iter().map(RawValue::get).collect())
    })
}

/// Whether `text` is one value that every reader of JSON takes.
pub fn is_json(text: &str) -> bool {
    let mut reader = Reader::new(text);
    reader.any().and_then(|_| reader.end()).is_ok()
}

/// The text is not JSON, from this byte on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not JSON at byte {at}")]
pub struct NotJson {
    /// Offset of the byte that cannot stand there.
    pub at: usize,
}

/// A place in a text.
pub struct Reader<'t> {
    text: &'t [u8],
    at: usize,
    depth: u32,
}

impl<'t> Reader<'t> {
    /// Starts before the first value of `text`. A text of 4 GiB or more is cut, and then is not JSON.
    pub fn new(text: &'t str) -> Self {
        let text = text.as_bytes();
        Self { text: &text[..text.len().min(u32::MAX as usize)], at: 0, depth: 0 }
    }

    /// What the next value is.
    #[inline]
    pub fn kind(&mut self) -> Result<Kind, NotJson> {
        match self.next_byte() {
            b'"' => Ok(Kind::Text),
            b'-' | b'0'..=b'9' => Ok(Kind::Number),
            b'{' => Ok(Kind::Object),
            b'[' => Ok(Kind::Array),
            b't' | b'f' => Ok(Kind::Boolean),
            b'n' => Ok(Kind::Null),
            _ => self.wrong(),
        }
    }

    /// Goes into an object or array; says whether it has a first entry.
    #[inline]
    pub fn enter(&mut self) -> Result<bool, NotJson> {
        let close = match self.next_byte() {
            b'{' => b'}',
            b'[' => b']',
            _ => return self.wrong(),
        };
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.wrong();
        }
        self.at += 1;
        if self.next_byte() == close {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// Goes on to the next entry of an object or array; says whether there is one, and leaves it when there is none.
    #[inline]
    pub fn another(&mut self, close: u8) -> Result<bool, NotJson> {
        match self.next_byte() {
            b',' => {
                self.at += 1;
                Ok(true)
            }
            byte if byte == close => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            _ => self.wrong(),
        }
    }

    /// Goes past the key `name` and its colon, if that is what comes next; stays where it is otherwise.
    #[inline]
    pub fn pass_key(&mut self, name: &Name) -> bool {
        if self.next_byte() != b'"' || !name.ends_at_quote(&self.text[self.at + 1..]) {
            return false;
        }
        let before = self.at;
        self.at += name.text.len() + 2;
        if self.next_byte() == b':' {
            self.at += 1;
            return true;
        }
        self.at = before;
        false
    }

    /// Reads an entry's key and its colon.
    #[inline]
    pub fn key(&mut self) -> Result<Text, NotJson> {
        let key = self.text()?;
        if self.next_byte() != b':' {
            return self.wrong();
        }
        self.at += 1;
        Ok(key)
    }

    /// Reads a string.
    #[inline]
    pub fn text(&mut self) -> Result<Text, NotJson> {
        if self.next_byte() != b'"' {
            return self.wrong();
        }
        let start = self.at + 1;
        let mut end = start;
        let mut is_escaped = false;
        loop {
            // Eight bytes at a time while none of them is special.
            while let Some(chunk) = self.text[end..].first_chunk() {
                let special = special_bytes(u64::from_le_bytes(*chunk));
                if special != 0 {
                    end += (special.trailing_zeros() / 8) as usize;
                    break;
                }
                end += 8;
            }
            match self.text.get(end) {
                Some(b'"') => break,
                Some(b'\\') => {
                    is_escaped = true;
                    end = self.escape(end)?;
                }
                Some(0x20..) => end += 1,
                _ => {
                    self.at = end;
                    return self.wrong();
                }
            }
        }
        self.at = end + 1;
        Ok(Text { span: Span::between(start, end), is_escaped })
    }

    /// Goes past a short string without escapes, if that is what comes next; stays where it is otherwise.
    #[inline]
    pub fn short_text(&mut self) -> Option<Short> {
        if self.next_byte() != b'"' {
            return None;
        }
        let chunk = *self.text.get(self.at + 1..)?.first_chunk()?;
        let word = u64::from_le_bytes(chunk);
        let len = (special_bytes(word).trailing_zeros() / 8) as usize;
        if len > Short::LONGEST || chunk[len] != b'"' {
            return None;
        }
        self.at += len + 2;
        Some(Short::start_of(chunk, len))
    }

    /// Checks the escape at `at` and gives the offset after it.
    #[cold]
    fn escape(&mut self, at: usize) -> Result<usize, NotJson> {
        match self.text.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => return Ok(at + 2),
            Some(b'u') => match self.code_unit(at) {
                Some(0xD800..=0xDBFF) if matches!(self.code_unit(at + 6), Some(0xDC00..=0xDFFF)) => return Ok(at + 12),
                Some(0xD800..=0xDFFF) | None => {}
                Some(_) => return Ok(at + 6),
            },
            _ => {}
        }
        self.at = at;
        self.wrong()
    }

    /// The number of the `\uXXXX` at `at`.
    fn code_unit(&self, at: usize) -> Option<u32> {
        let escape = self.text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        escape.iter().try_fold(0, |number, &digit| Some(number * 16 + char::from(digit).to_digit(16)?))
    }

    /// Reads a number and gives it as it is written.
    #[inline]
    pub fn number(&mut self) -> Result<Span, NotJson> {
        self.next_byte();
        let start = self.at;
        if self.byte() == b'-' {
            self.at += 1;
        }
        let integer = self.at;
        self.digits()?;
        if self.text[integer] == b'0' && self.at > integer + 1 {
            self.at = integer + 1;
            return self.wrong();
        }
        if self.byte() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.byte(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.byte(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(Span::between(start, self.at))
    }

    /// Goes past a number of few digits, without sign and exponent, if that is what comes next; stays where it is
    /// otherwise. Gives what the digits say without the point, and how many stand after it, which are at most
    /// `most_decimals`.
    #[inline]
    pub fn plain_number(&mut self, most_decimals: usize) -> Option<(u64, usize)> {
        self.next_byte();
        let before = Digits::read(self.text.get(self.at..)?)?;
        let mut end = self.at + before.len;
        let (mut all, mut decimals) = (before, 0);
        if self.text.get(end) == Some(&b'.') {
            let after = Digits::read(&self.text[end + 1..]).filter(|after| after.len <= most_decimals)?;
            end += 1 + after.len;
            (all, decimals) = (before.and(after)?, after.len);
        }
        let has_leading_zero = before.len > 1 && before.word & 0xff == u64::from(b'0');
        if has_leading_zero || matches!(self.text.get(end), Some(b'e' | b'E')) {
            return None;
        }
        self.at = end;
        Some((all.number(), decimals))
    }

    #[inline]
    fn digits(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        while self.byte().is_ascii_digit() {
            self.at += 1;
        }
        if self.at == start { self.wrong() } else { Ok(()) }
    }

    /// Reads `true`, `false` or `null`.
    pub fn word(&mut self) -> Result<Kind, NotJson> {
        let kind = self.kind()?;
        let word: &[u8] = match (kind, self.byte()) {
            (Kind::Boolean, b't') => b"true",
            (Kind::Boolean, _) => b"false",
            (Kind::Null, _) => b"null",
            _ => return self.wrong(),
        };
        if !self.text[self.at..].starts_with(word) {
            return self.wrong();
        }
        self.at += word.len();
        Ok(kind)
    }

    /// Reads any value to its end and gives it as it is written.
    pub fn any(&mut self) -> Result<Span, NotJson> {
        self.next_byte();
        let start = self.at;
        self.pass()?;
        Ok(Span::between(start, self.at))
    }

    fn pass(&mut self) -> Result<(), NotJson> {
        match self.kind()? {
            Kind::Text => self.text().map(drop),
            Kind::Number => self.number().map(drop),
            Kind::Boolean | Kind::Null => self.word().map(drop),
            Kind::Array => {
                let mut more = self.enter()?;
                while more {
                    self.pass()?;
                    more = self.another(b']')?;
                }
                Ok(())
            }
            Kind::Object => {
                let mut more = self.enter()?;
                while more {
                    self.key()?;
                    self.pass()?;
                    more = self.another(b'}')?;
                }
                Ok(())
            }
        }
    }

    /// Refuses what follows the value.
    pub fn end(&mut self) -> Result<(), NotJson> {
        self.next_byte();
        if self.at == self.text.len() { Ok(()) } else { self.wrong() }
    }

    /// The first byte that is no blank, or 0 at the end; the reader stands on it afterwards.
    #[inline]
    fn next_byte(&mut self) -> u8 {
        let byte = self.byte();
        if byte > b' ' { byte } else { self.pass_blanks() }
    }

    fn pass_blanks(&mut self) -> u8 {
        while matches!(self.byte(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
        self.byte()
    }

    #[inline]
    fn byte(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    #[cold]
    fn wrong<T>(&self) -> Result<T, NotJson> {
        Err(NotJson { at: self.at })
    }
}

/// The high bit of each byte that ends a plain run of string characters: a quote, a backslash or a control character.
/// Above the lowest such byte bits may be set for others too.
#[inline]
fn special_bytes(chunk: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let zero_in = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes;
    let controls = chunk.wrapping_sub(ONES * 0x20) & !chunk;
    (controls | zero_in(chunk ^ (ONES * u64::from(b'"'))) | zero_in(chunk ^ (ONES * u64::from(b'\\')))) & HIGHS
}

/// At most eight digits, as characters.
#[derive(Clone, Copy)]
struct Digits {
    /// The first one lowest; above the last whatever stands after it.
    word: u64,
    len: usize,
}

impl Digits {
    const ZEROES: u64 = 0x3030_3030_3030_3030;

    /// Those that `text` begins with; `None` when there are none, more than seven, or too little after them to tell.
    #[inline]
    fn read(text: &[u8]) -> Option<Self> {
        const HIGHS: u64 = 0x8080_8080_8080_8080;
        let word = u64::from_le_bytes(*text.first_chunk()?);
        let values = word ^ Self::ZEROES;
        let beyond_nine = (((values & !HIGHS) + 0x7676_7676_7676_7676) | values) & HIGHS;
        let len = (beyond_nine.trailing_zeros() / 8) as usize;
        (1..8).contains(&len).then_some(Self { word, len })
    }

    /// These, and `others` after them.
    #[inline]
    fn and(self, others: Self) -> Option<Self> {
        let len = self.len + others.len;
        let shift = 8 * self.len;
        (len <= 8).then_some(Self { word: self.word & !(u64::MAX << shift) | others.word << shift, len })
    }

    /// The number that they write, two, then four, then eight digits at once.
    #[inline]
    fn number(self) -> u64 {
        // What stands before the first digit counts as zeroes.
        let digits = (self.word ^ Self::ZEROES) << (64 - 8 * self.len);
        let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8) & 0x00ff_00ff_00ff_00ff;
        let fours = pairs.wrapping_mul(100).wrapping_add(pairs >> 16) & 0x0000_ffff_0000_ffff;
        fours.wrapping_mul(10_000).wrapping_add(fours >> 32) & 0xffff_ffff
    }
}

/// A known key, made ready to be compared with a text at once.
#[derive(Debug, Clone)]
pub struct Name {
    text: String,
    /// The first bytes of `text` and, if it is short enough, its closing quote.
    head: u128,
    mask: u128,
    /// Whether that is less than all.
    is_longer: bool,
}

impl Name {
    /// A key that has no escapes.
    pub fn new(text: &str) -> Self {
        let quoted = format!("{text}\"");
        let mut head = [0; 16];
        let length = quoted.len().min(16);
        head[..length].copy_from_slice(&quoted.as_bytes()[..length]);
        let mask = if length == 16 { u128::MAX } else { (1 << (8 * length)) - 1 };
        Self { text: text.to_owned(), head: u128::from_le_bytes(head), mask, is_longer: quoted.len() > 16 }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[inline]
    fn ends_at_quote(&self, rest: &[u8]) -> bool {
        let Some(first) = rest.first_chunk() else { return self.ends_at_quote_slowly(rest) };
        u128::from_le_bytes(*first) & self.mask == self.head && (!self.is_longer || self.ends_at_quote_slowly(rest))
    }

    fn ends_at_quote_slowly(&self, rest: &[u8]) -> bool {
        rest.strip_prefix(self.text.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'"'))
    }
}

/// Appends to `out` the characters that an escaped string stands for. `raw` was read by [`Reader::text`].
pub fn unescape(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1).copied().unwrap_or(b'\\');
        let mut used = 2;
        out.push(match escape {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = |from: usize| rest.get(from..from + 4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let high = unit(at + 2).unwrap_or(0xFFFD);
                used = 6;
                if (0xD800..0xDC00).contains(&high) {
                    used = 12;
                    let low = unit(at + 8).unwrap_or(0xDC00);
                    char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)).unwrap_or('\u{FFFD}')
                } else {
                    char::from_u32(high).unwrap_or('\u{FFFD}')
                }
            }
            plain => char::from(plain),
        });
        rest = &rest[at + used..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Result<Span, NotJson> {
        let mut reader = Reader::new(text);
        let span = reader.any()?;
        reader.end()?;
        Ok(span)
    }

    #[test]
    fn no_field_is_hidden_by_what_a_value_or_a_name_holds() {
        let deep = format!("{}7{}", "[".repeat(100_000), "]".repeat(100_000));
        for odd in [r#""\ud83d""#, r#"{"\udc00":1}"#, r#"[["\ud83d"]]"#, deep.as_str()] {
            let json = format!(r#"{{"id":"a","\u0062" : {odd} , "x\ud83d":[],"c":1e999}}"#);
            let fields = Fields::read(&json).unwrap();
            assert_eq!(
                ["id", "b", "c", "d"].map(|name| fields.get(name)),
                [Some(r#""a""#), Some(odd), Some("1e999"), None]
            );
            assert_eq!(fields.pairs().count(), 4);
            let list = format!("[1, {odd} ,2]");
            assert_eq!(items(&list).unwrap(), ["1", odd, "2"]);
            assert!(!is_json(&json) && is_json(r#"{"a":[1e999]}"#));
        }
        for none in ["", "{", r#"{"a":1,}"#, r#"{"a":"\ud83d"} {}"#, r#"{"a":"\ud8"}"#, "[1,]", r#"["\ud83d"}"#] {
            assert!(Fields::read(none).is_none() && items(none).is_none(), "{none}");
        }
    }

    #[test]
    fn numbers_keep_their_text() {
        for number in ["0", "-0.0", "999999999999999.99", "1033.0900", "1e-7", "12E+3"] {
            assert_eq!(Reader::new(number).number().unwrap().of(number), number);
        }
    }

    #[test]
    fn what_is_not_json_is_refused_also_where_nobody_looks() {
        for wrong in [
            "",
            "{",
            "[1,]",
            "{\"a\":}",
            "{\"a\" 1}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "nul",
            "tru",
            "\"\u{1}\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "[1 2]",
            "{} {}",
            "'a'",
            "[1]]",
        ] {
            assert!(whole(wrong).is_err(), "{wrong:?}");
        }
        assert!(whole(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn a_plain_number_is_what_its_digits_say(
            number in "-?(0|[1-9][0-9]{0,8}|0[0-9])(\\.[0-9]{0,6})?([eE][0-9])?",
            after in "[],} ]([0-9.]{8})?",
        ) {
            let text = format!("{number}{after}");
            let mut reader = Reader::new(&text);
            let Some((digits, decimals)) = reader.plain_number(4) else {
                prop_assert_eq!(reader.at, 0);
                let is_plain = Reader::new(&text).number().is_ok_and(|span| !span.of(&text).contains(['-', 'e', 'E']));
                let is_fine = number.split_once('.').is_some_and(|(_, decimals)| decimals.len() > 4);
                prop_assert!(!is_plain || is_fine || number.len() >= 8 || text.len() < number.len() + 9, "{}", text);
                return Ok(());
            };
            let whole = Reader::new(&text).number().unwrap();
            prop_assert_eq!(reader.at, whole.range().end);
            let (before, after) = whole.of(&text).split_once('.').unwrap_or((whole.of(&text), ""));
            prop_assert_eq!((format!("{before}{after}").parse(), after.len()), (Ok(digits), decimals));
        }

        #[test]
        fn a_short_text_is_what_any_is(text in "[a-cé\"\\\\\n]{0,9}", after in ",?[a-c]{0,8}") {
            let quoted = format!("{}{after}", serde_json::to_string(&text).unwrap());
            let mut reader = Reader::new(&quoted);
            if let Some(short) = reader.short_text() {
                prop_assert_eq!(&short.chunk()[..short.len()], text.as_bytes());
                prop_assert_eq!(reader.at, text.len() + 2);
            } else {
                let is_escaped = text.contains(['"', '\\', '\n']);
                prop_assert!(reader.at == 0 && (is_escaped || text.len() > 7 || quoted.len() < 9), "{}", quoted);
            }
        }

        #[test]
        fn it_accepts_what_serde_json_accepts(text in "[\\[\\]{}:, \"a1\\\\u0-9eE.tfnul-]{0,24}") {
            // Beyond the range of a float serde_json gives up, and this reader does not care.
            prop_assume!(!text.to_lowercase().contains('e'));
            prop_assert_eq!(whole(&text).is_ok(), serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }

        #[test]
        fn strings_come_out_as_serde_json_reads_them(text in "\\PC{0,20}") {
            let quoted = serde_json::to_string(&text).unwrap();
            let read = Reader::new(&quoted).text().unwrap();
            let mut plain = String::new();
            unescape(read.span.of(&quoted), &mut plain);
            prop_assert_eq!(plain, text);
        }
    }
}
