//! Live progress: one line that changes on a terminal, a line every five seconds elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::load::Mirror;
use crate::stage::{Counted, Stage};

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

    /// Shows how far it is, when the last line is old enough: `mirrored` requests were sent so far
    /// while the mirror was on.
    pub(crate) fn update(&mut self, mirror: Mirror, mirrored: u64, stage: &Stage) {
        let every = Duration::from_millis(if self.terminal { 200 } else { 5000 });
        if self.shown.is_some_and(|shown| shown.elapsed() < every) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = self.line(mirror, mirrored, stage);
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
    pub(crate) fn finish(&self) {
        if self.terminal {
            println!();
        }
    }

    fn line(&self, mirror: Mirror, mirrored: u64, stage: &Stage) -> String {
        let mirror = match mirror {
            Mirror::Off => "off",
            Mirror::On => "on ",
        };
        let seconds = self.start.elapsed().as_secs();
        // At most 79 characters: a line that wraps cannot be taken back.
        let line = format!("{seconds:>4} s  mirror {mirror}  mirrored {mirrored:>6}");
        let Ok(Counted {
            compared,
            matching,
            dropped,
        }) = stage.counted()
        else {
            return line + "  the agent does not answer";
        };
        let agreeing = 100.0 * matching as f64 / compared.max(1) as f64;
        format!("{line}  compared {compared:>6}  agreeing {agreeing:>5.1} %  drops {dropped}")
    }
}
