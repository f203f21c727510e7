//! What DuckDB says of a question that failed, without the data.
//!
//! *Takes* DuckDB's text and the question. *Gives* a text that may stand in a log. *Promises* that a quoted piece is shown only
//! when it stands in the question itself or is the name of a column, function or the like; and that a number of an error that
//! came while rows were read is shown only when it stands in the question.

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use anyhow::anyhow;
use duckdb::Connection;

/// What stands for a value.
const VEIL: &str = "…";

/// Kinds of errors that come before a row is read: their numbers are none of the data, and they name what there is.
const BEFORE_ROWS: [&str; 5] = ["Parser Error", "Syntax Error", "Binder Error", "Catalog Error", "Permission Error"];

/// Every name that an error may tell: nothing of them comes from the rows.
const NAMES: &str = "SELECT column_name FROM duckdb_columns() UNION SELECT table_name FROM duckdb_tables() \
     UNION SELECT view_name FROM duckdb_views() UNION SELECT function_name FROM duckdb_functions() \
     UNION SELECT schema_name FROM duckdb_schemas() UNION SELECT database_name FROM duckdb_databases() \
     UNION SELECT type_name FROM duckdb_types() UNION SELECT name FROM duckdb_settings()";

/// What `connection` says to `sql`, without the data, and without the number that its binding adds to everything.
pub(super) fn told(error: duckdb::Error, sql: &str, connection: &Connection) -> anyhow::Error {
    match error {
        duckdb::Error::DuckDBFailure(_, Some(what)) => {
            // Only an error about the question itself tells of names in quotes.
            let is_of_question = BEFORE_ROWS.iter().any(|kind| what.starts_with(kind));
            let names = if is_of_question { names(connection) } else { HashSet::new() };
            anyhow!(veiled(&what, sql, is_of_question, &names))
        }
        other => other.into(),
    }
}

/// The names of the catalog; none when they cannot be read, which shows less.
fn names(connection: &Connection) -> HashSet<String> {
    let read = || {
        let mut statement = connection.prepare(NAMES)?;
        statement.query_map([], |row| row.get::<_, String>(0))?.collect::<duckdb::Result<Vec<_>>>()
    };
    read().unwrap_or_default().into_iter().map(|name| name.to_lowercase()).collect()
}

/// DuckDB's text `what` about `sql`, without what may be data.
fn veiled(what: &str, sql: &str, is_of_question: bool, names: &HashSet<String>) -> String {
    // The last part repeats the question, and marks a place in it.
    let (what, question) = match what.rfind("\nLINE ") {
        Some(at) if repeats(&what[at..], sql) => what.split_at(at),
        _ => (what, ""),
    };
    let told = Told { sql, names };
    let mut shown = without(what, told.hidden(what));
    if !is_of_question {
        shown = told.without_numbers(&shown);
    }
    shown + question
}

/// Whether `lines`, which begin with `LINE n:`, are of the question.
fn repeats(lines: &str, sql: &str) -> bool {
    let mut lines = lines.trim_start().lines();
    let first = lines.next().and_then(|line| line.split_once(": ")).map_or("", |(_, line)| line);
    sql.contains(first.trim_start_matches("...").trim_end_matches("..."))
        && lines.all(|line| line.trim().trim_matches('^').is_empty())
}

/// What may be told.
struct Told<'a> {
    sql: &'a str,
    names: &'a HashSet<String>,
}

