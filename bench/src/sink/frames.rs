//! The tap's frames, as far as something has to be said to them.

use anyhow::Result;
use mirror_base::transport::frame::{
    HEADER_LENGTH, Header, Kind, PREFACE, Position, Positions, VERSION, Welcome, message,
};

/// Frames that come in pieces; their bodies are skipped.
pub(super) struct Frames {
    /// What has come of the next header.
    header: Vec<u8>,
    /// Bytes to skip before it.
    skip: usize,
    /// How far each lane's records have come in this round.
    positions: Vec<Position>,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: Vec::new(),
            skip: PREFACE.len(),
            positions: Vec::new(),
        }
    }
}

impl Frames {
    /// Takes what has come in; returns what is to be said to it.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>> {
        let mut said = Vec::new();
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            let rest = &bytes[skipped..];
            let (part, rest) = rest.split_at((HEADER_LENGTH - self.header.len()).min(rest.len()));
            self.header.extend_from_slice(part);
            let Ok(header) = <&[u8; HEADER_LENGTH]>::try_from(&self.header[..]) else {
                return Ok(said);
            };
            let header = Header::decode(header)?;
            self.header.clear();
            self.skip = header.length as usize;
            self.on_frame(&header, &mut said);
            bytes = rest;
        }
    }

    fn on_frame(&mut self, header: &Header, said: &mut Vec<u8>) {
        match header.kind {
            Kind::Hello => {
                let welcome = Welcome {
                    version: VERSION,
                    program: "sink".to_owned(),
                    tap: 1,
                    name: "node".to_owned(),
                    lanes: Vec::new(),
                };
                said.extend(message(Kind::Welcome, &welcome));
            }
            Kind::Records => {
                let (lane, position) = (header.lane, header.position + u64::from(header.length));
                self.positions.retain(|known| known.lane != lane);
                self.positions.push(Position { lane, position });
            }
            Kind::Round => {
                said.extend(Positions::encode(&self.positions));
                self.positions.clear();
            }
            Kind::Report => {
                let mut echo = Header::new(Kind::Echo, 0);
                (echo.position, echo.until_ns) = (header.position, header.until_ns);
                said.extend(echo.encode());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_answered_however_they_are_cut() {
        let mut records = Header::new(Kind::Records, 100);
        (records.lane, records.position) = (1, 1000);
        let mut report = Header::new(Kind::Report, 2);
        (report.position, report.until_ns) = (3, 4);
        let mut bytes = PREFACE.to_vec();
        bytes.extend(Header::new(Kind::Hello, 5).encode());
        bytes.extend([0; 5]);
        for _ in 0..2 {
            bytes.extend(records.encode());
            bytes.extend([0; 100]);
        }
        bytes.extend(Header::new(Kind::Round, 0).encode());
        bytes.extend(report.encode());
        bytes.extend(*b"{}");
        let whole = Frames::default().take(&bytes).unwrap();
        let (lane, position) = (1, 1100);
        let mut end = Positions::encode(&[Position { lane, position }]);
        let mut echo = Header::new(Kind::Echo, 0);
        (echo.position, echo.until_ns) = (3, 4);
        end.extend(echo.encode());
        assert!(whole.ends_with(&end));
        for length in [1, 7, 24, 50] {
            let mut frames = Frames::default();
            let pieces = bytes.chunks(length);
            let said: Vec<u8> = pieces
                .flat_map(|piece| frames.take(piece).unwrap())
                .collect();
            assert_eq!(said, whole, "pieces of {length} bytes");
        }
    }
}
