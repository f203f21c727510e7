//! The dashboard over HTTP: who sees it, what it guards itself against, that it shows no person, and that what it says
//! is so. `tests/browser` looks at the same pages in a real browser.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use reqwest::header::{HeaderMap, SET_COOKIE};
use reqwest::redirect::Policy;
use serde_json::json;
use vinculo::operations::Order;
use vinculo::runs::Reason;
use vinculo::store::{Error, Tx, Value as Cell, WebhookPlace};

use crate::binary;
use crate::harness::{Flow, TOKEN};

const READER: &str = "it-token-that-looks-only";

/// Every page that needs no id.
const PAGES: [&str; 9] =
    ["/", "/links", "/runs", "/webhooks", "/schedule", "/errors", "/data", "/data/salaries", "/developer"];

/// A job whose target is the dashboard's measure.
const FETCH: (&str, &str) = (
    "fetch-stale-links",
    "schedule = \"*/15 * * * *\"\ntimezone = \"America/Sao_Paulo\"\naction = \"fetch\"\n[scope]\nolder_than = \"24h\"\n\
     resources = [\"employments\", \"owners\"]\n",
);

/// A browser without a window: it keeps cookies, and follows nothing by itself.
pub(crate) struct Browser {
    base: String,
    client: reqwest::Client,
    cookie: String,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    fn place(&self) -> &str {
        self.headers.get("location").map_or("", |place| place.to_str().unwrap())
    }

    /// What a form of this page would send along.
    fn signature(&self) -> &str {
        let after = self.text.split_once("name=\"signature\" value=\"").expect("no form on this page").1;
        after.split_once('"').unwrap().0
    }
}

impl Browser {
    fn of(flow: &Flow) -> Self {
        Self::at(flow.running.daemon.admin_address.unwrap())
    }

    fn at(admin: SocketAddr) -> Self {
        let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
        Self { base: format!("http://{admin}"), client, cookie: String::new() }
    }

    async fn signed_in(flow: &Flow, token: &str) -> Self {
        Self::signed_in_at(flow.running.daemon.admin_address.unwrap(), token).await
    }

    pub(crate) async fn signed_in_at(admin: SocketAddr, token: &str) -> Self {
        let mut browser = Self::at(admin);
        let answer = browser.post("/sign-in", &[("token", token), ("next", "/runs")], &[]).await;
        assert_eq!((answer.status, answer.place()), (303, "/runs"), "{}", answer.text);
        let cookie = answer.headers[SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("; HttpOnly") && cookie.contains("; SameSite=Strict"), "{cookie}");
        cookie.split(';').next().unwrap().clone_into(&mut browser.cookie);
        browser
    }

    /// How a sign-in with `token` is answered.
    pub(crate) async fn sign_in(&self, token: &str) -> u16 {
        self.post("/sign-in", &[("token", token)], &[]).await.status
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.client.get(format!("{}{path}", self.base)), &[]).await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Answer {
        let mut form = url_of_form();
        form.query_pairs_mut().extend_pairs(fields);
        let request = self.client.post(format!("{}{path}", self.base));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        self.send(request.body(form.query().unwrap_or_default().to_owned()), headers).await
    }

    async fn send(&self, mut request: reqwest::RequestBuilder, headers: &[(&str, &str)]) -> Answer {
        for (name, value) in headers.iter().chain(&[("cookie", self.cookie.as_str())]) {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, text: answer.text().await.unwrap() }
    }

    /// Presses the button whose form leads to `action`, on the page at `place`.
    async fn press(&self, place: &str, action: &str) -> Answer {
        let page = self.get(place).await;
        assert!(page.text.contains(&format!("action=\"{action}\"")), "no {action} on {place}: {}", page.text);
        self.post(action, &[("signature", page.signature())], &[]).await
    }

