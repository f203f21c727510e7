//! Widget sessions: a user connects, or gives an old link new credentials, on Belvo's hosted page.
//!
//! *Takes* a [`SessionRequest`]. *Gives* a [`Session`]: the page's address with a token in it. *Promises* that every
//! rule is checked before anything is sent, all at once; that the session is recorded before the token is asked for, so
//! that a webhook which overtakes the browser finds it; that no token is kept or logged; and that a session or a new
//! link of which nothing is heard is looked up. *Not here*: what the user types, which only Belvo sees.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use secrecy::ExposeSecret;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use tokio_util::sync::CancellationToken;

use crate::belvo::token;
use crate::belvo::{self, Client, Failure};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::deadlines::{self, Deadlines};
use crate::link_id::LinkId;
use crate::links::{self, freshness};
use crate::queue::{self, Queue, Trigger};
use crate::store::{self, Store, Tx, args};
use crate::tombstones;

mod rules;

use rules::{Plan, Rules, sentence};
pub use rules::{SessionRequest, Violation, check};

/// How long after a token's end to wait for the webhooks of a link that was made in its last second.
const GRACE: Duration = Duration::from_mins(2);

/// A new link's first data is there in a quarter of a minute, mostly; without a webhook it is listed after so long.
const FIRST_DATA_WITHIN: Duration = Duration::from_mins(5);

/// A link that was older than this when it became known is no new one.
const NEW_FOR: Duration = Duration::from_hours(24);

/// Links that are looked at in one transaction.
const CHUNK: usize = 500;

/// How long a session stays on record that nobody waits for any more.
const KEEP: Duration = Duration::from_hours(90 * 24);

/// Deadlines are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(20);

/// A widget session, ready for its user. Its debug form shows no token.
#[derive(Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename = "WidgetSession")]
pub struct Session {
    /// Where the user's browser or webview goes. It holds the token.
    pub url: String,
    /// The token by itself.
    pub access: String,
    /// What Belvo gives along.
    pub refresh: String,
    /// When the token ends, unless its user connects earlier.
    #[schemars(with = "String")]
    pub expires_at: Timestamp,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session(… until {})", self.expires_at)
    }
}

impl Serialize for Session {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut session = serializer.serialize_struct("Session", 4)?;
        session.serialize_field("url", &self.url)?;
        session.serialize_field("access", &self.access)?;
        session.serialize_field("refresh", &self.refresh)?;
        session.serialize_field("expires_at", &self.expires_at.to_string())?;
        session.end()
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request or the configuration breaks these rules; nothing was sent or recorded.
    #[error("{}", sentence(.0))]
    Invalid(Vec<Violation>),
    /// Belvo gave no token.
    #[error(transparent)]
    Belvo(#[from] Failure),
    /// The session could not be recorded.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid(violations) if violations.iter().all(|wrong| wrong.field.starts_with("widget.")) => {
                "invalid_widget_config"
            }
            Self::Invalid(_) => "invalid_request",
            Self::Belvo(failure) => failure.code.name(),
            Self::Store(error) => error.code(),
        }
    }
}

/// Makes sessions, and looks after those of which nothing is heard. Cheap to clone.
#[derive(Clone)]
pub struct Widgets {
    client: Client,
    store: Store,
    queue: Queue,
    clock: Clock,
    settings: Arc<config::Widget>,
}

impl Widgets {
    /// Sessions whose tokens come from `client`.
    pub fn new(client: Client, store: Store, queue: Queue, clock: Clock, settings: config::Widget) -> Self {
        Self { client, store, queue, clock, settings: Arc::new(settings) }
    }

