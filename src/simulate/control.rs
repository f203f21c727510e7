//! The simulator's own paths, below `/_sim/`: what a test does with the handle, over HTTP.
//!
//! | path | |
//! | --- | --- |
//! | `GET /_sim/truth` | what the tables should hold |
//! | `GET /_sim/ledger` | every list that was answered, and the rows it should come to |
//! | `GET /_sim/arrivals` | every call of the API, in microseconds since the first |
//! | `GET /_sim/state` | webhooks delivered, outstanding, given up; links, clock, limit |
//! | `GET /_sim/deliveries` | every attempt to deliver a webhook |
//! | `GET /_sim/links` | persons, archetypes and ids of the links |
//! | `POST /_sim/connect` `{first?, count?, again?, access_mode?, external_id?, fetch_resources?}` | makes links, as the widget would, from the first person on and to the last of `--people` unless told otherwise; with `again` also for who has one |
//! | `POST /_sim/advance` `{months?, days?, seconds?}` | moves the clock |
//! | `POST /_sim/webhooks` `{link, resource, copies?}`, `{link, code}` or `{payload, copies?}` | sends events at once |
//! | `GET`, `POST`, `DELETE /_sim/faults` | what is on; switch on `{"fault": …}` (or a list of them, or `{"flag": "…"}`, or `{"id": "AP5"}`, a row of the fault list); all off |
//!
//! `POST … ?wait=true` answers when no webhook is outstanding any more.

use std::time::Duration;

use axum::http::Method;
use serde_json::{Value, json};

use super::answer::Answer;
use super::faults::Fault;
use super::json::Json;
use super::links::{Resource, Wish};
use super::people::{EVERYBODY, archetypes};
use super::server::json_bytes;
use super::webhooks::About;
use super::world::Advance;
use super::{Simulation, State};

/// Answers one of the simulator's own paths.
pub(super) async fn answer(simulation: &Simulation, method: &Method, path: &str, query: &str, body: &[u8]) -> Answer {
    let body = if body.is_empty() { Ok(json!({})) } else { serde_json::from_slice(body) };
    let Ok(body) = body else { return refused("the body is not JSON") };
    let name = path.trim_start_matches("/_sim/").trim_end_matches('/');
    let result = match (method.as_str(), name) {
        ("GET", "truth") => Ok(simulation.truth()),
        ("GET", "ledger") => Ok(simulation.ledger()),
        ("GET", "arrivals") => Ok(arrivals(simulation)),
        ("GET", "state") => Ok(state(simulation)),
        ("GET", "deliveries") => Ok(deliveries(simulation)),
        ("GET", "links") => Ok(links(simulation)),
        ("POST", "connect") => connect(simulation, &body),
        ("POST", "advance") => advance(simulation, &body),
        ("POST", "webhooks") => webhooks(simulation, body),
        ("GET", "faults") => Ok(simulation.state().faults.describe()),
        ("POST", "faults") => faults(simulation, &body),
        ("DELETE", "faults") => {
            simulation.clear_faults();
            Ok(simulation.state().faults.describe())
        }
        _ => return Answer::json(404, json_bytes(&json!({"error": format!("there is no {method} {path}")}))),
    };
    if query.contains("wait=true") {
        simulation.wait_until_delivered().await;
    }
    result.map_or_else(|why| refused(&why), |value| Answer::json(200, json_bytes(&value)))
}

fn refused(why: &str) -> Answer {
    Answer::json(400, json_bytes(&json!({"error": why})))
}

fn arrivals(simulation: &Simulation) -> Value {
    let arrivals = simulation.arrivals();
    let first = arrivals.first().map(|arrival| arrival.at);
    let rows = arrivals.iter().map(|arrival| {
        let micros = first.map_or(0, |first| arrival.at.saturating_duration_since(first).as_micros());
        json!({
            "micros": u64::try_from(micros).unwrap_or(u64::MAX),
            "method": arrival.method,
            "path": arrival.path,
            "link": arrival.link,
            "together": arrival.together,
            "refused": arrival.refused,
        })
    });
    rows.collect()
}

fn state(simulation: &Simulation) -> Value {
    let tally = simulation.webhooks();
    let state = simulation.state();
    let State { world, arrivals, .. } = &*state;
    let settings = &simulation.0.settings;
    json!({
        "people": settings.people,
        "seed": settings.seed,
        "now": world.now.to_string(),
        "links": world.links().count(),
        "webhooks": {
            "scheduled": tally.scheduled,
            "delivered": tally.delivered,
            "outstanding": tally.outstanding,
            "failed": tally.given_up,
            "attempts": tally.attempts,
        },
        "calls": arrivals.len(),
        "refused": arrivals.iter().filter(|arrival| arrival.refused).count(),
        "limit": settings.limit.map(|limit| json!({"requests": limit.requests, "per_secs": limit.per.as_secs_f64()})),
    })
}

fn deliveries(simulation: &Simulation) -> Value {
    let deliveries = simulation.deliveries();
    let first = deliveries.iter().map(|delivered| delivered.sent_at).min();
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let rows = deliveries.iter().map(|delivered| {
        json!({
            "micros": first.map_or(0, |first| micros(delivered.sent_at.saturating_duration_since(first))),
            "took_micros": micros(delivered.took),
            "link": delivered.link,
            "resource": delivered.resource.map(Resource::name),
            "status": delivered.status,
        })
    });
    rows.collect()
}

