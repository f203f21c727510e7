//! Belvo's limit is never passed in any window, counted where calls arrive, and a `Retry-After` is kept.

use std::time::{Duration, Instant};

use vinculo::simulate::{Fault, Limit};

use crate::harness::{Flow, until_delivered};
use crate::tables;

const REQUESTS: usize = 20;
const PER: Duration = Duration::from_secs(1);

async fn limited() -> Flow {
    let limit = Some(Limit { requests: REQUESTS, per: PER });
    let flow = Flow::start_with(
        100,
        |settings| settings.limit = limit,
        &[("belvo.budget.requests", "20"), ("belvo.budget.per", "1s")],
    )
    .await;
    // Each link wants requests of its own, so that there are enough of them.
    flow.simulation.arm(Fault::parse("link_in").unwrap());
    flow
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_links_never_pass_the_limit_in_any_window() {
    let flow = limited().await;
    let started = Instant::now();
    flow.simulation.connect_all();
    flow.until_idle().await;
    let took = started.elapsed();
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);

    let calls = no_window_has_more(&flow);
    assert!(calls >= 200, "{calls} calls");
    // The limit is used, not only kept.
    let least = PER * u32::try_from(calls / REQUESTS).unwrap();
    println!("{calls} calls in {took:?}; the limit alone would take {least:?}");
    assert!(took < least * 2, "{calls} calls took {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_made_before_retry_after_is_over() {
    let flow = limited().await;
    flow.simulation.arm(Fault::parse("status,code=429,retry_after=3,skip=30,times=1").unwrap());
    flow.simulation.connect_all();
    flow.until_idle().await;
    tables::assert_true(&flow.running.tables(), &flow.truth(), &[]);

    no_window_has_more(&flow);
    let arrivals = flow.simulation.arrivals();
    let pauses: Vec<(usize, Duration)> = arrivals
        .windows(2)
        .enumerate()
        .map(|(at, pair)| (at + 1, pair[1].at.duration_since(pair[0].at)))
        .filter(|(_, pause)| *pause > PER * 2)
        .collect();
    // Calls that were on their way when it was said are all that may still arrive.
    assert!(matches!(pauses[..], [(31..=47, pause)] if pause >= Duration::from_millis(2_900)), "{pauses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_keys_stop_all_calls_and_raise_the_alarm_while_webhooks_are_taken() {
    let flow =
        Flow::start_with(100, |settings| settings.faults = vec![Fault::parse("status,code=401").unwrap()], &[]).await;
    flow.simulation.connect_all();
    // Each is answered 200, or this fails.
    until_delivered(&flow.simulation).await;
    let url = format!("http://{}/readyz", flow.running.daemon.admin_address.unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = reqwest::get(&url).await.unwrap();
        let (status, told) = (answer.status().as_u16(), answer.text().await.unwrap());
        if told.contains("api_auth") {
            assert_eq!(status, 503, "{told}");
            break;
        }
        assert!(Instant::now() < deadline, "no alarm: {told}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let calls = flow.simulation.arrivals().len();
    assert!((1..=3).contains(&calls), "{calls} calls");
    let backlog = flow.running.daemon.store.read(vinculo::queue::backlog).await.unwrap();
    assert_eq!(backlog.pending, 200, "nothing is given up");
}

/// Fails when any window has more calls than the limit; gives the number of calls.
fn no_window_has_more(flow: &Flow) -> usize {
    assert_eq!(flow.simulation.breaches(), 0);
    // Two that arrive at once may have been written down in the other order.
    let mut arrivals = flow.simulation.arrivals();
    arrivals.sort_by_key(|arrival| arrival.at);
    for window in arrivals.windows(REQUESTS + 1) {
        let width = window[REQUESTS].at.duration_since(window[0].at);
        assert!(width >= PER, "{} calls in {width:?}", REQUESTS + 1);
    }
    arrivals.len()
}
