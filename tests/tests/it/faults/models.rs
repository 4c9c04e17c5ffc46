//! Shadow models that do not answer, or not in time.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{
    Answers, Client, Exchange, Mood, Outcome, Process, Request, Scene, Transport, eventually,
    pattern,
};

/// Requests of each connection. A queue is answered one by one: a model that is silent for this
/// many time-outs has been silent to all of them.
const REQUESTS: usize = 4;

/// Requests of a load.
const LOAD: u64 = 8 * REQUESTS as u64;

#[track_caller]
fn load(scene: &Scene) -> Vec<Exchange> {
    scene.load(8, REQUESTS, |connection, index| {
        Request::post("/echo", &pattern(2000, (connection * 100 + index) as u64))
    })
}

/// A scene whose shadow model is not waited for longer than a test can bear, and no shorter than
/// one needs that answers.
fn impatient() -> Option<Scene> {
    let mut scene = Scene::new()?;
    scene.set_shadow_service("timeout", "3s");
    Some(scene)
}

/// Every request was seen, and is compared, with the verdict `error`, or dropped.
#[track_caller]
fn costs_only_itself(scene: &Scene, sent: &[Exchange]) -> Outcome {
    let outcome = scene.account(sent);
    let (errors, seen) = (outcome.verdicts("error"), outcome.seen());
    let metrics = &outcome.metrics;
    assert_eq!(seen, sent.len() as u64, "{metrics}");
    assert!(errors > 0, "{metrics}");
    assert_eq!(errors, outcome.requests("compared"), "{metrics}");
    assert_eq!(seen, errors + outcome.requests("queue_full"), "{metrics}");
    let used = metrics.sum("modelmirror_shadow_memory_used_bytes", &[]);
    let limit = metrics.sum("modelmirror_shadow_memory_limit_bytes", &[]);
    assert!(used <= limit, "{used} bytes of {limit}");
    outcome
}

/// Mirroring works when the model answers.
#[track_caller]
fn recovers(scene: &Scene, sent: &mut Vec<Exchange>) {
    let before = scene.settle().verdicts("match");
    sent.extend(load(scene));
    let outcome = scene.account(sent);
    let matching = outcome.verdicts("match");
    assert_eq!(matching, before + LOAD, "{}", outcome.metrics);
}

