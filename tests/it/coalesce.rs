//! Any number of webhooks before a fetch cost one fetch; one that comes after it began costs another.

use std::time::{Duration, Instant};

use serde_json::json;
use vinculo::simulate::Resource;

use crate::harness::Flow;
use crate::scripted::{EMPLOYMENTS, OWNERS};
use crate::tables;

/// Longer than webhooks for a link that was just fetched are gathered.
const SETTLED: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_copies_of_a_webhook_cost_two_fetches_at_most() {
    let flow = Flow::start(1).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let link = flow.simulation.link_ids().remove(0);
    let calls = |path: &str| flow.simulation.calls(path, Some(&link));
    assert_eq!([calls(EMPLOYMENTS), calls(OWNERS)], [1, 1]);

    flow.running.clock.advance(SETTLED);
    assert!(flow.simulation.send_again(&link, Resource::Employments, 1_000));
    flow.until_idle().await;

    assert_eq!(flow.simulation.webhooks().delivered, 1_002);
    let fetches = calls(EMPLOYMENTS) - 1;
    assert!((1..=2).contains(&fetches), "{fetches} fetches");
    assert_eq!(calls(OWNERS), 1, "nobody told of owners");
    println!("1,000 copies: {fetches} fetches");
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_body_after_its_fetch_began_costs_one_more() {
    let flow = Flow::start_with(1, |settings| settings.response_latency = Duration::from_millis(500), &[]).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let link = flow.simulation.link_ids().remove(0);
    let fetches = || flow.simulation.calls(EMPLOYMENTS, Some(&link)) - 1;
    let body = json!({
        "webhook_id": "03d1ca0d62db4f769488265d141047b7", "webhook_type": "EMPLOYMENTS", "process_type": "historical_update",
        "webhook_code": "historical_update", "link_id": link, "request_id": "4363b08b-51eb-4350-9c74-5df5ac92a7f6",
        "external_id": null, "data": {"total_employments": 1},
    })
    .to_string();

    flow.running.clock.advance(SETTLED);
    assert_eq!(flow.running.webhook(&body).await, 200);
    // Belvo sees the call as it begins, and answers half a second later.
    let deadline = Instant::now() + Duration::from_secs(30);
    while fetches() == 0 {
        assert!(Instant::now() < deadline, "it is never asked for");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(flow.running.webhook(&body).await, 200);
    flow.running.until_idle().await;
    assert_eq!(fetches(), 2, "the body came again while its fetch was on its way");

    flow.running.clock.advance(SETTLED);
    assert_eq!(flow.running.webhook(&body).await, 200);
    flow.running.until_idle().await;
    assert_eq!(fetches(), 3, "the body came again days later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_webhook_id_on_a_hundred_links_fetches_a_hundred_links() {
    let flow = Flow::start(100).await;
    flow.simulation.arm(vinculo::simulate::Fault::parse("same_ids").unwrap());
    flow.simulation.connect_all();
    flow.until_idle().await;

    for link in flow.simulation.link_ids() {
        for path in [EMPLOYMENTS, OWNERS] {
            // One link is in every request for many, to see that those are answered rightly.
            assert!(flow.simulation.calls(path, Some(&link)) >= 1, "{path} of {link}");
        }
    }
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);
}
