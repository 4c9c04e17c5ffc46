//! A kernel in memory, for tests: it has what the real one was told, and what a test says that it counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use mirror_common::counters::{Counters, Sent};
use mirror_common::histogram::{Latency, RunTime};
use mirror_common::measure::{ArmCounters, ByClient};
use mirror_common::tunnel::Arm;

use super::*;
use crate::dataplane::Hook;

/// All clones are one kernel, which outlives the daemon.
#[derive(Clone)]
pub(in crate::daemon) struct Memory {
    state: Arc<Mutex<State>>,
    counts: Arc<dyn Counts>,
    counted: Arc<Counted>,
}

/// What it has.
#[derive(Default)]
pub(in crate::daemon) struct State {
    pub(in crate::daemon) services: HashMap<Endpoint, Service>,
    pub(in crate::daemon) agents: HashMap<u32, Agent>,
    pub(in crate::daemon) steering: BTreeMap<u32, Steering>,
    pub(in crate::daemon) health: BTreeMap<u32, Health>,
    pub(in crate::daemon) arrivals: BTreeMap<u32, Arrivals>,
    pub(in crate::daemon) rings: BTreeSet<u32>,
    pub(in crate::daemon) escaped: BTreeMap<u32, u64>,
    pub(in crate::daemon) attached: BTreeMap<String, Role>,
    pub(in crate::daemon) listeners: Vec<Listener>,
    /// How often something was attached anew, as the first in its chain.
    pub(in crate::daemon) reattached: u32,
    /// Whether a look at who listens fails inside of us.
    pub(in crate::daemon) panics: bool,
    /// Whether it refuses to write maps, ...
    pub(in crate::daemon) refuses_maps: bool,
    /// ... and to attach to this interface.
    pub(in crate::daemon) refuses_hook: Option<String>,
}

/// What it has counted.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Counted {
    packets: Mutex<BTreeMap<u32, Counters>>,
    arms: Mutex<BTreeMap<(u32, u32), ArmCounters>>,
}

impl Memory {
    pub(in crate::daemon) fn new() -> Self {
        let counted = Arc::new(Counted::default());
        let counts: Arc<dyn Counts> = counted.clone();
        Self {
            state: Arc::default(),
            counts,
            counted,
        }
    }

    /// What it has, to look at and to change.
    pub(in crate::daemon) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// It counts packets of a row.
    pub(in crate::daemon) fn count(&self, row: u32, change: impl FnOnce(&mut Counters)) {
        change(self.counted.packets.lock().unwrap().entry(row).or_default());
    }

    /// It counts what a version does.
    pub(in crate::daemon) fn count_arm(
        &self,
        row: u32,
        arm: Arm,
        change: impl FnOnce(&mut ArmCounters),
    ) {
        let mut arms = self.counted.arms.lock().unwrap();
        change(arms.entry((row, arm as u32)).or_default());
    }

    fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        let mut state = self.state();
        match state.refuses_maps {
            true => Err(Error::Missing("room".to_owned())),
            false => Ok(write(&mut state)),
        }
    }
}

impl Counts for Counted {
    fn packets(&self, row: u32) -> Result<Counters, Error> {
        let rows = self.packets.lock().unwrap();
        Ok(rows.get(&row).copied().unwrap_or_default())
    }

    fn run_time(&self, _: Hook) -> Result<RunTime, Error> {
        Ok(RunTime::default())
    }

    fn sent(&self, _: u32) -> Result<Vec<Sent>, Error> {
        Ok(vec![Sent::default()])
    }

    fn arm(&self, row: u32, arm: Arm) -> Result<ArmCounters, Error> {
        let arms = self.arms.lock().unwrap();
        Ok(arms.get(&(row, arm as u32)).copied().unwrap_or_default())
    }

    fn clients(&self, _: u32, _: Arm) -> Result<ByClient, Error> {
        Ok(ByClient::default())
    }

    fn handshakes(&self, _: u32, _: Arm) -> Result<Latency, Error> {
        Ok(Latency::default())
    }
}

impl Kernel for Memory {
    fn counts(&self) -> &Arc<dyn Counts> {
        &self.counts
    }

