//! The state database: one file, one writer, and transactions that many callers share.
//!
//! *Takes* closures that read or write. *Gives* their results; a write's only after the disk has it. *Promises* that an
//! acknowledged write survives a power cut (`synchronous=FULL`), that one caller's failure does not touch another's
//! write in the same transaction (a savepoint each), and that one process at a time owns the state. *Not here*: any
//! table's meaning. The SQL stands in the modules that need it.
//!
//! How many writes share one sync is decided in `store/writer.rs`. The SQL is the part of the language that SQLite and
//! PostgreSQL share, with `$1` for values, and reaches the driver through [`Tx`] alone.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use rustix::fs::statvfs;
use tokio::runtime;
use tokio::sync::{mpsc, watch};

use crate::config;

mod checkpoint;
mod copy;
mod error;
mod keys;
mod migrations;
mod plain;
mod scrub;
mod sql;
mod writer;

pub use copy::{copy, replace};
pub use error::{DAMAGED, DISK_FULL, Error, FAILED, unless_damaged};
pub use keys::{FrozenPlace, KeyOf, MasterKeys, VersionPlace, WebhookPlace};
pub use scrub::{Scrubbed, Traces};
pub use sql::{Cell, Row, Tx, Value, page};
pub use writer::FollowUp;

pub(crate) use sql::args;

use checkpoint::Checkpoints;
use writer::{Shared, Waiting, Write, Writer};

/// Writes that may wait for the writer; one more is refused by [`Store::append`].
const WAITING_WRITES: usize = 8192;

/// How long the writer waits for a process outside that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);

/// Pages of the state that the writer keeps in memory: ids come in no order, so that each write touches many.
const CACHE_KIB: i64 = 16 << 10;

/// With less free space than this the disk is full, in bytes: a commit of many webhooks takes about as much.
const ROOM: u64 = 1 << 20;

/// Rows that work of many transactions writes in each, so that webhooks between two of them are not kept waiting.
pub const ROWS_AT_ONCE: usize = 500;

/// SQLite's `synchronous` setting: a commit returns only once the data is on the disk.
pub const SYNCHRONOUS: &str = "FULL";

/// The first SQLite without the loss of committed WAL data that reliability depends on.
const OLDEST_SOUND_SQLITE: i32 = 3_051_003;

/// The open state. Cheap to clone; the last clone to go ends the writer and frees the state for others.
#[derive(Clone)]
pub struct Store {
    writer: mpsc::Sender<Box<dyn Write>>,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    _owner: Arc<Ownership>,
}

