//! Which version answers a new connection: the share, the keyed hash, and what happens when the
//! version that the hash names has nobody listening.

use crate::abi::{shared, words};
use crate::flow::{Address, Endpoint, Flow};
use crate::policy::{WHOLE, chosen};
use crate::translate::Way;
use crate::tunnel::Arm;

/// A share counts in parts of this: steps of 0.0001.
pub const SHARE_PARTS: u32 = 10_000;

words! {
    /// Bits of [`Steering::flags`].
    pub mod flag: u32 {
        /// A canary is configured: connections are followed and measured, by version.
        PRESENT = 1;
        /// The client's address alone is the key, so that a user's connections stay together.
        BY_CLIENT = 2;
        /// Steering goes on without a daemon for good: the canary was promoted.
        FOR_GOOD = 4;
        /// The canary is on another host: addresses are translated.
        AWAY = 16;
        /// Packets of a canary on another host may go at XDP already.
        XDP = 32;
        /// The canary has less than the disk may say: a rollout took it back, or the command line lowered its
        /// share, and that may not be written yet. For the next daemon, the programs do not look at it.
        TAKEN_BACK = 64;
        /// Connections of the service may be translated, now or from before its canary moved here.
        TRANSLATED = 128;
    }
}

/// A canary that has left a SYN unanswered for this long is not chosen, in nanoseconds.
pub const PATIENCE_NS: u64 = 500_000_000;

/// How long until a canary that does not answer is tried again, in nanoseconds.
pub const RETRY_NS: u64 = 5_000_000_000;

shared! {
    /// Whether a canary answers, shared by all CPUs. Row = the service's index.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Health {
        /// When the first SYN was sent that nobody has answered so far; 0 = none. Written by the tap.
        pub waiting_ns: u64,
        /// 1 = the daemon's own connection attempts fail.
        pub down: u64,
    }
}

impl Health {
    /// Whether a connection can be given to the canary.
    #[inline(always)]
    pub const fn answers(&self, now_ns: u64) -> bool {
        let waited = now_ns.saturating_sub(self.waiting_ns);
        self.down == 0 && (self.waiting_ns == 0 || waited <= PATIENCE_NS || waited > RETRY_NS)
    }

    /// What `waiting_ns` becomes with a SYN to the canary; nothing = it stays.
    #[inline(always)]
    pub const fn asked(&self, now_ns: u64) -> Option<u64> {
        let waited = now_ns.saturating_sub(self.waiting_ns);
        if self.waiting_ns == 0 || waited > RETRY_NS {
            Some(now_ns)
        } else {
            None
        }
    }
}

/// So many connections a canary of this host is given before one was seen to arrive.
pub const UNPROVEN: u64 = 16;

shared! {
    /// What became of the first connections that a canary of this host was given, shared by all CPUs. Row = the
    /// service's index. The daemon sets it to nothing when a share begins.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Arrivals {
        /// So many were given, of those before the first arrived.
        pub given: u64,
        /// 1 = the kernel was seen to have a socket for one.
        pub arrived: u64,
    }
}

impl Arrivals {
    /// Whether another connection may be given: what the host leads on to somebody else, or drops, is lost,
    /// and that is to be few.
    #[inline(always)]
    pub const fn may_be_given(&self) -> bool {
        self.arrived != 0 || self.given < UNPROVEN
    }
}

shared! {
    /// How one service's new connections are shared out. Row = the service's index.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Steering {
        /// Since when the canary has been on trial, on the monotonic clock, in nanoseconds: what older
        /// connections come to is not counted as its. 0 = for as long as anybody knows.
        pub trial_ns: u64,
        /// The canary's listener.
        pub canary: Endpoint,
        /// Key of the hash: another one for each rollout.
        pub salt: [u64; 2],
        /// A key goes to the canary when its hash is below this, in parts of [`WHOLE`].
        pub threshold: u64,
        /// What the threshold was before its last change.
        pub previous: u64,
        /// Without a heartbeat for this long no connection is steered any more, in nanoseconds.
        pub stale_ns: u64,
        /// Time that the limit on new connections asks for each, in nanoseconds; 0 = no limit.
        pub connection_cost_ns: u64,
        /// How far that limit may be overdrawn at once, in nanoseconds.
        pub burst_ns: u64,
        /// Bits of [`flag`].
        pub flags: u32,
        /// Keeps the size a multiple of 8.
        pub pad: u32,
        /// The way to a canary on another host.
        pub way: Way,
    }
}

