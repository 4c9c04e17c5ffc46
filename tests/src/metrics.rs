//! What /metrics says, in Prometheus's text format 0.0.4.

use std::fmt;

use anyhow::{Context, Result};

/// All series of one scrape.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Reads a scrape.
    ///
    /// # Errors
    /// Names the line that is not in the format.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let series = lines.map(|line| {
            Series::parse(line).with_context(|| format!("not a line of metrics: {line}"))
        });
        Ok(Self {
            series: series.collect::<Result<_>>()?,
        })
    }

    /// The sum of all series of that name that have these labels; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    /// Whether there is a series of that name that has these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// Values by one label of all series of that name: `by("modelmirror_packets_total", "reason")`.
    pub fn by(&self, name: &str, label: &str) -> Vec<(String, f64)> {
        self.matching(name, &[])
            .filter_map(|series| Some((series.label(label)?.to_owned(), series.value)))
            .collect()
    }

    /// A histogram's buckets: each one's upper bound, and how many were no more than that.
    pub fn buckets(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        self.matching(&name, labels)
            .filter_map(|series| Some((series.label("le")?.parse().ok()?, series.value)))
            .collect()
    }

    fn matching(&self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &Series> {
        self.series.iter().filter(move |series| {
            series.name == name
                && labels
                    .iter()
                    .all(|(key, value)| series.label(key) == Some(value))
        })
    }
}

/// All that is not 0, for messages.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Series {
            name,
            labels,
            value,
        } in self.series.iter().filter(|s| s.value != 0.0)
        {
            let labels: Vec<_> = labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            writeln!(f, "{name}{{{}}} {value}", labels.join(", "))?;
        }
        Ok(())
    }
}

impl Series {
    fn label(&self, label: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(key, _)| key == label)
            .map(|(_, value)| value.as_str())
    }

    fn parse(line: &str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (key, after) = rest.trim_start_matches(',').split_once("=\"")?;
                let (value, after) = unquote(after)?;
                labels.push((key.to_owned(), value));
                rest = after;
            }
            rest = &rest[1..];
        }
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self {
            name: name.to_owned(),
            labels,
            value,
        })
    }
}

/// A label's value up to its closing quote, without escapes, and what follows.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_their_labels() {
        let text = "# HELP a_total x\n# TYPE a_total counter\n\
                    a_total{service=\"s\",reason=\"a \\\"b\\\" {c}\"} 3\n\
                    a_total{service=\"s\",reason=\"d\"} 4.5\n\nb 1e3\nc +Inf\n";
        let metrics = Metrics::parse(text).unwrap();
        assert_eq!(metrics.sum("a_total", &[("service", "s")]), 7.5);
        assert_eq!(metrics.sum("a_total", &[("reason", "a \"b\" {c}")]), 3.0);
        assert_eq!(metrics.sum("b", &[]), 1000.0);
        assert!(!metrics.has("a_total", &[("reason", "none")]));
        assert_eq!(metrics.by("a_total", "reason")[1], ("d".to_owned(), 4.5));
    }

    #[test]
    fn a_histogram_is_its_buckets() {
        let text = "a_bucket{le=\"0.5\",x=\"y\"} 3\na_bucket{le=\"+Inf\",x=\"y\"} 4\n\
                    a_bucket{le=\"+Inf\",x=\"z\"} 7\na_count{x=\"y\"} 4\n";
        let metrics = Metrics::parse(text).unwrap();
        let buckets = metrics.buckets("a", &[("x", "y")]);
        assert_eq!(buckets, [(0.5, 3.0), (f64::INFINITY, 4.0)]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = Metrics::parse("a{b=\"c} 1").unwrap_err();
        assert_eq!(error.to_string(), "not a line of metrics: a{b=\"c} 1");
    }
}
