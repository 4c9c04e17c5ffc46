//! The agents' summaries, which a rollout decides by; the mirror does without.

use super::{Finding, files};
use crate::agent_api::{self, Error};
use crate::config::{AgentApi, Node, Service};
use crate::shadow::summary::Summary;

pub(super) async fn findings(node: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut known: Vec<(&AgentApi, Vec<&Service>)> = Vec::new();
    for service in &node.services {
        let Some(api) = service
            .mirror
            .as_ref()
            .and_then(|mirror| mirror.api.as_ref())
        else {
            continue;
        };
        match known.iter_mut().find(|(other, _)| *other == api) {
            Some((_, services)) => services.push(service),
            None => known.push((api, vec![service])),
        }
    }
    for (api, services) in known {
        findings.extend(files::token(&api.token));
        match agent_api::summary(api).await {
            Ok(summary) => findings.extend(services.iter().map(|of| knows(api, &summary, of))),
            Err(error) => findings.push(no_summary(api, &error)),
        }
    }
    findings
}

fn about(api: &AgentApi) -> String {
    format!("api {}", api.base)
}

fn no_summary(api: &AgentApi, error: &Error) -> Finding {
    let file = api.token.file.display();
    let cure = match error {
        Error::Unreachable(_) | Error::Silent => {
            "set `api` in the agent's config, and let its TCP port through".to_owned()
        }
        Error::WrongToken => format!(
            "write the agent's token into {file}: `token_file` of both hosts must hold the same"
        ),
        Error::NoSummary(_) => {
            "correct `api`: the host and port of `api` in the agent's config".to_owned()
        }
    };
    Finding::warn(about(api), error.to_string(), cure)
}

fn knows(api: &AgentApi, summary: &Summary, service: &Service) -> Finding {
    let (name, id) = (&service.name, service.id);
    match summary.services.iter().find(|known| known.id == id) {
        None => Finding::warn(
            about(api),
            format!("answers, and knows no service with id {id} ({name})"),
            format!(
                "add a [[service]] with id = {id} to the agent's config: copies of {name} are dropped there"
            ),
        ),
        Some(known) if known.name != *name => Finding::warn(
            about(api),
            format!(
                "calls the service with id {id} {}, this node {name}",
                known.name
            ),
            "give it one name on both hosts",
        ),
        Some(known) => Finding::ok(
            about(api),
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
    use crate::config::{Protocol, Token};
    use crate::shadow::summary::ServiceSummary;

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

    fn api() -> AgentApi {
        AgentApi {
            base: "http://10.0.0.9:9471".to_owned(),
            token: Token {
                file: "/token".into(),
                value: "secret".to_owned(),
            },
        }
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
        let found = |name: &str, id| knows(&api(), &summary, &service(name, id));
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
        let found = no_summary(&api(), &Error::WrongToken);
        check(&found, Level::Warn, "does not take our token");
        assert!(found.cure.unwrap().contains("into /token"));
    }
}
