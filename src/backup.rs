//! The state in one file, made while a daemon writes it.
//!
//! *Takes* a state. *Gives* an SQLite file that ends with a checksum of everything before it. *Promises* that a cut or
//! changed file is told from a whole one, and that a backup holds neither the configuration nor the master key: without
//! the master key of its time its bodies cannot be read. *Not here*: the way back, which is [`crate::restore`].

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::config;
use crate::durable;
use crate::publish::{BuiltFrom, checksum};
use crate::sensitive::hex;
use crate::store::{self, Readers};
use crate::tombstones::{self, Tombstones};

/// The list of backups that were made, in the folder of the state.
const LIST: &str = "backups.jsonl";

/// Where the job `backup` puts them, in the folder of the state.
const FOLDER: &str = "backups";

/// So many of those stay.
const KEPT: usize = 7;

/// What the end of a backup begins with.
const MARK: &[u8] = b"\nvinculo-backup ";

/// Nothing at the end of a backup is longer, in bytes.
const LONGEST_END: u64 = 4096;

/// Why a backup could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is such a file already.
    #[error("{0} exists already: name another file, or remove it first")]
    Exists(PathBuf),
    /// A file cannot be used.
    #[error("{path} cannot be used: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The backup is not what was written.
    #[error("{path} is no whole backup: {what}; nothing was changed. Restore another one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// What tells of whoever was erased since cannot be written beside it.
    #[error(transparent)]
    Tombstones(tombstones::FileError),
    /// The state refused.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Exists(_) => "backup_exists",
            Self::File { .. } => "backup_not_writable",
            Self::Damaged { .. } => "backup_damaged",
            Self::Tombstones(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }
}

impl From<tombstones::FileError> for Error {
    fn from(error: tombstones::FileError) -> Self {
        match error {
            tombstones::FileError::File { path, source } => Self::File { path, source },
            tombstones::FileError::Store(error) => Self::Store(error),
            other => Self::Tombstones(other),
        }
    }
}

/// A backup that was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Made {
    /// The file.
    pub file: String,
    /// When it was made, RFC 3339.
    pub made_at: String,
    /// The state that it holds.
    #[serde(flatten)]
    pub state: BuiltFrom,
    /// Its size without its end; 0 until it is whole.
    pub bytes: u64,
}

impl Made {
    /// The backup at `path`, which has this end.
    fn of(path: &Path, end: End) -> Self {
        Self { file: path.display().to_string(), made_at: end.made_at, state: end.state, bytes: end.bytes }
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.bytes > 0 && Path::new(&self.file).exists()
    }

    /// Whether this is the same backup, whole or not. Another may have had its name, and been moved away.
    fn is(&self, other: &Self) -> bool {
        (&self.file, &self.made_at) == (&other.file, &other.made_at)
    }
}

/// The end of a backup.
#[derive(Clone, Serialize, Deserialize)]
pub struct End {
    /// When it was made, RFC 3339.
    pub made_at: String,
    /// The state that it holds.
    #[serde(flatten)]
    pub state: BuiltFrom,
    /// Its size without this end.
    pub bytes: u64,
    sha256: String,
}

/// Makes a backup of `state` in the new file `to`, also while a daemon writes it. Blocks.
///
/// # Errors
/// [`Error::Exists`], [`Error::File`], [`Error::Store`]; then there is no such file.
pub fn make(state: &config::State, to: &Path, now: Timestamp) -> Result<Made, Error> {
    let to = std::path::absolute(to).map_err(Error::at(to))?;
    if to.symlink_metadata().is_ok() {
        return Err(Error::Exists(to));
    }
    let partial = partial_of(&to);
    let held = Readers::of(&state.path).read(BuiltFrom::of)?;
    // Made here, and not by SQLite, so that its mode is right from the first byte.
    durable::private(&partial).map_err(Error::at(&partial))?;
    let begun = Made { file: to.display().to_string(), made_at: now.to_string(), state: held, bytes: 0 };
    // Before anything is in it, so that no crash leaves a file that erasures do not know of.
    let made = note(&state.path, &begun).and_then(|()| {
        let (End { state: held, bytes, .. }, erased_in_it) = write(&state.path, &partial, now)?;
        let made = Made { state: held, bytes, ..begun.clone() };
        note(&state.path, &made)?;
        fs::rename(&partial, &to).map_err(Error::at(&to))?;
        durable::sync_folder_of(&to).map_err(Error::at(&to))?;
        tell_of_erased(&state.path, &to, erased_in_it).inspect_err(|_| {
            // A backup that may bring somebody back is none.
            let _ = fs::remove_file(&to);
        })?;
        Ok(made)
    });
    if made.is_err() {
        let _ = fs::remove_file(&partial);
        if !to.exists() {
            let _ = change_list(&state.path, |listed| listed.is(&begun), None);
        }
    }
    made
}

