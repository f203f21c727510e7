//! What people see of the jobs: each with its next times, and what came of it last. The same to the API, the commands
//! and the dashboard.

use schemars::JsonSchema;
use serde::Serialize;

use super::{AHEAD, Job};
use crate::clock::Timestamp;
use crate::runs::{self, Run};
use crate::store::{Error, Tx};

/// How many fire times of each job are told.
const SLOTS: usize = 5;

/// A job, when it runs next, and what came of it last.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub struct View {
    /// The stem of its file.
    pub name: String,
    /// Whether it runs at its times, and not only when asked for.
    pub enabled: bool,
    /// What it does.
    pub action: &'static str,
    /// The five fields.
    pub schedule: String,
    /// The zone whose clock the schedule means.
    pub timezone: &'static str,
    /// The next times, in that zone.
    pub next: Vec<String>,
    /// Its last run; absent before the first.
    pub last_run: Option<Run>,
}

/// Each of `jobs` as it stands at `now`.
///
/// # Errors
/// [`Error::Database`].
pub fn list<'j>(tx: &Tx<'_>, jobs: impl IntoIterator<Item = &'j Job>, now: Timestamp) -> Result<Vec<View>, Error> {
    let mut last = runs::last_of_jobs(tx, now + AHEAD)?;
    let view = |job: &Job| {
        let slots = std::iter::successors(job.next_after(now), |&slot| job.next_after(slot)).take(SLOTS);
        View {
            name: job.name.clone(),
            enabled: job.is_enabled,
            action: job.action.name(),
            schedule: job.schedule.clone(),
            timezone: job.zone.name(),
            next: slots.map(|slot| slot.to_utc().with_timezone(&job.zone).to_rfc3339()).collect(),
            last_run: last.remove(&job.name).map(|last| last.run),
        }
    };
    Ok(jobs.into_iter().map(view).collect())
}
