//! What is counted, and what each name means.

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
            describe();
            gauge!("vinculo_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
            Recorder(handle)
        });
        RECORDER.clone()
    }

    /// Every count, in the text format of Prometheus.
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }
}

fn describe() {
    describe_gauge!("vinculo_build_info", "1, with the version of the program");
    describe_gauge!("vinculo_problem", "1 while the problem of this code stands in the way; the same codes as /readyz");
    describe_gauge!("vinculo_snapshot", "Number of the published snapshot");
    describe_gauge!("vinculo_table_rows", "Rows of each published table");
    describe_gauge!(
        "vinculo_reference_table_expires_timestamp_seconds",
        Unit::Seconds,
        "When each reference table stops saying anything, in seconds since 1970"
    );
    describe_histogram!("vinculo_publish_seconds", Unit::Seconds, "Time to build and publish a snapshot");
    describe_counter!("vinculo_publish_failures_total", "Publishes that failed, by code");
    describe_counter!("vinculo_job_runs_total", "Runs of scheduled jobs, by job and outcome");
    describe_counter!("vinculo_admin_refused_total", "Requests to the API without the right token");
    describe_counter!("vinculo_runs_total", "Runs that a person ordered, by kind and outcome");
    describe_counter!("vinculo_webhooks_replayed_total", "Webhooks that were read again, by type and outcome");
    describe_counter!("vinculo_refreshes_total", "Refreshes, by resource and outcome");
    describe_counter!("vinculo_rejected_records_total", "Records that could not be flattened, by resource and reason");
    describe_counter!("vinculo_schema_drift_total", "Unknown fields and enum values in Belvo's answers, by resource");
    describe_counter!("vinculo_late_answers_total", "Answers older than what was already held");
    describe_histogram!("vinculo_state_writes_per_commit", "Writes that shared a commit of the state");
    describe_gauge!("vinculo_belvo_budget_in_use", "Calls within the running window of the request budget");
    describe_histogram!(
        "vinculo_belvo_budget_wait_seconds",
        Unit::Seconds,
        "Time that a call waited for its share of the budget"
    );
    describe_counter!("vinculo_widget_sessions_total", "Widget tokens that Belvo gave");
    describe_counter!("vinculo_recollects_total", "Asks to read an institution again, by outcome; `ok` is on the bill");
    describe_counter!("vinculo_belvo_grants_total", "Calls that the budget let go");
    describe_gauge!("vinculo_belvo_paused", "1 while no call may leave");
    describe_counter!("vinculo_belvo_requests_total", "Calls to Belvo, by outcome");
    describe_histogram!("vinculo_belvo_request_seconds", Unit::Seconds, "Time from a call to the end of its answer");
}
