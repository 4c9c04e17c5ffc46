//! From an exchange and its comparison to a line, redacted. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use mirror_wire::body::Room;
use mirror_wire::body::Written;
use mirror_wire::body::content::Body;
use mirror_wire::body::json::{REDACTED, Redacted};
use mirror_wire::body::pointer::Pointers;
use mirror_wire::message::{Exchange, Field, Response, header};

use super::line::{Answer, Payload, Record, RequestPart};
use crate::compare::{Comparison, Verdict};
use crate::config::{self, Payloads};

/// Bodies larger than this, in bytes, are not written.
const MAX_BODY: usize = 16 << 20;

/// Bytes of a header's value or a path that are written.
const MAX_TEXT: usize = 2048;

/// How one service's exchanges are written.
#[derive(Clone, Debug)]
pub(super) struct Form {
    service: String,
    shadow_version: String,
    payloads: Payloads,
    sample: f64,
    headers: Vec<String>,
    redact_fields: Pointers,
}

impl Form {
    pub(super) fn new(service: &config::ShadowService) -> Self {
        let record = &service.record;
        Self {
            service: service.name.clone(),
            shadow_version: service.version.clone(),
            payloads: record.payloads,
            sample: record.sample,
            headers: record.headers.clone(),
            redact_fields: Pointers::new(&record.redact_fields),
        }
    }

