//! What is counted, and what each name means.

use std::fs;
use std::sync::LazyLock;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds of the buckets of every duration, in seconds: from a webhook's answer to Belvo's slowest one.
const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 330.0];

/// The counts of this process. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(PrometheusHandle);

impl Recorder {
    /// The recorder of this process; what was counted before the first call is lost.
    pub fn global() -> Self {
        static RECORDER: LazyLock<Recorder> = LazyLock::new(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
                .expect("the buckets are not empty")
                .build_recorder();
            let handle = recorder.handle();
            // Only a process that counts with a recorder of its own is refused, and it shows its own counts.
            let _ = metrics::set_global_recorder(recorder);
            DESCRIBED.iter().for_each(Description::register);
            gauge!("vinculo_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            Recorder(handle)
        });
        RECORDER.clone()
    }

    /// Puts what was measured since into its buckets. Until then each measurement is kept by itself, and where nobody
    /// scrapes they would fill the memory.
    pub fn condense(&self) {
        self.0.run_upkeep();
    }

    /// Every count, in the text format of Prometheus.
    pub fn render(&self) -> String {
        count_process();
        self.condense();
        self.0.render()
    }
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, but for a restart.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Its `_bucket`, `_sum` and `_count` are counters.
    Histogram,
}

/// One metric, for people and for the recorder.
#[derive(Debug)]
pub struct Description {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// What one of it is.
    pub unit: Option<Unit>,
    /// What it tells; its labels stand in backticks.
    pub meaning: &'static str,
}

impl Description {
    const fn new(kind: Kind, name: &'static str, unit: Option<Unit>, meaning: &'static str) -> Self {
        Self { kind, name, unit, meaning }
    }

    fn register(&self) {
        // The recorder shows the unit in the name alone.
        match self.kind {
            Kind::Counter => describe_counter!(self.name, self.meaning),
            Kind::Gauge => describe_gauge!(self.name, self.meaning),
            Kind::Histogram => describe_histogram!(self.name, self.meaning),
        }
    }
}

/// Every metric; a test holds the program, the dashboard and the alerts against it.
pub static DESCRIBED: &[Description] = &[
    Description::new(Kind::Gauge, "vinculo_build_info", None, "1, with the version of the program"),
    Description::new(
        Kind::Gauge,
        "vinculo_problem",
        None,
        "1 while the problem of this `code` stands in the way; the same codes as `/readyz`",
    ),
    Description::new(Kind::Gauge, "vinculo_snapshot", None, "Number of the published snapshot"),
    Description::new(
        Kind::Gauge,
        "vinculo_published_timestamp_seconds",
        Some(Unit::Seconds),
        "When this process last published, in seconds since 1970",
    ),
    Description::new(Kind::Gauge, "vinculo_table_rows", None, "Rows of each published `table`"),
    Description::new(
        Kind::Gauge,
        "vinculo_reference_table_expires_timestamp_seconds",
        Some(Unit::Seconds),
        "When each reference `table` stops saying anything, in seconds since 1970",
    ),
    Description::new(
        Kind::Histogram,
        "vinculo_publish_seconds",
        Some(Unit::Seconds),
        "Time to build and publish a snapshot",
    ),
    Description::new(Kind::Counter, "vinculo_publish_failures_total", None, "Publishes that failed, by `code`"),
    Description::new(Kind::Counter, "vinculo_job_runs_total", None, "Runs of scheduled jobs, by `name` and `outcome`"),
    Description::new(Kind::Counter, "vinculo_runs_total", None, "Runs that a person ordered, by `kind` and `outcome`"),
    Description::new(Kind::Counter, "vinculo_admin_refused_total", None, "Requests to the API without the right token"),
    Description::new(
        Kind::Counter,
        "vinculo_webhooks_total",
        None,
        "Webhooks that were made durable, by `type` and `outcome`",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_webhook_refused_total",
        None,
        "Requests to the webhook listener that were refused, by `code`",
    ),
    Description::new(
        Kind::Histogram,
        "vinculo_webhook_ack_seconds",
        Some(Unit::Seconds),
        "Time from a webhook's headers to its answer; Belvo waits five seconds",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_webhook_connections_evicted_total",
        None,
        "Silent connections that had to leave for others",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_webhooks_for_erased_links_total",
        None,
        "Webhooks of erased links, which are answered and dropped",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_webhooks_replayed_total",
        None,
        "Webhooks that were read again, by `type` and `outcome`",
    ),
    Description::new(
        Kind::Gauge,
        "vinculo_refreshes_due",
        None,
        "Refreshes that could begin now, by what asked for them (`trigger`)",
    ),
    Description::new(
        Kind::Gauge,
        "vinculo_refreshes_oldest_due_seconds",
        Some(Unit::Seconds),
        "For how long the refresh that waits longest could have begun; 0 when none waits",
    ),
    Description::new(Kind::Counter, "vinculo_refreshes_total", None, "Refreshes, by `resource` and `outcome`"),
    Description::new(
        Kind::Counter,
        "vinculo_rejected_records_total",
        None,
        "Records that could not be flattened, by `resource`",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_schema_drift_total",
        None,
        "Unknown fields and enum values in Belvo's answers, by `resource` and `kind`",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_late_answers_total",
        None,
        "Answers older than what was already held, by `resource`",
    ),
    Description::new(
        Kind::Histogram,
        "vinculo_state_writes_per_commit",
        None,
        "Writes that shared a commit of the state",
    ),
    Description::new(
        Kind::Gauge,
        "vinculo_belvo_budget_requests",
        None,
        "Calls that the request budget allows in its window",
    ),
    Description::new(
        Kind::Gauge,
        "vinculo_belvo_budget_in_use",
        None,
        "Calls within the running window of the request budget",
    ),
    Description::new(Kind::Gauge, "vinculo_belvo_budget_waiting", None, "Calls that wait for the budget, by `class`"),
    Description::new(
        Kind::Histogram,
        "vinculo_belvo_budget_wait_seconds",
        Some(Unit::Seconds),
        "Time that a call waited for its share of the budget",
    ),
    Description::new(Kind::Counter, "vinculo_belvo_grants_total", None, "Calls that the budget let go"),
    Description::new(Kind::Gauge, "vinculo_belvo_paused", None, "1 while no call may leave, by `code`"),
    Description::new(
        Kind::Gauge,
        "vinculo_belvo_many_links",
        None,
        "1 while Belvo is asked for many links in one request, by `resource`",
    ),
    Description::new(
        Kind::Gauge,
        "vinculo_unknown_links",
        None,
        "Links of the last hour that webhooks named and Belvo does not know; from 50 on an alarm, `unknown_links`",
    ),
    Description::new(Kind::Counter, "vinculo_belvo_requests_total", None, "Calls to Belvo, by `outcome`"),
    Description::new(
        Kind::Histogram,
        "vinculo_belvo_request_seconds",
        Some(Unit::Seconds),
        "Time from a call to the end of its answer",
    ),
    Description::new(Kind::Counter, "vinculo_widget_sessions_total", None, "Widget tokens that Belvo gave"),
    Description::new(
        Kind::Counter,
        "vinculo_recollects_total",
        None,
        "Asks to read an institution again, by `outcome`; `ok` is on the bill",
    ),
    Description::new(
        Kind::Counter,
        "vinculo_erasures_total",
        None,
        "Erasures of a link or person that were carried out",
    ),
    Description::new(
        Kind::Gauge,
        "process_resident_memory_bytes",
        Some(Unit::Bytes),
        "Memory of this process that is in RAM",
    ),
    Description::new(Kind::Gauge, "process_open_fds", None, "File handles of this process"),
    Description::new(Kind::Gauge, "process_max_fds", None, "File handles that this process may have"),
    Description::new(Kind::Gauge, "process_threads", None, "Threads of this process"),
];

