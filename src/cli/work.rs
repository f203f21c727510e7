//! What the commands share that do a daemon's work: a runtime, signals, and the end of a refresh.

use std::future::Future;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::Exit;
use crate::clock::Clock;
use crate::config::Config;
use crate::publish::{self, Manifest, Publisher, Scope};
use crate::sensitive::Pepper;
use crate::store::Store;

/// Runs `work` on a runtime of its own.
///
/// # Errors
/// Those of `work`, or when threads cannot be started.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("vinculo").build()?;
    let result = runtime.block_on(work);
    // Nothing that still runs is waited for: what must end was ended by `work`.
    runtime.shutdown_background();
    result
}

/// Waits for the first signal to end. A second one ends the process at once.
///
/// # Errors
/// When signals cannot be listened to.
pub async fn asked_to_end() -> anyhow::Result<Signal> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let first = tokio::select! {
        _ = interrupt.recv() => Signal::Interrupt,
        _ = terminate.recv() => Signal::Terminate,
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(i32::from(Exit::Interrupted as u8));
    });
    Ok(first)
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A person at the keyboard.
    Interrupt,
    /// A service manager.
    Terminate,
}

/// The state of `config`, which no daemon holds, and the door to its readers.
///
/// # Errors
/// When a daemon holds the state, or the lake cannot be used.
pub fn open(config: &Config) -> anyhow::Result<(Store, Arc<Publisher>)> {
    config.check_folders()?;
    let store = Store::configured(&config.state)?;
    let pepper = config.pii.pepper.clone().map(Pepper::new);
    let (lake, confirm_after) = (config.lake.clone(), config.belvo.confirm_after);
    let publisher = Publisher::open(store.readers(), lake, confirm_after, pepper, Clock::system())?;
    Ok((store, Arc::new(publisher)))
}

/// Publishes the state of `config` from here, without a daemon; `None` when there was nothing new.
///
/// # Errors
/// When a daemon holds the state, or nothing can be published.
pub fn publish(config: &Config, scope: Scope) -> anyhow::Result<Option<Manifest>> {
    let (_store, publisher) = open(config)?;
    block_on(async { Ok(publish::publish_in_background(&publisher, scope).await?) })
}
