//! `vinculo doctor` finds what is wrong, says what mends it, and ends with the exit code of the first error.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::binary::{Simulate, Site, free_address, run, vinculo};

/// Exit code, and findings by code, each with its level and its cure.
struct Told {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Told {
    fn by(site: &Site, environment: &[(&str, &str)]) -> Self {
        let ended = run(site.command(&["doctor", "--json"]).envs(environment.iter().copied()));
        let document: Value = serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{}{}", ended.out, ended.err));
        assert_eq!(document["exit_code"].as_i64(), ended.code.map(i64::from), "{document}");
        let findings = document["findings"].as_array().unwrap().clone();
        for finding in &findings {
            let is_fine = finding["level"] == "ok";
            assert_eq!(finding["mend"].is_null(), is_fine, "a cure for what is wrong, and for nothing else: {finding}");
        }
        Self { code: ended.code, findings }
    }

    fn level(&self, code: &str) -> &str {
        let found = self.findings.iter().find(|finding| finding["code"] == code);
        found.map_or("absent", |found| found["level"].as_str().unwrap())
    }
}

#[test]
fn a_sound_site_has_no_error_and_each_thing_that_breaks_is_found() {
    let simulate = Simulate::start(free_address(), &["--people", "2", "--no-limit"]);
    let site = Site::new(simulate.address, &[]);
    std::fs::set_permissions(site.config(), std::fs::Permissions::from_mode(0o600)).unwrap();

    // Before the first start.
    let told = Told::by(&site, &[]);
    assert_eq!((told.code, told.level("never_started")), (Some(0), "warning"));
    assert_eq!((told.level("credentials"), told.level("clock"), told.level("config")), ("ok", "ok", "ok"));

    // Beside a daemon.
    tokio::runtime::Runtime::new().unwrap().block_on(simulate.tell("connect", "{}"));
    let served = site.serve();
    assert_eq!(run(&mut site.command(&["links", "sync"])).code, Some(0));
    assert_eq!(run(&mut site.command(&["refresh", "--all"])).code, Some(0));
    let told = Told::by(&site, &[]);
    assert_eq!((told.code, told.level("daemon"), told.level("budget")), (Some(0), "ok", "ok"), "{:?}", told.findings);
    assert_eq!((told.level("state"), told.level("published")), ("ok", "ok"));
    let told = Told::by(&site, &[("VINCULO_ADMIN__TOKEN", "")]);
    assert_eq!((told.code, told.level("token_missing"), told.level("state_held")), (Some(8), "warning", "error"));
    assert_eq!(served.terminate(), Some(0));

    // Alone, with one thing wrong at a time.
    let law = site.folder.path().join("law");
    std::fs::create_dir(&law).unwrap();
    let occupied = std::net::TcpListener::bind(free_address()).unwrap();
    let taken = occupied.local_addr().unwrap().to_string();
    for (name, value, code, finding, level) in [
        ("VINCULO_BELVO__SECRET_PASSWORD", "not the one", 5, "api_auth", "error"),
        ("VINCULO_BELVO__BASE_URL", "http://127.0.0.1:1", 6, "unreachable", "error"),
        ("VINCULO_BELVO__SECRET_ID", "", 4, "config", "error"),
        ("VINCULO_STATE__ENCRYPTION_KEY", "", 4, "state_key_missing", "error"),
        (
            "VINCULO_STATE__ENCRYPTION_KEY",
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            4,
            "state_key_wrong",
            "error",
        ),
        ("VINCULO_ADMIN__LISTEN", taken.as_str(), 1, "port_taken", "error"),
        ("VINCULO_PII__PEPPER", "", 0, "pepper_missing", "warning"),
        ("VINCULO_PII__PEPPER", "salt", 0, "secret_short", "warning"),
        ("VINCULO_ADMIN__TOKEN", "token", 0, "secret_short", "warning"),
        ("VINCULO_LAKE__URL", "elsewhere", 0, "nothing_published", "warning"),
    ] {
        let told = Told::by(&site, &[(name, value)]);
        assert_eq!((told.code, told.level(finding)), (Some(code), level), "{name}={value}: {:?}", told.findings);
    }

    std::fs::set_permissions(site.config(), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(Told::by(&site, &[]).level("config_readable"), "warning");
    let ended = run(&mut site.command(&["doctor"]));
    assert!(ended.out.contains(&format!("→ chmod o-rwx {}", site.config().display())), "{}", ended.out);
}

#[test]
fn the_manual_has_a_page_for_the_program_and_for_each_command() {
    let page = run(vinculo().arg("man"));
    assert_eq!(page.code, Some(0), "{}", page.err);
    assert!(page.out.contains(".TH vinculo") && page.out.contains("doctor"), "{}", page.out);
    let page = run(vinculo().args(["man", "refresh"]));
    assert!(page.out.contains("recollect") && page.out.contains(".TH"), "{}", page.out);
    assert_eq!(run(vinculo().args(["man", "nothing"])).code, Some(2));
}

#[test]
fn a_daemon_ends_well_for_a_service_manager_and_broken_off_for_a_person() {
    let simulate = Simulate::start(free_address(), &["--people", "1"]);
    let site = Site::new(simulate.address, &[]);
    assert_eq!(site.serve().terminate(), Some(0));
    assert_eq!(site.serve().interrupt(), Some(130));
}
