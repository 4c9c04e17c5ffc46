//! Where logs go: stderr, as text or as JSON.

use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::EnvFilter;

/// A newer kernel says more than the netlink crates know, or than was asked for, which they report
/// for every message.
const DEFAULT: &str = "info,netlink_packet_route=error,netlink_proto=error";

/// What they write below `info` may hold addresses and headers that hooks are called with, which are secrets:
/// whatever `RUST_LOG` asks for.
const QUIET: [&str; 4] = ["reqwest", "hyper", "hyper_util", "h2"];

/// What is logged: what is asked for, or everything from `info` on.
fn filter(asked: Option<&str>) -> EnvFilter {
    let asked = asked.and_then(|asked| EnvFilter::try_new(asked).ok());
    let filter = asked.unwrap_or_else(|| EnvFilter::new(DEFAULT));
    let quiet = QUIET
        .iter()
        .filter_map(|target| format!("{target}=info").parse().ok());
    quiet.fold(filter, EnvFilter::add_directive)
}

/// Starts logging. `RUST_LOG` chooses what is logged; without it, everything from `info` on.
pub(super) fn start(json: bool) {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(asked.as_deref()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_over_http_is_not_logged() {
        for asked in [
            None,
            Some("trace"),
            Some("hyper=trace,reqwest=debug"),
            Some("%"),
        ] {
            let filter = filter(asked).to_string();
            let mut directives = filter.split(',');
            for target in QUIET {
                assert!(filter.contains(&format!("{target}=info")), "{filter}");
            }
            let is_loud =
                |directive: &str| directive.contains("=trace") || directive.contains("=debug");
            assert!(!directives.any(is_loud), "{filter}");
        }
        assert!(filter(Some("trace")).to_string().contains("trace"));
    }
}
