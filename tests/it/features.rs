//! Features of made-up people, each worked out by hand; and that nothing which came later can be part of them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{NaiveDate, TimeDelta};
use duckdb::Connection;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use vinculo::cli::Global;
use vinculo::cli::ordered::follow_here;
use vinculo::daemon::Parts;
use vinculo::features::frozen::{self, Freezing, Frozen};
use vinculo::features::runs::{self, Mode, Run, Wanted};
use vinculo::features::{catalog, explain, published};
use vinculo::operations::{Links, Order};
use vinculo::publish::{Scope, publish_in_background};
use vinculo::reference::Reference;
use vinculo::schema::{self, Table};
use vinculo::simulate::{Advance, Fault};

use crate::binary::{Simulate, Site, free_address, run};
use crate::fixtures::Told;
use crate::harness::{AUTHORIZATION, Flow, PEPPER, Running};
use crate::tables::{self, Row};

/// A database with the tables that features are computed from, the macros, and the made-up people.
fn people() -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    let columns = |table: &Table| {
        let columns: Vec<String> =
            table.columns.iter().map(|column| format!("{} {}", column.name, column.kind.duckdb())).collect();
        columns.join(", ")
    };
    for name in ["links", "link_snapshots"] {
        let table = schema::get().table(name);
        connection.execute_batch(&format!("CREATE TABLE {name} ({})", columns(table))).unwrap();
    }
    for name in ["employments", "occupations", "salaries"] {
        let columns = columns(schema::get().table(name));
        let history = format!("{columns}, known_to TIMESTAMP WITH TIME ZONE, is_deleted BOOLEAN");
        connection.execute_batch(&format!("CREATE TABLE {name}_history ({history})")).unwrap();
    }
    catalog::create_macros(&connection, &Reference::compiled()).unwrap();
    connection.execute_batch(&read("people.sql")).unwrap();
    connection
}

fn read(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/features").join(name)).unwrap()
}

fn expected() -> Value {
    serde_json::from_str(&read("expected.json")).unwrap()
}

/// The rows of `credit_features` for which `condition` holds, each column as JSON; instants are left out.
fn features(connection: &Connection, as_of: &str, known: &str, lag_months: u64, condition: &str) -> Vec<Value> {
    let sql = format!(
        "SELECT CAST(to_json(f) AS VARCHAR) FROM (SELECT * EXCLUDE (known_at) FROM credit_features(DATE '{as_of}', \
         TIMESTAMPTZ '{known}', {lag_months}) WHERE {condition} ORDER BY link_id) AS f"
    );
    let mut statement = connection.prepare(&sql).unwrap();
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|row| serde_json::from_str(&row.unwrap()).unwrap()).collect()
}

/// Amounts are written as text in the expectation, and are numbers in DuckDB's JSON.
fn is_same(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Number(found), Value::String(amount)) => found.as_f64() == amount.parse().ok(),
        (Value::Number(found), Value::Number(number)) => found.as_f64() == number.as_f64(),
        _ => found == expected,
    }
}

