//! A steady load: each connection sends at its own beat, and waits for each answer.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use demo::samples::{self, Sample};
use serde_json::json;
use tests::Request;

use crate::interrupt::Interrupt;
use crate::stage::Stage;

/// How often the screen is told how far it is.
const TICK: Duration = Duration::from_millis(200);

/// Whether requests are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mirror {
    Off,
    On,
}

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    /// Requests in a second, all connections together.
    pub(crate) rate: u32,
    pub(crate) duration: Duration,
}

/// Who the clients are, for the report's slices.
const TENANTS: [&str; 3] = ["bank", "post", "school"];

impl Load {
    /// The same for a second.
    pub(crate) fn warm_up(self) -> Self {
        Self {
            duration: Duration::from_secs(1),
            ..self
        }
    }

    /// Sends over new connections, and returns how long each answer took. `tick` is told a few
    /// times a second how many requests were answered.
    pub(crate) fn run(
        self,
        stage: &Stage,
        interrupt: &Interrupt,
        mut tick: impl FnMut(u64),
    ) -> Result<Vec<Duration>> {
        let samples = samples::all();
        let (answered, latencies) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        let end = Instant::now() + self.duration;
        let one = |number: u32| -> Result<()> {
            let mut own = Vec::new();
            let result = self.connection(stage, &samples, number, end, interrupt, |latency| {
                own.push(latency);
                answered.fetch_add(1, Ordering::Relaxed);
            });
            latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&mut own);
            result
        };
        let one = &one;
        thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..self.connections)
                .map(|n| scope.spawn(move || one(n)))
                .collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                thread::sleep(
                    TICK.min(end.saturating_duration_since(Instant::now()))
                        .max(TICK / 20),
                );
                tick(answered.load(Ordering::Relaxed));
            }
            for thread in threads {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })?;
        interrupt.check()?;
        Ok(latencies
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner))
    }

    fn connection(
        self,
        stage: &Stage,
        samples: &[Sample],
        number: u32,
        end: Instant,
        interrupt: &Interrupt,
        mut answered: impl FnMut(Duration),
    ) -> Result<()> {
        let mut connection = stage.client().connect()?;
        let beat = Duration::from_secs(1) * self.connections / self.rate;
        // Connections take turns rather than send all at once.
        let mut next = Instant::now() + beat * number / self.connections;
        let tenant = TENANTS[number as usize % TENANTS.len()];
        for sample in samples.iter().cycle().skip(number as usize * 53) {
            if next >= end || interrupt.raised() {
                break;
            }
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next += beat;
            let request = request(sample).header("x-tenant", tenant);
            let start = Instant::now();
            let answer = connection.ask(&request).context("a request failed")?;
            answered(start.elapsed());
            ensure!(
                answer.status == 200,
                "a request failed with status {}",
                answer.status
            );
        }
        Ok(())
    }
}

/// An inference request for one digit.
fn request(sample: &Sample) -> Request {
    let pixels =
        json!({ "name": "pixels", "datatype": "FP32", "shape": [1, 64], "data": sample.pixels });
    let body = json!({ "inputs": [pixels] }).to_string();
    Request::post("/v2/models/digits/infer", body.as_bytes())
        .header("content-type", "application/json")
}
