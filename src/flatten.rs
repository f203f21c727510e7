//! Records → rows in columns, and rejected records. No I/O, no clock.
//!
//! *Takes* a record's JSON, as it came, with what is known beside it. *Gives* its rows, appended to [`Columns`], in the
//! order of the tables' keys. *Promises* exact values (amounts from the text of the number, strings byte for byte), and
//! all of a record or nothing of it: a record that breaks the schema is a [`Rejection`] with its path, and its link
//! goes on. *Not here*: which version of a record is current (`replay`), and where the columns go (`sinks`).
//!
//! The schema is compiled into a [`Plan`]: for each place in the JSON, the slot that its text goes to. A record is read
//! once, into slots that point into its text; then each column takes what it needs from the slots.

use std::cmp::Ordering;

use crate::clock::{Timestamp, days_since_1970, digits};
use crate::columns::{Cells, Columns};
use crate::resources::Derive;
use crate::schema::Context;
use crate::sensitive::Pepper;
use crate::short::Short;

mod inspect;
mod memo;
mod parse;
mod plan;

pub use inspect::{Comparison, Found, Inspection};
pub use plan::Plan;

use memo::Memo;
use parse::{FieldOrder, Rows, Slot, Source};
use plan::{Emit, TablePlan};

/// What is known about a record beside its JSON.
#[derive(Debug, Clone, Copy)]
pub struct RecordFacts<'r> {
    /// The link that it was listed for.
    pub link_id: &'r str,
    /// The key that it keeps for ever.
    pub record_key: &'r str,
    /// Belvo's id, as last seen.
    pub record_id: &'r str,
    /// When Belvo stored it, as last seen.
    pub created_at: Option<Timestamp>,
    /// When Belvo read it, as last seen.
    pub collected_at: Option<Timestamp>,
    /// Since when its content could have been known.
    pub known_from: Timestamp,
}

/// Why a record cannot be flattened. Holds no value of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path} {reason}")]
pub struct Rejection {
    /// Where in the record, such as `salaries[2].base_amount`.
    pub path: String,
    /// What is wrong there.
    pub reason: &'static str,
}

impl Rejection {
    /// Of a record of which the state holds a body that cannot be opened.
    pub fn of_damage() -> Self {
        Self { path: "the record".into(), reason: "is damaged in the state" }
    }

    /// `path` is a schema's, with `[]` where `row` belongs.
    fn at(path: &str, row: usize, reason: &'static str) -> Self {
        Self { path: path.replacen("[]", &format!("[{row}]"), 1), reason }
    }
}

/// Flattens records of one resource, one after the other.
pub struct Flattener<'p> {
    plan: &'p Plan,
    pepper: Option<Pepper>,
    rows: Vec<Rows>,
    order: FieldOrder,
    /// For each column of each table.
    memos: Vec<Vec<Memos>>,
    unescaped: String,
    text: String,
}

/// What a column made of short fields lately, if it is derived.
#[derive(Default)]
struct Memos {
    texts: Memo<Option<Short>>,
    dates: Memo<Option<i32>>,
}

impl<'p> Flattener<'p> {
    /// A flattener for the records that `plan` describes.
    pub fn new(plan: &'p Plan, pepper: Option<Pepper>) -> Self {
        let rows = plan.tables.iter().map(|table| Rows::of_width(table.width)).collect();
        let memos = plan.tables.iter().map(|table| table.columns.iter().map(|_| Memos::default()).collect()).collect();
        Self { plan, pepper, rows, order: FieldOrder::of(plan), memos, unescaped: String::new(), text: String::new() }
    }

    /// Empty columns for the tables of the plan, in its order.
    pub fn columns(&self) -> Vec<Columns> {
        self.plan.tables.iter().map(|table| Columns::of(&table.kinds)).collect()
    }

    /// Reads the record into slots and says whether that works: the first half of [`Flattener::flatten`].
    ///
    /// # Errors
    /// A [`Rejection`] of its form; impossible dates and amounts are found later.
    pub fn parse(&mut self, record: &str) -> Result<(), Rejection> {
        self.rows.iter_mut().for_each(Rows::clear);
        self.unescaped.clear();
        parse::record(self.plan, record, &mut self.rows, &mut self.unescaped, &mut self.order)
    }

