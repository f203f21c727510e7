//! The versions of a record → its rows: those that hold now, and every version that each of them ever had.
//!
//! *Takes* every content that the record ever had, in order. *Gives* current rows and history rows from one replay: the
//! current ones are the history's open ends, with what the latest sighting told. *Promises* that a row whose content
//! stays keeps its version however often the rest of the record changes; that a row which is missing from one list
//! stays until a second list, `confirm_after` later, agrees; that an answer older than the one held becomes history and
//! never current, and moves nothing that is current; that versions of one row never overlap; and that a version which
//! cannot be flattened changes nothing. It is a function of the record store alone, so that the lake can be built again
//! from it.

use std::cmp::Ordering;
use std::time::Duration;

use crate::clock::{Timestamp, credible};
use crate::columns::Columns;
use crate::flatten::{Flattener, RecordFacts, Rejection};
use crate::records::ListTimes;
use crate::schema::{Context, Origin, Table, Type};

/// The shortest time that a version lasts: keys of a history end in the instant at which it began.
const SHORTEST: Duration = Duration::from_micros(1);

/// One content of a record, or its end.
pub struct Version {
    /// Belvo's JSON; empty where two lists agreed that the record is gone, and where an older answer came again.
    pub body: String,
    /// Whether what is kept of it cannot be opened; then the body is empty and says nothing.
    pub is_damaged: bool,
    /// Whether a newer answer was held already when it came.
    pub is_late: bool,
    /// Belvo's id of the record in it.
    pub record_id: String,
    /// When Belvo stored the record, as it says.
    pub created_at: Option<Timestamp>,
    /// When Belvo read the record, as it says.
    pub collected_at: Option<Timestamp>,
    /// Since when it could have been known: never earlier than the last list that showed the version before.
    pub known_from: Timestamp,
    /// When the list that brought it was complete.
    pub fetched_at: Timestamp,
}

impl Version {
    /// Since when what is new in it could have been known, if nothing was known before.
    fn first_known(&self) -> Timestamp {
        credible(self.collected_at, self.fetched_at).unwrap_or(self.fetched_at)
    }

    fn is_end(&self) -> bool {
        self.body.is_empty() && !self.is_damaged
    }

    /// Appends its rows to `columns`.
    fn flatten(
        &self,
        flattener: &mut Flattener<'_>,
        facts: &RecordFacts<'_>,
        columns: &mut [Columns],
    ) -> Result<(), Rejection> {
        if self.is_damaged { Err(Rejection::of_damage()) } else { flattener.flatten(&self.body, facts, columns) }
    }
}

/// Rows of each table of a resource.
pub struct Rows {
    /// Those that hold now.
    pub current: Vec<Columns>,
    /// Every version of each.
    pub history: Vec<Columns>,
}

impl Rows {
    /// Those of one table: the current ones are counted first, and then their histories.
    pub fn of_table(&mut self, table: usize) -> Option<&mut Columns> {
        self.current.iter_mut().chain(&mut self.history).nth(table)
    }
}

/// Replays records of one resource, one after the other.
pub struct Replay<'p> {
    flattener: Flattener<'p>,
    shapes: Vec<Shape>,
    confirm_after: Duration,
}

