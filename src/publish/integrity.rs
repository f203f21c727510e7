//! Every published file, held against its manifest.
//!
//! *Takes* a lake's folder. *Gives* what is damaged, file by file. *Promises* to write nothing, and to find any bit
//! that differs from what was published, the manifest's own included. *Not here*: the mending, which is a rebuild.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize as _, Serialize};
use sha2::{Digest, Sha256};

use super::{Error, FileEntry, Lake, Manifest, checksum};
use crate::database;
use crate::sensitive::hex;

/// Name of a manifest's file.
pub(super) const MANIFEST: &str = "manifest.json";

/// Code of a file that no manifest names.
const NOT_PUBLISHED: &str = "not_published";

/// What stands before a manifest's own checksum, which is of everything before this and of `\n}`.
const OWN_CHECKSUM: &str = ",\n  \"sha256\": \"";

/// Something that is not as it was published.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Damage {
    /// The file, relative to the lake or to the state's folder.
    pub file: String,
    /// Stable code of what is wrong with it.
    pub code: &'static str,
    /// The same in words.
    pub what: String,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Default, Serialize)]
pub struct Verified {
    /// Snapshots that are there.
    pub snapshots: usize,
    /// Files of theirs.
    pub files: usize,
    /// Bytes of these, each file counted once however many snapshots share it.
    pub bytes: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

impl Verified {
    fn note(&mut self, lake: &Path, file: &Path, code: &'static str, what: impl Into<String>) {
        let file = file.strip_prefix(lake).unwrap_or(file).display().to_string();
        self.damage.push(Damage { file, code, what: what.into() });
    }

    /// Counts what was found in the snapshot in `folder`, unless it is gone by now: what was missing in it was dropped.
    fn add(&mut self, folder: &Path, own: Self) {
        if !folder.exists() {
            return;
        }
        self.snapshots += 1;
        self.files += own.files;
        self.bytes += own.bytes;
        self.damage.extend(own.damage);
    }
}

/// Checks every snapshot of the lake at `path`. A lake that is not there has no snapshot, and one that a publish beside
/// this drops meanwhile is none. Blocks.
///
/// # Errors
/// [`Error::Folder`] when the lake cannot be read at all.
pub fn check(path: &Path) -> Result<Verified, Error> {
    let lake = Lake::look(path);
    let mut verified = Verified::default();
    if !lake.snapshots().exists() {
        return Ok(verified);
    }
    let mut numbered = lake.numbered()?;
    numbered.sort_unstable();
    // Snapshots share files; each is read once.
    let mut seen = HashMap::new();
    let looked: Vec<_> = numbered
        .iter()
        .map(|(_, folder)| {
            let mut own = Verified::default();
            check_snapshot(path, folder, &mut seen, &mut own);
            (folder, own)
        })
        .collect();
    for (folder, own) in looked {
        verified.add(folder, own);
    }
    let links = [("current", None), (database::FILE, Some(database::FILE))];
    let has_duckdb =
        lake.current().is_some_and(|manifest| manifest.files.iter().any(|file| file.path == database::FILE));
    for (name, target) in links {
        let is_expected = !numbered.is_empty() && (target.is_none() || has_duckdb);
        let link = path.join(name);
        if is_expected && !(link.is_symlink() && link.exists()) {
            verified.note(path, &link, "broken_link", "does not name what is published");
        }
    }
    verified.damage.sort();
    Ok(verified)
}

/// Removes the snapshots before the current one that are damaged, and gives their numbers: nobody can read them as they
/// were, and a rebuild has made a whole one.
///
/// # Errors
/// [`Error::Folder`].
pub(super) fn drop_damaged(lake: &Lake) -> Result<Vec<u32>, Error> {
    let current = lake.current_number();
    let mut dropped = Vec::new();
    let mut seen = HashMap::new();
    for (number, folder) in lake.numbered()? {
        let mut verified = Verified::default();
        check_snapshot(&folder, &folder, &mut seen, &mut verified);
        if Some(number) != current && !verified.damage.is_empty() {
            lake.drop_snapshot(number)?;
            dropped.push(number);
        }
    }
    Ok(dropped)
}

/// Whether every file that was published in snapshot `number` is as it was.
pub(super) fn is_whole(lake: &Lake, number: u32) -> bool {
    let (folder, mut verified) = (lake.folder(number), Verified::default());
    check_snapshot(&folder, &folder, &mut HashMap::new(), &mut verified);
    verified.damage.iter().all(|damage| damage.code == NOT_PUBLISHED)
}

/// The checksum of each file that was read, by device and inode.
type Seen = HashMap<(u64, u64), String>;

fn check_snapshot(lake: &Path, folder: &Path, seen: &mut Seen, verified: &mut Verified) {
    let path = folder.join(MANIFEST);
    verified.files += 1;
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) => {
            return verified.note(lake, &path, "unreadable", format!("{error}; what it names was not checked"));
        }
    };
    let (entries, is_complete) = entries_of(&text);
    let is_intact = is_own(&text);
    if !is_intact {
        verified.note(lake, &path, "checksum", "is not the manifest that was published");
    } else if !is_complete {
        verified.note(lake, &path, "unreadable", "is no manifest that this version reads");
    }
    let mut expected = BTreeSet::from([path]);
    for entry in &entries {
        let file = folder.join(&entry.path);
        verified.files += 1;
        if let Err((code, what)) = check_file(&file, entry, seen, &mut verified.bytes) {
            let sound = if is_intact { None } else { file_behind(folder, &text, entry) };
            if let Some(sound) = sound {
                expected.insert(sound);
                continue;
            }
            verified.note(lake, &file, code, what);
        }
        expected.insert(file);
    }
    if !is_complete {
        return;
    }
    let mut found = Vec::new();
    files_below(folder, &mut found);
    for file in found.into_iter().filter(|file| !expected.contains(file)) {
        verified.note(lake, &file, NOT_PUBLISHED, "is in no manifest: whoever reads the folder whole reads it too");
    }
}

