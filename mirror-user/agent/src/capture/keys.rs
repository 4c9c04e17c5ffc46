//! Whose datagrams are believed. Pure.

use std::collections::HashMap;

use mirror_common::packet::{Link, parse};
use mirror_common::tunnel::Datagram;
use mirror_common::tunnel::mac::Key;
use mirror_wire::message::TapId;

use super::Stray;

/// The taps' keys by the number that the agent gave each.
#[derive(Debug, Default)]
pub(super) struct Keys(HashMap<u16, Key>);

impl Keys {
    /// From now on the tap with this number signs with `key`.
    pub(super) fn set(&mut self, tap: u16, key: Key) {
        self.0.insert(tap, key);
    }

    /// Nobody has this number any more.
    pub(super) fn forget(&mut self, tap: TapId) {
        self.0.retain(|&known, _| u32::from(known) != tap.0);
    }

    /// Passes on what the tap that it names has written. VXLAN has nothing to sign with.
    pub(super) fn believe<'a>(&self, datagram: Datagram<'a>) -> Result<Datagram<'a>, Stray> {
        let Datagram::Geneve { header, payload } = datagram else {
            return Ok(datagram);
        };
        let key = self.0.get(&header.meta.tap).ok_or(Stray::UnknownTap)?;
        // The parser that the segment is made with: two could be told different addresses.
        let packet = parse(&payload, payload.len() as u32, Link::Ip).map_err(|_| Stray::BadMac)?;
        if header.is_signed(*key, &packet) {
            Ok(datagram)
        } else {
            Err(Stray::BadMac)
        }
    }
}
