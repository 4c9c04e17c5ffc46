//! What is not ready, a sentence for each: what `status --check` says.

use crate::shadow::AgentStatus;
use crate::{Agent, Interface, Service, Status};

impl Status {
    /// What keeps the node from mirroring and steering as its config says.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.off {
            troubles.push(
                "everything is off: `modelmirror mirror on --service NAME` ends that".to_owned(),
            );
        } else {
            troubles.extend(self.interfaces.iter().filter_map(of_interface));
        }
        troubles.extend(self.agents.iter().filter_map(of_agent));
        troubles.extend(self.services.iter().flat_map(of_service));
        troubles
    }
}

fn of_interface(interface: &Interface) -> Option<String> {
    let Interface { name, error, .. } = interface;
    match (interface.attached, error) {
        (true, None) => None,
        (true, Some(error)) => Some(format!("interface {name}: {error}")),
        (false, _) if interface.left_out => None,
        (false, Some(error)) => Some(format!("interface {name} is not attached: {error}")),
        (false, None) => Some(format!("interface {name} is not attached")),
    }
}

fn of_agent(agent: &Agent) -> Option<String> {
    let address = &agent.address;
    match (agent.alive, &agent.paused, &agent.error) {
        (false, _, Some(error)) => Some(format!("agent {address} is dead: {error}")),
        (false, _, None) => Some(format!("agent {address} is dead: it does not answer")),
        (true, Some(why), _) => Some(format!("mirroring to {address} is suspended: {why}")),
        (true, None, _) => None,
    }
}

fn of_service(service: &Service) -> Vec<String> {
    let name = &service.name;
    let missing = service.missing.as_ref();
    let missing = missing.map(|missing| format!("{name}: no {missing} packets are seen"));
    let canary = service.canary.iter().flat_map(|canary| {
        let version = &canary.version;
        let silent = canary.silent.as_ref();
        let silent = silent.map(|why| format!("{name}: canary {version} does not answer: {why}"));
        let error = canary.error.as_ref();
        let error = error.map(|why| format!("{name}: canary {version} is not steered to: {why}"));
        [silent, error].into_iter().flatten()
    });
    missing.into_iter().chain(canary).collect()
}

impl AgentStatus {
    /// What keeps the shadow host from comparing and recording.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = Vec::new();
        if self.records.stopped {
            let folder = self.record_dir.display();
            troubles.push(format!(
                "record writes are suspended, the disk refused them: {folder}"
            ));
        }
        // One that sends datagrams has no connection that could be gone.
        let gone = self.taps.iter().filter(|tap| {
            tap.connected_since.is_none() && tap.transport.as_deref() == Some("stream")
        });
        troubles.extend(gone.map(|tap| format!("tap {} is not connected", tap.name)));
        for service in &self.services {
            let name = &service.name;
            if let Some(down) = service.down_seconds {
                let target = &service.target;
                troubles.push(format!(
                    "{name}: the shadow at {target} has not answered for {down:.0} s"
                ));
            }
            let control = service.control.as_ref();
            if let Some((address, why)) =
                control.and_then(|control| Some((&control.address, control.down.as_ref()?)))
            {
                troubles.push(format!(
                    "{name}: the control at {address} does not answer: {why}"
                ));
            }
        }
        troubles
    }
}

#[cfg(test)]
mod tests {
    use crate::fixtures::{agent_status, status};

    #[test]
    fn a_node_s_troubles_are_named() {
        let said = |change: &dyn Fn(&mut crate::Status)| {
            let mut status = status();
            // The other one of the fixture's does not exist.
            status.interfaces.truncate(1);
            change(&mut status);
            status.troubles().join("\n")
        };
        let check = |change: &dyn Fn(&mut crate::Status), expected| {
            assert_eq!(said(change), expected);
        };
        check(&|_| {}, "");
        check(
            &|status| status.interfaces[0].attached = false,
            "interface eth0 is not attached",
        );
        check(
            &|status| {
                status.interfaces[0].attached = false;
                status.interfaces[0].left_out = true;
            },
            "",
        );
        check(
            &|status| {
                status.agents[0].alive = false;
                status.agents[0].error = Some("Connection refused".to_owned());
            },
            "agent 10.0.0.9:6181 is dead: Connection refused",
        );
        check(
            &|status| status.agents[0].paused = Some("its uplink drops packets".to_owned()),
            "mirroring to 10.0.0.9:6181 is suspended: its uplink drops packets",
        );
        check(
            &|status| status.services[0].missing = Some("response".to_owned()),
            "sentiment: no response packets are seen",
        );
        check(
            &|status| {
                status.off = true;
                status.interfaces[0].attached = false;
            },
            "everything is off: `modelmirror mirror on --service NAME` ends that",
        );
        let whole = status().troubles();
        assert_eq!(
            whole,
            ["interface veth-pod is not attached: no such interface; waiting for it"]
        );
    }

    #[test]
    fn an_agent_s_troubles_are_named() {
        let mut status = agent_status();
        status.services[0].down_seconds = Some(12.4);
        status.services[0].target = "10.0.0.9:8000".to_owned();
        assert_eq!(
            status.troubles(),
            [
                "record writes are suspended, the disk refused them: /var/log/modelmirror",
                "tap node-1 is not connected",
                "sentiment: the shadow at 10.0.0.9:8000 has not answered for 12 s",
                "sentiment: the control at 10.0.0.9:8001 does not answer: connect",
            ]
        );
        status.records.stopped = false;
        status.services.clear();
        status.taps[0].connected_since = Some(jiff::Timestamp::UNIX_EPOCH);
        assert!(status.troubles().is_empty());
    }
}
