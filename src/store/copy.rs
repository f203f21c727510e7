//! A consistent copy of the state, and another state in its place.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rusqlite::OpenFlags;

use super::{Connection, Error, Ownership, Store, connect, scrub};
use crate::durable;

/// Between two looks whether a closed store's threads have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Writes what is committed in the state at `path` now into the empty file `to`, without its log and its unused pages,
/// while others go on writing. Blocks.
///
/// # Errors
/// [`Error::Missing`], [`Error::Database`].
pub fn copy(path: &Path, to: &Path) -> Result<(), Error> {
    super::find(path)?;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(super::BUSY_TIMEOUT)?;
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    Ok(())
}

/// Puts the state in the file `fresh` in the place of the one at `path`, by a rename; nobody else may have it open,
/// which its owner says by giving the lock. Blocks.
///
/// # Errors
/// [`Error::Folder`]; then it is as it was.
pub fn replace(path: &Path, _owner: &Ownership, fresh: &Path) -> Result<(), Error> {
    if path.exists()
        && let Ok(connection) = connect(path)
    {
        // A state that is damaged cannot be brought in order first, and is replaced because of it.
        let _ = scrub::empty_log(&connection);
    }
    let replaced =
        ["-wal", "-shm"].into_iter().try_for_each(|suffix| match fs::remove_file(scrub::beside(path, suffix)) {
            // The log of one state must not be read into another.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
    replaced
        .and_then(|()| durable::sync(fresh))
        .and_then(|()| fs::rename(fresh, path))
        .and_then(|()| durable::sync_folder_of(path))
        .map_err(|source| Error::Folder { path: path.to_owned(), source })
}

impl Store {
    /// Ends the writer and waits until every file is closed. Blocks; other clones keep it from ending.
    pub fn close(self) {
        let path = self.readers.path.clone();
        drop(self);
        while super::holder(&path).is_some() {
            sleep(LOOK_AGAIN);
        }
    }
}
