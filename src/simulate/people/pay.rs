//! From careers to what the register shows: salary rows, duties, and everything that is late, wrong or missing.

use std::collections::BTreeMap;

use chrono::{Datelike, NaiveDate};

use super::career::{HORIZON, Plan, Register, Rule};
use super::work::{self, Employer, Title, Trade};
use super::{Job, Kind, KindSent, KindsSpelled, Occupation, Pay, Spelling, Timeline, law};
use crate::simulate::calendar::{Amount, Month, date, shift};
use crate::simulate::random::Stream;

/// The jobs that follow from `plans`.
pub(crate) fn jobs(seed: u64, number: u32, plans: &[Plan], spelling: &Spelling) -> Vec<Job> {
    let mut worked: Vec<Worked> = (0..)
        .zip(plans)
        .map(|(job, plan)| work_through(plan, &mut Stream::new(seed, number, &format!("pay {job}"))))
        .collect();
    retain(plans, &mut worked);
    for twin in 1..plans.len() {
        if plans[twin].register == Register::Twin {
            let same = worked[twin - 1].rows.clone();
            worked[twin].rows = same;
        }
    }
    (0..)
        .zip(plans)
        .zip(&worked)
        .map(|((job, plan), worked)| on_record(seed, number, job, plan, worked, spelling))
        .collect()
}

