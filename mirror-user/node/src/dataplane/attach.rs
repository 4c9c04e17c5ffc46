//! Attaching the programs to interfaces, and taking them away.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use mirror_api::{Mechanism, XdpHook};

use super::{DataPlane, Error, Hook, Interface, PROGRAMS, Role, chain, classifier, once, qdiscs};

/// Where our filters stand in a clsact chain: before all that ask for no place of their own.
const CLSACT_PRIORITY: u16 = 1;

const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x4d4d);

/// Where our programs stand among those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Those that run before ours, each with its hook.
    pub before: Vec<String>,
    /// Whether one of ours is not there.
    pub is_missing: bool,
}

/// The program for a hook of an interface, if it needs one.
///
/// The loopback shows every packet at both hooks, so only its ingress is tapped.
fn program_for(interface: &Interface, role: Role, hook: Hook) -> Option<&'static str> {
    let tapped = role.tapped && !(hook == Hook::Egress && interface.name == "lo");
    let kind = match hook {
        Hook::Ingress if tapped => "ingress",
        Hook::Ingress if role.answers => "answers",
        Hook::Egress if tapped => "egress",
        Hook::Egress if role.uplink => "uplink",
        Hook::Ingress | Hook::Egress => return None,
    };
    PROGRAMS
        .into_iter()
        .find(|name| match name.strip_suffix("_ip") {
            Some(stem) => !interface.ethernet && stem == kind,
            None => interface.ethernet && *name == kind,
        })
}

