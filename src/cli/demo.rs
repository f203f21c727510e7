//! `vinculo demo`: the whole flow against a fake Belvo in the same process, without an account.

use std::path::PathBuf;

/// What `demo` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many people connect
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub people: u32,
    /// The same seed gives the same people
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
    /// Where state and lake go
    #[arg(long, value_name = "D", default_value = "vinculo-demo")]
    pub dir: PathBuf,
    /// Keep running after everything is published
    #[arg(long)]
    pub serve: bool,
}
