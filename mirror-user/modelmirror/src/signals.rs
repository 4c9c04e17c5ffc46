//! Signals: stop, and read the config again.

use std::io;
use std::process;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// What signals ask for.
#[derive(Debug)]
pub(super) struct Signals {
    /// SIGINT and SIGTERM: the first asks to stop, the second does not ask.
    pub(super) shutdown: Shutdown,
    /// A message for each SIGHUP; those that come while one waits are the same as that one.
    pub(super) reload: mpsc::Receiver<()>,
}

/// Whether we were asked to stop.
#[derive(Clone, Debug)]
pub(super) struct Shutdown(watch::Receiver<bool>);

impl Shutdown {
    /// Ends when we were.
    pub(super) async fn asked(mut self) {
        // Without its sender nobody could ask any more: then stop, too.
        let _ = self.0.wait_for(|&stop| stop).await;
    }
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(super) fn listen() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let (stop, asked) = watch::channel(false);
        let (reload, reloads) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                    _ = hangup.recv() => {
                        tracing::info!("SIGHUP: reloading the config");
                        let _ = reload.try_send(());
                        continue;
                    }
                };
                if stop.send_replace(true) {
                    tracing::warn!("{name} again: stopping at once");
                    process::exit(1);
                }
                tracing::info!("{name}: stopping");
            }
        });
        Ok(Self {
            shutdown: Shutdown(asked),
            reload: reloads,
        })
    }
}
