//! Which record is which: the key that each record of a list has, and keeps for ever.
//!
//! *Takes* a list's records, and what is held of their link. *Gives* a key for each: that of the held record that has
//! its id, or had it once, or is like it; a new one for the rest. *Promises* that no two records of a list share a key,
//! and that neither the list's order nor ids that Belvo makes anew change it. *Not here*: what alike records share
//! ([`Resource::likeness`](crate::resources::Resource::likeness)).

use std::collections::{HashMap, HashSet, VecDeque};

use sha2::{Digest, Sha256};

use super::versions::Held;
use super::{LinkRecords, Record};
use crate::clock::Timestamp;
use crate::link_id::LinkId;
use crate::resources::Resource;
use crate::sensitive::hex;
use crate::store::{Error, args};

/// What is held of a link's resource.
pub(super) struct Known {
    /// Each record, by its key.
    pub(super) by_key: HashMap<String, Held>,
    /// The key of every id that a record ever had.
    pub(super) key_of_id: HashMap<String, String>,
}

impl LinkRecords<'_> {
    /// What is held already.
    pub(super) fn known(self) -> Result<Known, Error> {
        let Self { tx, link_id, resource } = self;
        let held = tx.all(
            "SELECT record_key, record_id, likeness, content_hash, version, collected_at, seen_started_at, seen_fetched_at, created_at \
             FROM records WHERE link_id = $1 AND resource = $2",
            args![link_id, resource.name],
            |row| {
                let held = Held {
                    record_id: row.text(1)?,
                    likeness: row.text(2)?,
                    hash: row.bytes(3)?.to_vec(),
                    version: row.int(4)?,
                    collected_at: row.opt_at(5)?,
                    seen_started_at: row.at(6)?,
                    seen_fetched_at: row.at(7)?,
                    created_at: row.opt_at(8)?,
                };
                Ok((row.text(0)?, held))
            },
        )?;
        let ids = tx.all(
            "SELECT record_id, record_key FROM record_ids WHERE link_id = $1 AND resource = $2",
            args![link_id, resource.name],
            |row| Ok((row.text(0)?, row.text(1)?)),
        )?;
        Ok(Known { by_key: held.into_iter().collect(), key_of_id: ids.into_iter().collect() })
    }
}

/// The records of a list that was fetched at `fetched_at`, in the order of their content; of several with one id the
/// newest.
pub(super) fn without_repeats(records: &[Record], fetched_at: Timestamp) -> Vec<&Record> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by(|a, b| {
        let newest_first = b.collected(fetched_at).cmp(&a.collected(fetched_at));
        a.id.cmp(&b.id).then(newest_first).then_with(|| a.content.cmp(&b.content))
    });
    sorted.dedup_by(|a, b| a.id == b.id);
    sorted.sort_by(|a, b| (&a.content, &a.id).cmp(&(&b.content, &b.id)));
    sorted
}

/// The key of each record: by its id, then by what alike records share, and a new one for the rest.
pub(super) fn identify(link_id: &LinkId, resource: &Resource, records: &[&Record], known: &Known) -> Vec<String> {
    let mut held: Vec<(&str, &Held)> = known.by_key.iter().map(|(key, held)| (key.as_str(), held)).collect();
    // What is gone gives its key to nobody while something that is alike still needs one.
    held.sort_unstable_by_key(|(key, held)| (held.is_gone(), *key));
    let mut free: HashSet<&str> = held.iter().map(|(key, _)| *key).collect();
    let (mut of_id, mut of_likeness) = (HashMap::<&str, Keys<'_>>::new(), HashMap::<&str, Keys<'_>>::new());
    let mut of_content = HashMap::<(&str, &[u8]), Keys<'_>>::new();
    for (key, held) in held {
        of_id.entry(&held.record_id).or_default().push_back(key);
        of_likeness.entry(&held.likeness).or_default().push_back(key);
        of_content.entry((&held.likeness, &held.hash)).or_default().push_back(key);
    }

    let mut keys: Vec<Option<&str>> =
        records.iter().map(|record| take(of_id.get_mut(&*record.id)?, &mut free)).collect();
    let rest = |keys: &[Option<&str>]| -> Vec<usize> { (0..keys.len()).filter(|at| keys[*at].is_none()).collect() };
    for at in rest(&keys) {
        let key = known.key_of_id.get(&records[at].id).map(String::as_str);
        keys[at] = key.filter(|key| free.remove(key));
    }
    for at in rest(&keys) {
        let Some(likeness) = &records[at].likeness else { continue };
        let alike = of_content.get_mut(&(likeness.as_str(), records[at].hash.as_slice()));
        keys[at] = alike.and_then(|alike| take(alike, &mut free));
    }
    for at in rest(&keys) {
        let Some(likeness) = &records[at].likeness else { continue };
        keys[at] = of_likeness.get_mut(likeness.as_str()).and_then(|alike| take(alike, &mut free));
    }

    let mut given: HashSet<String> = known.by_key.keys().cloned().collect();
    // Numbers that alike records have already need not be tried again.
    let mut next = HashMap::<&str, u32>::new();
    let mut new_key = |at: usize| {
        let record = records[at];
        let number = record.likeness.as_deref().map(|likeness| next.entry(likeness).or_default());
        let mut alone = 0;
        let number = number.unwrap_or(&mut alone);
        loop {
            let key = record_key(link_id, resource, record, *number);
            *number += 1;
            if given.insert(key.clone()) {
                return key;
            }
        }
    };
    keys.into_iter().enumerate().map(|(at, key)| key.map_or_else(|| new_key(at), str::to_owned)).collect()
}

