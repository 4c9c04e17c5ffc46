//! Everything that goes wrong, end to end: production never notices, and every loss is counted.

mod agents;
mod disk;
mod interfaces;
mod loops;
mod loss;
mod marks;
mod models;
mod uplink;
