//! Whether Belvo may be asked for many links in one request: a self-check decides, for each resource.
//!
//! Belvo lists the filter `link__in` beside `link`, and says `link` is required; whether it answers several links
//! rightly can only be tried. Two links whose own lists were just read are asked for together, in each way there is.
//! Only when the answer has exactly their records is that way used, with one of the two in every later request as its
//! canary.
//!
//! *Takes* lists of single links as samples, and how requests for many ended. *Gives* how many links fit a request: one
//! while nothing is proven. *Promises* that doubts lead back to one link a request, at once and for that resource only;
//! that links which spoil an answer for many are asked for alone until their own is sound; and that nothing here waits.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::many::{Form, MOST_LINKS, filter, link_of};
use super::{RawPages, identity};
use crate::belvo::page::{Next, Page};
use crate::belvo::{Client, Code, Decision, Failure, Leave};
use crate::link_id::LinkId;
use crate::resources::Resource;

/// Refreshes of a resource that must wait before the first check is made, because it costs up to two requests.
const WORTH_A_CHECK: usize = 32;
/// The same once a check has succeeded before.
const WORTH_ANOTHER: usize = 2;
/// A proof is made anew after so long.
const PROOF_HOLDS: Duration = Duration::from_hours(1);
/// A sample is compared with what Belvo says at most so long after.
const SAMPLE_HOLDS: Duration = Duration::from_mins(1);
/// Answers in a row that were not right, after which the filter counts as refused.
const STRIKES: u32 = 3;
/// How long the first refusal holds; each further one holds four times as long.
const REFUSED_FIRST: Duration = Duration::from_hours(1);
/// How long a refusal holds at most.
const REFUSED_LAST: Duration = Duration::from_hours(24);
/// Until the next check after one that could not be ended, unless Belvo says how long.
const CHECK_AGAIN: Duration = Duration::from_secs(5);
/// Records of a link that is no sample any more, for its size.
const LARGEST_SAMPLE: usize = 100;
/// The part of a page that many links should fill: several pages cost twice as many requests.
const PAGE_FILL: f64 = 0.8;
/// Bytes that an answer should have.
const ANSWER_SIZE: f64 = (4 << 20) as f64;
/// How much the latest answer counts in an average.
const LATEST: f64 = 0.3;
/// Links that are asked for alone, beyond which the oldest knowledge is dropped: it costs requests, never data.
const MOST_ALONE: usize = 100_000;

/// What is known of each resource. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    page_size: u32,
    knowledge: Mutex<HashMap<&'static str, Knowledge>>,
}

#[derive(Default)]
struct Knowledge {
    verdict: Verdict,
    was_proven: bool,
    is_checking: bool,
    not_before: Option<Instant>,
    /// At most two, of different links.
    samples: Vec<Sample>,
    strikes: u32,
    refusals: u32,
    /// Of the answers so far, on average.
    records_per_link: f64,
    bytes_per_link: f64,
    alone: HashSet<LinkId>,
    /// How many proofs there were so far.
    proofs: u64,
}

/// A way to ask for several links together that was proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// In which form.
    pub form: Form,
    /// With which canary.
    pub canary: LinkId,
    /// By which proof, of all so far.
    proof: u64,
}

#[derive(Default)]
enum Verdict {
    #[default]
    Unknown,
    Proven {
        way: Way,
        until: Instant,
    },
    Refused {
        until: Instant,
    },
}

/// A link's own list.
#[derive(Clone)]
struct Sample {
    link_id: LinkId,
    identities: Vec<String>,
    bytes: usize,
    taken_at: Instant,
}

impl Trust {
    /// Nothing is known yet. Pages hold `page_size` records.
    pub fn new(page_size: u32) -> Self {
        Self(Arc::new(Inner { page_size, knowledge: Mutex::default() }))
    }

    /// How many links fit a request for `resource` that `link_id` goes with; 1 when it goes alone.
    pub fn fit(&self, link_id: &LinkId, resource: &'static Resource) -> usize {
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        known.forget_what_is_over(resource, Instant::now());
        match known.verdict {
            Verdict::Proven { .. } if !known.alone.contains(link_id) => known.fit(self.0.page_size),
            _ => 1,
        }
    }

    /// How several links are asked for together; `None` while nothing is proven.
    pub fn way(&self, resource: &'static Resource) -> Option<Way> {
        match &self.lock().entry(resource.name).or_default().verdict {
            Verdict::Proven { way, .. } => Some(way.clone()),
            Verdict::Unknown | Verdict::Refused { .. } => None,
        }
    }

