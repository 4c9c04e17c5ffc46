//! The file beside the records that tells what became of all requests.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Name of the file beside the records that holds a [`LedgerFile`].
pub const LEDGER: &str = "ledger.json";

/// The agent's ledger of requests of one service, since the agent's start. The agent writes it when it changes, and once
/// a minute, through [`super::Recorder::write_ledger`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerFile {
    /// When the agent started.
    pub since: jiff::Timestamp,
    /// When this was written.
    pub time: jiff::Timestamp,
    /// The shadow's version; empty in files of earlier agents.
    #[serde(default)]
    pub shadow_version: String,
    /// The versions that taps have said to be in production, stable's.
    #[serde(default)]
    pub production_versions: BTreeSet<String>,
    /// Requests of which at least one byte, or one byte of the response, was received.
    pub seen: u64,
    /// Those that were compared.
    pub compared: u64,
    /// Those that were dropped, by reason (label `outcome`).
    pub drops: BTreeMap<String, u64>,
}
