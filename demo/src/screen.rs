//! Live progress: one line that changes on a terminal, a line every five seconds elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where progress is shown.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    start: Instant,
    shown: Option<Instant>,
}

impl Screen {
    /// Progress on standard output.
    pub(crate) fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            start: Instant::now(),
            shown: None,
        }
    }

    /// Shows how far it is, when the last line is old enough. At most 70 characters: a line that
    /// wraps cannot be taken back.
    pub(crate) fn update(&mut self, progress: impl FnOnce() -> String) {
        let every = Duration::from_millis(if self.terminal { 200 } else { 5000 });
        if self.shown.is_some_and(|shown| shown.elapsed() < every) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = format!("{:>4} s  {}", self.start.elapsed().as_secs(), progress());
        if self.terminal {
            // Back to the line's beginning, and away with what was there.
            print!("\r\x1b[K{line}");
            // A terminal that is gone is no reason to end.
            let _ = io::stdout().flush();
        } else {
            println!("{line}");
        }
    }

    /// Ends the line.
    pub(crate) fn finish(&mut self) {
        self.shown = Some(Instant::now());
        if self.terminal {
            println!();
        }
    }
}
