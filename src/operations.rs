//! What a person can order: refreshes, recollects, a link's deletion or end, erasures, publishes, features and frozen
//! ones, a comparison of links, a job, a second reading of webhooks.
//!
//! *Takes* an [`Order`], from a command or over the admin listener. *Gives* the id of its run, once the order is on
//! record and, of a refresh, the first marks are too. *Promises* that both ways do the same, and the schedule's jobs
//! with them. *Not here*: HTTP, how each piece of work is done, when a refresh counts as ended, which is in `follow`,
//! and what an order says, in `order`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::NaiveDate;
use tokio::sync::watch;

use crate::belvo::{Client, Code, Patience};
use crate::clock::Clock;
use crate::delete::Deleter;
use crate::erase::Eraser;
use crate::features::frozen::{self, Freezing, Frozen};
use crate::features::published;
use crate::features::runs as features;
use crate::lane::in_background;
use crate::link_id::LinkId;
use crate::links::{self, Directory};
use crate::publish::{self, Manifest, Publisher, Scope, Unpublished};
use crate::queue::{self, Queue, Trigger};
use crate::recollect::Recollector;
use crate::resources::{self, Resource};
use crate::runs::{Failed, Kind, Reason, Report, Runs};
use crate::schedule::Asker;
use crate::store::{self, ROWS_AT_ONCE, Store, Tx};
use crate::tombstones;
use crate::webhook::log;
use crate::webhook::replay::{Replayed, replay};
use crate::widget::Widgets;

mod follow;
mod order;
mod refused;

pub use order::{Erasure, Links, Order, Replay};
pub use refused::Refused;

use follow::{BelvoBefore, Wanted};

/// A wait for news looks again after so long, because not everything that ends a wait announces itself.
const NEWS_WITHIN: Duration = Duration::from_secs(2);

/// The parts that do what is ordered. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    /// What was ordered before.
    pub runs: Runs,
    /// The record store.
    pub store: Store,
    /// The refreshes.
    pub queue: Queue,
    /// The links.
    pub links: Directory,
    /// Who is asked.
    pub client: Client,
    /// Users who connect.
    pub widgets: Widgets,
    /// Asks to read institutions again.
    pub recollector: Recollector,
    /// Links that are deleted at Belvo.
    pub deleter: Deleter,
    /// Who erases.
    pub eraser: Eraser,
    /// The door to readers.
    pub publisher: Arc<Publisher>,
    /// The jobs.
    pub jobs: Asker,
    /// The only source of now.
    pub clock: Clock,
    /// Told of each refresh and lookup that has ended.
    pub settled: watch::Sender<()>,
    /// The change of the store that the latest snapshot of this process has.
    pub published: watch::Sender<i64>,
}

impl Operations {
    /// Takes the order, and gives the id of its run.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is done.
    pub async fn start(&self, order: Order, reason: Reason) -> Result<String, Refused> {
        let run = match order {
            Order::Refresh { links, resources } => self.order_refresh(links, resources, reason).await,
            Order::Recollect { links, resources } => self.order_recollect(links, resources, reason).await,
            Order::Delete(link) => self.order_delete(link, reason).await,
            Order::Untrack(link) => self.order_untrack(link, reason).await,
            Order::Erase(erasure) => self.order_erase(erasure, reason).await,
            Order::Publish => self.order_publish(Kind::Publish, Scope::Changed, reason).await,
            Order::Rebuild => self.order_publish(Kind::Rebuild, Scope::Everything, reason).await,
            Order::Features(wanted) => self.order_features(wanted, reason).await,
            Order::Freeze(decision) => self.order_freeze(decision, reason).await,
            Order::SyncLinks => self.order_sync(reason).await,
            Order::Job(name) => self.order_job(name, reason).await,
            Order::Replay(which) => self.order_replay(which, reason).await,
        };
        Ok(run?.to_string())
    }

    async fn order_refresh(
        &self,
        links: Links,
        resources: Vec<&'static Resource>,
        reason: Reason,
    ) -> Result<i64, Refused> {
        let resources = if resources.is_empty() { resources::ALL.to_vec() } else { resources };
        let mut wanted = self.find(links, resources).await?;
        let since = self.clock.now();
        let before = BelvoBefore::of(&self.client);
        // The first are marked before the order is answered, so that the wish for one link outlives a crash.
        let first: Vec<_> = wanted.drain(..wanted.len().min(ROWS_AT_ONCE)).collect();
        self.mark(first.clone()).await?;
        // Whoever orders this may have mended them.
        self.client.try_keys_now();
        let this = self.clone();
        let work = |report: Report| async move {
            report.total((first.len() + wanted.len()) as u64);
            for some in wanted.chunks(ROWS_AT_ONCE) {
                this.mark(some.to_vec()).await?;
            }
            this.follow(first.into_iter().chain(wanted).collect(), since, before, &report).await?;
            this.until_published().await
        };
        Ok(self.runs.start(Kind::Refresh, None, reason, work).await?)
    }

