//! Whom tombstones name in a state that has not heard of them: one that was put back, or is new in its folder.
//!
//! *Takes* tombstones that a state does not have. *Gives* the erasure that is left to finish. *Promises* that they are
//! kept together with what follows from them: a state that has a tombstone holds nobody whom it names. *Not here*: the
//! lake and the log, which follow as with any erasure that was begun.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Begun, Error, Receipt, Step, remove};
use crate::audit;
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::sensitive::Pepper;
use crate::store::{self, Store, Tx, WebhookPlace, args};
use crate::subject::{self, each_name_in, own_external_ids};
use crate::tombstones::{self, FileError, Kind, Tombstones, note_latest};

/// What was erased again.
#[derive(Debug, Default)]
pub struct Again {
    /// Links that had been erased before.
    pub links: usize,
    /// The erasure that is begun with them, of which the rows are gone; `None` when nothing was held of anybody.
    pub erasure: Option<String>,
}

/// Lets the state at `state`, open as `store`, learn what the file beside it says and it does not know, and erases whom
/// that names.
///
/// # Errors
/// [`Error::Tombstones`], also when the state has tombstones of its own, under another salt; [`Error::Subject`] when
/// persons were erased and there is no `pii.pepper` to find them by; [`Error::Store`]. Then nothing is learnt, and the
/// next start tries again.
pub async fn learn(store: &Store, state: &Path, pepper: Option<Pepper>, now: Timestamp) -> Result<Again, Error> {
    match tombstones::unknown(store, state).await? {
        Some(unknown) => store.attempt(move |tx| erase_again(tx, vec![unknown], pepper.as_ref(), now)).await,
        None => Ok(Again::default()),
    }
}

/// Keeps the tombstones of these files, and erases whom the state's tombstones name.
///
/// # Errors
/// [`Error::Tombstones`], [`Error::Subject`], [`Error::Store`]; the transaction is of no use then.
pub fn erase_again(
    tx: &Tx<'_>,
    known: Vec<(PathBuf, Tombstones)>,
    pepper: Option<&Pepper>,
    now: Timestamp,
) -> Result<Again, Error> {
    for (file, tombstones) in known {
        if !tombstones.keep(tx)? {
            return Err(FileError::Foreign(file).into());
        }
    }
    let (mut links, mut users) = (BTreeSet::new(), BTreeSet::new());
    if let Some(tombstones) = Tombstones::of(tx)? {
        for table in tx.tables_with("link_id")? {
            let sql = format!("SELECT DISTINCT link_id FROM {table} WHERE link_id IS NOT NULL");
            let ids = tx.all(&sql, args![], |row| row.text(0))?;
            links.extend(ids.into_iter().filter(|id| tombstones.erased_at(Kind::Link, id).is_some()));
        }
        let quarantined = Quarantined::read(tx, &tombstones)?;
        links.extend(quarantined.links);
        let connected = tx.all("SELECT link_id, external_id, first_seen_at FROM links", args![], |row| {
            Ok((row.text(0)?, row.opt_text(1)?, row.int(2)?))
        })?;
        if tombstones.has(Kind::ExternalId) {
            for (link, external_id, first_seen_at) in &connected {
                let erased_at = external_id.as_ref().and_then(|id| tombstones.erased_at(Kind::ExternalId, id));
                if erased_at.is_some_and(|erased_at| *first_seen_at <= erased_at) {
                    links.insert(link.clone());
                }
            }
            users = users_without_link(tx, &tombstones, quarantined.users)?;
        }
        if tombstones.has(Kind::Person) {
            let pepper = pepper.ok_or(subject::Error::NoPepper)?;
            let owners = subject::persons(tx, pepper)?;
            let first_seen: HashMap<&str, i64> = connected.iter().map(|(id, _, at)| (id.as_str(), *at)).collect();
            for (link, person) in owners {
                let first_seen_at = first_seen.get(link.as_str()).copied().unwrap_or_default();
                if tombstones.erased_at(Kind::Person, &person).is_some_and(|erased_at| first_seen_at <= erased_at) {
                    links.insert(link);
                }
            }
        }
    }
    let links: Vec<_> = links.into_iter().collect();
    users.extend(own_external_ids(tx, &links)?);
    let erasure = if links.is_empty() && users.is_empty() {
        None
    } else {
        Some(remove_and_note(tx, &links, &users.into_iter().collect::<Vec<_>>(), now)?)
    };
    audit::note(tx, now, "restore", &json!({ "erased_again": links.len() }))?;
    Ok(Again { links: links.len(), erasure })
}

