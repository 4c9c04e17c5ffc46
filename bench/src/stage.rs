//! Everything that stays as it is while ways of copying come and go.

use anyhow::{Context, Result};
use tempfile::TempDir;
use tests::{Process, Topology};

use crate::nginx::{self, MODEL_PORT};

/// The shadow host's address.
pub(crate) const SHADOW: &str = "10.1.0.9";

/// Three hosts, two models. What is declared first is taken down first.
pub(crate) struct Stage {
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
    /// Builds it.
    pub(crate) fn build() -> Result<Self> {
        let net = Topology::new()?;
        let folder = tempfile::Builder::new()
            .prefix("modelmirror-bench-")
            .tempdir()
            .context("no room for temporary files")?;
        Ok(Self {
            _production: nginx::model(&net.node, folder.path(), "v12", MODEL_PORT)?,
            _shadow: nginx::model(&net.shadow, folder.path(), "v13", MODEL_PORT)?,
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
