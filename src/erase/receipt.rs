//! The receipt of an erasure: what was removed from where, as JSON and as a page.
//!
//! *Takes* what the steps found out. *Gives* two files beside the state. *Promises* that neither names anybody, and
//! that one that was written stays as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Error;
use crate::durable;
use crate::publish::Forgotten;
use crate::tombstones::Tombstone;

/// The folder of receipts, in that of the state.
const FOLDER: &str = "erasures";

/// What was done. It names nobody.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Receipt {
    /// Random id of the erasure.
    pub erasure: String,
    /// When it was asked for, RFC 3339.
    pub asked_at: String,
    /// When it was done; empty before.
    pub finished_at: String,
    /// `link`, `external_id` or `person`.
    pub asked_for: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// How many links it was about.
    pub links: usize,
    /// What Belvo said of each link, when it was to delete them: `deleted`, or `accepted` when it will.
    pub remote: Option<Vec<String>>,
    /// Salted hashes of what must not come back.
    pub tombstones: Vec<Tombstone>,
    /// Rows removed from each table of the state, the keys of the bodies (`link_keys`) among them.
    pub rows: BTreeMap<String, u64>,
    /// The first snapshot without the person; absent when nothing was ever published.
    pub published: Option<u32>,
    /// Snapshots that were dropped, file by file.
    pub snapshots: Vec<Forgotten>,
    /// Whether the state's file was written anew, because emptying its log was not enough.
    pub state_rewritten: bool,
    /// Traces left in the state, because rows of others hold the same bytes.
    pub traces_left: usize,
    /// Backups made before, and when each has to be gone.
    pub backups: Vec<BackupToGo>,
    /// Hash of the line in the audit.
    pub audit_hash: String,
}

/// A backup that holds an erased person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupToGo {
    /// The file, as it was named when it was made.
    pub file: String,
    /// When it was made, RFC 3339.
    pub made_at: String,
    /// When it must be gone.
    pub gone_by: String,
}

/// Where the receipt of an erasure is, as JSON and as a page.
pub fn receipts_of(state: &Path, erasure: &str) -> [PathBuf; 2] {
    ["json", "txt"].map(|kind| state.with_file_name(FOLDER).join(format!("{erasure}.{kind}")))
}

/// Writes the receipt of an erasure beside the state at `state`. One that is there is the true one, and stays.
///
/// # Errors
/// [`Error::File`].
pub(super) fn write(state: &Path, receipt: &Receipt) -> Result<(), Error> {
    let [document, page] = receipts_of(state, &receipt.erasure);
    let text = serde_json::to_string_pretty(receipt).unwrap_or_default() + "\n";
    let folder = state.with_file_name(FOLDER);
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(unwritable(&folder))?;
    for (path, text) in [(document, text), (page, receipt.to_string())] {
        // A state that was put back from the middle of the erasure finds less to remove than there was.
        if path.exists() {
            continue;
        }
        durable::replace(&path, text.as_bytes()).map_err(unwritable(&path))?;
    }
    Ok(())
}

/// The page.
impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "RECEIPT OF AN ERASURE\n")?;
        writeln!(f, "Erasure      {}", self.erasure)?;
        writeln!(f, "Asked for    {} ({} link(s))", self.asked_for, self.links)?;
        writeln!(f, "Reason       {}", self.reason)?;
        writeln!(f, "Asked at     {}", self.asked_at)?;
        writeln!(f, "Done at      {}", self.finished_at)?;
        writeln!(f, "Audit line   {}\n", self.audit_hash)?;
        writeln!(f, "1. Removed from the state database")?;
        self.rows.iter().try_for_each(|(table, rows)| writeln!(f, "   {rows:>8} row(s) of {table}"))?;
        writeln!(
            f,
            "   The keys that the stored answers and webhooks were encrypted with are among them (link_keys): what a\n   \
             copy of the file may still hold of these can no longer be read with this state.\n   \
             The database's log was emptied{}.\n",
            if self.state_rewritten {
                " and its file written anew"
            } else {
                ", and its file was searched: no trace is left"
            }
        )?;
        if self.traces_left > 0 {
            writeln!(f, "   {} searched value(s) also belong to others' rows, which stay.\n", self.traces_left)?;
        }
        writeln!(f, "2. Removed from the published data")?;
        match self.published {
            Some(snapshot) => writeln!(f, "   Snapshot {snapshot:06} was built without the person.")?,
            None => writeln!(f, "   Nothing was published yet.")?,
        }
        for Forgotten { snapshot, files } in &self.snapshots {
            writeln!(f, "   Snapshot {snapshot:06} was removed, {} file(s):", files.len())?;
            files.iter().try_for_each(|file| writeln!(f, "     {file}"))?;
        }
        writeln!(f, "\n3. Kept, so that nothing comes back")?;
        writeln!(f, "   Salted hashes, from which nobody can be told:")?;
        for Tombstone { kind, hash, .. } in &self.tombstones {
            writeln!(f, "     {} {hash}", kind.name())?;
        }
        writeln!(f, "\n4. Backups made before, which still hold the person")?;
        if self.backups.is_empty() {
            writeln!(f, "   None is known.")?;
        }
        for BackupToGo { file, made_at, gone_by } in &self.backups {
            writeln!(f, "   {file}, made at {made_at}: to be destroyed by {gone_by}")?;
        }
        match &self.remote {
            Some(said) if said.is_empty() => {
                writeln!(f, "\n5. At Belvo: no link was known that could be deleted there")?;
            }
            Some(said) => writeln!(f, "\n5. At Belvo: {}", said.join(", "))?,
            None => writeln!(f, "\n5. At Belvo: not asked for; its copy stays until it is deleted there")?,
        }
        writeln!(f, "\nNot reached: copies that others made, and the data at the institution.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_that_was_written_stays_whatever_is_found_out_later() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state.db");
        let first =
            Receipt { erasure: "1".to_owned(), rows: BTreeMap::from([("links".to_owned(), 1)]), ..Receipt::default() };
        write(&state, &first).unwrap();
        let files = receipts_of(&state, "1");
        let texts = files.clone().map(|file| fs::read_to_string(file).unwrap());
        assert!(texts[1].contains("1 row(s) of links"), "{}", texts[1]);
        // A half of it is written once more: a crash came in between.
        fs::remove_file(&files[1]).unwrap();
        write(&state, &first).unwrap();
        write(&state, &Receipt { rows: BTreeMap::new(), ..first }).unwrap();
        assert_eq!(files.map(|file| fs::read_to_string(file).unwrap()), texts);
        assert_eq!(fs::read_dir(folder.path().join(FOLDER)).unwrap().count(), 2, "nothing half done is left");
    }
}
