//! Rows of text as a table for people.

use std::io::{self, Write};

/// The widest cell; longer ones end in `…`.
const WIDEST: usize = 60;

/// A table that is laid out when all its rows are known.
pub(crate) struct Table {
    header: Vec<String>,
    is_number: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table; numbers stand to the right.
    pub(crate) fn new(columns: impl IntoIterator<Item = (String, bool)>) -> Self {
        let (header, is_number) = columns.into_iter().map(|(name, is_number)| (shown(&name), is_number)).unzip();
        Self { header, is_number, rows: Vec::new() }
    }

    /// Adds a row; `None` is NULL.
    pub(crate) fn push(&mut self, cells: impl IntoIterator<Item = Option<String>>) {
        self.rows
            .push(cells.into_iter().map(|cell| cell.map_or_else(|| "NULL".to_owned(), |text| shown(&text))).collect());
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Writes header, rule and rows.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.header[column].chars().count()]).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let line = |row: &[String]| {
            let cells = row.iter().zip(&widths).zip(&self.is_number).map(|((cell, &width), &is_number)| {
                if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        writeln!(out, "{}", line(&self.header))?;
        writeln!(out, "{}", widths.iter().map(|&width| "─".repeat(width)).collect::<Vec<_>>().join("  "))?;
        self.rows.iter().try_for_each(|row| writeln!(out, "{}", line(row)))
    }
}

/// The text on one line and without anything that a terminal would obey: it may come from anywhere.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String =
        text.chars().take(WIDEST + 1).map(|letter| if is_obeyed(letter) { '\u{fffd}' } else { letter }).collect();
    if let Some((at, _)) = shown.char_indices().nth(WIDEST) {
        shown.truncate(at);
        shown.pop();
        shown.push('…');
    }
    shown
}

/// Control characters, and those that turn the direction of text.
fn is_obeyed(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_nothing_is_obeyed() {
        let mut table = Table::new([("name".to_owned(), false), ("base".to_owned(), true)]);
        table.push([Some("São João\u{1b}[2J".to_owned()), Some("1033.0900".to_owned())]);
        table.push([None, Some("7".to_owned())]);
        table.push([Some("x".repeat(70)), None]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let lines: Vec<_> = std::str::from_utf8(&out).unwrap().lines().map(str::to_owned).collect();
        assert_eq!(lines[2], format!("{:<60}  1033.0900", "São João\u{fffd}[2J"));
        assert_eq!(lines[3], format!("{:<60}          7", "NULL"));
        assert_eq!(lines[4], format!("{}…       NULL", "x".repeat(59)));
    }
}
