//! The way to a running daemon for a command beside it.
//!
//! *Takes* the configuration. *Gives* a client of the daemon that holds the state, if one does. *Promises* that an
//! order goes to that daemon and to no other one; and that the token goes nowhere but to `admin.listen`. *Not here*:
//! what is ordered.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::status::{BudgetUse, Standing};
use super::v1::erasures::Wish;
use super::v1::exports::Export;
use crate::config::Config;
use crate::features::frozen;
use crate::features::runs::Wanted;
use crate::operations::{Order, Replay};
use crate::publish::BuiltFrom;
use crate::runs::Run;
use crate::store::{self, Readers};
use crate::widget::SessionRequest;

/// How long the daemon may take to take an order; it writes it into the state first.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same when it first looks through all that it holds, for a person.
const PATIENCE_WITH_A_SEARCH: Duration = Duration::from_mins(30);

/// How long the daemon may wait for news of a run before it answers, in seconds.
const NEWS_WITHIN: u64 = 10;

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state is held, and this command may not ask its holder.
    #[error(
        "the state is held by process {pid}, and this command may not ask it without a token: set admin.token, and start \
         the daemon again, or stop it first"
    )]
    NoToken {
        /// Who holds the state.
        pid: String,
    },
    /// The state is held by a process that does not listen there, such as another command.
    #[error(
        "the state is held by process {pid}, and no daemon answers on admin.listen {listen}: wait until that process ends, \
         or stop it first"
    )]
    Unreachable {
        /// Who holds the state.
        pid: String,
        /// Where it was looked for.
        listen: SocketAddr,
    },
    /// Another daemon answers there.
    #[error(
        "the state is held by process {pid}, but another daemon answers on admin.listen {listen}: give each daemon an \
         address of its own"
    )]
    Another {
        /// Who holds the state.
        pid: String,
        /// Where the other one answers.
        listen: SocketAddr,
    },
    /// The daemon does not accept the token.
    #[error(
        "the daemon on admin.listen {listen} refuses this admin.token: it was started with another one; start it again"
    )]
    Refused {
        /// Where it answers.
        listen: SocketAddr,
    },
    /// The daemon answered with an error.
    #[error("{message}")]
    Answered {
        /// Its stable code.
        code: String,
        /// What it said.
        message: String,
    },
    /// The daemon went away, or what answers is no daemon.
    #[error("the daemon on admin.listen {listen} does not answer any more: look at its log")]
    Lost {
        /// Where it answered.
        listen: SocketAddr,
    },
    /// This machine cannot set up a client.
    #[error("the connection to the daemon cannot be set up: {0}")]
    Setup(#[from] reqwest::Error),
}

impl Error {
    /// The stable code of this failure.
    pub fn code(&self) -> &str {
        match self {
            Self::NoToken { .. } | Self::Unreachable { .. } | Self::Another { .. } | Self::Refused { .. } => {
                "state_held"
            }
            Self::Answered { code, .. } => code,
            Self::Lost { .. } => "daemon_lost",
            Self::Setup(_) => "no_client",
        }
    }
}

/// A client of the daemon that holds the state.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    listen: SocketAddr,
    host: Option<String>,
    token: SecretString,
    /// How long the daemon may wait for an answer of Belvo's.
    belvos_answer: Duration,
}

impl Client {
    /// A client of the daemon that holds the state of `config`; `None` when nobody holds it.
    ///
    /// # Errors
    /// When the state is held, and its holder cannot be asked.
    pub async fn find(config: &Config) -> Result<Option<Self>, Error> {
        let Some(pid) = store::holder(&config.state.path) else { return Ok(None) };
        let Some(token) = config.admin.token.clone() else { return Err(Error::NoToken { pid }) };
        let held = Readers::of(&config.state.path).read(BuiltFrom::of).ok().map(|state| state.state_id);
        let listen = reachable(config.admin.listen);
        // No proxy may see the token, and no certificate is looked at: it is plain HTTP on this machine.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([])
            .connect_timeout(Duration::from_secs(2))
            .build()?;
        let belvos_answer = config.belvo.connect_timeout + config.belvo.idle_timeout;
        let client = Self { http, listen, host: config.admin.allowed_hosts.first().cloned(), token, belvos_answer };
        match client.call(Method::GET, "/v1", None, PATIENCE).await {
            Ok(index) if index["state_id"].as_str().is_some_and(|id| Some(id) == held.as_deref()) => Ok(Some(client)),
            Ok(_) => Err(Error::Another { pid, listen }),
            Err(Error::Lost { .. }) => Err(Error::Unreachable { pid, listen }),
            Err(error) => Err(error),
        }
    }

    /// Gives `order` to the daemon, and gives its run.
    ///
    /// # Errors
    /// What the daemon answered, or [`Error::Lost`].
    pub async fn order(&self, order: &Order) -> Result<Run, Error> {
        let (path, body) = request(order);
        let patience = if matches!(order, Order::Erase(_)) { PATIENCE_WITH_A_SEARCH } else { PATIENCE };
        self.run(Method::POST, &path, body, patience).await
    }

    /// The run called `id` once there is news of it, or after some seconds without any.
    ///
    /// # Errors
    /// As [`Client::order`].
    pub async fn news(&self, id: &str) -> Result<Run, Error> {
        let path = format!("/v1/runs/{id}?wait={NEWS_WITHIN}");
        self.run(Method::GET, &path, None, PATIENCE + Duration::from_secs(NEWS_WITHIN)).await
    }

    /// A widget session: `url`, `access`, `refresh`, `expires_at`.
    ///
    /// # Errors
    /// As [`Client::order`].
    pub async fn widget_session(&self, request: &SessionRequest) -> Result<Value, Error> {
        let patience = PATIENCE + self.belvos_answer;
        self.call(Method::POST, "/v1/widget-sessions", Some(json!(request)), patience).await
    }

