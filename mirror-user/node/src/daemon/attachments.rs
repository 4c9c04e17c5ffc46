//! What is attached where, and making it what it should be.

use std::collections::BTreeMap;

use mirror_api::XdpHook;

use super::kernel::Kernel;
use super::way::Way;
use crate::dataplane::{Error, Interface, Role};
use crate::netlink::Link;

/// What is attached to an interface of this name.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
    /// The interface as it was then, and for what.
    pub(super) to: Option<(Interface, Role)>,
    /// Why nothing is.
    pub(super) error: Option<String>,
    /// Why nothing is at XDP, though it should be: TC does the work.
    pub(super) xdp_error: Option<String>,
    /// Programs of others that run before ours.
    pub(super) before: Vec<String>,
}

impl Attachment {
    /// Where packets are taken at XDP.
    pub(super) fn xdp(&self) -> Option<XdpHook> {
        let (_, role) = self.to.as_ref()?;
        role.xdp.filter(|_| self.xdp_error.is_none())
    }
}

/// What should be attached, by the interface's name; nothing where there is no such interface.
pub(super) type Wanted = BTreeMap<String, Option<(Interface, Role)>>;

/// A canary on another host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Away<'a> {
    /// The way there.
    pub(super) way: &'a Way,
    /// Where its packets should be taken; nothing = at TC.
    pub(super) xdp: Option<XdpHook>,
}

/// The loopback's number, in every network namespace.
const LOOPBACK: u32 = 1;

/// `tapped` are the names of the config, `links` what is known of them. What is not known yet is
/// left alone.
pub(super) fn wanted<'a>(
    tapped: &[String],
    links: &BTreeMap<String, Option<Link>>,
    uplinks: impl IntoIterator<Item = &'a Way>,
    away: &[Away<'a>],
) -> Wanted {
    let early = away.iter().find_map(|away| away.xdp);
    let mut wanted = Wanted::new();
    let role = Role {
        tapped: true,
        ..Role::default()
    };
    for name in tapped {
        if let Some(link) = links.get(name) {
            let there = link.as_ref().map(|link| {
                // Clients on this host itself are out of reach for such a canary.
                let xdp = early.filter(|_| link.ethernet && !link.loopback);
                (interface(link), Role { xdp, ..role })
            });
            wanted.insert(name.clone(), there);
        }
    }
    let mut at = |Way { link, .. }: &Way, add: &dyn Fn(&mut Role)| {
        let (_, role) = wanted
            .entry(link.name.clone())
            .or_default()
            .get_or_insert_with(|| (interface(link), Role::default()));
        add(role);
    };
    for way in uplinks {
        at(way, &|role| role.uplink = true);
    }
    for Away { way, xdp } in away {
        at(way, &|role| {
            role.answers = true;
            role.xdp = role.xdp.or(xdp.filter(|_| way.link.ethernet));
        });
    }
    wanted
}

/// An interface as the programs are attached to it.
fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        index: link.index,
        ethernet: link.ethernet,
    }
}

/// Every interface that is ours, by name.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    made: BTreeMap<String, Attachment>,
    /// Interfaces of the config that are not tapped, and why.
    excluded: BTreeMap<String, String>,
}

impl Attachments {
    /// What is attached to an interface.
    pub(super) fn get(&self, name: &str) -> Option<&Attachment> {
        self.made.get(name)
    }

    /// Why packets of canaries on other hosts are not taken at XDP: a frame that was taken there on one
    /// interface may find no way out by another, so it is all of those that clients and answers come in by,
    /// or none.
    pub(super) fn why_not_early(&self) -> Option<String> {
        self.made.iter().find_map(|(name, attachment)| {
            let (interface, role) = attachment.to.as_ref()?;
            let is_on_the_way = (role.tapped || role.answers) && interface.index != LOOPBACK;
            if !is_on_the_way {
                return None;
            }
            let none = || format!("{name} has no Ethernet headers");
            let is_early = role.xdp.is_some() && attachment.xdp_error.is_none();
            (!is_early).then(|| attachment.xdp_error.clone().unwrap_or_else(none))
        })
    }

