//! Both ends of a connection, frame by frame.

pub(super) use super::super::frame::flag::{ACK, END_HEADERS, END_STREAM, PADDED, PRIORITY};
use super::super::hpack::tests::{Encoder, Form};
use super::*;

pub(super) const CLIENT: Direction = Direction::Request;
pub(super) const SERVER: Direction = Direction::Response;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RESET: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Both ends, each with its table.
pub(super) struct Talk {
    pub(super) client: Encoder,
    pub(super) server: Encoder,
}

impl Talk {
    pub(super) fn new() -> Self {
        Self {
            client: Encoder::new(),
            server: Encoder::new(),
        }
    }

    pub(super) fn block(&mut self, direction: Direction, fields: &[(&str, &str)]) -> Vec<u8> {
        let encoder = match direction {
            Direction::Request => &mut self.client,
            Direction::Response => &mut self.server,
        };
        let mut block = Vec::new();
        for (name, value) in fields {
            let field = (name.as_bytes(), value.as_bytes());
            encoder.field(field, Form::Indexed, true, &mut block);
        }
        block
    }

    pub(super) fn headers(
        &mut self,
        direction: Direction,
        stream: u32,
        end: bool,
        fields: &[(&str, &str)],
    ) -> Vec<u8> {
        let block = self.block(direction, fields);
        let flags = END_HEADERS | if end { END_STREAM } else { 0 };
        frame(HEADERS, flags, stream, &block)
    }

    pub(super) fn ask(&mut self, stream: u32, end: bool, path: &str) -> Vec<u8> {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            ("content-type", "a/b"),
        ];
        self.headers(CLIENT, stream, end, &fields)
    }

    pub(super) fn promise(&mut self, stream: u32, path: &str) -> Vec<u8> {
        let block = self.block(
            SERVER,
            &[(":method", "GET"), (":path", path), ("x-new", "1")],
        );
        let payload = [&[0, 0, 0, 2], &block[..]].concat();
        frame(PUSH_PROMISE, END_HEADERS, stream, &payload)
    }

    pub(super) fn answer(&mut self, stream: u32, end: bool) -> Vec<u8> {
        self.headers(SERVER, stream, end, &[(":status", "200"), ("server", "s")])
    }
}

pub(super) fn data(stream: u32, end: bool, text: &str) -> Vec<u8> {
    frame(
        DATA,
        if end { END_STREAM } else { 0 },
        stream,
        text.as_bytes(),
    )
}

/// A connection that was read from its first byte on.
pub(super) fn begun() -> Table {
    let mut table = Table::new(Connection::begun);
    table.feed(CLIENT, PREFACE);
    table.feed(CLIENT, &frame(SETTINGS, 0, 0, &[]));
    table.feed(SERVER, &frame(SETTINGS, 0, 0, &[]));
    table.feed(SERVER, &frame(SETTINGS, ACK, 0, &[]));
    table.feed(CLIENT, &frame(SETTINGS, ACK, 0, &[]));
    table
}

/// What became of each exchange, a line each.
pub(super) fn told(ledger: &Ledger) -> Vec<String> {
    let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
    let count = |fields: usize| match fields {
        0 => String::new(),
        count => format!(" +{count}"),
    };
    let lines = ledger.exchanges.values().map(|told| {
        let mut line = String::new();
        if let Some(request) = &told.request {
            let (body, trailers) = (text(&request.body), count(request.trailers.len()));
            line += &format!("{} {} {body}{trailers} ", request.method, request.target);
        }
        if let Some(response) = &told.response {
            let (body, trailers) = (text(&response.body), count(response.trailers.len()));
            line += &format!("= {} {body}{trailers}", response.status);
        }
        if let Some(dropped) = told.dropped {
            let by = dropped.by.map_or("", Direction::label);
            line += &format!("! {} {by}", dropped.reason.label());
        }
        line.trim_end().to_owned()
    });
    lines.collect()
}

#[track_caller]
pub(super) fn check(pieces: impl IntoIterator<Item = (Direction, Vec<u8>)>, expected: &[&str]) {
    let mut table = begun();
    for (direction, piece) in pieces {
        table.feed(direction, &piece);
    }
    assert_eq!(told(&table.finish()), expected);
}
