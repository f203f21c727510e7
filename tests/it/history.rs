//! What was known when: the history tables against what the simulator says that it answered.
//!
//! The expected versions are computed here, from rows that the simulator makes of people and from the instants at which
//! the daemon began and ended each list; nothing of the program's own reading or replaying is used.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use serde_json::{Map, Value};
use vinculo::admin::status::Status;
use vinculo::clock::{Clock, Timestamp};
use vinculo::simulate::{ARCHETYPES, Advance, Fault, Resource};

use crate::harness::{Flow, until_delivered};
use crate::tables::{self, Row, Tables, VERSIONED};

/// Long enough for two lists, short enough to wait for.
const CONFIRM_AFTER: Duration = Duration::from_millis(100);

/// The people whose past changes, or is not there.
const PEOPLE: [&str; 4] = ["corrigido", "duplicado", "recontratado", "vazio"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_years_of_answers_become_the_history_that_was_answered() {
    let (flow, steps) = live_through(24, &mut Order::of(0)).await;
    let (found, expected) = (flow.running.tables(), expected(&flow, &steps));
    histories_are(&found, &expected);
    instants_agree(&flow, &expected);
    rebuilt_is_the_same(&flow, &found).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_orders_of_webhooks_come_to_what_was_answered() {
    // So many of each of the four, whose news come each in an order of its own.
    let copies = std::env::var("VINCULO_ORDERS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    // Bodies are sealed in all other tests.
    let overrides = [("state.encryption_key", ""), ("lake.link_buckets", "16")];
    let flow = connected(copies, &[&overrides[..], &UNPUBLISHED].concat()).await;
    // One order for each copy; together they are mixed too.
    let mut orders: Vec<Order> = (1..).map(Order::of).take(copies as usize).collect();
    let news = news_of(&flow);
    let by_copy: Vec<&[News]> = news.chunks(2 * PEOPLE.len()).collect();
    let mut steps = Steps::of_days(45);
    for step in 1..=16 {
        steps.step(&flow);
        // A job whose employer and id both changed since it was last seen is another one, so that each is seen between.
        let is_all = step == 2 || step == 16;
        let told = orders.iter_mut().zip(&by_copy).map(|(order, news)| told_of(news, order, is_all));
        flow.running.webhooks(told.collect()).await;
        flow.running.until_fetched().await;
    }
    let publisher = &flow.running.daemon.publisher;
    vinculo::publish::publish_in_background(publisher, vinculo::publish::Scope::Changed).await.unwrap().unwrap();
    histories_are(&flow.running.tables(), &expected(&flow, &steps));
}

/// Cell by cell, and not one row more.
fn histories_are(found: &Tables, expected: &Tables) {
    tables::assert_true(found, expected, &[]);
    for (table, _) in VERSIONED {
        let history = format!("{table}_history");
        assert_eq!(found[&history].len(), expected[&history].len(), "{history}");
    }
    let is_deleted = |row: &Row| row["is_deleted"].as_deref() == Some("true");
    assert!(found["salaries_history"].iter().any(is_deleted));
    assert!(found["employments_history"].iter().any(|row| row["known_to"].is_some()));
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
async fn live_through(months: u32, order: &mut Order) -> (Flow, Steps) {
    let flow = connected(1, &[]).await;
    let news = news_of(&flow);
    let mut steps = Steps::of_days(30);
    for month in 1..=months {
        steps.step(&flow);
        flow.running.webhooks(vec![told_of(&news, order, month == months)]).await;
        flow.until_idle().await;
    }
    (flow, steps)
}

/// Nothing is published but by the test.
const UNPUBLISHED: [(&str, &str); 2] = [("lake.publish_quiet", "12h"), ("lake.publish_max_wait", "24h")];

/// So many copies of [`PEOPLE`], connected and listed. From here on the test tells what is new.
async fn connected(copies: u32, overrides: &[(&str, &str)]) -> Flow {
    let confirm = format!("{}ms", CONFIRM_AFTER.as_millis());
    let overrides = [overrides, &[("belvo.confirm_after", &*confirm)]].concat();
    let flow = Flow::start_with(16, |_| {}, &overrides).await;
    for _ in 0..copies {
        for name in PEOPLE {
            let person = ARCHETYPES.iter().position(|archetype| *archetype == name).unwrap();
            flow.simulation.connect_again(u32::try_from(person).unwrap());
        }
    }
    until_delivered(&flow.simulation).await;
    flow.running.until_fetched().await;
    flow.simulation.arm(Fault::parse("lost").unwrap());
    flow
}

/// How the clocks of Belvo and of the daemon were moved on, and when by the machine's.
struct Steps {
    days: u64,
    taken: Vec<Timestamp>,
}

impl Steps {
    fn of_days(days: u64) -> Self {
        Self { days, taken: Vec::new() }
    }

    fn step(&mut self, flow: &Flow) {
        self.taken.push(Clock::system().now());
        flow.simulation.advance(Advance { days: self.days, ..Advance::default() });
        flow.running.clock.advance(self.length());
    }

    fn length(&self) -> Duration {
        Duration::from_hours(24 * self.days)
    }

    /// What the daemon's clock showed when the machine's showed `at`.
    fn by_the_daemon(&self, flow: &Flow, at: Timestamp) -> Timestamp {
        let later = self.taken.iter().filter(|step| **step > at).count();
        let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap();
        let ahead = flow.running.clock.ahead();
        Timestamp::from_micros(at.as_micros() + ahead - i64::try_from(later).unwrap() * micros(self.length()))
    }
}

/// A link, and what is new of it.
type News = (String, &'static str);

/// Everything that may be told, in the order in which the links were connected.
fn news_of(flow: &Flow) -> Vec<News> {
    let links = flow.simulation.link_ids().into_iter();
    links.flat_map(|link| [(link.clone(), "employments"), (link, "owners")]).collect()
}

/// Webhooks for a month's news: three of four, or all, in any order.
fn told_of(news: &[News], order: &mut Order, is_all: bool) -> Vec<String> {
    let mut told: Vec<&News> = news.iter().filter(|_| is_all || order.below(4) > 0).collect();
    order.shuffle(&mut told);
    let body = |(link, resource): &News| {
        format!(
            r#"{{"webhook_id":"w","webhook_type":"{}","process_type":"recurrent_update",
            "webhook_code":"new_{resource}_available","link_id":"{link}","request_id":"r","external_id":null,
            "data":{{"new_{resource}":1}}}}"#,
            resource.to_uppercase()
        )
    };
    told.into_iter().map(body).collect()
}

/// What the history tables should hold.
fn expected(flow: &Flow, steps: &Steps) -> Tables {
    let ledger = flow.simulation.ledger();
    let mut answers: BTreeMap<(String, String), Vec<(Timestamp, &Value)>> = BTreeMap::new();
    for answer in ledger.as_array().unwrap() {
        let at = Timestamp::parse(answer["answered_at"].as_str().unwrap()).unwrap();
        let of = (text(&answer["link"]), text(&answer["resource"]));
        answers.entry(of).or_default().push((steps.by_the_daemon(flow, at), &answer["rows"]));
    }
    let mut past: BTreeMap<(String, String), Past> = BTreeMap::new();
    for (of, lists) in lists(flow) {
        // A link may be in more answers than are kept: Belvo is held against one that is known.
        for list in lists {
            let is_its = |(at, _): &&(Timestamp, &Value)| (list.started..=list.fetched).contains(at);
            let (_, rows) = answers[&of].iter().find(is_its).expect("each list that was kept was answered");
            past.entry(of.clone()).or_default().list(list, rows.as_array().unwrap());
        }
    }
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
