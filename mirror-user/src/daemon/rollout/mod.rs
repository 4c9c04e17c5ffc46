//! Drives rollouts: asks, writes down what happened, and does what follows.

#![cfg_attr(not(test), expect(dead_code, reason = "nobody drives a rollout yet"))]

mod hooks;
mod http;
mod prometheus;
