//! A resource's schema, compiled: where each piece of the JSON goes, and what each column takes.

use std::sync::LazyLock;

use crate::json::Name;
use crate::resources::{Derive, Resource};
use crate::schema::{self, Column, Context, Origin, RecordSchema, Schema, Table, Type};

/// Most fields that a derived column takes.
pub(super) const MOST_INPUTS: usize = 2;

/// How the records of one resource are read and what their tables hold.
#[derive(Debug)]
pub struct Plan {
    pub(super) record: Object,
    /// Number of kinds of objects.
    pub(super) objects: usize,
    pub(super) tables: Vec<TablePlan>,
}

/// The fields of a JSON object that are known.
#[derive(Debug, Default)]
pub(super) struct Object {
    /// Tells it from the other objects of the plan.
    pub number: usize,
    /// The objects of its row that it lies in, itself last; none for the record or a row.
    pub parents: Vec<String>,
    pub fields: Vec<Field>,
    /// One bit for each field that must be there.
    pub required: u64,
}

#[derive(Debug)]
pub(super) struct Field {
    pub name: Name,
    pub path: String,
    pub node: Node,
}

#[derive(Debug)]
pub(super) enum Node {
    /// A text, or null.
    Text(u16),
    /// A number, or null.
    Number(u16),
    /// A timestamp, or null, that only has to be one.
    Instant,
    /// A text, or null, that only has to be one.
    Name,
    /// A text that only has to be one.
    Id,
    /// Anything.
    Known,
    /// An object, or null, whose fields belong to the same row.
    Object(Object),
    /// A list, or null, each item of which is a row of the table.
    Rows(usize, Object),
}

/// What the columns of one table take, in order.
#[derive(Debug)]
pub(super) struct TablePlan {
    /// Slots of a row.
    pub width: usize,
    pub kinds: Vec<Type>,
    pub columns: Vec<ColumnPlan>,
    /// Columns that tell the rows of one record apart, but for `seq`.
    pub key: Vec<usize>,
    pub sort_slots: SortSlots,
    /// The remaining columns that come from the record.
    pub content: Vec<usize>,
    pub seq: Option<usize>,
    /// Columns whose values are listed, with the list.
    pub listed: Vec<(usize, Vec<String>)>,
}

/// What one column takes.
#[derive(Debug)]
pub(super) struct ColumnPlan {
    pub emit: Emit,
    /// If it is never NULL and is a field as it is, which it is and its path.
    pub never_null: Option<(u16, String)>,
}

/// The slots by which rows are put in order before they become columns. Where that is not the order of the columns, it
/// is put right later.
#[derive(Debug)]
pub(super) struct SortSlots {
    /// For each column of the key, the field that it is, or the first that it is made from.
    pub texts: Vec<u16>,
    /// The amounts.
    pub amounts: Vec<u16>,
}

#[derive(Debug)]
pub(super) enum Emit {
    Text(u16),
    Date(u16, String),
    Decimal(u16, String),
    Derived(Derive, Vec<u16>),
    Count(usize),
    Context(Context),
}

impl Plan {
    /// The plan of a resource by the compiled-in schema, compiled once.
    ///
    /// # Panics
    /// When the schema is wrong; a test keeps it from shipping.
    pub fn for_resource(resource: &Resource) -> &'static Self {
        static PLANS: LazyLock<Vec<(&'static Resource, Plan)>> = LazyLock::new(|| {
            let schema = schema::get();
            schema.records.iter().map(|records| (records.resource, Plan::of(schema, records))).collect()
        });
        let found = PLANS.iter().find(|(planned, _)| *planned == resource);
        found.map_or_else(|| panic!("no schema for {}", resource.name), |(_, plan)| plan)
    }

    /// Compiles the schema of one resource.
    ///
    /// # Panics
    /// When the schema asks for what cannot be: a test compiles every schema that ships.
    pub fn of(schema: &Schema, records: &RecordSchema) -> Self {
        let tables: Vec<&Table> = records.tables.iter().map(|&table| &schema.tables[table]).collect();
        let mut slots = Slots { tables: &tables, paths: vec![Vec::new(); tables.len()], record: Object::default() };
        for path in records.required.iter().chain(&records.unpublished) {
            slots.know(path);
        }
        let plans = tables.iter().map(|table| slots.table(table)).collect::<Vec<_>>();
        let Slots { paths, mut record, .. } = slots;
        let tables =
            plans.into_iter().zip(paths).map(|(plan, paths)| TablePlan { width: paths.len(), ..plan }).collect();
        for path in &records.required {
            require(&mut record, path);
        }
        let mut objects = 0;
        number(&mut record, &mut objects);
        Self { record, objects, tables }
    }
}

