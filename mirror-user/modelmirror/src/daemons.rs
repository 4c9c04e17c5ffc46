//! The commands that run until they are told to stop.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::signals::Signals;
use mirror_agent::agent::{Agent, Doors};
use mirror_node::daemon::{self, Options};

/// The daemon on the inference node. Two threads: its loop, and one for all tasks, which wait for most of
/// their time.
pub(super) fn run(options: Options) -> anyhow::Result<ExitCode> {
    let node = mirror_node::config::read_node(&options.config)?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(1)
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
    let config = mirror_agent::config::read_shadow(file)?;
    // `memory` is a promise about the process, not only about what is in use.
    mirror_wire::heap::keep_small();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Signals {
            shutdown,
            mut reload,
        } = listen()?;
        let mut agent = Agent::open(config)?;
        loop {
            let (doors, mut next) = (agent.doors(), None);
            let stop = async {
                tokio::select! {
                    () = shutdown.clone().asked() => {}
                    agent = successor(file, &mut reload, &doors) => next = Some(agent),
                }
            };
            agent.run(stop).await?;
            agent = match next {
                Some(next) => next,
                None => return Ok(ExitCode::SUCCESS),
            };
        }
    })
}

/// Waits until the file says something new that can run: an agent that has all it needs.
async fn successor(file: &Path, reload: &mut mpsc::Receiver<()>, doors: &Doors) -> Agent {
    loop {
        if reload.recv().await.is_none() {
            // Nobody can ask any more.
            std::future::pending::<()>().await;
        }
        let config = match mirror_agent::config::read_shadow(file) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!("reload rejected; keeping current config: {error}");
                continue;
            }
        };
        match Agent::open_after(config, doors) {
            Ok(agent) => return agent,
            Err(error) => {
                tracing::error!(
                    "reload rejected; keeping current config, since the new one cannot run: {error:#}"
                );
            }
        }
    }
}

fn listen() -> anyhow::Result<Signals> {
    Signals::listen().context("cannot listen to signals")
}
