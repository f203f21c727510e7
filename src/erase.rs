//! One person, everywhere: what is held, and how it goes.
//!
//! *Takes* a link, an `external_id` or a person's key. *Gives* a plan, and once it is done a receipt that names nobody.
//! *Promises* that an erasure which was begun is finished, by whoever opens the state next; that afterwards no byte of the
//! person is in the state, its log or the lake; and that nothing brings the links back. *Not here*: backups and copies that
//! others made; the receipt lists the backups that this program knows of.
//!
//! The steps, each durable before the next: the wish is noted (`asked`); rows, keys and bodies go and tombstones come, in
//! one transaction (`removed`); the lake is built anew and every older snapshot is dropped, because only clocks could tell
//! which ones showed the person, and clocks jump (`published`); the log is emptied, the file looked through, and the receipt
//! written (`done`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::backup::{self, Made};
use crate::belvo::links::Deletion;
use crate::belvo::{Decision, LinkId, SIMULATED_MISMATCH};
use crate::clock::{Clock, Timestamp};
use crate::deadlines::Deadlines;
use crate::delete::{self, Deleter};
use crate::lane::in_background;
use crate::publish::{self, Forgotten, Publisher, Scope};
use crate::records::unpack;
use crate::resources::owners;
use crate::sensitive::{Cpf, Pepper};
use crate::store::{self, Row, Store, Traces, Tx, VersionPlace, WebhookPlace, args};
use crate::tombstones::{self, Kind, Tombstone, Tombstones};

/// Backups that hold the person must be gone so long after the erasure.
const BACKUPS_GO_WITHIN: Duration = Duration::from_hours(30 * 24);

/// Belvo's word that it deletes a link is as good as the deed after so long.
const BELVO_DELETES_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks whether Belvo has.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// An erasure that waits for Belvo is tried again so often.
const TRY_AGAIN: Duration = Duration::from_mins(1);

/// The folder of receipts, in that of the state.
const RECEIPTS: &str = "erasures";

/// Why nothing, or not everything, was erased.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody of that name.
    #[error("nothing is held of this {0}: look at the spelling; what was erased before stays erased")]
    NotHeld(&'static str),
    /// Persons have no key without a pepper.
    #[error("pii.pepper is empty, so that persons have no key: name a link or an external_id")]
    NoPepper,
    /// The links are to be deleted at Belvo too, and this command does not talk to Belvo.
    #[error("an erasure also waits for Belvo, which is asked by `vinculo serve`")]
    NeedsBelvo,
    /// Belvo did not take the wish to delete a link.
    #[error("nothing was erased, because Belvo does not delete the link: {0}")]
    Belvo(Box<delete::Error>),
    /// A file beside the state cannot be written.
    #[error("{path} cannot be written: {source}; mend it, and start `vinculo serve`, which finishes the erasure")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The lake could not be published anew.
    #[error(transparent)]
    Publish(#[from] publish::Error),
    /// The state refused.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The stable code of this failure, for logs, metrics and `status`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotHeld(_) => "not_held",
            Self::NoPepper => "no_pepper",
            Self::NeedsBelvo => "needs_belvo",
            Self::Belvo(error) => error.code(),
            Self::File { .. } => "receipt_not_writable",
            Self::Publish(error) => error.code(),
            Self::Store(error) => error.code(),
        }
    }

    /// Whether Belvo has said no, and would say so again.
    fn is_refusal(&self) -> bool {
        let Self::Belvo(error) = self else { return false };
        match &**error {
            delete::Error::Belvo(failure) => {
                failure.code != SIMULATED_MISMATCH
                    && !matches!(failure.kind, Decision::Retry | Decision::RetryAfter(_) | Decision::Stop)
            }
            delete::Error::Refused => true,
            delete::Error::Store(_) => false,
        }
    }
}

/// Whom an erasure or an export is about. It has no printed form.
#[derive(Clone, PartialEq, Eq)]
pub enum Subject {
    /// One link.
    Link(LinkId),
    /// Every link of an `external_id`.
    ExternalId(String),
    /// Every link of a `person_key`.
    Person(String),
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({})", self.kind().name())
    }
}

