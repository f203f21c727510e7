//! Links: a person's connection to the institution, and when Belvo read it.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};

use super::json::Json;
use super::random::{Stream, digest, uuid};
use crate::clock::Timestamp;

/// What Belvo offers for this institution.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// Jobs, duties and pay.
    Employments,
    /// Who the person is.
    Owners,
}

impl Resource {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Employments, Self::Owners];

    /// In lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Employments => "employments",
            Self::Owners => "owners",
        }
    }

    /// As webhooks and `fetch_resources` say it.
    pub fn wire(self) -> &'static str {
        match self {
            Self::Employments => "EMPLOYMENTS",
            Self::Owners => "OWNERS",
        }
    }

    /// Reads either spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| text.eq_ignore_ascii_case(resource.name()))
    }
}

/// The institution that every link belongs to.
pub(super) const INSTITUTION: &str = "inss_br_employment";

/// An instant as one record spells it: 3 to 6 fractional digits, `Z` or `+00:00`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The instant, cut to the digits that are sent.
    pub at: Timestamp,
    digits: u32,
    zulu: bool,
}

impl Stamp {
    /// `at`, spelled by `style`.
    pub(super) fn new(at: Timestamp, style: u32) -> Self {
        let digits = 3 + style % 4;
        let unit = 10_i64.pow(6 - digits);
        Self {
            at: Timestamp::from_micros(at.as_micros().div_euclid(unit) * unit),
            digits,
            zulu: !(style / 4).is_multiple_of(3),
        }
    }

    /// The text on the wire.
    pub(super) fn text(self) -> String {
        let whole = self.at.to_utc().format("%Y-%m-%dT%H:%M:%S");
        let fraction = self.at.as_micros().rem_euclid(1_000_000) / 10_i64.pow(6 - self.digits);
        let zone = if self.zulu { "Z" } else { "+00:00" };
        format!("{whole}.{fraction:0width$}{zone}", width = self.digits as usize)
    }
}

/// One link.
#[derive(Clone)]
pub(super) struct Link {
    /// UUID.
    pub id: String,
    /// Whose it is.
    pub person: u32,
    /// Which of the person's links, from 0.
    pub ordinal: u32,
    /// The id that the client gave, unless it looked like personal data.
    pub external_id: Option<String>,
    /// `single` or `recurrent`.
    pub access_mode: &'static str,
    /// `valid`, `invalid`, `unconfirmed` or `token_required`.
    pub status: &'static str,
    /// How often Belvo reads a recurrent link again.
    pub refresh_rate: Option<&'static str>,
    /// How long the password is kept.
    pub credentials_storage: String,
    /// How long data that is not updated is kept.
    pub stale_in: Option<String>,
    /// What is read.
    pub fetch_resources: Vec<String>,
    /// When it was made.
    pub created_at: Stamp,
    /// When Belvo read the institution.
    pub collections: Collections,
    /// What became of each of [`Resource::ALL`].
    pub held: [Held; 2],
    /// Whether it was deleted.
    pub deleted: bool,
    /// The simulated instant of the last `POST …/refresh/`.
    pub refreshed_at: Option<Timestamp>,
    seed: u64,
}

/// What Belvo holds of one resource of one link.
#[derive(Clone, Default)]
pub(super) struct Held {
    /// False until the historical webhook; lists are empty before it.
    pub loaded: bool,
    /// Collections that a reader could have seen, oldest first.
    pub sightings: Vec<Timestamp>,
    /// The total that the last webhook told, if it told one.
    pub webhook_count: Option<usize>,
    /// Ids of records that were deleted one by one.
    pub deleted: BTreeSet<String>,
}

/// The instants at which Belvo read the institution.
#[derive(Clone)]
pub(super) struct Collections {
    first: Timestamp,
    every: Option<Duration>,
    asked: Vec<Timestamp>,
    /// None after this instant, because the link is not valid.
    stopped: Option<Timestamp>,
    jitter: u64,
}

