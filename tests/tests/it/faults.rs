//! Everything that goes wrong, end to end: production never notices, and every loss is counted.

mod agents;
mod busy;
pub(crate) mod disk;
pub(crate) mod frozen;
mod interfaces;
mod limits;
mod loops;
mod loss;
mod marks;
mod models;
mod restarts;
mod rings;
mod slow;
mod uplink;