impl Subject {
    /// What kind of name it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Link(_) => Kind::Link,
            Self::ExternalId(_) => Kind::ExternalId,
            Self::Person(_) => Kind::Person,
        }
    }

    /// The links that it means, by id. Blocks for long when it is a person: only the bodies say who that is.
    ///
    /// # Errors
    /// [`Error::NoPepper`], [`Error::Store`].
    pub fn links(&self, tx: &Tx<'_>, pepper: Option<&Pepper>) -> Result<Vec<String>, Error> {
        Ok(match self {
            Self::Link(id) => {
                let mut found = Vec::new();
                for table in tx.tables_with("link_id")? {
                    let sql = format!("SELECT link_id FROM {table} WHERE link_id = $1 LIMIT 1");
                    found.extend(tx.one(&sql, args![id], |row| row.text(0))?);
                }
                found.truncate(1);
                found
            }
            Self::ExternalId(id) => {
                tx.all("SELECT link_id FROM links WHERE external_id = $1 ORDER BY link_id", args![id], |row| {
                    row.text(0)
                })?
            }
            Self::Person(key) => {
                let persons = persons(tx, pepper.ok_or(Error::NoPepper)?)?;
                let found: BTreeSet<String> =
                    persons.into_iter().filter(|(_, person)| person == key).map(|(link, _)| link).collect();
                found.into_iter().collect()
            }
        })
    }
}

/// Every link with the key of every person that it ever named as its owner.
///
/// # Errors
/// [`store::Error`].
pub fn persons(tx: &Tx<'_>, pepper: &Pepper) -> Result<Vec<(String, String)>, store::Error> {
    let mut persons = Vec::new();
    each_body(tx, Bodies::OfResource(owners::RESOURCE.name), |place, body| {
        if let Some(person) = person_of(&body, pepper) {
            persons.push((place.link_id.to_owned(), person));
        }
        Ok(())
    })?;
    Ok(persons)
}

/// The key of the person that an owner's body names.
fn person_of(body: &str, pepper: &Pepper) -> Option<String> {
    let owner: Value = serde_json::from_str(body).ok()?;
    let cpf = Cpf::parse(owner["document_id"]["document_number"].as_str()?)?;
    Some(pepper.key_of(&[cpf.digits()]))
}

/// Which bodies.
#[derive(Debug, Clone, Copy)]
pub enum Bodies<'a> {
    /// Those of one link.
    OfLink(&'a str),
    /// Those of a resource, by its name.
    OfResource(&'a str),
}

/// Gives every version of every record, opened.
///
/// # Errors
/// [`store::Error`]; a body that cannot be opened is left out, so that damage does not keep anybody.
pub fn each_body(
    tx: &Tx<'_>,
    which: Bodies<'_>,
    mut each: impl FnMut(VersionPlace<'_>, String) -> Result<(), store::Error>,
) -> Result<(), store::Error> {
    let (column, value) = match which {
        Bodies::OfLink(link) => ("link_id", link),
        Bodies::OfResource(resource) => ("resource", resource),
    };
    let sql = format!(
        "SELECT link_id, resource, record_key, version, body FROM record_versions WHERE {column} = $1 \
         ORDER BY link_id, resource, record_key, version"
    );
    tx.each(&sql, args![value], |row: &Row<'_>| {
        let place =
            VersionPlace { link_id: row.str(0)?, resource: row.str(1)?, record_key: row.str(2)?, version: row.int(3)? };
        match place.open(tx, row.bytes(4)?).and_then(|packed| unpack(&packed)) {
            Ok(body) => each(place, body),
            Err(store::Error::Unreadable(_)) => Ok(()),
            Err(error) => Err(error),
        }
    })
}

/// What would go.
#[derive(Serialize)]
pub struct Plan {
    /// The links, by id.
    pub links: Vec<String>,
    /// The `external_id`s that no other link has.
    pub external_ids: Vec<String>,
    /// Rows of each table of the state.
    pub rows: BTreeMap<String, u64>,
    /// Snapshots that are there, of which none stays.
    pub snapshots: Vec<u32>,
    /// Backups that hold them.
    pub backups: Vec<Made>,
    #[serde(skip)]
    subject: Subject,
    #[serde(skip)]
    traces: Traces,
}

/// What has to be known to go on after a crash; gone with the rows.
#[derive(Serialize, Deserialize)]
struct Wish {
    links: Vec<String>,
    external_ids: Vec<String>,
    /// Kind and name of what was asked for, when it is no link.
    named: Option<(Kind, String)>,
    /// Whether Belvo deletes the links first.
    is_remote: bool,
}

/// What was done. It names nobody.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Receipt {
    /// Random id of the erasure.
    pub erasure: String,
    /// When it was asked for, RFC 3339.
    pub asked_at: String,
    /// When it was done; empty before.
    pub finished_at: String,
    /// `link`, `external_id` or `person`.
    pub asked_for: String,
    /// Why, in the operator's words.
    pub reason: String,
    /// How many links it was about.
    pub links: usize,
    /// What Belvo said of each link, when it was to delete them: `deleted`, or `accepted` when it will.
    pub remote: Option<Vec<String>>,
    /// Salted hashes of what must not come back.
    pub tombstones: Vec<Tombstone>,
    /// Rows removed from each table of the state, the keys of the bodies (`link_keys`) among them.
    pub rows: BTreeMap<String, u64>,
    /// The first snapshot without the person; absent when nothing was ever published.
    pub published: Option<u32>,
    /// Snapshots that were dropped, file by file.
    pub snapshots: Vec<Forgotten>,
    /// Whether the state's file was written anew, because emptying its log was not enough.
    pub state_rewritten: bool,
    /// Traces left in the state, because rows of others hold the same bytes.
    pub traces_left: usize,
    /// Backups made before, and when each has to be gone.
    pub backups: Vec<BackupToGo>,
    /// Hash of the line in the audit.
    pub audit_hash: String,
}

