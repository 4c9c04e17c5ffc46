//! Builds the eBPF object from source; the library embeds it.

#[path = "build/toolchain.rs"]
mod toolchain;

use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let ebpf = root.join("mirror-ebpf");
    for input in [
        "mirror-ebpf/src",
        "mirror-ebpf/Cargo.toml",
        "mirror-ebpf/.cargo/config.toml",
        "mirror-common/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-changed=build/toolchain.rs");
    println!("cargo::rerun-if-env-changed=XDG_CACHE_HOME");

    let Ok(out) = std::env::var("OUT_DIR") else {
        panic!("cargo sets OUT_DIR")
    };
    let toolchain = match toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(missing) => {
            panic!("cannot build the eBPF programs: no BPF {missing:?}; run `cargo xtask setup`")
        }
    };
    let target = PathBuf::from(&out).join("ebpf");
    let mut cargo = toolchain.cargo("build", &ebpf);
    cargo
        .args(["--release", "--locked", "--target-dir"])
        .arg(&target);
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the eBPF programs failed ({status}): {cargo:?}"),
        Err(error) => panic!("cannot run {cargo:?}: {error}; run `cargo xtask setup`"),
    }
    let object = target.join(toolchain::TARGET).join("release/mirror-ebpf");
    if let Err(error) = std::fs::copy(&object, Path::new(&out).join("modelmirror.bpf.o")) {
        panic!("{}: {error}", object.display());
    }
}