/// The files that a manifest names, and whether these are all: of one that cannot be read any more, those whose own
/// entries can.
fn entries_of(text: &[u8]) -> (Vec<FileEntry>, bool) {
    if let Ok(Manifest { tables, files, .. }) = serde_json::from_slice(text) {
        return (tables.into_iter().flat_map(|table| table.files).chain(files).collect(), true);
    }
    let entry = |at| FileEntry::deserialize(&mut serde_json::Deserializer::from_slice(&text[at..])).ok();
    (memchr::memchr_iter(b'{', text).filter_map(entry).collect(), false)
}

/// The file that a damaged entry was written of: with an entry of that file in its place, the manifest is whole again.
fn file_behind(folder: &Path, text: &[u8], entry: &FileEntry) -> Option<PathBuf> {
    let text = std::str::from_utf8(text).ok()?;
    let place = place_of(text, entry)?;
    let indent = format!("\n{}", text[..place.start].rsplit('\n').next()?);
    let mends = |file: &PathBuf| {
        let path = file.strip_prefix(folder).ok().and_then(Path::to_str);
        let (Some(path), Ok((bytes, sha256))) = (path, checksum(file)) else { return false };
        let sound = FileEntry { path: path.to_owned(), rows: entry.rows, bytes, sha256 };
        let sound = serde_json::to_string_pretty(&sound).unwrap_or_default().replace('\n', &indent);
        is_own(format!("{}{sound}{}", &text[..place.start], &text[place.end..]).as_bytes())
    };
    let named = folder.join(&entry.path);
    let mut others = Vec::new();
    files_below(folder, &mut others);
    let is_as_long = |file: &PathBuf| fs::metadata(file).is_ok_and(|metadata| metadata.len() == entry.bytes);
    std::iter::once(named).chain(others.into_iter().filter(is_as_long)).find(mends)
}

/// Where a manifest has this entry. Another may have its path, where that is what is damaged.
fn place_of(text: &str, entry: &FileEntry) -> Option<Range<usize>> {
    let path = format!("\"path\": \"{}\"", entry.path);
    let place = |(at, _)| {
        // A brace within a path begins no line.
        let begins_a_line = |&(brace, _): &(usize, &str)| text[..at + brace].trim_end_matches(' ').ends_with('\n');
        let end = at + text[at..].match_indices('}').find(begins_a_line)?.0 + 1;
        Some(text[..at].rfind('{')?..end)
    };
    text.match_indices(&path).filter_map(place).find(|place| text[place.clone()].contains(&entry.sha256))
}

fn check_file(path: &Path, entry: &FileEntry, seen: &mut Seen, bytes: &mut u64) -> Result<(), (&'static str, String)> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => ("missing", "is not there".to_owned()),
        _ => ("unreadable", error.to_string()),
    };
    let metadata = fs::symlink_metadata(path).map_err(unreadable)?;
    if metadata.len() != entry.bytes {
        return Err(("size", format!("has {} bytes instead of {}", metadata.len(), entry.bytes)));
    }
    let inode = (metadata.dev(), metadata.ino());
    let sha256 = match seen.entry(inode) {
        Entry::Occupied(read) => read.into_mut(),
        Entry::Vacant(place) => {
            let (length, sha256) = checksum(path).map_err(unreadable)?;
            *bytes += length;
            place.insert(sha256)
        }
    };
    if *sha256 == entry.sha256 {
        Ok(())
    } else {
        Err(("checksum", "does not have the bytes that were published".to_owned()))
    }
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// The text of a manifest with its own checksum in it.
pub(super) fn with_own_checksum(text: &str) -> String {
    let body = text.strip_suffix("\n}").unwrap_or(text);
    format!("{body}{OWN_CHECKSUM}{}\"\n}}", hex(&Sha256::digest(text.as_bytes())))
}

