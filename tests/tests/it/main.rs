//! The integration tests: one binary, a module for each subject.

mod alone;
mod bodies;
mod faults;
mod kernel;
mod mirrored;
mod plain;
