//! `vinculo simulate`: a faithful fake Belvo.

use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::work::{self, Signal};
use super::{Exit, Global, streams};
use crate::simulate::{Fault, SECRET_ID, SECRET_PASSWORD, Settings, Simulation};

/// What `simulate` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen: IP:PORT or HOST:PORT
    #[arg(long, value_name = "A", default_value = "127.0.0.1:8090", value_parser = Listen::parse)]
    pub listen: Listen,
    /// How many people connect together; the widget's page goes on after them
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub people: u32,
    /// The same seed gives the same people
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Where to send webhooks
    #[arg(long, value_name = "URL")]
    pub webhook: Option<Url>,
    /// The Authorization header of webhooks
    #[arg(long, value_name = "V", requires = "webhook")]
    pub webhook_authorization: Option<String>,
    /// Answer any number of requests, instead of 80 in 30 seconds
    #[arg(long)]
    pub no_limit: bool,
    /// Wait so long before each answer, such as 120ms
    #[arg(long, value_name = "D", default_value = "0s", value_parser = humantime::parse_duration)]
    pub latency: Duration,
    /// The key of `person_key` in the truth, as in pii.pepper
    #[arg(long, value_name = "P")]
    pub pepper: Option<String>,
    /// Mean time from a link to its webhooks
    #[arg(long, value_name = "D", default_value = "15s", value_parser = humantime::parse_duration)]
    pub webhook_latency: Duration,
    /// Connect nobody: POST /_sim/connect and the widget do
    #[arg(long)]
    pub no_connect: bool,
    /// Connect everybody at once, as without it
    #[arg(long, hide = true, conflicts_with = "no_connect")]
    pub connect: bool,
    /// A fault to switch on, such as AP5 or status,code=429,times=3; may be given several times
    #[arg(long, value_name = "F", value_parser = Fault::parse)]
    pub fault: Vec<Fault>,
}

/// An address of this machine, as it was given and as it is bound.
#[derive(Clone, Debug)]
pub struct Listen {
    text: String,
    /// All that a host name stands for; the first that can be bound is.
    addresses: Vec<SocketAddr>,
}

impl Listen {
    fn parse(text: &str) -> Result<Self, String> {
        let refused = |why: &str| format!("{why}; give IP:PORT or HOST:PORT, such as 127.0.0.1:8090");
        let addresses: Vec<_> = text.to_socket_addrs().map_err(|error| refused(&error.to_string()))?.collect();
        if addresses.is_empty() {
            return Err(refused("the host has no address"));
        }
        Ok(Self { text: text.to_owned(), addresses })
    }
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let defaults = Settings::default();
    let settings = Settings {
        people: args.people,
        seed: args.seed,
        webhook: args.webhook.clone(),
        webhook_authorization: args.webhook_authorization.clone().unwrap_or_default(),
        limit: if args.no_limit { None } else { defaults.limit },
        response_latency: args.latency,
        webhook_latency: args.webhook_latency,
        pepper: args.pepper.clone(),
        faults: args.fault.clone(),
        ..defaults
    };
    work::block_on(async {
        let listener = TcpListener::bind(&args.listen.addresses[..]).await.with_context(|| {
            let text = &args.listen.text;
            format!(
                "{text} cannot be listened on: free the port, or give another address of this machine with --listen"
            )
        })?;
        let address = listener.local_addr()?;
        let out = &mut streams::out();
        if global.json {
            writeln!(
                out,
                "{}",
                json!({ "base_url": format!("http://{address}"), "secret_id": SECRET_ID, "secret_password": SECRET_PASSWORD })
            )?;
        } else {
            writeln!(out, "a fake Belvo with {} people listens on http://{address}", args.people)?;
            writeln!(out, "  belvo.secret_id = \"{SECRET_ID}\", belvo.secret_password = \"{SECRET_PASSWORD}\"")?;
            if args.no_connect {
                writeln!(out, "  curl -X POST 'http://{address}/_sim/connect' connects them")?;
            }
            writeln!(out, "  http://{address}/_sim/truth is what the tables should hold")?;
        }
        out.flush()?;
        let simulation = Simulation::new(settings);
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(simulation.clone().serve(listener, shutdown.clone()));
        if !args.no_connect {
            simulation.connect_all();
        }
        let signal = work::asked_to_end().await?;
        shutdown.cancel();
        serving.await??;
        Ok(if signal == Signal::Interrupt { Exit::Interrupted } else { Exit::Done })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_name_is_listened_on_and_what_is_no_address_is_told_how_one_looks() {
        let here = Listen::parse("localhost:0").unwrap();
        let listener = TcpListener::bind(&here.addresses[..]).await.unwrap();
        assert!(listener.local_addr().unwrap().ip().is_loopback());
        assert_eq!(Listen::parse("127.0.0.1:8090").unwrap().addresses, ["127.0.0.1:8090".parse().unwrap()]);
        for wrong in ["8090", "localhost", "localhost:http", "127.0.0.1:70000"] {
            let error = Listen::parse(wrong).unwrap_err();
            assert!(error.contains("IP:PORT or HOST:PORT, such as 127.0.0.1:8090"), "{wrong}: {error}");
        }
    }
}
