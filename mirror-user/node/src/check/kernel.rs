//! The kernel: features, asked for and not guessed from its version, and what we may do.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::dataplane;
use mirror_base::check::Finding;

/// Names and numbers of capabilities (linux/capability.h).
const NET_ADMIN: (&str, u32) = ("CAP_NET_ADMIN", 12);
const SYS_ADMIN: (&str, u32) = ("CAP_SYS_ADMIN", 21);
const PERFMON: (&str, u32) = ("CAP_PERFMON", 38);
const BPF: (&str, u32) = ("CAP_BPF", 39);

/// What is known of the kernel.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    release: String,
    btf: bool,
    tcx: bool,
    jit: Option<String>,
    /// The effective set.
    capabilities: u64,
    pin_dir: PathBuf,
    /// Whether `pin_dir`, or what there is of the way to it, lies on a bpffs.
    bpffs: bool,
    /// Whether a map could be pinned there, or why not.
    pins: Result<(), String>,
}

impl Kernel {
    pub(super) fn read(pin_dir: &Path) -> Self {
        let read = |path: &str| Some(std::fs::read_to_string(path).ok()?.trim().to_owned());
        let status = procfs::process::Process::myself().and_then(|process| process.status());
        let existing = pin_dir.ancestors().find(|path| path.exists());
        let on = existing.and_then(|path| statfs(path).ok());
        Self {
            release: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            tcx: dataplane::tcx_works(),
            jit: read("/proc/sys/net/core/bpf_jit_enable"),
            capabilities: status.map_or(0, |status| status.capeff),
            pin_dir: pin_dir.to_owned(),
            bpffs: on.is_some_and(|on| on.filesystem_type() == BPF_FS_MAGIC),
            pins: dataplane::try_to_pin(pin_dir),
        }
    }

    fn may(&self, (_, number): (&str, u32)) -> bool {
        self.capabilities >> number & 1 == 1
    }
}

pub(super) fn findings(kernel: &Kernel) -> Vec<Finding> {
    vec![
        features(kernel),
        jit(kernel),
        bpffs(kernel),
        capabilities(kernel),
    ]
}

fn features(kernel: &Kernel) -> Finding {
    let release = &kernel.release;
    match (kernel.btf, kernel.tcx) {
        (false, _) => Finding::refuse(
            "kernel",
            format!("Linux {release} has no type information (/sys/kernel/btf/vmlinux)"),
            "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' kernels are",
        ),
        (true, true) => Finding::ok("kernel", format!("Linux {release}, with BTF and TCX")),
        (true, false) => Finding::ok(
            "kernel",
            format!("Linux {release}, with BTF; without TCX (6.6), so clsact is used"),
        ),
    }
}

fn jit(kernel: &Kernel) -> Finding {
    match kernel.jit.as_deref() {
        Some("0") => Finding::warn(
            "BPF JIT",
            "off: our programs are interpreted, many times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => Finding::ok("BPF JIT", "on"),
        // Not there outside the host's own network namespace.
        None => Finding::ok("BPF JIT", "cannot be switched off here"),
    }
}

fn bpffs(kernel: &Kernel) -> Finding {
    let dir = kernel.pin_dir.display();
    match &kernel.pins {
        _ if !kernel.bpffs => {}
        Ok(()) => return Finding::ok("pin_dir", format!("{dir} is on a bpffs, and takes pins")),
        Err(why) => {
            let cure = "run as root, or as who owns that folder (systemd mounts /sys/fs/bpf for root alone)";
            return Finding::refuse(
                "pin_dir",
                format!("nothing can be pinned in {dir}: {why}"),
                cure,
            );
        }
    }
    Finding::refuse(
        "pin_dir",
        format!("{dir} is not on a bpffs, so nothing can be pinned there"),
        "mount -t bpf bpf /sys/fs/bpf (in a container: mount the host's)",
    )
}

fn capabilities(kernel: &Kernel) -> Finding {
    let missing: Vec<_> = [BPF, NET_ADMIN, PERFMON]
        .into_iter()
        // Before Linux 5.8 CAP_SYS_ADMIN stood for two of them, and still does.
        .filter(|&wanted| !(kernel.may(wanted) || wanted != NET_ADMIN && kernel.may(SYS_ADMIN)))
        .map(|(name, _)| name)
        .collect();
    if missing.is_empty() {
        return Finding::ok(
            "capabilities",
            "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there",
        );
    }
    Finding::refuse(
        "capabilities",
        format!("{} missing", missing.join(", ")),
        "run as root, or with AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON in the systemd unit",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_base::check::Level;

    fn ready() -> Kernel {
        Kernel {
            release: "6.18.5".to_owned(),
            btf: true,
            tcx: true,
            jit: Some("1".to_owned()),
            capabilities: 1 << 12 | 1 << 38 | 1 << 39,
            pin_dir: "/sys/fs/bpf/modelmirror".into(),
            bpffs: true,
            pins: Ok(()),
        }
    }

    /// With these facts this, and nothing else, is worse than ok.
    fn check(kernel: Kernel, expected: Option<(Level, &str)>) {
        let findings = findings(&kernel);
        let worse: Vec<_> = findings.iter().filter(|f| f.level != Level::Ok).collect();
        let found = worse
            .first()
            .map(|finding| (finding.level, finding.what.as_str()));
        assert_eq!(worse.len(), usize::from(expected.is_some()), "{findings:?}");
        match (found, expected) {
            (Some((level, what)), Some((wanted, words))) => {
                assert!(level == wanted && what.contains(words), "{what}");
            }
            (found, expected) => assert_eq!(found.is_none(), expected.is_none()),
        }
    }

    #[test]
    fn each_lack_is_named() {
        check(ready(), None);
        check(
            Kernel {
                tcx: false,
                ..ready()
            },
            None,
        );
        check(
            Kernel {
                jit: None,
                ..ready()
            },
            None,
        );
        check(
            Kernel {
                capabilities: 1 << 12 | 1 << 21,
                ..ready()
            },
            None,
        );
        let refuse = |words| Some((Level::Refuse, words));
        check(
            Kernel {
                btf: false,
                ..ready()
            },
            refuse("no type information"),
        );
        check(
            Kernel {
                bpffs: false,
                ..ready()
            },
            refuse("not on a bpffs"),
        );
        check(
            Kernel {
                pins: Err("permission denied".to_owned()),
                ..ready()
            },
            refuse("nothing can be pinned in /sys/fs/bpf/modelmirror: permission denied"),
        );
        let only_net = Kernel {
            capabilities: 1 << 12,
            ..ready()
        };
        check(only_net, refuse("CAP_BPF, CAP_PERFMON missing"));
        let jit = Kernel {
            jit: Some("0".to_owned()),
            ..ready()
        };
        check(jit, Some((Level::Warn, "interpreted")));
    }
}
