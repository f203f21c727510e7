//! One key at a time: its type, unit and range, and what to write when it has none of them.
//!
//! A key that is wrong is noted and read as its default, so that one run finds every mistake.

use std::fmt::Display;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use secrecy::SecretString;
use toml::Value;
use url::Url;

use super::layers::{Origin, SECRETS, Setting, Settings};
use crate::mistake::Mistake;

/// Reads typed values out of [`Settings`] and collects what is wrong with them.
pub(super) struct Reader<'s> {
    settings: &'s Settings,
    root: &'s Path,
    /// What is wrong so far.
    pub(super) mistakes: Vec<Mistake>,
}

impl<'s> Reader<'s> {
    /// Reads `settings`; relative paths start at `root`.
    pub(super) fn new(settings: &'s Settings, root: &'s Path) -> Self {
        Self { settings, root, mistakes: Vec::new() }
    }

    /// A whole number within `range`.
    pub(super) fn whole(&mut self, key: &str, range: RangeInclusive<u32>) -> u32 {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(key, &expected, |value| {
            value.as_integer().and_then(|number| u32::try_from(number).ok()).filter(|number| range.contains(number))
        })
    }

    /// A share of one: 0 to less than 1.
    pub(super) fn share(&mut self, key: &str) -> f64 {
        self.value(key, "a share from 0 to less than 1", |value| {
            let share = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
            (0.0..1.0).contains(&share).then_some(share)
        })
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        self.value(key, "true or false", Value::as_bool)
    }

    /// A text for which `is_right` holds; `expected` says what that is.
    pub(super) fn text(&mut self, key: &str, expected: &str, is_right: impl Fn(&str) -> bool) -> String {
        self.value(key, expected, |value| value.as_str().filter(|text| is_right(text)).map(str::to_owned))
    }

    /// A list of texts for each of which `is_right` holds.
    pub(super) fn texts(&mut self, key: &str, expected: &str, is_right: impl Fn(&str) -> bool) -> Vec<String> {
        self.value(key, expected, |value| {
            value
                .as_array()?
                .iter()
                .map(|item| item.as_str().filter(|text| is_right(text)).map(str::to_owned))
                .collect()
        })
    }

    /// A duration with its unit, within `range`.
    pub(super) fn duration(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        let (least, most) = (humantime::format_duration(*range.start()), humantime::format_duration(*range.end()));
        let expected = format!("a time with its unit, from {least} to {most}");
        self.value(key, &expected, |value| duration(value.as_str()?).filter(|time| range.contains(time)))
    }

    /// A duration with its unit, or nothing, which means to keep; or one of `words`.
    pub(super) fn keep(&mut self, key: &str, words: &[&str]) -> String {
        self.text(key, "a time with its unit, such as 90d, or \"\" to keep", |text| {
            text.is_empty() || words.contains(&text) || duration(text).is_some_and(|time| !time.is_zero())
        })
    }

    /// A size with its unit, within `range`, in bytes.
    pub(super) fn size(&mut self, key: &str, range: RangeInclusive<ByteSize>) -> u64 {
        let expected = format!("a size with its unit, from {} to {}", range.start(), range.end());
        let size =
            self.value(key, &expected, |value| size(value.as_str()?).filter(|size| range.contains(size)).map(Size));
        size.0.as_u64()
    }

    /// An IP address and port to listen at.
    pub(super) fn socket(&mut self, key: &str) -> SocketAddr {
        let expected = "an IP address with a port, such as 127.0.0.1:8080";
        self.value(key, expected, |value| value.as_str()?.parse().ok().map(Socket)).0
    }

    /// A list of IP addresses and networks.
    pub(super) fn networks(&mut self, key: &str) -> Vec<IpNet> {
        self.value(key, "a list of IP addresses or networks in CIDR form, such as 10.0.0.0/8", |value| {
            value.as_array()?.iter().map(|item| network(item.as_str()?)).collect()
        })
    }

    /// An `https` or `http` URL without user, query or fragment.
    pub(super) fn url(&mut self, key: &str) -> Url {
        self.value(key, "an https:// URL without user, query or fragment", |value| {
            let url: Url = value.as_str()?.parse().ok()?;
            let is_plain = url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none();
            (matches!(url.scheme(), "https" | "http") && url.has_host() && is_plain).then_some(Link(url))
        })
        .0
    }

