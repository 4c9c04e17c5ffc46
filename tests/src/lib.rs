//! The harness of the integration tests, of the demo and of the bench: network namespaces, an HTTP
//! server that writes down what it was asked, a client that checks every byte of every answer, and
//! the real `modelmirror` between them.
//!
//! Everything is a guard: what was made is gone when its value is dropped, also after a panic.
//! Namespaces have no name in the file system, so not even a killed process leaves one behind.
//!
//! ```no_run
//! use tests::{Answers, Client, Request, Server, Topology};
//!
//! # fn main() -> anyhow::Result<()> {
//! let net = Topology::new()?;
//! let answers = Answers::of("v12");
//! let production = Server::start(&net.node, "0.0.0.0:8000".parse()?, &answers)?;
//! let client = Client::new(&net.client, "10.0.0.5:8000".parse()?, &answers);
//! let exchanges = client.load(4, 10, |_, _| Request::post("/echo", b"hello"))?;
//! assert_eq!(exchanges.len(), 40);
//! assert_eq!(production.received().len(), 40);
//! # Ok(())
//! # }
//! ```

mod answers;
mod client;
pub mod cpus;
mod foreign;
mod handmade;
mod inject;
mod liar;
mod metrics;
mod misbehaving;
mod namespace;
mod outcome;
mod process;
mod program;
mod proof;
mod relay;
mod scene;
mod server;
mod skip;
mod spinners;
mod topology;
mod traffic;
mod trial;
mod tun;
mod wait;
mod watch;

pub use answers::{Answer, Answers, pattern, sha256};
pub use client::{Client, Connection, Exchange, Framing, Request, Response};
pub use foreign::{Fate, ForeignProgram, Handing};
pub use handmade::{Handmade, Segment, flood, forge};
pub use inject::{inject, request_frames};
pub use liar::Liar;
pub use metrics::Metrics;
pub use misbehaving::{Manner, Misbehaving, NUMBER};
pub use namespace::{Namespace, veth};
pub use outcome::Outcome;
pub use process::Process;
pub use program::{Agent, Daemon, Home, Transport, binary};
pub use relay::{Loss, Relay};
pub use scene::Scene;
pub use server::{Mood, Received, Server, serve_alone};
pub use skip::skip;
pub use spinners::Spinners;
pub use topology::Topology;
pub use traffic::{Got, Traffic};
pub use trial::{Split, Trial, large};
pub use tun::{Tun, Weather, tun};
pub use wait::{eventually, eventually_within, privileged, steady, throughout, try_within};
pub use watch::Watch;
