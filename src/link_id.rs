//! The id of a link, as every part of the program names one.
//!
//! *Takes* a UUID in any spelling. *Gives* the one spelling that is kept, and what stands for it in the log. *Not
//! here*: what is known of the link (`links`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

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

    /// What stands for the link in the log: twelve hex digits of its hash, which `vinculo links show` prints too.
    /// Whoever reads the log and nothing else cannot ask Belvo for the link.
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
