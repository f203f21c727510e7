//! One complete list of a link's resource, as Belvo gave it.
//!
//! *Takes* a link and a resource. *Gives* [`RawPages`]: whole and consistent, or a [`Failure`]. *Promises* that nothing
//! partial leaves here, that pages are counted by ourselves and an address in an answer is never called, and that
//! pages, rows and bytes are bounded. *Not here*: what a record means.
//!
//! [`many`] asks for several links in one request, [`trust`] decides whether Belvo answers that rightly.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::belvo::page::{Next, Page};
use crate::belvo::{Answer, Class, Client, Code, Failure, Leave, Permit};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::resources::Resource;

pub mod many;
pub mod trust;

/// Times that a list of several pages is read at most: pages shift while rows come and go.
const PASSES: usize = 3;
/// Pages beyond what the list's own count makes likely.
const PAGES_TO_SPARE: usize = 5;
/// Rows of one list.
const MOST_ROWS: usize = 200_000;
/// Smallest page asked for when Belvo took too long.
const SMALLEST_PAGE: u32 = 10;
/// Times that the page is halved for that.
const HALVINGS: u32 = 2;

/// A complete list, page by page.
pub struct RawPages {
    /// When it was begun: what Belvo learned later may be missing.
    pub started_at: Timestamp,
    /// When its last page was here.
    pub fetched_at: Timestamp,
    pages: Arc<Vec<Page>>,
    /// The list's records: page, and place on it.
    places: Vec<(usize, usize)>,
}

impl RawPages {
    /// A list that is all of these pages.
    fn whole(started_at: Timestamp, fetched_at: Timestamp, pages: Vec<Page>) -> Self {
        let places =
            pages.iter().enumerate().flat_map(|(number, page)| (0..page.len()).map(move |at| (number, at))).collect();
        Self { started_at, fetched_at, pages: Arc::new(pages), places }
    }

    /// The exact JSON text of each record, in Belvo's order.
    pub fn records(&self) -> impl Iterator<Item = &str> {
        self.places.iter().filter_map(|(page, at)| self.pages[*page].item(*at))
    }

    /// Records in the list.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of the records.
    pub fn size(&self) -> usize {
        self.records().map(str::len).sum()
    }

    /// Whether Belvo has no record, or none yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for RawPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawPages({} records, {} pages)", self.len(), self.pages.len())
    }
}

/// Lists the link's `resource`, as one of `class`. Its first request leaves with `permit` when there is one.
///
/// # Errors
/// A [`Failure`] whose `kind` is the next step.
pub async fn fetch(
    client: &Client,
    resource: &Resource,
    link_id: &LinkId,
    class: Class,
    permit: Option<Permit>,
) -> Result<RawPages, Failure> {
    Pager::new(client, resource, format!("link={link_id}"), class, permit).read().await.map(|(pages, _)| pages)
}

/// One reading of all pages.
enum Pass {
    /// To the end.
    Whole {
        /// The pages.
        pages: RawPages,
        /// What Belvo says the list counts.
        count: Option<u64>,
        /// What tells each record from the others, in order.
        identities: Vec<String>,
    },
    /// Rows moved while it was read.
    Shifted,
    /// Belvo took too long; the pages are smaller from now on.
    Smaller,
}

/// Reads a list page by page.
struct Pager<'a> {
    client: &'a Client,
    resource: &'a Resource,
    /// The filter, as it stands in the query.
    filter: String,
    class: Class,
    permit: Option<Permit>,
    page_size: u32,
    halvings: u32,
    /// Bytes of all pages.
    largest: u64,
}

impl<'a> Pager<'a> {
    fn new(client: &'a Client, resource: &'a Resource, filter: String, class: Class, permit: Option<Permit>) -> Self {
        let (page_size, largest) = (client.page_size(), client.max_body());
        Self { client, resource, filter, class, permit, page_size, halvings: 0, largest }
    }

    /// Reads until a reading is consistent; with it what Belvo says the list counts.
    async fn read(self) -> Result<(RawPages, Option<u64>), Failure> {
        let span = tracing::debug_span!("fetch", resource = self.resource.name, records = Empty, code = Empty);
        let read = self.passes().instrument(span.clone()).await;
        match &read {
            Ok((pages, _)) => span.record("records", pages.len()),
            Err(failure) => span.record("code", failure.code.name()),
        };
        read
    }

