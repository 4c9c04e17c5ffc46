//! Exchanges for tests.

use bytes::Bytes;
use mirror_common::tunnel::Arm;
use mirror_wire::fixtures::{JSON, fields, response};
use mirror_wire::memory::Memory;
use mirror_wire::message::{Exchange, Request, Response, ShadowError, Version};

use crate::config;

/// An exchange with a small JSON request; the request ends at 5 ms, the shadow's at 6 ms.
pub(crate) fn exchange(production: Response, shadow: Result<Response, ShadowError>) -> Exchange {
    Exchange {
        id: uuid::Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
        time: "2026-11-22T03:00:00.25Z".parse().unwrap(),
        client: "10.0.0.7:41000".parse().unwrap(),
        request: Request {
            method: "POST".into(),
            target: "/v2/models/sentiment/infer".into(),
            version: Version::Http11,
            headers: fields(JSON),
            body: Bytes::from_static(br#"{"user":{"tenant":"acme"},"text":"fine"}"#),
            chunked: false,
            trailers: Vec::new(),
            first_byte_ns: 4_000_000,
            last_byte_ns: 5_000_000,
            late: false,
            saturated: false,
            lease: Memory::new(1 << 30).lease(0).unwrap(),
        },
        arm: Arm::Stable,
        production_version: "v12".into(),
        production,
        shadow_request_ns: 6_000_000,
        shadow,
    }
}

pub(crate) fn json_exchange(production: &str, shadow: &str) -> Exchange {
    let answer = |body: &str| response(200, JSON, body.as_bytes());
    exchange(answer(production), Ok(answer(shadow)))
}

pub(crate) fn compare_config() -> config::Compare {
    config::Compare {
        prediction: None,
        slice: None,
        slices: Vec::new(),
        ignore: Vec::new(),
        absolute: 0.0,
        relative: 0.0,
    }
}

pub(crate) fn record_config() -> config::Record {
    config::Record {
        payloads: config::Payloads::None,
        sample: 0.0,
        headers: Vec::new(),
        redact_fields: Vec::new(),
    }
}