#[test]
fn nothing_listens() {
    let Some(mut scene) = impatient() else {
        return;
    };
    scene.start();
    scene.model = None;
    let mut sent = load(&scene);
    costs_only_itself(&scene, &sent);
    // Said once, and not for every request.
    let said = |words: &str| scene.agent().process.output().matches(words).count();
    assert_eq!((said("shadow down"), said("shadow back")), (1, 0));
    let status = scene.agent().status("json").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let service = &status["shadow_agent"]["services"][0];
    assert_eq!(service["last_error"]["error"], "connect", "{status:#}");
    assert!(service["down_seconds"].is_number(), "{status:#}");
    let text = scene.agent().status("text").unwrap();
    for words in [
        "DOWN for",
        "node ",
        "v13 in the shadow of v12",
        "connect at",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    scene.start_model(&Answers::of("v13"));
    recovers(&scene, &mut sent);
    eventually("it is said to be back", || {
        let output = scene.agent().process.output();
        let count = output.matches("shadow back").count();
        ensure!(count == 1, "{output}");
        Ok(())
    });
}

#[test]
fn it_resets_every_connection() {
    let Some(mut scene) = impatient() else {
        return;
    };
    scene.start();
    scene.model().set_mood(Mood::Reset);
    let sent = load(&scene);
    costs_only_itself(&scene, &sent);
}

#[test]
fn it_takes_requests_and_never_answers() {
    let Some(mut scene) = impatient() else {
        return;
    };
    scene.set_shadow_service("concurrency", 4);
    scene.set_shadow_service("queue", 8);
    scene.start();
    scene.model().set_mood(Mood::Silent);
    let sent = load(&scene);
    let full = costs_only_itself(&scene, &sent).requests("queue_full");
    assert!(full > 0, "nothing was shut out of a queue of 8");
    let said = scene.agent().process.output();
    let is_told = said.contains("shadow saturated; lower sample") || said.contains("shadow down");
    assert!(is_told && said.contains("concurrency=4"), "{said}");
}

/// Connections are taken by the kernel, and nobody is there to read from them.
#[test]
fn it_is_a_black_hole() {
    let Some(mut scene) = impatient() else {
        return;
    };
    scene.start();
    scene.model = None;
    let shadow = &scene.net.shadow;
    let _hole = shadow.run(|| TcpListener::bind("127.0.0.1:8000")).unwrap();
    let sent = load(&scene);
    costs_only_itself(&scene, &sent);
}

/// A model server of its own process, stopped in the middle of the load.
#[test]
fn it_is_stopped() {
    let Some(mut scene) = impatient() else {
        return;
    };
    scene.start();
    scene.model = None;
    let mut command = scene.net.shadow.command("python3");
    command.args(["-u", "-c", ECHO]);
    let model = scene.net.shadow.spawn("model", command).unwrap();
    answers(&scene, &model);
    let mut sent = Vec::new();
    recovers(&scene, &mut sent);
    model.signal(Signal::SIGSTOP).unwrap();
    sent.extend(load(&scene));
    let stopped = scene.account(&sent);
    assert_eq!(stopped.verdicts("error"), LOAD, "{}", stopped.metrics);
    model.signal(Signal::SIGCONT).unwrap();
    // It answers in the order of connections: what waited is behind it then.
    answers(&scene, &model);
    recovers(&scene, &mut sent);
}

/// Waits until the model of its own process answers.
#[track_caller]
fn answers(scene: &Scene, model: &Process) {
    let address = "127.0.0.1:8000".parse().unwrap();
    let client = Client::of_any(&scene.net.shadow, address);
    eventually("the model answers", || {
        let asked = client.connect()?.ask(&Request::post("/echo", b"there?"))?;
        ensure!(asked.body == b"there?", "{}", model.output());
        Ok(())
    });
}

/// Answers everything with its body.
const ECHO: &str = r#"
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
ThreadingHTTPServer.request_queue_size = 64
ThreadingHTTPServer(("127.0.0.1", 8000), Echo).serve_forever()
"#;

/// Far slower than production: what its queue takes is compared, the rest counted.
#[test]
fn it_is_a_hundred_times_slower() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_shadow_service("concurrency", 4);
    scene.set_shadow_service("queue", 8);
    scene.set_shadow_service("timeout", "30s");
    scene.start();
    scene.model().set_mood(Mood::Late(Duration::from_secs(1)));
    let sent = load(&scene);
    let outcome = scene.account(&sent);
    let (compared, full) = (outcome.requests("compared"), outcome.requests("queue_full"));
    assert!(compared >= 8 && full > 0, "{}", outcome.metrics);
    assert_eq!(compared + full, LOAD, "{}", outcome.metrics);
    assert_eq!(outcome.verdicts("match"), compared, "{}", outcome.metrics);
}

/// Bodies that wait for a model which never answers fill the agent's memory, and no more than it.
#[test]
fn memory_has_an_end() {
    let Some(mut scene) = impatient() else {
        return;
    };
    scene.set_shadow("memory", "16MiB");
    scene.set_shadow_service("max_body", "4MiB");
    scene.start();
    scene.model().set_mood(Mood::Silent);
    let sent = scene.load(20, 3, |connection, index| {
        Request::post("/echo", &pattern(700_000, (connection * 10 + index) as u64))
    });
    let outcome = scene.account(&sent);
    // What comes in a stream for a connection that has just lost a request to the limit, while there is no
    // room yet to look for where the next one begins, is passed over, and cannot be told from the request
    // that was lost. So each drop hides the two requests behind it at most; datagrams come one by one, and
    // the room is back in time.
    let seen = outcome.seen();
    let hidden = match Transport::of_this_run() {
        Transport::Stream => 2 * outcome.requests("memory"),
        Transport::Geneve => 0,
    };
    assert!(
        (60_u64.saturating_sub(hidden)..=60).contains(&seen),
        "{seen}: {}",
        outcome.metrics
    );
    let (compared, memory) = (outcome.verdicts("error"), outcome.requests("memory"));
    assert!(memory > 0 && compared > 0, "{}", outcome.metrics);
    let resident = resident_bytes(scene.agent().process.id());
    assert!(resident < 200 << 20, "{resident} bytes resident");
}

/// The most memory that a process has ever had.
fn resident_bytes(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("the kernel says VmHWM") * 1024
}
