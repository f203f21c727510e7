//! The built binary as a child process: its commands, its signals, its exit codes, what it prints.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{ANY_PORT, AUTHORIZATION, config_text};
use crate::tables::{self, Tables};

/// Nothing here takes so long unless it is stuck.
const STUCK: Duration = Duration::from_mins(1);

/// The program, with nothing of this process's environment that it would listen to.
pub(crate) fn vinculo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vinculo"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VINCULO_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: status.code(), out: text(stdout), err: text(stderr) }
}

/// An address of this machine that nobody listens on, below the ports that the system gives to callers, so that it is
/// still free when a process comes back to it.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Two test runs at once start at different places.
    let first = std::process::id() * 64;
    loop {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let address = SocketAddr::new(ANY_PORT.ip(), u16::try_from(port).unwrap());
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// A folder with a configuration, and `vinculo serve` in it, now and then.
pub(crate) struct Site {
    pub(crate) folder: TempDir,
    pub(crate) webhooks: SocketAddr,
    pub(crate) admin: SocketAddr,
    environment: Vec<(String, String)>,
    starts: std::cell::Cell<u32>,
}

impl Site {
    /// A site for Belvo at `belvo`; `environment` as in `VINCULO_LAKE__KEEP_FOR`.
    pub(crate) fn new(belvo: SocketAddr, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (webhooks, admin) = (free_address(), free_address());
        fs::write(folder.path().join("vinculo.toml"), config_text(belvo, webhooks, admin)).unwrap();
        fs::create_dir(folder.path().join("jobs")).unwrap();
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { folder, webhooks, admin, environment, starts: std::cell::Cell::new(0) }
    }

    /// The configuration's file.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("vinculo.toml")
    }

    /// The lake's folder.
    pub(crate) fn lake(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    /// Where webhooks go.
    pub(crate) fn webhook_url(&self) -> String {
        format!("http://{}/webhooks/belvo", self.webhooks)
    }

    /// A command in this site.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = vinculo();
        command.args(arguments).arg("--config").arg(self.config()).envs(self.environment.iter().cloned());
        command
    }

    /// Starts `serve`, and waits until it says that it is ready.
    pub(crate) fn serve(&self) -> Served {
        let mut served = self.serve_without_waiting();
        served.until_ready();
        served
    }

    /// Starts `serve`; it may be killed before it is ready.
    pub(crate) fn serve_without_waiting(&self) -> Served {
        self.starts.set(self.starts.get() + 1);
        let log = self.folder.path().join(format!("serve-{}.log", self.starts.get()));
        let mut command = self.command(&["serve"]);
        let child = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Served { child, log }
    }

    /// `vinculo status --json`.
    pub(crate) fn status(&self) -> Value {
        let ended = run(&mut self.command(&["status", "--json"]));
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        serde_json::from_str(&ended.out).unwrap()
    }

    /// Waits until nothing waits any more, and what readers see has no difference from `truth` but in `except`.
    pub(crate) fn until_true(&self, truth: &dyn Fn() -> Tables, except: &[&str]) -> Tables {
        let deadline = Instant::now() + STUCK;
        loop {
            let status = self.status();
            let is_idle = status["waiting"] == 0 && !status["snapshot"].is_null();
            let found = is_idle.then(|| tables::from_duckdb(&self.lake()));
            let difference = found.as_ref().map(|found| tables::difference(found, &truth(), except));
            match (found, difference) {
                (Some(found), Some(None)) => return found,
                (_, difference) if Instant::now() > deadline => {
                    panic!("{status:#}\n{}", difference.flatten().unwrap_or_default())
                }
                _ => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Everything that was logged so far.
    pub(crate) fn logs(&self) -> String {
        (1..=self.starts.get())
            .map(|start| fs::read_to_string(self.folder.path().join(format!("serve-{start}.log"))).unwrap())
            .collect()
    }

    /// Sends `body` as Belvo does; the status and the text of the answer.
    pub(crate) async fn webhook(&self, body: &str) -> (u16, String) {
        let request = reqwest::Client::new().post(self.webhook_url()).header("content-type", "application/json");
        let answer = request.header("authorization", AUTHORIZATION).body(body.to_owned()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// What the admin listener answers.
    pub(crate) async fn ask(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.admin)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

/// A running `vinculo serve`; killed when this is dropped.
pub(crate) struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    /// Waits until the log says that it is ready. A log line is the only signal that a process gives.
    pub(crate) fn until_ready(&mut self) {
        let deadline = Instant::now() + STUCK;
        while !fs::read_to_string(&self.log).unwrap().contains("\"message\":\"ready\"") {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {}",
                fs::read_to_string(&self.log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// `kill`, and the exit code.
    pub(crate) fn terminate(self) -> Option<i32> {
        self.end_with("-TERM")
    }

    /// Ctrl-C, and the exit code.
    pub(crate) fn interrupt(self) -> Option<i32> {
        self.end_with("-INT")
    }

    fn end_with(mut self, signal: &str) -> Option<i32> {
        let killed = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap().code()
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Shown with the failed test only.
            eprintln!("serve: {:?}\n{}", self.child.try_wait(), fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `vinculo simulate`; killed when this is dropped.
pub(crate) struct Simulate {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Simulate {
    /// Starts it on `address` with nobody connected, and waits until it listens.
    pub(crate) fn start(address: SocketAddr, arguments: &[&str]) -> Self {
        Self::connected(address, &[&["--no-connect"], arguments].concat())
    }

    /// The same, with everybody connected.
    pub(crate) fn connected(address: SocketAddr, arguments: &[&str]) -> Self {
        let mut command = vinculo();
        command.args(["simulate", "--listen", &address.to_string()]).args(arguments);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + STUCK;
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the simulator does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address }
    }

    /// Ctrl-C, and the exit code.
    pub(crate) fn interrupt(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap().code()
    }

    /// `GET /_sim/{path}`.
    pub(crate) async fn ask(&self, path: &str) -> String {
        reqwest::get(format!("http://{}/_sim/{path}", self.address)).await.unwrap().text().await.unwrap()
    }

    /// `POST /_sim/{path}`, answered when every webhook is delivered.
    pub(crate) async fn tell(&self, path: &str, body: &str) {
        let url = format!("http://{}/_sim/{path}?wait=true", self.address);
        let answer = reqwest::Client::new().post(url).body(body.to_owned()).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
}

impl Drop for Simulate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Entries of a folder, by name; none when it is not there.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