    async fn order_recollect(
        &self,
        links: Links,
        resources: Vec<&'static Resource>,
        reason: Reason,
    ) -> Result<i64, Refused> {
        let resources = if resources.is_empty() { resources::ALL.to_vec() } else { resources };
        let mut wanted: Vec<_> =
            self.find(links, resources.clone()).await?.into_iter().map(|(link_id, _)| link_id).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let this = self.clone();
        let work = |report: Report| async move {
            report.total(wanted.len() as u64);
            let outcome = this.recollector.recollect(wanted, &resources, Patience::Short).await?;
            // What a failure says of a link is to be published, too.
            this.settled.send_replace(());
            report.failed(Code::LinkCooling.name(), outcome.cooling as u64);
            report.failed("link_unfit", outcome.unfit as u64);
            for (code, count) in outcome.failed {
                report.failed(code, count as u64);
            }
            this.follow_recollects(outcome.asked, &report).await?;
            this.until_published().await
        };
        Ok(self.runs.start(Kind::Recollect, None, reason, work).await?)
    }

    async fn order_delete(&self, link: LinkId, reason: Reason) -> Result<i64, Refused> {
        self.refuse_mistyped(vec![link.clone()]).await?;
        let named = link.clone();
        if self.store.read(move |tx| tombstones::is_erased(tx, &named)).await? {
            return Err(Refused::Erased);
        }
        let (this, name) = (self.clone(), Some(link.as_str().to_owned()));
        Ok(self.runs.start(Kind::Delete, name, reason, |report| this.delete(link, report)).await?)
    }

    /// Deletes a link at Belvo, and waits until Belvo says that it is gone.
    async fn delete(self, link: LinkId, report: Report) -> Result<(), Failed> {
        report.total(1);
        let mut news = self.queue.news();
        let deleted = self.deleter.delete(&link).await;
        deleted.map_err(|error| Failed::of(error.code(), error))?;
        loop {
            news.mark_unchanged();
            if self.deleter.is_gone(&link).await.map_err(|error| Failed::of(error.code(), error))? {
                break;
            }
            let _ = tokio::time::timeout(NEWS_WITHIN, news.changed()).await;
        }
        report.done(1);
        self.until_published().await
    }

    async fn order_untrack(&self, link: LinkId, reason: Reason) -> Result<i64, Refused> {
        let named = link.clone();
        if !self.store.read(move |tx| links::is_tracked(tx, &named)).await? {
            return Err(Refused::NoLink);
        }
        let (this, name) = (self.clone(), Some(link.as_str().to_owned()));
        Ok(self.runs.start(Kind::Untrack, name, reason, |report| this.untrack(link, report)).await?)
    }

    /// Ends what is due of a link, as a pause by an operator does; one that Belvo has no more is left alone already.
    async fn untrack(self, link: LinkId, report: Report) -> Result<(), Failed> {
        let now = self.clock.now();
        self.store.write(move |tx| links::pause_by_operator(tx, &link, now)).await?;
        report.all_done(1);
        self.settled.send_replace(());
        Ok(())
    }

    async fn order_erase(&self, erasure: Erasure, reason: Reason) -> Result<i64, Refused> {
        let plan = self.eraser.plan(erasure.subject).await?;
        let wish = self.eraser.wish(&plan, &erasure.reason, erasure.is_remote).await?;
        let id = wish.erasure.clone();
        let this = self.clone();
        let name = Some(id.clone());
        let work = |report: Report| async move {
            let links = plan.links.len() as u64;
            report.total(links);
            let erased = this.eraser.erase(&id, &plan).await;
            this.settled.send_replace(());
            erased.map_err(|error| Failed::of(error.code(), error))?;
            report.done(links);
            report.published(this.publisher.current());
            Ok(())
        };
        // A wish without a run would be carried out by the next start alone, although whoever asked was told that it
        // failed.
        let note = move |tx: &Tx<'_>| wish.keep(tx);
        Ok(self.runs.start_with(Kind::Erase, name, reason, note, work).await?)
    }

