//! The lake's folder: staged snapshots, visible ones, and the one rename between them.
//!
//! *Promises* that what `current` names is whole and never changes, that a crash at any point leaves the old snapshot
//! or the new one, and that what a crash left behind is gone after the next start.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, integrity, pii};
use crate::clock::Timestamp;
use crate::database;
use crate::durable;
use crate::sensitive::hex;
use crate::store::{self, Tx};

/// What a snapshot consists of and what it was built from: `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of the snapshot.
    pub snapshot: u32,
    /// Highest version among the schema files.
    pub schema_version: u32,
    /// When it was built, RFC 3339.
    pub published_at: String,
    /// Version of the program that built it.
    pub vinculo_version: String,
    /// The state that it was built from.
    pub built_from: BuiltFrom,
    /// Partitions of each table.
    pub link_buckets: u32,
    /// Files of each partition of a large table, at most.
    #[serde(default = "one")]
    pub link_parts: u32,
    /// Digest of the reference tables.
    #[serde(default)]
    pub reference: String,
    /// Digest of the settings that rows depend on.
    #[serde(default)]
    pub settings: String,
    /// Its tables.
    pub tables: Vec<TableEntry>,
    /// Files that hold all tables, such as `vinculo.duckdb`.
    pub files: Vec<FileEntry>,
}

/// What snapshots have that do not say it.
fn one() -> u32 {
    1
}

/// The state that a snapshot was built from.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct BuiltFrom {
    /// The state's own id.
    pub state_id: String,
    /// Number of the last change in it.
    pub change: i64,
}

impl BuiltFrom {
    /// What the state is, and how far it has come.
    ///
    /// # Errors
    /// [`store::Error::Database`], or [`store::Error::Unreadable`].
    pub fn of(tx: &Tx<'_>) -> Result<Self, store::Error> {
        let change = tx
            .meta("changes")?
            .map_or(Ok(0), |text| text.parse())
            .map_err(|_| store::Error::Unreadable("a counter"))?;
        Ok(Self { state_id: tx.meta("state_id")?.unwrap_or_default(), change })
    }
}

/// One table of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TableEntry {
    /// Its name.
    pub name: String,
    /// Version of its schema file.
    pub schema_version: u32,
    /// Columns that tell its rows apart.
    pub key: Vec<String>,
    /// Its rows.
    pub rows: u64,
    /// Its Parquet files.
    pub files: Vec<FileEntry>,
}

impl TableEntry {
    /// Whether its rows show persons.
    pub(super) fn is_pii(&self) -> bool {
        Path::new(&self.name).starts_with(pii::FOLDER)
    }
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its place, relative to the snapshot.
    pub path: String,
    /// Its rows; absent for a file of several tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// A snapshot that was dropped because of whom it showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Its number.
    pub snapshot: u32,
    /// Its files, relative to its folder.
    pub files: Vec<String>,
}

impl Manifest {
    /// Whether it shows persons.
    pub(super) fn has_pii(&self) -> bool {
        self.tables.iter().any(TableEntry::is_pii)
    }

    /// Rows of all its tables.
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }

    /// The entry of the table called `name`.
    pub fn table(&self, name: &str) -> Option<&TableEntry> {
        self.tables.iter().find(|table| table.name == name)
    }
}

/// The folder of a lake.
#[derive(Debug, Clone)]
pub struct Lake {
    path: PathBuf,
}

/// What the name of a snapshot ends in that is being removed.
const GONE: &str = "gone";

/// The folder in which snapshots are made that nobody sees yet.
const STAGING: &str = ".staging";

/// A snapshot that nobody sees yet.
#[derive(Debug, Clone)]
pub struct Staging {
    /// Its number.
    pub snapshot: u32,
    /// Its folder.
    pub folder: PathBuf,
}

