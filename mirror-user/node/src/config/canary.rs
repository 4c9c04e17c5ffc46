//! `[service.canary]`: the version on trial, and its share.

use std::net::SocketAddr;
use std::time::Duration;

use mirror_api::{Affinity, XdpHook};
use mirror_rollout::Share;
use toml::Spanned;

use mirror_base::config::table::{Problems, Section};
use mirror_base::config::{Fault, ServiceAddress, values};

/// The version on trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Canary {
    /// Its name.
    pub version: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new connections.
    pub share: Share,
    /// What stays together.
    pub affinity: Affinity,
    /// How long new connections are steered without a daemon.
    pub steer_stale: Duration,
    /// Above this, new connections are stable's.
    pub max_new_connections_per_second: u32,
    /// Where packets of a canary on another host are taken; nothing = at TC.
    pub xdp: Option<XdpHook>,
}

impl Canary {
    /// One that the file says nothing of.
    pub fn at(version: String, address: SocketAddr) -> Self {
        Self {
            version,
            address,
            share: Share::NONE,
            affinity: Affinity::default(),
            steer_stale: STEER_STALE,
            max_new_connections_per_second: MAX_NEW_CONNECTIONS,
            xdp: None,
        }
    }
}

/// How long new connections are steered without a daemon unless the file says otherwise.
const STEER_STALE: Duration = Duration::from_secs(60);

/// How many new connections the canary takes in a second unless the file says otherwise.
const MAX_NEW_CONNECTIONS: u32 = 20_000;

const AFFINITIES: &[(&str, Affinity)] = &[
    ("client", Affinity::Client),
    ("connection", Affinity::Connection),
];

const XDP: &[(&str, Option<XdpHook>)] = &[
    ("off", None),
    (XdpHook::Native.label(), Some(XdpHook::Native)),
    (XdpHook::Generic.label(), Some(XdpHook::Generic)),
];

/// The section as it was typed.
pub(super) struct TypedCanary {
    version: String,
    address: Option<Spanned<SocketAddr>>,
    share: Share,
    affinity: Affinity,
    steer_stale: Duration,
    max_new_connections_per_second: u32,
    xdp: Option<XdpHook>,
}

impl TypedCanary {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let most = u64::from(u32::MAX);
        let typed = Self {
            version: section
                .or("version", "canary".to_owned(), values::name)
                .into_inner(),
            address: section.required("address", "address = \"10.0.0.5:8001\"", values::remote),
            share: section
                .or("share", Share::NONE, values::fine_share)
                .into_inner(),
            affinity: section
                .or("affinity", Affinity::default(), values::choice(AFFINITIES))
                .into_inner(),
            steer_stale: section
                .or("steer_stale", STEER_STALE, values::duration)
                .into_inner(),
            max_new_connections_per_second: section
                .or(
                    "max_new_connections_per_second",
                    MAX_NEW_CONNECTIONS.into(),
                    values::integer(1, most),
                )
                .into_inner() as u32,
            xdp: section.or("xdp", None, values::choice(XDP)).into_inner(),
        };
        section.finish();
        typed
    }

    /// The canary must be somebody else than the service.
    pub(super) fn check(&self, service: &[Spanned<ServiceAddress>], problems: &Problems) {
        let Some(address) = &self.address else { return };
        let own = *address.get_ref();
        if let Some(taken) = service
            .iter()
            .find(|taken| taken.get_ref().is_taken_by(own))
        {
            let what = format!("{own} is the service's own address, {}", taken.get_ref());
            let cure = "write where the canary listens: another port, or another address";
            problems.add(address.span(), Fault::new(what, cure));
        }
    }

    pub(super) fn build(self) -> Option<Canary> {
        Some(Canary {
            version: self.version,
            address: self.address?.into_inner(),
            share: self.share,
            affinity: self.affinity,
            steer_stale: self.steer_stale,
            max_new_connections_per_second: self.max_new_connections_per_second,
            xdp: self.xdp,
        })
    }
}