/// A backup that holds an erased person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BackupToGo {
    /// The file, as it was named when it was made.
    pub file: String,
    /// When it was made, RFC 3339.
    pub made_at: String,
    /// When it must be gone.
    pub gone_by: String,
}

/// Erases. Cheap to clone.
#[derive(Clone)]
pub struct Eraser {
    store: Store,
    publisher: Arc<Publisher>,
    /// None where Belvo is not talked to.
    deleter: Option<Deleter>,
    pepper: Option<Pepper>,
    state: PathBuf,
    clock: Clock,
}

impl Eraser {
    /// One for the state at `state`, open as `store`, and the lake behind `publisher`. Without a `deleter` nothing is
    /// deleted at Belvo.
    pub fn new(
        store: Store,
        publisher: Arc<Publisher>,
        deleter: Option<Deleter>,
        pepper: Option<Pepper>,
        state: &Path,
        clock: Clock,
    ) -> Self {
        Self { store, publisher, deleter, pepper, state: state.to_owned(), clock }
    }

    /// What erasing `subject` would remove. Nothing is written.
    ///
    /// # Errors
    /// [`Error::NotHeld`], [`Error::NoPepper`], [`Error::Store`].
    pub async fn plan(&self, subject: Subject) -> Result<Plan, Error> {
        let (readers, pepper) = (self.store.readers(), self.pepper.clone());
        let mut plan = in_background(move || readers.read(|tx| plan(tx, subject, pepper.as_ref()))).await?;
        plan.snapshots = self.publisher.snapshots()?;
        plan.backups = backup::made(&self.state);
        Ok(plan)
    }

    /// Finishes the erasure that [`Eraser::ask`] noted of `plan`. A wish that Belvo does not take is taken back: whoever
    /// waits is told.
    ///
    /// # Errors
    /// [`Error`]. After a crash whoever opens the state next finishes it.
    pub async fn erase(&self, erasure: &str, plan: &Plan) -> Result<(), Error> {
        let done = self.go_on(erasure, &plan.traces).await;
        if let Err(Error::Belvo(_)) = &done {
            self.take_back(erasure).await?;
        }
        done
    }

    /// Does all steps of an erasure that are left.
    async fn go_on(&self, erasure: &str, traces: &Traces) -> Result<(), Error> {
        while !self.step(erasure, traces).await?.is_done() {}
        Ok(())
    }

    /// Forgets a wish of which nothing was done.
    async fn take_back(&self, erasure: &str) -> Result<(), store::Error> {
        let id = erasure.to_owned();
        let take_back = "DELETE FROM erasures WHERE erasure = $1 AND step = 'asked'";
        self.store.write(move |tx| tx.execute(take_back, args![&id])).await.map(drop)
    }