fn fact(emits: &[Emit], wanted: Context) -> Option<usize> {
    emits.iter().position(|emit| matches!(emit, Emit::Context(context) if *context == wanted))
}

/// Gives each path its slot.
struct Slots<'s> {
    tables: &'s [&'s Table],
    paths: Vec<Vec<String>>,
    record: Object,
}

impl Slots<'_> {
    fn table(&mut self, table: &Table) -> TablePlan {
        let emits: Vec<Emit> = table
            .columns
            .iter()
            .map(|column| match &column.origin {
                Origin::Source(path) => match column.kind {
                    Type::Text => Emit::Text(self.slot(path, Node::Text)),
                    Type::Date => Emit::Date(self.slot(path, Node::Text), path.clone()),
                    Type::Decimal => Emit::Decimal(self.slot(path, Node::Number), path.clone()),
                    other => panic!("no column of type {other:?} comes from a field as it is: {path}"),
                },
                Origin::Derived(derive, from) => {
                    assert!(from.len() <= MOST_INPUTS, "{} takes too many fields", column.name);
                    Emit::Derived(*derive, from.iter().map(|path| self.slot(path, Node::Text)).collect())
                }
                Origin::Count(rows) => Emit::Count(self.table_of(rows)),
                Origin::Context(context) => {
                    // What is told of a record is taken from it before it is flattened, and judged here.
                    match context {
                        Context::CreatedAt => *self.field("created_at") = Node::Instant,
                        Context::CollectedAt => *self.field("collected_at") = Node::Instant,
                        Context::RecordId => *self.field("id") = Node::Id,
                        Context::LinkId => *self.field("link") = Node::Name,
                        _ => {}
                    }
                    Emit::Context(*context)
                }
                Origin::State => panic!("{} is not made from records", table.name),
            })
            .collect();
        let never_null = |(column, emit): (&Column, &Emit)| match (&column.origin, emit) {
            (Origin::Source(path), Emit::Text(slot) | Emit::Date(slot, _) | Emit::Decimal(slot, _)) => {
                column.is_never_null().then(|| (*slot, path.clone()))
            }
            _ => None,
        };
        let never_null: Vec<_> = table.columns.iter().zip(&emits).map(never_null).collect();
        let positions = |wanted: &dyn Fn(usize) -> bool| (0..table.columns.len()).filter(|&at| wanted(at)).collect();
        let is_fact = |at: usize| matches!(emits[at], Emit::Context(context) if context != Context::Extra);
        let is_key = |at: usize| table.is_key(&table.columns[at].name);
        TablePlan {
            width: 0,
            kinds: table.columns.iter().map(|column| column.kind).collect(),
            key: table
                .key
                .iter()
                .filter_map(|key| table.columns.iter().position(|column| column.name == *key))
                .filter(|&at| !is_fact(at))
                .collect(),
            sort_slots: SortSlots {
                texts: table
                    .key
                    .iter()
                    .filter_map(|key| match &emits[table.columns.iter().position(|column| column.name == *key)?] {
                        Emit::Text(slot) | Emit::Date(slot, _) => Some(*slot),
                        Emit::Derived(_, slots) => slots.first().copied(),
                        _ => None,
                    })
                    .collect(),
                amounts: emits
                    .iter()
                    .filter_map(|emit| if let Emit::Decimal(slot, _) = emit { Some(*slot) } else { None })
                    .collect(),
            },
            content: positions(&|at| !is_fact(at) && !is_key(at) && !table.columns[at].is_volatile),
            seq: fact(&emits, Context::Seq),
            listed: table
                .columns
                .iter()
                .enumerate()
                .filter_map(|(at, column)| Some((at, column.values.clone()?)))
                .collect(),
            columns: emits
                .into_iter()
                .zip(never_null)
                .map(|(emit, never_null)| ColumnPlan { emit, never_null })
                .collect(),
        }
    }

    /// The slot of the field at `path`, which holds what `node` says.
    fn slot(&mut self, path: &str, node: fn(u16) -> Node) -> u16 {
        let table = path.split_once("[].").map_or(0, |(rows, _)| self.table_of(rows));
        let paths = &mut self.paths[table];
        let slot = paths.iter().position(|known| known == path).unwrap_or_else(|| {
            paths.push(path.to_owned());
            paths.len() - 1
        });
        let slot = u16::try_from(slot).expect("a row has few fields");
        *self.field(path) = node(slot);
        slot
    }

    /// Makes `path` known, if it is not yet; what lies below it stays.
    fn know(&mut self, path: &str) {
        self.field(path);
    }

    fn table_of(&self, rows: &str) -> usize {
        let found = self.tables.iter().position(|table| table.rows.as_deref() == Some(rows));
        found.unwrap_or_else(|| panic!("no table has a row for each of {rows}"))
    }

    fn field(&mut self, path: &str) -> &mut Node {
        let tables = self.tables;
        let mut object = &mut self.record;
        let mut walked = String::new();
        let mut steps = path.split('.').peekable();
        loop {
            let step = steps.next().expect("a path has steps");
            let name = step.trim_end_matches("[]");
            walked.push_str(name);
            let rows = tables.iter().position(|table| table.rows.as_deref() == Some(name)).filter(|_| walked == name);
            let at = object.fields.iter().position(|field| field.name.as_str() == name).unwrap_or_else(|| {
                let node = match rows {
                    Some(table) => Node::Rows(table, Object::default()),
                    None if steps.peek().is_some() => {
                        Node::Object(Object { parents: parents_of(&walked), ..Object::default() })
                    }
                    None => Node::Known,
                };
                object.fields.push(Field { name: Name::new(name), path: walked.clone(), node });
                object.fields.len() - 1
            });
            let node = &mut object.fields[at].node;
            if steps.peek().is_none() {
                return node;
            }
            if matches!(node, Node::Known) {
                *node = Node::Object(Object { parents: parents_of(&walked), ..Object::default() });
            }
            object = match node {
                Node::Object(inner) => {
                    walked.push('.');
                    inner
                }
                Node::Rows(_, inner) => {
                    walked.push_str("[].");
                    inner
                }
                _ => panic!("{walked} is a value, and {path} wants to look inside"),
            };
        }
    }
}

/// The steps of a path within its row.
fn parents_of(path: &str) -> Vec<String> {
    let within = path.rsplit_once("[].").map_or(path, |(_, within)| within);
    within.split('.').map(str::to_owned).collect()
}

/// Numbers the objects from `next` on.
fn number(object: &mut Object, next: &mut usize) {
    object.number = *next;
    *next += 1;
    for field in &mut object.fields {
        if let Node::Object(inner) | Node::Rows(_, inner) = &mut field.node {
            number(inner, next);
        }
    }
}

/// Sets the bit of the field at `path` in the object that it belongs to.
fn require(object: &mut Object, path: &str) {
    let (step, rest) = path.split_once('.').map_or((path, None), |(step, rest)| (step, Some(rest)));
    let at = object
        .fields
        .iter()
        .position(|field| field.name.as_str() == step.trim_end_matches("[]"))
        .expect("it was made known");
    assert!(at < 64, "an object with over 64 known fields needs a wider mask");
    match (rest, &mut object.fields[at].node) {
        (None, _) => object.required |= 1 << at,
        (Some(rest), Node::Object(inner) | Node::Rows(_, inner)) => require(inner, rest),
        (Some(_), _) => panic!("{path} looks inside a value"),
    }
}
