//! `vinculo serve`: the daemon.

use super::work::Signal;
use super::{Exit, Global, work};
use crate::admin::Recorder;
use crate::clock::Clock;
use crate::config::Needs;
use crate::daemon::{Daemon, Parts};

/// What `serve` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config(Needs { belvo: true, webhook: true })?;
    config.check_folders()?;
    if let Some(note) = config.state.unkept_promise() {
        tracing::warn!(code = "bodies_not_encrypted", "{note}");
    }
    // Before anything counts.
    Recorder::global();
    work::block_on(async {
        let daemon = Daemon::start(&config, Clock::system(), Parts::All).await?;
        if let (Some(webhooks), Some(admin)) = (daemon.webhook_address, daemon.admin_address) {
            tracing::info!(%webhooks, %admin, "ready");
        }
        let signal = work::asked_to_end().await?;
        tracing::info!("stopping");
        daemon.stop().await;
        // A service manager asked for the end, and it is a good one; a person at the keyboard broke it off.
        Ok(match signal {
            Signal::Terminate => Exit::Done,
            Signal::Interrupt => Exit::Interrupted,
        })
    })
}
