//! modelmirror's daemon on the inference node: it decides what the kernel's programs do, and counts what they did.

pub mod agent_api;
pub mod check;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
#[doc(hidden)]
pub mod fuzzing;
mod netlink;
pub mod offload;
mod reset;
#[cfg(test)]
#[expect(unreachable_pub, reason = "the integration tests share it")]
#[path = "../../../tests/src/skip.rs"]
mod skip;
pub mod state;