fn links(simulation: &Simulation) -> Value {
    let state = simulation.state();
    let rows = state.world.links().map(|(_, link)| {
        json!({
            "link": link.id,
            "person": link.person,
            "archetype": archetypes::NAMES.get(link.person as usize),
            "external_id": link.external_id,
            "loaded": Resource::ALL.into_iter().filter(|r| link.held(*r).loaded).map(Resource::name).collect::<Vec<_>>(),
        })
    });
    rows.collect()
}

fn connect(simulation: &Simulation, body: &Value) -> Result<Value, String> {
    let first = number(body, "first")?.unwrap_or(0);
    let count = match number(body, "count")? {
        Some(count) => count,
        None => u64::from(simulation.0.settings.people).saturating_sub(first),
    };
    let end = first.checked_add(count).and_then(|end| u32::try_from(end).ok()).filter(|end| *end <= EVERYBODY);
    let (Some(end), Ok(first)) = (end, u32::try_from(first)) else {
        return Err(format!("there are no more than {EVERYBODY} people"));
    };
    let text = |key| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let resources = body.get("fetch_resources").and_then(Value::as_array);
    let wish = Wish {
        access_mode: text("access_mode"),
        external_id: text("external_id"),
        fetch_resources: resources.map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        ..Wish::default()
    };
    let again = body.get("again").and_then(Value::as_bool).unwrap_or_default();
    let mut made = Vec::new();
    for person in first..end {
        if again || !simulation.state().world.is_connected(person) {
            let position = simulation.connect_one(person, wish.clone());
            made.push(simulation.state().world.link(position).id.clone());
        }
    }
    Ok(json!({"connected": made.len(), "links": made}))
}

fn advance(simulation: &Simulation, body: &Value) -> Result<Value, String> {
    let months = u32::try_from(number(body, "months")?.unwrap_or(0)).map_err(|_| "`months` is too large")?;
    let by =
        Advance { months, days: number(body, "days")?.unwrap_or(0), seconds: number(body, "seconds")?.unwrap_or(0) };
    if by.from(simulation.state().world.now).is_none() {
        return Err("there is no such time: the last year is 9999".to_owned());
    }
    let events = simulation.advance(by);
    Ok(json!({"now": simulation.state().world.now.to_string(), "events": events}))
}

fn webhooks(simulation: &Simulation, mut body: Value) -> Result<Value, String> {
    let copies = u32::try_from(number(&body, "copies")?.unwrap_or(1)).map_err(|_| "`copies` is too large")?;
    if let Some(payload) = body.get_mut("payload").map(Value::take) {
        simulation.send_raw(&Json::from(payload), copies);
        return Ok(json!({"events": copies}));
    }
    let id = body.get("link").and_then(Value::as_str).ok_or("an event needs `link` or `payload`")?;
    let position = simulation.state().world.find(id).ok_or_else(|| format!("there is no link {id}"))?;
    let resource = body.get("resource").and_then(Value::as_str);
    let resource = resource
        .map(|name| Resource::parse(name).ok_or_else(|| format!("there is no resource `{name}`")))
        .transpose()?;
    let abouts = match body.get("code").and_then(Value::as_str) {
        Some("invalid_credentials") => vec![About::InvalidCredentials],
        Some("token_required") => vec![About::TokenRequired],
        Some("link_deleted") => vec![About::Deleted],
        Some("new_employments_available") => vec![About::New(Resource::Employments, 1)],
        Some("new_owners_available") => vec![About::New(Resource::Owners, 1)],
        None | Some("historical_update") => resource
            .map_or(Resource::ALL.to_vec(), |resource| vec![resource])
            .into_iter()
            .map(About::Historical)
            .collect(),
        Some(other) => return Err(format!("there is no event `{other}`")),
    };
    for about in &abouts {
        let status = match about {
            About::InvalidCredentials => Some("invalid"),
            About::TokenRequired => Some("token_required"),
            _ => None,
        };
        if let Some(status) = status {
            simulation.state().world.set_status(position, status);
        }
        for _ in 0..copies {
            simulation.announce(position, about.clone(), Some(Duration::ZERO));
        }
    }
    Ok(json!({"events": abouts.len() as u64 * u64::from(copies)}))
}

fn faults(simulation: &Simulation, body: &Value) -> Result<Value, String> {
    let wanted = match body {
        Value::Array(faults) => faults.iter().collect(),
        one => vec![one],
    };
    let faults: Vec<Fault> = wanted
        .into_iter()
        .map(|fault| match fault.get("flag").and_then(Value::as_str) {
            Some(flag) => Fault::parse(flag),
            None => Fault::from_json(fault),
        })
        .collect::<Result<_, _>>()?;
    for fault in faults {
        simulation.arm(fault);
    }
    Ok(simulation.state().faults.describe())
}

fn number(body: &Value, key: &str) -> Result<Option<u64>, String> {
    match body.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("`{key}` is not a whole number")),
    }
}
