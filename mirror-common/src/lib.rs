//! What the two halves of modelmirror agree on.
//!
//! Everything here is `no_std`, does no I/O and knows no clock: the eBPF programs, the daemon, the
//! agent, the unit tests and the fuzzer run the same lines.

#![no_std]

pub mod abi;
pub mod checksum;
pub mod connection;
pub mod counters;
pub mod flow;
pub mod histogram;
pub mod measure;
pub mod outer;
pub mod packet;
pub mod policy;
pub mod record;
pub mod siphash;
pub mod steer;
pub mod translate;
pub mod tunnel;
pub mod verdict;

/// Version of every layout that crosses the kernel boundary: map keys, map values, pin names.
///
/// Pins live in a directory of this number, so two layouts never meet.
/// A test of [`abi`] fails when anything of it changes and this number does not.
pub const ABI_VERSION: u32 = 8;