impl<'p> Replay<'p> {
    /// A replay on `flattener`, which fills `tables`, for lists that agree when they are `confirm_after` apart.
    pub fn new<'t>(
        flattener: Flattener<'p>,
        tables: impl IntoIterator<Item = &'t Table>,
        confirm_after: Duration,
    ) -> Self {
        Self { flattener, shapes: tables.into_iter().map(Shape::of).collect(), confirm_after }
    }

    /// No rows yet, for [`Replay::append`].
    pub fn rows(&self) -> Rows {
        Rows {
            current: self.flattener.columns(),
            history: self.shapes.iter().map(|shape| Columns::of(&shape.history)).collect(),
        }
    }

    /// Appends the rows of a record with these versions, in the order in which they came. `latest` are the facts of its
    /// latest sighting, but for `known_from`, which is each version's; `lists` are all complete lists of its link and
    /// resource that count against what they lack, in order. They are not needed for a record with one version.
    ///
    /// # Errors
    /// The [`Rejection`] of the latest version that is not late. If that one is good and another is damaged, a
    /// rejection that says so, because nothing else would tell that the history lacks it. The rows of good versions are
    /// appended all the same.
    pub fn append(
        &mut self,
        versions: &[Version],
        latest: &RecordFacts<'_>,
        lists: &[ListTimes],
        rows: &mut Rows,
    ) -> Result<(), Rejection> {
        if let [only] = versions {
            return self.append_only(only, latest, rows);
        }
        let mut timelines: Vec<Timeline> = self.flattener.columns().into_iter().map(Timeline::of).collect();
        let mut last_good = None;
        let mut outcome = Ok(());
        let mut coming = lists.iter().copied().peekable();
        let mut counted: Vec<ListTimes> = Vec::new();
        for version in versions.iter().filter(|version| !version.is_late) {
            while let Some(list) = coming.next_if(|list| list.fetched_at < version.fetched_at) {
                // A list that showed a content which cannot be read says nothing about its rows.
                if outcome.is_ok() {
                    counted.push(list);
                }
            }
            self.end_confirmed(&mut timelines, &counted);
            outcome = self.follow(version, latest, &mut timelines, &mut last_good);
        }
        if outcome.is_ok() {
            counted.extend(coming);
        }
        self.end_confirmed(&mut timelines, &counted);
        let ends: Vec<(Timestamp, Timestamp)> = versions
            .iter()
            .filter(|version| !version.is_late)
            .map(|version| (version.first_known(), version.known_from))
            .collect();
        for late in versions.iter().filter(|version| version.is_late) {
            self.insert_late(late, latest, lists, &ends, &mut timelines);
        }
        for (table, timeline) in timelines.iter().enumerate() {
            self.write(table, timeline, latest, last_good.as_deref(), rows);
        }
        if versions.iter().any(|version| version.is_damaged) {
            outcome.and(Err(Rejection::of_damage()))
        } else {
            outcome
        }
    }

    /// The rows of a record that never changed: both tables take them from one reading.
    fn append_only(&mut self, only: &Version, latest: &RecordFacts<'_>, rows: &mut Rows) -> Result<(), Rejection> {
        let starts: Vec<usize> = rows.current.iter().map(Columns::len).collect();
        let facts = RecordFacts { known_from: only.known_from, ..*latest };
        only.flatten(&mut self.flattener, &facts, &mut rows.current)?;
        for (table, shape) in self.shapes.iter().enumerate() {
            let (current, history) = (&rows.current[table], &mut rows.history[table]);
            let new = starts[table]..current.len();
            let count = new.len();
            history.push_rows_of(current, new, &shape.fact_columns);
            for (column, context) in &shape.facts {
                push_fact(history, *column, *context, &first_sighting(only, latest), count);
            }
            for _ in 0..count {
                shape.end_row(history, None, false);
            }
        }
        Ok(())
    }

    /// Ends the rows that one of `lists` agrees are gone.
    fn end_confirmed(&self, timelines: &mut [Timeline], lists: &[ListTimes]) {
        for (table, timeline) in timelines.iter_mut().enumerate() {
            for key in 0..timeline.standing.len() {
                let Some(missing) = &timeline.standing[key].missing else { continue };
                let agreed = missing.since + self.confirm_after;
                let at = lists.get(lists.partition_point(|list| list.fetched_at < agreed)).map(|list| list.fetched_at);
                if let Some(at) = at {
                    self.end(table, timeline, key, at);
                }
            }
        }
    }

    /// Moves on to the next version.
    fn follow(
        &mut self,
        version: &Version,
        latest: &RecordFacts<'_>,
        timelines: &mut [Timeline],
        last_good: &mut Option<Vec<Columns>>,
    ) -> Result<(), Rejection> {
        if version.is_end() {
            for (table, timeline) in timelines.iter_mut().enumerate() {
                for key in 0..timeline.standing.len() {
                    self.end(table, timeline, key, version.known_from);
                }
            }
            return Ok(());
        }
        let mut next = self.flattener.columns();
        version.flatten(&mut self.flattener, &first_sighting(version, latest), &mut next)?;
        // What came before the first readable content is not kept any more, or could never be read. As long as lists
        // showed that, nobody knew the rows of this one.
        let known = if last_good.is_none() { version.known_from } else { version.first_known() };
        for (table, (timeline, next)) in timelines.iter_mut().zip(&next).enumerate() {
            self.merge(table, timeline, next, version, known);
        }
        *last_good = Some(next);
        Ok(())
    }

    /// Compares the standing rows of one table with those of the next version. Those that are new are known since
    /// `known`.
    fn merge(&self, table: usize, timeline: &mut Timeline, next: &Columns, version: &Version, known: Timestamp) {
        let before = std::mem::take(&mut timeline.standing);
        let mut before = before.into_iter().peekable();
        let mut new = 0;
        loop {
            let order = match (before.peek(), new < next.len()) {
                (Some(old), true) => self.flattener.compare_keys(table, &timeline.rows, old.at, next, new),
                (Some(_), false) => Ordering::Less,
                (None, true) => Ordering::Greater,
                (None, false) => return,
            };
            let old = if order.is_gt() { None } else { before.next() };
            if order.is_lt() {
                let spans = &timeline.spans;
                timeline.standing.extend(old.map(|old| {
                    let is_deleted = spans[old.at].is_deleted;
                    old.missing_from(version, is_deleted)
                }));
                continue;
            }
            let standing = match old {
                None => timeline.push(&self.shapes[table], next, new, Span::from(known, version)),
                Some(old) => {
                    let span = timeline.spans[old.at];
                    if !span.is_deleted && self.flattener.same_content(table, &timeline.rows, old.at, next, new) {
                        old.at
                    } else {
                        // Since the last list that showed the version before.
                        let shown = old
                            .missing
                            .map_or(version.known_from, |missing| missing.known_from.max(version.first_known()));
                        let from = shown.max(span.from + SHORTEST);
                        timeline.spans[old.at].to = Some(from);
                        timeline.push(&self.shapes[table], next, new, Span::from(from, version))
                    }
                }
            };
            timeline.standing.push(Standing { at: standing, missing: None });
            new += 1;
        }
    }

    /// Ends a row at `at`, unless it has ended: what follows says that it is gone.
    fn end(&self, table: usize, timeline: &mut Timeline, key: usize, at: Timestamp) {
        let standing = timeline.standing[key].at;
        let span = timeline.spans[standing];
        if span.is_deleted {
            return;
        }
        let from = at.max(span.from + SHORTEST);
        timeline.spans[standing].to = Some(from);
        let gone = self.copy(table, timeline, standing);
        let span = Span { from, to: None, is_deleted: true, brought_at: at };
        let at = timeline.push(&self.shapes[table], &gone, 0, span);
        timeline.standing[key] = Standing { at, missing: None };
    }

    fn copy(&self, table: usize, timeline: &Timeline, row: usize) -> Columns {
        let mut copy = self.flattener.columns().swap_remove(table);
        copy.push_row_of(&timeline.rows, row);
        copy
    }

    /// Inserts the rows of a late answer where the history leaves time for them: after the last list that showed what
    /// went before, and before what followed. Where no time is left, they last for [`SHORTEST`]. `versions` are those
    /// that were not late: Belvo's own time of each, and since when it was known.
    fn insert_late(
        &mut self,
        late: &Version,
        latest: &RecordFacts<'_>,
        lists: &[ListTimes],
        versions: &[(Timestamp, Timestamp)],
        timelines: &mut [Timeline],
    ) {
        let mut rows = self.flattener.columns();
        if late.flatten(&mut self.flattener, &first_sighting(late, latest), &mut rows).is_err() {
            return;
        }
        let collected = late.first_known();
        let next_version = versions.iter().find(|(of_belvo, _)| *of_belvo > collected).map(|(_, known)| *known);
        for (table, (timeline, rows)) in timelines.iter_mut().zip(&rows).enumerate() {
            self.sort_by_key(table, timeline);
            for row in 0..rows.len() {
                self.insert_late_row(table, timeline, rows, row, late, lists, next_version);
            }
        }
    }

    /// Puts all versions of a table's rows in the order of its key: an answer may have thousands of rows, and each
    /// looks for what is held of it.
    fn sort_by_key(&self, table: usize, timeline: &mut Timeline) {
        let mut by_key = std::mem::take(&mut timeline.by_key);
        by_key.extend(by_key.len()..timeline.spans.len());
        // Most of them are in order: they came so, version by version.
        by_key.sort_by(|&a, &b| self.flattener.compare_keys(table, &timeline.rows, a, &timeline.rows, b));
        timeline.by_key = by_key;
    }

    #[expect(clippy::too_many_arguments, reason = "one row of one table of one answer, and what surrounds it")]
    fn insert_late_row(
        &self,
        table: usize,
        timeline: &mut Timeline,
        rows: &Columns,
        row: usize,
        late: &Version,
        lists: &[ListTimes],
        next_version: Option<Timestamp>,
    ) {
        let same = |timeline: &Timeline, at: usize| {
            !timeline.spans[at].is_deleted && self.flattener.same_content(table, &timeline.rows, at, rows, row)
        };
        let shape = &self.shapes[table];
        let key_of = |at: usize| self.flattener.compare_keys(table, &timeline.rows, at, rows, row);
        let from_key = &timeline.by_key[timeline.by_key.partition_point(|&at| key_of(at).is_lt())..];
        let mut held: Vec<usize> = from_key.iter().copied().take_while(|&at| key_of(at).is_eq()).collect();
        held.sort_by_key(|&at| timeline.spans[at].from);
        let collected = late.first_known();
        let following = held.partition_point(|&at| timeline.spans[at].from <= collected);
        let (earlier, later) = held.split_at(following);
        let in_force = earlier.last().copied().filter(|&at| timeline.spans[at].to.is_none_or(|to| to > collected));
        // What a version between the two lacked was gone in between.
        let is_told_by = |next: usize| {
            let was_gone = in_force.is_none() && next_version.is_some_and(|known| known < timeline.spans[next].from);
            same(timeline, next) && !was_gone
        };
        if in_force.is_some_and(|at| same(timeline, at)) || later.first().is_some_and(|&next| is_told_by(next)) {
            return;
        }
        // Whether what was in force outlives this answer: it is current, or a list showed it that Belvo collected
        // later.
        let outlives = |at: usize, next: Option<&usize>| {
            next.is_none_or(|&next| {
                let is_shown = |list: &&ListTimes| list.fetched_at >= timeline.spans[at].brought_at;
                let mut shown = lists_before(lists, timeline.spans[next].brought_at).iter().filter(is_shown);
                shown.any(|list| list.collected() > Some(collected))
            })
        };
        let outlived_by = in_force.filter(|&at| outlives(at, later.first()));
        let (before, end) = match (in_force, later.first()) {
            // There is only the time before it.
            (Some(at), _) if outlived_by.is_some() => (earlier.iter().rev().nth(1).copied(), timeline.spans[at].from),
            (Some(_), Some(&next)) => (in_force, timeline.spans[next].from),
            (_, next) => {
                let next = next.map(|&next| timeline.spans[next].from);
                let end = next.into_iter().chain(next_version).min();
                (None, end.unwrap_or(collected + SHORTEST))
            }
        };
        let shown = match (in_force, later.first()) {
            (Some(_), Some(&next)) if outlived_by.is_none() => {
                lists_before(lists, timeline.spans[next].brought_at).last().map(|list| list.started_at)
            }
            _ => None,
        };
        let mut from = shown.map_or(collected, |shown| shown.max(collected));
        if from >= end {
            from = Timestamp::from_micros(end.as_micros() - 1);
        }
        if before.is_some_and(|at| timeline.spans[at].from >= from || same(timeline, at)) {
            return;
        }
        if let Some(before) = before {
            timeline.spans[before].to = Some(from);
        }
        let span = Span { from, to: Some(end), is_deleted: false, brought_at: late.fetched_at };
        let at = timeline.push(shape, rows, row, span);
        let next = held.iter().map(|&at| timeline.spans[at].from).find(|&from| from >= end);
        if next != Some(end) {
            let gone = self.copy(table, timeline, at);
            timeline.push(shape, &gone, 0, Span { from: end, to: next, is_deleted: true, brought_at: late.fetched_at });
        }
    }

    /// Appends what a timeline came to, in the order of the tables' keys.
    fn write(
        &self,
        table: usize,
        timeline: &Timeline,
        latest: &RecordFacts<'_>,
        last_good: Option<&[Columns]>,
        rows: &mut Rows,
    ) {
        let shape = &self.shapes[table];
        let mut order: Vec<usize> = (0..timeline.spans.len()).collect();
        order.sort_by(|&a, &b| {
            let by_key = self.flattener.compare_keys(table, &timeline.rows, a, &timeline.rows, b);
            by_key.then_with(|| timeline.spans[a].from.cmp(&timeline.spans[b].from))
        });
        let (current, history) = (&mut rows.current[table], &mut rows.history[table]);
        for row in order {
            let span = timeline.spans[row];
            history.push_rows_of(&timeline.rows, row..row + 1, &[]);
            shape.end_row(history, span.to, span.is_deleted);
            if span.to.is_some() || span.is_deleted {
                continue;
            }
            current.push_rows_of(&timeline.rows, row..row + 1, &shape.passing_columns);
            for (column, context) in &shape.facts {
                push_fact(current, *column, *context, latest, 1);
            }
            for &column in &shape.counts {
                let counted = last_good.map(|last| last[table].integer(column, 0));
                current.column_mut(column).push_integer(counted);
            }
        }
    }
}

