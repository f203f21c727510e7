//! Instants, and where they come from.
//!
//! *Gives* [`Timestamp`], a UTC instant in whole microseconds (the resolution of every `_at` column), and [`Clock`],
//! the only source of "now": a test or a simulation puts its own in; and [`credible`], which times of Belvo's can be
//! true.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// A UTC instant, in microseconds since 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From the beginning of the year 1 to that of the year 10000, in microseconds: readers know no other instant.
    const YEARS: Range<i64> = -62_135_596_800_000_000..253_402_300_800_000_000;

    /// The instant `micros` microseconds after 1970-01-01T00:00:00Z.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970-01-01T00:00:00Z.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Reads an RFC 3339 timestamp with any offset and any number of fractional digits; what is finer than a
    /// microsecond is cut off. `None` when the text is not one, or is not a day of the calendar, or is outside the
    /// years 1 to 9999 of UTC.
    pub fn parse(text: &str) -> Option<Self> {
        let micros = DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros();
        Self::YEARS.contains(&micros).then_some(Self(micros))
    }

    /// The same instant as a `chrono` value, for calendar arithmetic.
    pub fn to_utc(self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.0).unwrap_or_default()
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl std::ops::Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_utc().to_rfc3339_opts(SecondsFormat::Micros, true))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<DateTime<Utc>> for Timestamp {
    fn from(at: DateTime<Utc>) -> Self {
        Self(at.timestamp_micros())
    }
}

/// Where "now" comes from. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The wall clock of the machine.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    pub fn system() -> Self {
        Self::from_fn(|| Timestamp::from(Utc::now()))
    }

    /// A clock that asks `now`.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The current instant.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A clock in a test's hand: it stands until it is moved. Cheap to clone.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct Hand(Arc<std::sync::atomic::AtomicI64>);

#[cfg(test)]
impl Hand {
    /// One that shows `at`.
    pub(crate) fn at(at: Timestamp) -> Self {
        Self(Arc::new(at.0.into()))
    }

    /// What it shows.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }

    /// Shows `at` from now on, earlier or later.
    pub(crate) fn set(&self, at: Timestamp) {
        self.0.store(at.0, std::sync::atomic::Ordering::SeqCst);
    }

    /// Lets `time` pass.
    pub(crate) fn pass(&self, time: Duration) {
        self.set(self.now() + time);
    }

    /// The clock that goes by it.
    pub(crate) fn clock(&self) -> Clock {
        let hand = self.clone();
        Clock::from_fn(move || hand.now())
    }
}

/// A time of Belvo's may be so far ahead of ours, and generously so: a simulated Belvo runs months ahead. What is
/// further ahead is a slip, such as 2062 for 2026, and believed it would make every answer of the decades until then an
/// older one.
pub const FARTHEST_AHEAD: Duration = Duration::from_hours(10 * 366 * 24);

/// When Belvo collected something, as far as that can be true of what was fetched at `fetched_at`.
pub fn credible(collected_at: Option<Timestamp>, fetched_at: Timestamp) -> Option<Timestamp> {
    collected_at.filter(|collected_at| *collected_at <= fetched_at + FARTHEST_AHEAD)
}

/// Days from 1970-01-01 to a day; `None` when the calendar has none such. Years are counted as in ISO 8601.
///
/// `chrono` gives the same and builds a date first: this is asked for every date and month of a lake.
#[inline]
pub fn days_since_1970(year: i32, month: u32, day: u32) -> Option<i32> {
    const DAYS: [u32; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    /// So many years are added that there is none before 0: 400 of them always have as many days.
    const SHIFT: i32 = 400 * 10_000;
    const SHIFT_DAYS: u32 = 146_097 * 10_000;

    let last = *DAYS.get(month.checked_sub(1)? as usize)?;
    let is_leap = || year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let is_there = (1..=last).contains(&day) || month == 2 && day == 29 && is_leap();
    if !is_there {
        return None;
    }
    let year = u32::try_from(year.checked_add(SHIFT)?).ok()?;
    // Years that begin in March, so that the odd day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    i32::try_from(i64::from(days) - i64::from(SHIFT_DAYS) - 719_468).ok()
}

/// The number that is written in decimal digits and nothing else, of at most nine.
#[inline]
pub fn digits(text: &[u8]) -> Option<u32> {
    let is_number = !text.is_empty() && text.len() <= 9 && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| text.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_utc_and_three_to_six_digits_are_read() {
        let six = Timestamp::parse("2022-02-09T08:45:50.406032Z").unwrap();
        assert_eq!(six.as_micros(), 1_644_396_350_406_032);
        assert_eq!(Timestamp::parse("2022-02-09T08:45:50.406032+00:00"), Some(six));
        assert_eq!(Timestamp::parse("2022-02-09T08:45:50.406Z").unwrap().to_string(), "2022-02-09T08:45:50.406000Z");
        assert_eq!(Timestamp::parse("2022-02-30T08:45:50Z"), None);
    }

    #[test]
    fn instants_of_years_that_no_reader_knows_are_none() {
        for (text, is_read) in [
            ("0001-01-01T00:00:00Z", true),
            ("0000-12-31T23:59:59.999999Z", false),
            ("0001-01-01T00:00:00+00:01", false),
            ("0000-12-31T23:00:00-01:00", true),
            ("0000-01-01T00:00:00Z", false),
            ("9999-12-31T23:59:59.999999Z", true),
            ("9999-12-31T23:59:60Z", false),
            ("9999-12-31T23:59:59-03:00", false),
        ] {
            let read = Timestamp::parse(text);
            assert_eq!(read.is_some(), is_read, "{text}");
            assert!(read.is_none_or(|at| at.to_string().len() == "2026-01-01T00:00:00.000000Z".len()), "{text}");
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        use chrono::Datelike as _;
        for year in [0, 1, 1600, 1899, 1900, 1969, 1970, 2000, 2023, 2024, 9999] {
            for (month, day) in (0..=13).flat_map(|month| (0..=32).map(move |day| (month, day))) {
                let expected =
                    chrono::NaiveDate::from_ymd_opt(year, month, day).map(|date| date.num_days_from_ce() - 719_163);
                assert_eq!(days_since_1970(year, month, day), expected, "{year}-{month}-{day}");
            }
        }
    }

    #[test]
    fn digits_are_nothing_else() {
        assert_eq!(
            ["0", "07", "2025", "999999999"].map(|text| digits(text.as_bytes())),
            [0, 7, 2025, 999_999_999].map(Some)
        );
        assert_eq!(["", "+1", "1 ", "1e2", "1000000000"].map(|text| digits(text.as_bytes())), [None; 5]);
    }
}
