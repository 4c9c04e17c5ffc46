//! Servers that come and go.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Client, Process, Trial, eventually, large};

use super::{version, who};

#[test]
fn nobody_is_sent_where_nobody_listens() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    trial.stop_canary();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [40, 0]);
    let fell_back = trial.steered("stable", "no_listener");
    assert!((5..=35).contains(&fell_back), "{fell_back} of 40");

    trial.start_canary();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    trial.split(&sent).assert_share(0.5);

    trial.stop_stable();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [0, 40]);
    let fell_back = trial.steered("canary", "no_listener");
    assert!((5..=35).contains(&fell_back), "{fell_back} of 40");
}

/// What one connection has seen.
#[derive(Clone, Debug)]
struct Visit {
    began: Instant,
    ended: Instant,
    versions: BTreeSet<String>,
    trouble: Option<String>,
}

/// Clients that come and go, six at a time.
struct Crowd {
    client: Client,
    over: AtomicBool,
    visits: Mutex<Vec<Visit>>,
}

impl Crowd {
    /// Returns everything that they have seen while `during` ran.
    fn meanwhile(client: &Client, during: impl FnOnce(&Self)) -> Vec<Visit> {
        let crowd = Self {
            client: client.clone(),
            over: AtomicBool::new(false),
            visits: Mutex::default(),
        };
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| crowd.come_and_go());
            }
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| during(&crowd)));
            crowd.over.store(true, Ordering::Relaxed);
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        crowd.visits()
    }

    fn come_and_go(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let mut visit = Visit {
                began: Instant::now(),
                ended: Instant::now(),
                versions: BTreeSet::new(),
                trouble: None,
            };
            if let Err(error) = self.visit(&mut visit.versions) {
                visit.trouble = Some(format!("{error:#}"));
            }
            visit.ended = Instant::now();
            let mut visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
            visits.push(visit);
        }
    }

    fn visit(&self, versions: &mut BTreeSet<String>) -> anyhow::Result<()> {
        let mut connection = self.client.connect()?;
        for _ in 0..3 {
            let answer = connection.ask(&who())?;
            ensure!(answer.status == 200, "{answer:?}");
            versions.insert(version(&answer));
        }
        Ok(())
    }

    fn visits(&self) -> Vec<Visit> {
        let visits = self.visits.lock().unwrap_or_else(PoisonError::into_inner);
        visits.clone()
    }

    /// Waits until fifty connections that begin from now on have ended well, each of these versions
    /// has answered one of them, and no other has.
    #[track_caller]
    fn sees(&self, versions: &[&str]) {
        let now = Instant::now();
        eventually("connections come and go", || {
            let visits = self.visits().into_iter().filter(|visit| visit.began > now);
            let well: Vec<_> = visits.filter(|visit| visit.trouble.is_none()).collect();
            let seen: BTreeSet<_> = well.iter().flat_map(|visit| &visit.versions).collect();
            ensure!(well.len() >= 50 && seen.iter().eq(versions), "{seen:?}");
            Ok(())
        });
    }
}

/// A process of its own.
#[track_caller]
fn model_server(trial: &Trial, version: &str, listen: &str) -> Process {
    let node = &trial.scene.net.node;
    let mut command = node.command(env!("CARGO_BIN_EXE_model-process"));
    command.args([version, listen]);
    let mut server = node.spawn(version, command).unwrap();
    let at = listen.replace("[::]", "127.0.0.1");
    eventually("the model server listens", || {
        server.running()?;
        anyhow::Ok(node.run(|| std::net::TcpStream::connect(&at))?)
    });
    server
}

/// Kills it as the kernel would for want of memory, and says when it was gone.
#[track_caller]
fn kill(server: &mut Process) -> Instant {
    server.signal(Signal::SIGKILL).unwrap();
    server.wait(Duration::from_secs(30)).unwrap();
    Instant::now()
}

/// A version that dies takes its open connections along, as any server does that crashes. Nobody
/// else notices, and nobody who comes when it is gone.
#[test]
fn a_version_may_be_killed_under_load() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.stop_canary();
    trial.stop_stable();
    let mut stable = model_server(&trial, "v12", "[::]:8000");
    let mut canary = model_server(&trial, "v13", "[::]:8001");
    let client = Client::of_any(&trial.scene.net.client, "10.0.0.5:8000".parse().unwrap());
    for (share, killed, seen) in [
        ("0.5", "v13", &["v12", "v13"][..]),
        ("1", "v12", &["v13"]),
        ("0.3", "v12", &["v12", "v13"]),
    ] {
        trial.set(share);
        let (server, listen, other) = match killed {
            "v12" => (&mut stable, "[::]:8000", "v13"),
            _ => (&mut canary, "[::]:8001", "v12"),
        };
        let mut gone = Instant::now();
        let visits = Crowd::meanwhile(&client, |crowd| {
            crowd.sees(seen);
            gone = kill(server);
            crowd.sees(&[other]);
            *server = model_server(&trial, killed, listen);
            crowd.sees(seen);
        });
        for visit in &visits {
            let at = format!("{killed} killed at {share}: {visit:?}, gone at {gone:?}");
            assert!(visit.versions.len() <= 1, "{at}");
            if visit.trouble.is_some() {
                let was_its = !visit.versions.contains(other);
                assert!(was_its && visit.began < gone && share != "1", "{at}");
            }
        }
    }
    let fell_back = ["stable", "canary"].map(|arm| trial.steered(arm, "no_listener"));
    assert!(fell_back.iter().all(|&count| count > 10), "{fell_back:?}");
}