/// Where the backup `to` stands until it is whole.
fn partial_of(to: &Path) -> PathBuf {
    to.with_added_extension("partial")
}

/// Tells of whoever was erased while the backup was written, beside it; it has `in_it`. Whoever is erased from now on
/// finds it on record, and may write the same file: until nothing changes in between, it is written again.
fn tell_of_erased(state: &Path, backup: &Path, in_it: Option<Tombstones>) -> Result<(), Error> {
    let path = tombstones::file_of_backup(backup);
    let mut told = in_it;
    while let Some(erased) = Readers::of(state).read(Tombstones::of)?.filter(|erased| Some(erased) != told.as_ref()) {
        erased.write(&path)?;
        told = Some(erased);
    }
    Ok(())
}

/// Makes a backup in a new file of the folder `backups` beside the state, removes all there that were made so but the
/// newest `KEPT`, and gives the number of those. What others put there stays. Blocks.
///
/// # Errors
/// As [`make`].
pub fn make_another(state: &config::State, now: Timestamp) -> Result<u64, Error> {
    let folder = state.path.with_file_name(FOLDER);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(Error::at(&folder))?;
    // A process that was killed may have left one half done.
    let partials = own_files(&folder, ".backup.partial")?;
    for partial in &partials {
        fs::remove_file(partial).map_err(Error::at(partial))?;
    }
    let half_done: Vec<PathBuf> = partials.into_iter().map(|partial| partial.with_extension("")).collect();
    forget(&state.path, &half_done)?;
    let made = folder.join(format!("{}.backup", name_at(now)));
    make(state, &made, now)?;
    // Their names are the times. By a clock that was ahead others are newer, and this one stays all the same.
    let mut backups = own_files(&folder, ".backup")?;
    backups.retain(|backup| *backup != made);
    backups.push(made);
    let (old, kept) = backups.split_at(backups.len().saturating_sub(KEPT));
    for backup in old {
        fs::remove_file(backup).map_err(Error::at(backup))?;
        let _ = fs::remove_file(tombstones::file_of_backup(backup));
    }
    forget(&state.path, old)?;
    Ok(kept.len() as u64)
}

/// The name, without its end, of the backup that [`make_another`] makes then.
fn name_at(now: Timestamp) -> String {
    now.to_string().chars().filter(char::is_ascii_alphanumeric).collect()
}

/// The files in the folder that [`make_another`] named, with this `end`, by time.
fn own_files(folder: &Path, end: &str) -> Result<Vec<PathBuf>, Error> {
    let pattern = |name: &str| name.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
    let own = pattern(&name_at(Timestamp::from_micros(0)));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::at(folder))? {
        files.push(entry.map_err(Error::at(folder))?.path());
    }
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(end)?.to_owned());
    files.retain(|path| name(path).is_some_and(|name| pattern(&name) == own));
    files.sort();
    Ok(files)
}

/// Gives the end that it has, and who was erased in it.
fn write(state: &Path, partial: &Path, now: Timestamp) -> Result<(End, Option<Tombstones>), Error> {
    store::copy(state, partial)?;
    let (state, erased) =
        Readers::of(partial).read(|tx| Ok::<_, store::Error>((BuiltFrom::of(tx)?, Tombstones::of(tx)?)))?;
    let (bytes, sha256) = checksum(partial).map_err(Error::at(partial))?;
    let end = End { made_at: now.to_string(), state, bytes, sha256 };
    let text = json!(end).to_string();
    let mut file = File::options().append(true).open(partial).map_err(Error::at(partial))?;
    let hash = hex(&Sha256::digest(text.as_bytes()));
    [MARK, text.as_bytes(), hash.as_bytes()]
        .iter()
        .try_for_each(|part| file.write_all(part))
        .and_then(|()| file.sync_all())
        .map_err(Error::at(partial))?;
    Ok((end, erased))
}

/// Adds to the list of backups, which erasures quote, in the place of what was said of the same one before.
fn note(state: &Path, made: &Made) -> Result<(), Error> {
    change_list(state, |listed| listed.is(made), Some(made))
}

/// Takes backups out of that list that are gone.
fn forget(state: &Path, gone: &[PathBuf]) -> Result<(), Error> {
    let gone: Vec<&PathBuf> = gone.iter().filter(|gone| !gone.exists()).collect();
    if gone.is_empty() {
        return Ok(());
    }
    change_list(state, |listed| gone.iter().any(|gone| gone.as_path() == Path::new(&listed.file)), None)
}