impl Lake {
    /// The lake at `path`; made when it is not there.
    ///
    /// # Errors
    /// [`Error::Folder`] when it cannot be used.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let lake = Self::look(path);
        lake.make()?;
        let probe = lake.staging().join("probe");
        File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(|source| Error::at(&lake.path, source))?;
        Ok(lake)
    }

    /// Makes its folders when they are not there.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub(super) fn make(&self) -> Result<(), Error> {
        [&self.path, &self.snapshots(), &self.staging()].into_iter().try_for_each(|folder| make_folder(folder))
    }

    /// The lake at `path`, to look at only.
    pub fn look(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Removes what a crash left of what was staged. A snapshot that became whole stays, whether readers saw it or not:
    /// where `current` was moved by hand, or lost, nobody could tell.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn clear_staging(&self) -> Result<(), Error> {
        let staging = self.staging();
        let left = fs::read_dir(&staging).map_err(|source| Error::at(&staging, source))?;
        left.flatten().try_for_each(|entry| remove(&entry.path()))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing of a lake is there.
    pub(super) fn is_bare(&self) -> bool {
        !self.snapshots().exists() && !self.staging().exists()
    }

    /// Whether its folder is there, whatever is in it.
    pub(super) fn has_folder(&self) -> bool {
        self.path.is_dir()
    }

    /// The device that its folder is on, or would be made on.
    pub(super) fn device(&self) -> Option<u64> {
        self.path.ancestors().find_map(|folder| folder.metadata().ok()).map(|folder| folder.dev())
    }

    /// The manifest of the snapshot that readers see; `None` when there is none that can be read.
    pub fn current(&self) -> Option<Manifest> {
        self.manifest(self.current_number()?)
    }

    /// What was published last: [`Lake::current`], or the newest snapshot there is when `current` names none.
    pub fn last(&self) -> Option<Manifest> {
        self.current().or_else(|| self.newest())
    }

    /// The manifest of the newest snapshot that has one, whether readers see it or not.
    pub(super) fn newest(&self) -> Option<Manifest> {
        self.all().ok()?.into_iter().rev().find_map(|number| self.manifest(number))
    }

    /// The folder of snapshot `number`.
    pub fn folder(&self, number: u32) -> PathBuf {
        self.snapshots().join(format!("{number:06}"))
    }

    /// Begins a snapshot after all that there are.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn stage(&self) -> Result<Staging, Error> {
        let snapshot = 1 + self.numbered()?.into_iter().map(|(number, _)| number).max().unwrap_or(0);
        let folder = self.staging().join(format!("{snapshot:06}"));
        if folder.exists() {
            remove(&folder)?;
        }
        make_folder(&folder)?;
        Ok(Staging { snapshot, folder })
    }

    /// Makes a staged snapshot what readers see: all of it, by one rename. What was `sealed` has not changed since.
    ///
    /// # Errors
    /// [`Error::Folder`]; readers then see what they saw before.
    pub(super) fn reveal(&self, staging: &Staging, sealed: &Sealed, manifest: &Manifest) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(manifest).map_err(|error| Error::at(&staging.folder, error.into()))?;
        let path = staging.folder.join(integrity::MANIFEST);
        fs::write(&path, integrity::with_own_checksum(&text)).map_err(|source| Error::at(&path, source))?;
        let mut others = entries(&staging.folder)?;
        others.retain(|(path, _)| !sealed.0.contains(path));
        seal(others)?;
        sync(&staging.folder)?;
        let folder = self.folder(staging.snapshot);
        fs::rename(&staging.folder, &folder).map_err(|source| Error::at(&folder, source))?;
        sync(&self.snapshots())?;
        self.point("current", &format!("snapshots/{:06}", staging.snapshot))?;
        if manifest.files.iter().any(|file| file.path == database::FILE) {
            self.point(database::FILE, &format!("current/{}", database::FILE))?;
        } else {
            // It would name what is not there any more.
            remove(&self.path.join(database::FILE))?;
        }
        sync(&self.path)
    }

    /// Drops all but the newest `keep` snapshots and those that another one took the place of less than `keep_for` ago:
    /// whoever found one when it was the newest reads on in it for so long, however old it was then.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn prune(&self, keep: usize, keep_for: Duration, now: Timestamp) -> Result<usize, Error> {
        let (numbers, current) = (self.all()?, self.current_number());
        let mut dropped = 0;
        for pair in numbers.windows(2).take(numbers.len().saturating_sub(keep.max(1))) {
            let &[number, successor] = pair else { continue };
            // Where nobody can tell when it was replaced, its own time has to do.
            let replaced_at = self.published_at(successor).or_else(|| self.published_at(number));
            let is_young = replaced_at.is_some_and(|replaced_at| now.since(replaced_at) < keep_for);
            if !is_young && Some(number) != current {
                self.take_away(number)?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    fn published_at(&self, number: u32) -> Option<Timestamp> {
        Timestamp::parse(&self.manifest(number)?.published_at)
    }

    /// The numbers of the snapshots that are there, oldest first.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn all(&self) -> Result<Vec<u32>, Error> {
        let mut numbers: Vec<u32> = self.numbered()?.into_iter().map(|(number, _)| number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// All snapshots before the current one, with their files.
    pub(super) fn older(&self) -> Result<Vec<Forgotten>, Error> {
        let older = self.older_numbers()?;
        Ok(older.into_iter().map(|snapshot| Forgotten { snapshot, files: self.files_of(snapshot) }).collect())
    }

    fn older_numbers(&self) -> Result<Vec<u32>, Error> {
        let current = self.current_number();
        let mut older = self.all()?;
        older.retain(|&number| current.is_some_and(|current| number < current));
        Ok(older)
    }

    /// The files of snapshot `number`, as far as its manifest tells.
    fn files_of(&self, number: u32) -> Vec<String> {
        let Some(manifest) = self.manifest(number) else { return Vec::new() };
        let of_tables = manifest.tables.into_iter().flat_map(|table| table.files);
        of_tables.chain(manifest.files).map(|file| file.path).collect()
    }

    /// Drops the snapshots before the current one that were built from what `is_expired`, whatever their age.
    pub(super) fn drop_those_of_expired(&self, is_expired: impl Fn(&BuiltFrom) -> bool) -> Result<(), Error> {
        let mut older = self.older_numbers()?;
        older.retain(|&number| self.manifest(number).is_some_and(|manifest| is_expired(&manifest.built_from)));
        older.into_iter().try_for_each(|number| self.drop_snapshot(number))
    }

    /// Drops these snapshots, and what an earlier removal left of others.
    pub(super) fn forget(&self, snapshots: &[u32]) -> Result<(), Error> {
        snapshots.iter().try_for_each(|&snapshot| self.drop_snapshot(snapshot))?;
        let staging = self.staging();
        for entry in fs::read_dir(&staging).map_err(|source| Error::at(&staging, source))?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == GONE) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Drops snapshot `number`, whatever its age.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub(super) fn drop_snapshot(&self, number: u32) -> Result<(), Error> {
        self.take_away(number)?;
        sync(&self.staging())?;
        sync(&self.snapshots())
    }

    /// Removes snapshot `number`. It is out of the readers' sight by one rename, so that nobody meets a part of it;
    /// what a crash leaves of it is staged, and gone after the next start.
    fn take_away(&self, number: u32) -> Result<(), Error> {
        let (folder, aside) = (self.folder(number), self.staging().join(format!("{number:06}.{GONE}")));
        remove(&aside)?;
        match fs::rename(&folder, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::at(&folder, source)),
            Ok(()) => remove(&aside),
        }
    }

    /// Makes the link `name` name `target`, without a moment in which there is none.
    fn point(&self, name: &str, target: &str) -> Result<(), Error> {
        let link = self.path.join(name);
        if fs::read_link(&link).is_ok_and(|standing| standing == Path::new(target)) {
            return Ok(());
        }
        let fresh = self.staging().join(format!("{name}.link"));
        let _ = fs::remove_file(&fresh);
        symlink(target, &fresh).and_then(|()| fs::rename(&fresh, &link)).map_err(|source| Error::at(&link, source))
    }

    /// The manifest of snapshot `number`; `None` when there is none that can be read.
    pub fn manifest(&self, number: u32) -> Option<Manifest> {
        serde_json::from_slice(&fs::read(self.folder(number).join(integrity::MANIFEST)).ok()?).ok()
    }

    /// The number of the snapshot that readers see.
    pub fn current_number(&self) -> Option<u32> {
        fs::read_link(self.path.join("current")).ok()?.file_name()?.to_str()?.parse().ok()
    }

    pub(super) fn numbered(&self) -> Result<Vec<(u32, PathBuf)>, Error> {
        let folder = self.snapshots();
        let entries = match fs::read_dir(&folder) {
            // Nothing was published yet, or somebody removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|source| Error::at(&folder, source))?,
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect())
    }

    pub(super) fn snapshots(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    fn staging(&self) -> PathBuf {
        self.path.join(STAGING)
    }
}

/// Folders of a staged snapshot in which everything is read-only and on the disk.
#[derive(Debug)]
pub(super) struct Sealed(HashSet<PathBuf>);

impl Staging {
    /// Makes the files of `tables`, which are all written, read-only, and waits until they are on the disk.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub(super) fn seal(&self, tables: &[TableEntry]) -> Result<Sealed, Error> {
        let names = tables.iter().filter_map(|table| Path::new(&table.name).components().next());
        let folders: HashSet<PathBuf> = names.map(|name| self.folder.join(name)).collect();
        let mut found = Vec::new();
        for folder in &folders {
            match fs::symlink_metadata(folder) {
                Ok(metadata) => found.push((folder.clone(), metadata)),
                // A table without files.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::at(folder, error)),
            }
        }
        seal(found)?;
        Ok(Sealed(folders))
    }

    /// Takes a file over from the earlier snapshot in `folder`, unchanged, without copying it.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn take_over(&self, folder: &Path, file: &FileEntry) -> Result<(), Error> {
        let (from, to) = (folder.join(&file.path), self.folder.join(&file.path));
        let linked = match fs::hard_link(&from, &to) {
            // The first file in its folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = to.parent().unwrap_or(&self.folder);
                fs::create_dir_all(parent).and_then(|()| fs::hard_link(&from, &to))
            }
            linked => linked,
        };
        linked.map_err(|source| Error::at(&to, source))
    }

    /// Size and checksum of a file of this snapshot.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn checked(&self, path: &Path, rows: Option<u64>) -> Result<FileEntry, Error> {
        let whole = self.folder.join(path);
        let (bytes, sha256) = checksum(&whole).map_err(|source| Error::at(&whole, source))?;
        Ok(FileEntry { path: path.to_string_lossy().into_owned(), rows, bytes, sha256 })
    }
}

