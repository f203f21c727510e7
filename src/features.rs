//! What a credit decision reads: one explained row for each link and date.
//!
//! *Takes* history tables and reference tables. *Gives* `credit_features` for each recorded run, and the macros, views
//! and dictionary that every `vinculo.duckdb` holds. *Promises* that the formulas stand once, in `src/features/sql`:
//! the macro, the published table and the explanation are made of the same files. *Not here*: a number that is not in
//! the SQL.

pub mod catalog;
pub mod compute;
pub mod dictionary;
pub mod explain;
pub mod frozen;
pub mod published;
pub mod runs;

/// The table of features.
pub const TABLE: &str = "credit_features";