    /// Appends the rows of the record to `columns`, which [`Flattener::columns`] made.
    ///
    /// # Errors
    /// A [`Rejection`]; `columns` are as they were.
    pub fn flatten(&mut self, record: &str, facts: &RecordFacts<'_>, columns: &mut [Columns]) -> Result<(), Rejection> {
        self.parse(record)?;
        for index in 0..self.plan.tables.len() {
            let start = columns[index].len();
            let source = Source { record, unescaped: &self.unescaped };
            self.rows[index].sort(&self.plan.tables[index].sort_slots, source);
            let appended = self.append(index, record, facts, &mut columns[index]);
            if let Err(rejection) = appended {
                columns[index].truncate(start);
                for (earlier, rows) in columns.iter_mut().zip(&self.rows).take(index) {
                    earlier.truncate(earlier.len() - rows.len());
                }
                return Err(rejection);
            }
            self.plan.tables[index].arrange(&mut columns[index], start, &self.rows[index]);
        }
        Ok(())
    }

    /// How many unknown fields the record that was read last has.
    pub fn unknown_fields(&self) -> usize {
        self.rows.iter().map(Rows::unknown_fields).sum()
    }

    /// Compares two rows of one record by what tells its rows in `table` apart, in the order in which they stand.
    pub fn compare_keys(&self, table: usize, a: &Columns, row_a: usize, b: &Columns, row_b: usize) -> Ordering {
        let table = &self.plan.tables[table];
        a.compare_with(&table.key, row_a, b, row_b).then_with(|| a.compare_with(table.seq.as_slice(), row_a, b, row_b))
    }

    /// Whether two rows of `table` with one key say the same.
    pub fn same_content(&self, table: usize, a: &Columns, row_a: usize, b: &Columns, row_b: usize) -> bool {
        a.compare_with(&self.plan.tables[table].content, row_a, b, row_b).is_eq()
    }

    fn append(
        &mut self,
        index: usize,
        record: &str,
        facts: &RecordFacts<'_>,
        columns: &mut Columns,
    ) -> Result<(), Rejection> {
        let table = &self.plan.tables[index];
        let rows = &self.rows[index];
        let source = Source { record, unescaped: &self.unescaped };
        let mut memos = self.memos[index].iter_mut();
        let mut columns = columns.cells_mut();
        for column in &table.columns {
            let (Some(memo), Some(cells)) = (memos.next(), columns.next()) else { break };
            match &column.emit {
                Emit::Text(slot) => append_texts(rows, *slot, source, cells),
                Emit::Date(slot, path) => append_dates(rows, *slot, path, source, cells)?,
                Emit::Decimal(slot, path) => append_amounts(rows, *slot, path, source, cells)?,
                Emit::Derived(derive, slots) => match derive {
                    Derive::Text(derive) => {
                        derive_texts(rows, slots, source, *derive, self.pepper.as_ref(), &mut self.text, cells);
                    }
                    Derive::Piece(derive) => derive_pieces(rows, slots, source, *derive, &mut memo.texts, cells),
                    Derive::Date(derive) => derive_dates(rows, slots, source, *derive, &mut memo.dates, cells),
                    Derive::Boolean(derive) => derive_booleans(rows, slots, source, *derive, cells),
                },
                Emit::Count(counted) => {
                    let count = i32::try_from(self.rows[*counted].len()).unwrap_or(i32::MAX);
                    cells.push_integer_times(count, rows.len());
                }
                Emit::Context(Context::Extra) => append_extras(rows, record, &mut self.text, cells),
                Emit::Context(context) => append_fact(*context, facts, rows.len(), cells),
            }
            if let Some((slot, path)) = &column.never_null
                && !cells.ends_without_null(rows.len())
                && let Some(place) = rows.column(*slot).position(|slot| slot == Slot::NOTHING)
            {
                return Err(Rejection::at(path, rows.number(place), "is null"));
            }
        }
        Ok(())
    }
}

// Each kind of column has a function of its own, and none is inlined: in one function their loops get in each other's
// way, and what they need lies on the stack. Nor does a loop hand over an `Option` of an amount: it is written in
// halves and read as a whole, for which a processor waits longer than for all the rest.

