//! `vinculo rebuild`: makes the lake anew from the record store.

use super::{Exit, Global, publish};
use crate::operations::Order;

/// What `rebuild` takes: its settings are all in the configuration.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: &Args, global: &Global) -> anyhow::Result<Exit> {
    publish::publish(Order::Rebuild, global)
}
