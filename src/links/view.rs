//! What people see of the tracked links: each with how fresh it is, and what to do about it.
//!
//! *Takes* the rows of the state, inside the caller's transaction. *Gives* a [`View`] of each link, the same to the API, the
//! commands and the dashboard. *Promises* to change nothing. *Not here*: how it is shown.

use schemars::JsonSchema;
use serde::Serialize;

use super::{DELETED, DELETING, NOT_FOUND, PAUSED};
use crate::belvo::{self, LinkId};
use crate::clock::Timestamp;
use crate::resources::{self, Resource};
use crate::store::{Error, Row, Tx, args};

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
    /// The newest failure that still stands.
    pub last_error: Option<LastError>,
    /// What a person does next, in plain words.
    pub what_to_do: String,
}

/// How a resource of a link stands.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "LinkResource")]
pub struct ResourceView {
    /// The resource.
    pub resource: String,
    /// `never_fetched`, `waiting`, `running`, `retrying`, `blocked` or `fetched`.
    pub state: &'static str,
    /// When a complete list was last fetched.
    pub last_fetched_at: Option<String>,
    /// Seconds since then.
    pub age_seconds: Option<u64>,
    /// When Belvo collected the newest record.
    pub last_collected_at: Option<String>,
    /// Records in the last complete list.
    pub item_count: Option<i64>,
    /// What the last webhook counted.
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

/// At most `limit` links by id, from after the id `after` on.
///
/// # Errors
/// [`Error::Database`].
pub fn list(tx: &Tx<'_>, filter: &Filter, after: &str, limit: usize, now: Timestamp) -> Result<Vec<View>, Error> {
    // Each wish is a condition of its own, so that its index is used.
    let mut sql = format!("SELECT {COLUMNS} FROM links WHERE link_id > $1");
    if filter.external_id.is_some() {
        sql.push_str(" AND external_id = $2");
    }
    if filter.status.is_some() {
        sql.push_str(" AND status = $3");
    }
    sql.push_str(" ORDER BY link_id LIMIT $4");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = tx.all(&sql, args![after, filter.external_id.as_deref(), filter.status.as_deref(), limit], read)?;
    found.into_iter().map(|link| with_resources(tx, link, now)).collect()
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
        log_tag: belvo::log_tag(&link_id),
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
        what_to_do: String::new(),
    })
}

fn with_resources(tx: &Tx<'_>, mut link: View, now: Timestamp) -> Result<View, Error> {
    for resource in resources::ALL {
        link.resources.push(read_resource(tx, &link.link_id, resource, now)?);
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
    let advice = advice(&link);
    link.is_paused = advice.needs_person || link.paused_reason.is_some();
    link.what_to_do = advice.text;
    Ok(link)
}

fn read_resource(tx: &Tx<'_>, link_id: &str, resource: &Resource, now: Timestamp) -> Result<ResourceView, Error> {
    let listed = "SELECT count(*), max(fetched_at) FROM link_snapshots WHERE link_id = $1 AND resource = $2";
    let listed = tx.one(listed, args![link_id, resource.name], |row| Ok((row.int(0)?, row.opt_at(1)?)))?;
    let (lists, latest) = listed.unwrap_or_default();
    let count = "SELECT item_count FROM link_snapshots WHERE link_id = $1 AND resource = $2 AND fetched_at = $3";
    let item_count = tx.one(count, args![link_id, resource.name, latest], |row| row.int(0))?;
    let view = tx.one(
        "SELECT due_at, lease, attempts, webhook_count, last_fetched_at, last_collected_at, last_error_code, last_error_at, \
         blocked_reason FROM refreshes WHERE link_id = $1 AND resource = $2",
        args![link_id, resource.name],
        |row| {
            let (due_at, lease, attempts) = (row.opt_at(0)?, row.opt_int(1)?, row.int(2)?);
            let (fetched_at, blocked_reason) = (row.opt_at(4)?, row.opt_text(8)?);
            let state = match (lease, due_at, &blocked_reason, fetched_at) {
                (Some(_), ..) => "running",
                (None, Some(_), ..) if attempts > 0 => "retrying",
                (None, Some(_), ..) => "waiting",
                (None, None, Some(_), _) => "blocked",
                (None, None, None, Some(_)) => "fetched",
                (None, None, None, None) => "never_fetched",
            };
            let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
            Ok(ResourceView {
                resource: resource.name.to_owned(),
                state,
                last_fetched_at: text(fetched_at),
                age_seconds: fetched_at.map(|at| now.since(at).as_secs()),
                last_collected_at: text(row.opt_at(5)?),
                item_count,
                webhook_count: row.opt_int(3)?,
                lists,
                due_at: text(due_at),
                attempts,
                last_error_code: row.opt_text(6)?,
                last_error_at: text(row.opt_at(7)?),
                blocked_reason,
            })
        },
    )?;
    Ok(view.unwrap_or_else(|| ResourceView {
        resource: resource.name.to_owned(),
        state: "never_fetched",
        last_fetched_at: None,
        age_seconds: None,
        last_collected_at: None,
        item_count,
        webhook_count: None,
        lists,
        due_at: None,
        attempts: 0,
        last_error_code: None,
        last_error_at: None,
        blocked_reason: None,
    }))
}

struct Advice {
    needs_person: bool,
    text: String,
}

/// What a person does about the link, the gravest matter first.
fn advice(link: &View) -> Advice {
    let person = |text: &str| Advice { needs_person: true, text: text.to_owned() };
    let nobody = |text: String| Advice { needs_person: false, text };
    if link.paused_reason.as_deref() == Some(PAUSED) {
        return nobody("nothing: an operator paused this link; resume it when it may be asked for again".to_owned());
    }
    match link.status.as_deref() {
        Some("invalid") => {
            return person(
                "the credentials are no longer good: let the user open the widget in update mode for this link",
            );
        }
        Some("token_required") => {
            return person(
                "the institution wants a new token: let the user open the widget in update mode for this link",
            );
        }
        Some("unconfirmed") => return person("the user never finished connecting: let them open the widget once more"),
        Some(DELETING) => return nobody("nothing: Belvo is deleting this link; its rows stay".to_owned()),
        Some(DELETED | NOT_FOUND) => {
            return person("Belvo no longer has this link; its rows stay. For new data, let the user connect again");
        }
        _ => {}
    }
    if let Some(reason) = &link.paused_reason {
        return person(&format!("the link is paused ({reason}): {}", belvo::advice(reason)));
    }
    if let Some(blocked) = link.resources.iter().find(|resource| resource.blocked_reason.is_some()) {
        let code = blocked.blocked_reason.as_deref().unwrap_or_default();
        return person(&format!("{} is blocked ({code}): {}", blocked.resource, belvo::advice(code)));
    }
    if let Some(retrying) = link.resources.iter().find(|resource| resource.state == "retrying") {
        let code = retrying.last_error_code.as_deref().unwrap_or("unknown");
        let due = retrying.due_at.as_deref().unwrap_or_default();
        let advice = belvo::advice(code);
        return nobody(format!("{} failed ({code}) and is tried again at {due}: {advice}", retrying.resource));
    }
    let is_waiting = |resource: &ResourceView| matches!(resource.state, "waiting" | "running");
    if link.resources.iter().any(is_waiting) {
        return nobody("nothing: a fetch is on its way".to_owned());
    }
    if link.resources.iter().any(|resource| resource.state == "never_fetched") {
        return nobody("refresh it: something of it was never fetched".to_owned());
    }
    nobody("nothing".to_owned())
}
