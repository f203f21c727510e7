//! From what the register shows to the records that Belvo sends: ids, instants, JSON.

use std::time::Duration;

use super::json::Json;
use super::links::{Link, Resource, Stamp, day_of};
use super::people::identity::Owner;
use super::people::{KindSent, Pay, Person, Seen, SeenOccupation, Spelling};
use super::random::{Stream, uuid};
use crate::clock::Timestamp;

/// A record's id and instants.
pub(super) struct Envelope {
    /// UUID.
    pub id: String,
    /// When Belvo stored the record first.
    pub created_at: Stamp,
    /// When Belvo read it from the institution.
    pub collected_at: Stamp,
}

/// One item of the employments list.
pub(super) struct Employment<'a> {
    /// Id and instants.
    pub envelope: Envelope,
    /// The content.
    pub seen: Seen<'a>,
}

/// One item of the owners list.
pub(super) struct OwnerRecord<'a> {
    /// Id and instants.
    pub envelope: Envelope,
    /// The content.
    pub owner: &'a Owner,
}

/// The employments that Belvo holds after the collection `at`, in the order of the list.
pub(super) fn employments<'a>(seed: u64, link: &Link, person: &'a Person, at: Timestamp) -> Vec<Employment<'a>> {
    let mut records: Vec<_> = person
        .seen(day_of(at))
        .into_iter()
        .map(|seen| {
            let first = link.collections.first_since(seen.issued_on, at);
            let name = format!("employment {} {} {}", link.ordinal, seen.job, seen.edition);
            Employment { envelope: envelope(seed, link.person, &name, seen.job, first, at), seen }
        })
        .collect();
    records.retain(|record| !link.held(Resource::Employments).deleted.contains(&record.envelope.id));
    if person.spelling.newest_first {
        records.reverse();
    }
    records
}

/// The owner that Belvo holds after the collection `at`, unless the record was deleted.
pub(super) fn owner<'a>(seed: u64, link: &Link, person: &'a Person, at: Timestamp) -> Option<OwnerRecord<'a>> {
    let first = link.collections.first_since(person.identity.born, at);
    let envelope = envelope(seed, link.person, &format!("owner {}", link.ordinal), 40, first, at);
    let deleted = link.held(Resource::Owners).deleted.contains(&envelope.id);
    (!deleted).then(|| OwnerRecord { envelope, owner: person.owner(day_of(at)) })
}

/// The JSON of every record of `resource` after the collection `at`.
pub(super) fn list(seed: u64, link: &Link, person: &Person, resource: Resource, at: Timestamp) -> Vec<Json> {
    match resource {
        Resource::Employments => {
            employments(seed, link, person, at).iter().map(|e| employment_json(e, link, &person.spelling)).collect()
        }
        Resource::Owners => owner(seed, link, person, at).iter().map(|o| owner_json(o, link)).collect(),
    }
}

/// Records of one collection are read one after the other, and stored a moment later.
fn envelope(seed: u64, person: u32, name: &str, nth: u32, first: Timestamp, at: Timestamp) -> Envelope {
    let mut stream = Stream::new(seed, person, name);
    let read_after = Duration::from_micros(u64::from(nth) * 13_007);
    let stored_after = Duration::from_micros(stream.between(150_000, 900_000).unsigned_abs());
    Envelope {
        id: uuid(seed, person, name),
        created_at: Stamp::new(first + read_after + stored_after, stream.below(12)),
        collected_at: Stamp::new(at + read_after, stream.below(12)),
    }
}

fn employment_json(record: &Employment<'_>, link: &Link, spelling: &Spelling) -> Json {
    let seen = &record.seen;
    let mut occupations: Vec<Json> = seen.occupations.iter().map(occupation_json).collect();
    let mut salaries: Vec<Json> = seen.pay.iter().map(|pay| salary_json(pay)).collect();
    if spelling.newest_first {
        occupations.reverse();
        salaries.reverse();
    }
    Json::object([
        ("id", record.envelope.id.as_str().into()),
        ("link", link.id.as_str().into()),
        ("created_at", record.envelope.created_at.text().into()),
        ("collected_at", record.envelope.collected_at.text().into()),
        ("start_date", seen.start.map(|day| day.to_string()).into()),
        ("end_date", seen.end.map(|day| day.to_string()).into()),
        (
            "employer_data",
            Json::object([
                ("name", seen.employer.name.clone().into()),
                ("code", seen.employer.code.clone().into()),
                ("economic_activity", seen.activity.map(|activity| activity.text.as_str()).into()),
            ]),
        ),
        ("occupations", Json::List(occupations)),
        ("salaries", Json::List(salaries)),
    ])
}

fn occupation_json(occupation: &SeenOccupation<'_>) -> Json {
    Json::object([
        ("start_date", occupation.start.map(|day| day.to_string()).into()),
        ("end_date", occupation.end.map(|day| day.to_string()).into()),
        ("description", occupation.described.then_some(occupation.title.words).into()),
        ("name", occupation.title.name.clone().into()),
        ("locale", occupation.locale.into()),
    ])
}

fn salary_json(pay: &Pay) -> Json {
    let amount =
        |amount: Option<super::calendar::Amount>| amount.map_or(Json::Null, |a| Json::Number(a.text(pay.decimals)));
    let mut salary = Json::object([
        ("base_amount", amount(pay.base)),
        ("retained_amount", amount(pay.retained)),
        ("type", if pay.kind_sent == KindSent::Word { pay.kind.text().into() } else { Json::Null }),
        ("month", month_text(pay).into()),
        ("currency", pay.currency.into()),
    ]);
    if pay.kind_sent == KindSent::Absent {
        salary.remove("type");
    }
    salary
}

/// `YYYY-MM`, or `YYYY-13`.
pub(super) fn month_text(pay: &Pay) -> String {
    if pay.thirteenth_month { format!("{:04}-13", pay.month.year()) } else { pay.month.to_string() }
}

fn owner_json(record: &OwnerRecord<'_>, link: &Link) -> Json {
    let owner = record.owner;
    let document = owner.document.as_ref().map_or(Json::Null, |document| {
        Json::object([("document_type", document.kind.into()), ("document_number", document.number.clone().into())])
    });
    let mut json = Json::object([
        ("id", record.envelope.id.as_str().into()),
        ("link", link.id.as_str().into()),
        ("internal_identification", owner.internal_identification.clone().into()),
        ("collected_at", record.envelope.collected_at.text().into()),
        ("created_at", record.envelope.created_at.text().into()),
        ("display_name", owner.display_name.clone().into()),
        ("email", owner.email.clone().into()),
        ("phone_number", owner.phone_number.clone().into()),
        ("address", owner.address.clone().into()),
        ("document_id", document),
    ]);
    if owner.deprecated_names {
        for key in ["business_name", "first_name", "last_name", "second_last_name"] {
            json.set(key, Json::Null);
        }
    }
    json
}
