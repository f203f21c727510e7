//! `schemas/*.toml` as typed tables: names, types, keys, meaning, and where each column comes from.
//!
//! The files are the contract with analysts and are compiled in; the Parquet schema, the DuckDB comments and the data
//! dictionary all come from here, so that they cannot disagree. *Not here*: how a column's value is computed.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, SchemaRef, TimeUnit};
use serde::Deserialize;

use crate::resources::{self, Derive, Resource};

/// Digits of a money column.
pub const DECIMAL_PRECISION: u8 = 19;
/// Of these, after the point.
pub const DECIMAL_SCALE: i8 = 4;

/// Every table of the lake.
#[derive(Debug)]
pub struct Schema {
    /// Tables in the order in which they are documented.
    pub tables: Vec<Table>,
    /// Tables about the lake itself, which are only in its DuckDB file.
    pub lake_tables: Vec<Table>,
    /// What Belvo's records must and may hold.
    pub records: Vec<RecordSchema>,
}

/// What one resource's records hold, besides columns.
#[derive(Debug)]
pub struct RecordSchema {
    /// The resource.
    pub resource: &'static Resource,
    /// Paths of keys that must be there.
    pub required: Vec<String>,
    /// Paths of keys that are known and make no column.
    pub unpublished: Vec<String>,
    /// Positions of its tables in [`Schema::tables`]; the first has one row a record.
    pub tables: Vec<usize>,
    /// Positions of the tables with every version of their rows, in the same order.
    pub history: Vec<usize>,
}

/// One table of the lake.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Version of the schema file that it stands in.
    pub version: u32,
    /// The array of the record that it has a row for each item of; `None` for one row a record, or none at all.
    pub rows: Option<String>,
    /// Names of the columns that tell rows apart.
    pub key: Vec<String>,
    /// What a row is.
    pub meaning: String,
    /// Its columns, in order.
    pub columns: Vec<Column>,
    /// The same as Arrow sees it, with descriptions as field metadata.
    pub arrow: SchemaRef,
    /// The same for batches on their way to a file: their texts are dictionaries.
    pub batch: SchemaRef,
}

impl Schema {
    /// The table called `name`.
    ///
    /// # Panics
    /// When no schema file has it.
    pub fn table(&self, name: &str) -> &Table {
        let found = self.tables.iter().chain(&self.lake_tables).find(|table| table.name == name);
        found.unwrap_or_else(|| panic!("no schema has a table {name}"))
    }
}

impl Table {
    /// Whether the column called `name` is part of the key.
    pub fn is_key(&self, name: &str) -> bool {
        self.key.iter().any(|key| key == name)
    }
}

/// One column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Type,
    /// Where its values come from.
    pub origin: Origin,
    /// Whether a change of it alone leaves the row's version as it is.
    pub is_volatile: bool,
    /// The values that are known; others are kept and counted as drift.
    pub values: Option<Vec<String>>,
    /// What it says.
    pub meaning: String,
    /// Unit of its values, where they have one.
    pub unit: Option<String>,
    /// When it is NULL; `never` otherwise.
    pub null: String,
    /// How closely it tells of a person: `none`, `pseudonym`, `personal when joined`.
    pub sensitivity: String,
    /// An example, made up.
    pub example: String,
}

impl Column {
    /// Meaning, unit and null rule in one line, as DuckDB shows it.
    pub fn comment(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!(" [{unit}]")).unwrap_or_default();
        let null = if self.is_never_null() { "never NULL".to_owned() } else { format!("NULL: {}", self.null) };
        format!("{}{unit}; {null}", self.meaning)
    }

    /// Whether every row has a value.
    pub fn is_never_null(&self) -> bool {
        self.null == "never"
    }
}

/// The types that columns have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// UTF-8 text.
    Text,
    /// A list of texts.
    TextList,
    /// A calendar day.
    Date,
    /// An instant, in microseconds.
    Timestamp,
    /// `DECIMAL(19,4)`.
    Decimal,
    /// 32 bits, signed.
    Integer,
    /// 64 bits, signed. Only tables about the lake itself have it, which no batch holds.
    BigInteger,
    /// True or false.
    Boolean,
}

/// What a text is in a batch: the number of one of the batch's texts.
fn text_dictionary() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

