//! The file that lets the request budget outlive its process.
//!
//! *Takes* each change of a slot. *Gives* at the next start what the slots still hold. A slot says that a call is under
//! way, or when its answer began. *Promises* to be right after `kill -9`, at the price of two small writes a call into
//! the page cache: after a power cut the machine is longer away than any window. Instants are kept by the wall clock
//! and by the time since the machine's start, which nobody sets: as long as the machine was not started anew, that one
//! counts, so that a wall clock that is set ahead frees nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::{Clock, Timestamp};

/// First bytes of the file.
const MAGIC: [u8; 8] = *b"vbudget2";
/// First bytes of a file of the older form: there an instant is its wall time alone, without the time since the
/// machine's start, and a halved budget is not kept at all.
const FIRST_MAGIC: [u8; 8] = *b"vbudget1";
/// The machine's start, after the magic.
const BOOT: u64 = 8;
/// The instant before which no call may leave.
const PAUSE: u64 = BOOT + 16;
/// The instant until which the budget is halved.
const SLOW: u64 = PAUSE + 16;
/// The slots.
const SLOTS: u64 = SLOW + 16;
/// Slots written ahead, so that a full disk does not stop the count.
const WRITTEN_AHEAD: usize = 1 << 16;

/// By how much the system may understate the time since the machine's start.
const RESOLUTION: Duration = Duration::from_millis(10);

/// An instant, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    wall: Timestamp,
    /// `None` where the system does not tell.
    up: Option<Uptime>,
}

/// How long the machine has been up, and since which start.
#[derive(Debug, Clone, Copy)]
struct Uptime {
    boot: u128,
    time: Duration,
}

impl Moment {
    /// The present one.
    pub(super) fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), up: Uptime::read() }
    }

    /// The moment `time` later.
    pub(super) fn after(self, time: Duration) -> Self {
        let up = self.up.map(|up| Uptime { time: up.time + time, ..up });
        Self { wall: self.wall + time, up }
    }

    fn before(self, time: Duration) -> Self {
        let up = self.up.map(|up| Uptime { time: up.time.saturating_sub(time), ..up });
        Self { wall: self.wall - time, up }
    }

    fn boot(self) -> u128 {
        self.up.map_or(0, |up| up.boot)
    }

    fn mark(self) -> Mark {
        let up = self.up.map_or(0, |up| i64::try_from(up.time.as_micros()).unwrap_or(i64::MAX));
        Mark { wall: self.wall.as_micros(), up }
    }
}

impl Uptime {
    fn read() -> Option<Self> {
        // A process sees one start only.
        static BOOT: LazyLock<Option<u128>> = LazyLock::new(|| {
            let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            u128::from_str_radix(&boot.trim().replace('-', ""), 16).ok()
        });
        let boot = (*BOOT)?;
        let time = std::fs::read_to_string("/proc/uptime").ok()?;
        let time = Duration::try_from_secs_f64(time.split_whitespace().next()?.parse().ok()?).ok()?;
        Some(Self { boot, time })
    }
}

/// An instant as the file keeps it, in microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    /// 0: there was none.
    wall: i64,
    /// Since the machine's start; 0 where nobody knows.
    up: i64,
}

impl Mark {
    /// A call is under way.
    const OPEN: Self = Self { wall: i64::MAX, up: 0 };

    /// How long ago it was. What cannot be true (a damaged file, an instant in the future) counts as now.
    fn age(self, now: Moment) -> Duration {
        match now.up {
            Some(up) if self.up > 0 => {
                up.time.saturating_sub(Duration::from_micros(self.up.unsigned_abs()) + RESOLUTION)
            }
            _ if self.wall < 0 => Duration::ZERO,
            _ => now.wall.since(Timestamp::from_micros(self.wall)),
        }
    }

    /// How much longer a slot is taken whose answer began then.
    fn rest(self, per: Duration, now: Moment) -> Duration {
        if self.wall == 0 { Duration::ZERO } else { per.saturating_sub(self.age(now)) }
    }

    /// How long it is until then.
    fn left(self, now: Moment) -> Duration {
        match now.up {
            Some(up) if self.up > 0 => Duration::from_micros(self.up.unsigned_abs()).saturating_sub(up.time),
            _ => Timestamp::from_micros(self.wall).since(now.wall),
        }
    }

    fn bytes(self) -> [u8; 16] {
        (u128::from(self.wall.cast_unsigned()) | u128::from(self.up.cast_unsigned()) << 64).to_le_bytes()
    }
}

