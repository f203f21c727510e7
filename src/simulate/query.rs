//! Query parameters: which there are, what they look like, what they pick, and the pages that come out.

use bytes::Bytes;
use url::form_urlencoded;

use super::json::Json;

/// How a parameter is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One UUID.
    Uuid,
    /// UUIDs with commas between.
    Uuids,
    /// `YYYY-MM-DD`.
    Date,
    /// Two dates with a comma between.
    Dates,
    /// A whole number from 1 on.
    Number,
    /// First-level field names with commas between.
    Fields,
    /// Any text.
    Text,
    /// Texts with commas between.
    Texts,
}

/// The parameters of one list, beside those that every list has.
pub(super) type Parameters = &'static [(&'static str, Form)];

/// Of `GET /api/br/employments/`.
pub(super) const EMPLOYMENTS: Parameters = &[
    ("link", Form::Uuid),
    ("link__in", Form::Uuids),
    ("omit", Form::Fields),
    ("fields", Form::Fields),
    ("id", Form::Uuid),
    ("id__in", Form::Uuids),
    ("start_date", Form::Date),
    ("start_date__gt", Form::Date),
    ("start_date__gte", Form::Date),
    ("start_date__lt", Form::Date),
    ("start_date__lte", Form::Date),
    ("start_date__range", Form::Dates),
    ("end_date", Form::Date),
    ("end_date__gt", Form::Date),
    ("end_date__gte", Form::Date),
    ("end_date__lt", Form::Date),
    ("end_date__lte", Form::Date),
    ("end_date__range", Form::Dates),
    ("created_at", Form::Date),
    ("created_at__gt", Form::Date),
    ("created_at__gte", Form::Date),
    ("created_at__lt", Form::Date),
    ("created_at__lte", Form::Date),
    ("created_at__range", Form::Dates),
];

/// Of `GET /api/owners/`.
pub(super) const OWNERS: Parameters = &[
    ("link", Form::Uuid),
    ("link__in", Form::Uuids),
    ("omit", Form::Fields),
    ("fields", Form::Fields),
    ("id", Form::Uuid),
    ("id__in", Form::Uuids),
    ("created_at", Form::Date),
    ("created_at__gt", Form::Date),
    ("created_at__gte", Form::Date),
    ("created_at__lt", Form::Date),
    ("created_at__lte", Form::Date),
    ("created_at__range", Form::Dates),
    ("email", Form::Text),
    ("display_name__icontains", Form::Text),
];

/// Of `GET /api/links/`.
pub(super) const LINKS: Parameters = &[
    ("omit", Form::Fields),
    ("fields", Form::Fields),
    ("id", Form::Uuid),
    ("id__in", Form::Uuids),
    ("institution", Form::Text),
    ("institution__in", Form::Texts),
    ("access_mode", Form::Text),
    ("created_at", Form::Date),
    ("created_at__gt", Form::Date),
    ("created_at__gte", Form::Date),
    ("created_at__lt", Form::Date),
    ("created_at__lte", Form::Date),
    ("created_at__range", Form::Dates),
    ("created_by__not_in", Form::Uuids),
    ("external_id", Form::Text),
    ("external_id__in", Form::Texts),
    ("institution_user_id", Form::Text),
    ("institution_user_id__in", Form::Texts),
    ("refresh_rate", Form::Text),
    ("status", Form::Text),
    ("status__in", Form::Texts),
];

/// Of `GET /api/institutions/`.
pub(super) const INSTITUTIONS: Parameters = &[
    ("display_name", Form::Text),
    ("country_code", Form::Text),
    ("country_code__in", Form::Texts),
    ("resources__allin", Form::Texts),
    ("name", Form::Text),
    ("name__in", Form::Texts),
    ("status", Form::Text),
    ("status__in", Form::Texts),
    ("type", Form::Text),
    ("type__in", Form::Texts),
    ("website", Form::Text),
];

/// Of a list without parameters of its own.
const PAGING: Parameters = &[("page_size", Form::Number), ("page", Form::Number)];

/// Belvo's own limit, to which more is cut.
const MAX_PAGE_SIZE: usize = 1_000;

/// What production sends unless asked otherwise.
const DEFAULT_PAGE_SIZE: usize = 100;

/// A query that has passed the guard in front of the API.
pub(super) struct Query {
    pairs: Vec<(String, Form, String)>,
}

