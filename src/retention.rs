//! What was kept for long enough, and goes.
//!
//! *Takes* how long each kind of thing is kept. *Gives* the number of rows that went. *Promises* that nothing goes a
//! moment before its time, that what is deleted is overwritten, that the log is emptied of it, and that no file of the
//! lake holds it once the next snapshot is published. What is due is found by readers and deleted in small pieces,
//! which keeps webhooks from waiting. *Not here*: when; a job says that.
//!
//! The lake is a function of what is kept. When bodies go, so do their rows, the feature rows that decisions kept, and
//! the record of the lists that brought them: a link whose lists are gone counts as not asked, because otherwise its
//! features would show a person without a job. When history goes, a row is known only since the oldest version that is
//! left of it, so lists from before that are not counted for any earlier time. Feature rows that decisions kept also go
//! by themselves, after as long as old versions do.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::audit;
use crate::clock::{Clock, Timestamp};
use crate::config::{self, Keep};
use crate::flatten::{Comparison, Inspection};
use crate::links;
use crate::publish;
use crate::records::{self, Loss, unpack};
use crate::resources::{Resource, employments};
use crate::store::{Error, ROWS_AT_ONCE, Store, Tx, Value, VersionPlace, args, unless_damaged};

/// Removes what is due. Cheap to clone.
#[derive(Clone)]
pub struct Retention {
    settings: config::Retention,
    confirm_after: Duration,
    store: Store,
    clock: Clock,
}

/// The key of a row: texts and a number, empty where the table's key has fewer columns.
type Key = ([String; 3], i64);

