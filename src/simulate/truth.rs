//! What the current tables should hold, computed from the people and not from the JSON that is sent.
//!
//! *Takes* the world and its lasting faults. *Gives* `{table: [row, …]}` for `links`, `employments`, `occupations`,
//! `salaries`, `owners` and `link_snapshots`, by column name: decimals as text with four digits behind the point, dates
//! as `YYYY-MM-DD`, instants as RFC 3339 with six digits and `Z`. Only links whose webhook has come are in it.
//!
//! *Not here*: columns that only the program's own clock can know (`links.last_fetched_at`, `last_webhook_at`,
//! `next_refresh_at`, `is_stale`; `link_snapshots.fetched_at`, `changed`), and the second list that must agree before a
//! missing row is gone: a row is in the truth while Belvo lists it. `known_from` is the `collected_at` of the first of
//! an unbroken run of collections with the same content, among those that a webhook told of.
//!
//! Jobs of a link that are alike in employer and start are told apart by the text of their end, an open one last;
//! people are made so that this is enough.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::calendar::Amount;
use super::faults::{Content, Faults, NEW_KIND, NEW_LOCALE};
use super::links::{INSTITUTION, Link, Resource};
use super::people::identity::Owner;
use super::people::work::{Activity, Employer};
use super::people::{Kind, KindSent, Pay, Person, SeenOccupation, documents};
use super::random::hex;
use super::records::{self, Employment};
use super::world::World;
use crate::clock::Timestamp;

/// The tables, by name.
pub(super) fn truth(world: &World, faults: &Faults, pepper: Option<&str>) -> Value {
    let mut tables: BTreeMap<&str, Vec<Value>> = TABLES.iter().map(|table| (*table, Vec::new())).collect();
    for (_, link) in world.links() {
        let told = Resource::ALL.into_iter().filter(|resource| link.held(*resource).loaded).count();
        if told == 0 {
            continue;
        }
        let person = Person::of(world.seed, link.person);
        let view = View { world, link, person: &person, faults, pepper };
        let employments = view.replay(Resource::Employments, |at, keys| view.employments(at, keys));
        let owners = view.replay(Resource::Owners, |at, _| view.owners(at));
        tables.entry("links").or_default().push(view.link_row(&employments, &owners));
        for resource in Resource::ALL.into_iter().filter(|resource| link.held(*resource).loaded) {
            let rows = if resource == Resource::Employments { &employments } else { &owners };
            tables.entry("link_snapshots").or_default().push(view.snapshot_row(resource, rows));
        }
        for row in employments.into_iter().chain(owners) {
            tables.entry(row.table).or_default().push(row.finished());
        }
    }
    tables.into_iter().map(|(table, rows)| (table.to_owned(), Value::Array(rows))).collect::<Map<_, _>>().into()
}

/// A list that was answered.
#[derive(Clone, Copy)]
pub(super) struct Answered {
    /// Position of the link.
    pub link: usize,
    /// What was listed.
    pub resource: Resource,
    /// The collection that it showed; none when nothing was loaded yet.
    pub collection: Option<Timestamp>,
    /// When, by the machine's clock.
    pub at: Timestamp,
}

/// The lists that were answered, each with the rows that it should come to.
pub(super) fn ledger(world: &World, faults: &Faults, pepper: Option<&str>, answered: &[Answered]) -> Value {
    let mut keys: BTreeMap<usize, Keys> = BTreeMap::new();
    let lists = answered.iter().map(|answer| {
        let link = world.link(answer.link);
        let person = Person::of(world.seed, link.person);
        let view = View { world, link, person: &person, faults, pepper };
        let rows = match (answer.collection, answer.resource) {
            (None, _) => Vec::new(),
            (Some(at), Resource::Employments) => view.employments(at, keys.entry(answer.link).or_default()),
            (Some(at), Resource::Owners) => view.owners(at),
        };
        let rows = rows.into_iter().map(|row| {
            json!({
                "table": row.table,
                "key": row.key,
                "content": row.content,
                "passing": row.passing,
                "collected_at": row.collected_at.to_string(),
            })
        });
        json!({
            "link": link.id,
            "resource": answer.resource.name(),
            "answered_at": answer.at.to_string(),
            "rows": rows.collect::<Vec<_>>(),
        })
    });
    lists.collect()
}

const TABLES: [&str; 6] = ["links", "employments", "occupations", "salaries", "owners", "link_snapshots"];

/// A row, with what makes it a version apart from what does not.
struct Row {
    table: &'static str,
    key: String,
    content: Map<String, Value>,
    /// Columns whose change starts no version.
    passing: Map<String, Value>,
    collected_at: Timestamp,
    known_from: Timestamp,
}

