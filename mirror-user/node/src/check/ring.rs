//! What the rings cost, and how long they last.

use std::time::Duration;

use bytesize::ByteSize;
use mirror_common::record::{HOT_RING, value_size};

use super::memory::{Memory, shown};
use crate::config::Node;
use crate::{daemon, dataplane};
use mirror_base::check::Finding;

/// How long traffic is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Rings that hold less than this of the present traffic leave little time to a connection that breaks.
const SHORT: Duration = Duration::from_millis(200);

const ABOUT: &str = "ring";

pub(super) async fn findings(node: &Node) -> Vec<Finding> {
    let agents = daemon::rings_of(node) as u64;
    if agents == 0 {
        return Vec::new();
    }
    let rings = Rings {
        agents,
        cpus: dataplane::possible_cpus().into(),
        size: daemon::ring_size_of(node).into(),
    };
    let mut findings = Vec::from_iter(Memory::of_host().map(|host| rings.cost(host)));
    findings.extend(
        bytes_per_second(&node.interfaces)
            .await
            .map(|rate| rings.last(rate)),
    );
    if dataplane::is_realtime() {
        findings.push(Finding::ok(
            ABOUT,
            "PREEMPT_RT: each ring has a lock, and copies that find it taken are left out and counted as ring_busy",
        ));
    }
    findings
}

/// Two of each agent and CPU.
struct Rings {
    agents: u64,
    cpus: u64,
    /// Bytes of each deep one.
    size: u64,
}

impl Rings {
    fn cost(&self, host: Memory) -> Finding {
        let Self { agents, cpus, size } = self;
        let each = u32::try_from(*size).map_or(u32::MAX, value_size);
        let cost = agents * cpus * u64::from(each);
        let (takes, size, hot) = (shown(cost), shown(*size), shown(HOT_RING.into()));
        let what = format!(
            "takes {takes} of memory: {size} and {hot} for each of {agents} agents and {cpus} CPUs, and what surrounds them"
        );
        let cure = "lower `ring`, or mirror to fewer agents; no CPU has less than 512 KiB and 512 KiB for an agent";
        host.price(ABOUT, &what, cost, cure)
    }

    /// Every byte is copied to one agent at most, and CPUs share the load.
    fn last(&self, bytes_per_second: f64) -> Finding {
        if bytes_per_second < 1_000.0 {
            return Finding::ok(
                ABOUT,
                "the tapped interfaces are idle: how long it lasts while the agent is away shows under load",
            );
        }
        let held = self.cpus as f64 * (self.size + u64::from(HOT_RING)) as f64;
        let seconds = held / bytes_per_second;
        let rate = ByteSize(bytes_per_second as u64).display().si().to_string();
        let what = format!(
            "holds {:.0} ms of the present traffic, {rate}/s both ways, if all of it is copied and the CPUs share it evenly",
            seconds * 1e3
        );
        if seconds < SHORT.as_secs_f64() {
            let cure = "raise `ring`: a full ring drops copies, counted as ring_full";
            return Finding::warn(ABOUT, what, cure);
        }
        Finding::ok(ABOUT, what)
    }
}

/// What passes the interfaces now, in both directions; nothing where the kernel does not tell.
async fn bytes_per_second(interfaces: &[String]) -> Option<f64> {
    let passed = || {
        let devices = procfs::net::dev_status().ok()?;
        let tapped = interfaces.iter().filter_map(|name| devices.get(name));
        Some(
            tapped
                .map(|device| device.recv_bytes + device.sent_bytes)
                .sum::<u64>(),
        )
    };
    let (before, start) = (passed()?, std::time::Instant::now());
    tokio::time::sleep(LOOK).await;
    let more = passed()?.saturating_sub(before);
    Some(more as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_base::check::Level;
    use mirror_base::check::fixture::check;

    #[test]
    fn rings_are_priced_and_timed() {
        let rings = Rings {
            agents: 2,
            cpus: 4,
            size: 16 << 20,
        };
        let price =
            "takes 133.0 MiB of memory: 16.0 MiB and 512.0 KiB for each of 2 agents and 4 CPUs";
        let host = |available| Memory {
            total: 1 << 30,
            available,
        };
        check(&rings.cost(host(1 << 30)), Level::Ok, price);
        check(&rings.cost(host(1 << 20)), Level::Warn, price);
        check(&rings.last(0.0), Level::Ok, "idle");
        check(&rings.last((66 << 20) as f64), Level::Ok, "holds 1000 ms");
        check(
            &rings.last(1e9),
            Level::Warn,
            "holds 69 ms of the present traffic, 1.0 GB/s",
        );
    }
}
