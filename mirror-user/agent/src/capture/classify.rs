//! From a copied packet to a segment of a service. Pure.

use std::collections::HashMap;

use mirror_common::flow::Endpoint;
use mirror_common::packet::Link;
use mirror_common::tunnel::{Arm, Direction, Header};
use mirror_wire::message::{Segment, TapId};
use mirror_wire::segment::{Found, Unreadable, dissect};

use super::streams::Copied;
use crate::config::ShadowService;
use crate::ledger::Outcome;

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
            Err(unreadable) => return Copy::dropped(meta.length, unreadable.into()),
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
            Err(unreadable) => return Copy::dropped(0, unreadable.into()),
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
            Err(unreadable) => return Copy::dropped(0, unreadable.into()),
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

impl From<Unreadable> for Outcome {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Truncated => Self::Truncated,
            Unreadable::NotTcp => Self::NotTcp,
        }
    }
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