impl Row {
    fn new(table: &'static str, key: String, content: Value, passing: Value, collected_at: Timestamp) -> Self {
        let (Value::Object(content), Value::Object(passing)) = (content, passing) else {
            unreachable!("rows are made of objects")
        };
        Self { table, key, content, passing, collected_at, known_from: collected_at }
    }

    fn finished(mut self) -> Value {
        self.content.append(&mut self.passing);
        self.content.insert("known_from".to_owned(), self.known_from.to_string().into());
        Value::Object(self.content)
    }
}

/// Keys that jobs were given when they were first seen, by the job's number in the life.
#[derive(Default)]
struct Keys {
    of_job: BTreeMap<u32, String>,
    alike: BTreeMap<(String, String), u32>,
}

#[derive(Clone, Copy)]
struct View<'a> {
    world: &'a World,
    link: &'a Link,
    person: &'a Person,
    faults: &'a Faults,
    pepper: Option<&'a str>,
}

impl View<'_> {
    /// The rows of the last sighting, each known since its content was first seen.
    fn replay(&self, resource: Resource, rows_at: impl Fn(Timestamp, &mut Keys) -> Vec<Row>) -> Vec<Row> {
        let mut keys = Keys::default();
        let mut before: Vec<Row> = Vec::new();
        for at in &self.link.held(resource).sightings {
            let mut rows = rows_at(*at, &mut keys);
            let known: BTreeMap<_, _> = before.iter().map(|row| ((row.table, row.key.as_str()), row)).collect();
            for row in &mut rows {
                if let Some(same) = known.get(&(row.table, row.key.as_str())).filter(|same| same.content == row.content)
                {
                    row.known_from = same.known_from;
                }
            }
            before = rows;
        }
        before
    }

    fn link_row(&self, employments: &[Row], owners: &[Row]) -> Value {
        let link = self.link;
        let person_key = owners.first().and_then(|row| row.content.get("person_key").cloned()).unwrap_or_default();
        json!({
            "link_id": link.id,
            "external_id": link.external_id,
            "person_key": person_key,
            "institution": INSTITUTION,
            "access_mode": link.access_mode,
            "status": link.status,
            "refresh_rate": link.refresh_rate,
            "credentials_storage": link.credentials_storage,
            "stale_in": link.stale_in,
            "fetch_resources": link.fetch_resources,
            "created_at": link.created_at.at.to_string(),
            "last_accessed_at": link.last_accessed_at(self.world.now).at.to_string(),
            "employments_collected_at": newest(employments),
            "owners_collected_at": newest(owners),
        })
    }

    fn snapshot_row(&self, resource: Resource, rows: &[Row]) -> Value {
        let table = resource.name();
        json!({
            "link_id": self.link.id,
            "resource": resource.name(),
            "collected_at": newest(rows),
            "item_count": rows.iter().filter(|row| row.table == table).count(),
            "webhook_count": self.link.held(resource).webhook_count,
        })
    }

    fn employments(&self, at: Timestamp, keys: &mut Keys) -> Vec<Row> {
        let records = records::employments(self.world.seed, self.link, self.person, at);
        keys.assign(&self.link.id, &records);
        let content = self.faults.content(&self.link.id, Resource::Employments);
        records
            .iter()
            .flat_map(|record| {
                let key = &keys.of_job[&record.seen.job];
                let mut rows = vec![self.employment(record, key, &content)];
                rows.extend(self.occupations(record, key, &content));
                rows.extend(self.salaries(record, key, &content));
                rows
            })
            .collect()
    }

    fn employment(&self, record: &Employment<'_>, key: &str, content: &Content) -> Row {
        let (seen, envelope) = (&record.seen, &record.envelope);
        let kind = CodeType::of(seen.employer);
        let person = kind == Some(CodeType::Cpf);
        let class = seen.activity.and_then(|activity: &Activity| activity.class);
        let mut extra = content.extra.get("record").cloned().unwrap_or_default();
        if let Some(employer) = content.extra.get("employer") {
            extra.insert("employer_data".to_owned(), Value::Object(employer.clone()));
        }
        Row::new(
            "employments",
            key.to_owned(),
            json!({
                "link_id": self.link.id,
                "employment_key": key,
                "employer_name": seen.employer.name.as_ref().filter(|_| !person),
                "employer_code": seen.employer.code.as_ref().filter(|_| !person),
                "employer_code_type": kind.map(CodeType::text),
                "employer_key": self.employer_key(seen.employer),
                "economic_activity": seen.activity.map(|activity| activity.text.as_str()),
                "cnae_class": class,
                "cnae_division": class.map(|class| &class[..2]),
                "cnae_section": seen.activity.and_then(|activity| activity.section),
                "start_date": seen.start.map(|day| day.to_string()),
                "end_date": seen.end.map(|day| day.to_string()),
                "is_open": seen.end.is_none(),
                "extra": extra_text(&extra),
            }),
            json!({
                "employment_id": envelope.id,
                "occupation_count": seen.occupations.len(),
                "salary_count": seen.pay.len(),
                "created_at": envelope.created_at.at.to_string(),
                "collected_at": envelope.collected_at.at.to_string(),
            }),
            envelope.collected_at.at,
        )
    }

    fn employer_key(&self, employer: &Employer) -> Option<String> {
        let code = employer.code.as_deref()?;
        match CodeType::of(employer)? {
            CodeType::Cpf => mac(self.pepper?, &format!("employer:{code}")),
            CodeType::Cnpj => Some(code[..8].to_owned()),
            _ => Some(code.to_owned()),
        }
    }

    fn occupations(&self, record: &Employment<'_>, key: &str, content: &Content) -> Vec<Row> {
        let locale = |o: &SeenOccupation<'_>| if content.new_locale { Some(NEW_LOCALE) } else { o.locale };
        let description = |o: &SeenOccupation<'_>| o.described.then_some(o.title.words);
        let mut ordered: Vec<&SeenOccupation<'_>> = record.seen.occupations.iter().collect();
        ordered.sort_by_key(|o| (o.start, o.title.name.clone(), o.end, description(o), locale(o)));
        let mut seqs = Seqs::default();
        ordered
            .into_iter()
            .map(|occupation| {
                let same = format!("{key} {:?} {:?}", occupation.start, occupation.title.name);
                let seq = seqs.next(&same);
                let code = occupation.title.code;
                Row::new(
                    "occupations",
                    format!("{same} {seq}"),
                    json!({
                        "link_id": self.link.id,
                        "employment_key": key,
                        "seq": seq,
                        "start_date": occupation.start.map(|day| day.to_string()),
                        "end_date": occupation.end.map(|day| day.to_string()),
                        "description": description(occupation),
                        "name": occupation.title.name,
                        "cbo_code": code,
                        "cbo_family": code.map(|code| &code[..4]),
                        "cbo_major_group": code.map(|code| &code[..1]),
                        "locale": locale(occupation),
                        "extra": content.extra.get("occupation").and_then(extra_text),
                    }),
                    json!({"employment_id": record.envelope.id}),
                    record.envelope.collected_at.at,
                )
            })
            .collect()
    }

    fn salaries(&self, record: &Employment<'_>, key: &str, content: &Content) -> Vec<Row> {
        let mut ordered: Vec<(String, Option<&str>, &Pay)> = record
            .seen
            .pay
            .iter()
            .map(|pay| (records::month_text(pay), salary_type(pay, content.new_kind), *pay))
            .collect();
        ordered.sort_by_key(|(month, kind, pay)| (month.clone(), *kind, pay.base, pay.retained, pay.currency));
        let mut seqs = Seqs::default();
        ordered
            .into_iter()
            .map(|(month_text, kind, pay)| {
                let same = format!("{key} {month_text} {kind:?}");
                let seq = seqs.next(&same);
                Row::new(
                    "salaries",
                    format!("{same} {seq}"),
                    json!({
                        "link_id": self.link.id,
                        "employment_key": key,
                        "reference_month": pay.month.day(1).to_string(),
                        "month_text": month_text,
                        "salary_type": kind,
                        "seq": seq,
                        "base_amount": amount(pay.base),
                        "retained_amount": amount(pay.retained),
                        "currency": pay.currency,
                        "extra": content.extra.get("salary").and_then(extra_text),
                    }),
                    json!({"employment_id": record.envelope.id}),
                    record.envelope.collected_at.at,
                )
            })
            .collect()
    }

    fn owners(&self, at: Timestamp) -> Vec<Row> {
        let record = records::owner(self.world.seed, self.link, self.person, at);
        record
            .into_iter()
            .map(|record| {
                let (owner, envelope) = (record.owner, &record.envelope);
                let filled = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
                let document = owner.document.as_ref();
                Row::new(
                    "owners",
                    envelope.id.clone(),
                    json!({
                        "link_id": self.link.id,
                        "owner_id": envelope.id,
                        "person_key": self.person_key(owner),
                        "document_type": document.and_then(|document| document.kind),
                        "has_document": document.is_some_and(|document| filled(&document.number)),
                        "has_email": filled(&owner.email),
                        "has_phone_number": filled(&owner.phone_number),
                        "has_address": filled(&owner.address),
                    }),
                    json!({
                        "created_at": envelope.created_at.at.to_string(),
                        "collected_at": envelope.collected_at.at.to_string(),
                    }),
                    envelope.collected_at.at,
                )
            })
            .collect()
    }

    fn person_key(&self, owner: &Owner) -> Option<String> {
        let number = owner.document.as_ref()?.number.as_ref()?;
        let digits: String = number.chars().filter(char::is_ascii_digit).collect();
        if documents::is_cpf(&digits) { mac(self.pepper?, &digits) } else { None }
    }
}

