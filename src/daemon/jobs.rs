//! What a job does once its time has come.
//!
//! *Takes* a job. *Gives* a number to show for it: links, rows, files, copies. *Promises* that what fails has a stable
//! code. *Not here*: when a job runs, which `schedule` decides.

use std::path::PathBuf;

use crate::backup;
use crate::belvo::Patience;
use crate::config;
use crate::features::runs::{self as feature_runs, Mode, Wanted};
use crate::lane::in_background;
use crate::links::freshness;
use crate::operations::Operations;
use crate::publish::integrity::Damage;
use crate::publish::{Manifest, Scope};
use crate::recollect;
use crate::retention::Retention;
use crate::runs::Failed;
use crate::schedule::{self, Action, Actions, Job};
use crate::{verify, words};

/// What the daemon does for its jobs.
pub(super) struct DaemonActions {
    /// What a person can order too.
    pub(super) operations: Operations,
    pub(super) retention: Retention,
    pub(super) state: config::State,
    pub(super) lake: PathBuf,
    pub(super) lag_months: u32,
}

impl Actions for DaemonActions {
    async fn run(&self, job: &Job) -> Result<u64, Failed> {
        match job.action {
            Action::SyncLinks => self.operations.compare_links(Patience::Long).await,
            Action::Publish => {
                let published = self.operations.publish(Scope::Changed).await?;
                Ok(published.as_ref().map_or(0, Manifest::rows))
            }
            Action::Recollect => self.recollect(&job.scope).await,
            Action::Retention => {
                let gone = self.retention.apply().await;
                self.operations.settled.send_replace(());
                Ok(gone?)
            }
            Action::Backup => self.back_up().await,
            Action::Verify => self.verify().await,
            Action::Features => self.features().await,
            Action::Fetch => {
                let Operations { store, queue, clock, .. } = &self.operations;
                Ok(schedule::fetch(&job.scope, store, queue, clock.now()).await?)
            }
        }
    }
}

impl DaemonActions {
    /// Copies the state, and gives the number of copies that there are.
    async fn back_up(&self) -> Result<u64, Failed> {
        let (state, now) = (self.state.clone(), self.operations.clock.now());
        let copied = in_background(move || backup::make_another(&state, now)).await;
        copied.map_err(|error| Failed::of(error.code(), error))
    }

    /// Looks at everything that is kept, and gives the number of files.
    async fn verify(&self) -> Result<u64, Failed> {
        let (state, lake) = (self.state.clone(), self.lake.clone());
        let looked = in_background(move || verify::check(&state, &lake, |_, _| {})).await;
        let report = looked.map_err(|error| Failed { code: "verify_failed", message: format!("{error:#}") })?;
        match report.lake.damage.first() {
            None => Ok(report.lake.files as u64),
            Some(Damage { file, what, .. }) => {
                let count = report.damaged();
                let message = format!("{count} damaged, first {file}, which {what}: `vinculo verify` names all");
                Err(Failed { code: "damaged", message })
            }
        }
    }

    /// Computes today's features, and gives how many rows they have.
    async fn features(&self) -> Result<u64, Failed> {
        let now = self.operations.clock.now();
        let wanted = Wanted { as_of: None, mode: Mode::Strict, lag_months: self.lag_months };
        let refused = |error: feature_runs::Error| Failed::of(error.code(), error);
        let run = feature_runs::record_in_store(&self.operations.store, wanted, now).await.map_err(refused)?;
        self.operations.publish(Scope::Changed).await?;
        Ok(self.operations.feature_rows(run.as_of).await)
    }

    /// Asks Belvo to read again what is in `scope`, and gives how many calls that put on its bill.
    async fn recollect(&self, scope: &freshness::Scope) -> Result<u64, Failed> {
        let (wanted, now) = (scope.clone(), self.operations.clock.now());
        let links = self.operations.store.read(move |tx| recollect::in_scope(tx, &wanted, now)).await?;
        let outcome = self.operations.recollector.recollect(links, &scope.resources, Patience::Long).await?;
        match outcome.failed.iter().next() {
            Some((&code, count)) if outcome.asked.is_empty() => Err(Failed {
                code,
                message: format!("none of the links was taken, and {count} failed so: {}", words::advice(code)),
            }),
            _ => Ok(outcome.asked.len() as u64),
        }
    }
}
