//! The Belvo resources that are kept: one file each, and one list.
//!
//! Adding one is a schema in `schemas/`, a module here with a [`Resource`], a fixture, and two lines: its `mod` and its
//! entry in [`ALL`]. The schema says what analysts see; the module, what is peculiar about Belvo.

use std::fmt;

use crate::json::Fields;
use crate::sensitive::Pepper;

pub mod employments;
pub mod owners;

/// Every resource, in the order in which a link's are fetched.
pub static ALL: [&Resource; 2] = [&employments::RESOURCE, &owners::RESOURCE];

/// One endpoint of Belvo whose records are kept.
pub struct Resource {
    /// The stem of its schema, fixtures and files; also its name in tables and commands.
    pub name: &'static str,
    /// What one of its records is called; part of the text that a record's key is made from.
    pub record_name: &'static str,
    /// The list's path, with its closing slash.
    pub endpoint: &'static str,
    /// Whether the list documents its parameter `link` as required, also beside `link__in`.
    pub needs_link: bool,
    /// `webhook_type` of the events that are about it.
    pub webhook_type: &'static str,
    /// Key of `data` that counts the items in a `historical_update`.
    pub total_key: &'static str,
    /// The text of its file in `schemas/`.
    pub schema: &'static str,
    /// What a record and its re-issue under another id have in common, from the JSON of its fields; `None` when only
    /// the id tells records apart. Holds no personal data.
    pub likeness: fn(fields: &Fields<'_>) -> Option<String>,
    /// The functions that the schema's `derived` columns name.
    pub derived: fn(name: &str) -> Option<Derive>,
}

/// How a column comes from fields of its row. An input is `None` where Belvo sent null or nothing.
#[derive(Debug, Clone, Copy)]
pub enum Derive {
    /// Appends the text and says true; false is NULL.
    Text(fn(inputs: &[Option<&str>], pepper: Option<&Pepper>, out: &mut String) -> bool),
    /// A piece of an input, or a text that stands in the program; `None` is NULL.
    Piece(for<'t> fn(inputs: &[Option<&'t str>]) -> Option<&'t str>),
    /// Days since 1970-01-01; `None` is NULL.
    Date(fn(inputs: &[Option<&str>]) -> Option<i32>),
    /// Never NULL.
    Boolean(fn(inputs: &[Option<&str>]) -> bool),
}

impl Resource {
    /// The resource called `name`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|resource| resource.name == name)
    }

    /// The resource that events of `webhook_type` are about.
    pub fn by_webhook_type(webhook_type: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|resource| resource.webhook_type == webhook_type)
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Resource {}
