//! `schemas/features.toml`: what the tables and views mean that are not made from records.
//!
//! *Gives* names, types and meanings for DuckDB's comments, `data_dictionary` and `vinculo docs`, from one file.

use std::sync::LazyLock;

use serde::Deserialize;

/// A table or view of `vinculo.duckdb`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relation {
    /// Its name.
    pub name: String,
    /// Whether rows are stored.
    pub kind: Kind,
    /// Columns that tell its rows apart.
    pub key: Vec<String>,
    /// What a row is.
    pub meaning: String,
    /// Its columns, in order.
    #[serde(rename = "column")]
    pub columns: Vec<Column>,
}

/// Whether rows are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// They are.
    Table,
    /// They are computed when asked for.
    View,
}

/// One column.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, as DuckDB spells it.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it says.
    pub meaning: String,
    /// How it is computed, in words.
    pub formula: Option<String>,
    /// Unit of its values, where they have one.
    pub unit: Option<String>,
    /// When it is NULL; `never` otherwise.
    pub null: String,
    /// Whether risk is expected to fall or rise with it; absent where nothing is expected.
    pub direction: Option<Direction>,
    /// How closely it tells of a person.
    pub sensitivity: String,
    /// An example, made up.
    pub example: String,
}

/// Where risk is expected to go as a value grows: a prior for binners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Down.
    Falls,
    /// Up.
    Rises,
}

impl Direction {
    /// As the dictionary has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Falls => "falls",
            Self::Rises => "rises",
        }
    }
}

impl Column {
    /// Meaning, formula, unit and null rule in one line, as DuckDB shows it.
    pub fn comment(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!(" [{unit}]")).unwrap_or_default();
        let formula = self.formula.as_ref().map(|formula| format!("; {formula}")).unwrap_or_default();
        let null = if self.null == "never" { "never NULL".to_owned() } else { format!("NULL: {}", self.null) };
        format!("{}{unit}{formula}; {null}", self.meaning)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    #[serde(rename = "table")]
    relations: Vec<Relation>,
}

static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
    toml::from_str(include_str!("../../schemas/features.toml"))
        .unwrap_or_else(|error| panic!("schemas/features.toml is wrong: {error}"))
});

/// Every table and view, in the order of the file.
///
/// # Panics
/// When the compiled-in file is wrong; a test keeps it from shipping.
pub fn relations() -> &'static [Relation] {
    &WRITTEN.relations
}

/// The table or view called `name`.
///
/// # Panics
/// When the file has none.
pub fn relation(name: &str) -> &'static Relation {
    relations().iter().find(|relation| relation.name == name).unwrap_or_else(|| panic!("no relation {name}"))
}

/// Version of the file.
pub fn version() -> u32 {
    WRITTEN.version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_described() {
        for relation in relations() {
            assert!(!relation.meaning.is_empty());
            for key in &relation.key {
                assert!(relation.columns.iter().any(|column| column.name == *key), "{}.{key}", relation.name);
            }
            for column in &relation.columns {
                let texts = [&column.meaning, &column.null, &column.sensitivity, &column.example];
                assert!(texts.iter().all(|text| !text.is_empty()), "{}.{}", relation.name, column.name);
            }
        }
    }
}
