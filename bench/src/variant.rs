//! The ways of copying requests, attached for one measurement and taken away after it.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{Agent, Daemon, Home, Namespace, Process, Transport, try_within};
use toml::Table;

use crate::load::{Copying, Measured};
use crate::nginx::{self, MODEL_PORT, PROXY_PORT};
use crate::sink::{Door, Sink};
use crate::stage::{SHADOW, Stage};

/// How long the sender may take for what a load has left behind.
const DRAINING: Duration = Duration::from_secs(30);

/// How requests are copied to the shadow host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    None,
    TcMirred,
    NftDup,
    NginxMirror,
    Requests,
    Both,
    Geneve,
    BothWithAgent,
}

impl Variant {
    pub(crate) const ALL: [Self; 8] = [
        Self::None,
        Self::TcMirred,
        Self::NftDup,
        Self::NginxMirror,
        Self::Requests,
        Self::Both,
        Self::Geneve,
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
            Self::Geneve => "modelmirror with `geneve`, requests",
            Self::BothWithAgent => "modelmirror, both directions; agent and shadow model here too",
        }
    }

    /// Whether the copies are ours.
    pub(crate) const fn is_ours(self) -> bool {
        self.is_to_sink() || matches!(self, Self::BothWithAgent)
    }

    /// Whether it is ours, and its copies go where nothing is done with them.
    pub(crate) const fn is_to_sink(self) -> bool {
        matches!(self, Self::Requests | Self::Both | Self::Geneve)
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
            Self::Requests => Modelmirror::attach(stage, "requests", Transport::Stream, Far::Sink),
            Self::Both => Modelmirror::attach(stage, "both", Transport::Stream, Far::Sink),
            Self::Geneve => Modelmirror::attach(stage, "requests", Transport::Geneve, Far::Sink),
            Self::BothWithAgent => {
                Modelmirror::attach(stage, "both", Transport::Stream, Far::Agent)
            }
        }
    }
}

/// Takes away what was attached when dropped.
pub(crate) enum Attached {
    Nothing,
    Tc { node: Namespace, _door: Door },
    Nft { node: Namespace, _door: Door },
    Nginx { _proxy: Process },
    Modelmirror { both_ends: Box<Modelmirror> },
}

impl Attached {
    /// Has a load run, and adds what its copies came to.
    pub(crate) fn watch(&self, run: impl FnOnce() -> Result<Measured>) -> Result<Measured> {
        match self {
            Self::Modelmirror { both_ends } => both_ends.watch(run),
            _ => run(),
        }
    }
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
    /// What takes them and forgets them.
    Sink,
    /// The agent, with a shadow model.
    Agent,
}

/// The real daemon, and what its copies end in. What is declared first is taken down first.
pub(crate) struct Modelmirror {
    pub(crate) daemon: Daemon,
    pub(crate) agent: Option<Agent>,
    sink: Option<Sink>,
    pub(crate) home: Home,
}

impl Modelmirror {
    fn attach(stage: &Stage, directions: &str, transport: Transport, far: Far) -> Result<Attached> {
        let change = |mirror: &mut Table| {
            mirror.insert("directions".to_owned(), directions.into());
        };
        let both_ends = Box::new(Self::start(stage, transport, far, change)?);
        Ok(Attached::Modelmirror { both_ends })
    }

    /// Starts both halves, and waits until connections are copied. `change` is told the section of the
    /// mirror in the node's config.
    pub(crate) fn start(
        stage: &Stage,
        transport: Transport,
        far: Far,
        change: impl FnOnce(&mut Table),
    ) -> Result<Self> {
        let home = Home::new()?;
        let config = config(&home, transport, change);
        Self::start_with(stage, home, far, &config)
    }

    /// The same by a whole config of the node.
    pub(crate) fn start_with(stage: &Stage, home: Home, far: Far, config: &Table) -> Result<Self> {
        let (shadow, node) = (&stage.net.shadow, &stage.net.node);
        let on_shadow = || -> Result<(Option<Agent>, Option<Sink>)> {
            Ok(match far {
                Far::Sink => (None, Some(Sink::start(shadow, &home)?)),
                Far::Agent => {
                    let agent = Agent::start(shadow, &home, &home.shadow_config())?;
                    (Some(agent), None)
                }
            })
        };
        let (agent, sink) = stage.on_shadow(on_shadow)?;
        let daemon = Daemon::start(node, &home, config)?;
        daemon.wait_for_agent()?;
        Ok(Self {
            daemon,
            agent,
            sink,
            home,
        })
    }

    /// Has a load run that finds nothing left of earlier ones, waits until its copies are shipped, and adds
    /// what they came to.
    pub(crate) fn watch(&self, run: impl FnOnce() -> Result<Measured>) -> Result<Measured> {
        let before = self.drained()?;
        let mut measured = run()?;
        let ended = self.copying()?;
        let after = self.drained()?;
        measured.copying = Copying {
            sender_seconds: ended.sender_seconds - before.sender_seconds,
            sink_seconds: ended.sink_seconds - before.sink_seconds,
            copied: ended.copied - before.copied,
            refused: ended.refused - before.refused,
            shipped: ended.shipped - before.shipped,
            held: ended.held,
            late_sender_seconds: after.sender_seconds - ended.sender_seconds,
            late_sink_seconds: after.sink_seconds - ended.sink_seconds,
        };
        Ok(measured)
    }

    /// Where the figures stand once the rings are empty.
    fn drained(&self) -> Result<Copying> {
        try_within(DRAINING, "the rings are empty", || {
            let copying = self.copying()?;
            ensure!(copying.held == 0.0, "{} bytes", copying.held);
            Ok(copying)
        })
    }

    /// Where the figures stand.
    fn copying(&self) -> Result<Copying> {
        let metrics = self.daemon.metrics()?;
        let sum = |name| metrics.sum(name, &[]);
        let full = [("reason", "ring_full")];
        Ok(Copying {
            sender_seconds: sum("modelmirror_sender_cpu_seconds_total"),
            sink_seconds: self.sink.as_ref().map_or(0.0, Sink::cpu_seconds),
            copied: sum("modelmirror_mirrored_packets_total"),
            refused: metrics.sum("modelmirror_packets_total", &full),
            shipped: sum("modelmirror_sender_shipped_bytes_total"),
            held: sum("modelmirror_ring_held_bytes"),
            ..Copying::default()
        })
    }
}

/// The node's config; `change` is told its section of the mirror.
fn config(home: &Home, transport: Transport, change: impl FnOnce(&mut Table)) -> Table {
    let mut config = home.node_config();
    if let Some(mirror) = config["service"][0]["mirror"].as_table_mut() {
        mirror.insert("transport".to_owned(), transport.label().into());
        change(mirror);
    }
    config
}

fn tc(node: &Namespace, command: &str) -> Result<()> {
    let words: Vec<_> = command.split(' ').collect();
    node.output("tc", &words).map(drop)
}
