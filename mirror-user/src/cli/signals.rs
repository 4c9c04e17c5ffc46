//! Signals as futures: stop, and read the config again.

use std::io;
use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// SIGINT and SIGTERM: the first asks to stop, the second does not ask.
#[derive(Debug)]
pub struct Signals {
    stop: watch::Receiver<bool>,
    reload: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (asked, stop) = watch::channel(false);
        tokio::spawn(async move {
            for times in 0.. {
                let name = tokio::select! {
                    _ = interrupt.recv() => "SIGINT",
                    _ = terminate.recv() => "SIGTERM",
                };
                if times > 0 {
                    tracing::warn!("{name} again: stopping at once");
                    process::exit(1);
                }
                tracing::info!("{name}: stopping");
                asked.send_replace(true);
            }
        });
        Ok(Self {
            stop,
            reload: signal(SignalKind::hangup())?,
        })
    }

    /// Ends with the first SIGINT or SIGTERM.
    pub fn shutdown(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stop = self.stop.clone();
        async move {
            // Without its sender nobody could ask any more: then stop, too.
            let _ = stop.wait_for(|&stop| stop).await;
        }
    }

    /// Ends with the next SIGHUP.
    pub async fn reload(&mut self) {
        if self.reload.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
