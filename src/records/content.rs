//! What a record says: its text without what Belvo renews, and without the order in which Belvo happens to list it.
//!
//! *Takes* a record's JSON. *Gives* its content, and whether two records say the same, however they are spelt.
//! *Promises* that neither the order of a record's fields nor that of the items of its lists makes a difference; nor,
//! to [`say_the_same`], whether a text is written with escapes one day and without the next, or the members of an
//! object in another order. Numbers are compared as they are written, because they are exact. *Not here*: what the
//! content means to analysts (`flatten`).

use std::borrow::Cow;

use crate::clock::Timestamp;
use crate::json::{Fields, Kind, NotJson, Reader, Text, items, text};

/// Fields that Belvo renews without the record having changed, as long as they are what they should be.
const VOLATILE: [&str; 3] = ["id", "created_at", "collected_at"];

/// Whether Belvo may have renewed the field: another value of another kind is a change, and the record may be broken by
/// it.
fn is_volatile(name: &str, value: &str) -> bool {
    match name {
        "id" => value.len() > 2 && value.starts_with('"'),
        "created_at" | "collected_at" => {
            value == "null" || text(value).is_some_and(|text| Timestamp::parse(&text).is_some())
        }
        _ => false,
    }
}

/// The record's text without volatile fields: fields by name, items of lists by their text. What is not an object is
/// its own content.
pub(super) fn content(json: &str) -> String {
    content_of(json, Fields::read(json).as_mut())
}

/// The content of `json`, whose `fields` are put in order.
pub(super) fn content_of(json: &str, fields: Option<&mut Fields<'_>>) -> String {
    let Some(fields) = fields else { return json.to_owned() };
    let mut content = String::with_capacity(json.len() + json.len() / 8);
    for name in VOLATILE.iter().filter(|name| fields.get(name).is_none()) {
        content.push_str(name);
        content.push('\n');
    }
    for (name, value) in fields.sorted().iter().filter(|(name, value)| !is_volatile(name, value)) {
        content.push_str(name);
        content.push(':');
        match items(value) {
            Some(items) => push_sorted(items, &mut content),
            None => content.push_str(value),
        }
        content.push('\n');
    }
    content
}

fn push_sorted(mut items: Vec<&str>, content: &mut String) {
    items.sort_unstable();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            content.push(',');
        }
        content.push_str(item);
    }
}

/// Whether two records have one content, however each is spelt.
pub(super) fn say_the_same(a: &str, b: &str) -> bool {
    content(&plain(a)) == content(&plain(b))
}

/// `json` without blanks, with the members of each object in order and each text in its shortest form. What is no JSON
/// stays as it is.
fn plain(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    match write(&mut Reader::new(json), json, &mut plain) {
        Ok(()) => plain,
        Err(NotJson { .. }) => json.to_owned(),
    }
}

fn write(reader: &mut Reader<'_>, json: &str, out: &mut String) -> Result<(), NotJson> {
    match reader.kind()? {
        Kind::Text => {
            let text = reader.text()?;
            write_text(text, json, out);
        }
        Kind::Number | Kind::Boolean | Kind::Null => out.push_str(reader.any()?.of(json)),
        Kind::Array => {
            let mut more = reader.enter()?;
            out.push('[');
            while more {
                write(reader, json, out)?;
                more = reader.another(b']')?;
                out.push_str(if more { "," } else { "" });
            }
            out.push(']');
        }
        Kind::Object => {
            let mut members = Vec::new();
            let mut more = reader.enter()?;
            while more {
                let (name, mut member) = (reader.key()?, String::new());
                write_text(name, json, &mut member);
                member.push(':');
                write(reader, json, &mut member)?;
                members.push(member);
                more = reader.another(b'}')?;
            }
            members.sort_unstable();
            out.push('{');
            out.push_str(&members.join(","));
            out.push('}');
        }
    }
    Ok(())
}

fn write_text(text: Text, json: &str, out: &mut String) {
    match text.plain(json) {
        Cow::Owned(plain) => out.push_str(&serde_json::Value::from(plain).to_string()),
        Cow::Borrowed(plain) => {
            out.push('"');
            out.push_str(plain);
            out.push('"');
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spelling_makes_no_difference_and_content_does() {
        for (a, b) in [
            (r#"{"a":1,"b":[1,2]}"#, "{ \"b\" : [1, 2],\n\"a\":1 }"),
            (r#""á/\n""#, r#""\u00e1\/\u000a""#),
            (r#"{"x":{"b":null,"a":true}}"#, r#"{"\u0078":{"a":true,"b":null}}"#),
        ] {
            assert_eq!(plain(a), plain(b), "{a} {b}");
        }
        for (a, b) in [
            ("[1,2]", "[2,1]"),
            ("999999999999999.98", "999999999999999.99"),
            (r#""""#, "null"),
            (r#"{"a":"1"}"#, r#"{"a":1}"#),
            (r#"["a","b"]"#, r#"["a\",\"b"]"#),
            ("{", "{}"),
        ] {
            assert_ne!(plain(a), plain(b), "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn what_is_plain_says_the_same_and_stays_as_it_is(text in "\\PC{0,12}", number in any::<i64>()) {
            let value = serde_json::json!({ "b": text, "a": [number, { "z": text, "y": null }] });
            let said = plain(&serde_json::to_string_pretty(&value).unwrap());
            prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&said).unwrap(), &value);
            prop_assert_eq!(&plain(&said), &said);
        }
    }
}
