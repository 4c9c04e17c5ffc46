//! What the host lets the agent have: files, and so sockets.

use mirror_rollout::noise::Twin;
use nix::sys::resource::{Resource, getrlimit};

use crate::config;

/// Descriptors that are for others than connections to shadows: records, scrapers, people, and what
/// libraries open.
const RESERVE: usize = 64;

/// Of the connections that there may be, so many at most are for second answers: a quarter.
const SECONDS: usize = 4;

/// How many connections there may be at once, of all services: for first answers, and for second ones.
pub(super) fn sockets(config: &config::Shadow) -> [usize; 2] {
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
    let seconds = config.services.iter().map(seconds).sum::<usize>();
    let seconds = seconds.min(most / SECONDS);
    [most - seconds, seconds]
}

/// How many second answers of a service are asked for at once.
fn seconds(service: &config::ShadowService) -> usize {
    let control = |control| Twin::ALL.map(|twin| second(service, control, twin).concurrency);
    let concurrency = service.control.map(control);
    concurrency.map_or(0, |concurrency| concurrency.iter().sum())
}

/// A service as it is asked for second answers: of the control as many at once as of the shadow, of which a second
/// one must not take the place of a first. As many wait as are asked for.
pub(super) fn second(
    service: &config::ShadowService,
    control: config::Control,
    twin: Twin,
) -> config::ShadowService {
    let (target, concurrency) = match twin {
        Twin::Control => (control.address, service.concurrency),
        Twin::Repeat => (service.target, service.concurrency.div_ceil(SECONDS)),
    };
    config::ShadowService {
        target,
        concurrency,
        queue: concurrency.max(16),
        ..service.clone()
    }
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
    let of = |service: &config::ShadowService| service.concurrency + seconds(service);
    config.services.iter().map(of).sum()
}