/// Removes the rows, and puts an erasure on record of which that is done, so that the lake and the log follow. Gives
/// its id.
fn remove_and_note(tx: &Tx<'_>, links: &[String], users: &[String], now: Timestamp) -> Result<String, store::Error> {
    let receipt = Receipt {
        erasure: super::new_id(),
        asked_at: now.to_string(),
        asked_for: Kind::Link.name().to_owned(),
        reason: "the tombstones beside this state name what it held".to_owned(),
        links: links.len(),
        rows: remove(tx, links, users)?,
        tombstones: links.iter().map(|link| tombstones::bury(tx, Kind::Link, link, now)).collect::<Result<_, _>>()?,
        ..Receipt::default()
    };
    Begun::new(&receipt, now, Step::Removed, None).keep(tx)?;
    Ok(receipt.erasure)
}

/// Whom tombstones name of those in webhooks that are of no known link: in the quarantine a body has names in any
/// place.
#[derive(Default)]
struct Quarantined {
    links: Vec<String>,
    /// The `external_id`s, and when the latest webhook that names each came.
    users: BTreeMap<String, i64>,
}

impl Quarantined {
    fn read(tx: &Tx<'_>, tombstones: &Tombstones) -> Result<Self, store::Error> {
        let (mut found, has_users) = (Self::default(), tombstones.has(Kind::ExternalId));
        tx.each("SELECT received_at, body FROM webhooks WHERE link_id IS NULL", args![], |row| {
            let received_at = row.int(0)?;
            let place = WebhookPlace { link_id: None, received_at };
            // One that cannot be opened says nothing.
            let Ok(body) = place.open(tx, row.bytes(1)?) else { return Ok(()) };
            each_name_in(&body, &mut |name| {
                if has_users && tombstones.erased_at(Kind::ExternalId, name).is_some() {
                    note_latest(&mut found.users, name.to_owned(), received_at);
                }
                let link = name.parse::<LinkId>().ok();
                found.links.extend(
                    link.filter(|link| tombstones.erased_at(Kind::Link, link.as_str()).is_some())
                        .map(|link| link.as_str().to_owned()),
                );
            });
            Ok::<_, store::Error>(())
        })?;
        Ok(found)
    }
}

