//! The files of a state, read as plain bytes beside SQLite.
//!
//! A process that closes any descriptor of a file loses all POSIX locks that it has on it, whoever took them
//! (<https://sqlite.org/howtocorrupt.html>, section 2.2). SQLite would go on without the locks that it believes to
//! hold: the next process that opens the state finds nobody there, and removes the log, or cuts off its index under
//! this one. *Promises* that what is opened here is never closed again while the process lives.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Device and inode of a file.
type Identity = (u64, u64);

/// All that was opened: three files for each state.
static OPENED: LazyLock<Mutex<HashMap<Identity, &'static File>>> = LazyLock::new(Mutex::default);

/// The file at `path`; `None` when there is none. Others read it too: its own position says nothing.
pub(super) fn open(path: &Path) -> io::Result<Option<&'static File>> {
    let there = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        there => identity(&there?),
    };
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = opened.get(&there) {
        return Ok(Some(file));
    }
    // Not dropped whatever comes next.
    let file: &File = Box::leak(Box::new(File::open(path)?));
    opened.insert(identity(&file.metadata()?), file);
    Ok(Some(file))
}

fn identity(file: &Metadata) -> Identity {
    (file.dev(), file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_opened_once_and_one_in_its_place_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        assert!(open(&path).unwrap().is_none());
        fs::write(&path, "first").unwrap();
        let first = open(&path).unwrap().unwrap();
        assert!(std::ptr::eq(first, open(&path).unwrap().unwrap()));
        fs::rename(&path, folder.path().join("other")).unwrap();
        fs::write(&path, "second").unwrap();
        assert!(!std::ptr::eq(first, open(&path).unwrap().unwrap()));
    }
}
