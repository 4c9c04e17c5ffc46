//! What the host lets the agent have: files, and so sockets.

use nix::sys::resource::{Resource, getrlimit};

use crate::config;

/// Descriptors that are for others than connections to shadows: records, scrapers, people, and what
/// libraries open.
const RESERVE: usize = 64;

/// How many connections to shadows there may be at once, of all services.
pub(super) fn sockets(config: &config::Shadow) -> usize {
    let files = files();
    let (most, wanted) = (most(files, config), wanted(config));
    if most < wanted {
        tracing::warn!(
            files,
            connections = most,
            concurrency = wanted,
            "fewer files than concurrency asks for; requests will wait for each other: raise LimitNOFILE"
        );
    }
    most
}

/// How many files the process may have open, once the limit is raised.
pub(crate) fn files() -> usize {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map(|(_, most)| most);
    files.map_or(1024, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// Of so many files, those that are for connections to shadows.
pub(crate) fn most(files: usize, config: &config::Shadow) -> usize {
    // A tap has one connection, and another one while it connects anew.
    let reserve = RESERVE + 2 * config.taps.len();
    files - reserve.min(files / 2)
}

/// Connections to shadows that are used when all services are busy.
pub(crate) fn wanted(config: &config::Shadow) -> usize {
    config
        .services
        .iter()
        .map(|service| service.concurrency)
        .sum()
}
