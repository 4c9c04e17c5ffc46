//! The tunnel: GENEVE (RFC 8926) in UDP, inner IP, one option of our own.

pub mod mac;

/// Towards the service, or from it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From the client to the service.
    Request = 0,
    /// From the service to the client.
    Response = 1,
}

impl Direction {
    /// The value of the `direction` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Response => "response",
        }
    }
}

/// Which version answers a connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arm {
    /// The version in production.
    Stable = 0,
    /// The version on trial.
    Canary = 1,
}

impl Arm {
    /// The value of the `arm` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// GENEVE's fixed header and our option, in bytes. Over IPv4 all of it with the outer headers is 64
/// bytes: what drivers leave in front of a packet (NET_SKB_PAD), so that none has to be moved.
pub const HEADER_LENGTH: usize = 8 + OPTION_LENGTH;
const OPTION_LENGTH: usize = 28;

/// Outer IPv4, UDP and GENEVE, in bytes.
pub const OVERHEAD_IPV4: u32 = 20 + 8 + HEADER_LENGTH as u32;
/// Outer IPv6, UDP and GENEVE, in bytes.
pub const OVERHEAD_IPV6: u32 = 40 + 8 + HEADER_LENGTH as u32;

/// From the range for experiments (RFC 8926, section 7).
const OPTION_CLASS: u16 = 0xff4d;
/// The version of the option's format. Type 1 was not signed.
const OPTION_TYPE: u8 = 2;
const FLAG_CONTROL: u8 = 0x80;
const PROTOCOL_IPV4: u16 = 0x0800;
const PROTOCOL_IPV6: u16 = 0x86dd;

const FLAG_RESPONSE: u8 = 1;
const FLAG_CANARY: u8 = 2;
const FLAG_PIECE: u8 = 4;
const FLAG_LAST_PIECE: u8 = 8;

/// Times are counted in units of 2^10 ns: 48 bits of them last nine years.
const TIME_SHIFT: u32 = 10;
const TIME_BITS: u32 = 48;
const CPU_BITS: u32 = 12;

/// What our option says of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Which way the packet went.
    pub direction: Direction,
    /// Which version answers its connection.
    pub arm: Arm,
    /// A piece of a packet that did not fit the path.
    pub piece: bool,
    /// The last piece of it.
    pub last_piece: bool,
    /// The CPU that copied it, below 4,096: numbers count per agent and CPU.
    pub cpu: u16,
    /// Payload of the whole copy, in bytes, of which a datagram may carry a part; below 65,536, since
    /// IP packets are.
    pub length: u32,
    /// The copy's number, from 0, wrapping. All pieces and segments of a copy have the same.
    pub sequence: u32,
    /// When the tap saw the packet, on its monotonic clock, in nanoseconds; a multiple of 1,024 once
    /// it was encoded.
    pub time_ns: u64,
    /// The number that the agent gave the tap; 0 = none yet.
    pub tap: u16,
    /// Who has the tap's key has written this, see [`mac`]; 0 = not signed.
    pub mac: u64,
}

/// GENEVE's header with our option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The service's id, 24 bits.
    pub vni: u32,
    /// Whether the copied packet is IPv6.
    pub ipv6: bool,
    /// Our option.
    pub meta: Meta,
}

impl Header {
    /// The bytes on the wire.
    #[inline(always)]
    pub const fn encode(&self) -> [u8; HEADER_LENGTH] {
        let protocol = if self.ipv6 {
            PROTOCOL_IPV6
        } else {
            PROTOCOL_IPV4
        }
        .to_be_bytes();
        let vni = self.vni.to_be_bytes();
        let class = OPTION_CLASS.to_be_bytes();
        let [origin, number] = self.meta.words();
        let (origin, number) = (origin.to_be_bytes(), number.to_be_bytes());
        let mac = self.meta.mac.to_be_bytes();
        [
            (OPTION_LENGTH / 4) as u8,
            0,
            protocol[0],
            protocol[1],
            vni[1],
            vni[2],
            vni[3],
            0,
            class[0],
            class[1],
            OPTION_TYPE,
            ((OPTION_LENGTH - 4) / 4) as u8,
            origin[0],
            origin[1],
            origin[2],
            origin[3],
            origin[4],
            origin[5],
            origin[6],
            origin[7],
            number[0],
            number[1],
            number[2],
            number[3],
            number[4],
            number[5],
            number[6],
            number[7],
            mac[0],
            mac[1],
            mac[2],
            mac[3],
            mac[4],
            mac[5],
            mac[6],
            mac[7],
        ]
    }
}

impl Meta {
    /// The option's first two words: 4 bits of flags, 12 of the CPU, 48 of time; 32 of the number, 16
    /// of length, 16 of the tap.
    #[inline(always)]
    const fn words(&self) -> [u64; 2] {
        let flags = (self.direction as u8 * FLAG_RESPONSE)
            | (self.arm as u8 * FLAG_CANARY)
            | (self.piece as u8 * FLAG_PIECE)
            | (self.last_piece as u8 * FLAG_LAST_PIECE);
        let cpu = self.cpu as u64 & ((1 << CPU_BITS) - 1);
        let time = self.time_ns >> TIME_SHIFT & ((1 << TIME_BITS) - 1);
        let origin = (flags as u64) << (CPU_BITS + TIME_BITS) | cpu << TIME_BITS | time;
        let length = self.length as u64 & 0xffff;
        let number = (self.sequence as u64) << 32 | length << 16 | self.tap as u64;
        [origin, number]
    }
}

/// Why a datagram is not of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DecodeError {
    /// Ends before its headers do.
    Truncated,
    /// Neither GENEVE version 0 nor VXLAN.
    UnknownEncapsulation,
    /// GENEVE without our option, or with another version of it.
    UnknownOption,
    /// The payload is no IP packet: another protocol, or a control packet (the O bit).
    UnknownProtocol,
}

