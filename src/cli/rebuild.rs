//! `vinculo rebuild`: makes the lake anew from the record store.

/// What `rebuild` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}
