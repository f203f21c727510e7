//! One complete list of several links at once, split by link.
//!
//! *Takes* links, and a canary: a link that surely has records. *Gives* each link's own list, or why the answer is no
//! use. *Promises* the same as [`fetch`](super::fetch()), and more: an answer with a record of a link that was not
//! asked for, with a record that names no link, with another count than its own, or without the canary gives nothing at
//! all. The canary stands last, so that an answer which stops early lacks it. *Not here*: whether to ask this way
//! ([`super::trust`]).

use std::collections::HashMap;
use std::sync::Arc;

use super::{Pager, RawPages};
use crate::belvo::links::MOST_IDS;
use crate::belvo::{Class, Client, Failure, Permit};
use crate::json::Reader;
use crate::link_id::LinkId;
use crate::resources::Resource;

/// Most links in one request, the canary among them.
pub const MOST_LINKS: usize = MOST_IDS;

/// Bytes of one answer of this kind, over all pages: links with more are better asked for one by one.
const LARGEST: u64 = 16 << 20;

/// How several links are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `link` names the last, as the list documents it, and `link__in` names all.
    Beside,
    /// `link__in` names all.
    Alone,
}

/// The list of each link that was asked for, in that order, and what the whole of them was.
#[derive(Debug)]
pub struct Lists {
    /// One for each link.
    pub of_links: Vec<RawPages>,
    /// Records of all of them.
    pub records: usize,
    /// Bytes of all of them.
    pub size: usize,
}

/// Why several links came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Useless {
    /// The request itself failed.
    #[error(transparent)]
    Failed(Box<Failure>),
    /// What came is not what was asked for.
    #[error("an answer for many links that is not right ({0})")]
    Wrong(&'static str),
}

/// Lists `resource` for all `links`. The first request leaves with `permit`.
///
/// # Errors
/// [`Useless`]; then nothing can be said of any of the links.
pub async fn fetch_many(
    client: &Client,
    resource: &Resource,
    form: Form,
    links: &[LinkId],
    canary: &LinkId,
    class: Class,
    permit: Option<Permit>,
) -> Result<Lists, Useless> {
    let mut pager = Pager::new(client, resource, filter(form, links, canary), class, permit);
    // What takes Belvo too long wants fewer links, not smaller pages.
    pager.halvings = super::HALVINGS;
    pager.largest = pager.largest.min(LARGEST);
    let (pages, count) = pager.read().await.map_err(|failure| Useless::Failed(Box::new(failure)))?;
    split(&pages, count, links, canary)
}

/// The filter for `links` and the canary, which stands last.
pub(super) fn filter(form: Form, links: &[LinkId], canary: &LinkId) -> String {
    let ids: Vec<&str> = links.iter().filter(|link| *link != canary).chain([canary]).map(LinkId::as_str).collect();
    let ids = ids.join(",");
    match form {
        Form::Beside => format!("link={canary}&link__in={ids}"),
        Form::Alone => format!("link__in={ids}"),
    }
}

/// The lists of `links` in an answer for them and the canary.
fn split(pages: &RawPages, count: Option<u64>, links: &[LinkId], canary: &LinkId) -> Result<Lists, Useless> {
    let asked: HashMap<&str, usize> = links.iter().enumerate().map(|(at, link)| (link.as_str(), at)).collect();
    let mut places = vec![Vec::new(); links.len()];
    let (mut has_canary, mut size) = (false, 0);
    for (place, record) in pages.places.iter().zip(pages.records()) {
        size += record.len();
        let link = link_of(record).ok_or(Useless::Wrong("no_link"))?;
        let is_canary = link == *canary;
        has_canary |= is_canary;
        match asked.get(link.as_str()) {
            Some(at) => places[*at].push(*place),
            None if is_canary => {}
            None => return Err(Useless::Wrong("foreign_record")),
        }
    }
    if count.is_some_and(|count| count != pages.len() as u64) {
        return Err(Useless::Wrong("count"));
    }
    if !has_canary {
        return Err(Useless::Wrong("missing"));
    }
    let of_links = places.into_iter().map(|places| RawPages {
        started_at: pages.started_at,
        fetched_at: pages.fetched_at,
        pages: Arc::clone(&pages.pages),
        places,
    });
    Ok(Lists { of_links: of_links.collect(), records: pages.len(), size })
}

