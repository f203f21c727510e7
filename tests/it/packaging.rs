//! What is shipped beside the program, held against the program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use vinculo::admin::metrics::{DESCRIBED, Kind};
use vinculo::config::{Config, Needs};

use crate::harness::ENCRYPTION_KEY;

const ALERTS: &str = include_str!("../../packaging/prometheus/alerts.yml");
const DASHBOARD: &str = include_str!("../../packaging/grafana/vinculo.json");
const CONTAINERFILE: &str = include_str!("../../packaging/Containerfile");
const COMPOSE: &str = include_str!("../../packaging/compose.yaml");

/// The metrics of this program that an expression for Prometheus names.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words.filter(|word| word.starts_with("vinculo_") || word.starts_with("process_"))
}

/// What the program shows under `name`: a histogram has three names.
fn is_shown(name: &str) -> bool {
    DESCRIBED.iter().any(|description| match description.kind {
        Kind::Histogram => {
            name.strip_prefix(description.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
        }
        Kind::Counter | Kind::Gauge => name == description.name,
    })
}

/// Every `expr` of a document.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| expressions(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn the_alerts_and_the_dashboard_use_metrics_that_the_program_has() {
    let alerts: Vec<String> =
        ALERTS.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect();
    assert_eq!(alerts.len(), ALERTS.matches("- alert: ").count());
    let mut panels = Vec::new();
    expressions(&serde_json::from_str(DASHBOARD).unwrap(), &mut panels);
    assert!(panels.len() > 20, "only {} expressions were found", panels.len());
    for expression in alerts.iter().chain(&panels) {
        let used: BTreeSet<&str> = metrics_in(expression).collect();
        assert!(!used.is_empty() || expression.starts_with("up{"), "{expression} is about nothing of ours");
        for name in used {
            assert!(is_shown(name), "{expression}: there is no {name}");
        }
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    let alerts = ALERTS.split("- alert: ").skip(1);
    for alert in alerts {
        for part in ["expr: ", "severity: ", "summary: ", "action: "] {
            assert_eq!(alert.matches(part).count(), 1, "{part}in {alert}");
        }
    }
}

/// The panels of a row do not lie on each other.
#[test]
fn no_panel_of_the_dashboard_hides_another() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let place = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(x < 24 && taken.insert((x, y)), "{}", panel["title"]);
            }
        }
    }
}

/// What the package installs below /etc is the operator's: every job is listed, or an upgrade overwrites it.
#[test]
fn every_job_of_the_package_is_a_file_of_its_configuration() {
    for job in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/jobs")).unwrap() {
        let name = job.unwrap().file_name().into_string().unwrap();
        let entry = format!("\"/etc/vinculo/jobs/{name}\"");
        assert!(include_str!("../../Cargo.toml").contains(&entry), "Cargo.toml does not list {entry} in conf-files");
    }
}

#[test]
fn the_container_and_compose_set_what_the_program_knows_and_name_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut environment = BTreeMap::new();
    for line in CONTAINERFILE.lines().chain(COMPOSE.lines()) {
        let line = line.trim().trim_start_matches("ENV ").trim_end_matches(" \\");
        let Some((name, value)) = line.split_once(['=', ':']).filter(|(name, _)| name.starts_with("VINCULO_")) else {
            continue;
        };
        let mut value = value.trim().to_owned();
        if let Some(secret) = value.strip_prefix("/run/secrets/") {
            assert!(COMPOSE.contains(&format!("  {secret}: {{file: ./secrets/{secret}}}")), "{secret}");
            let path = folder.path().join(secret);
            std::fs::write(&path, ENCRYPTION_KEY).unwrap();
            value = path.display().to_string();
        }
        // As Compose does where the operator says nothing.
        if let Some(default) = value.strip_prefix("${").and_then(|value| Some(value.split_once(":-")?.1)) {
            value = default.trim_end_matches('}').to_owned();
        }
        environment.insert(name.to_owned(), value);
    }
    assert!(environment.len() >= 12, "{environment:?}");
    let jobs = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs").to_owned();
    assert_eq!(environment.insert("VINCULO_JOBS__DIR".to_owned(), jobs).as_deref(), Some("/etc/vinculo/jobs"));
    assert!(CONTAINERFILE.contains("\nCOPY jobs /etc/vinculo/jobs\n"));
    let file = folder.path().join("vinculo.toml");
    std::fs::write(&file, "").unwrap();
    let config = Config::load(Some(&file), environment, &[], Needs { belvo: true, webhook: true }).unwrap();
    assert_eq!(config.state.path, Path::new("/var/lib/vinculo/state/state.db"));
    assert!(COMPOSE.contains("\"vinculo:/var/lib/vinculo\"") && CONTAINERFILE.contains("VOLUME /var/lib/vinculo"));

    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let mounted: Vec<_> =
        COMPOSE.lines().filter_map(|line| line.trim().strip_prefix("- ./")?.split(':').next()).collect();
    assert_eq!(mounted.len(), 3, "{mounted:?}");
    for path in mounted {
        assert!(packaging.join(path).exists(), "{path}");
    }
    // The whole repository is the context of the build, and the secrets lie in it.
    assert!(include_str!("../../.dockerignore").lines().any(|line| line == "packaging/secrets"));
}

/// Prometheus' own tool, which `make test` brings.
#[test]
fn prometheus_reads_the_alerts() {
    let Ok(promtool) = std::env::var("VINCULO_PROMTOOL") else {
        let missing = "VINCULO_PROMTOOL names no promtool, as `make test` has it";
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{missing}");
        eprintln!("SKIPPED: {missing}");
        return;
    };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/prometheus/alerts.yml");
    let checked = Command::new(promtool).args(["check", "rules", file]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
