//! What was known when: the history tables against what the simulator says that it answered.
//!
//! The expected versions are computed here, from rows that the simulator makes of people and from the instants at which
//! the daemon began and ended each list; nothing of the program's own reading or replaying is used.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use serde_json::{Map, Value};
use vinculo::admin::status::Status;
use vinculo::clock::Timestamp;
use vinculo::simulate::{ARCHETYPES, Advance, Fault, Resource};

use crate::harness::Flow;
use crate::tables::{self, Row, Tables, VERSIONED};

/// Long enough for two lists, short enough to wait for.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);

/// The people whose past changes, or is not there.
const PEOPLE: [&str; 4] = ["corrigido", "duplicado", "recontratado", "vazio"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_years_of_answers_become_the_history_that_was_answered() {
    // More orders where there is time for them.
    let orders = std::env::var("VINCULO_ORDERS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    for order in 0..orders {
        let flow = live_through(24, Order::of(order)).await;
        let found = flow.running.tables();
        let expected = expected(&flow);
        tables::assert_true(&found, &expected, &[]);
        for (table, _) in VERSIONED {
            let history = format!("{table}_history");
            assert_eq!(found[&history].len(), expected[&history].len(), "{history}");
        }
        let has = |column: &str, value: Option<&str>| {
            found["salaries_history"].iter().any(|row| row[column].as_deref() == value)
        };
        assert!(
            has("is_deleted", Some("true")) && found["employments_history"].iter().any(|row| row["known_to"].is_some())
        );
        if order == 0 {
            instants_agree(&flow, &expected);
            rebuilt_is_the_same(&flow, &found).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_brings_nothing_new_writes_no_row_again() {
    let flow = Flow::start_with(64, |_| {}, &[("lake.link_buckets", "16")]).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let (before, files) = (flow.running.tables(), files(&flow));
    flow.running.clock.advance(Duration::from_secs(10));
    for link in flow.simulation.link_ids() {
        for resource in [Resource::Employments, Resource::Owners] {
            assert!(flow.simulation.send_again(&link, resource, 1));
        }
    }
    flow.until_idle().await;
    let after = self::files(&flow);
    assert_eq!(before.keys().collect::<Vec<_>>(), flow.running.tables().keys().collect::<Vec<_>>());
    let written = |path: &&String| files.get(*path) != after.get(*path);
    let written: BTreeSet<&str> = after.keys().filter(written).filter_map(|path| path.split('/').next()).collect();
    // These two say when it was asked; everything else is the file that it was.
    assert_eq!(written, BTreeSet::from(["link_snapshots", "links"]));
    let sightings = flow.running.tables();
    assert_eq!(sightings["link_snapshots"].len(), 2 * before["link_snapshots"].len());
    for (table, _) in VERSIONED {
        let of = |tables: &Tables| Tables::from([(table.to_owned(), tables[table].clone())]);
        tables::assert_same(&of(&sightings), &of(&before), &[]);
    }
}

/// The Parquet files of the current snapshot and which file on the disk each is.
fn files(flow: &Flow) -> BTreeMap<String, u64> {
    let snapshot = std::fs::canonicalize(flow.running.lake().join("current")).unwrap();
    let files = tables::parquet_files(&snapshot).into_iter();
    files
        .map(|path| {
            let inode = path.metadata().unwrap().ino();
            (path.strip_prefix(&snapshot).unwrap().display().to_string(), inode)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_schema_knows_is_kept_counted_and_shown() {
    let faults = [
        "unknown_field,at=salary",
        "new_enum,locale=true",
        "missing_key,key=employer_data,first=true,resource=employments,times=1",
    ];
    let faults = faults.map(|fault| Fault::parse(fault).unwrap()).to_vec();
    let flow = Flow::start_with(4, |settings| settings.faults = faults, &[]).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let found = flow.running.tables();
    assert!(found["salaries_history"].iter().all(|row| row["extra"].as_deref() == Some(r#"{"shoe_size":42}"#)));
    assert!(found["occupations"].iter().any(|row| row["locale"].as_deref() == Some("Marítima")));
    assert_eq!(found["rejected_records"].len(), 1);

    let now = Timestamp::from_micros(0);
    let status = Status::gather(&flow.running.state(), &flow.running.lake(), now).unwrap();
    let counted: Vec<&str> = status.drift.keys().map(String::as_str).collect();
    assert_eq!(counted, ["employments fields", "employments rejected", "employments values"]);
    assert_eq!(status.drift["employments rejected"], 1);
    assert!(status.drift["employments fields"] >= found["salaries"].len() as u64);
    assert!(status.to_string().contains("that no schema knows"), "{status}");
}

/// As-of queries at random instants, in DuckDB and from plain Parquet, against the expected versions.
fn instants_agree(flow: &Flow, expected: &Tables) {
    let lake = flow.running.lake();
    let connection = tables::connect(&lake.join("vinculo.duckdb"));
    let snapshot = std::fs::canonicalize(lake.join("current")).unwrap();
    let begins: Vec<i64> =
        expected["salaries_history"].iter().map(|row| micros(row["known_from"].as_deref().unwrap())).collect();
    let (first, last) = (*begins.iter().min().unwrap(), *begins.iter().max().unwrap());
    let mut random = Order::of(50);
    for nth in 0..50 {
        // Every other one is an instant at which something began.
        let at = match nth % 2 {
            0 => begins[random.below(begins.len())],
            _ => first - 1_000_000 + i64::try_from(random.below(usize::try_from(last - first).unwrap())).unwrap(),
        };
        for table in ["employments", "salaries"] {
            let history = format!("{table}_history");
            let known = expected[&history].iter().filter(|row| {
                micros(row["known_from"].as_deref().unwrap()) <= at
                    && row["known_to"].as_deref().is_none_or(|to| micros(to) > at)
                    && row["is_deleted"].as_deref() == Some("false")
            });
            let known: Vec<Row> = known.cloned().map(without_ends).collect();
            let instant = format!("make_timestamptz({at}::BIGINT)");
            let by_macro = tables::query_sql(&connection, &format!("SELECT * FROM {table}_as_of({instant})"));
            let files = format!("'{}/{history}/*/*.parquet'", snapshot.display());
            let by_hand = tables::query_sql(
                &connection,
                &format!(
                    "SELECT * EXCLUDE (known_to, is_deleted) FROM read_parquet({files}, hive_partitioning = false) \
                     WHERE known_from <= {instant} AND (known_to IS NULL OR known_to > {instant}) AND NOT is_deleted"
                ),
            );
            let of = |rows: Vec<Row>| Tables::from([(table.to_owned(), rows)]);
            tables::assert_same(&of(by_macro.clone()), &of(by_hand), &[]);
            tables::assert_true(&of(by_macro.clone()), &of(known.clone()), &[]);
            assert_eq!(by_macro.len(), known.len(), "{table} at {at}");
        }
    }
}

fn without_ends(mut row: Row) -> Row {
    row.remove("known_to");
    row.remove("is_deleted");
    row
}

async fn rebuilt_is_the_same(flow: &Flow, found: &Tables) {
    let publisher = &flow.running.daemon.publisher;
    vinculo::publish::publish_in_background(publisher, vinculo::publish::Scope::Everything).await.unwrap().unwrap();
    tables::assert_same(&flow.running.tables(), found, &[]);
}

/// Connects [`PEOPLE`] and moves on month by month; of each month's news, some are told later, and in any order.
async fn live_through(months: u32, mut order: Order) -> Flow {
    let confirm = format!("{}ms", CONFIRM_AFTER.as_millis());
    let flow = Flow::start_with(16, |_| {}, &[("belvo.confirm_after", &confirm)]).await;
    for name in PEOPLE {
        let person = ARCHETYPES.iter().position(|archetype| *archetype == name).unwrap();
        assert_eq!(flow.simulation.connect(u32::try_from(person).unwrap(), 1), 1);
    }
    flow.until_idle().await;
    // From here on the test tells what is new.
    flow.simulation.arm(Fault::parse("lost").unwrap());
    let subjects: Vec<(String, &str)> = flow
        .simulation
        .link_ids()
        .into_iter()
        .flat_map(|link| [(link.clone(), "employments"), (link, "owners")])
        .collect();
    for month in 1..=months {
        flow.simulation.advance(Advance { days: 30, ..Advance::default() });
        flow.running.clock.advance(Duration::from_hours(24 * 30));
        let mut told: Vec<&(String, &str)> =
            subjects.iter().filter(|_| month == months || order.below(4) > 0).collect();
        order.shuffle(&mut told);
        for (link, resource) in told {
            let body = format!(
                r#"{{"webhook_id":"w","webhook_type":"{}","process_type":"recurrent_update",
                "webhook_code":"new_{resource}_available","link_id":"{link}","request_id":"r","external_id":null,
                "data":{{"new_{resource}":1}}}}"#,
                resource.to_uppercase()
            );
            assert_eq!(flow.running.webhook(&body).await, 200);
        }
        flow.until_idle().await;
    }
    flow
}

/// What the history tables should hold.
fn expected(flow: &Flow) -> Tables {
    let ledger = flow.simulation.ledger();
    let mut lists: BTreeMap<(String, String), Vec<List>> = lists(flow);
    let mut past: BTreeMap<(String, String), Past> = BTreeMap::new();
    for answer in ledger.as_array().unwrap() {
        let of = (text(&answer["link"]), text(&answer["resource"]));
        let list = lists.get_mut(&of).unwrap().remove(0);
        past.entry(of).or_default().list(list, answer["rows"].as_array().unwrap());
    }
    assert!(lists.values().all(Vec::is_empty), "each list that was kept was answered");
    let mut tables: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (table, _) in VERSIONED {
        tables.insert(format!("{table}_history"), Vec::new());
    }
    for past in past.into_values() {
        for ((table, _), versions) in past.0 {
            let rows = versions.into_iter().map(Version::into_row);
            tables.get_mut(&format!("{table}_history")).unwrap().extend(rows);
        }
    }
    tables::from_truth(&serde_json::to_value(tables).unwrap())
}

/// When the daemon began and ended each list, in order.
#[derive(Clone, Copy)]
struct List {
    started: Timestamp,
    fetched: Timestamp,
}

fn lists(flow: &Flow) -> BTreeMap<(String, String), Vec<List>> {
    let state = rusqlite::Connection::open(flow.running.state()).unwrap();
    let mut select = state
        .prepare("SELECT link_id, resource, started_at, fetched_at FROM link_snapshots ORDER BY fetched_at")
        .unwrap();
    let mut rows = select.query([]).unwrap();
    let mut lists: BTreeMap<_, Vec<List>> = BTreeMap::new();
    while let Some(row) = rows.next().unwrap() {
        let at = |column| Timestamp::from_micros(row.get(column).unwrap());
        let list = List { started: at(2), fetched: at(3) };
        lists.entry((row.get(0).unwrap(), row.get(1).unwrap())).or_default().push(list);
    }
    lists
}

/// Versions of the rows of one link and resource, by table and key.
#[derive(Default)]
struct Past(BTreeMap<(String, String), Vec<Version>>);

struct Version {
    content: Map<String, Value>,
    passing: Map<String, Value>,
    from: Timestamp,
    to: Option<Timestamp>,
    is_deleted: bool,
    /// Start of the last list that showed it.
    shown: Timestamp,
    missing_since: Option<Timestamp>,
}

impl Past {
    /// A complete list with these rows.
    fn list(&mut self, list: List, rows: &[Value]) {
        let mut listed = BTreeSet::new();
        for row in rows {
            let key = (text(&row["table"]), text(&row["key"]));
            let content = row["content"].as_object().unwrap().clone();
            let collected = Timestamp::parse(row["collected_at"].as_str().unwrap()).unwrap();
            let versions = self.0.entry(key.clone()).or_default();
            listed.insert(key);
            let last = versions.last_mut();
            let from = match last {
                Some(last) if !last.is_deleted && last.content == content => {
                    (last.shown, last.missing_since) = (list.started, None);
                    continue;
                }
                Some(last) => {
                    let from = collected.max(last.shown);
                    last.to = Some(from);
                    from
                }
                None => collected,
            };
            let passing = row["passing"].as_object().unwrap().clone();
            let version = Version {
                content,
                passing,
                from,
                to: None,
                is_deleted: false,
                shown: list.started,
                missing_since: None,
            };
            versions.push(version);
        }
        for (_, versions) in self.0.iter_mut().filter(|(key, _)| !listed.contains(*key)) {
            let last = versions.last_mut().unwrap();
            if last.is_deleted {
                last.shown = list.started;
                continue;
            }
            let since = *last.missing_since.get_or_insert(list.fetched);
            if list.fetched >= since + CONFIRM_AFTER {
                last.to = Some(list.fetched);
                let gone = Version {
                    content: last.content.clone(),
                    passing: last.passing.clone(),
                    from: list.fetched,
                    to: None,
                    is_deleted: true,
                    shown: list.started,
                    missing_since: None,
                };
                versions.push(gone);
            }
        }
    }
}

impl Version {
    fn into_row(self) -> Value {
        let mut row = self.content;
        row.extend(self.passing);
        row.insert("known_from".into(), self.from.to_string().into());
        row.insert("known_to".into(), self.to.map(|to| to.to_string()).into());
        row.insert("is_deleted".into(), self.is_deleted.into());
        row.into()
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn micros(text: &str) -> i64 {
    Timestamp::parse(text).unwrap().as_micros()
}

/// Numbers that look random and are the same each time.
struct Order(u64);

impl Order {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (end as u64)).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}
