//! What the commands share that do a daemon's work: a runtime and signals.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};

use super::Exit;

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

/// Waits for the first signal to end, one that comes from the call on; a second one ends the process at once.
///
/// # Errors
/// When signals cannot be listened to.
pub fn asked_to_end() -> impl Future<Output = anyhow::Result<Signal>> {
    let listening =
        signal(SignalKind::interrupt()).and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)));
    async {
        let (mut interrupt, mut terminate) = listening?;
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
}

/// Who asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A person at the keyboard.
    Interrupt,
    /// A service manager.
    Terminate,
}
