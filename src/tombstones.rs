//! What was erased and must not come back, without saying who that was.
//!
//! *Takes* the names of what is erased, inside the caller's transaction. *Gives* whether a link was. *Promises* that
//! only salted hashes are kept, in the state and in a file beside it, so that a state from before the erasure, or a new
//! one, learns of it; and that no file is replaced that is of another state.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::durable;
use crate::link_id::LinkId;
use crate::salt;
use crate::store::{Error, Store, Tx, args};

/// Name of the file, in the folder of the state.
const FILE: &str = "tombstones.jsonl";

/// Name of the salt of all tombstones.
const SALT: &str = "tombstone_salt";

/// What a tombstone stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A link: it never comes back.
    Link,
    /// Everything of an `external_id` until then; a link that it connects later is a new consent.
    ExternalId,
    /// Everything of a person until then, likewise.
    Person,
}

impl Kind {
    /// Its name in the state and in receipts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::ExternalId => "external_id",
            Self::Person => "person",
        }
    }

    fn by_name(name: &str) -> Result<Self, Error> {
        let all = [Self::Link, Self::ExternalId, Self::Person];
        all.into_iter().find(|kind| kind.name() == name).ok_or(Error::Unreadable("a tombstone"))
    }
}

/// One tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// What was erased.
    pub kind: Kind,
    /// HMAC-SHA-256 of its name under the salt, in hex.
    pub hash: String,
    /// When, in microseconds since 1970.
    pub erased_at: i64,
}

/// All tombstones, and the salt that their hashes are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstones {
    salt: String,
    /// When each was erased, by its kind and hash.
    all: BTreeMap<(Kind, String), i64>,
}

/// Why the tombstones of a file are not used, or none are written there.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// They are of another state.
    #[error(
        "{0} holds the tombstones of another state, so that it cannot be known who was erased; it is left as it is. Give this \
         state a folder of its own"
    )]
    Foreign(PathBuf),
    /// They are not what was written.
    #[error(
        "{0} does not hold the tombstones that were written, so that it cannot be known who was erased; it is left as it is. \
         Put a copy of it back; or remove it, and it is written anew from what the state knows, which is all of it unless \
         the state was restored or moved since"
    )]
    Damaged(PathBuf),
    /// The file cannot be read or written.
    #[error("{path} cannot be used: {source}; let this user read and write it")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The state refused.
    #[error(transparent)]
    Store(#[from] Error),
}

impl FileError {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Foreign(_) => "foreign_tombstones",
            Self::Damaged(_) => "tombstones_damaged",
            Self::File { .. } => "tombstones_not_usable",
            Self::Store(error) => error.code(),
        }
    }

    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

/// What the file beside the state at `state` says and the state, open as `store`, does not know: it is new there, or an
/// older one that was put back. `None` when there is nothing. A file that is missing, or knows less than the state, is
/// written anew from what that knows.
///
/// # Errors
/// [`FileError::Damaged`], [`FileError::File`], [`FileError::Store`].
pub async fn unknown(store: &Store, state: &Path) -> Result<Option<(PathBuf, Tombstones)>, FileError> {
    let path = file_of(state);
    let held = store.read(Tombstones::of).await?;
    let Some(there) = Tombstones::read(&path)? else {
        return held.map_or(Ok(()), |held| held.write(&path)).map(|()| None);
    };
    match held {
        Some(held) if held.has_all(&there) => {
            if !there.has_all(&held) {
                held.write(&path)?;
            }
            Ok(None)
        }
        _ => Ok(Some((path, there))),
    }
}

/// First line of the file.
#[derive(Serialize, Deserialize)]
struct Head {
    salt: String,
}

/// Whether the link was erased.
///
/// # Errors
/// [`Error::Database`].
pub fn is_erased(tx: &Tx<'_>, link_id: &LinkId) -> Result<bool, Error> {
    has(tx, Kind::Link, link_id.as_str())
}

