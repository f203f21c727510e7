//! What Belvo knows at a simulated instant: links, and what it holds of each.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use chrono::Months;

use super::json::Json;
use super::links::{Link, Resource, Wish};
use super::people::{EVERYBODY, Person};
use super::query::Page;
use super::records;
use crate::clock::Timestamp;

/// All links, and the simulated clock.
pub(super) struct World {
    /// Decides everybody's life.
    pub seed: u64,
    /// The simulated clock; it moves by [`World::advance`] only.
    pub now: Timestamp,
    links: Vec<Link>,
    by_id: HashMap<String, usize>,
    by_person: HashMap<u32, Vec<usize>>,
    bodies: HashMap<(usize, Resource), Prepared>,
}

/// A whole list as one page, ready to be sent.
#[derive(Clone)]
pub(super) struct Prepared {
    /// The collection it shows; none when nothing is loaded.
    pub at: Option<Timestamp>,
    /// Records in it.
    pub count: usize,
    /// The page's body.
    pub body: Bytes,
}

/// How far to move the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advance {
    /// Calendar months.
    pub months: u32,
    /// Days.
    pub days: u64,
    /// Seconds.
    pub seconds: u64,
}

impl Advance {
    /// Where it leads from `start`; `None` where that is no year of four digits.
    pub(super) fn from(self, start: Timestamp) -> Option<Timestamp> {
        let months = start.to_utc().checked_add_months(Months::new(self.months))?;
        let seconds = self.days.checked_mul(86_400)?.checked_add(self.seconds)?;
        let end = Timestamp::from(months) + Duration::from_secs(seconds);
        Timestamp::parse(&end.to_string()).filter(|read| *read == end)
    }
}

/// A link that Belvo read again.
pub(super) struct Recollected {
    /// Position of the link.
    pub link: usize,
    /// What was read.
    pub resource: Resource,
    /// Records that are new or changed.
    pub changed: usize,
}

impl World {
    /// A world without links, at `now`.
    pub(super) fn new(seed: u64, now: Timestamp) -> Self {
        let (links, by_id, by_person, bodies) = (Vec::new(), HashMap::new(), HashMap::new(), HashMap::new());
        Self { seed, now, links, by_id, by_person, bodies }
    }

    /// Makes a link for `person`, and gives its position.
    pub(super) fn connect(&mut self, person: u32, wish: Wish) -> usize {
        let position = self.links.len();
        let of_person = self.by_person.entry(person).or_default();
        let ordinal = u32::try_from(of_person.len()).expect("few links a person");
        of_person.push(position);
        let link = Link::new(self.seed, person, ordinal, self.now, wish);
        self.by_id.insert(link.id.clone(), position);
        self.links.push(link);
        position
    }

    /// Whether `person` has a link.
    pub(super) fn is_connected(&self, person: u32) -> bool {
        self.by_person.get(&person).is_some_and(|of| of.iter().any(|position| !self.links[*position].deleted))
    }

    /// The first person who never had a link. Whoever had one does not come back as somebody new: they may be erased.
    pub(super) fn next_person(&self) -> Option<u32> {
        (0..EVERYBODY).find(|person| !self.by_person.contains_key(person))
    }

    /// The position of the link `id`, unless it was deleted.
    pub(super) fn find(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied().filter(|position| !self.links[*position].deleted)
    }

    /// The link at `position`.
    pub(super) fn link(&self, position: usize) -> &Link {
        &self.links[position]
    }

    /// The same, to be changed.
    pub(super) fn link_mut(&mut self, position: usize) -> &mut Link {
        &mut self.links[position]
    }

    /// All links that are there, by position.
    pub(super) fn links(&self) -> impl Iterator<Item = (usize, &Link)> {
        self.links.iter().enumerate().filter(|(_, link)| !link.deleted)
    }

    /// Deletes the link at `position`, with all its data.
    pub(super) fn delete(&mut self, position: usize) {
        self.links[position].deleted = true;
    }

