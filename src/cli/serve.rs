//! `vinculo serve`: the daemon.

/// What `serve` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}
