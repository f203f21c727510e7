//! What the tables for analysts leave out, under `pii/` of a snapshot: owners and employers that are persons, unmasked.
//!
//! *Takes* the same records as the tables for analysts. *Gives* files in a folder that only this user can enter. *Not
//! here*: `vinculo.duckdb`, which never holds any of it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::sync::LazyLock;

use super::Error;
use super::output::{Output, Waiting};
use super::snapshots::TableEntry;
use super::tables::Stager;
use crate::columns::Columns;
use crate::flatten::{Flattener, Plan};
use crate::replay::Replay;
use crate::schema::{self, RecordSchema, Table};

/// Its folder in a snapshot.
pub(super) const FOLDER: &str = "pii";

/// The column without which a row is nobody's.
const PERSON: &str = "employer_code";

impl Stager<'_> {
    /// Stages every table under `pii/`.
    pub(super) fn stage_pii(&self) -> Result<Vec<TableEntry>, Error> {
        let folder = self.staging.folder.join(FOLDER);
        // Made first, so that nobody can look in while it is filled.
        DirBuilder::new().mode(0o700).create(&folder).map_err(|source| Error::at(&folder, source))?;
        let mut entries = Vec::new();
        for (records, plan) in schema::pii().records.iter().zip(plans()) {
            entries.extend(self.stage_persons(records, plan)?);
        }
        Ok(entries)
    }

    fn stage_persons(&self, records: &'static RecordSchema, plan: &'static Plan) -> Result<Vec<TableEntry>, Error> {
        let changed = self.changed_records(records.resource)?;
        let table = |at: usize| &schema::pii().tables[at];
        let (current, history) = (table(records.tables[0]), table(records.history[0]));
        let mut replay = Replay::new(Flattener::new(plan, self.pepper.clone()), [current], self.confirm_after);
        let outputs = [current, history].map(|table| Output::new(self, table, changed.of(table)));
        let mut waiting = Waiting::new(self.split, outputs.into(), &replay);
        let persons = [person_in(current), person_in(history)];
        self.each_record(
            records.resource,
            |cell| changed.sightings.cells.contains(&cell),
            |record| {
                let lists = self.lists(records.resource, record)?;
                let mut rows = replay.rows();
                // What cannot be flattened is listed with the tables for analysts.
                let _ = replay.append(&record.versions, &record.facts(), &lists, &mut rows);
                let kept = waiting.rows_of(&record.link_id)?;
                let kept = kept.current.iter_mut().chain(&mut kept.history);
                let fresh = rows.current.iter().chain(&rows.history);
                for ((kept, fresh), person) in kept.zip(fresh).zip(persons) {
                    keep_persons(kept, fresh, person);
                }
                waiting.flush(&record.link_id)
            },
        )?;
        waiting.finish()
    }
}

/// The plans of the records, in the schema's order.
fn plans() -> &'static [Plan] {
    static PLANS: LazyLock<Vec<Plan>> =
        LazyLock::new(|| schema::pii().records.iter().map(|records| Plan::of(schema::pii(), records)).collect());
    &PLANS
}

fn person_in(table: &Table) -> Option<usize> {
    table.columns.iter().position(|column| column.name == PERSON)
}

fn keep_persons(kept: &mut Columns, fresh: &Columns, person: Option<usize>) {
    for row in 0..fresh.len() {
        if person.is_none_or(|column| fresh.text(column, row).is_some()) {
            kept.push_row_of(fresh, row);
        }
    }
}
