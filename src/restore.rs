//! A backup in the place of the state, without whoever was erased since.
//!
//! *Takes* a backup, and the tombstones beside it and beside the state. *Gives* the state that it holds. *Promises*
//! that the state is as it was until the whole of the other one is ready, that nobody comes back who was erased, and
//! that an erasure which was begun goes on at the next start. *Not here*: the lake, which is built anew from the
//! restored state.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::backup::{self, End};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::durable;
use crate::erase::{self, Again, Begun, erase_again};
use crate::publish::BuiltFrom;
use crate::sensitive::Pepper;
use crate::store::{self, Ownership, Readers, Store, Traces, Tx};
use crate::tombstones::{self, FileError, Tombstones};
use crate::webhook;

/// Why a backup was not put back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error(
        "there is no backup {0}: look at the spelling; the job `backup` puts its own into the folder backups beside the state"
    )]
    Missing(PathBuf),
    /// The backup is none, or cannot be read.
    #[error(transparent)]
    Backup(#[from] backup::Error),
    /// It cannot be known who was erased.
    #[error(transparent)]
    Tombstones(FileError),
    /// Who was erased could not be erased again.
    #[error(transparent)]
    Erase(#[from] erase::Error),
    /// The state refused.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "no_such_backup",
            Self::Backup(error) => error.code(),
            Self::Tombstones(error) => error.code(),
            Self::Erase(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| backup::Error::File { path: path.to_owned(), source }.into()
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Foreign(_) | FileError::Damaged(_) => Self::Tombstones(error),
            other => Self::Backup(other.into()),
        }
    }
}

/// What a restored state came to.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// When the backup was made, RFC 3339.
    pub made_at: String,
    /// The state that it holds.
    #[serde(flatten)]
    pub state: BuiltFrom,
    /// Links that were in it and had been erased since, and are gone again.
    pub erased_again: usize,
}

/// Puts the backup `from` in the place of the state of `config`, without whoever was erased since. Blocks.
///
/// # Errors
/// [`Error::Backup`], [`Error::Tombstones`]; [`Error::Store`] when somebody holds the state or the key is another.
/// Then the state is as it was.
pub async fn restore(config: &Config, from: &Path, now: Timestamp) -> Result<Restored, Error> {
    let end = backup::check(from).map_err(|error| match error {
        backup::Error::File { path, source } if source.kind() == io::ErrorKind::NotFound => Error::Missing(path),
        other => other.into(),
    })?;
    let state = &config.state.path;
    // From the start on, so that nobody works on what is replaced, or takes what is made here for left behind.
    let owner = Ownership::take(state)?;
    // One that was killed may have left a log, whose pages would become part of this one.
    clear_left_over(state);
    let fresh = fresh_of(state);
    let restored = restore_into(config, from, &fresh, &end, now).await;
    let restored = restored.and_then(|erased_again| {
        store::replace(state, &owner, &fresh)?;
        Ok(erased_again)
    });
    clear_left_over(state);
    let erased_again = restored?;
    if let Some(tombstones) = Readers::of(state).read(Tombstones::of)? {
        let file = tombstones::file_of(state);
        tombstones.write(&file)?;
    }
    // Whoever is erased from now on is in it, too.
    backup::note_restored(state, from, end.clone())?;
    Ok(Restored { made_at: end.made_at, state: end.state, erased_again })
}

/// Where the state that takes the place of the one at `state` is made.
fn fresh_of(state: &Path) -> PathBuf {
    state.with_added_extension("restoring")
}

/// Removes what a restore that was killed left beside `state`, which is a whole state, and no erasure would find it.
/// For whoever owns `state`: a restore does as long as it lasts.
pub fn clear_left_over(state: &Path) {
    for suffix in ["", "-wal", "-shm", "-journal", ".lock"] {
        let mut name = fresh_of(state).into_os_string();
        name.push(suffix);
        let _ = fs::remove_file(name);
    }
}