impl Collections {
    /// The last one that is not after `now`.
    pub(super) fn latest(&self, now: Timestamp) -> Timestamp {
        let now = self.stopped.map_or(now, |stopped| stopped.min(now));
        let asked = self.asked.iter().copied().filter(|at| *at <= now).max().unwrap_or(self.first);
        let scheduled = match self.every {
            None => self.first,
            Some(every) => {
                let nth = now.since(self.first).as_secs() / every.as_secs();
                let nth = if self.nth(nth) > now { nth.saturating_sub(1) } else { nth };
                self.nth(nth)
            }
        };
        asked.max(scheduled)
    }

    /// The first one on `day` or later, and not after `latest`.
    pub(super) fn first_since(&self, day: NaiveDate, latest: Timestamp) -> Timestamp {
        let reached = |at: &Timestamp| at.to_utc().date_naive() >= day;
        let scheduled = match self.every {
            None => Some(self.first).filter(reached),
            Some(every) => {
                let days = (day - self.first.to_utc().date_naive()).num_days().max(0).unsigned_abs();
                let guess = (days * 86_400 / every.as_secs()).saturating_sub(2);
                (guess..guess + 8).map(|nth| self.nth(nth)).find(reached)
            }
        };
        let asked = self.asked.iter().copied().filter(reached).min();
        scheduled.into_iter().chain(asked).min().unwrap_or(latest).min(latest)
    }

    fn nth(&self, nth: u64) -> Timestamp {
        let jitter = if nth == 0 { 0 } else { self.jitter.wrapping_mul(nth).wrapping_mul(0x9e37_79b9) % 7_200_000_000 };
        self.first
            + Duration::from_secs(self.every.map_or(0, |every| every.as_secs() * nth))
            + Duration::from_micros(jitter)
    }
}

/// What the widget, or a client, says about a link to be made.
#[derive(Clone, Default, Debug)]
pub(super) struct Wish {
    /// `single` or `recurrent`; by the person otherwise.
    pub access_mode: Option<String>,
    /// The client's id; `sim-0000042` otherwise.
    pub external_id: Option<String>,
    /// What is to be read; both resources otherwise.
    pub fetch_resources: Option<Vec<String>>,
    /// `store` otherwise.
    pub credentials_storage: Option<String>,
    /// `365d` otherwise.
    pub stale_in: Option<String>,
}

impl Link {
    /// The `ordinal`-th link of `person`, made at `now`.
    pub(super) fn new(seed: u64, person: u32, ordinal: u32, now: Timestamp, wish: Wish) -> Self {
        let mut stream = Stream::new(seed, person, &format!("link {ordinal}"));
        let drawn = if stream.chance(720) || person < 16 { "recurrent" } else { "single" };
        let access_mode = match wish.access_mode.as_deref() {
            Some("single") => "single",
            Some(_) => "recurrent",
            None => drawn,
        };
        let (rate, hours) = if person < 16 {
            ("7d", 168)
        } else {
            *stream.weighted(&[(70, ("7d", 168)), (15, ("24h", 24)), (15, ("30d", 720))])
        };
        let recurrent = access_mode == "recurrent";
        let ago = stream.between(60_000_000, 1_800_000_000);
        let created_at = Stamp::new(Timestamp::from_micros(now.as_micros() - ago), stream.below(12));
        let took = stream.between(5_000_000, 25_000_000).unsigned_abs();
        let nulls = stream.below(100);
        let external_id = wish.external_id.or_else(|| (nulls != 50).then(|| format!("sim-{person:07}")));
        Self {
            id: uuid(seed, person, &format!("link {ordinal}")),
            person,
            ordinal,
            external_id: external_id.filter(|id| !looks_personal(id)),
            access_mode,
            status: "valid",
            refresh_rate: recurrent.then_some(rate),
            credentials_storage: wish.credentials_storage.unwrap_or_else(|| "store".to_owned()),
            stale_in: wish.stale_in.or_else(|| (nulls >= 5).then(|| "365d".to_owned())),
            fetch_resources: wish
                .fetch_resources
                .unwrap_or_else(|| Resource::ALL.iter().map(|resource| resource.wire().to_owned()).collect()),
            created_at,
            collections: Collections {
                first: created_at.at + Duration::from_micros(took),
                every: recurrent.then(|| Duration::from_secs(hours * 3_600)),
                asked: Vec::new(),
                stopped: None,
                jitter: u64::from(stream.below(u32::MAX)),
            },
            held: [Held::default(), Held::default()],
            deleted: false,
            refreshed_at: None,
            seed,
        }
    }