    /// A path, made absolute; `None` when it is empty.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let text = self.text(key, "a path", |_| true);
        (!text.is_empty()).then(|| self.root.join(text))
    }

    /// A path that is not empty, made absolute.
    pub(super) fn absolute(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A list of tables that have the texts `first` and `second` and nothing else.
    pub(super) fn pairs(&mut self, key: &str, first: &str, second: &str) -> Vec<(String, String)> {
        let expected = format!("a list such as [{{ {first} = \"…\", {second} = \"…\" }}]");
        self.value(key, &expected, |value| {
            let pair = |item: &Value| {
                let table = item.as_table().filter(|table| table.len() == 2)?;
                let text = |name| table.get(name)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
                Some((text(first)?, text(second)?))
            };
            value.as_array()?.iter().map(pair).collect()
        })
    }

    /// A secret, from its own key or from the file that `<key>_file` names; `None` when it is empty.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        let text = self.secret_file(key).unwrap_or_else(|| self.text(key, "a text", |_| true));
        let text = text.trim();
        (!text.is_empty()).then(|| SecretString::from(text))
    }

    /// Several secrets: a list, or the lines of the file that `<key>_file` names.
    pub(super) fn secrets(&mut self, key: &str) -> Vec<String> {
        match self.secret_file(key) {
            Some(text) => text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect(),
            None => self.texts(key, "a list of texts", |_| true),
        }
    }

    /// Notes that `key` is wrong.
    pub(super) fn refuse(&mut self, key: &str, what: impl Into<String>, fix: impl Into<String>) {
        let in_file = format!("{key}_file");
        let setting = self.settings.get(&in_file).or_else(|| self.settings.get(key));
        let place = match setting {
            Some(Setting { origin: Origin::Default, .. }) | None => self.settings.home(),
            Some(setting) => setting.origin.clone(),
        };
        self.mistakes.push(Mistake::new(place, key, what, fix));
    }

    /// Whether `key` has its default, whoever wrote it.
    pub(super) fn is_default(&self, key: &str) -> bool {
        self.settings.get(key).is_some_and(|setting| self.settings.default_of(key) == Some(&setting.value))
    }

    /// Reads `key`, or notes that it is not `expected` and reads its default.
    fn value<T: Default>(&mut self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> T {
        let Some(Setting { value, .. }) = self.settings.get(key) else { return T::default() };
        if let Some(read) = read(value) {
            return read;
        }
        let default = self.settings.default_of(key);
        // A URL may hold a password where none should be.
        let is_secret = SECRETS.contains(&key) || value.as_str().is_some_and(|text| text.contains('@'));
        let found = if is_secret { format!("is not {expected}") } else { format!("{value} is not {expected}") };
        let example = match default {
            Some(Value::String(text)) if text.is_empty() => "mend it, or leave it out".to_owned(),
            Some(Value::Array(items)) if items.is_empty() => "mend it, or leave it out".to_owned(),
            Some(default) => format!("the default is {default}"),
            None => "mend it".to_owned(),
        };
        self.refuse(key, found, example);
        default.and_then(read).unwrap_or_default()
    }

    /// The text of the file that `<key>_file` names, empty when it cannot be read; `None` when no file is named.
    fn secret_file(&mut self, key: &str) -> Option<String> {
        let file_key = format!("{key}_file");
        let setting = self.settings.get(&file_key)?.clone();
        let path = setting.value.as_str().filter(|path| !path.is_empty()).map(|path| {
            let credential = path.strip_prefix("${CREDENTIALS_DIRECTORY}/");
            credential.map_or_else(|| self.root.join(path), |name| self.settings.credentials.join(name))
        });
        let text = match path.as_ref().map(fs::read_to_string) {
            Some(Ok(text)) => return Some(text),
            Some(Err(error)) => format!("{} cannot be read: {error}", path.unwrap_or_default().display()),
            None => "is not the path of a file".to_owned(),
        };
        self.mistakes.push(Mistake::new(setting.origin, &file_key, text, "name a file that this user may read"));
        Some(String::new())
    }
}

// What stands for a value that could not be read; never seen outside, since the load fails.

#[derive(Default)]
struct Size(ByteSize);

struct Socket(SocketAddr);

impl Default for Socket {
    fn default() -> Self {
        Self(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}

struct Link(Url);

impl Default for Link {
    fn default() -> Self {
        Self("https://localhost/".parse().expect("a URL"))
    }
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// A size with a unit: a bare number is as likely meant as kilobytes.
fn size(text: &str) -> Option<ByteSize> {
    text.ends_with(|last: char| last.is_ascii_alphabetic()).then(|| text.parse().ok()).flatten()
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// `items` as a sentence would list them.
pub(super) fn listed<I: Display>(items: impl IntoIterator<Item = I>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
