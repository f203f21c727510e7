//! Defaults, file, environment and flags, laid over each other key by key.
//!
//! *Gives* [`Settings`]: one value for each known key, and where it was written. The default file is the list of known
//! keys: what is not in it is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::mistake::{Mistake, nearest};

/// The commented default file.
pub const DEFAULT: &str = include_str!("default.toml");

/// Environment variables that belong to flags of the command line.
pub(super) const FLAG_VARIABLES: [&str; 3] = ["VINCULO_CONFIG", "VINCULO_LOG_LEVEL", "VINCULO_LOG_FORMAT"];

/// Keys whose value must not be shown, and may stand in a file that `<key>_file` names.
pub(super) const SECRETS: [&str; 9] = [
    "belvo.secret_id",
    "belvo.secret_password",
    "webhook.authorization",
    "admin.token",
    "admin.operate_tokens",
    "admin.read_tokens",
    "state.encryption_key",
    "state.encryption_key_previous",
    "pii.pepper",
];

const PREFIX: &str = "VINCULO_";

/// Where systemd keeps the credentials of the running service: so that a command beside it, which nobody told, reads
/// the same ones.
const SERVICE_CREDENTIALS: &str = "/run/credentials/vinculo.service";

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In a file.
    File(PathBuf),
    /// In the environment.
    Variable(String),
    /// On the command line, or by a command for itself.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("configuration"),
            Self::File(path) => path.strip_prefix("./").unwrap_or(path).display().fmt(f),
            Self::Variable(name) => f.write_str(name),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// One value and where it was written.
#[derive(Clone)]
pub(super) struct Setting {
    /// The value, of any type.
    pub(super) value: Value,
    /// Where it was written.
    pub(super) origin: Origin,
}

/// One value for each known key, by its dotted name.
pub(super) struct Settings {
    keys: BTreeMap<String, Setting>,
    defaults: BTreeMap<String, Value>,
    file: Option<PathBuf>,
    /// Whether nothing of that file could be read.
    pub(super) is_unread: bool,
    /// Where systemd has put the credentials of the service.
    pub(super) credentials: PathBuf,
    /// What could not be laid over: unknown keys, unreadable files.
    pub(super) mistakes: Vec<Mistake>,
}

impl Settings {
    /// The defaults.
    pub(super) fn defaults() -> Self {
        let table: Table = DEFAULT.parse().expect("the compiled default file is TOML; a test parses it");
        let mut defaults = BTreeMap::new();
        leaves(&table, "", &mut |key, value| {
            defaults.insert(key, value.clone());
        });
        let keys = defaults
            .iter()
            .map(|(key, value)| (key.clone(), Setting { value: value.clone(), origin: Origin::Default }));
        Self {
            keys: keys.collect(),
            defaults,
            file: None,
            is_unread: false,
            credentials: SERVICE_CREDENTIALS.into(),
            mistakes: Vec::new(),
        }
    }

