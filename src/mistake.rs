//! What is wrong with what the operator wrote: in the configuration, a job or a reference table.
//!
//! *Gives* a [`Mistake`], and what an unknown name was meant to be. *Promises* that it says what to write instead. *Not
//! here*: who reads those files, and finds all of their mistakes at once.

use std::fmt;

/// One mistake: where it stands, what is wrong, and what to write instead. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, environment variable or flag.
    pub place: String,
    /// The key with its section, such as `belvo.page_size`; empty when the whole place is meant.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to write or do instead.
    pub fix: String,
}

impl Mistake {
    /// A mistake in `key` of `place`.
    pub fn new(place: impl fmt::Display, key: &str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.to_string(), key: key.to_owned(), what: what.into(), fix: fix.into() }
    }

    /// The place and the key and what is wrong there, but not the fix.
    pub fn found(&self) -> String {
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        format!("{}: {key}{}", self.place, self.what)
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found(), self.fix)
    }
}

/// The known name that `unknown` was most likely meant to be.
pub fn nearest<'k>(unknown: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let (_, last) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    known
        .into_iter()
        .map(|name| {
            let moved = last.len() > 3 && name.rsplit_once('.').is_some_and(|(_, own)| own == last);
            let likeness = strsim::normalized_damerau_levenshtein(&unknown.to_ascii_lowercase(), name);
            (if moved { likeness.max(0.8) } else { likeness }, name)
        })
        .filter(|&(likeness, _)| likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
