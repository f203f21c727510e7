//! `vinculo publish`: makes what changed visible to readers.

/// What `publish` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}
