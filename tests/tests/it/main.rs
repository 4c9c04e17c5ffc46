//! The integration tests: one binary, a module for each subject.

mod alone;
mod mirrored;
mod plain;
