//! The commands that run until they are told to stop.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::signals::Signals;
use crate::config;
use crate::daemon::{self, Options};
use crate::shadow::agent::Agent;

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

/// The agent on the shadow host. One thread besides the one that captures: to hand requests from
/// thread to thread costs more than to replay them.
pub(super) fn shadow(file: &Path) -> anyhow::Result<ExitCode> {
    let mut config = config::read_shadow(file)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Signals {
            shutdown,
            mut reload,
        } = listen()?;
        let mut agent = Agent::open(config.clone()).await?;
        loop {
            let mut changed = None;
            let stop = async {
                tokio::select! {
                    () = shutdown.clone().asked() => {}
                    next = reread(file, &mut reload) => changed = Some(next),
                }
            };
            agent.run(stop).await?;
            let Some(next) = changed else {
                return Ok(ExitCode::SUCCESS);
            };
            agent = match Agent::open(next.clone()).await {
                Ok(agent) => {
                    config = next;
                    agent
                }
                Err(error) => {
                    tracing::error!("the new config cannot run, the old one goes on: {error:#}");
                    Agent::open(config.clone()).await?
                }
            };
        }
    })
}

/// Waits until the file says something new that can be used.
async fn reread(file: &Path, reload: &mut mpsc::Receiver<()>) -> config::Shadow {
    loop {
        if reload.recv().await.is_none() {
            // Nobody can ask any more.
            std::future::pending::<()>().await;
        }
        match config::read_shadow(file) {
            Ok(config) => return config,
            Err(error) => {
                tracing::error!("the new config is refused, the old one goes on: {error}")
            }
        }
    }
}

fn listen() -> anyhow::Result<Signals> {
    Signals::listen().context("cannot listen to signals")
}
