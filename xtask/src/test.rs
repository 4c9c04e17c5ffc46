//! `cargo xtask test`: all tests, and those of the mirror over both transports; or the quick ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernels::{self, Kernel};
use crate::process;
use crate::setup::{self, Need};

/// Modules of the integration tests that are about how copies travel.
const BOTH_TRANSPORTS: [&str; 14] = [
    "alone",
    "bodies",
    "budget",
    "connections",
    "faults",
    "forged",
    "mirrored",
    "paths",
    "plain",
    "protocol",
    "reload",
    "requests_only",
    "takeover",
    "traffic",
];

/// Modules among those that are about one transport, which they choose themselves, or about none.
const ONE_TRANSPORT: [&str; 3] = ["faults::frozen", "faults::rings", "faults::uplink"];

/// In their names: unit tests that take longer than all others together.
const SLOW: &str = "simulation";

/// Tells tests where to write down that they cannot run here.
const SKIPPED: &str = "MODELMIRROR_SKIPPED";

/// Tells the integration tests how copies travel.
const TRANSPORT: &str = "MODELMIRROR_TRANSPORT";

/// Which tests, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run what depends on the kernel alone, on this one of Debian's in a virtual machine (10 to 20 minutes).
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Run what needs no root, no namespaces and not a minute, once it is built: unit tests, without simulations.
    #[arg(long, conflicts_with = "kernel")]
    quick: bool,
    /// Passed on to the runner, such as a part of a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the tests, here or in a virtual machine.
pub(crate) fn run(options: &Options) -> Result<()> {
    match options.kernel {
        Some(kernel) => kernels::run(kernel, &options.arguments),
        None if options.quick => run_quick(&options.arguments),
        None => run_all(&options.arguments),
    }
}

/// Unit tests alone.
fn run_quick(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Need::Compiler])?;
    let skipped = Skipped::none_yet()?;
    let run = process::run(skipped.told(&mut Runner::find().quick()).args(arguments));
    skipped.report()?;
    run
}

/// Sets up, builds and runs every test of the workspace; those of the mirror once more.
fn run_all(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Need::Compiler, Need::Network])?;
    if std::env::var_os("CI").is_some() {
        setup::ensure(&[Need::Promtool])?;
    }
    // The integration tests run the programs themselves. With all that the runner builds besides, so that no
    // dependency is built twice, with other features.
    process::run(process::cargo("build").args(["--quiet", "--workspace", "--bins", "--tests"]))?;
    let runner = Runner::find();
    let runs = [
        ("all tests, copies by stream", "stream", runner.all()),
        (
            "the mirror's tests once more, copies by geneve",
            "geneve",
            runner.of_both(arguments.is_empty()),
        ),
    ];
    let skipped = Skipped::none_yet()?;
    let mut failed = Vec::new();
    for (what, transport, mut command) in runs {
        println!("test: {what}");
        let run = process::run(
            skipped
                .told(&mut command)
                .env(TRANSPORT, transport)
                .args(arguments),
        );
        println!(
            "test: {what}: {}",
            if run.is_ok() { "passed" } else { "FAILED" }
        );
        failed.extend(run.err().map(|error| format!("{what}: {error:#}")));
    }
    skipped.report()?;
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

/// The file in which tests say that they cannot run here: a runner does not show what a test writes that passes.
struct Skipped(&'static str);

impl Skipped {
    fn none_yet() -> Result<Self> {
        let file = Self("target/skipped.txt");
        fs::write(file.path(), "").context("cannot write to `target`")?;
        Ok(file)
    }

    fn path(&self) -> impl AsRef<Path> + AsRef<std::ffi::OsStr> + use<> {
        process::root().join(self.0)
    }

    fn told<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(SKIPPED, self.path())
    }

    /// Says how many there were, and why.
    fn report(&self) -> Result<()> {
        let lines = fs::read_to_string(self.path())?;
        let mut reasons: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (test, why) in lines.lines().filter_map(|line| line.split_once('\t')) {
            reasons.entry(why).or_default().insert(test);
        }
        if reasons.is_empty() {
            println!("test: none was skipped");
        }
        for (why, tests) in reasons {
            let (count, file) = (tests.len(), self.0);
            println!("test: {count} SKIPPED, counted above as passed: {why} (names in {file})");
        }
        Ok(())
    }
}

/// By what tests are run.
#[derive(Clone, Copy)]
enum Runner {
    Nextest,
    Cargo,
}

impl Runner {
    fn find() -> Self {
        match process::program("cargo-nextest") {
            Some(_) => Self::Nextest,
            None => Self::Cargo,
        }
    }

    fn command(self) -> Command {
        match self {
            Self::Nextest => {
                let mut command = process::cargo("nextest");
                // .config/nextest.toml says how many of these each test takes: most of them two.
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let threads = 3 * cores;
                command.args(["run", "--test-threads", &threads.to_string()]);
                command
            }
            Self::Cargo => process::cargo("test"),
        }
    }

    fn all(self) -> Command {
        let mut command = self.command();
        command.args(["--workspace", "--no-fail-fast"]);
        if let Self::Cargo = self {
            command.arg("--all-targets");
        }
        command
    }

    fn quick(self) -> Command {
        let mut command = self.command();
        command.args(["--workspace", "--lib", "--bins", "--no-fail-fast"]);
        match self {
            Self::Nextest => command.args(["--filterset", &format!("not test({SLOW})")]),
            Self::Cargo => command.args(["--", "--skip", SLOW]),
        };
        command
    }

    /// The tests of [`BOTH_TRANSPORTS`]. Cargo's own runner cannot choose twice: what was asked for by name
    /// is run as it is.
    fn of_both(self, whole: bool) -> Command {
        let mut command = self.command();
        command.args(["--package", "tests", "--test", "it", "--no-fail-fast"]);
        match self {
            Self::Nextest => {
                let [both, one] = [&BOTH_TRANSPORTS[..], &ONE_TRANSPORT].map(|all| all.join("|"));
                let filter = format!("test(/^({both})::/) - test(/^({one})::/)");
                command.args(["--no-tests", "pass", "--filterset", &filter]);
            }
            Self::Cargo if whole => {
                let modules = BOTH_TRANSPORTS.map(|module| format!("{module}::"));
                command.arg("--").args(modules);
            }
            Self::Cargo => {}
        }
        command
    }
}
