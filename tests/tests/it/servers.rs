//! CPU and memory of the processes that serve: stable's, the canary's, the shadow's.

use std::fs;
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Exchange, Metrics, Namespace, Process, Request, Scene, Trial, eventually, pattern};

/// What the kernel counts CPU time in; two processes' figures may differ by one each.
const TICKS_PER_SECOND: f64 = 100.0;

/// A model server in processes of its own.
pub(super) struct Model(Process);

impl Model {
    /// Listens at a port of all addresses; with `workers`, so many serve.
    #[track_caller]
    pub(super) fn start(
        host: &Namespace,
        version: &str,
        port: u16,
        workers: Option<usize>,
    ) -> Self {
        let mut command = host.command(Path::new(env!("CARGO_BIN_EXE_model-process")));
        command.args([version, &format!("[::]:{port}")]);
        command.args(workers.map(|count| count.to_string()));
        let process = host.spawn(&format!("model {version}"), command).unwrap();
        eventually("the model listens", || {
            host.run(|| TcpStream::connect(("127.0.0.1", port)))
        });
        Self(process)
    }

    /// What /proc says of it: CPU seconds, and bytes of memory.
    fn used(&self) -> Result<(f64, f64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("a name")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let number = |field: usize| -> Result<f64> { Ok(fields[field - 3].parse()?) };
        let page = 4096.0;
        let cpu = (number(14)? + number(15)?) / TICKS_PER_SECOND;
        Ok((cpu, number(24)? * page))
    }

    /// One of its workers; nothing while it has none.
    pub(super) fn worker(&self) -> Option<i32> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let children = threads
            .flatten()
            .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let children: String = children.collect();
        let first = children.split_whitespace().next()?;
        first.parse().ok()
    }
}

/// What the metrics say of one server.
#[derive(Debug, PartialEq)]
struct Said {
    cpu: f64,
    resident: Option<f64>,
    processes: f64,
}

impl Said {
    /// Nothing where nothing is said.
    fn of(metrics: &Metrics, prefix: &str, labels: &[(&str, &str)]) -> Option<Self> {
        let name = |what| format!("{prefix}_{what}");
        let value = |what| {
            let name = name(what);
            metrics
                .has(&name, labels)
                .then(|| metrics.sum(&name, labels))
        };
        Some(Self {
            cpu: value("cpu_seconds_total")?,
            resident: value("resident_bytes"),
            processes: value("processes")?,
        })
    }

    fn of_arm(scene: &Scene, arm: &str) -> Option<Self> {
        let version = if arm == "stable" { "v12" } else { "v13" };
        let labels = [("service", "digits"), ("arm", arm), ("version", version)];
        Self::of(&scene.node_metrics(), "modelmirror_server", &labels)
    }
}

/// Stable's server is three processes, the canary's is one.
struct Stage {
    stable: Model,
    canary: Option<Model>,
    trial: Trial,
}

impl Stage {
    fn new() -> Option<Self> {
        let mut trial = Trial::quiet(|_| {})?;
        trial.stop_canary();
        trial.stop_stable();
        let node = &trial.scene.net.node;
        let mut stage = Self {
            stable: Model::start(node, "v12", 8000, Some(2)),
            canary: None,
            trial,
        };
        stage.start_canary();
        stage.trial.start_daemon();
        stage.wait("stable", 3.0);
        stage.wait("canary", 1.0);
        Some(stage)
    }

    fn start_canary(&mut self) {
        let node = &self.trial.scene.net.node;
        self.canary = Some(Model::start(node, "v13", 8001, None));
    }

    /// Waits until so many processes serve a version.
    #[track_caller]
    fn wait(&self, arm: &str, processes: f64) -> Said {
        eventually(&format!("{processes} processes are {arm}"), || {
            let said = Said::of_arm(&self.trial.scene, arm);
            let fits = said
                .as_ref()
                .is_some_and(|said| said.processes == processes);
            ensure!(fits, "{said:?}");
            said.context("nothing")
        })
    }

    #[track_caller]
    fn said(&self, arm: &str) -> Said {
        Said::of_arm(&self.trial.scene, arm).unwrap()
    }

    /// Work for whoever gets the connections.
    #[track_caller]
    fn load(&self) -> Vec<Exchange> {
        let body = pattern(1_000_000, 7);
        let client = &self.trial.scene.client;
        client
            .load(4, 25, |_, _| Request::post("/echo", &body))
            .unwrap()
    }
}