    /// Keeps the row before the order is answered: its run has nothing left to do.
    async fn order_freeze(&self, decision: frozen::Decision, reason: Reason) -> Result<i64, Refused> {
        let frozen::Decision { decision_id, link_id, as_of, mode } = decision;
        let now = self.clock.now();
        let mode = features::clocks(as_of, mode, now).map_or(mode, |(mode, _)| mode);
        let (publisher, link) = (Arc::clone(&self.publisher), link_id.clone());
        let read = in_background(move || {
            publisher.database().map(|file| published::row_of(&file, link.as_str(), as_of, mode)).transpose()
        });
        let read = read.await;
        let row = read?.flatten().ok_or(Refused::NoRow(as_of, mode))?;
        let frozen = Frozen { decision_id: decision_id.clone(), link_id, as_of, mode, frozen_at: now, row };
        match frozen::keep(&self.store, frozen.clone()).await? {
            Freezing::Done => {}
            Freezing::LinkErased => return Err(Refused::Erased),
            Freezing::DecisionHasOne => {
                let decision = decision_id.clone();
                let standing = self.store.read(move |tx| frozen::of(tx, &decision)).await?;
                if standing.is_none_or(|standing| standing.row != frozen.row) {
                    return Err(Refused::DecisionTaken);
                }
            }
        }
        let done = |report: Report| async move {
            report.all_done(1);
            Ok(())
        };
        Ok(self.runs.start(Kind::Freeze, Some(decision_id), reason, done).await?)
    }

    /// The links that are meant, for each of `resources`. Where links or users are named, all of them fit, or the order
    /// is refused.
    async fn find(&self, links: Links, resources: Vec<&'static Resource>) -> Result<Wanted, Refused> {
        let may_be_none = links.may_be_none();
        let wanted = match links.ids() {
            Some(ids) => self.track_named(ids, &resources).await?,
            None => self.find_tracked(links, resources).await?,
        };
        if wanted.is_empty() && !may_be_none { Err(Refused::NoLink) } else { Ok(wanted) }
    }

    /// Links that are named one by one, each of which is tracked from now on.
    async fn track_named(&self, ids: &[String], resources: &[&'static Resource]) -> Result<Wanted, Refused> {
        let now = self.clock.now();
        let named: BTreeSet<LinkId> = ids.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        self.refuse_mistyped(named.iter().cloned().collect()).await?;
        let tracked = named.clone();
        let note = move |tx: &Tx<'_>| {
            for link_id in &tracked {
                if tombstones::is_erased(tx, link_id)? {
                    return Ok(true);
                }
            }
            tracked.iter().try_for_each(|link_id| links::note_wish(tx, link_id, now))?;
            Ok(false)
        };
        if self.store.write(note).await? {
            return Err(Refused::Erased);
        }
        let each = |link_id: LinkId| resources.iter().map(move |&resource| (link_id.clone(), resource));
        Ok(named.into_iter().flat_map(each).collect())
    }

    /// Links that are tracked already.
    async fn find_tracked(&self, links: Links, resources: Vec<&'static Resource>) -> Result<Wanted, Refused> {
        let now = self.clock.now();
        let read = move |tx: &Tx<'_>| Ok((links.tracked(tx, &resources, now)?, links.unlinked(tx)?));
        let (wanted, (unlinked, named)) = self.store.read(read).await?;
        // That nobody has a link is said more simply.
        if unlinked > 0 && !wanted.is_empty() { Err(Refused::Unlinked { unlinked, named }) } else { Ok(wanted) }
    }