/// The `external_id`s without a link of which nothing is held that is newer than their erasure. What may be held of
/// them is widget sessions, and webhooks in the quarantine; `latest` says when the last of these came for each.
fn users_without_link(
    tx: &Tx<'_>,
    tombstones: &Tombstones,
    mut latest: BTreeMap<String, i64>,
) -> Result<BTreeSet<String>, store::Error> {
    let sessions = "SELECT external_id, max(asked_at) FROM widget_sessions GROUP BY external_id";
    tx.each(sessions, args![], |row| {
        note_latest(&mut latest, row.text(0)?, row.int(1)?);
        Ok::<_, store::Error>(())
    })?;
    let mut users = BTreeSet::new();
    for (user, latest) in latest {
        let is_connected = "SELECT 1 FROM links WHERE external_id = $1";
        if tombstones.erased_at(Kind::ExternalId, &user).is_some_and(|erased_at| latest <= erased_at)
            && tx.one(is_connected, args![&user], |_| Ok(()))?.is_none()
        {
            users.insert(user);
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in which somebody was erased, and a state there that has not heard of it and holds two links.
    struct Place {
        folder: tempfile::TempDir,
        store: Store,
        links: [String; 2],
    }

    impl Place {
        async fn new(erased: &[(Kind, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let links = [1, 2].map(|digit| format!("00000000-0000-4000-8000-00000000000{digit}"));
            let old = Store::open(&folder.path().join("old.db")).unwrap();
            let mut erased: Vec<_> = erased.iter().map(|(kind, name)| (*kind, (*name).to_owned())).collect();
            erased.push((Kind::Link, links[0].clone()));
            let bury = move |tx: &Tx<'_>| {
                let at = Timestamp::from_micros(1);
                erased.iter().try_for_each(|(kind, name)| tombstones::bury(tx, *kind, name, at).map(drop))
            };
            old.write(bury).await.unwrap();
            let known = old.read(Tombstones::of).await.unwrap().unwrap();
            known.write(&tombstones::file_of(&folder.path().join("state.db"))).unwrap();

            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let fill = links.clone();
            let fill = move |tx: &Tx<'_>| {
                let sql = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, 0, 0)";
                fill.iter().try_for_each(|link| tx.execute(sql, args![link]).map(drop))
            };
            store.write(fill).await.unwrap();
            Self { folder, store, links }
        }

        async fn learn(&self, pepper: Option<Pepper>) -> Result<Again, Error> {
            learn(&self.store, &self.folder.path().join("state.db"), pepper, Timestamp::from_micros(2)).await
        }

        async fn all(&self, sql: &'static str) -> Vec<String> {
            self.store.read(move |tx| tx.all(sql, args![], |row| row.text(0))).await.unwrap()
        }
    }

    #[tokio::test]
    async fn a_state_that_learns_who_was_erased_holds_them_no_more() {
        let place = Place::new(&[]).await;
        let again = place.learn(None).await.unwrap();
        assert_eq!(again.links, 1);
        assert_eq!(place.all("SELECT link_id FROM links").await, [place.links[1].clone()]);
        let begun = place.store.read(Begun::all).await.unwrap();
        let begun: Vec<_> = begun.into_iter().map(|begun| (begun.erasure, begun.step)).collect();
        assert_eq!(begun, [(again.erasure.unwrap(), Step::Removed)], "the lake is to follow");
        assert_eq!(place.learn(None).await.unwrap().erasure, None, "it knows all");
    }

    #[tokio::test]
    async fn webhooks_in_the_quarantine_that_name_whom_was_erased_go_wherever_the_name_stands() {
        let place = Place::new(&[(Kind::ExternalId, "user-1"), (Kind::ExternalId, "4711")]).await;
        let [erased, other] = place.links.clone();
        let bodies = [
            format!(r#"{{"about":"{}"}}"#, erased.to_uppercase()),
            r#"{"data":{"external_id":"user-1"}}"#.to_owned(),
            r#"{"data":[4711]}"#.to_owned(),
            format!(r#"{{"about":"{other}","of":"user-12"}}"#),
        ];
        let fill = move |tx: &Tx<'_>| {
            // Nothing else of the link is held.
            tx.execute("DELETE FROM links WHERE link_id = $1", args![&erased])?;
            bodies.iter().try_for_each(|body| {
                let sql = "INSERT INTO webhooks (received_at, outcome, body) VALUES (0, 'quarantined', $1)";
                tx.execute(sql, args![body.as_bytes()]).map(drop)
            })
        };
        place.store.write(fill).await.unwrap();
        assert!(place.learn(None).await.unwrap().erasure.is_some());
        let left = place.all("SELECT CAST(body AS TEXT) FROM webhooks").await;
        assert!(left.len() == 1 && left[0].contains("user-12"), "{left:?}");
    }

    #[tokio::test]
    async fn a_state_that_cannot_find_all_who_were_erased_learns_of_nobody_until_it_can() {
        let place = Place::new(&[(Kind::Person, "person-1")]).await;
        for _start in 0..2 {
            assert_eq!(place.learn(None).await.unwrap_err().code(), "no_pepper");
            assert!(place.all("SELECT hash FROM tombstones").await.is_empty());
            assert_eq!(place.all("SELECT link_id FROM links").await, place.links);
        }
        let pepper = Pepper::new("a pepper".into());
        assert_eq!(place.learn(Some(pepper)).await.unwrap().links, 1);
        assert_eq!(place.all("SELECT link_id FROM links").await, [place.links[1].clone()]);
    }

    #[tokio::test]
    async fn a_person_is_erased_again_also_where_a_body_holds_a_number_that_no_float_holds() {
        let pepper = Pepper::new("pepper-for-tests".into());
        let person = "0ee07cb51e2ac13576fdf65c0a5a27e60a9870d889370e347ba1644db345f1f1";
        let place = Place::new(&[(Kind::Person, person)]).await;
        let link = place.links[1].clone();
        let fill = move |tx: &Tx<'_>| {
            let owner = br#"{"document_id":{"document_number":"52998224725","document_type":"CPF"},"score":1e999}"#;
            let body = zstd::encode_all(owner.as_slice(), 1).unwrap();
            let sql = "INSERT INTO record_versions (link_id, resource, record_key, version, is_late, record_id, \
                       known_from, started_at, fetched_at, body) VALUES ($1, 'owners', 'k', 1, 0, 'i', 0, 0, 0, $2)";
            tx.execute(sql, args![&link, body.as_slice()])
        };
        place.store.write(fill).await.unwrap();
        assert_eq!(place.learn(Some(pepper)).await.unwrap().links, 2);
        let nobody: [&str; 0] = [];
        assert_eq!(place.all("SELECT link_id FROM links UNION SELECT link_id FROM record_versions").await, nobody);
    }
}
