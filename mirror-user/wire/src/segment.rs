//! From a packet's bytes to a segment of a connection. Pure.

mod header;

use bytes::Bytes;
use mirror_common::packet::{Link, Packet, Transport, parse};
use mirror_common::policy::{flow, worth_copying};
use mirror_common::record::Record;
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;

use crate::message::{Extras, Segment, TapId};

/// Why there is no segment in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It is shorter than its headers promise.
    Truncated,
    /// It is something else than TCP.
    NotTcp,
}

/// A TCP packet with what is known of it.
#[derive(Debug)]
pub struct Found<'a> {
    /// The service, by its place in the config.
    pub service: usize,
    /// Whose copy it is.
    pub tap: TapId,
    /// From the client, or to it.
    pub direction: Direction,
    /// Who serves its connection.
    pub arm: Arm,
    /// When it passed, on the tap's clock.
    pub time_ns: u64,
    /// Its headers.
    pub packet: Packet,
    /// What else its TCP header says.
    pub extras: Extras,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Found<'a> {
    /// What a record says, and the packet in it.
    pub fn of_record(
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
    pub fn segment(self) -> Option<Segment> {
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

/// The segment in a record's packet, where there is one that says anything: for whoever reads records
/// and keeps no ledger.
pub fn segment_of(service: usize, tap: TapId, record: &Record, packet: &[u8]) -> Option<Segment> {
    let dissected = dissect(packet, Link::Ip).ok()?;
    Found::of_record(service, tap, record, dissected).segment()
}

/// The TCP segment inside.
///
/// # Errors
/// What it is instead.
pub fn dissect(inner: &[u8], link: Link) -> Result<(Packet, Extras, &[u8]), Unreadable> {
    let packet = parse(&inner, inner.len() as u32, link).map_err(|reason| match reason {
        // What the header promises and the datagram lacks: a tap that cuts frames off.
        Reason::Truncated => Unreadable::Truncated,
        _ => Unreadable::NotTcp,
    })?;
    if packet.transport != Transport::Tcp {
        return Err(Unreadable::NotTcp);
    }
    let start = packet.payload_offset as usize;
    let end = start + packet.payload_length as usize;
    let payload = inner.get(start..end).ok_or(Unreadable::Truncated)?;
    Ok((packet, header::extras(inner, &packet), payload))
}