/// One kind of thing that is kept for a time.
///
/// What is due is looked for by readers, from the last key on that was found: that may walk through all that is kept,
/// which whoever writes webhooks must not wait for.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    /// The columns of a [`Key`], in the order of the table's key; `''` and `0` where that has fewer.
    key: [&'static str; 4],
    /// Where such things are, with their link `l`, and which are due: `$1` is now, `$2` for how long they are kept.
    due: &'static str,
    /// Removes what has these keys, and gives the number of rows that went.
    remove: fn(&Tx<'_>, Timestamp, &Rule, &[Key]) -> Result<usize, Error>,
}

impl Kind {
    /// The keys of at most [`ROWS_AT_ONCE`] things that are due, after the key `after`.
    fn find(self, tx: &Tx<'_>, now: Timestamp, rule: &Rule, after: &Key) -> Result<Vec<Key>, Error> {
        tx.all(&self.find_sql(), &rule.args(now, after), |row| {
            Ok(([row.text(0)?, row.text(1)?, row.text(2)?], row.int(3)?))
        })
    }

    /// Whether what has this key is due: a webhook, an erasure or a list may have come since it was found.
    fn is_due(self, tx: &Tx<'_>, now: Timestamp, rule: &Rule, key: &Key) -> Result<bool, Error> {
        Ok(tx.one(&self.is_due_sql(), &rule.args(now, key), |_| Ok(()))?.is_some())
    }

    fn find_sql(self) -> String {
        let (all, (columns, places)) = (self.key.join(", "), self.columns());
        let (due, means) = (self.due, Rule::MEANS);
        format!("SELECT {all} FROM {due} AND {means} AND ({columns}) > ({places}) ORDER BY {columns} LIMIT $3")
    }

    fn is_due_sql(self) -> String {
        let (columns, places) = self.columns();
        format!("SELECT 1 FROM {} AND {} AND ({columns}) = ({places})", self.due, Rule::MEANS)
    }

    /// The columns that the table's key has, and the parameters of [`Rule::args`] for them.
    fn columns(self) -> (String, String) {
        let is_there = |(column, _): &(&str, &str)| !matches!(*column, "''" | "0");
        let (columns, places): (Vec<_>, Vec<_>) =
            self.key.into_iter().zip(["$6", "$7", "$8", "$9"]).filter(is_there).unzip();
        (columns.join(", "), places.join(", "))
    }
}

/// Records of links of which Belvo has read nothing for so long.
const BODIES: Kind = Kind {
    name: "bodies",
    key: ["f.link_id", "f.resource", "''", "0"],
    due: "refreshes f LEFT JOIN links l ON l.link_id = f.link_id \
        WHERE coalesce(f.last_collected_at, f.last_fetched_at) < $1 - $2 \
        AND EXISTS (SELECT 1 FROM records r WHERE r.link_id = f.link_id AND r.resource = f.resource)",
    remove: remove_bodies,
};

/// Records that have been gone for so long.
const ENDED_RECORDS: Kind = Kind {
    name: "ended_records",
    key: ["r.link_id", "r.resource", "r.record_key", "0"],
    due: "records r LEFT JOIN links l ON l.link_id = r.link_id \
        WHERE length(r.content_hash) = 0 AND r.version_at < $1 - $2",
    remove: remove_ended_records,
};

/// Versions that a newer one replaced so long ago, and late answers that came so long ago.
const HISTORY: Kind = Kind {
    name: "history",
    key: ["v.link_id", "v.resource", "v.record_key", "v.version"],
    due: "record_versions v LEFT JOIN links l ON l.link_id = v.link_id \
        WHERE v.fetched_at < $1 - $2 AND (v.is_late = 1 OR EXISTS \
        (SELECT 1 FROM record_versions n WHERE n.link_id = v.link_id AND n.resource = v.resource \
        AND n.record_key = v.record_key AND n.is_late = 0 AND n.version > v.version \
        AND n.fetched_at < $1 - $2 AND n.version <= (SELECT r.version FROM records r WHERE r.link_id = v.link_id \
        AND r.resource = v.resource AND r.record_key = v.record_key AND length(r.content_hash) > 0)))",
    remove: remove_versions,
};

/// Rows of features that decisions kept so long ago.
const FROZEN_FEATURES: Kind = Kind {
    name: "frozen_features",
    key: ["z.decision_id", "''", "''", "0"],
    due: "frozen_features z LEFT JOIN links l ON l.link_id = z.link_id WHERE z.frozen_at < $1 - $2",
    remove: |tx, _, _, keys| {
        let remove = "DELETE FROM frozen_features WHERE decision_id = $1";
        keys.iter().map(|([decision_id, ..], _)| tx.execute(remove, args![decision_id])).sum()
    },
};

/// Webhooks that came so long ago,
const WEBHOOKS: Kind = Kind {
    name: "webhooks",
    key: ["''", "''", "''", "w.seq"],
    due: "webhooks w LEFT JOIN links l ON l.link_id = w.link_id \
        WHERE w.outcome <> 'quarantined' AND w.received_at < $1 - $2",
    remove: remove_webhooks,
};

/// and those that were not understood.
const QUARANTINE: Kind = Kind {
    name: "quarantine",
    due: "webhooks w LEFT JOIN links l ON l.link_id = w.link_id \
        WHERE w.outcome = 'quarantined' AND w.received_at < $1 - $2",
    ..WEBHOOKS
};

/// How long things are kept, and of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// For how long.
    time: Duration,
    /// Of whom.
    of: Whose,
    /// After how long a second list agrees that a row is gone.
    confirm_after: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Whose {
    /// Of everybody.
    All,
    /// Of the links whose `stale_in` is this; without one, also of what is of no link.
    Saying(Option<String>),
}

impl Rule {
    /// What a link `l` has to say to be meant, in SQL; `$4` and `$5` are [`Rule::all`] and [`Rule::saying`].
    const MEANS: &str = "($4 = 1 OR l.stale_in IS NOT DISTINCT FROM $5)";

    fn all(&self) -> bool {
        self.of == Whose::All
    }

    fn saying(&self) -> Option<&str> {
        if let Whose::Saying(Some(stale_in)) = &self.of { Some(stale_in) } else { None }
    }

    /// What the questions of a [`Kind`] take.
    fn args<'a>(&'a self, now: Timestamp, ([first, second, third], number): &'a Key) -> [Value<'a>; 9] {
        let (all, saying, number) = (self.all().into(), self.saying().into(), (*number).into());
        let [first, second, third] = [first, second, third].map(Value::from);
        [now.into(), self.time.into(), ROWS_AT_ONCE.into(), all, saying, first, second, third, number]
    }
}

impl Retention {
    /// One that keeps as `settings` say, where two lists `confirm_after` apart agree that a row is gone.
    pub fn new(settings: config::Retention, confirm_after: Duration, store: Store, clock: Clock) -> Self {
        Self { settings, confirm_after, store, clock }
    }

    /// Removes what is due, and gives the number of rows.
    ///
    /// # Errors
    /// [`Error`]; what went until then stays gone.
    pub async fn apply(&self) -> Result<u64, Error> {
        let now = self.clock.now();
        let mut gone = BTreeMap::new();
        let removed = self.remove_due(now, &mut gone).await;
        // What went is told and leaves the log also when the rest could not be removed.
        let total = gone.values().sum();
        if total > 0 {
            let detail = json!(gone);
            self.store.write(move |tx| audit::note(tx, now, "retention", &detail).map(drop)).await?;
            self.store.empty_log().await?;
            tracing::info!(rows = total, "what was kept for long enough is gone");
        }
        removed.map(|()| total)
    }

