use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::sync::mpsc;

use crate::config::Share;

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
            },
            Interface {
                name: "veth-pod".to_owned(),
                ifindex: None,
                hook: None,
                attached: false,
                error: Some("no such interface; waiting for it".to_owned()),
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
