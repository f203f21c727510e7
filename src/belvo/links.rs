//! Link objects, as Belvo lists them.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::client::Call;
use super::page::{Next, Page};
use super::{Class, Client, Code, Decision, Failure, Leave, Patience};
use crate::clock::Timestamp;
use crate::link_id::LinkId;

/// Where they are listed.
pub(crate) const PATH: &str = "/api/links/";

/// Most ids in one call: the longest address that is known to work.
pub const MOST_IDS: usize = 50;

/// A link, as far as it could be read. What has another type than it should is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkObject {
    /// Its id.
    pub id: LinkId,
    /// Name of the institution.
    pub institution: Option<String>,
    /// `single` or `recurrent`.
    pub access_mode: Option<String>,
    /// `valid`, `invalid`, `unconfirmed` or `token_required`, or a later word of Belvo's.
    pub status: Option<String>,
    /// Such as `7d`.
    pub refresh_rate: Option<String>,
    /// Such as `store` or `365d`.
    pub credentials_storage: Option<String>,
    /// Such as `365d`.
    pub stale_in: Option<String>,
    /// Our own id of its user, 3 to 256 characters.
    pub external_id: Option<String>,
    /// What Belvo fetches by itself.
    pub fetch_resources: Option<Vec<String>>,
    /// When the link was made.
    pub created_at: Option<Timestamp>,
    /// When Belvo last used it.
    pub last_accessed_at: Option<Timestamp>,
}

impl LinkObject {
    /// Reads one, leniently; `None` without an id that is a UUID, or when it is no object.
    pub fn read(json: &str) -> Option<Self> {
        let wire: Wire<'_> = serde_json::from_str(json).ok()?;
        let instant = |value: Option<&RawValue>| Timestamp::parse(&text(value)?);
        Some(Self {
            id: text(wire.id)?.parse().ok()?,
            institution: text(wire.institution),
            access_mode: text(wire.access_mode),
            status: text(wire.status),
            refresh_rate: text(wire.refresh_rate),
            credentials_storage: text(wire.credentials_storage),
            stale_in: text(wire.stale_in),
            external_id: text(wire.external_id).filter(|id| id.chars().count() <= 256),
            fetch_resources: wire.fetch_resources.and_then(|value| serde_json::from_str(value.get()).ok()),
            created_at: instant(wire.created_at),
            last_accessed_at: instant(wire.last_accessed_at),
        })
    }
}

/// A page of links.
#[derive(Debug)]
pub struct LinkPage {
    /// Those that could be read.
    pub links: Vec<LinkObject>,
    /// Items that are no link; they are left out of `links`.
    pub unreadable: usize,
    /// Whether there is another page.
    pub has_next: bool,
}

/// Page `page`, from 1, of all links.
///
/// # Errors
/// A [`Failure`].
pub async fn list_page(client: &Client, page: u32, page_size: u32, leave: Leave) -> Result<LinkPage, Failure> {
    let number = if page > 1 { format!("&page={page}") } else { String::new() };
    call(client, &format!("{PATH}?page_size={page_size}{number}"), leave).await
}

/// The links among `ids`, at most [`MOST_IDS`], that Belvo knows, asked for with `leave`.
///
/// # Errors
/// A [`Failure`]; `inconsistent_pages` when one page does not hold them.
pub async fn by_ids(client: &Client, ids: &[LinkId], leave: Leave) -> Result<Vec<LinkObject>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<&str> = ids.iter().map(LinkId::as_str).collect();
    let path = format!("{PATH}?id__in={}&page_size={}", list.join(","), ids.len().max(MOST_IDS));
    let page = call(client, &path, leave).await?;
    if page.has_next {
        return Err(inconsistent());
    }
    Ok(page.links)
}

/// The links that Belvo knows by our own id of their user.
///
/// # Errors
/// A [`Failure`]; `inconsistent_pages` when one page does not hold them.
pub async fn by_external_id(client: &Client, external_id: &str) -> Result<Vec<LinkObject>, Failure> {
    let id: String = url::form_urlencoded::byte_serialize(external_id.as_bytes()).collect();
    let page =
        call(client, &format!("{PATH}?external_id={id}&page_size={MOST_IDS}"), Leave::of(Class::Ordinary)).await?;
    if page.has_next {
        return Err(inconsistent());
    }
    Ok(page.links)
}

/// Lets Belvo delete a link and all that it holds of it.
///
/// # Errors
/// A [`Failure`].
pub async fn delete(client: &Client, id: &LinkId, patience: Patience) -> Result<Deletion, Failure> {
    let path = format!("{PATH}{id}/");
    // Belvo takes five of the other kind a minute.
    let call = Call { is_async: true, ..Call::delete(&path, &[202, 204]) };
    match client.call(&call, Leave::of(Class::Ordinary).waiting(patience)).await {
        Ok(answer) if answer.status == 204 => Ok(Deletion::Done),
        Ok(_) => Ok(Deletion::Accepted),
        Err(failure) if failure.is_belvos_not_found() => Ok(Deletion::Unknown),
        // Whose word it is nobody knows, and nobody has taken the wish.
        Err(failure) if failure.kind == Decision::Gone => Err(failure.of_whomever()),
        Err(failure) => Err(failure),
    }
}

/// What an ask to delete a link came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Belvo deletes it, and a `link_deleted` webhook will say so.
    Accepted,
    /// Belvo does not know it, maybe since long ago, or for a moment: it is to be asked once more.
    Unknown,
    /// It is gone.
    Done,
}