    /// Takes the list of a single link as a sample, when one is wanted; and lets a link that was asked for alone join
    /// others again when its list holds nothing that would spoil theirs.
    pub fn saw(&self, resource: &'static Resource, link_id: &LinkId, pages: &RawPages) {
        let (wants_sample, is_alone) = {
            let mut knowledge = self.lock();
            let known = knowledge.entry(resource.name).or_default();
            known.forget_what_is_over(resource, Instant::now());
            let wants_sample = known.wants_sample(link_id) && (1..=LARGEST_SAMPLE).contains(&pages.len());
            (wants_sample, known.alone.contains(link_id))
        };
        let is_sound = (wants_sample || is_alone) && pages.records().all(|record| link_of(record).is_some());
        let is_small = pages.len() <= usize::try_from(self.0.page_size / 4).unwrap_or(usize::MAX).max(1);
        let sample = (wants_sample && is_sound).then(|| Sample {
            link_id: link_id.clone(),
            identities: sorted(pages.records().map(identity)),
            bytes: pages.size(),
            taken_at: Instant::now(),
        });
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        // Others may have given one meanwhile.
        if known.wants_sample(link_id) {
            known.samples.extend(sample);
        }
        if is_alone && is_sound && is_small {
            known.alone.remove(link_id);
        }
    }

    /// From now on the link is asked for alone, until [`Trust::saw`] finds its list sound.
    pub fn keep_alone(&self, resource: &'static Resource, link_id: &LinkId) {
        let mut knowledge = self.lock();
        let alone = &mut knowledge.entry(resource.name).or_default().alone;
        if alone.len() >= MOST_ALONE {
            alone.clear();
        }
        alone.insert(link_id.clone());
    }

    /// An answer for `links` links was right.
    pub fn was_right(&self, resource: &'static Resource, links: usize, records: usize, bytes: usize) {
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        known.strikes = 0;
        let links = links.max(1) as f64;
        known.records_per_link += LATEST * (records as f64 / links - known.records_per_link);
        known.bytes_per_link += LATEST * (bytes as f64 / links - known.bytes_per_link);
    }

    /// An answer for many links that were asked for in this `way` was not right: the proof is void, and after several
    /// in a row it is not made again soon. Of a way that is not the proven one any more it says nothing new: the
    /// requests that were under way together are one strike.
    pub fn was_wrong(&self, resource: &'static Resource, way: &Way) {
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        if !known.goes_by(way) {
            return;
        }
        known.strikes += 1;
        if known.strikes >= STRIKES {
            known.refuse(resource);
        } else {
            known.reopen(resource);
        }
    }

    /// A request for many links was refused as such: there is none for a long time. Those that were under way together
    /// are refused once.
    pub fn was_refused(&self, resource: &'static Resource, way: &Way) {
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        if known.goes_by(way) {
            known.refuse(resource);
        }
    }

    /// The canary may not be asked for any more: a new one is looked for.
    pub fn forget(&self, resource: &'static Resource, way: &Way) {
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        if known.goes_by(way) {
            known.reopen(resource);
        }
    }

    /// Whether a check should be made now that `due` refreshes of `resource` wait. Whoever is told so calls
    /// [`Trust::check`].
    pub fn wants_check(&self, resource: &'static Resource, due: usize) -> bool {
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        let now = Instant::now();
        known.forget_what_is_over(resource, now);
        let worth = if known.was_proven { WORTH_ANOTHER } else { WORTH_A_CHECK };
        let wants = matches!(known.verdict, Verdict::Unknown)
            && !known.is_checking
            && known.samples.len() == 2
            && due >= worth
            && known.not_before.is_none_or(|instant| instant <= now);
        known.is_checking |= wants;
        wants
    }

