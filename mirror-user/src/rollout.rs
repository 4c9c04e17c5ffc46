//! The rollout: from the shadow over a canary's stages to its promotion, or back. Pure.
//!
//! [`plan`] is what the config asks for, [`statistics`] what can be said from what was counted, and
//! the machine what follows from it. Nothing here knows a clock, a socket or a file: the daemon's
//! `rollout` brings what happened as events, writes them down, and does what follows.

pub mod plan;
pub mod statistics;
