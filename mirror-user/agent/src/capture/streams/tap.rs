//! One tap's connection: bytes in, ordered records and reports out. Pure.

use bytes::Bytes;
use mirror_api::tap_report::TapReport;

use super::error::{Refusal, Refused};
use super::frames::{Frames, Part};
use super::order::{Copied, Order};
use mirror_base::transport::frame::Kind;

/// What a tap has said.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// Records, the oldest first.
    Copies(Vec<Copied>),
    /// A report.
    Report(Reported),
    /// It stops for good.
    Bye,
}

/// A report, and what its echo says.
#[derive(Debug, PartialEq)]
pub struct Reported {
    /// Its number.
    pub number: u64,
    /// When it was sent, on the tap's clock.
    pub sent_ns: u64,
    /// What it says.
    pub report: TapReport,
    /// What it takes in memory, in bytes, about.
    pub cost: usize,
}

/// Takes in what was read together.
///
/// # Errors
/// When it is not what a tap says; nothing more of this connection can be understood.
pub fn take(
    frames: &mut Frames,
    order: &mut Order,
    mut bytes: Bytes,
) -> (Vec<Said>, Result<(), Refused>) {
    let mut said = Vec::new();
    let mut copies = Vec::new();
    let result = loop {
        match frames.next(&mut bytes) {
            Ok(Some(part)) => {
                if let Err(refusal) = take_part(order, part, &mut copies, &mut said) {
                    break Err(refusal);
                }
            }
            Ok(None) => break Ok(()),
            Err(broken) => break Err(broken.into()),
        }
    };
    order.release_old(&mut copies);
    flush(&mut copies, &mut said);
    (said, result)
}

fn take_part(
    order: &mut Order,
    part: Part,
    copies: &mut Vec<Copied>,
    said: &mut Vec<Said>,
) -> Result<(), Refused> {
    let (header, body) = match part {
        Part::Records {
            lane,
            position,
            more,
            bytes,
        } => {
            return Ok(order.records(lane, position, more, bytes)?);
        }
        Part::Message(header, body) => (header, body),
    };
    match header.kind {
        Kind::Round => order.round(header.until_ns, copies),
        Kind::Report => {
            let report =
                TapReport::parse(&body).map_err(|error| Refusal::BadReport.because(error))?;
            flush(copies, said);
            said.push(Said::Report(Reported {
                number: header.position,
                sent_ns: header.until_ns,
                report,
                // A service has at least a hundred bytes of JSON, and a lane thirty.
                cost: 2 * body.len(),
            }));
        }
        Kind::Bye => {
            order.release_all(copies);
            flush(copies, said);
            said.push(Said::Bye);
        }
        kind => {
            let what = format!("{kind:?} in the middle of a connection");
            return Err(Refusal::BadFrame.because(what));
        }
    }
    Ok(())
}

fn flush(copies: &mut Vec<Copied>, said: &mut Vec<Said>) {
    if !copies.is_empty() {
        said.push(Said::Copies(std::mem::take(copies)));
    }
}

#[cfg(test)]
mod tests;