/// The facts of the sighting that began a version.
fn first_sighting<'r>(version: &'r Version, latest: &RecordFacts<'r>) -> RecordFacts<'r> {
    RecordFacts {
        record_id: &version.record_id,
        created_at: version.created_at,
        collected_at: version.collected_at,
        known_from: version.known_from,
        ..*latest
    }
}

fn push_fact(columns: &mut Columns, column: usize, context: Context, facts: &RecordFacts<'_>, count: usize) {
    let cells = columns.column_mut(column);
    match context {
        Context::RecordId => cells.push_text_times(facts.record_id, count),
        Context::CreatedAt => (0..count).for_each(|_| cells.push_timestamp(facts.created_at)),
        Context::CollectedAt => (0..count).for_each(|_| cells.push_timestamp(facts.collected_at)),
        Context::LinkId | Context::RecordKey | Context::KnownFrom | Context::Seq | Context::Extra => {
            unreachable!("a row's own, and no fact that passes")
        }
    }
}

fn lists_before(lists: &[ListTimes], at: Timestamp) -> &[ListTimes] {
    &lists[..lists.partition_point(|list| list.fetched_at < at)]
}

/// What a replay needs to know of a table beside its plan.
struct Shape {
    known_from: Option<usize>,
    /// Columns whose values are the latest sighting's, and change without a version.
    facts: Vec<(usize, Context)>,
    fact_columns: Vec<usize>,
    /// The same for numbers of items.
    counts: Vec<usize>,
    /// Both.
    passing_columns: Vec<usize>,
    /// Types of the history table's columns.
    history: Vec<Type>,
}