    /// Makes a session: checks `request`, records it, asks Belvo for a token.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn create(&self, request: SessionRequest) -> Result<Session, Error> {
        let plan = Plan::of(&request, &self.settings).map_err(Error::Invalid)?;
        let asked_at = self.clock.now();
        let recorded = plan.clone();
        let session = self.store.write(move |tx| record(tx, &recorded, asked_at)).await?.map_err(Error::Invalid)?;
        let token = token::create(&self.client, plan.ask(&self.settings)).await?;
        let expires_at = token.expires_at;
        let due_at = expires_at + GRACE;
        self.store
            .write(move |tx| {
                tx.execute(
                    "UPDATE widget_sessions SET expires_at = $2, due_at = $3 WHERE session = $1",
                    args![session, expires_at, due_at],
                )
            })
            .await?;
        metrics::counter!("vinculo_widget_sessions_total").increment(1);
        Ok(Session {
            url: plan.url(&self.client.settings().widget_url, &token).into(),
            access: token.access.expose_secret().to_owned(),
            refresh: token.refresh.expose_secret().to_owned(),
            expires_at,
        })
    }

    /// Looks after deadlines until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        deadlines::run(&self, LOOK_EVERY, "widget sessions", shutdown).await;
    }

    /// Asks Belvo for the links of a session of which nothing was heard.
    async fn look_up(&self, session: Due) -> Result<usize, store::Error> {
        let now = self.clock.now();
        if let Some(link_id) = session.link_id {
            // Its status says whether the user was there.
            return self
                .store
                .write(move |tx| {
                    links::look_up(tx, &link_id, now)?;
                    close(tx, session.session, Some(&link_id))
                })
                .await
                .map(|()| {
                    self.queue.announce();
                    0
                });
        }
        let found = match belvo::links::by_external_id(&self.client, &session.external_id).await {
            Ok(found) => found,
            Err(failure) => {
                tracing::warn!(
                    code = failure.code.name(),
                    request_id = failure.request_id,
                    "a session's link: {failure}"
                );
                let until = now + failure.delay(session.attempts, &mut rand::rng());
                let postpone = move |tx: &Tx<'_>| {
                    tx.execute(
                        "UPDATE widget_sessions SET due_at = $2, attempts = attempts + 1 WHERE session = $1",
                        args![session.session, until],
                    )
                };
                return self.store.write(postpone).await.map(|_| 0);
            }
        };
        self.store
            .write(move |tx| {
                let (mut marked, mut made) = (0, None);
                for link in &found {
                    // Belvo may still list what was erased here; not even its id comes back.
                    if tombstones::is_erased(tx, &link.id)? {
                        continue;
                    }
                    if links::is_tracked(tx, &link.id)? {
                        continue;
                    }
                    links::note_wish(tx, &link.id, now)?;
                    let name = "UPDATE links SET external_id = $2 WHERE link_id = $1";
                    tx.execute(name, args![&link.id, &session.external_id])?;
                    for resource in freshness::read(link.fetch_resources.as_deref()) {
                        queue::mark(tx, &link.id, resource, Trigger::Operator, now)?;
                        marked += 1;
                    }
                    made = Some(&link.id);
                }
                close(tx, session.session, made)?;
                Ok(marked)
            })
            .await
    }
}

impl Deadlines for Widgets {
    /// Looks up the sessions whose deadline has passed, and lists what new links should have had a webhook for. Gives
    /// how many refreshes that marked.
    ///
    /// # Errors
    /// [`store::Error`]. What Belvo does not answer is asked again later.
    async fn follow_up(&self) -> Result<usize, store::Error> {
        let mut marked = 0;
        let now = self.clock.now();
        let due = move |tx: &Tx<'_>| {
            forget_sessions(tx, now)?;
            due_sessions(tx, now)
        };
        for session in self.store.write(due).await? {
            marked += self.look_up(session).await?;
        }
        loop {
            let (links, marks) = self.store.write(move |tx| mark_silent_links(tx, now)).await?;
            marked += marks;
            if links < CHUNK {
                break;
            }
        }
        if marked > 0 {
            tracing::warn!(
                code = "webhook_missed",
                refreshes = marked,
                "no webhook came for new links, so they are listed"
            );
            self.queue.announce();
        }
        Ok(marked)
    }
}

