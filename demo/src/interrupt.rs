//! Control-C and SIGTERM: noticed between two steps, so that everything is taken away in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// The demo was asked to end.
#[derive(Debug, Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Whether the demo was asked to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals no longer kill the process.
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen for signals")?;
        let (mut interrupt, mut terminate, mut hang_up) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            )
        };
        let raised = Arc::clone(&flag);
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                raised.store(true, Ordering::Relaxed);
                // Later signals are received and forgotten: the end is near already.
                std::future::pending::<()>().await;
            });
        });
        Ok(Self(flag))
    }

    /// Whether it is time to end.
    pub(crate) fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails with [`Interrupted`] when it is time to end.
    pub(crate) fn check(&self) -> Result<()> {
        if self.raised() {
            bail!(Interrupted);
        }
        Ok(())
    }
}