/// Copies the backup to `fresh`, and erases there whom the tombstones name. Gives the number of their links.
async fn restore_into(config: &Config, from: &Path, fresh: &Path, end: &End, now: Timestamp) -> Result<usize, Error> {
    let copied = durable::private(fresh).and_then(|mut to| {
        let mut content = File::open(from)?.take(end.bytes);
        io::copy(&mut content, &mut to)?;
        to.sync_all()
    });
    copied.map_err(Error::at(fresh))?;
    let mut known = Vec::new();
    for file in [tombstones::file_of(&config.state.path), tombstones::file_of_backup(from)] {
        if let Some(tombstones) = Tombstones::read(&file)? {
            known.push((file, tombstones));
        }
    }
    // The state that is replaced knows them too, and what of it is not done, unless it is the reason for this.
    let replaced = Readers::of(&config.state.path);
    if let Ok(Some(tombstones)) = replaced.read(Tombstones::of) {
        known.push((config.state.path.clone(), tombstones));
    }
    let begun = replaced.read(Begun::all).unwrap_or_default();
    let store = Store::open_with(fresh, store::MasterKeys::of(&config.state))?;
    // Whom a webhook names is looked for in its row.
    store.follow_up_by(webhook::follow_up).await?;
    let pepper = config.pii.pepper.clone().map(Pepper::new);
    let erase = move |tx: &Tx<'_>| {
        begun.iter().try_for_each(|erasure| erasure.keep(tx))?;
        erase_again(tx, known, pepper.as_ref(), now)
    };
    let erased = match store.attempt(erase).await {
        Ok(Again { links, erasure: None }) => Ok(links),
        // Whose traces they are is not known here: the file is written anew.
        Ok(Again { links, .. }) => store.scrub(Traces::default()).await.map(|_| links).map_err(Error::from),
        Err(error) => Err(error.into()),
    };
    // Nothing may be open when the file is moved.
    tokio::task::spawn_blocking(move || store.close()).await.map_err(|_| store::Error::Closed)?;
    erased
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Needs;
    use crate::store::args;
    use crate::tombstones::Kind;

    fn config_of(state: &Path) -> Config {
        let url = format!("sqlite://{}", state.display());
        Config::load(None, [], &[("state.url", url.as_str())], Needs { belvo: false, webhook: false }).unwrap()
    }

    #[tokio::test]
    async fn a_user_who_was_erased_and_had_never_connected_does_not_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let config = config_of(&path);
        let store = Store::open(&path).unwrap();
        let fill = |tx: &Tx<'_>| {
            let session = "INSERT INTO widget_sessions (external_id, asked_at) VALUES ($1, 7)";
            ["user-1", "user-2"].iter().try_for_each(|user| tx.execute(session, args![*user]).map(drop))?;
            let webhook = "INSERT INTO webhooks (received_at, outcome, body) VALUES (7, 'quarantined', $1)";
            ["user-1", "user-3", "user-4"].iter().try_for_each(|user| {
                let body = format!("{{\"external_id\":\"{user}\"}}");
                tx.execute(webhook, args![body.as_bytes()]).map(drop)
            })
        };
        store.write(fill).await.unwrap();
        let backup = folder.path().join("a.backup");
        backup::make(&config.state, &backup, Timestamp::from_micros(8)).unwrap();
        let bury = |tx: &Tx<'_>| {
            ["user-1", "user-3"]
                .iter()
                .try_for_each(|user| tombstones::bury(tx, Kind::ExternalId, user, Timestamp::from_micros(9)).map(drop))
        };
        store.write(bury).await.unwrap();
        let erased = store.read(Tombstones::of).await.unwrap().unwrap();
        erased.write(&tombstones::file_of(&path)).unwrap();
        store.close();
        restore(&config, &backup, Timestamp::from_micros(10)).await.unwrap();
        let counts = "SELECT (SELECT group_concat(external_id) FROM widget_sessions), (SELECT count(*) FROM webhooks)";
        let left = Readers::of(&path)
            .read::<_, store::Error>(|tx| tx.one(counts, args![], |row| Ok((row.text(0)?, row.int(1)?))));
        assert_eq!(left.unwrap(), Some(("user-2".to_owned(), 1)));
    }

    #[test]
    fn what_a_killed_restore_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let names = ["state.db", "state.db.lock", "state.db-wal"];
        let left =
            ["state.db.restoring", "state.db.restoring-wal", "state.db.restoring-shm", "state.db.restoring.lock"];
        for name in names.iter().chain(&left) {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        clear_left_over(&path);
        let mut found: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort_unstable();
        assert_eq!(found, ["state.db", "state.db-wal", "state.db.lock"]);
    }

    #[tokio::test]
    async fn a_backup_that_is_not_there_is_told_with_where_to_look() {
        let folder = tempfile::tempdir().unwrap();
        let config = config_of(&folder.path().join("state.db"));
        let error = restore(&config, Path::new("nofile"), Timestamp::from_micros(0)).await.unwrap_err();
        assert!(error.to_string().starts_with("there is no backup nofile: look at"), "{error}");
    }

    #[tokio::test]
    async fn what_a_killed_restore_left_becomes_part_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let config = config_of(&path);
        let store = Store::open(&path).unwrap();
        let insert = "INSERT INTO meta (name, value) VALUES ('kept', 'yes')";
        store.write(|tx| tx.execute(insert, args![])).await.unwrap();
        let backup = folder.path().join("a.backup");
        backup::make(&config.state, &backup, Timestamp::from_micros(0)).unwrap();
        drop(store);
        while store::holder(&path).is_some() {
            tokio::task::yield_now().await;
        }

        let other = rusqlite::Connection::open(folder.path().join("other.db")).unwrap();
        other.pragma_update(None, "journal_mode", "WAL").unwrap();
        other.execute_batch("CREATE TABLE other (x TEXT); INSERT INTO other VALUES ('y')").unwrap();
        fs::copy(folder.path().join("other.db-wal"), folder.path().join("state.db.restoring-wal")).unwrap();
        restore(&config, &backup, Timestamp::from_micros(0)).await.unwrap();
        let kept = "SELECT value FROM meta WHERE name = 'kept'";
        let kept = Readers::of(&path).read::<_, store::Error>(|tx| tx.one(kept, args![], |row| row.text(0)));
        assert_eq!(kept.unwrap().as_deref(), Some("yes"));
    }

    #[tokio::test]
    async fn what_the_replaced_state_had_begun_to_erase_goes_on_in_the_restored_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let config = config_of(&path);
        let store = Store::open(&path).unwrap();
        let links = [1, 2].map(|digit| format!("00000000-0000-4000-8000-00000000000{digit}"));
        let gone = links[0].clone();
        let fill = move |tx: &Tx<'_>| {
            let sql = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, 0, 0)";
            links.iter().try_for_each(|link| tx.execute(sql, args![link]).map(drop))
        };
        store.write(fill).await.unwrap();
        let backup = folder.path().join("a.backup");
        backup::make(&config.state, &backup, Timestamp::from_micros(8)).unwrap();
        let erase = move |tx: &Tx<'_>| {
            tombstones::bury(tx, Kind::Link, &gone, Timestamp::from_micros(9))?;
            let begun = "INSERT INTO erasures VALUES ($1, 9, 'link', 'ticket 1', $2, $3, '{}')";
            [("1", "removed", None), ("2", "asked", Some("{}")), ("3", "done", None)]
                .into_iter()
                .try_for_each(|(id, step, plan)| tx.execute(begun, args![id, step, plan]).map(drop))
        };
        store.write(erase).await.unwrap();
        store.close();
        let restored = restore(&config, &backup, Timestamp::from_micros(10)).await.unwrap();
        assert_eq!(restored.erased_again, 1);
        let begun = "SELECT step || ' ' || reason FROM erasures ORDER BY asked_at, erasure";
        let begun = Readers::of(&path).read::<_, store::Error>(|tx| tx.all(begun, args![], |row| row.text(0)));
        let again = "removed the tombstones beside this state name what it held";
        assert_eq!(begun.unwrap(), ["removed ticket 1", "asked ticket 1", again], "older snapshots are to follow");
    }
}