/// Records a session before its token is asked for, and gives its number; or what the known link contradicts.
fn record(tx: &Tx<'_>, plan: &Plan, at: Timestamp) -> Result<Result<i64, Vec<Violation>>, store::Error> {
    if let Some(link_id) = &plan.link {
        let known = "SELECT external_id, status FROM links WHERE link_id = $1";
        let known = tx.one(known, args![link_id], |row| Ok((row.opt_text(0)?, row.opt_text(1)?)))?;
        let mut rules = Rules::default();
        if let Some((external_id, status)) = &known {
            let is_theirs = external_id.as_ref().is_none_or(|id| *id == plan.external_id);
            rules.ensure(is_theirs, "link", "belongs to another external_id");
            let is_there = !matches!(status.as_deref(), Some(links::DELETING | links::DELETED));
            rules.ensure(is_there, "link", "was deleted; ask without a link for a new one");
        }
        rules.ensure(!tombstones::is_erased(tx, link_id)?, "link", "was erased; ask without a link for a new one");
        if !rules.0.is_empty() {
            return Ok(Err(rules.0));
        }
        // Readers see it with the next snapshot.
        if known.is_some_and(|(external_id, _)| external_id.is_none()) {
            tx.execute(
                "UPDATE links SET external_id = $2, changed_seq = $3 WHERE link_id = $1",
                args![link_id, &plan.external_id, tx.change()?],
            )?;
        }
    }
    let access_mode = plan.link.is_none().then_some(plan.access_mode);
    let session = tx.one(
        "INSERT INTO widget_sessions (external_id, access_mode, link_id, asked_at) VALUES ($1, $2, $3, $4) RETURNING session",
        args![&plan.external_id, access_mode, plan.link.as_ref(), at],
        |row| row.int(0),
    )?;
    session.map(Ok).ok_or(store::Error::Unreadable("a session's number"))
}

/// A widget session whose user is still to come.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Awaited {
    /// When it was asked for.
    pub asked_at: String,
    /// When its token ends.
    pub expires_at: String,
    /// `single` or `recurrent`; absent when a link is updated.
    pub access_mode: Option<String>,
    /// The link that is updated.
    pub link_id: Option<String>,
}

/// The latest session of `external_id`, if one is named, that waits for its user: its token is good, and nothing was
/// heard of its link since.
///
/// # Errors
/// [`store::Error::Database`].
pub fn awaited(tx: &Tx<'_>, external_id: Option<&str>, now: Timestamp) -> Result<Option<Awaited>, store::Error> {
    let Some(external_id) = external_id else { return Ok(None) };
    tx.one(
        &format!(
            "SELECT s.asked_at, s.expires_at, s.access_mode, s.link_id FROM widget_sessions s \
             WHERE s.external_id = $1 AND s.expires_at > $2 AND NOT {HEARD} ORDER BY s.asked_at DESC LIMIT 1"
        ),
        args![external_id, now],
        |row| {
            Ok(Awaited {
                asked_at: row.at(0)?.to_string(),
                expires_at: row.at(1)?.to_string(),
                access_mode: row.opt_text(2)?,
                link_id: row.opt_text(3)?,
            })
        },
    )
}

/// How many sessions wait for their user.
///
/// # Errors
/// [`store::Error::Database`].
pub fn waiting_count(tx: &Tx<'_>, now: Timestamp) -> Result<u64, store::Error> {
    let sql = format!(
        "SELECT count(*) FROM widget_sessions s WHERE s.due_at IS NOT NULL AND s.expires_at > $1 AND NOT {HEARD}"
    );
    tx.count(&sql, args![now])
}

/// Whether a webhook named the link of session `s` since it was asked for: the one to update, or one of its external
/// id.
const HEARD: &str = "EXISTS (SELECT 1 FROM links l WHERE l.last_webhook_at >= s.asked_at \
                     AND (l.link_id = s.link_id OR (s.link_id IS NULL AND l.external_id = s.external_id)))";