impl Query {
    /// Reads the text after `?`. `None` for a parameter that is not documented, or not written as documented: the guard
    /// refuses it.
    pub(super) fn parse(raw: &str, known: Parameters) -> Option<Self> {
        let mut pairs = Vec::new();
        for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
            let form = known.iter().chain(PAGING).find(|(known, _)| *known == name)?.1;
            if !well_formed(form, &value) {
                return None;
            }
            pairs.push((name.into_owned(), form, value.into_owned()));
        }
        Some(Self { pairs })
    }

    /// The value of `name`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _, _)| known == name).map(|(_, _, value)| value.as_str())
    }

    /// Rows on a page.
    pub(super) fn page_size(&self) -> usize {
        self.get("page_size").and_then(|size| size.parse().ok()).unwrap_or(DEFAULT_PAGE_SIZE).min(MAX_PAGE_SIZE)
    }

    /// The page, from 1.
    pub(super) fn page(&self) -> usize {
        self.get("page").and_then(|page| page.parse().ok()).unwrap_or(1)
    }

    /// Whether nothing but `link` (or several) and paging is asked for.
    pub(super) fn is_plain(&self) -> bool {
        self.pairs.iter().all(|(name, _, _)| matches!(name.as_str(), "link" | "link__in" | "page" | "page_size"))
    }

    /// Whether every filter picks `record`.
    pub(super) fn picks(&self, record: &Json) -> bool {
        self.pairs.iter().all(|(name, form, wanted)| {
            let (field, how) = name.split_once("__").unwrap_or((name, ""));
            match field {
                "page" | "page_size" | "fields" | "omit" => true,
                "country_code" => picks(record.get("country_codes"), how, *form, wanted),
                _ => picks(record.get(field), how, *form, wanted),
            }
        })
    }

    /// `record` with the first-level fields that are asked for.
    pub(super) fn shape(&self, mut record: Json) -> Json {
        if let Json::Object(members) = &mut record {
            if let Some(fields) = self.get("fields") {
                members.retain(|(key, _)| fields.split(',').any(|field| field == key));
            }
            if let Some(omit) = self.get("omit") {
                members.retain(|(key, _)| omit.split(',').all(|field| field != key));
            }
        }
        record
    }

    /// Whether no filter leaves out anything.
    pub(super) fn picks_all(&self) -> bool {
        self.pairs.iter().all(|(name, _, _)| matches!(name.as_str(), "page" | "page_size" | "fields" | "omit"))
    }

    /// The page of `records`, already picked, at `url` (without a query), of which only those on it are made into JSON.
    /// `None` past the end.
    pub(super) fn page_of<R>(&self, records: Vec<R>, url: &str, json: impl Fn(R) -> Json) -> Option<Page> {
        let (page, size, count) = (self.page(), self.page_size(), records.len());
        let pages = count.div_ceil(size).max(1);
        if page > pages {
            return None;
        }
        let results =
            records.into_iter().skip((page - 1) * size).take(size).map(|record| self.shape(json(record))).collect();
        Some(Page {
            count,
            next: (page < pages).then(|| self.url(url, page + 1)),
            previous: (page > 1).then(|| self.url(url, page - 1)),
            results,
            this: self.url(url, page),
        })
    }

    fn url(&self, url: &str, page: usize) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, _, value) in self.pairs.iter().filter(|(name, _, _)| name != "page") {
            query.append_pair(name, value);
        }
        if page > 1 {
            query.append_pair("page", &page.to_string());
        }
        format!("{url}?{}", query.finish())
    }
}

fn well_formed(form: Form, value: &str) -> bool {
    let uuid = |text: &str| {
        text.len() == 36
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if matches!(at, 8 | 13 | 18 | 23) { byte == b'-' } else { byte.is_ascii_hexdigit() })
    };
    let date = |text: &str| text.len() == 10 && text.parse::<chrono::NaiveDate>().is_ok();
    match form {
        Form::Uuid => uuid(value),
        Form::Uuids => value.split(',').all(uuid),
        Form::Date => date(value),
        Form::Dates => value.split(',').count() == 2 && value.split(',').all(date),
        Form::Number => value.parse::<u32>().is_ok_and(|number| number > 0),
        Form::Fields => {
            value.split(',').all(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        }
        Form::Text | Form::Texts => !value.is_empty() && value.len() <= 4_096,
    }
}

fn picks(present: Option<&Json>, how: &str, form: Form, wanted: &str) -> bool {
    let present: Vec<&str> = match present {
        Some(Json::List(items)) => items.iter().filter_map(Json::as_text).collect(),
        Some(Json::Text(text)) if matches!(form, Form::Date | Form::Dates) => text.get(..10).into_iter().collect(),
        Some(Json::Text(text)) => vec![text.as_str()],
        _ => Vec::new(),
    };
    let any = |test: &dyn Fn(&str) -> bool| present.iter().any(|value| test(value));
    match how {
        "" if wanted == "null" => present.is_empty(),
        "" => any(&|value| value == wanted),
        "gt" => any(&|value| value > wanted),
        "gte" => any(&|value| value >= wanted),
        "lt" => any(&|value| value < wanted),
        "lte" => any(&|value| value <= wanted),
        "range" => {
            let (from, to) = wanted.split_once(',').unwrap_or((wanted, wanted));
            any(&|value| (from..=to).contains(&value))
        }
        "in" => any(&|value| wanted.split(',').any(|wanted| wanted == value)),
        "not_in" => !any(&|value| wanted.split(',').any(|wanted| wanted == value)),
        "allin" => wanted.split(',').all(|wanted| present.contains(&wanted)),
        "icontains" => any(&|value| value.to_lowercase().contains(&wanted.to_lowercase())),
        _ => false,
    }
}