    /// Finishes the erasures that were begun, but for those that wait for Belvo, which may take long: gives their ids, for
    /// [`Eraser::run`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn resume(&self) -> Result<Vec<String>, Error> {
        let begun = self.store.read(|tx| {
            let sql = "SELECT erasure, plan FROM erasures WHERE step <> 'done' ORDER BY asked_at";
            tx.all(sql, args![], |row| Ok((row.text(0)?, row.opt_text(1)?)))
        });
        let mut waiting = Vec::new();
        for (erasure, plan) in begun.await? {
            // Once something of it was done, its plan is gone, and Belvo has been asked.
            let wish: Option<Wish> = plan.and_then(|plan| serde_json::from_str(&plan).ok());
            if wish.is_some_and(|wish| wish.is_remote) {
                if self.deleter.is_none() {
                    let error = Error::NeedsBelvo;
                    tracing::warn!(code = error.code(), erasure, "an erasure is not finished yet: {error}");
                }
                waiting.push(erasure);
                continue;
            }
            tracing::warn!(code = "erasure_resumed", erasure, "an erasure was interrupted and is finished now");
            // What to look for was forgotten with the process: the state's file is written anew instead.
            self.go_on(&erasure, &Traces::default()).await?;
        }
        Ok(waiting)
    }

    /// Finishes the erasures `waiting`, which wait for Belvo, and then waits for `shutdown`. While Belvo cannot be asked they
    /// go on waiting; a wish that it refuses is taken back, as [`Eraser::erase`] does.
    pub async fn run(self, mut waiting: Vec<String>, shutdown: CancellationToken) {
        for erasure in &waiting {
            tracing::warn!(
                code = "erasure_resumed",
                erasure,
                "an erasure was interrupted and goes on: Belvo is asked first"
            );
        }
        let finishing = async {
            loop {
                let mut left = Vec::new();
                for erasure in waiting {
                    let Err(error) = self.go_on(&erasure, &Traces::default()).await else { continue };
                    if error.is_refusal() && self.take_back(&erasure).await.is_ok() {
                        tracing::error!(code = error.code(), erasure, "an erasure is given up: {error}");
                    } else {
                        tracing::warn!(code = error.code(), erasure, "an erasure is not finished yet: {error}");
                        left.push(erasure);
                    }
                }
                if left.is_empty() {
                    return;
                }
                waiting = left;
                tokio::time::sleep(TRY_AGAIN).await;
            }
        };
        shutdown.run_until_cancelled(finishing).await;
        shutdown.cancelled().await;
    }

    /// Notes the wish to erase what `plan` says, for `reason`, at Belvo too when `is_remote`, and gives the erasure's id.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn ask(&self, plan: &Plan, reason: &str, is_remote: bool) -> Result<String, Error> {
        let erasure = format!("{:032x}", rand::random::<u128>());
        let asked_at = self.clock.now();
        let named = match &plan.subject {
            Subject::Link(_) => None,
            Subject::ExternalId(name) | Subject::Person(name) => Some((plan.subject.kind(), name.clone())),
        };
        let wish = Wish { links: plan.links.clone(), external_ids: plan.external_ids.clone(), named, is_remote };
        let receipt = Receipt {
            erasure: erasure.clone(),
            asked_at: asked_at.to_string(),
            asked_for: plan.subject.kind().name().to_owned(),
            reason: reason.to_owned(),
            links: plan.links.len(),
            ..Receipt::default()
        };
        let (id, wish, text) = (erasure.clone(), json!(wish).to_string(), json!(receipt).to_string());
        let (asked_for, reason) = (receipt.asked_for, receipt.reason);
        self.store
            .write(move |tx| {
                tx.execute(
                    "INSERT INTO erasures (erasure, asked_at, asked_for, reason, step, plan, receipt) \
                     VALUES ($1, $2, $3, $4, 'asked', $5, $6)",
                    args![&id, asked_at, &asked_for, &reason, &wish, &text],
                )
            })
            .await?;
        Ok(erasure)
    }

    /// Does the next step of an erasure, and gives the one that it has reached.
    ///
    /// # Errors
    /// [`Error`]; the step can be done again.
    pub async fn step(&self, erasure: &str, traces: &Traces) -> Result<Step, Error> {
        let id = erasure.to_owned();
        let found = self
            .store
            .read(move |tx| tx.one("SELECT step FROM erasures WHERE erasure = $1", args![&id], |row| row.text(0)));
        match found.await?.as_deref() {
            Some("asked") => self.remove(erasure).await,
            Some("removed") => self.publish(erasure).await,
            Some("published") => self.finish(erasure, traces).await,
            _ => Ok(Step::Done),
        }
    }

    /// Rows, keys and bodies go, and tombstones come.
    async fn remove(&self, erasure: &str) -> Result<Step, Error> {
        let id = erasure.to_owned();
        let (plan, mut receipt) = self.store.read(move |tx| read(tx, &id)).await?;
        let wish: Option<Wish> = plan.and_then(|plan| serde_json::from_str(&plan).ok());
        let wish = wish.ok_or(store::Error::Unreadable("an erasure's plan"))?;
        if wish.is_remote {
            receipt.remote = Some(self.delete_at_belvo(&wish.links).await?);
        }
        let now = self.clock.now();
        self.store
            .write(move |tx| {
                receipt.rows = remove(tx, &wish.links, &wish.external_ids)?;
                let links = wish.links.iter().map(|id| (Kind::Link, id));
                let named = wish.named.iter().map(|(kind, name)| (*kind, name));
                receipt.tombstones = links
                    .chain(named)
                    .map(|(kind, name)| tombstones::bury(tx, kind, name, now))
                    .collect::<Result<_, _>>()?;
                // Tells the publisher that there is something new.
                tx.change()?;
                keep(tx, Step::Removed, &receipt)
            })
            .await?;
        Ok(Step::Removed)
    }

    /// What Belvo says of each link.
    async fn delete_at_belvo(&self, links: &[String]) -> Result<Vec<String>, Error> {
        let deleter = self.deleter.as_ref().ok_or(Error::NeedsBelvo)?;
        let mut said = Vec::new();
        for link in links {
            let link: LinkId = link.parse().map_err(|_| store::Error::Unreadable("a link id"))?;
            let asked = Instant::now();
            let asking = deleter.delete(&link).await.map_err(|error| Error::Belvo(Box::new(error)))?;
            let mut is_gone = asking == Deletion::Done;
            while !is_gone && asked.elapsed() < BELVO_DELETES_WITHIN {
                tokio::time::sleep(LOOK_AGAIN).await;
                deleter.follow_up().await?;
                is_gone = deleter.is_gone(&link).await.map_err(|error| Error::Belvo(Box::new(error)))?;
            }
            said.push(if is_gone { "deleted" } else { "accepted" }.to_owned());
        }
        Ok(said)
    }

    /// Tombstones go to their files, and the lake is built anew, without the person.
    async fn publish(&self, erasure: &str) -> Result<Step, Error> {
        let made = backup::made(&self.state);
        if let Some(tombstones) = self.store.read(Tombstones::of).await? {
            let mut files = vec![tombstones::file_of(&self.state)];
            // Whoever restores one of these elsewhere finds them there too, unless the backup was moved.
            files.extend(
                made.iter()
                    .map(|made| Path::new(&made.file))
                    .filter(|file| file.exists())
                    .map(tombstones::file_of_backup),
            );
            for (number, file) in files.iter().enumerate() {
                match tombstones.write(file) {
                    Err(source) if number == 0 => return Err(Error::File { path: file.clone(), source }),
                    Err(error) => {
                        tracing::warn!(code = "backup_not_marked", "a backup cannot be told of the erasure: {error}");
                    }
                    Ok(()) => {}
                }
            }
        }
        let id = erasure.to_owned();
        let mut receipt = self.store.read(move |tx| read(tx, &id)).await?.1;
        // Also where a lake has lost its link to the current one.
        if !self.publisher.snapshots()?.is_empty() {
            publish::publish_in_background(&self.publisher, Scope::Everything).await?;
            let publisher = Arc::clone(&self.publisher);
            receipt.snapshots = in_background(move || publisher.forget()).await?;
            receipt.published = self.publisher.current();
        }
        self.store.write(move |tx| keep(tx, Step::Published, &receipt)).await?;
        Ok(Step::Published)
    }

    /// The log is emptied, the state's file looked through, and the receipt written.
    async fn finish(&self, erasure: &str, traces: &Traces) -> Result<Step, Error> {
        let scrubbed = self.store.scrub(traces.clone()).await?;
        let now = self.clock.now();
        let mut receipt = self.receipt_of(erasure).await?;
        // One that was concluded and whose files could not be written stays as it was.
        if receipt.audit_hash.is_empty() {
            let backups = backup::made(&self.state).into_iter().map(|made| BackupToGo {
                file: made.file,
                made_at: made.made_at,
                gone_by: (now + BACKUPS_GO_WITHIN).to_string(),
            });
            receipt.backups = backups.collect();
            receipt.state_rewritten = scrubbed.is_compacted;
            receipt.traces_left = scrubbed.left;
            receipt.finished_at = now.to_string();
            receipt = self.store.write(move |tx| conclude(tx, receipt, now)).await?;
        }
        write_receipt(&self.state, &receipt)?;
        let done = receipt.clone();
        self.store.write(move |tx| keep(tx, Step::Done, &done)).await?;
        metrics::counter!("vinculo_erasures_total").increment(1);
        tracing::info!(erasure, links = receipt.links, "erased");
        Ok(Step::Done)
    }

    /// What was done so far.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn receipt_of(&self, erasure: &str) -> Result<Receipt, Error> {
        let id = erasure.to_owned();
        Ok(self.store.read(move |tx| read(tx, &id)).await?.1)
    }
}

