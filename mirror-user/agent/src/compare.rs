//! Two answers to one request, held against each other. Pure.
//!
//! Only the status decides first; then the bodies are compared as JSON, as text, or byte for byte,
//! by what they are. `docs/explanation/comparison.md` says it for users. Headers are not compared.

pub(crate) mod distribution;
#[cfg(test)]
pub(crate) mod fixture;
mod places;
mod prediction;
mod slices;
#[cfg(test)]
mod tests;
mod walk;

use mirror_wire::body::Room;
use mirror_wire::body::content::{self, Body, Content, Unequal};
use mirror_wire::body::json::{self, REDACTED};
use mirror_wire::body::pointer::Pointers;
use mirror_wire::message::{Exchange, Request, Response, ShadowError, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::walk::{Finding, Rules};
use crate::config;

pub use self::places::{Places, Values};
pub use self::prediction::Summary;
pub use self::slices::{MAX_SLICES, OTHER, Slices};
pub use self::walk::Tolerance;

/// What the comparison of one exchange came to. Label `verdict`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The answers are equal by the service's rules.
    Match,
    /// They are not.
    Different,
    /// The shadow gave no answer.
    Error,
    /// Neither has served the request: both answered with a status of 400 or more, equal or not. What they
    /// would have answered is not known.
    #[serde(rename = "both_failed")]
    BothFailed,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: &'static [Self] = &[Self::Match, Self::Different, Self::Error, Self::BothFailed];

    /// The value of the `verdict` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Different => "different",
            Self::Error => "error",
            Self::BothFailed => "both_failed",
        }
    }
}

/// The comparison of one exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What it came to.
    pub verdict: Verdict,
    /// What production's answer and that of a copy of its version come to, where there are both.
    pub control: Option<Verdict>,
    /// What the shadow's two answers come to, where it has given two.
    pub repeat: Option<Verdict>,
    /// 1 = equal, 0 = nothing alike: the share of JSON leaves, lines or bytes that agree; 0 when the
    /// status differs, or where one of them has not served.
    pub score: f64,
    /// The difference to name, in words.
    pub difference: Option<String>,
    /// Where answers that are both JSON differ.
    pub places: Places,
    /// What production's model said.
    pub production_prediction: Option<Value>,
    /// What the shadow's model said.
    pub shadow_prediction: Option<Value>,
    /// The request's slice; [`Slices`] bounds how many there are.
    pub slice: Option<String>,
}

/// A status from which on a request was not served: refused or failed (RFC 9110, 15.5 and 15.6).
pub(crate) const NOT_SERVED: u16 = 400;

/// The rules of one service. What its `[service.record]` redacts is quoted nowhere in a
/// [`Comparison`].
#[derive(Clone, Debug)]
pub struct Comparer {
    rules: Rules,
    slice: Option<Slice>,
}

#[derive(Clone, Debug)]
enum Slice {
    Header(String),
    Pointer(Pointers),
    Redacted,
}

impl From<&config::Compare> for Tolerance {
    fn from(compare: &config::Compare) -> Self {
        Self {
            absolute: compare.absolute,
            relative: compare.relative,
        }
    }
}

/// Headers by which nobody can group requests: their values are secrets.
const CREDENTIALS: [&str; 6] = [
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-api-key",
    "api-key",
];

impl Comparer {
    /// The rules of a service.
    pub fn new(compare: &config::Compare, record: &config::Record) -> Self {
        let hidden = |name: &str| {
            let mut credentials = CREDENTIALS.iter();
            credentials.any(|header| header.eq_ignore_ascii_case(name))
        };
        let slice = compare.slice.as_ref().map(|slice| match slice {
            config::Slice::Header(name) if hidden(name) => Slice::Redacted,
            config::Slice::Header(name) => Slice::Header(name.clone()),
            config::Slice::Pointer(pointer) => Slice::Pointer(Pointers::new(&[pointer])),
        });
        Self {
            rules: Rules {
                ignore: Pointers::new(&compare.ignore),
                tolerance: compare.into(),
                prediction: compare
                    .prediction
                    .as_ref()
                    .map_or_else(Pointers::default, |pointer| Pointers::new(&[pointer])),
                redact: Pointers::new(&record.redact_fields),
            },
            slice,
        }
    }

    /// Compares production's answer with the shadow's, however much memory that takes.
    pub fn compare(&self, exchange: &Exchange) -> Comparison {
        self.compare_within(exchange, &Room::unlimited())
    }

    /// The same within `room`: where that [`Room::is_short`], the comparison says nothing.
    pub fn compare_within(&self, exchange: &Exchange, room: &Room) -> Comparison {
        let production = &exchange.production;
        let mut comparison = Comparison {
            slice: self.slice(&exchange.request, room),
            ..Comparison::default()
        };
        let shadow = match &exchange.shadow {
            Ok(shadow) => shadow,
            Err(error) => {
                comparison.production_prediction = self.prediction(production, room);
                return comparison.unlike(Verdict::Error, 0.0, error_words(*error).to_owned());
            }
        };
        self.answers(production, shadow, comparison, room)
    }

    /// What two answers to one request come to, see [`Comparer::compare_within`].
    pub fn agree(&self, one: &Response, other: &Response, room: &Room) -> Verdict {
        self.answers(one, other, Comparison::default(), room)
            .verdict
    }

