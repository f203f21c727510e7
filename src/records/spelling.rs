//! Whether two JSON texts say the same, however they are spelt.
//!
//! Belvo may write a text with escapes one day and without the next, or the members of an object in another order: that
//! is no new content. Numbers are compared as they are written, because they are exact.

use std::borrow::Cow;

use crate::json::{Kind, NotJson, Reader, Text};

/// `json` without blanks, with the members of each object in order and each text in its shortest form. What is no JSON
/// stays as it is.
pub(super) fn plain(json: &str) -> String {
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
