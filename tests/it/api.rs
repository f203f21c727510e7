//! The API of a running daemon, over HTTP and through the commands beside it.

use reqwest::Method;
use serde_json::{Value, json};
use vinculo::store::{Error, Tx, Value as Cell, WebhookPlace};

use crate::binary::{Simulate, Site, free_address, run};
use crate::harness::{Flow, Running, TOKEN};

/// A person of the API, with the token.
struct Operator {
    base: String,
    client: reqwest::Client,
}

impl Operator {
    fn of(running: &Running) -> Self {
        let base = format!("http://{}", running.daemon.admin_address.unwrap());
        Self { base, client: reqwest::Client::new() }
    }

    async fn say(&self, method: Method, path: &str, body: Option<&str>) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(TOKEN);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.say(Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Orders something, and gives its run when that has ended.
    async fn order(&self, path: &str, body: Option<&str>) -> Value {
        let (status, mut answer) = self.say(Method::POST, path, body).await;
        assert_eq!(status, 202, "{path}: {answer}");
        while answer["run"]["finished_at"].is_null() {
            answer = self.get(&format!("/v1/runs/{}?wait=10", answer["run"]["id"].as_str().unwrap())).await;
        }
        answer["run"].take()
    }
}

/// Links of an answer without what grows from one answer to the next.
fn without_ages(mut links: Value) -> Value {
    let resources = links.as_array_mut().into_iter().flatten().filter_map(|link| link["resources"].as_array_mut());
    for resource in resources.flatten() {
        assert!(resource.as_object_mut().unwrap().remove("age_seconds").is_some_and(|age| age.is_u64()), "{resource}");
    }
    links
}

#[tokio::test]
async fn a_refresh_is_ordered_and_seen_to_finish() {
    let flow = Flow::start(3).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let operator = Operator::of(&flow.running);

    let first = operator.get("/v1/links?limit=2").await;
    let next = operator.get(&format!("/v1/links?limit=2&after={}", first["next"].as_str().unwrap())).await;
    assert_eq!((first["links"].as_array().unwrap().len(), next["links"].as_array().unwrap().len()), (2, 1));
    assert_eq!(next["next"], Value::Null);
    let link = &first["links"][0];
    let (id, external_id) = (link["link_id"].as_str().unwrap(), link["external_id"].as_str().unwrap());
    let found = operator.get(&format!("/v1/links?external_id={external_id}&status=valid")).await;
    assert_eq!(without_ages(found["links"].clone()), without_ages(json!([link])));
    assert_eq!(operator.get("/v1/links?status=invalid").await["links"], json!([]));

    let before = flow.simulation.calls("/api/owners/", Some(id));
    let run = operator.order(&format!("/v1/links/{id}/refresh"), None).await;
    assert_eq!((&run["kind"], &run["outcome"], &run["reason"]), (&json!("refresh"), &json!("done"), &json!("api")));
    assert_eq!((&run["done"], &run["total"]), (&json!(2), &json!(2)));
    assert!(run["duration_ms"].is_u64(), "{run}");
    assert_eq!(flow.simulation.calls("/api/owners/", Some(id)), before + 1);
    let run = operator.order(&format!("/v1/links/{id}/refresh"), Some(r#"{"resources":["owners"]}"#)).await;
    assert_eq!((&run["done"], flow.simulation.calls("/api/owners/", Some(id))), (&json!(1), before + 2));

    let shown = operator.get(&format!("/v1/links/{id}")).await["link"].take();
    assert_eq!(
        (&shown["status"], &shown["is_paused"], &shown["what_to_do"]),
        (&json!("valid"), &json!(false), &json!("nothing"))
    );
    for resource in shown["resources"].as_array().unwrap() {
        assert_eq!((&resource["state"], &resource["last_error_code"]), (&json!("fetched"), &Value::Null), "{resource}");
        assert!(resource["item_count"].as_i64().unwrap() > 0 && resource["last_fetched_at"].is_string(), "{resource}");
    }
}

#[tokio::test]
async fn what_a_link_waits_for_is_told_in_plain_words() {
    let flow = Flow::start(1).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let id = flow.simulation.link_ids().remove(0);
    let expired = format!(r#"{{"webhook_type":"LINK","webhook_code":"invalid_credentials","link_id":"{id}"}}"#);
    assert_eq!(flow.running.webhook(&expired).await, 200);
    let operator = Operator::of(&flow.running);
    let shown = operator.get(&format!("/v1/links/{id}")).await["link"].take();
    assert_eq!((&shown["status"], &shown["is_paused"]), (&json!("invalid"), &json!(true)));
    assert_eq!((&shown["paused_reason"], shown["paused_at"].is_string()), (&json!("link_needs_user"), true), "{shown}");
    assert!(shown["what_to_do"].as_str().unwrap().contains("update mode"), "{shown}");
    assert_eq!(operator.get("/v1/links?status=invalid").await["links"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn quarantined_webhooks_are_read_again_after_a_mend_and_none_is_doubled() {
    let flow = Flow::start(2).await;
    let operator = Operator::of(&flow.running);
    let ids = ["2f5d361d-dad6-45d4-a0bf-26d479766067", "2f5d361d-dad6-45d4-a0bf-26d479766068"];
    for id in ids {
        let body = format!(
            r#"{{"webhook_type":"PLANETS","webhook_code":"historical_update","link_id":"{id}","external_id":"us-1","data":{{"total_owners":1,"name":"Nobody"}}}}"#
        );
        assert_eq!(flow.running.webhook(&body).await, 200);
    }
    let listed = operator.get("/v1/webhooks?outcome=quarantined").await;
    assert_eq!(listed["webhooks"].as_array().unwrap().len(), 2);
    let newest = &listed["webhooks"][0];
    assert_eq!(
        (&newest["link_id"], &newest["external_id"], &newest["webhook_type"]),
        (&json!(ids[1]), &json!("us-1"), &json!("PLANETS"))
    );
    let seq = newest["seq"].as_i64().unwrap();
    let shown = operator.get(&format!("/v1/webhooks/{seq}")).await;
    assert_eq!(shown["body"]["data"]["total_owners"], json!(1));
    assert!(!shown.to_string().contains("Nobody"), "{shown}");

    // As long as nothing is mended, they stay where they are.
    let run = operator.order(&format!("/v1/webhooks/{seq}/replay"), None).await;
    assert_eq!((&run["outcome"], &run["failed"]), (&json!("failed"), &json!({ "quarantined": 1 })));

    // A mended reading is a mended body here: the reading is compiled in.
    let mend = |tx: &Tx<'_>| {
        let read = "SELECT seq, link_id, received_at, body FROM webhooks";
        let stored =
            tx.all(read, &[], |row| Ok((row.int(0)?, row.opt_text(1)?, row.int(2)?, row.bytes(3)?.to_vec())))?;
        for (seq, link_id, received_at, body) in stored {
            let place = WebhookPlace { link_id: link_id.as_deref(), received_at };
            let body = String::from_utf8(place.open(tx, &body)?.into_owned()).unwrap().replace("PLANETS", "OWNERS");
            let body = place.seal(tx, body.as_bytes())?;
            let write = "UPDATE webhooks SET body = $2 WHERE seq = $1";
            tx.execute(write, &[Cell::Int(seq), Cell::Bytes(&body)])?;
        }
        Ok::<_, Error>(())
    };
    flow.running.daemon.store.write(mend).await.unwrap();
    let run = operator.order("/v1/webhooks/replay", None).await;
    assert_eq!((&run["outcome"], &run["done"], &run["total"]), (&json!("done"), &json!(2), &json!(2)));
    for (path, count) in [("/v1/webhooks?outcome=quarantined", 0), ("/v1/webhooks?type=OWNERS", 2), ("/v1/webhooks", 2)]
    {
        assert_eq!(operator.get(path).await["webhooks"].as_array().unwrap().len(), count, "{path}");
    }
    let again = operator.order("/v1/webhooks/replay", None).await;
    assert_eq!((&again["outcome"], &again["done"]), (&json!("done"), &json!(0)));
    for id in ids {
        assert_eq!(operator.get(&format!("/v1/links/{id}")).await["link"]["external_id"], json!("us-1"));
        let of_link = operator.get(&format!("/v1/webhooks?link={id}&limit=1")).await;
        assert_eq!((of_link["webhooks"].as_array().unwrap().len(), &of_link["next"]), (1, &Value::Null));
    }
}

#[tokio::test]
async fn links_are_reconciled_published_and_rebuilt_on_request_and_each_run_is_on_record() {
    let flow = Flow::start(2).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    let operator = Operator::of(&flow.running);
    let synced = operator.order("/v1/links/sync", None).await;
    assert_eq!((&synced["kind"], &synced["outcome"]), (&json!("sync-links"), &json!("done")), "{synced}");
    assert_eq!(operator.get("/v1/links").await["links"].as_array().unwrap().len(), 2);
    let refreshed = operator.order("/v1/links/refresh", Some(r#"{"links":{"all":true}}"#)).await;
    assert_eq!(refreshed["done"], json!(4), "{refreshed}");
    assert_eq!(operator.order("/v1/publish", None).await["outcome"], json!("done"));
    let rebuilt = operator.order("/v1/rebuild", None).await;
    assert!(rebuilt["snapshot"].is_u64() && rebuilt["done"].as_u64() > Some(0), "{rebuilt}");

    let page = operator.get("/v1/runs?limit=3").await;
    let kinds = |page: &Value| -> Vec<String> {
        page["runs"].as_array().unwrap().iter().map(|run| run["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds(&page), ["rebuild", "publish", "refresh"]);
    let rest = operator.get(&format!("/v1/runs?limit=3&after={}", page["next"].as_str().unwrap())).await;
    assert_eq!((kinds(&rest), &rest["next"]), (vec!["sync-links".to_owned()], &Value::Null));
    assert_eq!(kinds(&operator.get("/v1/runs?kind=refresh").await), ["refresh"]);

    let status = operator.get("/v1/status").await;
    assert_eq!((&status["links"], &status["budget"]["limit"]), (&json!(2), &json!(1_000_000)));
    assert!(status["budget"]["in_use"].is_u64(), "{status}");
    assert_eq!(status["problems"], json!([]), "nothing stands in the way");
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let flow = Flow::start(1).await;
    let operator = Operator::of(&flow.running);
    let unknown = "2f5d361d-dad6-45d4-a0bf-26d479766067";
    let large = format!(r#"{{"resources":["{}"]}}"#, "x".repeat(70_000));
    let cases: [(Method, String, Option<&str>, u16, &str); 17] = [
        (Method::GET, format!("/v1/links/{unknown}"), None, 404, "no_such_link"),
        (Method::POST, format!("/v1/links/{unknown}/refresh"), None, 404, "no_such_link"),
        (Method::GET, "/v1/links/x".into(), None, 422, "not_a_link_id"),
        (Method::GET, "/v1/links?limit=0".into(), None, 422, "invalid"),
        (Method::GET, "/v1/links?statu=valid".into(), None, 422, "invalid"),
        (Method::POST, "/v1/links/refresh".into(), None, 422, "invalid"),
        (Method::POST, "/v1/links/refresh".into(), Some(r#"{"links":{"external_id":"nobody"}}"#), 404, "no_such_link"),
        (Method::POST, "/v1/links/refresh".into(), Some(r#"{"links":{"all":true},"x":1}"#), 422, "invalid"),
        // A list of what the keys of an object stand for, in their order.
        (Method::POST, "/v1/links/refresh".into(), Some(r#"[{"all":true},[]]"#), 422, "invalid"),
        (Method::POST, "/v1/links/refresh".into(), Some("{"), 400, "bad_json"),
        (Method::POST, format!("/v1/links/{unknown}/refresh"), Some(&large), 413, "too_large"),
        (Method::GET, "/v1/webhooks/7".into(), None, 404, "no_such_webhook"),
        (Method::POST, "/v1/webhooks/7/replay".into(), None, 404, "no_such_webhook"),
        (Method::GET, "/v1/webhooks?outcome=lost".into(), None, 422, "invalid"),
        (Method::POST, "/v1/jobs/nothing/run".into(), None, 404, "no_such_job"),
        (Method::GET, "/v1/runs/7".into(), None, 404, "no_such_run"),
        (Method::DELETE, "/v1/links".into(), None, 405, "method_not_allowed"),
    ];
    for (method, path, body, status, code) in cases {
        let (found, answer) = operator.say(method, &path, body).await;
        assert_eq!((found, &answer["error"]["code"]), (status, &json!(code)), "{path}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|message| message.len() > 10), "{answer}");
    }
    let request = operator.client.post(format!("{}/v1/links/refresh", operator.base)).bearer_auth(TOKEN);
    assert_eq!(request.body("links=all").send().await.unwrap().status().as_u16(), 415);
    for path in ["/v1", "/v1/links", "/v1/jobs", "/v1/runs", "/v1/webhooks", "/v1/status"] {
        operator.get(path).await;
        for token in [None, Some("it-token-of-the-operatoR")] {
            let request = operator.client.get(format!("{}{path}", operator.base));
            let request = token.map_or(request.try_clone().unwrap(), |token| request.bearer_auth(token));
            assert_eq!(request.send().await.unwrap().status().as_u16(), 401, "{path} {token:?}");
        }
    }
    assert_eq!(operator.get("/v1/runs").await["runs"], json!([]), "what was refused began nothing");
}

/// The commands that change something, beside a daemon and without one.
#[test]
fn a_command_beside_a_daemon_asks_it_and_alone_does_the_work_itself() {
    let simulate = Simulate::start(free_address(), &["--people", "3"]);
    let site = Site::new(simulate.address, &[]);
    let job = "schedule = \"0 0 1 1 *\"\ntimezone = \"America/Sao_Paulo\"\naction = \"sync-links\"\n";
    std::fs::write(site.folder.path().join("jobs/compare.toml"), job).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(simulate.tell("connect", "{}"));
    let json = |arguments: &[&str], code: i32| -> Value {
        let ended = run(&mut site.command(&[arguments, &["--json"]].concat()));
        assert_eq!(ended.code, Some(code), "{arguments:?}: {}{}", ended.out, ended.err);
        serde_json::from_str(ended.out.lines().next().unwrap_or("null"))
            .or_else(|_| serde_json::from_str(&ended.out))
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", ended.out))
    };

    // Alone. That nothing is to be done is no failure; that somebody is not known is one.
    for sweep in [&["refresh", "--all"][..], &["refresh", "--older-than", "24h"], &["refresh", "--all", "--recollect"]]
    {
        let swept = json(sweep, 0);
        assert_eq!((&swept["refreshed"], &swept["failed"]), (&json!(0), &json!({})), "{sweep:?}");
    }
    assert_eq!(json(&["refresh", "--external-id", "nobody"], 1), Value::Null);
    let synced = json(&["links", "sync"], 0);
    assert_eq!((&synced["done"], &synced["reason"]), (&json!(3), &json!("command")));
    assert_eq!(json(&["refresh", "--all"], 0)["refreshed"], json!(6));
    let listed = run(&mut site.command(&["links", "list", "--json"])).out;
    let ids = listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["link_id"].clone());
    let ids: Vec<String> = ids.map(|id| id.as_str().unwrap().to_owned()).collect();
    let three = ["refresh", "--link", &ids[0], &ids[1], "--link", &ids[0]];
    assert_eq!(json(&three, 0)["refreshed"], json!(4), "each link once");
    let users = ["refresh", "--external-id", "sim-0000000", "sim-0000002"];
    assert_eq!(json(&users, 0)["refreshed"], json!(4));
    assert_eq!(json(&[&users[..], &["nobody"]].concat(), 1), Value::Null, "all of them or none");
    assert_eq!(json(&["publish"], 0), Value::Null);
    let alone = json(&["rebuild"], 0);
    assert_eq!(json(&["jobs", "run", "compare"], 0)["done"], json!(3));

    // Beside a daemon.
    let served = site.serve();
    assert_eq!(json(&["links", "sync"], 0)["reason"], json!("api"));
    assert_eq!(json(&["refresh", "--all"], 0)["refreshed"], json!(6));
    assert_eq!(json(&["publish"], 0), Value::Null);
    let beside = json(&["rebuild"], 0);
    assert!(beside["snapshot"].as_u64() > alone["snapshot"].as_u64(), "{beside}");
    assert_eq!(json(&["jobs", "run", "compare"], 0)["done"], json!(3));
    assert_eq!(json(&["jobs"], 0)["last_run"]["reason"], json!("api"));
    assert_eq!(json(&["jobs", "run", "nothing"], 1), Value::Null);
    for arguments in [&["webhooks", "replay", "--quarantined"][..], &["webhooks", "replay"]] {
        assert_eq!(json(arguments, 0)["done"], json!(0), "{arguments:?}");
    }
    let status = json(&["status"], 0);
    assert_eq!((&status["budget"]["limit"], &status["problems"]), (&json!(1_000_000), &json!([])));
    let link = json(&["links", "list", "--limit", "1"], 0);
    let id = link["link_id"].as_str().unwrap();
    assert_eq!(json(&["links", "show", id], 0)["what_to_do"], json!("nothing"));

    // The daemon is there, and may not be asked.
    for (name, value, reason) in [
        ("VINCULO_ADMIN__TOKEN", "", "admin.token"),
        ("VINCULO_ADMIN__TOKEN", "another-token-than-the-daemon's", "admin.token"),
        ("VINCULO_ADMIN__LISTEN", "127.0.0.1:1", "no daemon answers"),
    ] {
        for arguments in [&["publish"][..], &["refresh", "--all"], &["links", "sync"]] {
            let ended = run(site.command(arguments).env(name, value));
            assert_eq!(
                (ended.code, ended.err.contains(reason)),
                (Some(8), true),
                "{arguments:?} {name}: {}",
                ended.err
            );
        }
    }
    assert_eq!(run(site.command(&["status"]).env("VINCULO_ADMIN__TOKEN", "")).code, Some(0));
    assert_eq!(served.terminate(), Some(0));
}

#[test]
fn refused_keys_end_a_refresh_of_many_links_with_their_own_exit_code() {
    let simulate = Simulate::start(free_address(), &["--people", "40", "--no-limit"]);
    let site = Site::new(simulate.address, &[]);
    tokio::runtime::Runtime::new().unwrap().block_on(simulate.tell("connect", "{}"));
    assert_eq!(run(&mut site.command(&["links", "sync"])).code, Some(0));
    let ended = run(site.command(&["refresh", "--all", "--json"]).env("VINCULO_BELVO__SECRET_PASSWORD", "not the one"));
    assert_eq!(ended.code, Some(5), "{}{}", ended.out, ended.err);
    let told: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!((&told["refreshed"], &told["failed"]), (&json!(0), &json!({ "api_auth": 80 })));
    // They stay marked: with the right keys they are fetched.
    assert_eq!(run(&mut site.command(&["refresh", "--all"])).code, Some(0));
}