/// The share of a threshold that [`share_threshold`] made, in parts of [`SHARE_PARTS`].
pub const fn threshold_share(threshold: u64) -> u32 {
    let parts = threshold.saturating_mul(SHARE_PARTS as u64).div_ceil(WHOLE);
    if parts > SHARE_PARTS as u64 {
        SHARE_PARTS
    } else {
        parts as u32
    }
}

/// The threshold of a share in parts of [`SHARE_PARTS`]; more than all is all.
pub const fn share_threshold(parts: u32) -> u64 {
    let parts = if parts > SHARE_PARTS {
        SHARE_PARTS
    } else {
        parts
    };
    parts as u64 * WHOLE / SHARE_PARTS as u64
}

/// Declares [`Choice`] with its label and its arm in one place.
macro_rules! choices {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal => $arm:ident,)+) => {
        /// Why a new connection went to the version that it went to.
        ///
        /// The number is the index of its counter, the label the value of the metric's `reason`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Choice {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Choice {
            /// Every choice, in the order of its numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The value of the `reason` label.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// The version that serves it.
            #[inline(always)]
            pub const fn arm(self) -> Arm {
                match self {
                    $(Self::$name => Arm::$arm,)+
                }
            }
        }
    };
}

choices! {
    /// The hash says so.
    Stable = "share" => Stable,
    /// The hash says so.
    Canary = "share" => Canary,
    /// The hash says canary, but nobody listens there.
    NoCanary = "no_listener" => Stable,
    /// The hash says stable, but nobody listens there.
    NoStable = "no_listener" => Canary,
    /// The hash says canary, but the daemon's heartbeat is too old.
    Stale = "stale" => Stable,
    /// The hash says canary, but more connections are opened than the limit allows.
    Limited = "limit" => Stable,
    /// The hash says canary, but the same ports still wait out an earlier connection (TIME_WAIT),
    /// and the kernel gives those to the listener of the address that was dialled.
    TimeWait = "time_wait" => Stable,
    /// An acknowledgement that ends a handshake by SYN cookie, whose SYN nobody remembers.
    Cookie = "cookie" => Canary,
    /// The hash says canary, but it has not answered of late.
    NoAnswer = "no_answer" => Stable,
    /// The hash says canary, but no port is free to reach it from.
    NoPort = "no_port" => Stable,
    /// The hash says canary, but the tables of translations have no room for it.
    NoRoom = "no_room" => Stable,
    /// The hash says canary, but this packet cannot be taken there: it was only seen as it left, it
    /// comes from this host itself, it was dialled where the canary is not, or none of those that the canary
    /// was given has arrived so far.
    OutOfReach = "out_of_reach" => Stable,
}

/// Whether a canary can be given a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// Nobody listens there.
    NoListener,
    /// It has not answered of late.
    NoAnswer,
    /// Not this one.
    OutOfReach,
}

/// What the kernel has for an arm, or for the packet's own addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// None.
    None,
    /// A listener.
    Listening,
    /// A SYN was acknowledged, and no more.
    Requested,
    /// A connection.
    Connected,
    /// The rest of an earlier connection.
    TimeWait,
}

impl Steering {
    /// The hash of a connection's affinity key.
    #[inline(always)]
    pub fn hash(&self, flow: &Flow) -> u64 {
        if self.flags & flag::BY_CLIENT == 0 {
            return flow.hash(self.salt);
        }
        // One client dials one service by several addresses: only its own counts.
        let client = Flow {
            client: Endpoint::new(flow.client.address, 0),
            server: Endpoint::new(Address::default(), 0),
        };
        client.hash(self.salt)
    }

    /// Whether new connections are shared out at all.
    #[inline(always)]
    pub const fn is_on(&self) -> bool {
        self.flags & flag::PRESENT != 0 && self.threshold != 0
    }

