//! The ways of giving a canary its share, set up for one measurement and taken away after it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mirror_common::tunnel::Arm;
use tests::{Daemon, Home, Process, try_within};

use super::connection;
use crate::nginx::{self, KEEP_ALIVE, MODEL_PORT, PROXY_PORT};
use crate::stage::Stage;

/// Where the canary listens.
pub(super) const CANARY_PORT: u16 = 8002;

/// What the canary gets, of connections or of requests.
const SHARE: f64 = 0.25;

/// The weights that say the same.
const WEIGHTS: [u32; 2] = [75, 25];

/// New connections that are opened to see who answers.
const TRIALS: usize = 32;

/// Debian's folder for nginx's modules.
const MODULES: &str = "/usr/lib/nginx/modules";

/// Who splits the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    None,
    Modelmirror,
    HaproxyTcp,
    HaproxyHttp,
    NginxStream,
    NginxHttp,
}

impl Way {
    pub(super) const ALL: [Self; 6] = [
        Self::None,
        Self::Modelmirror,
        Self::HaproxyTcp,
        Self::HaproxyHttp,
        Self::NginxStream,
        Self::NginxHttp,
    ];

    /// As the report names it.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::None => "no steering, stable alone",
            Self::Modelmirror => "**modelmirror**",
            Self::HaproxyTcp => "HAProxy, `mode tcp`",
            Self::HaproxyHttp => "HAProxy, `mode http`",
            Self::NginxStream => "nginx, `stream`",
            Self::NginxHttp => "nginx, `http`",
        }
    }

    /// Whether it is one that ours is to be held against.
    pub(super) const fn is_proxy(self) -> bool {
        !matches!(self, Self::None | Self::Modelmirror)
    }

    /// The port that clients dial.
    pub(super) const fn port(self) -> u16 {
        if self.is_proxy() {
            PROXY_PORT
        } else {
            MODEL_PORT
        }
    }

    /// Begins to split, and sees both versions answer.
    pub(super) fn attach(self, stage: &Stage) -> Result<Attached> {
        let attached = match self {
            Self::None => return Ok(Attached::Nothing),
            Self::Modelmirror => Attached::Modelmirror {
                _steered: Steered::start(stage, SHARE)?,
            },
            Self::HaproxyTcp => haproxy(stage, "mode tcp")?,
            // A request goes over whatever connection to its server is idle.
            Self::HaproxyHttp => haproxy(stage, "mode http\n    http-reuse always")?,
            Self::NginxStream => nginx(stage, |upstream| {
                format!(
                    "load_module {MODULES}/ngx_stream_module.so;
                     stream {{
                         upstream models {{ {upstream} }}
                         server {{ listen {PROXY_PORT}; proxy_pass models; }}
                     }}"
                )
            })?,
            Self::NginxHttp => nginx(stage, |upstream| {
                nginx::http(&format!(
                    "upstream models {{ {upstream} keepalive 64; keepalive_requests 1000000000; }}
                     server {{
                         listen {PROXY_PORT};
                         location / {{ proxy_pass http://models; {KEEP_ALIVE} }}
                     }}"
                ))
            })?,
        };
        both_answer(stage, self.port())?;
        Ok(attached)
    }
}

/// Takes away what splits when dropped.
pub(super) enum Attached {
    Nothing,
    Proxy { _process: Process },
    Modelmirror { _steered: Steered },
}

/// The real daemon, which only steers. What is declared first is taken down first.
pub(super) struct Steered {
    _daemon: Daemon,
    pub(super) home: Home,
}

impl Steered {
    /// Starts it with a share of all connections, each chosen by itself.
    pub(super) fn start(stage: &Stage, share: f64) -> Result<Self> {
        let home = Home::new()?;
        let mut config = home.node_config();
        let mut canary = toml::toml! {
            version = "v13"
            affinity = "connection"
            max_new_connections_per_second = 1_000_000
        };
        canary.insert(
            "address".to_owned(),
            format!("10.0.0.5:{CANARY_PORT}").into(),
        );
        canary.insert("share".to_owned(), share.into());
        if let Some(service) = config["service"][0].as_table_mut() {
            service.remove("mirror");
            service.insert("canary".to_owned(), canary.into());
        }
        Ok(Self {
            _daemon: Daemon::start(&stage.net.node, &home, &config)?,
            home,
        })
    }
}

/// One process of HAProxy, which has a thread for each core that it may use: the node's one.
fn haproxy(stage: &Stage, mode: &str) -> Result<Attached> {
    let [stable, canary] = WEIGHTS;
    let config = format!(
        "global
    maxconn 4096
defaults
    {mode}
    timeout connect 5s
    timeout client 1m
    timeout server 1m
listen models
    bind :{PROXY_PORT}
    balance roundrobin
    server stable 127.0.0.1:{MODEL_PORT} weight {stable}
    server canary 127.0.0.1:{CANARY_PORT} weight {canary}\n"
    );
    let path = stage.folder.path().join("haproxy.cfg");
    fs::write(&path, config).context("cannot write haproxy.cfg")?;
    let node = &stage.net.node;
    let mut command = node.command("haproxy");
    // In the foreground.
    command.args(["-db", "-f"]).arg(&path);
    let process = node.spawn("haproxy", command)?;
    Ok(Attached::Proxy {
        _process: nginx::answering(process, node, PROXY_PORT)?,
    })
}

/// A process of nginx, for the node's one core; `config` is told the servers.
fn nginx(stage: &Stage, config: impl Fn(&str) -> String) -> Result<Attached> {
    let [stable, canary] = WEIGHTS;
    let config = config(&format!(
        "server 127.0.0.1:{MODEL_PORT} weight={stable}; server 127.0.0.1:{CANARY_PORT} weight={canary};"
    ));
    let (node, folder) = (&stage.net.node, stage.folder.path());
    Ok(Attached::Proxy {
        _process: nginx::start(node, folder, "proxy", &config, PROXY_PORT)?,
    })
}

fn both_answer(stage: &Stage, port: u16) -> Result<()> {
    let server = ([10, 0, 0, 5], port).into();
    try_within(Duration::from_secs(10), "both versions answer", || {
        let opened = stage.net.client.run(|| {
            let trials = 0..TRIALS;
            trials
                .map(|_| connection::open(server))
                .collect::<Result<Vec<_>>>()
        })?;
        let canary = opened.iter().filter(|one| one.arm == Arm::Canary).count();
        ensure!(
            (1..TRIALS).contains(&canary),
            "canary: {canary} of {TRIALS}"
        );
        Ok(())
    })
}
