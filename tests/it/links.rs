//! The life of a link: it needs its user and works again, it is deleted, nobody knows it, nobody tells of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::json;
use vinculo::operations::{Links, Order};
use vinculo::publish::{self, Scope};
use vinculo::queue::{self, Trigger};
use vinculo::resources::Resource;
use vinculo::runs::Reason;
use vinculo::schedule::SHIPPED;
use vinculo::simulate::{Advance, Fault, Limit};

use crate::harness::{Flow, Running};
use crate::scripted::{Belvo, EMPLOYMENTS, OWNERS, page};
use crate::tables::{self, CLOCKS};

const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";

/// Status of a link, why it is paused, and how many of its refreshes wait for a person.
async fn standing(running: &Running, link: &str) -> (Option<String>, Option<String>, i64) {
    let sql = format!(
        "SELECT status, paused_reason, (SELECT count(*) FROM refreshes WHERE refreshes.link_id = links.link_id \
         AND blocked_reason IS NOT NULL) FROM links WHERE link_id = '{link}'"
    );
    let read = running
        .daemon
        .store
        .read(move |tx| tx.one(&sql, &[], |row| Ok((row.opt_text(0)?, row.opt_text(1)?, row.int(2)?))));
    read.await.unwrap().unwrap()
}

fn of(status: &str, reason: Option<&str>, blocked: i64) -> (Option<String>, Option<String>, i64) {
    (Some(status.to_owned()), reason.map(str::to_owned), blocked)
}

/// Plays an event about `link`, which changes the link at Belvo too.
async fn belvo_sends(flow: &Flow, link: &str, code: &str) {
    let url = format!("{}_sim/webhooks", flow.running.belvo_url());
    let sent =
        reqwest::Client::new().post(url).body(json!({"link": link, "code": code}).to_string()).send().await.unwrap();
    assert_eq!(sent.status(), 200);
    flow.until_idle().await;
}

/// A call of Belvo's API that the program itself does not make here.
async fn call(flow: &Flow, method: reqwest::Method, path: &str, body: &str) -> u16 {
    let url = format!("{}{path}", flow.running.belvo_url());
    let request = reqwest::Client::new().request(method, url).header("x-belvo-request-mode", "async");
    let request = request.basic_auth(vinculo::simulate::SECRET_ID, Some(vinculo::simulate::SECRET_PASSWORD));
    request.body(body.to_owned()).send().await.unwrap().status().as_u16()
}

