//! What people see of the tracked links: each with how fresh it is, and what to do about it.
//!
//! *Takes* the rows of the state, inside the caller's transaction. *Gives* a [`View`] of each link, the same to the
//! API, the commands and the dashboard. *Promises* to change nothing. *Not here*: how it is shown.

use std::fmt;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::{DELETED, DELETING, INVALID, NOT_FOUND, PAUSED, TOKEN_REQUIRED, UNCONFIRMED};
use crate::clock::Timestamp;
use crate::coverage::{self, Coverage};
use crate::link_id::{LinkId, log_tag};
use crate::queue;
use crate::resources::{self, Resource};
use crate::store::{self, Error, Row, Tx, args};
use crate::words;

/// A tracked link as an operator sees it. Instants are RFC 3339.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Link")]
pub struct View {
    /// The link.
    pub link_id: String,
    /// What stands for it in the log.
    pub log_tag: String,
    /// The application's own id.
    pub external_id: Option<String>,
    /// The institution at Belvo.
    pub institution: Option<String>,
    /// `single` or `recurrent`; absent until Belvo was asked.
    pub access_mode: Option<String>,
    /// Belvo's status, `deleted` or `not_found`; absent until Belvo was asked.
    pub status: Option<String>,
    /// How often Belvo itself reads a recurrent link.
    pub refresh_rate: Option<String>,
    /// How long Belvo keeps what it has read.
    pub stale_in: Option<String>,
    /// When it was made at Belvo.
    pub created_at: Option<String>,
    /// When Belvo last read it.
    pub last_accessed_at: Option<String>,
    /// When a webhook last named it.
    pub last_webhook_at: Option<String>,
    /// Whether nothing is fetched until a person does something.
    pub is_paused: bool,
    /// The stable code of why the whole link is paused; absent while it is not.
    pub paused_reason: Option<String>,
    /// Since when it is.
    pub paused_at: Option<String>,
    /// How each resource stands.
    pub resources: Vec<ResourceView>,
    /// The months that published salaries have of it; absent when there are none.
    pub coverage: Option<Coverage>,
    /// The newest failure that still stands.
    pub last_error: Option<LastError>,
    /// What a person does next, in plain words.
    #[serde(rename = "what_to_do")]
    #[schemars(with = "String")]
    pub next: Next,
}

/// How a resource of a link stands.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LinkResource")]
pub struct ResourceView {
    /// The resource.
    pub resource: String,
    /// Whether it is fetched, will be, or cannot be.
    pub state: State,
    /// When a complete list was last fetched.
    pub last_fetched_at: Option<String>,
    /// Seconds since then.
    pub age_seconds: Option<u64>,
    /// When Belvo collected the newest record.
    pub last_collected_at: Option<String>,
    /// Records in the last complete list.
    pub item_count: Option<i64>,
    /// What the last webhook counted, as far as one did for that list or the next.
    pub webhook_count: Option<i64>,
    /// Complete lists so far.
    pub lists: i64,
    /// When it is looked at next, if it waits.
    pub due_at: Option<String>,
    /// Failed tries since the last complete list.
    pub attempts: i64,
    /// The stable code of the failure that still stands.
    pub last_error_code: Option<String>,
    /// When that was.
    pub last_error_at: Option<String>,
    /// Why it waits for a person.
    pub blocked_reason: Option<String>,
}

/// Whether a resource is fetched, will be, or cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "LinkResourceState")]
pub enum State {
    /// No complete list ever came, and nobody waits for one.
    NeverFetched,
    /// A fetch is due, now or later.
    Waiting,
    /// A fetch goes on.
    Running,
    /// A fetch failed, and is tried again.
    Retrying,
    /// Nothing is fetched until a person does something.
    Blocked,
    /// A complete list came, and nobody waits for another.
    Fetched,
}

impl State {
    /// Every state, in the order of a resource's life.
    pub const ALL: [Self; 6] =
        [Self::NeverFetched, Self::Waiting, Self::Running, Self::Retrying, Self::Blocked, Self::Fetched];

    fn of(refresh: &queue::State) -> Self {
        match (refresh.is_leased, refresh.due_at, &refresh.blocked_reason, refresh.fetched_at) {
            (true, ..) => Self::Running,
            (false, Some(_), ..) if refresh.attempts > 0 => Self::Retrying,
            (false, Some(_), ..) => Self::Waiting,
            (false, None, Some(_), _) => Self::Blocked,
            (false, None, None, Some(_)) => Self::Fetched,
            (false, None, None, None) => Self::NeverFetched,
        }
    }

    /// Whether a fetch is on its way that has not failed.
    pub fn is_on_its_way(self) -> bool {
        matches!(self, Self::Waiting | Self::Running)
    }