impl Told<'_> {
    /// The ranges of `what` that are not shown.
    fn hidden(&self, what: &str) -> Vec<Range<usize>> {
        if let Some(own) = self.own_text(what) {
            return vec![own];
        }
        let pieces = self.pieces(what);
        // What is quoted once may stand elsewhere without quotes.
        let values: BTreeSet<&str> = pieces.iter().map(|piece| &what[piece.clone()]).collect();
        let values = values.into_iter().filter(|value| !value.trim().is_empty());
        let again = values.flat_map(|value| whole(what, value).map(|at| at..at + value.len()).collect::<Vec<_>>());
        let mut hidden: Vec<_> = again.chain(pieces.iter().cloned()).collect();
        hidden.sort_by_key(|range| (range.start, range.end));
        hidden
    }

    /// A text of the question's own making, or a pattern that may be a value: it stands without quotes.
    fn own_text(&self, what: &str) -> Option<Range<usize>> {
        let (kind, rest) = what.split_once(": ")?;
        let sql = self.sql.to_lowercase();
        if kind != "Invalid Input Error" {
            return None;
        }
        if words(&sql).any(|word| word == "error")
            && whole(&sql, "error").any(|at| sql[at + 5..].trim_start().starts_with('('))
        {
            return Some(kind.len() + 2..what.len());
        }
        let is_pattern = ["regexp", "similar", "~"].iter().any(|word| sql.contains(word));
        let (before, pattern) = rest.rsplit_once(": ").filter(|_| is_pattern)?;
        (!stands_in(&sql, pattern)).then_some(kind.len() + 2 + before.len() + 2..what.len())
    }

    /// The quoted pieces that are not shown, each between its quotes. A value may have quotes of its own: a piece ends at a quote
    /// that no letter follows, and reaches on to a quote that ends something and begins nothing.
    fn pieces(&self, what: &str) -> Vec<Range<usize>> {
        let mut pieces = Vec::<Range<usize>>::new();
        let after = |at: usize| what[at..].chars().next().is_some_and(char::is_alphanumeric);
        let before = |at: usize| what[..at].chars().next_back().is_some_and(char::is_alphanumeric);
        let mut at = 0;
        while let Some(found) = what[at..].find(['\'', '"']) {
            let start = at + found;
            let quote = &what[start..=start];
            at = start + 1;
            if before(start) {
                // An apostrophe, or the end of a value with quotes in it.
                if !after(at)
                    && let Some(last) = pieces.last_mut().filter(|piece| what[..piece.start].ends_with(quote))
                {
                    last.end = start;
                }
                continue;
            }
            let ends =
                |from: usize| what[from..].match_indices(quote).map(|(end, _)| from + end).find(|end| !after(end + 1));
            let end = ends(at).unwrap_or(what.len());
            if !self.may_be_told(&what[at..end]) {
                pieces.push(at..end);
            }
            at = (end + 1).min(what.len());
        }
        pieces
    }

    /// Whether a quoted piece stands in the question, or is a name, or a function with its types.
    fn may_be_told(&self, piece: &str) -> bool {
        if piece.is_empty() || stands_in(self.sql, piece) {
            return true;
        }
        let is_number = |word: &str| word.len() < 3 && word.bytes().all(|byte| byte.is_ascii_digit());
        let mut words = words(piece).map(str::to_lowercase).peekable();
        let begins_with_name = words.peek().is_some_and(|word| !is_number(word));
        begins_with_name && words.all(|word| self.names.contains(&word) || is_number(&word))
    }

    /// `text` without the numbers that do not stand in the question; those of a type such as `DECIMAL(19,4)` stay.
    fn without_numbers(&self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            let length = number(rest, shown.chars().next_back());
            if length == 0 {
                let letter = rest.chars().next().expect("it is not at the end");
                shown.push(letter);
                at += letter.len_utf8();
                continue;
            }
            let is_of_type = shown.rsplit_once("DECIMAL(").is_some_and(|(_, inside)| !inside.contains(')'));
            let number = &rest[..length];
            shown.push_str(if is_of_type || stands_in(self.sql, number.trim_start_matches('-')) {
                number
            } else {
                VEIL
            });
            at += length;
        }
        shown
    }
}

/// The length of the number that `text` begins with, with its sign; 0 when it begins with none. Letters before it make it a
/// part of a name, such as INT32.
fn number(text: &str, before: Option<char>) -> usize {
    if before.is_some_and(|before| before.is_alphanumeric() || before == '_') {
        return 0;
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return 0;
    }
    let mut letters = digits.char_indices().peekable();
    let mut end = 0;
    while let Some((at, letter)) = letters.next() {
        let leads_on = matches!(letter, '.' | ',' | ':' | '-' | '+' | '/')
            && letters.peek().is_some_and(|(_, next)| next.is_ascii_digit());
        if !letter.is_alphanumeric() && !leads_on {
            break;
        }
        end = at + letter.len_utf8();
    }
    text.len() - digits.len() + end
}

/// Letters, digits and underscores that follow each other.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_').filter(|word| !word.is_empty())
}

/// Whether `piece` stands in `text` as more than a part of a word, in whatever case.
fn stands_in(text: &str, piece: &str) -> bool {
    let (text, piece) = (text.to_lowercase(), piece.to_lowercase());
    whole(&text, &piece).next().is_some()
}

/// Where `piece` stands in `text` as more than a part of a word.
fn whole<'t>(text: &'t str, piece: &'t str) -> impl Iterator<Item = usize> + 't {
    let is_part = |letter: Option<char>| letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
    let begins = is_part(piece.chars().next());
    let ends = is_part(piece.chars().next_back());
    text.match_indices(piece).map(|(at, _)| at).filter(move |at| {
        let goes_on_before = begins && is_part(text[..*at].chars().next_back());
        let goes_on_behind = ends && is_part(text[at + piece.len()..].chars().next());
        !goes_on_before && !goes_on_behind
    })
}

