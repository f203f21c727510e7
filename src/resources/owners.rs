//! Owners: the person behind a link.

use super::{Derive, Resource};
use crate::sensitive::{Cpf, Pepper};

/// `GET /api/owners/`. INSS sends Belvo's multi-region shape; fields of the open-finance shapes count as drift.
pub static RESOURCE: Resource = Resource {
    name: "owners",
    record_name: "owner",
    endpoint: "/api/owners/",
    needs_link: false,
    webhook_type: "OWNERS",
    total_key: "total_owners",
    schema: include_str!("../../schemas/owners.toml"),
    likeness: |_| None,
    derived,
};

fn derived(name: &str) -> Option<Derive> {
    Some(match name {
        "person_key" => Derive::Text(person_key),
        "is_given" => Derive::Boolean(|inputs| inputs[0].is_some_and(|text| !text.is_empty())),
        _ => return None,
    })
}

/// The document number comes as digits or with dots and dash.
fn person_key(inputs: &[Option<&str>], pepper: Option<&Pepper>, out: &mut String) -> bool {
    let (Some(pepper), Some(cpf)) = (pepper, inputs[0].and_then(Cpf::parse)) else { return false };
    out.push_str(&pepper.key_of(&[cpf.digits()]));
    true
}