impl Shape {
    fn of(table: &Table) -> Self {
        let columns = || table.columns.iter().enumerate();
        let facts: Vec<(usize, Context)> = columns()
            .filter_map(|(at, column)| match column.origin {
                Origin::Context(context @ (Context::RecordId | Context::CreatedAt | Context::CollectedAt)) => {
                    Some((at, context))
                }
                _ => None,
            })
            .collect();
        let counts: Vec<usize> =
            columns().filter(|(_, column)| matches!(column.origin, Origin::Count(_))).map(|(at, _)| at).collect();
        let fact_columns: Vec<usize> = facts.iter().map(|(at, _)| *at).collect();
        Self {
            known_from: columns()
                .find(|(_, column)| matches!(column.origin, Origin::Context(Context::KnownFrom)))
                .map(|(at, _)| at),
            passing_columns: fact_columns.iter().chain(&counts).copied().collect(),
            facts,
            fact_columns,
            counts,
            history: columns().map(|(_, column)| column.kind).chain([Type::Timestamp, Type::Boolean]).collect(),
        }
    }

    /// Fills the columns that only a history table has.
    fn end_row(&self, history: &mut Columns, known_to: Option<Timestamp>, is_deleted: bool) {
        history.column_mut(self.history.len() - 2).push_timestamp(known_to);
        history.column_mut(self.history.len() - 1).push_boolean(is_deleted);
    }
}