impl DecodeError {
    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::UnknownEncapsulation => "unknown_encapsulation",
            Self::UnknownOption => "unknown_option",
            Self::UnknownProtocol => "unknown_protocol",
        }
    }
}

/// A datagram of the tunnel, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// From our own tap. The payload is an IP packet.
    Geneve {
        /// The header.
        header: Header,
        /// What follows it.
        payload: &'a [u8],
    },
    /// From AWS VPC Traffic Mirroring or the like (RFC 7348). The payload is an Ethernet frame.
    Vxlan {
        /// The network identifier, 24 bits; not a service's id.
        vni: u32,
        /// The mirrored frame.
        payload: &'a [u8],
    },
}

/// Takes a UDP payload apart. Options of others are skipped, unless GENEVE's C bit forbids it.
pub fn decode(datagram: &[u8]) -> Result<Datagram<'_>, DecodeError> {
    let (fixed, rest) = datagram
        .split_first_chunk::<8>()
        .ok_or(DecodeError::Truncated)?;
    let vni = u32::from_be_bytes([0, fixed[4], fixed[5], fixed[6]]);
    // VXLAN: the I flag, and three reserved bytes where GENEVE has its protocol.
    if fixed[0] == 0x08 && fixed[1..4] == [0, 0, 0] {
        return Ok(Datagram::Vxlan { vni, payload: rest });
    }
    if fixed[0] >> 6 != 0 {
        return Err(DecodeError::UnknownEncapsulation);
    }
    if fixed[1] & FLAG_CONTROL != 0 {
        return Err(DecodeError::UnknownProtocol);
    }
    let ipv6 = match u16::from_be_bytes([fixed[2], fixed[3]]) {
        PROTOCOL_IPV4 => false,
        PROTOCOL_IPV6 => true,
        _ => return Err(DecodeError::UnknownProtocol),
    };
    let options_length = usize::from(fixed[0] & 0x3f) * 4;
    let (options, payload) = rest
        .split_at_checked(options_length)
        .ok_or(DecodeError::Truncated)?;
    let meta = find_option(options)?;
    Ok(Datagram::Geneve {
        header: Header { vni, ipv6, meta },
        payload,
    })
}

fn find_option(mut options: &[u8]) -> Result<Meta, DecodeError> {
    while let Some((head, rest)) = options.split_first_chunk::<4>() {
        let length = usize::from(head[3] & 0x1f) * 4;
        let (body, next) = rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        if u16::from_be_bytes([head[0], head[1]]) == OPTION_CLASS && head[2] & 0x7f == OPTION_TYPE {
            let body = body.first_chunk().ok_or(DecodeError::UnknownOption)?;
            return Ok(parse_option(body));
        }
        options = next;
    }
    Err(DecodeError::UnknownOption)
}

fn parse_option(body: &[u8; OPTION_LENGTH - 4]) -> Meta {
    let word = |at: usize| {
        let bytes = body[at..].first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(bytes)
    };
    let (origin, number) = (word(0), word(8));
    let flags = (origin >> (CPU_BITS + TIME_BITS)) as u8;
    Meta {
        direction: if flags & FLAG_RESPONSE == 0 {
            Direction::Request
        } else {
            Direction::Response
        },
        arm: if flags & FLAG_CANARY == 0 {
            Arm::Stable
        } else {
            Arm::Canary
        },
        piece: flags & FLAG_PIECE != 0,
        last_piece: flags & FLAG_LAST_PIECE != 0,
        cpu: (origin >> TIME_BITS) as u16 & ((1 << CPU_BITS) - 1),
        length: u32::from((number >> 16) as u16),
        sequence: (number >> 32) as u32,
        time_ns: (origin & ((1 << TIME_BITS) - 1)) << TIME_SHIFT,
        tap: number as u16,
        mac: word(16),
    }
}

/// The outer UDP source port of a connection: spreads connections over the receiver's queues, and
/// keeps one in order. From the dynamic range (RFC 6335).
#[inline(always)]
pub const fn source_port(hash: u64) -> u16 {
    0xc000 | (hash as u16 & 0x3fff)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        let flags = any::<[bool; 5]>();
        let numbers = (0_u16..4096, any::<(u16, u32, u16, u64)>(), 0_u64..1 << 48);
        (0_u32..1 << 24, flags, numbers).prop_map(
            |(vni, flags, (cpu, (length, sequence, tap, mac), time))| Header {
                vni,
                ipv6: flags[0],
                meta: Meta {
                    direction: if flags[1] {
                        Direction::Response
                    } else {
                        Direction::Request
                    },
                    arm: if flags[2] { Arm::Canary } else { Arm::Stable },
                    piece: flags[3],
                    last_piece: flags[4],
                    cpu,
                    length: length.into(),
                    sequence,
                    time_ns: time << 10,
                    tap,
                    mac,
                },
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(header in header(), payload in any::<std::vec::Vec<u8>>()) {
            let mut datagram = header.encode().to_vec();
            datagram.extend_from_slice(&payload);
            prop_assert_eq!(decode(&datagram), Ok(Datagram::Geneve { header, payload: &payload }));
        }

        #[test]
        fn decoding_never_panics(datagram in any::<std::vec::Vec<u8>>()) {
            let _ = decode(&datagram);
        }
    }

    #[test]
    fn vxlan_is_told_from_geneve() {
        let datagram = [0x08, 0, 0, 0, 0, 0, 7, 0, 0xaa];
        assert_eq!(
            decode(&datagram),
            Ok(Datagram::Vxlan {
                vni: 7,
                payload: &[0xaa]
            })
        );
    }
}