/// Size and SHA-256 of a file.
///
/// # Errors
/// What the system said.
pub fn checksum(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, hex(&hash.finalize())));
        }
        hash.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// Files that are brought to the disk at a time.
const SYNCS_AT_ONCE: usize = 8;

/// Modes of folders and files for their owner and group, and of those for their owner alone.
const SEALED: (u32, u32) = (0o750, 0o440);
const SEALED_PII: (u32, u32) = (0o700, 0o400);

/// Makes a folder for its owner and group, whatever the umask of who publishes, unless it is there.
fn make_folder(folder: &Path) -> Result<(), Error> {
    let make = || {
        DirBuilder::new().recursive(true).mode(SEALED.0).create(folder)?;
        // Only then: it would take away the bit that gives what is made in it to the group of the lake.
        if folder.metadata()?.mode() & 0o777 != SEALED.0 {
            fs::set_permissions(folder, Permissions::from_mode(SEALED.0))?;
        }
        Ok(())
    };
    if folder.is_dir() { Ok(()) } else { make().map_err(|source| Error::at(folder, source)) }
}

/// Makes the files among and below these read-only, and waits until all is on the disk.
fn seal(found: Vec<(PathBuf, Metadata)>) -> Result<(), Error> {
    let mut paths = Vec::new();
    close(found, SEALED, &mut paths)?;
    // After all modes are set, as each would make the disk wait once more; and side by side: the disk then serves
    // several with one write of its journal.
    std::thread::scope(|scope| {
        let parts = paths.chunks(paths.len().div_ceil(SYNCS_AT_ONCE).max(1));
        let syncing: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().try_for_each(|path| sync(path)))).collect();
        syncing
            .into_iter()
            .try_for_each(|syncing| syncing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Sets the modes among and below these, but for files that have theirs because an earlier snapshot has them too.
/// Gathers all but those.
fn close(found: Vec<(PathBuf, Metadata)>, modes: (u32, u32), paths: &mut Vec<PathBuf>) -> Result<(), Error> {
    for (path, metadata) in found {
        let set =
            |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(|source| Error::at(&path, source));
        if metadata.is_dir() {
            let modes = if path.file_name() == Some(pii::FOLDER.as_ref()) { SEALED_PII } else { modes };
            set(modes.0)?;
            close(entries(&path)?, modes, paths)?;
            paths.push(path);
            continue;
        }
        let is_taken_over = is_taken_over(&metadata);
        if !is_taken_over || metadata.mode() & 0o777 != modes.1 {
            set(modes.1)?;
        }
        if !is_taken_over {
            paths.push(path);
        }
    }
    Ok(())
}

/// Whether the file is in another snapshot, too, and so on the disk already.
fn is_taken_over(metadata: &Metadata) -> bool {
    metadata.nlink() > 1
}

fn entries(folder: &Path) -> Result<Vec<(PathBuf, Metadata)>, Error> {
    let entries = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))).collect::<io::Result<_>>()
    });
    entries.map_err(|source| Error::at(folder, source))
}

/// Waits until a file or folder is on the disk: a rename or a link lasts once its folder is.
fn sync(path: &Path) -> Result<(), Error> {
    durable::sync(path).map_err(|source| Error::at(path, source))
}

fn remove(path: &Path) -> Result<(), Error> {
    let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::at(path, source)),
        _ => Ok(()),
    }
}