/// What the system says of this process; nothing where it says nothing.
fn count_process() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<f64> {
        status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    if let Some(kibibytes) = field("VmRSS:") {
        gauge!("process_resident_memory_bytes").set(kibibytes * 1024.0);
    }
    if let Some(threads) = field("Threads:") {
        gauge!("process_threads").set(threads);
    }
    if let Ok(handles) = fs::read_dir("/proc/self/fd") {
        // One of them is that of this look.
        gauge!("process_open_fds").set(handles.count().saturating_sub(1) as f64);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    if let Some(soft) = files.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()) {
        gauge!("process_max_fds").set(soft);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_metric_is_named_as_prometheus_asks() {
        for Description { kind, name, unit, meaning } in DESCRIBED {
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(name.starts_with("vinculo_") || name.starts_with("process_"), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(*unit == Some(Unit::Seconds), name.ends_with("_seconds"), "{name}");
            assert!(!["_milliseconds", "_ms", "_minutes", "_mib", "_percent"].iter().any(|end| name.ends_with(end)));
            assert!(!meaning.is_empty());
        }
    }

    #[test]
    fn every_metric_that_is_counted_is_described_as_what_it_is_and_the_other_way_round() {
        let mut counted = BTreeMap::new();
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() {
                    folders.push(entry);
                    continue;
                }
                let text = fs::read_to_string(&entry).unwrap_or_default();
                for (word, kind) in
                    [("counter!(", Kind::Counter), ("gauge!(", Kind::Gauge), ("histogram!(", Kind::Histogram)]
                {
                    for after in text.split(word).skip(1) {
                        let Some(name) = after.trim_start().strip_prefix('"') else { continue };
                        counted.insert(name.split('"').next().unwrap().to_owned(), kind);
                    }
                }
            }
        }
        counted.retain(|name, _| name.starts_with("vinculo_") || name.starts_with("process_"));
        let described: BTreeMap<String, Kind> =
            DESCRIBED.iter().map(|description| (description.name.to_owned(), description.kind)).collect();
        assert_eq!(described.len(), DESCRIBED.len());
        assert_eq!(format!("{counted:#?}"), format!("{described:#?}"));
    }

    #[test]
    fn a_process_tells_of_its_own_memory_handles_and_threads() {
        let text = Recorder::global().render();
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads", "process_max_fds"] {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            let value: f64 = line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap();
            assert!(value >= 1.0, "{name} is {value}");
        }
    }
}
