//! Where logs go: stderr, as text or as JSON.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;

use mirror_api::plain;
use tracing_subscriber::EnvFilter;

use crate::arguments::Verbosity;
use crate::print;
use mirror_base::guard;

/// A newer kernel says more than the netlink crates know, or than was asked for, which they report
/// for every message.
const NETLINK: &str = "netlink_packet_route=error,netlink_proto=error";

/// What they write below `info` may hold addresses and headers that hooks are called with, which are secrets:
/// whatever `RUST_LOG` asks for.
const QUIET: [&str; 4] = ["reqwest", "hyper", "hyper_util", "h2"];

/// What is logged: what `RUST_LOG` asks for, else everything from the level on that `-v` and `-q` choose.
fn filter(asked: Option<&str>, verbosity: Verbosity) -> EnvFilter {
    let asked = asked.filter(|asked| !asked.trim().is_empty());
    let asked = asked.and_then(|asked| EnvFilter::try_new(asked).ok());
    let level = level(verbosity);
    let filter = asked.unwrap_or_else(|| EnvFilter::new(format!("{level},{NETLINK}")));
    let quiet = QUIET
        .iter()
        .filter_map(|target| format!("{target}=info").parse().ok());
    quiet.fold(filter, EnvFilter::add_directive)
}

const fn level(verbosity: Verbosity) -> &'static str {
    match (verbosity.quiet, verbosity.verbose) {
        (0, 0) => "info",
        (0, 1) => "debug",
        (0, _) => "trace",
        (1, _) => "warn",
        (_, _) => "error",
    }
}

/// Starts logging.
pub(super) fn start(json: bool, verbosity: Verbosity) {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(asked.as_deref(), verbosity))
        .with_writer(|| Plain(io::stderr()))
        .with_ansi(print::is_colored(&io::stderr()))
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
        print::complain(&format!("logs are already written elsewhere: {error}"));
    }
    guard::watch_for_panics();
}

/// Writes odd characters of an event out; the escape is tracing's own, which leaves none in what it is given.
struct Plain<W>(W);

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text: String = text
            .split_inclusive('\u{1b}')
            .map(plain_but_the_last)
            .collect();
        self.0.write_all(text.as_bytes()).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn plain_but_the_last(part: &str) -> String {
    match part.strip_suffix('\u{1b}') {
        Some(before) => plain::text(before).into_owned() + "\u{1b}",
        None => plain::text(part).into_owned(),
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

    /// What clients sent may be in a message, and in a field.
    #[test]
    fn an_event_cannot_move_the_cursor() {
        let written = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let inside = std::sync::Arc::clone(&written);
        let writer = move || {
            struct Into(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
            impl Write for Into {
                fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                    self.0.lock().unwrap().extend_from_slice(bytes);
                    Ok(bytes.len())
                }

                fn flush(&mut self) -> io::Result<()> {
                    Ok(())
                }
            }
            Plain(Into(inside.clone()))
        };
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(writer)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let odd = "a\u{1b}[2J\u{202e}b\u{7}";
            tracing::warn!(odd, "it is {odd}");
        });
        let written = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let is_odd = |c: char| plain::is_odd(c) && c != '\n';
        assert!(
            !written.contains(is_odd) && written.contains("it is a"),
            "{written:?}"
        );
    }

    #[test]
    fn what_goes_over_http_is_not_logged() {
        for asked in [
            None,
            Some("trace"),
            Some("hyper=trace,reqwest=debug"),
            Some("%"),
        ] {
            let filter = filter(asked, Verbosity::default()).to_string();
            let mut directives = filter.split(',');
            for target in QUIET {
                assert!(filter.contains(&format!("{target}=info")), "{filter}");
            }
            let is_loud =
                |directive: &str| directive.contains("=trace") || directive.contains("=debug");
            assert!(!directives.any(is_loud), "{filter}");
        }
        let all = filter(Some("trace"), Verbosity::default());
        assert!(all.to_string().contains("trace"));
    }

    #[test]
    fn v_and_q_choose_a_level_and_rust_log_wins() {
        let check = |verbose, quiet, asked: Option<&str>, expected: &str| {
            let filter = filter(asked, Verbosity { verbose, quiet }).to_string();
            let has = filter.split(',').any(|directive| directive == expected);
            assert!(has, "{expected} in {filter}");
        };
        check(0, 0, None, "info");
        check(1, 0, None, "debug");
        check(2, 0, None, "trace");
        check(0, 1, None, "warn");
        check(0, 2, None, "error");
        check(0, 2, Some("debug"), "debug");
        check(1, 0, Some("warn"), "warn");
        check(0, 1, Some(""), "warn");
        check(1, 0, Some("%"), "debug");
    }
}