    /// Whether nobody has watched over the share for too long.
    #[inline(always)]
    pub const fn is_stale(&self, heartbeat_ns: u64, now_ns: u64) -> bool {
        self.flags & flag::FOR_GOOD == 0 && now_ns.saturating_sub(heartbeat_ns) > self.stale_ns
    }

    /// Whether the canary is on another host.
    #[inline(always)]
    pub const fn is_away(&self) -> bool {
        self.flags & flag::AWAY != 0
    }

    /// Chooses for a SYN that no connection has a socket for. `stable` is what the kernel has for
    /// the packet's own addresses; `canary` tells whether the canary can be given it, and is asked
    /// only where that matters.
    #[inline(always)]
    pub fn choose(
        &self,
        hash: u64,
        stale: bool,
        limited: bool,
        stable: Socket,
        canary: impl FnOnce() -> Readiness,
    ) -> Choice {
        let wanted = chosen(hash, self.threshold);
        let (otherwise, ask) = match (wanted, limited, stale) {
            (false, ..) => (Choice::Stable, stable == Socket::None && !limited),
            (true, true, _) => (Choice::Limited, false),
            (true, false, true) => (Choice::Stale, stable == Socket::None),
            (true, false, false) => (Choice::Canary, true),
        };
        if !ask {
            return otherwise;
        }
        let willing = otherwise == Choice::Canary;
        // Translated, it does not meet what is left of the earlier connection.
        if willing && stable == Socket::TimeWait && !self.is_away() {
            return Choice::TimeWait;
        }
        match (willing, canary()) {
            (true, Readiness::Ready) => Choice::Canary,
            // Nobody else could take it.
            (_, Readiness::Ready | Readiness::NoAnswer) if stable == Socket::None => {
                Choice::NoStable
            }
            (true, Readiness::NoListener) => Choice::NoCanary,
            (true, Readiness::NoAnswer) => Choice::NoAnswer,
            (true, Readiness::OutOfReach) => Choice::OutOfReach,
            (false, _) => otherwise,
        }
    }