/// Keys of what is alike in something, in order.
type Keys<'k> = VecDeque<&'k str>;

/// The first of `keys` that is free; it is no more.
fn take<'k>(keys: &mut Keys<'k>, free: &mut HashSet<&'k str>) -> Option<&'k str> {
    while let Some(key) = keys.pop_front() {
        if free.remove(key) {
            return Some(key);
        }
    }
    None
}

/// The key of the `n`-th among alike records, in hex: half of the SHA-256 of what they share. It holds nothing personal
/// and can be computed again from Belvo's answers alone.
fn record_key(link_id: &LinkId, resource: &Resource, record: &Record, n: u32) -> String {
    match &record.likeness {
        Some(likeness) => {
            let text = format!("{}\n{link_id}\n{likeness}\n{n}", resource.record_name);
            hex(&Sha256::digest(text.as_bytes())[..16])
        }
        None if n == 0 => record.id.clone(),
        None => format!("{}/{n}", record.id),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Timestamp;
    use crate::records::test_state::{LINK, TestState, job};
    use crate::resources::employments;

    #[tokio::test]
    async fn the_key_can_be_computed_from_belvos_answer() {
        let state = TestState::new().await;
        state.list(0, &[job(1, "99.000.042", "2020-01-01", "null", 0)]).await;
        let text = format!("employment\n{LINK}\n99000042\n2020-01-01\n0");
        assert_eq!(state.seen().await[0].0, hex(&Sha256::digest(text.as_bytes())[..16]));
    }

    #[tokio::test]
    async fn a_job_keeps_its_key_under_another_id_and_with_another_employer_or_start() {
        let state = TestState::new().await;
        state.list(0, &[job(1, "99000042", "2020-01-01", "null", 0)]).await;
        let key = state.seen().await[0].0.clone();
        // The same job under another id,
        state.list(10, &[job(2, "99000042", "2020-01-01", "null", 1)]).await;
        // then another start under that id, then another employer, then the first id again.
        state.list(20, &[job(2, "99000042", "2020-02-01", "null", 2)]).await;
        state.list(30, &[job(2, "99000077", "2020-02-01", "null", 3)]).await;
        state.list(40, &[job(1, "99000077", "2020-02-01", "null", 4)]).await;
        let seen = state.seen().await;
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].0.as_str(), seen[0].2), (key.as_str(), 3));
        // A job whose id, employer and start are all others is a new one.
        state.list(50, &[job(9, "99000099", "2024-01-01", "null", 5)]).await;
        assert_eq!(state.seen().await.len(), 2);
    }

    #[tokio::test]
    async fn alike_jobs_are_told_apart_whatever_their_order() {
        let jobs = [
            job(1, "99000042", "2020-01-01", "\"2020-12-31\"", 0),
            job(2, "99000042", "2020-01-01", "null", 0),
            job(3, "99000042", "2020-01-01", "\"2021-06-30\"", 0),
        ];
        let mut orders = Vec::new();
        for order in [[0, 1, 2], [2, 0, 1], [1, 2, 0]] {
            let state = TestState::new().await;
            state.list(0, &order.map(|at: usize| jobs[at].clone())).await;
            orders.push(state.seen().await);
        }
        assert_eq!(orders[0].len(), 3);
        assert!(orders.iter().all(|seen| *seen == orders[0]));
    }

    #[tokio::test]
    async fn twenty_thousand_records_are_told_apart_without_comparing_each_with_each() {
        let state = TestState::new().await;
        // Every tenth is alike in employer and start; later all ids are others, and the order is turned around.
        let jobs = |first_id: u32, skipped: u32, minute: u32| -> Vec<String> {
            let alike = |n: u32| format!("99{:06}", if n.is_multiple_of(10) { 0 } else { n });
            let jobs = (skipped..20_000).map(|n| {
                let end = format!("\"{:04}-01-01\"", 2000 + n % 1000);
                job(first_id + n, &alike(n), "2020-01-01", &end, minute)
            });
            jobs.collect()
        };
        assert_eq!(state.list(0, &jobs(0, 0, 0)).await.versions, 20_000);
        let before: HashSet<String> = state.seen().await.into_iter().map(|(key, ..)| key).collect();
        let mut turned = jobs(50_000, 0, 1);
        turned.reverse();
        let again = state.list(10, &turned).await;
        assert_eq!((again.versions, again.gone), (0, 0));
        assert_eq!(state.seen().await.into_iter().map(|(key, ..)| key).collect::<HashSet<_>>(), before);
        state.list(20, &jobs(50_000, 15_000, 2)).await;
        assert_eq!(state.list(80, &jobs(50_000, 15_000, 2)).await.gone, 15_000);
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Nothing,
        Reissued,
        /// The employer, the start and the end are others, under the same id.
        Corrected,
    }

    /// Lists of jobs as they came, and the keys that each job had after each of them.
    async fn keys(
        jobs: &[(u8, u8, u8)],
        lists: &[(Vec<Event>, u64)],
        with_reissues: bool,
        in_order: bool,
    ) -> Vec<Vec<String>> {
        let state = TestState::new().await;
        // The id of each job, and how often it was corrected.
        let mut known: Vec<(u32, u32)> = (0..jobs.len()).map(|at| (u32::try_from(at).unwrap(), 0)).collect();
        let mut next_id = 1_000;
        let mut found = Vec::new();
        for (nth, (events, seed)) in lists.iter().enumerate() {
            for (event, (id, corrections)) in events.iter().zip(&mut known) {
                match event {
                    Event::Reissued if with_reissues => {
                        (*id, next_id) = (next_id, next_id + 1);
                    }
                    Event::Corrected if nth > 0 => *corrections += 1,
                    _ => {}
                }
            }
            let mut listed: Vec<(u64, String)> = jobs
                .iter()
                .zip(&known)
                .enumerate()
                .map(|(at, (&(employer, start, end), &(id, corrections)))| {
                    let rank =
                        if in_order { at as u64 } else { (at as u64 + 1).wrapping_mul(seed | 1).rotate_left(17) };
                    (rank, listed_job(id, employer, start, end, corrections, at, rank))
                })
                .collect();
            listed.sort();
            let minutes = i64::try_from(nth).unwrap() * 10;
            state.list(minutes, &listed.into_iter().map(|(_, job)| job).collect::<Vec<_>>()).await;
            let seen = state.seen().await;
            let key = |id: u32| {
                let text = format!("{id:08}-0000-4000-8000-000000000000");
                seen.iter().find(|(_, record_id, _)| *record_id == text).map(|(key, _, _)| key.clone()).unwrap()
            };
            assert_eq!(seen.len(), jobs.len());
            found.push(known.iter().map(|(id, _)| key(*id)).collect());
        }
        found
    }

    /// A job whose lists are turned by `rank`.
    fn listed_job(id: u32, employer: u8, start: u8, end: u8, corrections: u32, at: usize, rank: u64) -> String {
        let employer =
            if corrections > 0 { format!("991{at:02}{corrections:03}") } else { format!("9900000{employer}") };
        let (start, end) = (2010 + u32::from(start) + corrections, 2030 + u32::from(end));
        let mut pays = [1_u32, 2, 3].map(|month| format!(r#"{{"month":"2020-{month:02}","base_amount":{month}.00}}"#));
        pays.rotate_left(usize::try_from(rank % 3).unwrap());
        format!(
            r#"{{"id":"{id:08}-0000-4000-8000-000000000000","link":"{LINK}","created_at":null,
            "collected_at":"2026-01-01T00:00:00.000Z","start_date":"{start}-01-01","end_date":"{end}-12-31",
            "employer_data":{{"code":"{employer}"}},"salaries":[{}]}}"#,
            pays.join(",")
        )
    }

    fn events(jobs: usize) -> impl Strategy<Value = (Vec<Event>, u64)> {
        let event = prop_oneof![3 => Just(Event::Nothing), 2 => Just(Event::Reissued), 1 => Just(Event::Corrected)];
        (proptest::collection::vec(event, jobs), any::<u64>())
    }

    /// Whether a held record is the listed one.
    type Way<'w> = &'w dyn Fn(&Record, &String, &Held) -> bool;

    /// What [`identify`] says, found out by comparing each with each.
    fn identify_slowly(link_id: &LinkId, records: &[&Record], known: &Known) -> Vec<String> {
        let mut keys: Vec<Option<String>> = vec![None; records.len()];
        let mut free: Vec<(&String, &Held)> = known.by_key.iter().collect();
        free.sort_by_key(|(key, held)| (held.is_gone(), *key));
        let by_id = |record: &Record, _: &String, held: &Held| held.record_id == record.id;
        let by_old_id = |record: &Record, key: &String, _: &Held| known.key_of_id.get(&record.id) == Some(key);
        let alike = |record: &Record, held: &Held| record.likeness.as_ref() == Some(&held.likeness);
        let by_content = |record: &Record, _: &String, held: &Held| alike(record, held) && held.hash == record.hash;
        let by_likeness = |record: &Record, _: &String, held: &Held| alike(record, held);
        let ways: [Way<'_>; 4] = [&by_id, &by_old_id, &by_content, &by_likeness];
        for is_wanted in ways {
            for (at, record) in records.iter().enumerate() {
                if keys[at].is_none()
                    && let Some(found) = free.iter().position(|(key, held)| is_wanted(record, key, held))
                {
                    keys[at] = Some(free.remove(found).0.clone());
                }
            }
        }
        let mut given: Vec<String> = known.by_key.keys().cloned().collect();
        let new_key = |record: &&Record| {
            let key = (0..).map(|number| record_key(link_id, &employments::RESOURCE, record, number));
            let key = key.into_iter().find(|key| !given.contains(key)).unwrap();
            given.push(key.clone());
            key
        };
        let mut new_key = new_key;
        keys.into_iter().zip(records).map(|(key, record)| key.unwrap_or_else(|| new_key(record))).collect()
    }

    /// A record of few ids, likenesses and contents.
    fn small_record() -> impl Strategy<Value = (u8, Option<u8>, u8)> {
        (0_u8..8, proptest::option::of(0_u8..3), 0_u8..3)
    }

    proptest! {
        #[test]
        fn records_get_the_keys_that_comparing_each_with_each_gives(
            held in proptest::collection::vec(small_record(), 0..10),
            old_ids in proptest::collection::vec((0_u8..12, 0_usize..10), 0..6),
            listed in proptest::collection::vec(small_record(), 0..10),
        ) {
            let link_id: LinkId = LINK.parse().unwrap();
            let at = Timestamp::from_micros(0);
            let record = |(id, likeness, content): (u8, Option<u8>, u8)| Record {
                id: format!("id {id}"),
                created_at: None,
                collected_at: None,
                likeness: likeness.map(|likeness| format!("like {likeness}")),
                content: content.to_string(),
                hash: [content; 32],
                body: Vec::new(),
            };
            let mut known = Known { by_key: HashMap::new(), key_of_id: HashMap::new() };
            for (nth, told) in held.into_iter().enumerate() {
                let Record { id, likeness, hash, .. } = record(told);
                let likeness = likeness.unwrap_or_default();
                let standing = Held {
                    record_id: id, likeness, hash: hash.to_vec(), version: 1, created_at: None, collected_at: None,
                    seen_started_at: at, seen_fetched_at: at,
                };
                // Some keys are those that records of this likeness would get.
                let key = if nth % 2 == 0 { format!("key {nth}") } else {
                    record_key(&link_id, &employments::RESOURCE, &record(told), u32::try_from(nth / 2).unwrap())
                };
                known.by_key.insert(key, standing);
            }
            let keys: Vec<String> = known.by_key.keys().cloned().collect();
            for (id, nth) in old_ids {
                if let Some(key) = keys.get(nth) {
                    known.key_of_id.insert(format!("id {id}"), key.clone());
                }
            }
            let listed: Vec<Record> = listed.into_iter().map(record).collect();
            let records = without_repeats(&listed, at);
            let found = identify(&link_id, &employments::RESOURCE, &records, &known);
            prop_assert_eq!(&found, &identify_slowly(&link_id, &records, &known));
            prop_assert_eq!(found.iter().collect::<HashSet<_>>().len(), found.len());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn keys_depend_neither_on_ids_nor_on_any_order(
            (jobs, lists) in proptest::collection::btree_set((0_u8..3, 0_u8..2, 0_u8..4), 1..6).prop_flat_map(|jobs| {
                let jobs: Vec<_> = jobs.into_iter().collect();
                let lists = proptest::collection::vec(events(jobs.len()), 1..5);
                (Just(jobs), lists)
            }),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let plain = runtime.block_on(keys(&jobs, &lists, false, true));
            let shuffled = runtime.block_on(keys(&jobs, &lists, true, false));
            prop_assert_eq!(&plain, &shuffled);
            // And a key is for ever.
            prop_assert!(plain.iter().all(|keys| keys == &plain[0]));
        }
    }
}
