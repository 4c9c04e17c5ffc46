//! The eBPF programs and maps. The only file that names aya: the rest sees typed handles.
//!
//! Links and maps are pinned under `PIN_DIR/v{ABI_VERSION}/{links,maps}` and outlive the process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, PerCpuArray, PerCpuValues};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use mirror_common::ABI_VERSION;
use mirror_common::counters::{Counters, RunTime, Sent};
use mirror_common::flow::Endpoint;
use mirror_common::policy::{Agent, Budget, MAX_AGENTS, Service, Tap};

/// The programs, built from `mirror-ebpf` by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/modelmirror.bpf.o"));

/// Where our filters stand in a clsact chain: before all that ask for no place of their own.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x4d4d);

/// What can go wrong between here and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The pin directory is not usable.
    #[error("{path}: {source}; is bpffs mounted there? (mount -t bpf bpf /sys/fs/bpf)")]
    PinDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Pins of a layout that this version does not know.
    #[error(
        "{path}: pinned by another version of modelmirror (layout {found}, this one is v{ABI_VERSION}); \
         run `modelmirror off` to remove it"
    )]
    UnknownLayout {
        /// The directory.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// A pinned map is not what its name says.
    #[error(
        "{path}: pinned map is {found}, expected {expected}; run `modelmirror off` to remove it"
    )]
    ForeignMap {
        /// The pin.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The kernel refused the programs or maps.
    #[error("loading the eBPF programs: {0}")]
    Load(#[from] Box<EbpfError>),
    /// The embedded object is not what this file expects.
    #[error("the embedded eBPF object has no {0}")]
    Missing(String),
    /// A program could not be loaded or run.
    #[error("eBPF program {program}: {source}")]
    Program {
        /// Which.
        program: String,
        /// Why.
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("attaching to {interface} ({hook}): {reason}")]
    Attach {
        /// Where.
        interface: String,
        /// Which hook.
        hook: &'static str,
        /// Why.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("eBPF map {map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// Why.
        source: Box<MapError>,
    },
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// TCX links (Linux 6.6): survive the daemon, replaced atomically.
    Tcx,
    /// The clsact qdisc.
    Clsact,
}

/// What an interface is to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Role {
    /// Clients' packets pass here.
    pub tapped: bool,
    /// Copies leave here.
    pub uplink: bool,
}

/// An interface as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its number: a re-created interface has another.
    pub index: u32,
    /// Whether its packets have Ethernet headers.
    pub ethernet: bool,
}

/// Which way a hook looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that come in.
    Ingress,
    /// Packets that go out.
    Egress,
}

impl Hook {
    /// Its name in pins and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// The program for a hook of an interface, if it needs one.
///
/// The loopback shows every packet at both hooks, so only its ingress is tapped.
fn program_for(interface: &Interface, role: Role, hook: Hook) -> Option<&'static str> {
    let tapped = role.tapped && !(hook == Hook::Egress && interface.name == "lo");
    match (hook, tapped, role.uplink, interface.ethernet) {
        (Hook::Ingress, true, _, true) => Some("ingress"),
        (Hook::Ingress, true, _, false) => Some("ingress_ip"),
        (Hook::Ingress, false, _, _) | (Hook::Egress, false, false, _) => None,
        (Hook::Egress, true, _, true) => Some("egress"),
        (Hook::Egress, true, _, false) => Some("egress_ip"),
        (Hook::Egress, false, true, true) => Some("uplink"),
        (Hook::Egress, false, true, false) => Some("uplink_ip"),
    }
}

const PROGRAMS: [&str; 6] = [
    "ingress",
    "egress",
    "uplink",
    "ingress_ip",
    "egress_ip",
    "uplink_ip",
];

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct DataPlane {
    ebpf: Ebpf,
    links: PathBuf,
    mechanism: Mechanism,
}