    /// The word for it in answers and on the terminal.
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverFetched => "never_fetched",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Blocked => "blocked",
            Self::Fetched => "fetched",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure that still stands.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LastError {
    /// Its stable code.
    pub code: String,
    /// When it was.
    pub at: Option<String>,
    /// Of which resource; absent when it is the link's own.
    pub resource: Option<String>,
    /// Belvo's own code and request id, for its support.
    pub detail: Option<String>,
}

/// Which links are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of this external id.
    pub external_id: Option<String>,
    /// Only those with this status.
    pub status: Option<String>,
}

const COLUMNS: &str = "link_id, external_id, institution, access_mode, status, refresh_rate, stale_in, created_at, \
     last_accessed_at, last_webhook_at, paused_reason, paused_at, last_error_code, last_error_at, last_error_detail";

/// At most `limit` links by id, from after the id `after` on. Gives them and, when there are more, the `after` of the
/// next page.
///
/// # Errors
/// [`Error::Database`].
pub fn list(
    tx: &Tx<'_>,
    filter: &Filter,
    after: &str,
    limit: usize,
    now: Timestamp,
) -> Result<(Vec<View>, Option<String>), Error> {
    // Each wish is a condition of its own, so that its index is used.
    let mut sql = format!("SELECT {COLUMNS} FROM links WHERE link_id > $1");
    if filter.external_id.is_some() {
        sql.push_str(" AND external_id = $2");
    }
    if filter.status.is_some() {
        sql.push_str(" AND status = $3");
    }
    sql.push_str(" ORDER BY link_id LIMIT $4");
    let (external_id, status) = (filter.external_id.as_deref(), filter.status.as_deref());
    let found = tx.all(&sql, args![after, external_id, status, limit.saturating_add(1)], read)?;
    let (links, next) = store::page(found, limit, |link| link.link_id.clone());
    let links = links.into_iter().map(|link| with_resources(tx, link, now)).collect::<Result<_, _>>()?;
    Ok((links, next))
}

/// The link called `link_id`; `None` when it is not tracked.
///
/// # Errors
/// [`Error::Database`].
pub fn show(tx: &Tx<'_>, link_id: &LinkId, now: Timestamp) -> Result<Option<View>, Error> {
    let found = tx.one(&format!("SELECT {COLUMNS} FROM links WHERE link_id = $1"), args![link_id], read)?;
    found.map(|link| with_resources(tx, link, now)).transpose()
}

fn read(row: &Row<'_>) -> Result<View, Error> {
    let at = |column| row.opt_at(column).map(|at| at.map(|at| at.to_string()));
    let link_id = row.text(0)?;
    Ok(View {
        log_tag: log_tag(&link_id),
        link_id,
        external_id: row.opt_text(1)?,
        institution: row.opt_text(2)?,
        access_mode: row.opt_text(3)?,
        status: row.opt_text(4)?,
        refresh_rate: row.opt_text(5)?,
        stale_in: row.opt_text(6)?,
        created_at: at(7)?,
        last_accessed_at: at(8)?,
        last_webhook_at: at(9)?,
        is_paused: false,
        paused_reason: row.opt_text(10)?,
        paused_at: at(11)?,
        resources: Vec::new(),
        coverage: None,
        last_error: row
            .opt_text(12)?
            .map(|code| {
                Ok::<_, Error>(LastError {
                    code,
                    at: at(13)?,
                    resource: None,
                    detail: row.opt_text(14)?.filter(|detail| !detail.is_empty()),
                })
            })
            .transpose()?,
        next: Next::Nothing,
    })
}

/// Says of each of `links` what the lake at `lake` has of it. Blocks.
pub fn cover(links: &mut [View], lake: &Path) {
    let ids: Vec<&str> = links.iter().map(|link| link.link_id.as_str()).collect();
    let mut found = coverage::of(lake, &ids);
    for link in links {
        link.coverage = found.remove(&link.link_id);
    }
}

fn with_resources(tx: &Tx<'_>, mut link: View, now: Timestamp) -> Result<View, Error> {
    let link_id: LinkId = link.link_id.parse().map_err(|_| Error::Unreadable("a link id"))?;
    for resource in resources::ALL {
        link.resources.push(read_resource(tx, &link_id, resource, now)?);
    }
    // The link's own failure says more: it has Belvo's request id.
    if link.last_error.is_none() {
        let failed = link.resources.iter().filter(|resource| resource.last_error_code.is_some());
        link.last_error = failed.max_by_key(|resource| resource.last_error_at.clone()).and_then(|resource| {
            Some(LastError {
                code: resource.last_error_code.clone()?,
                at: resource.last_error_at.clone(),
                resource: Some(resource.resource.clone()),
                detail: None,
            })
        });
    }
    link.next = Next::of(&link);
    link.is_paused = link.next.needs_person() || link.paused_reason.is_some();
    Ok(link)
}