    /// Refuses links of which neither we nor Belvo know: they would be tracked for good, and where one is to be deleted
    /// another one stays.
    async fn refuse_mistyped(&self, named: Vec<LinkId>) -> Result<(), Refused> {
        let new = move |tx: &Tx<'_>| {
            let mut new = Vec::new();
            for link_id in named {
                if !links::is_tracked(tx, &link_id)? && !tombstones::is_erased(tx, &link_id)? {
                    new.push(link_id);
                }
            }
            Ok(new)
        };
        let new = self.store.read(new).await?;
        if self.links.is_any_unknown(&new).await { Err(Refused::UnknownLink) } else { Ok(()) }
    }

    async fn mark(&self, wanted: Wanted) -> Result<(), store::Error> {
        let now = self.clock.now();
        let mark = move |tx: &Tx<'_>| {
            wanted.iter().try_for_each(|(link_id, resource)| queue::mark(tx, link_id, resource, Trigger::Operator, now))
        };
        self.store.write(mark).await?;
        self.queue.announce();
        Ok(())
    }

    async fn order_publish(&self, kind: Kind, scope: Scope, reason: Reason) -> Result<i64, Refused> {
        let this = self.clone();
        Ok(self.runs.start(kind, None, reason, |report| this.publish_and_tell(scope, report)).await?)
    }

    async fn publish_and_tell(self, scope: Scope, report: Report) -> Result<(), Failed> {
        let published = self.publish(scope).await?;
        report.published(published.as_ref().map(|manifest| manifest.snapshot));
        report.done(published.as_ref().map_or(0, Manifest::rows));
        Ok(())
    }

    async fn order_features(&self, wanted: features::Wanted, reason: Reason) -> Result<i64, Refused> {
        let run = features::record_in_store(&self.store, wanted, self.clock.now()).await?;
        let (this, name) = (self.clone(), Some(run.name()));
        Ok(self.runs.start(Kind::Features, name, reason, |report| this.features(run, report)).await?)
    }

    /// Publishes a run of features that is on record, and counts its rows.
    async fn features(self, run: features::Run, report: Report) -> Result<(), Failed> {
        self.clone().publish_and_tell(Scope::Changed, report.clone()).await?;
        report.done(self.feature_rows(run.as_of).await);
        Ok(())
    }

    /// Publishes what `scope` says; `None` when there was nothing new.
    ///
    /// # Errors
    /// Why readers see what they saw before.
    pub async fn publish(&self, scope: Scope) -> Result<Option<Manifest>, Failed> {
        let published = publish::publish_in_background(&self.publisher, scope).await;
        published.map_err(|error| Failed::of(error.code(), error))
    }

    /// How many rows of features readers see for a date.
    pub async fn feature_rows(&self, as_of: NaiveDate) -> u64 {
        let publisher = Arc::clone(&self.publisher);
        in_background(move || publisher.feature_rows(as_of)).await
    }

    /// Compares the tracked links with Belvo's list, and gives how many that has.
    ///
    /// # Errors
    /// Why Belvo's list could not be had or kept.
    pub async fn compare_links(&self, patience: Patience) -> Result<u64, Failed> {
        let synced = self.links.sync_with(patience).await;
        self.settled.send_replace(());
        self.queue.announce();
        synced.map(|synced| synced.listed).map_err(|error| Failed::of(error.code(), error))
    }

    async fn order_sync(&self, reason: Reason) -> Result<i64, Refused> {
        let this = self.clone();
        Ok(self.runs.start(Kind::SyncLinks, None, reason, |report| this.sync_links(report)).await?)
    }

    async fn sync_links(self, report: Report) -> Result<(), Failed> {
        report.done(self.compare_links(Patience::Short).await?);
        Ok(())
    }

    async fn order_job(&self, name: String, reason: Reason) -> Result<i64, Refused> {
        if !self.jobs.knows(&name) {
            let known = self.jobs.jobs().map(|job| job.name.as_str()).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(Refused::NoJob { known });
        }
        let (this, named) = (self.clone(), Some(name.clone()));
        Ok(self.runs.start(Kind::Job, named, reason, |report| this.run_job(name, report)).await?)
    }

    async fn run_job(self, name: String, report: Report) -> Result<(), Failed> {
        let Some(ran) = self.jobs.run_now(&name).await else {
            return Err(Failed { code: "stopping", message: "the schedule is ending".to_owned() });
        };
        report.done(ran?);
        Ok(())
    }

    async fn order_replay(&self, which: Replay, reason: Reason) -> Result<i64, Refused> {
        if let Replay::One(seq) = which
            && !self.store.read(move |tx| log::is_there(tx, seq)).await?
        {
            return Err(Refused::NoWebhook(seq));
        }
        let this = self.clone();
        Ok(self.runs.start(Kind::Replay, None, reason, |report| this.replay(which, report)).await?)
    }

    async fn replay(self, which: Replay, report: Report) -> Result<(), Failed> {
        let total = match which {
            Replay::One(_) => 1,
            Replay::Quarantined => self.store.read(log::count_quarantined).await?,
        };
        report.total(total);
        let mut last = 0;
        loop {
            let seqs = match which {
                Replay::One(seq) if last == 0 => vec![seq],
                Replay::One(_) => Vec::new(),
                Replay::Quarantined => self.store.read(move |tx| log::quarantined(tx, last, ROWS_AT_ONCE)).await?,
            };
            let Some(&end) = seqs.last() else { return Ok(()) };
            last = end;
            let now = self.clock.now();
            let read_again =
                move |tx: &Tx<'_>| seqs.into_iter().map(|seq| replay(tx, seq, now)).collect::<Result<Vec<_>, _>>();
            let replayed = self.store.write(read_again).await?;
            self.queue.announce();
            for replayed in replayed {
                match replayed {
                    Replayed::Understood => report.add_done(1),
                    Replayed::StillQuarantined => report.failed("quarantined", 1),
                    Replayed::Missing => report.failed("no_such_webhook", 1),
                }
            }
        }
    }

    /// Waits until every change up to now is published, or a publish fails.
    async fn until_published(&self) -> Result<(), Failed> {
        // Nobody else announces what the order itself has changed.
        self.settled.send_replace(());
        let published = self.publisher.until_published(self.published.subscribe()).await;
        published.map_err(|Unpublished { code, message }| Failed { code, message })
    }
}