fn webhook(kind: &str, code: &str, data: &str) -> String {
    format!(r#"{{"webhook_id":"1","webhook_type":"{kind}","webhook_code":"{code}","link_id":"{LINK}","data":{data}}}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_needs_its_user_is_paused_keeps_its_rows_and_goes_on_when_the_user_was_there() {
    let flow = Flow::start(3).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let link = flow.simulation.link_ids().remove(0);
    let calls = || flow.simulation.calls(EMPLOYMENTS, Some(&link));

    for (code, status) in [("invalid_credentials", "invalid"), ("token_required", "token_required")] {
        let before = flow.running.tables();
        belvo_sends(&flow, &link, code).await;
        assert_eq!(standing(&flow.running, &link).await, of(status, Some("link_needs_user"), 2));
        let now = flow.running.tables();
        tables::assert_same(&before, &now, &[&CLOCKS[..], &["status"]].concat());
        let links = now["links"].iter().filter(|row| row["status"].as_deref() == Some(status));
        assert_eq!(links.count(), 1);
        // Belvo's list says the same, so nothing changes.
        let calls_before = calls();
        flow.running.daemon.links.sync().await.unwrap();
        flow.until_idle().await;
        assert_eq!(standing(&flow.running, &link).await, of(status, Some("link_needs_user"), 2));
        assert_eq!(calls(), calls_before);

        let path = format!("api/links/{link}/");
        assert_eq!(call(&flow, reqwest::Method::PUT, &path, r#"{"password":"a-new-password"}"#).await, 200);
        flow.running.clock.advance(queue::SETTLE);
        flow.until_idle().await;
        assert_eq!(standing(&flow.running, &link).await, of("valid", None, 0));
        assert_eq!(calls(), calls_before + 1);
    }
    flow.running.daemon.links.sync().await.unwrap();
    flow.until_idle().await;
    tables::assert_true(&flow.running.tables(), &flow.truth(), &["known_from"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_link_keeps_its_rows_and_nothing_of_it_is_asked_for() {
    let flow = Flow::start(2).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let before = flow.running.tables();
    let link = flow.simulation.link_ids().remove(0);
    assert_eq!(call(&flow, reqwest::Method::DELETE, &format!("api/links/{link}/"), "").await, 202);
    flow.until_idle().await;
    assert_eq!(standing(&flow.running, &link).await, of("deleted", Some("link_deleted"), 2));
    let synced = flow.running.daemon.links.sync().await.unwrap();
    assert_eq!((synced.listed, synced.missing), (1, 0));
    flow.until_idle().await;
    assert_eq!(flow.simulation.calls(&format!("/api/links/{link}/"), Some(&link)), 1, "the deletion alone");
    tables::assert_same(&before, &flow.running.tables(), &[&CLOCKS[..], &["status"]].concat());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_is_gone_without_a_word_is_looked_up_alone_and_then_called_so() {
    let flow = Flow::start(5).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let link = flow.simulation.link_ids().remove(0);
    flow.simulation.arm(Fault::parse("lost").unwrap());
    assert_eq!(call(&flow, reqwest::Method::DELETE, &format!("api/links/{link}/"), "").await, 202);
    let synced = flow.running.daemon.links.sync().await.unwrap();
    assert_eq!((synced.listed, synced.new, synced.missing), (4, 0, 1));
    flow.until_idle().await;
    assert_eq!(standing(&flow.running, &link).await, of("not_found", Some("not_found"), 2));
    assert_eq!(flow.running.daemon.links.sync().await.unwrap().missing, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_link_is_looked_up_once_and_makes_no_storm() {
    let flow = Flow::start(1).await;
    for _ in 0..2 {
        for _ in 0..20 {
            let body = webhook("EMPLOYMENTS", "historical_update", r#"{"total_employments":1}"#);
            assert_eq!(flow.running.webhook(&body).await, 200);
        }
        flow.until_idle().await;
        assert_eq!(standing(&flow.running, LINK).await, of("not_found", Some("not_found"), 1));
        assert_eq!(flow.simulation.calls(&format!("/api/links/{LINK}/"), Some(LINK)), 1);
        let lists = flow.simulation.calls(EMPLOYMENTS, Some(LINK));
        assert!(lists <= 2, "{lists} lists");
    }
    let tables = flow.running.tables();
    assert_eq!(tables["links"][0]["status"].as_deref(), Some("not_found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_webhook_told_of_is_right_after_the_next_scheduled_run() {
    let jobs: Vec<_> =
        SHIPPED.into_iter().filter(|(name, _)| ["fetch-stale-links", "reconcile-links"].contains(name)).collect();
    let limit = |settings: &mut vinculo::simulate::Settings| {
        settings.limit = Some(Limit { requests: 80, per: Duration::from_secs(3) });
    };
    let settings = [
        ("belvo.budget.requests", "75"),
        ("belvo.budget.per", "3s"),
        ("belvo.confirm_after", "100ms"),
        // A snapshot of before the clock jumps is old at once, and must not go while it is read here.
        ("lake.keep_for", "48h"),
    ];
    let flow = Flow::start_with_jobs(&jobs, 2_000, limit, &settings).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    // Six days are told of as usual. On the seventh most links are read again, and nobody tells.
    flow.simulation.advance(Advance { days: 6, ..Advance::default() });
    flow.running.clock.advance(Duration::from_hours(6 * 24));
    flow.until_idle().await;
    flow.simulation.arm(Fault::parse("lost").unwrap());
    let read = || -> BTreeSet<_> {
        let truth = flow.truth();
        truth["links"].iter().map(|row| (row["link_id"].clone(), row["employments_collected_at"].clone())).collect()
    };
    let before = read();
    flow.simulation.advance(Advance { days: 1, seconds: 3 * 3_600, ..Advance::default() });
    let changed = read().difference(&before).count();
    assert!(changed >= 400, "{changed} links changed");
    flow.running.clock.advance(Duration::from_hours(27));
    // The clock is looked at every ten seconds.
    let deadline = Instant::now() + Duration::from_secs(50);
    loop {
        flow.until_idle().await;
        // From one snapshot: the jobs may bring another at any moment.
        let (found, truth) = (tables::from_parquet(&flow.running.lake()), flow.truth());
        let Some(difference) = tables::difference(&found, &truth, &["known_from", "webhook_count"]) else { break };
        assert!(Instant::now() < deadline, "{difference}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(flow.simulation.breaches(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconciliation_alone_finds_visits_that_no_webhook_told_of() {
    let flow = Flow::start(60).await;
    // A list for each link, so that they can be counted.
    flow.simulation.arm(Fault::parse("link_in").unwrap());
    flow.simulation.connect_all();
    flow.until_idle().await;
    flow.running.daemon.links.sync().await.unwrap();
    flow.until_idle().await;
    let lists = || flow.simulation.ledger().as_array().unwrap().len() as u64;
    let before = lists();
    // A second reconciliation finds nothing new, and nothing is published anew.
    let changes = flow.running.tables();
    let synced = flow.running.daemon.links.sync().await.unwrap();
    assert_eq!((synced.listed, synced.new, synced.changed, synced.missing), (60, 0, 0, 0));
    assert!(!flow.running.daemon.publisher.is_behind().unwrap());
    tables::assert_same(&changes, &flow.running.tables(), &[]);
    assert_eq!(lists(), before);

    flow.simulation.arm(Fault::parse("lost").unwrap());
    let told = flow.simulation.advance(Advance { days: 8, ..Advance::default() }) as u64;
    flow.running.clock.advance(Duration::from_hours(8 * 24));
    let synced = flow.running.daemon.links.sync().await.unwrap();
    assert!(synced.changed > 0);
    flow.until_idle().await;
    // Of 120 lists those that changed, and hardly another.
    let asked = lists() - before;
    assert!((told..=told + 2).contains(&asked), "{asked} lists, and {told} changed");
    // How many a webhook would have counted only it tells.
    tables::assert_true(&flow.running.tables(), &flow.truth(), &["known_from", "webhook_count"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_count_makes_nobody_ask_again_for_an_empty_list() {
    let belvo = Belvo::start().await;
    let link = format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#);
    belvo.has_link(LINK, link);
    belvo.lists(
        OWNERS,
        LINK,
        page(&[&format!(r#"{{"id":"1","link":"{LINK}","collected_at":"2026-11-01T00:00:00Z"}}"#)]),
    );
    let running = Running::start(belvo.address, &[]).await;
    assert_eq!(running.webhook(&webhook("OWNERS", "historical_update", r#"{"total_owners":1}"#)).await, 200);
    running.until_idle().await;
    belvo.lists(OWNERS, LINK, page(&[]));
    mark(&running, "owners", Trigger::Schedule).await;
    running.until_idle().await;
    assert_eq!(belvo.calls(OWNERS).len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_whose_list_lacks_a_row_ends_without_the_second_list_that_is_to_agree() {
    let job = |id: u32, code: &str| {
        format!(
            r#"{{"id":"{id}","link":"{LINK}","collected_at":"2026-11-01T00:00:00Z","created_at":"2026-11-01T00:00:00Z","start_date":"2020-01-01",
                "end_date":null,"employer_data":{{"name":"EMPRESA","code":"{code}","economic_activity":"6421-2 - BANCOS"}},"occupations":[],"salaries":[]}}"#
        )
    };
    let (first, second) = (job(1, "49430669"), job(2, "60746948"));
    let belvo = Belvo::start().await;
    belvo.has_link(LINK, format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#));
    belvo.lists(EMPLOYMENTS, LINK, page(&[&first, &second]));
    let running = Running::start(belvo.address, &[]).await;
    let told = webhook("EMPLOYMENTS", "historical_update", r#"{"total_employments":2}"#);
    assert_eq!(running.webhook(&told).await, 200);
    running.until_idle().await;

    belvo.lists(EMPLOYMENTS, LINK, page(&[&first]));
    let order = Order::Refresh { links: Links::LinkId(LINK.to_owned()), resources: Vec::new() };
    let operations = &running.daemon.operations;
    let id = operations.start(order, Reason::Api).await.unwrap();
    let following = async {
        let mut run = operations.runs.get(&id).await.unwrap().unwrap();
        while run.finished_at.is_none() {
            run = operations.runs.get_news(&run, Duration::from_mins(1)).await.unwrap().unwrap();
        }
        run
    };
    let run = tokio::time::timeout(Duration::from_mins(1), following).await.expect("it waits for the second list");
    assert_eq!((run.outcome.as_deref(), run.progress.done), (Some("done"), 2));
    // The row stays until then.
    assert_eq!(running.daemon.store.read(queue::backlog).await.unwrap().pending, 1);
    assert_eq!(running.tables()["employments"].len(), 2);
}

async fn mark(running: &Running, resource: &str, trigger: Trigger) {
    let resource = Resource::by_name(resource).unwrap();
    let mark = move |tx: &vinculo::store::Tx<'_>| {
        let now = tx.one("SELECT max(last_fetched_at) FROM refreshes", &[], |row| row.at(0))?.unwrap();
        queue::mark(tx, &LINK.parse().unwrap(), resource, trigger, now)
    };
    running.daemon.store.write(mark).await.unwrap();
    running.daemon.queue.announce();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_list_of_a_link_that_needs_its_user_is_confirmed_when_it_is_valid_again() {
    let job = format!(
        r#"{{"id":"1","link":"{LINK}","collected_at":"2026-11-01T00:00:00Z","created_at":"2026-11-01T00:00:00Z","start_date":"2020-01-01",
            "end_date":null,"employer_data":{{"name":"EMPRESA","code":"49430669","economic_activity":"6421-2 - BANCOS"}},"occupations":[],"salaries":[]}}"#
    );
    let object = |status: &str| format!(r#"{{"id":"{LINK}","status":"{status}","access_mode":"recurrent"}}"#);
    let belvo = Belvo::start().await;
    belvo.has_link(LINK, object("valid"));
    belvo.lists(EMPLOYMENTS, LINK, page(&[&job]));
    let running = Running::start(belvo.address, &[("belvo.confirm_after", "100ms")]).await;
    let told = |count: u32| webhook("EMPLOYMENTS", "historical_update", &format!(r#"{{"total_employments":{count}}}"#));
    assert_eq!(running.webhook(&told(1)).await, 200);
    running.until_idle().await;
    assert_eq!(running.tables()["employments"].len(), 1);

    belvo.has_link(LINK, object("token_required"));
    belvo.lists(EMPLOYMENTS, LINK, page(&[]));
    running.clock.advance(queue::SETTLE);
    assert_eq!(running.webhook(&webhook("LINK", "token_required", "{}")).await, 200);
    assert_eq!(running.webhook(&told(0)).await, 200);
    running.until_idle().await;
    assert_eq!(standing(&running, LINK).await, of("token_required", Some("link_needs_user"), 1));
    assert_eq!(running.tables()["employments"].len(), 1, "nobody says that the person has no jobs");

    running.clock.advance(Duration::from_secs(1));
    belvo.has_link(LINK, object("valid"));
    let lists = belvo.calls(EMPLOYMENTS).len();
    running.daemon.links.sync().await.unwrap();
    running.until_idle().await;
    assert_eq!(standing(&running, LINK).await, of("valid", None, 0));
    assert_eq!(belvo.calls(EMPLOYMENTS).len(), lists + 1, "the second list is asked for now");
    publish::publish_in_background(&running.daemon.publisher, Scope::Changed).await.unwrap();
    assert_eq!(
        running.tables()["employments"].len(),
        0,
        "two lists agree, a webhook counted none, and the link is valid"
    );
}
