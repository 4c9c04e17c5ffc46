//! What the loop asks of the kernel: it is done at once, or said why not. Tests have one in memory.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use mirror_api::XdpHook;
use mirror_common::flow::Endpoint;
use mirror_common::policy::{Agent, Service};
use mirror_common::steer::{Arrivals, Health, Steering};
use mirror_common::translate::Ports;

use crate::dataplane::{Chain, Counts, DataPlane, Error, Interface, Ring, Role};
use mirror_base::servers;
use mirror_base::sock_diag::{self, Listener};

/// Hooks, maps and sockets of this host; what the methods do is said at [`DataPlane`].
pub(super) trait Kernel: Send {
    fn counts(&self) -> &Arc<dyn Counts>;

    fn services(&mut self) -> Result<HashMap<Endpoint, Service>, Error>;
    fn set_services(&mut self, services: &HashMap<Endpoint, Service>) -> Result<(), Error>;
    fn clear_rows(&mut self, row: u32) -> Result<(), Error>;

    fn agents(&mut self) -> Result<HashMap<u32, Agent>, Error>;
    fn set_agent(&mut self, number: u32, agent: &Agent) -> Result<(), Error>;
    fn retain_agents(&mut self, keep: &dyn Fn(u32) -> bool) -> Result<(), Error>;
    fn clear_sent(&mut self, agent: u32) -> Result<(), Error>;
    fn escaped(&mut self, agent: u32) -> Result<u64, Error>;
    fn forgive(&mut self, agent: u32) -> Result<(), Error>;

    fn steering(&mut self, row: u32) -> Result<Steering, Error>;
    fn set_steering(&mut self, row: u32, steering: Steering) -> Result<(), Error>;
    fn set_translated_ports(&mut self, ports: Ports) -> Result<(), Error>;
    fn set_health(&mut self, row: u32, health: Health) -> Result<(), Error>;
    fn arrivals(&mut self, row: u32) -> Result<Arrivals, Error>;
    fn clear_arrivals(&mut self, row: u32) -> Result<(), Error>;

    fn ring(&mut self, number: u32) -> Result<Ring, Error>;
    fn remove_ring(&mut self, number: u32) -> Result<(), Error>;
    fn ring_numbers(&self) -> Vec<u32>;

    fn attach(&mut self, interface: &Interface, role: Role) -> Result<(), Error>;
    fn attach_xdp(&mut self, interface: &Interface, hook: Option<XdpHook>) -> Result<(), Error>;
    fn reattach(&mut self, interface: &Interface, role: Role) -> Result<(), Error>;
    fn detach(&mut self, interface: &Interface) -> Result<(), Error>;
    fn retain(&mut self, keep: &[Interface]) -> Result<(), Error>;
    fn chain(&self, interface: &Interface, role: Role) -> Option<Chain>;

    /// Who listens on this host.
    fn listeners(&self) -> io::Result<Vec<Listener>>;
    /// What a process is called.
    fn process_name(&self, pid: i32) -> Option<String>;
}

/// The programs and maps; all methods are its own.
impl Kernel for DataPlane {
    fn counts(&self) -> &Arc<dyn Counts> {
        Self::counts(self)
    }

    fn services(&mut self) -> Result<HashMap<Endpoint, Service>, Error> {
        Self::services(self)
    }

    fn set_services(&mut self, services: &HashMap<Endpoint, Service>) -> Result<(), Error> {
        Self::set_services(self, services)
    }

    fn clear_rows(&mut self, row: u32) -> Result<(), Error> {
        Self::clear_rows(self, row)
    }

    fn agents(&mut self) -> Result<HashMap<u32, Agent>, Error> {
        Self::agents(self)
    }

    fn set_agent(&mut self, number: u32, agent: &Agent) -> Result<(), Error> {
        Self::set_agent(self, number, agent)
    }

    fn retain_agents(&mut self, keep: &dyn Fn(u32) -> bool) -> Result<(), Error> {
        Self::retain_agents(self, keep)
    }

    fn clear_sent(&mut self, agent: u32) -> Result<(), Error> {
        Self::clear_sent(self, agent)
    }

    fn escaped(&mut self, agent: u32) -> Result<u64, Error> {
        Self::escaped(self, agent)
    }

    fn forgive(&mut self, agent: u32) -> Result<(), Error> {
        Self::forgive(self, agent)
    }

    fn steering(&mut self, row: u32) -> Result<Steering, Error> {
        Self::steering(self, row)
    }

    fn set_steering(&mut self, row: u32, steering: Steering) -> Result<(), Error> {
        Self::set_steering(self, row, steering)
    }

    fn set_translated_ports(&mut self, ports: Ports) -> Result<(), Error> {
        Self::set_translated_ports(self, ports)
    }

    fn set_health(&mut self, row: u32, health: Health) -> Result<(), Error> {
        Self::set_health(self, row, health)
    }

    fn arrivals(&mut self, row: u32) -> Result<Arrivals, Error> {
        Self::arrivals(self, row)
    }

    fn clear_arrivals(&mut self, row: u32) -> Result<(), Error> {
        Self::clear_arrivals(self, row)
    }

    fn ring(&mut self, number: u32) -> Result<Ring, Error> {
        Self::ring(self, number)
    }

    fn remove_ring(&mut self, number: u32) -> Result<(), Error> {
        Self::remove_ring(self, number)
    }

    fn ring_numbers(&self) -> Vec<u32> {
        Self::ring_numbers(self)
    }

    fn attach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        Self::attach(self, interface, role)
    }

    fn attach_xdp(&mut self, interface: &Interface, hook: Option<XdpHook>) -> Result<(), Error> {
        Self::attach_xdp(self, interface, hook)
    }

    fn reattach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        Self::reattach(self, interface, role)
    }

    fn detach(&mut self, interface: &Interface) -> Result<(), Error> {
        Self::detach(self, interface)
    }

    fn retain(&mut self, keep: &[Interface]) -> Result<(), Error> {
        Self::retain(self, keep)
    }

    fn chain(&self, interface: &Interface, role: Role) -> Option<Chain> {
        Self::chain(self, interface, role)
    }

    fn listeners(&self) -> io::Result<Vec<Listener>> {
        sock_diag::listeners()
    }

    fn process_name(&self, pid: i32) -> Option<String> {
        servers::name(pid)
    }
}

#[cfg(test)]
pub(super) mod memory;