/// How far an erasure has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing of the person is in the state's tables.
    Removed,
    /// Readers see a lake without the person.
    Published,
    /// All is done.
    Done,
}

impl Step {
    /// Whether all is done.
    pub fn is_done(self) -> bool {
        self == Self::Done
    }

    fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Published => "published",
            Self::Done => "done",
        }
    }
}

/// What erasing `subject` would remove from the state. Blocks.
///
/// # Errors
/// [`Error::NotHeld`], [`Error::NoPepper`], [`Error::Store`].
pub fn plan(tx: &Tx<'_>, subject: Subject, pepper: Option<&Pepper>) -> Result<Plan, Error> {
    let links = subject.links(tx, pepper)?;
    if links.is_empty() {
        return Err(Error::NotHeld(subject.kind().name()));
    }
    let external_ids = own_external_ids(tx, &links)?;
    let traces = traces(tx, &links, &external_ids)?;
    let mut rows = BTreeMap::new();
    for table in tx.tables_with("link_id")? {
        let mut count = 0;
        for link in &links {
            let sql = format!("SELECT count(*) FROM {table} WHERE link_id = $1");
            count += tx.one(&sql, args![link], |row| row.int(0))?.unwrap_or_default().cast_unsigned();
        }
        if table == "webhooks" {
            count += unnamed_webhooks(tx, links.iter().chain(&external_ids))?.len() as u64;
        }
        if count > 0 {
            rows.insert(table, count);
        }
    }
    Ok(Plan {
        links,
        external_ids: external_ids.into_iter().collect(),
        rows,
        snapshots: Vec::new(),
        backups: Vec::new(),
        subject,
        traces,
    })
}

