//! Figures that a pipeline wants to reach.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::{Report, Service};

/// A figure that is not to be lower than something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    measure: Measure,
    least: f64,
}

/// Which figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of comparisons that matched.
    Agreement,
    /// The lower end of its 95 % interval.
    AgreementLow,
    /// Mean score of those that both served.
    Score,
    /// Share of what was seen that was compared.
    Fidelity,
    /// Share of comparisons in which the shadow answered.
    Answered,
    /// Number of comparisons.
    Compared,
}

const MEASURES: [(&str, Measure); 6] = [
    ("agreement", Measure::Agreement),
    ("agreement_low", Measure::AgreementLow),
    ("score", Measure::Score),
    ("fidelity", Measure::Fidelity),
    ("answered", Measure::Answered),
    ("compared", Measure::Compared),
];

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = MEASURES.iter().map(|(name, _)| *name).collect();
        let cure = format!(
            "write NAME=VALUE, such as agreement=0.99; names: {}",
            names.join(", ")
        );
        let (name, value) = text.split_once('=').ok_or_else(|| cure.clone())?;
        let found = MEASURES.iter().find(|(known, _)| *known == name);
        let &(_, measure) = found.ok_or(cure)?;
        // `99%` is a share too.
        let percent = value
            .strip_suffix('%')
            .filter(|_| measure != Measure::Compared);
        let least = match percent {
            Some(percent) => percent
                .trim_end()
                .parse()
                .ok()
                .map(|least: f64| least / 100.0),
            None => value.parse().ok(),
        };
        let least = least.filter(|least| match measure {
            Measure::Compared => *least >= 1.0 && least.is_finite(),
            _ => (0.0..=1.0).contains(least),
        });
        let least = least.ok_or_else(|| match measure {
            Measure::Compared => "write a number of comparisons, such as compared=1000".to_owned(),
            _ => format!("write a share from 0 to 1, such as {name}=0.99 or {name}=99%"),
        })?;
        Ok(Self { measure, least })
    }
}

/// A threshold, and what a service has of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reached {
    /// The service.
    pub service: String,
    /// The figure.
    pub measure: Measure,
    /// What it was not to be below.
    pub least: f64,
    /// What it is; nothing = there is no data, which does not pass.
    pub found: Option<f64>,
}

impl Reached {
    /// Whether it is reached.
    pub fn passes(&self) -> bool {
        self.found.is_some_and(|found| found >= self.least)
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = MEASURES
            .iter()
            .find(|(_, measure)| *measure == self.measure);
        let (name, least) = (known.map_or("", |(name, _)| name), self.least);
        write!(f, "{}: {name} ", self.service)?;
        match self.found {
            None => write!(f, "has no data, at least {least} is wanted"),
            Some(found) if found >= least => write!(f, "{found:.6} is at least {least}"),
            Some(found) => write!(f, "{found:.6} is below {least}"),
        }
    }
}

impl Report {
    /// Holds every service against every threshold.
    pub fn check(&mut self, thresholds: &[Threshold]) {
        let check = |service: &Service, threshold: &Threshold| Reached {
            service: service.service.clone(),
            measure: threshold.measure,
            least: threshold.least,
            found: threshold.measure.of(service),
        };
        let services = self.services.iter();
        self.thresholds = services
            .flat_map(|service| thresholds.iter().map(|wanted| check(service, wanted)))
            .collect();
    }
}

impl Measure {
    fn of(self, service: &Service) -> Option<f64> {
        if service.compared == 0 {
            return None;
        }
        match self {
            Self::Agreement => service.agreement.map(|share| share.share),
            Self::AgreementLow => service.agreement.map(|share| share.low),
            Self::Score => service.mean_score,
            Self::Fidelity => service.fidelity.as_ref().map(|fidelity| fidelity.ratio),
            Self::Answered => Some(1.0 - service.verdicts.error as f64 / service.compared as f64),
            Self::Compared => Some(service.compared as f64),
        }
    }
}