/// Writes the list anew, durably, without what `is_gone`. One process after the other does, as a backup is made by a
/// command beside a daemon.
fn change_list(state: &Path, is_gone: impl Fn(&Made) -> bool, added: Option<&Made>) -> Result<(), Error> {
    let path = state.with_file_name(LIST);
    let changed = || {
        let lock = path.with_added_extension("lock");
        let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(lock)?;
        lock.lock()?;
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text?,
        };
        let stays = |line: &&str| serde_json::from_str(line).map_or(true, |made: Made| !is_gone(&made));
        let lines = text.lines().filter(stays).map(str::to_owned).chain(added.map(|made| json!(made).to_string()));
        let text: String = lines.map(|line| line + "\n").collect();
        durable::replace(&path, text.as_bytes())
    };
    changed().map_err(Error::at(&path))
}

/// The backups that were made of the state at `state`, oldest first, with those that are not whole, or never were
/// because their process was killed.
pub fn made(state: &Path) -> Vec<Made> {
    let text = fs::read_to_string(state.with_file_name(LIST)).unwrap_or_default();
    let mut listed: Vec<Made> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // The list may be damaged, or another folder's.
    let is_listed = |path: &PathBuf| listed.iter().any(|made| Path::new(&made.file) == path);
    let mut others = own_files(&state.with_file_name(FOLDER), ".backup").unwrap_or_default();
    others.retain(|path| !is_listed(path));
    listed.extend(others.iter().filter_map(|path| Some(Made::of(path, end_of(path).ok()?.0))));
    let with_partial = |made: Made| {
        let partial = partial_of(Path::new(&made.file));
        let half = partial.exists().then(|| Made { file: partial.display().to_string(), bytes: 0, ..made.clone() });
        [Some(made), half].into_iter().flatten()
    };
    listed.into_iter().flat_map(with_partial).collect()
}

/// Whether a line of the list of backups cannot be read, so that a backup may be missing in it.
pub fn is_list_damaged(state: &Path) -> bool {
    let is_unreadable = |line: &str| serde_json::from_str::<Made>(line).is_err();
    match fs::read_to_string(state.with_file_name(LIST)) {
        Err(error) => error.kind() != io::ErrorKind::NotFound,
        Ok(text) => text.lines().any(is_unreadable),
    }
}

/// Notes the backup at `path` as one of the state at `state`, which holds now what that one does.
///
/// # Errors
/// [`Error::File`].
pub fn note_restored(state: &Path, path: &Path, end: End) -> Result<(), Error> {
    let path = path.canonicalize().map_err(Error::at(path))?;
    note(state, &Made::of(&path, end))
}

/// The end of the backup at `path`, and the file.
fn end_of(path: &Path) -> Result<(End, File), Error> {
    let damaged = |what| Error::Damaged { path: path.to_owned(), what };
    let mut file = File::open(path).map_err(Error::at(path))?;
    let length = file.metadata().map_err(Error::at(path))?.len();
    let start = length.saturating_sub(LONGEST_END);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(start)).and_then(|_| file.read_to_end(&mut tail)).map_err(Error::at(path))?;
    let at = memchr::memmem::rfind(&tail, MARK).ok_or_else(|| damaged("its end is missing"))?;
    let text = &tail[at + MARK.len()..];
    let (text, hash) = text.split_at_checked(text.len().saturating_sub(64)).unwrap_or_default();
    if hex(&Sha256::digest(text)).as_bytes() != hash {
        return Err(damaged("its end is cut or changed"));
    }
    let end: End = serde_json::from_slice(text).map_err(|_| damaged("its end cannot be read"))?;
    if end.bytes != start + at as u64 {
        return Err(damaged("it does not have the length that was written"));
    }
    Ok((end, file))
}

