//! What a webhook's body says.
//!
//! *Takes* a body. *Gives* an [`Event`], also for an object that is not understood: that one says why. *Promises* that
//! the body is UTF-8 and one JSON object no deeper than [`DEEPEST`], and that no text taken from it is longer than its
//! column should be. *Not here*: what follows from it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::link_id::LinkId;
use crate::links::{DELETED, INVALID, TOKEN_REQUIRED};
use crate::resources::Resource;

/// Why an event can be in the quarantine.
pub const REASONS: [&str; 5] = [NO_TYPE, UNKNOWN_TYPE, UNKNOWN_CODE, NO_LINK, NOT_FOLLOWED_UP];

const NO_TYPE: &str = "webhook_type is missing or no short text";
const UNKNOWN_TYPE: &str = "webhook_type is unknown";
const UNKNOWN_CODE: &str = "webhook_code is missing or unknown";
const NO_LINK: &str = "link_id is missing or no UUID";
/// It is understood, and what it says could not be done.
pub(super) const NOT_FOLLOWED_UP: &str = "could not be followed up";

/// Levels of nesting that a body may have.
const DEEPEST: usize = 64;
/// Characters of a type or a code.
const LONGEST_NAME: usize = 64;
/// Characters of an `external_id`.
const LONGEST_EXTERNAL_ID: usize = 256;

/// A body that is an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub webhook_type: Option<String>,
    pub webhook_code: Option<String>,
    pub link_id: Option<LinkId>,
    pub external_id: Option<String>,
    /// What follows from it, when its type is known.
    pub meaning: Meaning,
    /// Why it is not understood, one of [`REASONS`]; `None` when it is.
    pub reason: Option<&'static str>,
}

/// What follows from an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A resource of the link is to be listed again; the complete count of it, when the event tells one.
    Resource(&'static Resource, Option<i64>),
    /// The link has this status.
    Status(&'static str),
    /// Nothing.
    Unknown,
}

impl Event {
    /// Reads a body; `None` when it is not a JSON object.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(body).ok()?;
        if is_deeper_than(DEEPEST, body) {
            return None;
        }
        let fields: Fields<'_> = serde_json::from_str(text).ok()?;
        let webhook_type = fields.webhook_type.and_then(name);
        let webhook_code = fields.webhook_code.and_then(name);
        let link_id: Option<LinkId> = fields.link_id.and_then(string).and_then(|id| id.parse().ok());
        let external_id = fields.external_id.and_then(string);
        let external_id = external_id.filter(|id| id.chars().count() <= LONGEST_EXTERNAL_ID && !id.contains('\0'));
        let (meaning, reason) = match (webhook_type.as_deref(), webhook_code.as_deref()) {
            (None, _) => (Meaning::Unknown, Some(NO_TYPE)),
            (Some(kind), code) => understand(kind, code, fields.data),
        };
        let reason = reason.or_else(|| link_id.is_none().then_some(NO_LINK));
        Some(Self { webhook_type, webhook_code, link_id, external_id, meaning, reason })
    }

    /// The type, as far as it may name a metric.
    pub(super) fn label(&self) -> &'static str {
        match &self.meaning {
            Meaning::Resource(resource, _) => resource.webhook_type,
            Meaning::Status(_) => "LINK",
            Meaning::Unknown => "other",
        }
    }
}

/// What the type and the code mean. A code that is not known still says that its resource is worth a look.
fn understand(kind: &str, code: Option<&str>, data: Option<&RawValue>) -> (Meaning, Option<&'static str>) {
    if let Some(resource) = Resource::by_webhook_type(kind) {
        let is_known = code.is_some_and(|code| {
            code == "historical_update" || (code.starts_with("new_") && code.ends_with("_available"))
        });
        return (
            Meaning::Resource(resource, data.and_then(|data| total(data, resource))),
            (!is_known).then_some(UNKNOWN_CODE),
        );
    }
    match (kind, code) {
        (_, Some("link_deleted")) => (Meaning::Status(DELETED), None),
        ("LINK" | "LINKS", Some("invalid_credentials")) => (Meaning::Status(INVALID), None),
        ("LINK" | "LINKS", Some("token_required")) => (Meaning::Status(TOKEN_REQUIRED), None),
        ("LINK" | "LINKS", _) => (Meaning::Unknown, Some(UNKNOWN_CODE)),
        _ => (Meaning::Unknown, Some(UNKNOWN_TYPE)),
    }
}

/// The number of all records. A count of new ones only is not that, and is ignored.
fn total(data: &RawValue, resource: &Resource) -> Option<i64> {
    struct Total<'r>(&'r Resource);

    impl<'de> Visitor<'de> for Total<'_> {
        type Value = Option<i64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<i64>, A::Error> {
            let mut total = None;
            while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                if key == self.0.total_key {
                    total = map.next_value::<&RawValue>()?.get().parse().ok().filter(|count| *count >= 0);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(total)
        }
    }

    serde_json::Deserializer::from_str(data.get()).deserialize_map(Total(resource)).ok().flatten()
}

