//! Who is asked from outside: hooks, and a real Prometheus.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use nix::sys::signal::Signal;
use tests::{Mood, Traffic, eventually};
use toml::Table;

use super::{Pilot, by_hand};

/// Where hooks are called, unless a test has several.
const CALLED: &str = "127.0.0.1:9000";

/// Somebody on the node who is called, and what they were told.
pub(super) struct Called {
    server: tests::Server,
}

/// A plan with a hook at that place.
fn hook(plan: &mut Table, on: &str, path: &str, approve: bool) {
    add(plan, on, &format!("{CALLED}{path}"), approve);
}

/// A plan with a hook there that has to approve.
pub(super) fn hook_at(plan: &mut Table, on: &str, place: &str) {
    add(plan, on, place, true);
}

fn add(plan: &mut Table, on: &str, place: &str, approve: bool) {
    let mut hook = Table::new();
    hook.insert("on".into(), on.into());
    hook.insert("url".into(), format!("http://{place}").into());
    hook.insert("approve".into(), approve.into());
    hook.insert("timeout".into(), "1s".into());
    let hooks = plan
        .entry("hook")
        .or_insert_with(|| Vec::<Table>::new().into());
    hooks.as_array_mut().unwrap().push(hook.into());
}

impl Called {
    fn start(pilot: &Pilot) -> Self {
        Self::at(pilot, CALLED)
    }

    pub(super) fn at(pilot: &Pilot, listen: &str) -> Self {
        let node = &pilot.trial.scene.net.node;
        let listener = node.run(|| TcpListener::bind(listen)).unwrap();
        let answers = tests::Answers::of("hook");
        Self {
            server: tests::Server::on(node, listener, &answers).unwrap(),
        }
    }

    /// What it was told, by the path that was called.
    fn told(&self, path: &str) -> Vec<serde_json::Value> {
        let received = self.server.received();
        let of_path = received.iter().filter(|request| request.path == path);
        of_path
            .map(|request| serde_json::from_slice(&request.body).unwrap())
            .collect()
    }
}

#[test]
fn hooks_are_asked_and_told() {
    let Some(pilot) = Pilot::new(|plan| {
        hook(plan, "before", "/echo", true);
        hook(plan, "stage", "/status/403", true);
        hook(plan, "rollback", "/bytes/1", false);
    }) else {
        return;
    };
    let called = Called::start(&pilot);
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    eventually("the hook after the stage does not approve", || {
        let why = pilot.wait_until_held_by("hook");
        anyhow::ensure!(why.contains("403"), "{why}");
        Ok(())
    });
    let before = called.told("/echo");
    assert_eq!(before[0]["event"], "before", "{before:?}");
    let stage = called.told("/status/403");
    assert_eq!(
        (&stage[0]["event"], &stage[0]["stage"]),
        (&"stage".into(), &0.2.into())
    );
    // Rollback works while somebody is waited for.
    pilot.trial.canary[0].set_mood(Mood::Fails(1));
    let state = pilot.wait_for("rolled_back");
    eventually("the hook on rollbacks is told why", || {
        let told = called.told("/bytes/1");
        anyhow::ensure!(
            told.len() == 1 && told[0]["reason"] == state["reason"],
            "{told:?}"
        );
        Ok(())
    });
    drop::<Traffic>(traffic);
}

#[test]
fn a_hook_that_hangs_or_is_gone_holds() {
    let Some(pilot) = Pilot::new(|plan| hook(plan, "before", "/echo", true)) else {
        return;
    };
    pilot.order(&["start"]);
    let why = pilot.wait_until_held_by("hook");
    assert!(
        why.contains("cannot be asked") || why.contains("has not answered"),
        "{why}"
    );
    let called = Called::start(&pilot);
    called.server.set_mood(Mood::Silent);
    eventually("it is called", || {
        anyhow::ensure!(!called.told("/echo").is_empty());
        Ok(())
    });
    assert_eq!(pilot.state().unwrap()["step"], "before");
    called.server.set_mood(Mood::Answer);
    pilot.wait_for("stage");
}

/// Addresses and tokens come out nowhere but in the call, also after a restart.
#[test]
fn secrets_stay_here() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    fs::write(&tokens, "Authorization: Bearer hush-token-of-24-chars\n").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let Some(mut pilot) = Pilot::new(|plan| {
        by_hand(plan);
        let place = "me:hush-user@127.0.0.1:9000";
        add(plan, "before", &format!("{place}/status/403"), true);
        add(
            plan,
            "promotion",
            &format!("{place}/echo?key=hush-query"),
            false,
        );
        for hook in plan["hook"].as_array_mut().unwrap() {
            let file = tokens.to_string_lossy().into_owned();
            let hook = hook.as_table_mut().unwrap();
            hook.insert("headers_file".into(), file.into());
        }
        plan.insert(
            "prometheus".into(),
            "http://me:hush-prometheus@127.0.0.1:9".into(),
        );
    }) else {
        return;
    };
    let called = Called::start(&pilot);
    let asked = |times: usize| {
        eventually("the hook is asked with its token", || {
            let received = called.server.received();
            let of_path = received.iter().filter(|got| got.path == "/status/403");
            let tokens: Vec<_> = of_path.map(|got| got.header("authorization")).collect();
            anyhow::ensure!(tokens.len() >= times, "{tokens:?}");
            assert!(
                tokens.iter().all(|t| *t == "Bearer hush-token-of-24-chars"),
                "{tokens:?}"
            );
            Ok(())
        });
        called.server.received().len()
    };
    let mut said = pilot.order(&["start"]);
    let before = asked(1);
    said += &pilot.wait_until_held_by("hook");
    said += &pilot.trial.scene.daemon().process.output();
    pilot.kill();
    pilot.trial.scene.start_daemon(&[]);
    asked(before + 1);
    let record = pilot.record().unwrap();
    said += &fs::read_to_string(&record).unwrap();
    assert!(
        said.contains("the hook at 127.0.0.1:9000 does not approve: 403"),
        "{said}"
    );
    for command in ["explain", "history", "status"] {
        said += &pilot.order(&[command]);
        said += &pilot.order(&[command, "--output", "json"]);
    }
    let scene = &pilot.trial.scene;
    said += &scene.modelmirror(&["status"]);
    said += &scene.modelmirror(&["status", "--output", "json"]);
    said += &scene.daemon().scrape().unwrap();
    // A config that is refused is quoted in the log.
    let daemon = scene.daemon();
    let bad = fs::read_to_string(daemon.config()).unwrap();
    let bad = bad.replace("http://me:hush-user", "htp://me:hush-user");
    fs::write(daemon.config(), bad).unwrap();
    daemon.process.signal(Signal::SIGHUP).unwrap();
    eventually("the bad config is refused", || {
        anyhow::ensure!(daemon.process.output().contains("rejected"));
        Ok(())
    });
    said += &scene.modelmirror(&["status"]);
    said += &daemon.process.output();
    assert!(!said.contains("hush"), "{said}");
    let kept = record.with_file_name(format!(
        ".{}.secrets",
        record.file_stem().unwrap().to_string_lossy()
    ));
    let mode = fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