/// Whether the manifest's own checksum is right.
fn is_own(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    text.rfind(OWN_CHECKSUM).is_some_and(|at| with_own_checksum(&format!("{}\n}}", &text[..at])) == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_in_a_snapshot_that_was_dropped_meanwhile_is_no_damage() {
        let lake = tempfile::tempdir().unwrap();
        let folders = ["000001", "000002"].map(|name| lake.path().join("snapshots").join(name));
        let looked = folders.each_ref().map(|folder| {
            fs::create_dir_all(folder).unwrap();
            let mut own = Verified::default();
            check_snapshot(lake.path(), folder, &mut HashMap::new(), &mut own);
            assert_eq!(own.damage.len(), 1, "it has no manifest");
            own
        });
        fs::remove_dir(&folders[0]).unwrap();
        let mut verified = Verified::default();
        for (folder, own) in folders.iter().zip(looked) {
            verified.add(folder, own);
        }
        assert_eq!((verified.snapshots, verified.damage.len()), (1, 1));
        assert_eq!(verified.damage[0].file, "snapshots/000002/manifest.json");
    }

    #[test]
    fn a_manifest_that_is_no_json_any_more_hides_no_other_damage() {
        let lake = tempfile::tempdir().unwrap();
        let folder = lake.path().join("snapshots/000001");
        fs::create_dir_all(&folder).unwrap();
        let entry = |path: &str| {
            fs::write(folder.join(path), path).unwrap();
            let (bytes, sha256) = checksum(&folder.join(path)).unwrap();
            FileEntry { path: path.to_owned(), rows: Some(1), bytes, sha256 }
        };
        let entries = serde_json::to_string_pretty(&["a.parquet", "b.parquet", "c.parquet"].map(entry)).unwrap();
        // One of the braces that it begins with is something else now.
        let text = with_own_checksum(&format!("{{\n  \"files\": {entries}\n}}")).replacen('{', "[", 1);
        fs::write(folder.join(MANIFEST), text).unwrap();
        fs::write(folder.join("b.parquet"), "B.parquet").unwrap();
        fs::remove_file(folder.join("c.parquet")).unwrap();
        let damage = check(lake.path()).unwrap().damage;
        let found = |name: &str| damage.iter().find(|damage| damage.file.ends_with(name)).map(|damage| damage.code);
        assert_eq!(
            [MANIFEST, "a.parquet", "b.parquet", "c.parquet"].map(found),
            [Some("checksum"), None, Some("checksum"), Some("missing")]
        );
    }

    #[test]
    fn a_flipped_bit_of_a_manifest_is_blamed_on_no_file_that_it_names() {
        let lake = tempfile::tempdir().unwrap();
        let folder = lake.path().join("snapshots/000001");
        fs::create_dir_all(folder.join("links")).unwrap();
        let entry = |path: &str| {
            fs::write(folder.join(path), path).unwrap();
            let (bytes, sha256) = checksum(&folder.join(path)).unwrap();
            FileEntry { path: path.to_owned(), rows: Some(1), bytes, sha256 }
        };
        // One bit makes the name of the second of the first.
        let files = ["links/part-0.parquet", "links/part-1.parquet"].map(entry).to_vec();
        let manifest = Manifest {
            snapshot: 1,
            schema_version: 1,
            published_at: "2026-11-20T12:00:00Z".to_owned(),
            vinculo_version: "0.1.0".to_owned(),
            built_from: crate::publish::BuiltFrom { state_id: "s".to_owned(), change: 7 },
            link_buckets: 1,
            link_parts: 1,
            reference: String::new(),
            settings: String::new(),
            tables: Vec::new(),
            files,
        };
        let text = with_own_checksum(&serde_json::to_string_pretty(&manifest).unwrap());
        let damaged = |text: &[u8]| {
            fs::write(folder.join(MANIFEST), text).unwrap();
            let mut verified = Verified::default();
            check_snapshot(&folder, &folder, &mut HashMap::new(), &mut verified);
            verified.damage.into_iter().map(|damage| damage.file).collect::<Vec<_>>()
        };
        assert_eq!(damaged(text.as_bytes()), [""; 0]);
        let flipped = |bit: usize| {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            flipped
        };
        for bit in 0..text.len() * 8 {
            assert_eq!(damaged(&flipped(bit)), [MANIFEST], "bit {bit}");
        }
        // A file that is damaged, too, is named beside it.
        let of_checksum = 8 * (text.find("sha256").unwrap() + 20);
        fs::write(folder.join("links/part-1.parquet"), "links/part-1.parqueT").unwrap();
        assert_eq!(damaged(&flipped(of_checksum)).last().unwrap(), "links/part-1.parquet");
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_manifest_is_found() {
        let text = with_own_checksum("{\n  \"snapshot\": 1,\n  \"files\": []\n}");
        assert!(is_own(text.as_bytes()), "{text}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap()["snapshot"], 1);
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_own(&flipped), "bit {bit}");
        }
        for end in 0..text.len() {
            assert!(!is_own(&text.as_bytes()[..end]), "cut at {end}");
        }
    }
}
