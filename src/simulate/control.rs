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
//! | `POST /_sim/advance` `{months?, days?, hours?, minutes?, seconds?}` | moves the clock by all that is given together |
//! | `POST /_sim/webhooks` `{link, resource, copies?}`, `{link, code}` or `{payload, copies?}` | sends events at once |
//! | `GET`, `POST`, `DELETE /_sim/faults` | what is on; switch on `{"fault": …}` (or a list of them, or `{"flag": "…"}`, or `{"id": "AP5"}`, a row of the fault list); all off |
//!
//! A body with a key that is not known is refused with 400 and the keys that are, so that nothing goes unheard.
//! `POST … ?wait=true` answers when no webhook is outstanding any more.

use std::time::Duration;

use axum::http::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
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
        ("POST", "connect") => read(body).and_then(|body| connect(simulation, body)),
        ("POST", "advance") => read(body).and_then(|body| advance(simulation, &body)),
        ("POST", "webhooks") => read(body).and_then(|body| webhooks(simulation, body)),
        ("GET", "faults") => Ok(simulation.state().faults.describe()),
        ("POST", "faults") => faults(simulation, &body),
        ("DELETE", "faults") => {
            simulation.clear_faults();
            Ok(simulation.state().faults.describe())
        }
        _ => return Answer::json(404, json_bytes(&json!({"error": format!("there is no {method} {path}")}))),
    };
    if result.is_ok() && query.contains("wait=true") {
        simulation.wait_until_delivered().await;
    }
    result.map_or_else(|why| refused(&why), |value| Answer::json(200, json_bytes(&value)))
}

/// A body as the path knows it; the refusal of any other names the known keys.
fn read<T: DeserializeOwned>(body: Value) -> Result<T, String> {
    // An array would be read as the values of all keys in their order.
    if !body.is_object() {
        return Err("the body is not a JSON object".to_owned());
    }
    serde_json::from_value(body).map_err(|error| error.to_string())
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
        "next_person": world.next_person(),
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Connect {
    first: Option<u32>,
    count: Option<u32>,
    again: Option<bool>,
    access_mode: Option<String>,
    external_id: Option<String>,
    fetch_resources: Option<Vec<String>>,
}

fn connect(simulation: &Simulation, body: Connect) -> Result<Value, String> {
    let first = body.first.unwrap_or(0);
    let count = body.count.unwrap_or_else(|| simulation.0.settings.people.saturating_sub(first));
    let Some(end) = first.checked_add(count).filter(|end| *end <= EVERYBODY) else {
        return Err(format!("there are no more than {EVERYBODY} people"));
    };
    if let Some(mode) = body.access_mode.as_deref().filter(|mode| !["single", "recurrent"].contains(mode)) {
        return Err(format!("there is no access mode `{mode}`; known are single, recurrent"));
    }
    if let Some(name) = body.fetch_resources.iter().flatten().find(|name| Resource::parse(name).is_none()) {
        return Err(unknown_resource(name));
    }
    let wish = Wish {
        access_mode: body.access_mode,
        external_id: body.external_id,
        fetch_resources: body.fetch_resources,
        ..Wish::default()
    };
    let again = body.again.unwrap_or_default();
    let mut made = Vec::new();
    for person in first..end {
        if again || !simulation.state().world.is_connected(person) {
            let position = simulation.connect_one(person, wish.clone());
            made.push(simulation.state().world.link(position).id.clone());
        }
    }
    Ok(json!({"connected": made.len(), "links": made}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Time {
    months: Option<u32>,
    days: Option<u64>,
    hours: Option<u64>,
    minutes: Option<u64>,
    seconds: Option<u64>,
}

impl Time {
    /// How far to move; `None` where it is more than any clock shows.
    fn together(&self) -> Option<Advance> {
        let seconds = [(self.hours, 3_600), (self.minutes, 60), (self.seconds, 1)]
            .into_iter()
            .try_fold(0_u64, |sum, (many, unit)| sum.checked_add(many.unwrap_or(0).checked_mul(unit)?))?;
        Some(Advance { months: self.months.unwrap_or(0), days: self.days.unwrap_or(0), seconds })
    }
}

fn advance(simulation: &Simulation, body: &Time) -> Result<Value, String> {
    if let Time { months: None, days: None, hours: None, minutes: None, seconds: None } = body {
        return Err("the body is empty: say how far in `months`, `days`, `hours`, `minutes` or `seconds`".to_owned());
    }
    let now = simulation.state().world.now;
    let Some(by) = body.together().filter(|by| by.from(now).is_some()) else {
        return Err("there is no such time: the last year is 9999".to_owned());
    };
    let events = simulation.advance(by);
    Ok(json!({"now": simulation.state().world.now.to_string(), "events": events}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    link: Option<String>,
    resource: Option<String>,
    code: Option<String>,
    payload: Option<Value>,
    copies: Option<u32>,
}

fn webhooks(simulation: &Simulation, body: Event) -> Result<Value, String> {
    let copies = body.copies.unwrap_or(1);
    if let Some(payload) = body.payload {
        if body.link.is_some() || body.resource.is_some() || body.code.is_some() {
            return Err("a `payload` is sent as it is: beside it only `copies` is known".to_owned());
        }
        simulation.send_raw(&Json::from(payload), copies);
        return Ok(json!({"events": copies}));
    }
    let id = body.link.as_deref().ok_or("an event needs `link` or `payload`")?;
    let position = simulation.state().world.find(id).ok_or_else(|| format!("there is no link {id}"))?;
    let resource = body.resource.as_deref();
    let resource = resource.map(|name| Resource::parse(name).ok_or_else(|| unknown_resource(name))).transpose()?;
    let abouts = match body.code.as_deref() {
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Flag {
    flag: String,
}

fn faults(simulation: &Simulation, body: &Value) -> Result<Value, String> {
    let wanted = match body {
        Value::Array(faults) => faults.iter().collect(),
        one => vec![one],
    };
    let faults: Vec<Fault> = wanted
        .into_iter()
        .map(|fault| match fault.get("flag") {
            Some(_) => read::<Flag>(fault.clone()).and_then(|fault| Fault::parse(&fault.flag)),
            None => Fault::from_json(fault),
        })
        .collect::<Result<_, _>>()?;
    for fault in faults {
        simulation.arm(fault);
    }
    Ok(simulation.state().faults.describe())
}

fn unknown_resource(name: &str) -> String {
    let known = Resource::ALL.map(Resource::name).join(", ");
    format!("there is no resource `{name}`; known are {known}")
}