/// The `external_id`s of `links` that no other link has.
///
/// # Errors
/// [`store::Error`].
pub fn own_external_ids(tx: &Tx<'_>, links: &[String]) -> Result<BTreeSet<String>, store::Error> {
    let ids: BTreeSet<&str> = links.iter().map(String::as_str).collect();
    let mut external_ids = BTreeSet::new();
    for link in links {
        let sql = "SELECT external_id FROM links WHERE link_id = $1";
        let Some(external_id) = tx.one(sql, args![link], |row| row.opt_text(0))?.flatten() else { continue };
        let sharing =
            tx.all("SELECT link_id FROM links WHERE external_id = $1", args![&external_id], |row| row.text(0))?;
        if sharing.iter().all(|other| ids.contains(other.as_str())) {
            external_ids.insert(external_id);
        }
    }
    Ok(external_ids)
}

/// Numbers of the webhooks that name one of `names`, which are links and `external_id`s, although nobody knows of which link
/// they are: they were not understood, and have the name in a place of their own.
///
/// # Errors
/// [`store::Error`].
pub fn unnamed_webhooks<'n>(tx: &Tx<'_>, names: impl Iterator<Item = &'n String>) -> Result<Vec<i64>, store::Error> {
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let mut found = Vec::new();
    tx.each("SELECT seq, received_at, body FROM webhooks WHERE link_id IS NULL ORDER BY seq", args![], |row| {
        let place = WebhookPlace { link_id: None, received_at: row.int(1)? };
        // One that cannot be opened says nothing.
        if place.open(tx, row.bytes(2)?).is_ok_and(|body| are_named_in(&body, &names)) {
            found.push(row.int(0)?);
        }
        Ok::<_, store::Error>(())
    })?;
    Ok(found)
}

/// Whether a webhook's body names one of `names`. One that not every reader takes for JSON is searched for them between
/// whatever cannot be part of a name.
fn are_named_in(body: &[u8], names: &BTreeSet<&str>) -> bool {
    if let Ok(json) = serde_json::from_slice(body) {
        return is_named(&json, names);
    }
    let is_part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-_.@\\".contains(byte));
    let is_there = |name: &&str| {
        memchr::memmem::find_iter(body, name.as_bytes()).any(|at| {
            !is_part(at.checked_sub(1).and_then(|before| body.get(before))) && !is_part(body.get(at + name.len()))
        })
    };
    names.iter().any(is_there) || LinkId::all_in(body).any(|link| names.contains(link.as_str()))
}

/// Whether a value in `json` is one of `names`, or a text in it has the id of a link that is. A part of another name is none:
/// `customer-1` is not in `customer-12`.
fn is_named(json: &Value, names: &BTreeSet<&str>) -> bool {
    match json {
        Value::String(text) => {
            names.contains(text.as_str()) || LinkId::all_in(text.as_bytes()).any(|link| names.contains(link.as_str()))
        }
        Value::Number(number) => names.contains(number.to_string().as_str()),
        Value::Array(items) => items.iter().any(|item| is_named(item, names)),
        Value::Object(fields) => fields.values().any(|value| is_named(value, names)),
        Value::Null | Value::Bool(_) => false,
    }
}

/// Bytes from the middle of a body that tell it from all others.
const TRACE: usize = 32;

