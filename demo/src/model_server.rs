//! `model-server`: the demo's model over HTTP, in the version that is asked for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use demo::inference::Server;
use demo::model::Model;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves a classifier of handwritten digits over the Open Inference Protocol.
#[derive(Parser)]
struct Options {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// A version that comes with the program: v12, v13 or v14.
    #[arg(long, default_value = "v12", conflicts_with = "weights")]
    version: String,
    /// Weights that train.py wrote, instead.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Milliseconds that each inference takes longer than necessary.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Read the digits of one tenant (`x-tenant`) upside down.
    #[arg(long, value_name = "TENANT")]
    upside_down_for: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let model = match &options.weights {
        None => Model::bundled(&options.version)
            .with_context(|| format!("no version `{}`: try v12, v13 or v14", options.version))?,
        Some(path) => {
            let json = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            Model::from_json(&json).with_context(|| path.display().to_string())?
        }
    };
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    eprintln!(
        "model-server: {} on {}",
        model.version(),
        listener.local_addr()?
    );
    let delay = Duration::from_millis(options.delay_ms);
    let server = Server {
        model: Arc::new(model),
        delay,
        upside_down_for: options.upside_down_for,
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    axum::serve(listener, server.router())
        .with_graceful_shutdown(shutdown)
        .await?;
    Ok(())
}
