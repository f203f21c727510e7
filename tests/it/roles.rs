//! Who may order what over the API: nothing is done for a token whose role is too low.

use reqwest::Method;
use serde_json::{Value, json};

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
    let (status, document) = say(&flow, Some(READER), Method::GET, "/v1/openapi.json", None).await;
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    let mut seen = (0, 0);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path =
            path.replace("{link_id}", &id).replace("{seq}", "1").replace("{name}", "compare").replace("{id}", "1");
        for (method, operation) in methods.as_object().unwrap() {
            let method: Method = method.to_ascii_uppercase().parse().unwrap();
            let needed = operation["x-vinculo-role"].as_str().unwrap();
            let body = (method == Method::POST)
                .then(|| json!({ "links": { "all": true }, "link_id": id, "reason": "it", "external_id": "it-1" }));
            for token in [None, Some("it-token-of-nobody-at-all")] {
                let (status, answer) = say(&flow, token, method.clone(), &path, body.clone()).await;
                assert_eq!((status, &answer["error"]["code"]), (401, &json!("unauthorized")), "{path}");
            }
            let too_low = match needed {
                "read" => &[][..],
                "operate" => &[READER],
                _ => &[READER, OPERATOR],
            };
            for &token in too_low {
                let (status, answer) = say(&flow, Some(token), method.clone(), &path, body.clone()).await;
                assert_eq!((status, &answer["error"]["code"]), (403, &json!("role_too_low")), "{path}");
                let message = answer["error"]["message"].as_str().unwrap();
                assert!(message.contains(needed) && !message.contains(token), "{message}");
            }
            if method == Method::GET {
                assert_eq!(needed, "read", "{path}");
                for token in [READER, OPERATOR, TOKEN] {
                    let (status, answer) = say(&flow, Some(token), Method::GET, &path, None).await;
                    // A webhook or run with this number need not be there.
                    assert!(status == 200 || status == 404, "{path}: {answer}");
                    assert_ne!(answer["error"]["code"], json!("not_found"), "{path}");
                }
                seen.0 += 1;
            } else {
                assert_ne!(needed, "read", "{path}");
                seen.1 += 1;
            }
        }
    }
    assert!(seen.0 >= 11 && seen.1 >= 15, "{seen:?}");
    let count = |table: &'static str| {
        let store = &flow.running.daemon.store;
        async move {
            let sql = format!("SELECT count(*) FROM {table}");
            store.read(move |tx| tx.one(&sql, &[], |row| row.int(0))).await.unwrap()
        }
    };
    // Of all the wrong tokens one line is in the audit, and nothing else.
    let orders = "audit WHERE action <> 'sign_in_failed'";
    for table in ["runs", "widget_sessions", "recollects", "deletions", "tombstones", orders] {
        assert_eq!(count(table).await, Some(0), "{table}");
    }
    assert!(matches!(count("audit").await, Some(1..=2)), "one in a minute");

    let (status, answer) = say(&flow, Some(OPERATOR), Method::POST, "/v1/publish", None).await;
    assert_eq!(status, 202, "{answer}");
}

#[tokio::test]
async fn who_ordered_what_and_what_came_of_it_is_in_the_audit_and_names_nobody() {
    let flow = start().await;
    let id = flow.simulation.link_ids().remove(0);
    let lines = async |query: &str| {
        let (status, mut page) = say(&flow, Some(READER), Method::GET, &format!("/v1/audit{query}"), None).await;
        assert_eq!(status, 200, "{page}");
        (page["lines"].as_array_mut().map(std::mem::take).unwrap(), page["next"].take())
    };
    let body = Some(json!({ "resources": ["owners"] }));
    let (status, ordered) = say(&flow, Some(OPERATOR), Method::POST, &format!("/v1/links/{id}/refresh"), body).await;
    assert_eq!(status, 202, "{ordered}");
    let run = ordered["run"]["id"].as_str().unwrap().to_owned();
    flow.until_idle().await;
    let unknown = "/v1/links/2f5d361d-dad6-45d4-a0bf-26d479766067/refresh";
    assert_eq!(say(&flow, Some(TOKEN), Method::POST, unknown, None).await.0, 404);
    let odd = "/v1/jobs/Maria%20da%20Silva/run";
    assert_eq!(say(&flow, Some(TOKEN), Method::POST, odd, None).await.0, 404);
    loop {
        let (_, told) = say(&flow, Some(READER), Method::GET, &format!("/v1/runs/{run}?wait=10"), None).await;
        if told["run"]["finished_at"].is_string() {
            break;
        }
    }

    let (all, next) = lines("").await;
    let found: Vec<_> = all
        .iter()
        .rev()
        .map(|line| {
            let (action, detail) = (line["action"].as_str().unwrap(), &line["detail"]);
            match action {
                "asked" => format!("{} asked for {}", detail["caller"], detail["operation"]),
                _ => format!("{action} {} {}", detail["status"], line["outcome"]),
            }
        })
        .collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    "admin.operate_tokens 1" asked for "POST /v1/links/{link_id}/refresh"
    answered 202 "done"
    "admin.token" asked for "POST /v1/links/{link_id}/refresh"
    answered 404 null
    "admin.token" asked for "POST /v1/jobs/{name}/run"
    answered 404 null
    "#);
    assert_eq!(next, Value::Null);
    assert_eq!(all[0]["detail"]["asked"], all[1]["hash"], "an answer says which line it answers");
    assert_eq!(all[4]["detail"]["run"], json!(run));
    let text = Value::from(all.clone()).to_string();
    assert!(!text.contains(&id[..13]) && !text.contains("Maria") && !text.contains(OPERATOR), "{text}");

    let (of_link, _) = lines(&format!("?link={id}")).await;
    assert_eq!(of_link, all[5..]);
    let (first, next) = lines("?limit=2").await;
    let (second, _) = lines(&format!("?limit=1&after={}", next.as_str().unwrap())).await;
    assert_eq!((&first[..], &second[..]), (&all[..2], &all[2..3]));
    assert_eq!(flow.running.daemon.store.read(vinculo::audit::check).await.unwrap(), (6, None));
}
