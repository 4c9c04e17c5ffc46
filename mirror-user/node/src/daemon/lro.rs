//! LRO is off wherever packets of canaries on other hosts come in, before the first of them is given away.
//! What is to be done is decided here; a thread does it, and writes down what it has done.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{Core, Effect};
use super::network::View;
use super::place::{self, Obstacle, Place};
use crate::netlink::{self, Link, stack};
use crate::offload::{Devices, Ethtool, Failures, Lro, Switched};

/// A device that packets come in by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) lro: Lro,
}

/// The devices by which what is seen on an interface comes in, by its name: itself, and all that it stands on.
pub(super) type Receivers = BTreeMap<String, Vec<Device>>;

/// Asks the kernel.
pub(super) async fn receivers(interfaces: &[String], links: &[Link]) -> Receivers {
    let mut receivers = Receivers::new();
    for interface in interfaces {
        if receivers.contains_key(interface) {
            continue;
        }
        let mut devices = Vec::new();
        for link in stack::below(interface, links) {
            devices.push(Device {
                name: link.name.clone(),
                index: link.index,
                lro: netlink::lro(&link.name).await,
            });
        }
        receivers.insert(interface.clone(), devices);
    }
    receivers
}

/// What the core has had done.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Devices whose LRO is to be off, and those of them where it was not.
    last: Option<(Devices, Vec<String>)>,
    failures: Failures,
}

impl Asked {
    /// What is wrong, for people.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let failures = self.failures.iter();
        failures.map(|(name, why)| format!("LRO of {name} cannot be switched: {why}"))
    }
}

/// The devices by which packets of a canary come in, of the clients and its own.
fn on_the_way<'a>(
    interfaces: &'a [String],
    way: &'a str,
    view: &'a View,
) -> impl Iterator<Item = &'a Device> {
    let names = interfaces.iter().map(String::as_str).chain([way]);
    names.flat_map(|name| view.receivers.get(name).into_iter().flatten())
}

impl Core {
    /// Why a canary at this place gets no connections: what comes in for it is merged.
    pub(super) fn merged(&self, place: &Place<'_>) -> Option<Obstacle> {
        let (Place::Away(way), Some(view)) = (place, &self.view) else {
            return None;
        };
        let devices = on_the_way(&self.config.interfaces, &way.link.name, view);
        let mut merging: Vec<&Device> = devices.filter(|device| device.lro != Lro::Off).collect();
        merging.sort_by_key(|device| device.lro != Lro::Fixed);
        let Device { name, lro, .. } = merging.first()?;
        let why = match (lro, self.lro.failures.get(name)) {
            (Lro::Fixed, _) => Obstacle::Topology {
                why: format!(
                    "{name} merges what it receives (LRO), which cannot be sent on to another host, and cannot be told not to"
                ),
                cure: "name another interface, or run the canary on this host".to_owned(),
            },
            (_, Some(why)) => {
                Obstacle::Passing(format!("LRO of {name} cannot be switched off: {why}"))
            }
            (_, None) => Obstacle::Passing(format!("LRO of {name} is not switched off yet")),
        };
        Some(why)
    }

    /// The place of a canary where connections can be given to it, or why none can.
    pub(super) fn place<'a>(
        &self,
        canary: &crate::config::Canary,
        service: &[crate::config::ServiceAddress],
        view: &'a View,
    ) -> Result<Place<'a>, Obstacle> {
        let place = place::find(canary, service, view)?;
        self.merged(&place).map_or(Ok(place), Err)
    }

    /// Has LRO switched off where packets are translated, and put back where they no longer are.
    pub(super) fn see_to_lro(&mut self) {
        let Some(view) = &self.view else { return };
        let mut wanted = Devices::new();
        let mut on = Vec::new();
        if !self.settings.holds().is_off() {
            for away in self.ways_away(view) {
                for device in on_the_way(&self.config.interfaces, &away.way.link.name, view) {
                    let is_new = wanted.insert(device.name.clone(), device.index).is_none();
                    if is_new && device.lro == Lro::On {
                        on.push(device.name.clone());
                    }
                }
            }
        }
        let wanted = (wanted, on);
        if self.lro.last.as_ref() != Some(&wanted) {
            self.effect(Effect::KeepLroOff(wanted.0.clone()));
            self.lro.last = Some(wanted);
        }
    }

    /// LRO was switched, or could not be.
    pub(super) fn on_lro(&mut self, failures: Failures) {
        for (name, why) in &failures {
            if self.lro.failures.get(name) != Some(why) {
                tracing::error!(interface = name, "LRO cannot be switched: {why}");
            }
        }
        if !failures.is_empty() {
            // It is tried again when everything is looked after.
            self.lro.last = None;
        }
        self.lro.failures = failures;
        self.publish();
    }
}

/// Hands what is to be kept off to the thread.
#[derive(Debug)]
pub(super) struct Switcher {
    wanted: Option<Sender<Devices>>,
    ended: Receiver<()>,
}

impl Switcher {
    /// Starts the thread. What could not be done is sent to `said`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(
        state_dir: &Path,
        said: mpsc::UnboundedSender<Failures>,
    ) -> io::Result<Self> {
        let (wanted, orders) = channel::<Devices>();
        let (over, ended) = channel();
        let switched = Switched::new(state_dir, Ethtool);
        std::thread::Builder::new()
            .name("lro".to_owned())
            .spawn(move || {
                while let Ok(order) = orders.recv() {
                    // Only the newest counts.
                    let order = orders.try_iter().last().unwrap_or(order);
                    let (done, failures) = switched.keep_off(&order);
                    for done in done {
                        tracing::info!("{done}");
                    }
                    let _ = said.send(failures);
                }
                let _ = over.send(());
            })?;
        let wanted = Some(wanted);
        Ok(Self { wanted, ended })
    }

    /// Has it off on these, and no others.
    pub(super) fn keep_off(&self, devices: Devices) {
        if let Some(wanted) = &self.wanted {
            let _ = wanted.send(devices);
        }
    }

    /// Waits until all is done, but no longer than this.
    pub(super) fn finish(&mut self, patience: Duration) {
        self.wanted = None;
        let _ = self.ended.recv_timeout(patience);
    }
}