impl Type {
    /// As Arrow and Parquet know it.
    pub fn arrow(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::TextList => DataType::List(Arc::new(Field::new_list_field(DataType::Utf8, true))),
            Self::Date => DataType::Date32,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Decimal => DataType::Decimal128(DECIMAL_PRECISION, DECIMAL_SCALE),
            Self::Integer => DataType::Int32,
            Self::BigInteger => DataType::Int64,
            Self::Boolean => DataType::Boolean,
        }
    }

    /// As DuckDB spells it.
    pub fn duckdb(self) -> &'static str {
        match self {
            Self::Text => "VARCHAR",
            Self::TextList => "VARCHAR[]",
            Self::Date => "DATE",
            Self::Timestamp => "TIMESTAMP WITH TIME ZONE",
            Self::Decimal => "DECIMAL(19,4)",
            Self::Integer => "INTEGER",
            Self::BigInteger => "BIGINT",
            Self::Boolean => "BOOLEAN",
        }
    }
}

/// Where a column's values come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The field at this path.
    Source(String),
    /// A function of the fields at these paths.
    Derived(Derive, Vec<String>),
    /// The number of items of this array.
    Count(String),
    /// What is known about the record beside its JSON.
    Context(Context),
    /// The record store or the lake itself; the table is not made from records.
    State,
}

/// What is known about a record beside its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Context {
    /// The link that it was listed for.
    LinkId,
    /// The key that it keeps for ever.
    RecordKey,
    /// Belvo's id, as last seen.
    RecordId,
    /// When Belvo stored it, as last seen.
    CreatedAt,
    /// When Belvo read it, as last seen.
    CollectedAt,
    /// Since when the row's content could have been known.
    KnownFrom,
    /// The number among rows that are equal in the rest of the key.
    Seq,
    /// Unknown fields, as JSON.
    Extra,
}

/// The compiled-in schema.
///
/// # Panics
/// When a schema file is wrong; [`load`] says how, and a test keeps it from shipping.
pub fn get() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> =
        LazyLock::new(|| load().unwrap_or_else(|error| panic!("a compiled-in schema is wrong: {error}")));
    &SCHEMA
}

/// The compiled-in schema of what stands under `pii/`, as tables called `pii/…`.
///
/// # Panics
/// As [`get`].
pub fn pii() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> =
        LazyLock::new(|| load_pii(PII).unwrap_or_else(|error| panic!("a compiled-in schema is wrong: {error}")));
    &SCHEMA
}

/// Why a schema file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("schemas/{file}.toml: {problem}")]
pub struct Problem {
    file: &'static str,
    problem: String,
}

/// Reads and checks the compiled-in schema files.
///
/// # Errors
/// The first [`Problem`].
pub fn load() -> Result<Schema, Problem> {
    let mut schema = Schema { tables: Vec::new(), lake_tables: Vec::new(), records: Vec::new() };
    for resource in resources::ALL {
        let file = parse(resource.name, resource.schema)?;
        let first = schema.tables.len();
        let (required, unpublished) = (file.required.clone(), file.unpublished.clone());
        for table in file.tables {
            schema.tables.push(checked(resource.name, file.version, table, &[], Some(resource))?);
        }
        schema.records.push(RecordSchema {
            resource,
            required,
            unpublished,
            tables: (first..schema.tables.len()).collect(),
            history: Vec::new(),
        });
    }
    let of_the_store = |file: &'static str, text| {
        let WrittenFile { version, tables, .. } = parse(file, text)?;
        tables.into_iter().map(|table| checked(file, version, table, &[], None)).collect::<Result<Vec<_>, Problem>>()
    };
    schema.tables.extend(of_the_store("links", include_str!("../schemas/links.toml"))?);
    schema.lake_tables = of_the_store("lake", include_str!("../schemas/lake.toml"))?;
    for records in &mut schema.records {
        for &table in &records.tables {
            records.history.push(schema.tables.len());
            schema.tables.push(history_of(&schema.tables[table]));
        }
    }
    Ok(schema)
}

const PII: &str = include_str!("../schemas/pii.toml");

/// Reads and checks `schemas/pii.toml`, whose `text` this is: each of its tables belongs to the resource whose fields
/// it names.
fn load_pii(text: &str) -> Result<Schema, Problem> {
    const FILE: &str = "pii";
    let mut schema = Schema { tables: Vec::new(), lake_tables: Vec::new(), records: Vec::new() };
    let file = parse(FILE, text)?;
    for table in file.tables {
        let unknown = || Problem { file: FILE, problem: format!("table {}: its resource is not known", table.name) };
        let resource = table.resource.as_deref().and_then(Resource::by_name).ok_or_else(unknown)?;
        // The unmasked twin of a table has all that the table has.
        let masked = get().tables.iter().find(|masked| masked.name == table.name);
        let (version, first) = masked.map_or((0, &[][..]), |masked| (masked.version, &masked.columns));
        let mut table = checked(FILE, file.version + version, table, first, Some(resource))?;
        let problem = |problem: &str| Problem { file: FILE, problem: problem.to_owned() };
        let records = get().records.iter().find(|records| records.resource == resource);
        let records = records.ok_or_else(|| problem("there is no such resource"))?;
        table.name = format!("{FILE}/{}", table.name);
        let history = history_of(&table);
        let first = schema.tables.len();
        schema.tables.extend([table, history]);
        // No table here has the rows within a record.
        let outer = |paths: &[String]| paths.iter().filter(|path| !path.contains("[]")).cloned().collect();
        schema.records.push(RecordSchema {
            resource,
            required: outer(&records.required),
            unpublished: outer(&records.unpublished),
            tables: vec![first],
            history: vec![first + 1],
        });
    }
    Ok(schema)
}

