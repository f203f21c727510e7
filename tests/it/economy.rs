//! Requests are scarce: many links go in one where Belvo answers that rightly, and one link in each where it does not.

use std::time::{Duration, Instant};

use vinculo::link_id::LinkId;
use vinculo::operations::{Erasure, Order};
use vinculo::queue::{self, Trigger};
use vinculo::resources;
use vinculo::runs::Reason;
use vinculo::simulate::{self, Arrival, Fault, Limit, Resource};
use vinculo::store;
use vinculo::subject::Subject;

use crate::harness::{Flow, until_delivered};
use crate::scripted::{EMPLOYMENTS, OWNERS};
use crate::tables::{self, CLOCKS, Row, Tables};

/// What only webhooks tell.
pub(crate) const UNHEARD: [&str; 2] = ["last_webhook_at", "webhook_count"];

/// A Belvo that has `people` links of which no webhook tells.
pub(crate) async fn unheard(people: u32, limit: Option<Limit>, faults: &[&str], overrides: &[(&str, &str)]) -> Flow {
    let set = |settings: &mut simulate::Settings| {
        settings.limit = limit;
        settings.faults = faults.iter().map(|fault| Fault::parse(fault).unwrap()).collect();
    };
    let flow = Flow::start_with(people, set, overrides).await;
    flow.simulation.arm(Fault::parse("lost").unwrap());
    flow.simulation.connect_all();
    until_delivered(&flow.simulation).await;
    flow
}

/// Learns of every link, and asks for everything about each.
pub(crate) async fn sync(flow: &Flow) {
    sync_but(0, flow).await;
}

/// The same for all links but some.
async fn sync_but(skipped: usize, flow: &Flow) {
    let skipped: Vec<String> = flow.simulation.link_ids().into_iter().rev().take(skipped).collect();
    let daemon = &flow.running.daemon;
    daemon.links.sync().await.unwrap();
    let now = vinculo::clock::Timestamp::from_micros(0);
    let marked = daemon.store.write(move |tx| {
        // A single link was marked as soon as the list showed it, and may be fetched by now: once is enough.
        let is_marked = |link: &LinkId, resource: &resources::Resource| {
            let sql = "SELECT 1 FROM refreshes WHERE link_id = $1 AND resource = $2 AND marks > 0";
            Ok::<_, store::Error>(tx.one(sql, &[link.into(), resource.name.into()], |_| Ok(()))?.is_some())
        };
        let links = vinculo::links::all(tx)?;
        for link in links.iter().filter(|link| !skipped.contains(&link.to_string())) {
            for resource in resources::ALL {
                if !is_marked(link, resource)? {
                    queue::mark(tx, link, resource, Trigger::Operator, now)?;
                }
            }
        }
        Ok(links.len())
    });
    assert_eq!(marked.await.unwrap(), flow.simulation.link_ids().len());
    daemon.queue.announce();
    flow.running.until_idle().await;
}

