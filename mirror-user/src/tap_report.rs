//! What a tap says of itself once a second, in control packets of the tunnel (GENEVE's O bit).
//!
//! The daemon sends it, the agent closes its packet ledger with it and sends it back byte for
//! byte, which tells the daemon that the agent lives. A report that is too long for one packet is
//! cut into several; each can be understood alone, since every figure counts from the tap's start.

use mirror_common::counters::Sent;
use mirror_common::tunnel::{Arm, Direction, Header, Inner, Meta};
use serde::{Deserialize, Serialize};

/// The longest payload of one control packet, in bytes: fits any path that carries IPv6.
pub const MAX_PAYLOAD: usize = 1_160;

/// What a tap has sent to one agent, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TapReport {
    /// Another one = another life of the tap's counters: they start from nothing.
    pub boot: u64,
    /// Counts the reports of one life; the packets of one report share it.
    pub number: u64,
    /// When it was sent, on the tap's monotonic clock, in nanoseconds.
    pub sent_at_ns: u64,
    /// What each CPU has sent since the tap's start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<CpuSent>,
    /// What is mirrored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceReport>,
}

/// What one CPU has sent to this agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSent {
    /// The CPU's number.
    pub cpu: u16,
    /// Copies = the next copy's sequence number, before it wraps at 2^32.
    pub copies: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

impl CpuSent {
    /// Of each CPU that has sent anything.
    pub fn of(cpus: &[Sent]) -> Vec<Self> {
        let cpus = (0..).zip(cpus).filter(|(_, sent)| sent.copies > 0);
        cpus.map(|(cpu, sent)| Self {
            cpu,
            copies: sent.copies,
            bytes: sent.bytes,
        })
        .collect()
    }
}

/// One service as the tap sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its id, the tunnel's VNI.
    pub id: u32,
    /// Its name on the node.
    pub name: String,
    /// The version in production.
    pub stable_version: String,
    /// The version on trial, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_version: Option<String>,
    /// Whether it is being mirrored.
    pub mirror: bool,
    /// Whether requests alone are copied: no byte of an answer will come. A tap that does not say
    /// copies both.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requests_only: bool,
    /// Share of connections that is copied, 0..=1, after what the budget took away.
    pub sample: f64,
    /// Copies of requests.
    pub requests: Mirrored,
    /// Copies of responses.
    pub responses: Mirrored,
}

/// What was copied in one direction since the tap's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// Packets.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

impl TapReport {
    /// Whether both say the same, number and time apart.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.boot == other.boot && self.cpus == other.cpus && self.services == other.services
    }

    /// The datagrams that carry this report, each a whole UDP payload.
    pub fn datagrams(&self) -> Vec<Vec<u8>> {
        let mut parts = vec![self.head()];
        for &cpu in &self.cpus {
            push(
                &mut parts,
                |part| part.cpus.push(cpu),
                |part| {
                    part.cpus.pop();
                },
            );
        }
        for service in &self.services {
            push(
                &mut parts,
                |part| part.services.push(service.clone()),
                |part| {
                    part.services.pop();
                },
            );
        }
        parts.iter().map(Self::datagram).collect()
    }

    /// Reads the payload of a control packet.
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }

    fn head(&self) -> Self {
        Self {
            cpus: Vec::new(),
            services: Vec::new(),
            ..*self
        }
    }

    fn payload(&self) -> Vec<u8> {
        // Strings and numbers: there is nothing that JSON could refuse.
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn datagram(&self) -> Vec<u8> {
        control_packet(self.number as u32, self.sent_at_ns, &self.payload())
    }
}

/// A control packet of the tunnel, as a whole UDP payload. The agent echoes it byte for byte.
pub fn control_packet(number: u32, sent_at_ns: u64, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        vni: 0,
        inner: Inner::Control,
        ipv6: false,
        meta: Meta {
            direction: Direction::Request,
            arm: Arm::Stable,
            piece: false,
            last_piece: false,
            cpu: 0,
            length: 0,
            sequence: number,
            time_ns: sent_at_ns,
            tap: 0,
            mac: 0,
        },
    };
    let mut datagram = header.encode().to_vec();
    datagram.extend_from_slice(payload);
    datagram
}

/// Adds an entry to the last part, or to a new one where it would grow too long.
fn push(parts: &mut Vec<TapReport>, add: impl Fn(&mut TapReport), remove: impl Fn(&mut TapReport)) {
    let Some(last) = parts.last_mut() else {
        return;
    };
    let empty = last.cpus.is_empty() && last.services.is_empty();
    add(last);
    if last.payload().len() > MAX_PAYLOAD && !empty {
        remove(last);
        let mut next = last.head();
        add(&mut next);
        parts.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_common::tunnel::{Datagram, decode};

    fn report(cpus: u16, services: u32) -> TapReport {
        TapReport {
            boot: u64::MAX,
            number: 7,
            sent_at_ns: 1 << 60,
            cpus: (0..cpus)
                .map(|cpu| CpuSent {
                    cpu,
                    copies: u64::from(cpu) << 40,
                    bytes: u64::MAX,
                })
                .collect(),
            services: (1..=services)
                .map(|id| ServiceReport {
                    id,
                    name: format!("service-{id}"),
                    stable_version: "v12".into(),
                    mirror: true,
                    sample: 0.25,
                    ..ServiceReport::default()
                })
                .collect(),
        }
    }

    /// Every packet is short and understandable; together they say the whole report.
    #[track_caller]
    fn check(report: &TapReport, packets: std::ops::RangeInclusive<usize>) {
        let datagrams = report.datagrams();
        let mut whole = report.head();
        for datagram in &datagrams {
            let Ok(Datagram::Geneve { header, payload }) = decode(datagram) else {
                panic!("not a control packet: {datagram:?}");
            };
            assert_eq!((header.inner, header.vni), (Inner::Control, 0));
            assert!(payload.len() <= MAX_PAYLOAD, "{} bytes", payload.len());
            let part = TapReport::parse(payload).unwrap();
            assert_eq!(part.head(), report.head());
            whole.cpus.extend(part.cpus);
            whole.services.extend(part.services);
        }
        assert_eq!(&whole, report);
        assert!(packets.contains(&datagrams.len()), "{}", datagrams.len());
    }

    /// Taps and agents are not always of the same version.
    #[test]
    fn what_older_ones_do_not_know_is_left_out() {
        let mut said = report(1, 1);
        let payload = said.payload();
        let text = String::from_utf8_lossy(&payload);
        assert!(!text.contains("requests_only"), "{text}");
        assert_eq!(TapReport::parse(&payload).unwrap(), said);
        said.services[0].requests_only = true;
        assert_eq!(TapReport::parse(&said.payload()).unwrap(), said);
    }

    #[test]
    fn a_report_is_cut_into_packets() {
        check(&report(0, 0), 1..=1);
        check(&report(2, 1), 1..=1);
        check(&report(128, 0), 4..=10);
        check(&report(0, 40), 4..=10);
        check(&report(64, 40), 6..=15);
    }
}