    fn services(&mut self) -> Result<HashMap<Endpoint, Service>, Error> {
        Ok(self.state().services.clone())
    }

    fn set_services(&mut self, services: &HashMap<Endpoint, Service>) -> Result<(), Error> {
        self.write(|state| state.services.clone_from(services))
    }

    fn clear_rows(&mut self, row: u32) -> Result<(), Error> {
        let rows = [row * 2, row * 2 + 1];
        self.counted
            .packets
            .lock()
            .unwrap()
            .retain(|known, _| !rows.contains(known));
        self.counted
            .arms
            .lock()
            .unwrap()
            .retain(|(known, _), _| *known != row);
        Ok(())
    }

    fn agents(&mut self) -> Result<HashMap<u32, Agent>, Error> {
        Ok(self.state().agents.clone())
    }

    fn set_agent(&mut self, number: u32, agent: &Agent) -> Result<(), Error> {
        self.write(|state| {
            state.agents.insert(number, *agent);
        })
    }

    fn retain_agents(&mut self, keep: &dyn Fn(u32) -> bool) -> Result<(), Error> {
        self.write(|state| state.agents.retain(|number, _| keep(*number)))
    }

    fn clear_sent(&mut self, _: u32) -> Result<(), Error> {
        Ok(())
    }

    fn escaped(&mut self, agent: u32) -> Result<u64, Error> {
        Ok(self
            .state()
            .escaped
            .get(&agent)
            .copied()
            .unwrap_or_default())
    }

    fn forgive(&mut self, agent: u32) -> Result<(), Error> {
        self.write(|state| {
            state.escaped.remove(&agent);
        })
    }

    fn steering(&mut self, row: u32) -> Result<Steering, Error> {
        Ok(self.state().steering.get(&row).copied().unwrap_or_default())
    }

    fn set_steering(&mut self, row: u32, steering: Steering) -> Result<(), Error> {
        self.write(|state| {
            state.steering.insert(row, steering);
        })
    }

    fn set_translated_ports(&mut self, _: Ports) -> Result<(), Error> {
        Ok(())
    }

    fn set_health(&mut self, row: u32, health: Health) -> Result<(), Error> {
        self.write(|state| {
            state.health.insert(row, health);
        })
    }

    fn arrivals(&mut self, row: u32) -> Result<Arrivals, Error> {
        Ok(self.state().arrivals.get(&row).copied().unwrap_or_default())
    }

    fn clear_arrivals(&mut self, row: u32) -> Result<(), Error> {
        self.write(|state| {
            state.arrivals.remove(&row);
        })
    }

    fn ring(&mut self, number: u32) -> Result<Ring, Error> {
        self.state().rings.insert(number);
        Ok(Ring::of_memory(1))
    }

    fn remove_ring(&mut self, number: u32) -> Result<(), Error> {
        self.state().rings.remove(&number);
        Ok(())
    }

    fn ring_numbers(&self) -> Vec<u32> {
        self.state().rings.iter().copied().collect()
    }

    fn attach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        let mut state = self.state();
        if state.refuses_hook.as_ref() == Some(&interface.name) {
            return Err(Error::Missing("hook".to_owned()));
        }
        state.attached.insert(interface.name.clone(), role);
        Ok(())
    }

    fn attach_xdp(&mut self, _: &Interface, _: Option<XdpHook>) -> Result<(), Error> {
        Ok(())
    }

    fn reattach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        self.state().reattached += 1;
        self.attach(interface, role)
    }

    fn detach(&mut self, interface: &Interface) -> Result<(), Error> {
        self.state().attached.remove(&interface.name);
        Ok(())
    }

    fn retain(&mut self, keep: &[Interface]) -> Result<(), Error> {
        let is_kept = |name: &String| keep.iter().any(|interface| interface.name == *name);
        self.state().attached.retain(|name, _| is_kept(name));
        Ok(())
    }

    fn chain(&self, _: &Interface, _: Role) -> Option<Chain> {
        None
    }

    fn listeners(&self) -> io::Result<Vec<Listener>> {
        let panics = self.state().panics;
        assert!(!panics, "as a test wants");
        Ok(self.state().listeners.clone())
    }

    fn process_name(&self, _: i32) -> Option<String> {
        None
    }
}
