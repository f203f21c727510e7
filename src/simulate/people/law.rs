//! What the law fixes: the minimum wage, INSS contributions and the currency of each month.
//!
//! From 2017 on contributions follow the published tables. The register shows pay since 1990, so for the years before
//! the tables of 2017 are scaled by the minimum wage: close enough for people who never lived. Months after the last
//! table use it until a new one is added.

#![allow(clippy::inconsistent_digit_grouping, reason = "amounts are in cents, and the last group shows them")]

use crate::simulate::calendar::{Amount, Month};

/// The first month of Brazil's present currency.
pub(crate) const REAL: Month = Month::new(1994, 7);

/// The first month for which the register shows pay.
pub(crate) const FIRST_PAY: Month = Month::new(1990, 1);

/// The ISO code of the money in which `month` was paid.
pub(crate) fn currency(month: Month) -> &'static str {
    match month {
        m if m >= REAL => "BRL",
        m if m >= Month::new(1993, 8) => "BRR",
        m if m >= Month::new(1990, 3) => "BRE",
        _ => "BRN",
    }
}

/// The minimum wage of `month`, in that month's currency.
pub(crate) fn minimum_wage(month: Month) -> Amount {
    let row = MINIMUM_WAGES.partition_point(|(year, number, _)| Month::new(*year, *number) <= month);
    Amount::from_cents(MINIMUM_WAGES[row.saturating_sub(1)].2)
}

/// The highest base on which contributions are due in `month`.
pub(crate) fn ceiling(month: Month) -> Amount {
    *brackets(month).1.last().expect("every table has brackets")
}

/// The contribution on a person's base of one month, rounded once to cents.
pub(crate) fn contribution(base: Amount, month: Month) -> Amount {
    let (method, ceilings) = brackets(month);
    let base = base.min(ceiling(month)).max(Amount::ZERO);
    match method {
        Method::Flat => {
            let rate = ceilings.iter().zip([80, 90, 110]).find(|(ceiling, _)| base <= **ceiling).map_or(0, |(_, r)| r);
            base.scaled(rate, 1_000)
        }
        Method::Progressive => {
            let mut floor = Amount::ZERO;
            let mut thousandths = 0;
            for (ceiling, rate) in ceilings.into_iter().zip([75, 90, 120, 140]) {
                thousandths += (base.min(ceiling) - floor).units() * rate;
                floor = base.min(ceiling);
            }
            Amount::from_units(thousandths).scaled(1, 1_000)
        }
    }
}

#[derive(Clone, Copy)]
enum Method {
    /// One rate on the whole base.
    Flat,
    /// Each rate on its slice.
    Progressive,
}

fn brackets(month: Month) -> (Method, Vec<Amount>) {
    let row = TABLES.partition_point(|table| Month::new(table.0, table.1) <= month);
    let Some(&(_, _, method, ceilings)) = row.checked_sub(1).map(|row| &TABLES[row]) else {
        let (now, then) = (minimum_wage(month).units(), 937 * 10_000);
        return (Method::Flat, TABLES[0].3.iter().map(|c| Amount::from_cents(*c).scaled(now, then)).collect());
    };
    (method, ceilings.iter().map(|c| Amount::from_cents(*c)).collect())
}

/// (year, month) from which a table holds; its method; the brackets' ceilings in cents.
const TABLES: &[(i32, i32, Method, &[i64])] = &[
    (2017, 1, Method::Flat, &[1_659_38, 2_765_66, 5_531_31]),
    (2018, 1, Method::Flat, &[1_693_72, 2_822_90, 5_645_80]),
    (2019, 1, Method::Flat, &[1_751_81, 2_919_72, 5_839_45]),
    (2020, 1, Method::Flat, &[1_830_29, 3_050_52, 6_101_06]),
    (2020, 3, Method::Progressive, &[1_045_00, 2_089_60, 3_134_40, 6_101_06]),
    (2021, 1, Method::Progressive, &[1_100_00, 2_203_48, 3_305_22, 6_433_57]),
    (2022, 1, Method::Progressive, &[1_212_00, 2_427_35, 3_641_03, 7_087_22]),
    (2023, 1, Method::Progressive, &[1_302_00, 2_571_29, 3_856_94, 7_507_49]),
    (2023, 5, Method::Progressive, &[1_320_00, 2_571_29, 3_856_94, 7_507_49]),
    (2024, 1, Method::Progressive, &[1_412_00, 2_666_68, 4_000_03, 7_786_02]),
    (2025, 1, Method::Progressive, &[1_518_00, 2_793_88, 4_190_83, 8_157_41]),
    (2026, 1, Method::Progressive, &[1_621_00, 2_902_84, 4_354_27, 8_475_55]),
];