    /// Follows the run that an order led to, and gives its page when it has ended.
    async fn follow(&self, ordered: &Answer) -> String {
        assert!(ordered.status == 303 && ordered.place().starts_with("/runs/"), "{} {}", ordered.status, ordered.text);
        let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
        loop {
            let page = self.get(ordered.place()).await.text;
            if !page.contains("data-live") {
                return page;
            }
            assert!(std::time::Instant::now() < deadline, "the run goes on and on: {page}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

fn url_of_form() -> reqwest::Url {
    "http://form/".parse().unwrap()
}

async fn start(people: u32) -> Flow {
    let flow = Flow::start_with_jobs(&[FETCH], people, |_| {}, &[("admin.read_tokens", READER)]).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    flow
}

async fn count(flow: &Flow, sql: &'static str) -> i64 {
    let counted = flow.running.daemon.store.read(move |tx| tx.one(sql, &[], |row| row.int(0))).await;
    counted.unwrap().unwrap()
}

#[tokio::test]
async fn nothing_is_shown_without_a_session_or_a_token_and_every_answer_guards_itself() {
    let flow = start(1).await;
    let stranger = Browser::of(&flow);
    for path in PAGES.into_iter().chain(["/links/x", "/runs/1", "/webhooks/1"]) {
        let answer = stranger.get(path).await;
        assert!(answer.status == 303 && answer.place().starts_with("/sign-in"), "{path} {}", answer.status);
        assert!(answer.text.is_empty(), "{path} {}", answer.text);
    }
    // A program has no session, and a proxy may send a token of its own.
    for (token, status) in [(TOKEN, 200), ("a-token-of-a-proxy", 303)] {
        let request = stranger.client.get(format!("{}/", stranger.base));
        let answer = stranger.send(request, &[("authorization", &format!("Bearer {token}"))]).await;
        assert_eq!(answer.status, status);
    }
    let bearer = [("authorization", &*format!("Bearer {TOKEN}"))];
    let ordered = stranger.post("/links/x/refresh", &[], &bearer).await;
    assert!(ordered.status == 303 && ordered.place() == "/sign-in", "{}", ordered.status);
    let wrong = stranger.post("/sign-in", &[("token", "it-token-of-nobody")], &[]).await;
    assert!(wrong.status == 401 && !wrong.headers.contains_key(SET_COOKIE), "{}", wrong.status);
    assert_eq!(stranger.sign_in("it-token-of-nobody-else").await, 401);
    let tried = "SELECT count(*) FROM audit WHERE action = 'sign_in_failed' AND detail = '{\"door\":\"dashboard\"}'";
    assert_eq!(count(&flow, tried).await, 3, "each guess is a line");
    let elsewhere = stranger.post("/sign-in", &[("token", TOKEN), ("next", "//attacker.example")], &[]).await;
    assert_eq!(elsewhere.place(), "/");

    let browser = Browser::signed_in(&flow, TOKEN).await;
    for path in PAGES.into_iter().chain(["/sign-in", "/assets/style.css", "/links/unknown"]) {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, if path.ends_with("unknown") { 404 } else { 200 }, "{path}");
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        assert!(header("content-security-policy").contains("default-src 'none'"), "{path}");
        assert!(header("content-security-policy").contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(
            (header("x-frame-options"), header("x-content-type-options")),
            ("DENY".to_owned(), "nosniff".to_owned())
        );
        assert!(!answer.text.contains(TOKEN) && !answer.text.contains(" style=\""), "{path}");
    }
    let foreign = browser.client.get(format!("{}/", browser.base)).header("host", "attacker.example");
    assert_eq!(foreign.send().await.unwrap().status().as_u16(), 421);

    let page = browser.get("/").await;
    assert_eq!(browser.post("/sign-out", &[("signature", page.signature())], &[]).await.place(), "/sign-in");
    assert_eq!(browser.get("/").await.status, 303);
}

#[tokio::test]
async fn an_order_is_taken_only_from_our_own_form_and_from_a_role_that_may() {
    let flow = start(1).await;
    let id = flow.simulation.link_ids().remove(0);
    let (browser, other) = (Browser::signed_in(&flow, TOKEN).await, Browser::signed_in(&flow, TOKEN).await);
    let (place, action) = (format!("/links/{id}"), format!("/links/{id}/refresh"));
    let (own, foreign) = (browser.get(&place).await, other.get(&place).await);
    let before = count(&flow, "SELECT count(*) FROM runs").await;
    for (signature, headers) in [
        ("", vec![]),
        (foreign.signature(), vec![]),
        (own.signature(), vec![("origin", "https://attacker.example")]),
        (own.signature(), vec![("origin", "null")]),
        (own.signature(), vec![("sec-fetch-site", "cross-site")]),
    ] {
        let answer = browser.post(&action, &[("signature", signature)], &headers).await;
        assert_eq!(answer.status, 403, "{headers:?} {}", answer.text);
    }

    let reader = Browser::signed_in(&flow, READER).await;
    for path in PAGES.into_iter().chain([place.as_str()]) {
        let page = reader.get(path).await;
        assert_eq!(page.status, 200, "{path}");
        let forms: Vec<_> = page.text.split("<form").skip(1).filter(|form| form.contains("method=\"post\"")).collect();
        assert!(forms.len() == 1 && forms[0].contains("/sign-out"), "{path} lets a reader order: {forms:?}");
    }
    let signature = reader.get(&place).await.signature().to_owned();
    for action in [
        action.as_str(),
        &format!("/links/{id}/pause"),
        &format!("/links/{id}/resume"),
        &format!("/links/{id}/widget"),
        "/widget",
        "/webhooks/replay",
        "/webhooks/1/replay",
        "/schedule/fetch-stale-links/run",
        "/developer/connect",
        "/developer/scenario",
    ] {
        let answer = reader.post(action, &[("signature", &signature), ("external_id", "it-1")], &[]).await;
        assert_eq!(answer.status, 403, "{action}");
    }
    for (sql, expected) in [
        ("SELECT count(*) FROM runs", before),
        ("SELECT count(*) FROM audit", 0),
        ("SELECT count(*) FROM widget_sessions", 0),
        ("SELECT count(*) FROM links WHERE paused_reason IS NOT NULL", 0),
    ] {
        assert_eq!(count(&flow, sql).await, expected, "{sql}");
    }

    let ended = browser.follow(&browser.press(&place, &action).await).await;
    assert!(ended.contains(">done<") && ended.contains("2 / 2"), "{ended}");
    let ran = browser.press("/schedule", "/schedule/fetch-stale-links/run").await;
    assert!(browser.follow(&ran).await.contains(">done<"));
    let audit = "SELECT group_concat(detail, '\n') FROM audit";
    let audit = flow.running.daemon.store.read(move |tx| tx.one(audit, &[], |row| row.text(0))).await;
    let audit = audit.unwrap().unwrap();
    for told in ["\"admin.token\"", "POST /links/{link_id}/refresh", "link_hash", "\"job\":\"fetch-stale-links\""] {
        assert!(audit.contains(told), "{told} is not in {audit}");
    }
    assert!(!audit.contains(&id), "{audit}");
}

#[tokio::test]
async fn a_paused_link_is_left_alone_until_it_is_resumed() {
    let flow = start(2).await;
    let id = flow.simulation.link_ids().remove(0);
    let browser = Browser::signed_in(&flow, TOKEN).await;
    let place = format!("/links/{id}");
    assert_eq!(browser.press(&place, &format!("{place}/pause")).await.place(), place);
    let calls = flow.simulation.calls("/api/owners/", Some(&id));

    // Neither Belvo's news nor its `valid` ends what a person began.
    assert!(flow.simulation.send_again(&id, vinculo::simulate::Resource::Owners, 1));
    flow.simulation.wait_until_delivered().await;
    let operations = &flow.running.daemon.operations;
    let synced = operations.start(Order::SyncLinks, Reason::Api).await.unwrap();
    let mut run = operations.runs.get(&synced).await.unwrap().unwrap();
    while run.finished_at.is_none() {
        run = operations.runs.get_news(&run, std::time::Duration::from_secs(1)).await.unwrap().unwrap();
    }
    flow.until_idle().await;
    assert_eq!(flow.simulation.calls("/api/owners/", Some(&id)), calls);
    let page = browser.get(&place).await.text;
    assert!(page.contains(">paused<") && page.contains("an operator paused this link"), "{page}");
    assert!(browser.get("/").await.text.contains("paused by an operator"));

    assert_eq!(browser.press(&place, &format!("{place}/resume")).await.place(), place);
    flow.until_idle().await;
    assert_eq!(flow.simulation.calls("/api/owners/", Some(&id)), calls + 1);
    let page = browser.get(&place).await.text;
    assert!(page.contains(">working<") && page.contains(&format!("{place}/pause")), "{page}");
    // Resumed twice is told, and changes nothing.
    let signature = browser.get(&place).await.signature().to_owned();
    assert_eq!(browser.post(&format!("{place}/resume"), &[("signature", &signature)], &[]).await.status, 409);
}

#[tokio::test]
async fn no_page_shows_a_person_and_the_numbers_are_those_of_the_state() {
    let flow = start(20).await;
    quarantine(&flow).await;
    let browser = Browser::signed_in(&flow, TOKEN).await;
    let truth = flow.truth();
    let mut needles = BTreeSet::new();
    for (table, column) in [("links", "external_id"), ("employments", "employer_name"), ("salaries", "base_amount")] {
        needles.extend(truth[table].iter().filter_map(|row| row[column].clone()).filter(|value| value.len() > 5));
    }
    assert!(needles.len() > 60, "{}", needles.len());
    let ids = flow.simulation.link_ids();
    let own = ids.iter().map(|id| format!("/links/{id}"));
    let logged = (1..=41).map(|seq| format!("/webhooks/{seq}"));
    let mut pages = Vec::new();
    for path in PAGES.map(str::to_owned).into_iter().chain(own).chain(logged).chain(["/runs/1".to_owned()]) {
        let page = browser.get(&path).await;
        assert!(page.status == 200 || path == "/runs/1", "{path} {}", page.status);
        let shown = needles.iter().find(|needle| page.text.contains(needle.as_str()));
        assert!(shown.is_none(), "{shown:?} is on {path}");
        pages.push(page.text);
    }

    // An external id finds its link, and so does the link's own.
    let link = &truth["links"][0];
    let (id, external_id) = (link["link_id"].clone().unwrap(), link["external_id"].clone().unwrap());
    for sought in [&id, &external_id] {
        assert_eq!(browser.get(&format!("/links?q={sought}")).await.place(), format!("/links/{id}"), "{sought}");
    }
    assert!(browser.get("/links?q=nobody").await.text.contains("No tracked link has this id"));

    let overview = &pages[0];
    assert!(overview.contains("Needs attention") && overview.contains("1 is in the quarantine"), "{overview}");
    assert!(
        overview.contains("<p class=\"figure\">20</p>") && overview.contains("<p class=\"figure\">41</p>"),
        "{overview}"
    );
    // Calls are counted every other second.
    let calls = i64::try_from(flow.running.daemon.operations.client.budget().calls()).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while count(&flow, "SELECT coalesce(sum(calls), 0) FROM belvo_hours").await < calls {
        assert!(std::time::Instant::now() < deadline, "{calls} calls are never counted");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let overview = browser.get("/").await.text;
    assert!(calls > 0 && overview.contains(&format!("<p class=\"figure\">{calls}</p>")), "{calls} {overview}");
    let rows = truth["salaries"].len() as u64;
    let rows = vinculo::admin::status::grouped(rows);
    assert!(pages[6].contains(&format!(">{rows}</td>")), "{rows} {}", pages[6]);

    let portuguese = browser.client.get(format!("{}/", browser.base)).header("accept-language", "pt-BR,pt;q=0.9");
    let portuguese = browser.send(portuguese, &[]).await.text;
    assert!(portuguese.contains("lang=\"pt-BR\"") && portuguese.contains("Requer atenção"), "{portuguese}");
}

/// One webhook that is not understood.
async fn quarantine(flow: &Flow) {
    let id = flow.simulation.link_ids().remove(0);
    let body = format!(
        r#"{{"webhook_type":"PLANETS","webhook_code":"historical_update","link_id":"{id}","external_id":"us-it-1","data":{{"total_owners":1}}}}"#
    );
    assert_eq!(flow.running.webhook(&body).await, 200);
}

/// What was not understood is understood from now on: the reading is compiled in, so that the body is mended here.
async fn mend(flow: &Flow) {
    let mend = |tx: &Tx<'_>| {
        let read = "SELECT seq, link_id, received_at, body FROM webhooks WHERE outcome = 'quarantined'";
        let stored =
            tx.all(read, &[], |row| Ok((row.int(0)?, row.opt_text(1)?, row.int(2)?, row.bytes(3)?.to_vec())))?;
        for (seq, link_id, received_at, body) in stored {
            let place = WebhookPlace { link_id: link_id.as_deref(), received_at };
            let body = String::from_utf8(place.open(tx, &body)?.into_owned()).unwrap().replace("PLANETS", "OWNERS");
            let body = place.seal(tx, body.as_bytes())?;
            tx.execute("UPDATE webhooks SET body = $2 WHERE seq = $1", &[Cell::Int(seq), Cell::Bytes(&body)])?;
        }
        Ok::<_, Error>(())
    };
    flow.running.daemon.store.write(mend).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_page_is_sound_in_a_real_browser_and_does_what_its_buttons_say() {
    let Some(python) = std::env::var_os("VINCULO_BROWSER") else {
        eprintln!("SKIPPED: the browser; set VINCULO_BROWSER=$(scripts/browser-python.sh), as `make test` does");
        return;
    };
    let flow = start(60).await;
    // Something of everything: links that wait for their user, failures, a webhook that is not understood.
    let ids = flow.simulation.link_ids();
    for id in &ids[..4] {
        let expired = format!(r#"{{"webhook_type":"LINK","webhook_code":"invalid_credentials","link_id":"{id}"}}"#);
        assert_eq!(flow.running.webhook(&expired).await, 200);
    }
    quarantine(&flow).await;
    mend(&flow).await;
    let truth = flow.truth();
    let person = truth["links"].iter().find(|link| link["link_id"].as_deref() == Some(ids[9].as_str())).unwrap();
    let told = json!({
        "url": format!("http://{}", flow.running.daemon.admin_address.unwrap()),
        "token": TOKEN,
        "reader": READER,
        "link": ids[9],
        "external_id": person["external_id"],
        "invalid": ids[0],
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/pages.py");
    let mut command = Command::new(python);
    command.arg(script).arg(told.to_string());
    let ended = tokio::task::spawn_blocking(move || binary::run(&mut command)).await.unwrap();
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    println!("{}", ended.out);
}
