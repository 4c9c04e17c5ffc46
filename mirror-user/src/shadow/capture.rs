//! Receives the tunnel: UDP datagrams in, TCP segments out, every copy in its tap's ledger.
//!
//! Runs on a thread of its own, so that nothing the shadow does delays the receive buffer.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, SystemTime};

use mirror_common::tunnel::mac::Key;
use mirror_common::tunnel::{Datagram, DecodeError, Inner, decode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::classify::Classifier;
use self::keys::Keys;
use self::notices::Notices;
use self::socket::{Buffers, Received, Socket};
use super::ledger::{Outcome, TapLedger, Totals, Volume};
use super::message::Segment;
use crate::config;
use crate::tap_report::{ServiceReport, TapReport};

mod classify;
mod keys;
mod notices;
mod socket;

pub(crate) use self::socket::bind;

/// Receive calls in a row before the caller gets its turn.
const BATCHES: usize = 8;

/// Taps at once; datagrams of more are counted as not allowed.
const MAX_TAPS: usize = 4096;

/// Services of one tap that are remembered.
const MAX_SERVICES: usize = 1024;

/// A datagram that is no copy to account, or not only. Label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stray {
    /// A tap's report.
    Control,
    /// A control packet that is no report.
    BadControl,
    /// Ends before its headers do.
    Truncated,
    /// Neither GENEVE nor VXLAN.
    UnknownEncapsulation,
    /// GENEVE without our option, or with another version of it.
    UnknownOption,
    /// Its inner protocol is not IP.
    UnknownProtocol,
    /// Of a tap number that no tap has.
    UnknownTap,
    /// Not written by the tap that it names, or not in front of this packet.
    BadMac,
}

impl Stray {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 8] = [
        Self::Control,
        Self::BadControl,
        Self::Truncated,
        Self::UnknownEncapsulation,
        Self::UnknownOption,
        Self::UnknownProtocol,
        Self::UnknownTap,
        Self::BadMac,
    ];

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::BadControl => "bad_control",
            Self::Truncated => "truncated_header",
            Self::UnknownEncapsulation => "unknown_encapsulation",
            Self::UnknownOption => "unknown_option",
            Self::UnknownProtocol => "unknown_protocol",
            Self::UnknownTap => "unknown_tap",
            Self::BadMac => "bad_mac",
        }
    }
}

impl From<DecodeError> for Stray {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated => Self::Truncated,
            DecodeError::UnknownEncapsulation => Self::UnknownEncapsulation,
            DecodeError::UnknownOption => Self::UnknownOption,
            DecodeError::UnknownProtocol => Self::UnknownProtocol,
        }
    }
}

/// What is known of one tap.
#[derive(Debug, Default)]
pub struct Tap {
    /// Its numbered copies.
    pub ledger: TapLedger,
    /// Its VXLAN frames, which have no numbers: what was lost of them is not known.
    pub unnumbered: [Volume; Outcome::ALL.len()],
    /// Other datagrams by [`Stray`].
    pub strays: [u64; Stray::ALL.len()],
    /// What it last said of each service, by id.
    pub services: HashMap<u32, ServiceReport>,
}

impl Tap {
    /// Copies by outcome, numbered and not, and the ledger's other figures.
    pub fn totals(&self) -> Totals {
        let mut totals = self.ledger.totals();
        for (sum, &volume) in totals.outcomes.iter_mut().zip(&self.unnumbered) {
            *sum += volume;
        }
        totals
    }
}

/// The agent's end of the tunnel.
#[derive(Debug)]
pub struct Capture {
    sockets: Vec<Socket>,
    buffers: Buffers,
    table: Table,
}

/// Who sends, and what becomes of it.
#[derive(Debug)]
struct Table {
    allow: Vec<ipnet::IpNet>,
    classifier: Classifier,
    keys: Keys,
    taps: HashMap<IpAddr, Tap>,
    not_allowed: u64,
    notices: Notices,
    changed: bool,
}

impl Capture {
    /// Receives on these sockets, which [`bind`] made: the tunnel's end and, where there is one, the
    /// VXLAN end.
    ///
    /// # Errors
    /// When the kernel does not say what it grants.
    pub(crate) fn open(config: &config::Shadow, sockets: Vec<UdpSocket>) -> std::io::Result<Self> {
        let sockets = sockets.into_iter().map(Socket::open);
        Ok(Self {
            sockets: sockets.collect::<Result<_, _>>()?,
            buffers: Buffers::new(),
            table: Table {
                allow: config.allow.clone(),
                classifier: Classifier::new(&config.services),
                keys: Keys::default(),
                taps: HashMap::new(),
                not_allowed: 0,
                notices: Notices::new(&config.services),
                changed: false,
            },
        })
    }

