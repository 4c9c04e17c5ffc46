//! What a new config changes against the running one.

use std::fmt;

use super::{Node, Service};

/// What a reload does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces to attach to.
    pub attach: Vec<String>,
    /// Interfaces to detach from.
    pub detach: Vec<String>,
    /// Services, by name, that are new.
    pub added: Vec<String>,
    /// Services, by name, that are gone.
    pub removed: Vec<String>,
    /// Services, by name, that stay and are not what they were.
    pub changed: Vec<String>,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Changes {
    /// In one line: `attach eth1; changed sentiment`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("attach", &self.attach),
            ("detach", &self.detach),
            ("added", &self.added),
            ("removed", &self.removed),
            ("changed", &self.changed),
        ];
        let said: Vec<_> = parts
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(word, names)| format!("{word} {}", names.join(", ")))
            .collect();
        f.write_str(if said.is_empty() {
            "nothing changed"
        } else {
            ""
        })?;
        f.write_str(&said.join("; "))
    }
}

/// Keys that a running daemon cannot change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot change while the daemon runs: put back the old value, or restart the daemon (the programs stay attached meanwhile)", keys.join(", "))]
pub struct NeedsRestart {
    /// Their names.
    pub keys: Vec<&'static str>,
}

/// Tells what `new` changes against `running`.
///
/// # Errors
/// Names the keys that only a restart can change; then nothing of `new` is to be used.
pub fn changes(running: &Node, new: &Node) -> Result<Changes, NeedsRestart> {
    let fixed = [
        ("state_dir", running.state_dir != new.state_dir),
        ("pin_dir", running.pin_dir != new.pin_dir),
        (
            "control_socket",
            running.control_socket != new.control_socket,
        ),
        ("admin", running.admin != new.admin),
        ("key_file", running.key_file != new.key_file),
        ("ring", running.ring != new.ring),
        (
            "batch_interval",
            running.batch_interval != new.batch_interval,
        ),
        ("sender_cpus", running.sender_cpus != new.sender_cpus),
        ("connections", running.connections != new.connections),
        (
            "translation_ports",
            running.translation_ports != new.translation_ports,
        ),
    ];
    let keys: Vec<_> = fixed
        .iter()
        .filter(|(_, differs)| *differs)
        .map(|(key, _)| *key)
        .collect();
    if !keys.is_empty() {
        return Err(NeedsRestart { keys });
    }
    let without = |of: &[String], other: &[String]| {
        of.iter()
            .filter(|name| !other.contains(name))
            .cloned()
            .collect()
    };
    let find = |node: &Node, name: &str| -> Option<Service> {
        node.services
            .iter()
            .find(|service| service.name == name)
            .cloned()
    };
    let names = |node: &Node, keep: &dyn Fn(&Service) -> bool| -> Vec<String> {
        node.services
            .iter()
            .filter(|s| keep(s))
            .map(|s| s.name.clone())
            .collect()
    };
    Ok(Changes {
        attach: without(&new.interfaces, &running.interfaces),
        detach: without(&running.interfaces, &new.interfaces),
        added: names(new, &|service| find(running, &service.name).is_none()),
        removed: names(running, &|service| find(new, &service.name).is_none()),
        changed: names(new, &|service| {
            find(running, &service.name).is_some_and(|old| old != *service)
        }),
    })
}
