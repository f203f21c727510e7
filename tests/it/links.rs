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
use vinculo::simulate::{self, Advance, Fault, Limit};

use crate::harness::{Flow, Running, until_delivered};
use crate::scripted::{Answer, Belvo, EMPLOYMENTS, OWNERS, page};
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
    let request = request.basic_auth(simulate::SECRET_ID, Some(simulate::SECRET_PASSWORD));
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
async fn a_link_of_which_only_a_webhook_says_that_it_is_deleted_is_fetched_again_once_there_are_data() {
    let flow = Flow::start(1).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let link = flow.simulation.link_ids().remove(0);
    let calls = || flow.simulation.calls(EMPLOYMENTS, Some(&link));
    let before = calls();
    let event = webhook("LINK", "link_deleted", "{}").replace(LINK, &link);
    flow.running.webhooks(vec![vec![event]]).await;
    flow.until_idle().await;
    assert_eq!(standing(&flow.running, &link).await, of("deleted", Some("link_deleted"), 2));

    flow.running.clock.advance(queue::SETTLE);
    flow.simulation.send_again(&link, simulate::Resource::Employments, 1);
    flow.until_idle().await;
    assert_eq!(standing(&flow.running, &link).await, of("valid", None, 0));
    assert_eq!(calls(), before + 1);
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
    let limit = |settings: &mut simulate::Settings| {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_for_a_link_that_belvo_does_not_know_leaves_nothing_behind() {
    let belvo = Belvo::start().await;
    belvo.has_link(LINK, format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#));
    let running = Running::start(belvo.address, &[]).await;
    let order = |links: &[&str]| {
        let links = Links::LinkIds(links.iter().map(|&link| link.to_owned()).collect());
        Order::Refresh { links, resources: Vec::new() }
    };
    let operations = &running.daemon.operations;
    let tracked = async || {
        let tracked = running.daemon.store.read(vinculo::links::all).await.unwrap();
        tracked.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mistyped = "3f5d361d-dad6-45d4-a0bf-26d479766067";
    for links in [&[mistyped][..], &[LINK, mistyped]] {
        let refused = operations.start(order(links), Reason::Command).await;
        assert_eq!(refused.unwrap_err().code(), "no_such_link");
        assert!(tracked().await.is_empty(), "all of them or none");
    }
    operations.start(order(&[LINK, LINK]), Reason::Command).await.unwrap();
    running.until_idle().await;
    assert_eq!(tracked().await, [LINK]);
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

/// Waits until `is_so` for the state; what is waited for is told when it takes too long.
async fn until(running: &Running, what: &str, sql: &str) {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let sql = sql.to_owned();
        let found = running.daemon.store.read(move |tx| tx.one(&sql, &[], |row| row.int(0))).await.unwrap();
        if found == Some(1) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {found:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belvo_refuses_is_right_within_the_minute_in_which_it_refuses_no_more() {
    let owner = page(&[&format!(
        r#"{{"id":"1","link":"{LINK}","collected_at":"2026-11-01T00:00:00Z","internal_identification":null,
            "display_name":null,"email":null,"phone_number":null,"address":null}}"#
    )]);
    for (status, code, ours) in [
        (403, "access_to_resource_denied", "api_forbidden"),
        (400, "validation_error", "bad_request"),
        (400, "unsupported_operation", "resource_refused"),
        (404, "not_found", "not_found"),
    ] {
        let belvo = Belvo::start().await;
        belvo.has_link(LINK, format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#));
        belvo.lists(OWNERS, LINK, owner.clone());
        // As often as it takes until it was asked for in vain for minutes.
        for _ in 0..5 {
            let body = format!(r#"[{{"code":"{code}","message":"no"}}]"#);
            belvo.says_next(OWNERS, Answer { status, headers: Vec::new(), body });
        }
        let running = Running::start(belvo.address, &[]).await;
        assert_eq!(running.webhook(&webhook("OWNERS", "historical_update", r#"{"total_owners":1}"#)).await, 200);
        for attempt in 1..=5 {
            let waits = format!(
                "SELECT attempts = {attempt} AND lease IS NULL AND blocked_reason IS NULL AND last_error_code = '{ours}' \
                 AND due_at <= last_error_at + 60000000 FROM refreshes"
            );
            until(&running, &format!("{code}, try {attempt}"), &waits).await;
            if attempt < 5 {
                running.clock.advance(Duration::from_mins(1));
                running.daemon.queue.announce();
            }
        }
        let told = "SELECT last_error_code = '{ours}' AND paused_reason IS NULL FROM links".replace("{ours}", ours);
        until(&running, &format!("{code}: the link bears word of it"), &told).await;
        running.clock.advance(Duration::from_mins(1));
        running.daemon.queue.announce();
        running.until_idle().await;
        assert_eq!(running.tables()["owners"].len(), 1, "{code}");
        assert_eq!(belvo.calls(OWNERS).len(), 6, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_belvo_forgets_for_a_while_is_found_again_without_a_reconciliation() {
    let belvo = Belvo::start().await;
    belvo.has_link(LINK, format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#));
    belvo.lists(OWNERS, LINK, page(&[&format!(r#"{{"id":"1","link":"{LINK}"}}"#)]));
    let running = Running::start(belvo.address, &[]).await;
    let told = webhook("OWNERS", "historical_update", r#"{"total_owners":1}"#);
    assert_eq!(running.webhook(&told).await, 200);
    running.until_idle().await;

    // Neither its list nor the link itself, with others or alone.
    let unknown = || Answer { status: 404, headers: Vec::new(), body: r#"[{"code":"not_found"}]"#.into() };
    (0..3).for_each(|_| belvo.says_next(OWNERS, unknown()));
    belvo.says_next("/api/links/", Answer::ok(page(&[])));
    belvo.says_next(&format!("/api/links/{LINK}/"), unknown());
    running.clock.advance(queue::SETTLE);
    assert_eq!(running.webhook(&told).await, 200);
    for attempt in 1..=2 {
        let waits = format!("SELECT attempts = {attempt} AND lease IS NULL FROM refreshes");
        until(&running, &format!("try {attempt}"), &waits).await;
        running.clock.advance(Duration::from_mins(1));
        running.daemon.queue.announce();
    }
    let gone = "SELECT status = 'not_found' AND paused_reason = 'not_found' AND lookup_due_at IS NOT NULL FROM links";
    until(&running, "it is called gone, and asked for again", gone).await;
    running.clock.advance(Duration::from_mins(1));
    running.daemon.queue.announce();
    until(&running, "it is found again", "SELECT status = 'valid' AND paused_reason IS NULL FROM links").await;
    running.until_idle().await;
    assert_eq!(standing(&running, LINK).await, of("valid", None, 0));
    assert_eq!(belvo.calls(OWNERS).len(), 5, "and so is what the webhook told of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_unknown_links_take_a_small_part_of_the_budget_raise_an_alarm_and_hold_nobody_up() {
    const PER: Duration = Duration::from_secs(2);
    let budget = [("belvo.budget.requests", "40"), ("belvo.budget.per", "2s"), ("belvo.reserve", "0.05")];
    let flow = Flow::start_with(6, |_| {}, &budget).await;
    flow.simulation.connect(0, 5);
    flow.until_idle().await;
    let known = flow.simulation.link_ids();
    flow.running.clock.advance(queue::SETTLE);
    let begun = Instant::now();
    let event = |n: u32| {
        let link = format!("{n:08}-0000-4000-8000-000000000000");
        webhook("EMPLOYMENTS", "historical_update", r#"{"total_employments":1}"#).replace(LINK, &link)
    };
    flow.running.webhooks((0..30).map(|n| (10 * n..10 * (n + 1)).map(event).collect()).collect()).await;
    // Whoever is known is served at once, and whoever is new as soon as Belvo tells of it.
    for link in &known {
        assert!(flow.simulation.send_again(link, simulate::Resource::Owners, 1));
    }
    flow.simulation.connect(5, 1);
    let told = Instant::now();
    until_delivered(&flow.simulation).await;
    let new = flow.simulation.link_ids().into_iter().find(|link| !known.contains(link)).unwrap();
    let served = |link: &str| {
        let arrivals = flow.simulation.arrivals();
        let is_its = |path: &str, of: &&simulate::Arrival| {
            of.at >= told
                && of.path == path
                && (of.link.as_deref() == Some(link) || of.together.iter().any(|id| id == link))
        };
        arrivals.iter().find(|of| is_its(OWNERS, of)).map(|of| of.at)
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut late = Vec::new();
    for link in known.iter().chain([&new]) {
        let at = loop {
            if let Some(at) = served(link) {
                break at;
            }
            assert!(Instant::now() < deadline, "{link} is never served");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        late.push(at.duration_since(told));
    }
    println!("served after {late:?}");
    assert!(late[..5].iter().all(|late| *late <= Duration::from_secs(2)), "{late:?}");
    assert!(late[5] <= Duration::from_secs(8), "{late:?}");
    // What is unknown goes on being asked for, at its pace.
    let is_about_unknown = |of: &simulate::Arrival| {
        let is_unknown = |link: &String| link.ends_with("-0000-4000-8000-000000000000");
        of.path.starts_with("/api/links/") || of.link.iter().chain(&of.together).any(is_unknown)
    };
    let about_unknown = || -> Vec<Instant> {
        let arrivals = flow.simulation.arrivals().into_iter().filter(|of| of.at >= begun && is_about_unknown(of));
        arrivals.map(|of| of.at).collect()
    };
    while about_unknown().len() < 15 {
        assert!(Instant::now() < deadline, "they are looked up: {:?}", about_unknown().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let at = about_unknown();
    for window in at.windows(5) {
        // But for how long each was on its way.
        assert!(window[4].duration_since(window[0]) >= PER * 9 / 10, "more than a tenth of the budget: {at:?}");
    }
    flow.running.clock.advance(Duration::from_secs(61));
    until(&flow.running, "the alarm", "SELECT count(*) = 1 FROM failures WHERE code = 'unknown_links'").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_state_never_holds_simulated_and_real_links() {
    // A Belvo that does not say that it is simulated, and a state that knows one that does.
    let belvo = Belvo::start().await;
    belvo.has_link(LINK, format!(r#"{{"id":"{LINK}","status":"valid","access_mode":"recurrent"}}"#));
    let owner = format!(r#"{{"id":"1","link":"{LINK}","collected_at":"2026-11-01T00:00:00Z"}}"#);
    belvo.lists(OWNERS, LINK, page(&[&owner]));
    let running = Running::start(belvo.address, &[]).await;
    let note = "INSERT INTO meta (name, value) VALUES ('is_simulated', 'true')";
    running.daemon.store.write(move |tx| tx.execute(note, &[])).await.unwrap();
    assert_eq!(running.webhook(&webhook("OWNERS", "historical_update", r#"{"total_owners":1}"#)).await, 200);
    let refused =
        "SELECT count(*) = 1 FROM refreshes WHERE last_error_code = 'simulated_mismatch' AND last_fetched_at IS NULL";
    until(&running, "the list is refused", refused).await;
    assert_eq!(running.daemon.links.sync().await.unwrap_err().code(), "simulated_mismatch");
    let url = format!("http://{}/readyz", running.daemon.admin_address.unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reqwest::get(&url).await.unwrap().text().await.unwrap().contains("simulated_mismatch") {
        assert!(Instant::now() < deadline, "no problem is raised");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = "SELECT (SELECT count(*) FROM records) + (SELECT count(*) FROM link_snapshots) \
         + (SELECT count(*) FROM links WHERE looked_up_at IS NOT NULL) = 0";
    until(&running, "nothing is kept", kept).await;
}
