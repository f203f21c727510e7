//! One page of a list of Belvo's.
//!
//! *Takes* a body. *Gives* where each item's own text lies in it. *Promises* that the whole body is UTF-8 and JSON with
//! an array `results`, and that an address in it is only ever compared, never called. *Not here*: what an item holds,
//! and how deep; whoever reads one sets a limit.

use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;
use url::Url;

use super::failure::Code;

/// A page, as it came.
pub struct Page {
    text: String,
    items: Vec<Range<usize>>,
    /// What Belvo says the whole list counts, when it says so.
    pub count: Option<u64>,
    /// Whether there is another page.
    pub next: Next,
}

/// What a page says of the one after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// This is the last.
    None,
    /// There is one. Its number is ours to count, whatever the address says.
    More,
    /// There is one at another scheme, host or port.
    Foreign,
}

impl Page {
    /// Reads `body`; `base` tells our own origin.
    ///
    /// # Errors
    /// [`Code::Truncated`], [`Code::NotJson`] or [`Code::NotAList`].
    pub fn read(body: Bytes, base: &Url) -> Result<Self, Code> {
        let text = String::from_utf8(body.into()).map_err(|_| Code::NotJson)?;
        if text.bytes().all(|byte| byte.is_ascii_whitespace()) {
            return Err(Code::NotJson);
        }
        let envelope: Envelope<'_> = serde_json::from_str(&text).map_err(|error| match error.classify() {
            Category::Eof => Code::Truncated,
            Category::Data => Code::NotAList,
            Category::Syntax | Category::Io => Code::NotJson,
        })?;
        let start = text.as_ptr().addr();
        let place =
            |item: &RawValue| item.get().as_ptr().addr() - start..item.get().as_ptr().addr() - start + item.get().len();
        let items = envelope.results.iter().map(|item| place(item)).collect();
        let count = envelope.count.and_then(|count| count.get().parse().ok());
        let next = envelope.next.map_or(Next::None, |next| read_next(next.get(), base));
        Ok(Self { text, items, count, next })
    }

    /// The exact text of each item, in the page's order.
    pub fn items(&self) -> impl ExactSizeIterator<Item = &str> {
        self.items.iter().map(|place| &self.text[place.clone()])
    }

    /// The exact text of the item at `at`, from 0.
    pub fn item(&self, at: usize) -> Option<&str> {
        self.items.get(at).map(|place| &self.text[place.clone()])
    }

    /// Items on the page.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether the page has no items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Bytes that the page holds in memory.
    pub fn size(&self) -> usize {
        self.text.len()
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Page({} items)", self.len())
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    results: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    count: Option<&'a RawValue>,
    #[serde(borrow, default)]
    next: Option<&'a RawValue>,
}

fn read_next(next: &str, base: &Url) -> Next {
    // Not even a string: there is something, and our own counter goes on.
    let Ok(address) = serde_json::from_str::<Option<String>>(next) else { return Next::More };
    let Some(address) = address else { return Next::None };
    match base.join(&address) {
        Ok(url) if url.origin() != base.origin() => Next::Foreign,
        _ => Next::More,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Page, Code> {
        Page::read(Bytes::copy_from_slice(body.as_bytes()), &Url::parse("https://api.belvo.com").unwrap())
    }

    #[test]
    fn items_keep_their_exact_text() {
        let page =
            read(r#" {"count": 2, "next":null, "new": [{}], "results": [ {"a": 1033.0900} , {"b":"é"}]}"#).unwrap();
        assert_eq!(page.items().collect::<Vec<_>>(), [r#"{"a": 1033.0900}"#, r#"{"b":"é"}"#]);
        assert_eq!((page.count, page.next), (Some(2), Next::None));
        assert_eq!(format!("{page:?}"), "Page(2 items)");
    }

    #[test]
    fn what_is_no_list_is_never_an_empty_one() {
        for (body, code) in [
            ("", Code::NotJson),
            (" \n", Code::NotJson),
            ("<html></html>", Code::NotJson),
            ("null", Code::NotAList),
            ("{}", Code::NotAList),
            (r#"{"results":null}"#, Code::NotAList),
            (r#"{"results":{}}"#, Code::NotAList),
            (r#"{"results":[{"a":1}"#, Code::Truncated),
            (r#"{"results":[]}<html>"#, Code::NotJson),
            (r#"{"results":[],"results":[]}"#, Code::NotAList),
        ] {
            assert_eq!(read(body).err(), Some(code), "{body}");
        }
        let not_text = Bytes::from_static(b"{\"results\":[],\"x\":\"\xff\"}");
        assert_eq!(Page::read(not_text, &Url::parse("https://api.belvo.com").unwrap()).err(), Some(Code::NotJson));
        let deep = format!(r#"{{"results":[{}{}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(read(&deep).unwrap().len(), 1, "depth is no danger where nothing is built");
    }

    #[test]
    fn only_an_address_on_another_origin_is_foreign() {
        for (next, expected) in [
            ("null", Next::None),
            (r#""https://api.belvo.com/api/owners/?page=2""#, Next::More),
            (r#""https://api.belvo.com:443/api/owners/?link=908page=2""#, Next::More),
            (r#""/api/owners/?page=2""#, Next::More),
            (r#""?page=2""#, Next::More),
            (r#""""#, Next::More),
            ("7", Next::More),
            (r#""http://api.belvo.com/api/owners/?page=2""#, Next::Foreign),
            (r#""https://api.belvo.com:8443/""#, Next::Foreign),
            (r#""https://api.belvo.com.evil.example/""#, Next::Foreign),
            (r#""https://api.belvo.com@evil.example/""#, Next::Foreign),
            (r#""//169.254.169.254/latest""#, Next::Foreign),
            (r#""\\\\evil.example\\""#, Next::Foreign),
            (r#""javascript:alert(1)""#, Next::Foreign),
        ] {
            assert_eq!(read(&format!(r#"{{"results":[],"next":{next}}}"#)).unwrap().next, expected, "{next}");
        }
    }
}