#[test]
fn who_works_uses_cpu() {
    let Some(stage) = Stage::new() else {
        return;
    };
    let canary = stage.canary.as_ref().unwrap();
    let ((truth, _), before) = (canary.used().unwrap(), stage.said("canary"));
    let idle = stage.said("stable");
    stage.trial.set("1");
    stage.load();
    let truth = canary.used().unwrap().0 - truth;
    assert!(truth > 0.05, "{truth} s is too little to tell");
    eventually("the canary's CPU seconds are /proc's", || {
        let said = stage.said("canary").cpu - before.cpu;
        // Whichever was read first, it worked between the two readings by a tick at most.
        ensure!(
            (said - truth).abs() <= 2.5 / TICKS_PER_SECOND,
            "{said} of {truth}"
        );
        Ok(())
    });
    let said = stage.said("stable").cpu - idle.cpu;
    assert!(said < truth / 5.0, "stable used {said} s meanwhile");
    eventually("the canary's memory is /proc's", || {
        let (_, truth) = canary.used()?;
        let said = stage.said("canary").resident.context("no memory")?;
        ensure!((said - truth).abs() < truth / 4.0, "{said} of {truth}");
        Ok(())
    });

    let canary = stage.said("canary").cpu;
    stage.trial.set("0");
    stage.load();
    eventually("stable's workers use CPU", || {
        let used = stage.said("stable").cpu - idle.cpu;
        ensure!(used > truth / 5.0, "{used} s");
        Ok(())
    });
    let used = stage.said("canary").cpu - canary;
    assert!(used < truth / 5.0, "the canary used {used} s meanwhile");
    let status = stage.trial.scene.modelmirror(&["status"]);
    for row in ["server's CPUs", "server's memory", "server's processes"] {
        assert!(status.contains(row), "{status}");
    }
}

#[test]
fn what_was_used_is_not_taken_back() {
    let Some(mut stage) = Stage::new() else {
        return;
    };
    // One after the other: a share of so few connections can leave a version without any.
    for share in ["0", "1"] {
        stage.trial.set(share);
        stage.load();
    }
    let before = eventually("both have worked", || {
        let both = (stage.said("stable"), stage.said("canary"));
        ensure!(both.0.cpu > 0.0 && both.1.cpu > 0.0, "{both:?}");
        Ok(both)
    });
    let worker = nix::unistd::Pid::from_raw(stage.stable.worker().unwrap());
    nix::sys::signal::kill(worker, Signal::SIGKILL).unwrap();
    let after = stage.wait("stable", 2.0);
    assert!(after.cpu >= before.0.cpu, "{after:?} after {before:?}");

    stage.canary = None;
    let gone = stage.wait("canary", 0.0);
    assert!(
        gone.cpu >= before.1.cpu && gone.resident.is_none(),
        "{gone:?}"
    );
    stage.start_canary();
    let back = stage.wait("canary", 1.0);
    assert!(back.cpu >= gone.cpu && back.resident.is_some(), "{back:?}");
    stage.trial.set("1");
    stage.load();
    eventually("the new canary's work is added", || {
        let said = stage.said("canary");
        ensure!(said.cpu > back.cpu, "{said:?} after {back:?}");
        Ok(())
    });
}

/// Somebody on this host listens at the canary's port, and is not the canary.
#[test]
fn nothing_is_said_of_a_server_elsewhere() {
    let Some(mut trial) = Trial::quiet(|canary| {
        canary.insert("address".into(), "10.9.9.9:8001".into());
    }) else {
        return;
    };
    trial.start_daemon();
    eventually("stable's server is found", || {
        let said = Said::of_arm(&trial.scene, "stable");
        said.context("nothing")
    });
    assert_eq!(Said::of_arm(&trial.scene, "canary"), None);
}

#[test]
fn a_shadow_on_the_agent_s_host_is_measured_too() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let model = Model::start(&scene.net.shadow, "v13", 8000, None);
    scene.start_agent();
    scene.start_daemon(&[]);
    scene.wait_for_agent();
    let said = || {
        let labels = [("service", "digits"), ("version", "v13")];
        let said = Said::of(
            &scene.shadow_metrics(),
            "modelmirror_shadow_server",
            &labels,
        );
        said.context("nothing")
    };
    let found = eventually("the shadow's server is found", said);
    let (before, _) = model.used().unwrap();
    let body = pattern(1_000_000, 7);
    scene.load(4, 25, |_, _| Request::post("/echo", &body));
    eventually("its CPU seconds and memory are /proc's", || {
        let (truth, said) = (model.used()?, said()?);
        let (cpu, resident) = (said.cpu - found.cpu, said.resident.context("no memory")?);
        ensure!(cpu > 0.05, "{said:?} is too little to tell");
        let expected = truth.0 - before;
        ensure!(
            (cpu - expected).abs() <= 2.5 / TICKS_PER_SECOND,
            "{cpu} of {expected}"
        );
        ensure!(
            (resident - truth.1).abs() < truth.1 / 4.0,
            "{said:?} of {truth:?}"
        );
        ensure!(said.processes == 1.0, "{said:?}");
        Ok(())
    });
}
