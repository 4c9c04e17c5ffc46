//! The integration tests: one binary, a module for each subject.

#![expect(
    clippy::unwrap_used,
    reason = "the functions that tests share are tests too"
)]

mod alone;
mod bodies;
mod budget;
mod connections;
mod docs;
mod evidence;
mod faults;
mod forged;
mod heartbeat;
mod kernel;
mod labels;
mod look;
mod mirrored;
mod paths;
mod plain;
mod protocol;
mod reload;
mod report;
mod requests_only;
mod rollout;
mod selection;
mod servers;
mod steering;
mod takeover;
mod topologies;
mod traffic;
mod translate;
mod watching;