    /// The exchange as it is written.
    pub(super) fn record<'a>(
        &'a self,
        exchange: &'a Exchange,
        comparison: &'a Comparison,
        room: &'a Room,
    ) -> Record<'a> {
        let request = &exchange.request;
        let production = &exchange.production;
        let payload = self.wants_payload(exchange, comparison.verdict);
        let digest = sha256(&production.body);
        let shadow = match &exchange.shadow {
            Ok(shadow) => Answer {
                version: Cow::Borrowed(&self.shadow_version),
                prediction: comparison.shadow_prediction.as_ref().map(Cow::Borrowed),
                sha256: Some(if shadow.body == production.body {
                    digest.clone().into()
                } else {
                    sha256(&shadow.body).into()
                }),
                ..self.answer(shadow, exchange.shadow_request_ns, payload, room)
            },
            Err(error) => Answer {
                version: Cow::Borrowed(&self.shadow_version),
                error: Some(error.label().into()),
                ..Answer::default()
            },
        };
        Record {
            id: exchange.id,
            trace_id: text_of(&request.headers, "traceparent").and_then(trace_id),
            request_id: text_of(&request.headers, "x-request-id").map(cut),
            time: exchange.time,
            service: Cow::Borrowed(&self.service),
            slice: comparison.slice.as_deref().map(Cow::Borrowed),
            client: exchange.client,
            method: Cow::Borrowed(&request.method),
            path: path(&request.target),
            arm: exchange.arm.label().into(),
            request: RequestPart {
                bytes: request.body.len() as u64,
                sha256: sha256(&request.body).into(),
                payload: self.payload(&request.headers, &request.body, payload, room),
            },
            production: Answer {
                version: Cow::Borrowed(&exchange.production_version),
                prediction: comparison.production_prediction.as_ref().map(Cow::Borrowed),
                sha256: production.is_kept().then(|| digest.into()),
                ..self.answer(production, request.last_byte_ns, payload, room)
            },
            shadow,
            verdict: comparison.verdict,
            control: comparison.control,
            repeat: comparison.repeat,
            score: comparison.score,
            difference: comparison.difference.as_deref().map(Cow::Borrowed),
            differing: (!comparison.places.found.is_empty())
                .then_some(Cow::Borrowed(&comparison.places.found)),
            differing_more: comparison.places.more,
        }
    }

    fn wants_payload(&self, exchange: &Exchange, verdict: Verdict) -> bool {
        match self.payloads {
            Payloads::None => false,
            Payloads::All => true,
            Payloads::Different => verdict != Verdict::Match,
            Payloads::Sampled => {
                // The last 62 bits of a version 7 UUID are random (RFC 9562, 5.7).
                let (_, low) = exchange.id.as_u64_pair();
                ((low << 2) as f64) < self.sample * 2_f64.powi(64)
            }
        }
    }

    /// What a leg's answer itself tells; `request_ns` is when the last byte of its request passed.
    fn answer<'a>(
        &self,
        response: &'a Response,
        request_ns: u64,
        payload: bool,
        room: &'a Room,
    ) -> Answer<'a> {
        Answer {
            status: Some(response.status),
            bytes: Some(response.body_bytes.max(response.body.len() as u64)),
            first_byte_ms: Some(milliseconds(request_ns, response.first_byte_ns)),
            total_ms: Some(milliseconds(request_ns, response.last_byte_ns)),
            payload: match response.is_kept() {
                true => self.payload(&response.headers, &response.body, payload, room),
                false => Payload {
                    headers: payload.then(|| self.headers(&response.headers)),
                    body_withheld: payload
                        .then(|| "not kept: there is nothing to compare it with".into()),
                    ..Payload::default()
                },
            },
            ..Answer::default()
        }
    }

    fn payload<'a>(
        &self,
        headers: &[Field],
        body: &'a [u8],
        wanted: bool,
        room: &'a Room,
    ) -> Payload<'a> {
        if !wanted {
            return Payload::default();
        }
        Payload {
            headers: Some(self.headers(headers)),
            ..self.body(headers, body, room)
        }
    }

    fn headers(&self, fields: &[Field]) -> BTreeMap<String, String> {
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for field in fields {
            let name = String::from_utf8_lossy(&field.name).to_ascii_lowercase();
            let value = if !self.shows(&name) {
                REDACTED.into()
            } else {
                cut(String::from_utf8_lossy(&field.value))
            };
            headers
                .entry(name)
                .and_modify(|joined| {
                    joined.push_str(", ");
                    joined.push_str(&value);
                })
                .or_insert_with(|| value.into_owned());
        }
        headers
    }

    /// Whether a header's value is written.
    fn shows(&self, name: &str) -> bool {
        let mut shown = self.headers.iter();
        shown.any(|shown| shown.eq_ignore_ascii_case(name))
    }

    /// A body without its content codings, where they can be taken off. What it takes stays taken of `room`.
    fn body<'a>(&self, headers: &[Field], body: &'a [u8], room: &'a Room) -> Payload<'a> {
        let withheld = |why: &'static str| Payload {
            body_withheld: Some(why.into()),
            ..Payload::default()
        };
        let written = |body| Payload {
            body: Some(body),
            ..Payload::default()
        };
        let body = Body::of(headers, body, room);
        if body.bytes().len() > MAX_BODY {
            return withheld("larger than 16 MiB");
        }
        if !self.redact_fields.is_empty() && !body.bytes().is_empty() {
            let document = body.document().filter(|_| body.is_document());
            let redacted = document.and_then(|node| {
                let redact = Some(&self.redact_fields);
                let node = &node;
                let mut json = Written::new(room, 0)?;
                serde_json::to_writer(&mut json, &Redacted { node, redact }).ok()?;
                String::from_utf8(json.into_bytes()).ok()
            });
            return redacted.map_or_else(
                || withheld("not JSON, so that redact_fields cannot be applied"),
                |json| written(json.into()),
            );
        }
        match text(body.into_bytes()) {
            Ok(text) => written(text),
            Err(bytes) if !room.take(bytes.len() / 3 * 4 + 4) => withheld("no memory"),
            Err(bytes) => Payload {
                body_base64: Some(STANDARD.encode(bytes).into()),
                ..Payload::default()
            },
        }
    }
}

fn text(bytes: Cow<'_, [u8]>) -> Result<Cow<'_, str>, Cow<'_, [u8]>> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes)
            .map(Cow::Borrowed)
            .map_err(|_| bytes.into()),
        Cow::Owned(bytes) => String::from_utf8(bytes)
            .map(Cow::Owned)
            .map_err(|error| error.into_bytes().into()),
    }
}

pub(crate) fn sha256(body: &[u8]) -> String {
    format!("{:x}", Sha256::digest(body))
}

