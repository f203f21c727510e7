//! The fake Belvo as a client sees it, over HTTP.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode};
use reqwest::{Client, RequestBuilder};
use serde_json::json;
use tokio::sync::mpsc;

use super::*;

/// A simulation that answers, and a receiver that keeps the webhooks it is sent.
struct Running {
    simulation: Simulation,
    base: String,
    client: Client,
    webhooks: mpsc::UnboundedReceiver<(HeaderMap, Value)>,
    _stop: tokio_util::sync::DropGuard,
}

impl Running {
    async fn start(people: u32, change: impl FnOnce(&mut Settings)) -> Self {
        let (sender, webhooks) = mpsc::unbounded_channel();
        let receiver = Router::new().fallback(receive).with_state(sender);
        let (inbox, address) = listen().await;
        tokio::spawn(async move { axum::serve(inbox, receiver).await });
        let mut settings = Settings {
            people,
            webhook: Some(format!("http://{address}/hook").parse().unwrap()),
            webhook_authorization: "Bearer simulated-webhook-value".to_owned(),
            webhook_latency: Duration::from_millis(10),
            webhook_backoff: Duration::from_millis(5),
            limit: None,
            pepper: Some("pepper-for-tests".to_owned()),
            ..Settings::default()
        };
        change(&mut settings);
        let (listener, address) = listen().await;
        let (simulation, shutdown) = (Simulation::new(settings), CancellationToken::new());
        tokio::spawn(simulation.clone().serve(listener, shutdown.clone()));
        Self {
            simulation,
            base: format!("http://{address}"),
            client: Client::new(),
            webhooks,
            _stop: shutdown.drop_guard(),
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base)).basic_auth(SECRET_ID, Some(SECRET_PASSWORD))
    }

    async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.headers()["x-vinculo-simulated"], "true");
        answer.json().await
    }

    async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        let request = self.client.post(format!("{}{path}", self.base)).basic_auth(SECRET_ID, Some(SECRET_PASSWORD));
        request.json(&body).send().await.unwrap()
    }

    /// The access token of a widget session.
    async fn mint(&self, token: Value) -> String {
        self.post("/api/token/", token).await.json().await["access"].as_str().unwrap().to_owned()
    }

    /// Where a browser is sent that asks for `path`.
    async fn leads_to(&self, path: &str) -> String {
        let away = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let left = away.get(format!("{}{path}", self.base)).send().await.unwrap();
        left.headers()["location"].to_str().unwrap().to_owned()
    }

    async fn connected(people: u32, change: impl FnOnce(&mut Settings)) -> Self {
        let running = Self::start(people, change).await;
        running.simulation.connect_all();
        running.simulation.wait_until_delivered().await;
        running
    }
}

/// `reqwest` is built without its JSON.
trait ReadsJson {
    async fn json(self) -> Value;
}

impl ReadsJson for reqwest::Response {
    async fn json(self) -> Value {
        serde_json::from_slice(&self.bytes().await.unwrap()).unwrap()
    }
}

trait SendsJson {
    fn json(self, body: &Value) -> Self;
}

