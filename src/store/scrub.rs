//! Making sure that what was deleted is gone from the disk too.
//!
//! Deleted rows live on in the log until it is emptied, and copies of them may stand in parts of pages that are not in
//! use, where `secure_delete` does not reach. *Takes* traces: bytes that must not be there any more. *Promises* that
//! afterwards the log is empty, and that the file was written anew if a trace was still in it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::{Error, Store, connect, plain};

/// How long the readers of the moment have to end.
const READERS_END_WITHIN: Duration = Duration::from_mins(2);

/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// Bytes of a file that are looked at together.
const CHUNK: usize = 4 << 20;

/// Bytes that must not be found any more. They have no printed form.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Traces(BTreeSet<Vec<u8>>);

impl Traces {
    /// Shorter ones could be anything.
    const SHORTEST: usize = Search::START;

    /// Adds bytes to look for; too few to mean anything are left out.
    pub fn add(&mut self, bytes: &[u8]) {
        if bytes.len() >= Self::SHORTEST {
            self.0.insert(bytes.to_vec());
        }
    }

    /// How many of them are in the file at `path`.
    fn count_in(&self, path: &Path) -> io::Result<usize> {
        let overlap = self.0.iter().map(Vec::len).max().unwrap_or_default();
        let Some(file) = plain::open(path)? else { return Ok(0) };
        let (mut search, mut found) = (Search::of(self), 0);
        let (mut offset, mut buffer) = (0, Vec::with_capacity(CHUNK + overlap));
        loop {
            let kept = buffer.len();
            buffer.resize(kept + CHUNK, 0);
            let read = file.read_at(&mut buffer[kept..], offset)?;
            buffer.truncate(kept + read);
            offset += read as u64;
            found += search.look_in(&buffer);
            if read == 0 {
                return Ok(found);
            }
            buffer.drain(..buffer.len().saturating_sub(overlap));
        }
    }
}

/// Looks for traces in one pass, however many they are: of a person with many links there are thousands, and the state
/// is large.
struct Search<'t> {
    /// Those that are not found yet, by what they start with.
    by_start: HashMap<u64, Vec<&'t [u8]>>,
    /// A bit for each start, so that nearly all places are passed without a look at the map.
    starts: Vec<u64>,
}

impl<'t> Search<'t> {
    /// Bytes that a trace is told from others by at first.
    const START: usize = 8;

    /// The number of bits, as a power of two: they fit into a processor's cache.
    const BITS: u32 = 20;

    fn of(traces: &'t Traces) -> Self {
        let mut search = Self { by_start: HashMap::new(), starts: vec![0; 1 << (Self::BITS - 6)] };
        for trace in &traces.0 {
            let Some(start) = trace.first_chunk() else { continue };
            let start = u64::from_ne_bytes(*start);
            let (word, bit) = Self::bit_of(start);
            search.starts[word] |= bit;
            search.by_start.entry(start).or_default().push(trace);
        }
        search
    }

    fn bit_of(start: u64) -> (usize, u64) {
        // The odd number spreads what differs in a few bits over all of them.
        let hash = start.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - Self::BITS);
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    /// How many are in `bytes` that were not found before.
    fn look_in(&mut self, bytes: &[u8]) -> usize {
        let mut found = 0;
        for (at, start) in bytes.array_windows::<{ Search::START }>().enumerate() {
            let start = u64::from_ne_bytes(*start);
            let (word, bit) = Self::bit_of(start);
            if self.starts[word] & bit == 0 {
                continue;
            }
            if let Some(traces) = self.by_start.get_mut(&start) {
                let before = traces.len();
                traces.retain(|trace| !bytes[at..].starts_with(trace));
                found += before - traces.len();
            }
        }
        found
    }
}

/// What scrubbing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    /// Whether the file was written anew.
    pub is_compacted: bool,
    /// Traces that are still there: somebody else's rows hold the same bytes.
    pub left: usize,
}

impl Store {
    /// Empties the log into the file.
    ///
    /// # Errors
    /// As [`Store::scrub`].
    pub async fn empty_log(&self) -> Result<(), Error> {
        let path = self.readers.path.clone();
        let emptying = tokio::task::spawn_blocking(move || empty_log(&connect(&path)?));
        emptying.await.map_err(|_| Error::Closed)?
    }