    /// The body prepared for a list, if it still shows the last collection.
    pub(super) fn prepared(&self, position: usize, resource: Resource) -> Option<Prepared> {
        let prepared = self.bodies.get(&(position, resource))?;
        let link = &self.links[position];
        let at = link.held(resource).loaded.then(|| link.collections.latest(self.now));
        (prepared.at == at).then(|| prepared.clone())
    }

    /// Keeps a prepared body.
    pub(super) fn keep(&mut self, position: usize, resource: Resource, prepared: Prepared) {
        self.bodies.insert((position, resource), prepared);
    }

    /// Drops a prepared body, because what it shows has changed.
    pub(super) fn forget(&mut self, position: usize, resource: Resource) {
        self.bodies.remove(&(position, resource));
    }

    /// Shows what was collected for the first time (or again, out of turn), and gives the number of records.
    pub(super) fn load(&mut self, position: usize, resource: Resource) -> usize {
        let at = self.links[position].collections.latest(self.now);
        let held = self.links[position].held_mut(resource);
        held.loaded = true;
        if held.sightings.last() != Some(&at) {
            held.sightings.push(at);
        }
        let results = self.records(position, resource);
        let count = results.len();
        self.links[position].held_mut(resource).webhook_count = Some(count);
        // Whoever is told will ask soon. A page that is the only one names no address.
        let body = Page { count, next: None, previous: None, results, this: String::new() }.into_bytes().into();
        self.keep(position, resource, Prepared { at: Some(at), count, body });
        count
    }

    /// The records that a list of `resource` holds now.
    pub(super) fn records(&self, position: usize, resource: Resource) -> Vec<Json> {
        listed(self.seed, &self.links[position], resource, self.now)
    }

    /// Moves the clock, and lets Belvo read every link that is due.
    pub(super) fn advance(&mut self, by: Advance) -> Vec<Recollected> {
        let before = self.now;
        self.now = by.from(before).unwrap_or(before);
        let mut recollected = Vec::new();
        for position in 0..self.links.len() {
            recollected.extend(self.recollected(position, before));
        }
        recollected
    }

    /// Gives the link at `position` a status; only a `valid` link is read again.
    pub(super) fn set_status(&mut self, position: usize, status: &'static str) {
        let now = self.now;
        self.links[position].set_status(status, now);
    }

    /// Reads the link at `position` now, out of turn. Nothing changes for a reader until [`World::load`].
    pub(super) fn collect(&mut self, position: usize) {
        let now = self.now;
        self.links[position].collect(now);
    }

    fn recollected(&mut self, position: usize, before: Timestamp) -> Vec<Recollected> {
        let link = &self.links[position];
        let (earlier, later) = (link.collections.latest(before), link.collections.latest(self.now));
        if link.deleted || link.status != "valid" || earlier == later {
            return Vec::new();
        }
        let person = Person::of(self.seed, link.person);
        let mut recollected = Vec::new();
        for resource in Resource::ALL.into_iter().filter(|resource| link.held(*resource).loaded) {
            let content = |at| {
                let mut records = records::list(self.seed, link, &person, resource, at);
                for record in &mut records {
                    for key in ["created_at", "collected_at"] {
                        record.remove(key);
                    }
                }
                records
            };
            let earlier = content(earlier);
            let changed = content(later).into_iter().filter(|record| !earlier.contains(record)).count();
            recollected.push(Recollected { link: position, resource, changed });
        }
        for resource in recollected.iter().map(|recollected| recollected.resource) {
            let held = self.links[position].held_mut(resource);
            held.sightings.push(later);
            held.webhook_count = None;
        }
        recollected
    }
}

/// The records that a list of `resource` of `link` holds at `now`: none before they are loaded.
pub(super) fn listed(seed: u64, link: &Link, resource: Resource, now: Timestamp) -> Vec<Json> {
    if !link.held(resource).loaded {
        return Vec::new();
    }
    let person = Person::of(seed, link.person);
    records::list(seed, link, &person, resource, link.collections.latest(now))
}
