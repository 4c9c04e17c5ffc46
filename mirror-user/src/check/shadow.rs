//! The shadow host.

use std::time::Duration;

use bytesize::ByteSize;
use procfs::{Current as _, Meminfo};
use tokio::net::TcpStream;

use super::{Finding, files, listeners};
use crate::config::{Shadow, ShadowService};

/// Below this, bursts are lost: 8 MiB hold 30 ms at 2 Gbit/s.
const SMALL_BUFFER: u64 = 8 << 20;

pub(super) async fn findings(shadow: &Shadow) -> Vec<Finding> {
    let mut findings = vec![listeners::udp("listen", shadow.listen)];
    findings.extend(shadow.vxlan.map(|address| listeners::udp("vxlan", address)));
    findings.extend(listeners::admin(shadow.admin));
    findings.push(listeners::tcp("listen", shadow.listen));
    findings.extend(taps(shadow));
    findings.extend(allowed(shadow));
    findings.extend(receive_buffer());
    findings.push(files::folder("record_dir", &shadow.record_dir));
    findings.extend(files::space(&shadow.record_dir, shadow.record_limit));
    let memory = Meminfo::current().ok();
    findings.extend(memory.map(|found| {
        let available = found.mem_available.unwrap_or(found.mem_free);
        memory_fits(shadow.memory as u64, found.mem_total, available)
    }));
    for service in &shadow.services {
        findings.push(target(service).await);
    }
    findings
}

/// Who may send, and by what they are known.
fn taps(shadow: &Shadow) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !shadow.taps.is_empty() {
        findings.extend(files::key(&shadow.key_file));
        let named = shadow.taps.iter().map(|tap| tap.name.as_str());
        let named: Vec<_> = named.collect();
        findings.push(Finding::ok(
            "taps",
            format!("known by their keys: {}", named.join(", ")),
        ));
    }
    if shadow.insecure {
        findings.push(Finding::warn(
            "insecure",
            "hosts in `allow` are taken without a key and in clear text: anybody on the way can read what they send, or pretend to be one of them",
            "name each node in a [[tap]] with its key, and take `insecure` out on both hosts",
        ));
    }
    findings
}

fn allowed(shadow: &Shadow) -> Option<Finding> {
    let everybody = shadow
        .allow
        .iter()
        .find(|network| network.prefix_len() == 0)?;
    Some(Finding::warn(
        "allow",
        format!("{everybody} lets every host send what it likes to the shadow model"),
        "name the nodes alone, such as \"10.0.0.5/32\"",
    ))
}

fn receive_buffer() -> Option<Finding> {
    let read = std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok()?;
    let limit = read.trim().parse().ok()?;
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    let may_force = status.is_ok_and(|status| status.capeff >> 12 & 1 == 1);
    Some(receive_buffer_of(limit, may_force))
}

fn receive_buffer_of(limit: u64, may_force: bool) -> Finding {
    let about = "receive buffer";
    let shown = ByteSize(limit).display().iec();
    if may_force {
        return Finding::ok(
            about,
            format!("CAP_NET_ADMIN lets it pass net.core.rmem_max ({shown})"),
        );
    }
    if limit >= SMALL_BUFFER {
        return Finding::ok(about, format!("net.core.rmem_max is {shown}"));
    }
    Finding::warn(
        about,
        format!("net.core.rmem_max is {shown}: bursts will be lost, and counted"),
        "sysctl -w net.core.rmem_max=67108864, or run with CAP_NET_ADMIN",
    )
}

fn memory_fits(wanted: u64, total: u64, available: u64) -> Finding {
    let show = |bytes| ByteSize(bytes).display().iec().to_string();
    let cure = "lower `memory`, or give the host more";
    if wanted > total {
        let what = format!(
            "{} are more than the host has, {}",
            show(wanted),
            show(total)
        );
        return Finding::refuse("memory", what, cure);
    }
    if wanted > available {
        let what = format!("of {} only {} are free now", show(wanted), show(available));
        return Finding::warn("memory", what, cure);
    }
    Finding::ok(
        "memory",
        format!("{} of {} free", show(wanted), show(available)),
    )
}

async fn target(service: &ShadowService) -> Finding {
    let about = format!("service {}", service.name);
    let target = service.target;
    let dialled = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(target)).await;
    let why = match dialled {
        Ok(Ok(_)) => return Finding::ok(about, format!("the shadow model listens at {target}")),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer within 1 s".to_owned(),
    };
    Finding::warn(
        about,
        format!("the shadow model at {target} cannot be reached: {why}"),
        "start it: until then every comparison is an error",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn memory_and_buffers_are_weighed() {
        assert_eq!(memory_fits(10, 5, 5).level, Level::Refuse);
        assert_eq!(memory_fits(10, 20, 5).level, Level::Warn);
        assert_eq!(memory_fits(10, 20, 15).level, Level::Ok);
        assert_eq!(receive_buffer_of(212_992, false).level, Level::Warn);
        assert_eq!(receive_buffer_of(212_992, true).level, Level::Ok);
        assert_eq!(receive_buffer_of(SMALL_BUFFER, false).level, Level::Ok);
    }
}