/// Lets Belvo read the institution again for `resources`, in its spelling; historical webhooks follow.
///
/// # Errors
/// A [`Failure`]; `link_cooling` with the time to wait when the link was refreshed minutes ago.
pub async fn refresh(client: &Client, id: &LinkId, resources: &[&str], patience: Patience) -> Result<(), Failure> {
    let path = format!("{PATH}{id}/refresh/");
    let body = serde_json::json!({ "fetch_resources": resources });
    let leave = Leave::of(Class::Ordinary).waiting(patience);
    client.call(&Call::post(&path, &body, &[200, 201, 202]), leave).await.map(drop)
}

/// Lets Belvo read the institution again for the resource at `endpoint` alone; a webhook follows.
///
/// # Errors
/// A [`Failure`].
pub async fn collect(client: &Client, id: &LinkId, endpoint: &str, patience: Patience) -> Result<(), Failure> {
    let body = serde_json::json!({ "link": id.as_str(), "save_data": true });
    let call = Call { is_async: true, ..Call::post(endpoint, &body, &[200, 201, 202]) };
    client.call(&call, Leave::of(Class::Ordinary).waiting(patience)).await.map(drop)
}

/// One link.
///
/// # Errors
/// A [`Failure`]; `not_found` when Belvo does not know it.
pub async fn get(client: &Client, id: &LinkId) -> Result<LinkObject, Failure> {
    let path = format!("{PATH}{id}/");
    let answer = client.get(&path, Leave::of(Class::LookUp)).await?;
    let text = std::str::from_utf8(&answer.body).map_err(|_| Failure::own(Code::NotJson, &path))?;
    LinkObject::read(text)
        .filter(|link| link.id == *id)
        .ok_or_else(|| Failure::own(Code::NotJson, &path).with_status(200))
}

/// Pages that lead on for ever.
pub(crate) fn inconsistent() -> Failure {
    Failure::own(Code::InconsistentPages, PATH)
}

/// What is said of a link that was asked for with others and was not among those that Belvo told of.
pub(crate) fn not_found() -> Failure {
    Failure::own(Code::NotFound, PATH)
}

async fn call(client: &Client, path: &str, leave: Leave) -> Result<LinkPage, Failure> {
    let answer = client.get(path, leave).await?;
    let page = Page::read(answer.body, client.base_url()).map_err(|code| Failure::own(code, path).with_status(200))?;
    if page.next == Next::Foreign {
        return Err(Failure::own(Code::ForeignNext, path).with_status(200));
    }
    let links: Vec<LinkObject> = page.items().filter_map(LinkObject::read).collect();
    Ok(LinkPage { unreadable: page.len() - links.len(), links, has_next: page.next == Next::More })
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    institution: Option<&'a RawValue>,
    #[serde(borrow, default)]
    access_mode: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refresh_rate: Option<&'a RawValue>,
    #[serde(borrow, default)]
    credentials_storage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stale_in: Option<&'a RawValue>,
    #[serde(borrow, default)]
    external_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    fetch_resources: Option<&'a RawValue>,
    #[serde(borrow, default)]
    created_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    last_accessed_at: Option<&'a RawValue>,
}

fn text(value: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(value?.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted::{self, Script};

    const ID: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

    #[test]
    fn every_field_but_the_id_may_be_absent_null_or_odd() {
        let link = LinkObject::read(&format!(
            r#"{{"id":"{ID}","institution":"inss_br_employment","access_mode":null,"status":7,"fetch_resources":["OWNERS"],
                "created_at":"2022-02-09T08:45:50.406032Z","last_accessed_at":"yesterday","new":{{}}}}"#
        ))
        .unwrap();
        assert_eq!((link.id.as_str(), link.institution.as_deref()), (ID, Some("inss_br_employment")));
        assert_eq!((link.access_mode, link.status, link.last_accessed_at), (None, None, None));
        assert_eq!(link.created_at, Timestamp::parse("2022-02-09T08:45:50.406032Z"));
        assert_eq!(link.fetch_resources, Some(vec!["OWNERS".to_owned()]));
        for wrong in ["{}", r#"{"id":"x"}"#, "[]", "7"] {
            assert_eq!(LinkObject::read(wrong), None);
        }
    }

    #[tokio::test]
    async fn links_are_listed_looked_up_and_told_from_what_is_none() {
        let script = Script::start(move |head| match head {
            head if head.starts_with(&format!("GET /api/links/{ID}/ ")) => {
                scripted::json(200, &format!(r#"{{"id":"{ID}"}}"#))
            }
            head if head.contains("id__in=") => {
                scripted::json(200, &format!(r#"{{"results":[{{"id":"{ID}"}}],"next":null}}"#))
            }
            head if head.contains("page=2") => scripted::json(200, r#"{"results":[7],"next":null}"#),
            _ => scripted::json(200, &format!(r#"{{"results":[{{"id":"{ID}"}}],"next":"?"}}"#)),
        })
        .await;
        let client = script.client();
        let id: LinkId = ID.parse().unwrap();
        assert_eq!(get(&client, &id).await.unwrap().id, id);
        let leave = Leave::of(Class::LookUp);
        assert_eq!(by_ids(&client, std::slice::from_ref(&id), leave).await.unwrap().len(), 1);
        assert!(list_page(&client, 1, 100, Leave::of(Class::Ordinary)).await.unwrap().has_next);
        let last = list_page(&client, 2, 100, Leave::of(Class::Ordinary)).await.unwrap();
        assert_eq!((last.links.len(), last.unreadable, last.has_next), (0, 1, false));
    }
}
