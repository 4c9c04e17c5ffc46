//! The rollout: from the shadow over a canary's stages to its promotion, or back. Pure.
//!
//! [`plan`] is what the config asks for, [`statistics`] what can be said from what was counted,
//! [`gates`] which of that decides, and [`machine`] what follows. Nothing here knows a clock, a
//! socket or a file: the daemon's `rollout` brings what happened as events, writes them down as a
//! [`record`], and does what follows.

mod alone;
pub mod explain;
mod figures;
pub mod forecast;
pub mod gates;
pub mod held;
pub mod machine;
pub mod noise;
pub mod plan;
pub mod record;
mod severe;
mod share;
pub mod state;
pub mod statistics;
#[cfg(any(test, feature = "fixtures"))]
pub mod stories;
pub mod window;
pub mod words;

pub use share::Share;
