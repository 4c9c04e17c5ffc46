//! What the records say, for people and programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the file beside the records that holds a [`LedgerFile`].
pub const LEDGER: &str = "ledger.json";

/// The agent's ledger of requests of one service, since the agent's start. The agent writes it once
/// a second through [`super::record::Recorder::write_ledger`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerFile {
    /// When the agent started.
    pub since: jiff::Timestamp,
    /// When this was written.
    pub time: jiff::Timestamp,
    /// Requests of which at least one byte, or one byte of the response, was received.
    pub seen: u64,
    /// Those that were compared.
    pub compared: u64,
    /// Those that were dropped, by reason (label `outcome`).
    pub drops: BTreeMap<String, u64>,
}
