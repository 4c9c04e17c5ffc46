//! The program as people and scripts run it, with somebody at its control socket who answers like a daemon.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_api::{RolloutState, Status, fixtures};
use serde_json::Value;
use tempfile::TempDir;

/// Somebody who answers at a socket, as long as the test lasts.
struct Daemon {
    folder: TempDir,
    /// What was asked: method, path and body.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Daemon {
    fn start(status: &Status) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (status, seen) = (serde_json::to_string(status).unwrap(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // The program may have gone.
                let _ = answer(connection, &status, &seen);
            }
        });
        Self { folder, asked }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// The orders among what was asked.
    fn orders(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let orders = asked.iter().filter(|line| line.starts_with("POST"));
        orders.cloned().collect()
    }
}

fn answer(
    mut connection: UnixStream,
    status: &str,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    connection.read_exact(&mut body)?;
    let first = head.lines().next().unwrap_or_default();
    let first = first.replace("post ", "POST ").replace(" http/1.1", "");
    let line = format!("{first} {}", String::from_utf8_lossy(&body));
    seen.lock().unwrap().push(line.trim().to_owned());
    let body = match first.starts_with("POST") {
        true => r#"{"done":["done"],"warnings":["mind the gap"]}"#,
        false => status,
    };
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// What a command came to.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

fn program(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelmirror"));
    command.args(line.split(' '));
    for name in [
        "MODELMIRROR_CONFIG",
        "MODELMIRROR_CONTROL",
        "NO_COLOR",
        "CLICOLOR_FORCE",
    ] {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> Said {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// With the daemon's socket in the environment.
fn ask(daemon: &Daemon, line: &str) -> Said {
    run(program(line).env("MODELMIRROR_CONTROL", daemon.socket()))
}

/// One service; a rollout of it goes on.
fn steady() -> Status {
    let mut status = fixtures::status();
    status.interfaces.truncate(1);
    let story = fixtures::story();
    status.services[0].rollout = Some(RolloutState::of(&story.rollout, story.now));
    status
}

#[test]
fn the_only_service_need_not_be_named() {
    let daemon = Daemon::start(&steady());
    let said = ask(&daemon, "canary set 5%");
    assert_eq!((said.code, said.out.as_str()), (Some(0), "done\n"));
    assert_eq!(said.err, "warning: mind the gap\n");
    assert_eq!(
        daemon.orders(),
        [r#"POST /v1/services/sentiment/canary {"share":0.05}"#]
    );

    let mut two = steady();
    let mut other = two.services[0].clone();
    other.name = "ranking".to_owned();
    two.services.push(other);
    let daemon = Daemon::start(&two);
    let said = ask(&daemon, "mirror off");
    assert_eq!(said.code, Some(1));
    assert!(
        said.err.contains("--service: sentiment, ranking"),
        "{said:?}"
    );
    assert_eq!(daemon.orders(), [""; 0]);
    assert_eq!(ask(&daemon, "mirror off -s ranking").code, Some(0));
    assert_eq!(
        daemon.orders(),
        [r#"POST /v1/services/ranking/mirror "off""#]
    );
}

#[test]
fn a_dry_run_is_no_start() {
    let daemon = Daemon::start(&steady());
    let said = ask(&daemon, "rollout start --dry-run --canary-version v13");
    assert_eq!(said.code, Some(0), "{said:?}");
    let orders = daemon.orders();
    assert_eq!(orders.len(), 1);
    assert!(
        orders[0].contains(r#"{"dry_run":{"version":"v13""#),
        "{orders:?}"
    );
}

#[test]
fn what_is_not_ready_is_named() {
    let check = |status: &Status, code, words: &str| {
        let daemon = Daemon::start(status);
        let said = ask(&daemon, "status --check");
        assert_eq!(said.code, Some(code), "{said:?}");
        assert!(said.out.contains(words), "{said:?}");
        let json = ask(&daemon, "status --check -o json");
        let json: Value = serde_json::from_str(&json.out).unwrap();
        assert_eq!(json["ready"], code == 0, "{json}");
    };
    let mut status = steady();
    check(&status, 0, "ready: ");
    status.agents[0].alive = false;
    check(&status, 1, "NOT READY: agent 10.0.0.9:6181 is dead");
    let mut status = steady();
    status.off = true;
    check(&status, 1, "NOT READY: everything is off");
}

#[test]
fn errors_are_json_where_results_are() {
    let folder = tempfile::tempdir().unwrap();
    let error = |said: &Said| -> Value {
        assert_eq!(said.out, "", "{said:?}");
        serde_json::from_str(&said.err).unwrap_or_else(|why| panic!("{why}: {said:?}"))
    };
    let nobody = folder.path().join("nobody");
    let said = run(program("status -o json --control").arg(&nobody));
    assert_eq!(said.code, Some(1));
    let words = error(&said)["error"].as_str().unwrap().to_owned();
    assert!(words.contains("no daemon answers at"), "{words}");

    let said = run(&mut program("canary set 5 --output json"));
    assert_eq!(said.code, Some(2));
    let words = error(&said)["error"].as_str().unwrap().to_owned();
    assert!(words.ends_with("for 5 % write 5% or 0.05"), "{words}");

    let config = folder.path().join("node.toml");
    std::fs::write(&config, "interfaces = [\"eth0\"]\nadimn = 1\n").unwrap();
    for line in ["check -o json -c", "run -o json -c"] {
        let said = run(program(line).arg(&config));
        assert_eq!(said.code, Some(2), "{said:?}");
        let problems = error(&said)["problems"].as_array().unwrap().clone();
        assert!(
            problems.iter().any(|problem| problem["line"] == 2),
            "{problems:?}"
        );
    }

    let daemon = Daemon::start(&steady());
    let said = ask(&daemon, "mirror on -o json");
    let done: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(done["warnings"][0], "mind the gap");
    assert_eq!(said.err, "");
}

#[test]
fn configs_are_found_or_it_says_where_they_were_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    std::fs::write(&config, "interfaces = [\n").unwrap();
    for line in ["run", "check", "config check"] {
        let said = run(program(line).env("MODELMIRROR_CONFIG", &config));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.contains("node.toml cannot be used"), "{said:?}");
    }
    // An option wins over the environment.
    let other = folder.path().join("other.toml");
    let said = run(program("run -c")
        .arg(&other)
        .env("MODELMIRROR_CONFIG", &config));
    assert!(said.err.contains("other.toml"), "{said:?}");
    // Records may be named beside a config that is only in the environment.
    let line = "report --fail-under compared=1 --records";
    let said = run(program(line)
        .arg(folder.path())
        .env("MODELMIRROR_CONFIG", &config));
    assert_ne!(said.code, Some(2), "{said:?}");
    let said = run(program("report -c a.toml --records").arg(folder.path()));
    assert_eq!(said.code, Some(2), "{said:?}");
    if !Path::new("/etc/modelmirror").exists() {
        for (line, file) in [("run", "node.toml"), ("shadow", "shadow.toml")] {
            let said = run(&mut program(line));
            assert_eq!(said.code, Some(2), "{said:?}");
            let looked = format!("/etc/modelmirror/{file}");
            assert!(said.err.contains(&looked), "{said:?}");
        }
    }
}

#[test]
fn pipes_and_json_have_no_colour() {
    let mut status = steady();
    status.agents[0].alive = false;
    let daemon = Daemon::start(&status);
    let said = |line: &str| ask(&daemon, line).out;
    assert!(!said("status").contains('\u{1b}'));
    assert!(!said("status -o json --color always").contains('\u{1b}'));
    let painted = said("status --color always");
    assert!(
        painted.contains("\u{1b}[1m\u{1b}[31mDOWN\u{1b}[0m"),
        "{painted}"
    );
    assert!(!said("status --color never").contains('\u{1b}'));
}

#[test]
fn a_watch_goes_on() {
    let daemon = Daemon::start(&steady());
    let mut child = program("status --watch 100ms -o json")
        .env("MODELMIRROR_CONTROL", daemon.socket())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for line in lines.take(3) {
        let status: Value = serde_json::from_str(&line.unwrap()).unwrap();
        assert_eq!(status["services"][0]["name"], "sentiment");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A command at a terminal where somebody types; what is seen there, and the exit code.
fn at_terminal(daemon: &Daemon, line: &str, typed: &str, until: &str) -> (String, Option<i32>) {
    let pty = nix::pty::openpty(None, None).unwrap();
    let (mut master, slave) = (File::from(pty.master), File::from(pty.slave));
    let mut child = program(line)
        .env("MODELMIRROR_CONTROL", daemon.socket())
        .env("TERM", "xterm")
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave)
        .spawn()
        .unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut reader, written) = (master.try_clone().unwrap(), Arc::clone(&seen));
    let reads = std::thread::spawn(move || {
        let mut part = [0; 1024];
        // It ends with an error once nobody has the terminal open any more.
        while let Ok(length @ 1..) = reader.read(&mut part) {
            written.lock().unwrap().extend_from_slice(&part[..length]);
        }
    });
    let text = || String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    let begun = Instant::now();
    while !text().contains(until) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", text());
        std::thread::yield_now();
    }
    master.write_all(typed.as_bytes()).unwrap();
    let code = child.wait().unwrap().code();
    reads.join().unwrap();
    (text(), code)
}

#[test]
fn a_person_is_asked_and_a_script_is_not() {
    for (line, question, order) in [
        ("off", "Detach all programs from this host", "POST /v1/off"),
        ("rollout abort", "abort the rollout of v13", "abort"),
        (
            "rollout promote --all",
            "send 100 % of new connections to v13",
            "promote",
        ),
    ] {
        let daemon = Daemon::start(&steady());
        let (seen, code) = at_terminal(&daemon, line, "n\n", "[y/N]");
        assert!(seen.contains(question), "{seen}");
        assert!(seen.contains("nothing was changed"), "{seen}");
        assert_eq!((code, daemon.orders().len()), (Some(1), 0), "{line}");
        // Only Ctrl-D.
        let (_, code) = at_terminal(&daemon, line, "\u{4}", "[y/N]");
        assert_eq!((code, daemon.orders().len()), (Some(1), 0), "{line}");

        let (_, code) = at_terminal(&daemon, line, "y\n", "[y/N]");
        assert_eq!(code, Some(0), "{line}");
        assert_eq!(daemon.orders().len(), 1);
        assert!(daemon.orders()[0].contains(order), "{:?}", daemon.orders());

        let yes = format!("{line} --yes");
        let (seen, code) = at_terminal(&daemon, &yes, "", "done");
        assert_eq!(code, Some(0), "{line}");
        assert!(!seen.contains("[y/N]"), "{seen}");
        assert_eq!(ask(&daemon, line).code, Some(0), "{line}");
        assert_eq!(daemon.orders().len(), 3);
    }
}

#[test]
fn a_terminal_is_redrawn_in_colour() {
    let daemon = Daemon::start(&steady());
    let pty = nix::pty::openpty(None, None).unwrap();
    let (mut master, slave) = (File::from(pty.master), File::from(pty.slave));
    let mut child = program("status --watch 100ms")
        .env("MODELMIRROR_CONTROL", daemon.socket())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(slave)
        .spawn()
        .unwrap();
    let (mut seen, mut part) = (String::new(), [0; 4096]);
    while seen.matches("\u{1b}[H").count() < 3 {
        let length = master.read(&mut part).unwrap();
        seen += &String::from_utf8_lossy(&part[..length]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(seen.contains("\u{1b}[32malive\u{1b}[0m"), "{seen}");
}
