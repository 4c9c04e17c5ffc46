//! What becomes of a packet, and why: reason = counter index = metric label.

/// Declares [`Reason`] with its label and its meaning in one place.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a packet left a program the way it did. Every packet has exactly one.
        ///
        /// The number is the index of its counter, the label the value of the metric's `reason`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason, in the order of its numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The reason with this number.
            #[inline(always)]
            pub const fn of(number: u32) -> Option<Self> {
                if (number as usize) < Self::COUNT { Some(Self::ALL[number as usize]) } else { None }
            }

            /// The value of the `reason` label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

reasons! {
    // Packets that belong to no service.
    /// Neither IPv4 nor IPv6.
    NotIp = "not_ip",
    /// Ends before its headers do.
    Truncated = "truncated",
    /// Headers that contradict each other.
    Malformed = "malformed",
    /// A fragment: it carries no ports, or not the whole segment.
    Fragment = "fragment",
    /// IPv6 with extension headers before its transport.
    ExtensionHeader = "extension_header",
    /// More VLAN tags than two.
    VlanDepth = "vlan_depth",
    /// Neither TCP nor UDP.
    OtherProtocol = "other_protocol",
    /// TCP or UDP, but neither end is a service's address.
    NotService = "not_service",
    /// To or from an agent's tunnel end: never copied, whatever it is.
    Tunnel = "tunnel",

    // Packets of a service that are not copied.
    /// UDP to or from a service's address: services are TCP.
    Udp = "udp",
    /// Mirroring is switched off for the service, or for packets of this direction.
    Off = "off",
    /// A version serves the connection whose connections are not copied.
    OtherArm = "other_arm",
    /// The daemon's heartbeat is too old: nobody watches the mirror.
    Stale = "stale",
    /// The agent does not answer.
    AgentDown = "agent_down",
    /// The uplink drops packets: the mirror yields.
    Paused = "paused",
    /// The connection is not in the sample.
    NotSampled = "not_sampled",
    /// An acknowledgement without payload, SYN, FIN or RST: nothing to replay.
    PureAck = "pure_ack",
    /// The mirror budget is spent; the connection stays out until it closes.
    OverBudget = "over_budget",

    // Packets of a service that were to be copied.
    /// The copy was handed to the uplink, or lies in the ring, whole.
    Mirrored = "mirrored",
    /// The kernel could not clone the packet, or the copy never reached the uplink's program.
    CloneFailed = "clone_failed",
    /// No tunnel is known for the service's agent.
    NoTunnel = "no_tunnel",
    /// The kernel refused to make room for the tunnel headers.
    EncapsulationFailed = "encapsulation_failed",
    /// A packet that does not fit the path could not be cut into pieces.
    SplitFailed = "split_failed",
    /// The uplink's queue refused the copy.
    UplinkDropped = "uplink_dropped",
    /// The ring has no room for the copy: the agent or the sender is too slow, or away.
    RingFull = "ring_full",
    /// A program that this one has interrupted was writing to the ring.
    RingBusy = "ring_busy",
    /// No ring is there for the service's agent.
    NoRing = "no_ring",
    /// The packet is longer than any that a record holds.
    TooLong = "too_long",
    /// The kernel could not read the packet.
    CopyFailed = "copy_failed",
}

/// What the program does with a packet of the host. The packet itself always goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing but counting.
    Pass(Reason),
    /// Send a copy to the service's agent, then count how that went.
    Copy,
}