/// The top-level fields that matter; of two equal keys the last counts.
#[derive(Default)]
struct Fields<'a> {
    webhook_type: Option<&'a RawValue>,
    webhook_code: Option<&'a RawValue>,
    link_id: Option<&'a RawValue>,
    external_id: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Fields::default();
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    let value = Some(map.next_value()?);
                    match &*key {
                        "webhook_type" => fields.webhook_type = value,
                        "webhook_code" => fields.webhook_code = value,
                        "link_id" => fields.link_id = value,
                        "external_id" => fields.external_id = value,
                        "data" => fields.data = value,
                        _ => {}
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

fn name(value: &RawValue) -> Option<String> {
    string(value).filter(|name| name.chars().count() <= LONGEST_NAME && !name.contains('\0'))
}

/// Whether arrays and objects nest deeper than `limit`, by one look at each byte: a parser that skips a value does not
/// count its depth.
fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    let (mut depth, mut is_in_string, mut is_escaped) = (0_usize, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_in_string => is_escaped = true,
            b'"' => is_in_string = !is_in_string,
            b'[' | b'{' if !is_in_string => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' if !is_in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resources::{employments, owners};

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    fn event(kind: &str, code: &str, data: &str) -> Event {
        let body = format!(
            r#"{{"webhook_id":"0","webhook_type":{kind},"webhook_code":{code},"link_id":"{LINK}","external_id":"us-1","data":{data}}}"#
        );
        Event::read(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_documented_events_are_understood() {
        let cases: [(&str, &str, &str, Meaning); 9] = [
            (
                r#""EMPLOYMENTS""#,
                r#""historical_update""#,
                r#"{"total_employments":3}"#,
                Meaning::Resource(&employments::RESOURCE, Some(3)),
            ),
            (
                r#""EMPLOYMENTS""#,
                r#""new_employments_available""#,
                r#"{"new_employments":1}"#,
                Meaning::Resource(&employments::RESOURCE, None),
            ),
            (
                r#""EMPLOYMENTS""#,
                r#""new_accounts_available""#,
                "null",
                Meaning::Resource(&employments::RESOURCE, None),
            ),
            (
                r#""OWNERS""#,
                r#""historical_update""#,
                r#"{"total_owners":0,"x":[{}]}"#,
                Meaning::Resource(&owners::RESOURCE, Some(0)),
            ),
            (r#""OWNERS""#, r#""new_owners_available""#, "7", Meaning::Resource(&owners::RESOURCE, None)),
            (r#""LINK""#, r#""invalid_credentials""#, "{}", Meaning::Status("invalid")),
            (r#""LINKS""#, r#""token_required""#, "{}", Meaning::Status("token_required")),
            (r#""LINK""#, r#""link_deleted""#, "{}", Meaning::Status("deleted")),
            (r#""ANYTHING""#, r#""link_deleted""#, "{}", Meaning::Status("deleted")),
        ];
        for (kind, code, data, meaning) in cases {
            let event = event(kind, code, data);
            assert_eq!((&event.meaning, event.reason), (&meaning, None), "{kind} {code}");
            assert_eq!((event.link_id.unwrap().as_str(), event.external_id.as_deref()), (LINK, Some("us-1")));
        }
    }

    #[test]
    fn an_object_that_is_not_understood_says_why() {
        let long = format!("\"{}\"", "x".repeat(65));
        for (kind, code) in [
            (r#""PLANETS""#, r#""historical_update""#),
            (r#""LINK""#, r#""else""#),
            (r#""EMPLOYMENTS""#, r#""else""#),
            (r#""EMPLOYMENTS""#, "7"),
            ("7", r#""historical_update""#),
            (r#""EMPLOYMENTS\u0000""#, r#""historical_update""#),
            (long.as_str(), r#""historical_update""#),
        ] {
            let reason = event(kind, code, "{}").reason;
            assert!(reason.is_some_and(|reason| REASONS.contains(&reason)), "{kind} {code}: {reason:?}");
        }
        for body in [
            "{}",
            r#"{"webhook_type":"OWNERS","webhook_code":"historical_update","link_id":"x"}"#,
            r#"{"webhook_type":"OWNERS","webhook_code":"historical_update"}"#,
        ] {
            let event = Event::read(body.as_bytes()).unwrap();
            let is_named = event.reason.is_some_and(|reason| REASONS.contains(&reason));
            assert!(is_named && event.link_id.is_none(), "{body}");
        }
        assert_eq!(
            event(r#""OWNERS""#, r#""else""#, "{}").meaning,
            Meaning::Resource(&owners::RESOURCE, None),
            "still worth a look"
        );
    }

    #[test]
    fn of_two_equal_keys_the_last_counts_and_long_ids_are_left_out() {
        let long = "x".repeat(257);
        let body = format!(
            r#"{{"webhook_type":"A","webhook_type":"OWNERS","webhook_code":"historical_update","external_id":"{long}","n":1e999,"link_id":"{LINK}"}}"#
        );
        let event = Event::read(body.as_bytes()).unwrap();
        assert_eq!((event.label(), event.reason, event.external_id), ("OWNERS", None, None));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        for body in ["", "null", "[]", "7", "{", "{} {}", r#"{"a":}"#, r"{a:1}", "\u{feff}{}", deep.as_str()] {
            assert_eq!(Event::read(body.as_bytes()), None, "{body:.20}");
        }
        assert_eq!(Event::read(b"{\"a\":\"\xff\"}"), None);
        let allowed = format!(r#"{{"a":{}{}}}"#, "[".repeat(DEEPEST - 1), "]".repeat(DEEPEST - 1));
        assert!(Event::read(allowed.as_bytes()).is_some());
        assert!(Event::read(br#"{"a":"[[[[\"[[[["}"#).is_some());
    }

    proptest! {
        #[test]
        fn no_body_at_all_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Event::read(&body);
        }

        #[test]
        fn every_object_is_read(fields in prop::collection::btree_map("[a-z_]{0,12}", "[0-9]{1,9}|true|null|\"[a-z]{0,5}\"", 0..8)) {
            let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("\"{key}\": {}", value.trim_start_matches('0').to_owned() + if value.trim_start_matches('0').is_empty() { "0" } else { "" })).collect();
            let body = format!("{{{}}}", fields.join(","));
            prop_assert!(Event::read(body.as_bytes()).is_some(), "{}", body);
        }
    }
}
