//! How a command ended, for the shell.

use std::process::ExitCode;

use super::work::Signal;
use crate::belvo::{Code, Failure, Trouble};
use crate::config::ConfigErrors;
use crate::operations::Refused;
use crate::{
    admin, backup, database, delete, erase, links, publish, refresh, restore, store, subject, tombstones, widget,
};

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

    /// What whoever runs until it is told to ends with. A service manager asked for the end, and it is a good one; a person at
    /// the keyboard broke it off.
    pub fn by(signal: Signal) -> Self {
        match signal {
            Signal::Terminate => Self::Done,
            Signal::Interrupt => Self::Interrupted,
        }
    }

    /// What a failure with the stable code `code` ends a command with, such as the last one of a refresh.
    pub fn of_code(code: &str) -> Self {
        match code {
            "state_held" | "state_newer" => Self::State,
            "state_folder"
            | "state_read_only"
            | "state_key_missing"
            | "state_key_wrong"
            | "no_pepper"
            | "lake_not_writable"
            | "lake_missing"
            | "lake_not_readable"
            | "tombstones_not_usable"
            | "invalid_widget_config" => Self::Config,
            "invalid_request" => Self::Usage,
            "state_damaged" | "state_unreadable" | "backup_damaged" | "damaged" | "foreign_tombstones"
            | "tombstones_damaged" => Self::Damaged,
            _ => match Code::by_name(code).map(Code::trouble) {
                Some(Trouble::Keys | Trouble::Account) => Self::Credentials,
                Some(Trouble::Limit) => Self::RateLimited,
                Some(Trouble::Down) => Self::Down,
                Some(Trouble::Link) | None => Self::Failed,
            },
        }
    }
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if cause.is::<ConfigErrors>() {
        return Some(Exit::Config);
    }
    let code = cause.downcast_ref().map(store::Error::code);
    let code = code.or_else(|| cause.downcast_ref().map(|failure: &Failure| failure.code.name()));
    let code = code.or_else(|| cause.downcast_ref().map(refresh::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(links::SyncError::code));
    let code = code.or_else(|| cause.downcast_ref().map(publish::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(|failed: &publish::Unpublished| failed.code));
    let code = code.or_else(|| cause.downcast_ref().map(erase::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(subject::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(backup::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(restore::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(tombstones::FileError::code));
    let code = code.or_else(|| cause.downcast_ref().map(Refused::code));
    let code = code.or_else(|| cause.downcast_ref().map(admin::client::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(widget::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(delete::Error::code));
    let code = code.or_else(|| cause.downcast_ref().map(database::Unpublished::code));
    code.map(Exit::of_code)
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
    use crate::mistake::Mistake;

    #[test]
    fn the_code_comes_from_the_cause_and_not_from_its_context() {
        let held = store::Error::Held { path: "state.db".into(), pid: "7".into() };
        let mistake = Mistake::new("vinculo.toml", "lake.url", "is odd", "mend it");
        let exits = [
            Exit::of(&Err::<(), _>(held).context("while starting").unwrap_err()),
            Exit::of(&ConfigErrors(vec![mistake]).into()),
            Exit::of(&refresh::Error::from(Failure::own(Code::ApiAuth, "/api/owners/")).into()),
            Exit::of(&Failure::own(Code::RateLimited, "/api/links/").into()),
            Exit::of(&Failure::own(Code::Unreachable, "/api/links/").into()),
            Exit::of(&publish::Unpublished { code: "lake_not_writable", message: String::new() }.into()),
            Exit::of(&anyhow!("something else")),
        ];
        let expected =
            [Exit::State, Exit::Config, Exit::Credentials, Exit::RateLimited, Exit::Down, Exit::Config, Exit::Failed];
        assert_eq!(exits, expected);
    }

    #[test]
    fn a_backup_that_is_refused_is_told_from_one_that_cannot_be_written() {
        for code in ["backup_damaged", "foreign_tombstones", "tombstones_damaged"] {
            assert_eq!(Exit::of_code(code), Exit::Damaged, "{code}");
        }
        assert_eq!(Exit::of_code("backup_not_writable"), Exit::Failed);
    }
}
