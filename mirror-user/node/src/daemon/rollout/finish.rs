//! The end of a rollout: the new version has taken the service's own address, and is stable from now on.
//!
//! That it has is proven first. Where the plan has a `finish_probe`, the servers there are asked; else their
//! processes must have been started after the rollout was.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use mirror_api::{Done, Finish};
use mirror_common::tunnel::Arm;
use mirror_rollout::plan::FinishProbe;
use mirror_rollout::record::{Event, Order, Want};
use mirror_rollout::state::By;
use mirror_rollout::state::State;
use reqwest::header::CONNECTION;

use super::asks::Asks;
use super::http;
use super::orders::done;
use crate::config::ServiceAddress;
use crate::control::Refusal;
use crate::daemon::core::Core;
use crate::daemon::servers::Versioned;
use crate::daemon::settings::Ticket;
use crate::state::Swap;
use mirror_base::servers;
use mirror_base::sock_diag::Listener;

/// Several processes may share an address, old ones and new: so many connections are tried at each.
const TIMES: usize = 8;

/// How long all that may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longer bodies are not looked through to their end.
const MOST: usize = 1 << 20;

/// What was asked of the servers at a service's own address, and by whose order.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) ticket: Ticket,
    pub(super) finish: Finish,
    pub(super) outcome: Result<(), String>,
}

impl Core {
    /// Ends a rollout. Where its plan says how, the servers at the service's own address are asked for their
    /// version first: nothing = the answer comes later.
    pub(super) fn finish_rollout(
        &mut self,
        ticket: Ticket,
        service: &str,
        finish: Finish,
    ) -> Option<Result<Done, Refusal>> {
        if let Some((id, question)) = self.question(service, &finish) {
            let asked = Asks::Servers(ticket, finish, question);
            self.ask(service, id, asked);
            return None;
        }
        Some(match self.not_proven(service) {
            Ok(Some(why)) if !finish.force => Err(self.not_there(service, &why)),
            Ok(_) => self.end_rollout(service, finish.by),
            Err(refusal) => Err(refusal),
        })
    }

    /// The rollout's id and what is asked before it ends; nothing where nobody is.
    fn question(&self, service: &str, finish: &Finish) -> Option<(String, Result<Probe, String>)> {
        let rollout = &self.rollouts.running.get(service)?.rollout;
        let started = rollout.started();
        let probe = started.plan.finish_probe.clone()?;
        if finish.force || rollout.can(Want::Finish).is_err() || *rollout.state() == State::Finished
        {
            return None;
        }
        let question = if self.config.interfaces.iter().any(|name| name == "lo") {
            Err(
                "lo is among `interfaces`, so the question would be steered to the canary"
                    .to_owned(),
            )
        } else {
            let addresses = &self.find(service).ok()?.config.addresses;
            let listeners = self.kernel.listeners().unwrap_or_default();
            Ok(Probe {
                ways: ways(addresses, &listeners),
                expect: probe
                    .expect
                    .clone()
                    .unwrap_or_else(|| started.canary.version.clone()),
                probe,
            })
        };
        Some((started.id.clone(), question))
    }

    /// The servers were asked: carries out what that was asked for.
    pub(super) fn probed(&mut self, service: &str, id: &str, probed: Probed) {
        let Probed {
            ticket,
            finish,
            outcome,
        } = probed;
        let running = self.rollouts.running.get(service);
        let is_same = running.is_some_and(|running| running.rollout.started().id == id);
        let told = match outcome {
            _ if !is_same => Err(self.not_there(service, "another rollout has begun meanwhile")),
            Ok(()) => self.end_rollout(service, finish.by),
            Err(why) => Err(self.not_there(service, &format!("finish_probe: {why}"))),
        };
        self.told_rollout(ticket, service, told);
    }

    fn not_there(&self, service: &str, why: &str) -> Refusal {
        let running = self.running(service);
        let version = running.map_or("the new version", |running| {
            &running.rollout.started().canary.version
        });
        Refusal::Invalid(format!(
            "{service}: {why}: start {version} there first, which is seen within 5 s (--force if it is there)"
        ))
    }

    fn end_rollout(&mut self, service: &str, by: By) -> Result<Done, Refusal> {
        let rollout = &self.running(service)?.rollout;
        let want = Want::Finish;
        rollout
            .can(want)
            .map_err(|why| Refusal::Invalid(format!("{service}: {why}")))?;
        if *rollout.state() == State::Finished {
            let said = format!("{service}: the rollout is finished already");
            return Ok(done(vec![said], Vec::new()));
        }
        let started = rollout.started();
        let (was, now) = (started.stable.clone(), started.canary.version.clone());
        let swap = Swap {
            was,
            now: now.clone(),
        };
        let persist = self
            .settings
            .change(self.now.at, |set| set.set_swap(service, swap));
        self.carry_out(persist);
        self.tell(service, Event::Ordered(Order { want, by }));
        self.take_over_again();
        let said = vec![
            format!("{service}: {now} is stable now, and nothing is steered any more"),
            format!(
                "write version = \"{now}\" under [service.stable] in {}",
                self.path.display()
            ),
        ];
        Ok(done(said, Vec::new()))
    }

