//! Which resources Belvo reads for a link, and when what is held of them is old: the same to jobs, to orders and to
//! whoever measures. *Gives* a scope, and conditions in SQL, on a link `l` and its refresh `f` of one resource, which
//! may be missing.

use std::time::Duration;

use crate::resources::{self, Resource};

/// Which links and resources are to be fetched, or read at the institution again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Only links of this access mode.
    pub access_mode: Option<String>,
    /// Only what was not fetched, or not read at the institution, for so long, or never.
    pub older_than: Duration,
    /// Only these resources.
    pub resources: Vec<&'static Resource>,
}

/// The resources that Belvo reads by itself for a link whose `fetch_resources` are `names`; all when nobody knows.
pub fn read(names: Option<&[String]>) -> impl Iterator<Item = &'static Resource> {
    resources::ALL
        .into_iter()
        .filter(move |resource| names.is_none_or(|names| names.iter().any(|name| name == resource.webhook_type)))
}

/// Whether Belvo reads `resource` for the link, as far as it said, or has read it once.
pub fn is_read(resource: &Resource) -> String {
    let name = resource.webhook_type;
    format!("(l.fetch_resources IS NULL OR l.fetch_resources LIKE '%\"{name}\"%' OR f.last_collected_at IS NOT NULL)")
}

/// Whether the resource was not listed since `before`, or never.
pub fn is_late(before: &str) -> String {
    format!("(f.last_fetched_at IS NULL OR f.last_fetched_at <= {before})")
}

/// Whether Belvo has not read the resource at the institution since `before`. Where its answer names no time, the time
/// of the list counts; where nothing was ever listed, the time at which the link became known here.
pub fn is_unread(before: &str) -> String {
    format!("coalesce(f.last_collected_at, f.last_fetched_at, l.first_seen_at) <= {before}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::resources::{employments, owners};
    use crate::store::{Error, Store, Tx, args};

    #[tokio::test]
    async fn sql_and_rust_agree_on_what_belvo_reads() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        for names in [None, Some(vec![]), Some(vec!["OWNERS"]), Some(vec!["OWNERS", "EMPLOYMENTS"])] {
            let names: Option<Vec<String>> = names.map(|names| names.into_iter().map(str::to_owned).collect());
            let told = names.as_ref().map(|names| serde_json::json!(names).to_string());
            let look = move |tx: &Tx<'_>| {
                tx.execute("DELETE FROM links", args![])?;
                let sql =
                    "INSERT INTO links (link_id, fetch_resources, first_seen_at, changed_seq) VALUES ('a', $1, 0, 0)";
                tx.execute(sql, args![told.as_deref()])?;
                let is_read = |resource: &Resource| {
                    let sql = format!(
                        "SELECT {} FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id AND f.resource = '{}'",
                        is_read(resource),
                        resource.name
                    );
                    Ok::<_, Error>(tx.one(&sql, args![], |row| row.int(0))? == Some(1))
                };
                Ok([is_read(&employments::RESOURCE)?, is_read(&owners::RESOURCE)?])
            };
            let in_rust = [&employments::RESOURCE, &owners::RESOURCE]
                .map(|one| read(names.as_deref()).any(|read| read.name == one.name));
            assert_eq!(store.write(look).await.unwrap(), in_rust, "{names:?}");
        }
    }

    #[tokio::test]
    async fn what_was_never_listed_is_late_and_unread_since_it_became_known() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let look = |tx: &Tx<'_>| {
            let sql = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ('a', 5, 0)";
            tx.execute(sql, args![])?;
            let sql = format!(
                "SELECT {}, {} FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id",
                is_late("$1"),
                is_unread("$1")
            );
            let ask =
                |at| tx.one(&sql, args![Timestamp::from_micros(at)], |row| Ok((row.int(0)? == 1, row.int(1)? == 1)));
            let never = [ask(4)?, ask(5)?];
            tx.execute("INSERT INTO refreshes (link_id, resource, marks, priority, last_fetched_at) VALUES ('a', 'owners', 1, 0, 7)", args![])?;
            Ok((never, [ask(6)?, ask(7)?]))
        };
        let (never, listed) = store.write(look).await.unwrap();
        assert_eq!(never, [Some((true, false)), Some((true, true))]);
        assert_eq!(listed, [Some((false, false)), Some((true, true))]);
    }
}
