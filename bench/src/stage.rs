//! Everything that stays as it is while ways of copying come and go.

use anyhow::{Context, Result};
use tempfile::TempDir;
use tests::{Process, Topology};

use crate::cores::Cores;
use crate::nginx::{self, MODEL_PORT};

/// The shadow host's address.
pub(crate) const SHADOW: &str = "10.1.0.9";

/// Three hosts, two models. What is declared first is taken down first.
pub(crate) struct Stage {
    apart: Option<Cores>,
    _production: Process,
    _shadow: Process,
    pub(crate) folder: TempDir,
    pub(crate) net: Topology,
}

/// Whether packets leave the uplink as large as they are, and with unfinished checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offloads {
    On,
    Off,
}

impl Stage {
    /// Builds it, with all cores for everybody.
    pub(crate) fn build() -> Result<Self> {
        Self::build_on(None)
    }

    /// The same, with the first core for the node and its clients, and the others for the shadow host. What
    /// is started by the caller has to be, too, by [`Stage::on_node`].
    pub(crate) fn build_apart() -> Result<Self> {
        let cores = Cores::split()?;
        let stage = Self::build_on(Some(cores))?;
        if let Some(cores) = &stage.apart {
            cores.receive(&stage.net.shadow, false)?;
        }
        Ok(stage)
    }

    /// What this starts runs where the shadow host's programs do.
    pub(crate) fn on_shadow<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.apart {
            Some(cores) => cores.clients(start),
            None => start(),
        }
    }

    /// What this starts runs where the node's programs do.
    pub(crate) fn on_node<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.apart {
            Some(cores) => cores.node(start),
            None => start(),
        }
    }

    fn build_on(apart: Option<Cores>) -> Result<Self> {
        let net = Topology::new()?;
        let folder = tempfile::Builder::new()
            .prefix("modelmirror-bench-")
            .tempdir()
            .context("no room for temporary files")?;
        let model = |host, version| nginx::model(host, folder.path(), version, MODEL_PORT);
        let (production, shadow) = match &apart {
            None => (model(&net.node, "v12")?, model(&net.shadow, "v13")?),
            Some(cores) => (
                cores.node(|| model(&net.node, "v12"))?,
                cores.clients(|| model(&net.shadow, "v13"))?,
            ),
        };
        Ok(Self {
            apart,
            _production: production,
            _shadow: shadow,
            folder,
            net,
        })
    }

    /// Switches segmentation in the uplink: a veth never cuts packets by itself, a real NIC does.
    pub(crate) fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        let word = match offloads {
            Offloads::On => "on",
            Offloads::Off => "off",
        };
        self.net
            .node
            .ethtool(&format!(
                "-K eth1 tso {word} gso {word} tx-udp_tnl-segmentation {word}"
            ))
            .map(drop)
    }
}
