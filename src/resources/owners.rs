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

fn person_key(inputs: &[Option<&str>], pepper: Option<&Pepper>, out: &mut String) -> bool {
    let Some(key) = pepper.and_then(|pepper| person_of(inputs[0], inputs[1], pepper)) else { return false };
    out.push_str(&key);
    true
}

/// The key of the person that a document is of, which comes as digits or with dots and dash; `None` when it is no CPF.
/// Numbers of other kinds have as many digits, and one in a hundred of them would pass for one.
pub fn person_of(number: Option<&str>, kind: Option<&str>, pepper: &Pepper) -> Option<String> {
    let is_cpf = kind.is_none_or(|kind| kind.eq_ignore_ascii_case("CPF"));
    number.filter(|_| is_cpf).and_then(Cpf::parse).map(|cpf| pepper.key_of(&[cpf.digits()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_another_kind_of_document_is_no_person() {
        let pepper = Pepper::new("pepper-of-a-test".to_owned().into());
        let person = |kind| person_of(Some("529.982.247-25"), kind, &pepper);
        assert!(person(Some("CPF")).is_some() && person(None) == person(Some("CPF")));
        assert_eq!(person(Some("NIT")), None);
    }
}