impl DataPlane {
    /// Loads the programs over the pinned maps, which it creates where there are none. What is
    /// attached goes on unchanged until [`DataPlane::attach`].
    pub fn load(pin_dir: &Path, mechanism: Option<Mechanism>) -> Result<Self, Error> {
        let (maps, links) = prepare_pins(pin_dir)?;
        check_pinned_maps(&maps)?;
        let cpus = possible_cpus();
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&maps)
            .map_max_entries("SCRATCH", cpus)
            .load(OBJECT)
            .map_err(Box::new)?;
        for name in PROGRAMS {
            let program = classifier(&mut ebpf, name)?;
            program.load().map_err(|source| Error::Program {
                program: name.to_owned(),
                source: Box::new(source),
            })?;
        }
        let mechanism = mechanism.unwrap_or_else(|| {
            if tcx_works() {
                Mechanism::Tcx
            } else {
                Mechanism::Clsact
            }
        });
        Ok(Self {
            ebpf,
            links,
            mechanism,
        })
    }

    /// How programs are attached on this kernel.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// The programs' log: rare events only. Can be taken once.
    pub fn log(&mut self) -> Result<Log, Error> {
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf);
        logger
            .map(Log)
            .map_err(|error| Error::Missing(format!("log: {error}")))
    }

    /// Attaches what `interface` needs in its role, in place of what an earlier daemon attached.
    pub fn attach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        self.mark_tapped(interface.index, role.tapped)?;
        for hook in [Hook::Ingress, Hook::Egress] {
            match (program_for(interface, role, hook), self.mechanism) {
                (Some(program), Mechanism::Tcx) => self.attach_tcx(interface, hook, program)?,
                (Some(program), Mechanism::Clsact) => {
                    self.attach_clsact(interface, hook, program)?
                }
                (None, _) => self.detach_hook(interface, hook)?,
            }
        }
        Ok(())
    }

    fn attach_tcx(&mut self, interface: &Interface, hook: Hook, name: &str) -> Result<(), Error> {
        let pin = self.links.join(link_name(interface, hook));
        let failed = |reason: String| attach_error(&interface.name, hook, reason);
        match PinnedLink::from_pin(&pin) {
            Ok(pinned) => {
                let updated = SchedClassifierLink::try_from(FdLink::from(pinned))
                    .map_err(|error| error.to_string())
                    .and_then(|link| {
                        let program =
                            classifier(&mut self.ebpf, name).map_err(|error| error.to_string())?;
                        let id = program
                            .attach_to_link(link)
                            .map_err(|error| chain(&error))?;
                        program
                            .take_link(id)
                            .map(drop)
                            .map_err(|error| chain(&error))
                    });
                if updated.is_ok() {
                    return Ok(());
                }
                // The link was severed with its device: a new one takes its name.
                fs::remove_file(&pin).map_err(|error| failed(error.to_string()))?;
            }
            Err(LinkError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(chain(&error))),
        }
        let program = classifier(&mut self.ebpf, name)?;
        let link = program
            .attach_with_options(
                &interface.name,
                hook.attach_type(),
                TcAttachOptions::TcxOrder(LinkOrder::first()),
            )
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(chain(&error)))?;
        let link: FdLink = link
            .try_into()
            .map_err(|error: LinkError| failed(chain(&error)))?;
        link.pin(&pin)
            .map(drop)
            .map_err(|error| failed(chain(&error)))
    }

    fn attach_clsact(
        &mut self,
        interface: &Interface,
        hook: Hook,
        name: &str,
    ) -> Result<(), Error> {
        let failed = |reason: String| attach_error(&interface.name, hook, reason);
        // Fails where the qdisc is already there, which is as good.
        let _ = tc::qdisc_add_clsact(&interface.name);
        let program = classifier(&mut self.ebpf, name)?;
        let own = SchedClassifierLink::attached(
            &interface.name,
            hook.attach_type(),
            CLSACT_PRIORITY,
            CLSACT_HANDLE,
            None,
        )
        .map_err(|error| failed(error.to_string()))?;
        let id = match program.attach_to_link(own) {
            Ok(id) => id,
            // There was none to replace.
            Err(_) => {
                let options = NlOptions {
                    priority: CLSACT_PRIORITY,
                    handle: CLSACT_HANDLE,
                    classid: None,
                };
                program
                    .attach_with_options(
                        &interface.name,
                        hook.attach_type(),
                        TcAttachOptions::Netlink(options),
                    )
                    .map_err(|error| failed(chain(&error)))?
            }
        };
        let link = program
            .take_link(id)
            .map_err(|error| failed(chain(&error)))?;
        // Dropping it would detach it; the filter belongs to the interface.
        std::mem::forget(link);
        Ok(())
    }

    /// Attaches anew, as the first in the chain, where others may have come in between.
    pub fn reattach(&mut self, interface: &Interface, role: Role) -> Result<(), Error> {
        self.detach(interface)?;
        self.attach(interface, role)
    }

    /// Detaches whatever is on `interface`.
    pub fn detach(&mut self, interface: &Interface) -> Result<(), Error> {
        self.mark_tapped(interface.index, false)?;
        self.detach_hook(interface, Hook::Ingress)?;
        self.detach_hook(interface, Hook::Egress)
    }

    fn detach_hook(&mut self, interface: &Interface, hook: Hook) -> Result<(), Error> {
        let pin = self.links.join(link_name(interface, hook));
        match fs::remove_file(&pin) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(attach_error(&interface.name, hook, error.to_string())),
        }
        if self.mechanism == Mechanism::Clsact {
            detach_clsact(&interface.name, hook);
        }
        Ok(())
    }

    /// Removes pins of interfaces that are not in `keep`: deleted ones, and ones that the config
    /// no longer names.
    pub fn retain(&mut self, keep: &[Interface]) -> Result<(), Error> {
        let names: HashSet<String> = keep
            .iter()
            .flat_map(|interface| {
                [Hook::Ingress, Hook::Egress].map(|hook| link_name(interface, hook))
            })
            .collect();
        let entries = fs::read_dir(&self.links).map_err(|source| Error::PinDir {
            path: self.links.clone(),
            source,
        })?;
        for entry in entries.flatten() {
            if !names.contains(&*entry.file_name().to_string_lossy()) {
                tracing::info!(pin = %entry.path().display(), "removing a link that is no longer wanted");
                let _ = fs::remove_file(entry.path());
            }
        }
        let indexes: HashSet<u32> = keep.iter().map(|interface| interface.index).collect();
        let mut tapped = self.hash_map::<u32, u32>("TAPPED")?;
        let stale: Vec<u32> = tapped
            .keys()
            .flatten()
            .filter(|index| !indexes.contains(index))
            .collect();
        for index in stale {
            let _ = tapped.remove(&index);
        }
        Ok(())
    }

    fn mark_tapped(&mut self, index: u32, tapped: bool) -> Result<(), Error> {
        let mut map = self.hash_map::<u32, u32>("TAPPED")?;
        if tapped {
            map.insert(index, 1, 0).map_err(|source| Error::Map {
                map: "TAPPED",
                source: Box::new(source),
            })
        } else {
            let _ = map.remove(&index);
            Ok(())
        }
    }

    /// Makes `services` the rules: adds and replaces first, then removes what is gone.
    pub fn set_services(&mut self, services: &HashMap<Endpoint, Service>) -> Result<(), Error> {
        let failed = |source| Error::Map {
            map: "SERVICES",
            source: Box::new(source),
        };
        let mut ports = BTreeMap::<u32, u64>::new();
        for endpoint in services.keys() {
            *ports.entry(u32::from(endpoint.port()) / 64).or_default() |=
                1 << (endpoint.port() % 64);
        }
        let mut map = self.hash_map::<Endpoint, Service>("SERVICES")?;
        let known: HashMap<Endpoint, Service> = map.iter().flatten().collect();
        for (endpoint, service) in services {
            if known.get(endpoint) != Some(service) {
                map.insert(endpoint, service, 0).map_err(failed)?;
            }
        }
        for endpoint in known
            .keys()
            .filter(|endpoint| !services.contains_key(endpoint))
        {
            map.remove(endpoint).map_err(failed)?;
        }
        let mut bits = self.array::<u64>("PORTS")?;
        for word in 0..1024 {
            let value = ports.get(&word).copied().unwrap_or(0);
            if bits.get(&word, 0).ok() != Some(value) {
                bits.set(word, value, 0).map_err(|source| Error::Map {
                    map: "PORTS",
                    source: Box::new(source),
                })?;
            }
        }
        Ok(())
    }

    /// Sets the way to an agent.
    pub fn set_agent(&mut self, number: u32, agent: &Agent) -> Result<(), Error> {
        self.hash_map::<u32, Agent>("AGENTS")?
            .insert(number, agent, 0)
            .map_err(|source| Error::Map {
                map: "AGENTS",
                source: Box::new(source),
            })
    }

    /// Forgets the ways to agents for which `keep` says no.
    pub fn retain_agents(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        let mut map = self.hash_map::<u32, Agent>("AGENTS")?;
        let stale: Vec<u32> = map
            .keys()
            .flatten()
            .filter(|&number| !keep(number))
            .collect();
        for number in stale {
            let _ = map.remove(&number);
        }
        Ok(())
    }

    /// State of the whole tap.
    pub fn tap(&mut self) -> Result<Tap, Error> {
        self.array::<Tap>("TAP")?
            .get(&0, 0)
            .map_err(|source| map_error("TAP", source))
    }

    /// Sets the state of the whole tap: with it the programs know that the daemon lives.
    pub fn set_tap(&mut self, tap: Tap) -> Result<(), Error> {
        self.array::<Tap>("TAP")?
            .set(0, tap, 0)
            .map_err(|source| map_error("TAP", source))
    }

    /// The rules that hold, by endpoint.
    pub fn services(&mut self) -> Result<HashMap<Endpoint, Service>, Error> {
        Ok(self.hash_map("SERVICES")?.iter().flatten().collect())
    }

    /// The ways to agents, by their numbers.
    pub fn agents(&mut self) -> Result<HashMap<u32, Agent>, Error> {
        Ok(self.hash_map("AGENTS")?.iter().flatten().collect())
    }

    /// Sets both of a service's rows of counters to nothing.
    pub fn clear_rows(&mut self, index: u32) -> Result<(), Error> {
        for row in [index * 2, index * 2 + 1] {
            self.clear_per_cpu::<Counters>("COUNTERS", row)?;
        }
        Ok(())
    }

    /// Sets what has been sent to an agent to nothing.
    pub fn clear_sent(&mut self, agent: u32) -> Result<(), Error> {
        self.clear_per_cpu::<Sent>("SENT", agent)
    }

    fn clear_per_cpu<T: aya::Pod + Default>(
        &mut self,
        name: &'static str,
        row: u32,
    ) -> Result<(), Error> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::PinDir {
            path: "/sys/devices/system/cpu".into(),
            source,
        })?;
        let zero = PerCpuValues::try_from(vec![T::default(); cpus])
            .map_err(|source| map_error(name, MapError::IoError(source)))?;
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        let mut map =
            PerCpuArray::<_, T>::try_from(map).map_err(|source| map_error(name, source))?;
        map.set(row, zero, 0)
            .map_err(|source| map_error(name, source))
    }

    /// Clones to an agent that left without their headers, since the last [`DataPlane::forgive`].
    pub fn escaped(&mut self, agent: u32) -> Result<u64, Error> {
        self.array::<u64>("ESCAPED")?
            .get(&agent, 0)
            .map_err(|source| Error::Map {
                map: "ESCAPED",
                source: Box::new(source),
            })
    }

    /// Lets clones go to an agent again, once its uplink's hook has been looked after.
    pub fn forgive(&mut self, agent: u32) -> Result<(), Error> {
        self.array::<u64>("ESCAPED")?
            .set(agent, 0, 0)
            .map_err(|source| Error::Map {
                map: "ESCAPED",
                source: Box::new(source),
            })
    }

    /// Lets connections in again that hit a service's budget in the past; those that did stay out
    /// as long as the budget is not back below its limit.
    pub fn budget(&mut self, service: u32) -> Result<Budget, Error> {
        self.array::<Budget>("BUDGETS")?
            .get(&service, 0)
            .map_err(|source| Error::Map {
                map: "BUDGETS",
                source: Box::new(source),
            })
    }

    /// Counters of a row (service index * 2 + direction; 0 = no service), all CPUs together.
    pub fn counters(&self, row: u32) -> Result<Counters, Error> {
        self.sum::<Counters>("COUNTERS", row)
    }

    /// Durations of our runs at a hook, all CPUs together.
    pub fn run_time(&self, hook: Hook) -> Result<RunTime, Error> {
        self.sum::<RunTime>("RUN_TIME", hook as u32)
    }

    /// What each CPU has sent to an agent.
    pub fn sent(&self, agent: u32) -> Result<Vec<Sent>, Error> {
        Ok(self
            .per_cpu::<Sent>("SENT")?
            .get(&agent, 0)
            .map_err(|source| map_error("SENT", source))?
            .to_vec())
    }

    fn sum<T>(&self, map: &'static str, row: u32) -> Result<T, Error>
    where
        T: aya::Pod + Default + for<'a> std::ops::AddAssign<&'a T>,
    {
        let values = self
            .per_cpu::<T>(map)?
            .get(&row, 0)
            .map_err(|source| map_error(map, source))?;
        let mut sum = T::default();
        for value in values.iter() {
            sum += value;
        }
        Ok(sum)
    }

    fn per_cpu<T: aya::Pod>(&self, name: &'static str) -> Result<PerCpuArray<&MapData, T>, Error> {
        let map = self
            .ebpf
            .map(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        PerCpuArray::try_from(map).map_err(|source| map_error(name, source))
    }

    fn array<T: aya::Pod>(&mut self, name: &'static str) -> Result<Array<&mut MapData, T>, Error> {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        Array::try_from(map).map_err(|source| map_error(name, source))
    }

    fn hash_map<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<BpfHashMap<&mut MapData, K, V>, Error> {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        BpfHashMap::try_from(map).map_err(|source| map_error(name, source))
    }

    /// Runs a program once on `frame` through `BPF_PROG_TEST_RUN`, for tests: the verdict, and the
    /// mean duration of `repeat` runs. Clones that it makes are really sent.
    #[doc(hidden)]
    pub fn test_run(
        &mut self,
        program: &str,
        frame: &[u8],
        context: Option<&[u8]>,
        repeat: u32,
    ) -> Result<(i32, std::time::Duration), Error> {
        let classifier = classifier(&mut self.ebpf, program)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = context;
        options.repeat = repeat;
        let result = classifier
            .test_run(options)
            .map_err(|source| Error::Program {
                program: program.to_owned(),
                source: Box::new(source),
            })?;
        Ok((result.return_value as i32, result.duration))
    }
}

/// What the programs have to say, through the `log` crate's logger.
pub struct Log(aya_log::EbpfLogger<&'static dyn log::Log>);

impl Log {
    /// Passes on what has come in.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// Removes every link and map under `pin_dir`, of whatever layout: mirroring ends with the next
/// packet. Works without a daemon. Returns what was removed.
pub fn detach_all(pin_dir: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    let layouts = match fs::read_dir(pin_dir) {
        Ok(layouts) => layouts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error),
    };
    for interface in fs::read_dir("/sys/class/net")?.flatten() {
        let interface = interface.file_name().to_string_lossy().into_owned();
        for hook in [Hook::Ingress, Hook::Egress] {
            if detach_clsact(&interface, hook) {
                removed.push(format!("clsact/{interface}@{}", hook.label()));
            }
        }
    }
    for layout in layouts {
        let layout = layout?.path();
        // Links first: a map must outlive the programs that use it.
        for kind in ["links", "maps"] {
            let Ok(pins) = fs::read_dir(layout.join(kind)) else {
                continue;
            };
            for pin in pins {
                let pin = pin?;
                fs::remove_file(pin.path())?;
                removed.push(format!("{kind}/{}", pin.file_name().to_string_lossy()));
            }
            fs::remove_dir(layout.join(kind))?;
        }
        fs::remove_dir(&layout)?;
    }
    fs::remove_dir(pin_dir)?;
    Ok(removed)
}

/// Programs of others on `interface` through TCX, with their names, in their order; nothing where
/// the kernel cannot tell.
pub fn foreign_programs(interface: &str, hook: Hook) -> Vec<String> {
    let Ok((_, programs)) = SchedClassifier::query_tcx(interface, hook.attach_type()) else {
        return Vec::new();
    };
    let names = programs
        .iter()
        .map(|program| program.name_as_str().unwrap_or("?").to_owned());
    names
        .filter(|name| !PROGRAMS.contains(&name.as_str()))
        .collect()
}

/// Whether the kernel has TCX (6.6): asked, not guessed from its version.
pub fn tcx_works() -> bool {
    // Where TCX is missing the query itself is unknown (EINVAL); being forbidden to ask is no "no".
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => true,
        Err(ProgramError::SyscallError(error)) => {
            error.io_error.raw_os_error() == Some(libc::EPERM)
        }
        Err(_) => false,
    }
}

/// The directories for maps and links, made where missing. Refuses layouts of other versions.
fn prepare_pins(pin_dir: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::PinDir { path, source }
    };
    let own = format!("v{ABI_VERSION}");
    if let Ok(layouts) = fs::read_dir(pin_dir) {
        for layout in layouts.flatten() {
            let found = layout.file_name().to_string_lossy().into_owned();
            if found != own {
                return Err(Error::UnknownLayout {
                    path: pin_dir.to_owned(),
                    found,
                });
            }
        }
    }
    let root = pin_dir.join(own);
    let (maps, links) = (root.join("maps"), root.join("links"));
    for directory in [&maps, &links] {
        fs::create_dir_all(directory).map_err(failed(directory))?;
    }
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(pin_dir, fs::Permissions::from_mode(0o700)).map_err(failed(pin_dir))?;
    Ok((maps, links))
}