impl Keys {
    fn assign(&mut self, link: &str, records: &[Employment<'_>]) {
        let mut new: Vec<&Employment<'_>> = records.iter().filter(|r| !self.of_job.contains_key(&r.seen.job)).collect();
        // An open job after those with an end, as `null` comes after `"` in the records' own text.
        new.sort_by_key(|record| (record.seen.end.is_none(), record.seen.end, record.seen.job));
        for record in new {
            let employer = match (CodeType::of(record.seen.employer), &record.seen.employer.code) {
                (Some(CodeType::Cpf), _) => "CPF".to_owned(),
                (Some(CodeType::Cnpj), Some(code)) => code[..8].to_owned(),
                (_, code) => code.clone().unwrap_or_default(),
            };
            let start = record.seen.start.map(|day| day.to_string()).unwrap_or_default();
            let alike = self.alike.entry((employer.clone(), start.clone())).or_default();
            let digest = Sha256::digest(format!("employment\n{link}\n{employer}\n{start}\n{alike}"));
            *alike += 1;
            self.of_job.insert(record.seen.job, hex(&digest[..16]));
        }
    }
}

/// Counts rows that are equal in the rest of their key.
#[derive(Default)]
struct Seqs(BTreeMap<String, u64>);

impl Seqs {
    fn next(&mut self, same: &str) -> u64 {
        let seq = self.0.entry(same.to_owned()).or_default();
        *seq += 1;
        *seq - 1
    }
}

/// What an employer code is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CodeType {
    Root,
    Cpf,
    Cnpj,
    Works,
    Other,
}

