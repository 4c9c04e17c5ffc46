//! The real `modelmirror`, as daemon and as agent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use mirror_base::transport::keys::{Existing, PrivateKey, PublicKey};
use mirror_node::agent_api::{self, Access};
use serde_json::Value;
use tempfile::TempDir;
use toml::Table;

use crate::client::get;
use crate::metrics::Metrics;
use crate::namespace::Namespace;
use crate::process::Process;
use crate::wait::{LIMIT, try_within};

/// Where the daemon's /metrics is, inside its namespace.
const NODE_ADMIN: SocketAddr = SocketAddr::new(LOOPBACK, 9469);

/// Where the agent's /metrics is, inside its namespace.
const SHADOW_ADMIN: SocketAddr = SocketAddr::new(LOOPBACK, 9470);

/// Where the agent listens, inside its namespace.
const SHADOW: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, 9)), 6181);

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The file of the node's key, below its home.
const NODE_KEY: &str = "node.key";

/// The file of the agent's.
const AGENT_KEY: &str = "agent.key";

/// Where programs and maps can be pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// How folders begin that this harness makes; the process's id follows.
const PREFIX: &str = "modelmirror-harness-";

/// The name of the service that the configs are about.
const SERVICE: &str = "digits";

/// How copies travel in tests that are about both transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through rings, in a TLS connection.
    Stream,
    /// As datagrams that the kernel sends.
    Geneve,
}

impl Transport {
    /// What the environment variable `MODELMIRROR_TRANSPORT` says; `stream` where it is not set.
    ///
    /// # Panics
    /// Where it says something else.
    pub fn of_this_run() -> Self {
        match std::env::var("MODELMIRROR_TRANSPORT").as_deref() {
            Err(_) | Ok("stream") => Self::Stream,
            Ok("geneve") => Self::Geneve,
            Ok(other) => panic!("MODELMIRROR_TRANSPORT={other} is neither stream nor geneve"),
        }
    }

    /// As configs call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Geneve => "geneve",
        }
    }
}

/// A program of this workspace, built by the same cargo run as the program that asks: `cargo xtask
/// test`, `demo` and `bench` see to it.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find out where this program is")?;
    let folder = this.parent().unwrap_or(Path::new("."));
    // Tests are one folder deeper than programs.
    let folder = if folder.ends_with("deps") {
        folder.parent().unwrap_or(folder)
    } else {
        folder
    };
    let path = folder.join(name);
    ensure!(
        path.is_file(),
        "{} was not built: `cargo build --workspace --bins` does",
        path.display()
    );
    Ok(path)
}

/// The files of one node and its shadow: configs, keys, state, records and pins; all gone when dropped.
/// It outlives daemons, so that the next one finds what the last one left.
#[derive(Debug)]
pub struct Home {
    folder: TempDir,
    pins: PathBuf,
    node_key: PrivateKey,
    agent_key: PublicKey,
}

impl Home {
    /// An empty one.
    ///
    /// # Errors
    /// When there is no room for temporary files.
    pub fn new() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep(&std::env::temp_dir());
        sweep(Path::new(BPFFS));
        let process = format!("{PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&process).tempdir()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = Path::new(BPFFS).join(format!("{process}{number}"));
        let key = |name: &str| PrivateKey::create(&folder.path().join(name), Existing::Keep);
        Ok(Self {
            node_key: key(NODE_KEY)?,
            agent_key: key(AGENT_KEY)?.public(),
            folder,
            pins,
        })
    }

    /// The agent's private key, and the node's public one: what something in the agent's place needs.
    ///
    /// # Errors
    /// When the key's file cannot be read.
    pub fn keys_of_agent(&self) -> Result<(PrivateKey, PublicKey)> {
        let own = PrivateKey::read(&self.path().join(AGENT_KEY))?;
        Ok((own, self.node_key.public()))
    }

    /// The folder for everything but pins.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where programs and maps are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Where the agent's records are.
    pub fn record_dir(&self) -> PathBuf {
        self.path().join("records")
    }

