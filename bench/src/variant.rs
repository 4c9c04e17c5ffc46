//! The ways of copying requests, attached for one measurement and taken away after it.

use anyhow::Result;
use tests::{Agent, Daemon, Home, Namespace, Process};
use toml::Table;

use crate::nginx::{self, MODEL_PORT, PROXY_PORT};
use crate::sink::{Door, Sink};
use crate::stage::{SHADOW, Stage};

/// How requests are copied to the shadow host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    None,
    TcMirred,
    NftDup,
    NginxMirror,
    Requests,
    Both,
    BothWithAgent,
}

impl Variant {
    pub(crate) const ALL: [Self; 7] = [
        Self::None,
        Self::TcMirred,
        Self::NftDup,
        Self::NginxMirror,
        Self::Requests,
        Self::Both,
        Self::BothWithAgent,
    ];

    /// As the report names it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::None => "no mirror",
            Self::TcMirred => "tc mirred, requests",
            Self::NftDup => "nft dup, requests",
            Self::NginxMirror => "nginx mirror, requests",
            Self::Requests => "**modelmirror, requests**",
            Self::Both => "**modelmirror, both directions**",
            Self::BothWithAgent => "modelmirror, both directions; agent and shadow model here too",
        }
    }

    /// Throughput as a share of none that is to be reached.
    pub(crate) const fn target(self) -> Option<f64> {
        match self {
            Self::Requests => Some(0.95),
            _ => None,
        }
    }

    /// The port that clients dial.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::NginxMirror => PROXY_PORT,
            _ => MODEL_PORT,
        }
    }

    /// Begins to copy.
    pub(crate) fn attach(self, stage: &Stage) -> Result<Attached> {
        let node = &stage.net.node;
        match self {
            Self::None => Ok(Attached::Nothing),
            Self::TcMirred => {
                // u32 is the classifier that every kernel has.
                let rule = format!(
                    "filter add dev eth0 ingress protocol ip u32 match ip dport {MODEL_PORT} 0xffff \
                     action mirred egress mirror dev eth1"
                );
                tc(node, "qdisc add dev eth0 clsact")?;
                let attached = Attached::Tc {
                    node: node.clone(),
                    _door: Door::at(&stage.net.shadow)?,
                };
                tc(node, &rule)?;
                Ok(attached)
            }
            Self::NftDup => {
                let rules = format!(
                    "add table ip bench; \
                     add chain ip bench copy {{ type filter hook prerouting priority -300; }}; \
                     add rule ip bench copy iifname eth0 tcp dport {MODEL_PORT} dup to {SHADOW} device eth1"
                );
                let attached = Attached::Nft {
                    node: node.clone(),
                    _door: Door::at(&stage.net.shadow)?,
                };
                node.output("nft", &[&rules])?;
                Ok(attached)
            }
            Self::NginxMirror => {
                let proxy = nginx::mirroring_proxy(node, stage.folder.path(), SHADOW)?;
                Ok(Attached::Nginx { _proxy: proxy })
            }
            Self::Requests => Modelmirror::attach(stage, "requests", Far::Sink),
            Self::Both => Modelmirror::attach(stage, "both", Far::Sink),
            Self::BothWithAgent => Modelmirror::attach(stage, "both", Far::Agent),
        }
    }
}

/// Takes away what was attached when dropped.
pub(crate) enum Attached {
    Nothing,
    Tc { node: Namespace, _door: Door },
    Nft { node: Namespace, _door: Door },
    Nginx { _proxy: Process },
    Modelmirror { _both_ends: Box<Modelmirror> },
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Both fail only when attaching has failed, which has been reported.
        match self {
            Self::Tc { node, .. } => drop(tc(node, "qdisc del dev eth0 clsact")),
            Self::Nft { node, .. } => drop(node.output("nft", &["delete table ip bench"])),
            Self::Nothing | Self::Nginx { .. } | Self::Modelmirror { .. } => {}
        }
    }
}

/// What copies end in.
#[derive(Clone, Copy)]
pub(crate) enum Far {
    /// A socket that drops them.
    Sink,
    /// The agent, with a shadow model.
    Agent,
}

/// The real daemon, and what its copies end in. What is declared first is taken down first.
pub(crate) struct Modelmirror {
    pub(crate) daemon: Daemon,
    pub(crate) agent: Option<Agent>,
    _sink: Option<Sink>,
    pub(crate) home: Home,
}

impl Modelmirror {
    fn attach(stage: &Stage, directions: &str, far: Far) -> Result<Attached> {
        let both_ends = Box::new(Self::start(stage, directions, far)?);
        Ok(Attached::Modelmirror {
            _both_ends: both_ends,
        })
    }

    /// Starts both halves, and waits until connections are copied.
    pub(crate) fn start(stage: &Stage, directions: &str, far: Far) -> Result<Self> {
        let home = Home::new()?;
        let (shadow, node) = (&stage.net.shadow, &stage.net.node);
        let (agent, sink) = match far {
            Far::Sink => (None, Some(Sink::start(shadow)?)),
            Far::Agent => (
                Some(Agent::start(shadow, &home, &home.shadow_config())?),
                None,
            ),
        };
        let mut config = home.node_config();
        if let Some(mirror) = mirror(&mut config) {
            mirror.insert("directions".to_owned(), directions.into());
        }
        let daemon = Daemon::start(node, &home, &config)?;
        daemon.wait_for_agent()?;
        Ok(Self {
            daemon,
            agent,
            _sink: sink,
            home,
        })
    }
}

fn mirror(config: &mut Table) -> Option<&mut Table> {
    config["service"][0]["mirror"].as_table_mut()
}

fn tc(node: &Namespace, command: &str) -> Result<()> {
    let words: Vec<_> = command.split(' ').collect();
    node.output("tc", &words).map(drop)
}
