//! The daemon under a service manager: what it tells, how it reloads, how it ends, and what its log holds.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binary::{Served, Simulate, Site, free_address, run};
use crate::dashboard::Browser;
use crate::harness::{AUTHORIZATION, TOKEN};

/// Nothing here takes so long unless it is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// The service manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    heard: VecDeque<String>,
}

impl Manager {
    fn new(path: &std::path::Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(STUCK)).unwrap();
        Self { socket, heard: VecDeque::new() }
    }

    /// Waits until `line` is said; what was said before is forgotten.
    fn until(&mut self, line: &str) {
        loop {
            while let Some(heard) = self.heard.pop_front() {
                if heard == line {
                    return;
                }
            }
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).unwrap_or_else(|error| panic!("{line} was not said: {error}"));
            self.heard.extend(std::str::from_utf8(&message[..length]).unwrap().lines().map(str::to_owned));
        }
    }
}

fn signal(served: &Served, name: &str) {
    assert!(Command::new("kill").args([name, &served.pid().to_string()]).status().unwrap().success());
}

/// How a webhook with this `Authorization` is answered.
async fn webhook(site: &Site, authorization: &str) -> u16 {
    let request = reqwest::Client::new().post(site.webhook_url()).header("content-type", "application/json");
    request.header("authorization", authorization).body("{}").send().await.unwrap().status().as_u16()
}

/// How a question to the API with this token is answered.
async fn question(site: &Site, token: &str) -> u16 {
    let request = reqwest::Client::new().get(format!("http://{}/v1/status", site.admin)).bearer_auth(token);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn the_service_manager_is_told_and_a_reload_takes_over_the_secrets_of_the_two_doors() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let mut manager = Manager::new(&socket);
    let socket = socket.to_str().unwrap();
    let site = Site::new(free_address(), &[("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "200000")]);
    let mut served = site.serve_without_waiting();
    manager.until("READY=1");
    served.until_ready();
    manager.until("WATCHDOG=1");
    manager.until("WATCHDOG=1");

    // Both values are accepted while Belvo is told the new one.
    let text = fs::read_to_string(site.config()).unwrap();
    let new = "Bearer another-webhook-authorization";
    let both = text.replace(&format!("[\"{AUTHORIZATION}\"]"), &format!("[\"{AUTHORIZATION}\", \"{new}\"]"));
    assert_eq!((webhook(&site, AUTHORIZATION).await, webhook(&site, new).await), (200, 401));
    fs::write(site.config(), &both).unwrap();
    signal(&served, "-HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    assert_eq!((webhook(&site, AUTHORIZATION).await, webhook(&site, new).await), (200, 200));

    // Then the old one goes, and the operators' token with it.
    assert_eq!(question(&site, TOKEN).await, 200);
    let viewer = Browser::signed_in_at(site.admin, TOKEN).await;
    assert_eq!(viewer.get("/").await.status, 200);
    let only = text.replace(AUTHORIZATION, new).replace(TOKEN, "another-token-of-operators");
    fs::write(site.config(), only.replace("publish_quiet = \"50ms\"", "publish_quiet = \"60ms\"")).unwrap();
    signal(&served, "-HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    assert_eq!((webhook(&site, AUTHORIZATION).await, webhook(&site, new).await), (401, 200));
    assert_eq!((question(&site, TOKEN).await, question(&site, "another-token-of-operators").await), (401, 200));
    assert_eq!(
        (viewer.get("/").await.status, viewer.sign_in(TOKEN).await),
        (303, 401),
        "the old one is a session's, too"
    );
    let viewer = Browser::signed_in_at(site.admin, "another-token-of-operators").await;
    assert_eq!(viewer.get("/").await.status, 200);
    assert!(site.logs().contains("\"code\":\"restart_needed\",\"sections\":\"lake\""), "{}", site.logs());

    // What is wrong changes nothing.
    fs::write(site.config(), "[webhook]\nauthorization = \"short\"\n").unwrap();
    signal(&served, "-HUP");
    manager.until("RELOADING=1");
    manager.until("READY=1");
    assert!(site.logs().contains("\"code\":\"reload_refused\""), "{}", site.logs());
    assert_eq!((webhook(&site, AUTHORIZATION).await, webhook(&site, new).await), (401, 200));

    let asked = Instant::now();
    assert_eq!(served.terminate(), Some(0));
    manager.until("STOPPING=1");
    assert!(asked.elapsed() < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_which_link_by_a_short_hash_that_links_show_prints() {
    let belvo = free_address();
    let site = Site::new(belvo, &[("VINCULO_LOG_LEVEL", "debug")]);
    let _served = site.serve();
    let webhook = site.webhook_url();
    let arguments = ["--people", "3", "--no-limit", "--webhook-latency", "50ms", "--webhook", &webhook];
    let simulate = Simulate::start(belvo, &[&arguments[..], &["--webhook-authorization", AUTHORIZATION]].concat());
    simulate.tell("connect", "{}").await;
    let refreshed = run(&mut site.command(&["refresh", "--all"]));
    assert_eq!(refreshed.code, Some(0), "{}", refreshed.err);
    let listed = run(&mut site.command(&["links", "list", "--json"])).out;
    let links: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(links.len(), 3);
    let log = site.logs();
    for link in &links {
        let (id, tag) = (link["link_id"].as_str().unwrap(), link["log_tag"].as_str().unwrap());
        let shown = run(&mut site.command(&["links", "show", id])).out;
        assert!(shown.contains(&format!("log tag      {tag}\n")), "{shown}");
        assert!(log.contains(&format!("\"link\":\"{tag}\"")), "{tag} is not in\n{log}");
        assert!(!log.contains(id), "{id} is in\n{log}");
    }
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

/// What Debian's own tool finds wrong with the unit. It wants to see the program at its place.
#[test]
fn the_unit_is_right() {
    let unit = include_str!("../../packaging/systemd/vinculo.service");
    assert!(unit.contains("ExecStart=/usr/bin/vinculo serve"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vinculo.service");
    fs::write(&file, unit.replace("/usr/bin/vinculo", env!("CARGO_BIN_EXE_vinculo"))).unwrap();
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let verified = verified.expect("systemd-analyze is installed: scripts/system-packages.sh systemd-analyze:systemd");
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && said.is_empty(), "{said}");
}
