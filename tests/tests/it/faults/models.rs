//! Shadow models that do not answer, or not in time.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tests::{Answers, Exchange, Mood, Request, Server, Site, on, pattern, privileged};
use toml::Table;

fn load(site: &Site) -> Result<Vec<Exchange>> {
    site.client.load(8, 10, |connection, index| {
        Request::post("/echo", &pattern(2000, (connection * 100 + index) as u64))
    })
}

/// A second is enough for a test.
fn impatient(shadow: &mut Table) {
    let service = shadow["service"][0].as_table_mut().expect("a table");
    service.insert("timeout".into(), "1s".into());
}

/// Every request was seen, and is compared, with the verdict `error`, or dropped.
fn costs_only_itself(site: &Site, sent: &[Exchange]) -> Result<()> {
    let outcome = site.account(sent)?;
    let (errors, seen) = (outcome.verdicts("error"), outcome.seen());
    ensure!(seen == sent.len() as u64, "{}", outcome.metrics);
    ensure!(
        errors > 0 && errors == outcome.requests("compared"),
        "{}",
        outcome.metrics
    );
    ensure!(
        seen == errors + outcome.requests("queue_full"),
        "{}",
        outcome.metrics
    );
    let limit = outcome
        .metrics
        .sum("modelmirror_shadow_memory_limit_bytes", &[]);
    let used = outcome
        .metrics
        .sum("modelmirror_shadow_memory_used_bytes", &[]);
    ensure!(used <= limit, "{used} bytes of {limit}");
    Ok(())
}

/// Mirroring works when the model answers. One that has just come back may first answer what
/// waited, and be late for the first of the new requests.
fn recovers(site: &Site, sent: &mut Vec<Exchange>) -> Result<()> {
    let mut before = site.settle().verdicts("match");
    for _ in 0..5 {
        sent.extend(load(site)?);
        let outcome = site.account(sent)?;
        if outcome.verdicts("match") >= before + 80 {
            return Ok(());
        }
        before = outcome.verdicts("match");
    }
    bail!("no load was answered in time\n{}", site.settle().metrics)
}

#[test]
fn nothing_listens() {
    if !privileged() {
        return;
    }
    on(Site::with(|_| {}, impatient), |site| {
        site.shadow = None;
        let mut sent = load(site)?;
        costs_only_itself(site, &sent)?;
        let shadow = Server::start(
            &site.net.shadow,
            "127.0.0.1:8000".parse()?,
            &Answers::of("v13"),
        )?;
        site.shadow = Some(shadow);
        recovers(site, &mut sent)
    });
}

#[test]
fn it_resets_every_connection() {
    if !privileged() {
        return;
    }
    on(Site::with(|_| {}, impatient), |site| {
        let shadow = site.shadow.as_ref().context("no shadow")?;
        shadow.set_mood(Mood::Reset);
        let sent = load(site)?;
        costs_only_itself(site, &sent)
    });
}

#[test]
fn it_takes_requests_and_never_answers() {
    if !privileged() {
        return;
    }
    let silent = |shadow: &mut Table| {
        impatient(shadow);
        let service = shadow["service"][0].as_table_mut().expect("a table");
        service.insert("concurrency".into(), 4.into());
        service.insert("queue".into(), 8.into());
    };
    on(Site::with(|_| {}, silent), |site| {
        let shadow = site.shadow.as_ref().context("no shadow")?;
        shadow.set_mood(Mood::Silent);
        let sent = load(site)?;
        costs_only_itself(site, &sent)?;
        let full = site.settle().requests("queue_full");
        ensure!(full > 0, "nothing was shut out of a queue of 8");
        Ok(())
    });
}

/// Connections are taken by the kernel, and nobody is there to read from them.
#[test]
fn it_is_a_black_hole() {
    if !privileged() {
        return;
    }
    on(Site::with(|_| {}, impatient), |site| {
        site.shadow = None;
        let _hole = site
            .net
            .shadow
            .run(|| TcpListener::bind("127.0.0.1:8000"))?;
        let sent = load(site)?;
        costs_only_itself(site, &sent)
    });
}

/// A model server of its own process, stopped in the middle of the load.
#[test]
fn it_is_stopped() {
    if !privileged() {
        return;
    }
    on(Site::with(|_| {}, impatient), |site| {
        site.shadow = None;
        let mut command = site.net.shadow.command("python3");
        command.args(["-u", "-c", ECHO]);
        let model = site.net.shadow.spawn("model", command)?;
        tests::eventually("the model listens", || {
            ensure!(model.output().contains("listening"), "{}", model.output());
            Ok(())
        });
        let mut sent = load(site)?;
        let before = site.account(&sent)?;
        ensure!(before.verdicts("match") == 80, "{}", before.metrics);
        model.signal(Signal::SIGSTOP)?;
        sent.extend(load(site)?);
        let stopped = site.account(&sent)?;
        ensure!(stopped.verdicts("error") == 80, "{}", stopped.metrics);
        model.signal(Signal::SIGCONT)?;
        recovers(site, &mut sent)
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
server = ThreadingHTTPServer(("127.0.0.1", 8000), Echo)
print("listening")
server.serve_forever()
"#;

/// A hundred times slower than production: what its queue takes is compared, the rest counted.
#[test]
fn it_is_a_hundred_times_slower() {
    if !privileged() {
        return;
    }
    let short = |shadow: &mut Table| {
        let service = shadow["service"][0].as_table_mut().expect("a table");
        service.insert("concurrency".into(), 4.into());
        service.insert("queue".into(), 8.into());
    };
    on(Site::with(|_| {}, short), |site| {
        let shadow = site.shadow.as_ref().context("no shadow")?;
        shadow.set_mood(Mood::Late(Duration::from_millis(100)));
        let sent = load(site)?;
        let outcome = site.account(&sent)?;
        let (compared, full) = (outcome.requests("compared"), outcome.requests("queue_full"));
        ensure!(compared >= 8 && full > 0, "{}", outcome.metrics);
        ensure!(compared + full == sent.len() as u64, "{}", outcome.metrics);
        ensure!(outcome.verdicts("match") == compared, "{}", outcome.metrics);
        Ok(())
    });
}

/// Bodies that wait for a model which never answers fill the agent's memory, and no more than it.
#[test]
fn memory_has_an_end() {
    if !privileged() {
        return;
    }
    let small = |shadow: &mut Table| {
        impatient(shadow);
        shadow.insert("memory".into(), "16MiB".into());
        let service = shadow["service"][0].as_table_mut().expect("a table");
        service.insert("max_body".into(), "4MiB".into());
    };
    on(Site::with(|_| {}, small), |site| {
        let shadow = site.shadow.as_ref().context("no shadow")?;
        shadow.set_mood(Mood::Silent);
        let sent = site.client.load(20, 4, |connection, index| {
            Request::post("/echo", &pattern(500_000, (connection * 10 + index) as u64))
        })?;
        let outcome = site.account(&sent)?;
        ensure!(outcome.seen() == sent.len() as u64, "{}", outcome.metrics);
        let (compared, memory) = (outcome.verdicts("error"), outcome.requests("memory"));
        ensure!(memory > 0 && compared > 0, "{}", outcome.metrics);
        let resident = resident_bytes(site.agent.as_ref().context("no agent")?.process.id())?;
        ensure!(resident < 200 << 20, "{resident} bytes resident");
        Ok(())
    });
}

/// The most memory that a process has ever had.
fn resident_bytes(id: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmHWM")? * 1024)
}