/// The open file.
pub(super) struct Ledger {
    file: File,
    has_failed: AtomicBool,
}

/// What an earlier process left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// How much longer each slot stays taken; zero for a free one.
    pub slots: Vec<Duration>,
    /// How much longer no call may leave.
    pub pause: Duration,
    /// How much longer the budget is halved.
    pub slow: Duration,
}

impl Ledger {
    /// Opens or makes the file at `path` with at least `slots` slots, each taken for `per` after its answer began.
    pub(super) fn open(
        path: &Path,
        slots: usize,
        per: Duration,
        longest_pause: Duration,
        now: Moment,
    ) -> io::Result<(Self, Left)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let (left, is_of_now) = match Content::read(&bytes, now) {
            _ if bytes.is_empty() => (Left::default(), false),
            Some(Content { pause, slow, slots, boot }) => {
                let [pause, slow] = [pause, slow].map(|until| until.left(now).min(longest_pause));
                let slots = slots.into_iter().map(|answered| answered.rest(per, now)).collect();
                (Left { slots, pause, slow }, boot == Some(now.boot()))
            }
            None => {
                file.set_len(0)?;
                (Left { slots: vec![per; slots], ..Left::default() }, false)
            }
        };
        if !is_of_now {
            file.write_all_at(&left.bytes(per, now), 0)?;
        }
        let (from, to) = (left.slots.len(), slots.min(WRITTEN_AHEAD));
        if from < to {
            file.write_all_at(&vec![0; (to - from) * 16], place(from))?;
        }
        Ok((Self { file, has_failed: AtomicBool::new(false) }, left))
    }

    /// A call takes the slot.
    pub(super) fn opened(&self, slot: usize) {
        self.put(place(slot), Mark::OPEN);
    }

    /// The answer to the slot's call began at `at`, or will not come.
    pub(super) fn answered(&self, slot: usize, at: Moment) {
        self.put(place(slot), at.mark());
    }

    /// The slot's call never left.
    pub(super) fn given_back(&self, slot: usize) {
        self.put(place(slot), Mark::default());
    }

    /// No call may leave before `until`.
    pub(super) fn paused(&self, until: Moment) {
        self.put(PAUSE, until.mark());
    }

    /// The budget is halved until `until`.
    pub(super) fn slowed(&self, until: Moment) {
        self.put(SLOW, until.mark());
    }

    /// The budget holds within this process whatever happens here, so a failure is told once and endured.
    fn put(&self, offset: u64, mark: Mark) {
        if let Err(error) = self.file.write_all_at(&mark.bytes(), offset)
            && !self.has_failed.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                code = "budget_file",
                "calls are not counted across a restart: {error}; make room on the state's volume"
            );
        }
    }
}

impl Left {
    /// A file that says this as of `now`, by the clocks of now.
    fn bytes(&self, per: Duration, now: Moment) -> Vec<u8> {
        let until = |left: Duration| if left.is_zero() { Mark::default() } else { now.after(left).mark() };
        let slot = |rest: &Duration| {
            if rest.is_zero() { Mark::default() } else { now.before(per.saturating_sub(*rest)).mark() }
        };
        let marks = [until(self.pause), until(self.slow)].into_iter().chain(self.slots.iter().map(slot));
        MAGIC.into_iter().chain(now.boot().to_le_bytes()).chain(marks.flat_map(Mark::bytes)).collect()
    }
}

/// What a file says.
struct Content {
    pause: Mark,
    slow: Mark,
    slots: Vec<Mark>,
    /// The machine's start that it goes by; `None` in a file of the first form.
    boot: Option<u128>,
}

impl Content {
    /// That of `bytes`; `None` when they are damaged. Times since another start of the machine count for nothing.
    fn read(bytes: &[u8], now: Moment) -> Option<Self> {
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let numbers = |bytes: &[u8]| -> Vec<i64> {
            bytes.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect()
        };
        if magic == FIRST_MAGIC {
            let mut marks = numbers(rest).into_iter().map(|wall| Mark { wall, up: 0 });
            let pause = marks.next()?;
            return Some(Self { pause, slow: Mark::default(), slots: marks.collect(), boot: None });
        }
        let (boot, rest) = rest.split_first_chunk::<16>().filter(|_| magic == MAGIC)?;
        let boot = u128::from_le_bytes(*boot);
        let is_same = boot == now.boot();
        let numbers = numbers(rest);
        let pairs = numbers.as_chunks::<2>().0.iter();
        let mut marks = pairs.map(|&[wall, up]| Mark { wall, up: if is_same { up } else { 0 } });
        Some(Self { pause: marks.next()?, slow: marks.next()?, slots: marks.collect(), boot: Some(boot) })
    }
}

