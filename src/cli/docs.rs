//! `vinculo docs`: the data dictionary, from the files that the tables are made from.

use std::io::{self, Write};

use serde_json::json;

use super::{Exit, Global, streams};
use crate::features::catalog::{self, Macro};
use crate::features::dictionary::{self, Kind};
use crate::schema::{self, Column, Table};
use crate::sinks::duckdb::AS_OF;

/// What `docs` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How to write it
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Md)]
    pub format: Format,
}

/// How the dictionary is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Markdown, for people.
    Md,
    /// JSON, for machines.
    Json,
    /// A dbt `sources` file.
    Dbt,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let out = &mut streams::out();
    match if global.json { Format::Json } else { args.format } {
        Format::Md => markdown(&described(), &macros(), out)?,
        Format::Json => writeln!(out, "{:#}", as_json(&described(), &macros()))?,
        // Its sources are those of the DuckDB file.
        Format::Dbt => dbt(&entries(), out)?,
    }
    Ok(Exit::Done)
}

/// A table or view, wherever it is described.
struct Entry {
    name: &'static str,
    is_view: bool,
    /// Whether it stands under `pii/`: in Parquet alone, and only with `pii.publish`.
    is_unmasked: bool,
    key: &'static [String],
    meaning: &'static str,
    columns: Vec<Field>,
}

/// A column.
struct Field {
    name: &'static str,
    kind: &'static str,
    meaning: &'static str,
    formula: Option<&'static str>,
    unit: Option<&'static str>,
    null: &'static str,
    direction: Option<&'static str>,
    sensitivity: &'static str,
    example: &'static str,
}

/// Every table and view of `vinculo.duckdb`.
fn entries() -> Vec<Entry> {
    let schema = schema::get();
    let tables = schema.tables.iter().chain(&schema.lake_tables).map(|table| of_schema(table, false));
    let relations = dictionary::relations().iter().map(|relation| Entry {
        name: &relation.name,
        is_view: relation.kind == Kind::View,
        is_unmasked: false,
        key: &relation.key,
        meaning: &relation.meaning,
        columns: relation
            .columns
            .iter()
            .map(|column| Field {
                name: &column.name,
                kind: &column.kind,
                meaning: &column.meaning,
                formula: column.formula.as_deref(),
                unit: column.unit.as_deref(),
                null: &column.null,
                direction: column.direction.map(dictionary::Direction::name),
                sensitivity: &column.sensitivity,
                example: &column.example,
            })
            .collect(),
    });
    tables.chain(relations).collect()
}

/// These, and the tables under `pii/`.
fn described() -> Vec<Entry> {
    let mut entries = entries();
    entries.extend(schema::pii().tables.iter().map(|table| of_schema(table, true)));
    entries
}

fn of_schema(table: &'static Table, is_unmasked: bool) -> Entry {
    let field = |column: &'static Column| Field {
        name: &column.name,
        kind: column.kind.duckdb(),
        meaning: &column.meaning,
        formula: None,
        unit: column.unit.as_deref(),
        null: &column.null,
        direction: None,
        sensitivity: &column.sensitivity,
        example: &column.example,
    };
    Entry {
        name: &table.name,
        is_view: false,
        is_unmasked,
        key: &table.key,
        meaning: &table.meaning,
        columns: table.columns.iter().map(field).collect(),
    }
}

/// Every macro of `vinculo.duckdb`.
fn macros() -> Vec<Macro> {
    let mut macros = catalog::macros();
    macros.splice(1..1, catalog::macros_in(AS_OF));
    macros
}

fn markdown(entries: &[Entry], macros: &[Macro], out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "# Tables, views and macros of vinculo.duckdb\n\nThe tables under `pii/` come last: they are not in that file."
    )?;
    for entry in entries {
        let what = if entry.is_view { " (view)" } else { "" };
        write!(out, "\n## {}{what}\n\n{}. Key: {}.", entry.name, entry.meaning, entry.key.join(", "))?;
        writeln!(
            out,
            "{}\n",
            if entry.is_unmasked { " Published only with `pii.publish`, as Parquet alone." } else { "" }
        )?;
        writeln!(
            out,
            "| column | type | meaning | NULL | sensitivity | example |\n| --- | --- | --- | --- | --- | --- |"
        )?;
        for field in &entry.columns {
            let unit = field.unit.map(|unit| format!(" [{unit}]")).unwrap_or_default();
            let formula = field.formula.map(|formula| format!(". {formula}")).unwrap_or_default();
            let direction = field.direction.map(|direction| format!(". Risk {direction} with it")).unwrap_or_default();
            let meaning = format!("{}{unit}{formula}{direction}", field.meaning);
            let Field { name, kind, null, sensitivity, example, .. } = field;
            let cells = [name, kind, meaning.as_str(), null, sensitivity, example];
            // A bar within a cell would end it.
            writeln!(out, "| {} |", cells.map(|cell| cell.replace('|', "\\|")).join(" | "))?;
        }
    }
    writeln!(out, "\n## Macros\n\n| macro | gives |\n| --- | --- |")?;
    macros.iter().try_for_each(|Macro { call, meaning, .. }| writeln!(out, "| `{call}` | {meaning} |"))
}

