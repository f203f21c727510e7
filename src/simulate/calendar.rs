//! Months, days and decimal amounts, as people's lives need them.

use std::fmt;

use chrono::{Datelike, Days, NaiveDate};

/// A calendar month, counted from January of year 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Month(i32);

impl Month {
    /// The month `month` (1 to 12) of `year`.
    pub(super) const fn new(year: i32, month: i32) -> Self {
        Self(year * 12 + month - 1)
    }

    /// The month that holds `day`.
    pub(super) fn of(day: NaiveDate) -> Self {
        Self::new(day.year(), day.month().cast_signed())
    }

    /// This month's year.
    pub(super) fn year(self) -> i32 {
        self.0.div_euclid(12)
    }

    /// 1 to 12.
    pub(super) fn number(self) -> u32 {
        self.0.rem_euclid(12).unsigned_abs() + 1
    }

    /// The month `months` later.
    pub(super) fn plus(self, months: i32) -> Self {
        Self(self.0 + months)
    }

    /// Months from this one to `later`.
    pub(super) fn until(self, later: Self) -> i32 {
        later.0 - self.0
    }

    /// Day `day` of this month, or its last day if it is shorter.
    pub(super) fn day(self, day: u32) -> NaiveDate {
        (1..=day.max(1))
            .rev()
            .find_map(|day| NaiveDate::from_ymd_opt(self.year(), self.number(), day))
            .expect("every month has a first day")
    }

    /// The last day of this month.
    pub(super) fn last_day(self) -> NaiveDate {
        self.day(31)
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.year(), self.number())
    }
}

/// The day `days` after (or, if negative, before) `day`.
pub(super) fn shift(day: NaiveDate, days: i64) -> NaiveDate {
    let by = Days::new(days.unsigned_abs());
    if days < 0 { day - by } else { day + by }
}

/// A date written in code.
///
/// # Panics
/// When it is not in the calendar.
pub(super) fn date(year: i32, month: u32, day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(year, month, day).expect("a date of the calendar")
}

/// A decimal amount in ten-thousandths of the currency.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(super) struct Amount(i64);

impl Amount {
    /// Nothing.
    pub(super) const ZERO: Self = Self(0);

    /// From hundredths.
    pub(super) const fn from_cents(cents: i64) -> Self {
        Self(cents * 100)
    }

    /// From ten-thousandths.
    pub(super) const fn from_units(units: i64) -> Self {
        Self(units)
    }

    /// In ten-thousandths.
    pub(super) const fn units(self) -> i64 {
        self.0
    }

    /// `self × numerator ÷ denominator`, rounded half up to whole hundredths.
    pub(super) fn scaled(self, numerator: i64, denominator: i64) -> Self {
        let exact = i128::from(self.0) * i128::from(numerator);
        let per_cent = i128::from(denominator) * 100;
        Self(i64::try_from((exact + per_cent / 2).div_euclid(per_cent) * 100).expect("an amount below 9 × 10¹⁴"))
    }

    /// The amount with `decimals` (2 to 4) digits behind the point, or as many more as its value needs.
    pub(super) fn text(self, decimals: usize) -> String {
        let all = self.to_string();
        let needed = 4 - all.bytes().rev().take(2).take_while(|digit| *digit == b'0').count();
        all[..all.len() - 4 + decimals.max(needed)].to_owned()
    }
}

impl std::ops::Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl std::ops::Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0)
    }
}

/// Four decimals, as the truth tells amounts.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        write!(f, "{sign}{}.{:04}", self.0.unsigned_abs() / 10_000, self.0.unsigned_abs() % 10_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_written_with_two_to_four_decimals_and_lose_nothing() {
        assert_eq!(Amount::from_cents(103_309).text(4), "1033.0900");
        assert_eq!(Amount::from_cents(103_309).text(2), "1033.09");
        assert_eq!(Amount::from_units(10_330_925).text(2), "1033.0925");
        assert_eq!(Amount::from_units(10_330_920).text(2), "1033.092");
        assert_eq!(Amount::from_cents(1).to_string(), "0.0100");
        assert_eq!(Amount::from_cents(200_000).scaled(1, 3).text(2), "666.67");
    }

    #[test]
    fn months_count_across_years() {
        assert_eq!(Month::new(2024, 2).last_day(), date(2024, 2, 29));
        assert_eq!(Month::new(2025, 12).plus(1).to_string(), "2026-01");
        assert_eq!(Month::new(2025, 1).plus(-1), Month::new(2024, 12));
        assert_eq!(Month::of(date(2026, 11, 20)).until(Month::new(2027, 1)), 2);
    }
}