    /// Empties the log into the file, and writes the file anew when one of the traces is still in it, or when there are
    /// none to tell.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody reads for too long; [`Error::Database`], [`Error::Folder`].
    pub async fn scrub(&self, traces: Traces) -> Result<Scrubbed, Error> {
        let path = self.readers.path.clone();
        tokio::task::spawn_blocking(move || scrub(&path, &traces)).await.map_err(|_| Error::Closed)?
    }
}

fn scrub(path: &Path, traces: &Traces) -> Result<Scrubbed, Error> {
    let connection = connect(path)?;
    empty_log(&connection)?;
    let unreadable = |source| Error::Folder { path: path.to_owned(), source };
    let look = || -> io::Result<usize> {
        let files = [path.to_owned(), beside(path, "-wal"), beside(path, "-shm")];
        files.iter().map(|file| traces.count_in(file)).sum()
    };
    let is_compacted = traces.0.is_empty() || look().map_err(unreadable)? > 0;
    if is_compacted {
        // The copy is as large as the state.
        connection.pragma_update(None, "temp_store", "FILE")?;
        retry(|| connection.execute_batch("VACUUM").map(|()| true))?;
        empty_log(&connection)?;
    }
    Ok(Scrubbed { is_compacted, left: look().map_err(unreadable)? })
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(super) fn empty_log(connection: &Connection) -> Result<(), Error> {
    // The first column says whether somebody was in the way, and then nothing was done.
    retry(|| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok(row.get::<_, i64>(0)? == 0)))
}

fn retry(mut work: impl FnMut() -> rusqlite::Result<bool>) -> Result<(), Error> {
    use rusqlite::ErrorCode;
    let started = Instant::now();
    loop {
        match work() {
            Ok(true) => return Ok(()),
            Err(error)
                if !matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)) =>
            {
                return Err(error.into());
            }
            Ok(false) | Err(_) if started.elapsed() > READERS_END_WITHIN => return Err(Error::Busy),
            Ok(false) | Err(_) => sleep(TRY_AGAIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::args;

    #[tokio::test]
    async fn nothing_of_a_deleted_row_is_left_in_file_or_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let store = Store::open(&path).unwrap();
        let add = |numbers: std::ops::Range<u32>| {
            store.write(move |tx| {
                numbers.into_iter().try_for_each(|number| {
                    let name = format!("somebody-{:08x}-{number}", number.wrapping_mul(2_654_435_761));
                    tx.execute("INSERT INTO meta (name, value) VALUES ($1, $2)", args![&name, &name.repeat(4)])
                        .map(drop)
                })
            })
        };
        add(0..2_000).await.unwrap();
        add(2_000..6_000).await.unwrap();
        store.write(|tx| tx.execute("DELETE FROM meta WHERE name LIKE 'somebody-%'", args![])).await.unwrap();
        let mut traces = Traces::default();
        traces.add(b"somebody-");
        let scrubbed = store.scrub(traces).await.unwrap();
        assert_eq!(scrubbed.left, 0);
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(memchr::memmem::find(&bytes, b"somebody-").is_none());
        }
        // Without traces to look for, as after a crash, the file is written anew in any case.
        assert!(store.scrub(Traces::default()).await.unwrap().is_compacted);
    }

    #[test]
    fn a_trace_across_two_chunks_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        let mut bytes = vec![0; CHUNK - 4];
        bytes.extend_from_slice(b"somebody-");
        std::fs::write(&path, bytes).unwrap();
        let mut traces = Traces::default();
        traces.add(b"somebody-");
        traces.add(b"nobody---");
        assert_eq!(traces.count_in(&path).unwrap(), 1);
    }

    #[test]
    fn each_of_many_traces_is_found_once_also_where_they_begin_alike() {
        let mut traces = Traces::default();
        for number in 0..5_000 {
            traces.add(format!("+55 11 9{number:08}").as_bytes());
        }
        // Told twice, and a part of another one.
        traces.add(b"+55 11 900000007");
        traces.add(b"+55 11 9000000");
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes =
            ["+55 11 900000007", "+55 11 900004999", "+55 11 900004999", "+55 11 900005000", "+55 11 9"].concat();
        std::fs::write(file.path(), bytes).unwrap();
        assert_eq!(traces.count_in(file.path()).unwrap(), 3);
    }
}