    /// Whether an acknowledgement without a socket, and without a remembered SYN, is the canary's:
    /// only where the share before its last change says the same, since the SYN may be older.
    #[inline(always)]
    pub const fn answers_cookie(&self, hash: u64) -> bool {
        chosen(hash, self.threshold) && chosen(hash, self.previous)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::net::{IpAddr, SocketAddr};
    use proptest::prelude::*;

    fn flow(client: SocketAddr) -> Flow {
        Flow {
            client: client.into(),
            server: Endpoint::from(SocketAddr::from(([10, 0, 0, 5], 8000))),
        }
    }

    fn at(parts: u32, flags: u32) -> Steering {
        Steering {
            salt: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
            threshold: share_threshold(parts),
            previous: share_threshold(parts),
            flags: flag::PRESENT | flags,
            ..Steering::default()
        }
    }

    proptest! {
        #[test]
        fn no_key_moves_back_when_the_share_rises(
            shares in any::<[u16; 2]>(),
            salt in any::<[u64; 2]>(),
            client in any::<SocketAddr>(),
            by_client in any::<bool>(),
        ) {
            let mut shares = shares.map(|parts| u32::from(parts) % (SHARE_PARTS + 1));
            shares.sort_unstable();
            let flags = if by_client { flag::BY_CLIENT } else { 0 };
            let arms = shares.map(|parts| {
                let steering = Steering { salt, ..at(parts, flags) };
                chosen(steering.hash(&flow(client)), steering.threshold)
            });
            prop_assert!(arms[0] <= arms[1], "{shares:?}: {arms:?}");
        }

        #[test]
        fn a_client_stays_with_its_version(ip in any::<IpAddr>(), ports in any::<[u16; 2]>()) {
            let steering = at(5_000, flag::BY_CLIENT);
            let [one, other] = ports.map(|port| steering.hash(&flow(SocketAddr::new(ip, port))));
            prop_assert_eq!(one, other);
        }
    }

    /// A million clients. Six standard deviations: one run in 500 million is outside by chance.
    #[test]
    fn what_is_asked_for_is_what_is_achieved() {
        const CLIENTS: u32 = 1_000_000;
        for parts in [1, 100, 500, 5_000, SHARE_PARTS] {
            let steering = at(parts, 0);
            let achieved = (0..CLIENTS)
                .map(|number| {
                    let [a, b, c, d] = (number / 50_000 + 0x0a01_0000).to_be_bytes();
                    let port = (number % 50_000 + 10_000) as u16;
                    flow(SocketAddr::from(([a, b, c, d], port)))
                })
                .filter(|flow| chosen(steering.hash(flow), steering.threshold))
                .count() as f64;
            let share = f64::from(parts) / f64::from(SHARE_PARTS);
            let expected = f64::from(CLIENTS) * share;
            let deviation = (expected * (1.0 - share)).sqrt();
            assert!(
                (achieved - expected).abs() <= 6.0 * deviation + 0.5,
                "share {share}: {achieved} of {expected}"
            );
        }
    }

    #[test]
    fn nobody_is_sent_where_nobody_listens() {
        use Readiness::{NoAnswer, NoListener, OutOfReach, Ready};
        use Socket::{Listening, None, TimeWait};
        #[track_caller]
        fn check(wanted: Arm, stable: Socket, canary: Readiness, expected: Choice) {
            let steering = at(5_000, 0);
            let hash = match wanted {
                Arm::Stable => u64::MAX,
                Arm::Canary => 0,
            };
            let choice = steering.choose(hash, false, false, stable, || canary);
            assert_eq!(choice, expected, "{wanted:?} of {stable:?} and {canary:?}");
        }
        check(Arm::Stable, Listening, Ready, Choice::Stable);
        check(Arm::Stable, Listening, NoListener, Choice::Stable);
        check(Arm::Stable, None, Ready, Choice::NoStable);
        check(Arm::Stable, None, NoAnswer, Choice::NoStable);
        check(Arm::Stable, None, NoListener, Choice::Stable);
        check(Arm::Stable, TimeWait, Ready, Choice::Stable);
        check(Arm::Canary, Listening, Ready, Choice::Canary);
        check(Arm::Canary, None, Ready, Choice::Canary);
        check(Arm::Canary, None, NoAnswer, Choice::NoStable);
        check(Arm::Canary, Listening, NoListener, Choice::NoCanary);
        check(Arm::Canary, Listening, NoAnswer, Choice::NoAnswer);
        check(Arm::Canary, Listening, OutOfReach, Choice::OutOfReach);
        check(Arm::Canary, TimeWait, Ready, Choice::TimeWait);
    }

    #[test]
    fn a_canary_that_is_silent_is_left_alone_for_a_while() {
        const S: u64 = 1_000_000_000;
        let asked = Health {
            waiting_ns: 10 * S,
            down: 0,
        };
        assert!(Health::default().answers(S) && asked.answers(10 * S + PATIENCE_NS));
        assert!(!asked.answers(11 * S) && asked.asked(11 * S).is_none());
        assert!(asked.answers(16 * S) && asked.asked(16 * S) == Some(16 * S));
        let down = Health { down: 1, ..asked };
        assert!(!down.answers(10 * S) && !down.answers(16 * S));
    }

    #[test]
    fn who_is_not_watched_over_goes_to_stable() {
        let on = at(SHARE_PARTS, 0);
        let choose =
            |stale, limited, stable| on.choose(0, stale, limited, stable, || Readiness::Ready);
        assert_eq!(choose(true, false, Socket::Listening), Choice::Stale);
        assert_eq!(choose(false, true, Socket::Listening), Choice::Limited);
        assert_eq!(choose(true, false, Socket::None), Choice::NoStable);
        assert_eq!(choose(false, true, Socket::None), Choice::Limited);
        let limit = Steering { stale_ns: 60, ..on };
        assert!(!limit.is_stale(100, 160) && limit.is_stale(100, 161));
        let promoted = Steering {
            flags: limit.flags | flag::FOR_GOOD,
            ..limit
        };
        assert!(!promoted.is_stale(0, u64::MAX));
    }

    #[test]
    fn a_cookie_follows_both_shares() {
        let raised = Steering {
            previous: 0,
            ..at(SHARE_PARTS, 0)
        };
        assert!(!raised.answers_cookie(0));
        assert!(at(1, 0).answers_cookie(0));
    }
}