impl CodeType {
    fn of(employer: &Employer) -> Option<Self> {
        let code = employer.code.as_deref()?;
        let digits = code.bytes().all(|byte| byte.is_ascii_digit());
        Some(match code.len() {
            8 => Self::Root,
            11 if digits => Self::Cpf,
            14 if documents::is_cnpj(code) => Self::Cnpj,
            12 if digits => Self::Works,
            _ => Self::Other,
        })
    }

    fn text(self) -> &'static str {
        match self {
            Self::Root => "CNPJ_ROOT",
            Self::Cpf => "CPF",
            Self::Cnpj => "CNPJ",
            Self::Works => "CEI_CNO",
            Self::Other => "OTHER",
        }
    }
}

fn salary_type(pay: &Pay, new_kind: bool) -> Option<&'static str> {
    if new_kind && pay.month.number() == 7 && !pay.thirteenth_month {
        return Some(NEW_KIND);
    }
    let sent = (pay.kind_sent == KindSent::Word).then_some(pay.kind);
    if pay.thirteenth_month && matches!(sent, None | Some(Kind::Regular)) {
        return Some(Kind::Thirteenth.text());
    }
    sent.map(Kind::text)
}

fn newest(rows: &[Row]) -> Option<String> {
    rows.iter().map(|row| row.collected_at).max().map(|at| at.to_string())
}

fn amount(amount: Option<Amount>) -> Option<String> {
    amount.map(|amount| amount.to_string())
}

fn extra_text(extra: &Map<String, Value>) -> Option<String> {
    (!extra.is_empty()).then(|| Value::Object(extra.clone()).to_string())
}

/// HMAC-SHA-256 in lower-case hex; none under an empty key.
fn mac(pepper: &str, text: &str) -> Option<String> {
    if pepper.is_empty() {
        return None;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(pepper.as_bytes()).ok()?;
    mac.update(text.as_bytes());
    Some(hex(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_persons_match_the_published_vectors() {
        assert_eq!(
            mac("pepper-for-tests", "52998224725").unwrap(),
            "0ee07cb51e2ac13576fdf65c0a5a27e60a9870d889370e347ba1644db345f1f1"
        );
        assert!(mac("pepper-for-tests", "employer:52998224725").unwrap().starts_with("b551b89f6cea7d7e"));
        assert_eq!(mac("", "52998224725"), None);
    }
}