/// Appends a text of each row.
#[inline(never)]
fn append_texts(rows: &Rows, slot: u16, source: Source<'_>, cells: &mut Cells) {
    let mut texts = cells.texts();
    for slot in rows.column(slot) {
        match slot.short() {
            Some(text) => texts.push_short(text),
            None => texts.push(source.long_text(slot)),
        }
    }
}

/// Appends a day of each row.
#[inline(never)]
fn append_dates(rows: &Rows, slot: u16, path: &str, source: Source<'_>, cells: &mut Cells) -> Result<(), Rejection> {
    let mut dates = cells.dates();
    for (slot, place) in rows.column(slot).zip(0..) {
        if slot == Slot::NOTHING {
            dates.push_null();
            continue;
        }
        // No day is short.
        match source.bytes(slot).and_then(day) {
            Some(day) => dates.push(day),
            None => return Err(Rejection::at(path, rows.number(place), "is not a date")),
        }
    }
    Ok(())
}

/// Appends an amount of each row.
#[inline(never)]
fn append_amounts(rows: &Rows, slot: u16, path: &str, source: Source<'_>, cells: &mut Cells) -> Result<(), Rejection> {
    let mut amounts = cells.decimals();
    if rows.column(slot).all(|slot| slot.units().is_some()) {
        amounts.extend(rows.column(slot).map(|slot| slot.units().unwrap_or_default().into()));
        return Ok(());
    }
    for (slot, place) in rows.column(slot).zip(0..) {
        if let Some(units) = slot.units() {
            amounts.push(units.into());
        } else if let Some(number) = source.bytes(slot) {
            amounts.push(decimal(number).map_err(|reason| Rejection::at(path, rows.number(place), reason))?);
        } else {
            amounts.push_null();
        }
    }
    Ok(())
}

/// Appends what `derive` writes of fields of each row.
#[inline(never)]
fn derive_texts(
    rows: &Rows,
    slots: &[u16],
    source: Source<'_>,
    derive: fn(&[Option<&str>], Option<&Pepper>, &mut String) -> bool,
    pepper: Option<&Pepper>,
    text: &mut String,
    cells: &mut Cells,
) {
    for fields in rows.inputs(slots) {
        text.clear();
        let given = source.give(fields, |inputs| derive(inputs, pepper, text));
        cells.push_text(given.then_some(text.as_str()));
    }
}

/// Appends what `derive` says of fields of each row.
#[inline(never)]
fn derive_booleans(
    rows: &Rows,
    slots: &[u16],
    source: Source<'_>,
    derive: fn(&[Option<&str>]) -> bool,
    cells: &mut Cells,
) {
    rows.inputs(slots).for_each(|fields| cells.push_boolean(source.give(fields, derive)));
}

/// Appends the unknown fields of each row, if it has any.
#[inline(never)]
fn append_extras(rows: &Rows, record: &str, text: &mut String, cells: &mut Cells) {
    if !rows.have_unknown_fields() {
        return cells.push_no_text_times(rows.len());
    }
    for place in 0..rows.len() {
        text.clear();
        let given = rows.extra(rows.number(place), record, text);
        cells.push_text(given.then_some(text.as_str()));
    }
}

/// Appends what `derive` finds in fields of each row.
#[inline(never)]
fn derive_pieces(
    rows: &Rows,
    slots: &[u16],
    source: Source<'_>,
    derive: for<'t> fn(&[Option<&'t str>]) -> Option<&'t str>,
    memo: &mut Memo<Option<Short>>,
    cells: &mut Cells,
) {
    let mut texts = cells.texts();
    for fields in rows.inputs(slots) {
        match memo.result(fields) {
            Some(Some(text)) => texts.push_short(*text),
            Some(None) => texts.push_null(),
            None => source.give(fields, |inputs| {
                let piece = derive(inputs);
                texts.push(piece);
                let short = piece.map(|piece| Short::of(piece.as_bytes()));
                if short != Some(None) {
                    memo.keep(fields, short.flatten());
                }
            }),
        }
    }
}

