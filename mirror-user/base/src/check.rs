//! What `check` finds, and what node and shadow host are looked at for alike.

pub mod files;
pub mod listeners;

use std::fmt;

use serde::Serialize;

/// How bad a finding is; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It will not work.
    Refuse,
    /// It works, and somebody should know.
    Warn,
    /// As it should be.
    Ok,
}

impl Level {
    const fn mark(self) -> &'static str {
        match self {
            Self::Refuse => "REFUSE",
            Self::Warn => "warn",
            Self::Ok => "ok",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub about: String,
    /// What was found.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            about: about.into(),
            what: what.into(),
            cure: None,
        }
    }

    /// It works, and somebody should know.
    pub fn warn(
        about: impl Into<String>,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Warn,
            cure: Some(cure.into()),
            ..Self::ok(about, what)
        }
    }

    /// It will not work.
    pub fn refuse(
        about: impl Into<String>,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Refuse,
            cure: Some(cure.into()),
            ..Self::ok(about, what)
        }
    }
}

/// Everything that was found, the worst first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Whether nothing refuses.
    pub ready: bool,
    /// One for each thing that was looked at.
    pub findings: Vec<Finding>,
}

impl Findings {
    /// Where warnings are not good enough either.
    #[must_use]
    pub fn strict(self) -> Self {
        Self {
            ready: self.findings.iter().all(|found| found.level == Level::Ok),
            ..self
        }
    }
}

impl From<Vec<Finding>> for Findings {
    fn from(mut findings: Vec<Finding>) -> Self {
        // Stable: within a level the order is that of the checks.
        findings.sort_by_key(|finding| finding.level);
        Self {
            ready: findings
                .iter()
                .all(|finding| finding.level != Level::Refuse),
            findings,
        }
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .findings
            .iter()
            .map(|finding| finding.about.chars().count());
        let width = width.max().unwrap_or(0);
        for Finding {
            level,
            about,
            what,
            cure,
        } in &self.findings
        {
            writeln!(f, "{:<6}  {about:<width$}  {what}", level.mark())?;
            if let Some(cure) = cure {
                writeln!(f, "{:<6}  {:<width$}  -> {cure}", "", "")?;
            }
        }
        let count = |level| self.findings.iter().filter(|f| f.level == level).count();
        let (refuse, warn) = (count(Level::Refuse), count(Level::Warn));
        let verdict = if self.ready { "ready" } else { "NOT READY" };
        writeln!(
            f,
            "\n{verdict}: {refuse} refuse, {warn} warn, {} ok",
            count(Level::Ok)
        )
    }
}

/// For tests, of this crate and others.
#[cfg(any(test, feature = "fixtures"))]
pub mod fixture {
    use super::{Finding, Level};

    /// Expects a finding to be of this level, and to say these words.
    #[track_caller]
    pub fn check(finding: &Finding, level: Level, words: &str) {
        assert!(
            finding.level == level && finding.what.contains(words),
            "{words:?} in {finding:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_aligned_and_the_worst_come_first() {
        let findings = Findings::from(vec![
            Finding::ok("kernel", "Linux 6.18.5"),
            Finding::warn("admin", "reachable from elsewhere", "bind it to 127.0.0.1"),
            Finding::refuse("interface eth7", "there is none", "correct `interfaces`"),
        ]);
        let expected = "\
REFUSE  interface eth7  there is none
                        -> correct `interfaces`
warn    admin           reachable from elsewhere
                        -> bind it to 127.0.0.1
ok      kernel          Linux 6.18.5

NOT READY: 1 refuse, 1 warn, 1 ok
";
        assert_eq!(findings.to_string(), expected);
        assert!(!findings.ready);
    }

    #[test]
    fn a_warning_is_not_good_enough_where_that_is_asked_for() {
        let warned = || Findings::from(vec![Finding::ok("a", "b"), Finding::warn("a", "b", "c")]);
        assert!(warned().ready);
        let strict = warned().strict();
        assert!(!strict.ready);
        let last = strict.to_string();
        assert!(
            last.ends_with("\nNOT READY: 0 refuse, 1 warn, 1 ok\n"),
            "{last}"
        );
        assert!(Findings::from(vec![Finding::ok("a", "b")]).strict().ready);
    }
}