    /// A node's config: the service `digits` with id 101 on port 8000 of all addresses, in version
    /// `v12`, all of it mirrored from `eth0` to the agent at 10.1.0.9:6181. Change what the test is
    /// about: `config["service"][0]["mirror"]["sample"] = 0.5.into()`.
    pub fn node_config(&self) -> Table {
        let mut config = toml::toml! {
            interfaces = ["eth0"]
            [[service]]
            name = "digits"
            id = 101
            addresses = ["*:8000"]
            [service.stable]
            version = "v12"
            [service.mirror]
            agent = "10.1.0.9:6181"
            sample = 1.0
            max_bytes_per_second = 1_000_000_000
        };
        if let Some(mirror) = config["service"][0]["mirror"].as_table_mut() {
            mirror.insert("agent_key".into(), self.agent_key.to_string().into());
            mirror.insert("transport".into(), Transport::of_this_run().label().into());
        }
        config
            .with("key_file", self.path().join(NODE_KEY))
            .with("state_dir", self.path().join("state"))
            .with("pin_dir", self.pins.clone())
            .with("control_socket", self.control())
            .with("admin", NODE_ADMIN.to_string())
    }

    /// A shadow host's config: that service, replayed to the model in version `v13` at
    /// 127.0.0.1:8000, and compared by its probabilities.
    pub fn shadow_config(&self) -> Table {
        let mut config = toml::toml! {
            listen = "[::]:6181"
            [[service]]
            name = "digits"
            id = 101
            target = "127.0.0.1:8000"
            version = "v13"
            [service.compare]
            prediction = "/outputs/0/data"
            ignore = ["/id", "/model_version"]
            [[tap]]
            name = "node"
        };
        if let Some(tap) = config["tap"][0].as_table_mut() {
            tap.insert("key".into(), self.node_key.public().to_string().into());
        }
        config
            .with("key_file", self.path().join(AGENT_KEY))
            .with("admin", SHADOW_ADMIN.to_string())
            .with("control_socket", self.path().join("shadow.sock"))
            .with("record_dir", self.record_dir())
    }

    /// Runs `modelmirror ARGUMENTS --control SOCKET` inside a namespace and returns what it printed.
    ///
    /// # Errors
    /// With what it wrote to stderr, when its exit code is not 0.
    pub fn modelmirror(&self, namespace: &Namespace, arguments: &[&str]) -> Result<String> {
        let (program, control) = (binary("modelmirror")?, self.control());
        let mut arguments = arguments.to_vec();
        let control = control.to_string_lossy();
        arguments.extend(["--control", &control]);
        namespace.output(&program.to_string_lossy(), &arguments)
    }

    /// The daemon's control socket.
    pub fn control(&self) -> PathBuf {
        self.path().join("control.sock")
    }

    fn write(&self, name: &str, config: &Table) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, config.to_string()).context("cannot write the config")?;
        Ok(path)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Not there when no daemon ever ran; programs and links go with their pins.
        let _ = fs::remove_dir_all(&self.pins);
    }
}

/// Removes what processes left behind that were killed: folders named after their ids.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            // Another process may be sweeping too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A table with one more value.
trait With {
    fn with(self, key: &str, value: impl Into<PathBuf>) -> Self;
}

impl With for Table {
    fn with(mut self, key: &str, value: impl Into<PathBuf>) -> Self {
        let value: PathBuf = value.into();
        self.insert(key.to_owned(), value.to_string_lossy().into_owned().into());
        self
    }
}

/// `modelmirror run`, killed when dropped. What it attached stays, as the design wants it, until
/// its [`Home`] or its namespace goes.
#[derive(Debug)]
pub struct Daemon {
    /// The process, for signals and output.
    pub process: Process,
    namespace: Namespace,
    config: PathBuf,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// With its output, when it ends instead, or is not ready in time.
    pub fn start(namespace: &Namespace, home: &Home, config: &Table) -> Result<Self> {
        Self::start_with(namespace, home, config, &[])
    }

    /// Starts it with more arguments than `--config`: `&["--attach", "clsact"]`.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with(
        namespace: &Namespace,
        home: &Home,
        config: &Table,
        arguments: &[&str],
    ) -> Result<Self> {
        let config = home.write("node.toml", config)?;
        let process = start(namespace, "run", &config, arguments, NODE_ADMIN)?;
        Ok(Self {
            process,
            namespace: namespace.clone(),
            config,
        })
    }

    /// What /metrics says now.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        metrics(&self.namespace, NODE_ADMIN)
    }

    /// What /metrics says now, as it says it.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn scrape(&self) -> Result<String> {
        scrape(&self.namespace, NODE_ADMIN)
    }

    /// Waits until an agent has answered a report, from when on connections are copied.
    ///
    /// # Errors
    /// With all metrics, when none has in time.
    pub fn wait_for_agent(&self) -> Result<()> {
        try_within(LIMIT, "the agent is known to live", || {
            let metrics = self.metrics()?;
            ensure!(metrics.sum("modelmirror_agent_up", &[]) >= 1.0, "{metrics}");
            Ok(())
        })
    }

    /// The path of its config, for a SIGHUP after a change.
    pub fn config(&self) -> &Path {
        &self.config
    }
}