impl SendsJson for RequestBuilder {
    fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn receive(
    Shared(to): Shared<mpsc::UnboundedSender<(HeaderMap, Value)>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> StatusCode {
    let body: Value = serde_json::from_slice(&body).unwrap();
    if to.send((headers, body)).is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn rows<'a>(truth: &'a Value, table: &str) -> &'a Vec<Value> {
    truth[table].as_array().unwrap()
}

fn code(body: &Value) -> &str {
    let error = &body[0];
    let id = error["request_id"].as_str().unwrap();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert!(error["message"].is_string());
    error["code"].as_str().unwrap()
}

/// Every key of `keys`, and no other but those of `optional`.
fn has(object: &Value, keys: &[&str], optional: &[&str]) {
    let present: BTreeSet<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let required: BTreeSet<&str> = keys.iter().copied().collect();
    assert!(present.is_superset(&required), "{present:?} lacks some of {required:?}");
    let known: BTreeSet<&str> = keys.iter().chain(optional).copied().collect();
    assert!(present.is_subset(&known), "{present:?} has more than {known:?}");
}

#[tokio::test]
async fn a_person_connects_is_announced_and_can_be_listed() {
    let mut running = Running::start(24, |_| ()).await;
    assert_eq!(running.simulation.connect_all(), 24);
    assert_eq!(running.simulation.connect_all(), 0);
    running.simulation.wait_until_delivered().await;
    let tally = running.simulation.webhooks();
    assert_eq!((tally.delivered, tally.given_up, tally.outstanding), (48, 0, 0));

    let mut told = BTreeSet::new();
    while let Ok((headers, event)) = running.webhooks.try_recv() {
        assert_eq!(headers["authorization"], "Bearer simulated-webhook-value");
        has(
            &event,
            &[
                "webhook_id",
                "webhook_type",
                "process_type",
                "webhook_code",
                "link_id",
                "request_id",
                "external_id",
                "data",
            ],
            &[],
        );
        let (kind, total) = match event["webhook_type"].as_str().unwrap() {
            "EMPLOYMENTS" => ("/api/br/employments/", "total_employments"),
            _ => ("/api/owners/", "total_owners"),
        };
        let link = event["link_id"].as_str().unwrap().to_owned();
        let page = running.json(&format!("{kind}?link={link}&page_size=1000")).await;
        assert_eq!(page["count"], event["data"][total]);
        assert_eq!(page["count"], page["results"].as_array().unwrap().len());
        assert_eq!(page["next"], Value::Null);
        told.insert((kind, link));
    }
    assert_eq!(told.len(), 48);

    let truth = running.simulation.truth();
    assert_eq!(rows(&truth, "links").len(), 24);
    assert_eq!(rows(&truth, "link_snapshots").len(), 48);
    let keys: BTreeSet<_> =
        rows(&truth, "employments").iter().map(|row| row["employment_key"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), rows(&truth, "employments").len());
    let listed: u64 = rows(&truth, "link_snapshots").iter().map(|row| row["item_count"].as_u64().unwrap()).sum();
    assert_eq!(usize::try_from(listed).unwrap(), keys.len() + rows(&truth, "owners").len());
}

#[tokio::test]
async fn the_lists_are_empty_until_the_webhook_comes() {
    let running = Running::start(4, |settings| settings.webhook_latency = Duration::from_hours(1)).await;
    running.simulation.connect_all();
    let link = running.simulation.link_ids().remove(0);
    assert_eq!(running.json(&format!("/api/br/employments/?link={link}")).await["count"], 0);
    assert_eq!(rows(&running.simulation.truth(), "links").len(), 0);
    assert_eq!(running.simulation.outstanding_webhooks(), 8);
    assert!(running.simulation.send_again(&link, Resource::Employments, 1));
    let mut running = running;
    let (_, event) = running.webhooks.recv().await.unwrap();
    assert_eq!(event["link_id"], link.as_str());
    assert_ne!(running.json(&format!("/api/br/employments/?link={link}")).await["count"], 0);
}

#[tokio::test]
async fn every_object_has_the_keys_that_the_contract_requires() {
    let running = Running::connected(40, |_| ()).await;
    let links = running.json("/api/links/?page_size=1000").await;
    assert_eq!(links["count"], 40);
    has(&links, &["count", "next", "previous", "results"], &[]);
    for link in links["results"].as_array().unwrap() {
        has(
            link,
            &[
                "id",
                "institution",
                "access_mode",
                "last_accessed_at",
                "created_at",
                "external_id",
                "institution_user_id",
                "status",
                "created_by",
                "refresh_rate",
                "credentials_storage",
                "fetch_resources",
                "stale_in",
            ],
            &[],
        );
        assert_eq!(link["institution_user_id"].as_str().unwrap().len(), 44);
        let id = link["id"].as_str().unwrap();
        assert_eq!(&running.json(&format!("/api/links/{id}/")).await, link);
        for job in running.json(&format!("/api/br/employments/?link={id}")).await["results"].as_array().unwrap() {
            has(
                job,
                &[
                    "id",
                    "link",
                    "created_at",
                    "collected_at",
                    "start_date",
                    "end_date",
                    "employer_data",
                    "occupations",
                    "salaries",
                ],
                &[],
            );
            assert_eq!(job["link"], id);
            has(&job["employer_data"], &["name", "code", "economic_activity"], &[]);
            for occupation in job["occupations"].as_array().unwrap() {
                has(occupation, &["start_date", "end_date", "description", "name", "locale"], &[]);
            }
            for salary in job["salaries"].as_array().unwrap() {
                has(salary, &["base_amount", "retained_amount", "month", "currency"], &["type"]);
                assert!(salary["base_amount"].is_number() || salary["base_amount"].is_null());
            }
        }
        let owners = running.json(&format!("/api/owners/?link={id}")).await;
        let owner = &owners["results"][0];
        has(
            owner,
            &[
                "id",
                "link",
                "internal_identification",
                "collected_at",
                "display_name",
                "email",
                "phone_number",
                "address",
            ],
            &["created_at", "document_id", "business_name", "first_name", "last_name", "second_last_name"],
        );
        let owner_id = owner["id"].as_str().unwrap();
        assert_eq!(&running.json(&format!("/api/owners/{owner_id}/")).await, owner);
    }
    let institution = &running.json("/api/institutions/?country_code=BR&name=inss_br_employment").await["results"][0];
    assert_eq!(institution["resources"], json!(["EMPLOYMENTS", "OWNERS"]));
    assert_eq!(running.json("/api/institutions/?country_code=MX").await["count"], 0);
    assert_eq!(running.json(&format!("/api/institutions/{}/", institution["id"])).await["name"], "inss_br_employment");
}

#[tokio::test]
async fn calls_that_break_a_rule_get_belvos_answers() {
    let running = Running::connected(20, |_| ()).await;
    let link = running.simulation.link_ids().remove(0);
    let nobody =
        running.client.get(format!("{}/api/links/", running.base)).basic_auth("x", Some("y")).send().await.unwrap();
    assert_eq!(nobody.status(), 401);
    assert_eq!(code(&nobody.json().await), "authentication_failed");
    for guarded in [
        "/api/br/employments/".to_owned(),
        format!("/api/br/employments/?link={link}&updated_at=2026-01-01"),
        "/api/links/?last_accessed_at=2026-01-01".to_owned(),
        format!("/api/owners/?link={link}&page=0"),
    ] {
        let answer = running.get(&guarded).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{guarded}");
        assert!(answer.text().await.unwrap().starts_with("<html>"));
    }
    for missing in [
        "/api/links/00000000-0000-4000-8000-000000000000/".to_owned(),
        "/api/br/employments/?link=00000000-0000-4000-8000-000000000000".to_owned(),
        format!("/api/br/employments/?link={link}&page=9"),
        "/api/nothing/".to_owned(),
    ] {
        let answer = running.get(&missing).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{missing}");
        assert_eq!(code(&answer.json().await), "not_found");
    }
    let refreshed = running.post(&format!("/api/links/{link}/refresh/"), json!({})).await;
    assert_eq!(refreshed.status(), 202);
    assert_eq!(refreshed.json().await["request_id"].as_str().unwrap().len(), 32);
    let again = running.post(&format!("/api/links/{link}/refresh/"), json!({})).await;
    assert_eq!(again.status(), 409);
    let again: Value = again.json().await;
    assert_eq!(code(&again), "link_refreshed");
    assert!(again[0]["message"].as_str().unwrap().contains("10 minutes"));
    running.simulation.advance(Advance { seconds: 601, ..Advance::default() });
    assert_eq!(running.post(&format!("/api/links/{link}/refresh/"), json!({})).await.status(), 202);

    let token = json!({"id": SECRET_ID, "password": SECRET_PASSWORD, "scopes": "read_institutions,write_links", "stale_in": "365d",
        "fetch_resources": ["EMPLOYMENTS", "OWNERS"], "widget": {"branding": branding()}});
    let minted: Value = running.post("/api/token/", token.clone()).await.json().await;
    assert!(minted["access"].is_string() && minted["refresh"].is_string());
    let access = minted["access"].as_str().unwrap();
    let widget = format!("/widget/?access_token={access}&locale=pt&external_id=client-0001");
    assert!(running.get(&widget).send().await.unwrap().text().await.unwrap().contains("/widget/success?access_token="));
    let away = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let left = away.get(format!("{}/widget/exit?access_token={access}", running.base)).send().await.unwrap();
    let location = left.headers()["location"].to_str().unwrap();
    assert!(
        left.status() == 302 && location.starts_with("simulated://exit?last_encountered_error_code=login_error"),
        "{location}"
    );

    let mut wrong = token;
    wrong["password"] = "wrong".into();
    assert_eq!(running.post("/api/token/", wrong).await.status(), 401);
}

fn widget_token() -> Value {
    json!({"id": SECRET_ID, "password": SECRET_PASSWORD, "scopes": "read_institutions,write_links", "stale_in": "365d",
        "credentials_storage": "store", "fetch_resources": ["EMPLOYMENTS", "OWNERS"], "widget": {"branding": branding(),
        "callback_urls": {"success": "acme://done?a=b", "exit": "acme://exit", "event": "acme://event"}, "theme": []}})
}

fn update_token(link: &str) -> Value {
    json!({"id": SECRET_ID, "password": SECRET_PASSWORD, "scopes": "read_institutions,write_links,read_links",
        "link_id": link})
}

fn branding() -> Value {
    json!({"company_icon": "https://acme.example/icon.svg", "company_logo": "https://acme.example/logo.svg",
        "company_name": "ACME", "company_terms_url": "https://acme.example/terms/"})
}

#[tokio::test]
async fn a_token_keeps_every_rule_and_is_good_for_one_link_and_ten_minutes() {
    let running = Running::start(4, |_| ()).await;
    let token = widget_token();
    for (pointer, value, field, expected) in [
        ("/scopes", json!("read_links"), "scopes", "invalid_choice"),
        ("/stale_in", json!("a year"), "stale_in", "invalid"),
        ("/credentials_storage", json!("maybe"), "credentials_storage", "invalid"),
        ("/fetch_resources", json!("OWNERS"), "fetch_resources", "not_a_list"),
        ("/fetch_resources", json!(["PLANETS"]), "fetch_resources", "invalid_choice"),
        ("/widget/callback_urls/exit", Value::Null, "widget.callback_urls.exit", "required"),
        ("/widget/branding/company_icon", json!("none"), "widget.branding.company_icon", "invalid"),
        ("/widget/branding/company_name", json!(""), "widget.branding.company_name", "blank"),
        ("/widget/theme", json!({}), "widget.theme", "not_a_list"),
    ] {
        let mut wrong = token.clone();
        *wrong.pointer_mut(pointer).unwrap() = value;
        let refused = running.post("/api/token/", wrong).await;
        assert_eq!(refused.status(), 400, "{pointer}");
        let refused: Value = refused.json().await;
        assert_eq!(
            (refused[0]["field"].as_str(), refused[0]["code"].as_str()),
            (Some(field), Some(expected)),
            "{pointer}"
        );
    }

    let access = running.mint(token.clone()).await;
    let query = format!("access_token={access}&access_mode=single&external_id=client-0001");
    let done = running.leads_to(&format!("/widget/success?{query}")).await;
    assert!(done.starts_with("acme://done?a=b&link=") && done.ends_with("&institution=inss_br_employment"), "{done}");
    let link = done.split(['=', '&']).nth(3).unwrap().to_owned();
    let made = running.json(&format!("/api/links/{link}/")).await;
    assert_eq!((&made["access_mode"], &made["external_id"]), (&json!("single"), &json!("client-0001")));
    let dead = "acme://event?error=ACCESS_TOKEN_NOT_VALID&";
    assert!(running.leads_to(&format!("/widget/?{query}")).await.starts_with(dead));
    let late = running.mint(token).await;
    running.simulation.advance(Advance { seconds: 600, ..Advance::default() });
    assert!(running.leads_to(&format!("/widget/success?access_token={late}")).await.starts_with(dead));

    running.simulation.wait_until_delivered().await;
    let position = running.simulation.state().world.find(&link).unwrap();
    running.simulation.state().world.set_status(position, "invalid");
    let access = running.mint(update_token(&link)).await;
    let done = running.leads_to(&format!("/widget/success?access_token={access}")).await;
    assert!(done.starts_with(&format!("acme://done?a=b&link={link}")), "{done}");
    assert_eq!(running.json(&format!("/api/links/{link}/")).await["status"], "valid");
}

#[tokio::test]
async fn the_widget_goes_on_with_the_next_person_when_everybody_is_connected() {
    let running = Running::connected(3, |_| ()).await;
    let before = running.simulation.truth();
    for person in 3..5 {
        let session = format!("access_token={}&external_id=c-{person}", running.mint(widget_token()).await);
        let done = running.leads_to(&format!("/widget/success?{session}")).await;
        assert!(done.starts_with("acme://done?a=b&link="), "{done}");
    }
    running.simulation.wait_until_delivered().await;
    assert_eq!(running.simulation.webhooks().delivered, 10);
    let links = running.json("/_sim/links").await;
    assert_eq!((&links[4]["person"], &links[4]["external_id"]), (&json!(4), &json!("c-4")));
    let truth = running.simulation.truth();
    assert_eq!(rows(&truth, "links")[..3], rows(&before, "links")[..]);
    assert_eq!((rows(&truth, "links").len(), &rows(&truth, "links")[3]["external_id"]), (5, &json!("c-3")));

    // They are those whom more people would have had from the start.
    let many = Running::connected(5, |_| ()).await;
    assert_eq!(many.simulation.link_ids(), running.simulation.link_ids());

    assert_eq!(running.json("/_sim/state").await["next_person"], 5);

    // Whoever is gone does not come back as somebody new, and any other way leads beyond the first three too.
    running.simulation.state().world.delete(0);
    assert_eq!(running.json("/_sim/state").await["next_person"], 5);
    let session = running.mint(widget_token()).await;
    running.leads_to(&format!("/widget/success?access_token={session}")).await;
    let made = running.post("/_sim/connect", json!({"first": 5, "count": 2})).await.json().await;
    assert_eq!(made["connected"], 1);
    let cpf = people::documents::cpf(7);
    let wish = json!({"institution": "inss_br_employment", "username": cpf, "password": "simulated-password"});
    assert_eq!(running.post("/api/links/", wish).await.status(), 201);
    let links = running.json("/_sim/links").await;
    let persons: Vec<_> = links.as_array().unwrap().iter().map(|link| link["person"].as_u64().unwrap()).collect();
    assert_eq!(persons, [1, 2, 3, 4, 5, 6, 7]);
    let too_many = running.post("/_sim/connect", json!({"first": 9_999_999, "count": 2})).await;
    assert_eq!(too_many.status(), 400);
    assert_eq!(running.json("/_sim/state").await["people"], 3);
}

#[tokio::test]
async fn an_update_leads_back_to_the_application_whose_widget_made_the_link() {
    let running = Running::connected(1, |_| ()).await;
    let update = async |link: &str, way: &str| {
        let access = running.mint(update_token(link)).await;
        running.leads_to(&format!("/widget/{way}?access_token={access}")).await
    };
    let unasked = running.simulation.link_ids().remove(0);
    assert!(update(&unasked, "success").await.starts_with("simulated://success?link="));
    let mut made = Vec::new();
    for app in ["one", "two"] {
        let mut token = widget_token();
        for (name, url) in token["widget"]["callback_urls"].as_object_mut().unwrap() {
            *url = format!("{app}://{name}").into();
        }
        let access = running.mint(token).await;
        running.leads_to(&format!("/widget/success?access_token={access}")).await;
        made.push(running.simulation.link_ids().pop().unwrap());
    }
    for (way, leads_to) in [
        ("success", format!("one://success?link={}&", made[0])),
        ("exit", "one://exit?last_encountered_error_code=".to_owned()),
        ("error", "one://event?error=".to_owned()),
    ] {
        let left = update(&made[0], way).await;
        assert!(left.starts_with(&leads_to), "{left}");
    }
    // No widget made this one; the last of these keys is as good as any.
    let left = update(&unasked, "success").await;
    assert!(left.starts_with("two://success?link="), "{left}");
}

#[tokio::test]
async fn links_are_created_changed_and_deleted() {
    let running = Running::start(4, |_| ()).await;
    let cpf = people::documents::cpf(2);
    let wish = json!({"institution": "inss_br_employment", "username": cpf, "password": "simulated-password", "access_mode": "single",
        "external_id": "client-0002"});
    let made = running.post("/api/links/", wish.clone()).await;
    assert_eq!(made.status(), 201);
    let made: Value = made.json().await;
    assert_eq!((made["access_mode"].as_str(), made["refresh_rate"].as_str()), (Some("single"), None));
    let twice = running.post("/api/links/", wish).await;
    assert_eq!(twice.status(), 400);
    assert_eq!(code(&twice.json().await), "duplicated");
    running.simulation.wait_until_delivered().await;
    let id = made["id"].as_str().unwrap();
    assert_eq!(running.json("/api/links/?external_id=client-0002").await["results"][0]["id"], id);

    let url = format!("{}/api/links/{id}/", running.base);
    let keys = |request: RequestBuilder| request.basic_auth(SECRET_ID, Some(SECRET_PASSWORD));
    let changed = keys(running.client.patch(&url)).json(&json!({"access_mode": "recurrent"})).send().await.unwrap();
    assert_eq!(changed.json().await["refresh_rate"], "7d");
    let collected = running.post("/api/br/employments/", json!({"link": id})).await;
    assert_eq!(collected.status(), 201);
    let unsaved = running.post("/api/br/employments/", json!({"link": id, "save_data": false})).await;
    assert_eq!(unsaved.status(), 200);
    assert_eq!(unsaved.json().await[0]["link"], Value::Null);
    let request = keys(running.client.delete(&url)).header("X-Belvo-Request-Mode", "async");
    assert_eq!(request.send().await.unwrap().status(), 202);
    assert_eq!(running.get(&format!("/api/br/employments/?link={id}")).send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn the_eighty_first_call_in_a_window_is_refused_with_a_page() {
    let running = Running::connected(1, |settings| settings.limit = Settings::default().limit).await;
    for call in 1..=80 {
        assert_eq!(running.get("/api/").send().await.unwrap().status(), 200, "call {call}");
    }
    let refused = running.get("/api/links/").send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.unwrap().contains("openresty"));
    assert_eq!((running.simulation.arrivals().len(), running.simulation.breaches()), (81, 1));
    assert_eq!(running.simulation.calls("/api/", None), 80);
}

#[tokio::test]
async fn pages_are_followed_to_the_end() {
    let running = Running::connected(20, |_| ()).await;
    let (mut ids, mut path) = (BTreeSet::new(), "/api/links/?page_size=7".to_owned());
    loop {
        let page = running.json(&path).await;
        assert_eq!(page["count"], 20);
        ids.extend(page["results"].as_array().unwrap().iter().map(|link| link["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = next.strip_prefix(&running.base).expect("`next` stays on the host").to_owned();
    }
    assert_eq!(ids.len(), 20);
}

#[tokio::test]
async fn faults_strike_where_they_are_told() {
    let running = Running::connected(20, |_| ()).await;
    let link = running.simulation.link_ids().remove(0);
    let path = format!("/api/br/employments/?link={link}");
    let arm = |flag: &str| running.simulation.arm(Fault::parse(flag).unwrap());

    arm("status,code=429,retry_after=7,times=1,on=employments");
    let limited = running.get(&path).send().await.unwrap();
    assert_eq!((limited.status().as_u16(), limited.headers()["retry-after"].to_str().unwrap()), (429, "7"));
    assert_eq!(running.get(&path).send().await.unwrap().status(), 200);

    arm("cut,times=1");
    assert!(running.get(&path).send().await.unwrap().bytes().await.is_err());
    arm("next_elsewhere,times=1");
    assert_eq!(running.json(&path).await["next"], "http://elsewhere.invalid/api/br/employments/?page=2");
    arm("list_empty,times=1");
    assert_eq!(running.json(&path).await["count"], 0);
    arm("gzip_bomb,times=1");
    let bomb = running.get(&path).send().await.unwrap();
    assert!(bomb.status() == 200 && !bomb.headers().contains_key("content-length"), "reqwest unpacks it");
    drop(bomb);
    arm("hang,times=1,on=links");
    let hung = running.get("/api/links/").timeout(Duration::from_millis(100)).send().await;
    assert!(hung.unwrap_err().is_timeout());

    arm("unknown_field,at=salary,name=bonus_code,value=7");
    assert_eq!(running.json(&path).await["results"][0]["salaries"][0]["bonus_code"], 7);
    let truth = running.simulation.truth();
    assert!(rows(&truth, "salaries").iter().all(|row| row["extra"] == r#"{"bonus_code":7}"#));
    running.simulation.clear_faults();
    assert_eq!(running.json(&path).await["results"][0]["salaries"][0].get("bonus_code"), None);
}

#[tokio::test]
async fn refused_webhooks_are_repeated_five_times_and_given_up() {
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(async || StatusCode::IM_A_TEAPOT)).await });
    let running = Running::connected(1, |settings| {
        settings.webhook = Some(format!("http://{address}/").parse().unwrap());
    })
    .await;
    let tally = running.simulation.webhooks();
    assert_eq!((tally.attempts, tally.delivered, tally.given_up), (12, 0, 2));
    assert!(running.simulation.deliveries().iter().all(|delivered| delivered.status == Some(418)));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_world_and_more_people_change_nobody() {
    let few = Running::connected(30, |settings| settings.webhook = None).await;
    let many = Running::connected(90, |settings| settings.webhook = None).await;
    let (few_truth, many_truth) = (few.simulation.truth(), many.simulation.truth());
    for table in ["links", "employments", "occupations", "salaries", "owners", "link_snapshots"] {
        let (few, many) = (rows(&few_truth, table), rows(&many_truth, table));
        assert_eq!(few[..], many[..few.len()], "{table}");
    }
    for link in few.simulation.link_ids() {
        for path in ["/api/br/employments/", "/api/owners/"] {
            let (one, other) = (few.get(&format!("{path}?link={link}")), many.get(&format!("{path}?link={link}")));
            assert_eq!(
                one.send().await.unwrap().bytes().await.unwrap(),
                other.send().await.unwrap().bytes().await.unwrap()
            );
        }
    }
    let other = Running::connected(30, |settings| settings.seed = 2).await;
    assert_ne!(other.simulation.link_ids(), few.simulation.link_ids());
}

#[tokio::test]
async fn one_month_twice_is_two_months_once() {
    let (twice, once) =
        (Running::connected(40, |s| s.webhook = None).await, Running::connected(40, |s| s.webhook = None).await);
    let month = Advance { months: 1, ..Advance::default() };
    assert!(twice.simulation.advance(month) > 0);
    let beyond = Advance { days: u64::MAX / 2, ..Advance::default() };
    assert_eq!(twice.simulation.advance(beyond), 0, "there is no such day, and the simulator goes on");
    let after_one = twice.simulation.truth();
    twice.simulation.advance(month);
    once.simulation.advance(Advance { months: 2, ..Advance::default() });
    twice.simulation.wait_until_delivered().await;
    once.simulation.wait_until_delivered().await;
    let known_apart = |mut truth: Value| {
        for row in truth.as_object_mut().unwrap().values_mut().flat_map(|rows| rows.as_array_mut().unwrap()) {
            row.as_object_mut().unwrap().remove("known_from");
        }
        truth
    };
    // Only the key of a job that was corrected in between depends on when it was looked at.
    let (twice_truth, once_truth) = (known_apart(twice.simulation.truth()), known_apart(once.simulation.truth()));
    assert_eq!(twice_truth, once_truth);
    assert!(rows(&twice.simulation.truth(), "salaries").len() > rows(&after_one, "salaries").len());
    for link in once.simulation.link_ids() {
        let path = format!("/api/br/employments/?link={link}");
        assert_eq!(once.json(&path).await["results"], twice.json(&path).await["results"]);
    }
}

#[tokio::test]
async fn the_handle_and_the_paths_below_sim_say_the_same() {
    let running = Running::start(20, |_| ()).await;
    let made: Value = running.post("/_sim/connect?wait=true", json!({"first": 2, "count": 3})).await.json().await;
    assert_eq!(made["connected"], 3);
    let state = running.json("/_sim/state").await;
    assert_eq!(
        (state["webhooks"]["delivered"].as_u64(), state["webhooks"]["outstanding"].as_u64()),
        (Some(6), Some(0))
    );
    assert_eq!(running.json("/_sim/truth").await, running.simulation.truth());
    let link = made["links"][0].as_str().unwrap();
    let events =
        running.post("/_sim/webhooks?wait=true", json!({"link": link, "resource": "owners", "copies": 5})).await;
    assert_eq!(events.json().await["events"], 5);
    assert_eq!(running.simulation.webhooks().delivered, 11);
    let faults = running.post("/_sim/faults", json!([{"fault": "status", "code": 401}, {"flag": "cut,times=2"}])).await;
    assert_eq!(faults.json().await["on"].as_array().unwrap().len(), 2);
    assert_eq!(running.get("/api/links/").send().await.unwrap().status(), 401);
    let moved: Value = running.post("/_sim/advance", json!({"months": 1})).await.json().await;
    assert_eq!(moved["now"], "2026-12-20T12:00:00.000000Z");
    let refused = running.post("/_sim/faults", json!({"fault": "typhoon"})).await;
    assert_eq!(refused.status(), 400);
    assert_eq!(running.simulation.arrivals().len(), 1);
}

#[tokio::test]
async fn what_the_simulator_does_not_know_is_refused_with_what_it_knows_and_does_nothing() {
    let running = Running::connected(2, |_| ()).await;
    let link = running.simulation.link_ids().remove(0);
    let before = (running.json("/_sim/state").await, running.json("/_sim/links").await);
    for (path, body, why) in [
        ("advance", json!({}), "`hours`"),
        ("advance", json!({"days": null}), "`months`"),
        ("advance", json!({"by": "1d"}), "unknown field `by`, expected one of `months`, `days`, `hours`"),
        ("advance", json!({"to": "2027-03-01"}), "unknown field `to`"),
        ("advance", json!({"days": 1, "weeks": 1}), "unknown field `weeks`"),
        ("advance", json!({"hours": "1"}), "expected u64"),
        ("advance", json!({"hours": u64::MAX, "seconds": 1}), "9999"),
        ("advance", json!([1]), "not a JSON object"),
        ("faults", json!({}), "needs the key `fault`"),
        ("faults", json!({"fault": "status", "code": 503, "foo": 1}), "takes no `foo`; known are code,"),
        ("faults", json!({"flag": "cut", "times": 1}), "unknown field `times`, expected `flag`"),
        ("faults", json!([{"fault": "cut"}, {"flag": "cut,foo=1"}]), "takes no `foo`; known are after,"),
        ("connect", json!({"person": 2, "external_id": "foo-1"}), "unknown field `person`, expected one of `first`,"),
        ("connect", json!({"first": 2, "count": 1, "access_mode": "both"}), "single, recurrent"),
        ("connect", json!({"first": 2, "count": 1, "fetch_resources": ["INCOMES"]}), "employments, owners"),
        ("webhooks", json!({"link": link, "type": "OWNERS"}), "unknown field `type`, expected one of `link`,"),
        ("webhooks", json!({"link": link, "payload": {}}), "only `copies`"),
    ] {
        let refused = running.post(&format!("/_sim/{path}?wait=true"), body.clone()).await;
        assert_eq!(refused.status(), 400, "{path} {body}");
        let refused: Value = refused.json().await;
        assert!(refused["error"].as_str().unwrap().contains(why), "{path} {body}: {refused}");
    }
    assert_eq!((running.json("/_sim/state").await, running.json("/_sim/links").await), before);
    assert_eq!(running.json("/_sim/faults").await["on"], json!([]));
}

#[tokio::test]
async fn the_clock_moves_by_all_that_is_given_together() {
    let running = Running::start(1, |_| ()).await;
    for (by, now) in [
        (json!({"hours": 1}), "2026-11-20T13:00:00.000000Z"),
        (json!({"months": 1, "days": 2, "hours": 3, "minutes": 4, "seconds": 5}), "2026-12-22T16:04:05.000000Z"),
        (json!({"days": 0}), "2026-12-22T16:04:05.000000Z"),
    ] {
        let moved = running.post("/_sim/advance", by).await;
        assert_eq!(moved.status(), 200);
        assert_eq!(moved.json().await["now"], now);
    }
}

#[tokio::test]
async fn nothing_is_collected_for_days_to_come() {
    let running = Running::connected(1, |_| ()).await;
    let link = running.simulation.link_ids().remove(0);
    let collect = async |date_to: &str| {
        let answer = running.post("/api/br/employments/", json!({"link": link, "date_to": date_to})).await;
        (answer.status().as_u16(), answer.json().await[0]["code"].clone())
    };
    // The simulated clock says 2026-11-20.
    assert_eq!(collect("2026-11-21").await, (400, json!("invalid_period")));
    assert_eq!(collect("2026-11-20").await.0, 201);
}

#[tokio::test]
async fn a_row_that_slipped_to_page_1_is_missing_from_the_next() {
    let running = Running::connected(9, |_| ()).await;
    let ids = |page: &Value| -> Vec<String> {
        page["results"].as_array().unwrap().iter().map(|link| link["id"].to_string()).collect()
    };
    let (one, two) = ("/api/links/?page_size=4", "/api/links/?page_size=4&page=2");
    let (first, second) = (running.json(one).await, running.json(two).await);
    assert_eq!(running.post("/_sim/faults", json!({"fault": "slip"})).await.status(), 200);
    assert_eq!(running.json(one).await, first);
    let slipped = running.json(two).await;
    assert_eq!((ids(&slipped), &slipped["count"]), (ids(&second)[1..].to_vec(), &json!(8)));
}

#[tokio::test]
async fn the_id_of_an_event_depends_on_its_link_and_kind_and_on_which_of_them_it_is() {
    use webhooks::About::Historical;

    let ids = |order: &[(usize, Resource)]| {
        let simulation = Simulation::new(Settings { people: 3, ..Settings::default() });
        for person in 0..3 {
            simulation.state().world.connect(person, links::Wish::default());
        }
        let mut counts = BTreeMap::<_, u32>::new();
        let mut ids = BTreeMap::new();
        for (link, resource) in order {
            let body = simulation.write(*link, &Historical(*resource)).bodies.remove(0);
            let nth = counts.entry((*link, resource.name())).or_default();
            *nth += 1;
            let event: Value = serde_json::from_slice(&body).unwrap();
            ids.insert((*link, resource.name(), *nth), event["webhook_id"].as_str().unwrap().to_owned());
        }
        ids
    };
    let [jobs, owners] = [Resource::Employments, Resource::Owners];
    let one = ids(&[(0, jobs), (0, owners), (1, jobs), (0, jobs), (2, owners)]);
    let other = ids(&[(2, owners), (0, jobs), (1, jobs), (0, jobs), (0, owners)]);
    assert_eq!(one, other);
    assert_eq!(one.values().collect::<BTreeSet<_>>().len(), 5);
}

#[tokio::test]
async fn an_event_comes_again_later_and_one_tells_of_a_link_that_needs_its_user() {
    let mut running = Running::start(2, |_| ()).await;
    running.post("/_sim/faults", json!({"id": "IN2", "after_ms": 5, "resource": "owners"})).await;
    running.simulation.connect(0, 1);
    running.simulation.wait_until_delivered().await;
    let mut events = Vec::new();
    while let Ok((_, event)) = running.webhooks.try_recv() {
        events.push(event);
    }
    let owners: Vec<&Value> = events.iter().filter(|event| event["webhook_type"] == "OWNERS").collect();
    assert_eq!((events.len(), owners.len()), (3, 2));
    assert_eq!(owners[0], owners[1], "the same body");

    running.simulation.clear_faults();
    running.post("/_sim/faults", json!({"id": "IN7", "code": "token_required", "times": 1})).await;
    running.simulation.connect(1, 1);
    running.simulation.wait_until_delivered().await;
    let links = running.json("/api/links/?status=token_required").await;
    assert_eq!(links["count"], 1);
    let mut codes = BTreeSet::new();
    while let Ok((_, event)) = running.webhooks.try_recv() {
        codes.insert(event["webhook_code"].to_string());
    }
    assert_eq!(codes.into_iter().collect::<Vec<_>>(), ["\"historical_update\"", "\"token_required\""]);
}

#[test]
fn the_benchmark_file_is_the_same_twice_and_has_one_record_a_line() {
    let (mut one, mut other) = (Vec::new(), Vec::new());
    let written = write_ndjson(&Settings::default(), &mut one, 300_000).unwrap();
    write_ndjson(&Settings::default(), &mut other, 300_000).unwrap();
    assert!(one == other && written == one.len() as u64 && written >= 300_000);
    for line in one.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let record: Value = serde_json::from_slice(line).unwrap();
        assert!(record["salaries"].is_array());
    }
}
