//! Whether an agent answers over TCP, by which keys, and what it knows of our services.
//!
//! It is asked as a rollout asks it, by its api: a daemon that runs keeps its own connection.

use mirror_api::AgentAddress;
use mirror_api::summary::Summary;

use crate::agent_api::{self, Access, Error};
use crate::config::{Mirror, Node, Service};
use mirror_base::check::Finding;
use mirror_base::transport::tls::Refusal;

/// What the agent of this mirror says, to all services that are mirrored there.
pub(super) async fn findings(node: &Node, mirror: &Mirror) -> Vec<Finding> {
    let agent = &mirror.agent;
    let mut findings = Vec::from_iter(clear_text(mirror));
    // `files` says what is wrong with our key.
    let Ok(access) = Access::of(mirror, &node.key_file) else {
        return findings;
    };
    match agent_api::summary(agent, &access).await {
        Ok(summary) => {
            findings.push(answers(agent, &access));
            let mirrored = |service: &&Service| {
                let mirror = service.mirror.as_ref();
                mirror.is_some_and(|mirror| mirror.agent == *agent)
            };
            let services = node.services.iter().filter(mirrored);
            findings.extend(services.map(|service| knows(agent, &summary, service)));
        }
        Err(error) => findings.push(no_summary(agent, &error)),
    }
    findings
}

fn answers(agent: &AgentAddress, access: &Access) -> Finding {
    let what = match access {
        Access::Keys { own, agent } => format!(
            "answers over TCP, shows the key {agent}, and knows ours, {}",
            own.public()
        ),
        Access::Clear => "answers over TCP, without keys".to_owned(),
    };
    Finding::ok(about(agent), what)
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
    Finding::refuse(about(agent), what, cure)
}

fn knows(agent: &AgentAddress, summary: &Summary, service: &Service) -> Finding {
    let (name, id) = (&service.name, service.id);
    match summary.services.iter().find(|known| known.id == id) {
        None => Finding::warn(
            about(agent),
            format!("knows no service with id {id} ({name})"),
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
                "shadows {name} by {}, {} compared since {}",
                known.version,
                known.compared,
                summary.since.strftime("%F %TZ")
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use mirror_api::summary::ServiceSummary;

    use super::*;
    use crate::config::Protocol;
    use mirror_base::check::Level;
    use mirror_base::check::fixture::check;
    use mirror_base::transport::keys::PublicKey;

    fn service(name: &str, id: u32) -> Service {
        Service {
            name: name.to_owned(),
            id,
            addresses: Vec::new(),
            protocol: Protocol::Http,
            stable_version: "v12".to_owned(),
            mirror: None,
            canary: None,
            look: None,
            rollout: None,
        }
    }

    fn agent() -> AgentAddress {
        "shadow:6181".parse().unwrap()
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
        let expected = "shadows sentiment by v13, 7 compared since 1970-01-01 00:00:00Z";
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
        check(&found, Level::Refuse, "does not know this node's key");
        assert!(found.cure.unwrap().contains("[[tap]]"));
        let (shown, trusted) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let other = Refusal::OtherAgent { shown, trusted };
        let found = no_summary(&agent(), &Error::Refused(other));
        check(&found, Level::Refuse, &shown.to_string());
        check(&found, Level::Refuse, &trusted.to_string());
    }
}
