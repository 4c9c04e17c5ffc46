//! One agent's connection as the sender sees it: which bytes of the rings go out next, and which are
//! never needed again.
//!
//! Bytes stay in the ring until the agent has acknowledged them, so a broken connection costs none.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::Arc;

use mirror_api::tap_report::{LaneSent, TapReport};

use super::pipe::Pipe;
use crate::dataplane::Ring;
use mirror_base::transport::frame::{
    Header, Kind, LONGEST_STRETCH, Position, Positions, Refused, split,
};

/// Reports that may wait to be written; while the socket takes nothing, newer ones say more.
const WAITING_REPORTS: usize = 2;

/// What still has to be written, in this order.
#[derive(Debug)]
enum Chunk {
    /// Made into bytes when its turn comes.
    Report(Box<TapReport>),
    Bytes(Vec<u8>),
    Ring {
        lane: u16,
        from: u64,
        to: u64,
    },
}

/// What an agent has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It has taken in the report that was sent then.
    Echo { sent_at_ns: u64 },
}

/// A connection that has been welcomed.
#[derive(Debug)]
pub(super) struct Upstream {
    pipe: Pipe,
    /// Nothing where copies do not travel in this connection.
    ring: Option<Arc<Ring>>,
    /// How far each lane's ring has been put into `queue`.
    planned: Vec<u64>,
    queue: VecDeque<Chunk>,
    /// Bytes of the first chunk that have been written.
    written: usize,
    input: Vec<u8>,
    /// Whether the agent has been sent a report: records of services that it does not know yet would be
    /// of no version.
    introduced: bool,
    /// Bytes of rings that were written.
    pub(super) shipped: u64,
    farewell: Farewell,
}

/// How far the tap has come with leaving the agent.
#[derive(Debug)]
enum Farewell {
    /// It stays.
    No,
    /// This report is the last one, and goes out behind what the rings hold.
    Wanted(Box<TapReport>),
    /// The last report was sent at this time, and its echo is awaited.
    Said(u64),
    /// The agent has taken everything in.
    Heard,
}

impl Upstream {
    /// Goes on where the agent says, or else at the oldest byte that is kept.
    pub(super) fn new(pipe: Pipe, ring: Option<Arc<Ring>>, welcome: &[Position]) -> Self {
        let mut planned = Vec::new();
        if let Some(ring) = &ring {
            for Position { lane, position } in welcome {
                if *lane < ring.lanes() {
                    ring.release(*lane, *position);
                }
            }
            planned = (0..ring.lanes()).map(|lane| ring.tail(lane)).collect();
        }
        Self {
            pipe,
            ring,
            planned,
            queue: VecDeque::new(),
            written: 0,
            input: Vec::new(),
            introduced: false,
            shipped: 0,
            farewell: Farewell::No,
        }
    }

    /// The connection, to wait for it.
    pub(super) fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// Whether something has still to be written.
    pub(super) fn is_blocked(&self) -> bool {
        !self.queue.is_empty() || self.pipe.is_full()
    }

    /// The ring, while it is read through this connection.
    pub(super) fn ring(&self) -> Option<&Ring> {
        self.ring.as_deref()
    }

    /// Has the tap ring with the next record.
    pub(super) fn sleep(&self) {
        if let Some(ring) = &self.ring {
            ring.sleep();
        }
    }

    /// Whether the ring holds what has not been planned, while nothing else has to be written.
    pub(super) fn has_more(&self) -> bool {
        let may_plan = !self.is_blocked() && self.introduced;
        let Some(ring) = self.ring.as_ref().filter(|_| may_plan) else {
            return false;
        };
        let heads = ring.heads().into_iter();
        heads
            .zip(&self.planned)
            .any(|(head, planned)| head > *planned)
    }

    /// Has a report sent as soon as what is under way has been written; left out where others wait.
    pub(super) fn report(&mut self, report: Box<TapReport>) {
        self.introduced = true;
        let reports = |chunk: &&Chunk| matches!(chunk, Chunk::Report(_));
        if self.queue.iter().filter(reports).count() < WAITING_REPORTS {
            self.queue.push_back(Chunk::Report(report));
        }
    }

