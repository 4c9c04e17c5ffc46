//! The clients: wrk, over connections that stay open.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::tests::Namespace;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine;

/// Connections at once, unless a measurement is about more.
pub(crate) const CONNECTIONS: u32 = 16;

/// What clients noticed, and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) requests: f64,
    pub(crate) seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// CPU seconds of the whole machine, or of the core that the load is to time.
    pub(crate) busy_seconds: f64,
    /// What of it were softirqs, of the whole machine.
    pub(crate) softirq_seconds: f64,
    /// What copying says of itself.
    pub(crate) copying: Copying,
}

/// What one load's copies came to, by the programs that made and took them; nothing where others copy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Copying {
    /// CPU seconds of the sender's thread, and of the sink's.
    pub(crate) sender_seconds: f64,
    pub(crate) sink_seconds: f64,
    /// Packets that were copied.
    pub(crate) copied: f64,
    /// Packets that were not, since there was no room.
    pub(crate) refused: f64,
    /// Bytes of the ring that had left the node, and that had not, when the load ended.
    pub(crate) shipped: f64,
    pub(crate) held: f64,
    /// CPU seconds of both threads that it took after the load to ship what was held.
    pub(crate) late_sender_seconds: f64,
    pub(crate) late_sink_seconds: f64,
}

impl Measured {
    /// Requests in a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests / self.seconds
    }

    /// That for one request, in microseconds.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.busy_seconds / self.requests * 1e6
    }

    /// CPU time in softirqs for one request, in microseconds.
    pub(crate) fn softirq_us(&self) -> f64 {
        self.softirq_seconds / self.requests * 1e6
    }

    /// CPU time of the sender's thread for one request, in microseconds.
    pub(crate) fn sender_us(&self) -> f64 {
        (self.copying.sender_seconds + self.copying.late_sender_seconds) / self.requests * 1e6
    }

    /// CPU time of the sink's thread for one request, in microseconds.
    pub(crate) fn sink_us(&self) -> f64 {
        (self.copying.sink_seconds + self.copying.late_sink_seconds) / self.requests * 1e6
    }

    /// How many of a hundred packets were not copied, since there was no room.
    pub(crate) fn refused_percent(&self) -> f64 {
        let Copying {
            copied, refused, ..
        } = self.copying;
        100.0 * refused / (copied + refused)
    }

    /// How many of a hundred bytes that were copied had left the node when the load ended.
    pub(crate) fn shipped_percent(&self) -> f64 {
        let Copying { shipped, held, .. } = self.copying;
        100.0 * (1.0 - held / (shipped + held).max(1.0))
    }

    /// Requests in a second, had all copies been shipped and taken by these cores meanwhile.
    pub(crate) fn rate_with_all(&self, cores: usize) -> f64 {
        let Copying {
            late_sender_seconds,
            late_sink_seconds,
            ..
        } = self.copying;
        self.requests / (self.seconds + (late_sender_seconds + late_sink_seconds) / cores as f64)
    }

    /// Requests in a second, had all copies been shipped by these cores meanwhile, and taken by others.
    pub(crate) fn rate_without_sink(&self, cores: usize) -> f64 {
        let Copying {
            late_sender_seconds,
            sink_seconds,
            ..
        } = self.copying;
        self.requests / (self.seconds + (late_sender_seconds - sink_seconds) / cores as f64)
    }
}

/// Requests of one size.
pub(crate) struct Load {
    script: PathBuf,
    connections: u32,
    /// Where time is taken; everywhere when there is none.
    core: Option<usize>,
}

impl Load {
    /// POSTs of so many bytes of JSON; each connection waits for `pause` before it sends.
    pub(crate) fn new(folder: &Path, body: usize, pause: Duration) -> Result<Self> {
        let milliseconds = pause.as_millis();
        let script = folder.join(format!("post-{body}-{milliseconds}.lua"));
        let delay = match milliseconds {
            0 => String::new(),
            pause => format!("function delay() return {pause} end\n"),
        };
        let text = format!(
            "wrk.method = 'POST'\n\
             wrk.path = '/v2/models/digits/infer'\n\
             wrk.headers['Content-Type'] = 'application/json'\n\
             wrk.body = '{}'\n\
             {delay}\
             function done(summary, latency)\n\
                 local e = summary.errors\n\
                 io.write(string.format('\\n{{\"requests\":%d,\"us\":%d,\"errors\":%d,\"p50\":%f,\"p99\":%f}}\\n',\n\
                     summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,\n\
                     latency:percentile(50), latency:percentile(99)))\n\
             end\n",
            inference_request(body)
        );
        fs::write(&script, text).context("cannot write wrk's script")?;
        Ok(Self {
            script,
            connections: CONNECTIONS,
            core: None,
        })
    }

    /// The same over another number of connections.
    pub(crate) fn over(self, connections: u32) -> Self {
        Self {
            connections,
            ..self
        }
    }

    /// The same, with CPU time that is of one core alone.
    pub(crate) fn timing(self, core: usize) -> Self {
        Self {
            core: Some(core),
            ..self
        }
    }

    /// Sends to a port of the node for some whole seconds. One request that fails fails the bench.
    pub(crate) fn run(&self, client: &Namespace, port: u16, seconds: u32) -> Result<Measured> {
        let script = self.script.to_string_lossy();
        let (connections, seconds) = (format!("-c{}", self.connections), format!("-d{seconds}s"));
        let url = format!("http://10.0.0.5:{port}/");
        let busy = || match self.core {
            None => machine::busy_seconds(),
            Some(core) => machine::busy_seconds_of(core),
        };
        let before = (busy()?, machine::softirq_seconds()?);
        let arguments = ["-t1", &connections, &seconds, "-s", &script, &url];
        let output = client.output("wrk", &arguments)?;
        let (busy_seconds, softirq_seconds) =
            (busy()? - before.0, machine::softirq_seconds()? - before.1);
        let line = output.lines().last().unwrap_or_default();
        let figures: Value = serde_json::from_str(line).with_context(|| output.clone())?;
        let figure = |name: &str| figures[name].as_f64().unwrap_or(f64::NAN);
        ensure!(figure("errors") == 0.0, "requests failed:\n{output}");
        ensure!(figure("requests") > 0.0, "nothing was answered:\n{output}");
        Ok(Measured {
            requests: figure("requests"),
            seconds: figure("us") / 1e6,
            p50_ms: figure("p50") / 1e3,
            p99_ms: figure("p99") / 1e3,
            busy_seconds,
            softirq_seconds,
            copying: Copying::default(),
        })
    }
}

/// A request of the KServe V2 protocol, of exactly so many bytes where that can be had.
fn inference_request(bytes: usize) -> String {
    let request = |data: &str| {
        format!(
            r#"{{"inputs":[{{"name":"pixels","datatype":"FP32","shape":[1,64],"data":[{data}0]}}]}}"#
        )
    };
    let rest = bytes.saturating_sub(request("").len());
    let mut data = "0.5,".repeat(rest / 4);
    data.insert_str(0, &" ".repeat(rest % 4));
    request(&data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_size_asked_for() {
        for bytes in [500, 501, 502, 503, 2048] {
            let request = inference_request(bytes);
            assert_eq!(request.len(), bytes);
            let json: Value = serde_json::from_str(&request).unwrap();
            assert!(json["inputs"][0]["data"].as_array().unwrap().len() > 50);
        }
    }
}
