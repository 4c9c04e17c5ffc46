//! The eBPF programs and maps. The only module that names aya: the rest sees typed handles.
//!
//! Links and maps are pinned under `PIN_DIR/v{ABI_VERSION}/{links,maps}` and outlive the process.

mod attach;
mod connections;
mod counts;
mod maps;
mod pins;
mod qdiscs;
mod ring;
mod rings;
mod steering;
mod table;
mod test_run;
mod translations;
mod xdp;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::MapError;
use aya::programs::{Program, ProgramError, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfError, EbpfLoader};
use mirror_common::ABI_VERSION;
use mirror_common::flow::Endpoint;
use mirror_common::policy::Service;

use mirror_api::{Mechanism, XdpHook};

pub use attach::{Chain, foreign_programs, tcx_works};
pub use connections::{Connections, Place};
pub use counts::Counts;
pub use maps::Pulse;
pub use pins::{attached, detach_all, find as find_pins};
pub use ring::Ring;
pub use rings::{Bell, try_to_pin};
pub use translations::Translations;
pub use xdp::has_xdp;

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

/// What an interface is to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Role {
    /// Clients' packets pass here.
    pub tapped: bool,
    /// Copies leave here.
    pub uplink: bool,
    /// Answers of canaries on other hosts come in here.
    pub answers: bool,
    /// Packets of canaries on other hosts are taken before there is an skb.
    pub xdp: Option<XdpHook>,
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

const PROGRAMS: [&str; 8] = [
    "ingress",
    "egress",
    "uplink",
    "answers",
    "ingress_ip",
    "egress_ip",
    "uplink_ip",
    "answers_ip",
];

/// How large maps are made whose size the config says.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of the tables of connections.
    pub connections: u32,
    /// Bytes of each CPU's deep ring: a power of two.
    pub ring: u32,
}

impl Sizes {
    /// Tables of so many connections, and the smallest rings.
    #[doc(hidden)]
    pub fn small(connections: u32) -> Self {
        Self {
            connections,
            ring: mirror_common::record::SMALLEST_RING,
        }
    }
}

/// Whether programs of one CPU may interrupt each other: on kernels with PREEMPT_RT packets are handled
/// in threads.
pub fn is_realtime() -> bool {
    std::fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1")
}

/// CPUs that this machine may ever have.
pub fn possible_cpus() -> u32 {
    pins::possible_cpus()
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct DataPlane {
    ebpf: Ebpf,
    links: PathBuf,
    mechanism: Mechanism,
    /// Bytes of each CPU's deep ring.
    ring_size: u32,
    /// What the programs count.
    counts: Arc<dyn Counts>,
    /// The rules that were written last: nobody else writes them.
    written: Option<HashMap<Endpoint, Service>>,
    /// Programs that the kernel has refused, and why: it would again, and takes long to say so.
    refused: HashMap<&'static str, String>,
}

impl DataPlane {
    /// Loads the programs of this object file over the pinned maps, which it creates where there are none. What is
    /// attached goes on unchanged until [`DataPlane::attach`].
    ///
    /// `sizes` holds where the maps are made now.
    pub fn load(
        object: &[u8],
        pin_dir: &Path,
        mechanism: Option<Mechanism>,
        sizes: Sizes,
    ) -> Result<Self, Error> {
        let Opened {
            mut ebpf,
            maps,
            links,
            ring_size,
        } = open(object, pin_dir, sizes)?;
        // The others when they are first attached: most hosts need these two, and the verifier takes its time.
        for name in ["ingress", "egress"] {
            classifier(&mut ebpf, name)?;
        }
        let mechanism = mechanism.unwrap_or_else(|| {
            if tcx_works() {
                Mechanism::Tcx
            } else {
                Mechanism::Clsact
            }
        });
        Ok(Self {
            counts: Arc::new(counts::Pinned::open(&maps)?),
            ebpf,
            links,
            mechanism,
            ring_size,
            written: None,
            refused: HashMap::new(),
        })
    }

    /// How programs are attached on this kernel.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// What the programs count, for any thread.
    pub fn counts(&self) -> &Arc<dyn Counts> {
        &self.counts
    }

    /// The programs' log: rare events only. Can be taken once.
    pub fn log(&mut self) -> Result<Log, Error> {
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf);
        logger
            .map(Log)
            .map_err(|error| Error::Missing(format!("log: {error}")))
    }
}

/// The object over its maps; no program is loaded yet.
struct Opened {
    ebpf: Ebpf,
    maps: PathBuf,
    links: PathBuf,
    /// Bytes of each CPU's deep ring.
    ring_size: u32,
}

fn open(object: &[u8], pin_dir: &Path, sizes: Sizes) -> Result<Opened, Error> {
    let (maps, links) = pins::prepare(pin_dir)?;
    // The rings' size is read from a map.
    pins::check_maps(object, &maps, None)?;
    let ring_size = rings::prepare(&maps, sizes.ring)?;
    pins::check_maps(object, &maps, Some(ring_size))?;
    let cpus = pins::possible_cpus();
    let connections = sizes.connections;
    let ebpf = EbpfLoader::new()
        .default_map_pin_directory(&maps)
        .override_global("RING_SIZE", &ring_size, true)
        .override_global("INTERRUPTIBLE", &u32::from(is_realtime()), true)
        .map_max_entries("SCRATCH", cpus)
        .map_max_entries("CONNECTIONS", connections)
        .map_max_entries("TRANSLATED", connections)
        .map_max_entries("TRANSLATIONS", connections)
        .load(object)
        .map_err(Box::new)?;
    Ok(Opened {
        ebpf,
        maps,
        links,
        ring_size,
    })
}

/// A program, and why this kernel refuses it, if it does.
#[doc(hidden)]
pub type Tried = (String, Result<(), String>);

/// Loads every program by itself.
#[doc(hidden)]
pub fn load_each(object: &[u8], pin_dir: &Path, sizes: Sizes) -> Result<Vec<Tried>, Error> {
    let mut opened = open(object, pin_dir, sizes)?;
    let programs = opened.ebpf.programs_mut();
    let mut loaded: Vec<Tried> = programs
        .map(|(name, program)| {
            let loaded = match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => return (name.to_owned(), Err("of no kind that is known".to_owned())),
            };
            (name.to_owned(), loaded.map_err(|error| chain(&error)))
        })
        .collect();
    loaded.sort();
    Ok(loaded)
}

/// What the programs have to say, through the `log` crate's logger.
pub struct Log(aya_log::EbpfLogger<&'static dyn log::Log>);

impl Log {
    /// Passes on what has come in.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

/// A program, loaded.
fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, Error> {
    let failed = |source| Error::Program {
        program: name.to_owned(),
        source: Box::new(source),
    };
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Missing(format!("program {name}")))?;
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    if program.fd().is_err() {
        program.load().map_err(failed)?;
    }
    Ok(program)
}

/// The program of this name, unless the kernel has refused it once.
fn once<'a, P>(
    refused: &mut HashMap<&'static str, String>,
    name: &'static str,
    ebpf: &'a mut Ebpf,
    load: impl FnOnce(&'a mut Ebpf, &str) -> Result<&'a mut P, Error>,
) -> Result<&'a mut P, String> {
    if let Some(reason) = refused.get(name) {
        return Err(reason.clone());
    }
    load(ebpf, name).map_err(|error| {
        let reason = error.to_string();
        refused.insert(name, reason.clone());
        reason
    })
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