    /// Has the tap leave the agent: what the rings hold is sent, then this report, and no more.
    pub(super) fn leave(&mut self, report: Box<TapReport>) {
        self.introduced = true;
        self.farewell = Farewell::Wanted(report);
    }

    /// Whether the agent has taken in that the tap leaves.
    pub(super) fn has_left(&self) -> bool {
        matches!(self.farewell, Farewell::Heard)
    }

    /// Plans a round of what the rings hold, or the farewell behind them, unless something is still under
    /// way. Says whether there is anything.
    pub(super) fn plan(&mut self, now_ns: u64) -> bool {
        if !self.plan_round(now_ns)
            && let Farewell::Wanted(report) = &self.farewell
        {
            let (report, bye) = (report.clone(), Header::new(Kind::Bye, 0));
            self.farewell = Farewell::Said(report.sent_at_ns);
            self.queue.push_back(Chunk::Report(report));
            self.queue.push_back(Chunk::Bytes(bye.encode().to_vec()));
        }
        !self.queue.is_empty()
    }

    fn plan_round(&mut self, now_ns: u64) -> bool {
        let may_plan = self.queue.is_empty() && self.introduced;
        let Some(ring) = self.ring.clone().filter(|_| may_plan) else {
            return !self.queue.is_empty();
        };
        let heads = ring.heads();
        let targets = round(&ring, &self.planned, &heads);
        let lanes = (0..).zip(self.planned.iter().zip(&targets));
        let mut lanes: Vec<(u64, u16)> = lanes
            .filter(|(_, (planned, target))| planned < target)
            .map(|(lane, (planned, _))| (ring.record_at(lane, *planned).0, lane))
            .collect();
        // Where the connection breaks in between, little has overtaken what comes by the next one.
        lanes.sort_unstable();
        for (_, lane) in lanes {
            let at = usize::from(lane);
            self.plan_lane(&ring, lane, heads[at], targets[at]);
        }
        if self.queue.is_empty() {
            return false;
        }
        let mut end = Header::new(Kind::Round, 0);
        end.until_ns = now_ns;
        self.queue.push_back(Chunk::Bytes(end.encode().to_vec()));
        true
    }

    fn plan_lane(&mut self, ring: &Ring, lane: u16, head: u64, target: u64) {
        while self.planned[usize::from(lane)] < target {
            let from = self.planned[usize::from(lane)];
            let (bytes, to) = ring.stretch(lane, from, target, target - from);
            if bytes.is_empty() {
                return;
            }
            let mut header = Header::new(Kind::Records, bytes.len());
            header.lane = lane;
            header.position = from;
            header.more = to == target && target < head;
            self.queue.push_back(Chunk::Bytes(header.encode().to_vec()));
            self.queue.push_back(Chunk::Ring { lane, from, to });
            self.planned[usize::from(lane)] = to;
        }
    }

