//! The program as shipped: Belvo has these people, webhooks arrive, pending refreshes run, analysts see these tables.
//!
//! Most tests start the daemon in this process, with the clock in their hand; those about processes (signals, exit
//! codes, ports, logs) start the built binary. Belvo is the simulator, or a server that says what a fixture holds.

mod answers;
mod api;
mod bad_input;
mod binary;
mod budget;
mod coalesce;
mod commands;
mod dashboard;
mod day;
mod disk;
mod doctor;
mod economy;
mod erase;
mod examples;
mod features;
mod fixtures;
mod harness;
mod history;
mod json;
mod kill;
mod leaks;
mod limits;
mod links;
mod packaging;
mod reader;
mod roles;
mod scripted;
mod service;
mod tables;
mod truth;
mod widget;
