//! A disk that is slow, or fails: nothing is acknowledged that it does not have.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::binary::{Served, Site, free_address};

/// How the disk does under a process: see `tests/disk/syncs.c`.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// One that is as it is.
    fn new() -> Self {
        let disk = Self { folder: tempfile::tempdir().unwrap() };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/disk/syncs.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"]).arg(disk.library()).args([source, "-ldl"]);
        assert!(compiler.status().unwrap().success());
        disk.does("0");
        disk
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("syncs.so")
    }

    fn told(&self) -> PathBuf {
        self.folder.path().join("told")
    }

    /// From now on each sync takes so many microseconds longer, or fails.
    fn does(&self, what: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, what).unwrap();
        // Nobody reads half of it.
        fs::rename(next, self.told()).unwrap();
    }

    /// A site whose processes have this disk, and no Belvo.
    fn site(&self) -> Site {
        let (library, told) = (self.library(), self.told());
        let environment = [("LD_PRELOAD", library.to_str().unwrap()), ("SYNCS", told.to_str().unwrap())];
        Site::new(free_address(), &environment)
    }
}

/// What the listener said of a webhook, and how long it took.
struct Answer {
    link_id: String,
    status: u16,
    retry_after: Option<String>,
    took: Duration,
}

fn link(number: u32) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// Sends a webhook for each link of `numbers`, one `apart` after the other, and waits for all answers.
async fn send(site: &Site, numbers: std::ops::Range<u32>, apart: Duration) -> Vec<Answer> {
    let client = reqwest::Client::new();
    let mut sending = JoinSet::new();
    let mut next = tokio::time::interval(apart);
    for number in numbers {
        next.tick().await;
        let link_id = link(number);
        let body = format!(
            r#"{{"webhook_type":"EMPLOYMENTS","webhook_code":"new_employments_available","link_id":"{link_id}"}}"#
        );
        let request = client.post(site.webhook_url()).header("content-type", "application/json");
        let request = request.header("authorization", crate::harness::AUTHORIZATION).body(body);
        sending.spawn(async move {
            let started = Instant::now();
            let answer = request.send().await.unwrap();
            let retry_after = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
            Answer { link_id, status: answer.status().as_u16(), retry_after, took: started.elapsed() }
        });
    }
    sending.join_all().await
}

/// Whether the state knows the link, as an operator asks.
fn is_known(site: &Site, link_id: &str) -> bool {
    let listed = site.command(&["webhooks", "list", "--link", link_id, "--json"]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    String::from_utf8(listed.stdout).unwrap().contains(link_id)
}

/// The daemon looks every few seconds whether its state takes a write.
async fn until_readiness_names(site: &Site, problem: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (status, said) = site.ask("/readyz").await;
        if status == 503 && said.contains(problem) {
            return;
        }
        assert!(Instant::now() < deadline, "{status} {said}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn serve_anew(site: &Site, served: Served) -> Served {
    served.kill();
    site.serve()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_webhook_is_acknowledged_before_its_sync_is_over() {
    let disk = Disk::new();
    let site = disk.site();
    let served = site.serve();
    disk.does("200000");
    // At every moment of a sync under way.
    let answers = send(&site, 0..40, Duration::from_millis(37)).await;
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.link_id);
        assert!(
            answer.took >= Duration::from_millis(195),
            "{} was acknowledged after {:?}",
            answer.link_id,
            answer.took
        );
    }
    disk.does("0");
    let served = serve_anew(&site, served);
    assert!(answers.iter().all(|answer| is_known(&site, &answer.link_id)));
    assert_eq!(served.terminate(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_while_syncs_fail_and_all_goes_on_once_they_do_not() {
    let disk = Disk::new();
    let site = disk.site();
    let served = site.serve();
    let mut answers = send(&site, 0..3, Duration::from_millis(20)).await;
    disk.does("fail");
    let refused = send(&site, 3..23, Duration::from_millis(20)).await;
    for answer in &refused {
        assert_eq!((answer.status, answer.retry_after.is_some()), (503, true), "{}", answer.link_id);
    }
    until_readiness_names(&site, "state_io").await;
    disk.does("0");
    answers.extend(send(&site, 23..43, Duration::from_millis(20)).await);
    assert!(answers.iter().all(|answer| answer.status == 200), "{}", site.logs());

    let served = serve_anew(&site, served);
    assert!(answers.iter().all(|answer| is_known(&site, &answer.link_id)));
    assert_eq!(served.terminate(), Some(0));
}
