//! Careers: a first job at 16 to 24, then jobs and gaps, at times two at once.
//!
//! The hazard of leaving is highest in the first three months and decays, and people differ in how long they stay. Its
//! figures are set so that 4.4 % of open jobs end in a month and pay at hire in mid-2025 averages R$ 2,295.

use chrono::{Datelike, NaiveDate};

use super::identity::Identity;
use super::work::{Activity, CodeForm, Employer, Sector, Trade};
use crate::simulate::calendar::{Month, date, shift};
use crate::simulate::random::Stream;

/// Lives are drawn up to this month; the clock should not be advanced beyond it.
pub(crate) const HORIZON: Month = Month::new(2031, 12);

/// A job as it really goes, before the register gets hold of it.
pub(crate) struct Plan {
    /// Branch.
    pub sector: Sector,
    /// Who pays.
    pub employer: Employer,
    /// What the employer does.
    pub activity: Option<Activity>,
    /// What the person does.
    pub trade: &'static Trade,
    /// First day.
    pub start: NaiveDate,
    /// Last day; none: goes on beyond the horizon.
    pub end: Option<NaiveDate>,
    /// Pay at hire, in thousandths of the minimum wage.
    pub level: i64,
    /// What is paid.
    pub rule: Rule,
    /// What becomes of it in the register.
    pub register: Register,
}

/// What a job pays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// Monthly pay, 13th salaries, vacations.
    Ordinary,
    /// The same, cut at the INSS ceiling.
    Capped,
    /// The same every month, and never below the minimum wage's rules: for apprentices, who are paid by the hour.
    Apprentice,
    /// Contributions on the minimum wage, by choice.
    Voluntary,
    /// A benefit.
    Benefit,
}

/// What becomes of a job in the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Register {
    /// As the streams have it: mostly right, at times late, wrong or never closed.
    Drawn,
    /// Right, and in time.
    Clean,
    /// Never closed.
    NeverClosed,
    /// Corrected again and again from December 2026 on.
    Corrected,
    /// Clean, with each third salary row twice.
    Repeating,
    /// The job before, sent once more under another id, and never closed.
    Twin,
}

/// The jobs of an ordinary person.
pub(crate) fn plans(seed: u64, number: u32, identity: &Identity) -> Vec<Plan> {
    let mut stream = Stream::new(seed, number, "career");
    let stability = stream.between(450, 1_650);
    let mut from = shift(identity.born, 365 * stream.between(16, 24) + stream.between(0, 364));
    let mut previous: Option<(Sector, u32)> = None;
    let mut plans = Vec::new();
    while Month::of(from) <= HORIZON {
        // People rarely change branch, and at times go back to the employer they came from.
        let (sector, employer) = match previous {
            Some((sector, employer)) if stream.chance(60) => (sector, employer),
            Some((sector, _)) if stream.chance(550) => (sector, stream.below(60_000)),
            _ => (Sector::draw(&mut stream), stream.below(60_000)),
        };
        previous = Some((sector, employer));
        let job = job(seed, number, plans.len(), identity, (sector, employer), from, stability);
        let end = job.end;
        if stream.chance(70) {
            let second = shift(job.start, stream.between(40, 500));
            if Month::of(second) <= HORIZON && end.is_none_or(|end| second < end) {
                plans.push(job);
                let place = (Sector::draw(&mut stream), stream.below(60_000));
                plans.push(self::job(seed, number, plans.len(), identity, place, second, stability * 3 / 2));
            } else {
                plans.push(job);
            }
        } else {
            plans.push(job);
        }
        let Some(end) = end else { break };
        from = shift(end, gap(&mut stream));
    }
    plans.sort_by_key(|plan| plan.start);
    plans
}

fn gap(stream: &mut Stream) -> i64 {
    match stream.weighted(&[(25, 30), (30, 120), (25, 300), (14, 720), (6, 1_900)]) {
        30 => stream.between(1, 30),
        most => stream.between(most / 3, *most),
    }
}

fn job(
    seed: u64,
    number: u32,
    ordinal: usize,
    identity: &Identity,
    (sector, employer): (Sector, u32),
    from: NaiveDate,
    stability: i64,
) -> Plan {
    let mut stream = Stream::new(seed, number, &format!("job {ordinal}"));
    let form = CodeForm::draw(&mut stream, sector);
    let trade = Trade::draw(&mut stream, sector);
    let start = if stream.chance(450) { Month::of(from).plus(1).day(1) } else { from };
    let experience = (i64::from(start.year() - identity.born.year()) - 18).clamp(0, 25);
    let spread = stream.lognormal();
    let woman = if identity.woman { 890 } else { 1_000 };
    let level =
        (trade.level * LEVEL / 1_000 * spread / 1_000 * woman / 1_000 * (900 + 9 * experience) / 1_000).max(1_000);
    let capped = stream.chance(600);
    Plan {
        sector,
        employer: Employer::of(employer, form, if stream.chance(800) { 1 } else { 2 + stream.below(30) }),
        activity: Activity::draw(&mut stream, sector),
        trade,
        start,
        end: end(start, stability, &mut stream),
        level,
        rule: if capped { Rule::Capped } else { Rule::Ordinary },
        register: Register::Drawn,
    }
}

/// Thousandths by which all pay at hire is scaled, from the calibration.
const LEVEL: i64 = 950;

/// Thousandths of jobs that end in a month, by months of tenure: the first row whose bound is above.
const HAZARD: [(i32, i64); 7] = [(3, 85), (6, 68), (12, 56), (24, 43), (48, 30), (96, 20), (i32::MAX, 13)];

fn end(start: NaiveDate, stability: i64, stream: &mut Stream) -> Option<NaiveDate> {
    let first = Month::of(start);
    for tenure in 0..=first.until(HORIZON) {
        let (_, hazard) = HAZARD.into_iter().find(|(bound, _)| tenure < *bound).expect("the last bound is above all");
        if !stream.chance(u32::try_from(hazard * stability / 1_000).expect("a share")) {
            continue;
        }
        let month = first.plus(tenure);
        let day = if stream.chance(350) { month.last_day() } else { month.day(stream.below(28) + 1) };
        return Some(day.max(shift(start, 4)));
    }
    None
}

/// A plan with nothing odd about it, for archetypes.
pub(crate) fn plain(
    sector: Sector,
    employer: Employer,
    cnae: &str,
    trade: &str,
    start: (i32, u32, u32),
    level: i64,
) -> Plan {
    Plan {
        sector,
        employer,
        activity: Some(Activity::usual(cnae)),
        trade: Trade::of(trade),
        start: date(start.0, start.1, start.2),
        end: None,
        level,
        rule: Rule::Ordinary,
        register: Register::Clean,
    }
}