    /// Removes what is due, and counts it in `gone` by its kind.
    async fn remove_due(&self, now: Timestamp, gone: &mut BTreeMap<&'static str, u64>) -> Result<(), Error> {
        let config::Retention { bodies, history, webhooks, quarantine } = self.settings;
        let kinds = [
            (BODIES, bodies),
            (ENDED_RECORDS, history),
            (HISTORY, history),
            (FROZEN_FEATURES, history),
            (WEBHOOKS, webhooks),
            (QUARANTINE, quarantine),
        ];
        for (kind, keep) in kinds {
            for rule in self.rules(keep).await? {
                self.remove_kind(kind, &rule, now, gone).await?;
            }
        }
        Ok(())
    }

    /// Removes what is due of one kind.
    async fn remove_kind(
        &self,
        kind: Kind,
        rule: &Rule,
        now: Timestamp,
        gone: &mut BTreeMap<&'static str, u64>,
    ) -> Result<(), Error> {
        let mut after = Key::default();
        loop {
            let asked = rule.clone();
            let found = self.store.read(move |tx| kind.find(tx, now, &asked, &after)).await?;
            let Some(last) = found.last() else { return Ok(()) };
            after = last.clone();
            let rule = rule.clone();
            let remove = move |tx: &Tx<'_>| {
                let mut due = Vec::with_capacity(found.len());
                for key in &found {
                    if kind.is_due(tx, now, &rule, key)? {
                        due.push(key.clone());
                    }
                }
                (kind.remove)(tx, now, &rule, &due)
            };
            let rows = self.store.write(remove).await?;
            if rows > 0 {
                *gone.entry(kind.name).or_default() += rows as u64;
            }
        }
    }

    /// What `keep` comes to: one rule for all, or one for each `stale_in` that links have.
    async fn rules(&self, keep: Keep) -> Result<Vec<Rule>, Error> {
        let confirm_after = self.confirm_after;
        match keep {
            Keep::Forever => Ok(Vec::new()),
            Keep::For(time) => Ok(vec![Rule { time, of: Whose::All, confirm_after }]),
            Keep::StaleIn => {
                let told = "SELECT DISTINCT stale_in FROM links WHERE stale_in IS NOT NULL";
                let told = self.store.read(|tx| tx.all(told, args![], |row| row.text(0))).await?;
                let of = |stale_in: Option<String>| Rule {
                    time: links::keeps_for(stale_in.as_deref()),
                    of: Whose::Saying(stale_in),
                    confirm_after,
                };
                Ok([None].into_iter().chain(told.into_iter().map(Some)).map(of).collect())
            }
        }
    }
}

fn remove_bodies(tx: &Tx<'_>, _: Timestamp, _: &Rule, keys: &[Key]) -> Result<usize, Error> {
    let mut rows = 0;
    for ([link_id, resource, _], _) in keys {
        for table in ["records", "record_ids", "record_versions", "link_snapshots"] {
            let sql = format!("DELETE FROM {table} WHERE link_id = $1 AND resource = $2");
            rows += tx.execute(&sql, args![link_id, resource])?;
        }
        if resource == employments::RESOURCE.name {
            rows += tx.execute("DELETE FROM frozen_features WHERE link_id = $1", args![link_id])?;
        }
        note_change(tx, link_id, resource)?;
        // Without anything left to open, the key goes too.
        tx.execute(
            "DELETE FROM link_keys WHERE link_id = $1 \
             AND NOT EXISTS (SELECT 1 FROM record_versions v WHERE v.link_id = $1) \
             AND NOT EXISTS (SELECT 1 FROM frozen_features z WHERE z.link_id = $1) \
             AND NOT EXISTS (SELECT 1 FROM webhooks w WHERE w.link_id = $1)",
            args![link_id],
        )?;
    }
    Ok(rows)
}

fn remove_ended_records(tx: &Tx<'_>, _: Timestamp, _: &Rule, keys: &[Key]) -> Result<usize, Error> {
    let mut rows = 0;
    for ([link_id, resource, record_key], _) in keys {
        let ended_at = "SELECT version_at FROM records WHERE link_id = $1 AND resource = $2 AND record_key = $3";
        let Some(ended_at) = tx.one(ended_at, args![link_id, resource, record_key], |row| row.at(0))? else { continue };
        count_lists_from(tx, link_id, resource, ended_at, ended_at)?;
        for table in ["records", "record_ids", "record_versions"] {
            let sql = format!("DELETE FROM {table} WHERE link_id = $1 AND resource = $2 AND record_key = $3");
            rows += tx.execute(&sql, args![link_id, resource, record_key])?;
        }
        note_change(tx, link_id, resource)?;
    }
    Ok(rows)
}