    fn answers(
        &self,
        production: &Response,
        shadow: &Response,
        mut comparison: Comparison,
        room: &Room,
    ) -> Comparison {
        if production.status >= NOT_SERVED && shadow.status >= NOT_SERVED {
            comparison.verdict = Verdict::BothFailed;
            comparison.score = 0.0;
            return comparison;
        }
        if production.status == shadow.status && production.body == shadow.body {
            comparison.production_prediction = self.prediction(production, room);
            comparison.shadow_prediction = comparison.production_prediction.clone();
            return comparison;
        }
        let before = room.taken();
        let compared = self.bodies(production, shadow, comparison, room);
        room.back_to(before);
        compared
    }

    fn bodies(
        &self,
        production: &Response,
        shadow: &Response,
        mut comparison: Comparison,
        room: &Room,
    ) -> Comparison {
        let [was, now] =
            [production, shadow].map(|answer| Body::of(&answer.headers, &answer.body, room));
        let (left, right) = (was.content(), now.content());
        comparison.production_prediction = self.prediction_in(&left);
        comparison.shadow_prediction = self.prediction_in(&right);
        let unequal = if production.status == shadow.status {
            self.contents([&was, &now], &left, &right, &mut comparison.places)
        } else {
            let (was, now) = (production.status, shadow.status);
            Some(Unequal {
                score: 0.0,
                words: format!("status {was} became {now}"),
            })
        };
        match unequal {
            Some(Unequal { score, words }) => comparison.unlike(Verdict::Different, score, words),
            None => comparison,
        }
    }

    fn contents(
        &self,
        bodies: [&Body<'_>; 2],
        left: &Content<'_>,
        right: &Content<'_>,
        places: &mut Places,
    ) -> Option<Unequal> {
        let quote = self.rules.redact.is_empty();
        match (left, right) {
            (Content::Json(left), Content::Json(right)) => {
                let mut finding = walk::compare(&self.rules, left, right);
                *places = std::mem::take(&mut finding.places);
                unequal(finding)
            }
            (Content::Text(left, why), Content::Text(right, why_too)) => {
                let mut unequal = content::lines(left, right, quote)?;
                if let Some(why) = why.as_ref().or(why_too.as_ref()) {
                    unequal.words += &format!(" (compared as text: {why})");
                }
                Some(unequal)
            }
            (Content::Json(_), Content::Text(_, why)) => Some(not_json("the shadow's", why)),
            (Content::Text(_, why), Content::Json(_)) => Some(not_json("production's", why)),
            (left, right) => {
                let mut unequal = content::bytes(bodies[0].bytes(), bodies[1].bytes())?;
                let why = [left, right].into_iter().find_map(|content| match content {
                    Content::Bytes(why) => why.as_ref(),
                    _ => None,
                });
                if let Some(why) = why {
                    unequal.words += &format!(" (compared as bytes: {why})");
                }
                Some(unequal)
            }
        }
    }

    fn prediction(&self, response: &Response, room: &Room) -> Option<Value> {
        if self.rules.prediction.is_empty() {
            return None;
        }
        let before = room.taken();
        let found = {
            let body = Body::of(&response.headers, &response.body, room);
            self.prediction_in(&body.content())
        };
        room.back_to(before);
        found
    }

    fn prediction_in(&self, content: &Content<'_>) -> Option<Value> {
        match content {
            Content::Json(node) if !self.rules.prediction.is_empty() => {
                prediction::extract(node, &self.rules.prediction, &self.rules.redact)
            }
            _ => None,
        }
    }

    fn slice(&self, request: &Request, room: &Room) -> Option<String> {
        match self.slice.as_ref()? {
            Slice::Redacted => Some(REDACTED.to_owned()),
            Slice::Header(name) => {
                let value = header(&request.headers, name)?;
                slices::name(&String::from_utf8_lossy(value))
            }
            Slice::Pointer(pointer) => {
                let before = room.taken();
                let found = {
                    let body = Body::of(&request.headers, &request.body, room);
                    let document = body.document();
                    document
                        .and_then(|node| prediction::extract(&node, pointer, &self.rules.redact))
                };
                room.back_to(before);
                match found? {
                    Value::String(text) => slices::name(&text),
                    other => slices::name(&other.to_string()),
                }
            }
        }
    }
}

impl Default for Comparison {
    /// Equal answers, of which nothing more is known.
    fn default() -> Self {
        Self {
            verdict: Verdict::Match,
            control: None,
            repeat: None,
            score: 1.0,
            difference: None,
            places: Places::default(),
            production_prediction: None,
            shadow_prediction: None,
            slice: None,
        }
    }
}

impl Comparison {
    fn unlike(mut self, verdict: Verdict, score: f64, difference: String) -> Self {
        self.verdict = verdict;
        self.score = score;
        self.difference = Some(difference);
        self
    }
}

fn unequal(finding: Finding) -> Option<Unequal> {
    Some(Unequal {
        score: finding.agreeing as f64 / finding.compared.max(1) as f64,
        words: finding.difference?,
    })
}

fn not_json(whose: &str, why: &Option<json::Unparsed>) -> Unequal {
    let why = why
        .as_ref()
        .map_or_else(|| "text".to_owned(), ToString::to_string);
    Unequal {
        score: 0.0,
        words: format!("only one answer is JSON; {whose} is {why}"),
    }
}

const fn error_words(error: ShadowError) -> &'static str {
    match error {
        ShadowError::Connect => "the shadow could not be reached",
        ShadowError::Timeout => "the shadow gave no whole answer in time",
        ShadowError::Closed => "the shadow closed the connection before its answer was whole",
        ShadowError::Malformed => "the shadow's answer is not HTTP/1",
        ShadowError::TooLarge => "the shadow's answer is larger than the limit",
    }
}