/// (year, month) from which an amount in cents holds. Before July 1994 prices rose daily, and the steps are coarse.
const MINIMUM_WAGES: &[(i32, i32, i64)] = &[
    (1990, 1, 1_283_95),
    (1990, 3, 3_674_06),
    (1990, 9, 6_056_31),
    (1991, 1, 12_325_60),
    (1991, 9, 42_000_00),
    (1992, 1, 96_037_33),
    (1992, 5, 230_000_00),
    (1992, 9, 522_186_94),
    (1993, 1, 1_250_700_00),
    (1993, 5, 3_303_300_00),
    (1993, 8, 5_534_00),
    (1993, 9, 9_606_00),
    (1993, 11, 15_021_00),
    (1994, 1, 32_882_00),
    (1994, 3, 64_800_00),
    (1994, 7, 64_79),
    (1994, 9, 70_00),
    (1995, 5, 100_00),
    (1996, 5, 112_00),
    (1997, 5, 120_00),
    (1998, 5, 130_00),
    (1999, 5, 136_00),
    (2000, 4, 151_00),
    (2001, 4, 180_00),
    (2002, 4, 200_00),
    (2003, 4, 240_00),
    (2004, 5, 260_00),
    (2005, 5, 300_00),
    (2006, 4, 350_00),
    (2007, 4, 380_00),
    (2008, 3, 415_00),
    (2009, 2, 465_00),
    (2010, 1, 510_00),
    (2011, 3, 545_00),
    (2012, 1, 622_00),
    (2013, 1, 678_00),
    (2014, 1, 724_00),
    (2015, 1, 788_00),
    (2016, 1, 880_00),
    (2017, 1, 937_00),
    (2018, 1, 954_00),
    (2019, 1, 998_00),
    (2020, 1, 1_039_00),
    (2020, 2, 1_045_00),
    (2021, 1, 1_100_00),
    (2022, 1, 1_212_00),
    (2023, 1, 1_302_00),
    (2023, 5, 1_320_00),
    (2024, 1, 1_412_00),
    (2025, 1, 1_518_00),
    (2026, 1, 1_621_00),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contributions_match_the_published_examples() {
        let cases = [
            (9_000_00, 2017, 6, 608_44),
            (9_000_00, 2018, 6, 621_04),
            (9_000_00, 2019, 6, 642_34),
            (9_000_00, 2020, 2, 671_12),
            (9_000_00, 2020, 3, 713_10),
            (9_000_00, 2021, 6, 751_99),
            (9_000_00, 2022, 6, 828_39),
            (9_000_00, 2023, 2, 877_24),
            (9_000_00, 2023, 6, 876_97),
            (9_000_00, 2024, 6, 908_86),
            (9_000_00, 2025, 6, 951_63),
            (9_000_00, 2026, 6, 988_09),
            (2_000_00, 2019, 6, 180_00),
            (3_600_00, 2020, 3, 362_95),
            (1_621_00, 2026, 6, 121_58),
            (2_902_84, 2026, 6, 236_94),
            (6_000_00, 2026, 6, 641_51),
        ];
        for (base, year, month, expected) in cases {
            let paid = contribution(Amount::from_cents(base), Month::new(year, month));
            assert_eq!(paid, Amount::from_cents(expected), "{base} in {year}-{month}");
        }
    }

    #[test]
    fn the_minimum_wage_and_the_currency_follow_the_calendar() {
        assert_eq!(minimum_wage(Month::new(2020, 1)), Amount::from_cents(1_039_00));
        assert_eq!(minimum_wage(Month::new(2023, 5)), Amount::from_cents(1_320_00));
        assert_eq!(minimum_wage(Month::new(2027, 5)), Amount::from_cents(1_621_00));
        assert_eq!(currency(Month::new(1994, 6)), "BRR");
        assert_eq!(currency(Month::new(1994, 7)), "BRL");
    }
}
