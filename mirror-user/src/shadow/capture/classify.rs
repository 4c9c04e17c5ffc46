//! From a copied packet to a segment of a service. Pure.

use std::collections::HashMap;

use bytes::Bytes;
use mirror_common::flow::Endpoint;
use mirror_common::packet::{Link, Packet, Transport, parse};
use mirror_common::policy::{flow, worth_copying};
use mirror_common::record::Record;
use mirror_common::tunnel::{Arm, Direction, Header};
use mirror_common::verdict::Reason;

use super::header;
use super::streams::Copied;
use crate::config::ShadowService;
use crate::shadow::ledger::Outcome;
use crate::shadow::message::{Extras, Segment, TapId};

/// Whose a copy is.
#[derive(Debug)]
pub(super) struct Classifier {
    by_id: HashMap<u32, usize>,
    by_address: HashMap<Endpoint, usize>,
}

/// A copied packet, understood as far as possible.
pub(super) struct Copy<'a> {
    /// TCP's sequence number of its payload.
    pub(super) sequence: u32,
    /// Payload bytes in this datagram.
    pub(super) length: u32,
    found: Result<Found<'a>, Outcome>,
}

struct Found<'a> {
    service: usize,
    tap: TapId,
    direction: Direction,
    arm: Arm,
    time_ns: u64,
    packet: Packet,
    extras: Extras,
    payload: &'a [u8],
}

impl Classifier {
    pub(super) fn new(services: &[ShadowService]) -> Self {
        let addresses = services.iter().enumerate().flat_map(|(index, service)| {
            let addresses = service.addresses.iter();
            addresses.map(move |&address| (Endpoint::from(address), index))
        });
        Self {
            by_id: services
                .iter()
                .enumerate()
                .map(|(index, service)| (service.id, index))
                .collect(),
            by_address: addresses.collect(),
        }
    }

    /// A copy of our own tap: the header says whose it is.
    pub(super) fn geneve<'a>(&self, tap: TapId, header: &Header, inner: &'a [u8]) -> Copy<'a> {
        let meta = &header.meta;
        let (packet, extras, payload) = match dissect(inner, Link::Ip) {
            Ok(dissected) => dissected,
            Err(outcome) => return Copy::dropped(meta.length, outcome),
        };
        let service = self.by_id.get(&header.vni).copied();
        Copy {
            sequence: packet.sequence,
            length: packet.payload_length,
            found: service.ok_or(Outcome::UnknownService).map(|service| Found {
                service,
                tap,
                direction: meta.direction,
                arm: meta.arm,
                time_ns: meta.time_ns,
                packet,
                // The kernel cuts what does not fit the path, and leaves the pieces' checksums as they were.
                extras: extras.without_doubt(),
                payload,
            }),
        }
    }

    /// A copy out of a tap's ring: its record says whose it is.
    pub(super) fn record<'a>(&self, tap: TapId, copied: &'a Copied) -> Copy<'a> {
        let record = &copied.record;
        let (packet, extras, payload) = match dissect(&copied.packet, Link::Ip) {
            Ok(dissected) => dissected,
            Err(outcome) => return Copy::dropped(0, outcome),
        };
        let service = self.by_id.get(&record.service).copied();
        Copy {
            sequence: packet.sequence,
            length: packet.payload_length,
            found: service
                .ok_or(Outcome::UnknownService)
                .map(|service| Found::of_record(service, tap, record, (packet, extras, payload))),
        }
    }

    /// A frame of a foreign tap: its addresses say whose it is.
    pub(super) fn vxlan<'a>(&self, tap: TapId, inner: &'a [u8], time_ns: u64) -> Copy<'a> {
        let (packet, extras, payload) = match dissect(inner, Link::Ethernet) {
            Ok(dissected) => dissected,
            Err(outcome) => return Copy::dropped(0, outcome),
        };
        let towards = self.by_address.get(&packet.destination);
        let from = self.by_address.get(&packet.source);
        let found = towards
            .map(|&service| (service, Direction::Request))
            .or_else(|| from.map(|&service| (service, Direction::Response)));
        Copy {
            sequence: packet.sequence,
            length: packet.payload_length,
            found: found
                .ok_or(Outcome::UnknownService)
                .map(|(service, direction)| Found {
                    service,
                    tap,
                    direction,
                    arm: Arm::Stable,
                    time_ns,
                    packet,
                    // Nobody knows what it was copied before.
                    extras: extras.without_doubt(),
                    payload,
                }),
        }
    }
}

/// The segment in a record's packet, where there is one that says anything: for whoever reads records
/// and keeps no ledger.
pub(crate) fn segment_of(
    service: usize,
    tap: TapId,
    record: &Record,
    packet: &[u8],
) -> Option<Segment> {
    let dissected = dissect(packet, Link::Ip).ok()?;
    Found::of_record(service, tap, record, dissected).segment()
}

/// The TCP segment inside.
fn dissect(inner: &[u8], link: Link) -> Result<(Packet, Extras, &[u8]), Outcome> {
    let packet = parse(&inner, inner.len() as u32, link).map_err(|reason| match reason {
        // What the header promises and the datagram lacks: a tap that cuts frames off.
        Reason::Truncated => Outcome::Truncated,
        _ => Outcome::NotTcp,
    })?;
    if packet.transport != Transport::Tcp {
        return Err(Outcome::NotTcp);
    }
    let start = packet.payload_offset as usize;
    let end = start + packet.payload_length as usize;
    let payload = inner.get(start..end).ok_or(Outcome::Truncated)?;
    Ok((packet, header::extras(inner, &packet), payload))
}

impl Copy<'_> {
    fn dropped(length: u32, outcome: Outcome) -> Self {
        Self {
            sequence: 0,
            length: if outcome == Outcome::Truncated {
                0
            } else {
                length
            },
            found: Err(outcome),
        }
    }

    /// What becomes of it, the agent being overloaded or not.
    pub(super) fn outcome(&self, overloaded: bool) -> Outcome {
        match &self.found {
            Err(outcome) => *outcome,
            Ok(_) if overloaded => Outcome::Overloaded,
            Ok(_) => Outcome::Received,
        }
    }

    /// Hands the segment on, if that is its `outcome`. Foreign taps copy pure ACKs as well, which
    /// carry nothing.
    pub(super) fn hand_on(self, outcome: Outcome, sink: &mut impl FnMut(Segment)) {
        let found = self.found.ok().filter(|_| outcome == Outcome::Received);
        if let Some(segment) = found.and_then(Found::segment) {
            sink(segment);
        }
    }
}

impl<'a> Found<'a> {
    /// What a record says, and the packet in it.
    fn of_record(
        service: usize,
        tap: TapId,
        record: &Record,
        (packet, extras, payload): (Packet, Extras, &'a [u8]),
    ) -> Self {
        Self {
            service,
            tap,
            direction: record.direction,
            arm: record.arm,
            time_ns: record.time_ns,
            packet,
            extras,
            payload,
        }
    }

    /// The segment, if it carries anything.
    fn segment(self) -> Option<Segment> {
        worth_copying(&self.packet).then(|| Segment {
            service: self.service,
            tap: self.tap,
            flow: flow(&self.packet, self.direction),
            direction: self.direction,
            arm: self.arm,
            time_ns: self.time_ns,
            sequence: self.packet.sequence,
            acknowledgement: self.packet.acknowledgement,
            flags: self.packet.flags,
            extras: self.extras,
            payload: Bytes::copy_from_slice(self.payload),
        })
    }
}