    /// Has it noted in the audit that something is read out.
    ///
    /// # Errors
    /// As [`Client::order`].
    pub async fn note_export(&self, export: &Export) -> Result<(), Error> {
        self.call(Method::POST, "/v1/exports", Some(json!(export)), PATIENCE).await.map(drop)
    }

    /// What only the daemon knows of how things stand.
    ///
    /// # Errors
    /// As [`Client::order`].
    pub async fn live(&self) -> Result<Live, Error> {
        let status = self.call(Method::GET, "/v1/status", None, PATIENCE).await?;
        serde_json::from_value(status).map_err(|_| Error::Lost { listen: self.listen })
    }

    /// The stable codes of what stands in the daemon's way.
    ///
    /// # Errors
    /// [`Error::Lost`].
    pub async fn problems(&self) -> Result<Vec<String>, Error> {
        let (_, bytes) = self.send(Method::GET, "/readyz", None, PATIENCE).await?;
        let Readiness { problems } = serde_json::from_slice(&bytes).map_err(|_| Error::Lost { listen: self.listen })?;
        Ok(problems)
    }

    async fn run(&self, method: Method, path: &str, body: Option<Value>, patience: Duration) -> Result<Run, Error> {
        let mut answer = self.call(method, path, body, patience).await?;
        serde_json::from_value(answer["run"].take()).map_err(|_| Error::Lost { listen: self.listen })
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>, patience: Duration) -> Result<Value, Error> {
        let lost = || Error::Lost { listen: self.listen };
        let (status, bytes) = self.send(method, path, body, patience).await?;
        match status {
            StatusCode::UNAUTHORIZED => Err(Error::Refused { listen: self.listen }),
            _ if status.is_success() => serde_json::from_slice(&bytes).map_err(|_| lost()),
            _ => {
                let Said { error: Told { code, message } } = serde_json::from_slice(&bytes).map_err(|_| lost())?;
                Err(Error::Answered { code, message })
            }
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), Error> {
        let lost = || Error::Lost { listen: self.listen };
        let mut request = self.http.request(method, format!("http://{}{path}", self.listen)).timeout(patience);
        request = request.bearer_auth(self.token.expose_secret());
        if let Some(host) = &self.host {
            request = request.header(header::HOST, if host.contains(':') { format!("[{host}]") } else { host.clone() });
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(|_| lost())?;
        let status = answer.status();
        Ok((status, answer.bytes().await.map_err(|_| lost())?))
    }
}

/// What only a running daemon knows of how things stand.
#[derive(Debug, Deserialize)]
pub struct Live {
    /// How much of Belvo's request budget is in use.
    pub budget: Option<BudgetUse>,
    /// What stands in the way.
    pub problems: Option<Vec<Standing>>,
}

/// What `/readyz` answers.
#[derive(Deserialize)]
struct Readiness {
    problems: Vec<String>,
}

/// An error as every path answers it.
#[derive(Deserialize)]
struct Said {
    error: Told,
}

#[derive(Deserialize)]
struct Told {
    code: String,
    message: String,
}

/// Where this machine reaches a listener on `listen`.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let address = match listen.ip() {
        IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(address, listen.port())
}

/// How `order` is given over HTTP.
fn request(order: &Order) -> (String, Option<Value>) {
    match order {
        Order::Refresh { links, resources } => {
            let resources: Vec<_> = resources.iter().map(|resource| resource.name).collect();
            ("/v1/links/refresh".to_owned(), Some(json!({ "links": links, "resources": resources })))
        }
        Order::Recollect { links, resources } => {
            let resources: Vec<_> = resources.iter().map(|resource| resource.name).collect();
            ("/v1/links/recollect".to_owned(), Some(json!({ "links": links, "resources": resources })))
        }
        Order::Delete(link) => (format!("/v1/links/{link}/delete"), None),
        Order::Untrack(link) => (format!("/v1/links/{link}/untrack"), None),
        Order::Erase(erasure) => ("/v1/erasures".to_owned(), Some(json!(Wish::of(erasure)))),
        Order::Publish => ("/v1/publish".to_owned(), None),
        Order::Rebuild => ("/v1/rebuild".to_owned(), None),
        Order::Features(Wanted { as_of, mode, lag_months }) => {
            let mut body = json!({ "mode": mode.name(), "lag_months": lag_months });
            if let Some(as_of) = as_of {
                body["as_of_date"] = as_of.to_string().into();
            }
            ("/v1/features".to_owned(), Some(body))
        }
        Order::Freeze(frozen::Decision { decision_id, link_id, as_of, mode }) => {
            let body = json!({
                "decision_id": decision_id, "link_id": link_id.as_str(), "as_of_date": as_of.to_string(), "mode": mode.name(),
            });
            ("/v1/features/freeze".to_owned(), Some(body))
        }
        Order::SyncLinks => ("/v1/links/sync".to_owned(), None),
        Order::Job(name) => {
            let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
            (format!("/v1/jobs/{name}/run"), None)
        }
        Order::Replay(Replay::One(seq)) => (format!("/v1/webhooks/{seq}/replay"), None),
        Order::Replay(Replay::Quarantined) => ("/v1/webhooks/replay".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_reached_on_this_machine() {
        for (listen, reached) in
            [("0.0.0.0:9090", "127.0.0.1:9090"), ("[::]:1", "[::1]:1"), ("10.1.2.3:9090", "10.1.2.3:9090")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[test]
    fn a_name_of_a_job_stays_one_part_of_the_path() {
        assert_eq!(request(&Order::Job("../../x y".to_owned())).0, "/v1/jobs/..%2F..%2Fx+y/run");
    }
}
