use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::sync::mpsc;

use crate::config::{Affinity, Share};

use super::*;

fn status() -> Status {
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
                xdp: None,
                xdp_error: None,
            },
            Interface {
                name: "veth-pod".to_owned(),
                ifindex: None,
                hook: None,
                attached: false,
                error: Some("no such interface; waiting for it".to_owned()),
                xdp: None,
                xdp_error: None,
            },
        ],
        agents: vec![Agent {
            address: ([10, 0, 0, 9], 6181).into(),
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
            mirror: Some(MirrorState {
                on: true,
                from: Source::File,
                agent: ([10, 0, 0, 9], 6181).into(),
                sample: Sample {
                    configured: 1.0,
                    set: Some(0.5),
                    effective: 0.25,
                },
                budget_bytes_per_second: Some(12_500_000),
                bytes_per_second: 3_200_000.0,
            }),
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

#[test]
fn a_status_fits_a_terminal() {
    let expected = "\
modelmirror 0.1.0 (ABI 1), up 3h 12m 3s
warning: the config was not reloaded: node.toml:3:1: unknown key

INTERFACE  INDEX  HOOK  STATE
eth0       2      tcx   attached
veth-pod   -      -     NOT ATTACHED: no such interface; waiting for it

AGENT          STATE  LAST ECHO  ROUND TRIP  UPLINK  MTU
10.0.0.9:6181  alive  0.4 s ago  0.21 ms     eth0    1500

SERVICE sentiment  id 101, version v12, *:8000
  mirror       on (by file), to 10.0.0.9:6181
  sample       0.25 effective; 1 in the file, 0.5 by cli
  rate         3.2 MB/s of 12.5 MB/s allowed
  connections  1200, 3 shut out by the budget
  PACKETS         REQUEST  RESPONSE
  mirrored          40000         0
  pure_ack              0         7
  bytes mirrored  81.9 MB       0 B

cost of our programs: p50 448 ns, p99 1024 ns a packet (one run in 1,024 timed: 39)
";
    assert_eq!(status().to_string(), expected);
}

#[test]
fn both_versions_stand_side_by_side() {
    let server = ServerUse {
        processes: 5,
        cpu_seconds: 71.3,
        cpus: Some(0.314),
        resident_bytes: 412_000_000,
    };
    let mut status = status();
    status.services[0].mirror = None;
    status.services[0].canary = Some(CanaryState {
        version: "v13".to_owned(),
        address: ([10, 0, 0, 5], 8001).into(),
        affinity: Affinity::Client,
        share: ShareState {
            configured: Share::NONE,
            set: Some(Share::try_from(0.05).unwrap()),
            effective: Share::try_from(0.05).unwrap(),
            achieved: Achieved {
                seconds: Some(187.4),
                connections: Some(0.05),
                requests: Some(0.0612),
                bytes: None,
            },
        },
        arms: vec![
            arm("stable", "v12", Some(server)),
            arm("canary", "v13", None),
        ],
        concentration: Some(Concentration {
            clients: 16,
            connections: 94,
            busiest: [10, 0, 0, 2].into(),
            busiest_client: 0.0975,
            busiest_connection: 0.02,
            client_keys: 12.0,
            connection_keys: 60.0,
        }),
        xdp: None,
        xdp_error: None,
        by: None,
        up: None,
        silent: None,
        error: None,
    });
    let expected = "
  canary       v13, 10.0.0.5:8001, on this host; a client keeps its version
  share        0.05 effective; 0 in the file, 0.05 by cli
  achieved     5.00 % of connections, 6.12 % of requests, - of bytes, in 3m 7s
  clients      16 on 94 connections; 10.0.0.2 sends 9.75 % of the requests' bytes
  VERSION                   stable v12  canary v13
  connections                        7           7
  open                               0           0
  unanswered                         0           0
  responses                          0           0
    2xx 3xx 4xx 5xx            0 0 0 0     0 0 0 0
  first byte p50                     -           -
  first byte p99                     -           -
  handshake p50                      -           -
  bytes in, out               0 B, 0 B    0 B, 0 B
  resets by client, server        0, 0        0, 0
  server's CPUs                   0.31           -
  server's memory             412.0 MB           -
  server's processes                 5           -
";
    let shown = status.to_string();
    assert!(shown.contains(expected), "{shown}");

    let canary = status.services[0].canary.as_mut().unwrap();
    (canary.arms[0].server, canary.concentration) = (None, None);
    let shown = status.to_string();
    assert!(
        !shown.contains("server's") && !shown.contains("clients"),
        "{shown}"
    );
}

fn arm(arm: &str, version: &str, server: Option<ServerUse>) -> Arm {
    Arm {
        arm: arm.to_owned(),
        version: version.to_owned(),
        connections: 7,
        server,
        ..Arm::default()
    }
}

#[test]
fn a_change_is_written_as_documented() {
    let written = [
        (Change::On, r#""on""#),
        (Change::Off, r#""off""#),
        (Change::Clear, r#""clear""#),
        (Change::Sample(0.25), r#"{"sample":0.25}"#),
    ];
    for (change, json) in written {
        assert_eq!(serde_json::to_string(&change).unwrap(), json);
    }
}

#[test]
fn a_change_of_the_canary_is_written_as_documented() {
    let share = Share::try_from(0.05).unwrap();
    let written = [
        (CanaryChange::Share(share), r#"{"share":0.05}"#),
        (CanaryChange::Off(Rest::Finish), r#"{"off":"finish"}"#),
        (CanaryChange::Off(Rest::Reset), r#"{"off":"reset"}"#),
        (
            CanaryChange::Off(Rest::Drain(30_000)),
            r#"{"off":{"drain":30000}}"#,
        ),
        (CanaryChange::Clear, r#""clear""#),
    ];
    for (change, json) in written {
        assert_eq!(serde_json::to_string(&change).unwrap(), json);
        assert_eq!(serde_json::from_str::<CanaryChange>(json).unwrap(), change);
    }
    for refused in [r#"{"share":1.5}"#, r#"{"share":0.00001}"#, r#""off""#] {
        assert!(
            serde_json::from_str::<CanaryChange>(refused).is_err(),
            "{refused}"
        );
    }
}

/// A daemon that knows one service, at `socket`; hands out the commands that it got.
fn daemon(socket: &Path) -> mpsc::UnboundedReceiver<Command> {
    let (requests, mut inbox) = mpsc::channel::<Request>(1);
    let (seen, commands) = mpsc::unbounded_channel();
    tokio::spawn(serve(bind(socket).unwrap(), requests));
    tokio::spawn(async move {
        while let Some(Request { command, reply }) = inbox.recv().await {
            seen.send(command.clone()).unwrap();
            let answer = match command {
                Command::Status { .. } => Ok(Reply::Status(Box::new(status()))),
                Command::Mirror { service, .. } if service != "sentiment" => {
                    Err(Refusal::UnknownService {
                        name: service,
                        known: vec!["sentiment".to_owned()],
                    })
                }
                Command::Mirror { .. } | Command::Canary { .. } | Command::Off => {
                    Ok(Reply::Done(Done {
                        done: vec!["done".to_owned()],
                        warnings: Vec::new(),
                    }))
                }
            };
            reply.send(answer).unwrap();
        }
    });
    commands
}

#[tokio::test]
async fn commands_reach_the_daemon_and_answers_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/control.sock");
    let mut commands = daemon(&socket);
    let client = Client::new(&socket);

    assert_eq!(client.status(Some("sentiment")).await.unwrap(), status());
    let service = Some("sentiment".to_owned());
    assert_eq!(commands.recv().await, Some(Command::Status { service }));

    let change = Change::Sample(0.1);
    assert_eq!(
        client.mirror("sentiment", change).await.unwrap().done,
        ["done"]
    );
    let service = "sentiment".to_owned();
    assert_eq!(
        commands.recv().await,
        Some(Command::Mirror { service, change })
    );

    client.off().await.unwrap();
    assert_eq!(commands.recv().await, Some(Command::Off));

    let refused = client.mirror("ranking", Change::On).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "there is no service \"ranking\"; known: sentiment"
    );
    let refused = client
        .mirror("sentiment", Change::Sample(2.0))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("2 is not a share"),
        "{refused}"
    );
}

#[tokio::test]
async fn only_the_owner_may_open_the_socket_and_only_one_daemon_may_own_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let listener = bind(&socket).unwrap();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    let second = bind(&socket).unwrap_err().to_string();
    assert!(second.contains("another daemon listens at"), "{second}");

    drop(listener);
    let client = Client::new(&socket);
    let nobody = client.status(None).await.unwrap_err();
    assert!(matches!(nobody, ClientError::NoDaemon { .. }), "{nobody}");
    drop(bind(&socket).unwrap());

    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "precious").unwrap();
    let refused = bind(&socket).unwrap_err().to_string();
    assert!(refused.contains("is not a socket"), "{refused}");
}

#[tokio::test]
async fn a_daemon_that_stops_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let (requests, inbox) = mpsc::channel(1);
    drop(inbox);
    tokio::spawn(serve(bind(&socket).unwrap(), requests));
    let stopped = Client::new(&socket).off().await.unwrap_err();
    assert_eq!(stopped.to_string(), "the daemon is stopping");
}
