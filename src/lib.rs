//! `vinculo` keeps Brazilian employment data from Belvo fresh in a lake that credit-risk analysts query.
//!
//! The groups of modules stand in the order in which data flows; `ARCHITECTURE.md` is the same map in words. Triggers
//! and the worker know the queue, which knows neither. Only [`refresh`] knows the order of the slow steps, and only
//! [`daemon`] knows everyone.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod operations;

// Before the queue: quick, never calls Belvo.
pub mod queue;
pub mod schedule;
pub mod webhook;

// After the queue: slow work.
pub mod features;
pub mod fetch;
pub mod flatten;
pub mod publish;
pub mod records;
pub mod refresh;
pub mod replay;
pub mod sinks;
pub mod worker;

// What the steps and the listeners know.
pub mod audit;
pub mod backoff;
pub mod belvo;
pub mod chronicle;
pub mod clock;
pub mod columns;
pub mod coverage;
pub mod crowd;
pub mod database;
pub mod durable;
pub mod guesses;
pub mod json;
pub mod lane;
pub mod link_id;
pub mod links;
pub mod listener;
pub mod mistake;
pub mod origin;
pub mod problems;
pub mod reference;
pub mod resources;
pub mod runs;
pub mod salt;
pub mod schema;
pub mod sensitive;
pub mod short;
pub mod store;
pub mod tombstones;
pub mod vitals;
pub mod wire;
pub mod words;

// What people ask of Belvo.
pub mod deadlines;
pub mod delete;
pub mod recollect;
pub mod widget;

// For people.
pub mod admin;
pub mod backup;
pub mod erase;
pub mod restore;
pub mod retention;
pub mod simulate;
pub mod subject;
pub mod systemd;
pub mod verify;
