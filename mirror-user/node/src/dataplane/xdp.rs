//! Attaching the program that takes frames before there is an skb.

use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use mirror_api::XdpHook;
use mirror_common::ABI_VERSION;

use super::attach::{attach_error, attach_pinned, detach_pinned, link_name};
use super::{DataPlane, Error, Interface, chain, once};

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
        let failed = |reason| attach_error(&interface.name, hook.label(), reason);
        let pin = self.links.join(link_name(interface, hook.label()));
        let load = |ebpf, _: &str| early(ebpf);
        let program = once(&mut self.refused, EARLY, &mut self.ebpf, load).map_err(failed)?;
        let renew = |program: &mut Xdp, link: FdLink| {
            let link = XdpLink::try_from(link).map_err(|error| error.to_string())?;
            let renewed = program.attach_to_link(link);
            let renewed = renewed.and_then(|id| program.take_link(id));
            renewed.map(drop).map_err(|error| chain(&error))
        };
        let create = |program: &mut Xdp| {
            let created = program
                .attach_to_if_index(interface.index, mode(hook))
                .and_then(|id| program.take_link(id))
                .map_err(|error| chain(&error))?;
            FdLink::try_from(created).map_err(|error| chain(&error))
        };
        attach_pinned(program, &pin, renew, create).map_err(failed)
    }

    fn detach_xdp(&mut self, interface: &Interface, hook: XdpHook) -> Result<(), Error> {
        let pin = self.links.join(link_name(interface, hook.label()));
        detach_pinned(&pin).map_err(|reason| attach_error(&interface.name, hook.label(), reason))
    }
}

/// Whether the XDP program of this interface is ours, by what is pinned: there is one program at a time.
pub fn has_xdp(pin_dir: &Path, name: &str, index: u32) -> bool {
    let interface = Interface {
        name: name.to_owned(),
        index,
        ethernet: true,
    };
    let links = pin_dir.join(format!("v{ABI_VERSION}")).join("links");
    let hooks = [XdpHook::Native, XdpHook::Generic];
    let mut pins = hooks
        .map(|hook| links.join(link_name(&interface, hook.label())))
        .into_iter();
    pins.any(|pin| pin.exists())
}

/// The program, loaded.
pub(super) fn early(ebpf: &mut aya::Ebpf) -> Result<&mut Xdp, Error> {
    let failed = |source: ProgramError| Error::Program {
        program: EARLY.to_owned(),
        source: Box::new(source),
    };
    let program = ebpf
        .program_mut(EARLY)
        .ok_or_else(|| Error::Missing(format!("program {EARLY}")))?;
    let program: &mut Xdp = program.try_into().map_err(failed)?;
    if program.fd().is_err() {
        program.load().map_err(failed)?;
    }
    Ok(program)
}
