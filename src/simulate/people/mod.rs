//! People with lives worth analysing, none of whom ever lived.
//!
//! *Takes* a seed and a person's number. *Gives* a [`Person`]: the whole life up to [`career::HORIZON`], each fact with
//! the day since which the register shows it; [`Person::seen`] cuts it to what the register shows on one day.
//!
//! *Promises* that person *i* depends on (seed, *i*) alone, and that what is seen depends on the day alone: advancing
//! the clock one month twice is advancing it two months once. *Not here*: links, ids of records, JSON.

pub(super) mod archetypes;
pub(super) mod career;
pub(super) mod documents;
pub(super) mod identity;
pub(super) mod law;
pub(super) mod pay;
pub(super) mod work;

use chrono::NaiveDate;

use super::calendar::{Amount, Month};
use identity::{Identity, Owner};
use work::{Activity, Employer};

/// How many people can be told apart: a fake CPF has seven digits for the number of its person.
pub(super) const EVERYBODY: u32 = 10_000_000;

/// One person.
pub(super) struct Person {
    /// Who it is.
    pub identity: Identity,
    /// All jobs of the life, oldest first.
    pub jobs: Vec<Job>,
    /// How the institution spells this person's records.
    pub spelling: Spelling,
}

impl Person {
    /// Person `number` of the world `seed`.
    pub(super) fn of(seed: u64, number: u32) -> Self {
        let identity = Identity::of(seed, number);
        let spelling = Spelling::of(seed, number);
        let plans = archetypes::plans(seed, number).unwrap_or_else(|| career::plans(seed, number, &identity));
        let jobs = pay::jobs(seed, number, &plans, &spelling);
        Self { identity, jobs, spelling }
    }

    /// The jobs that the register shows on `day`.
    pub(super) fn seen(&self, day: NaiveDate) -> Vec<Seen<'_>> {
        self.jobs.iter().filter_map(|job| job.seen(day)).collect()
    }

    /// The owner record on `day`.
    pub(super) fn owner(&self, day: NaiveDate) -> &Owner {
        self.identity.owner.at(day).expect("every person has an owner record from birth")
    }
}

/// A fact and its corrections: what holds, by the day since which the register says so.
pub(super) struct Timeline<T>(Vec<(NaiveDate, T)>);

impl<T> Timeline<T> {
    /// Known to be `value` since `day`.
    pub(super) fn since(day: NaiveDate, value: T) -> Self {
        Self(vec![(day, value)])
    }

    /// The same, corrected to `value` on `day`, which is later than all days before.
    pub(super) fn then(mut self, day: NaiveDate, value: T) -> Self {
        self.0.push((day, value));
        self
    }

    /// What is known on `day`.
    pub(super) fn at(&self, day: NaiveDate) -> Option<&T> {
        self.0.iter().rev().find(|(since, _)| *since <= day).map(|(_, value)| value)
    }

    /// The day since which what is known on `day` has been known.
    pub(super) fn known_since(&self, day: NaiveDate) -> Option<NaiveDate> {
        self.0.iter().rev().map(|(since, _)| *since).find(|since| *since <= day)
    }
}

/// One job, with everything the register will ever say about it.
pub(super) struct Job {
    /// Position in the life, from 0.
    pub number: u32,
    /// Who pays. The name and code may be corrected.
    pub employer: Timeline<Employer>,
    /// What the employer does.
    pub activity: Option<Activity>,
    /// First day.
    pub start: Timeline<Option<NaiveDate>>,
    /// Last day; none while it is not known.
    pub end: Timeline<Option<NaiveDate>>,
    /// Whether the record is in the list at all.
    pub listed: Timeline<bool>,
    /// Grows when Belvo issues the record under a new id.
    pub edition: Timeline<u32>,
    /// Duties, oldest first.
    pub occupations: Vec<Occupation>,
    /// Salary rows, oldest first.
    pub pay: Vec<Pay>,
    /// First and last day as they really were, whatever the register says.
    #[cfg_attr(not(test), expect(dead_code, reason = "the calibration reads it"))]
    pub really: (NaiveDate, Option<NaiveDate>),
}

impl Job {
    fn seen(&self, day: NaiveDate) -> Option<Seen<'_>> {
        if !*self.listed.at(day)? {
            return None;
        }
        let end = *self.end.at(day)?;
        Some(Seen {
            job: self.number,
            edition: *self.edition.at(day)?,
            issued_on: self.edition.known_since(day)?,
            employer: self.employer.at(day)?,
            activity: self.activity.as_ref(),
            start: *self.start.at(day)?,
            end,
            occupations: self.occupations.iter().filter_map(|occupation| occupation.seen(day, end)).collect(),
            pay: self
                .pay
                .iter()
                .filter(|pay| pay.shown_from <= day && pay.shown_until.is_none_or(|u| day < u))
                .collect(),
        })
    }
}

/// A job as the register shows it on one day.
pub(super) struct Seen<'a> {
    /// [`Job::number`].
    pub job: u32,
    /// Which id the record has.
    pub edition: u32,
    /// The day since which it has that id.
    pub issued_on: NaiveDate,
    /// Who pays.
    pub employer: &'a Employer,
    /// What the employer does.
    pub activity: Option<&'a Activity>,
    /// First day.
    pub start: Option<NaiveDate>,
    /// Last day.
    pub end: Option<NaiveDate>,
    /// Duties.
    pub occupations: Vec<SeenOccupation<'a>>,
    /// Salary rows, oldest first.
    pub pay: Vec<&'a Pay>,
}

