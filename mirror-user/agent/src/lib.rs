//! The agent on the shadow host, in the order a request travels: [`capture`], then mirror-wire, [`selection`],
//! [`replay`], [`join`], [`compare`], [`record`], [`report`].

pub mod agent;
pub mod capture;
pub mod check;
pub mod compare;
pub mod config;
pub mod control;
pub mod evidence;
mod frequent;
#[doc(hidden)]
pub mod fuzzing;
pub mod health;
pub mod join;
pub mod labels;
pub mod ledger;
mod metrics;
pub mod noise;
pub mod record;
pub mod replay;
pub mod report;
pub mod requests;
pub(crate) mod resume;
pub mod selection;
pub mod summary;

#[cfg(test)]
pub(crate) mod conversation;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
#[expect(unreachable_pub, reason = "the integration tests share it")]
#[path = "../../../tests/src/skip.rs"]
mod skip;
