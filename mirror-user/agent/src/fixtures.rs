//! For tests: configs that differ from the usual in one thing.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mirror_wire::fixtures::{empty_response, request};
use mirror_wire::message::ExchangeId;

use super::replay::{Answered, Job};
use crate::config;

/// An agent on loopback that listens to loopback, without services.
pub(crate) fn shadow() -> config::Shadow {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config::Shadow {
        listen: any,
        vxlan: None,
        admin: any,
        key_file: "/nonexistent".into(),
        control_socket: "/nonexistent/control.sock".into(),
        taps: Vec::new(),
        insecure: true,
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        record_dir: "/nonexistent".into(),
        record_limit: 1 << 30,
        memory: 64 << 20,
        batch_interval: Duration::from_micros(500),
        services: Vec::new(),
    }
}

/// A service that is shadowed by `target`.
pub(crate) fn service(id: u32, target: SocketAddr) -> config::ShadowService {
    config::ShadowService {
        name: format!("service-{id}"),
        id,
        addresses: Vec::new(),
        target,
        control: None,
        host: config::HostHeader::Keep,
        version: "v13".into(),
        timeout: Duration::from_secs(5),
        incomplete_after: Duration::from_secs(30),
        concurrency: 64,
        queue: 1024,
        max_body: 64 << 20,
        requests: config::Requests::default(),
        compare: config::Compare {
            prediction: None,
            slice: None,
            slices: Vec::new(),
            ignore: Vec::new(),
            absolute: 1e-6,
            relative: 1e-4,
        },
        record: config::Record {
            payloads: config::Payloads::None,
            sample: 0.01,
            headers: Vec::new(),
            redact_fields: Vec::new(),
        },
        labels: None,
    }
}

/// A request that the shadow answered with `status`.
pub(crate) fn answered(exchange: ExchangeId, status: u16) -> Answered {
    Answered {
        job: Job {
            exchange,
            id: uuid::Uuid::nil(),
            request: request("GET", "/"),
        },
        written_ns: 0,
        shadow: Ok(empty_response(status)),
    }
}