    /// Where the tunnel ends.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.sockets
            .first()
            .ok_or(std::io::ErrorKind::NotConnected)?
            .local_address()
    }

    /// The receive buffer that the kernel granted, in bytes; the smallest where there are several.
    pub fn receive_buffer(&self) -> usize {
        let sizes = self.sockets.iter().map(Socket::receive_buffer);
        sizes.min().unwrap_or_default()
    }

    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub fn socket_drops(&self) -> u64 {
        self.sockets.iter().map(Socket::drops).sum()
    }

    /// Datagrams of peers that are not listened to.
    pub fn not_allowed(&self) -> u64 {
        self.table.not_allowed
    }

    /// The taps heard so far.
    pub fn taps(&self) -> impl Iterator<Item = (IpAddr, &Tap)> {
        self.table.taps.iter().map(|(&address, tap)| (address, tap))
    }

    /// Whether what a tap says of a service, figures apart, has changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.table.changed)
    }

    /// Believes GENEVE datagrams of the tap with this number when they are signed with `key`; from the
    /// first key on, no others.
    pub fn set_key(&mut self, tap: u16, key: Key) {
        self.table.keys.set(tap, key);
    }

    /// Believes no more datagrams of the tap with this number.
    pub fn forget_key(&mut self, tap: u16) {
        self.table.keys.forget(tap);
    }

    /// Believes no GENEVE datagram that is not signed, already before the first key is known.
    pub fn require_keys(&mut self) {
        self.table.keys.require();
    }

    /// Moves the ledgers on: call it about once a second.
    pub fn tick(&mut self) {
        for tap in self.table.taps.values_mut() {
            tap.ledger.tick();
        }
    }

    /// Closes the ledgers.
    pub fn close(&mut self) {
        for tap in self.table.taps.values_mut() {
            tap.ledger.close();
        }
    }

    /// Waits until something arrives, but no longer than `timeout`, and hands on what is there.
    ///
    /// With `overloaded` it is received, counted as such, and forgotten. Returns the number of
    /// datagrams.
    ///
    /// # Errors
    /// When a socket fails; the tunnel cannot be received any more.
    pub fn receive(
        &mut self,
        timeout: Duration,
        overloaded: bool,
        sink: &mut impl FnMut(Segment),
    ) -> std::io::Result<usize> {
        if !self.wait(timeout)? {
            return Ok(0);
        }
        let mut count = 0;
        for socket in &self.sockets {
            for _ in 0..BATCHES {
                let batch = socket.receive(&mut self.buffers)?;
                count += batch;
                for received in self.buffers.received(batch) {
                    if self.table.datagram(&received, overloaded, sink) {
                        socket.echo(&received);
                    }
                }
                if batch < socket::BATCH {
                    break;
                }
            }
        }
        Ok(count)
    }

    fn wait(&self, timeout: Duration) -> std::io::Result<bool> {
        let mut polled: Vec<_> = self
            .sockets
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Table {
    /// Accounts for a datagram and hands its segment on. Returns whether it wants an echo.
    fn datagram(
        &mut self,
        received: &Received<'_>,
        overloaded: bool,
        sink: &mut impl FnMut(Segment),
    ) -> bool {
        let address = received.source.ip().to_canonical();
        let Some(tap) = allowed_tap(&mut self.taps, &self.allow, address) else {
            self.not_allowed += 1;
            self.notices.not_allowed(address);
            return false;
        };
        let believed = decode(received.payload)
            .map_err(Stray::from)
            .and_then(|datagram| self.keys.believe(datagram));
        match believed {
            Ok(Datagram::Geneve { header, payload }) => match header.inner {
                Inner::Control => {
                    if tap.control(payload) {
                        self.changed = true;
                        self.notices.services(address, tap.services.values());
                    }
                    // Whatever an allowed peer says is echoed, so that a newer daemon finds an
                    // older agent alive.
                    return true;
                }
                Inner::Packet => {
                    let copy = self.classifier.geneve(address, &header, payload);
                    let outcome = copy.outcome(overloaded);
                    tap.ledger
                        .datagram(&header.meta, copy.sequence, copy.length, outcome);
                    copy.hand_on(outcome, sink);
                }
            },
            Ok(Datagram::Vxlan { payload, .. }) => {
                let time_ns = arrival_ns(received.timestamp);
                let copy = self.classifier.vxlan(address, payload, time_ns);
                let outcome = copy.outcome(overloaded);
                tap.unnumbered[outcome as usize] += Volume {
                    copies: 1,
                    bytes: u64::from(copy.length),
                };
                copy.hand_on(outcome, sink);
            }
            Err(stray) => tap.strays[stray as usize] += 1,
        }
        false
    }
}

/// The tap with this address, if it is listened to.
fn allowed_tap<'a>(
    taps: &'a mut HashMap<IpAddr, Tap>,
    allow: &[ipnet::IpNet],
    address: IpAddr,
) -> Option<&'a mut Tap> {
    // Known taps were allowed when they were first heard.
    let may_join = taps.contains_key(&address)
        || taps.len() < MAX_TAPS && allow.iter().any(|net| net.contains(&address));
    may_join.then(|| {
        taps.entry(address).or_insert_with(|| {
            tracing::info!(tap = %address, "is heard");
            Tap::default()
        })
    })
}

impl Tap {
    /// Takes a control packet in; says whether a service is not what it was, figures apart.
    fn control(&mut self, payload: &[u8]) -> bool {
        let Ok(report) = TapReport::parse(payload) else {
            self.strays[Stray::BadControl as usize] += 1;
            return false;
        };
        self.strays[Stray::Control as usize] += 1;
        self.ledger.report(report.boot, &report.cpus);
        let mut changed = false;
        for service in report.services {
            let known = self.services.get(&service.id);
            changed |= known.is_none_or(|known| {
                known.stable_version != service.stable_version
                    || known.canary_version != service.canary_version
                    || known.requests_only != service.requests_only
            });
            if known.is_some() || self.services.len() < MAX_SERVICES {
                self.services.insert(service.id, service);
            }
        }
        changed
    }
}

/// VXLAN says nothing of time: what the kernel noted on arrival stands in.
fn arrival_ns(timestamp: Option<Duration>) -> u64 {
    let since_epoch = timestamp
        .or_else(|| {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
        })
        .unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
