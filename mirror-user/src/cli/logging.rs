//! Where logs go: stderr, as text or as JSON.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::EnvFilter;

/// A newer kernel says more than the netlink crates know, or than was asked for, which they report
/// for every message.
const DEFAULT: &str = "info,netlink_packet_route=error,netlink_proto=error";

/// Starts logging. `RUST_LOG` chooses what is logged; without it, everything from `info` on.
pub(super) fn start(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let started = match (json, to_journal()) {
        (true, _) => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
        (false, true) => builder.without_time().try_init(),
        (false, false) => builder.try_init(),
    };
    if let Err(error) = started {
        super::complain(&format!("logs are already written elsewhere: {error}"));
    }
}

/// Whether stderr is the journal, which has its own timestamps: systemd names the stream's device
/// and inode in `JOURNAL_STREAM` (systemd.exec(5)), and a child may have redirected it since.
fn to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    std::fs::metadata("/dev/stderr")
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}