    async fn passes(mut self) -> Result<(RawPages, Option<u64>), Failure> {
        let mut before: Option<Vec<String>> = None;
        let mut passes = 0;
        while passes < PASSES {
            passes += 1;
            match self.pass().await? {
                Pass::Shifted => before = None,
                Pass::Smaller => (passes, before) = (0, None),
                // One page is one answer, so it is consistent in itself.
                Pass::Whole { pages, count, .. } if pages.pages.len() == 1 => return Ok((pages, count)),
                // While rows come and go between two pages, one can slip from a page not read yet to one that was. A
                // list that reads the same twice hides none.
                Pass::Whole { pages, count, identities } => {
                    if before.as_ref() == Some(&identities) {
                        return Ok((pages, count));
                    }
                    before = Some(identities);
                }
            }
        }
        Err(self.failure(Code::InconsistentPages))
    }

    async fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        let leave = match self.permit.take() {
            Some(permit) => Leave::with(self.class, permit),
            None => Leave::of(self.class),
        };
        self.client.get(path, leave).await
    }

    async fn pass(&mut self) -> Result<Pass, Failure> {
        let mut started_at = self.client.clock().now();
        let mut pages: Vec<Page> = Vec::new();
        let (mut identities, mut seen) = (Vec::new(), HashSet::new());
        let (mut count, mut size) = (None, 0);
        for number in 1.. {
            let path = self.path(number);
            let answer = match self.get(&path).await {
                Ok(answer) => answer,
                Err(failure) if failure.code == Code::NotFound && number > 1 => return Ok(Pass::Shifted),
                Err(failure) if failure.http_status == Some(408) && self.may_halve() => {
                    let wait = failure.delay(self.halvings, &mut rand::rng());
                    tokio::time::sleep(wait).await;
                    self.halvings += 1;
                    self.page_size = (self.page_size / 2).max(SMALLEST_PAGE);
                    return Ok(Pass::Smaller);
                }
                Err(failure) => return Err(failure),
            };
            let page =
                Page::read(answer.body, self.client.base_url()).map_err(|code| self.failure(code).with_status(200))?;
            if number == 1 {
                started_at = answer.started_at;
                count = page.count;
            }
            let fetched_at = answer.fetched_at;
            size += page.size();
            let (next, is_only) = (page.next, number == 1 && page.next == Next::None);
            if next == Next::Foreign {
                tracing::error!(
                    code = Code::ForeignNext.name(),
                    resource = self.resource.name,
                    "the next page lies on another host and is not followed"
                );
                return Err(self.failure(Code::ForeignNext).with_status(200));
            }
            if is_only {
                pages.push(page);
                return Ok(Pass::Whole { pages: RawPages::whole(started_at, fetched_at, pages), count, identities });
            }
            let known = identities.len();
            identities.extend(page.items().map(identity));
            let repeated = identities[known..].iter().filter(|id| !seen.insert((*id).clone())).count();
            let has_shifted = repeated > 0 || page.count != count;
            let says_nothing_new = repeated == page.len();
            pages.push(page);
            if next == Next::None {
                return Ok(if has_shifted {
                    Pass::Shifted
                } else {
                    Pass::Whole { pages: RawPages::whole(started_at, fetched_at, pages), count, identities }
                });
            }
            // A page with a next one but only known items means endless paging.
            if says_nothing_new {
                return Err(self.failure(Code::InconsistentPages).with_status(200));
            }
            if has_shifted {
                return Ok(Pass::Shifted);
            }
            if size as u64 > self.largest || identities.len() > MOST_ROWS {
                return Err(self.failure(Code::TooLarge).with_status(200));
            }
            if pages.len() >= self.most_pages(count, &pages) {
                return Err(self.failure(Code::InconsistentPages).with_status(200));
            }
        }
        Err(self.failure(Code::InconsistentPages))
    }

    /// The path of page `number`. The counter is ours, because Belvo's own `next` is malformed at times.
    fn path(&self, number: u32) -> String {
        let page = if number > 1 { format!("&page={number}") } else { String::new() };
        format!("{}?{}&page_size={}{page}", self.resource.endpoint, self.filter, self.page_size)
    }

    fn may_halve(&self) -> bool {
        self.halvings < HALVINGS && self.page_size > SMALLEST_PAGE
    }

    /// How many pages a list of `count` records can have, generously. Whoever answers may give fewer a page than it was
    /// asked for.
    fn most_pages(&self, count: Option<u64>, pages: &[Page]) -> usize {
        let rows = count.map_or(MOST_ROWS, |count| usize::try_from(count).unwrap_or(MOST_ROWS).min(MOST_ROWS));
        let asked_for = usize::try_from(self.page_size).unwrap_or(1).max(1);
        let given = pages.first().map_or(asked_for, |first| first.len().clamp(1, asked_for));
        rows.div_ceil(given) + PAGES_TO_SPARE
    }

    fn failure(&self, code: Code) -> Failure {
        Failure::own(code, self.resource.endpoint)
    }
}

