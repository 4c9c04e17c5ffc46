//! Everything that is done with this repository: `cargo xtask --help`.

#![expect(
    clippy::print_stdout,
    reason = "a command for people, whose output is its result"
)]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

mod check;
mod decisions;
mod dist;
#[cfg(test)]
mod ebpf;
mod fuzz;
#[cfg(test)]
mod imports;
mod kernels;
mod licences;
mod process;
mod program;
mod setup;
mod test;
#[path = "../../mirror-user/programs/build/toolchain.rs"]
mod toolchain;

/// Builds, checks, tests, shows and measures modelmirror.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Install what building, testing and the demo need; a second run installs nothing.
    Setup,
    /// Formatting, lints, documentation, dependency licences and advisories.
    Check,
    /// All tests; those of the kernel and of network namespaces need root.
    Test(test::Options),
    /// Every fuzz target for a minute.
    Fuzz(fuzz::Options),
    /// Two versions of a small model, mirrored and compared, and rolled out, in about three minutes.
    Demo(Arguments),
    /// The program as it is given to others, in target/modelmirror, with its debug file beside it.
    Dist,
    /// Measure the cost of mirroring and steering against other ways of doing it; writes docs/benchmarks.md.
    Bench(Bench),
}

/// What to measure.
#[derive(clap::Args)]
struct Bench {
    #[command(flatten)]
    decisions: decisions::Options,
    #[command(flatten)]
    others: Arguments,
}

/// What follows the command.
#[derive(clap::Args)]
struct Arguments {
    /// Passed on to the program that does it, such as `--seconds 20` or a part of a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::run(),
        Command::Check => check::run(),
        Command::Test(options) => test::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Dist => dist::run(),
        Command::Demo(Arguments { arguments }) => program::run(&program::DEMO, &arguments),
        Command::Bench(Bench { decisions, .. }) if decisions.decisions => {
            decisions::run(&decisions)
        }
        Command::Bench(Bench { others, .. }) => program::run(&program::BENCH, &others.arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn bench(line: &str) -> Bench {
        let words = ["cargo xtask", "bench"].into_iter();
        match Command::try_parse_from(words.chain(line.split_whitespace())) {
            Ok(Command::Bench(bench)) => bench,
            Ok(_) => panic!("not a bench: {line}"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn what_only_the_bench_knows_is_passed_on() {
        for line in ["--quick --rounds 3", "--rollout", ""] {
            let Bench { decisions, others } = bench(line);
            assert!(!decisions.decisions);
            assert_eq!(others.arguments.join(" "), line);
        }
        let Bench { decisions, others } = bench("--decisions --runs 5 --world pauses");
        assert!(decisions.decisions && others.arguments.is_empty());
    }
}
