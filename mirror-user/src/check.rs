//! Preflight: whether a host is ready for its config, and the cure where it is not.
//!
//! Facts are read at the edge (netlink, /proc, the disk); what they mean is decided by small
//! functions from facts to [`Finding`]s.

mod agent;
mod api;
mod canary;
mod files;
mod interfaces;
mod kernel;
mod listeners;
mod memory;
mod overhear;
mod ring;
mod services;
mod shadow;
mod tls;

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::config::{Node, Shadow};
use crate::daemon::Against;
use crate::netlink::Netlink;

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
    fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            about: about.into(),
            what: what.into(),
            cure: None,
        }
    }

    fn warn(about: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            cure: Some(cure.into()),
            ..Self::ok(about, what)
        }
    }

    fn refuse(about: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
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

/// What is looked at only when asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Dial each service once, to see whether it speaks TLS, rather than look at what passes.
    pub probe_tls: bool,
}

/// Looks whether an inference node is ready.
///
/// # Errors
/// When the kernel cannot be asked through netlink.
pub async fn node(node: &Node, options: Options) -> anyhow::Result<Findings> {
    let netlink = Netlink::open()?;
    let host = netlink.addresses().await?;
    let mut tapped = BTreeSet::new();
    for name in &node.interfaces {
        tapped.extend(netlink.link(name).await?.map(|link| link.index));
    }
    let mut findings = kernel::findings(&kernel::Kernel::read(&node.pin_dir));
    findings.extend(files::node(node));
    findings.extend(listeners::admin(node.admin));
    for name in &node.interfaces {
        findings.extend(interfaces::findings(&netlink, name, node).await?);
    }
    let against = Against::of(&netlink, node).await?;
    findings.extend(interfaces::pairs(&against.pairs));
    findings.extend(services::findings(node, &host, &tapped));
    findings.extend(canary::unreached(&against.canaries));
    findings.extend(against.hidden.as_deref().map(canary::hidden));
    let receivers = against.receivers.iter();
    findings.extend(receivers.filter_map(|(name, lro)| canary::merged(name, *lro)));
    findings.extend(canary::findings(&netlink, node, &host).await?);
    let tls = async {
        if options.probe_tls {
            tls::ask(node).await
        } else {
            tls::hear(node, &host, &tapped).await
        }
    };
    // All wait for others, for about a second.
    let agents = agent::findings(&netlink, node);
    let (tls, agents, rings) = tokio::join!(tls, agents, ring::findings(node));
    findings.extend(tls);
    findings.extend(agents?);
    findings.extend(rings);
    Ok(findings.into())
}

/// Looks whether a shadow host is ready.
pub async fn shadow(shadow: &Shadow) -> Findings {
    shadow::findings(shadow).await.into()
}

#[cfg(test)]
mod fixture {
    use super::{Finding, Level};

    /// A finding is of this level, and says these words.
    #[track_caller]
    pub(super) fn check(finding: &Finding, level: Level, words: &str) {
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
}
