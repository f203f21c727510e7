//! The law's tables, with validity dates: INSS, minimum wage, payroll-loan margins; and the sections of CNAE and CBO.
//!
//! *Takes* the compiled-in CSV files, or those of `reference.dir`, each of which replaces the compiled one whole.
//! *Gives* rows for DuckDB. *Promises* that no month belongs to two rows, that none is left out between the first and
//! the last, and that ceilings rise; otherwise the program does not start. Past its last row a table says nothing: no
//! feature is ever computed from an old row.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use chrono::{Days, NaiveDate, NaiveTime};
use duckdb::Connection;
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::database::quoted;
use crate::mistake::{Mistake, nearest};
use crate::sensitive::hex;

/// A file of the reference, and what it must hold.
struct Form {
    /// Its name in `reference.dir`.
    file: &'static str,
    compiled: &'static str,
    /// The table that its expiry is told of.
    table: &'static str,
    /// Columns that it must have, in the order in which DuckDB takes them.
    columns: &'static [&'static str],
    /// Columns that it may have, and that are not read: they follow from the others.
    ignored: &'static [&'static str],
    /// The table that its rows are put into, with those columns in that order.
    given: &'static str,
    /// The column whose values each have periods of their own; none when all rows are of one line.
    group: &'static str,
    check: fn(&Rows) -> Result<(), String>,
}

static FORMS: [Form; 3] = [
    Form {
        file: "inss.csv",
        compiled: include_str!("reference/inss.csv"),
        table: "ref_inss",
        columns: &["valid_from", "valid_to", "method", "upper_amount", "rate", "act"],
        ignored: &["bracket", "lower_amount", "teto", "accumulated_amount"],
        given: "inss_given",
        group: "",
        check: check_inss,
    },
    Form {
        file: "minimum_wage.csv",
        compiled: include_str!("reference/minimum_wage.csv"),
        table: "ref_minimum_wage",
        columns: &["valid_from", "valid_to", "amount"],
        ignored: &["act"],
        given: "ref_minimum_wage",
        group: "",
        check: check_minimum_wage,
    },
    Form {
        file: "consignado_margin.csv",
        compiled: include_str!("reference/consignado_margin.csv"),
        table: "ref_consignado_margin",
        columns: &["valid_from", "valid_to", "regime", "loan_rate", "card_rate", "benefit_card_rate", "act"],
        ignored: &[],
        given: "ref_consignado_margin",
        group: "regime",
        check: check_margins,
    },
];

/// Tables that no law changes from year to year: name, rows.
static LISTS: [(&str, &str); 2] = [
    ("ref_cnae_sections", include_str!("reference/cnae_sections.csv")),
    ("ref_cbo_groups", include_str!("reference/cbo_groups.csv")),
];

/// Warn this long before the last row of a table ends.
const WARN_DAYS: u64 = 30;

/// The reference tables, checked.
#[derive(Debug, Clone)]
pub struct Reference {
    /// Rows of each of [`FORMS`].
    tables: Vec<Rows>,
    digest: String,
}

/// When a table stops saying anything.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct Expiry {
    /// The table, such as `ref_inss`.
    pub table: &'static str,
    /// The last day that it knows; for several regimes, of the one that ends first.
    #[serde(serialize_with = "as_text")]
    #[schemars(with = "String")]
    pub valid_to: NaiveDate,
}

impl Expiry {
    /// The first instant of which the table knows nothing.
    pub fn at(&self) -> Timestamp {
        let next = self.valid_to.checked_add_days(Days::new(1)).unwrap_or(self.valid_to);
        next.and_time(NaiveTime::MIN).and_utc().into()
    }

    /// Whether nothing is known any more at `now`.
    pub fn is_past(&self, now: Timestamp) -> bool {
        now >= self.at()
    }

    /// Whether it is time to bring the next table.
    pub fn is_near(&self, now: Timestamp) -> bool {
        let today = now.to_utc().date_naive();
        today.checked_add_days(Days::new(WARN_DAYS)).is_none_or(|soon| soon > self.valid_to)
    }
}

