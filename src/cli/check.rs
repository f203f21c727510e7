//! `vinculo check`: config, jobs and schemas, parsed; and when each job runs next. Touches nothing outside.

use std::io::Write as _;

use chrono_tz::Tz;
use serde_json::json;

use super::{Exit, Global, environment, streams};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, ConfigErrors, Needs};
use crate::mistake::Mistake;
use crate::schedule::{self, Job};
use crate::schema;

/// How many fire times of each job are shown.
const SLOTS: usize = 5;

/// What `check` takes: nothing of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let needs = Needs { belvo: true, webhook: true };
    let (config, mut mistakes) = Config::examine(global.config.as_deref(), environment(), &[], needs);
    let jobs = schedule::load(config.jobs_dir.as_deref()).unwrap_or_else(|wrong| {
        mistakes.extend(wrong);
        Vec::new()
    });
    if let Err(problem) = schema::load() {
        mistakes.push(Mistake::new("this program", "", problem.to_string(), "report it: the schemas are compiled in"));
    }
    ConfigErrors::check(mistakes)?;
    let now = Clock::system().now();
    let out = &mut streams::out();
    if global.json {
        let jobs: Vec<_> = jobs.iter().map(|job| as_json(job, now)).collect();
        writeln!(out, "{}", json!({ "ok": true, "jobs": jobs }))?;
    } else {
        writeln!(out, "configuration, {} jobs and {} tables are right", jobs.len(), schema::get().tables.len())?;
        for job in &jobs {
            let slots: Vec<_> =
                slots(job, now).map(|slot| in_zone(slot, job.zone).format("%a %F %R %:z").to_string()).collect();
            writeln!(
                out,
                "\n{}: {} ({}, {})\n  {}",
                job.name,
                job.action.name(),
                job.schedule,
                job.zone,
                if job.is_enabled { slots.join("\n  ") } else { "off: its file says enabled = false".to_owned() }
            )?;
        }
    }
    Ok(Exit::Done)
}

fn as_json(job: &Job, now: Timestamp) -> serde_json::Value {
    let next: Vec<_> = slots(job, now).map(|slot| in_zone(slot, job.zone).to_rfc3339()).collect();
    json!({
        "name": job.name, "enabled": job.is_enabled, "action": job.action.name(), "schedule": job.schedule, "timezone": job.zone.name(), "next": next,
    })
}

fn slots(job: &Job, now: Timestamp) -> impl Iterator<Item = Timestamp> {
    std::iter::successors(job.next_after(now), |&slot| job.next_after(slot)).take(SLOTS)
}

fn in_zone(slot: Timestamp, zone: Tz) -> chrono::DateTime<Tz> {
    slot.to_utc().with_timezone(&zone)
}