impl Store {
    /// Opens the state at `path`, makes or migrates it, and owns it until the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::Held`], [`Error::Newer`], [`Error::Folder`], or [`Error::Database`] when the file is damaged.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, None)
    }

    /// Opens the state of a configuration.
    ///
    /// # Errors
    /// Those of [`Store::open_with`].
    pub fn configured(settings: &config::State) -> Result<Self, Error> {
        Self::open_with(&settings.path, MasterKeys::of(settings))
    }

    /// Like [`Store::open`], with the keys of what the state keeps encrypted.
    ///
    /// # Errors
    /// Those of [`Store::open`]; [`Error::KeyMissing`] or [`Error::KeyWrong`] when the keys are not those of the state.
    pub fn open_with(path: &Path, keys: Option<MasterKeys>) -> Result<Self, Error> {
        let ownership = Arc::new(Ownership::take(path)?);
        if fs::metadata(path).is_ok_and(|state| state.len() > 0) {
            // A reader does not even move the log into the file.
            let reader = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            reader.busy_timeout(BUSY_TIMEOUT)?;
            keys::check(&reader, keys.as_ref())?;
        }
        let mut connection = connect(path)?;
        migrations::run(&mut connection, path)?;
        if let Some(keys) = &keys {
            keys::bring_under(&mut connection, keys)?;
        }
        // Tells this state from another one that is put in its place.
        connection.execute(
            "INSERT INTO meta (name, value) VALUES ('state_id', $1) ON CONFLICT (name) DO NOTHING",
            [format!("{:032x}", rand::random::<u128>())],
        )?;
        let (writer, waiting) = mpsc::channel(WAITING_WRITES);
        let checkpoints = Checkpoints::start(path, Arc::clone(&ownership)).map_err(Error::Thread)?;
        let runtime = runtime::Builder::new_current_thread().enable_time().build().map_err(Error::Thread)?;
        let shared = Arc::new(Shared::default());
        let state_writer = Writer {
            connection: Some(connection),
            path: path.to_owned(),
            keys: keys.clone(),
            checkpoints,
            shared: Arc::clone(&shared),
        };
        let owner = Arc::clone(&ownership);
        let thread = std::thread::Builder::new().name("state-writer".into()).spawn(move || {
            state_writer.run(waiting, &runtime);
            drop(owner);
        });
        thread.map_err(Error::Thread)?;
        Ok(Self { writer, shared, readers: Arc::new(Readers::with_keys(path, keys)), _owner: ownership })
    }

    /// Follows up by `follow_up` what [`Store::append`] keeps, from now on, and what earlier processes left; ends once
    /// that is durable. What was set first stays.
    ///
    /// # Errors
    /// Those of [`Store::write`].
    pub async fn follow_up_by(&self, follow_up: FollowUp) -> Result<(), Error> {
        let follow_up = *self.shared.follow_up.get_or_init(|| follow_up);
        self.write(move |tx| {
            while follow_up(tx, writer::PART)? > 0 {}
            Ok(())
        })
        .await
    }

    /// Told of each commit in which appended rows were followed up.
    pub fn followed_up(&self) -> watch::Receiver<()> {
        self.shared.followed_up.subscribe()
    }

    /// Runs `work` in a transaction and gives its result once the disk has it. When `work` fails, or the commit does,
    /// nothing of it is kept.
    ///
    /// # Errors
    /// What `work` gave; [`Error::NotDurable`] when the commit failed; [`Error::Closed`] at the end.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.attempt(work).await
    }

    /// Like [`Store::write`], for work that may also fail for reasons of its own.
    ///
    /// # Errors
    /// Those of [`Store::write`].
    pub async fn attempt<T: Send + 'static, E: From<Error> + Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let (write, result) = Waiting::writing(work);
        self.writer.send(write).await.map_err(|_| Error::Closed)?;
        result.await.map_err(|_| Error::Closed)?
    }

    /// Like [`Store::write`], for threads that may block: not for an async one.
    ///
    /// # Errors
    /// Those of [`Store::write`].
    ///
    /// # Panics
    /// On a thread that runs async tasks.
    pub fn write_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (write, result) = Waiting::writing(work);
        self.writer.blocking_send(write).map_err(|_| Error::Closed)?;
        result.blocking_recv().map_err(|_| Error::Closed)?
    }

    /// Keeps a row for later: `work` does no more than to append it, and what follows from it is done by whom
    /// [`Store::follow_up_by`] named, before any other write sees the state, and soon in any case. Gives the result of
    /// `work` once the disk has the row. Refuses at once when too many writes are waiting.
    ///
    /// # Errors
    /// [`Error::Overloaded`], and those of [`Store::write`].
    pub async fn append<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (write, result) = Waiting::appending(work);
        self.writer.try_send(write).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::Closed,
        })?;
        result.await.map_err(|_| Error::Closed)?
    }

    /// Runs `work` on one consistent view of everything committed so far, away from the async threads.
    ///
    /// # Errors
    /// What `work` gave, or [`Error::Database`].
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let readers = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || readers.read(work)).await.map_err(|_| Error::Closed)?
    }

    /// Whether a write has met a damaged page since the state was opened.
    pub fn is_damaged(&self) -> bool {
        self.shared.is_damaged.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether the disk of the state has room for another commit.
    pub fn has_room(&self) -> bool {
        let folder = self.readers.path.parent().unwrap_or(Path::new("."));
        free_space(folder).is_ok_and(|free| free >= ROOM)
    }

    /// What stands in the way of the next write, although the last one may have gone well.
    pub fn impediment(&self) -> Option<&'static str> {
        if self.is_damaged() { Some(DAMAGED) } else { (!self.has_room()).then_some(DISK_FULL) }
    }

    /// A reader for threads that may block, such as the publisher's.
    pub fn readers(&self) -> Arc<Readers> {
        Arc::clone(&self.readers)
    }
}

