//! Asks Prometheus for one number
//! ([HTTP API, instant queries](https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries)).

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mirror_rollout::plan::Endpoint;
use reqwest::{Client, StatusCode};
use serde::Deserialize;

use super::http;

/// How long Prometheus may take, connecting included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How far Prometheus looks back for a sample by itself (`--query.lookback-delta`).
const LOOKBACK: Duration = Duration::from_secs(300);

/// Many series are a mistake in the query; it can be told from their beginning.
const LARGEST_ANSWER: usize = 1 << 20;

/// Why there is no number. Nothing of it is a verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Missing {
    /// Nobody listens, or the exchange broke off.
    #[error("Prometheus cannot be reached: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("Prometheus does not answer within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// It said why not.
    #[error("Prometheus refuses the query ({status}): {said}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its own words.
        said: String,
    },
    /// Something else answers.
    #[error("what answers ({status}) is not Prometheus; look at `prometheus` in the plan")]
    SomethingElse {
        /// The HTTP status.
        status: u16,
    },
    /// An empty result.
    #[error("no series has a sample of the last {}", humantime::format_duration(*.staleness))]
    NoSeries {
        /// What counted as none.
        staleness: Duration,
    },
    /// This Prometheus looks back as far as it likes.
    #[error("this Prometheus does not say how old a sample is (2.43 and later do): write staleness = \"5m\", for so long a sample counts there; asked for {}", humantime::format_duration(*.staleness))]
    AgeUnknown {
        /// What should have counted as none.
        staleness: Duration,
    },
    /// More than one element.
    #[error("{0} series, not one: aggregate them, such as with sum(...)")]
    Several(usize),
    /// NaN or an infinity, such as a ratio where nothing happened.
    #[error("the value is {0}")]
    NotFinite(String),
    /// The query is no question for a number.
    #[error("the query gives a {0}, not a number")]
    NotANumber(String),
    /// Prometheus warned that the result is not whole.
    #[error("Prometheus warns: {0}")]
    Warned(String),
}

/// One Prometheus, or what speaks as it does.
#[derive(Debug)]
pub(super) struct Prometheus {
    client: Client,
    /// Scheme, host, port, and the path that it is served under.
    base: Endpoint,
    patience: Duration,
    /// Whether it was seen to take `lookback_delta`.
    looks_back_as_asked: AtomicBool,
}

impl Prometheus {
    /// The one at `base`, without a final slash.
    pub(super) fn new(client: Client, base: &Endpoint) -> Self {
        Self {
            client,
            base: base.clone(),
            patience: PATIENCE,
            looks_back_as_asked: AtomicBool::new(false),
        }
    }

    /// The value of `query` now; samples older than `staleness` count as none. That holds for what
    /// the query selects without a range: `rate(x[5m])` looks back for 5 minutes whatever is said
    /// here.
    ///
    /// # Errors
    /// When there is not exactly one number.
    pub(super) async fn ask(&self, query: &str, staleness: Duration) -> Result<f64, Missing> {
        if staleness < LOOKBACK && !self.looks_back_as_asked().await? {
            return Err(Missing::AgeUnknown { staleness });
        }
        // Whole milliseconds are read by every version that reads this at all.
        let lookback = format!("{}ms", staleness.as_millis().max(1));
        let (status, body) = self.post(query, &lookback).await?;
        number(status, &body, staleness)
    }

    /// Prometheus before 2.43, and some that speak as it does, pass over `lookback_delta` in
    /// silence. Who reads it refuses nonsense.
    async fn looks_back_as_asked(&self) -> Result<bool, Missing> {
        if self.looks_back_as_asked.load(Relaxed) {
            return Ok(true);
        }
        let (status, body) = self.post("1", "nonsense").await?;
        match number(status, &body, LOOKBACK) {
            Ok(_) => Ok(false),
            Err(Missing::Refused { status: 400, .. }) => {
                self.looks_back_as_asked.store(true, Relaxed);
                Ok(true)
            }
            Err(missing) => Err(missing),
        }
    }

    /// The answer's status and body.
    async fn post(&self, query: &str, lookback: &str) -> Result<(StatusCode, String), Missing> {
        let patience = format!("{}ms", self.patience.as_millis());
        let form = [
            ("query", query),
            ("lookback_delta", lookback),
            ("timeout", &patience),
        ];
        let unreachable = |error: reqwest::Error| {
            if error.is_timeout() {
                return Missing::Silent(self.patience);
            }
            Missing::Unreachable(http::innermost(&error))
        };
        let base = self.base.whole().ok_or_else(|| {
            Missing::Unreachable(
                "the file with its address has gone; start the rollout again".to_owned(),
            )
        })?;
        let url = format!("{base}/api/v1/query");
        let asked = self.client.post(url).form(&form).timeout(self.patience);
        let response = asked.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = http::text(response, LARGEST_ANSWER).await;
        Ok((status, body.map_err(unreachable)?))
    }
}

/// What every answer looks like.
#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Answer {
    Success {
        data: Data,
        #[serde(default)]
        warnings: Vec<String>,
    },
    Error {
        error: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Element>),
    Scalar(Sample),
    Matrix(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

/// One series; a histogram has no value.
#[derive(Deserialize)]
struct Element {
    value: Option<Sample>,
}

/// When, and what, as text.
#[derive(Deserialize)]
struct Sample(
    #[expect(dead_code, reason = "the time is always now")] f64,
    String,
);

/// The one number of an answer.
fn number(status: StatusCode, body: &str, staleness: Duration) -> Result<f64, Missing> {
    let answer = serde_json::from_str(body).map_err(|_| Missing::SomethingElse {
        status: status.as_u16(),
    })?;
    let (data, warnings) = match answer {
        Answer::Success { data, warnings } => (data, warnings),
        Answer::Error { error } => {
            return Err(Missing::Refused {
                status: status.as_u16(),
                said: http::beginning(&error),
            });
        }
    };
    // Remarks on the query's style came as warnings for a while (2.48 to 2.53).
    let mut warnings = warnings
        .iter()
        .filter(|said| !said.starts_with("PromQL info"));
    if let Some(warning) = warnings.next() {
        return Err(Missing::Warned(http::beginning(warning)));
    }
    let Sample(_, value) = match data {
        Data::Scalar(sample) => sample,
        Data::Vector(elements) => only(elements, staleness)?,
        Data::Matrix(_) => return Err(Missing::NotANumber("range of values".to_owned())),
        Data::String(_) => return Err(Missing::NotANumber("string".to_owned())),
    };
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(Missing::NotFinite(value)),
    }
}

fn only(mut elements: Vec<Element>, staleness: Duration) -> Result<Sample, Missing> {
    match (elements.len(), elements.pop()) {
        (1, Some(Element { value: Some(value) })) => Ok(value),
        (1, _) => Err(Missing::NotANumber("histogram".to_owned())),
        (0, _) => Err(Missing::NoSeries { staleness }),
        (several, _) => Err(Missing::Several(several)),
    }
}

#[cfg(test)]
mod tests;