/// From one instant to another, in milliseconds to three decimals; an answer that began before its
/// request was whole took no time.
pub(super) fn milliseconds(from_ns: u64, to_ns: u64) -> f64 {
    let microseconds = to_ns.saturating_sub(from_ns).saturating_add(500) / 1000;
    microseconds as f64 / 1000.0
}

/// The trace id of a `traceparent` (W3C Trace Context, 3.2.2): version, trace id, parent id and
/// flags in lower-case hexadecimal; all zeros are no trace.
fn trace_id(traceparent: Cow<'_, str>) -> Option<Cow<'_, str>> {
    let hexadecimal = |part: &str, length: usize| {
        let digits = part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        part.len() == length && digits
    };
    let mut parts = traceparent.trim().split('-');
    let version = parts.next().filter(|part| hexadecimal(part, 2))?;
    let trace = parts.next().filter(|part| hexadecimal(part, 32))?;
    parts.next().filter(|part| hexadecimal(part, 16))?;
    parts.next().filter(|part| hexadecimal(part, 2))?;
    let last = version == "00" && parts.next().is_some();
    let valid = version != "ff" && !last && trace.bytes().any(|b| b != b'0');
    valid.then(|| trace.to_owned().into())
}

fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT {
        return text;
    }
    let end = text.floor_char_boundary(MAX_TEXT);
    format!("{}…", &text[..end]).into()
}

/// A header that is no secret: what a request is called.
fn text_of<'a>(headers: &'a [Field], name: &str) -> Option<Cow<'a, str>> {
    Some(String::from_utf8_lossy(header(headers, name)?))
}

/// A path whose segments that look like tokens are `*`.
fn without_tokens(path: &str) -> Cow<'_, str> {
    if !path.split('/').any(is_token) {
        return path.into();
    }
    let segments = path.split('/');
    let shown = segments.map(|segment| if is_token(segment) { "*" } else { segment });
    shown.collect::<Vec<_>>().join("/").into()
}

/// Whether a segment of a path is most likely a secret: it begins as keys of well-known services and JSON web
/// tokens (RFC 7519) do, or has a long piece that no name of a model has, of hexadecimal digits or of letters of both
/// cases with digits.
fn is_token(segment: &str) -> bool {
    const PREFIXES: [&str; 9] = [
        "sk-", "pk-", "eyJ", "ghp_", "gho_", "glpat-", "hf_", "xoxb-", "AKIA",
    ];
    let is_key = PREFIXES.iter().any(|prefix| segment.starts_with(prefix));
    if is_key && segment.len() >= 16 {
        return true;
    }
    let mut pieces = segment.split(['-', '_', '.', ':', '@', '%']);
    pieces.any(|piece| {
        let has = |kind: fn(&u8) -> bool| piece.as_bytes().iter().any(kind);
        let is_hex = piece.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_mixed = has(u8::is_ascii_lowercase) && has(u8::is_ascii_uppercase);
        has(u8::is_ascii_digit) && (is_hex && piece.len() >= 32 || is_mixed && piece.len() >= 20)
    })
}

/// The path of a request target: without scheme and authority and what looks like a token, and of the query only
/// the names, since its values are often keys and never covered by `redact_fields`.
fn path(target: &str) -> Cow<'_, str> {
    let origin_form = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
            rest.find(['/', '?']).map_or("/", |start| &rest[start..])
        }
        _ => target,
    };
    let (path, query) = match origin_form.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin_form, None),
    };
    let path = without_tokens(path);
    let Some(query) = query else {
        return cut(path);
    };
    let mut written = format!("{path}?");
    for (index, parameter) in query.split('&').enumerate() {
        if index > 0 {
            written.push('&');
        }
        match parameter.split_once('=') {
            Some((name, "")) => written.extend([name, "="]),
            Some((name, _)) => written.extend([name, "=*"]),
            None if parameter.is_empty() => {}
            None => written.push('*'),
        }
    }
    cut(Cow::<str>::Owned(written).into_owned().into())
}
