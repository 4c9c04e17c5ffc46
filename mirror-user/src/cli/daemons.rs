//! The commands that run until they are told to stop.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;

use super::signals::Signals;
use crate::config;
use crate::daemon::{self, Options};

/// The daemon on the inference node. Two threads: its loop, and whoever reads the metrics.
pub(super) fn run(options: Options) -> anyhow::Result<ExitCode> {
    let node = config::read_node(&options.config)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let Signals { shutdown, reload } = listen()?;
        daemon::run(node, options, shutdown.asked(), reload).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The agent on the shadow host.
pub(super) fn shadow(file: &Path) -> anyhow::Result<ExitCode> {
    let _shadow = config::read_shadow(file)?;
    anyhow::bail!("not built yet")
}

fn listen() -> anyhow::Result<Signals> {
    Signals::listen().context("cannot listen to signals")
}
