//! What asks Belvo about links.
//!
//! *Takes* the client, the state and the queue. *Gives* a [`Directory`] of them, and whether Belvo knows the links that
//! somebody named. *Not here*: what else a directory does, which is the lookups of new links, in `lookup.rs`, and the
//! comparison with Belvo's whole list, in `reconcile.rs`.

use std::time::Duration;

use crate::belvo::links::{MOST_IDS, by_ids, get};
use crate::belvo::{Class, Client, Decision, Leave};
use crate::clock::Clock;
use crate::link_id::LinkId;
use crate::queue::Queue;
use crate::store::Store;

/// Whoever names links by hand waits so long for Belvo to say whether it knows them.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);

/// Asks Belvo about links: about those that somebody names, about tracked ones that are due, and for the whole list.
#[derive(Clone)]
pub struct Directory {
    pub(super) client: Client,
    pub(super) store: Store,
    pub(super) queue: Queue,
    pub(super) clock: Clock,
}

impl Directory {
    /// A directory that asks `client`.
    pub fn new(client: Client, store: Store, queue: Queue, clock: Clock) -> Self {
        Self { client, store, queue, clock }
    }

    /// Whether Belvo says that it does not know one of these links. While it says nothing, or something else, nobody
    /// can tell.
    pub async fn is_any_unknown(&self, ids: &[LinkId]) -> bool {
        let asking = async {
            for some in ids.chunks(MOST_IDS) {
                let told = match some {
                    // The question that follows says it all.
                    [_] => Vec::new(),
                    many => by_ids(&self.client, many, Leave::of(Class::LookUp)).await.unwrap_or_default(),
                };
                // What a list lacks is there for all that, where Belvo does not take lists of ids.
                for id in some.iter().filter(|id| told.iter().all(|link| link.id != **id)) {
                    let asked = get(&self.client, id).await;
                    if asked.is_err_and(|failure| failure.kind == Decision::Gone) {
                        return true;
                    }
                }
            }
            false
        };
        tokio::time::timeout(KNOWN_WITHIN, asking).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::clock::Timestamp;

    #[tokio::test]
    async fn a_link_is_unknown_when_belvo_says_so_and_not_when_it_says_nothing() {
        let id = |n: u32| -> LinkId { format!("{n:08}-0000-4000-8000-000000000000").parse().unwrap() };
        let script = Script::start(move |head| match head {
            head if head.contains("id__in=") => {
                scripted::json(200, &format!(r#"{{"results":[{{"id":"{}"}}],"next":null}}"#, id(4)))
            }
            head if head.contains(id(1).as_str()) => scripted::json(200, &format!(r#"{{"id":"{}"}}"#, id(1))),
            head if head.contains(id(2).as_str()) => scripted::json(404, r#"[{"code":"not_found"}]"#),
            _ => scripted::json(500, r#"[{"code":"unexpected_error"}]"#),
        })
        .await;
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("state.db")).unwrap();
        let clock = Clock::from_fn(|| Timestamp::from_micros(1_000_000));
        let queue = Queue::open(store.clone(), clock.clone()).await.unwrap();
        let directory = Directory::new(script.client(), store, queue, clock);
        for (numbers, is_unknown) in [
            (vec![], false),
            (vec![1], false),
            (vec![2], true),
            (vec![3], false),
            // Of the first it tells with others, of the second by itself alone, and of the third never.
            (vec![4, 1, 3], false),
            (vec![4, 1, 2, 3], true),
        ] {
            let ids: Vec<LinkId> = numbers.iter().copied().map(id).collect();
            assert_eq!(directory.is_any_unknown(&ids).await, is_unknown, "{numbers:?}");
        }
    }
}
