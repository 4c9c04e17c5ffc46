//! Live progress: one line that changes on a terminal, a line every five seconds elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::cost::Progress;
use crate::load::Mirror;
use crate::stage::Stage;

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

    /// Shows how far it is, when the last line is old enough.
    pub(crate) fn update(&mut self, progress: &Progress, stage: &Stage) {
        let every = Duration::from_millis(if self.terminal { 200 } else { 5000 });
        if self.shown.is_some_and(|shown| shown.elapsed() < every) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = self.line(progress, stage);
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

    fn line(&self, progress: &Progress, stage: &Stage) -> String {
        let mirror = match progress.mirror {
            Mirror::Off => "off",
            Mirror::On => "on ",
        };
        let seconds = self.start.elapsed().as_secs();
        let (answered, while_on) = (progress.answered, progress.while_on);
        let agent = stage.counted().map_or_else(
            |_| "the agent does not answer".to_owned(),
            |counted| {
                let agreeing = 100.0 * counted.matching as f64 / counted.compared.max(1) as f64;
                let (compared, dropped) = (counted.compared, counted.dropped);
                format!("compared {compared:>6}   agreeing {agreeing:>5.1} %   dropped {dropped}")
            },
        );
        format!(
            "{seconds:>4} s   mirror {mirror}   answered {answered:>6}   mirrored {while_on:>6}   {agent}"
        )
    }
}
