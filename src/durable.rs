//! Files that are whole and on the disk, whatever happens in between.
//!
//! *Takes* a path and what stands there from now on. *Promises* that a crash leaves the file as it was or as it shall
//! be, and that what a call has said is done outlives the power.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Only its owner reads and writes it.
const OWNERS: u32 = 0o600;

/// Writes the file at `path` anew, for its owner alone. One writer at a time.
///
/// # Errors
/// What the system says; the file is then as it was.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_added_extension("new");
    let mut file = private(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_folder_of(path)
}

/// An empty file at `path`, which only its owner can read from its first byte on. What was there before goes: it may be
/// open elsewhere, have another mode, or be a link to somewhere else.
///
/// # Errors
/// What the system says.
pub fn private(path: &Path) -> io::Result<File> {
    let made = make(path);
    // Somebody was there in between.
    if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) { make(path) } else { made }
}

fn make(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::options().create_new(true).write(true).mode(OWNERS).open(path)
}

/// Waits until a file or a folder is on the disk.
///
/// # Errors
/// What the system says.
pub fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Waits until a rename to `path` is on the disk: it lasts once its folder does.
///
/// # Errors
/// What the system says.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync(folder.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.jsonl");
        replace(&path, b"first").unwrap();
        replace(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // Nothing can be written where the new one is made.
        fs::create_dir(path.with_added_extension("new")).unwrap();
        replace(&path, b"third").unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"second");
    }

    #[test]
    fn a_private_file_is_a_new_one_whatever_stands_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let [path, elsewhere] = ["file", "elsewhere"].map(|name| folder.path().join(name));
        fs::write(&elsewhere, b"somebody's").unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o644)).unwrap();
        for put in [symlink::<&Path, &Path>, fs::hard_link::<&Path, &Path>] {
            let _ = fs::remove_file(&path);
            put(elsewhere.as_path(), path.as_path()).unwrap();
            private(&path).unwrap().write_all(b"mine").unwrap();
            assert_eq!(fs::read(&elsewhere).unwrap(), b"somebody's");
            let metadata = path.symlink_metadata().unwrap();
            assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 == 0o600);
        }
    }
}
