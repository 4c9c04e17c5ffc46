//! What configs, commands and messages choose among.

use serde::{Deserialize, Serialize};

/// Where XDP programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpHook {
    /// In the driver.
    Native,
    /// In the kernel's receive path, on any interface: for trying things out.
    Generic,
}

impl XdpHook {
    /// Its name in the config, in pins and in messages.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    /// The one that it is not.
    pub const fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

/// What always goes to the same version while the share stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// All connections of a client's address.
    #[default]
    Client,
    /// A connection, by both its ends.
    Connection,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// TCX links (Linux 6.6): survive the daemon, replaced atomically.
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// How copies travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// In this connection, out of the kernel's rings.
    #[default]
    Stream,
    /// As datagrams, which the kernel sends by itself.
    Geneve,
}

impl Transport {
    /// The word for it in configs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Geneve => "geneve",
        }
    }
}

/// What the command line changes about one service's mirror.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Mirror, whatever the file says.
    On,
    /// Do not mirror, whatever the file says.
    Off,
    /// Share of connections, 0 to 1.
    Sample(f64),
    /// Back to what the file says.
    Clear,
}

/// Who decides about a service's mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The config file.
    File,
    /// The command line.
    Cli,
}

impl Source {
    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::File => "config",
            Self::Cli => "cli",
        }
    }
}