/// Whether everything of an `external_id` was erased once. What it connected later is not.
///
/// # Errors
/// [`Error::Database`].
pub fn is_erased_user(tx: &Tx<'_>, external_id: &str) -> Result<bool, Error> {
    has(tx, Kind::ExternalId, external_id)
}

/// When everything of an `external_id` was erased last, if it was.
///
/// # Errors
/// [`Error::Database`].
pub fn user_erased_at(tx: &Tx<'_>, external_id: &str) -> Result<Option<Timestamp>, Error> {
    erased_at(tx, Kind::ExternalId, external_id)
}

fn has(tx: &Tx<'_>, kind: Kind, name: &str) -> Result<bool, Error> {
    Ok(erased_at(tx, kind, name)?.is_some())
}

fn erased_at(tx: &Tx<'_>, kind: Kind, name: &str) -> Result<Option<Timestamp>, Error> {
    let Some(salt) = salt::held(tx, SALT)? else { return Ok(None) };
    let hash = hash_of(&salt, kind, name);
    let sql = "SELECT erased_at FROM tombstones WHERE kind = $1 AND hash = $2";
    tx.one(sql, args![kind.name(), &hash], |row| row.at(0))
}

/// Whether a link that was erased is named anywhere in `text`.
///
/// # Errors
/// [`Error::Database`].
pub fn are_named_in(tx: &Tx<'_>, text: &[u8]) -> Result<bool, Error> {
    for link_id in LinkId::all_in(text) {
        if is_erased(tx, &link_id)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Notes that `name` is erased, and gives its tombstone.
///
/// # Errors
/// [`Error::Database`].
pub fn bury(tx: &Tx<'_>, kind: Kind, name: &str, at: Timestamp) -> Result<Tombstone, Error> {
    let salt = salt::made(tx, SALT)?;
    let tombstone = Tombstone { kind, hash: hash_of(&salt, kind, name), erased_at: at.as_micros() };
    insert(tx, &tombstone)?;
    Ok(tombstone)
}

fn insert(tx: &Tx<'_>, tombstone: &Tombstone) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO tombstones (kind, hash, erased_at) VALUES ($1, $2, $3) \
         ON CONFLICT (kind, hash) DO UPDATE SET erased_at = max(tombstones.erased_at, excluded.erased_at)",
        args![tombstone.kind.name(), &tombstone.hash, tombstone.erased_at],
    )
    .map(drop)
}

fn hash_of(salt: &str, kind: Kind, name: &str) -> String {
    salt::hash(salt, &format!("{}:{name}", kind.name()))
}

/// Keeps of two times of one name the later one, both in microseconds since 1970.
pub(crate) fn note_latest<K: Ord>(latest: &mut BTreeMap<K, i64>, name: K, at: i64) {
    let held = latest.entry(name).or_insert(at);
    *held = at.max(*held);
}

/// Where the tombstones of the state at `state` are kept outside of it.
pub fn file_of(state: &Path) -> PathBuf {
    state.with_file_name(FILE)
}

/// Where the tombstones that came after the backup `backup` are kept beside it.
pub fn file_of_backup(backup: &Path) -> PathBuf {
    backup.with_added_extension("tombstones")
}

impl Tombstones {
    /// Those of the state; `None` when nothing was ever erased.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn of(tx: &Tx<'_>) -> Result<Option<Self>, Error> {
        let Some(salt) = salt::held(tx, SALT)? else { return Ok(None) };
        let all = tx.all("SELECT kind, hash, erased_at FROM tombstones", args![], |row| {
            Ok(Tombstone { kind: Kind::by_name(row.str(0)?)?, hash: row.text(1)?, erased_at: row.int(2)? })
        })?;
        Ok(Some(Self::under(salt, all)))
    }

    fn under(salt: String, all: Vec<Tombstone>) -> Self {
        let all = all.into_iter().map(|Tombstone { kind, hash, erased_at }| ((kind, hash), erased_at));
        Self { salt, all: all.collect() }
    }

    fn iter(&self) -> impl Iterator<Item = Tombstone> {
        self.all.iter().map(|((kind, hash), &erased_at)| Tombstone { kind: *kind, hash: hash.clone(), erased_at })
    }

    /// Adds these to the state; false when the state has others under another salt, so that they are of another state.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub fn keep(&self, tx: &Tx<'_>) -> Result<bool, Error> {
        match salt::held(tx, SALT)? {
            Some(salt) if salt != self.salt => return Ok(false),
            Some(_) => {}
            None => salt::keep(tx, SALT, &self.salt)?,
        }
        self.iter().try_for_each(|tombstone| insert(tx, &tombstone)).map(|()| true)
    }

    /// When `name` was erased, if it was, in microseconds since 1970.
    pub fn erased_at(&self, kind: Kind, name: &str) -> Option<i64> {
        self.all.get(&(kind, hash_of(&self.salt, kind, name))).copied()
    }

    /// Whether each of `others` is here, as late or later.
    fn has_all(&self, others: &Self) -> bool {
        self.salt == others.salt
            && others.all.iter().all(|(name, erased_at)| self.all.get(name).is_some_and(|held| held >= erased_at))
    }

    /// Whether there is one of this kind.
    pub fn has(&self, kind: Kind) -> bool {
        self.all.keys().any(|(held, _)| *held == kind)
    }

    /// The tombstones in the file at `path`; `None` when there is no file.
    ///
    /// # Errors
    /// [`FileError::Damaged`], [`FileError::File`].
    pub fn read(path: &Path) -> Result<Option<Self>, FileError> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(FileError::at(path))?,
        };
        Self::parse(&text).map(Some).map_err(|_| FileError::Damaged(path.to_owned()))
    }

    /// Whether those in the file at `path` are of the state that has `held`.
    ///
    /// # Errors
    /// [`FileError::Foreign`].
    pub fn are_of_one(path: &Path, there: Option<&Self>, held: Option<&Self>) -> Result<(), FileError> {
        let is_foreign = there.zip(held).is_some_and(|(there, held)| there.salt != held.salt);
        if is_foreign { Err(FileError::Foreign(path.to_owned())) } else { Ok(()) }
    }

    fn parse(text: &[u8]) -> serde_json::Result<Self> {
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let head: Head = serde_json::from_slice(lines.next().unwrap_or_default())?;
        let all = lines.map(serde_json::from_slice).collect::<Result<_, _>>()?;
        Ok(Self::under(head.salt, all))
    }

    /// Writes the file at `path` anew, durably, for its owner alone. What it says that is not here stays in it.
    ///
    /// # Errors
    /// [`FileError::Foreign`], [`FileError::Damaged`] when something else is there, [`FileError::File`]; the file is
    /// then as it was.
    pub fn write(&self, path: &Path) -> Result<(), FileError> {
        let there = Self::read(path)?;
        Self::are_of_one(path, there.as_ref(), Some(self))?;
        let mut whole = self.clone();
        for (name, erased_at) in there.into_iter().flat_map(|there| there.all) {
            note_latest(&mut whole.all, name, erased_at);
        }
        whole.replace(path).map_err(FileError::at(path))
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string(&Head { salt: self.salt.clone() })? + "\n";
        for tombstone in self.iter() {
            text += &serde_json::to_string(&tombstone)?;
            text.push('\n');
        }
        durable::replace(path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    #[tokio::test]
    async fn a_state_that_knows_nothing_learns_it_from_the_file_and_the_file_names_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let link: LinkId = LINK.parse().unwrap();
        let id = link.clone();
        assert!(!store.read(move |tx| is_erased(tx, &id)).await.unwrap());
        store.write(|tx| bury(tx, Kind::Link, LINK, Timestamp::from_micros(7)).map(drop)).await.unwrap();
        let id = link.clone();
        assert!(store.read(move |tx| is_erased(tx, &id)).await.unwrap());
        for (text, is_named) in [
            (format!("-{LINK}"), true),
            (format!("{{\"about\":\"{}\"}}", LINK.to_uppercase()), true),
            (LINK[..35].to_owned(), false),
            (LINK.replace('2', "3"), false),
        ] {
            assert_eq!(store.read(move |tx| are_named_in(tx, text.as_bytes())).await.unwrap(), is_named);
        }
        let file = file_of(&folder.path().join("state.db"));
        let tombstones = store.read(Tombstones::of).await.unwrap().unwrap();
        tombstones.write(&file).unwrap();
        assert!(!fs::read_to_string(&file).unwrap().contains(&LINK[..8]));

        let other = Store::open(&folder.path().join("other/state.db")).unwrap();
        let read = Tombstones::read(&file).unwrap().unwrap();
        assert_eq!(read, tombstones);
        assert_eq!((read.erased_at(Kind::Link, LINK), read.erased_at(Kind::Person, LINK)), (Some(7), None));
        assert!(other.write(move |tx| read.keep(tx)).await.unwrap());
        assert!(other.read(move |tx| is_erased(tx, &link)).await.unwrap());
    }

    #[tokio::test]
    async fn what_only_the_file_knows_is_unknown_to_the_state_and_nobody_elses_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let bury_in = |store: &Store, at: i64| {
            let store = store.clone();
            async move {
                store.write(move |tx| bury(tx, Kind::Link, LINK, Timestamp::from_micros(at)).map(drop)).await.unwrap();
                store.read(Tombstones::of).await.unwrap().unwrap()
            }
        };
        let old = Store::open(&path("old.db")).unwrap();
        let file = file_of(&path("old.db"));
        bury_in(&old, 7).await.write(&file).unwrap();

        let new = Store::open(&path("new.db")).unwrap();
        let (from, there) = unknown(&new, &path("new.db")).await.unwrap().expect("it knows of nobody");
        assert_eq!((from, there.erased_at(Kind::Link, LINK)), (file.clone(), Some(7)));
        assert!(new.write(move |tx| there.keep(tx)).await.unwrap());
        bury_in(&new, 8).await.write(&file).unwrap();
        // An older state that was put back does not know what came since; one that knows more does not learn less.
        let (_, there) = unknown(&old, &path("old.db")).await.unwrap().expect("it was erased once more");
        assert_eq!(there.erased_at(Kind::Link, LINK), Some(8));
        let known = bury_in(&old, 9).await;
        assert_eq!(unknown(&old, &path("old.db")).await.unwrap(), None);
        assert_eq!(Tombstones::read(&file).unwrap(), Some(known.clone()), "what the file has lost is put back");
        Tombstones { all: BTreeMap::new(), ..known.clone() }.write(&file).unwrap();
        assert_eq!(Tombstones::read(&file).unwrap(), Some(known.clone()), "whoever knows less takes nothing out");

        let before = fs::read(&file).unwrap();
        let other = Store::open(&path("other.db")).unwrap();
        let foreign = bury_in(&other, 9).await;
        let (_, there) = unknown(&other, &path("other.db")).await.unwrap().expect("it is another's");
        assert!(!other.write(move |tx| there.keep(tx)).await.unwrap());
        assert_eq!(foreign.write(&file).unwrap_err().code(), "foreign_tombstones");
        assert_eq!(fs::read(&file).unwrap(), before);
        fs::write(&file, &before[..before.len() - 9]).unwrap();
        assert_eq!(known.write(&file).unwrap_err().code(), "tombstones_damaged");
        let third = Store::open(&path("third.db")).unwrap();
        assert_eq!(unknown(&third, &path("third.db")).await.unwrap_err().code(), "tombstones_damaged");
    }
}
