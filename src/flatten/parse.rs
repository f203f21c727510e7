//! A record's JSON → slots, one for each known field of each row, that point into its text.

use super::Rejection;
use super::plan::{Field, Node, Object, Plan};
use crate::clock::Timestamp;
use crate::json::{Kind, NotJson, Reader, Span, unescape};

/// The rows of one table in one record.
pub(super) struct Rows {
    width: usize,
    slots: Vec<Slot>,
    extras: Vec<Extra>,
}

/// Where a field's value is.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    span: Span,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    /// Null, or not there.
    #[default]
    Nowhere,
    /// In the record, as it stands.
    Record,
    /// A string that had escapes, in the side text.
    Unescaped,
}

/// An unknown field.
struct Extra {
    row: usize,
    path: String,
    value: Span,
}

impl Rows {
    pub fn of_width(width: usize) -> Self {
        Self { width: width.max(1), slots: Vec::new(), extras: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.slots.clear();
        self.extras.clear();
    }

    pub fn len(&self) -> usize {
        self.slots.len() / self.width
    }

    pub fn unknown_fields(&self) -> usize {
        self.extras.len()
    }

    /// A text field; `None` where it is null or was not sent.
    #[inline]
    pub fn text<'r>(&self, row: usize, slot: u16, record: &'r str, unescaped: &'r str) -> Option<&'r str> {
        let slot = self.slots[row * self.width + usize::from(slot)];
        match slot.place {
            Place::Nowhere => None,
            Place::Record => Some(slot.span.of(record)),
            Place::Unescaped => Some(slot.span.of(unescaped)),
        }
    }

    /// A number field, as it is written.
    #[inline]
    pub fn number<'r>(&self, row: usize, slot: u16, record: &'r str) -> Option<&'r str> {
        self.text(row, slot, record, "")
    }

    /// Appends the row's unknown fields as one JSON object; false when it has none.
    pub fn extra(&self, row: usize, record: &str, out: &mut String) -> bool {
        if self.extras.is_empty() {
            return false;
        }
        for extra in self.extras.iter().filter(|extra| extra.row == row) {
            out.push(if out.is_empty() { '{' } else { ',' });
            out.push_str(&serde_json::Value::from(extra.path.as_str()).to_string());
            out.push(':');
            out.push_str(extra.value.of(record));
        }
        if !out.is_empty() {
            out.push('}');
        }
        !out.is_empty()
    }

    /// Adds a row of empty slots and gives the first one's position.
    fn add(&mut self) -> usize {
        let base = self.slots.len();
        self.slots.resize(base + self.width, Slot::default());
        base
    }
}

impl From<NotJson> for Rejection {
    fn from(_: NotJson) -> Self {
        Self { path: "the record".into(), reason: "is not JSON" }
    }
}

/// Reads the record into `rows`, one entry for each table of `plan`; strings that had escapes go to `unescaped`.
pub(super) fn record(plan: &Plan, text: &str, rows: &mut [Rows], unescaped: &mut String) -> Result<(), Rejection> {
    let mut parser = Parser { reader: Reader::new(text), text, rows, unescaped };
    if parser.reader.kind()? != Kind::Object {
        return Err(Rejection { path: "the record".into(), reason: "is not an object" });
    }
    let base = parser.rows[0].add();
    parser.object(&plan.record, 0, base)?;
    parser.reader.end()?;
    Ok(())
}

struct Parser<'t, 'r> {
    reader: Reader<'t>,
    text: &'t str,
    rows: &'r mut [Rows],
    unescaped: &'r mut String,
}

impl Parser<'_, '_> {
    /// Reads an object into the row of `table` whose slots start at `base`.
    fn object(&mut self, object: &Object, table: usize, base: usize) -> Result<(), Rejection> {
        let mut seen = 0_u64;
        // Belvo sends the fields of one kind of object in one order: the next one is mostly the one after the last.
        let mut expected = 0;
        let mut more = self.reader.enter()?;
        while more {
            let key = self.reader.key()?;
            let raw = key.span.of(self.text);
            let known = match object.fields.get(expected) {
                Some(field) if field.name == raw => Some(expected),
                _ if key.is_escaped => {
                    let mut name = String::new();
                    unescape(raw, &mut name);
                    object.fields.iter().position(|field| field.name == name)
                }
                _ => object.fields.iter().position(|field| field.name == raw),
            };
            if let Some(at) = known {
                let field = &object.fields[at];
                if seen & (1 << at) != 0 {
                    return Err(self.reject(field, table, "is there twice"));
                }
                seen |= 1 << at;
                expected = at + 1;
                self.field(field, table, base)?;
            } else {
                let mut path = object.prefix.clone();
                if key.is_escaped { unescape(raw, &mut path) } else { path.push_str(raw) }
                let value = self.reader.any()?;
                let rows = &mut self.rows[table];
                rows.extras.push(Extra { row: base / rows.width, path, value });
            }
            more = self.reader.another(b'}')?;
        }
        let missing = object.required & !seen;
        if missing != 0 {
            let field = &object.fields[missing.trailing_zeros() as usize];
            return Err(self.reject(field, table, "is missing"));
        }
        Ok(())
    }

    #[inline]
    fn field(&mut self, field: &Field, table: usize, base: usize) -> Result<(), Rejection> {
        let kind = self.reader.kind()?;
        if kind == Kind::Null {
            self.reader.word()?;
            return Ok(());
        }
        match (&field.node, kind) {
            (Node::Text(slot), Kind::Text) => {
                let text = self.reader.text()?;
                let slot = &mut self.rows[table].slots[base + usize::from(*slot)];
                if text.is_escaped {
                    let at = self.unescaped.len();
                    unescape(text.span.of(self.text), self.unescaped);
                    *slot = Slot { span: Span::between(at, self.unescaped.len()), place: Place::Unescaped };
                } else {
                    *slot = Slot { span: text.span, place: Place::Record };
                }
            }
            (Node::Number(slot), Kind::Number) => {
                let span = self.reader.number()?;
                self.rows[table].slots[base + usize::from(*slot)] = Slot { span, place: Place::Record };
            }
            (Node::Object(inner), Kind::Object) => self.object(inner, table, base)?,
            (Node::Rows(items, inner), Kind::Array) => {
                let mut more = self.reader.enter()?;
                while more {
                    if self.reader.kind()? != Kind::Object {
                        return Err(self.reject(field, *items, "has an item that is not an object"));
                    }
                    let base = self.rows[*items].add();
                    self.object(inner, *items, base)?;
                    more = self.reader.another(b']')?;
                }
            }
            (Node::Instant, Kind::Text) => {
                let text = self.reader.text()?.span.of(self.text);
                if Timestamp::parse(text).is_none() {
                    return Err(self.reject(field, table, "is not a timestamp"));
                }
            }
            (Node::Known, _) => drop(self.reader.any()?),
            (Node::Text(_) | Node::Instant, _) => return Err(self.reject(field, table, "is not a text")),
            (Node::Number(_), _) => return Err(self.reject(field, table, "is not a number")),
            (Node::Object(_), _) => return Err(self.reject(field, table, "is not an object")),
            (Node::Rows(..), _) => return Err(self.reject(field, table, "is not a list")),
        }
        Ok(())
    }

    #[cold]
    fn reject(&self, field: &Field, table: usize, reason: &'static str) -> Rejection {
        Rejection::at(&field.path, self.rows[table].len().saturating_sub(1), reason)
    }
}