/// The link that a record names; `None` when it names none. What follows in the record is not read.
pub(super) fn link_of(record: &str) -> Option<LinkId> {
    let mut reader = Reader::new(record);
    if !record.starts_with('{') || !reader.enter().ok()? {
        return None;
    }
    loop {
        let name = reader.key().ok()?.span.of(record);
        let value = reader.any().ok()?.of(record);
        if name == "link" {
            return value.strip_prefix('"')?.strip_suffix('"')?.parse().ok();
        }
        if !reader.another(b'}').ok()? {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::Code;
    use crate::belvo::scripted::{self, Script, page_of};
    use crate::resources::employments;

    fn links() -> Vec<LinkId> {
        (1..=3).map(|n| format!("{n:08}-0000-4000-8000-000000000000").parse().unwrap()).collect()
    }

    fn record(id: u32, link: u32) -> String {
        format!(r#"{{"id":"{id}","link":"{link:08}-0000-4000-8000-000000000000","salaries":[]}}"#)
    }

    fn page(records: &[String], count: usize, next: &str) -> Vec<u8> {
        scripted::json(200, &format!(r#"{{"count":{count},"next":{next},"results":[{}]}}"#, records.join(",")))
    }

    async fn fetched(script: &Script, form: Form) -> Result<Lists, Useless> {
        let links = links();
        fetch_many(&script.client(), &employments::RESOURCE, form, &links[..2], &links[2], Class::Ordinary, None).await
    }

    #[tokio::test]
    async fn each_link_gets_its_own_records_and_the_canary_stands_last() {
        let script = Script::start(|_| page(&[record(1, 2), record(2, 3), record(3, 2)], 3, "null")).await;
        let lists = fetched(&script, Form::Beside).await.unwrap();
        let records: Vec<Vec<&str>> = lists.of_links.iter().map(|list| list.records().collect()).collect();
        assert_eq!(records, [vec![], vec![record(1, 2).as_str(), record(3, 2).as_str()]]);
        assert_eq!(lists.records, 3);
        let ids: Vec<String> = links().iter().map(ToString::to_string).collect();
        let asked = format!("GET /api/br/employments/?link={}&link__in={}&page_size=3 ", ids[2], ids.join(","));
        assert!(script.requests()[0].starts_with(&asked), "{}", script.requests()[0]);
        fetched(&script, Form::Alone).await.unwrap();
        assert!(script.requests()[1].starts_with("GET /api/br/employments/?link__in="));
    }

    #[tokio::test]
    async fn pages_of_many_links_are_read_until_two_readings_agree() {
        let script = Script::start(|head| match page_of(head) {
            1 => page(&[record(1, 1), record(2, 1), record(3, 2)], 4, r#""?""#),
            _ => page(&[record(4, 3)], 4, "null"),
        })
        .await;
        assert_eq!(fetched(&script, Form::Alone).await.unwrap().of_links[0].len(), 2);
        assert_eq!(script.pages(), [1, 2, 1, 2]);
    }

    #[tokio::test]
    async fn an_answer_that_is_not_right_gives_nothing() {
        let unnamed = r#"{"id":"9","link":null}"#.to_owned();
        for (records, count, why) in [
            (vec![record(1, 1), record(2, 3), record(3, 7)], 3, "foreign_record"),
            (vec![record(1, 1), record(2, 2)], 2, "missing"),
            (vec![], 0, "missing"),
            (vec![record(1, 3), unnamed], 2, "no_link"),
            (vec![record(1, 3), "7".to_owned()], 2, "no_link"),
            (vec![record(1, 3)], 5, "count"),
        ] {
            let script = Script::start(move |_| page(&records, count, "null")).await;
            let wrong = fetched(&script, Form::Alone).await.unwrap_err();
            assert!(matches!(wrong, Useless::Wrong(found) if found == why), "{wrong:?} is not {why}");
        }
        let script = Script::start(|_| scripted::json(400, r#"[{"code":"validation_error"}]"#)).await;
        let failed = fetched(&script, Form::Alone).await.unwrap_err();
        assert!(matches!(failed, Useless::Failed(failure) if failure.code == Code::BadRequest));
    }
}