/// Calls that listed records, per link and resource.
pub(crate) fn requests_per_list(flow: &Flow) -> f64 {
    let lists = flow.simulation.calls(EMPLOYMENTS, None) + flow.simulation.calls(OWNERS, None);
    lists as f64 / (2 * flow.simulation.link_ids().len()) as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_links_cost_a_tenth_of_a_request_each() {
    let flow = unheard(2_000, None, &[], &[("lake.sinks", "parquet")]).await;
    sync(&flow).await;
    let cost = requests_per_list(&flow);
    println!("{cost:.3} requests per link and resource");
    assert!(cost <= 0.1, "{cost:.3} requests per link and resource");
    assert_complete(&flow);
}

/// Every table has as many rows as there are. Cell by cell, smaller crowds are compared.
pub(crate) fn assert_complete(flow: &Flow) {
    let truth = flow.truth();
    let current = vinculo::publish::Lake::open(&flow.running.lake()).unwrap().current().unwrap();
    for table in ["links", "employments", "occupations", "salaries", "owners", "link_snapshots"] {
        assert_eq!(current.table(table).unwrap().rows, truth[table].len() as u64, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_empty_deleted_or_erased_spoil_no_answer_for_many() {
    // Long enough for two lists, short enough to wait for.
    let flow = unheard(200, None, &[], &[("belvo.confirm_after", "100ms")]).await;
    sync(&flow).await;
    let before = flow.running.tables();
    let links = flow.simulation.link_ids();
    let (deleted, erased) = (&links[20..25], &links[40..45]);
    assert!(before["link_snapshots"].iter().any(|row| row["item_count"].as_deref() == Some("0")), "no list is empty");
    for link in deleted {
        let url = format!("{}api/links/{link}/", flow.running.belvo_url());
        let call = reqwest::Client::new().delete(url).header("x-belvo-request-mode", "async");
        let call = call.basic_auth(simulate::SECRET_ID, Some(simulate::SECRET_PASSWORD));
        assert_eq!(call.send().await.unwrap().status(), 202);
    }
    flow.simulation.advance(simulate::Advance { days: 31, ..simulate::Advance::default() });
    flow.running.clock.advance(Duration::from_hours(31 * 24));
    // While everything is listed anew, some go.
    let daemon = &flow.running.daemon;
    let mark = |tx: &store::Tx<'_>| {
        let now = vinculo::clock::Timestamp::from_micros(0);
        vinculo::links::all(tx)?.iter().try_for_each(|link| {
            resources::ALL.iter().try_for_each(|resource| queue::mark(tx, link, resource, Trigger::Operator, now))
        })
    };
    daemon.store.write(mark).await.unwrap();
    daemon.queue.announce();
    let mut runs = Vec::new();
    for link in erased {
        let subject = Subject::Link(link.parse().unwrap());
        let order = Order::Erase(Erasure { subject, reason: "ticket 1".into(), is_remote: false });
        runs.push(daemon.operations.start(order, Reason::Command).await.unwrap());
    }
    let deadline = Instant::now() + Duration::from_mins(1);
    for run in runs {
        while daemon.operations.runs.get(&run).await.unwrap().unwrap().finished_at.is_none() {
            assert!(Instant::now() < deadline, "run {run} goes on and on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    flow.running.until_idle().await;
    daemon.links.sync().await.unwrap();
    flow.running.until_idle().await;

    let found = flow.running.tables();
    let of = |tables: &Tables, ids: &[String], is_theirs: bool| -> Tables {
        let is_wanted = |row: &&Row| ids.iter().any(|id| row["link_id"].as_deref() == Some(id)) == is_theirs;
        tables.iter().map(|(name, rows)| (name.clone(), rows.iter().filter(is_wanted).cloned().collect())).collect()
    };
    assert!(of(&found, erased, true).values().all(Vec::is_empty), "an erased link is back");
    let except = [&UNHEARD[..], &["known_from"]].concat();
    let current = |mut tables: Tables| {
        // What was listed when is not theirs alone.
        tables.retain(|name, _| !name.ends_with("_history") && name != "link_snapshots" && name != "rejected_records");
        tables
    };
    tables::assert_true(&current(of(&found, deleted, false)), &current(of(&flow.truth(), erased, false)), &except);
    let kept = current(of(&found, deleted, true));
    let was = current(of(&before, deleted, true));
    tables::assert_same(&kept, &was, &[&CLOCKS[..], &["status"]].concat());
    assert!(kept["links"].iter().all(|row| row["status"].as_deref() == Some("not_found")), "{:?}", kept["links"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_many_links_are_refused_each_is_asked_for_alone_and_nothing_is_lost() {
    for how in ["refuse", "forbid", "gate"] {
        let flow = unheard(100, None, &[&format!("link_in,how={how}")], &[]).await;
        sync(&flow).await;
        let cost = requests_per_list(&flow);
        assert!((1.0..=1.05).contains(&cost), "{how}: {cost:.3} requests per link and resource");
        tables::assert_true(&flow.running.tables(), &flow.truth(), &UNHEARD);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_for_many_links_are_found_out_and_the_rows_are_right() {
    for how in ["all", "nothing", "first", "no_link"] {
        // From the start, and only after the first answers were right.
        for skip in ["", ",skip=3"] {
            let flow = unheard(100, None, &[&format!("link_in,how={how}{skip}")], &[]).await;
            sync(&flow).await;
            tables::assert_true(&flow.running.tables(), &flow.truth(), &UNHEARD);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_whose_answer_is_bad_spoils_no_other() {
    for fault in ["status,code=500", "status,code=400", "foreign_record", "missing_key,key=link", "cut", "wrong_count"]
    {
        let flow = unheard(200, None, &[], &[]).await;
        let bad = flow.simulation.link_ids().remove(120);
        flow.simulation.arm(Fault::parse(&format!("{fault},link={bad},resource=employments")).unwrap());
        let started = Instant::now();
        let daemon = &flow.running.daemon;
        daemon.links.sync().await.unwrap();
        let now = vinculo::clock::Timestamp::from_micros(0);
        let marked = daemon.store.write(move |tx| {
            let links = vinculo::links::all(tx)?;
            links
                .iter()
                .try_for_each(|link| queue::mark(tx, link, &resources::employments::RESOURCE, Trigger::Operator, now))
        });
        marked.await.unwrap();
        daemon.queue.announce();
        let backlog = || async { daemon.store.read(queue::backlog).await.unwrap() };
        while backlog().await.pending > 1 {
            assert!(started.elapsed() < Duration::from_secs(20), "{fault}: {:?}", backlog().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!("{fault}: 199 others after {:?}", started.elapsed());
        flow.running.until_published().await;
        let jobs = |mut tables: Tables, but: &str| {
            tables.retain(|name, rows| {
                rows.retain(|row| row.get("link_id").is_none_or(|link| link.as_deref() != Some(but)));
                ["employments", "occupations", "salaries"].contains(&name.as_str())
            });
            tables
        };
        tables::assert_true(&jobs(flow.running.tables(), &bad), &jobs(flow.truth(), &bad), &UNHEARD);
        // Nor is it lost itself.
        flow.simulation.clear_faults();
        flow.running.clock.advance(Duration::from_hours(2));
        let now = vinculo::clock::Timestamp::from_micros(0);
        let id: LinkId = bad.parse().unwrap();
        let mark =
            move |tx: &store::Tx<'_>| queue::mark(tx, &id, &resources::employments::RESOURCE, Trigger::Operator, now);
        daemon.store.write(mark).await.unwrap();
        daemon.queue.announce();
        flow.running.until_idle().await;
        tables::assert_true(&jobs(flow.running.tables(), ""), &jobs(flow.truth(), ""), &["known_from"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_are_fetched_within_two_seconds_while_everything_else_waits() {
    let limit = Some(Limit { requests: 20, per: Duration::from_secs(2) });
    let budget = [("belvo.budget.requests", "20"), ("belvo.budget.per", "2s"), ("belvo.reserve", "0.05")];
    let flow = unheard(120, limit, &["link_in"], &budget).await;
    flow.simulation.clear_faults();
    flow.simulation.arm(Fault::parse("link_in").unwrap());
    let links = flow.simulation.link_ids();
    let started = Instant::now();
    let news = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut sent = Vec::new();
        for link in links.iter().rev().take(20) {
            sent.push((link.clone(), Instant::now()));
            assert!(flow.simulation.send_again(link, Resource::Owners, 1));
            tokio::time::sleep(Duration::from_millis(450)).await;
        }
        sent
    };
    let (sent, ()) = tokio::join!(news, sync_but(20, &flow));
    println!("everything took {:?}", started.elapsed());
    let arrivals = flow.simulation.arrivals();
    let mut waits: Vec<Duration> = sent
        .into_iter()
        .map(|(link, at)| {
            let is_its =
                |arrival: &&Arrival| arrival.at >= at && arrival.path == OWNERS && arrival.link.as_ref() == Some(&link);
            arrivals.iter().find(is_its).expect("it was fetched").at.duration_since(at)
        })
        .collect();
    waits.sort_unstable();
    println!("{waits:?}");
    assert!(waits[waits.len() * 95 / 100 - 1] <= Duration::from_secs(2), "{waits:?}");
    assert_eq!(flow.simulation.breaches(), 0);
}