impl Reference {
    /// The compiled tables, with those of `dir` in their place where it has some.
    ///
    /// # Errors
    /// What is wrong with each file.
    pub fn read(dir: Option<&Path>) -> Result<Self, Vec<Mistake>> {
        let (mut tables, mut mistakes, mut digest) = (Vec::new(), Vec::new(), Sha256::new());
        for form in &FORMS {
            match form.read(dir) {
                Ok((rows, text)) => {
                    digest.update(text.as_bytes());
                    tables.push(rows);
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        mistakes.extend(dir.into_iter().flat_map(misnamed_files));
        if mistakes.is_empty() { Ok(Self { tables, digest: hex(&digest.finalize()) }) } else { Err(mistakes) }
    }

    /// The tables that come with the program.
    ///
    /// # Panics
    /// When they are wrong; a test keeps them from shipping.
    pub fn compiled() -> Self {
        Self::read(None).unwrap_or_else(|mistakes| panic!("a compiled-in reference table is wrong: {mistakes:?}"))
    }

    /// SHA-256 of the files, in hex: what was computed from others is computed anew.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// When each table ends.
    pub fn expiries(&self) -> Vec<Expiry> {
        let ends = FORMS.iter().zip(&self.tables);
        ends.filter_map(|(form, rows)| Some(Expiry { table: form.table, valid_to: rows.ends()? })).collect()
    }

    /// Shows when each table ends as a metric.
    pub fn tell_expiries(&self) {
        for expiry in self.expiries() {
            let seconds = expiry.at().as_micros() / 1_000_000;
            metrics::gauge!("vinculo_reference_table_expires_timestamp_seconds", "table" => expiry.table)
                .set(seconds as f64);
        }
    }

    /// Fills the tables `ref_…`, which must be there and empty.
    ///
    /// # Errors
    /// DuckDB's.
    pub fn load(&self, connection: &Connection) -> duckdb::Result<()> {
        connection.execute_batch(
            "CREATE TEMP TABLE inss_given (valid_from DATE, valid_to DATE, method VARCHAR, upper_amount DECIMAL(19, 4), \
             rate DECIMAL(5, 4), act VARCHAR)",
        )?;
        for (form, rows) in FORMS.iter().zip(&self.tables) {
            let rows = rows.rows.iter().map(|row| form.columns.iter().map(|&name| row.get(name).cloned()).collect());
            connection.execute_batch(&inserting(form.given, rows))?;
        }
        connection.execute_batch(include_str!("reference/ref_inss.sql"))?;
        connection.execute_batch("DROP TABLE inss_given")?;
        LISTS.iter().try_for_each(|(table, text)| {
            connection.execute_batch(&inserting(table, text.lines().skip(1).filter_map(cells)))
        })
    }
}

/// The one statement that adds rows of texts to a table, which casts them: a statement for each row takes as long as
/// computing hundreds of links.
fn inserting(table: &str, rows: impl Iterator<Item = Vec<Option<String>>>) -> String {
    let literal = |cell: Option<String>| cell.map_or_else(|| "NULL".to_owned(), |text| quoted(&text));
    let row = |cells: Vec<Option<String>>| cells.into_iter().map(literal).collect::<Vec<_>>().join(", ");
    let rows: Vec<String> = rows.map(|cells| format!("({})", row(cells))).collect();
    format!("INSERT INTO {table} VALUES {}", rows.join(", "))
}

/// Tables in `dir` under a name that is slightly wrong, or that says more, while none has the right one: the compiled
/// table would stay in force.
fn misnamed_files(dir: &Path) -> impl Iterator<Item = Mistake> {
    let files: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let is_there = |name: &str| files.iter().any(|file| file.file_name().is_some_and(|known| known == name));
    let missing = FORMS.iter().map(|form| form.file).filter(|name| !is_there(name));
    let missing: Vec<&str> = missing.filter_map(|name| name.strip_suffix(".csv")).collect();
    files.into_iter().filter_map(move |file| {
        let is_table = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let name = file.file_stem()?.to_str().filter(|_| is_table)?.to_ascii_lowercase();
        let missing = || missing.iter().copied();
        let meant = missing().find(|known| name.starts_with(known)).or_else(|| nearest(&name, missing()))?;
        let fix = format!("name it {meant}.csv, or move it");
        Some(Mistake::new(file.display().to_string(), "", "is none of the reference tables", fix))
    })
}

impl Form {
    /// Rows and text of the file, from `dir` if it is there.
    fn read(&self, dir: Option<&Path>) -> Result<(Rows, String), Mistake> {
        // A file that is there and cannot be reached is not one that is not there.
        let is_there =
            |path: &PathBuf| !matches!(path.symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound);
        let path = dir.map(|dir| dir.join(self.file)).filter(is_there);
        let place = path.as_ref().map_or(self.file.to_owned(), |path| path.display().to_string());
        let mistake = |what: String, fix: &str| Mistake::new(&place, "", what, fix);
        let text = match &path {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| mistake(format!("cannot be read: {error}"), "let this user read it, or remove it"))?,
            None => self.compiled.to_owned(),
        };
        let columns = format!("write the columns {}", self.columns.join(", "));
        let rows = Rows::parse(&text, self).map_err(|what| mistake(what, &columns))?;
        let in_a_row = "write rows of which each begins on the day after the one before";
        rows.check_periods(self.group).map_err(|what| mistake(what, in_a_row))?;
        (self.check)(&rows).map_err(|what| mistake(what, "mend the rows that it names"))?;
        Ok((rows, text))
    }
}

/// The rows of a file, by column name; an empty cell is absent.
#[derive(Debug, Clone)]
struct Rows {
    rows: Vec<BTreeMap<String, String>>,
}

impl Rows {
    fn parse(text: &str, form: &Form) -> Result<Self, String> {
        let mut lines = text.lines().map(str::trim_end).enumerate().filter(|(_, line)| !line.is_empty());
        let header = lines.next().and_then(|(_, line)| cells(line)).ok_or("is empty")?;
        let header: Vec<String> = header.into_iter().map(Option::unwrap_or_default).collect();
        if let Some(unknown) =
            header.iter().find(|name| !form.columns.iter().chain(form.ignored).any(|known| known == *name))
        {
            return Err(format!("has a column {unknown:?} that is not known"));
        }
        let needed = form.columns.iter().filter(|&&name| name != "act");
        if let Some(missing) = needed.into_iter().find(|&&name| !header.iter().any(|given| given == name)) {
            return Err(format!("has no column {missing}"));
        }
        let mut rows = Vec::new();
        for (number, line) in lines {
            let number = number + 1;
            let cells = cells(line).filter(|cells| cells.len() == header.len());
            let cells = cells.ok_or_else(|| format!("line {number} has other than {} cells", header.len()))?;
            let row: BTreeMap<String, String> =
                header.iter().zip(cells).filter_map(|(name, cell)| Some((name.clone(), cell?))).collect();
            for date in ["valid_from", "valid_to"] {
                if row.get(date).is_none_or(|text| day(text).is_none()) {
                    return Err(format!("line {number}: {date} is not a date such as 2026-01-01"));
                }
            }
            for (name, cell) in &row {
                let is_number = name.ends_with("amount") || name.ends_with("rate");
                if is_number && !form.ignored.contains(&name.as_str()) && units(cell).is_none() {
                    return Err(format!(
                        "line {number}: {name} is not a number above 0 with a point and up to four decimals"
                    ));
                }
            }
            rows.push(row);
        }
        if rows.is_empty() { Err("has no rows".to_owned()) } else { Ok(Self { rows }) }
    }

    /// First and last day of each group of rows, and checks that each of them goes on where the one before ended.
    fn check_periods(&self, group: &str) -> Result<(), String> {
        let mut periods: BTreeMap<&str, Vec<(NaiveDate, NaiveDate)>> = BTreeMap::new();
        for row in &self.rows {
            let name = row.get(group).map_or("", String::as_str);
            periods
                .entry(name)
                .or_default()
                .extend(row.get("valid_from").and_then(|from| day(from)).zip(row.valid_to()));
        }
        for (name, mut periods) in periods {
            let of = if name.is_empty() { String::new() } else { format!(" of {name}") };
            periods.sort_unstable();
            periods.dedup();
            if let Some((from, to)) = periods.iter().find(|(from, to)| from > to) {
                return Err(format!("the row{of} from {from} ends before it begins, on {to}"));
            }
            for pair in periods.windows(2) {
                let (before, next) = (pair[0], pair[1]);
                if next.0 <= before.1 {
                    return Err(format!("the rows{of} from {} and from {} overlap", before.0, next.0));
                }
                if before.1.checked_add_days(Days::new(1)) != Some(next.0) {
                    return Err(format!("there is a gap{of} between {} and {}", before.1, next.0));
                }
            }
        }
        Ok(())
    }

    /// The last day of the group that ends first.
    fn ends(&self) -> Option<NaiveDate> {
        let mut ends: HashMap<Option<&String>, NaiveDate> = HashMap::new();
        for row in &self.rows {
            let valid_to = row.valid_to()?;
            let end = ends.entry(row.get("regime")).or_insert(valid_to);
            *end = valid_to.max(*end);
        }
        ends.into_values().min()
    }
}

/// What a row of every file has.
trait Period {
    fn valid_to(&self) -> Option<NaiveDate>;
}

impl Period for BTreeMap<String, String> {
    fn valid_to(&self) -> Option<NaiveDate> {
        self.get("valid_to").and_then(|text| day(text))
    }
}

fn check_inss(rows: &Rows) -> Result<(), String> {
    let mut tables: BTreeMap<&String, Vec<&BTreeMap<String, String>>> = BTreeMap::new();
    for row in &rows.rows {
        tables.entry(&row["valid_from"]).or_default().push(row);
    }
    for (from, brackets) in tables {
        let method = brackets[0].get("method").map_or("", String::as_str);
        if !matches!(method, "FLAT" | "PROGRESSIVE") {
            return Err(format!("the table from {from} has a method other than FLAT and PROGRESSIVE"));
        }
        if brackets.iter().any(|row| row.get("method") != brackets[0].get("method")) {
            return Err(format!("the table from {from} has two methods"));
        }
        let number = |row: &BTreeMap<String, String>, name: &str| row.get(name).and_then(|text| units(text));
        let rises = |name: &str| {
            let values: Vec<_> = brackets.iter().map(|row| number(row, name)).collect();
            values.iter().all(Option::is_some) && values.windows(2).all(|pair| pair[0] < pair[1])
        };
        if !rises("upper_amount") {
            return Err(format!("the ceilings of the table from {from} do not rise from row to row"));
        }
        if brackets.iter().any(|row| number(row, "rate").is_none_or(|rate| rate >= 10_000)) {
            return Err(format!("a rate of the table from {from} is not between 0 and 1"));
        }
    }
    Ok(())
}

fn check_minimum_wage(rows: &Rows) -> Result<(), String> {
    let twice = |row: &BTreeMap<String, String>| {
        rows.rows.iter().filter(|other| other["valid_from"] == row["valid_from"]).count() > 1
    };
    match rows.rows.iter().find(|row| twice(row) || !row.contains_key("amount")) {
        Some(row) => Err(format!("{} has no amount, or two", row["valid_from"])),
        None => Ok(()),
    }
}

fn check_margins(rows: &Rows) -> Result<(), String> {
    let same = |a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
        a.get("regime") == b.get("regime") && a["valid_from"] == b["valid_from"]
    };
    for row in &rows.rows {
        if !row.contains_key("regime") || !row.contains_key("loan_rate") {
            return Err(format!("the row from {} has no regime, or no loan_rate", row["valid_from"]));
        }
        if rows.rows.iter().filter(|other| same(row, other)).count() > 1 {
            return Err(format!("{} has two rows from {}", row["regime"], row["valid_from"]));
        }
        let rates = ["loan_rate", "card_rate", "benefit_card_rate"].into_iter().filter_map(|name| row.get(name));
        if rates.filter_map(|rate| units(rate)).any(|rate| rate > 10_000) {
            return Err(format!("a rate of {} from {} is above 1", row["regime"], row["valid_from"]));
        }
    }
    Ok(())
}

/// The cells of a CSV line; a quote is written twice within quotes. `None` when a quote is not closed.
fn cells(line: &str) -> Option<Vec<Option<String>>> {
    let (mut cells, mut cell, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                cell.push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => cells.push(std::mem::take(&mut cell)),
            other => cell.push(other),
        }
    }
    cells.push(cell);
    let present = |cell: String| Some(cell.trim().to_owned()).filter(|cell| !cell.is_empty());
    (!is_quoted).then(|| cells.into_iter().map(present).collect())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn as_text<S: serde::Serializer>(day: &NaiveDate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(day)
}

fn day(text: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|_| text.len() == 10)
}