/// What must not be found in the state's file once it is done.
fn traces(tx: &Tx<'_>, links: &[String], external_ids: &BTreeSet<String>) -> Result<Traces, store::Error> {
    let mut traces = Traces::default();
    links.iter().chain(external_ids).for_each(|name| traces.add(name.as_bytes()));
    for link in links {
        each_body(tx, Bodies::OfLink(link), |_, body| {
            add_texts(&serde_json::from_str(&body).unwrap_or_default(), &mut traces);
            Ok(())
        })?;
        // Bodies that were kept without a key are in the file as they are; those under one are noise without it.
        for sql in [
            "SELECT wrapped FROM link_keys WHERE link_id = $1",
            "SELECT body FROM record_versions WHERE link_id = $1",
            "SELECT body FROM webhooks WHERE link_id = $1",
            "SELECT body FROM frozen_features WHERE link_id = $1",
        ] {
            tx.each(sql, args![link], |row| {
                let bytes = row.bytes(0)?;
                let middle = bytes.len() / 2;
                traces.add(&bytes[middle..bytes.len().min(middle + TRACE)]);
                Ok::<_, store::Error>(())
            })?;
        }
    }
    Ok(traces)
}

/// Adds what tells a person apart from others: ids, documents, addresses. A name or a place may be another's too.
fn add_texts(value: &Value, traces: &mut Traces) {
    const TELLING: [&str; 6] = ["id", "document_number", "email", "phone_number", "internal_identification", "code"];
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if TELLING.contains(&name.as_str()) => {
                        // An employer's code is another's too, unless it is a person's.
                        if name != "code" || Cpf::parse(text).is_some() {
                            traces.add(text.as_bytes());
                        }
                        if let Some(cpf) = Cpf::parse(text) {
                            traces.add(cpf.digits());
                        }
                    }
                    _ => add_texts(value, traces),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| add_texts(item, traces)),
        _ => {}
    }
}

/// Removes every row of the links and of the `external_id`s that nobody else has, and gives the number for each table.
///
/// A table is found by its columns `link_id` and `external_id`, so that none is forgotten.
///
/// # Errors
/// [`store::Error`].
pub fn remove(tx: &Tx<'_>, links: &[String], external_ids: &[String]) -> Result<BTreeMap<String, u64>, store::Error> {
    let mut rows = BTreeMap::new();
    let mut note = |table: &str, count: usize| {
        if count > 0 {
            *rows.entry(table.to_owned()).or_insert(0) += count as u64;
        }
    };
    let mut decisions = Vec::new();
    for link in links {
        let sql = "SELECT decision_id FROM frozen_features WHERE link_id = $1";
        decisions.extend(tx.all(sql, args![link], |row| row.text(0))?);
    }
    // Before their key goes.
    for seq in unnamed_webhooks(tx, links.iter().chain(external_ids))? {
        note("webhooks", tx.execute("DELETE FROM webhooks WHERE seq = $1", args![seq])?);
    }
    for (column, names) in [("link_id", links), ("external_id", external_ids)] {
        for table in tx.tables_with(column)? {
            let sql = format!("DELETE FROM {table} WHERE {column} = $1");
            for name in names {
                note(&table, tx.execute(&sql, args![name])?);
            }
        }
    }
    for link in links {
        // What was ordered for the link stays on record, without saying for whom.
        let sql = "UPDATE runs SET name = NULL, message = NULL WHERE name = $1 OR message LIKE '%' || $1 || '%'";
        tx.execute(sql, args![link])?;
    }
    for decision in decisions {
        tx.execute(
            "UPDATE runs SET name = NULL, message = NULL WHERE name = $1 AND kind = 'freeze'",
            args![&decision],
        )?;
    }
    Ok(rows)
}

fn read(tx: &Tx<'_>, erasure: &str) -> Result<(Option<String>, Receipt), store::Error> {
    let found = tx.one("SELECT plan, receipt FROM erasures WHERE erasure = $1", args![erasure], |row| {
        let receipt = serde_json::from_str(row.str(1)?).map_err(|_| store::Error::Unreadable("a receipt"))?;
        Ok((row.opt_text(0)?, receipt))
    })?;
    found.ok_or(store::Error::Unreadable("an erasure"))
}

/// Keeps the whole receipt, with the line of the audit log that tells of it. Only its files are missing then.
fn conclude(tx: &Tx<'_>, mut receipt: Receipt, now: Timestamp) -> Result<Receipt, store::Error> {
    let detail = json!({
        "erasure": receipt.erasure, "asked_for": receipt.asked_for, "links": receipt.links, "rows": receipt.rows,
        "snapshots": receipt.snapshots.len(),
    });
    receipt.audit_hash = audit::note(tx, now, "erase", &detail)?;
    keep(tx, Step::Published, &receipt)?;
    Ok(receipt)
}

fn keep(tx: &Tx<'_>, step: Step, receipt: &Receipt) -> Result<(), store::Error> {
    tx.execute(
        "UPDATE erasures SET step = $2, plan = NULL, receipt = $3 WHERE erasure = $1",
        args![&receipt.erasure, step.name(), &json!(receipt).to_string()],
    )
    .map(drop)
}

