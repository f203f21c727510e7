//! What a person can order, and about which links.

use std::collections::BTreeSet;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::features::frozen;
use crate::features::runs as features;
use crate::link_id::LinkId;
use crate::links::{self, freshness};
use crate::resources::Resource;
use crate::store::{self, Tx, args};
use crate::subject::Subject;

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// To fetch these resources of these links.
    Refresh {
        /// Which links.
        links: Links,
        /// Which resources; none are all.
        resources: Vec<&'static Resource>,
    },
    /// To let Belvo read the institution again, one call on the bill for each link, and to fetch what comes of it.
    Recollect {
        /// Which links.
        links: Links,
        /// Which resources; none are all.
        resources: Vec<&'static Resource>,
    },
    /// To delete this link at Belvo; what is kept here stays.
    Delete(LinkId),
    /// To ask for nothing of this link any more, as if an operator had paused it; what is kept here stays, and so does
    /// the link at Belvo.
    Untrack(LinkId),
    /// To erase one link or person, everywhere. The run is named by the erasure's id.
    Erase(Erasure),
    /// To publish what changed.
    Publish,
    /// To publish everything anew.
    Rebuild,
    /// To compute features as of a date, and publish them.
    Features(features::Wanted),
    /// To keep the row of features that a decision used, as it is. The run is named by the decision.
    Freeze(frozen::Decision),
    /// To compare the tracked links with Belvo's list.
    SyncLinks,
    /// To run this job now.
    Job(String),
    /// To read webhooks again.
    Replay(Replay),
}

/// Whom to erase, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erasure {
    /// Whom.
    pub subject: Subject,
    /// Why, for the receipt.
    pub reason: String,
    /// Whether Belvo deletes the links too.
    pub is_remote: bool,
}

/// Which links to refresh. As JSON `{"link_id": …}`, `{"link_ids": […]}`, `{"external_id": …}`,
/// `{"external_ids": […]}`, `{"all": true}` or `{"older_than_seconds": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "WhichLinks")]
pub enum Links {
    /// This one; it is tracked from now on, unless Belvo says that it does not know it.
    LinkId(String),
    /// These, each as the one above.
    LinkIds(Vec<String>),
    /// Those of this external id.
    ExternalId(String),
    /// Those of these external ids.
    ExternalIds(Vec<String>),
    /// Every tracked one.
    All(bool),
    /// Every tracked one that was not fetched for so long.
    OlderThanSeconds(u64),
}

impl Links {
    /// The ids of the links, where they are named one by one.
    pub fn ids(&self) -> Option<&[String]> {
        match self {
            Self::LinkId(id) => Some(std::slice::from_ref(id)),
            Self::LinkIds(ids) => Some(ids),
            _ => None,
        }
    }

    /// The tracked ones that are meant, for each of `resources`. Who names none in particular does not mean those that
    /// an operator paused, nor those that Belvo does not have any more.
    ///
    /// # Errors
    /// [`store::Error::Database`].
    pub fn tracked(
        &self,
        tx: &Tx<'_>,
        resources: &[&'static Resource],
        now: Timestamp,
    ) -> Result<Vec<(LinkId, &'static Resource)>, store::Error> {
        let mut wanted = Vec::new();
        for &resource in resources {
            let found = match self {
                Self::LinkId(_) | Self::LinkIds(_) | Self::All(false) => Vec::new(),
                Self::All(true) => {
                    let silencing = links::silencing();
                    let sql =
                        format!("SELECT link_id FROM links WHERE coalesce(paused_reason, '') NOT IN ({silencing})");
                    tx.all(&sql, args![], |row| row.link_id(0))?
                }
                Self::ExternalId(external_id) => links::of_external_id(tx, external_id)?,
                Self::ExternalIds(external_ids) => {
                    let mut found = BTreeSet::new();
                    for external_id in external_ids {
                        found.extend(links::of_external_id(tx, external_id)?);
                    }
                    found.into_iter().collect()
                }
                Self::OlderThanSeconds(age) => {
                    let sql = format!(
                        "SELECT l.link_id FROM links l LEFT JOIN refreshes f ON f.link_id = l.link_id AND f.resource = $1 \
                         WHERE {} AND coalesce(l.paused_reason, '') NOT IN ({})",
                        freshness::is_late("$2"),
                        links::silencing()
                    );
                    tx.all(&sql, args![resource.name, now - Duration::from_secs(*age)], |row| row.link_id(0))?
                }
            };
            wanted.extend(found.into_iter().map(|link_id| (link_id, resource)));
        }
        Ok(wanted)
    }

    /// How many of the users that are named have no tracked link, and how many are named.
    pub(super) fn unlinked(&self, tx: &Tx<'_>) -> Result<(usize, usize), store::Error> {
        let Self::ExternalIds(external_ids) = self else { return Ok((0, 0)) };
        let named: BTreeSet<&String> = external_ids.iter().collect();
        let mut unlinked = 0;
        for external_id in &named {
            unlinked += usize::from(links::of_external_id(tx, external_id)?.is_empty());
        }
        Ok((unlinked, named.len()))
    }

    /// Whether it is no mistake when no link fits: there is nothing to do then, and that is good.
    pub(super) fn may_be_none(&self) -> bool {
        matches!(self, Self::All(true) | Self::OlderThanSeconds(_))
    }
}

/// Which webhooks to read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// The one with this number.
    One(i64),
    /// All in the quarantine.
    Quarantined,
}
