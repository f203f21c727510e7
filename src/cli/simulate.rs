//! `vinculo simulate`: a faithful fake Belvo.

use std::net::SocketAddr;
use std::time::Duration;

use url::Url;

/// What `simulate` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to listen
    #[arg(long, value_name = "A", default_value = "127.0.0.1:8090")]
    pub listen: SocketAddr,
    /// How many people there are
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
    /// A fault to switch on, by its id; may be given several times
    #[arg(long, value_name = "F")]
    pub fault: Vec<String>,
}
