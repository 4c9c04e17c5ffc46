//! What the kernel measured of one version, between two looks at the daemon's metrics.

use ::tests::Metrics;

use crate::stage::SERVICE;

/// What one version did in some time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// Connections that came to it.
    pub(crate) connections: f64,
    /// Requests that it answered.
    pub(crate) requests: f64,
    /// Answers of 4xx and 5xx, resets, and handshakes not answered at once.
    pub(crate) errors: f64,
    /// From a request's last byte to the first of its answer, in milliseconds: the 50th and the
    /// 99th percentile.
    pub(crate) first_byte: Option<[f64; 2]>,
}

impl Figures {
    /// What a version did between two scrapes.
    pub(crate) fn between(before: &Metrics, after: &Metrics, version: &str) -> Self {
        let labels = [("service", SERVICE), ("version", version)];
        let risen = |name: &str, more: &[(&str, &str)]| {
            let labels = [&labels[..], more].concat();
            after.sum(name, &labels) - before.sum(name, &labels)
        };
        let answers = |class| risen("modelmirror_responses_total", &[("class", class)]);
        let ended = [
            "modelmirror_resets_total",
            "modelmirror_connections_unanswered_total",
        ];
        let first_byte = "modelmirror_first_byte_seconds";
        let buckets = |metrics: &Metrics| metrics.buckets(first_byte, &labels);
        let risen_buckets = difference(&buckets(before), buckets(after));
        let milliseconds = |part| Some(quantile(&risen_buckets, part)? * 1e3);
        Self {
            connections: risen("modelmirror_connections_total", &[]),
            requests: risen("modelmirror_responses_total", &[]),
            errors: ["4xx", "5xx"].map(answers).iter().sum::<f64>()
                + ended.map(|name| risen(name, &[])).iter().sum::<f64>(),
            first_byte: milliseconds(0.50)
                .zip(milliseconds(0.99))
                .map(<[f64; 2]>::from),
        }
    }
}

/// What came to the buckets; there may have been none of them before.
fn difference(before: &[(f64, f64)], mut after: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    for ((_, count), (_, earlier)) in after.iter_mut().zip(before) {
        *count -= earlier;
    }
    after
}

/// A quantile by straight lines within buckets, as Prometheus's `histogram_quantile`.
fn quantile(buckets: &[(f64, f64)], part: f64) -> Option<f64> {
    let (_, all) = *buckets.last()?;
    let rank = all * part;
    let (mut low, mut below) = (0.0, 0.0);
    for &(high, count) in buckets {
        if count >= rank && count > below {
            let inside = (rank - below) / (count - below);
            // Nothing is known of the last bucket but where it begins.
            return Some(if high.is_finite() {
                low + (high - low) * inside
            } else {
                low
            });
        }
        (low, below) = (high, count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"
modelmirror_connections_total{service="digits",arm="stable",version="v12"} 40
modelmirror_connections_total{service="digits",arm="canary",version="v13"} 0
modelmirror_responses_total{service="digits",arm="canary",version="v13",class="2xx"} 1
modelmirror_first_byte_seconds_bucket{service="digits",arm="canary",version="v13",le="1"} 1
modelmirror_first_byte_seconds_bucket{service="digits",arm="canary",version="v13",le="2"} 1
modelmirror_first_byte_seconds_bucket{service="digits",arm="canary",version="v13",le="+Inf"} 1
"#;
    const AFTER: &str = r#"
modelmirror_connections_total{service="digits",arm="stable",version="v12"} 50
modelmirror_connections_total{service="digits",arm="canary",version="v13"} 5
modelmirror_connections_unanswered_total{service="digits",arm="canary",version="v13"} 1
modelmirror_resets_total{service="digits",arm="canary",version="v13",by="server"} 2
modelmirror_responses_total{service="digits",arm="canary",version="v13",class="2xx"} 8
modelmirror_responses_total{service="digits",arm="canary",version="v13",class="5xx"} 3
modelmirror_first_byte_seconds_bucket{service="digits",arm="canary",version="v13",le="1"} 1
modelmirror_first_byte_seconds_bucket{service="digits",arm="canary",version="v13",le="2"} 9
modelmirror_first_byte_seconds_bucket{service="digits",arm="canary",version="v13",le="+Inf"} 11
"#;

    #[test]
    fn figures_are_differences() {
        let [before, after] = [BEFORE, AFTER].map(|text| Metrics::parse(text).unwrap());
        let canary = Figures {
            connections: 5.0,
            requests: 10.0,
            errors: 6.0,
            // The fifth of the 8 between 1 and 2 s, and the end of what is known.
            first_byte: Some([1625.0, 2000.0]),
        };
        assert_eq!(Figures::between(&before, &after, "v13"), canary);
        let stable = Figures::between(&before, &after, "v12");
        assert_eq!((stable.connections, stable.first_byte), (10.0, None));
        assert_eq!(Figures::between(&after, &after, "v13").first_byte, None);
    }
}