/// What a job came to.
struct Worked {
    rows: Vec<Row>,
    /// First days of the duties, and what they were.
    duties: Vec<(NaiveDate, &'static Trade)>,
}

#[derive(Clone)]
struct Row {
    month: Month,
    kind: Kind,
    base: Amount,
    retained: Amount,
    /// The same row with another base, as a correction will have it.
    corrected: Option<(Amount, Amount)>,
}

fn work_through(plan: &Plan, stream: &mut Stream) -> Worked {
    let mut duties = vec![(plan.start, plan.trade)];
    let mut rows = Vec::new();
    let (first, last) = (Month::of(plan.start), plan.end.map_or(HORIZON, Month::of).min(HORIZON));
    let review_month = stream.below(12).cast_signed();
    let hourly = stream.chance(300) && !matches!(plan.rule, Rule::Voluntary | Rule::Benefit);
    let (mut level, mut trade) = (plan.level, plan.trade);
    let mut review = first;
    let mut vacation = first.plus(12 + stream.below(11).cast_signed());
    let mut suspended = suspension(stream);
    for tenure in 0..=first.until(last) {
        let month = first.plus(tenure);
        if tenure > 0 && tenure % 12 == 0 && matches!(plan.rule, Rule::Ordinary | Rule::Capped) && stream.chance(110) {
            level = level * stream.between(1_080, 1_220) / 1_000;
            review = month;
            trade = trade.next(stream);
            duties.push((month.day(1), trade));
        }
        // Before the real prices rose so fast that pay was reviewed every month.
        if month < law::REAL || month.number().cast_signed() - 1 == review_month {
            review = month;
            if matches!(plan.rule, Rule::Ordinary | Rule::Capped) {
                level = level * stream.between(990, 1_020) / 1_000;
            }
        }
        let wage = match plan.rule {
            Rule::Apprentice => law::minimum_wage(month).scaled(level, 1_000),
            _ => law::minimum_wage(review).scaled(level, 1_000).max(law::minimum_wage(month)),
        };
        let mut paid = wage;
        if hourly {
            paid = paid.scaled(stream.between(960, 1_080), 1_000).max(law::minimum_wage(month).min(wage));
        }
        if month == vacation {
            vacation = month.plus(12);
            if plan.rule == Rule::Ordinary {
                paid = paid.scaled(4, 3);
            }
        }
        paid = paid.scaled(days_worked(plan, month), 30);
        if let Some((from, months, share)) = &mut suspended
            && (0..*months).contains(&from.until(month))
        {
            paid = paid.scaled(*share, 100);
        }
        if month < law::FIRST_PAY {
            continue;
        }
        let kind = match plan.rule {
            Rule::Voluntary => Kind::Voluntary,
            Rule::Benefit => Kind::Retirement,
            _ => Kind::Regular,
        };
        let corrected = stream.chance(12).then(|| paid.scaled(stream.between(1_010, 1_200), 1_000));
        rows.push(row(plan, month, kind, paid, corrected));
        let leaves = plan.end.is_some_and(|end| Month::of(end) == month);
        if kind == Kind::Regular && (month.number() == 12 || leaves) {
            let twelfths = twelfths(plan, month);
            if twelfths > 0 {
                rows.push(row(plan, month, Kind::Thirteenth, wage.scaled(twelfths, 12), None));
            }
        }
    }
    Worked { rows, duties }
}

fn row(plan: &Plan, month: Month, kind: Kind, base: Amount, corrected: Option<Amount>) -> Row {
    let cut = |base: Amount| if plan.rule == Rule::Capped { base.min(law::ceiling(month)) } else { base };
    Row { month, kind, base: cut(base), retained: Amount::ZERO, corrected: corrected.map(|c| (cut(c), Amount::ZERO)) }
}

/// Some contracts were suspended, or cut to a share of pay, in 2020 and 2021: first month, months, per cent paid.
fn suspension(stream: &mut Stream) -> Option<(Month, i32, i64)> {
    let from = Month::new(2020, 5).plus(stream.below(10).cast_signed());
    let (months, share) = (2 + stream.below(4).cast_signed(), *stream.pick(&[0, 30, 50, 75]));
    stream.chance(90).then_some((from, months, share))
}

/// Days paid of `month`, of 30.
fn days_worked(plan: &Plan, month: Month) -> i64 {
    let first = if Month::of(plan.start) == month { i64::from(plan.start.day()) } else { 1 };
    match plan.end {
        Some(end) if Month::of(end) == month && end < month.last_day() => (i64::from(end.day()) - first + 1).max(1),
        _ => (30 - first + 1).max(1),
    }
}

/// Months of `month`'s year, up to and with it, in which at least 15 days were worked.
fn twelfths(plan: &Plan, month: Month) -> i64 {
    let january = Month::new(month.year(), 1).max(Month::of(plan.start));
    (0..=january.until(month))
        .filter(|n| days_worked(plan, january.plus(*n)) >= 15)
        .count()
        .try_into()
        .expect("at most 12")
}

/// Contributions are due on the sum of a person's pay in a month, the 13th apart: each job in turn retains what its pay
/// adds to the contribution on the sum so far.
fn retain(plans: &[Plan], worked: &mut [Worked]) {
    let mut sums: BTreeMap<(Month, bool), Amount> = BTreeMap::new();
    for (plan, worked) in plans.iter().zip(worked) {
        for row in &mut worked.rows {
            row.retained = match row.kind {
                Kind::Voluntary => row.base.scaled(5, 100),
                Kind::Retirement => Amount::ZERO,
                _ if plan.register == Register::Twin => Amount::ZERO,
                _ => {
                    let before = sums.entry((row.month, row.kind == Kind::Thirteenth)).or_default();
                    let due = |sum| law::contribution(sum, row.month);
                    if let Some((base, retained)) = &mut row.corrected {
                        *retained = due(*before + *base) - due(*before);
                    }
                    let retained = due(*before + row.base) - due(*before);
                    *before = *before + row.base;
                    retained
                }
            };
        }
    }
}

fn on_record(seed: u64, number: u32, job: u32, plan: &Plan, worked: &Worked, spelling: &Spelling) -> Job {
    let mut stream = Stream::new(seed, number, &format!("register {job}"));
    let drawn = plan.register == Register::Drawn;
    let listed_from = shift(plan.start, stream.between(1, 20));
    let lag = if drawn { *stream.weighted(&[(85, 0), (12, 1), (3, 2)]) } else { 0 };
    let unknown_start = drawn && stream.chance(4);
    let mut record = Job {
        number: job,
        employer: Timeline::since(listed_from, plan.employer.clone()),
        activity: plan.activity.clone(),
        start: Timeline::since(listed_from, (!unknown_start).then_some(plan.start)),
        end: end_on_record(plan, listed_from, &mut stream),
        listed: Timeline::since(listed_from, true),
        edition: Timeline::since(listed_from, 0),
        occupations: duties_on_record(plan, &worked.duties, listed_from, &mut stream),
        pay: Vec::new(),
        really: (plan.start, plan.end),
    };
    if drawn && stream.chance(20) {
        reissued(&mut record, listed_from, &mut stream);
    }
    if plan.register == Register::Corrected {
        corrected(&mut record, plan);
    }
    if number == 13 && job == 1 {
        // Missing from the lists of one fortnight, and back.
        record.listed =
            Timeline::since(listed_from, true).then(date(2026, 12, 14), false).then(date(2026, 12, 28), true);
    }
    if number == 13 && job == 2 {
        // Gone for good.
        record.listed = Timeline::since(listed_from, true).then(date(2027, 2, 10), false);
    }
    let mut stream = Stream::new(seed, number, &format!("rows {job}"));
    record.pay =
        (0..).zip(&worked.rows).flat_map(|(nth, row)| shown(nth, row, plan, lag, spelling, &mut stream)).collect();
    record
}

fn end_on_record(plan: &Plan, listed_from: NaiveDate, stream: &mut Stream) -> Timeline<Option<NaiveDate>> {
    let open = Timeline::since(listed_from, None);
    let Some(end) = plan.end else { return open };
    let told = |after| listed_from.max(shift(end, after));
    match plan.register {
        Register::NeverClosed | Register::Twin => open,
        Register::Drawn => match stream.below(100) {
            0..=4 => open,
            5..=14 => open.then(told(stream.between(60, 150)), Some(end)),
            15..=18 => {
                let wrong = shift(end, stream.between(1, 20));
                let told = told(stream.between(21, 30));
                open.then(told, Some(wrong)).then(shift(told, stream.between(30, 120)), Some(end))
            }
            _ => open.then(told(stream.between(3, 15)), Some(end)),
        },
        _ => open.then(told(10), Some(end)),
    }
}

fn duties_on_record(
    plan: &Plan,
    duties: &[(NaiveDate, &'static Trade)],
    listed_from: NaiveDate,
    stream: &mut Stream,
) -> Vec<Occupation> {
    let drawn = plan.register == Register::Drawn;
    if drawn && stream.chance(40) || matches!(plan.rule, Rule::Voluntary | Rule::Benefit) {
        return Vec::new();
    }
    let locale = work::locale(stream, plan.sector);
    let ends_with_job = stream.chance(600);
    let mut on_record: Vec<Occupation> = Vec::new();
    for (nth, (start, trade)) in duties.iter().enumerate() {
        if let Some(before) = on_record.last_mut() {
            before.end = Some(shift(*start, -1));
        }
        on_record.push(Occupation {
            shown_from: listed_from.max(shift(*start, if nth == 0 { 0 } else { 12 })),
            start: (!drawn || !stream.chance(20)).then_some(*start),
            end: None,
            ends_with_job,
            title: if drawn { Title::draw(stream, trade) } else { Title::usual(trade) },
            described: !drawn || !stream.chance(20),
            locale,
        });
    }
    if drawn && stream.chance(15) {
        // The register repeats a duty at times, letter by letter.
        let (shown_from, start, end) =
            on_record.last().map(|o| (o.shown_from, o.start, o.end)).expect("one duty at least");
        let title = on_record.last().map(|o| o.title.clone()).expect("one duty at least");
        on_record.push(Occupation { shown_from, start, end, ends_with_job, title, described: true, locale });
    }
    on_record
}

/// A record that gets a new id some day, or a better name for the same employer.
fn reissued(record: &mut Job, listed_from: NaiveDate, stream: &mut Stream) {
    let on = date(2026, 12, 1).max(shift(listed_from, 40)) + chrono::Days::new(u64::from(stream.below(700)));
    if stream.chance(500) {
        record.edition = Timeline::since(listed_from, 0).then(on, 1);
    } else if let Some(employer) = record.employer.at(listed_from).cloned() {
        let renamed = Employer {
            name: employer.name.as_ref().map(|name| format!("{name} - EM RECUPERAÇÃO")),
            ..employer.clone()
        };
        record.employer = Timeline::since(listed_from, employer).then(on, renamed);
    }
}

/// Everything that a refresh can correct, one thing after the other.
fn corrected(record: &mut Job, plan: &Plan) {
    let since = shift(plan.start, 10);
    record.listed = Timeline::since(since, true);
    record.start = Timeline::since(since, Some(plan.start)).then(date(2026, 12, 3), Some(shift(plan.start, -7)));
    record.end = Timeline::since(since, None)
        .then(date(2026, 12, 10), plan.end)
        .then(date(2027, 1, 12), plan.end.map(|end| shift(end, 15)));
    record.employer = Timeline::since(since, plan.employer.clone())
        .then(date(2027, 2, 2), Employer::of(4_242, work::CodeForm::Full, 7));
    record.edition = Timeline::since(since, 0).then(date(2027, 3, 3), 1);
    if let Some(before) = record.occupations.last_mut() {
        before.end = Some(date(2026, 11, 15));
    }
    record.occupations.push(Occupation {
        shown_from: date(2026, 12, 1),
        start: Some(date(2026, 11, 16)),
        end: None,
        ends_with_job: true,
        title: Title::usual(Trade::of("411010")),
        described: true,
        locale: Some("Urbana"),
    });
}

/// The rows that the register shows for one row of pay: most often one, at times none, two, or another one later.
fn shown(nth: u32, row: &Row, plan: &Plan, lag: i32, spelling: &Spelling, stream: &mut Stream) -> Vec<Pay> {
    let drawn = plan.register == Register::Drawn;
    let late = if drawn && stream.chance(20) { stream.between(10, 70) } else { 0 };
    let corrected_after = stream.between(40, 300);
    let missing = drawn && stream.chance(7);
    let repeated = drawn && stream.chance(4) || plan.register == Register::Repeating && nth % 3 == 2;
    let cent_off = if drawn { *stream.weighted(&[(970, 0), (15, -1), (15, 1)]) } else { 0 };
    let unknown = if drawn { stream.below(2_000) } else { 9 };
    let odd_units = if drawn && stream.chance(3) { stream.between(1, 99) } else { 0 };
    let shown_from = shift(row.month.plus(1 + lag).day(15), late);
    let retained = if row.retained > Amount::ZERO { row.retained + Amount::from_cents(cent_off) } else { row.retained };
    let thirteenth_month = row.kind == Kind::Thirteenth && row.month.number() == 12 && spelling.thirteenth_month;
    let pay = Pay {
        shown_from,
        shown_until: None,
        month: row.month,
        thirteenth_month,
        // Some say `REGULAR` beside the thirteenth month.
        kind: if thirteenth_month && stream.chance(250) { Kind::Regular } else { row.kind },
        kind_sent: kind_sent(row.kind, row.month, spelling.kinds),
        base: (unknown != 0).then_some(row.base + Amount::from_units(odd_units)),
        retained: (unknown > 1).then_some(retained),
        decimals: *stream.weighted(&[(90, 2), (4, 3), (6, 4)]),
        currency: law::currency(row.month),
    };
    if missing {
        return Vec::new();
    }
    let correction = match row.corrected {
        Some((base, retained)) if drawn => Some((shift(shown_from, corrected_after), base, retained)),
        _ if plan.register == Register::Corrected && row.month == Month::new(2026, 5) => {
            Some((date(2026, 12, 15), row.base.scaled(11, 10), retained.scaled(11, 10)))
        }
        _ => None,
    };
    if let Some((on, base, retained)) = correction {
        let after = Pay { shown_from: on, base: Some(base), retained: Some(retained), ..pay.clone() };
        return vec![Pay { shown_until: Some(on), ..pay }, after];
    }
    if plan.register == Register::Corrected && row.month == Month::new(2026, 6) {
        return vec![Pay { shown_from: date(2026, 12, 18), ..pay.clone() }, pay];
    }
    if repeated { vec![pay.clone(), pay] } else { vec![pay] }
}

fn kind_sent(kind: Kind, month: Month, spelled: KindsSpelled) -> KindSent {
    match (kind, spelled) {
        (Kind::Voluntary | Kind::Retirement, _) | (_, KindsSpelled::Always) => KindSent::Word,
        (_, KindsSpelled::SinceTwentyTwenty) if month.year() < 2020 => KindSent::Absent,
        (Kind::Regular, KindsSpelled::NullIfRegular) => KindSent::Null,
        (_, KindsSpelled::Never) => KindSent::Absent,
        _ => KindSent::Word,
    }
}