fn read_resource(tx: &Tx<'_>, link_id: &LinkId, resource: &Resource, now: Timestamp) -> Result<ResourceView, Error> {
    let listed = "SELECT count(*), max(fetched_at) FROM link_snapshots WHERE link_id = $1 AND resource = $2";
    let listed = tx.one(listed, args![link_id, resource.name], |row| Ok((row.int(0)?, row.opt_at(1)?)))?;
    let (lists, latest) = listed.unwrap_or_default();
    let counts =
        "SELECT item_count, webhook_count FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND fetched_at = $3";
    let counts = tx.one(counts, args![link_id, resource.name, latest], |row| Ok((row.opt_int(0)?, row.opt_int(1)?)))?;
    let (item_count, webhook_count) = counts.unwrap_or_default();
    let refresh = queue::State::of(tx, link_id, resource)?.unwrap_or_default();
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    Ok(ResourceView {
        resource: resource.name.to_owned(),
        state: State::of(&refresh),
        last_fetched_at: text(refresh.fetched_at),
        age_seconds: refresh.fetched_at.map(|at| now.since(at).as_secs()),
        last_collected_at: text(refresh.collected_at),
        item_count,
        webhook_count: refresh.webhook_count.or(webhook_count),
        lists,
        due_at: text(refresh.due_at),
        attempts: refresh.attempts,
        last_error_code: refresh.failure,
        last_error_at: text(refresh.failed_at),
        blocked_reason: refresh.blocked_reason,
    })
}

/// What a person does next about a link. As text it is English; whoever tells it in another language matches all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: an operator paused the link.
    PausedByOperator,
    /// The user gives new credentials.
    InvalidCredentials,
    /// The user gives the institution's new token.
    TokenRequired,
    /// The user ends what they began.
    Unconfirmed,
    /// Nothing: Belvo is deleting the link.
    BeingDeleted,
    /// Belvo has the link no longer: for new data the user connects again.
    Gone,
    /// What the stable code says of why the link is paused.
    Paused {
        /// The code.
        reason: String,
    },
    /// What the stable code says of why a resource waits for a person.
    Blocked {
        /// The resource.
        resource: String,
        /// The code.
        code: String,
    },
    /// What the stable code of a failure says; the fetch is tried again by itself.
    Retrying {
        /// The resource.
        resource: String,
        /// The code.
        code: String,
        /// When it is tried again.
        due_at: String,
    },
    /// Nothing: a fetch is on its way.
    OnItsWay,
    /// A refresh is ordered: something was never fetched, and nobody waits for it.
    NeverFetched,
    /// Nothing.
    Nothing,
}

impl Next {
    /// What stands first of all that is to be done about `link`, the gravest matter.
    fn of(link: &View) -> Self {
        match link.status.as_deref() {
            // A link that is deleted, or soon will be, is not there to be resumed.
            Some(DELETING) => return Self::BeingDeleted,
            Some(DELETED) => return Self::Gone,
            _ if link.paused_reason.as_deref() == Some(PAUSED) => return Self::PausedByOperator,
            Some(NOT_FOUND) => return Self::Gone,
            Some(INVALID) => return Self::InvalidCredentials,
            Some(TOKEN_REQUIRED) => return Self::TokenRequired,
            Some(UNCONFIRMED) => return Self::Unconfirmed,
            _ => {}
        }
        if let Some(reason) = &link.paused_reason {
            return Self::Paused { reason: reason.clone() };
        }
        for ResourceView { resource, blocked_reason, .. } in &link.resources {
            if let Some(code) = blocked_reason {
                return Self::Blocked { resource: resource.clone(), code: code.clone() };
            }
        }
        let is = |state: State| move |resource: &&ResourceView| resource.state == state;
        if let Some(failed) = link.resources.iter().find(is(State::Retrying)) {
            return Self::Retrying {
                resource: failed.resource.clone(),
                code: failed.last_error_code.clone().unwrap_or_else(|| "unknown".to_owned()),
                due_at: failed.due_at.clone().unwrap_or_default(),
            };
        }
        if link.resources.iter().any(|resource| resource.state.is_on_its_way()) {
            return Self::OnItsWay;
        }
        if link.resources.iter().any(|resource| resource.state == State::NeverFetched) {
            return Self::NeverFetched;
        }
        Self::Nothing
    }