/// The end of the backup at `path`, when all before it is as it was written. Blocks.
///
/// # Errors
/// [`Error::Damaged`], [`Error::File`].
pub fn check(path: &Path) -> Result<End, Error> {
    let (end, mut file) = end_of(path)?;
    let mut hash = Sha256::new();
    file.seek(SeekFrom::Start(0)).map_err(Error::at(path))?;
    let mut content = file.take(end.bytes);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match content.read(&mut buffer).map_err(Error::at(path))? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    if hex(&hash.finalize()) == end.sha256 {
        Ok(end)
    } else {
        Err(Error::Damaged { path: path.to_owned(), what: "it does not hold the bytes that were written" })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Store;

    fn state_of(folder: &Path) -> config::State {
        config::State { path: folder.join("state.db"), encryption_key: None, encryption_key_previous: None }
    }

    fn begun(file: &Path, second: i64) -> Made {
        let state = BuiltFrom { state_id: String::new(), change: 0 };
        let made_at = Timestamp::from_micros(second * 1_000_000).to_string();
        Made { file: file.display().to_string(), made_at, state, bytes: 0 }
    }

    #[test]
    fn a_backup_that_cannot_be_written_is_no_bad_state_and_on_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_of(folder.path());
        let to = folder.path().join("no/such/folder/a.backup");
        let missing = make(&state, &to, Timestamp::from_micros(0)).unwrap_err();
        assert_eq!(missing.code(), "state_missing");
        let store = Store::open(&state.path).unwrap();
        let unwritable = make(&state, &to, Timestamp::from_micros(0)).unwrap_err();
        assert_eq!(unwritable.code(), "backup_not_writable", "{unwritable}");
        assert!(made(&state.path).is_empty());
        drop(store);
    }

    #[test]
    fn a_backup_whose_process_was_killed_is_on_the_list_until_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_of(folder.path());
        let store = Store::open(&state.path).unwrap();
        let backups = folder.path().join(FOLDER);
        fs::create_dir(&backups).unwrap();
        let own = format!("{}.backup", name_at(Timestamp::from_micros(7)));
        for file in [folder.path().join("named.backup"), backups.join(own)] {
            note(&state.path, &begun(&file, 1)).unwrap();
            fs::write(partial_of(&file), "half").unwrap();
        }
        let listed = || made(&state.path).into_iter().map(|made| made.file).collect::<Vec<_>>();
        assert_eq!(listed().iter().filter(|file| file.ends_with(".backup.partial")).count(), 2);
        make_another(&state, Timestamp::from_micros(0)).unwrap();
        let half: Vec<_> = listed().into_iter().filter(|file| file.ends_with(".partial")).collect();
        assert_eq!(half, [partial_of(&folder.path().join("named.backup")).display().to_string()]);
        assert_eq!(listed().len(), 3, "and the new one, once: {:?}", listed());
        // One of the same name may have been moved away, and is to be destroyed there.
        fs::remove_file(partial_of(&folder.path().join("named.backup"))).unwrap();
        make(&state, &folder.path().join("named.backup"), Timestamp::from_micros(2_000_000)).unwrap();
        assert_eq!(listed().iter().filter(|file| file.ends_with("named.backup")).count(), 2);
        drop(store);
    }

    #[test]
    fn no_process_loses_from_the_list_what_another_notes() {
        let folder = tempfile::tempdir().unwrap();
        let state = state_of(folder.path());
        let gone = folder.path().join("gone");
        std::thread::scope(|threads| {
            for thread in 0..4 {
                let (state, gone) = (&state.path, &gone);
                threads.spawn(move || {
                    for second in 0..5 {
                        note(state, &begun(&gone.with_file_name(format!("{thread}-{second}")), second)).unwrap();
                        note(state, &begun(gone, second)).unwrap();
                        forget(state, std::slice::from_ref(gone)).unwrap();
                    }
                });
            }
        });
        assert_eq!(made(&state.path).len(), 20);
    }

    #[test]
    fn the_seven_newest_backups_of_the_job_stay_and_no_half_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let state = state_of(folder.path());
        let named = make(&state, &folder.path().join("named.backup"), Timestamp::from_micros(0)).unwrap();
        for day in 1..=9 {
            let now = Timestamp::from_micros(0) + Duration::from_hours(24 * day);
            fs::create_dir_all(folder.path().join(FOLDER)).unwrap();
            let half = format!("{}.backup.partial", name_at(Timestamp::from_micros(7)));
            fs::write(folder.path().join(FOLDER).join(half), "half").unwrap();
            for theirs in ["2026-upgrade.backup", "vinculo-2026-11-23.backup", "under-way.backup.partial"] {
                fs::write(folder.path().join(FOLDER).join(theirs), "somebody's").unwrap();
            }
            assert_eq!(make_another(&state, now).unwrap(), day.min(7));
        }
        let files = |end| own_files(&folder.path().join(FOLDER), end).unwrap();
        assert_eq!((files(".backup").len(), files(".backup.partial").len()), (7, 0));
        let listed: Vec<PathBuf> = made(&path).into_iter().map(|made| made.file.into()).collect();
        assert_eq!(listed[0], Path::new(&named.file), "one that somebody named is left alone");
        assert_eq!(listed[1..], files(".backup"));
        assert!(check(&listed[7]).is_ok());
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).unwrap().count(), 7 + 3, "nor are files of others");
        // The clock was ahead until now: the new one is by far the oldest, and stays.
        let now = Timestamp::from_micros(5);
        assert_eq!(make_another(&state, now).unwrap(), 7);
        assert!(files(".backup").iter().any(|file| file.ends_with(format!("{}.backup", name_at(now)))));
        drop(store);
    }
}