/// Appends the day that `derive` makes of fields of each row.
#[inline(never)]
fn derive_dates(
    rows: &Rows,
    slots: &[u16],
    source: Source<'_>,
    derive: fn(&[Option<&str>]) -> Option<i32>,
    memo: &mut Memo<Option<i32>>,
    cells: &mut Cells,
) {
    let mut dates = cells.dates();
    for fields in rows.inputs(slots) {
        let day = if let Some(day) = memo.result(fields) {
            *day
        } else {
            let day = source.give(fields, derive);
            memo.keep(fields, day);
            day
        };
        match day {
            Some(day) => dates.push(day),
            None => dates.push_null(),
        }
    }
}

#[inline(never)]
fn append_fact(context: Context, facts: &RecordFacts<'_>, count: usize, cells: &mut Cells) {
    let text = match context {
        Context::LinkId => facts.link_id,
        Context::RecordKey => facts.record_key,
        Context::RecordId => facts.record_id,
        Context::CreatedAt | Context::CollectedAt | Context::KnownFrom => {
            let at = match context {
                Context::CreatedAt => facts.created_at,
                Context::CollectedAt => facts.collected_at,
                _ => Some(facts.known_from),
            };
            return cells.push_timestamp_times(at, count);
        }
        // Numbered once the rows are in order.
        Context::Seq => return cells.push_integer_times(0, count),
        Context::Extra => return,
    };
    cells.push_text_times(text, count);
}

impl TablePlan {
    /// Puts the rows from `start` on in the order of the key and then of their content, and numbers those that are
    /// equal in the key. They come sorted, but for what [`Rows::sort`] cannot see, and that is among its ties.
    fn arrange(&self, columns: &mut Columns, start: usize, rows: &Rows) {
        let Some(seq) = self.seq else { return };
        // Most ties are of the first text alone: pay and the thirteenth salary of one month.
        let mut ties = rows.ties().iter().map(|place| start + place);
        if ties.clone().all(|row| columns.compare(&self.key, row - 1, row).is_lt()) {
            return;
        }
        let order = |columns: &Columns, a: usize, b: usize| {
            columns.compare(&self.key, a, b).then_with(|| columns.compare(&self.content, a, b))
        };
        if ties.any(|row| order(columns, row - 1, row).is_gt()) {
            let mut all: Vec<usize> = (start..columns.len()).collect();
            all.sort_by(|&a, &b| order(columns, a, b));
            columns.reorder(start, &all);
        }
        for row in rows.ties().iter().map(|place| start + place) {
            if columns.compare(&self.key, row - 1, row).is_eq() {
                let number = columns.integer(seq, row - 1) + 1;
                columns.set_integer(seq, row, number);
            }
        }
    }
}

/// Days since 1970-01-01 of a day `YYYY-MM-DD`; `None` when the calendar has none such.
fn day(text: &[u8]) -> Option<i32> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = *text.as_array()? else { return None };
    let year = i32::try_from(digits(&[y1, y2, y3, y4])?).ok()?;
    // Readers know no year before the first.
    if year < 1 { None } else { days_since_1970(year, digits(&[m1, m2])?, digits(&[d1, d2])?) }
}

/// Ten-thousandths that no amount has: of more than 15 digits before the point.
const LIMIT: i128 = 10_i128.pow(19);

/// The ten-thousandths that a JSON number stands for; `None` when it has a sign, an exponent, or more digits than most.
fn plain_decimal(text: &[u8]) -> Option<i128> {
    let (mut units, mut decimals) = (0_u64, None);
    for &byte in text.get(..text.len().min(18))? {
        match byte {
            b'0'..=b'9' => {
                units = units * 10 + u64::from(byte - b'0');
                decimals = decimals.map(|decimals| decimals + 1);
            }
            b'.' => decimals = Some(0),
            _ => return None,
        }
    }
    let shift = 4_u32.checked_sub(decimals.unwrap_or(0)).filter(|_| text.len() <= 18)?;
    Some(i128::from(units) * 10_i128.pow(shift)).filter(|units| *units < LIMIT)
}

