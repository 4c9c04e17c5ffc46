//! The user half of modelmirror: the daemon on the inference node, the agent on the shadow host,
//! and the command line that controls both.

pub mod admin;
pub mod agent_api;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod http_client;
pub mod metrics;
mod netlink;
mod offload;
mod private_file;
mod reset;
mod serve;
mod servers;
pub mod shadow;
#[cfg(test)]
#[expect(unreachable_pub, reason = "the integration tests share it")]
#[path = "../../tests/src/skip.rs"]
mod skip;
mod sock_diag;
pub mod state;
pub mod transport;
