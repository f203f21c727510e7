//! `GET /v1/openapi.json`: the API as an OpenAPI 3.1 document, made of the same list as the router and of the types
//! that are read and written.

use std::sync::LazyLock;

use axum::Json;
use axum::http::Method;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::route::Route;
use crate::widget::Violation;

/// Where schemas of answers stand in the document.
const COMPONENTS: &str = "/components/schemas";

pub(super) fn routes() -> Vec<Route> {
    vec![Route::get::<Document, _, _>("/v1/openapi.json", "Gives this document", show)]
}

/// An OpenAPI document.
type Document = Map<String, Value>;

async fn show() -> Json<&'static Value> {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    Json(&DOCUMENT)
}

/// The API as an OpenAPI 3.1 document.
pub fn document() -> Value {
    let mut answers = SchemaSettings::draft2020_12().for_serialize();
    answers.definitions_path = COMPONENTS.into();
    let mut questions = SchemaSettings::draft2020_12().for_deserialize();
    questions.inline_subschemas = true;
    let (mut answers, mut questions) = (answers.into_generator(), questions.into_generator());
    let refusal = answers.subschema_for::<Refusal>().to_value();
    let mut paths = Map::new();
    for route in super::all() {
        let operation = operation(&route, &mut answers, &mut questions, &refusal);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "vinculo",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The API of a running daemon, on admin.listen. Each operation needs a token with the role that \
                            x-vinculo-role names, or a higher one: read, operate, erase. What takes time is answered with \
                            202 and a run, which GET /v1/runs/{id} follows.",
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": answers.take_definitions(true),
        },
    })
}

fn operation(route: &Route, answers: &mut SchemaGenerator, questions: &mut SchemaGenerator, refusal: &Value) -> Value {
    let (status, gives) = route.success;
    let mut success = json!({ "description": "It is done", "content": json_of(gives(answers).to_value()) });
    if status == super::route::ORDERED {
        let place = json!({ "description": "Where the run is followed", "schema": { "type": "string" } });
        success["description"] = "It is begun; this is its run".into();
        success["headers"] = json!({ "Location": place });
    }
    let mut responses = Map::from_iter([(status.as_str().to_owned(), success)]);
    for (status, meaning) in failures(route) {
        let answer = json!({ "description": meaning, "content": json_of(refusal.clone()) });
        responses.insert(status.to_string(), answer);
    }
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.summary,
        "x-vinculo-role": route.role,
        "responses": responses,
    });
    let mut parameters: Vec<Value> = names_in(route.path).map(path_parameter).collect();
    if let Some(query) = route.query {
        parameters.extend(query_parameters(&query(questions).to_value()));
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = route.body {
        let schema = body(questions).to_value();
        operation["requestBody"] = json!({ "required": !route.is_body_optional, "content": json_of(schema) });
    }
    operation
}

/// Every failure of an operation: its own, and those that follow from what it takes.
fn failures(route: &Route) -> Vec<(u16, &'static str)> {
    let mut failures = vec![
        (401, "the token is missing or wrong"),
        (403, "the token has too low a role, or the request comes from another site's page"),
        (421, "the name of this host is not in admin.allowed_hosts"),
        (429, "too many wrong tokens came from this address"),
        (503, "the state cannot be read or written"),
    ];
    let has_parameters = names_in(route.path).next().is_some();
    if has_parameters {
        failures.push((404, "there is no such thing"));
    }
    if has_parameters || route.query.is_some() || route.body.is_some() {
        failures.push((422, "a value cannot be"));
    }
    if route.body.is_some() {
        failures.extend([
            (400, "the body is not JSON"),
            (413, "the body is too large"),
            (415, "the body is not called JSON"),
        ]);
    }
    if route.method == Method::POST {
        failures.push((409, "it cannot be done now"));
    }
    failures.retain(|(status, _)| route.failures.iter().all(|(own, _)| own != status));
    failures.extend(route.failures);
    failures
}

fn json_of(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

/// Such as `post_links_refresh`.
fn operation_id(route: &Route) -> String {
    let parts = route.path.split('/').filter(|part| !part.is_empty() && *part != "v1");
    let words: String = parts.flat_map(|part| ["_", part.trim_matches(['{', '}'])]).collect();
    let words = if words.is_empty() { "_index" } else { &words };
    format!("{}{}", route.method.as_str().to_ascii_lowercase(), words.replace(['-', '.'], "_"))
}

fn names_in(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn path_parameter(name: &str) -> Value {
    let schema = match name {
        "link_id" => json!({ "type": "string", "format": "uuid" }),
        "seq" => json!({ "type": "integer", "format": "int64", "minimum": 1 }),
        _ => json!({ "type": "string", "minLength": 1 }),
    };
    json!({ "name": name, "in": "path", "required": true, "schema": schema })
}

/// The members of an object as parameters of a query, where nothing is absent by being null.
fn query_parameters(object: &Value) -> Vec<Value> {
    let required = object["required"].as_array().cloned().unwrap_or_default();
    let members = object["properties"].as_object().into_iter().flatten();
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        if let Some(kinds) = schema["type"].as_array_mut() {
            kinds.retain(|kind| kind != "null");
            if let [only] = &kinds[..] {
                schema["type"] = only.clone();
            }
        }
        if let Some(members) = schema.as_object_mut() {
            members.remove("default");
        }
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let is_required = required.iter().any(|required| required == name);
        json!({ "name": name, "in": "query", "required": is_required, "description": description, "schema": schema })
    };
    members.map(parameter).collect()
}

/// An error as every path answers it.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
struct Refusal {
    error: Told,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ErrorDetail")]
struct Told {
    /// Stable: what a program decides by.
    code: String,
    /// What happened, and what to do next.
    message: String,
    /// Each field that breaks a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<Vec<Violation>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_the_router_is_in_the_document_and_the_other_way_round() {
        let document = document();
        let paths = document["paths"].as_object().unwrap();
        let mut documented: Vec<_> = paths
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(move |method| format!("{method} {path}"))
            })
            .collect();
        let mut routed: Vec<_> =
            super::super::all().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
        for operation in &mut routed {
            *operation = operation.replace("GET", "get").replace("POST", "post");
        }
        documented.sort();
        routed.sort();
        assert_eq!(documented, routed);
        let mut ids: Vec<_> = super::super::all().iter().map(operation_id).collect();
        let count = ids.len();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), count, "{ids:?}");
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        let document = document();
        let text = document.to_string();
        let mut references = 0;
        for reference in text.split("\"$ref\":\"#").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document.pointer(reference).is_some(), "{reference}");
            references += 1;
        }
        assert!(references > 30, "{references}");
    }
}
