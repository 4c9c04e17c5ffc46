//! The integration tests: one binary, a module for each subject.

mod alone;
mod bodies;
mod budget;
mod faults;
mod kernel;
mod mirrored;
mod plain;
mod report;
mod takeover;