/// aya 0.14 reuses pinned maps unseen, and a larger value would overrun its buffers.
fn check_pinned_maps(maps: &Path) -> Result<(), Error> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| Error::Missing(format!("meaning: {error}")))?;
    let entries = fs::read_dir(maps).map_err(|source| Error::PinDir {
        path: maps.to_owned(),
        source,
    })?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let Some(wanted) = object.maps.get(name) else {
            return Err(Error::UnknownLayout {
                path: maps.to_owned(),
                found: format!("map {name}"),
            });
        };
        let entries = if name == "SCRATCH" {
            possible_cpus()
        } else {
            wanted.max_entries()
        };
        let expected = shape(
            wanted.map_type(),
            wanted.key_size(),
            wanted.value_size(),
            entries,
        );
        let info = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map_err(|source| map_error("pinned", source))?;
        let map_type = info.map_type().map(|map_type| map_type as u32).unwrap_or(0);
        let found = shape(
            map_type,
            info.key_size(),
            info.value_size(),
            info.max_entries(),
        );
        if found != expected {
            return Err(Error::ForeignMap {
                path,
                found,
                expected,
            });
        }
    }
    Ok(())
}

fn shape(map_type: u32, key: u32, value: u32, entries: u32) -> String {
    format!("type {map_type}, {key}-byte keys, {value}-byte values, {entries} entries")
}