    /// What became of `resource`.
    pub(super) fn held(&self, resource: Resource) -> &Held {
        &self.held[resource as usize]
    }

    /// The same, to be changed.
    pub(super) fn held_mut(&mut self, resource: Resource) -> &mut Held {
        &mut self.held[resource as usize]
    }

    /// Reads the institution at `now`, out of turn.
    pub(super) fn collect(&mut self, now: Timestamp) {
        let offset = Stream::new(self.seed, self.person, "asked").below(900_000);
        self.collections.asked.push(Timestamp::from_micros(now.as_micros() - 1_000_000 + i64::from(offset)));
    }

    /// Gives it a status; only a `valid` link is read again.
    pub(super) fn set_status(&mut self, status: &'static str, now: Timestamp) {
        self.status = status;
        self.collections.stopped = (status != "valid").then_some(now);
    }

    /// Makes it a recurrent or a single link.
    pub(super) fn set_access_mode(&mut self, recurrent: bool) {
        self.access_mode = if recurrent { "recurrent" } else { "single" };
        self.refresh_rate = recurrent.then_some("7d");
        self.collections.every = recurrent.then(|| Duration::from_hours(168));
    }

    /// The last time Belvo was at the institution.
    pub(super) fn last_accessed_at(&self, now: Timestamp) -> Stamp {
        Stamp::new(self.collections.latest(now), self.person % 12)
    }

    /// 44 characters that name the person at the institution.
    pub(super) fn institution_user_id(&self) -> String {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE.encode(digest(self.seed, self.person, "institution user id"))
    }

    /// The object that Belvo sends at `now`.
    pub(super) fn json(&self, now: Timestamp) -> Json {
        Json::object([
            ("id", self.id.as_str().into()),
            ("institution", INSTITUTION.into()),
            ("access_mode", self.access_mode.into()),
            ("last_accessed_at", self.last_accessed_at(now).text().into()),
            ("created_at", self.created_at.text().into()),
            ("external_id", self.external_id.clone().into()),
            ("institution_user_id", self.institution_user_id().into()),
            ("status", self.status.into()),
            ("created_by", uuid(self.seed, 0, "created by").into()),
            ("refresh_rate", self.refresh_rate.into()),
            ("credentials_storage", self.credentials_storage.as_str().into()),
            ("fetch_resources", Json::List(self.fetch_resources.iter().map(|r| r.as_str().into()).collect())),
            ("stale_in", self.stale_in.clone().into()),
        ])
    }
}

/// Belvo drops an `external_id` in which it finds a document number or an address.
fn looks_personal(id: &str) -> bool {
    id.contains('@') || super::people::documents::is_cpf(&id.chars().filter(char::is_ascii_digit).collect::<String>())
}

/// The date, in UTC, of `at`.
pub(super) fn day_of(at: Timestamp) -> NaiveDate {
    DateTime::<Utc>::date_naive(&at.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::parse(text).unwrap()
    }

    #[test]
    fn a_recurrent_link_is_read_every_week_and_a_single_one_once() {
        let start = at("2026-11-20T12:00:00Z");
        let mut link = Link::new(7, 3, 0, start, Wish::default());
        let first = link.collections.latest(start);
        assert!(link.created_at.at < first && first < start);
        let later = link.collections.latest(at("2026-12-20T12:00:00Z"));
        assert_eq!(day_of(later), NaiveDate::from_ymd_opt(2026, 12, 18).unwrap());
        assert_eq!(
            link.collections.first_since(day_of(at("2026-12-01T00:00:00Z")), later).since(first).as_secs() / 86_400,
            14
        );
        link.set_access_mode(false);
        assert_eq!(link.collections.latest(at("2026-12-20T12:00:00Z")), first);
    }

    #[test]
    fn stamps_lose_only_what_they_do_not_show() {
        for style in 0..12 {
            let stamp = Stamp::new(at("2026-11-20T12:00:00.040567Z"), style);
            assert_eq!(Timestamp::parse(&stamp.text()), Some(stamp.at), "{}", stamp.text());
        }
        assert_eq!(Stamp::new(at("2026-11-20T12:00:00.040567Z"), 0).text(), "2026-11-20T12:00:00.040+00:00");
    }
}
