use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mirror_api::Start;
use mirror_api::fixtures::{history, status, story};
use mirror_base::control::{Client, ClientError, bind};
use tokio::sync::mpsc;

use super::*;

/// A daemon that knows one service, at `socket`; hands out the commands that it got.
fn daemon(socket: &Path) -> mpsc::UnboundedReceiver<Command> {
    let (requests, mut inbox) = mpsc::channel::<Request>(1);
    let (seen, commands) = mpsc::unbounded_channel();
    tokio::spawn(serve(bind(socket).unwrap(), requests));
    tokio::spawn(async move {
        while let Some(Request { command, reply, .. }) = inbox.recv().await {
            seen.send(command.clone()).unwrap();
            let answer = match command {
                Command::Status { .. } => Ok(Reply::Status(Box::new(status()))),
                Command::Mirror { service, .. } if service != "sentiment" => {
                    Err(Refusal::UnknownService {
                        name: service,
                        known: vec!["sentiment".to_owned()],
                    })
                }
                Command::RolloutRecord { .. } => Ok(Reply::Record(story().lines)),
                Command::Rollouts { .. } => Ok(Reply::Rollouts(history())),
                Command::Mirror { .. }
                | Command::Canary { .. }
                | Command::Rollout { .. }
                | Command::Off => Ok(Reply::Done(Done {
                    done: vec!["done".to_owned()],
                    warnings: Vec::new(),
                })),
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

#[tokio::test]
async fn a_rollout_s_commands_reach_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let mut commands = daemon(&socket);
    let client = Client::new(&socket);
    let mut plan = mirror_rollout::stories::plan(3);
    let start = |plan| {
        RolloutOrder::Start(Box::new(Start {
            plan: Some(plan),
            ..Start::default()
        }))
    };

    let order = start(plan.clone());
    client.rollout("sentiment", &order).await.unwrap();
    let service = "sentiment".to_owned();
    let told = commands.recv().await;
    assert_eq!(told, Some(Command::Rollout { service, order }));

    // A plan of any origin is held to the same.
    plan.canary.confidence = 2.0;
    let refused = client.rollout("sentiment", &start(plan)).await.unwrap_err();
    let expected =
        "the plan cannot be carried out: canary.confidence: 2 is not from 0.5 to 0.99999";
    assert!(refused.to_string().starts_with(expected), "{refused}");

    let lines = client
        .record("sentiment", Some("sentiment-1"))
        .await
        .unwrap();
    assert_eq!(lines, story().lines);
    let id = Some("sentiment-1".to_owned());
    let service = "sentiment".to_owned();
    let told = commands.recv().await;
    assert_eq!(told, Some(Command::RolloutRecord { service, id }));

    assert_eq!(client.rollouts(None).await.unwrap(), history());
    assert_eq!(
        commands.recv().await,
        Some(Command::Rollouts { service: None })
    );
}