fn place(slot: usize) -> u64 {
    SLOTS + 16 * u64::try_from(slot).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PER: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_hours(1);

    /// A moment by the wall clock alone.
    fn at(seconds: i64) -> Moment {
        Moment { wall: Timestamp::from_micros((1_000_000 + seconds) * 1_000_000), up: None }
    }

    /// One at which the machine has been up for `up` seconds since its start `boot`.
    fn up(wall: i64, boot: u128, up: u64) -> Moment {
        Moment { up: Some(Uptime { boot, time: Duration::from_secs(up) }), ..at(wall) }
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
        ledger.slowed(at(29));
        let (_, left) = Ledger::open(&path, 4, PER, HOUR, at(20)).unwrap();
        assert_eq!(left.slots, [PER, Duration::from_secs(20), Duration::ZERO, Duration::ZERO]);
        assert_eq!((left.pause, left.slow), (Duration::from_secs(7), Duration::from_secs(9)));
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
    fn a_wall_clock_that_is_set_ahead_frees_nothing_while_the_machine_stays_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let (ledger, _) = Ledger::open(&path, 2, PER, HOUR, up(0, 7, 100)).unwrap();
        ledger.answered(0, up(0, 7, 100));
        ledger.paused(up(40, 7, 140));
        ledger.slowed(up(400, 7, 500));
        for wall in [7_200, 10, -7_200] {
            let (_, left) = Ledger::open(&path, 2, PER, HOUR, up(wall, 7, 110)).unwrap();
            assert_eq!(left.slots[0], Duration::from_secs(20) + RESOLUTION, "{wall}");
            assert_eq!((left.pause, left.slow), (Duration::from_secs(30), Duration::from_secs(390)), "{wall}");
        }
        // After another start the wall clock is all there is, and from then on both are.
        for (wall, time) in [(15, 60), (7_200, 60)] {
            let (_, left) = Ledger::open(&path, 2, PER, HOUR, up(wall, 8, time)).unwrap();
            let rest = Duration::from_secs(15) + if wall == 15 { Duration::ZERO } else { RESOLUTION };
            assert_eq!((left.slots[0], left.pause), (rest, Duration::from_secs(25)), "{wall}");
        }
    }

    #[test]
    fn a_file_of_the_first_form_is_read_and_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        let numbers = [at(27).wall.as_micros(), i64::MAX, at(10).wall.as_micros(), 0];
        let numbers: Vec<u8> = numbers.into_iter().flat_map(i64::to_le_bytes).collect();
        std::fs::write(&path, [&FIRST_MAGIC[..], &numbers].concat()).unwrap();
        for wall in [20, 7_200] {
            let (_, left) = Ledger::open(&path, 3, PER, HOUR, up(wall, 7, 100)).unwrap();
            assert_eq!(left.slots[2], Duration::ZERO);
            assert!(left.slots[1].abs_diff(Duration::from_secs(20)) <= RESOLUTION, "{wall} {left:?}");
            assert_eq!((left.slots[0], left.pause), (PER, Duration::from_secs(7)), "{wall}");
        }
    }

    #[test]
    fn a_damaged_file_counts_as_a_full_window_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget");
        for garbage in [&b"x"[..], b"something else entirely", &[0xff; 100]] {
            std::fs::write(&path, garbage).unwrap();
            assert_eq!(Ledger::open(&path, 3, PER, HOUR, at(0)).unwrap().1.slots, [PER; 3]);
        }
        std::fs::write(&path, [&FIRST_MAGIC[..], &[0xff; 8], &[0xff; 12]].concat()).unwrap();
        let left = Ledger::open(&path, 1, PER, HOUR, at(0)).unwrap().1;
        assert_eq!((left.slots, left.pause), (vec![PER], Duration::ZERO));
        std::fs::write(&path, [&MAGIC[..], &[0; 16], &[0xff; 48], &[0xff; 12]].concat()).unwrap();
        let left = Ledger::open(&path, 1, PER, HOUR, up(0, 7, 100)).unwrap().1;
        assert_eq!((left.slots, left.pause), (vec![PER], Duration::ZERO));
    }
}
