//! The same result again and again: redrawn on a terminal, one after the other elsewhere.

use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::arguments::Output;
use crate::print::{Printer, ReaderGone, write_out};

/// Shows what `ask` brings until somebody ends the program. What fails is shown too, and asked again: a daemon that is
/// restarted comes back.
pub(crate) fn watch<T: Serialize + Display>(
    printer: Printer,
    every: Duration,
    ask: impl Fn() -> anyhow::Result<T>,
) -> anyhow::Result<()> {
    loop {
        let shown = ask();
        if printer.0 == Output::Json {
            match shown {
                Ok(result) => {
                    write_out(&mirror_api::plain::json(&serde_json::to_string(&result)?))?
                }
                Err(error) => printer.error(&format!("{error:#}")),
            }
        } else {
            let text = match shown {
                Ok(result) => printer.show(&result)?,
                Err(error) if error.is::<ReaderGone>() => return Err(error),
                Err(error) => format!(
                    "error: {}\n",
                    mirror_api::plain::text(&format!("{error:#}"))
                ),
            };
            let time = Timestamp::now().strftime("%F %TZ");
            let text = format!(
                "{time}, every {}\n\n{text}",
                humantime::format_duration(every)
            );
            match io::stdout().is_terminal() {
                true => write_out(&frame(&text, rows()))?,
                false => write_out(&format!("{text}\n"))?,
            }
        }
        thread::sleep(every);
    }
}

/// How many lines the terminal shows.
fn rows() -> usize {
    terminal_size::terminal_size().map_or(24, |(_, rows)| rows.0.into())
}

/// The text over what was there before, each line cleared as it is written, so that nothing flickers.
fn frame(text: &str, rows: usize) -> String {
    const HOME: &str = "\x1b[H";
    const CLEAR_LINE: &str = "\x1b[K";
    const CLEAR_BELOW: &str = "\x1b[J";
    // Lines that are too long are cut rather than continued: each takes one row.
    const CUT: &str = "\x1b[?7l";
    const CONTINUE: &str = "\x1b[?7h";
    let lines: Vec<&str> = text.lines().collect();
    // The cursor stays in the last line.
    let room = rows.saturating_sub(1).max(2);
    let mut frame = format!("{CUT}{HOME}");
    let (shown, hidden) = match lines.len() > room {
        true => (room - 1, lines.len() - room + 1),
        false => (lines.len(), 0),
    };
    for line in &lines[..shown] {
        frame += &format!("{line}{CLEAR_LINE}\n");
    }
    if hidden > 0 {
        frame += &format!("... {hidden} more lines{CLEAR_LINE}\n");
    }
    frame + CLEAR_BELOW + CONTINUE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_the_terminal() {
        let plain = |text: &str, rows| anstream::adapter::strip_str(&frame(text, rows)).to_string();
        assert_eq!(plain("a\nb\n", 24), "a\nb\n");
        assert_eq!(plain("a\nb\nc\n", 4), "a\nb\nc\n");
        assert_eq!(plain("a\nb\nc\nd\n", 4), "a\nb\n... 2 more lines\n");
        assert_eq!(plain("a\nb\nc\n", 0), "a\n... 2 more lines\n");
        let one = frame("a", 24);
        assert_eq!(one, "\x1b[?7l\x1b[Ha\x1b[K\n\x1b[J\x1b[?7h");
    }
}
