//! Who may order what over the API: nothing is done for a token whose role is too low.

use reqwest::Method;
use serde_json::{Value, json};
use vinculo::store::args;

use crate::harness::{Flow, TOKEN};

const OPERATOR: &str = "it-token-that-orders-only";
const READER: &str = "it-token-that-looks-only";

/// The daemon with a token of each role.
async fn start() -> Flow {
    let tokens = [("admin.operate_tokens", OPERATOR), ("admin.read_tokens", READER)];
    let flow = Flow::start_with(1, |_| {}, &tokens).await;
    flow.simulation.connect_all();
    flow.until_idle().await;
    flow
}

async fn say(flow: &Flow, token: Option<&str>, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let mut request =
        reqwest::Client::new().request(method, format!("http://{}{path}", flow.running.daemon.admin_address.unwrap()));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), serde_json::from_str(&answer.text().await.unwrap()).unwrap())
}

#[tokio::test]
async fn nothing_is_ordered_without_a_token_with_a_wrong_one_or_with_too_low_a_role() {
    let flow = start().await;
    let id = flow.simulation.link_ids().remove(0);
    let orders = [
        ("/v1/widget-sessions".to_owned(), "operate"),
        ("/v1/links/refresh".to_owned(), "operate"),
        ("/v1/links/sync".to_owned(), "operate"),
        ("/v1/links/recollect".to_owned(), "operate"),
        (format!("/v1/links/{id}/refresh"), "operate"),
        (format!("/v1/links/{id}/delete"), "erase"),
        ("/v1/jobs/nothing/run".to_owned(), "operate"),
        ("/v1/webhooks/1/replay".to_owned(), "operate"),
        ("/v1/webhooks/replay".to_owned(), "operate"),
        ("/v1/publish".to_owned(), "operate"),
        ("/v1/rebuild".to_owned(), "operate"),
        ("/v1/features".to_owned(), "operate"),
        ("/v1/erasures".to_owned(), "erase"),
    ];
    for (path, needed) in &orders {
        let body = Some(json!({ "links": { "all": true }, "link_id": id, "reason": "it", "external_id": "it-1" }));
        for token in [None, Some("it-token-of-nobody-at-all")] {
            let (status, answer) = say(&flow, token, Method::POST, path, body.clone()).await;
            assert_eq!((status, &answer["error"]["code"]), (401, &json!("unauthorized")), "{path}");
        }
        let too_low = if *needed == "erase" { &[READER, OPERATOR][..] } else { &[READER] };
        for &token in too_low {
            let (status, answer) = say(&flow, Some(token), Method::POST, path, body.clone()).await;
            assert_eq!((status, &answer["error"]["code"]), (403, &json!("role_too_low")), "{path}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(needed) && !message.contains(token), "{message}");
        }
    }
    for path in ["/v1", "/v1/links", "/v1/jobs", "/v1/runs", "/v1/webhooks", "/v1/status"] {
        for token in [READER, OPERATOR, TOKEN] {
            assert_eq!(say(&flow, Some(token), Method::GET, path, None).await.0, 200, "{path}");
        }
    }
    let count = |table: &'static str| {
        let store = &flow.running.daemon.store;
        async move {
            let sql = format!("SELECT count(*) FROM {table}");
            store.read(move |tx| tx.one(&sql, args![], |row| row.int(0))).await.unwrap()
        }
    };
    for table in ["runs", "widget_sessions", "recollects", "deletions", "tombstones"] {
        assert_eq!(count(table).await, Some(0), "{table}");
    }

    let (status, answer) = say(&flow, Some(OPERATOR), Method::POST, "/v1/publish", None).await;
    assert_eq!(status, 202, "{answer}");
}
