//! Whether a person means it.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use mirror_api::plain;

use crate::arguments::Consent;

/// Somebody said no.
#[derive(Debug, thiserror::Error)]
#[error("nothing was changed")]
pub(crate) struct Declined;

/// Asks whoever sits at the terminal; where there is none, or who was asked has said so already, it is meant.
pub(crate) fn confirm(consent: Consent, question: impl FnOnce() -> String) -> anyhow::Result<()> {
    if !asks(consent) {
        return Ok(());
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{} [y/N] ", plain::text(&question()))?;
    stderr.flush()?;
    let mut typed = String::new();
    let end = io::stdin().lock().read_line(&mut typed)? == 0;
    if end {
        writeln!(stderr)?;
    }
    match is_yes(&typed) {
        true => Ok(()),
        false => Err(Declined.into()),
    }
}

/// Whether a question would be asked: one that nobody can see is not.
pub(crate) fn asks(consent: Consent) -> bool {
    !consent.yes && io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn is_yes(typed: &str) -> bool {
    let typed = typed.trim();
    ["y", "yes"]
        .iter()
        .any(|yes| typed.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (typed, expected) in [
            ("y\n", true),
            ("Yes\n", true),
            (" y ", true),
            ("\n", false),
            ("", false),
            ("n\n", false),
            ("yesterday", false),
        ] {
            assert_eq!(is_yes(typed), expected, "{typed:?}");
        }
    }
}