/// Where the receipt of an erasure is, as JSON and as a page.
pub fn receipts_of(state: &Path, erasure: &str) -> [PathBuf; 2] {
    ["json", "txt"].map(|kind| state.with_file_name(RECEIPTS).join(format!("{erasure}.{kind}")))
}

fn write_receipt(state: &Path, receipt: &Receipt) -> Result<(), Error> {
    let [document, page] = receipts_of(state, &receipt.erasure);
    let text = serde_json::to_string_pretty(receipt).unwrap_or_default() + "\n";
    for (path, text) in [(document, text), (page, receipt.to_string())] {
        let written = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state.with_file_name(RECEIPTS))
            .and_then(|()| File::options().create(true).truncate(true).write(true).mode(0o600).open(&path))
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
        written.map_err(|source| Error::File { path, source })?;
    }
    Ok(())
}

/// The page.
impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "RECEIPT OF AN ERASURE\n")?;
        writeln!(f, "Erasure      {}", self.erasure)?;
        writeln!(f, "Asked for    {} ({} link(s))", self.asked_for, self.links)?;
        writeln!(f, "Reason       {}", self.reason)?;
        writeln!(f, "Asked at     {}", self.asked_at)?;
        writeln!(f, "Done at      {}", self.finished_at)?;
        writeln!(f, "Audit line   {}\n", self.audit_hash)?;
        writeln!(f, "1. Removed from the state database")?;
        self.rows.iter().try_for_each(|(table, rows)| writeln!(f, "   {rows:>8} row(s) of {table}"))?;
        writeln!(
            f,
            "   The keys that the stored answers and webhooks were encrypted with are among them (link_keys): what a\n   \
             copy of the file may still hold of these can no longer be read with this state.\n   \
             The database's log was emptied{}.\n",
            if self.state_rewritten {
                " and its file written anew"
            } else {
                ", and its file was searched: no trace is left"
            }
        )?;
        if self.traces_left > 0 {
            writeln!(f, "   {} searched value(s) also belong to others' rows, which stay.\n", self.traces_left)?;
        }
        writeln!(f, "2. Removed from the published data")?;
        match self.published {
            Some(snapshot) => writeln!(f, "   Snapshot {snapshot:06} was built without the person.")?,
            None => writeln!(f, "   Nothing was published yet.")?,
        }
        for Forgotten { snapshot, files } in &self.snapshots {
            writeln!(f, "   Snapshot {snapshot:06} was removed, {} file(s):", files.len())?;
            files.iter().try_for_each(|file| writeln!(f, "     {file}"))?;
        }
        writeln!(f, "\n3. Kept, so that nothing comes back")?;
        writeln!(f, "   Salted hashes, from which nobody can be told:")?;
        for Tombstone { kind, hash, .. } in &self.tombstones {
            writeln!(f, "     {} {hash}", kind.name())?;
        }
        writeln!(f, "\n4. Backups made before, which still hold the person")?;
        if self.backups.is_empty() {
            writeln!(f, "   None is known.")?;
        }
        for BackupToGo { file, made_at, gone_by } in &self.backups {
            writeln!(f, "   {file}, made at {made_at}: to be destroyed by {gone_by}")?;
        }
        match &self.remote {
            Some(said) => writeln!(f, "\n5. At Belvo: {}", said.join(", "))?,
            None => writeln!(f, "\n5. At Belvo: not asked for; its copy stays until it is deleted there")?,
        }
        writeln!(f, "\nNot reached: copies that others made, and the data at the institution.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_wherever_a_value_is_it_and_in_no_longer_one() {
        const LINK: &str = "2f5d361d-dad6-45d4-a0bf-26d479766067";
        let names = BTreeSet::from([LINK, "user-1", "4711"]);
        for (json, expected) in [
            (r#"{"external_id":"user-1"}"#, true),
            (r#"{"data":[{"of":"us\u0065r-1"}]}"#, true),
            (r#"{"external_id":"user-12"}"#, false),
            (r#"{"user-1":"x"}"#, false),
            (r#"{"external_id":4711}"#, true),
            (r#"{"external_id":47110}"#, false),
            (r#"{"about":"https://x/links/2F5D361D-dad6-45d4-a0bf-26d479766067/"}"#, true),
            (r#"{"about":"3f5d361d-dad6-45d4-a0bf-26d479766067"}"#, false),
            (r#"{"external_id":"user-1","other":"\ud83d"}"#, true),
            (r#"{"external_id":"user-12","other":"\ud83d"}"#, false),
        ] {
            assert_eq!(are_named_in(json.as_bytes(), &names), expected, "{json}");
        }
    }
}
