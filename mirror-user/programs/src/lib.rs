//! The eBPF programs, built from `mirror-ebpf` by the build script. Nothing else needs their toolchain.

/// The object file.
pub static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/modelmirror.bpf.o"));
