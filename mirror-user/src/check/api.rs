//! The agents' summaries, which a rollout decides by; the mirror does without.

use super::Finding;
use crate::agent_api::{self, Access, Error};
use crate::config::{AgentAddress, Mirror, Node, Service};
use crate::shadow::summary::Summary;
use crate::transport::tls::Refusal;

pub(super) async fn findings(node: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut known: Vec<(&Mirror, Vec<&Service>)> = Vec::new();
    for service in &node.services {
        let Some(mirror) = &service.mirror else {
            continue;
        };
        // One agent is reached in one way: the config sees to that.
        let same = |(other, _): &&mut (&Mirror, _)| other.agent == mirror.agent;
        match known.iter_mut().find(same) {
            Some((_, services)) => services.push(service),
            None => known.push((mirror, vec![service])),
        }
    }
    for (mirror, services) in known {
        let agent = &mirror.agent;
        findings.extend(clear_text(mirror));
        // `files` says what is wrong with our key.
        let Ok(access) = Access::of(mirror, &node.key_file) else {
            continue;
        };
        match agent_api::summary(agent, &access).await {
            Ok(summary) => findings.extend(services.iter().map(|of| knows(agent, &summary, of))),
            Err(error) => findings.push(no_summary(agent, &error)),
        }
    }
    findings
}

fn about(agent: &AgentAddress) -> String {
    format!("agent {agent}")
}

fn clear_text(mirror: &Mirror) -> Option<Finding> {
    mirror.insecure.then(|| {
        Finding::warn(
            about(&mirror.agent),
            "`insecure` is on: it is spoken to in clear text, and anybody on the way can read that, or pretend to be it",
            "write `agent_key`, as `modelmirror keys show` prints it on the shadow host, and take `insecure` out on both hosts",
        )
    })
}

fn no_summary(agent: &AgentAddress, error: &Error) -> Finding {
    let port = agent.port;
    let (what, cure) = match error {
        Error::Unreachable(_) | Error::Silent => (
            format!("{error} (TCP)"),
            format!("start `modelmirror shadow` there, and let TCP port {port} through"),
        ),
        Error::Refused(Refusal::OtherAgent { .. }) => (
            error.to_string(),
            "find out who is there; if the agent has a new key, write it as `agent_key`".to_owned(),
        ),
        Error::Refused(Refusal::Unknown) => (
            error.to_string(),
            "add the [[tap]] that `modelmirror keys show` prints here to the agent's config"
                .to_owned(),
        ),
        Error::NoKey(error) => (error.what.clone(), error.remedy.clone()),
        Error::Refused(_) | Error::NoSummary(_) => (
            error.to_string(),
            "correct `agent`: what `listen` says in the agent's config; `insecure` must be the same on both hosts"
                .to_owned(),
        ),
    };
    Finding::warn(about(agent), what, cure)
}

fn knows(agent: &AgentAddress, summary: &Summary, service: &Service) -> Finding {
    let (name, id) = (&service.name, service.id);
    match summary.services.iter().find(|known| known.id == id) {
        None => Finding::warn(
            about(agent),
            format!("answers, and knows no service with id {id} ({name})"),
            format!(
                "add a [[service]] with id = {id} to the agent's config: copies of {name} are dropped there"
            ),
        ),
        Some(known) if known.name != *name => Finding::warn(
            about(agent),
            format!(
                "calls the service with id {id} {}, this node {name}",
                known.name
            ),
            "give it one name on both hosts",
        ),
        Some(known) => Finding::ok(
            about(agent),
            format!(
                "answers: {name} {}, {} compared since {}",
                known.version,
                known.compared,
                summary.since.strftime("%F %T UTC")
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;
    use crate::config::Protocol;
    use crate::shadow::summary::ServiceSummary;
    use crate::transport::keys::PublicKey;

    fn service(name: &str, id: u32) -> Service {
        Service {
            name: name.to_owned(),
            id,
            addresses: Vec::new(),
            protocol: Protocol::Http,
            stable_version: "v12".to_owned(),
            mirror: None,
            canary: None,
            rollout: None,
        }
    }

    fn agent() -> AgentAddress {
        "shadow:6181".parse().unwrap()
    }

    fn check(finding: &Finding, level: Level, words: &str) {
        assert!(
            finding.level == level && finding.what.contains(words),
            "{finding:?}"
        );
    }

    #[test]
    fn node_and_agent_must_mean_the_same_service() {
        let summary = Summary {
            since: jiff::Timestamp::UNIX_EPOCH,
            time: jiff::Timestamp::UNIX_EPOCH,
            services: vec![ServiceSummary {
                name: "sentiment".to_owned(),
                id: 101,
                version: "v13".to_owned(),
                seen: 8,
                compared: 7,
                ..ServiceSummary::default()
            }],
        };
        let found = |name: &str, id| knows(&agent(), &summary, &service(name, id));
        let expected = "answers: sentiment v13, 7 compared since 1970-01-01 00:00:00 UTC";
        check(&found("sentiment", 101), Level::Ok, expected);
        check(
            &found("sentiment", 102),
            Level::Warn,
            "no service with id 102",
        );
        check(
            &found("ranking", 101),
            Level::Warn,
            "calls the service with id 101 sentiment",
        );
    }

    #[test]
    fn without_a_summary_the_cure_fits() {
        let found = no_summary(&agent(), &Error::Refused(Refusal::Unknown));
        check(&found, Level::Warn, "does not know our key");
        assert!(found.cure.unwrap().contains("[[tap]]"));
        let (shown, trusted) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let other = Refusal::OtherAgent { shown, trusted };
        let found = no_summary(&agent(), &Error::Refused(other));
        check(&found, Level::Warn, &shown.to_string());
        check(&found, Level::Warn, &trusted.to_string());
    }
}
