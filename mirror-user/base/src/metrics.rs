//! How metrics are declared and registered; what they are called stands in the halves' `metrics.rs`.

use std::sync::LazyLock;

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts,
};

pub use prometheus::Registry;

/// Something that is made of a name, a help text and label names.
pub trait Metric: Collector + Clone + Sized + 'static {
    /// One without a value.
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self>;
}

macro_rules! single {
    ($($kind:ident)*) => {$(
        impl Metric for $kind {
            /// One without a value.
    fn create(name: &str, help: &str, _: &[&str]) -> prometheus::Result<Self> {
                Self::new(name, help)
            }
        }
    )*};
}

macro_rules! labelled {
    ($($kind:ident)*) => {$(
        impl Metric for $kind {
            /// One without a value.
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
                Self::new(Opts::new(name, help), labels)
            }
        }
    )*};
}

single!(Gauge IntCounter IntGauge);
labelled!(CounterVec GaugeVec IntCounterVec IntGaugeVec);

impl Metric for HistogramVec {
    /// One without a value.
    fn create(name: &str, help: &str, labels: &[&str]) -> prometheus::Result<Self> {
        let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
        Self::new(options, labels)
    }
}

/// From half a millisecond to a minute, in seconds: a small classifier as well as a language model.
pub const LATENCY_BUCKETS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// Declares a set of metrics: the doc comment is the help text.
#[macro_export]
macro_rules! metrics {
    (
        $(#[doc = $doc:literal])+
        $visibility:vis struct $set:ident {
            $($(#[doc = $help:literal])+ $field:ident: $kind:ident = $name:literal $([$($label:literal),+])?,)+
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug)]
        $visibility struct $set {
            registry: $crate::metrics::Registry,
            $($(#[doc = $help])+ $field: $kind,)+
        }

        impl $set {
            /// All metrics of the set, registered and without values.
            pub fn new() -> Self {
                let registry = $crate::metrics::Registry::new();
                Self {
                    $($field: $crate::metrics::register(&registry, $name, concat!($($help),+), &[$($($label),+)?]),)+
                    registry,
                }
            }

            /// What /metrics shows.
            pub fn registry(&self) -> &$crate::metrics::Registry {
                &self.registry
            }
        }

        impl Default for $set {
            fn default() -> Self {
                Self::new()
            }
        }
    };
}

/// Names and labels are constants: a clash shows in the first test that makes the set.
pub fn register<M: Metric>(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> M {
    let metric = M::create(name, help.trim(), labels).expect("names and labels are well formed");
    let registered = registry.register(Box::new(metric.clone()));
    registered.expect("no name is used twice");
    metric
}

/// How often a part of this program has failed, of daemon and agent alike.
pub fn panics() -> &'static IntCounter {
    static PANICS: LazyLock<IntCounter> = LazyLock::new(|| {
        let help = "Failures inside of modelmirror (panics), of which the log says more.";
        IntCounter::create("modelmirror_panics_total", help, &[]).expect("the name is well formed")
    });
    &PANICS
}

/// Moves a counter on to a figure that is counted elsewhere.
pub fn advance(counter: &IntCounter, figure: u64) {
    counter.inc_by(figure.saturating_sub(counter.get()));
}

/// A gauge's value.
pub fn gauge(figure: impl TryInto<i64>) -> i64 {
    figure.try_into().unwrap_or(i64::MAX)
}

pub use metrics;

/// For tests of other crates: docs/reference/metrics.md says what a scrape can show.
#[cfg(feature = "fixtures")]
pub mod fixture {
    /// Expects the page to name every metric of this source, and these values of labels.
    #[track_caller]
    pub fn documented<'a>(page: &str, source: &'a str, labels: impl Iterator<Item = &'a str>) {
        let named = |text: &&str| {
            let rest = text.strip_prefix("modelmirror_");
            rest.is_some_and(|rest| !rest.is_empty() && !text.contains([' ', '{']))
        };
        for word in source.split('"').filter(named).chain(labels) {
            let word = word.trim_end_matches("_bucket");
            let is_there = page.contains(&format!("`{word}`"));
            assert!(is_there, "{word} is not documented");
        }
    }

    /// Expects the help texts of this source to stand there word for word, and says how many there are.
    #[track_caller]
    pub fn help_texts(page: &str, source: &str) -> usize {
        let (mut help, mut found) = (Vec::new(), 0);
        for line in source.lines().map(str::trim) {
            if let Some(doc) = line.strip_prefix("/// ") {
                help.push(doc);
                continue;
            }
            let name = line.split('"').nth(1);
            let name = name.filter(|name| name.starts_with("modelmirror_"));
            if let (Some(name), false) = (name, help.is_empty()) {
                let help = help.join(" ");
                let mut rows = page.lines();
                let row = rows.find(|row| row.starts_with(&format!("| `{name}` |")));
                let meaning = row.and_then(|row| row.splitn(4, '|').nth(3));
                assert!(
                    meaning.is_some_and(|meaning| meaning.trim().starts_with(&help)),
                    "{name}: {help:?} is not what its row begins with: {row:?}"
                );
                found += 1;
            }
            help.clear();
        }
        found
    }
}