    /// Whether nothing goes on until a person has done it.
    pub fn needs_person(&self) -> bool {
        match self {
            Self::InvalidCredentials
            | Self::TokenRequired
            | Self::Unconfirmed
            | Self::Gone
            | Self::Paused { .. }
            | Self::Blocked { .. } => true,
            Self::PausedByOperator
            | Self::BeingDeleted
            | Self::Retrying { .. }
            | Self::OnItsWay
            | Self::NeverFetched
            | Self::Nothing => false,
        }
    }
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PausedByOperator => "nothing: an operator paused this link; resume it on its page of the dashboard when it may be asked for again",
            Self::InvalidCredentials => {
                "the credentials are no longer good: let the user open the widget in update mode for this link"
            }
            Self::TokenRequired => {
                "the institution wants a new token: let the user open the widget in update mode for this link"
            }
            Self::Unconfirmed => "the user never finished connecting: let them open the widget once more",
            Self::BeingDeleted => "nothing: Belvo is deleting this link; its rows stay",
            Self::Gone => "Belvo no longer has this link; its rows stay. For new data, let the user connect again",
            Self::Paused { reason } => return write!(f, "the link is paused ({reason}): {}", words::advice(reason)),
            Self::Blocked { resource, code } => {
                return write!(f, "{resource} is blocked ({code}): {}", words::advice(code));
            }
            Self::Retrying { resource, code, due_at } => {
                let advice = words::advice(code);
                return write!(f, "{resource} failed ({code}) and is tried again at {due_at}: {advice}");
            }
            Self::OnItsWay => "nothing: a fetch is on its way",
            Self::NeverFetched => "refresh it: something of it was never fetched",
            Self::Nothing => "nothing",
        })
    }
}

impl Serialize for Next {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links;
    use crate::queue::Trigger;
    use crate::resources::{employments, owners};
    use crate::store::Store;

    #[test]
    fn a_state_is_one_word_everywhere() {
        for state in State::ALL {
            assert_eq!(serde_json::json!(state), state.name());
        }
    }

    #[tokio::test]
    async fn the_gravest_matter_is_what_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let work = move |tx: &Tx<'_>| {
            let link: LinkId = "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap();
            let mut told = Vec::new();
            let mut look = |tx: &Tx<'_>| {
                let view = show(tx, &link, at(100))?.unwrap();
                told.push((view.next, view.is_paused, view.resources.iter().map(|one| one.state).collect::<Vec<_>>()));
                Ok::<_, Error>(())
            };
            links::note_wish(tx, &link, at(1))?;
            look(tx)?;
            for resource in resources::ALL {
                queue::mark(tx, &link, resource, Trigger::Operator, at(2))?;
            }
            look(tx)?;
            tx.execute("UPDATE refreshes SET due_at = NULL, last_fetched_at = 3000000", args![])?;
            look(tx)?;
            let failed =
                "UPDATE refreshes SET due_at = 5000000, attempts = 1, last_error_code = 'timeout' WHERE resource = $1";
            tx.execute(failed, args![owners::RESOURCE.name])?;
            look(tx)?;
            let blocked = "UPDATE refreshes SET blocked_reason = 'api_forbidden', lease = 7 WHERE resource = $1";
            tx.execute(blocked, args![employments::RESOURCE.name])?;
            look(tx)?;
            links::note_status(tx, &link, "invalid", at(9))?;
            look(tx)?;
            links::pause_by_operator(tx, &link, at(10))?;
            look(tx)?;
            for status in [NOT_FOUND, DELETING, DELETED] {
                links::note_status(tx, &link, status, at(11))?;
                look(tx)?;
            }
            Ok(told)
        };
        let told = store.write(work).await.unwrap();
        let nexts: Vec<_> = told.iter().map(|(next, is_paused, _)| (next.clone(), *is_paused)).collect();
        let (owners, employments) = (owners::RESOURCE.name.to_owned(), employments::RESOURCE.name.to_owned());
        assert_eq!(
            nexts,
            [
                (Next::NeverFetched, false),
                (Next::OnItsWay, false),
                (Next::Nothing, false),
                (Next::Retrying { resource: owners, code: "timeout".to_owned(), due_at: at(5).to_string() }, false),
                // Also while it is tried once more.
                (Next::Blocked { resource: employments, code: "api_forbidden".to_owned() }, true),
                (Next::InvalidCredentials, true),
                (Next::PausedByOperator, true),
                // Belvo may know it again, and it is not asked for before an operator resumes it.
                (Next::PausedByOperator, true),
                (Next::BeingDeleted, true),
                (Next::Gone, true),
            ]
        );
        let states: Vec<_> = told.into_iter().map(|(_, _, states)| states).collect();
        assert!(states[0].iter().all(|state| *state == State::NeverFetched), "{states:?}");
        assert!(states[1].iter().all(|state| *state == State::Waiting), "{states:?}");
        assert!(states[4].contains(&State::Running) && states[4].contains(&State::Retrying), "{states:?}");
    }
}