fn remove_versions(tx: &Tx<'_>, now: Timestamp, rule: &Rule, keys: &[Key]) -> Result<usize, Error> {
    keys.chunk_by(|one, next| one.0 == next.0).map(|of_record| remove_superseded(tx, of_record, now, rule)).sum()
}

/// Removes those of the `versions` of one record that may go, and gives their number. Lists from before the oldest
/// version that is left are then counted for no earlier time than that.
fn remove_superseded(tx: &Tx<'_>, versions: &[Key], now: Timestamp, rule: &Rule) -> Result<usize, Error> {
    let (mut rows, mut first_gone) = (0, None);
    let [link_id, resource, record_key] = &versions[0].0;
    for &(_, version) in versions {
        let place = VersionPlace { link_id, resource, record_key, version };
        let is_late = tx.one(
            "SELECT is_late FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 AND version = $4",
            args![link_id, resource, record_key, version],
            |row| Ok(row.int(0)? == 1),
        )?;
        let is_late = is_late == Some(true);
        if !is_late && !is_replaced(tx, &place, now, rule)? {
            continue;
        }
        rows += tx.execute(
            "DELETE FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 AND version = $4",
            args![link_id, resource, record_key, version],
        )?;
        if !is_late {
            first_gone = first_gone.or(Some(version));
        }
    }
    if rows == 0 {
        return Ok(0);
    }
    let oldest = tx.one(
        "SELECT version, fetched_at, known_from FROM record_versions \
         WHERE link_id = $1 AND resource = $2 AND record_key = $3 AND is_late = 0 ORDER BY version LIMIT 1",
        args![link_id, resource, record_key],
        |row| Ok((row.int(0)?, row.at(1)?, row.at(2)?)),
    )?;
    // Only where a version from before the oldest one left is gone: what late answers and later versions told was never
    // all that was known of their time.
    if let (Some(gone), Some((version, fetched_at, known_from))) = (first_gone, oldest)
        && gone < version
    {
        count_lists_from(tx, link_id, resource, fetched_at, known_from)?;
    }
    note_change(tx, link_id, resource)?;
    Ok(rows)
}

/// Whether a later version, itself old enough to go, has replaced this one. A version that cannot be flattened replaces
/// only others that cannot, so the last good one stays; so does one with rows that no second list has confirmed as
/// gone.
fn is_replaced(tx: &Tx<'_>, place: &VersionPlace<'_>, now: Timestamp, rule: &Rule) -> Result<bool, Error> {
    let VersionPlace { link_id, resource, record_key, version } = *place;
    let Some(of) = Resource::by_name(resource) else { return Ok(false) };
    let mut inspection = Inspection::of(of);
    // One that is empty says that the record was gone; one that is damaged says nothing.
    let mut read_from = |version: i64| {
        tx.one(
            "SELECT version, fetched_at, body FROM record_versions WHERE link_id = $1 AND resource = $2 AND record_key = $3 \
             AND is_late = 0 AND version >= $4 AND fetched_at < $5 - $6 ORDER BY version LIMIT 1",
            args![link_id, resource, record_key, version, now, rule.time],
            |row| {
                let version = row.int(0)?;
                let opened = VersionPlace { version, ..*place }.open(tx, row.bytes(2)?);
                let body = unless_damaged(opened.and_then(|packed| unpack(&packed)))?;
                let good = body.filter(|body| body.is_empty() || inspection.inspect(body).is_ok());
                Ok((version, row.at(1)?, good))
            },
        )
    };
    let Some((_, _, Some(old))) = read_from(version)? else { return Ok(true) };
    let mut after = version;
    while let Some((later, fetched_at, good)) = read_from(after + 1)? {
        after = later;
        let Some(new) = good else { continue };
        let loses_rows = !old.is_empty() && !new.is_empty() && Comparison::of(of).loss(&old, &new) == Loss::Rows;
        return Ok(!loses_rows || records::is_settled(tx, link_id, resource, fetched_at + rule.confirm_after)?);
    }
    Ok(false)
}

/// Makes lists from before `since`, and the first one in any case, count only from `known_from` on. The rows that the
/// record had before are not kept any more, and without them such a list would show a person without that job. The
/// lists themselves stay, because what they lacked ended rows of other records.
fn count_lists_from(
    tx: &Tx<'_>,
    link_id: &str,
    resource: &str,
    since: Timestamp,
    known_from: Timestamp,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE link_snapshots SET collected_at = $4 WHERE link_id = $1 AND resource = $2 \
         AND coalesce(collected_at, fetched_at) < $4 \
         AND (fetched_at < $3 OR fetched_at = (SELECT min(fetched_at) FROM link_snapshots \
         WHERE link_id = $1 AND resource = $2 AND collected_at IS NOT NULL))",
        args![link_id, resource, since, known_from],
    )
    .map(drop)
}