/// `text` with a veil for each of `ranges`, which are in order and may overlap.
fn without(text: &str, ranges: Vec<Range<usize>>) -> String {
    let (mut shown, mut at) = (String::with_capacity(text.len()), 0);
    for range in ranges {
        if range.start >= at {
            shown.push_str(&text[at..range.start]);
            shown.push_str(VEIL);
        }
        at = at.max(range.end);
    }
    shown + &text[at..]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a question about somebody's rows.
    fn of(sql: &str) -> String {
        let connection = Connection::open_in_memory().unwrap();
        let rows = "CREATE TABLE t AS SELECT 'PADARIA ''DO ZÉ'' LTDA' AS employer_name, 'it''s O''BRIEN & CIA' AS other, \
                    98765.4321::DECIMAL(19,4) AS amount, 'x' AS name, '(ACME' AS pattern";
        connection.execute_batch(rows).unwrap();
        let ask = || connection.prepare(sql)?.query_arrow([]).map(Iterator::count);
        ask().map_or_else(|error| told(error, sql, &connection).to_string(), |rows| format!("{rows} rows"))
    }

    fn of_all(questions: &[&str]) -> String {
        let told = questions.iter().map(|sql| format!("{sql}\n  {}", of(sql).replace('\n', "\n  ")));
        told.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn no_value_of_the_rows_is_told() {
        let told = of_all(&[
            "SELECT cast(employer_name AS int) FROM t",
            "SELECT cast(other AS date) FROM t",
            "SELECT strptime(employer_name, '%Y') FROM t",
            "SELECT cast(amount AS tinyint) FROM t",
            "SELECT cast(amount AS decimal(3,1)) FROM t",
            "SELECT (amount::int) * 2000000000 FROM t",
            "SELECT employer_name::json FROM t",
            "SELECT cast(amount::varchar AS date) FROM t",
            "SELECT error(lower(employer_name)) FROM t",
            "SELECT regexp_matches('x', pattern) FROM t",
            "SELECT from_base64(other) FROM t",
            "SELECT employer_name::interval, other FROM t",
            "SELECT timezone(other, now()::timestamp) FROM t",
            "SELECT employer_name FROM (PIVOT t ON employer_name USING count(*))",
        ]);
        for value in ["PADARIA", "LTDA", "ZÉ", "BRIEN", "CIA", "ACME", "padaria", "98765", "4321"] {
            assert!(!told.contains(value), "{value}: {told}");
        }
        insta::assert_snapshot!(told, @r#"
SELECT cast(employer_name AS int) FROM t
  Conversion Error: Could not convert string '…' to INT32 when casting from source column employer_name
  
  LINE 1: SELECT cast(employer_name AS int) FROM t
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^
SELECT cast(other AS date) FROM t
  Conversion Error: invalid date field format: "…", expected format is (YYYY-MM-DD) when casting from source column other
  
  LINE 1: SELECT cast(other AS date) FROM t
                 ^^^^^^^^^^^^^^^^^^^
SELECT strptime(employer_name, '%Y') FROM t
  Invalid Input Error: Could not parse string "…" according to format specifier "%Y"
  …
  ^
  Error: Expected a number
SELECT cast(amount AS tinyint) FROM t
  Conversion Error: Failed to cast decimal value … to type INT8 when casting from source column amount
  
  LINE 1: SELECT cast(amount AS tinyint) FROM t
                 ^^^^^^^^^^^^^^^^^^^^^^^
SELECT cast(amount AS decimal(3,1)) FROM t
  Conversion Error: Casting value "…" to type DECIMAL(3,1) failed: value is out of range! when casting from source column amount
  
  LINE 1: SELECT cast(amount AS decimal(3,1)) FROM t
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
SELECT (amount::int) * 2000000000 FROM t
  Out of Range Error: Overflow in multiplication of INT32 (… * 2000000000)!
SELECT employer_name::json FROM t
  Conversion Error: Malformed JSON at byte … of input: unexpected character.  Input: "…" when casting from source column employer_name
  
  LINE 1: SELECT employer_name::json FROM t
                              ^^^^^^
SELECT cast(amount::varchar AS date) FROM t
  Conversion Error: invalid date field format: "…", expected format is (YYYY-MM-DD)
  
  LINE 1: SELECT cast(amount::varchar AS date) FROM t
                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
SELECT error(lower(employer_name)) FROM t
  Invalid Input Error: …
SELECT regexp_matches('x', pattern) FROM t
  Invalid Input Error: missing ): …
SELECT from_base64(other) FROM t
  Conversion Error: Could not decode string "…" as base64: length must be a multiple of …
SELECT employer_name::interval, other FROM t
  Conversion Error: Could not convert string '…' to INTERVAL when casting from source column employer_name
  
  LINE 1: SELECT employer_name::interval, other FROM t
                              ^^^^^^^^^^
SELECT timezone(other, now()::timestamp) FROM t
  Not implemented Error: Unknown TimeZone '…'!
  
  Candidate time zones: "…"
SELECT employer_name FROM (PIVOT t ON employer_name USING count(*))
  Binder Error: Referenced column "employer_name" not found in FROM clause!
  Candidate bindings: "amount", "pattern"
  
  LINE 1: SELECT employer_name FROM (SELECT * FROM t PIVOT (count_star()...
                 ^^^^^^^^^^^^^
"#);
    }

    #[test]
    fn what_helps_with_the_question_is_told() {
        let told = of_all(&[
            "SELECT amont FROM t",
            "SELECT amount FROM tt",
            "SELECT sum(employer_name) FROM t",
            "SELECT cuont(*) FROM t",
            "SELECT 'a' + 1 +",
            "SELECT cast('abc' AS int)",
            "SELECT 300::tinyint",
            "SELECT * FROM t ORDER BY 17",
            "SELECT employer_name, count(*) FROM t",
        ]);
        insta::assert_snapshot!(told, @r#"
SELECT amont FROM t
  Binder Error: Referenced column "amont" not found in FROM clause!
  Candidate bindings: "amount", "name", "pattern", "employer_name"
  
  LINE 1: SELECT amont FROM t
                 ^^^^^
SELECT amount FROM tt
  Catalog Error: Table with name tt does not exist!
  Did you mean "t"?
  
  LINE 1: SELECT amount FROM tt
                             ^^
SELECT sum(employer_name) FROM t
  Binder Error: No function matches the given name and argument types 'sum(VARCHAR)'. You might need to add explicit type casts.
  	Candidate functions:
  	sum(arg DECIMAL) -> DECIMAL
  	sum(arg BOOLEAN, /) -> HUGEINT
  	sum(arg SMALLINT, /) -> HUGEINT
  	sum(arg INTEGER, /) -> HUGEINT
  	sum(arg BIGINT, /) -> HUGEINT
  	sum(arg HUGEINT, /) -> HUGEINT
  	sum(arg DOUBLE, /) -> DOUBLE
  	sum(arg BIGNUM, /) -> BIGNUM
  
  
  LINE 1: SELECT sum(employer_name) FROM t
                 ^^^^^^^^^^^^^^^^^^
SELECT cuont(*) FROM t
  Catalog Error: Scalar Function with name cuont does not exist!
  Did you mean "count"?
  
  LINE 1: SELECT cuont(*) FROM t
                 ^^^^^^^^
SELECT 'a' + 1 +
  Parser Error: syntax error at or near "+"
  
  LINE 1: SELECT 'a' + 1 +
                         ^
SELECT cast('abc' AS int)
  Conversion Error: Could not convert string 'abc' to INT32
  
  LINE 1: SELECT cast('abc' AS int)
                 ^^^^^^^^^^^^^^^^^^
SELECT 300::tinyint
  Conversion Error: Type INT32 with value 300 can't be cast because the value is out of range for the destination type INT8
  
  LINE 1: SELECT 300::tinyint
                    ^^^^^^^^^
SELECT * FROM t ORDER BY 17
  Binder Error: ORDER term out of range - should be between 1 and 5
  
  LINE 1: SELECT * FROM t ORDER BY 17
                                   ^^
SELECT employer_name, count(*) FROM t
  Binder Error: column "employer_name" must appear in the GROUP BY clause or must be part of an aggregate function.
  Either add it to the GROUP BY list, or use ANY_VALUE("employer_name") if the exact value of "employer_name" is not important.
  
  LINE 1: SELECT employer_name, count(*) FROM t
                 ^^^^^^^^^^^^^
"#);
    }

    #[test]
    fn a_number_is_a_whole_one_and_no_part_of_a_name() {
        let told = Told { sql: "SELECT 12 FROM t", names: &HashSet::new() };
        for (text, expected) in [
            ("type INT32 with 1234.5, -7 and 12!", "type INT32 with …, … and 12!"),
            ("DECIMAL(19,4) of 1,234.56 at 2026-01-31 10:20", "DECIMAL(19,4) of … at … …"),
            ("1e+20 in DECIMAL(38, 0): 5", "… in DECIMAL(38, 0): …"),
        ] {
            assert_eq!(told.without_numbers(text), expected);
        }
    }
}
