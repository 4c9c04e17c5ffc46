//! Everything that goes wrong, end to end: production never notices, and every loss is counted.

mod loss;
mod models;
