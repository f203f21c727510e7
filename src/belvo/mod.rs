//! Belvo as this program sees it: the HTTP client, the request budget, and errors named by what to do next.

pub mod budget;
mod client;
mod failure;
mod gate;
mod ledger;
pub mod links;
pub mod page;
#[cfg(test)]
pub(crate) mod scripted;
pub mod token;

pub use budget::{Budget, Class, Permit, Usage};
pub use client::{Answer, Client, Leave};
pub use failure::{Code, Decision, Failure, Trouble, patience};
pub use gate::{Down, Patience};
