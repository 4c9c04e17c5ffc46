//! Statuses for tests.

use std::net::SocketAddr;

use mirror_rollout::stories::{Story, plan};

use crate::shadow::{AgentStatus, LastRefusal, Malformed, RecordStatus, ServiceStatus, TapStatus};
use crate::summary::{ControlSummary, NoisePairs, TrafficSummary};
use crate::*;

/// A node with one service and one agent.
pub fn status() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        abi: 1,
        uptime_seconds: 11_523.4,
        off: false,
        warnings: vec!["the config was not reloaded: node.toml:3:1: unknown key".to_owned()],
        interfaces: vec![
            Interface {
                name: "eth0".to_owned(),
                ifindex: Some(2),
                hook: Some(Mechanism::Tcx),
                attached: true,
                error: None,
                left_out: false,
                before: Vec::new(),
                xdp: None,
                xdp_error: None,
            },
            Interface {
                name: "veth-pod".to_owned(),
                ifindex: None,
                hook: None,
                attached: false,
                error: Some("no such interface; waiting for it".to_owned()),
                left_out: false,
                before: Vec::new(),
                xdp: None,
                xdp_error: None,
            },
        ],
        agents: vec![Agent {
            address: SocketAddr::from(([10, 0, 0, 9], 6181)).into(),
            peer: Some(([10, 0, 0, 9], 6181).into()),
            transport: Transport::Stream,
            insecure: false,
            known_as: Some("node-a".into()),
            connections: 1,
            other_keys: 0,
            ring: Some(RingState {
                size_bytes: 256 << 20,
                held_bytes: 3 << 20,
                fullness: 0.02,
            }),
            alive: true,
            last_echo_seconds: Some(0.43),
            round_trip_seconds: Some(0.000_21),
            uplink: Some("eth0".to_owned()),
            mtu: Some(1500),
            paused: None,
            error: None,
        }],
        services: vec![Service {
            name: "sentiment".to_owned(),
            id: 101,
            addresses: vec!["*:8000".to_owned()],
            version: "v12".to_owned(),
            canary: None,
            look: Some(LookState {
                budget_exchanges_per_second: 100,
                arms: vec![looked("stable", 0.25, 72.4), looked("canary", 1.0, 25.0)],
            }),
            rollout: None,
            mirror: Some(MirrorState {
                on: true,
                from: Source::File,
                agent: SocketAddr::from(([10, 0, 0, 9], 6181)).into(),
                insecure: false,
                sample: Sample {
                    configured: 1.0,
                    set: Some(0.5),
                    effective: 0.25,
                },
                budget_bytes_per_second: Some(12_500_000),
                bytes_per_second: 3_200_000.0,
            }),
            missing: None,
            connections: 1_200,
            over_budget_connections: 3,
            packets: vec![
                PacketCount {
                    direction: "request".to_owned(),
                    reason: "mirrored".to_owned(),
                    packets: 40_000,
                },
                PacketCount {
                    direction: "response".to_owned(),
                    reason: "pure_ack".to_owned(),
                    packets: 7,
                },
            ],
            mirrored: vec![Mirrored {
                direction: "request".to_owned(),
                packets: 40_000,
                bytes: 81_920_000,
            }],
        }],
        run_time: RunTimes {
            runs: 39,
            p50_ns: Some(448),
            p99_ns: Some(1024),
        },
    }
}

fn looked(arm: &str, effective: f64, exchanges_per_second: f64) -> LookedArm {
    LookedArm {
        arm: arm.to_owned(),
        configured: 1.0,
        effective,
        exchanges_per_second,
        seen: 12,
        exchanges: vec![LookedExchanges {
            outcome: "2xx".to_owned(),
            count: 12,
        }],
    }
}

/// An agent with one service and one tap.
pub fn agent_status() -> AgentStatus {
    AgentStatus {
        version: "0.1.0".into(),
        since: jiff::Timestamp::UNIX_EPOCH,
        time: jiff::Timestamp::UNIX_EPOCH,
        taps: vec![TapStatus {
            name: "node-1".into(),
            transport: Some("stream".into()),
            copies: [("lost".to_owned(), 2), ("received".to_owned(), 40)].into(),
            lost_bytes: 100,
            outstanding: 7,
            ..TapStatus::default()
        }],
        last_refusal: Some(LastRefusal {
            peer: "10.0.0.8".into(),
            reason: "bad_tls".into(),
            why: "no\u{1b}[2J key".into(),
            time: jiff::Timestamp::UNIX_EPOCH,
        }),
        services: vec![ServiceStatus {
            name: "sentiment".into(),
            version: "v13".into(),
            production_versions: ["v12".to_owned()].into(),
            saturated_seconds: Some(3.0),
            queue: [5, 10],
            drops: [("queue_full".to_owned(), 4)].into(),
            last_malformed: Some(Malformed {
                client: ([10, 0, 0, 7], 4000).into(),
                side: "request".into(),
                why: "line end".into(),
            }),
            control: Some(ControlSummary {
                address: "10.0.0.9:8001".into(),
                down: Some("connect".into()),
                pairs: NoisePairs {
                    both: 1,
                    itself: 1,
                    versions: 1,
                    neither: 5,
                },
                missing: [("connect".to_owned(), 3)].into(),
                ..ControlSummary::default()
            }),
            traffic: TrafficSummary {
                repeated: 9,
                differing: 2,
            },
            ..ServiceStatus::default()
        }],
        memory_bytes: [1, 1 << 30],
        records: RecordStatus {
            stopped: true,
            ..RecordStatus::default()
        },
        record_dir: "/var/log/modelmirror".into(),
    }
}

/// Three seconds of a rollout.
pub fn story() -> Story {
    let mut story = Story::begin(plan(3));
    story.pass(2, [90, 1], [10, 0]);
    story
}

/// Two rollouts, the last one first.
pub fn history() -> Vec<RolloutSummary> {
    let Story { rollout, now, .. } = story();
    let (started, reason) = (rollout.started().clone(), "p99 exceeds its limit");
    let last = RolloutSummary {
        id: started.id,
        service: started.service,
        stable_version: started.stable,
        canary: started.canary,
        started: rollout.began(),
        ended: None,
        outcome: None,
        step: Some(StepName::Stage),
        reason: None,
    };
    let first = RolloutSummary {
        id: "sentiment-0".to_owned(),
        ended: Some(now),
        outcome: Some(RolloutOutcome::RolledBack),
        step: Some(StepName::RolledBack),
        reason: Some(reason.to_owned()),
        ..last.clone()
    };
    vec![last, first]
}
