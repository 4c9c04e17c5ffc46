//! Gates that a real Prometheus answers: Debian's package, on the node.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::ensure;
use socket2::SockRef;
use tempfile::TempDir;
use tests::{Namespace, Process, eventually_within, skip};
use toml::Table;

use super::{LONG, Pilot};

/// Where the shop says how business goes.
const SHOP: &str = "127.0.0.1:9100";

/// Where Prometheus is asked.
const PROMETHEUS: &str = "127.0.0.1:9090";

/// What a gate needs, as text that Prometheus reads.
struct Shop {
    says: Arc<Mutex<String>>,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Shop {
    fn start(node: &Namespace, says: &str) -> Self {
        let listener = node.run(|| TcpListener::bind(SHOP)).unwrap();
        let says = Arc::new(Mutex::new(says.to_owned()));
        let (accepts, tells) = (listener.try_clone().unwrap(), Arc::clone(&says));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepts.accept() {
                // One that hangs up early asks again.
                let _ = answer(stream, &tells.lock().unwrap().clone());
            }
        });
        Self {
            says,
            listener,
            thread: Some(thread),
        }
    }

    fn says(&self, text: &str) {
        text.clone_into(&mut self.says.lock().unwrap());
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        // Nobody is accepted any more, and the thread ends.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads a request's head, and answers.
fn answer(stream: TcpStream, body: &str) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).take(1 << 16).lines();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let length = body.len();
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Prometheus, which asks the shop several times a second.
struct Prometheus {
    process: Option<Process>,
    dir: TempDir,
}

impl Prometheus {
    /// Nothing where it is not installed, except under CI.
    fn start(node: &Namespace) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 250ms, scrape_timeout: 250ms}}\n\
             scrape_configs: [{{job_name: shop, static_configs: [{{targets: ['{SHOP}']}}]}}]\n"
        );
        fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let mut prometheus = Self { process: None, dir };
        prometheus.run(node).then_some(prometheus)
    }

    /// Starts it where it is not running; says whether it is installed.
    fn run(&mut self, node: &Namespace) -> bool {
        let path = |name| self.dir.path().join(name).display().to_string();
        let mut command = node.command("prometheus");
        command.arg(format!("--config.file={}", path("prometheus.yml")));
        command.arg(format!("--storage.tsdb.path={}", path("data")));
        command.arg(format!("--web.listen-address={PROMETHEUS}"));
        match node.spawn("prometheus", command) {
            Ok(process) => {
                self.process = Some(process);
                true
            }
            Err(error) => {
                let kind = error.downcast_ref::<std::io::Error>();
                let is_missing = kind.is_some_and(|error| error.kind() == ErrorKind::NotFound);
                assert!(is_missing, "prometheus: {error:#}");
                skip("needs Debian's prometheus");
                false
            }
        }
    }

    fn stop(&mut self) {
        self.process = None;
    }
}

/// A pilot with one gate, a shop that says this, and Prometheus.
fn with_gate(gate: Table, says: &str) -> Option<(Pilot, Shop, Prometheus)> {
    let pilot = Pilot::new(|plan| {
        plan.insert("prometheus".into(), format!("http://{PROMETHEUS}").into());
        plan.insert("gate".into(), vec![gate].into());
    })?;
    let node = pilot.trial.scene.net.node.clone();
    let shop = Shop::start(&node, says);
    let prometheus = Prometheus::start(&node)?;
    Some((pilot, shop, prometheus))
}

impl Pilot {
    /// Waits until its metric says this, and that it is at its first stage then.
    #[track_caller]
    fn wait_for_metric(&self, words: &str) {
        eventually_within(LONG, &format!("the metric is {words}"), || {
            let state = self.state()?;
            let waiting = state["waiting"].as_array().into_iter().flatten();
            let mut metric = waiting.filter(|held| held["kind"] == "metric");
            let says = |held: &serde_json::Value| held["why"].to_string().contains(words);
            ensure!(metric.any(says), "{state:#}");
            assert_eq!(state["stage"], 0, "{state:#}");
            Ok(())
        });
    }
}

#[test]
fn what_prometheus_cannot_say_holds() {
    // Debian 12's does not say how old a sample is, so that its own five minutes are asked for.
    let gate = toml::toml! {
        name = "conversion"
        query = "conversion{arm='$arm', version='$version'}"
        min = 0.5
        staleness = "5m"
    };
    let Some((pilot, shop, mut prometheus)) = with_gate(gate, "") else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for_metric("no series has a sample");
    shop.says("conversion{arm=\"canary\",version=\"v13\"} NaN\n");
    pilot.wait_for_metric("the value is NaN");
    prometheus.stop();
    pilot.wait_for_metric("Prometheus cannot be reached");
    shop.says("conversion{arm=\"canary\",version=\"v13\"} 0.75\n");
    prometheus.run(&pilot.trial.scene.net.node);
    pilot.wait_for("promoted");
    let explained = pilot.order(&["explain"]);
    assert!(explained.contains("conversion"), "{explained}");
}

#[test]
fn a_metric_beyond_its_limit_takes_the_canary_back() {
    let gate = toml::toml! {
        name = "cost"
        query = "cost{arm='$arm'}"
        max_delta = 0.25
        staleness = "5m"
    };
    let equal = "cost{arm=\"canary\"} 1.125\ncost{arm=\"stable\"} 1\n";
    let Some((pilot, shop, _prometheus)) = with_gate(gate, "cost{arm=\"canary\"} 1.125\n") else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for_metric("of stable: no series");
    shop.says(equal);
    pilot.wait_for_stage(1);
    shop.says("cost{arm=\"canary\"} 1.5\ncost{arm=\"stable\"} 1\n");
    let state = pilot.wait_for("rolled_back");
    let reason = state["reason"].as_str().unwrap();
    for words in [
        "cost",
        "1.5",
        "at most 0.25 more than stable",
        "stable has 1",
    ] {
        assert!(reason.contains(words), "{words} is not in {reason}");
    }
    assert_eq!(pilot.share(), 0.0);
}
