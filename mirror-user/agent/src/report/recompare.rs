//! Recorded exchanges, compared once more by other rules.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mirror_common::tunnel::Arm;
use mirror_wire::body::json::REDACTED;
use mirror_wire::memory::Memory;
use mirror_wire::message::{Exchange, Field, Request, Response, Version};
use serde::Serialize;

use crate::compare::{Comparer, NOT_SERVED, Verdict};
use crate::record::form::sha256;
use crate::record::line::{Answer, Payload, Record};

/// How many exchanges could be compared once more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recompared {
    /// Those that could.
    pub recompared: u64,
    /// Those of them that have another verdict now.
    pub changed: u64,
    /// Those that could not and are left out, by why.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Why an exchange cannot be compared once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    NotRecorded,
    Cut,
    Redacted,
}

impl Why {
    const fn label(self) -> &'static str {
        match self {
            Self::NotRecorded => "payload_not_recorded",
            Self::Cut => "payload_cut",
            Self::Redacted => "payload_redacted",
        }
    }
}

impl Recompared {
    /// Compares a record once more, and changes what it says. Whether that could be done.
    pub(super) fn apply(&mut self, rules: &Comparer, record: &mut Record<'_>) -> bool {
        let was = record.verdict;
        match recompare(rules, record) {
            Ok(()) => {
                self.recompared += 1;
                self.changed += u64::from(was != record.verdict);
                true
            }
            Err(why) => {
                *self.left_out.entry(why.label()).or_default() += 1;
                false
            }
        }
    }
}

fn recompare(rules: &Comparer, record: &mut Record<'_>) -> Result<(), Why> {
    if record.shadow.error.is_some() {
        // No rule changes that.
        return Ok(());
    }
    let (status, shadow) = (record.production.status, record.shadow.status);
    let bodies = responses(record);
    if bodies.is_err() && status.is_some() {
        // Some exchanges need no bodies.
        let both_failed = status.min(shadow) >= Some(NOT_SERVED);
        let equal =
            record.production.sha256 == record.shadow.sha256 && record.production.sha256.is_some();
        let verdict = match (status == shadow, equal) {
            _ if both_failed => Some(Verdict::BothFailed),
            (true, true) => Some(Verdict::Match),
            (true, false) => None,
            (false, _) => Some(Verdict::Different),
        };
        if let Some(verdict) = verdict {
            settle(record, verdict);
            return Ok(());
        }
    }
    let [production, shadow] = bodies?;
    let request = message(&record.request.payload, Some(&record.request.sha256));
    let knows_request = request.is_ok();
    let exchange = exchange(record, request.unwrap_or_default(), production, shadow);
    let comparison = rules.compare(&exchange);
    record.verdict = comparison.verdict;
    // Those are of the rules of their time, and their answers are not recorded.
    (record.control, record.repeat) = (None, None);
    record.score = comparison.score;
    record.difference = comparison.difference.map(Cow::Owned);
    let places = comparison.places;
    record.differing = (!places.found.is_empty()).then_some(Cow::Owned(places.found));
    record.differing_more = places.more;
    record.production.prediction = comparison.production_prediction.map(Cow::Owned);
    record.shadow.prediction = comparison.shadow_prediction.map(Cow::Owned);
    if knows_request {
        record.slice = comparison.slice.map(Cow::Owned);
    }
    Ok(())
}

/// A verdict that follows from statuses and digests alone.
fn settle(record: &mut Record<'_>, verdict: Verdict) {
    record.verdict = verdict;
    (record.control, record.repeat) = (None, None);
    record.score = f64::from(u8::from(verdict == Verdict::Match));
    (record.differing, record.differing_more) = (None, false);
    let statuses = record.production.status.zip(record.shadow.status);
    record.difference = statuses
        .filter(|_| verdict == Verdict::Different)
        .map(|(was, now)| format!("status {was} became {now}").into());
}

fn responses(record: &Record<'_>) -> Result<[Response; 2], Why> {
    Ok([response(&record.production)?, response(&record.shadow)?])
}

fn response(answer: &Answer<'_>) -> Result<Response, Why> {
    let status = answer.status.ok_or(Why::NotRecorded)?;
    let (headers, body) = message(&answer.payload, answer.sha256.as_deref())?;
    Ok(Response {
        status,
        body_bytes: body.len() as u64,
        headers,
        body,
        trailers: Vec::new(),
        first_byte_ns: 0,
        body_ns: None,
        last_byte_ns: 0,
        lease: lease(),
    })
}

/// Headers and body as they were. A body is written without its codings; its digest is of what it was
/// before that.
fn message(payload: &Payload<'_>, digest: Option<&str>) -> Result<(Vec<Field>, Bytes), Why> {
    if let Some(why) = &payload.body_withheld {
        return Err(if why.starts_with("larger") {
            Why::Cut
        } else {
            Why::Redacted
        });
    }
    let headers = payload.headers.as_ref().ok_or(Why::NotRecorded)?;
    let body = match (&payload.body, &payload.body_base64) {
        (Some(text), _) => Bytes::copy_from_slice(text.as_bytes()),
        (None, Some(text)) => STANDARD
            .decode(&**text)
            .map_err(|_| Why::NotRecorded)?
            .into(),
        (None, None) => return Err(Why::NotRecorded),
    };
    let is_whole = digest == Some(&*sha256(&body));
    let is_coded = headers.contains_key("content-encoding");
    let hides = payload
        .body
        .as_ref()
        .is_some_and(|text| text.contains(REDACTED));
    if !is_whole && (!is_coded || hides) {
        return Err(Why::Redacted);
    }
    let kept = headers
        .iter()
        .filter(|(name, _)| is_whole || *name != "content-encoding");
    let field = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let fields = kept.map(|(name, value)| Field {
        name: field(name),
        value: field(value),
    });
    Ok((fields.collect(), body))
}

fn exchange(
    record: &Record<'_>,
    (headers, body): (Vec<Field>, Bytes),
    production: Response,
    shadow: Response,
) -> Exchange {
    Exchange {
        id: record.id,
        time: record.time,
        client: record.client,
        arm: Arm::Stable,
        production_version: record.production.version.as_ref().to_owned(),
        production,
        shadow_request_ns: 0,
        shadow: Ok(shadow),
        request: Request {
            method: record.method.as_ref().to_owned(),
            target: record.path.as_ref().to_owned(),
            version: Version::Http11,
            headers,
            body,
            chunked: false,
            trailers: Vec::new(),
            first_byte_ns: 0,
            last_byte_ns: 0,
            late: false,
            saturated: false,
            lease: lease(),
        },
    }
}

fn lease() -> mirror_wire::memory::Lease {
    Memory::new(0).empty_lease()
}