fn possible_cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |cpus| cpus as u32)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Missing(format!("program {name}")))?;
    program.try_into().map_err(|source| Error::Program {
        program: name.to_owned(),
        source: Box::new(source),
    })
}

/// A pin names the interface's number too: a re-created interface is another one.
fn link_name(interface: &Interface, hook: Hook) -> String {
    // A pin's name may not have a dot (bpffs).
    format!(
        "{}@{}@{}",
        interface.name.replace('.', ":"),
        interface.index,
        hook.label()
    )
}

/// Whether there was a filter of ours.
fn detach_clsact(interface: &str, hook: Hook) -> bool {
    SchedClassifierLink::attached(
        interface,
        hook.attach_type(),
        CLSACT_PRIORITY,
        CLSACT_HANDLE,
        None,
    )
    .is_ok_and(|link| aya::programs::links::Link::detach(link).is_ok())
}

fn attach_error(interface: &str, hook: Hook, reason: String) -> Error {
    Error::Attach {
        interface: interface.to_owned(),
        hook: hook.label(),
        reason,
    }
}

fn map_error(map: &'static str, source: MapError) -> Error {
    Error::Map {
        map,
        source: Box::new(source),
    }
}

/// An error with its causes, which aya's own messages leave out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The largest number of agents that fit the maps.
pub const AGENTS: u32 = MAX_AGENTS;