/// The ten-thousandths that the text of a JSON number stands for, exactly.
fn decimal(text: &[u8]) -> Result<i128, &'static str> {
    const TOO_FINE: &str = "has more than 4 decimals";
    const TOO_LARGE: &str = "has more than 15 digits before the point";

    if let Some(units) = plain_decimal(text) {
        return Ok(units);
    }
    let text = std::str::from_utf8(text).unwrap_or_default();
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, "0"),
    };
    let mut units: i128 = 0;
    let mut decimals = 0_i64;
    let mut after_point = false;
    for byte in mantissa.bytes() {
        match byte {
            b'.' => after_point = true,
            b'0'..=b'9' if units < LIMIT * 1_000 => {
                units = units * 10 + i128::from(byte - b'0');
                decimals += i64::from(after_point);
            }
            // More digits than any amount has; zeroes at the end are harmless.
            b'0' if after_point => {}
            b'0'..=b'9' => return Err(if after_point { TOO_FINE } else { TOO_LARGE }),
            _ => {}
        }
    }
    if units != 0 {
        // One that is no number of ours is one of more digits than any amount has.
        let exponent =
            exponent.parse::<i32>().map_err(|_| if exponent.starts_with('-') { TOO_FINE } else { TOO_LARGE })?;
        let mut shift = 4 - decimals + i64::from(exponent);
        while shift > 0 && units < LIMIT {
            units *= 10;
            shift -= 1;
        }
        while shift < 0 {
            if units % 10 != 0 {
                return Err(TOO_FINE);
            }
            units /= 10;
            shift += 1;
        }
        if shift > 0 || units >= LIMIT {
            return Err(TOO_LARGE);
        }
    }
    Ok(if text.starts_with('-') { -units } else { units })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resources::{employments, owners};
    use crate::schema;

    const FACTS: RecordFacts<'_> = RecordFacts {
        link_id: "2f5d361d-dad6-45d4-a0bf-26d479766067",
        record_key: "9b1c5e0f7a3d4c2b8e6f1a0d9c8b7a65",
        record_id: "0d3ffb69-f83b-456e-ad8e-208d0998d71d",
        created_at: None,
        collected_at: None,
        known_from: Timestamp::from_micros(0),
    };

    fn job(salaries: &str) -> String {
        format!(
            r#"{{"id":"1","link":null,"created_at":"2026-01-01T00:00:00.000Z","collected_at":"2026-01-01T00:00:00.000Z",
            "start_date":"2020-01-01","end_date":null,"employer_data":{{"name":"EMPRESA FICTÍCIA","code":"99000042",
            "economic_activity":"6421-2 - BANCOS"}},"occupations":[],"salaries":[{salaries}]}}"#
        )
    }

    fn pay(month: &str, salary_type: &str, base: &str) -> String {
        format!(
            r#"{{"base_amount":{base},"retained_amount":0.01,"type":{salary_type},"month":"{month}","currency":"BRL"}}"#
        )
    }

    /// The rows of one table as text, by the columns named.
    fn rows(record: &str, table: &str, columns: &[&str]) -> Result<Vec<Vec<String>>, Rejection> {
        let mut flattener = Flattener::new(Plan::for_resource(&employments::RESOURCE), None);
        let mut flat = flattener.columns();
        flattener.flatten(record, &FACTS, &mut flat)?;
        let schema = schema::get();
        let at = schema.records[0].tables.iter().position(|&at| schema.tables[at].name == table).unwrap();
        let batch = flat[at].take(&schema.table(table).batch).unwrap();
        let text = |name: &str, row| {
            let column = batch.column_by_name(name).unwrap_or_else(|| panic!("no column {name}"));
            let options = arrow::util::display::FormatOptions::new().with_null("NULL");
            arrow::util::display::ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string()
        };
        Ok((0..batch.num_rows()).map(|row| columns.iter().map(|name| text(name, row)).collect()).collect())
    }

    #[test]
    fn unknown_fields_stay_with_their_row_however_many_there_are() {
        let count = 3_000;
        let pays: Vec<String> = (0..count)
            .map(|row| {
                let month = format!("{:04}-{:02}", 1000 + row / 12, row % 12 + 1);
                pay(&month, "null", "1.00").replacen('{', &format!(r#"{{"new":{row},"#), 1)
            })
            .collect();
        let salaries = rows(&job(&pays.join(",")), "salaries", &["extra"]).unwrap();
        assert!(salaries.into_iter().eq((0..count).map(|row| [format!(r#"{{"new":{row}}}"#)])));
    }

    #[test]
    fn amounts_are_exact_or_refused() {
        for (text, units) in [
            ("999999999999999.99", 9_999_999_999_999_999_900),
            ("0.01", 100),
            ("1033.0900", 10_330_900),
            ("1033.09000000", 10_330_900),
            ("-12.5", -125_000),
            ("0", 0),
            ("-0.0", 0),
            ("0e99999999999", 0),
            ("1e3", 10_000_000),
            ("12345E-3", 123_450),
            ("999999999999999.9999", 9_999_999_999_999_999_999),
        ] {
            assert_eq!(decimal(text.as_bytes()), Ok(units), "{text}");
        }
        for text in [
            "0.00001",
            "1000000000000000",
            "1e19",
            "1e-5",
            "1e99999999999",
            "1e2147483644",
            "0.00001e-2147483648",
            "123456789012345678901234567890.1",
        ] {
            assert!(decimal(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn days_of_no_calendar_reject_their_record_and_nothing_of_it_stays() {
        let mut flattener = Flattener::new(Plan::for_resource(&employments::RESOURCE), None);
        let mut columns = flattener.columns();
        flattener.flatten(&job(&pay("2025-01", "null", "1.00")), &FACTS, &mut columns).unwrap();
        for day in ["2023-02-29", "0000-01-01"] {
            let wrong = job(&pay("2025-02", "null", "2.00")).replace("2020-01-01", day);
            let rejection = flattener.flatten(&wrong, &FACTS, &mut columns).unwrap_err();
            assert_eq!((rejection.path.as_str(), rejection.reason), ("start_date", "is not a date"));
        }
        let wrong = job(&format!("{},{}", pay("2025-02", "null", "2.00"), pay("2025-03", "null", "3.00001")));
        let rejection = flattener.flatten(&wrong, &FACTS, &mut columns).unwrap_err();
        assert_eq!(
            (rejection.path.as_str(), rejection.reason),
            ("salaries[1].base_amount", "has more than 4 decimals")
        );
        assert_eq!(columns.iter().map(Columns::len).collect::<Vec<_>>(), [1, 0, 1]);
    }

    #[test]
    fn a_missing_key_or_another_type_is_named_with_its_path() {
        for (from, to, path, reason) in [
            (r#""start_date":"2020-01-01","#, "", "start_date", "is missing"),
            (r#""code":"99000042","#, "", "employer_data.code", "is missing"),
            (r#""99000042""#, "99000042", "employer_data.code", "is not a text"),
            (r#""occupations":[]"#, r#""occupations":{}"#, "occupations", "is not a list"),
            (r#""occupations":[]"#, r#""occupations":[1]"#, "occupations", "has an item that is not an object"),
            ("1.50", "\"1.50\"", "salaries[0].base_amount", "is not a number"),
            (r#""currency":"BRL""#, r#""currency":"BRL","currency":"BRL""#, "salaries[0].currency", "is there twice"),
            (r#""created_at":"2026-01-01T"#, r#""created_at":"2026-13-01T"#, "created_at", "is not a timestamp"),
            (r#""id":"1""#, r#""id":1"#, "id", "is not a text"),
            (r#""id":"1""#, r#""id":null"#, "id", "is null"),
            (r#""link":null"#, r#""link":{}"#, "link", "is not a text"),
        ] {
            let record = job(&pay("2025-01", "null", "1.50")).replacen(from, to, 1);
            let rejection = rows(&record, "salaries", &[]).unwrap_err();
            assert_eq!((rejection.path.as_str(), rejection.reason), (path, reason));
        }
        // However it is spelt.
        let spelt = job(&pay("2025-01", "null", "1.50")).replace("00.000Z", "00.000\\u002b00:00");
        assert!(rows(&spelt, "salaries", &[]).is_ok(), "{spelt}");
        assert_eq!(rows("[]", "salaries", &[]).unwrap_err().reason, "is not an object");
        assert_eq!(rows("{", "salaries", &[]).unwrap_err().reason, "is not JSON");
    }

    #[test]
    fn equal_rows_are_kept_and_numbered() {
        let salaries = [
            pay("2025-02", "\"REGULAR\"", "999.00"),
            pay("2025-01", "null", "1000.00"),
            pay("2025-02", "\"REGULAR\"", "1000.00"),
            pay("2025-02", "\"REGULAR\"", "999.00"),
            pay("2025-02", "null", "1.00"),
        ];
        let found =
            rows(&job(&salaries.join(",")), "salaries", &["month_text", "salary_type", "seq", "base_amount"]).unwrap();
        let found: Vec<String> = found.iter().map(|row| row.join(" ")).collect();
        assert_eq!(
            found,
            [
                "2025-01 NULL 0 1000.0000",
                "2025-02 NULL 0 1.0000",
                "2025-02 REGULAR 0 999.0000",
                "2025-02 REGULAR 1 999.0000",
                "2025-02 REGULAR 2 1000.0000",
            ]
        );
    }

    #[test]
    fn what_is_unknown_is_kept_nested_as_it_came() {
        let record = job(&pay("2025-01", "\"BONUS\"", "1.00").replace('{', r#"{"day":{"of":[1,2.50]},"#))
            .replacen(r#""code""#, r#""size":"large","code""#, 1)
            .replacen(r#""id""#, r#""caf\u00e9":1e400,"id""#, 1);
        assert_eq!(
            rows(&record, "employments", &["extra"]).unwrap(),
            [[r#"{"café":1e400,"employer_data":{"size":"large"}}"#]]
        );
        assert_eq!(
            rows(&record, "salaries", &["extra", "salary_type"]).unwrap(),
            [[r#"{"day":{"of":[1,2.50]}}"#, "BONUS"]]
        );
    }

    #[test]
    fn strings_are_kept_byte_for_byte() {
        let record = job("").replace("EMPRESA FICTÍCIA", r#"A\u0000\ud83d\ude00 \"B\" \\ Ç"#);
        assert_eq!(rows(&record, "employments", &["employer_name"]).unwrap(), [["A\0\u{1F600} \"B\" \\ Ç"]]);
    }

    #[test]
    fn a_plan_is_made_of_every_schema() {
        for resource in crate::resources::ALL {
            assert!(!Flattener::new(Plan::for_resource(resource), None).columns().is_empty());
        }
        let owner = r#"{"id":"1","link":null,"internal_identification":null,"collected_at":"2026-01-01T00:00:00.000Z",
            "display_name":"","email":"","phone_number":null,"address":"x","document_id":null}"#;
        let mut flattener = Flattener::new(Plan::for_resource(&owners::RESOURCE), None);
        let mut columns = flattener.columns();
        flattener.flatten(owner, &FACTS, &mut columns).unwrap();
        assert_eq!(columns[0].len(), 1);
        let without_id = owner.replace("\"1\"", "null");
        let rejection = flattener.flatten(&without_id, &FACTS, &mut columns).unwrap_err();
        assert_eq!((rejection.path.as_str(), rejection.reason, columns[0].len()), ("id", "is null", 1));
    }

    proptest! {
        #[test]
        fn the_order_of_an_array_changes_nothing(
            mut pays in prop::collection::vec((1..14_u32, prop::sample::select(vec!["null", "\"\"", "\"A\"", "\"A\\u0000\"", "\"REGULAR\"", "\"RETIREMENT\"", "\"RETIREMENTS\""]), 0..4_u32), 0..12),
            seed in any::<u64>(),
        ) {
            let list = |pays: &[(u32, &str, u32)]| {
                let items = pays.iter().map(|(month, kind, base)| pay(&format!("2025-{month:02}"), kind, &format!("{}.5", base * 400)));
                job(&items.collect::<Vec<_>>().join(","))
            };
            let all = ["month_text", "salary_type", "seq", "base_amount", "reference_month"];
            let sorted = rows(&list(&pays), "salaries", &all).unwrap();
            let rotation = usize::try_from(seed % 13).unwrap() % pays.len().max(1);
            pays.rotate_left(rotation);
            pays.reverse();
            prop_assert_eq!(sorted.len(), pays.len());
            prop_assert_eq!(rows(&list(&pays), "salaries", &all).unwrap(), sorted);
        }

        #[test]
        fn a_decimal_is_what_its_digits_say(integer in 0..999_999_999_999_999_u64, fraction in 0..10_000_u32) {
            prop_assert_eq!(decimal(format!("{integer}.{fraction:04}").as_bytes()), Ok(i128::from(integer) * 10_000 + i128::from(fraction)));
        }
    }
}