/// A duty within a job.
pub(super) struct Occupation {
    /// Since when the register shows it.
    pub shown_from: NaiveDate,
    /// First day.
    pub start: Option<NaiveDate>,
    /// Last day, if another duty followed.
    pub end: Option<NaiveDate>,
    /// Whether the job's own end is written here too.
    pub ends_with_job: bool,
    /// The title and its code.
    pub title: work::Title,
    /// Whether `description` is sent.
    pub described: bool,
    /// Place of duty.
    pub locale: Option<&'static str>,
}

impl Occupation {
    fn seen(&self, day: NaiveDate, job_end: Option<NaiveDate>) -> Option<SeenOccupation<'_>> {
        if self.shown_from > day {
            return None;
        }
        let end = self.end.filter(|end| *end <= day).or(if self.ends_with_job { job_end } else { None });
        Some(SeenOccupation {
            start: self.start,
            end,
            title: &self.title,
            described: self.described,
            locale: self.locale,
        })
    }
}

/// A duty as the register shows it on one day.
pub(super) struct SeenOccupation<'a> {
    /// First day.
    pub start: Option<NaiveDate>,
    /// Last day.
    pub end: Option<NaiveDate>,
    /// The title and its code.
    pub title: &'a work::Title,
    /// Whether `description` is sent.
    pub described: bool,
    /// Place of duty.
    pub locale: Option<&'static str>,
}

/// One salary row.
#[derive(Clone)]
pub(super) struct Pay {
    /// The first day on which the register shows it.
    pub shown_from: NaiveDate,
    /// The day on which a correction took its place.
    pub shown_until: Option<NaiveDate>,
    /// The month that was paid.
    pub month: Month,
    /// Whether the month is written as the thirteenth of its year.
    pub thirteenth_month: bool,
    /// What kind of pay it is.
    pub kind: Kind,
    /// How `type` is sent.
    pub kind_sent: KindSent,
    /// The base of the contribution.
    pub base: Option<Amount>,
    /// The contribution.
    pub retained: Option<Amount>,
    /// Digits behind the point in the JSON text.
    pub decimals: usize,
    /// ISO 4217.
    pub currency: &'static str,
}

/// What a salary row is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Monthly pay.
    Regular,
    /// The 13th salary.
    Thirteenth,
    /// A contribution on a base the person chose.
    Voluntary,
    /// A benefit.
    Retirement,
}

impl Kind {
    /// The word on the wire.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Regular => "REGULAR",
            Self::Thirteenth => "THIRTEENTH",
            Self::Voluntary => "VOLUNTARY",
            Self::Retirement => "RETIREMENT",
        }
    }
}

/// How the key `type` of a salary row is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KindSent {
    /// With its word.
    Word,
    /// As `null`.
    Null,
    /// Not at all, as before 2025.
    Absent,
}

/// How the institution spells one person's records.
pub(super) struct Spelling {
    /// How `type` is sent.
    pub kinds: KindsSpelled,
    /// Whether a 13th salary is written `YYYY-13`.
    pub thirteenth_month: bool,
    /// Whether lists run from new to old.
    pub newest_first: bool,
}

/// How `type` is sent over the years.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum KindsSpelled {
    /// Always, with its word.
    Always,
    /// Not before 2020.
    SinceTwentyTwenty,
    /// `null` for monthly pay.
    NullIfRegular,
    /// Never.
    Never,
}

impl Spelling {
    fn of(seed: u64, number: u32) -> Self {
        let mut stream = super::random::Stream::new(seed, number, "spelling");
        let kinds = *stream.weighted(&[
            (70, KindsSpelled::Always),
            (14, KindsSpelled::SinceTwentyTwenty),
            (8, KindsSpelled::NullIfRegular),
            (8, KindsSpelled::Never),
        ]);
        // Without a word, only the month tells a 13th salary from monthly pay.
        let thirteenth_month = stream.chance(250) || kinds == KindsSpelled::Never;
        Self { kinds, thirteenth_month, newest_first: stream.chance(500) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::calendar::date;

    /// Monthly exits as a share of open jobs, and the mean full pay after hire in mid-2025.
    fn calibration(people: u32) -> (f64, f64) {
        let (mut open, mut exits, mut hires, mut cents) = (0_u32, 0_u32, 0_u32, 0_i64);
        for number in 16..people + 16 {
            for job in Person::of(2026, number).jobs {
                let (start, end) = job.really;
                for month in (1..=12).map(|number| Month::new(2025, number)) {
                    if start < month.day(1) && end.is_none_or(|end| end >= month.day(1)) {
                        open += 1;
                        exits += u32::from(end.is_some_and(|end| Month::of(end) == month));
                    }
                }
                let first_full =
                    if start.format("%d").to_string() == "01" { Month::of(start) } else { Month::of(start).plus(1) };
                if (date(2025, 5, 1)..=date(2025, 7, 31)).contains(&start)
                    && end.is_none_or(|end| end > first_full.last_day())
                    && let Some(base) = job.pay.iter().find(|pay| pay.month == first_full).and_then(|pay| pay.base)
                {
                    hires += 1;
                    cents += base.units() / 100;
                }
            }
        }
        (f64::from(exits) / f64::from(open), f64::from(i32::try_from(cents / i64::from(hires)).unwrap()) / 100.0)
    }

    #[test]
    fn ten_thousand_people_leave_and_earn_as_the_country_does() {
        let (exits, pay) = calibration(10_000);
        println!("{:.2} % of open jobs end in a month; R$ {pay:.2} at hire", exits * 100.0);
        assert!((0.040..=0.048).contains(&exits), "{exits}");
        assert!((pay / 2_295.0 - 1.0).abs() < 0.05, "{pay}");
    }
}
