//! `vinculo widget`: a session of the hosted widget for one user.

use std::io::{self, Write as _};

use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};

use super::{Exit, Global, streams, work};
use crate::admin::client::Client;
use crate::clock::Clock;
use crate::config::Needs;
use crate::daemon::{Daemon, Parts};
use crate::link_id::LinkId;
use crate::resources::{self, Resource};
use crate::widget::{self, SessionRequest};

/// What `widget` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Your own id of the user: 3 to 256 letters, digits, - and _, nothing personal
    #[arg(long, value_name = "X")]
    pub external_id: String,
    /// Whether Belvo reads the institution once or again and again [default: recurrent]
    #[arg(long, value_name = "MODE", value_parser = ["single", "recurrent"])]
    pub access_mode: Option<String>,
    /// Language of the page [default: pt]
    #[arg(long, value_name = "L")]
    pub locale: Option<String>,
    /// An institution that the page offers; may be given again [default: `inss_br_employment`]
    #[arg(long, value_name = "NAME")]
    pub institution: Vec<String>,
    /// The link that gets new credentials, instead of a new link
    #[arg(long, value_name = "ID", conflicts_with_all = ["institution", "resource"])]
    pub link: Option<LinkId>,
    /// What Belvo fetches by itself; may be given again [default: every resource]
    #[arg(long, value_name = "R", value_parser = PossibleValuesParser::new(resources::ALL.map(|resource| resource.name)))]
    pub resource: Vec<String>,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let request = args.request();
    widget::check(&request, &config.widget).map_err(widget::Error::Invalid)?;
    let session = work::block_on(async {
        if let Some(daemon) = Client::find(&config).await? {
            return Ok(daemon.widget_session(&request).await?);
        }
        let config = global.load_config(Needs { belvo: true, webhook: false })?;
        config.check_folders()?;
        let daemon = Daemon::start(&config, Clock::system(), Parts::WithoutTasks).await?;
        let session = daemon.operations.widgets.create(request).await;
        daemon.stop().await;
        Ok(json!(session?))
    })?;
    tell(&session, global)?;
    Ok(Exit::Done)
}

impl Args {
    fn request(&self) -> SessionRequest {
        let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        let wire = |name: &String| Resource::by_name(name).map(|resource| resource.webhook_type.to_owned());
        SessionRequest {
            external_id: self.external_id.clone(),
            access_mode: self.access_mode.clone(),
            locale: self.locale.clone(),
            institutions: some(&self.institution),
            link: self.link.as_ref().map(LinkId::to_string),
            fetch_resources: some(&self.resource).map(|names| names.iter().filter_map(wire).collect()),
        }
    }
}

fn tell(session: &Value, global: &Global) -> io::Result<()> {
    let out = &mut streams::out();
    if global.json {
        return writeln!(out, "{session}");
    }
    for name in ["url", "access", "refresh", "expires_at"] {
        writeln!(out, "{name:<10}  {}", session[name].as_str().unwrap_or_default())?;
    }
    Ok(())
}
