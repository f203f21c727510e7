//! Which months the published tables have pay for: counts alone, never an amount.
//!
//! *Takes* a lake and links. *Gives* what the snapshot that readers see has of them; nothing where no DuckDB file is
//! published to ask. *Promises* that a daemon, which answers webhooks, spends little on it, however many ask at once.

use std::collections::BTreeMap;
use std::path::Path;

use duckdb::params_from_iter;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::database;
use crate::lane::in_background;
use crate::link_id::LinkId;

/// Each question has a DuckDB of its own, so that one is asked at a time.
static TURN: Semaphore = Semaphore::const_new(1);

/// Does `work`, which asks this module, away from the async threads once it is its turn. Also when whoever waits for it
/// leaves, the turn ends with the work.
pub async fn in_turn<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let turn = TURN.acquire().await;
    in_background(move || {
        let _turn = turn;
        work()
    })
    .await
}

/// The months that a link has pay for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Coverage {
    /// How many.
    pub months: u64,
    /// The first of them, such as `2021-03`.
    pub first_month: String,
    /// The last of them.
    pub last_month: String,
}

/// What is published of each of `links` that has pay at all. Blocks.
pub fn of(lake: &Path, links: &[&str]) -> BTreeMap<String, Coverage> {
    found(lake, |connection| {
        let places = vec!["?"; links.len()].join(", ");
        let mut statement = connection.prepare(&format!(
            "SELECT link_id, count(DISTINCT reference_month), strftime(min(reference_month), '%Y-%m'), \
             strftime(max(reference_month), '%Y-%m') FROM salaries \
             WHERE link_id IN ({places}) AND reference_month IS NOT NULL GROUP BY 1"
        ))?;
        let rows = statement.query_map(params_from_iter(links), |row| {
            Ok((row.get(0)?, Coverage { months: row.get(1)?, first_month: row.get(2)?, last_month: row.get(3)? }))
        })?;
        rows.collect()
    })
    .unwrap_or_default()
}

/// How many jobs of the link have pay in each month, by year and month; `None` when there is nothing to ask. Blocks.
pub fn months(lake: &Path, link: &LinkId) -> Option<BTreeMap<(i32, u32), u32>> {
    found(lake, |connection| {
        let mut statement = connection.prepare(
            "SELECT CAST(year(reference_month) AS INTEGER), CAST(month(reference_month) AS INTEGER), \
             CAST(count(DISTINCT employment_key) AS INTEGER) FROM salaries \
             WHERE link_id = ? AND reference_month IS NOT NULL GROUP BY 1, 2",
        )?;
        let rows = statement.query_map([link.as_str()], |row| Ok(((row.get(0)?, row.get(1)?), row.get(2)?)))?;
        rows.collect()
    })
}

fn found<T>(lake: &Path, ask: impl FnOnce(&duckdb::Connection) -> duckdb::Result<T>) -> Option<T> {
    let file = database::published(lake).ok()?;
    let found = database::open_aside(&file).and_then(|connection| ask(&connection));
    found.inspect_err(|error| tracing::debug!("no coverage: {error}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_the_months_that_are_published_and_a_lake_without_a_database_has_none() {
        let lake = tempfile::tempdir().unwrap();
        assert_eq!(of(lake.path(), &["a"]), BTreeMap::new());
        let connection = duckdb::Connection::open(lake.path().join(database::FILE)).unwrap();
        let rows = "CREATE TABLE salaries AS SELECT * FROM (VALUES ('a', 'x', DATE '2026-01-01'), ('a', 'y', DATE '2026-01-01'), \
            ('a', 'x', DATE '2025-11-01'), ('a', 'x', NULL), ('b', 'x', DATE '2026-01-01')) AS t (link_id, employment_key, reference_month)";
        connection.execute_batch(rows).unwrap();
        drop(connection);
        let expected = Coverage { months: 2, first_month: "2025-11".to_owned(), last_month: "2026-01".to_owned() };
        assert_eq!(of(lake.path(), &["a", "nobody"]), BTreeMap::from([("a".to_owned(), expected)]));
    }

    #[tokio::test]
    async fn a_question_keeps_its_turn_until_it_is_answered_also_when_nobody_waits_any_more() {
        let (begin, begun) = tokio::sync::oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let asking = tokio::spawn(in_turn(move || {
            begin.send(()).unwrap();
            let _ = ended.recv();
        }));
        begun.await.unwrap();
        asking.abort();
        asking.await.unwrap_err();
        assert!(TURN.try_acquire().is_err());
        drop(end);
        assert_eq!(in_turn(|| 7).await, 7);
    }
}