impl DataPlane {
    /// Attaches what `interface` needs in its role, in place of what an earlier daemon attached.
    pub fn attach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        self.mark_tapped(interface.index, role.tapped)?;
        for hook in [Hook::Ingress, Hook::Egress] {
            // What an earlier daemon attached by the other mechanism would see every packet too.
            match (program_for(interface, role, hook), self.mechanism) {
                (Some(program), Mechanism::Tcx) => {
                    detach_clsact(&interface.name, hook);
                    self.attach_tcx(interface, hook, program)?;
                }
                (Some(program), Mechanism::Clsact) => {
                    self.detach_tcx(interface, hook)?;
                    self.attach_clsact(interface, hook, program)?;
                }
                (None, _) => self.detach_hook(interface, hook)?,
            }
        }
        Ok(())
    }

    fn attach_tcx(
        &mut self,
        interface: &Interface,
        hook: Hook,
        name: &'static str,
    ) -> Result<(), Error> {
        let failed = |reason| attach_error(&interface.name, hook.label(), reason);
        let pin = self.links.join(link_name(interface, hook.label()));
        let program = once(&mut self.refused, name, &mut self.ebpf, classifier);
        let program = program.map_err(failed)?;
        let renew = |program: &mut SchedClassifier, link: FdLink| {
            let link = SchedClassifierLink::try_from(link).map_err(|error| error.to_string())?;
            let renewed = program.attach_to_link(link);
            let renewed = renewed.and_then(|id| program.take_link(id));
            renewed.map(drop).map_err(|error| chain(&error))
        };
        let create = |program: &mut SchedClassifier| {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let created = program
                .attach_with_options(&interface.name, hook.attach_type(), options)
                .and_then(|id| program.take_link(id))
                .map_err(|error| chain(&error))?;
            FdLink::try_from(created).map_err(|error| chain(&error))
        };
        attach_pinned(program, &pin, renew, create).map_err(failed)
    }

    fn attach_clsact(
        &mut self,
        interface: &Interface,
        hook: Hook,
        name: &'static str,
    ) -> Result<(), Error> {
        let failed = |reason: String| attach_error(&interface.name, hook.label(), reason);
        // Fails where the qdisc is already there, which is as good.
        if tc::qdisc_add_clsact(&interface.name).is_ok() {
            qdiscs::remember(&self.links, interface);
        }
        let program = once(&mut self.refused, name, &mut self.ebpf, classifier);
        let program = program.map_err(failed)?;
        let own = SchedClassifierLink::attached(
            &interface.name,
            hook.attach_type(),
            CLSACT_PRIORITY,
            CLSACT_HANDLE,
            None,
        )
        .map_err(|error| failed(error.to_string()))?;
        let id = match program.attach_to_link(own) {
            Ok(id) => id,
            // There was none to replace.
            Err(_) => {
                let options = NlOptions {
                    priority: CLSACT_PRIORITY,
                    handle: CLSACT_HANDLE,
                    classid: None,
                };
                program
                    .attach_with_options(
                        &interface.name,
                        hook.attach_type(),
                        TcAttachOptions::Netlink(options),
                    )
                    .map_err(|error| failed(chain(&error)))?
            }
        };
        let link = program
            .take_link(id)
            .map_err(|error| failed(chain(&error)))?;
        // Dropping it would detach it; the filter belongs to the interface.
        std::mem::forget(link);
        Ok(())
    }

    /// Where our programs stand on `interface`; nothing where the kernel does not tell.
    pub fn chain(&self, interface: &Interface, role: Role) -> Option<Chain> {
        let mut chain = Chain::default();
        for hook in [Hook::Ingress, Hook::Egress] {
            let Some(own) = program_for(interface, role, hook) else {
                continue;
            };
            let query = SchedClassifier::query_tcx(&interface.name, hook.attach_type());
            let (_, programs) = query.ok()?;
            let names = programs
                .iter()
                .map(|program| program.name_as_str().unwrap_or("?"));
            let names: Vec<&str> = names.collect();
            let place = names.iter().position(|name| *name == own);
            // Filters of clsact run after all of TCX.
            let before = match (place, self.mechanism) {
                (Some(place), _) => place,
                (None, Mechanism::Clsact) => names.len(),
                (None, Mechanism::Tcx) => {
                    chain.is_missing = true;
                    0
                }
            };
            let before = names.iter().take(before);
            chain
                .before
                .extend(before.map(|name| format!("{}: {name}", hook.label())));
        }
        Some(chain)
    }

    /// Attaches anew, as the first in the chain, where others may have come in between.
    pub fn reattach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        self.detach(interface)?;
        self.attach(interface, role)
    }

    /// Detaches whatever is on `interface`.
    pub fn detach(&mut self, interface: &Interface) -> Result<(), Error> {
        self.mark_tapped(interface.index, false)?;
        self.attach_xdp(interface, None)?;
        self.detach_hook(interface, Hook::Ingress)?;
        self.detach_hook(interface, Hook::Egress)?;
        qdiscs::remove(&self.links, interface);
        Ok(())
    }

    fn detach_hook(&mut self, interface: &Interface, hook: Hook) -> Result<(), Error> {
        detach_clsact(&interface.name, hook);
        self.detach_tcx(interface, hook)
    }

    fn detach_tcx(&mut self, interface: &Interface, hook: Hook) -> Result<(), Error> {
        let pin = self.links.join(link_name(interface, hook.label()));
        detach_pinned(&pin).map_err(|reason| attach_error(&interface.name, hook.label(), reason))
    }

    /// Removes pins of interfaces that are not in `keep`: deleted ones, and ones that the config
    /// no longer names.
    pub fn retain(&mut self, keep: &[Interface]) -> Result<(), Error> {
        let names: HashSet<String> = keep
            .iter()
            .flat_map(|interface| {
                let hooks = [Hook::Ingress, Hook::Egress].map(Hook::label);
                let early = [XdpHook::Native, XdpHook::Generic].map(XdpHook::label);
                [hooks, early]
                    .concat()
                    .into_iter()
                    .map(|hook| link_name(interface, hook))
            })
            .collect();
        let entries = fs::read_dir(&self.links).map_err(|source| Error::PinDir {
            path: self.links.clone(),
            source,
        })?;
        for entry in entries.flatten() {
            if !names.contains(&*entry.file_name().to_string_lossy()) {
                tracing::info!(pin = %entry.path().display(), "removing a link that is no longer wanted");
                let _ = fs::remove_file(entry.path());
            }
        }
        let indexes: HashSet<u32> = keep.iter().map(|interface| interface.index).collect();
        let mut tapped = self.hash_map::<u32, u32>("TAPPED")?;
        let stale: Vec<u32> = tapped
            .keys()
            .flatten()
            .filter(|index| !indexes.contains(index))
            .collect();
        for index in stale {
            let _ = tapped.remove(&index);
        }
        Ok(())
    }

    fn mark_tapped(&mut self, index: u32, tapped: bool) -> Result<(), Error> {
        let mut map = self.hash_map::<u32, u32>("TAPPED")?;
        if tapped {
            map.insert(index, 1, 0).map_err(|source| Error::Map {
                map: "TAPPED",
                source: Box::new(source),
            })
        } else {
            let _ = map.remove(&index);
            Ok(())
        }
    }
}