/// Forgets sessions for which nobody waits any more, of the oldest [`CHUNK`]: whoever asks for a token does not wait
/// until all of them are looked at, and no look takes longer the more there are.
fn forget_sessions(tx: &Tx<'_>, now: Timestamp) -> Result<usize, store::Error> {
    tx.execute(
        "DELETE FROM widget_sessions WHERE session IN (SELECT session FROM \
         (SELECT session, due_at, asked_at FROM widget_sessions ORDER BY session LIMIT $2) AS oldest \
         WHERE due_at IS NULL AND asked_at < $1)",
        args![now - KEEP, CHUNK],
    )
}

/// A session of which nothing was heard in time.
struct Due {
    session: i64,
    external_id: String,
    link_id: Option<LinkId>,
    attempts: u32,
}

/// Closes the due sessions of which something was heard, and gives the others.
fn due_sessions(tx: &Tx<'_>, now: Timestamp) -> Result<Vec<Due>, store::Error> {
    tx.execute(
        &format!(
            "UPDATE widget_sessions AS s SET due_at = NULL, link_id = coalesce(s.link_id, (SELECT max(l.link_id) FROM links l \
             WHERE l.external_id = s.external_id AND l.last_webhook_at >= s.asked_at)) WHERE s.due_at <= $1 AND {HEARD}"
        ),
        args![now],
    )?;
    tx.all(
        "SELECT session, external_id, link_id, attempts FROM widget_sessions WHERE due_at <= $1 ORDER BY due_at",
        args![now],
        |row| {
            Ok(Due {
                session: row.int(0)?,
                external_id: row.text(1)?,
                link_id: row.opt_text(2)?.and_then(|id| id.parse().ok()),
                attempts: u32::try_from(row.int(3)?).unwrap_or(u32::MAX),
            })
        },
    )
}

/// Ends the wait of a session; `link_id` is the one that its user made or updated, as far as it is known.
fn close(tx: &Tx<'_>, session: i64, link_id: Option<&LinkId>) -> Result<(), store::Error> {
    tx.execute(
        "UPDATE widget_sessions SET due_at = NULL, link_id = coalesce(link_id, $2) WHERE session = $1",
        args![session, link_id],
    )?;
    Ok(())
}

/// Name in `meta` of the last link whose first data was waited for.
const WAITED_FOR: &str = "first_data_waited_for";

/// Marks what links, new a while ago, should have had a historical webhook for and had none. Gives how many links it
/// looked at, at most [`CHUNK`], and how many refreshes it marked.
fn mark_silent_links(tx: &Tx<'_>, now: Timestamp) -> Result<(usize, usize), store::Error> {
    let after = tx.meta(WAITED_FOR)?;
    let (seen, id) = after.as_deref().and_then(|text| text.split_once(' ')).unwrap_or(("0", ""));
    let seen: i64 = seen.parse().map_err(|_| store::Error::Unreadable("the last link that was waited for"))?;
    let longest_known = now - FIRST_DATA_WITHIN;
    let (seen, id) = if seen > now.as_micros() {
        // It was written before the clock was set back. Written down, or each later look would begin where it ends.
        note_waited_for(tx, longest_known, "")?;
        (longest_known.as_micros(), "")
    } else {
        (seen, id)
    };
    let links = tx.all(
        "SELECT link_id, first_seen_at, coalesce(created_at, first_seen_at) >= first_seen_at - $3, \
         coalesce(status, 'valid') = 'valid', fetch_resources \
         FROM links WHERE (first_seen_at, link_id) > ($1, $2) AND first_seen_at <= $4 ORDER BY first_seen_at, link_id LIMIT $5",
        args![seen, id, NEW_FOR, longest_known, CHUNK],
        |row| Ok((row.link_id(0)?, row.at(1)?, row.int(2)? == 1 && row.int(3)? == 1, row.opt_text(4)?)),
    )?;
    let mut marked = 0;
    for (link_id, _, is_awaited, fetch_resources) in &links {
        if !is_awaited {
            continue;
        }
        let names: Option<Vec<String>> = fetch_resources.as_deref().and_then(|json| serde_json::from_str(json).ok());
        for resource in freshness::read(names.as_deref()) {
            let known = "SELECT 1 FROM refreshes WHERE link_id = $1 AND resource = $2";
            if tx.one(known, args![link_id, resource.name], |_| Ok(()))?.is_none() {
                queue::mark(tx, link_id, resource, Trigger::Schedule, now)?;
                links::hold(tx, link_id, Some(resource))?;
                marked += 1;
            }
        }
    }
    if let Some((link_id, first_seen_at, ..)) = links.last() {
        note_waited_for(tx, *first_seen_at, link_id.as_str())?;
    }
    Ok((links.len(), marked))
}