fn remove_webhooks(tx: &Tx<'_>, _: Timestamp, _: &Rule, keys: &[Key]) -> Result<usize, Error> {
    keys.iter().map(|(_, seq)| tx.execute("DELETE FROM webhooks WHERE seq = $1", args![*seq])).sum()
}

/// Tells the publisher that rows of the link may differ now, because some are gone.
fn note_change(tx: &Tx<'_>, link_id: &str, resource: &str) -> Result<(), Error> {
    publish::Departure::Expiry.note(tx)?;
    let change = tx.change()?;
    tx.execute(
        "UPDATE refreshes SET content_seq = $3, sighted_seq = $3, touched_seq = $3, removed_seq = $3 \
         WHERE link_id = $1 AND resource = $2",
        args![link_id, resource, change],
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Hand;
    use crate::records::test_state::paid;

    const DAY: i64 = 24 * 3_600_000_000;

    const OWNER: &str = r#"{"id":"i","link":null,"internal_identification":"x","collected_at":null,"display_name":null,
        "email":null,"phone_number":null,"address":null}"#;

    fn packed(body: &str) -> Vec<u8> {
        zstd::encode_all(body.as_bytes(), 1).unwrap()
    }

    struct Place {
        retention: Retention,
        hand: Hand,
        _folder: tempfile::TempDir,
    }

    impl Place {
        /// A state with two links, of which one says that Belvo keeps its data for 30 days, all as of day 0.
        async fn new(settings: config::Retention) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let hand = Hand::at(Timestamp::from_micros(0));
            let clock = hand.clock();
            let fill = |tx: &Tx<'_>| {
                for (link, stale_in) in [("short", Some("30d")), ("usual", None)] {
                    tx.execute(
                        "INSERT INTO links (link_id, stale_in, first_seen_at, changed_seq) VALUES ($1, $2, 0, 0)",
                        args![link, stale_in],
                    )?;
                    tx.execute(
                        "INSERT INTO refreshes (link_id, resource, marks, priority, last_collected_at, last_fetched_at) \
                         VALUES ($1, 'owners', 1, 0, 0, 0)",
                        args![link],
                    )?;
                    tx.execute(
                        "INSERT INTO records (link_id, resource, record_key, record_id, likeness, seen_started_at, \
                         seen_fetched_at, content_hash, version, version_at) \
                         VALUES ($1, 'owners', 'k', 'i', '', 0, 0, $2, 2, $3)",
                        args![link, [7_u8].as_slice(), DAY],
                    )?;
                    tx.execute("INSERT INTO record_ids VALUES ($1, 'owners', 'i', 'k')", args![link])?;
                    for version in 1..=2 {
                        tx.execute(
                            "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, \
                             known_from, started_at, fetched_at, body) VALUES ($1, 'owners', 'k', $2, 0, 'i', 0, 0, $3, $4)",
                            args![link, version, (version - 1) * DAY, packed(OWNER).as_slice()],
                        )?;
                    }
                    tx.execute("INSERT INTO link_keys VALUES ($1, $2)", args![link, [1_u8].as_slice()])?;
                }
                for outcome in ["queued", "quarantined"] {
                    tx.execute(
                        "INSERT INTO webhooks (received_at, outcome, body) VALUES (0, $1, $2)",
                        args![outcome, [1_u8].as_slice()],
                    )?;
                }
                Ok(())
            };
            store.write(fill).await.unwrap();
            Self { retention: Retention::new(settings, Duration::from_hours(24), store, clock), hand, _folder: folder }
        }

        /// Lists of the usual link: on which day each was complete, and on which day Belvo collected it.
        async fn lists(&self, days: &[(i64, i64)]) {
            let days = days.to_vec();
            let fill = move |tx: &Tx<'_>| {
                days.iter().try_for_each(|(fetched, collected)| {
                    let sql = "INSERT INTO link_snapshots (link_id, resource, fetched_at, started_at, collected_at, item_count, \
                         changed) VALUES ('usual', 'owners', $1, $1, $2, 1, 0)";
                    tx.execute(sql, args![fetched * DAY, collected * DAY]).map(drop)
                })
            };
            self.retention.store.write(fill).await.unwrap();
        }

        /// The same of those that are left.
        async fn days_of_lists(&self) -> Vec<(i64, i64)> {
            let sql = "SELECT fetched_at, collected_at FROM link_snapshots ORDER BY fetched_at";
            let read = move |tx: &Tx<'_>| tx.all(sql, args![], |row| Ok((row.int(0)? / DAY, row.int(1)? / DAY)));
            self.retention.store.read(read).await.unwrap()
        }

        /// Rows of each table once retention ran on `day`: versions, records and keys of both links, and webhooks.
        async fn on_day(&self, day: i64) -> Vec<i64> {
            self.hand.set(Timestamp::from_micros(day * DAY));
            self.retention.apply().await.unwrap();
            let counts = [
                "SELECT count(*) FROM record_versions WHERE link_id = 'short'",
                "SELECT count(*) FROM record_versions WHERE link_id = 'usual'",
                "SELECT count(*) FROM records",
                "SELECT count(*) FROM link_keys",
                "SELECT count(*) FROM webhooks",
            ];
            let read = move |tx: &Tx<'_>| {
                let nothing: &[Value<'_>] = &[];
                counts.iter().map(|sql| Ok(tx.one(sql, nothing, |row| row.int(0))?.unwrap())).collect()
            };
            self.retention.store.read(read).await.unwrap()
        }
    }

    const FOREVER: config::Retention = config::Retention {
        bodies: Keep::Forever,
        history: Keep::Forever,
        webhooks: Keep::Forever,
        quarantine: Keep::Forever,
    };

    const fn days(days: u64) -> Keep {
        Keep::For(Duration::from_hours(24 * days))
    }

    #[tokio::test]
    async fn what_is_due_is_looked_for_from_the_last_key_on_and_looked_at_again_by_its_key() {
        let place = Place::new(FOREVER).await;
        let of = Whose::Saying(Some("30d".to_owned()));
        let rule = Rule { time: Duration::ZERO, of, confirm_after: Duration::ZERO };
        for kind in [BODIES, ENDED_RECORDS, HISTORY, FROZEN_FEATURES, WEBHOOKS, QUARANTINE] {
            for (sql, begins) in [(kind.find_sql(), ">"), (kind.is_due_sql(), "=?")] {
                let (rule, sql) = (rule.clone(), format!("EXPLAIN QUERY PLAN {sql}"));
                let plan = move |tx: &Tx<'_>| {
                    tx.all(&sql, &rule.args(Timestamp::from_micros(0), &Key::default()), |row| row.text(3))
                };
                let plan = place.retention.store.read(plan).await.unwrap();
                let steps = plan.iter().filter(|step| step.starts_with("SEARCH") || step.starts_with("SCAN"));
                assert!(steps.clone().all(|step| step.starts_with("SEARCH")), "{}: {plan:?}", kind.name);
                assert!(steps.clone().next().is_some_and(|step| step.contains(begins)), "{}: {plan:?}", kind.name);
                assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{}: {plan:?}", kind.name);
            }
        }
    }

    #[tokio::test]
    async fn what_has_become_current_again_since_it_was_found_stays() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        let now = Timestamp::from_micros(1000 * DAY);
        let rule = Rule { time: Duration::from_hours(240), of: Whose::All, confirm_after: Duration::ZERO };
        let due = move |tx: &Tx<'_>| {
            let found = HISTORY.find(tx, now, &rule, &Key::default())?;
            assert_eq!(found.len(), 2, "the first version of each link's record");
            assert!(HISTORY.find(tx, now, &rule, &found[1])?.is_empty());
            tx.execute("UPDATE records SET version = 1 WHERE link_id = 'short'", args![])?;
            found.iter().map(|key| HISTORY.is_due(tx, now, &rule, key)).collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(place.retention.store.write(due).await.unwrap(), [false, true]);
    }

    #[tokio::test]
    async fn more_goes_than_fits_one_transaction() {
        let place = Place::new(config::Retention { webhooks: days(10), ..FOREVER }).await;
        let add = |tx: &Tx<'_>| {
            (0..2 * ROWS_AT_ONCE).try_for_each(|_| {
                let sql = "INSERT INTO webhooks (received_at, outcome, body) VALUES (0, 'noted', $1)";
                tx.execute(sql, args![[1_u8].as_slice()]).map(drop)
            })
        };
        place.retention.store.write(add).await.unwrap();
        assert_eq!(place.on_day(11).await[4], 1, "the one in the quarantine");
    }

    #[tokio::test]
    async fn what_is_kept_for_ever_stays() {
        assert_eq!(Place::new(FOREVER).await.on_day(40_000).await, [2, 2, 2, 2, 2]);
    }

    #[tokio::test]
    async fn bodies_go_when_belvos_do_and_not_a_day_before() {
        let place = Place::new(config::Retention { bodies: Keep::StaleIn, ..FOREVER }).await;
        assert_eq!(place.on_day(30).await, [2, 2, 2, 2, 2]);
        assert_eq!(place.on_day(31).await, [0, 2, 1, 1, 2]);
        assert_eq!(place.on_day(365).await, [0, 2, 1, 1, 2]);
        assert_eq!(place.on_day(366).await, [0, 0, 0, 0, 2]);
    }

    #[tokio::test]
    async fn the_publisher_is_told_when_what_readers_see_went_and_not_otherwise() {
        let settings = config::Retention { bodies: Keep::StaleIn, webhooks: days(10), ..FOREVER };
        let place = Place::new(settings).await;
        for (day, told) in [(11, 0), (31, 1)] {
            place.on_day(day).await;
            let noted = "SELECT count(*) FROM meta WHERE name = 'last_expiry'";
            let noted = place.retention.store.read(move |tx| tx.one(noted, args![], |row| row.int(0)));
            assert_eq!(noted.await.unwrap(), Some(told), "on day {day}");
        }
    }

    #[tokio::test]
    async fn a_stale_in_that_is_no_number_of_days_is_a_year() {
        for odd in ["P1Y", "", "d", "1y", "99999d", "-1d", "0d", "30 d", "+30d"] {
            let place =
                Place::new(config::Retention { bodies: Keep::StaleIn, history: Keep::StaleIn, ..FOREVER }).await;
            let say = "UPDATE links SET stale_in = $1 WHERE link_id = 'short'";
            place.retention.store.write(move |tx| tx.execute(say, args![odd])).await.unwrap();
            assert_eq!(place.on_day(365).await[0], 2, "{odd:?}: the current version and the one before");
            assert_eq!(place.on_day(367).await[0], 0, "{odd:?}");
        }
    }

    #[tokio::test]
    async fn a_version_goes_so_long_after_a_newer_one_and_the_current_one_stays() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        // The second came on day 1.
        assert_eq!(place.on_day(11).await, [2, 2, 2, 2, 2]);
        assert_eq!(place.on_day(12).await, [1, 1, 2, 2, 2]);
        assert_eq!(place.on_day(1000).await, [1, 1, 2, 2, 2]);
        let end = "UPDATE records SET content_hash = $1 WHERE link_id = 'short'";
        let nothing: &[u8] = &[];
        place.retention.store.write(move |tx| tx.execute(end, args![nothing])).await.unwrap();
        assert_eq!(place.on_day(1001).await, [0, 1, 1, 2, 2], "what is gone goes whole");
    }

    #[tokio::test]
    async fn a_version_stays_while_rows_of_it_stand_that_no_second_list_said_are_gone() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        // The second version, of day 1, lacks a month.
        let lose = |tx: &Tx<'_>| {
            tx.execute("UPDATE records SET resource = 'employments' WHERE link_id = 'usual'", args![])?;
            for (version, months) in [(1, [1, 2].as_slice()), (2, &[1])] {
                let sql = "UPDATE record_versions SET resource = 'employments', body = $2 WHERE link_id = 'usual' AND version = $1";
                tx.execute(sql, args![version, packed(&paid(months, 0)).as_slice()])?;
            }
            Ok(())
        };
        place.retention.store.write(lose).await.unwrap();
        for (list, left) in [(None, 2), (Some(2 * DAY - 1), 2), (Some(2 * DAY), 1)] {
            if let Some(at) = list {
                let sql = "INSERT INTO link_snapshots (link_id, resource, fetched_at, started_at, item_count, changed) \
                           VALUES ('usual', 'employments', $1, $1, 1, 0)";
                place.retention.store.write(move |tx| tx.execute(sql, args![at])).await.unwrap();
            }
            assert_eq!(place.on_day(1000).await[1], left, "{list:?}");
        }
    }

    #[tokio::test]
    async fn the_last_version_that_can_be_read_stays_however_old_it_is() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        let spoil = "UPDATE record_versions SET body = $1 WHERE link_id = 'short' AND version = 2";
        // No record that can be flattened, and none at all.
        for body in [packed("{}"), b"damaged".to_vec()] {
            place.retention.store.write(move |tx| tx.execute(spoil, args![body.as_slice()])).await.unwrap();
            assert_eq!(place.on_day(1000).await, [2, 1, 2, 2, 2]);
        }
    }

    #[tokio::test]
    async fn of_versions_that_cannot_be_read_only_the_current_one_stays() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        place.lists(&[(0, 0), (1, 1)]).await;
        let spoil = |tx: &Tx<'_>| {
            tx.execute("UPDATE record_versions SET body = $1 WHERE version = 2", args![packed("{}").as_slice()])?;
            for version in 3..=5 {
                tx.execute(
                    "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, known_from, \
                     started_at, fetched_at, body) SELECT link_id, resource, record_key, $1, 0, 'i', $2, $2, $2, body \
                     FROM record_versions WHERE version = 2",
                    args![version, (version - 1) * DAY],
                )?;
            }
            tx.execute("UPDATE records SET version = 5", args![])
        };
        place.retention.store.write(spoil).await.unwrap();
        place.on_day(1000).await;
        let left = |tx: &Tx<'_>| {
            let sql = "SELECT version FROM record_versions WHERE link_id = 'usual' ORDER BY version";
            tx.all(sql, args![], |row| row.int(0))
        };
        assert_eq!(place.retention.store.read(left).await.unwrap(), [1, 5], "the last good one, and the current one");
        assert_eq!(place.days_of_lists().await, [(0, 0), (1, 1)], "what was known from the first list on still is");
    }

    #[tokio::test]
    async fn lists_from_before_what_is_still_known_count_for_no_earlier_time() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        let lists = [(0, 0), (1, 1), (2, 2), (3, 3)];
        place.lists(&lists).await;
        let known = "UPDATE record_versions SET known_from = $1 WHERE version = 2";
        place.retention.store.write(move |tx| tx.execute(known, args![DAY])).await.unwrap();
        place.on_day(11).await;
        assert_eq!(place.days_of_lists().await, lists);
        place.on_day(12).await;
        assert_eq!(place.days_of_lists().await, [(0, 1), (1, 1), (2, 2), (3, 3)]);
    }

    #[tokio::test]
    async fn the_first_list_counts_for_no_time_before_what_is_still_known() {
        // Belvo named the time of the first list for the second one, too, which showed something else.
        let stuck = [(3, 1), (4, 1), (5, 5)];
        let settings = config::Retention { history: days(10), ..FOREVER };
        let place = Place::new(settings).await;
        place.lists(&stuck).await;
        let shown = "UPDATE record_versions SET known_from = $1, fetched_at = $2 WHERE version = 2";
        place.retention.store.write(move |tx| tx.execute(shown, args![2 * DAY, 3 * DAY])).await.unwrap();
        place.on_day(1000).await;
        assert_eq!(place.days_of_lists().await, [(3, 2), (4, 1), (5, 5)]);

        let place = Place::new(settings).await;
        place.lists(&stuck).await;
        let end = "UPDATE records SET content_hash = $1, version_at = $2";
        place.retention.store.write(move |tx| tx.execute(end, args![[].as_slice(), 4 * DAY])).await.unwrap();
        place.on_day(1000).await;
        assert_eq!(place.days_of_lists().await, [(3, 4), (4, 1), (5, 5)], "it was known until then");
    }

    #[tokio::test]
    async fn an_older_answer_goes_without_the_lists_before_what_is_current() {
        let place = Place::new(config::Retention { history: days(10), ..FOREVER }).await;
        place.lists(&[(0, 0), (1, 1)]).await;
        let make_late = |tx: &Tx<'_>| {
            tx.execute("UPDATE record_versions SET version = 3, is_late = 1 WHERE version = 1", args![])?;
            tx.execute("UPDATE records SET version = 2", args![])
        };
        place.retention.store.write(make_late).await.unwrap();
        assert_eq!(place.on_day(12).await[..2], [1, 1]);
        assert_eq!(place.days_of_lists().await, [(0, 0), (1, 1)]);
    }

    #[tokio::test]
    async fn a_row_that_a_decision_kept_goes_as_history_does_and_not_a_day_before() {
        let place = Place::new(config::Retention { history: Keep::StaleIn, ..FOREVER }).await;
        let freeze = |tx: &Tx<'_>| {
            ["short", "usual"].iter().try_for_each(|link| {
                let sql = "INSERT INTO frozen_features VALUES ($1, $1, '2026-01-01', 'strict', 0, $2)";
                tx.execute(sql, args![*link, [1_u8].as_slice()]).map(drop)
            })
        };
        place.retention.store.write(freeze).await.unwrap();
        for (day, kept) in [(30, 2), (31, 1), (365, 1), (366, 0)] {
            place.on_day(day).await;
            let count = |tx: &Tx<'_>| tx.one("SELECT count(*) FROM frozen_features", args![], |row| row.int(0));
            assert_eq!(place.retention.store.read(count).await.unwrap(), Some(kept), "on day {day}");
        }
    }

    #[tokio::test]
    async fn webhooks_and_the_quarantine_have_times_of_their_own() {
        let settings = config::Retention { webhooks: days(10), quarantine: days(20), ..FOREVER };
        let place = Place::new(settings).await;
        assert_eq!(place.on_day(10).await[4], 2);
        assert_eq!(place.on_day(11).await[4], 1);
        assert_eq!(place.on_day(21).await[4], 0);
        let audited = place.retention.store.read(audit::check).await.unwrap();
        assert_eq!(audited, (2, None));
    }
}
