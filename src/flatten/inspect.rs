//! What a record holds that the schema does not know, found when it comes and not when it is published.

use super::{Flattener, Plan, RecordFacts, Rejection};
use crate::clock::Timestamp;
use crate::columns::Columns;
use crate::records::Loss;
use crate::resources::Resource;

/// Looks at records of one resource, one after the other.
pub struct Inspection {
    flattener: Flattener<'static>,
    columns: Vec<Columns>,
}

/// What is new about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Found {
    /// Fields that the schema does not know.
    pub unknown_fields: usize,
    /// Values that a column's list of values does not have.
    pub unknown_values: usize,
}

impl Inspection {
    /// An inspection of records of `resource`.
    pub fn of(resource: &Resource) -> Self {
        let flattener = Flattener::new(Plan::for_resource(resource), None);
        let columns = flattener.columns();
        Self { flattener, columns }
    }

    /// Looks at one record.
    ///
    /// # Errors
    /// The [`Rejection`] with which it will be listed.
    pub fn inspect(&mut self, record: &str) -> Result<Found, Rejection> {
        self.flatten(record)?;
        let tables = self.flattener.plan.tables.iter().zip(&self.columns);
        let unknown_values = tables.map(|(table, columns)| {
            table.listed.iter().map(|(column, values)| {
                let unlisted = |row: &usize| {
                    columns.text(*column, *row).is_some_and(|text| !values.iter().any(|value| value == text))
                };
                (0..columns.len()).filter(unlisted).count()
            })
        });
        let unknown_values = unknown_values.flatten().sum();
        Ok(Found { unknown_fields: self.flattener.unknown_fields(), unknown_values })
    }

    fn flatten(&mut self, record: &str) -> Result<(), Rejection> {
        let facts = RecordFacts {
            link_id: "",
            record_key: "",
            record_id: "",
            created_at: None,
            collected_at: None,
            known_from: Timestamp::from_micros(0),
        };
        self.columns.iter_mut().for_each(|columns| columns.truncate(0));
        self.flattener.flatten(record, &facts, &mut self.columns)
    }
}

/// Compares contents of records of one resource, pair after pair.
pub struct Comparison {
    old: Inspection,
    new: Inspection,
}

impl Comparison {
    /// A comparison of records of `resource`.
    pub fn of(resource: &Resource) -> Self {
        Self { old: Inspection::of(resource), new: Inspection::of(resource) }
    }

    /// What the `new` content of a record lacks of the `old` one.
    pub fn loss(&mut self, old: &str, new: &str) -> Loss {
        if self.new.flatten(new).is_err() {
            return Loss::Nothing;
        }
        if self.old.flatten(old).is_err() {
            return Loss::Unknown;
        }
        let Self { old, new } = self;
        let loses_rows = old.columns.iter().zip(&new.columns).enumerate().any(|(table, (before, after))| {
            let mut at = 0;
            (0..before.len()).any(|row| {
                let compare = |at: usize| old.flattener.compare_keys(table, after, at, before, row);
                while at < after.len() && compare(at).is_lt() {
                    at += 1;
                }
                at == after.len() || compare(at).is_ne()
            })
        });
        if loses_rows { Loss::Rows } else { Loss::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::employments;

    #[test]
    fn a_record_without_a_key_that_belvo_promises_is_rejected_whichever_it_is() {
        let whole = serde_json::json!({
            "id": "1", "link": "2f5d361d-dad6-45d4-a0bf-26d479766067",
            "created_at": "2026-01-01T00:00:00.000Z", "collected_at": "2026-01-01T00:00:00.000Z",
            "start_date": "2020-01-01", "end_date": null, "occupations": [], "salaries": [],
            "employer_data": {"name": "EMPRESA", "code": "99000042", "economic_activity": "6421-2 - BANCOS"},
        });
        let inspect = |record: &serde_json::Value| Inspection::of(&employments::RESOURCE).inspect(&record.to_string());
        inspect(&whole).unwrap();
        for key in whole.as_object().unwrap().keys() {
            let mut record = whole.clone();
            record.as_object_mut().unwrap().remove(key);
            let rejection = inspect(&record).expect_err(key);
            assert_eq!((rejection.path.as_str(), rejection.reason), (key.as_str(), "is missing"));
        }
    }
}
