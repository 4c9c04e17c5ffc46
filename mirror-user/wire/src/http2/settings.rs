//! What an end of a connection asks of the other one (RFC 9113, section 6.5).

use std::collections::VecDeque;

use super::frame::{DEFAULT_SIZE, MAX_SIZE};

/// The most settings that wait for their acknowledgement: nobody sends so many.
const MAX_PENDING: usize = 64;

/// Those that frames and field blocks depend on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) table_size: Option<u32>,
    pub(super) frame_size: Option<u32>,
}

impl Settings {
    /// Those of a frame's payload. The last one of a kind counts.
    pub(super) fn parse(payload: &[u8]) -> Result<Self, &'static str> {
        let mut settings = Self::default();
        let (known, _) = payload.as_chunks::<6>();
        for &[high, low, value @ ..] in known {
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([high, low]) {
                1 => settings.table_size = Some(value),
                5 if !(DEFAULT_SIZE..=MAX_SIZE).contains(&value) => {
                    return Err("a frame's limit that is out of bounds");
                }
                5 => settings.frame_size = Some(value),
                _ => {}
            }
        }
        Ok(settings)
    }
}

/// What the sender of a direction is bound by: it goes by what its peer asked for from when it says so.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Unknown where something was missed.
    agreed: (Option<u32>, Option<u32>),
    pending: VecDeque<Settings>,
}

impl Bounds {
    pub(super) fn new() -> Self {
        let table_size = super::hpack::DEFAULT_SIZE as u32;
        Self {
            agreed: (Some(table_size), Some(DEFAULT_SIZE)),
            pending: VecDeque::new(),
        }
    }

    /// Nothing is known of them.
    pub(super) fn forget(&mut self) {
        self.agreed = (None, None);
        self.pending.clear();
    }

    /// Its peer asks for this.
    pub(super) fn ask(&mut self, settings: Settings) {
        if self.pending.len() >= MAX_PENDING {
            self.forget();
        }
        self.pending.push_back(settings);
    }

    /// It goes by the oldest of what it was asked for. One that this reader has not seen may be anything.
    pub(super) fn acknowledge(&mut self) {
        match self.pending.pop_front() {
            Some(asked) => {
                let (table, frame) = &mut self.agreed;
                *table = asked.table_size.or(*table);
                *frame = asked.frame_size.or(*frame);
            }
            None => self.forget(),
        }
    }

    /// The most that its encoder may use; nothing where that is not known.
    pub(super) fn table_size(&self) -> Option<u32> {
        let pending = self.pending.iter().filter_map(|asked| asked.table_size);
        pending
            .max()
            .max(self.agreed.0)
            .filter(|_| self.agreed.0.is_some())
    }

    /// The largest payload that it may send.
    pub(super) fn frame_size(&self) -> u32 {
        let pending = self.pending.iter().filter_map(|asked| asked.frame_size);
        let pending = pending.max().unwrap_or(0);
        self.agreed.1.map_or(MAX_SIZE, |agreed| agreed.max(pending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_counts_once_it_is_acknowledged() {
        let mut bounds = Bounds::new();
        let ask = |table, frame| Settings {
            table_size: table,
            frame_size: frame,
        };
        bounds.ask(ask(Some(0), Some(20_000)));
        bounds.ask(ask(Some(100), None));
        assert_eq!(
            (bounds.table_size(), bounds.frame_size()),
            (Some(4_096), 20_000)
        );
        bounds.acknowledge();
        assert_eq!(
            (bounds.table_size(), bounds.frame_size()),
            (Some(100), 20_000)
        );
        bounds.ask(ask(None, Some(DEFAULT_SIZE)));
        bounds.acknowledge();
        bounds.acknowledge();
        assert_eq!(
            (bounds.table_size(), bounds.frame_size()),
            (Some(100), DEFAULT_SIZE)
        );
        // Of settings that were not seen.
        bounds.acknowledge();
        assert_eq!((bounds.table_size(), bounds.frame_size()), (None, MAX_SIZE));
    }

    #[test]
    fn settings_are_read() {
        let payload = [
            0, 1, 0, 0, 16, 0, 0, 3, 0, 0, 0, 100, 0, 5, 0, 0, 64, 0, 0, 1, 0, 0, 0, 9,
        ];
        let expected = Settings {
            table_size: Some(9),
            frame_size: Some(16_384),
        };
        assert_eq!(Settings::parse(&payload), Ok(expected));
        assert!(Settings::parse(&[0, 5, 0, 0, 0, 1]).is_err());
    }
}
