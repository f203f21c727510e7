//! How a command ended, for the shell.

use std::process::ExitCode;

use crate::config::ConfigErrors;
use crate::store;

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Some links failed.
    Partly = 3,
    /// The configuration is wrong, or a folder of it cannot be used.
    Config = 4,
    /// Belvo refused the credentials.
    Credentials = 5,
    /// Belvo or the institution is down.
    Down = 6,
    /// Belvo's limit was reached.
    RateLimited = 7,
    /// The state is held by another instance, or newer than this program.
    State = 8,
    /// A data check failed.
    Damaged = 9,
    /// A signal ended it.
    Interrupted = 130,
}

impl Exit {
    /// What `error` ends the program with: decided by the first cause that has a code of its own.
    pub fn of(error: &anyhow::Error) -> Self {
        error.chain().find_map(of_cause).unwrap_or(Self::Failed)
    }
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<ConfigErrors>() {
        return Some(Exit::Config);
    }
    match cause.downcast_ref::<store::Error>()? {
        store::Error::Held { .. } | store::Error::Newer { .. } => Some(Exit::State),
        store::Error::Folder { .. } => Some(Exit::Config),
        _ => None,
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;
    use crate::config::Problem;

    #[test]
    fn the_code_comes_from_the_cause_and_not_from_its_context() {
        let held = store::Error::Held { path: "state.db".into(), pid: "7".into() };
        let problem = Problem::new("vinculo.toml", "lake.url", "is odd", "mend it");
        let exits = [
            Exit::of(&Err::<(), _>(held).context("while starting").unwrap_err()),
            Exit::of(&ConfigErrors(vec![problem]).into()),
            Exit::of(&anyhow!("something else")),
        ];
        assert_eq!(exits, [Exit::State, Exit::Config, Exit::Failed]);
    }
}
