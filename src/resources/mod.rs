//! The Belvo resources that are kept: one file each, and one list.
//!
//! Adding one is a schema in `schemas/`, a module here with a [`Resource`], a fixture, and two lines: its `mod` and its
//! entry in [`ALL`].

use std::fmt;

pub mod employments;
pub mod owners;

/// Every resource, in the order in which a link's are fetched.
pub static ALL: [&Resource; 2] = [&employments::RESOURCE, &owners::RESOURCE];

/// One endpoint of Belvo whose records are kept.
pub struct Resource {
    /// The stem of its schema, fixtures and files; also its name in tables and commands.
    pub name: &'static str,
    /// The list's path, with its closing slash.
    pub endpoint: &'static str,
    /// `webhook_type` of the events that are about it.
    pub webhook_type: &'static str,
    /// Key of `data` that counts the items in a `historical_update`.
    pub total_key: &'static str,
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