/// Every version of the rows of one table and record.
struct Timeline {
    /// In the order in which they were found.
    rows: Columns,
    /// When each held.
    spans: Vec<Span>,
    /// The latest version of each row, in the order of the table's key.
    standing: Vec<Standing>,
    /// Places of the versions in the order of the table's key; those that came since they were looked for last are
    /// missing.
    by_key: Vec<usize>,
}

/// When a version of a row held.
#[derive(Clone, Copy)]
struct Span {
    from: Timestamp,
    to: Option<Timestamp>,
    is_deleted: bool,
    /// When the list was complete that began it.
    brought_at: Timestamp,
}

impl Span {
    fn from(from: Timestamp, version: &Version) -> Self {
        Self { from, to: None, is_deleted: false, brought_at: version.fetched_at }
    }
}

/// The latest version of a row.
struct Standing {
    at: usize,
    /// None while the lists show it.
    missing: Option<Missing>,
}

/// Since when a row is missing from the lists.
struct Missing {
    since: Timestamp,
    /// `known_from` of the version that lacked it first.
    known_from: Timestamp,
}

impl Standing {
    fn missing_from(self, version: &Version, is_deleted: bool) -> Self {
        if is_deleted {
            return self;
        }
        let missing = self.missing.unwrap_or(Missing { since: version.fetched_at, known_from: version.known_from });
        Self { at: self.at, missing: Some(missing) }
    }
}

impl Timeline {
    fn of(rows: Columns) -> Self {
        Self { rows, spans: Vec::new(), standing: Vec::new(), by_key: Vec::new() }
    }

    /// Adds row `row` of `rows`, and gives its place.
    fn push(&mut self, shape: &Shape, rows: &Columns, row: usize, span: Span) -> usize {
        let at = self.spans.len();
        self.rows.push_row_of(rows, row);
        if let Some(column) = shape.known_from {
            self.rows.set_timestamp(column, at, span.from);
        }
        self.spans.push(span);
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use arrow::array::{Array, AsArray};
    use arrow::datatypes::TimestampMicrosecondType;

    use super::*;
    use crate::flatten::Plan;
    use crate::resources::employments;
    use crate::schema;

    const CONFIRM_AFTER: Duration = Duration::from_hours(1);

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_micros(minutes * 60_000_000)
    }