#[test]
fn every_feature_of_the_worked_people_and_traps_is_exact() {
    let connection = people();
    let (mut runs, mut wrong) = (BTreeMap::new(), Vec::new());
    for case in expected()["cases"].as_array().unwrap() {
        let text = |key: &str| case[key].as_str().unwrap().to_owned();
        let run = (text("as_of"), text("known"), case["lag_months"].as_u64().unwrap());
        let (as_of, known, lag_months) = &run;
        let compute = || features(&connection, as_of, known, *lag_months, "true");
        let rows = runs.entry(run.clone()).or_insert_with(compute).iter();
        let rows: Vec<_> = rows.filter(|row| row["link_id"] == case["link_id"]).collect();
        assert_eq!(rows.len(), 1, "{}", text("name"));
        for (column, expected) in case["expected"].as_object().unwrap() {
            if !is_same(&rows[0][column], expected) {
                wrong.push(format!("{}: {column} is {}, expected {expected}", text("name"), rows[0][column]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_macro_has_the_columns_that_the_dictionary_describes() {
    let connection = people();
    let mut statement = connection
        .prepare(
            "SELECT column_name, column_type FROM \
             (DESCRIBE SELECT * FROM credit_features(DATE '2026-06-15', TIMESTAMPTZ '2026-06-15 00:00:00Z', 1))",
        )
        .unwrap();
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let found: Vec<(String, String)> = found.map(Result::unwrap).collect();
    let described = &vinculo::features::dictionary::relation("credit_features").columns;
    let described: Vec<_> = described.iter().map(|column| (column.name.clone(), column.kind.clone())).collect();
    assert_eq!(found, described);
}

#[test]
fn what_was_paid_before_the_real_is_no_pay_in_reais() {
    let connection = people();
    for name in ["employments", "salaries"] {
        let columns = schema::get().table(name).columns.iter();
        let columns: Vec<_> = columns.map(|column| format!("{} {}", column.name, column.kind.duckdb())).collect();
        connection.execute_batch(&format!("CREATE TABLE {name} ({})", columns.join(", "))).unwrap();
    }
    connection
        .execute_batch(
            "CREATE TABLE meta_snapshot (published_at TIMESTAMPTZ);
             INSERT INTO meta_snapshot VALUES ('2026-06-15 12:00:00Z');
             INSERT INTO employments (employment_key, start_date) VALUES ('old', '1976-04-01'), ('new', '1976-04-01');
             INSERT INTO salaries (employment_key, reference_month, base_amount, currency) VALUES
                ('old', '1994-06-01', 5000, 'BRL'), ('new', '1994-06-01', 5000, 'BRL'), ('new', '1994-07-01', 64.79, 'BRL');",
        )
        .unwrap();
    connection.execute_batch(include_str!("../../src/features/sql/views/current_jobs.sql")).unwrap();
    let jobs = tables::query_sql(
        &connection,
        "SELECT employment_key, last_paid_month, last_base_amount FROM current_jobs ORDER BY employment_key DESC",
    );
    let paid: Vec<_> =
        jobs.iter().map(|job| [job["last_paid_month"].clone(), job["last_base_amount"].clone()]).collect();
    assert_eq!(paid, [[None, None], [Some("1994-07-01".to_owned()), Some("64.7900".to_owned())]]);
}

#[test]
fn inss_expected_gives_every_check_value_and_changes_within_a_year_on_the_right_month() {
    let connection = people();
    for check in expected()["inss_expected"].as_array().unwrap() {
        let (base, month) = (check[0].as_str(), check[1].as_str());
        let found: Option<String> = connection
            .query_row(
                "SELECT CAST(inss_expected(CAST(? AS DECIMAL(19, 4)), CAST(? AS DATE)) AS VARCHAR)",
                duckdb::params![base, month],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(found.as_deref(), check[2].as_str(), "{base:?} in {month:?}");
    }
}

#[test]
fn each_bracket_knows_what_those_below_it_give() {
    let connection = people();
    for check in expected()["ref_inss"].as_array().unwrap() {
        let (valid_from, bracket) = (check[0].as_str(), check[1].as_i64());
        let found: String = connection
            .query_row(
                "SELECT concat_ws(' ', lower_amount, upper_amount, rate, teto, accumulated_amount) FROM ref_inss \
                 WHERE valid_from = CAST(? AS DATE) AND bracket = ?",
                duckdb::params![valid_from, bracket],
                |row| row.get(0),
            )
            .unwrap();
        let expected: Vec<_> = check.as_array().unwrap()[2..].iter().map(|amount| amount.as_str().unwrap()).collect();
        assert_eq!(found, expected.join(" "), "{valid_from:?}, bracket {bracket:?}");
    }
}

#[test]
fn a_month_belongs_to_the_row_that_holds_its_first_day() {
    let connection = people();
    for (table, changed) in [("ref_minimum_wage", "2000 AS amount"), ("ref_inss", "10000 AS teto")] {
        let next = format!("DATE '2026-04-02' AS valid_from, {changed}");
        connection
            .execute_batch(&format!(
                "INSERT INTO {table} SELECT * REPLACE ({next}) FROM {table} WHERE valid_from = DATE '2026-01-01'; \
                 UPDATE {table} SET valid_to = DATE '2026-04-01' WHERE valid_from = DATE '2026-01-01'"
            ))
            .unwrap();
    }
    // The window of P1 ends with April, 3,000.00; that of P3 with May, 9,000.00.
    let condition = "link_id IN ('P1', 'P3')";
    let rows = features(&connection, "2026-06-30", "2026-06-30 23:59:59.999999Z", 1, condition);
    let found: Vec<_> = ["income_in_minimum_wages", "income_to_teto"]
        .iter()
        .flat_map(|column| rows.iter().map(|row| row[*column].as_f64()))
        .collect();
    assert_eq!(found, [Some(1.85), Some(4.5), Some(0.354), Some(0.9)]);
}

#[test]
fn past_the_last_row_of_a_table_its_features_are_null_and_the_others_are_not() {
    let connection = people();
    connection
        .execute_batch(
            "DELETE FROM ref_inss WHERE valid_to >= DATE '2026-01-01'; DELETE FROM ref_minimum_wage WHERE valid_to >= \
             DATE '2026-01-01'; DELETE FROM ref_consignado_margin WHERE valid_to >= DATE '2026-01-01'",
        )
        .unwrap();
    let row = &features(&connection, "2026-06-30", "2026-06-30 23:59:59.999999Z", 1, "link_id = 'P3'")[0];
    for column in [
        "income_in_minimum_wages",
        "income_to_teto",
        "capped_months_12m",
        "inss_plausible_share_12m",
        "consignado_margin_upper_brl",
    ] {
        assert!(row[column].is_null(), "{column} is {}", row[column]);
    }
    assert_eq!(row["income_median_3m_brl"].as_f64(), Some(9000.0));
}

#[test]
fn the_time_zone_of_the_session_changes_nothing() {
    let connection = people();
    let ask = || features(&connection, "2026-06-05", "2026-06-05 23:59:59.999999Z", 1, "true");
    let in_utc = ask();
    // Without the extension for time zones there is but one, and nothing to change.
    for zone in ["America/Sao_Paulo", "Pacific/Auckland"] {
        if connection.execute_batch(&format!("SET TimeZone = '{zone}'")).is_ok() {
            assert_eq!(ask(), in_utc, "{zone}");
        }
    }
}

/// What is learnt after the instant `{K}`, as `{seed}` will have it: other amounts, ends, starts, types and
/// occupations, rows that are new and rows that are gone, further answers.
const LEARNT_LATER: &str = "
    CREATE MACRO dice(words, sides) AS CAST(hash(words) % sides AS BIGINT);

    CREATE TEMP TABLE later AS SELECT * FROM salaries_history
        WHERE known_to IS NULL AND known_from <= TIMESTAMPTZ '{K}' AND dice([employment_key, month_text, '{seed}'], 3) = 0;
    UPDATE salaries_history SET known_to = TIMESTAMPTZ '{K}' + to_hours(1 + dice(['{seed}'], 900))
        WHERE known_to IS NULL AND known_from <= TIMESTAMPTZ '{K}' AND dice([employment_key, month_text, '{seed}'], 3) = 0;
    INSERT INTO salaries_history SELECT * REPLACE (
        TIMESTAMPTZ '{K}' + to_hours(1 + dice(['{seed}'], 900)) AS known_from, NULL AS known_to,
        dice([month_text, '{seed}'], 4) = 0 AS is_deleted, base_amount * (dice([month_text, '{seed}', '1'], 5)) AS base_amount,
        retained_amount + (dice([month_text, '{seed}', '2'], 100)) AS retained_amount,
        ['REGULAR', 'THIRTEENTH', 'BONUS', NULL][1 + dice([month_text, '{seed}', '3'], 4)] AS salary_type) FROM later;
    DROP TABLE later;
    INSERT INTO salaries_history SELECT * REPLACE (
        TIMESTAMPTZ '{K}' + to_seconds(1 + dice(['{seed}', '4'], 9000)) AS known_from, NULL AS known_to,
        reference_month + to_months(CAST(dice([month_text, '{seed}', '5'], 40) AS INTEGER)) AS reference_month, 7 AS seq)
        FROM salaries_history WHERE known_from <= TIMESTAMPTZ '{K}' AND dice([month_text, '{seed}', '6'], 5) = 0;

    CREATE TEMP TABLE later AS SELECT * FROM employments_history
        WHERE known_to IS NULL AND known_from <= TIMESTAMPTZ '{K}' AND dice([employment_key, '{seed}'], 2) = 0;
    UPDATE employments_history SET known_to = TIMESTAMPTZ '{K}' + to_minutes(1 + dice(['{seed}', '7'], 900))
        WHERE known_to IS NULL AND known_from <= TIMESTAMPTZ '{K}' AND dice([employment_key, '{seed}'], 2) = 0;
    INSERT INTO employments_history SELECT * REPLACE (
        TIMESTAMPTZ '{K}' + to_minutes(1 + dice(['{seed}', '7'], 900)) AS known_from, NULL AS known_to,
        dice([employment_key, '{seed}', '8'], 3) = 0 AS is_deleted,
        start_date - CAST(dice([employment_key, '{seed}', '9'], 500) AS INTEGER) AS start_date,
        start_date + CAST(dice([employment_key, '{seed}', '10'], 500) AS INTEGER) AS end_date, '84' AS cnae_division) FROM later;
    DROP TABLE later;
    INSERT INTO employments_history SELECT * REPLACE (employment_key || ' again' AS employment_key,
        TIMESTAMPTZ '{K}' + to_milliseconds(1 + dice(['{seed}', '11'], 900)) AS known_from) FROM employments_history;

    UPDATE occupations_history SET known_to = TIMESTAMPTZ '{K}' + to_hours(1 + dice(['{seed}', '12'], 900))
        WHERE known_to IS NULL AND known_from <= TIMESTAMPTZ '{K}' AND dice([employment_key, '{seed}', '14'], 2) = 0;
    INSERT INTO occupations_history SELECT * REPLACE (TIMESTAMPTZ '{K}' + to_hours(1 + dice(['{seed}', '12'], 900)) AS known_from,
        NULL AS known_to, '9' AS cbo_major_group, start_date + 1 AS start_date) FROM occupations_history;
    INSERT INTO link_snapshots SELECT * REPLACE (TIMESTAMPTZ '{K}' + to_hours(1 + dice(['{seed}', '13'], 900)) AS collected_at,
        TIMESTAMPTZ '{K}' + to_hours(901) AS fetched_at) FROM link_snapshots;
";

/// Fails when what is learnt after the end of the day changes a feature of that day; and when nothing of it would
/// matter to who looks back later. Leaves the database as it was.
fn nothing_leaks(connection: &Connection, as_of: NaiveDate, seed: u32, lag_months: u64) -> Result<(), TestCaseError> {
    let (day, known) = (as_of.to_string(), format!("{as_of} 23:59:59.999999Z"));
    let later = format!("{} 00:00:00Z", as_of + TimeDelta::days(60));
    let before = features(connection, &day, &known, lag_months, "true");
    connection.execute_batch("BEGIN").unwrap();
    let learnt = LEARNT_LATER.replace("{K}", &known).replace("{seed}", &seed.to_string());
    connection.execute_batch(&learnt).unwrap();
    let after = features(connection, &day, &known, lag_months, "true");
    let mut in_retrospect = features(connection, &day, &later, lag_months, "true");
    connection.execute_batch("ROLLBACK").unwrap();
    prop_assert_eq!(&before, &after);
    for (row, before) in in_retrospect.iter_mut().zip(&before) {
        for column in ["pit_mode", "data_age_days"] {
            row[column] = before[column].clone();
        }
    }
    prop_assert_ne!(&before, &in_retrospect);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_was_learnt_later_changes_a_feature(seed in 0..1_000_000_u32, day in 0..120_i64, lag_months in 0..3_u64) {
        let as_of = NaiveDate::from_ymd_opt(2026, 3, 25).unwrap() + TimeDelta::days(day);
        nothing_leaks(&people(), as_of, seed, lag_months)?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_learnt_later_changes_a_feature_of_simulated_people() {
    let flow = Flow::start_with(16, |_| {}, &[("belvo.confirm_after", "100ms")]).await;
    let today = || flow.running.daemon.operations.clock.now().to_utc().date_naive();
    flow.simulation.connect_all();
    flow.until_idle().await;
    let first = today();
    for _ in 0..3 {
        flow.simulation.advance(Advance { months: 1, ..Advance::default() });
        flow.running.clock.advance(Duration::from_hours(24 * 31));
        flow.until_idle().await;
    }
    let connection = Connection::open_in_memory().unwrap();
    let file = std::fs::canonicalize(flow.running.lake().join("vinculo.duckdb")).unwrap();
    connection.execute_batch(&format!("ATTACH '{}' AS lake (READ_ONLY)", file.display())).unwrap();
    for table in ["links", "link_snapshots", "employments_history", "occupations_history", "salaries_history"] {
        connection.execute_batch(&format!("CREATE TABLE {table} AS FROM lake.{table}")).unwrap();
    }
    catalog::create_macros(&connection, &Reference::compiled()).unwrap();
    let superseded = "SELECT count(*) FROM salaries_history WHERE known_to IS NOT NULL";
    assert!(connection.query_row(superseded, [], |row| row.get::<_, i64>(0)).unwrap() > 0, "nothing was corrected");

    let config = ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() };
    let any = (0..1_000_000_u32, 0..=(today() - first).num_days(), 0..3_u64);
    let run = TestRunner::new(config).run(&any, |(seed, day, lag_months)| {
        nothing_leaks(&connection, first + TimeDelta::days(day), seed, lag_months)
    });
    run.unwrap();
}

/// What readers see of features, in DuckDB.
fn published(running: &Running) -> Vec<Row> {
    let connection = tables::connect(&running.lake().join("vinculo.duckdb"));
    let mut rows = tables::query_sql(&connection, "SELECT * FROM credit_features");
    rows.sort();
    rows
}

/// Fails unless the published rows are those that the macro gives for each run, and those in the files.
fn assert_runs_agree(flow: &Flow, rows: &[Row]) {
    let lake = flow.running.lake();
    let connection = tables::connect(&lake.join("vinculo.duckdb"));
    let runs: BTreeSet<[String; 3]> = rows
        .iter()
        .map(|row| ["as_of_date", "known_at", "lag_months"].map(|column| row[column].clone().unwrap()))
        .collect();
    let computed = runs.iter().flat_map(|[as_of, known, lag_months]| {
        let call = format!("credit_features(DATE '{as_of}', TIMESTAMPTZ '{known}', {lag_months})");
        tables::query_sql(&connection, &format!("SELECT * FROM {call}"))
    });
    let files = std::fs::canonicalize(lake.join("current/credit_features")).unwrap().join("*/*.parquet");
    let from_files = format!(
        "SELECT link_id, as_of_date, * EXCLUDE (link_id, as_of_date) FROM read_parquet('{}', hive_partitioning = true)",
        files.display()
    );
    for mut other in [computed.collect::<Vec<_>>(), tables::query_sql(&connection, &from_files)] {
        other.sort();
        assert_eq!(rows, other);
    }
}

/// What a command is given beside its own arguments.
fn global() -> Global {
    Global { config: None, json: false, log_level: "info".to_owned(), log_format: None }
}

async fn compute(running: &Running, as_of: NaiveDate, mode: Mode) {
    let order = Order::Features(Wanted { as_of: Some(as_of), mode, lag_months: 1 });
    let run = follow_here(&running.daemon, order, Parts::All, &global()).await.unwrap();
    let links = running.tables()["links"].len() as u64;
    assert_eq!((run.outcome.as_deref(), run.progress.done), (Some("done"), links), "{run:?}");
}

fn inode(running: &Running, as_of: NaiveDate) -> u64 {
    let path = format!("current/credit_features/as_of_date={as_of}/part-0.parquet");
    running.lake().join(path).metadata().unwrap().ino()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_stay_what_they_were_when_time_goes_on_and_a_rebuild_repeats_them() {
    let flow = Flow::start(16).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let today = || flow.running.daemon.operations.clock.now().to_utc().date_naive();
    let (decision, before) = (today(), today() - TimeDelta::days(100));
    compute(&flow.running, decision, Mode::Strict).await;
    compute(&flow.running, before, Mode::Retro).await;
    let first = published(&flow.running);
    assert_eq!(first.len(), 32);
    assert_runs_agree(&flow, &first);
    let retro = inode(&flow.running, before);

    // Half of the people have news.
    flow.simulation.arm(Fault::parse("lost").unwrap());
    flow.simulation.advance(Advance { days: 60, ..Advance::default() });
    flow.running.clock.advance(Duration::from_hours(24 * 60));
    for link in flow.simulation.link_ids().iter().step_by(2) {
        let body = format!(
            r#"{{"webhook_id":"w","webhook_type":"EMPLOYMENTS","process_type":"recurrent_update",
            "webhook_code":"new_employments_available","link_id":"{link}","request_id":"r","external_id":null,
            "data":{{"new_employments":1}}}}"#
        );
        assert_eq!(flow.running.webhook(&body).await, 200);
    }
    flow.until_idle().await;
    assert_eq!(published(&flow.running), first, "what was learnt later changed a row");
    assert_eq!(inode(&flow.running, before), retro, "a partition that cannot change was written again");
    let strict = inode(&flow.running, decision);

    compute(&flow.running, today(), Mode::Strict).await;
    let second = published(&flow.running);
    assert_eq!(second.len(), 48);
    assert_eq!(
        (inode(&flow.running, before), inode(&flow.running, decision)),
        (retro, strict),
        "the day was over, and is final"
    );
    assert_runs_agree(&flow, &second);
    let publisher = &flow.running.daemon.publisher;
    publish_in_background(publisher, Scope::Everything).await.unwrap().unwrap();
    assert_eq!(published(&flow.running), second, "a rebuild gives other rows");

    // A retro run is replaced by the next one of its date, a strict one is final.
    compute(&flow.running, before, Mode::Retro).await;
    let third = published(&flow.running);
    let known = |rows: &[Row]| -> BTreeSet<_> {
        rows.iter()
            .filter(|row| row["pit_mode"].as_deref() == Some("retro"))
            .map(|row| row["known_at"].clone())
            .collect()
    };
    assert_eq!((third.len(), known(&third).len()), (48, 1));
    assert_ne!(known(&third), known(&second));
    compute(&flow.running, decision, Mode::Strict).await;
    assert_eq!(published(&flow.running), third);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belvo_had_collected_in_time_and_came_late_is_in_a_day_that_is_over() {
    let told = Told::start(&[]).await;
    let running = &told.running;
    let now = || running.daemon.operations.clock.now();
    let list = |collected_at: String, start: &str| {
        include_str!("../fixtures/employments/first_version.json")
            .replace("2026-10-01T12:00:00.123456+00:00", &collected_at)
            .replace("2025-01-01", start)
    };
    told.employments_arrive(&list((now() - Duration::from_hours(72)).to_string(), "2025-01-01"), 2).await;
    let (decision, before) = (now().to_utc().date_naive(), now().to_utc().date_naive() - TimeDelta::days(30));
    compute(running, decision, Mode::Strict).await;
    compute(running, before, Mode::Retro).await;
    let collected_in_time = now();
    compute(running, before, Mode::Retro).await;
    running.clock.advance(Duration::from_hours(24));
    publish_in_background(&running.daemon.publisher, Scope::Everything).await.unwrap().unwrap();
    let over = published(running);

    let news = list(collected_in_time.to_string(), "2024-01-01");
    told.employments_change(&news, 2).await;
    let late = published(running);
    let changed = over.iter().zip(&late).filter(|(before, after)| before != after).count();
    assert_eq!((over.len(), late.len(), changed), (2, 2, 2), "the day of the decision, and the one that looked back");
    publish_in_background(&running.daemon.publisher, Scope::Everything).await.unwrap().unwrap();
    assert_eq!(published(running), late, "a rebuild gives other rows");

    // What was collected in time and is known is nothing new to any day.
    let files = [decision, before].map(|day| inode(running, day));
    told.employments_change(&news, 2).await;
    assert_eq!([decision, before].map(|day| inode(running, day)), files, "a day was written again for no news");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explanation_has_the_published_values_and_a_reason_for_every_null() {
    let flow = Flow::start(16).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let now = flow.running.daemon.operations.clock.now();
    let as_of = now.to_utc().date_naive();
    compute(&flow.running, as_of, Mode::Strict).await;
    let file = std::fs::canonicalize(flow.running.lake().join("vinculo.duckdb")).unwrap();
    let (mode, known_at) = runs::clocks(as_of, Mode::Strict, now).unwrap();
    let run = Run { as_of, mode, known_at, lag_months: 1, ran_at: now, change: 0 };
    for link in flow.simulation.link_ids() {
        let row = published::row_of(&file, &link, as_of, mode).unwrap().unwrap();
        let explanation = explain::explain(&file, &Reference::compiled(), &link, &run).unwrap().unwrap();
        let months: BTreeSet<&str> =
            explanation.evidence["person_months"].iter().filter_map(|month| month["month"].as_str()).collect();
        for feature in &explanation.features {
            let value = row.get(feature.name).filter(|value| !value.is_null());
            assert_eq!(feature.value.as_ref(), value, "{link} {}", feature.name);
            assert_eq!(feature.value.is_none(), feature.why_null.is_some(), "{link} {}", feature.name);
            for month in feature.from.get("person_months").into_iter().flatten() {
                assert!(months.contains(month.as_str()), "{link} {}: {month}", feature.name);
            }
        }
        let feature = |name: &str| explanation.features.iter().find(|feature| feature.name == name).unwrap();
        let median = feature("income_median_3m_brl");
        assert!(median.value.is_none() || (1..=3).contains(&median.from["person_months"].len()), "{median:?}");
        // A count names as many rows as it counts.
        for (name, table) in [
            ("open_jobs", "jobs"),
            ("jobs_started_12m", "jobs"),
            ("open_jobs_without_pay", "jobs"),
            ("paid_months_12m", "person_months"),
        ] {
            let (count, named) = (&feature(name).value, feature(name).from.get(table).map_or(0, Vec::len));
            assert!(count.as_ref().is_none_or(|count| *count == named), "{link} {name}: {count:?} of {named} rows");
        }
        let (count, named) = (&feature("employers_36m").value, feature("employers_36m").from.get("jobs"));
        assert_eq!(count.as_ref().is_some_and(|count| *count != 0), named.is_some(), "{link}");
        for key in explanation.features.iter().filter_map(|feature| feature.from.get("job_months")).flatten() {
            let (job, month) = key.split_once(' ').unwrap();
            let is_it = |row: &&serde_json::Map<String, Value>| row["employment_key"] == job && row["month"] == month;
            assert_eq!(explanation.evidence["job_months"].iter().filter(is_it).count(), 1, "{link}: {key}");
        }
    }
    assert!(explain::explain(&file, &Reference::compiled(), "nobody", &run).unwrap().is_none());
}

/// A job that does nothing until it is told to.
const RETENTION: &str = "schedule = \"0 0 29 2 *\"\ntimezone = \"UTC\"\naction = \"retention\"\n";

/// Keeps the published row of `link` for the decision that has its name.
async fn freeze(flow: &Flow, link: &str, as_of: NaiveDate) {
    let file = std::fs::canonicalize(flow.running.lake().join("vinculo.duckdb")).unwrap();
    let row = published::row_of(&file, link, as_of, Mode::Strict).unwrap().unwrap();
    let frozen_at = flow.running.daemon.operations.clock.now();
    let (decision_id, link_id) = (link.to_owned(), link.parse().unwrap());
    let frozen = Frozen { decision_id, link_id, as_of, mode: Mode::Strict, frozen_at, row };
    assert_eq!(frozen::keep(&flow.running.daemon.store, frozen).await.unwrap(), Freezing::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_kept_any_more_has_no_features_not_even_of_final_dates_and_is_not_called_unemployed() {
    let overrides = [("retention.bodies", "30d")];
    let flow = Flow::start_with_jobs(&[("forget", RETENTION)], 16, |_| {}, &overrides).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let today = || flow.running.daemon.operations.clock.now().to_utc().date_naive();
    let decision = today();
    compute(&flow.running, decision, Mode::Strict).await;
    let links = flow.simulation.link_ids();
    for link in &links {
        freeze(&flow, link, decision).await;
    }
    let before = published(&flow.running);

    // Half of the people are heard of again.
    flow.simulation.arm(Fault::parse("lost").unwrap());
    flow.simulation.advance(Advance { days: 60, ..Advance::default() });
    flow.running.clock.advance(Duration::from_hours(24 * 60));
    for link in links.iter().step_by(2) {
        let links = Links::LinkId(link.clone());
        let order = Order::Refresh { links, resources: Vec::new() };
        follow_here(&flow.running.daemon, order, Parts::All, &global()).await.unwrap();
    }
    let order = Order::Job("forget".to_owned());
    let run = follow_here(&flow.running.daemon, order, Parts::All, &global()).await.unwrap();
    assert_eq!(run.outcome.as_deref(), Some("done"), "{run:?}");
    flow.running.until_published().await;

    // An empty answer holds nothing that could go.
    let is_kept = |row: &Row| {
        let is_empty = |before: &Row| before["link_id"] == row["link_id"] && before["open_jobs"].is_none();
        let mut heard_of = links.iter().step_by(2);
        heard_of.any(|link| row["link_id"].as_ref() == Some(link)) || before.iter().any(is_empty)
    };
    let after = published(&flow.running);
    assert_eq!(after.len(), 16);
    for row in &after {
        let known = row.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name.as_str());
        if is_kept(row) {
            assert!(before.contains(row), "a final row of somebody else has changed");
        } else {
            assert_eq!(row["has_data"].as_deref(), Some("false"), "{row:?}");
            let named = ["link_id", "as_of_date", "known_at", "pit_mode", "lag_months", "feature_version"];
            assert!(known.clone().all(|name| named.contains(&name) || ["has_data", "dq_flags"].contains(&name)));
        }
    }
    assert_runs_agree(&flow, &after);
    let decisions = "SELECT decision_id FROM frozen_features ORDER BY decision_id";
    let kept = flow.running.daemon.store.read(move |tx| tx.all(decisions, &[], |row| row.text(0))).await.unwrap();
    let expected = before.iter().filter(|row| is_kept(row)).map(|row| row["link_id"].clone().unwrap());
    let expected: Vec<String> = expected.collect::<BTreeSet<_>>().into_iter().collect();
    assert!(kept == expected && (8..16).contains(&kept.len()), "{kept:?}");

    compute(&flow.running, today(), Mode::Strict).await;
    let computed = published(&flow.running);
    assert!(computed.iter().filter(|row| !is_kept(row)).all(|row| row["has_data"].as_deref() == Some("false")));
    publish_in_background(&flow.running.daemon.publisher, Scope::Everything).await.unwrap().unwrap();
    assert_eq!(published(&flow.running), computed, "a rebuild gives other rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_person_has_no_features_left_and_a_restored_backup_does_not_bring_them_back() {
    let belvo = free_address();
    let site = Site::new(belvo, &[]);
    let served = site.serve();
    let webhook = site.webhook_url();
    let people = ["--people", "12", "--no-limit", "--pepper", PEPPER, "--webhook-latency", "100ms"];
    let webhooks = ["--webhook", &webhook, "--webhook-authorization", AUTHORIZATION];
    let simulate = Simulate::start(belvo, &[&people[..], &webhooks[..]].concat());
    simulate.tell("connect", "").await;
    let deadline = Instant::now() + Duration::from_mins(1);
    while site.status()["waiting"] != 0 || site.status()["snapshot"]["rows"]["links"] != 12 {
        assert!(Instant::now() < deadline, "{:#}", site.status());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let command = |arguments: &[&str]| {
        let ended = run(&mut site.command(arguments));
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.err);
        ended.out
    };
    assert_eq!(served.terminate(), Some(0));

    let now = vinculo::clock::Clock::system().now().to_utc().date_naive();
    let (today, earlier) = (now.to_string(), (now - TimeDelta::days(40)).to_string());
    command(&["features", "--as-of", &today]);
    command(&["features", "--as-of", &earlier, "--mode", "retro"]);
    // A daemon keeps rows too, for who asks with a command.
    let served = site.serve();
    let (lake, links) = (site.lake(), features_by_link(&site.lake()));
    assert!(links.len() == 12 && links.values().all(|rows| rows.len() == 2), "{links:?}");
    let [gone, stays] = [0, 1].map(|n| links.keys().nth(n).unwrap().clone());
    for (link, decision, as_of, mode) in
        [(&gone, "d-1", &today, "strict"), (&gone, "d-2", &earlier, "retro"), (&stays, "d-3", &today, "strict")]
    {
        let arguments = ["--link", link, "--as-of", as_of, "--mode", mode, "--decision-id", decision];
        command(&[&["features", "freeze"], &arguments[..]].concat());
    }
    let again = ["features", "freeze", "--link", &stays, "--as-of", &today, "--decision-id", "d-1"];
    let refused = run(&mut site.command(&again));
    assert!(refused.code == Some(1) && refused.err.contains("another row"), "{refused:?}");
    assert_eq!(served.terminate(), Some(0));
    command(&["features", "freeze", "--link", &stays, "--as-of", &today, "--decision-id", "d-3"]);
    assert!(command(&["subject", "--link", &gone]).contains("d-2"), "a kept row is not told of");
    let backup = site.folder.path().join("before.backup");
    command(&["backup", backup.to_str().unwrap()]);

    let receipt = command(&["erase", "--link", &gone, "--reason", "ticket 7", "--json"]);
    let receipt: Value = serde_json::from_str(&receipt).unwrap();
    assert_eq!(receipt["receipt"]["rows"]["frozen_features"], 2, "{receipt:#}");
    let expected: BTreeMap<_, _> =
        links.iter().filter(|(link, _)| **link != gone).map(|(k, v)| (k.clone(), v.clone())).collect();
    let assert_gone = |when: &str| {
        assert_eq!(features_by_link(&lake), expected, "{when}");
        for folder in ["var", "lake"] {
            for file in files_below(&site.folder.path().join(folder)) {
                let bytes = std::fs::read(&file).unwrap();
                assert!(memchr::memmem::find(&bytes, gone.as_bytes()).is_none(), "{when}: {}", file.display());
            }
        }
        for snapshot in std::fs::read_dir(lake.join("snapshots")).unwrap().map(|snapshot| snapshot.unwrap().path()) {
            let connection = tables::connect(&snapshot.join("vinculo.duckdb"));
            let mut tables = vec!["credit_features".to_owned()];
            // The first snapshot is from before anybody was known.
            let folder = snapshot.join("credit_features");
            let files = if folder.exists() { tables::parquet_files(&folder) } else { Vec::new() };
            tables.extend(files.iter().map(|file| format!("read_parquet('{}')", file.display())));
            for table in tables {
                let links = tables::query_sql(&connection, &format!("SELECT * FROM (SELECT link_id FROM {table})"));
                let is_there = links.iter().any(|row| row["link_id"].as_ref() == Some(&gone));
                assert!(!is_there, "{when}: {table} of {}", snapshot.display());
            }
        }
        assert!(!run(&mut site.command(&["subject", "--link", &gone])).out.contains("d-2"), "{when}");
        let refused =
            run(&mut site.command(&["features", "freeze", "--link", &gone, "--as-of", &today, "--decision-id", "d-4"]));
        assert_eq!(refused.code, Some(1), "{when}: {}", refused.err);
    };
    assert_gone("after the erasure");
    // Published once more, changed links alone and everything.
    command(&["features", "--as-of", &earlier, "--mode", "retro"]);
    command(&["rebuild"]);
    let of_retro = |links: &BTreeMap<String, Vec<Row>>| links.values().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(of_retro(&features_by_link(&lake)), of_retro(&expected));
    assert!(!features_by_link(&lake).contains_key(&gone));

    command(&["restore", backup.to_str().unwrap()]);
    assert!(command(&["subject", "--link", &stays]).contains("d-3"), "somebody else's kept row is lost");
    command(&["rebuild"]);
    assert_gone("after a restore");
    drop(simulate);
}

/// The published rows of features of each link, as they are in the file of each date.
fn features_by_link(lake: &Path) -> BTreeMap<String, Vec<Row>> {
    let connection = tables::connect(&lake.join("vinculo.duckdb"));
    let mut links: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in tables::query_sql(&connection, "SELECT * FROM credit_features ORDER BY link_id, as_of_date") {
        links.entry(row["link_id"].clone().unwrap()).or_default().push(row);
    }
    let files = std::fs::canonicalize(lake.join("current/credit_features")).unwrap().join("*/*.parquet");
    let sql = format!("SELECT * FROM (SELECT DISTINCT link_id FROM read_parquet('{}'))", files.display());
    assert_eq!(tables::query_sql(&connection, &sql).len(), links.len());
    links
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => files.extend(files_below(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

#[test]
fn features_of_a_lake_without_parquet_are_counted_in_its_database() {
    let simulate = Simulate::start(free_address(), &["--people", "3", "--no-limit"]);
    let site = Site::new(simulate.address, &[("VINCULO_LAKE__SINKS", "[\"duckdb\"]")]);
    tokio::runtime::Runtime::new().unwrap().block_on(simulate.tell("connect", "{}"));
    for arguments in [&["links", "sync"][..], &["refresh", "--all"]] {
        assert_eq!(run(&mut site.command(arguments)).code, Some(0), "{arguments:?}");
    }
    let ended = run(&mut site.command(&["features", "--json"]));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let told: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&told["rows"], &told["path"]), (&json!(3), &json!("vinculo.duckdb")), "{told}");
    assert!(site.lake().join("current").join(told["path"].as_str().unwrap()).exists());
}