/// Notes that all links have been waited for up to the one that became known at `seen`.
fn note_waited_for(tx: &Tx<'_>, seen: Timestamp, link: &str) -> Result<(), store::Error> {
    tx.set_meta(WAITED_FOR, &format!("{} {link}", seen.as_micros()))
}

/// Forgets the id of a link that is erased where it only says how far the wait for first data has come. Others that
/// became known in the same microsecond are looked at once more, which marks nothing twice.
///
/// # Errors
/// [`store::Error::Database`].
pub fn forget(tx: &Tx<'_>, link: &str) -> Result<(), store::Error> {
    let sql = "UPDATE meta SET value = replace(value, $2, '') WHERE name = $1";
    tx.execute(sql, args![WAITED_FOR, link]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::rules::tests::{request, settings};
    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Hand;
    use crate::resources;
    use crate::tombstones::Kind;

    const ID: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    #[tokio::test]
    async fn a_wait_goes_on_where_it_was_when_the_link_is_erased_that_it_had_come_to() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let look = |tx: &Tx<'_>| mark_silent_links(tx, Timestamp::from_micros(i64::from(u32::MAX)));
        let add = |digit: u8, seen: i64| {
            let id = format!("{}{digit}", &ID[..35]);
            let sql = "INSERT INTO links (link_id, first_seen_at, changed_seq) VALUES ($1, $2, 0)";
            store.write(move |tx| tx.execute(sql, args![&id, seen]))
        };
        add(1, 7).await.unwrap();
        add(2, 7).await.unwrap();
        let every = resources::ALL.len();
        assert_eq!(store.write(look).await.unwrap(), (2, 2 * every));
        let forgotten = format!("{}2", &ID[..35]);
        store.write(move |tx| forget(tx, &forgotten)).await.unwrap();
        add(3, 8).await.unwrap();
        assert_eq!(store.write(look).await.unwrap(), (3, every), "the others have their marks");
    }

    #[test]
    fn a_session_prints_no_token_but_gives_it_to_whom_it_is_for() {
        let at = Timestamp::parse("2026-11-23T10:00:00Z").unwrap();
        let session =
            Session { url: "u-canary".into(), access: "a-canary".into(), refresh: "r-canary".into(), expires_at: at };
        assert_eq!(format!("{session:?}"), "Session(… until 2026-11-23T10:00:00.000000Z)");
        let json = serde_json::to_value(&session).unwrap();
        assert_eq!(json["expires_at"], "2026-11-23T10:00:00.000000Z");
        assert_eq!(
            (&json["url"], &json["access"], &json["refresh"]),
            (&"u-canary".into(), &"a-canary".into(), &"r-canary".into())
        );
    }

    struct Place {
        widgets: Widgets,
        hand: Hand,
        _folder: tempfile::TempDir,
    }

    impl Place {
        async fn new(script: &Script) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("state.db")).unwrap();
            let hand = Hand::at(Timestamp::parse("2026-11-23T10:00:00Z").unwrap());
            let (client, clock) = (script.client_by(hand.clock()), hand.clock());
            let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
            Self { widgets: Widgets::new(client, store, queue, clock, settings()), hand, _folder: folder }
        }

        fn pass(&self, time: Duration) {
            self.hand.pass(time);
        }

        async fn waiting(&self, external_id: &'static str) -> bool {
            let now = self.widgets.clock.now();
            let read = move |tx: &Tx<'_>| Ok((awaited(tx, Some(external_id), now)?, waiting_count(tx, now)?));
            let (awaited, count) = self.widgets.store.read(read).await.unwrap();
            assert_eq!(awaited.is_some(), count == 1);
            awaited.is_some()
        }

        async fn hear(&self, link: &LinkId, external_id: &'static str) {
            let (link, now) = (link.clone(), self.widgets.clock.now());
            self.widgets.store.write(move |tx| links::note_webhook(tx, &link, Some(external_id), now)).await.unwrap();
        }

        async fn marks(&self) -> i64 {
            let count =
                self.widgets.store.read(|tx| tx.one("SELECT count(*) FROM refreshes", args![], |row| row.int(0)));
            count.await.unwrap().unwrap()
        }
    }

    async fn belvo(links: &'static str) -> Script {
        Script::start(move |head| match head {
            head if head.starts_with("POST /api/token/ ") => scripted::json(200, r#"{"access":"a","refresh":"r"}"#),
            head if head.starts_with("GET /api/links/?external_id=") => {
                scripted::json(200, &format!(r#"{{"results":[{links}],"next":null}}"#))
            }
            _ => scripted::json(404, "[]"),
        })
        .await
    }

    #[tokio::test]
    async fn a_session_waits_for_its_user_until_a_webhook_comes_or_its_token_ends() {
        let script = belvo("").await;
        let place = Place::new(&script).await;
        let session = place.widgets.create(request("user-1")).await.unwrap();
        assert_eq!(session.expires_at, place.widgets.clock.now() + Duration::from_mins(10));
        assert!(place.waiting("user-1").await);
        place.pass(Duration::from_mins(1));
        place.hear(&ID.parse().unwrap(), "user-1").await;
        assert!(!place.waiting("user-1").await);
        place.widgets.create(request("user-2")).await.unwrap();
        assert!(place.waiting("user-2").await);
        place.pass(Duration::from_mins(10));
        assert!(!place.waiting("user-2").await);
    }

    #[tokio::test]
    async fn a_session_is_recorded_also_when_belvo_gives_no_token() {
        let script = Script::start(|_| scripted::json(500, "[]")).await;
        let place = Place::new(&script).await;
        let error = place.widgets.create(request("user-1")).await.unwrap_err();
        assert_eq!(error.code(), "api_down");
        let rows = "SELECT count(*), count(expires_at) FROM widget_sessions";
        let rows = place.widgets.store.read(|tx| tx.one(rows, args![], |row| Ok((row.int(0)?, row.int(1)?)))).await;
        assert_eq!(rows.unwrap(), Some((1, 0)));
        assert!(!place.waiting("user-1").await);
    }

    #[tokio::test]
    async fn a_session_that_nobody_waits_for_stays_on_record_for_ninety_days() {
        let script = belvo("").await;
        let place = Place::new(&script).await;
        let count = async || {
            let sessions = |tx: &Tx<'_>| tx.count("SELECT count(*) FROM widget_sessions", args![]);
            place.widgets.store.read(sessions).await.unwrap()
        };
        place.widgets.create(request("user-1")).await.unwrap();
        place.pass(Duration::from_hours(1));
        place.widgets.follow_up().await.unwrap();
        place.pass(KEEP.saturating_sub(Duration::from_hours(1)));
        place.widgets.follow_up().await.unwrap();
        assert_eq!(count().await, 1);
        place.pass(Duration::from_secs(1));
        place.widgets.create(request("user-2")).await.unwrap();
        assert_eq!(count().await, 2, "whoever asks for a token does not see to it");
        place.widgets.follow_up().await.unwrap();
        assert_eq!(count().await, 1);
    }

    #[tokio::test]
    async fn a_link_of_another_user_gets_no_session() {
        let script = belvo("").await;
        let place = Place::new(&script).await;
        place.hear(&ID.parse().unwrap(), "user-1").await;
        let update = |external_id: &str| SessionRequest { link: Some(ID.into()), ..request(external_id) };
        let Err(Error::Invalid(violations)) = place.widgets.create(update("user-2")).await else { panic!("a session") };
        assert_eq!(violations[0].field, "link");
        assert_eq!(script.requests().len(), 0);
        place.widgets.create(update("user-1")).await.unwrap();
    }

    #[tokio::test]
    async fn a_session_without_a_webhook_is_looked_up_once() {
        let script = belvo(concat!(
            r#"{"id":"2f5d361d-dad6-45d4-a0bf-26d479766067","external_id":"user-1","status":"valid","#,
            r#""fetch_resources":["EMPLOYMENTS","OWNERS"],"created_at":"2026-11-23T10:01:00Z"}"#
        ))
        .await;
        let place = Place::new(&script).await;
        place.widgets.create(request("user-1")).await.unwrap();
        place.pass(Duration::from_mins(11));
        assert_eq!(place.widgets.follow_up().await.unwrap(), 0);
        place.pass(Duration::from_mins(2));
        assert_eq!(place.widgets.follow_up().await.unwrap(), 2);
        assert_eq!(place.marks().await, 2);
        place.pass(Duration::from_hours(1));
        assert_eq!(place.widgets.follow_up().await.unwrap(), 0);
        assert_eq!(script.requests().len(), 2);
    }

    #[tokio::test]
    async fn a_session_does_not_bring_back_a_link_that_was_erased() {
        let script = belvo(concat!(
            r#"{"id":"2f5d361d-dad6-45d4-a0bf-26d479766067","external_id":"user-1","status":"valid","#,
            r#""fetch_resources":["EMPLOYMENTS","OWNERS"],"created_at":"2026-11-23T10:01:00Z"}"#
        ))
        .await;
        let place = Place::new(&script).await;
        let now = place.widgets.clock.now();
        place.widgets.store.write(move |tx| tombstones::bury(tx, Kind::Link, ID, now).map(drop)).await.unwrap();
        place.widgets.create(request("user-1")).await.unwrap();
        place.pass(Duration::from_mins(13));
        assert_eq!(place.widgets.follow_up().await.unwrap(), 0);
        assert_eq!(place.marks().await, 0);
        let named = "SELECT count(*) FROM widget_sessions WHERE link_id IS NOT NULL OR due_at IS NOT NULL";
        let named = place.widgets.store.read(|tx| tx.one(named, args![], |row| row.int(0))).await;
        assert_eq!(named.unwrap(), Some(0), "its id is nowhere, and nobody looks again");
    }

    #[tokio::test]
    async fn of_a_new_link_each_resource_without_a_webhook_is_listed_after_a_while() {
        let script = belvo("").await;
        let place = Place::new(&script).await;
        let link: LinkId = ID.parse().unwrap();
        place.hear(&link, "user-1").await;
        let now = place.widgets.clock.now();
        let mark = move |tx: &Tx<'_>| queue::mark(tx, &link, resources::ALL[0], Trigger::Webhook, now);
        place.widgets.store.write(mark).await.unwrap();
        assert_eq!(place.widgets.follow_up().await.unwrap(), 0);
        place.pass(Duration::from_mins(5));
        assert_eq!(place.widgets.follow_up().await.unwrap(), resources::ALL.len() - 1);
        assert_eq!(place.widgets.follow_up().await.unwrap(), 0);
        // Another becomes known after the clock was set back.
        place.hand.set(now - Duration::from_hours(2));
        place.hear(&"3f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap(), "user-2").await;
        for _ in 0..4 {
            assert_eq!(place.widgets.follow_up().await.unwrap(), 0);
            place.pass(Duration::from_mins(1));
        }
        place.pass(Duration::from_mins(1));
        assert_eq!(place.widgets.follow_up().await.unwrap(), resources::ALL.len());
    }
}
