//! Where results and complaints go: stdout and stderr, as text or as JSON.

use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write};

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use mirror_api::plain;
use serde::Serialize;

use crate::arguments::Output;
use crate::colors;
use crate::wrap::wrap;

/// The reader of our output went away, `modelmirror status | head`: nothing is wrong.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub(crate) struct ReaderGone;

/// Prints results to stdout, and what has to be said of them to stderr.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer(pub(crate) Output);

impl Printer {
    /// As text, or as the type in JSON.
    pub(crate) fn print(self, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        write_out(&self.show(result)?)
    }

    /// What is printed, with its colours.
    pub(crate) fn show(self, result: &(impl Serialize + Display)) -> anyhow::Result<String> {
        Ok(match self.0 {
            Output::Text => for_stdout(&plain::text(&result.to_string())),
            Output::Json => plain::json(&serde_json::to_string_pretty(result)?),
        })
    }

    /// Why it failed, or what it failed to reach.
    pub(crate) fn error(self, what: &str) {
        self.say("error", what);
    }

    /// What somebody should know all the same.
    pub(crate) fn warning(self, what: &str) {
        self.say("warning", what);
    }

    /// What goes on.
    pub(crate) fn info(self, what: &str) {
        match self.0 {
            Output::Text => complain(what),
            Output::Json => self.say("info", what),
        }
    }

    fn say(self, level: &str, what: &str) {
        match self.0 {
            Output::Text => complain(&format!("{level}: {what}")),
            Output::Json => complain_in_json(&serde_json::json!({ level: what })),
        }
    }
}

/// Text, in colour where that is wanted.
pub(crate) fn print_text(text: &str) -> anyhow::Result<()> {
    write_out(&for_stdout(text))
}

/// On a terminal sentences are wrapped; elsewhere each stays in its line.
fn for_stdout(text: &str) -> String {
    let stdout = io::stdout();
    let width = match stdout.is_terminal() {
        true => terminal_size::terminal_size_of(&stdout),
        false => None,
    };
    match width {
        Some((width, _)) => painted(&wrap(text, width.0.into()), &stdout),
        None => painted(text, &stdout),
    }
}

/// To stdout, with a line's end.
pub(crate) fn write_out(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let end = if text.ends_with('\n') || text.is_empty() {
        ""
    } else {
        "\n"
    };
    match write!(stdout, "{text}{end}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => Ok(written?),
    }
}

/// Text to stderr.
pub(crate) fn complain(text: &str) {
    let stderr = io::stderr();
    let text = painted(&plain::text(text), &stderr);
    // When stderr is gone too there is nobody left to tell.
    let _ = writeln!(stderr.lock(), "{text}");
}

/// One object to stderr, in a line of its own.
pub(crate) fn complain_in_json(said: &serde_json::Value) {
    let _ = writeln!(io::stderr(), "{}", plain::json(&said.to_string()));
}

/// Whether what is written there is to be in colour: as --color says, else by the stream, NO_COLOR, TERM and the like.
pub(crate) fn is_colored(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

fn painted(text: &str, stream: &impl RawStream) -> String {
    match is_colored(stream) {
        true => colors::paint(text),
        false => text.to_owned(),
    }
}
