//! A steady load: each client sends at its own beat, waits for each answer, and opens a new
//! connection now and then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use demo::samples::{self, Sample};
use serde_json::{Value, json};
use tests::{Client, Connection, Request};

use crate::interrupt::Interrupt;
use crate::latency::Latencies;
use crate::stage::Stage;

/// The longest that anything sleeps.
const TICK: Duration = Duration::from_millis(200);

/// Requests after which a connection is closed and a new one opened.
const LIFETIME: usize = 5;

/// Who the clients are, for the report's slices.
const TENANTS: [&str; 3] = ["bank", "post", "school"];

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Clients, each with one connection at a time.
    pub(crate) clients: u32,
    /// Requests in a second, all clients together.
    pub(crate) rate: u32,
}

/// What clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    answers: BTreeMap<String, Latencies>,
    failures: Vec<String>,
}

impl Seen {
    /// How long the answers of a version took, from the first byte sent to the last one received.
    pub(crate) fn answers(&self, version: &str) -> Latencies {
        self.answers.get(version).cloned().unwrap_or_default()
    }

    /// Why requests failed, one by one.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Adds what others have seen.
    pub(crate) fn append(&mut self, others: Self) {
        for (version, latencies) in others.answers {
            self.answers.entry(version).or_default().append(latencies);
        }
        self.failures.extend(others.failures);
    }
}

/// A load that goes on.
#[derive(Debug, Default)]
pub(crate) struct Running {
    over: AtomicBool,
    seen: Mutex<Seen>,
}

impl Running {
    /// Lets it go on for so long; `look` is called a few times a second.
    pub(crate) fn wait(
        &self,
        time: Duration,
        interrupt: &Interrupt,
        mut look: impl FnMut(),
    ) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            interrupt.check()?;
            look();
            thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// How many requests a version has answered, and how many have failed, since the last
    /// [`take`](Self::take).
    pub(crate) fn counts(&self, version: &str) -> (u64, usize) {
        let seen = self.seen();
        let answered = seen.answers.get(version).map_or(0, Latencies::count);
        (answered, seen.failures.len())
    }

    /// What was seen since the last time.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until then, and says whether the load still goes on.
    fn goes_on_at(&self, then: Instant) -> bool {
        loop {
            let rest = then.saturating_duration_since(Instant::now());
            let over = self.over.load(Ordering::Relaxed);
            if over || rest.is_zero() {
                return !over;
            }
            thread::sleep(TICK.min(rest));
        }
    }

    fn note(&self, outcome: Result<(String, Duration)>) {
        let mut seen = self.seen();
        match outcome {
            Ok((version, latency)) => seen.answers.entry(version).or_default().add(latency),
            Err(error) => seen.failures.push(format!("{error:#}")),
        }
    }
}

/// Ends a load, also when what it was for has panicked.
struct Stop<'a>(&'a Running);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Sends as long as `during` runs, and returns what was seen that it has not taken.
    pub(crate) fn send(
        self,
        stage: &Stage,
        during: impl FnOnce(&Running) -> Result<()>,
    ) -> Result<Seen> {
        let (samples, running) = (samples::all(), Running::default());
        thread::scope(|scope| {
            for number in 0..self.clients {
                let (samples, running) = (&samples, &running);
                scope.spawn(move || self.client(stage, samples, number, running));
            }
            let _stop = Stop(&running);
            during(&running)
        })?;
        Ok(running.take())
    }

    fn client(self, stage: &Stage, samples: &[Sample], number: u32, running: &Running) {
        let (client, mut open) = (stage.client(), None);
        let beat = Duration::from_secs(1) * self.clients / self.rate;
        // Clients take turns rather than send all at once.
        let mut next = Instant::now() + beat * number / self.clients;
        let tenant = TENANTS[number as usize % TENANTS.len()];
        let samples = samples.iter().cycle().skip(number as usize * 53);
        for (count, sample) in samples.enumerate() {
            if !running.goes_on_at(next) {
                break;
            }
            next += beat;
            if count % LIFETIME == 0 {
                open = None;
            }
            let request = request(sample).header("x-tenant", tenant);
            running.note(ask(&client, &mut open, &request));
        }
    }
}

/// Sends a request over the open connection, or a new one, which stays open unless it fails.
/// Returns the version that answered, and how long that took.
fn ask(
    client: &Client,
    open: &mut Option<Connection>,
    request: &Request,
) -> Result<(String, Duration)> {
    let mut connection = match open.take() {
        Some(connection) => connection,
        None => client.connect()?,
    };
    let start = Instant::now();
    let answer = connection.ask(request)?;
    let latency = start.elapsed();
    ensure!(answer.status == 200, "it was answered {}", answer.status);
    *open = Some(connection);
    let body: Value = serde_json::from_slice(&answer.body).context("the answer is not JSON")?;
    let version = body["model_version"]
        .as_str()
        .context("the answer does not name its version")?;
    Ok((version.to_owned(), latency))
}

/// An inference request for one digit.
fn request(sample: &Sample) -> Request {
    let pixels =
        json!({ "name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": sample.pixels });
    let body = json!({ "inputs": [pixels] }).to_string();
    Request::post("/v2/models/digits/infer", body.as_bytes())
        .header("content-type", "application/json")
}
