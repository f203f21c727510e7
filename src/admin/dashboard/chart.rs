//! Pictures of numbers, as SVG within the page: bars, a strip of runs, and a grid of months.
//!
//! Each says in words what it shows, for those who do not see it, and has colours from the stylesheet alone.

use maud::{Markup, html};

/// One bar: its parts from the bottom up, each with a tone of the stylesheet, and what it is.
pub(super) struct Bar {
    pub(super) parts: Vec<(&'static str, u64)>,
    pub(super) label: String,
}

const HEIGHT: u64 = 48;
const STEP: usize = 10;

/// Bars side by side, the highest as high as the picture.
pub(super) fn bars(bars: &[Bar], summary: &str) -> Markup {
    let sum = |bar: &Bar| bar.parts.iter().map(|(_, value)| value).sum::<u64>();
    let top = bars.iter().map(sum).max().unwrap_or_default().max(1);
    let width = bars.len().max(1) * STEP;
    html! {
        svg.bars viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(summary) {
            line.axis x1="0" y1=(HEIGHT) x2=(width) y2=(HEIGHT) {}
            @for (place, bar) in bars.iter().enumerate() {
                g {
                    title { (bar.label) }
                    rect.ground x=(place * STEP) y="0" width=(STEP) height=(HEIGHT) {}
                    @for (tone, y, height) in stacked(bar, top) {
                        rect class=(tone) x=(place * STEP + 1) y=(y) width=(STEP - 2) height=(height) {}
                    }
                }
            }
        }
    }
}

/// Tone, place and height of each part that is something; what is something is seen.
fn stacked(bar: &Bar, top: u64) -> Vec<(&'static str, u64, u64)> {
    let mut base = HEIGHT;
    let mut parts = Vec::new();
    for &(tone, value) in &bar.parts {
        if value > 0 {
            let height = (value * HEIGHT / top).max(2).min(base);
            base -= height;
            parts.push((tone, base, height));
        }
    }
    parts
}

/// A share of a whole, with a mark for each part: `(tone, count)`.
pub(super) fn share(parts: &[(&'static str, u64)], summary: &str) -> Markup {
    let whole = parts.iter().map(|(_, count)| count).sum::<u64>().max(1);
    let width = |count: u64| (count * 1000 / whole).max(u64::from(count > 0) * 4);
    let starts = parts.iter().scan(0, |end, &(_, count)| Some(std::mem::replace(end, *end + width(count))));
    html! {
        svg.share viewBox="0 0 1000 10" preserveAspectRatio="none" role="img" aria-label=(summary) {
            rect.ground x="0" y="0" width="1000" height="10" {}
            @for (&(tone, count), x) in parts.iter().zip(starts) {
                rect class=(tone) x=(x) y="0" width=(width(count)) height="10" {}
            }
        }
    }
}

/// A year of a grid of months: the year, and how many of something each month has.
pub(super) struct Year {
    pub(super) year: i32,
    pub(super) months: [u32; 12],
}

const CELL: usize = 22;
const LEFT: usize = 40;
const TOP: usize = 16;

/// A grid of months, a row for each year, darker where there is more.
pub(super) fn months(years: &[Year], initials: &str, summary: &str, unit: impl Fn(u32) -> String) -> Markup {
    let (width, height) = (LEFT + 12 * CELL, TOP + years.len() * CELL);
    html! {
        svg.months viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(summary) {
            @for (month, initial) in initials.chars().enumerate() {
                text x=(LEFT + month * CELL + CELL / 2 - 1) y="11" text-anchor="middle" { (initial) }
            }
            @for (row, year) in years.iter().enumerate() {
                text x=(LEFT - 8) y=(TOP + row * CELL + 15) text-anchor="end" { (year.year) }
                @for (month, &count) in year.months.iter().enumerate() {
                    rect class={ "level" (count.min(3)) } x=(LEFT + month * CELL) y=(TOP + row * CELL) width=(CELL - 3) height=(CELL - 3) rx="3" {
                        title { (year.year) "-" (format!("{:02}", month + 1)) ": " (unit(count)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_part_is_seen_and_none_leaves_the_picture() {
        let bar = Bar { parts: vec![("good", 1000), ("bad", 1), ("warn", 0)], label: String::new() };
        assert_eq!(stacked(&bar, 1001), [("good", 1, 47), ("bad", 0, 1)]);
        let one = Bar { parts: vec![("good", 1)], label: String::new() };
        assert_eq!(stacked(&one, 1000), [("good", 46, 2)]);
    }
}
