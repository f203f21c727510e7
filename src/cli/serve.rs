//! `vinculo serve`: the daemon.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Global, work};
use crate::admin::Recorder;
use crate::clock::Clock;
use crate::config::{Config, Needs};
use crate::daemon::{Daemon, Parts};
use crate::systemd::Notifier;

/// What `serve` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

const NEEDS: Needs = Needs { belvo: true, webhook: true };

/// Nobody waits for a sign of life.
const NEVER: Duration = Duration::from_hours(24);

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    let config = global.load_config_with_jobs(NEEDS)?;
    config.check_folders()?;
    if let Some(note) = config.state.unkept_promise() {
        tracing::warn!(code = "bodies_not_encrypted", "{note}");
    }
    // Before anything counts.
    Recorder::global();
    work::block_on(async {
        let daemon = Daemon::start(&config, Clock::system(), Parts::All).await?;
        // Before anybody is told that it is ready: who was told may send a signal at once.
        let (mut reload, asked_to_end) = (signal(SignalKind::hangup())?, work::asked_to_end());
        tokio::pin!(asked_to_end);
        if let (Some(webhooks), Some(admin)) = (daemon.webhook_address, daemon.admin_address) {
            tracing::info!(%webhooks, %admin, "ready");
        }
        let notifier = Notifier::of(|name| std::env::var(name).ok(), std::process::id());
        let mut pulse = tokio::time::interval(notifier.interval().unwrap_or(NEVER));
        notifier.ready();
        let end = loop {
            tokio::select! {
                asked = &mut asked_to_end => break asked?,
                _ = reload.recv() => {
                    notifier.reloading();
                    take_over(global, &config, &daemon);
                    notifier.ready();
                }
                _ = pulse.tick() => match daemon.vitals.complaint() {
                    None => notifier.alive(),
                    Some(complaint) => {
                        tracing::error!(code = "not_alive", "the service manager's watchdog is not fed: {complaint}");
                        notifier.complain(&complaint);
                    }
                },
            }
        };
        notifier.stopping();
        tracing::info!("stopping");
        daemon.stop().await;
        Ok(Exit::by(end))
    })
}

/// Reads the configuration again, and takes over what can be. One that is wrong changes nothing.
fn take_over(global: &Global, started_with: &Config, daemon: &Daemon) {
    match global.load_config(NEEDS) {
        Ok(config) => {
            daemon.reload(&config);
            tracing::info!("reloaded: webhook.authorization and the tokens of [admin] are those of the configuration");
            let others = started_with.restart_needed_for(&config);
            if !others.is_empty() {
                let sections = others.join(", ");
                tracing::warn!(code = "restart_needed", sections, "what changed in these sections wants a restart");
            }
        }
        Err(errors) => {
            tracing::error!(code = "reload_refused", "the configuration is as it was before: {errors}");
        }
    }
}