/// A number above 0 in ten-thousandths.
fn units(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_digits = |digits: &str| digits.bytes().all(|digit| digit.is_ascii_digit());
    let fits = !whole.is_empty() && whole.len() <= 12 && fraction.len() <= 4 && is_digits(whole) && is_digits(fraction);
    fits.then(|| format!("{whole}{fraction:0<4}").parse().ok())?.filter(|&units| units > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a folder with this one file.
    fn refused(file: &str, text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), text).unwrap();
        let mistakes = Reference::read(Some(folder.path())).map(|_| ()).unwrap_err();
        assert_eq!(mistakes.len(), 1);
        mistakes[0].to_string()
    }

    #[test]
    fn the_compiled_tables_know_every_month_of_2017_to_2026() {
        let reference = Reference::compiled();
        let ends: Vec<_> = reference.expiries().iter().map(|expiry| expiry.valid_to.to_string()).collect();
        assert_eq!(ends, ["2026-12-31", "2026-12-31", "2026-12-31"]);
        for rows in &reference.tables {
            assert_eq!(rows.rows.iter().map(|row| row["valid_from"].as_str()).min(), Some("2017-01-01"));
        }
    }

    #[test]
    fn a_file_of_the_folder_replaces_the_compiled_one_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let text = "valid_from,valid_to,amount\n2027-01-01,2027-12-31,1700.00\n";
        std::fs::write(folder.path().join("minimum_wage.csv"), text).unwrap();
        // Last year's beside it, and what is a table for nobody here.
        std::fs::write(folder.path().join("minimum_wage-2026.csv"), "").unwrap();
        for other in ["cbo_groups.csv", "inpc.csv", "fgts.csv"] {
            std::fs::write(folder.path().join(other), "").unwrap();
        }
        let reference = Reference::read(Some(folder.path())).unwrap();
        let ends: Vec<_> = reference.expiries().iter().map(|expiry| expiry.valid_to.to_string()).collect();
        assert_eq!(ends, ["2026-12-31", "2027-12-31", "2026-12-31"]);
        assert_ne!(reference.digest(), Reference::compiled().digest());
    }

    #[test]
    fn a_table_under_a_name_that_nothing_reads_is_refused() {
        let told = refused("minimum_wages.csv", "valid_from,valid_to,amount\n");
        assert!(told.contains("minimum_wages.csv") && told.contains("name it minimum_wage.csv"), "{told}");
        for name in ["INSS.CSV", "inss-2027.csv", "ins.csv"] {
            assert!(refused(name, "").contains("name it inss.csv"), "{name}");
        }
    }

    #[test]
    fn overlaps_gaps_and_ceilings_that_do_not_rise_are_refused() {
        let wage = "valid_from,valid_to,amount\n2026-01-01,2026-06-30,1621.00\n";
        assert!(refused("minimum_wage.csv", &format!("{wage}2026-06-30,2026-12-31,1700.00\n")).contains("overlap"));
        assert!(refused("minimum_wage.csv", &format!("{wage}2026-07-02,2026-12-31,1700.00\n")).contains("gap"));
        let margin = "valid_from,valid_to,regime,loan_rate,card_rate,benefit_card_rate,act\n\
                      2026-01-01,2026-06-30,PRIVATE,0.35,,,\n2026-08-01,2026-12-31,PRIVATE,0.35,,,\n";
        assert!(refused("consignado_margin.csv", margin).contains("gap of PRIVATE"));
        let inss =
            "valid_from,valid_to,method,upper_amount,rate,act\n2026-01-01,2026-12-31,PROGRESSIVE,1621.00,0.075,\n";
        assert!(
            refused("inss.csv", &format!("{inss}2026-01-01,2026-12-31,PROGRESSIVE,1621.00,0.09,\n")).contains("rise")
        );
        assert!(
            refused("inss.csv", &format!("{inss}2026-05-01,2027-12-31,PROGRESSIVE,1700.00,0.09,\n"))
                .contains("overlap")
        );
    }

    #[test]
    fn what_is_no_table_is_refused() {
        assert!(refused("minimum_wage.csv", "").contains("is empty"));
        assert!(refused("minimum_wage.csv", "valid_from,valid_to,amount\n").contains("no rows"));
        assert!(
            refused("minimum_wage.csv", "valid_from,valid_to\n2026-01-01,2026-12-31\n").contains("no column amount")
        );
        assert!(refused("minimum_wage.csv", "valid_from,valid_to,amount,x\n").contains("\"x\""));
        assert!(
            refused("minimum_wage.csv", "valid_from,valid_to,amount\n2026-01-01,2026-02-30,1\n").contains("valid_to")
        );
        assert!(
            refused("minimum_wage.csv", "valid_from,valid_to,amount\n2026-01-01,2026-12-31,\"1.621,00\"\n")
                .contains("amount")
        );
        assert!(
            refused(
                "inss.csv",
                "valid_from,valid_to,method,upper_amount,rate,act\n2026-01-01,2026-12-31,STEEP,1,0.1,\n"
            )
            .contains("method")
        );
    }

    #[test]
    fn expiry_is_near_for_thirty_days_and_then_past() {
        let expiry = Expiry { table: "ref_inss", valid_to: NaiveDate::from_ymd_opt(2026, 12, 31).unwrap() };
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let seen = ["2026-12-01T23:00:00Z", "2026-12-02T00:00:00Z", "2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z"]
            .map(|text| (expiry.is_near(at(text)), expiry.is_past(at(text))));
        assert_eq!(seen, [(false, false), (true, false), (true, false), (true, true)]);
    }

    #[test]
    fn a_file_that_leads_nowhere_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere.csv", folder.path().join(FORMS[0].file)).unwrap();
        let problems = Reference::read(Some(folder.path())).map(|_| ()).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("cannot be read"), "{}", problems[0]);
    }
}
