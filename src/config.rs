//! What the operator decides: defaults, file, environment and flags, checked once.
//!
//! *Gives* one [`Config`] whose every value is usable as it stands. Modules receive their own section, never the whole.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;
use url::Url;

/// The whole configuration, checked. Paths are absolute.
#[derive(Debug)]
pub struct Config {
    /// How to reach Belvo, and how much of it.
    pub belvo: Belvo,
    /// The listener that Belvo calls.
    pub webhook: Webhook,
    /// The listener for operators.
    pub admin: Admin,
    /// Where the record store is.
    pub state: State,
    /// Where the published tables are.
    pub lake: Lake,
    /// What may be derived from personal data.
    pub pii: Pii,
    /// The folder of `jobs/*.toml`.
    pub jobs_dir: PathBuf,
}

/// How to reach Belvo, and how much of it may be used.
#[derive(Debug, Clone)]
pub struct Belvo {
    /// Origin of every call but the token's.
    pub base_url: Url,
    /// Basic authentication's user.
    pub secret_id: SecretString,
    /// Basic authentication's password.
    pub secret_password: SecretString,
    /// Items asked for in a page, 1 to 1000.
    pub page_size: u32,
    /// The request budget of all calls together.
    pub budget: Budget,
    /// Share of the budget, 0 to 1, that only webhooks and widget tokens may use.
    pub reserve: f64,
    /// Refreshes that run at the same time.
    pub workers: usize,
    /// To a connected, authenticated socket.
    pub connect_timeout: Duration,
    /// Longest silence within an answer.
    pub idle_timeout: Duration,
    /// From the send to the last byte.
    pub total_timeout: Duration,
    /// Largest unpacked answer, in bytes.
    pub max_body: u64,
    /// Between the two lists that agree that a row is gone.
    pub confirm_after: Duration,
}

/// At most `requests` calls arrive at Belvo in any window of length `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Calls in a window.
    pub requests: u32,
    /// The window's length.
    pub per: Duration,
}

/// The listener that Belvo calls.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// Address to bind.
    pub listen: SocketAddr,
    /// The one path that is served.
    pub path: String,
    /// Accepted values of the `Authorization` header, at least one.
    pub authorization: Vec<SecretString>,
    /// Addresses that may call; empty lets everyone.
    pub allow_ips: Vec<IpNet>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Largest body, in bytes.
    pub max_body: u64,
    /// Connections served at the same time.
    pub max_connections: usize,
    /// From the first byte awaited to the end of the headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
}

/// The listener for operators: health, readiness and metrics.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address to bind.
    pub listen: SocketAddr,
    /// Bearer token of everything but health, readiness and metrics.
    pub token: Option<SecretString>,
    /// Host names, without port, that a request may ask for.
    pub allowed_hosts: Vec<String>,
}

/// Where the record store is.
#[derive(Debug, Clone)]
pub struct State {
    /// The SQLite file.
    pub path: PathBuf,
}

/// Where the published tables are, and when they are renewed.
#[derive(Debug, Clone)]
pub struct Lake {
    /// The folder.
    pub path: PathBuf,
    /// Names of the sinks in [`crate::sinks`].
    pub sinks: Vec<String>,
    /// Partitions of each table with a `link_id`.
    pub link_buckets: u32,
    /// Snapshots that stay, the current one included.
    pub keep_snapshots: usize,
    /// No snapshot younger than this is dropped.
    pub keep_for: Duration,
    /// Storage version of `vinculo.duckdb`, such as `v1.0.0`.
    pub duckdb_storage_version: String,
    /// Publish this long after the last change,
    pub publish_quiet: Duration,
    /// and at the latest this long after the first.
    pub publish_max_wait: Duration,
}

/// What may be derived from personal data.
#[derive(Debug, Clone)]
pub struct Pii {
    /// Key of `person_key` and of the key of an employer that is a person; without one both are NULL.
    pub pepper: Option<SecretString>,
}