/// `modelmirror shadow`, killed when dropped.
#[derive(Debug)]
pub struct Agent {
    /// The process, for signals and output.
    pub process: Process,
    namespace: Namespace,
    config: PathBuf,
    records: PathBuf,
    access: Access,
}

impl Agent {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// With its output, when it ends instead, or is not ready in time.
    pub fn start(namespace: &Namespace, home: &Home, config: &Table) -> Result<Self> {
        let config = home.write("shadow.toml", config)?;
        let process = start(namespace, "shadow", &config, &[], SHADOW_ADMIN)?;
        Ok(Self {
            process,
            namespace: namespace.clone(),
            config,
            records: home.record_dir(),
            access: Access::Keys {
                own: home.node_key.clone(),
                agent: home.agent_key,
            },
        })
    }

    /// The path of its config, for a SIGHUP after a change.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What /metrics says now.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        metrics(&self.namespace, SHADOW_ADMIN)
    }

    /// What /metrics says now, as it says it.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn scrape(&self) -> Result<String> {
        scrape(&self.namespace, SHADOW_ADMIN)
    }

    /// What `modelmirror status` says of it, as `text` or `json`.
    ///
    /// # Errors
    /// With what was written to stderr, when the exit code is not 0.
    pub fn status(&self, output: &str) -> Result<String> {
        let program = binary("modelmirror")?;
        let control = self.config.with_file_name("shadow.sock");
        let control = control.to_string_lossy();
        let arguments = ["status", "--output", output, "--control", &control];
        self.namespace
            .output(&program.to_string_lossy(), &arguments)
    }

    /// What it tells the node: its summary of the service.
    ///
    /// # Errors
    /// When it does not answer, or does not know the service.
    pub fn summary(&self) -> Result<Value> {
        let summary = self.namespace.run(|| -> Result<_> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            Ok(runtime.block_on(agent_api::summary(&SHADOW.into(), &self.access))?)
        })?;
        let mut services = summary.services.iter();
        let found = services.find(|service| service.name == SERVICE);
        let found = found.with_context(|| format!("{summary:?}"))?;
        Ok(serde_json::to_value(found)?)
    }

    /// How many of the service's requests ended so: `compared`, or the reason of a drop.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn requests(&self, outcome: &str) -> Result<u64> {
        let labels = [("service", SERVICE), ("outcome", outcome)];
        Ok(self
            .metrics()?
            .sum("modelmirror_shadow_requests_total", &labels) as u64)
    }

    /// Everything it has recorded, oldest first.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn records(&self) -> Result<Vec<Value>> {
        let Ok(folder) = fs::read_dir(self.records.join(SERVICE)) else {
            return Ok(Vec::new());
        };
        let mut files: Vec<_> = folder.flatten().map(|file| file.path()).collect();
        files.sort();
        let mut records = Vec::new();
        for file in files
            .iter()
            .filter(|file| file.extension().is_some_and(|e| e == "jsonl"))
        {
            let text = fs::read_to_string(file)?;
            // The last line may be half written.
            for line in text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
            {
                records.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
            }
        }
        Ok(records)
    }
}

/// Starts one half of modelmirror, and waits until it says that it is ready.
fn start(
    namespace: &Namespace,
    half: &str,
    config: &Path,
    arguments: &[&str],
    admin: SocketAddr,
) -> Result<Process> {
    let mut command = namespace.command(binary("modelmirror")?);
    command.arg(half).arg("--config").arg(config);
    command.args(arguments);
    let mut process = namespace.spawn(&format!("modelmirror {half}"), command)?;
    let what = format!("`modelmirror {half}` is ready");
    try_within(LIMIT, &what, || -> Result<Result<()>> {
        if let Err(ended) = process.running() {
            return Ok(Err(ended));
        }
        let (status, body) = get(namespace, admin, "/readyz").with_context(|| process.output())?;
        ensure!(
            status == 200,
            "/readyz says {status}: {body}\n{}",
            process.output()
        );
        Ok(Ok(()))
    })??;
    Ok(process)
}

fn metrics(namespace: &Namespace, admin: SocketAddr) -> Result<Metrics> {
    Metrics::parse(&scrape(namespace, admin)?)
}

fn scrape(namespace: &Namespace, admin: SocketAddr) -> Result<String> {
    let (status, body) = get(namespace, admin, "/metrics")?;
    ensure!(status == 200, "/metrics says {status}: {body}");
    Ok(body)
}