/// Read-only connections, opened as needed and kept for the next read.
pub struct Readers {
    path: PathBuf,
    keys: Option<MasterKeys>,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    /// Readers of the state at `path`, also while another process owns it.
    pub fn of(path: &Path) -> Self {
        Self::with_keys(path, None)
    }

    /// Readers of the state of a configuration.
    pub fn configured(settings: &config::State) -> Self {
        Self::with_keys(&settings.path, MasterKeys::of(settings))
    }

    /// Like [`Readers::of`], for those who also read what is kept encrypted.
    pub fn with_keys(path: &Path, keys: Option<MasterKeys>) -> Self {
        Self { path: path.to_owned(), keys, idle: Mutex::default() }
    }

    /// Runs `work` on one consistent view of everything committed so far. Blocks.
    ///
    /// # Errors
    /// What `work` gave; [`Error::Missing`] when there is no state; [`Error::Database`].
    pub fn read<T, E: From<Error>>(&self, work: impl FnOnce(&Tx<'_>) -> Result<T, E>) -> Result<T, E> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred).map_err(Error::from)?;
        let result = work(&Tx::new(&transaction, self.keys.as_ref()));
        transaction.finish().map_err(Error::from)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        result
    }

    fn connect(&self) -> Result<Connection, Error> {
        find(&self.path)?;
        let connection = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        prepare(&connection)?;
        migrations::check(&connection, &self.path)?;
        if self.keys.is_some() {
            keys::check(&connection, self.keys.as_ref())?;
        }
        Ok(connection)
    }
}

/// Looks for the state at `path`. It is not opened for that: closing it would take away the locks of others in this
/// process.
///
/// # Errors
/// [`Error::Missing`] when there is none, [`Error::Folder`] when this user may not read it.
fn find(path: &Path) -> Result<(), Error> {
    use rustix::fs::{Access, access};
    use rustix::io::Errno;

    match access(path, Access::READ_OK) {
        Ok(()) => Ok(()),
        Err(Errno::NOENT) => Err(Error::Missing(path.to_owned())),
        Err(error) => Err(Error::Folder { path: path.to_owned(), source: error.into() }),
    }
}

/// The lock beside a file that one process at a time may use, held as long as this lives. The kernel frees it with the
/// process, so that a crash leaves none behind.
#[derive(Debug)]
pub struct Ownership {
    _file: File,
}

impl Ownership {
    /// Takes the lock beside the file at `path`, whose folder is made when it is not there.
    ///
    /// # Errors
    /// [`Error::Held`], [`Error::Folder`].
    pub fn take(path: &Path) -> Result<Self, Error> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let unusable = |source| Error::Folder { path: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path.with_added_extension("lock"))
            .map_err(unusable)?;
        // Whoever asks for the holder has the lock for a moment.
        let mut looks = 0;
        while file.try_lock().is_err() {
            looks += 1;
            if looks < 10 {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
            return Err(Error::Held { path: path.to_owned(), pid });
        }
        file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

/// Process id of the instance that owns the state at `path`, as it wrote it; `None` when nobody does.
pub fn holder(path: &Path) -> Option<String> {
    let mut file = File::open(path.with_added_extension("lock")).ok()?;
    if file.try_lock_shared().is_ok() {
        return None;
    }
    let mut pid = String::new();
    file.read_to_string(&mut pid).ok()?;
    Some(pid.trim().to_owned())
}

/// Bytes that are free for this user on the disk of `folder`.
///
/// # Errors
/// The system's.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let disk = statvfs(folder)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// What writers and readers have in common.
fn prepare(connection: &Connection) -> Result<(), Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    // Else SQLite looks at some values to plan a query, `LIMIT $1` among them, and plans a kept statement anew for
    // each.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, Error> {
    assert!(rusqlite::version_number() >= OLDEST_SOUND_SQLITE, "linked against an SQLite that can lose commits");
    // Made here, and not by SQLite, so that its mode is right from the first byte. One that is there is not even
    // opened: see `plain`.
    match File::options().create_new(true).write(true).mode(0o600).open(path) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::Folder { path: path.to_owned(), source });
        }
        _ => {}
    }
    let connection = Connection::open(path)?;
    prepare(&connection)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", SYNCHRONOUS)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // What is deleted is overwritten: it may be somebody's.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    connection.pragma_update(None, "wal_autocheckpoint", checkpoint::PAGES_AT_MOST)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn a_write_is_seen_by_the_next_read() {
        let (_folder, store) = open();
        store
            .write(|tx| tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args!["colour", "blue"]))
            .await
            .unwrap();
        let value = store
            .read(|tx| tx.one("SELECT value FROM meta WHERE name = $1", args!["colour"], |row| row.text(0)))
            .await
            .unwrap();
        assert_eq!(value.as_deref(), Some("blue"));
    }

    #[tokio::test]
    async fn a_value_goes_to_its_number_wherever_the_statement_names_it() {
        let (_folder, store) = open();
        let changed = store
            .write(|tx| {
                tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args!["colour", "blue"])?;
                tx.execute("UPDATE meta SET value = $2 || $2 || $3 WHERE name = $1", args!["colour", "red", "!"])
            })
            .await
            .unwrap();
        assert_eq!(changed, 1);
        let value = store
            .read(|tx| {
                tx.one("SELECT value FROM meta WHERE value <> $2 AND name = $1", args!["colour", "blue"], |row| {
                    row.text(0)
                })
            })
            .await;
        assert_eq!(value.unwrap().as_deref(), Some("redred!"));
    }

    #[tokio::test]
    async fn a_failing_write_leaves_nothing_and_harms_nobody_in_the_same_commit() {
        let (_folder, store) = open();
        let failing = store.write(|tx| {
            tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args!["half", "done"])?;
            Err::<(), _>(Error::Unreadable("a test"))
        });
        let other =
            store.write(|tx| tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args!["whole", "done"]));
        let (failing, other) = tokio::join!(failing, other);
        assert!(matches!(failing, Err(Error::Unreadable("a test"))));
        assert_eq!(other.unwrap(), 1);
        let names = store
            .read(|tx| tx.all("SELECT name FROM meta WHERE value = 'done'", args![], |row| row.text(0)))
            .await
            .unwrap();
        assert_eq!(names, ["whole"]);
    }

    #[tokio::test]
    async fn a_second_instance_is_told_who_holds_the_state() {
        let (folder, store) = open();
        let path = folder.path().join("state.db");
        let refused = Store::open(&path).err().unwrap();
        assert_eq!(refused.code(), "state_held");
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        drop(store);
    }

    #[test]
    fn a_state_that_is_not_there_is_told_from_one_that_cannot_be_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        for (path, code) in [(folder.path().join("state.db"), "state_missing"), (file.join("state.db"), "state_folder")]
        {
            let read = Readers::of(&path).read(|_| Ok::<_, Error>(()));
            assert_eq!(read.unwrap_err().code(), code);
            assert_eq!(copy(&path, &folder.path().join("copy")).unwrap_err().code(), code);
        }
    }

    #[test]
    fn the_state_folder_and_file_are_for_their_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("var/state.db");
        let _store = Store::open(&path).unwrap();
        assert_eq!(fs::metadata(folder.path().join("var")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
