//! The file that lets the request budget outlive its process.
//!
//! *Takes* each change of a slot. *Gives* at the next start what the slots still hold. A slot says that a call is under
//! way, or when its answer began. *Promises* to be right after `kill -9`, at the price of two small writes a call into
//! the page cache: after a power cut the machine is longer away than any window.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::Timestamp;

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"vbudget1";
/// Magic, and the instant before which no call may leave.
const HEADER: u64 = 16;
/// A call is under way.
const OPEN: i64 = i64::MAX;
/// Slots written ahead, so that a full disk does not stop the count.
const WRITTEN_AHEAD: usize = 1 << 16;

/// The open file.
pub(super) struct Ledger {
    file: File,
    has_failed: AtomicBool,
}

/// What an earlier process left.
pub(super) struct Left {
    /// How much longer each slot stays taken; zero for a free one.
    pub slots: Vec<Duration>,
    /// How much longer no call may leave.
    pub pause: Duration,
}

impl Ledger {
    /// Opens or makes the file at `path` with at least `slots` slots, each taken for `per` after its answer began.
    /// Whatever cannot be true (a damaged file, an instant in the future) counts as if it had happened now.
    pub(super) fn open(
        path: &Path,
        slots: usize,
        per: Duration,
        longest_pause: Duration,
        now: Timestamp,
    ) -> io::Result<(Self, Left)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let left = match bytes.split_at_checked(usize::try_from(HEADER).unwrap_or(0)) {
            _ if bytes.is_empty() => Left { slots: Vec::new(), pause: Duration::ZERO },
            Some((header, body)) if header[..8] == MAGIC => Left {
                slots: integers(body).map(|instant| rest(instant, per, now)).collect(),
                pause: integers(&header[8..])
                    .next()
                    .map_or(Duration::ZERO, |until| Timestamp::from_micros(until).since(now))
                    .min(longest_pause),
            },
            _ => {
                file.set_len(0)?;
                Left { slots: vec![per; slots], pause: Duration::ZERO }
            }
        };
        file.write_all_at(&MAGIC, 0)?;
        let (from, to) = (left.slots.len(), slots.min(WRITTEN_AHEAD));
        if from < to {
            file.write_all_at(&vec![0; (to - from) * 8], place(from))?;
        }
        Ok((Self { file, has_failed: AtomicBool::new(false) }, left))
    }

    /// A call takes the slot.
    pub(super) fn opened(&self, slot: usize) {
        self.put(place(slot), OPEN);
    }

    /// The answer to the slot's call began at `at`, or will not come.
    pub(super) fn answered(&self, slot: usize, at: Timestamp) {
        self.put(place(slot), at.as_micros());
    }

    /// The slot's call never left.
    pub(super) fn given_back(&self, slot: usize) {
        self.put(place(slot), 0);
    }

    /// No call may leave before `until`.
    pub(super) fn paused(&self, until: Timestamp) {
        self.put(8, until.as_micros());
    }

    /// The budget holds within this process whatever happens here, so a failure is told once and endured.
    fn put(&self, offset: u64, value: i64) {
        if let Err(error) = self.file.write_all_at(&value.to_le_bytes(), offset)
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                code = "budget_file",
                "calls are not counted across a restart: {error}; make room on the state's volume"
            );
        }
    }
}

fn place(slot: usize) -> u64 {
    HEADER + 8 * u64::try_from(slot).unwrap_or(0)
}

fn integers(bytes: &[u8]) -> impl Iterator<Item = i64> {
    bytes.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk))
}

/// How much longer a slot is taken whose answer began at `instant`.
fn rest(instant: i64, per: Duration, now: Timestamp) -> Duration {
    if instant == 0 {
        return Duration::ZERO;
    }
    let at = if instant < 0 { now } else { Timestamp::from_micros(instant).min(now) };
    per.saturating_sub(now.since(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_hours(1);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros((1_000_000 + seconds) * 1_000_000)
    }

    #[test]
    fn what_was_under_way_or_answered_is_still_counted_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let (ledger, left) = Ledger::open(&path, 4, PER, HOUR, at(0)).unwrap();
        assert!(left.slots.is_empty() && left.pause.is_zero());
        ledger.opened(0);
        ledger.answered(1, at(10));
        ledger.answered(2, at(-100));
        ledger.paused(at(27));
        let (_, left) = Ledger::open(&path, 4, PER, HOUR, at(20)).unwrap();
        assert_eq!(left.slots, [PER, Duration::from_secs(20), Duration::ZERO, Duration::ZERO]);
        assert_eq!(left.pause, Duration::from_secs(7));
    }

    #[test]
    fn after_a_clock_jump_back_calls_count_as_of_now_and_a_pause_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let (ledger, _) = Ledger::open(&path, 2, PER, HOUR, at(0)).unwrap();
        ledger.answered(0, at(7200));
        ledger.paused(at(720_000));
        let (_, left) = Ledger::open(&path, 2, PER, HOUR, at(0)).unwrap();
        assert_eq!((left.slots[0], left.pause), (PER, HOUR));
    }

    #[test]
    fn a_damaged_file_counts_as_a_full_window_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        for garbage in [&b"x"[..], b"something else entirely", &[0xff; 100]] {
            std::fs::write(&path, garbage).unwrap();
            assert_eq!(Ledger::open(&path, 3, PER, HOUR, at(0)).unwrap().1.slots, [PER; 3]);
        }
        std::fs::write(&path, [&MAGIC[..], &[0xff; 8], &[0xff; 12]].concat()).unwrap();
        let left = Ledger::open(&path, 1, PER, HOUR, at(0)).unwrap().1;
        assert_eq!((left.slots, left.pause), (vec![PER], Duration::ZERO));
    }
}