    /// Asks for the two samples together and compares.
    pub async fn check(&self, client: &Client, resource: &'static Resource) {
        let samples = self.lock().entry(resource.name).or_default().samples.clone();
        let forms: &[Form] = if resource.needs_link { &[Form::Beside, Form::Alone] } else { &[Form::Alone] };
        let mut verdict = Found::Wrong;
        for form in forms {
            verdict = try_form(client, resource, *form, &samples).await;
            if verdict != Found::Wrong {
                break;
            }
        }
        let mut knowledge = self.lock();
        let known = knowledge.entry(resource.name).or_default();
        known.is_checking = false;
        known.samples.clear();
        match (verdict, samples.last()) {
            (Found::Right(form), Some(canary)) => {
                tracing::info!(resource = resource.name, "Belvo answers for many links in one request");
                known.prove(resource, form, canary.link_id.clone(), &samples);
            }
            (Found::Changed, _) if known.strikes + 1 < STRIKES => known.strikes += 1,
            (Found::Nothing(wait), _) => {
                // The samples are as good as before, for as long as samples are.
                known.not_before = Some(Instant::now() + wait);
                known.samples = samples;
            }
            _ => known.refuse(resource),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, Knowledge>> {
        self.0.knowledge.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Knowledge {
    fn forget_what_is_over(&mut self, resource: &Resource, now: Instant) {
        match self.verdict {
            Verdict::Proven { until, .. } | Verdict::Refused { until } if until <= now => self.reopen(resource),
            _ => {}
        }
        if !self.is_checking {
            self.samples.retain(|sample| sample.taken_at + SAMPLE_HOLDS > now);
        }
    }

    /// Whether a list of this link would be a sample that is needed.
    fn wants_sample(&self, link_id: &LinkId) -> bool {
        let is_new = !self.samples.iter().any(|sample| sample.link_id == *link_id);
        matches!(self.verdict, Verdict::Unknown) && !self.is_checking && self.samples.len() < 2 && is_new
    }

    /// Whether requests still leave in this way.
    fn goes_by(&self, way: &Way) -> bool {
        matches!(&self.verdict, Verdict::Proven { way: proven, .. } if proven == way)
    }

    fn decide(&mut self, resource: &Resource, verdict: Verdict) {
        let is_proven = matches!(verdict, Verdict::Proven { .. });
        metrics::gauge!("vinculo_belvo_many_links", "resource" => resource.name).set(u8::from(is_proven));
        self.verdict = verdict;
    }

    fn reopen(&mut self, resource: &Resource) {
        self.decide(resource, Verdict::Unknown);
        self.samples.clear();
    }

    fn prove(&mut self, resource: &Resource, form: Form, canary: LinkId, samples: &[Sample]) {
        self.proofs += 1;
        let way = Way { form, canary, proof: self.proofs };
        self.decide(resource, Verdict::Proven { way, until: Instant::now() + PROOF_HOLDS });
        if !self.was_proven {
            let links = samples.len().max(1) as f64;
            self.records_per_link = samples.iter().map(|sample| sample.identities.len()).sum::<usize>() as f64 / links;
            self.bytes_per_link = samples.iter().map(|sample| sample.bytes).sum::<usize>() as f64 / links;
        }
        self.was_proven = true;
        self.refusals = 0;
    }

    fn refuse(&mut self, resource: &Resource) {
        let length = REFUSED_FIRST * 4_u32.saturating_pow(self.refusals);
        self.refusals = (self.refusals + 1).min(4);
        self.strikes = 0;
        self.decide(resource, Verdict::Refused { until: Instant::now() + length.min(REFUSED_LAST) });
        tracing::info!(
            resource = resource.name,
            "Belvo does not answer for many links in one request; each is asked for alone"
        );
    }

    /// Links that fit a request beside the canary.
    fn fit(&self, page_size: u32) -> usize {
        let of_page = PAGE_FILL * f64::from(page_size) / self.records_per_link.max(0.1);
        let of_size = ANSWER_SIZE / self.bytes_per_link.max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small count; the cast saturates"
        )]
        let fit = of_page.min(of_size) as usize;
        fit.clamp(1, MOST_LINKS - 1)
    }
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Exactly the records of both.
    Right(Form),
    /// Records of both and of nobody else, but not those of a moment ago.
    Changed,
    /// Refused, or not what was asked for.
    Wrong,
    /// No answer that says anything about it; the next may, after so long.
    Nothing(Duration),
}

async fn try_form(client: &Client, resource: &Resource, form: Form, samples: &[Sample]) -> Found {
    let ids: Vec<LinkId> = samples.iter().map(|sample| sample.link_id.clone()).collect();
    let Some(last) = ids.last() else { return Found::Nothing(CHECK_AGAIN) };
    let path = format!("{}?{}&page_size={}", resource.endpoint, filter(form, &ids, last), client.page_size());
    match client.get(&path, Leave::for_a_trial()).await {
        Ok(answer) => match Page::read(answer.body, client.base_url()) {
            Ok(page) => judge(&page, form, samples),
            Err(_) => Found::Wrong,
        },
        Err(failure) if is_refusal(&failure) || failure.code == Code::ApiBlocked => Found::Wrong,
        Err(Failure { kind: Decision::RetryAfter(wait), .. }) => Found::Nothing(wait),
        Err(_) => Found::Nothing(CHECK_AGAIN),
    }
}

/// Whether the failure is about the request, and not about the moment.
pub fn is_refusal(failure: &Failure) -> bool {
    matches!(failure.kind, Decision::Refused | Decision::Gone | Decision::AskUser)
}

fn judge(page: &Page, form: Form, samples: &[Sample]) -> Found {
    if page.next != Next::None || page.count.is_some_and(|count| count != page.len() as u64) {
        return Found::Wrong;
    }
    let mut found: HashMap<LinkId, Vec<String>> = HashMap::new();
    for record in page.items() {
        let Some(link_id) = link_of(record) else { return Found::Wrong };
        found.entry(link_id).or_default().push(identity(record));
    }
    let is_of_both = found.len() == samples.len() && samples.iter().all(|sample| found.contains_key(&sample.link_id));
    if !is_of_both {
        return Found::Wrong;
    }
    let is_same = samples.iter().all(|sample| {
        found.remove(&sample.link_id).is_some_and(|identities| sorted(identities.into_iter()) == sample.identities)
    });
    if is_same { Found::Right(form) } else { Found::Changed }
}

fn sorted(identities: impl Iterator<Item = String>) -> Vec<String> {
    let mut identities: Vec<String> = identities.collect();
    identities.sort_unstable();
    identities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::belvo::scripted::{self, Script};
    use crate::resources::{employments, owners};

    fn link(n: u32) -> LinkId {
        format!("{n:08}-0000-4000-8000-000000000000").parse().unwrap()
    }

    fn record(id: u32, link: u32) -> String {
        format!(r#"{{"id":"{id}","link":"{link:08}-0000-4000-8000-000000000000"}}"#)
    }

    fn page(records: &[String]) -> String {
        format!(r#"{{"count":{},"next":null,"results":[{}]}}"#, records.len(), records.join(","))
    }

    fn list(records: &[String]) -> RawPages {
        let base = url::Url::parse("http://belvo.example/").unwrap();
        let page = Page::read(page(records).into(), &base).unwrap();
        let at = crate::clock::Timestamp::from_micros(0);
        RawPages::whole(at, at, vec![page])
    }

    /// The form and the canary of what is proven.
    fn proven(trust: &Trust, resource: &'static Resource) -> Option<(Form, LinkId)> {
        trust.way(resource).map(|way| (way.form, way.canary))
    }

    /// A trust that has seen links 1 and 2 alone, with one and two records.
    fn with_samples(resource: &'static Resource) -> Trust {
        let trust = Trust::new(1000);
        trust.saw(resource, &link(1), &list(&[record(1, 1)]));
        assert!(!trust.wants_check(resource, 500), "one sample is none");
        trust.saw(resource, &link(1), &list(&[record(1, 1)]));
        trust.saw(resource, &link(5), &list(&[]));
        assert!(!trust.wants_check(resource, 500), "nor are two of one link, or an empty one");
        trust.saw(resource, &link(2), &list(&[record(2, 2), record(3, 2)]));
        assert!(!trust.wants_check(resource, 31), "not worth it");
        assert!(trust.wants_check(resource, 32));
        assert!(!trust.wants_check(resource, 500), "one check at a time");
        trust
    }

    #[tokio::test]
    async fn only_an_answer_with_exactly_the_records_of_both_proves_it() {
        let both = [record(3, 2), record(1, 1), record(2, 2)];
        let cases: Vec<(Vec<u8>, bool)> = vec![
            (scripted::json(200, &page(&both)), true),
            (scripted::json(200, &page(&both[..2])), false),
            (scripted::json(200, &page(&[record(1, 1)])), false),
            (scripted::json(200, &page(&[])), false),
            (scripted::json(200, &page(&[both.to_vec(), vec![record(9, 9)]].concat())), false),
            (scripted::json(200, &page(&[both.to_vec(), vec![r#"{"id":"8"}"#.into()]].concat())), false),
            (scripted::json(200, &page(&both).replace("\"next\":null", "\"next\":\"?\"")), false),
            (scripted::json(200, &page(&both).replace("\"count\":3", "\"count\":2000")), false),
            (scripted::json(400, r#"[{"code":"validation_error"}]"#), false),
            (scripted::json(403, r#"[{"code":"access_to_resource_denied"}]"#), false),
            (scripted::json(500, "{}"), false),
            (scripted::json(200, "<html>"), false),
        ];
        for (answer, is_right) in cases {
            let trust = with_samples(&owners::RESOURCE);
            let shown = String::from_utf8_lossy(&answer).into_owned();
            let script = Script::start(move |_| answer.clone()).await;
            trust.check(&script.client(), &owners::RESOURCE).await;
            assert_eq!(proven(&trust, &owners::RESOURCE), is_right.then(|| (Form::Alone, link(2))), "{shown}");
            assert_eq!(trust.fit(&link(7), &owners::RESOURCE), if is_right { MOST_LINKS - 1 } else { 1 });
            assert!(!trust.wants_check(&owners::RESOURCE, 500), "it is not made again at once");
        }
    }

    #[tokio::test]
    async fn the_documented_form_is_tried_first_and_a_gate_that_refuses_the_other_stops_no_call() {
        let only_one = |head: &str| {
            if head.contains("?link=") {
                scripted::json(200, &page(&[record(2, 2), record(3, 2)]))
            } else {
                scripted::json(403, "<html>Forbidden</html>")
            }
        };
        let script = Script::start(only_one).await;
        let client = script.client();
        let trust = with_samples(&employments::RESOURCE);
        trust.check(&client, &employments::RESOURCE).await;
        assert_eq!((trust.way(&employments::RESOURCE), script.requests().len()), (None, 2));
        assert_eq!(client.trouble(), None);
        assert_eq!(trust.way(&owners::RESOURCE), None, "each resource has its own proof");
    }

    #[tokio::test]
    async fn doubts_void_the_proof_and_a_link_that_spoils_answers_goes_alone() {
        let both = [record(3, 2), record(1, 1), record(2, 2)];
        let script = Script::start(move |_| scripted::json(200, &page(&both))).await;
        let resource = &employments::RESOURCE;
        let trust = with_samples(resource);
        trust.check(&script.client(), resource).await;
        assert_eq!(proven(&trust, resource), Some((Form::Beside, link(2))));
        trust.keep_alone(resource, &link(4));
        assert_eq!((trust.fit(&link(4), resource), trust.fit(&link(3), resource)), (1, 49));
        trust.saw(resource, &link(4), &list(&[r#"{"id":"8"}"#.into()]));
        assert_eq!(trust.fit(&link(4), resource), 1, "its record names no link");
        trust.saw(resource, &link(4), &list(&[record(8, 4)]));
        assert_eq!(trust.fit(&link(4), resource), 49);
        // Large links make small crowds.
        (0..50).for_each(|_| trust.was_right(resource, 10, 1000, 1000));
        assert_eq!(trust.fit(&link(3), resource), 8);

        for strike in 1..=STRIKES {
            // Sixteen requests were under way.
            let way = trust.way(resource).unwrap();
            (0..16).for_each(|_| trust.was_wrong(resource, &way));
            assert_eq!((trust.way(resource), trust.fit(&link(3), resource)), (None, 1));
            trust.saw(resource, &link(1), &list(&[record(1, 1)]));
            trust.saw(resource, &link(2), &list(&[record(2, 2), record(3, 2)]));
            let is_tried_again = trust.wants_check(resource, 2);
            assert_eq!(is_tried_again, strike < STRIKES, "{strike}: three times in a row are enough");
            if is_tried_again {
                trust.check(&script.client(), resource).await;
                (0..16).for_each(|_| trust.was_wrong(resource, &way));
                assert!(trust.way(resource).is_some(), "what was asked for before says nothing of a new proof");
            }
        }
    }

    #[tokio::test]
    async fn requests_that_are_refused_together_are_refused_once() {
        let both = [record(3, 2), record(1, 1), record(2, 2)];
        let script = Script::start(move |_| scripted::json(200, &page(&both))).await;
        let resource = &employments::RESOURCE;
        let trust = with_samples(resource);
        trust.check(&script.client(), resource).await;
        let way = trust.way(resource).unwrap();
        (0..16).for_each(|_| trust.was_refused(resource, &way));
        let knowledge = trust.lock();
        let Verdict::Refused { until } = knowledge[resource.name].verdict else { panic!("it was refused") };
        assert!(until <= Instant::now() + REFUSED_FIRST);
    }
}
