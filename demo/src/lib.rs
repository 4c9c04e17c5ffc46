//! What `cargo xtask demo` shows modelmirror at work on: a trained classifier of handwritten
//! digits in two versions, served over the Open Inference Protocol.

pub mod inference;
pub mod model;
pub mod samples;
