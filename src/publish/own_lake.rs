//! What a state knows of the lake that it publishes: whose it is, how far it has come, what it took out.
//!
//! *Takes* rows of `meta`, and what is in a lake. *Gives* whether the one may follow the other. *Promises* that no
//! state replaces what it did not publish, that nothing is written in the place of a lake that is not mounted, and that
//! a snapshot which may show whom an erasure removed is told from those after it. *Not here*: how a snapshot is made.

use std::path::Path;

use super::{BuiltFrom, Error, Lake, Manifest};
use crate::store::{self, Tx};

impl Manifest {
    /// Whether what the state of `own` has may follow this snapshot.
    ///
    /// # Errors
    /// [`Error::OtherState`], unless this one has no row that could be lost; [`Error::OlderState`].
    pub fn agrees_with(&self, own: &OwnLake) -> Result<(), Error> {
        if self.built_from.state_id != own.built_from.state_id {
            let is_empty = self.tables.iter().all(|table| table.rows == 0);
            return if is_empty { Ok(()) } else { Err(Error::OtherState) };
        }
        let (snapshot, change) = (self.snapshot, self.built_from.change);
        // An older state that goes on comes past the change of its lake, but not past a snapshot that it never
        // published.
        if change > own.built_from.change || own.last_snapshot.is_some_and(|last| snapshot > last) {
            return Err(Error::OlderState { snapshot, change });
        }
        Ok(())
    }
}

/// What a state knows of its own lake: what it is itself, how far it has come, and what it published last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnLake {
    /// What it is, and its last change.
    pub built_from: BuiltFrom,
    /// The last snapshot that it made visible in this lake, or was about to; 0 when it never published, `None` when it
    /// published elsewhere since.
    last_snapshot: Option<u32>,
    /// The device that the lake was on then.
    device: Option<u64>,
}

impl OwnLake {
    /// The row of `meta` with the number of a snapshot, and the device and the folder of its lake.
    const LAST_SNAPSHOT: &str = "last_snapshot";

    /// What the state holds, as far as it concerns `lake`.
    ///
    /// # Errors
    /// [`store::Error::Database`], or [`store::Error::Unreadable`].
    pub fn of(tx: &Tx<'_>, lake: &Lake) -> Result<Self, store::Error> {
        let noted = tx.meta(Self::LAST_SNAPSHOT)?;
        let noted: Option<Vec<&str>> = noted.as_deref().map(|noted| noted.splitn(3, ' ').collect());
        let (last_snapshot, device) = match noted.as_deref() {
            None => (Some(0), None),
            Some(&[number, device, place]) if Path::new(place) == lake.path() => {
                let number = number.parse().map_err(|_| store::Error::Unreadable("the last snapshot"))?;
                (Some(number), device.parse().ok())
            }
            Some(_) => (None, None),
        };
        Ok(Self { built_from: BuiltFrom::of(tx)?, last_snapshot, device })
    }

    /// Notes that a snapshot of `lake` becomes visible. It is no change of what is published.
    pub(super) fn note(tx: &Tx<'_>, lake: &Lake, snapshot: u32) -> Result<(), store::Error> {
        let device = lake.device().unwrap_or_default();
        tx.set_meta(Self::LAST_SNAPSHOT, &format!("{snapshot} {device} {}", lake.path().display()))
    }

    /// Whether this may take the place of what is in `lake`, of which `last` was published last.
    ///
    /// # Errors
    /// [`Error::OtherState`], [`Error::OlderState`], [`Error::Bare`].
    pub fn may_replace(&self, lake: &Lake, last: Option<&Manifest>) -> Result<(), Error> {
        self.is_in(lake)?;
        last.map_or(Ok(()), |last| last.agrees_with(self))
    }

    /// Whether what was published into `lake` is still there in some form.
    ///
    /// # Errors
    /// [`Error::Bare`], also when somebody removed all of it.
    pub fn has_published(&self, lake: &Lake) -> Result<(), Error> {
        match self.last_snapshot {
            Some(snapshot @ 1..) if lake.all()?.is_empty() => {
                Err(Error::Bare { path: lake.path().to_owned(), snapshot })
            }
            _ => Ok(()),
        }
    }

    /// Whether what was published into `lake` may be in it. If its folder is there but empty, its volume is not
    /// mounted; so it is when the folder is missing and would be made on another device. On the same device, somebody
    /// removed it.
    ///
    /// # Errors
    /// [`Error::Bare`].
    pub fn is_in(&self, lake: &Lake) -> Result<(), Error> {
        match self.last_snapshot {
            Some(snapshot @ 1..) if lake.is_bare() && (lake.has_folder() || lake.device() != self.device) => {
                Err(Error::Bare { path: lake.path().to_owned(), snapshot })
            }
            _ => Ok(()),
        }
    }
}

/// What takes rows out of the lake that are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// An erasure removed a link with all its rows. No file is taken over from a snapshot from before that, which may
    /// show the link, even if somebody puts such a snapshot in the place of a newer one.
    Removal,
    /// Retention removed rows. A DuckDB file that is taken over would still hold them, marked as deleted, and older
    /// snapshots show them: so the next publish makes a new DuckDB file and drops those snapshots. Parquet files in
    /// which every row stays are still taken over.
    Expiry,
}

impl Departure {
    /// The row of `meta` with the change in which it came last.
    fn row(self) -> &'static str {
        match self {
            Self::Removal => "last_removal",
            Self::Expiry => "last_expiry",
        }
    }

    /// Notes that it comes with this change, which is news for the publisher.
    ///
    /// # Errors
    /// [`store::Error::Database`], or [`store::Error::Unreadable`].
    pub fn note(self, tx: &Tx<'_>) -> Result<(), store::Error> {
        tx.set_meta(self.row(), &tx.change()?.to_string())
    }

    /// The change in which it came last; 0 when it never did.
    ///
    /// # Errors
    /// [`store::Error::Database`], or [`store::Error::Unreadable`].
    pub(super) fn last(self, tx: &Tx<'_>) -> Result<i64, store::Error> {
        let noted = tx.meta(self.row())?;
        noted.map_or(Ok(0), |noted| noted.parse().map_err(|_| store::Error::Unreadable("a change")))
    }
}
