//! One line of the records: written by the recorder, read by the report. `docs/reference/records.md` explains
//! the fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::compare::{Values, Verdict};

/// One exchange.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record<'a> {
    /// Ours; the shadow got it as `x-modelmirror-id`.
    pub id: uuid::Uuid,
    /// The trace that the client's `traceparent` names (W3C Trace Context).
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<Cow<'a, str>>,
    /// The client's `x-request-id`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Cow<'a, str>>,
    /// When the agent saw the request (RFC 3339, UTC).
    pub time: jiff::Timestamp,
    /// The service's name.
    #[serde(borrow)]
    pub service: Cow<'a, str>,
    /// What the request is sliced by.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub slice: Option<Cow<'a, str>>,
    /// The client's end.
    pub client: SocketAddr,
    /// The request's method.
    #[serde(borrow)]
    pub method: Cow<'a, str>,
    /// The request's path; values in its query are not written.
    #[serde(borrow)]
    pub path: Cow<'a, str>,
    /// Which version answered in production: `stable` or `canary`.
    #[serde(borrow)]
    pub arm: Cow<'a, str>,
    /// The request.
    #[serde(borrow)]
    pub request: RequestPart<'a>,
    /// Production's answer.
    #[serde(borrow)]
    pub production: Answer<'a>,
    /// The shadow's answer, or its `error`.
    #[serde(borrow)]
    pub shadow: Answer<'a>,
    /// What the comparison came to.
    pub verdict: Verdict,
    /// The same of production's answer and that of a copy of its version, where that was asked too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Verdict>,
    /// The same of the shadow's answer and its second one, where it was asked twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Verdict>,
    /// 1 = equal, 0 = nothing alike.
    pub score: f64,
    /// The difference that was named.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Cow<'a, str>>,
    /// Where answers that are both JSON differ: pointers with `*` for every index, and what differs there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differing: Option<Cow<'a, BTreeMap<String, Values>>>,
    /// Whether they differ in more places than these.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub differing_more: bool,
}

/// The request of a [`Record`].
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestPart<'a> {
    /// Length of the body, in bytes.
    pub bytes: u64,
    /// SHA-256 of the body, in hexadecimal.
    #[serde(borrow)]
    pub sha256: Cow<'a, str>,
    /// Headers and body, where the policy asks for them.
    #[serde(flatten)]
    pub payload: Payload<'a>,
}

/// One leg's answer in a [`Record`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer<'a> {
    /// The version that answered.
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    /// The status code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Length of the body, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// SHA-256 of the body, in hexadecimal.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Cow<'a, str>>,
    /// From the last byte of the request to the first byte of the answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_ms: Option<f64>,
    /// From the last byte of the request to the last byte of the answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    /// What the model said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Cow<'a, Value>>,
    /// Why there is no answer: `connect`, `timeout`, `closed`, `malformed`, `too_large`.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'a, str>>,
    /// Headers and body, where the policy asks for them.
    #[serde(flatten)]
    pub payload: Payload<'a>,
}

/// Headers and body of a message, redacted.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Payload<'a> {
    /// Header fields by name in lower case; fields of one name are joined by a comma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    /// The body, where it is UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Cow<'a, str>>,
    /// The body, where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<Cow<'a, str>>,
    /// Why the body is left out although the policy asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_withheld: Option<Cow<'a, str>>,
}
