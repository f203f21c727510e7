//! `kill -9` at any moment: no acked webhook is lost, and the tables are those of an undisturbed run.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::net::TcpListener;
use vinculo::clock::{Clock, Timestamp};
use vinculo::publish::Lake;
use vinculo::simulate::{self, Simulation};

use crate::binary::{Site, names_in, run};
use crate::harness::{ANY_PORT, AUTHORIZATION, PEPPER, Serving, until_delivered};
use crate::tables::{self, Tables};

const KILLS: u32 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_kills_during_two_hundred_people_lose_nothing() {
    let seed = 20_261_123;
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let site = Site::new(listener.local_addr().unwrap(), &[("VINCULO_BELVO__WORKERS", "4")]);
    let simulation = Simulation::new(simulate::Settings {
        people: 200,
        webhook: Some(site.webhook_url().parse().unwrap()),
        webhook_authorization: AUTHORIZATION.into(),
        // From 5 to 15 seconds after the link, so that every kill meets some of it.
        webhook_latency: Duration::from_secs(10),
        webhook_backoff: Duration::from_millis(1_500),
        response_latency: Duration::from_millis(30),
        limit: None,
        pepper: Some(PEPPER.into()),
        ..simulate::Settings::default()
    });
    let _serving = Serving::start(&simulation, listener);
    simulation.connect_all();
    let anchor = (Instant::now(), Clock::system().now());

    let mut random = StdRng::seed_from_u64(seed);
    let mut kills_while_waiting = 0;
    for kill in 0..KILLS {
        let mut served = site.serve_without_waiting();
        // Every fifth is killed while it starts.
        if kill % 5 != 0 {
            served.until_ready();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..700))).await;
        kills_while_waiting += u32::from(simulation.outstanding_webhooks() > 0);
        served.kill();
    }
    assert!(kills_while_waiting >= KILLS / 2, "only {kills_while_waiting} kills met the run");
    let served = site.serve();
    until_delivered(&simulation).await;
    let truth = tables::from_truth(&simulation.truth());
    site.until_true(&|| truth.clone(), &[]);

    // Stopped, and all that it knows published: from here on nothing moves.
    assert_eq!(served.terminate(), Some(0));
    let published = run(&mut site.command(&["publish"]));
    assert_eq!(published.code, Some(0), "{}", published.err);
    let found = tables::from_duckdb(&site.lake());
    tables::assert_true(&found, &truth, &[]);
    tables::assert_keys_are_unique(&found);
    tables::assert_same(&tables::from_parquet(&site.lake()), &found, &[]);
    every_acked_webhook_was_followed_by_a_list(&simulation, &found, anchor);
    nothing_is_left_over(&site);

    // It opens again, and has nothing to do.
    let served = site.serve();
    let again = site.until_true(&|| truth.clone(), &[]);
    tables::assert_same(&again, &found, &[]);
    assert_eq!(served.terminate(), Some(0));
    assert!(!site.logs().contains("panic"), "{}", site.logs());
}

/// For each 200, a complete list of that link and resource began after the event came, and is published.
fn every_acked_webhook_was_followed_by_a_list(simulation: &Simulation, found: &Tables, anchor: (Instant, Timestamp)) {
    let paths = [("employments", "/api/br/employments/"), ("owners", "/api/owners/")];
    let (deliveries, arrivals) = (simulation.deliveries(), simulation.arrivals());
    let acked: Vec<_> = deliveries.iter().filter(|delivery| delivery.status == Some(200)).collect();
    assert!(acked.len() >= 400, "{} acks", acked.len());
    for delivery in acked {
        let (link, resource) = (delivery.link.as_deref().unwrap(), delivery.resource.unwrap().name());
        let (_, path) = paths.iter().find(|(name, _)| *name == resource).unwrap();
        let asked = arrivals.iter().any(|call| {
            let names = call.link.iter().chain(&call.together).any(|named| named == link);
            call.path == *path && names && call.at >= delivery.sent_at
        });
        assert!(asked, "{link} {resource} was acked and never asked for");
        let sent_at = (anchor.1 + delivery.sent_at.duration_since(anchor.0)).to_string();
        let listed = found["link_snapshots"].iter().any(|row| {
            row["link_id"].as_deref() == Some(link)
                && row["resource"].as_deref() == Some(resource)
                && row["fetched_at"].as_deref() > Some(sent_at.as_str())
        });
        assert!(listed, "{link} {resource} was acked at {sent_at} and no list after that is published");
    }
    println!(
        "{} attempts, {} calls, {} acked",
        deliveries.len(),
        arrivals.len(),
        deliveries.iter().filter(|delivery| delivery.status == Some(200)).count()
    );
}

fn nothing_is_left_over(site: &Site) {
    assert_eq!(names_in(&site.lake().join(".staging")), Vec::<String>::new());
    let current = Lake::open(&site.lake()).unwrap().current().unwrap();
    let snapshots = names_in(&site.lake().join("snapshots"));
    assert_eq!(snapshots.last(), Some(&format!("{:06}", current.snapshot)), "{snapshots:?}");
    for snapshot in &snapshots {
        let folder = site.lake().join("snapshots").join(snapshot);
        assert!(names_in(&folder).contains(&"manifest.json".to_owned()), "{snapshot} is not whole");
    }
    assert_eq!(names_in(&site.lake()), [".staging", "current", "snapshots", "vinculo.duckdb"]);
}