/// The table with every version of the rows of `table`: its columns, and when each version held.
fn history_of(table: &Table) -> Table {
    let mut columns: Vec<Column> = table
        .columns
        .iter()
        .map(|column| Column {
            meaning: column.meaning.replace("as last seen", "as seen when this version began"),
            ..column.clone()
        })
        .collect();
    columns.extend(history_columns());
    let (arrow, batch) = arrow_schemas(&columns);
    Table {
        name: format!("{}_history", table.name),
        version: table.version,
        rows: None,
        key: table.key.iter().cloned().chain(["known_from".to_owned()]).collect(),
        meaning: format!("Every version of each row of {}; those of one key never overlap", table.name),
        columns,
        arrow,
        batch,
    }
}

/// What a history table has beyond its own table's columns.
fn history_columns() -> [Column; 2] {
    let column = |name: &str, kind, meaning: &str, unit: Option<&str>, null: &str, example: &str| Column {
        name: name.into(),
        kind,
        origin: Origin::State,
        is_volatile: false,
        values: None,
        meaning: meaning.into(),
        unit: unit.map(str::to_owned),
        null: null.into(),
        sensitivity: "none".into(),
        example: example.into(),
    };
    [
        column(
            "known_to",
            Type::Timestamp,
            "Until when this version was what could be known; the next one begins then",
            Some("UTC"),
            "the version is current",
            "2022-03-09T08:45:50.406032Z",
        ),
        column(
            "is_deleted",
            Type::Boolean,
            "Whether the row is known to be gone; the other columns then repeat what was last known",
            None,
            "never",
            "false",
        ),
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    #[serde(default)]
    resource: Option<String>,
    version: u32,
    #[serde(default)]
    required: Vec<String>,
    #[serde(default)]
    unpublished: Vec<String>,
    #[serde(rename = "table")]
    tables: Vec<WrittenTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenTable {
    name: String,
    /// Where a file has tables of several.
    resource: Option<String>,
    rows: Option<String>,
    key: Vec<String>,
    meaning: String,
    #[serde(rename = "column")]
    columns: Vec<WrittenColumn>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenColumn {
    name: String,
    #[serde(rename = "type")]
    kind: Type,
    source: Option<String>,
    derived: Option<String>,
    #[serde(default)]
    from: Vec<String>,
    count: Option<String>,
    context: Option<Context>,
    #[serde(default)]
    volatile: bool,
    values: Option<Vec<String>>,
    meaning: String,
    unit: Option<String>,
    null: Option<String>,
    sensitivity: String,
    example: String,
}

fn parse(file: &'static str, text: &str) -> Result<WrittenFile, Problem> {
    let written: WrittenFile = toml::from_str(text).map_err(|error| Problem { file, problem: error.to_string() })?;
    match &written.resource {
        Some(resource) if resource != file => {
            Err(Problem { file, problem: format!("it says that it is for {resource}") })
        }
        _ => Ok(written),
    }
}

/// The table, whose columns come after the `first` ones.
fn checked(
    file: &'static str,
    version: u32,
    table: WrittenTable,
    first: &[Column],
    resource: Option<&Resource>,
) -> Result<Table, Problem> {
    let WrittenTable { name, resource: of, rows, key, meaning, columns } = table;
    let problem = |problem: String| Problem { file, problem: format!("table {name}: {problem}") };
    if let Some(of) = of.filter(|of| resource.is_none_or(|resource| resource.name != of)) {
        return Err(problem(format!("it says that it is for {of}")));
    }
    let own = columns.into_iter().map(|column| {
        let column_name = column.name.clone();
        checked_column(column, resource).map_err(|wrong| problem(format!("column {column_name}: {wrong}")))
    });
    let columns = first.iter().cloned().map(Ok).chain(own).collect::<Result<Vec<_>, _>>()?;
    if let Some(missing) = key.iter().find(|key| !columns.iter().any(|column| column.name == **key)) {
        return Err(problem(format!("its key names {missing}, which is no column")));
    }
    let (arrow, batch) = arrow_schemas(&columns);
    Ok(Table { name, version, rows, key, meaning, columns, arrow, batch })
}

/// The schema of the files of these columns, and that of batches on their way to them.
fn arrow_schemas(columns: &[Column]) -> (SchemaRef, SchemaRef) {
    let fields = columns.iter().map(|column| {
        let nullable = !column.is_never_null();
        let description = HashMap::from([("description".to_owned(), column.comment())]);
        Field::new(&column.name, column.kind.arrow(), nullable).with_metadata(description)
    });
    let arrow = ArrowSchema::new(fields.collect::<Vec<_>>());
    let batched = arrow.fields().iter().zip(columns).map(|(field, column)| match column.kind {
        Type::Text => field.as_ref().clone().with_data_type(text_dictionary()),
        _ => field.as_ref().clone(),
    });
    let batch = ArrowSchema::new(batched.collect::<Vec<_>>());
    (Arc::new(arrow), Arc::new(batch))
}

fn checked_column(column: WrittenColumn, resource: Option<&Resource>) -> Result<Column, String> {
    let derived = |name: &String| {
        let derive = resource.and_then(|resource| (resource.derived)(name)).ok_or(format!("no function {name}"))?;
        let fits = match derive {
            Derive::Text(_) | Derive::Piece(_) => column.kind == Type::Text,
            Derive::Date(_) => column.kind == Type::Date,
            Derive::Boolean(_) => column.kind == Type::Boolean,
        };
        if fits { Ok(derive) } else { Err(format!("{name} gives another type")) }
    };
    let origin = match (&column.source, &column.derived, &column.count, column.context, resource) {
        (Some(path), None, None, None, Some(_)) => Origin::Source(path.clone()),
        (None, Some(name), None, None, Some(_)) => Origin::Derived(derived(name)?, column.from),
        (None, None, Some(rows), None, Some(_)) => Origin::Count(rows.clone()),
        (None, None, None, Some(context), Some(_)) => Origin::Context(context),
        (None, None, None, None, None) => Origin::State,
        _ => {
            return Err(
                "give exactly one of source, derived, count and context, and none in a table of the state".into()
            );
        }
    };
    // Ids of our own making are there always; that goes without saying in the file.
    let null = column.null.unwrap_or_else(|| "never".into());
    Ok(Column {
        name: column.name,
        kind: column.kind,
        origin,
        is_volatile: column.volatile,
        values: column.values,
        meaning: column.meaning,
        unit: column.unit,
        null,
        sensitivity: column.sensitivity,
        example: column.example,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::owners;

    #[test]
    fn every_schema_file_is_sound() {
        let schema = load().unwrap();
        let names: Vec<_> = schema.tables.iter().map(|table| table.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "employments",
                "occupations",
                "salaries",
                "owners",
                "links",
                "link_snapshots",
                "rejected_records",
                "employments_history",
                "occupations_history",
                "salaries_history",
                "owners_history"
            ]
        );
        for column in schema.tables.iter().flat_map(|table| &table.columns) {
            assert!(!column.meaning.is_empty() && !column.example.is_empty() && !column.sensitivity.is_empty());
        }
    }

    #[test]
    fn an_unmasked_table_is_of_the_resource_that_it_names_wherever_it_stands_in_the_file() {
        let (head, tables) = PII.split_once("[[table]]\n").unwrap();
        let (owners, employers) = tables.split_once("[[table]]\n").unwrap();
        let schema = load_pii(&format!("{head}[[table]]\n{employers}\n[[table]]\n{owners}")).unwrap();
        let of = |records: &RecordSchema| (records.resource.name, schema.tables[records.tables[0]].name.as_str());
        let of: Vec<_> = schema.records.iter().map(of).collect();
        assert_eq!(of, [("employments", "pii/employers"), ("owners", "pii/owners")]);
        let unnamed = load_pii(&PII.replace("resource = \"owners\"\n", "")).err().unwrap();
        assert!(unnamed.to_string().contains("its resource is not known"), "{unnamed}");
    }

    #[test]
    fn a_column_of_two_minds_is_refused() {
        let column = WrittenColumn {
            name: "x".into(),
            kind: Type::Text,
            source: Some("a".into()),
            derived: None,
            from: vec![],
            count: None,
            context: Some(Context::Extra),
            volatile: false,
            values: None,
            meaning: "m".into(),
            unit: None,
            null: None,
            sensitivity: "none".into(),
            example: "e".into(),
        };
        assert!(checked_column(column, Some(&owners::RESOURCE)).unwrap_err().contains("exactly one"));
    }
}
