//! `cargo xtask bench --decisions`: whole rollouts, decided in the worlds that servers live in.

use anyhow::Result;

use crate::process;
use crate::setup::{self, Need};

/// The simulation is part of the library's tests: it plays what the daemon decides with.
const TEST: &str = "statistics::simulation::worlds::table_worlds";

/// What to simulate.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only this: how often rollouts are wrong in the worlds that servers live in, beside other ways to decide;
    /// only printed. Needs no root.
    #[arg(long)]
    pub(crate) decisions: bool,
    /// Rollouts in each world.
    #[arg(long, default_value_t = 2_000, requires = "decisions")]
    runs: u64,
    /// Only worlds with this in their names.
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        requires = "decisions"
    )]
    world: String,
}

/// Builds the library's tests as it would be installed, and prints a row as each world is done.
pub(crate) fn run(Options { runs, world, .. }: &Options) -> Result<()> {
    setup::ensure(&[Need::Compiler])?;
    println!("bench: building (release)");
    let build = [
        "--release",
        "--quiet",
        "--package",
        "mirror-rollout",
        "--lib",
    ];
    let test = ["--", "--exact", TEST, "--ignored", "--nocapture", "--quiet"];
    process::run(
        process::cargo("test")
            .args(build)
            .args(test)
            .env("RUNS", runs.to_string())
            .env("WORLD", world),
    )
}
