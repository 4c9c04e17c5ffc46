//! Everything that is done with this repository: `cargo xtask --help`.

fn main() {}
