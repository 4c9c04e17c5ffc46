//! Attaching the program that takes frames before there is an skb.

use std::fs;
use std::io;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{Xdp, XdpMode};

use super::attach::link_name;
use super::{DataPlane, Error, Interface, chain};
use crate::config::XdpHook;

/// The program's name.
pub(super) const EARLY: &str = "early";

/// Said explicitly: the kernel's own choice would be a silent one.
const fn mode(hook: XdpHook) -> XdpMode {
    match hook {
        XdpHook::Native => XdpMode::Driver,
        XdpHook::Generic => XdpMode::Skb,
    }
}

impl DataPlane {
    /// Attaches at `hook`, in place of what an earlier daemon attached there; nothing = detaches.
    pub fn attach_xdp(
        &mut self,
        interface: &Interface,
        hook: Option<XdpHook>,
    ) -> Result<(), Error> {
        let Some(hook) = hook else {
            self.detach_xdp(interface, XdpHook::Native)?;
            return self.detach_xdp(interface, XdpHook::Generic);
        };
        // An interface has one of them at a time.
        self.detach_xdp(interface, hook.other())?;
        let pin = self.links.join(link_name(interface, hook.label()));
        let failed = |reason: String| Error::Attach {
            interface: interface.name.clone(),
            hook: hook.label(),
            reason,
        };
        let program = early(&mut self.ebpf)?;
        match PinnedLink::from_pin(&pin) {
            Ok(pinned) => {
                let updated = XdpLink::try_from(FdLink::from(pinned))
                    .map_err(|error| error.to_string())
                    .and_then(|link| {
                        program
                            .attach_to_link(link)
                            .and_then(|id| program.take_link(id))
                            .map(drop)
                            .map_err(|error| chain(&error))
                    });
                if updated.is_ok() {
                    return Ok(());
                }
                // The link was severed with its device: a new one takes its name.
                fs::remove_file(&pin).map_err(|error| failed(error.to_string()))?;
            }
            Err(LinkError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(chain(&error))),
        }
        let link = program
            .attach_to_if_index(interface.index, mode(hook))
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(chain(&error)))?;
        let link: FdLink = link
            .try_into()
            .map_err(|error: LinkError| failed(chain(&error)))?;
        link.pin(&pin)
            .map(drop)
            .map_err(|error| failed(chain(&error)))
    }

    fn detach_xdp(&mut self, interface: &Interface, hook: XdpHook) -> Result<(), Error> {
        let pin = self.links.join(link_name(interface, hook.label()));
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Attach {
                interface: interface.name.clone(),
                hook: hook.label(),
                reason: error.to_string(),
            }),
            _ => Ok(()),
        }
    }
}

pub(super) fn early(ebpf: &mut aya::Ebpf) -> Result<&mut Xdp, Error> {
    let program = ebpf
        .program_mut(EARLY)
        .ok_or_else(|| Error::Missing(format!("program {EARLY}")))?;
    program.try_into().map_err(|source| Error::Program {
        program: EARLY.to_owned(),
        source: Box::new(source),
    })
}