/// What tells a record from others: its id, or all of it when it has none.
fn identity(record: &str) -> String {
    #[derive(Deserialize)]
    struct WithId<'a> {
        #[serde(borrow)]
        id: Option<&'a RawValue>,
    }
    let id = serde_json::from_str::<WithId<'_>>(record).ok().and_then(|record| record.id);
    id.map_or(record, RawValue::get).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::Decision;
    use crate::belvo::scripted::{self, Script, page_of};
    use crate::resources::owners;

    type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

    fn link() -> LinkId {
        "2f5d361d-dad6-45d4-a0bf-26d479766067".parse().unwrap()
    }

    async fn owners_of(script: &Script) -> Result<RawPages, Failure> {
        fetch(&script.client(), &owners::RESOURCE, &link(), Class::Ordinary, None).await
    }

    /// A page of records with these ids; `next` as JSON.
    fn page(ids: &[u32], count: usize, next: &str) -> Vec<u8> {
        let items: Vec<String> = ids.iter().map(|id| format!(r#"{{"id":"{id}"}}"#)).collect();
        scripted::json(200, &format!(r#"{{"count":{count},"next":{next},"results":[{}]}}"#, items.join(",")))
    }

    fn ids(pages: &RawPages) -> Vec<u32> {
        pages.records().map(|record| record.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn one_page_is_one_call() {
        let script = Script::start(|_| page(&[1, 2], 2, "null")).await;
        let pages = owners_of(&script).await.unwrap();
        assert_eq!((ids(&pages), pages.len()), (vec![1, 2], 2));
        assert!(pages.started_at <= pages.fetched_at);
        assert_eq!(format!("{pages:?}"), "RawPages(2 records, 1 pages)");
        assert!(script.requests()[0].starts_with(&format!("GET /api/owners/?link={}&page_size=3 ", link())));
    }

    #[tokio::test]
    async fn pages_are_counted_by_ourselves_and_read_until_two_readings_agree() {
        for next in [r#""/api/owners/?link=908page=2""#, r#""?page=77""#, "7", r#""""#] {
            let script = Script::start(move |head| match page_of(head) {
                1 => page(&[1, 2, 3], 7, next),
                2 => page(&[4, 5, 6], 7, next),
                _ => page(&[7], 7, "null"),
            })
            .await;
            assert_eq!(ids(&owners_of(&script).await.unwrap()), [1, 2, 3, 4, 5, 6, 7], "{next}");
            assert_eq!(script.pages(), [1, 2, 3, 1, 2, 3]);
        }
    }

    #[tokio::test]
    async fn a_list_may_come_in_smaller_pages_than_were_asked_for() {
        let script = Script::start(|head| {
            let number = page_of(head);
            page(&[number], 12, if number < 12 { r#""?""# } else { "null" })
        })
        .await;
        assert_eq!(owners_of(&script).await.unwrap().len(), 12);
        assert_eq!(script.pages().len(), 2 * 12, "read until two readings agree");
    }

    #[tokio::test]
    async fn a_count_that_is_false_stops_nothing() {
        let script =
            Script::start(
                |head| if page_of(head) == 1 { page(&[1, 2, 3], 1, r#""?""#) } else { page(&[4], 1, "null") },
            )
            .await;
        assert_eq!(ids(&owners_of(&script).await.unwrap()), [1, 2, 3, 4]);
        let script = Script::start(|_| page(&[1], 99, "null")).await;
        assert_eq!(ids(&owners_of(&script).await.unwrap()), [1]);
    }

    #[tokio::test]
    async fn a_row_that_slips_between_two_pages_is_found() {
        // Row 2 goes and row 9 comes after page 1 was read, so that row 4 moves onto page 1.
        let calls = std::sync::atomic::AtomicU32::new(0);
        let script =
            Script::start(move |head| match (calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst), page_of(head)) {
                (0, _) => page(&[1, 2, 3], 6, r#""?""#),
                (_, 1) => page(&[1, 3, 4], 6, r#""?""#),
                _ => page(&[5, 6, 9], 6, "null"),
            })
            .await;
        assert_eq!(ids(&owners_of(&script).await.unwrap()), [1, 3, 4, 5, 6, 9]);
        assert_eq!(script.pages(), [1, 2, 1, 2, 1, 2]);
    }

    #[tokio::test]
    async fn pages_that_never_make_one_list_are_an_error_within_three_readings() {
        let shifting = std::sync::atomic::AtomicU32::new(0);
        let cases: Vec<(Answer, Vec<u32>)> = vec![
            (Box::new(|_| page(&[1, 2, 3], 6, r#""?""#)), vec![1, 2]),
            (
                Box::new(
                    |head| if page_of(head) == 1 { page(&[1, 2, 3], 5, r#""?""#) } else { page(&[3, 4], 5, "null") },
                ),
                vec![1, 2, 1, 2, 1, 2],
            ),
            (
                Box::new(
                    |head| if page_of(head) == 1 { page(&[1, 2, 3], 5, r#""?""#) } else { page(&[4, 5], 6, "null") },
                ),
                vec![1, 2, 1, 2, 1, 2],
            ),
            (
                Box::new(|head| {
                    if page_of(head) == 1 {
                        page(&[1], 2, r#""?""#)
                    } else {
                        scripted::json(404, r#"[{"code":"not_found"}]"#)
                    }
                }),
                vec![1, 2, 1, 2, 1, 2],
            ),
            (Box::new(|head| page(&[page_of(head)], 2, r#""?""#)), vec![1, 2, 3, 4, 5, 6, 7]),
            (
                Box::new(move |head| {
                    let other = 10 + shifting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    if page_of(head) == 1 { page(&[1, 2, 3], 4, r#""?""#) } else { page(&[other], 4, "null") }
                }),
                vec![1, 2, 1, 2, 1, 2],
            ),
        ];
        for (answer, calls) in cases {
            let script = Script::start(answer).await;
            let failure = owners_of(&script).await.unwrap_err();
            assert_eq!((failure.code, failure.kind), (Code::InconsistentPages, Decision::Retry));
            assert_eq!(script.pages(), calls);
        }
    }

    #[tokio::test]
    async fn an_address_on_another_host_is_refused_and_never_called() {
        let canary = Script::start(|_| Vec::new()).await;
        let other = canary.client().base_url().join("api/owners/?page=2").unwrap();
        let script = Script::start(move |_| page(&[1], 2, &format!(r#""{other}""#))).await;
        assert_eq!(owners_of(&script).await.unwrap_err().code, Code::ForeignNext);
        assert!(canary.requests().is_empty());
        assert_eq!(script.requests().len(), 1);
    }

    #[tokio::test]
    async fn what_is_no_list_is_never_an_empty_one() {
        for (answer, code) in [
            (scripted::json(200, ""), Code::NotJson),
            (scripted::json(200, "<html></html>"), Code::NotJson),
            (scripted::json(200, "[]"), Code::NotAList),
            (scripted::json(200, r#"{"count":1,"results":[{"id":"#), Code::Truncated),
            (b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), Code::UnexpectedStatus),
            (scripted::json(404, r#"[{"code":"not_found"}]"#), Code::NotFound),
        ] {
            let script = Script::start(move |_| answer.clone()).await;
            assert_eq!(owners_of(&script).await.unwrap_err().code, code);
        }
    }

    #[tokio::test]
    async fn a_list_larger_than_the_limit_is_not_held() {
        let script = Script::start(|head| {
            let ids: Vec<u32> = (0..100).map(|id| page_of(head) * 1000 + id).collect();
            page(&ids, 900, r#""?""#)
        })
        .await;
        assert_eq!(owners_of(&script).await.unwrap_err().code, Code::TooLarge);
        assert!(script.requests().len() < 5);
    }
}