    /// Writes until the socket takes no more. Says whether it took anything.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        let mut progress = false;
        while let Some(chunk) = self.queue.front_mut() {
            if let Chunk::Report(report) = chunk {
                *chunk = Chunk::Bytes(encode(report, self.ring.as_deref()));
            }
            let is_ring = matches!(chunk, Chunk::Ring { .. });
            let rest = match chunk {
                Chunk::Report(_) => continue,
                Chunk::Bytes(bytes) => &bytes[self.written..],
                Chunk::Ring { lane, from, to } => {
                    let Some(ring) = &self.ring else {
                        return Err(ErrorKind::InvalidData.into());
                    };
                    &ring.stretch(*lane, *from, *to, *to - *from).0[self.written..]
                }
            };
            let taken = self.pipe.write(rest)?;
            if taken == 0 && !rest.is_empty() {
                return Ok(progress);
            }
            progress = true;
            self.written += taken;
            if is_ring {
                self.shipped += taken as u64;
            }
            if taken == rest.len() {
                self.queue.pop_front();
                self.written = 0;
            }
        }
        self.pipe.flush()?;
        Ok(progress)
    }

    /// Takes in what the agent has said: what it acknowledges is given back to the tap.
    ///
    /// # Errors
    /// When the connection is broken, or the agent has closed it, with its reason if it gave one.
    pub(super) fn read(&mut self, said: &mut Vec<Said>) -> io::Result<()> {
        let came = self.pipe.read(&mut self.input);
        let mut used = 0;
        loop {
            let broken = |error| io::Error::new(ErrorKind::InvalidData, error);
            let Some((header, body, length)) = split(&self.input[used..]).map_err(broken)? else {
                break;
            };
            match header.kind {
                Kind::Ack => {
                    for Position { lane, position } in Positions::decode(body) {
                        self.acknowledge(lane, position);
                    }
                }
                Kind::Echo => {
                    let sent_at_ns = header.until_ns;
                    if matches!(self.farewell, Farewell::Said(last) if last == sent_at_ns) {
                        self.farewell = Farewell::Heard;
                    }
                    said.push(Said::Echo { sent_at_ns });
                }
                Kind::Refused => {
                    let refused =
                        serde_json::from_slice::<Refused>(body).map(|refused| refused.reason);
                    let reason = refused.unwrap_or_else(|_| "no reason given".to_owned());
                    return Err(io::Error::new(ErrorKind::ConnectionRefused, reason));
                }
                // Of a newer agent, or of none: nothing that changes what has to be sent.
                _ => {}
            }
            used += length;
        }
        self.input.drain(..used);
        came
    }

    fn acknowledge(&self, lane: u16, position: u64) {
        let Some(ring) = &self.ring else { return };
        let planned = self.planned.get(usize::from(lane)).copied();
        // More than was sent cannot have arrived.
        if let Some(planned) = planned {
            ring.release(lane, position.min(planned));
        }
    }
}

/// Up to where each lane's ring goes out in one round: as far as it is filled, or, where that is too much for
/// a round, the oldest records of all lanes. The agent then has none to hold back until older ones come.
fn round(ring: &Ring, planned: &[u64], heads: &[u64]) -> Vec<u64> {
    let mut left = LONGEST_STRETCH as u64;
    let waiting = heads.iter().zip(planned);
    if waiting.map(|(head, planned)| head - planned).sum::<u64>() <= left {
        return heads.to_vec();
    }
    let mut targets = planned.to_vec();
    let next = |lane: u16, from: u64| {
        (from < heads[usize::from(lane)]).then(|| {
            let (time_ns, to) = ring.record_at(lane, from);
            // An agent that acknowledges half a record gets nonsense, and no more than there is.
            Reverse((time_ns, lane, to.min(heads[usize::from(lane)])))
        })
    };
    let lanes = (0..).zip(planned);
    let mut oldest: BinaryHeap<_> = lanes.filter_map(|(lane, from)| next(lane, *from)).collect();
    while left > 0
        && let Some(Reverse((_, lane, to))) = oldest.pop()
    {
        let target = &mut targets[usize::from(lane)];
        left = left.saturating_sub(to - *target);
        *target = to;
        oldest.extend(next(lane, to));
    }
    targets
}

/// A report's frame. It counts what the rings have got by now, not when it was asked for: an agent that
/// has been sent more than a report says could not settle by it.
fn encode(report: &mut TapReport, ring: Option<&Ring>) -> Vec<u8> {
    if let Some(ring) = ring {
        report.lanes = LaneSent::of(&ring.sent_by_lane());
    }
    // Strings and numbers: there is nothing that JSON could refuse.
    let body = serde_json::to_vec(report).unwrap_or_default();
    let mut header = Header::new(Kind::Report, body.len());
    header.position = report.number;
    header.until_ns = report.sent_at_ns;
    let mut frame = header.encode().to_vec();
    frame.extend(body);
    frame
}

#[cfg(test)]
mod tests;