    /// Why an interface of the config is not tapped, though it is there.
    pub(super) fn why_excluded(&self, name: &str) -> Option<&String> {
        self.excluded.get(name)
    }

    /// Which interfaces of the config are not tapped, and why.
    pub(super) fn exclude(&mut self, excluded: BTreeMap<String, String>) {
        for (interface, why) in &excluded {
            if self.excluded.get(interface) != Some(why) {
                tracing::error!(interface, "not attached: {why}");
            }
        }
        self.excluded = excluded;
    }

    /// Names of all.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.made.keys()
    }

    /// Whether the program that writes the tunnel's headers is attached where `way` leaves.
    pub(super) fn carries(&self, way: &Way) -> bool {
        let attached = self.get(&way.link.name);
        let to = attached.and_then(|attachment| attachment.to.as_ref());
        to.is_some_and(|(attached, role)| *attached == interface(&way.link) && role.uplink)
    }

    /// Attaches and detaches until all is as `wanted`; what fails is tried again at the next call.
    pub(super) fn make(&mut self, kernel: &mut dyn Kernel, wanted: Wanted) {
        self.made.retain(|name, attachment| {
            let keep = wanted.contains_key(name);
            if let Some((interface, _)) = attachment.to.as_ref().filter(|_| !keep) {
                tracing::info!(interface = name, "detached");
                let _ = kernel.detach(interface);
            }
            keep
        });
        let present = wanted.values().flatten();
        let keep: Vec<_> = present.map(|(interface, _)| interface.clone()).collect();
        for (name, wanted) in wanted {
            let attachment = self.made.entry(name.clone()).or_default();
            match wanted {
                None => attachment.gone(&name),
                Some(wanted) if attachment.to.as_ref() == Some(&wanted) => {
                    // Somebody else's program may have gone meanwhile.
                    if attachment.xdp_error.is_some() {
                        attachment.attach_xdp(kernel, &wanted.0, wanted.1);
                    }
                }
                Some((interface, role)) => attachment.attach(kernel, interface, role),
            }
        }
        if let Err(error) = kernel.retain(&keep) {
            tracing::warn!("{error}");
        }
    }

    /// Looks who runs before our programs, and attaches anew where they are gone.
    pub(super) fn look_at_chains(&mut self, kernel: &mut dyn Kernel) {
        for (name, attachment) in &mut self.made {
            let Some((interface, role)) = attachment.to.clone() else {
                continue;
            };
            let Some(chain) = kernel.chain(&interface, role) else {
                // Not allowed to ask.
                continue;
            };
            if chain.is_missing {
                tracing::error!(interface = name, "somebody has detached us; attaching anew");
                if let Err(error) = kernel.reattach(&interface, role) {
                    *attachment = Attachment::default();
                    tracing::error!("{error}");
                }
                continue;
            }
            if chain.before != attachment.before && !chain.before.is_empty() {
                let before = chain.before.join(", ");
                tracing::warn!(
                    interface = name,
                    before,
                    "other programs run before ours: what they keep is not seen"
                );
            }
            attachment.before = chain.before;
        }
    }

    /// Attaches anew where `way` leaves, as the first in the chain.
    pub(super) fn renew(&self, kernel: &mut dyn Kernel, way: &Way) -> Result<(), Error> {
        let attached = self.get(&way.link.name);
        match attached.and_then(|attachment| attachment.to.as_ref()) {
            Some((interface, role)) => kernel.reattach(interface, *role),
            None => Ok(()),
        }
    }
}

impl Attachment {
    fn gone(&mut self, name: &str) {
        if self.to.take().is_some() {
            tracing::warn!(interface = name, "is gone");
        }
        self.error = Some("there is no such interface".to_owned());
    }