/// Programs of others on `interface` through TCX, with their names, in their order; nothing where
/// the kernel cannot tell.
pub fn foreign_programs(interface: &str, hook: Hook) -> Vec<String> {
    let Ok((_, programs)) = SchedClassifier::query_tcx(interface, hook.attach_type()) else {
        return Vec::new();
    };
    let names = programs
        .iter()
        .map(|program| program.name_as_str().unwrap_or("?").to_owned());
    names
        .filter(|name| !PROGRAMS.contains(&name.as_str()))
        .collect()
}

/// Whether the kernel has TCX (6.6): asked, not guessed from its version.
pub fn tcx_works() -> bool {
    // Where TCX is missing the query itself is unknown (EINVAL); being forbidden to ask is no "no".
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => true,
        Err(ProgramError::SyscallError(error)) => {
            error.io_error.raw_os_error() == Some(libc::EPERM)
        }
        Err(_) => false,
    }
}

/// A pin names the interface's number too: a re-created interface is another one.
pub(super) fn link_name(interface: &Interface, hook: &str) -> String {
    // A pin's name may not have a dot (bpffs).
    format!(
        "{}@{}@{}",
        interface.name.replace('.', ":"),
        interface.index,
        hook
    )
}

/// Whether there was a filter of ours.
pub(super) fn detach_clsact(interface: &str, hook: Hook) -> bool {
    SchedClassifierLink::attached(
        interface,
        hook.attach_type(),
        CLSACT_PRIORITY,
        CLSACT_HANDLE,
        None,
    )
    .is_ok_and(|link| aya::programs::links::Link::detach(link).is_ok())
}

/// Puts a program behind the link at `pin`, in place of the one there is; where there is none, or it
/// was severed with its device, behind a new one, which is pinned there.
pub(super) fn attach_pinned<P>(
    program: &mut P,
    pin: &Path,
    renew: impl FnOnce(&mut P, FdLink) -> Result<(), String>,
    create: impl FnOnce(&mut P) -> Result<FdLink, String>,
) -> Result<(), String> {
    match PinnedLink::from_pin(pin) {
        Ok(pinned) => {
            if renew(program, FdLink::from(pinned)).is_ok() {
                return Ok(());
            }
            fs::remove_file(pin).map_err(|error| error.to_string())?;
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
        }
        Err(error) => return Err(chain(&error)),
    }
    let link = create(program)?;
    link.pin(pin).map(drop).map_err(|error| chain(&error))
}

/// Takes a pinned link away, if there is one.
pub(super) fn detach_pinned(pin: &Path) -> Result<(), String> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

pub(super) fn attach_error(interface: &str, hook: &'static str, reason: String) -> Error {
    Error::Attach {
        interface: interface.to_owned(),
        hook,
        reason,
    }
}
