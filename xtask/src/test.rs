//! `cargo xtask test`: all tests, and those of the mirror over both transports.

use std::process::Command;

use anyhow::{Result, bail};

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

/// Tells the integration tests how copies travel.
const TRANSPORT: &str = "MODELMIRROR_TRANSPORT";

/// Which tests, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run what depends on the kernel alone, on this one of Debian's in a virtual machine (10 to 20 minutes).
    #[arg(long, value_enum)]
    kernel: Option<Kernel>,
    /// Passed on to the runner, such as a part of a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the tests, here or in a virtual machine.
pub(crate) fn run(options: &Options) -> Result<()> {
    match options.kernel {
        Some(kernel) => kernels::run(kernel, &options.arguments),
        None => run_all(&options.arguments),
    }
}

/// Sets up, builds and runs every test of the workspace; those of the mirror once more.
fn run_all(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Need::Compiler, Need::Network])?;
    if std::env::var_os("CI").is_some() {
        setup::ensure(&[Need::Promtool])?;
    }
    if !process::is_root() {
        println!(
            "test: not root, so the tests of the kernel and of network namespaces will say that they skip"
        );
    }
    // The integration tests run the program itself.
    process::run(process::cargo("build").args(["--quiet", "--package", "mirror-user"]))?;
    let runner = Runner::find();
    let runs = [
        ("all tests, copies by stream", "stream", runner.all()),
        (
            "the mirror's tests once more, copies by geneve",
            "geneve",
            runner.of_both(arguments.is_empty()),
        ),
    ];
    let mut failed = Vec::new();
    for (what, transport, mut command) in runs {
        println!("test: {what}");
        let run = process::run(command.env(TRANSPORT, transport).args(arguments));
        println!(
            "test: {what}: {}",
            if run.is_ok() { "passed" } else { "FAILED" }
        );
        failed.extend(run.err().map(|error| format!("{what}: {error:#}")));
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
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
                // Tests with real servers and clients wait half of their time.
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let threads = cores + cores.div_ceil(2);
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

    /// The tests of [`BOTH_TRANSPORTS`]. Cargo's own runner cannot choose twice: what was asked for by name
    /// is run as it is.
    fn of_both(self, whole: bool) -> Command {
        let mut command = self.command();
        command.args(["--package", "tests", "--test", "it", "--no-fail-fast"]);
        match self {
            Self::Nextest => {
                let filter = format!("test(/^({})::/)", BOTH_TRANSPORTS.join("|"));
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
