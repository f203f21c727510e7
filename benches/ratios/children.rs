//! The program's own commands as child processes.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use vinculo::simulate::{SECRET_ID, SECRET_PASSWORD};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vinculo");

/// A child that ends with this.
pub(crate) struct Running(Child);

impl Running {
    /// Starts `vinculo serve` with `settings`.
    pub(crate) fn serve(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start(&["serve"], settings)
    }

    /// Starts a command with `settings`, keys such as `lake.url`, and nothing else from outside.
    pub(crate) fn start(arguments: &[&str], settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).args(["--log-level", "warn"]).stdin(Stdio::null());
        // Nothing but what is given here counts.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("VINCULO_")) {
            command.env_remove(name);
        }
        for (key, value) in settings {
            command.env(format!("VINCULO_{}", key.replace('.', "__").to_uppercase()), value);
        }
        Ok(Self(command.spawn().context("vinculo did not start")?))
    }

    /// Whether it ended well; `None` while it runs.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<bool>> {
        Ok(self.0.try_wait()?.map(|status| status.success()))
    }

    /// The highest resident size so far, in MiB; `None` once it has ended.
    pub(crate) fn high_water(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kibibytes / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A fake Belvo without a limit, to whom `people` are connected.
pub(crate) struct Simulator {
    pub base_url: String,
    _running: Running,
}

impl Simulator {
    pub(crate) fn start(people: u32, more: &[&str]) -> anyhow::Result<Self> {
        Self::run(people, more)
    }

    /// The same, to whom nobody is connected yet.
    pub(crate) fn alone(people: u32, more: &[&str]) -> anyhow::Result<Self> {
        Self::run(people, &[&["--no-connect"], more].concat())
    }

    fn run(people: u32, more: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(PROGRAM)
            .args(["simulate", "--listen", "127.0.0.1:0", "--no-limit", "--json", "--log-level", "error"])
            .args(["--people", &people.to_string(), "--webhook-latency", "1s"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("vinculo simulate did not start")?;
        let stdout = child.stdout.take().context("its output is piped")?;
        let running = Running(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said: serde_json::Value = serde_json::from_str(&line)?;
        let base_url = said["base_url"].as_str().context("the simulator says where it is")?.to_owned();
        Ok(Self { base_url, _running: running })
    }

    /// Whether every event was taken (or nobody wanted it), so that all data is there.
    pub(crate) async fn is_loaded(&self) -> anyhow::Result<bool> {
        let state = reqwest::get(format!("{}/_sim/state", self.base_url)).await?.bytes().await?;
        let state: serde_json::Value = serde_json::from_slice(&state)?;
        let webhooks = &state["webhooks"];
        anyhow::ensure!(webhooks["failed"] == 0, "the simulator could not deliver {} events", webhooks["failed"]);
        Ok(webhooks["scheduled"] != 0 && webhooks["outstanding"] == 0)
    }

    /// Waits until it is.
    pub(crate) async fn until_loaded(&self) -> anyhow::Result<()> {
        while !self.is_loaded().await? {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// What makes the program a client of this.
    pub(crate) fn settings(&self) -> [(&str, &str); 4] {
        [
            ("belvo.base_url", &self.base_url),
            ("belvo.secret_id", SECRET_ID),
            ("belvo.secret_password", SECRET_PASSWORD),
            ("belvo.budget", r#"{ requests = 1000000, per = "30s" }"#),
        ]
    }
}

/// An address that nobody listens on just now.
pub(crate) fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