    /// Why it is not proven that other processes than at the rollout's start serve at the service's own
    /// address.
    fn not_proven(&self, service: &str) -> Result<Option<String>, Refusal> {
        let rollout = &self.running(service)?.rollout;
        if rollout.can(Want::Finish).is_err() || *rollout.state() == State::Finished {
            return Ok(None);
        }
        let server = Versioned {
            service: service.to_owned(),
            arm: Arm::Stable,
            version: rollout.started().stable.clone(),
        };
        let usage = self.servers.usage().get(&server).copied();
        let Some(usage) = usage else {
            let why = "nobody on this host was seen to listen at the service's own address, so it is not known who serves there; a finish_probe in the plan can ask";
            return Ok(Some(why.to_owned()));
        };
        let Some(oldest) = usage.oldest else {
            return Ok(Some(
                "nobody listens at the service's own address".to_owned(),
            ));
        };
        let age = self
            .now
            .up
            .unwrap_or_default()
            .saturating_sub(oldest.started);
        let lasts = self.now().duration_since(rollout.began());
        let lasts = Duration::try_from(lasts).unwrap_or_default();
        Ok((age > lasts).then(|| {
            let name = self.kernel.process_name(oldest.pid).unwrap_or_default();
            format!(
                "who listens at the service's own address was started before the rollout was (process {}, {name:?})",
                oldest.pid
            )
        }))
    }
}

/// What is asked, and where.
#[derive(Debug)]
pub(super) struct Probe {
    /// For each place where somebody listens: addresses that lead there, of which the first that accepts counts.
    ways: Vec<Vec<SocketAddr>>,
    probe: FinishProbe,
    expect: String,
}

/// The ways to a service's own servers. Those that listen at every address are asked over loopback, where
/// nothing is steered.
fn ways(addresses: &[ServiceAddress], listeners: &[Listener]) -> Vec<Vec<SocketAddr>> {
    let mut ways = Vec::new();
    for address in addresses {
        let at = |ip: IpAddr| SocketAddr::new(ip, address.port);
        if let Some(ip) = address.ip {
            ways.push(vec![at(ip)]);
            continue;
        }
        let theirs = listeners
            .iter()
            .filter(|listener| servers::serves(listener.address, *address).is_some());
        ways.extend(theirs.map(|listener| match listener.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => vec![at(Ipv4Addr::LOCALHOST.into())],
            // It may take IPv4 as well, or alone where this host has no IPv6.
            IpAddr::V6(ip) if ip.is_unspecified() => vec![
                at(Ipv6Addr::LOCALHOST.into()),
                at(Ipv4Addr::LOCALHOST.into()),
            ],
            ip => vec![at(ip.to_canonical())],
        }));
    }
    ways.sort();
    ways.dedup();
    ways
}

impl Probe {
    /// Asks everybody, several times.
    ///
    /// # Errors
    /// Why that proves nothing, without what was answered.
    pub(super) async fn ask(&self, client: &reqwest::Client) -> Result<(), String> {
        let late = |_| Err(format!("no answer within {} s", PATIENCE.as_secs()));
        let asked = tokio::time::timeout(PATIENCE, self.ask_all(client)).await;
        asked.unwrap_or_else(late)
    }

    async fn ask_all(&self, client: &reqwest::Client) -> Result<(), String> {
        if self.ways.is_empty() {
            return Err("nobody listens at the service's own address".to_owned());
        }
        for way in &self.ways {
            for _ in 0..TIMES {
                self.ask_once(client, way).await?;
            }
        }
        Ok(())
    }

    async fn ask_once(&self, client: &reqwest::Client, way: &[SocketAddr]) -> Result<(), String> {
        let path = &self.probe.path;
        let mut refused = String::new();
        for at in way {
            let asked = client.get(format!("http://{at}{path}"));
            match asked.header(CONNECTION, "close").send().await {
                Ok(response) => {
                    let judged = self.judge(response).await;
                    return judged.map_err(|why| format!("GET {path} at {at}: {why}"));
                }
                Err(error) => {
                    refused = format!("GET {path} at {at}: {}", http::innermost(&error));
                    if !error.is_connect() {
                        break;
                    }
                }
            }
        }
        Err(refused)
    }

    async fn judge(&self, response: reqwest::Response) -> Result<(), String> {
        let (status, expect) = (response.status(), &self.expect);
        if !status.is_success() {
            return Err(format!("it was answered {}", status.as_u16()));
        }
        if let Some(name) = &self.probe.header {
            let mut values = response.headers().get_all(name).iter();
            let is_it = values.any(|value| value.as_bytes() == expect.as_bytes());
            return is_it
                .then_some(())
                .ok_or_else(|| format!("the header {name} is not {expect:?}"));
        }
        let body = http::text(response, MOST).await;
        let body = body.map_err(|error| http::innermost(&error))?;
        body.contains(expect)
            .then_some(())
            .ok_or_else(|| format!("the body does not have {expect:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: &str, listeners: &[&str], expected: &[&[&str]]) {
        let (ip, port) = address.rsplit_once(':').unwrap();
        let address = ServiceAddress {
            ip: (ip != "*").then(|| ip.parse().unwrap()),
            port: port.parse().unwrap(),
        };
        let listener = |at: &&str| Listener {
            address: at.parse().unwrap(),
            inode: 1,
        };
        let listeners: Vec<Listener> = listeners.iter().map(listener).collect();
        let ways = ways(&[address], &listeners);
        let ways: Vec<Vec<String>> = ways
            .iter()
            .map(|way| way.iter().map(ToString::to_string).collect())
            .collect();
        assert_eq!(ways, expected);
    }

    #[test]
    fn everybody_is_asked_where_nothing_is_steered() {
        check("10.0.0.5:80", &["0.0.0.0:80"], &[&["10.0.0.5:80"]]);
        check("*:80", &["0.0.0.0:80", "0.0.0.0:81"], &[&["127.0.0.1:80"]]);
        check("*:80", &["[::]:80"], &[&["[::1]:80", "127.0.0.1:80"]]);
        let own = ["10.0.0.5:80", "[fd00::5]:80", "10.0.0.5:80"];
        check("*:80", &own, &[&["10.0.0.5:80"], &["[fd00::5]:80"]]);
        check("*:80", &["0.0.0.0:81"], &[]);
    }
}
