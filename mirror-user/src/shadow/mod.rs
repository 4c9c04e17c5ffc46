//! The agent on the shadow host, in the order a request travels: capture, stream, http, exchange,
//! replay, compare, record, report.

pub mod agent;
pub mod capture;
pub mod compare;
pub mod evidence;
pub mod health;
pub mod join;
pub mod labels;
pub mod ledger;
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
