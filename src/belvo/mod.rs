//! Belvo as this program sees it: identifiers, the HTTP client, the request budget, and errors named by what to do next.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;

pub mod budget;
mod client;
mod failure;
mod gate;
mod ledger;
pub mod links;
pub mod page;
#[cfg(test)]
pub(crate) mod scripted;
pub mod token;

pub use budget::{Budget, Class, Permit, Usage};
pub use client::{Answer, Client, Leave};
pub use failure::{
    Decision, Failure, Meaning, REFUSED_KEYS, SIMULATED_MISMATCH, Trouble, advice, codes, meaning, patience,
    refused_codes,
};
pub use gate::{Down, Patience};

/// The id of a link: a UUID in lower case with dashes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(Arc<str>);

impl LinkId {
    /// The 36 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Every UUID with dashes in `text`, whatever stands around it.
    pub fn all_in(text: &[u8]) -> impl Iterator<Item = Self> {
        memchr::memchr_iter(b'-', text).filter_map(|dash| {
            // The first dash of a UUID stands behind eight digits.
            let uuid = text.get(dash.checked_sub(8)?..dash + 28)?;
            str::from_utf8(uuid).ok()?.parse().ok()
        })
    }

    /// What stands for the link in the log: twelve hex digits of its hash, which `vinculo links show` prints too. Whoever
    /// reads the log and nothing else cannot ask Belvo for the link.
    pub fn log_tag(&self) -> String {
        log_tag(&self.0)
    }
}

/// The [`LinkId::log_tag`] of an id that is kept as text.
pub fn log_tag(link_id: &str) -> String {
    blake3::hash(link_id.as_bytes()).to_hex()[..12].to_owned()
}

impl FromStr for LinkId {
    type Err = NotALinkId;

    /// Reads a UUID in any case, with or without dashes.
    fn from_str(text: &str) -> Result<Self, NotALinkId> {
        let hex: String = match text.len() {
            32 => text.to_ascii_lowercase(),
            36 if [8, 13, 18, 23].iter().all(|&dash| text.as_bytes()[dash] == b'-') => {
                text.split('-').collect::<String>().to_ascii_lowercase()
            }
            _ => return Err(NotALinkId),
        };
        if hex.len() != 32 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(NotALinkId);
        }
        let dashed = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
        Ok(Self(dashed.into()))
    }
}

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A time of Belvo's may be so far ahead of ours, and generously so: a simulated Belvo runs months ahead. What is further
/// ahead is a slip, such as 2062 for 2026, and believed it would make every answer of the decades until then an older one.
pub const FARTHEST_AHEAD: Duration = Duration::from_hours(10 * 366 * 24);

/// When Belvo collected something, as far as that can be true of what was fetched at `fetched_at`.
pub fn credible(collected_at: Option<Timestamp>, fetched_at: Timestamp) -> Option<Timestamp> {
    collected_at.filter(|collected_at| *collected_at <= fetched_at + FARTHEST_AHEAD)
}

/// The text is not a UUID, so it names no link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a link id: expected a UUID such as 2f5d361d-dad6-45d4-a0bf-26d479766067")]
pub struct NotALinkId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_id_is_read_in_any_spelling_and_kept_in_one() {
        let id: LinkId = "2F5D361D-DAD6-45D4-A0BF-26D479766067".parse().unwrap();
        assert_eq!(id.as_str(), "2f5d361d-dad6-45d4-a0bf-26d479766067");
        assert_eq!("2f5d361ddad645d4a0bf26d479766067".parse(), Ok(id));
        for wrong in
            ["", "2f5d361d-dad6-45d4-a0bf-26d47976606", "2f5d361d-dad6-45d4-a0bf-26d47976606g", "é".repeat(18).as_str()]
        {
            assert_eq!(wrong.parse::<LinkId>(), Err(NotALinkId), "{wrong}");
        }
    }
}