    /// A version that a list at `minutes` brought, with these months and their pay.
    fn version(minutes: i64, pays: &[(&str, u32)]) -> Version {
        let salaries: Vec<String> = pays
            .iter()
            .map(|(month, base)| {
                format!(r#"{{"base_amount":{base}.00,"retained_amount":0.01,"month":"{month}","currency":"BRL"}}"#)
            })
            .collect();
        let body = format!(
            r#"{{"id":"1","link":null,"created_at":null,"collected_at":null,"start_date":"2020-01-01","end_date":null,
            "employer_data":{{"name":"EMPRESA FICTÍCIA","code":"99000042","economic_activity":"6421-2"}},
            "occupations":[],"salaries":[{}]}}"#,
            salaries.join(",")
        );
        Version {
            body,
            is_damaged: false,
            is_late: false,
            record_id: "1".into(),
            created_at: None,
            collected_at: None,
            known_from: at(minutes),
            fetched_at: at(minutes),
        }
    }

    /// Month, pay, and since which minute the row is known.
    type Salary = (String, String, i64);

    /// The same with until when, and whether it is a row that says that there is none.
    type Past = (String, String, i64, Option<i64>, bool);

    fn replayed(versions: &[Version], lists: &[i64]) -> (Rows, Result<(), Rejection>) {
        let list = |&minutes: &i64| ListTimes { started_at: at(minutes), fetched_at: at(minutes), collected_at: None };
        replayed_over(versions, &lists.iter().map(list).collect::<Vec<_>>())
    }

    fn replayed_over(versions: &[Version], lists: &[ListTimes]) -> (Rows, Result<(), Rejection>) {
        let schema = schema::get();
        let tables = schema.records[0].tables.iter().map(|&table| &schema.tables[table]);
        let flattener = Flattener::new(Plan::for_resource(&employments::RESOURCE), None);
        let mut replay = Replay::new(flattener, tables, CONFIRM_AFTER);
        let mut rows = replay.rows();
        let latest = RecordFacts {
            link_id: "l",
            record_key: "k",
            record_id: "latest",
            created_at: None,
            collected_at: None,
            known_from: at(0),
        };
        let appended = replay.append(versions, &latest, lists, &mut rows);
        (rows, appended)
    }

    /// Every column of every row, as text; NULL is empty.
    fn cells(columns: &mut Columns, table: &str) -> Vec<HashMap<String, String>> {
        let table = schema::get().table(table);
        let batch = columns.take(&table.batch).unwrap();
        let text = |row: usize, column: usize| match batch.column(column).as_primitive_opt::<TimestampMicrosecondType>()
        {
            Some(instants) if instants.is_null(row) => String::new(),
            Some(instants) => Timestamp::from_micros(instants.value(row)).to_string(),
            None => arrow::util::display::array_value_to_string(batch.column(column), row).unwrap(),
        };
        let named =
            |row| table.columns.iter().enumerate().map(|(at, column)| (column.name.clone(), text(row, at))).collect();
        (0..batch.num_rows()).map(named).collect()
    }

    fn minutes(text: &str) -> Option<i64> {
        // A microsecond before a minute is in the minute before.
        Some(Timestamp::parse(text)?.as_micros().div_euclid(60_000_000))
    }

    /// The salaries that stand after lists at `lists`.
    fn salaries(versions: &[Version], lists: &[i64]) -> (Vec<Salary>, Result<(), Rejection>) {
        let (mut rows, appended) = replayed(versions, lists);
        let standing = cells(&mut rows.current[2], "salaries").into_iter().map(|row| {
            assert_eq!(row["employment_id"], "latest");
            (row["month_text"].clone(), row["base_amount"].clone(), minutes(&row["known_from"]).unwrap())
        });
        (standing.collect(), appended)
    }

    /// Every version of the salaries.
    fn history(versions: &[Version], lists: &[i64]) -> Vec<Past> {
        of_history(replayed(versions, lists).0)
    }

    fn history_of(versions: &[Version], lists: &[ListTimes]) -> Vec<Past> {
        of_history(replayed_over(versions, lists).0)
    }

    fn of_history(mut rows: Rows) -> Vec<Past> {
        let past = cells(&mut rows.history[2], "salaries_history").into_iter().map(|row| {
            (
                row["month_text"].clone(),
                row["base_amount"].clone(),
                minutes(&row["known_from"]).unwrap(),
                minutes(&row["known_to"]),
                row["is_deleted"] == "true",
            )
        });
        past.collect()
    }

    fn past(month: &str, base: &str, from: i64, to: Option<i64>) -> Past {
        (month.to_owned(), base.to_owned(), from, to, false)
    }

    fn gone(month: &str, base: &str, from: i64, to: Option<i64>) -> Past {
        (month.to_owned(), base.to_owned(), from, to, true)
    }

    fn row(month: &str, base: &str, minutes: i64) -> (String, String, i64) {
        (month.to_owned(), base.to_owned(), minutes)
    }

    #[test]
    fn a_row_is_known_since_its_own_content_began() {
        let versions = [
            version(0, &[("2025-01", 100)]),
            version(10, &[("2025-02", 200), ("2025-01", 100)]),
            version(20, &[("2025-01", 100), ("2025-02", 250)]),
        ];
        let (rows, appended) = salaries(&versions, &[0, 10, 20]);
        assert_eq!(rows, [row("2025-01", "100.0000", 0), row("2025-02", "250.0000", 20)]);
        assert_eq!(appended, Ok(()));
    }

    #[test]
    fn a_row_is_known_since_it_was_fetched_when_belvo_names_a_time_that_cannot_be() {
        let of_belvo = |minutes: i64, collected_at| Version {
            collected_at: Some(collected_at),
            ..version(minutes, &[("2025-01", 100), ("2025-02", 100 + u32::try_from(minutes).unwrap())])
        };
        let slip = of_belvo(10, at(10) + Duration::from_hours(24 * 366 * 36));
        let versions = [version(0, &[("2025-01", 100)]), slip];
        let (rows, _) = salaries(&versions, &[0, 10]);
        assert_eq!(rows, [row("2025-01", "100.0000", 0), row("2025-02", "110.0000", 10)]);
        let months_ahead = of_belvo(10, at(90 * 24 * 60));
        let (rows, _) = salaries(&[version(0, &[("2025-01", 100)]), months_ahead], &[0, 10]);
        assert_eq!(rows[1], row("2025-02", "110.0000", 90 * 24 * 60));
    }

    #[test]
    fn a_missing_row_stays_until_a_second_list_agrees() {
        let versions = [version(0, &[("2025-01", 100), ("2025-02", 200)]), version(10, &[("2025-02", 200)])];
        let both = [row("2025-01", "100.0000", 0), row("2025-02", "200.0000", 0)];
        assert_eq!(salaries(&versions, &[0, 10]).0, both);
        assert_eq!(salaries(&versions, &[0, 10, 69]).0, both);
        assert_eq!(salaries(&versions, &[0, 10, 70]).0, both[1..]);
    }

    #[test]
    fn a_row_that_comes_back_in_time_never_went() {
        let whole = [("2025-01", 100), ("2025-02", 200)];
        let versions = [version(0, &whole), version(10, &[("2025-02", 200)]), version(20, &whole)];
        assert_eq!(salaries(&versions, &[0, 10, 20]).0, [row("2025-01", "100.0000", 0), row("2025-02", "200.0000", 0)]);
    }

    #[test]
    fn a_row_that_comes_back_after_it_was_gone_is_known_anew() {
        let whole = [("2025-01", 100), ("2025-02", 200)];
        let versions = [version(0, &whole), version(10, &[("2025-02", 200)]), version(200, &whole)];
        let (rows, _) = salaries(&versions, &[0, 10, 100, 200]);
        assert_eq!(rows, [row("2025-01", "100.0000", 200), row("2025-02", "200.0000", 0)]);
    }

    #[test]
    fn a_version_that_cannot_be_flattened_changes_nothing() {
        let mut broken = version(10, &[("2025-01", 300)]);
        broken.body = broken.body.replace("2020-01-01", "2020-13-01");
        let versions = [version(0, &[("2025-01", 100)]), broken];
        let (rows, appended) = salaries(&versions, &[0, 10]);
        assert_eq!(rows, [row("2025-01", "100.0000", 0)]);
        assert_eq!(appended.unwrap_err().path, "start_date");
    }

    #[test]
    fn a_damaged_version_changes_nothing_and_is_told_also_when_later_ones_are_good() {
        let damaged = |minutes| Version { body: String::new(), is_damaged: true, ..version(minutes, &[]) };
        let (rows, appended) = salaries(&[damaged(0)], &[]);
        assert_eq!((rows, appended.unwrap_err()), (Vec::new(), Rejection::of_damage()));
        let (rows, appended) = salaries(&[version(0, &[("2025-01", 100)]), damaged(10)], &[0, 10, 200]);
        assert_eq!((rows, appended.unwrap_err()), (vec![row("2025-01", "100.0000", 0)], Rejection::of_damage()));
        // No end either: its rows are those of the version before.
        let versions = [version(0, &[("2025-01", 100)]), damaged(10), version(20, &[("2025-01", 100), ("2025-02", 5)])];
        let (rows, appended) = salaries(&versions, &[0, 10, 20]);
        assert_eq!(rows, [row("2025-01", "100.0000", 0), row("2025-02", "5.0000", 20)]);
        assert_eq!(appended.unwrap_err(), Rejection::of_damage());
    }

    #[test]
    fn each_row_has_its_own_versions_and_they_follow_one_another() {
        let versions = [
            version(0, &[("2025-01", 100)]),
            version(10, &[("2025-02", 200), ("2025-01", 100)]),
            version(20, &[("2025-01", 100), ("2025-02", 250)]),
        ];
        let expected = [
            past("2025-01", "100.0000", 0, None),
            past("2025-02", "200.0000", 10, Some(20)),
            past("2025-02", "250.0000", 20, None),
        ];
        assert_eq!(history(&versions, &[0, 10, 20]), expected);
        assert_eq!(history(&versions[..1], &[]), [past("2025-01", "100.0000", 0, None)]);
    }

    #[test]
    fn a_row_that_is_gone_and_comes_back_has_three_versions() {
        let whole = [("2025-01", 100), ("2025-02", 200)];
        let versions = [version(0, &whole), version(10, &[("2025-02", 200)]), version(200, &whole)];
        let expected = [
            past("2025-01", "100.0000", 0, Some(100)),
            gone("2025-01", "100.0000", 100, Some(200)),
            past("2025-01", "100.0000", 200, None),
            past("2025-02", "200.0000", 0, None),
        ];
        assert_eq!(history(&versions, &[0, 10, 60, 100, 200]), expected);
    }

    #[test]
    fn a_record_that_is_gone_takes_all_its_rows_with_it() {
        let mut versions = vec![version(0, &[("2025-01", 100)]), version(10, &[("2025-01", 120)]), version(90, &[])];
        versions[2].body.clear();
        let lists = [0, 10, 20, 90];
        assert_eq!(salaries(&versions, &lists).0, []);
        let ended = [
            past("2025-01", "100.0000", 0, Some(10)),
            past("2025-01", "120.0000", 10, Some(90)),
            gone("2025-01", "120.0000", 90, None),
        ];
        assert_eq!(history(&versions, &lists), ended);
        versions.push(version(300, &[("2025-01", 120)]));
        assert_eq!(salaries(&versions, &[0, 10, 20, 90, 300]).0, [row("2025-01", "120.0000", 300)]);
    }

    #[test]
    fn a_row_whose_earlier_versions_are_not_kept_is_known_no_earlier_than_its_oldest_and_stays_so() {
        // Belvo named the same time for both contents; the list that was begun at 58 still showed the first.
        let first = collected(1, 2, &[("2025-01", 100)]);
        let second = Version { known_from: at(58), ..collected(1, 59, &[("2025-01", 120)]) };
        let third = collected(424, 425, &[("2025-01", 120), ("2025-02", 1)]);
        let whole = history(&[copy(&first), copy(&second), copy(&third)], &[2, 58, 59, 425]);
        assert_eq!(whole[1], past("2025-01", "120.0000", 58, None));
        assert_eq!(history(&[copy(&second)], &[59]), [past("2025-01", "120.0000", 58, None)]);
        assert_eq!(history(&[second, third], &[59, 425]), whole[1..]);
    }

    #[test]
    fn a_record_that_came_back_after_versions_that_are_not_kept_stays_known_since_then() {
        let mut end = version(11, &[]);
        end.body.clear();
        let back = Version { known_from: at(20), ..collected(1, 21, &[("2025-01", 100)]) };
        let next = collected(30, 31, &[("2025-01", 100), ("2025-02", 1)]);
        let known = [past("2025-01", "100.0000", 20, None), past("2025-02", "1.0000", 30, None)];
        assert_eq!(history(&[copy(&back), copy(&next)], &[21, 31]), known);
        assert_eq!(history(&[end, back, next], &[11, 21, 31]), known);
    }

    #[test]
    fn versions_of_one_key_never_overlap_also_when_belvos_clock_is_ahead() {
        // Belvo's clock says the same minute for three contents, an hour ahead of the lists.
        let mut versions =
            [version(1, &[("2025-01", 1)]), version(2, &[("2025-01", 2)]), version(3, &[("2025-01", 3)])];
        for version in &mut versions {
            (version.known_from, version.collected_at) = (at(60), Some(at(60)));
        }
        let (mut rows, _) = replayed(&versions, &[1, 2, 3]);
        let spans: Vec<(String, String)> = cells(&mut rows.history[2], "salaries_history")
            .into_iter()
            .map(|row| (row["known_from"].clone(), row["known_to"].clone()))
            .collect();
        assert_eq!(spans.len(), 3);
        assert!(spans.windows(2).all(|pair| pair[0].1 == pair[1].0 && pair[0].0 < pair[1].0), "{spans:?}");
        assert_eq!(spans[2].1, "");
    }

    /// A version that Belvo collected at `collected` and a list brought at `fetched`.
    fn collected(collected: i64, fetched: i64, pays: &[(&str, u32)]) -> Version {
        Version { collected_at: Some(at(collected)), known_from: at(collected), ..version(fetched, pays) }
    }

    #[test]
    fn a_late_answer_is_history_where_there_was_time_for_it_and_moves_nothing_current() {
        let late = |minutes, pays: &[(&str, u32)]| Version { is_late: true, ..collected(minutes, 400, pays) };
        let lists = [101, 301, 400];
        let versions = [
            collected(100, 101, &[("2025-01", 1), ("2025-02", 5)]),
            collected(300, 301, &[("2025-01", 3), ("2025-02", 5)]),
        ];
        let current = salaries(&versions, &lists).0;
        for (late, expected) in [
            (late(50, &[("2025-01", 9)]), past("2025-01", "9.0000", 50, Some(100))),
            (late(200, &[("2025-01", 9)]), past("2025-01", "9.0000", 200, Some(300))),
            // The list that was begun at 101 still showed what went before.
            (late(100, &[("2025-01", 9)]), past("2025-01", "9.0000", 101, Some(300))),
            // What is current outlived it.
            (late(200, &[("2025-02", 9)]), past("2025-02", "9.0000", 99, Some(100))),
            (late(200, &[("2024-12", 9)]), past("2024-12", "9.0000", 200, Some(300))),
        ] {
            let mut all = Vec::from(versions.each_ref().map(copy));
            all.push(copy(&late));
            let past = history(&all, &lists);
            assert!(past.contains(&expected), "{expected:?} in {past:?}");
            assert_eq!(salaries(&all, &lists).0, current);
            for pair in past.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                assert_eq!(pair[0].3, Some(pair[1].2), "{past:?}");
            }
        }
        // What was known at its time already adds nothing.
        let mut all = Vec::from(versions.each_ref().map(copy));
        all.push(late(200, &[("2025-01", 1), ("2025-02", 5)]));
        assert_eq!(history(&all, &lists), history(&versions, &lists));
    }

    #[test]
    fn a_late_answer_stays_where_it_is_when_the_next_version_comes() {
        let mut versions = vec![
            collected(100, 101, &[("2025-01", 1)]),
            Version { is_late: true, ..collected(200, 401, &[("2025-01", 9)]) },
        ];
        // What was in force was seen again at 301, and collected then.
        let lists = [(101, 100), (301, 300)].map(|(fetched, collected)| ListTimes {
            started_at: at(fetched),
            fetched_at: at(fetched),
            collected_at: Some(at(collected)),
        });
        let told = |versions: &[Version], lists: &[ListTimes]| {
            let mut past = history_of(versions, lists);
            past.retain(|(_, base, ..)| base == "9.0000");
            past
        };
        let before = told(&versions, &lists);
        assert_eq!(before, [past("2025-01", "9.0000", 99, Some(100))]);
        versions.push(collected(500, 501, &[("2025-01", 5)]));
        assert_eq!(told(&versions, &lists), before);
    }

    #[test]
    fn each_of_many_rows_of_a_late_answer_is_told_once() {
        let months: Vec<String> = (0..2_000).map(|row| format!("{:04}-{:02}", 1000 + row / 12, row % 12 + 1)).collect();
        let pays = |base| months.iter().map(|month| (month.as_str(), base)).collect::<Vec<_>>();
        let versions = [collected(300, 301, &pays(1)), Version { is_late: true, ..collected(200, 401, &pays(9)) }];
        let (mut replayed, appended) = replayed(&versions, &[301, 401]);
        appended.unwrap();
        let history = schema::get().table("salaries_history");
        assert_eq!(replayed.history[2].take(&history.batch).unwrap().num_rows(), 2 * months.len());
    }

    #[test]
    fn a_late_row_that_was_gone_before_it_came_back_is_told() {
        let versions = [
            collected(300, 301, &[("2025-01", 1)]),
            Version { is_late: true, ..collected(200, 401, &[("2025-01", 1), ("2025-02", 7)]) },
            collected(500, 501, &[("2025-01", 1), ("2025-02", 7)]),
        ];
        let past_of_february: Vec<Past> =
            history(&versions, &[301, 501]).into_iter().filter(|(month, ..)| month == "2025-02").collect();
        let expected = [
            past("2025-02", "7.0000", 200, Some(300)),
            gone("2025-02", "7.0000", 300, Some(500)),
            past("2025-02", "7.0000", 500, None),
        ];
        assert_eq!(past_of_february, expected);
    }

    fn copy(version: &Version) -> Version {
        Version { body: version.body.clone(), record_id: version.record_id.clone(), ..*version }
    }
}