fn as_json(entries: &[Entry], macros: &[Macro]) -> serde_json::Value {
    let tables = entries.iter().map(|entry| {
        let columns = entry.columns.iter().map(|field| {
            json!({
                "name": field.name, "type": field.kind, "meaning": field.meaning, "formula": field.formula,
                "unit": field.unit, "null_rule": field.null, "expected_direction": field.direction,
                "sensitivity": field.sensitivity, "example": field.example,
            })
        });
        json!({
            "name": entry.name, "kind": if entry.is_view { "view" } else { "table" }, "key": entry.key,
            "meaning": entry.meaning, "only_with": entry.is_unmasked.then_some("pii.publish"),
            "columns": columns.collect::<Vec<_>>(),
        })
    });
    let macros =
        macros.iter().map(|Macro { name, call, meaning }| json!({ "name": name, "call": call, "meaning": meaning }));
    json!({ "tables": tables.collect::<Vec<_>>(), "macros": macros.collect::<Vec<_>>() })
}

/// Names and texts are JSON strings, which YAML reads as they are.
fn dbt(entries: &[Entry], out: &mut impl Write) -> io::Result<()> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    writeln!(
        out,
        "# Made by `vinculo docs --format dbt`.\nversion: 2\n\nsources:\n  - name: vinculo\n    \
         database: \"{{{{ var('vinculo_database', 'vinculo') }}}}\"\n    schema: main\n    tables:"
    )?;
    for entry in entries {
        writeln!(out, "      - name: {}\n        description: {}", entry.name, quoted(entry.meaning))?;
        // Did we ask; and how old is the answer.
        let loaded_at = match entry.name {
            "link_snapshots" => Some("fetched_at"),
            "employments" | "owners" => Some("collected_at"),
            _ => None,
        };
        if let Some(column) = loaded_at {
            writeln!(
                out,
                "        config:\n          loaded_at_field: {column}\n          freshness:\n            \
                 warn_after: {{count: 2, period: day}}"
            )?;
        }
        writeln!(out, "        columns:")?;
        for field in &entry.columns {
            let unit = field.unit.map(|unit| format!(" [{unit}]")).unwrap_or_default();
            let formula = field.formula.map(|formula| format!("; {formula}")).unwrap_or_default();
            let null = if field.null == "never" { "never NULL".to_owned() } else { format!("NULL: {}", field.null) };
            let description = quoted(&format!("{}{unit}{formula}; {null}", field.meaning));
            writeln!(out, "          - name: {}\n            description: {description}", field.name)?;
            writeln!(out, "            data_type: {}", quoted(field.kind))?;
            let is_key = entry.key.len() == 1 && entry.key[0] == field.name;
            let tests = [(field.null == "never", "not_null"), (is_key, "unique")];
            let tests: Vec<&str> =
                tests.into_iter().filter_map(|(is_wanted, test)| is_wanted.then_some(test)).collect();
            if !tests.is_empty() {
                writeln!(out, "            data_tests: [{}]", tests.join(", "))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_every_table_is_described_in_every_format() {
        let entries = described();
        let (mut text, mut yaml) = (Vec::new(), Vec::new());
        let macros = macros();
        markdown(&entries, &macros, &mut text).unwrap();
        dbt(&super::entries(), &mut yaml).unwrap();
        let (text, yaml) = (String::from_utf8(text).unwrap(), String::from_utf8(yaml).unwrap());
        let document = as_json(&entries, &macros);
        for name in ["credit_features", "employments_as_of", "salaries_as_of", "inss_expected"] {
            let described = macros.iter().find(|described| described.name == name).unwrap();
            assert!(text.contains(&format!("| `{}` | {} |", described.call, described.meaning)), "{name}");
            assert!(document["macros"].as_array().unwrap().iter().any(|entry| entry["name"] == name), "{name}");
        }
        let tables = document["tables"].as_array().unwrap();
        for (entry, table) in entries.iter().zip(tables) {
            assert!(text.contains(&format!("\n## {}", entry.name)), "{}", entry.name);
            // Where there is a DuckDB file, nobody is in it unmasked.
            assert_eq!(yaml.contains(&format!("- name: {}\n", entry.name)), !entry.is_unmasked, "{}", entry.name);
            assert_eq!(table["only_with"] == "pii.publish", entry.is_unmasked, "{}", entry.name);
            for (field, column) in entry.columns.iter().zip(table["columns"].as_array().unwrap()) {
                let place = format!("{}.{}", entry.name, field.name);
                assert!(
                    !field.meaning.is_empty() && !field.null.is_empty() && !field.sensitivity.is_empty(),
                    "{place}"
                );
                assert!(!field.example.is_empty(), "{place}");
                assert!(text.contains(&format!("\n| {} | ", field.name)), "{place}");
                assert_eq!(column["name"], field.name);
            }
        }
        for name in ["salaries_history", "credit_features", "ref_inss", "current_jobs", "data_dictionary", "pii/owners"]
        {
            assert!(entries.iter().any(|entry| entry.name == name), "{name}");
        }
    }
}