    /// Lays the file at `path` over what there is.
    pub(super) fn read_file(&mut self, path: &Path) {
        let origin = Origin::File(path.to_owned());
        self.file = Some(path.to_owned());
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.is_unread = true;
                let fix = "name a file that can be read with --config, or make one with `vinculo init`";
                self.mistakes.push(Mistake::new(&origin, "", format!("cannot be read: {error}"), fix));
                return;
            }
        };
        match text.parse::<Table>() {
            Ok(table) => {
                leaves(&table, "", &mut |key, value| self.set(&key, value.clone(), &origin));
                self.refuse_twice(&table, &origin);
            }
            // Only the message: the parser's own text quotes the line, and the line may hold a secret.
            Err(error) => {
                self.is_unread = true;
                let at = error.span().map_or(0, |span| span.start);
                let line = text.bytes().take(at).filter(|&byte| byte == b'\n').count() + 1;
                let what = match error.message().lines().next().unwrap_or_default() {
                    message if message.starts_with("invalid type: integer") => {
                        format!("line {line} has a whole number that is too large for any key")
                    }
                    message => format!("line {line} is not TOML: {message}"),
                };
                self.mistakes.push(Mistake::new(&origin, "", what, "mend that line"));
            }
        }
    }

    /// Lays the environment over what there is: `VINCULO_SECTION__KEY`.
    pub(super) fn read_environment(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        let mut variables: Vec<_> = variables.into_iter().collect();
        if let Some((_, folder)) = variables.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY") {
            self.credentials = folder.into();
        }
        variables.retain(|(name, _)| name.starts_with(PREFIX));
        variables.sort();
        for (name, text) in variables {
            if FLAG_VARIABLES.contains(&name.as_str()) || is_service_link(&name, &text) {
                continue;
            }
            let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            let origin = Origin::Variable(name);
            self.set_text(&key, &text, &origin);
        }
    }

    /// Lays one value of the command line over what there is. `text` is written as in an environment variable.
    pub(super) fn read_flag(&mut self, key: &str, text: &str) {
        self.set_text(key, text, &Origin::Flag);
    }

    /// Where to write what is missing: the file, if there is one.
    pub(super) fn home(&self) -> Origin {
        self.file.clone().map_or(Origin::Default, Origin::File)
    }

    /// The value of `key`; every known key has one.
    pub(super) fn get(&self, key: &str) -> Option<&Setting> {
        self.keys.get(key)
    }

    /// The default of `key`.
    pub(super) fn default_of(&self, key: &str) -> Option<&Value> {
        self.defaults.get(key)
    }

    fn set_text(&mut self, key: &str, text: &str, origin: &Origin) {
        let as_toml = || format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let value = match self.defaults.get(key) {
            Some(Value::Array(_)) if text.trim_start().starts_with('[') => as_toml(),
            // A variable that was never filled must not turn off what an empty list turns off.
            Some(Value::Array(_)) if text.trim().is_empty() => None,
            Some(Value::Array(_)) => Some(Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Value::String(item.into()))
                    .collect(),
            )),
            Some(Value::String(_)) => None,
            Some(_) => as_toml(),
            None if self.is_section(key) => as_toml().filter(Value::is_table),
            None => None,
        };
        match value {
            Some(Value::Table(table)) => leaves(&table, key, &mut |key, value| self.set(&key, value.clone(), origin)),
            Some(value) => self.set(key, value, origin),
            None => self.set(key, Value::String(text.to_owned()), origin),
        }
    }

    fn set(&mut self, key: &str, value: Value, origin: &Origin) {
        if self.is_section(key) && value.as_table().is_some_and(Table::is_empty) {
            return;
        }
        let secret = key.strip_suffix("_file").filter(|secret| SECRETS.contains(secret));
        if let Some(secret) = secret {
            // The later layer counts, whichever of the two spellings it used.
            self.keys.remove(secret);
        } else if self.defaults.contains_key(key) {
            self.keys.remove(&format!("{key}_file"));
        } else {
            self.refuse(key, origin);
            return;
        }
        self.keys.insert(key.to_owned(), Setting { value, origin: origin.clone() });
    }

    fn refuse(&mut self, key: &str, origin: &Origin) {
        let (what, fix) = if self.is_section(key) {
            let inside: Vec<_> = self.keys_below(key).collect();
            (format!("is a section, not a value; it has {}", inside.join(", ")), format!("write [{key}] and its keys"))
        } else {
            let secret_files: Vec<String> = SECRETS.iter().map(|key| format!("{key}_file")).collect();
            // A single underscore between section and key is the usual slip in a variable's name.
            let dotted = match origin {
                Origin::Variable(_) if !key.contains('.') => key.replacen('_', ".", 1),
                _ => key.to_owned(),
            };
            let known = self.defaults.keys().map(String::as_str).chain(secret_files.iter().map(String::as_str));
            let fix = match (nearest(&dotted, known), origin) {
                (Some(name), Origin::Variable(_)) => format!("did you mean {}?", variable(name)),
                (Some(name), _) => format!("did you mean {name}?"),
                (None, _) => "remove it; `vinculo init` writes a file with every key".to_owned(),
            };
            ("unknown key".to_owned(), fix)
        };
        let shown = if matches!(origin, Origin::Variable(_)) && !key.contains('.') { "" } else { key };
        self.mistakes.push(Mistake::new(origin, shown, what, fix));
    }

    /// A secret and its `_file` in the same file: nobody can say which one is meant.
    fn refuse_twice(&mut self, table: &Table, origin: &Origin) {
        for secret in SECRETS {
            let Some((section, key)) = secret.split_once('.') else { continue };
            let Some(Value::Table(section)) = table.get(section) else { continue };
            let is_written = section.get(key).is_some_and(|value| !is_empty(value));
            if is_written && section.contains_key(&format!("{key}_file")) {
                let what = format!("is written together with {key}_file");
                self.mistakes.push(Mistake::new(origin, secret, what, "remove one of the two"));
            }
        }
    }

    fn is_section(&self, key: &str) -> bool {
        self.keys_below(key).next().is_some()
    }

    fn keys_below<'s>(&'s self, section: &'s str) -> impl Iterator<Item = &'s str> {
        self.defaults.keys().filter_map(move |key| key.strip_prefix(section)?.strip_prefix('.'))
    }
}

/// The environment variable of `key`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Gives every value that is not a table to `each`, by its dotted name; and an empty table, which would go unseen.
fn leaves(table: &Table, prefix: &str, each: &mut impl FnMut(String, &Value)) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => leaves(inner, &key, each),
            value => each(key, value),
        }
    }
}

/// Kubernetes tells every pod of the services beside it; one that is called vinculo must not stop vinculo.
fn is_service_link(name: &str, text: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && text.contains("://"))
        || name.rsplit_once("_PORT_").is_some_and(|(_, port)| port.contains("_TCP") || port.contains("_UDP"))
}
