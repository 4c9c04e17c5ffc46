//! The shadow host.

use std::net::SocketAddr;
use std::time::Duration;

use bytesize::ByteSize;
use mirror_base::check::{Finding, Findings, files, listeners};
use procfs::{Current as _, Meminfo};
use tokio::net::TcpStream;

use crate::agent::limits;
use crate::config::{Shadow, ShadowService};

/// Below this, bursts are lost: 8 MiB hold 30 ms at 2 Gbit/s.
const SMALL_BUFFER: u64 = 8 << 20;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looks whether a shadow host is ready.
pub async fn shadow(shadow: &Shadow) -> Findings {
    findings(shadow).await.into()
}

async fn findings(shadow: &Shadow) -> Vec<Finding> {
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
    findings.push(descriptors(limits::files(), shadow));
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    findings.extend(range.ok().and_then(|range| ports(&range, shadow)));
    for service in &shadow.services {
        findings.push(target(service).await);
        if let Some(control) = service.control {
            findings.push(self::control(service, control.address).await);
        }
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

/// Whether all requests that may be asked at once find a descriptor.
fn descriptors(files: usize, shadow: &Shadow) -> Finding {
    let (most, wanted) = (limits::most(files, shadow), limits::wanted(shadow));
    let about = "open files";
    if most >= wanted {
        let what = format!("{files} allowed, {wanted} requests at once");
        return Finding::ok(about, what);
    }
    Finding::warn(
        about,
        format!(
            "{files} allowed: {most} connections to shadows, and concurrency asks for {wanted} at once; \
             requests will wait for each other"
        ),
        format!(
            "LimitNOFILE={} in the unit, or a lower `concurrency`",
            files + wanted - most
        ),
    )
}

/// Whether they find a port: each target has the whole range, of one address of this host.
fn ports(range: &str, shadow: &Shadow) -> Option<Finding> {
    let mut ends = range.split_whitespace().map(str::parse::<usize>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    let ports = (last + 1).saturating_sub(first);
    let wanted = |service: &ShadowService| {
        let same = |other: &&ShadowService| other.target == service.target;
        let same = shadow.services.iter().filter(same);
        same.map(|service| service.concurrency).sum::<usize>()
    };
    let (wanted, target) = shadow
        .services
        .iter()
        .map(|service| (wanted(service), service.target))
        .max()?;
    if ports >= wanted {
        return Some(Finding::ok("ports", format!("{ports} to each shadow")));
    }
    Some(Finding::warn(
        "ports",
        format!(
            "{ports} local ports, and concurrency asks for {wanted} requests at once to {target}; \
             requests will wait for each other"
        ),
        "widen net.ipv4.ip_local_port_range, or lower `concurrency`",
    ))
}

async fn target(service: &ShadowService) -> Finding {
    let about = format!("service {}", service.name);
    let target = service.target;
    match dial(target).await {
        Ok(()) => Finding::ok(about, format!("the shadow model listens at {target}")),
        Err(why) => Finding::warn(
            about,
            format!("the shadow model at {target} cannot be reached: {why}"),
            "start it: until then every comparison is an error",
        ),
    }
}

async fn dial(address: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer within 1 s".to_owned()),
    }
}

/// Whether the copy of the old version listens, and is a server of the same kind as the shadow's: production
/// itself cannot be asked from here.
async fn control(service: &ShadowService, address: SocketAddr) -> Finding {
    let about = format!("service {}", service.name);
    if let Err(why) = dial(address).await {
        return Finding::warn(
            about,
            format!("the control at {address} cannot be reached: {why}"),
            "start a copy of the version in production there: until then noise is not known, and a rollout waits at its shadow stage",
        );
    }
    let (ours, theirs) = tokio::join!(api(address), api(service.target));
    if ours == theirs || theirs.is_empty() {
        return Finding::ok(about, format!("the control listens at {address}"));
    }
    let named = |paths: &[&str]| match paths.is_empty() {
        true => "none".to_owned(),
        false => paths.join(", "),
    };
    Finding::warn(
        about,
        format!(
            "the control at {address} has another api than the shadow: of {} it serves {}, the shadow {}",
            APIS.join(", "),
            named(&ours),
            named(&theirs)
        ),
        "let `control` be a copy of the version in production, which has the same api",
    )
}

/// What model servers of different kinds answer without being asked to work: Open Inference Protocol, OpenAI's,
/// TorchServe's, TGI's.
const APIS: [&str; 4] = ["/v2", "/v1/models", "/api-description", "/info"];

/// Which of them a server has.
async fn api(address: SocketAddr) -> Vec<&'static str> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .build();
    let Ok(client) = client else {
        return Vec::new();
    };
    let asked = APIS.map(|path| {
        let asked = client.get(format!("http://{address}{path}")).send();
        async move {
            let answer = asked.await;
            answer
                .is_ok_and(|answer| answer.status().is_success())
                .then_some(path)
        }
    });
    let found = futures_util::future::join_all(asked).await;
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use mirror_base::check::Level;
    use mirror_base::check::fixture::check;

    #[test]
    fn memory_and_buffers_are_weighed() {
        assert_eq!(memory_fits(10, 5, 5).level, Level::Refuse);
        assert_eq!(memory_fits(10, 20, 5).level, Level::Warn);
        assert_eq!(memory_fits(10, 20, 15).level, Level::Ok);
        assert_eq!(receive_buffer_of(212_992, false).level, Level::Warn);
        assert_eq!(receive_buffer_of(212_992, true).level, Level::Ok);
        assert_eq!(receive_buffer_of(SMALL_BUFFER, false).level, Level::Ok);
    }

    #[test]
    fn descriptors_and_ports_are_held_against_concurrency() {
        let target = "127.0.0.1:8000".parse().unwrap();
        let mut shadow = fixtures::shadow();
        shadow.services = vec![fixtures::service(1, target), fixtures::service(2, target)];
        check(&descriptors(1024, &shadow), Level::Ok, "128 requests");
        let few = descriptors(128, &shadow);
        check(&few, Level::Warn, "64 connections to shadows");
        let cure = few.cure.unwrap();
        assert!(cure.contains("LimitNOFILE=192"), "{cure}");
        check(&descriptors(192, &shadow), Level::Ok, "192 allowed");
        let ports = |range| ports(range, &shadow).unwrap();
        check(&ports("32768\t60999\n"), Level::Ok, "28232 to each");
        check(&ports("40000 40126"), Level::Warn, "127 local ports");
    }
}
