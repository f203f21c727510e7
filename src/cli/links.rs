//! `vinculo links`: the tracked links.

use std::io::{self, Write as _};

use anyhow::{Context, bail};
use serde_json::json;

use super::table::{self, Table};
use super::{Exit, Global, ordered, streams};
use crate::admin::v1::PAGE;
use crate::clock::Clock;
use crate::config::Needs;
use crate::coverage::Coverage;
use crate::link_id::LinkId;
use crate::links::view::{self, Filter, View};
use crate::operations::{Order, Refused};
use crate::store::{self, Readers, Tx};
use crate::{tombstones, widget};

/// What `links` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do [default: list]
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What can be done with the tracked links.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List them
    List(List),
    /// Show one, and what to do about it
    Show(Show),
    /// Compare them with Belvo's list
    Sync,
    /// Pause one, or delete it at Belvo; its rows stay
    #[command(
        long_about = "Pauses a link: what is due of it ends, and neither jobs nor webhooks nor `refresh --all` ask for it \
        again. That is the pause of its page on the dashboard, whose Resume takes it up again; `links list` still shows it. \
        Its rows stay as they are, here and in the lake; `vinculo erase` removes those. With --remote Belvo deletes the link, with all that it \
        holds of it, which cannot be undone."
    )]
    Delete(Delete),
}

/// Which links to list.
#[derive(Debug, Default, clap::Args)]
pub struct List {
    /// Only those of this external id
    #[arg(long, value_name = "X")]
    pub external_id: Option<String>,
    /// Only those with this status, such as valid or invalid
    #[arg(long, value_name = "S")]
    pub status: Option<String>,
    /// At most so many [default: 100]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Only those after this link id
    #[arg(long, value_name = "ID")]
    pub after: Option<String>,
}

/// Which link to show.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// The link
    #[arg(value_name = "ID")]
    pub link: LinkId,
}

/// Which link to delete.
#[derive(Debug, clap::Args)]
pub struct Delete {
    /// The link
    #[arg(value_name = "ID", required_unless_present = "link")]
    pub id: Option<LinkId>,
    /// The link, too
    #[arg(long, value_name = "ID", conflicts_with = "id")]
    pub link: Option<LinkId>,
    /// Delete it at Belvo, which cannot be undone
    #[arg(long)]
    pub remote: bool,
}

pub(super) fn run(args: &Args, global: &Global) -> anyhow::Result<Exit> {
    match &args.command {
        None => list(&List::default(), global),
        Some(Command::List(wish)) => list(wish, global),
        Some(Command::Show(wish)) => show(&wish.link, global),
        Some(Command::Sync) => sync(global),
        Some(Command::Delete(wish)) => delete(wish, global),
    }
}

fn list(wish: &List, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let filter = Filter { external_id: wish.external_id.clone(), status: wish.status.clone() };
    let (after, limit) = (wish.after.clone().unwrap_or_default(), wish.limit.unwrap_or(PAGE));
    let now = Clock::system().now();
    let ((mut links, next), awaited) = Readers::of(&config.state.path).read(|tx| {
        let page = view::list(tx, &filter, &after, limit, now)?;
        Ok::<_, store::Error>((page, widget::awaited(tx, filter.external_id.as_deref(), now)?))
    })?;
    let out = &mut streams::out();
    if global.json {
        view::cover(&mut links, &config.lake.path);
        links.iter().try_for_each(|link| writeln!(out, "{}", json!(link)))?;
    } else {
        let columns = ["link_id", "external_id", "status", "access_mode", "fetched", "what to do"];
        let mut table = Table::new(columns.map(|name| (name.to_owned(), false)));
        for link in &links {
            let oldest = link.resources.iter().map(|resource| resource.last_fetched_at.clone()).min().flatten();
            table.push([
                Some(link.link_id.clone()),
                Some(link.external_id.clone().unwrap_or_default()),
                Some(link.status.clone().unwrap_or_else(|| "unknown".to_owned())),
                Some(link.access_mode.clone().unwrap_or_default()),
                Some(oldest.unwrap_or_else(|| "never".to_owned())),
                Some(link.next.to_string()),
            ]);
        }
        table.write(out)?;
    }
    if let Some(awaited) = awaited {
        streams::note(&format!("a widget session waits for its user until {}", awaited.expires_at), global)?;
    }
    if let Some(next) = next {
        streams::note(&format!("there are more: --after {next} shows them"), global)?;
    }
    Ok(Exit::Done)
}

fn show(link_id: &LinkId, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs::default())?;
    let now = Clock::system().now();
    let look = |tx: &Tx<'_>| match view::show(tx, link_id, now)? {
        None if tombstones::is_erased(tx, link_id)? => Ok(Err(Refused::Erased)),
        shown => Ok::<_, store::Error>(Ok(shown)),
    };
    let Some(mut link) = Readers::of(&config.state.path).read(look)?? else {
        bail!("the link {link_id} is not tracked: `vinculo links sync` asks Belvo for its list");
    };
    view::cover(std::slice::from_mut(&mut link), &config.lake.path);
    let out = &mut streams::out();
    if global.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&link)?)?;
    } else {
        tell(&link, out)?;
    }
    Ok(Exit::Done)
}

fn tell(link: &View, out: &mut impl io::Write) -> io::Result<()> {
    let unknown = || "unknown".to_owned();
    writeln!(out, "link         {}", link.link_id)?;
    for (name, value) in [
        ("log tag", &Some(link.log_tag.clone())),
        ("external id", &link.external_id),
        ("status", &link.status),
        ("access mode", &link.access_mode),
        ("refresh rate", &link.refresh_rate),
        ("stale in", &link.stale_in),
        ("last webhook", &link.last_webhook_at),
    ] {
        writeln!(out, "{name:<12} {}", value.as_deref().map_or_else(unknown, table::shown))?;
    }
    if let Some(Coverage { months, first_month, last_month }) = &link.coverage {
        writeln!(out, "pay          {months} months, {first_month} to {last_month}")?;
    }
    for resource in &link.resources {
        let fetched = resource.last_fetched_at.as_deref().unwrap_or("never");
        write!(out, "{:<12} {}, last fetched {fetched}", resource.resource, resource.state)?;
        if let Some(count) = resource.item_count {
            write!(out, ", {count} records")?;
        }
        if let Some(code) = &resource.last_error_code {
            write!(out, ", last error {code}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "what to do   {}", link.next)
}

fn sync(global: &Global) -> anyhow::Result<Exit> {
    let run = ordered::carry_out(Order::SyncLinks, ordered::BELVO, global)?;
    ordered::finish_with_line(run.as_ref(), global, |run| format!("Belvo lists {} links", run.progress.done))
}

fn delete(wish: &Delete, global: &Global) -> anyhow::Result<Exit> {
    let link = wish.id.as_ref().or(wish.link.as_ref()).context("name a link")?;
    let (order, needed) = if wish.remote {
        (Order::Delete(link.clone()), ordered::BELVO)
    } else {
        (Order::Untrack(link.clone()), ordered::STATE_AND_LAKE)
    };
    let run = ordered::carry_out(order, needed, global)?;
    let what = if wish.remote {
        "is deleted at Belvo"
    } else {
        "is paused: nothing asks for it any more until it is resumed on the dashboard; Belvo still has it"
    };
    let line = format!("{link} {what}; its rows here stay, `vinculo erase` removes them");
    ordered::finish_with_line(run.as_ref(), global, |_| line)
}
