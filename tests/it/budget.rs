//! The budget of requests is used, not only kept. `make test` runs these alone: whatever else the machine does takes
//! away from what is measured here.

use std::time::{Duration, Instant};

use vinculo::simulate::{Arrival, Limit};

use crate::economy::{UNHEARD, assert_complete, requests_per_list, sync, unheard};
use crate::harness::Flow;
use crate::tables;

const REQUESTS: usize = 40;
const PER: Duration = Duration::from_secs(4);

/// The part of the budget that was used while work waited, and the calls; fails when any window had more.
fn use_of_the_budget(arrivals: &[Arrival]) -> (f64, usize) {
    let mut at: Vec<Instant> = arrivals.iter().map(|arrival| arrival.at).collect();
    at.sort_unstable();
    for window in at.windows(REQUESTS + 1) {
        let width = window[REQUESTS].duration_since(window[0]);
        assert!(width >= PER, "{} calls in {width:?}", REQUESTS + 1);
    }
    let busy = at.last().unwrap().duration_since(at[0]).as_secs_f64();
    (at.len() as f64 / (REQUESTS as f64 * busy / PER.as_secs_f64()), at.len())
}

/// One answer in fifty asks for patience.
const ONE_IN_FIFTY: &str = "status,code=429,share=0.02,retry_after=1";

/// Syncs `people` under the limit, and holds the calls against it as they arrived.
async fn sync_under_the_limit(people: u32, faults: &[&str]) -> Flow {
    let limit = Some(Limit { requests: REQUESTS, per: PER });
    let budget = [("belvo.budget.requests", "40"), ("belvo.budget.per", "4s"), ("belvo.reserve", "0.0")];
    let flow = unheard(people, limit, faults, &budget).await;
    sync(&flow).await;
    assert_eq!(flow.simulation.breaches(), 0);
    let (part, calls) = use_of_the_budget(&flow.simulation.arrivals());
    let told = format!("{people} links, {faults:?}: {:.1} % of the budget in {calls} calls", part * 100.0);
    println!("{told}");
    assert!(part >= 0.95, "{told}");
    flow
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sync_uses_the_budget_and_never_exceeds_it() {
    assert_complete(&sync_under_the_limit(2_000, &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sync_uses_the_budget_while_belvo_asks_for_patience() {
    let flow = sync_under_the_limit(2_000, &[ONE_IN_FIFTY]).await;
    assert_complete(&flow);
    let cost = requests_per_list(&flow);
    assert!(cost <= 0.1, "{cost:.3} requests per link and resource");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_asked_for_one_by_one_are_whole_and_use_the_budget_too() {
    for faults in [&["link_in"][..], &["link_in", ONE_IN_FIFTY]] {
        let flow = sync_under_the_limit(80, faults).await;
        tables::assert_true(&flow.running.tables(), &flow.truth(), &UNHEARD);
    }
}