/// One page of a list.
pub(super) struct Page {
    /// Rows in all.
    pub count: usize,
    /// Where the next page is.
    pub next: Option<String>,
    /// Where the page before is.
    pub previous: Option<String>,
    /// The rows.
    pub results: Vec<Json>,
    /// Where this page is.
    pub this: String,
}

impl Page {
    /// A page that is the only one, of the results of other such pages, each with its count.
    pub(super) fn joined(bodies: &[(usize, Bytes)]) -> Vec<u8> {
        let count: usize = bodies.iter().map(|(count, _)| count).sum();
        let mut joined = format!("{{\"count\":{count},\"next\":null,\"previous\":null,\"results\":[").into_bytes();
        for (count, body) in bodies.iter().filter(|(count, _)| *count > 0) {
            let head = format!("{{\"count\":{count},\"next\":null,\"previous\":null,\"results\":[").len();
            if !joined.ends_with(b"[") {
                joined.push(b',');
            }
            joined.extend_from_slice(&body[head..body.len() - 2]);
        }
        joined.extend_from_slice(b"]}");
        joined
    }

    /// The body.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        Json::object([
            ("count", self.count.into()),
            ("next", self.next.into()),
            ("previous", self.previous.into()),
            ("results", Json::List(self.results)),
        ])
        .to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Json> {
        (1..=5_usize)
            .map(|n| {
                Json::object([
                    ("id", n.to_string().into()),
                    ("start_date", format!("2026-01-0{n}").into()),
                    ("end_date", Json::Null),
                ])
            })
            .collect()
    }

    #[test]
    fn pages_carry_the_filters_and_end() {
        let query = Query::parse("page_size=2&page=2&start_date__gte=2026-01-01", EMPLOYMENTS).unwrap();
        let page = query.page_of(rows(), "http://h/api/br/employments/", |row| row).unwrap();
        assert_eq!((page.count, page.results.len()), (5, 2));
        assert_eq!(page.next.unwrap(), "http://h/api/br/employments/?page_size=2&start_date__gte=2026-01-01&page=3");
        assert_eq!(page.previous.unwrap(), "http://h/api/br/employments/?page_size=2&start_date__gte=2026-01-01");
        assert!(Query::parse("page_size=2&page=4", LINKS).unwrap().page_of(rows(), "x", |row| row).is_none());
        assert!(Query::parse("", LINKS).unwrap().page_of(Vec::new(), "x", |row| row).is_some());
        assert_eq!(Query::parse("page_size=5000", LINKS).unwrap().page_size(), 1_000);
    }

    #[test]
    fn pages_that_are_joined_read_as_one() {
        let page = |from: usize, count: usize| {
            let results = rows().into_iter().skip(from).take(count).collect();
            let page = Page { count, next: None, previous: None, results, this: String::new() };
            (count, Bytes::from(page.into_bytes()))
        };
        let whole = Page { count: 5, next: None, previous: None, results: rows(), this: String::new() };
        assert_eq!(Page::joined(&[page(0, 2), page(0, 0), page(2, 3)]), whole.into_bytes());
        assert_eq!(Page::joined(&[page(0, 0)]), page(0, 0).1);
    }

    #[test]
    fn filters_pick_and_the_guard_refuses() {
        let ids = |query: &str| {
            let query = Query::parse(query, EMPLOYMENTS).unwrap();
            rows().into_iter().filter(|row| query.picks(row)).count()
        };
        assert_eq!(ids("start_date__gt=2026-01-03"), 2);
        assert_eq!(ids("start_date__range=2026-01-02,2026-01-03"), 2);
        assert_eq!(ids("end_date__lte=2030-01-01"), 0);
        assert!(Query::parse("updated_at=2026-01-01", EMPLOYMENTS).is_none());
        assert!(Query::parse("start_date=yesterday", EMPLOYMENTS).is_none());
        assert!(Query::parse("link=1", EMPLOYMENTS).is_none());
        let fields = Query::parse("fields=id", EMPLOYMENTS).unwrap();
        assert_eq!(fields.shape(rows().remove(0)), Json::object([("id", "1".into())]));
    }
}