    fn attach(&mut self, kernel: &mut dyn Kernel, interface: Interface, role: Role) {
        if let Err(error) = kernel.attach(&interface, role) {
            let error = Some(error.to_string());
            if self.error != error {
                tracing::error!("{}", error.as_deref().unwrap_or_default());
            }
            *self = Self {
                error,
                ..Self::default()
            };
            return;
        }
        self.attach_xdp(kernel, &interface, role);
        let Interface { name, index, .. } = &interface;
        let Role {
            tapped,
            uplink,
            answers,
            xdp,
        } = role;
        let xdp = xdp.filter(|_| self.xdp_error.is_none());
        let xdp = xdp.map_or("off", XdpHook::label);
        tracing::info!(
            interface = name,
            index,
            tapped,
            uplink,
            answers,
            xdp,
            "attached"
        );
        self.to = Some((interface, role));
        self.error = None;
    }

    fn attach_xdp(&mut self, kernel: &mut dyn Kernel, interface: &Interface, role: Role) {
        let error = kernel.attach_xdp(interface, role.xdp).err();
        let error = error.map(|error| error.to_string());
        if let (Some(why), true) = (&error, self.xdp_error != error) {
            tracing::error!("{why}; TC does the work");
        }
        self.xdp_error = error;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{link, way};
    use super::*;

    /// Names that the config taps, the uplink if there is a way, the link towards a canary if it is
    /// elsewhere, and what should be attached, with the interface's number and role. There are lo (1),
    /// eth0 (2) and eth1 (3), and no eth7.
    #[track_caller]
    fn check(
        tapped: &[&str],
        uplink: Option<Link>,
        canary: Option<(Link, Option<XdpHook>)>,
        expected: &[&str],
    ) {
        let tapped: Vec<_> = tapped.iter().map(|&name| name.to_owned()).collect();
        let loopback = Link {
            loopback: true,
            ..link("lo", 1)
        };
        let links = [
            ("eth0", Some(link("eth0", 2))),
            ("eth1", Some(link("eth1", 3))),
            ("eth7", None),
            ("lo", Some(loopback)),
        ];
        let links = links.map(|(name, link)| (name.to_owned(), link));
        let by = |link| Way { link, ..way() };
        let xdp = canary.as_ref().and_then(|(_, xdp)| *xdp);
        let (uplink, canary) = (uplink.map(by), canary.map(|(link, _)| by(link)));
        let away = canary.as_ref().map(|way| Away { way, xdp });
        let wanted = wanted(&tapped, &links.into(), &uplink, away.as_slice());
        let shown = wanted.iter().map(|(name, wanted)| match wanted {
            None => format!("{name}: none"),
            Some((interface, role)) => {
                let roles = [
                    (role.tapped, " tapped"),
                    (role.uplink, " uplink"),
                    (role.answers, " answers"),
                    (role.xdp == Some(XdpHook::Native), " native"),
                ];
                let roles = roles.map(|(has, word)| if has { word } else { "" });
                format!("{name} {}:{}", interface.index, roles.concat())
            }
        });
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_interface_may_be_tapped_and_an_uplink() {
        let eth0 = || Some(link("eth0", 2));
        let eth1 = || Some(link("eth1", 3));
        check(&["eth0"], None, None, &["eth0 2: tapped"]);
        check(&["eth0"], eth0(), None, &["eth0 2: tapped uplink"]);
        let both = ["eth0 2: tapped", "eth1 3: uplink"];
        check(&["eth0"], eth1(), None, &both);
        let both = ["eth0 2: tapped uplink", "eth1 3: answers"];
        let at_tc = |link: Option<Link>| link.map(|link| (link, None));
        check(&["eth0"], eth0(), at_tc(eth1()), &both);
        check(&["eth0"], None, at_tc(eth0()), &["eth0 2: tapped answers"]);
        let both = ["eth0 2: tapped native", "eth1 3: answers native"];
        let early = || eth1().map(|link| (link, Some(XdpHook::Native)));
        check(&["eth0"], None, early(), &both);
        let both = ["eth1 3: answers native", "lo 1: tapped"];
        check(&["lo"], None, early(), &both);
    }

    #[test]
    fn an_interface_that_is_not_there_is_wanted_all_the_same() {
        check(&["eth7"], None, None, &["eth7: none"]);
    }

    #[test]
    fn an_interface_that_nobody_has_looked_at_yet_is_left_alone() {
        check(&["eth8"], None, None, &[]);
    }
}
