//! How an agent knows its own requests, wherever they come back to it: by a mark that nobody else can make.
//!
//! The fixed header tells servers that a request is a copy. It is nobody's proof: clients could send it too,
//! and keep their requests from the new version.

use std::hash::{BuildHasher as _, RandomState};

use mirror_common::siphash::siphash;
use uuid::Uuid;

use super::message::Field;

/// Carries the marks of all agents that a request came by.
pub const MARK_HEADER: &str = "x-modelmirror-mark";

/// The key of one agent's marks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mark([u64; 2]);

/// Not the key.
impl std::fmt::Debug for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mark")
    }
}

impl Mark {
    /// One that no agent had before: of the system's random numbers.
    #[expect(clippy::new_without_default, reason = "each one is another")]
    pub fn new() -> Self {
        Self([
            RandomState::new().hash_one(0),
            RandomState::new().hash_one(1),
        ])
    }

    /// What is written on the request with this id: SipHash-2-4 of it.
    pub fn of(self, id: Uuid) -> String {
        let (high, low) = id.as_u64_pair();
        let mac = siphash::<2, 4, 2>(self.0, &[high, low]);
        format!("{}-{mac:016x}", id.simple())
    }

    /// Whether a request has come by this agent before.
    pub fn is_on(self, fields: &[Field]) -> bool {
        let named = |field: &&Field| field.name.eq_ignore_ascii_case(MARK_HEADER.as_bytes());
        let mut values = fields
            .iter()
            .filter(named)
            .flat_map(|field| field.value.split(|&byte| byte == b','));
        values.any(|value| self.made(value.trim_ascii()).is_some())
    }

    fn made(self, value: &[u8]) -> Option<()> {
        let (id, _) = std::str::from_utf8(value).ok()?.split_once('-')?;
        let expected = self.of(Uuid::try_parse(id).ok()?);
        // Whoever compares in this way takes the same time whichever byte differs.
        let differs = expected.len() != value.len()
            || expected
                .bytes()
                .zip(value)
                .fold(0, |all, (a, b)| all | (a ^ b))
                != 0;
        (!differs).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::fields;

    #[test]
    fn only_its_own_marks_are_known() {
        let (mark, other) = (Mark::new(), Mark::new());
        let own = mark.of(Uuid::now_v7());
        let check = |value: &str, expected| {
            let fields = fields(&[("host", "a"), ("X-ModelMirror-Mark", value)]);
            assert_eq!(mark.is_on(&fields), expected, "{value}");
        };
        check(&own, true);
        check(&format!("{} , {own}", other.of(Uuid::nil())), true);
        check(&other.of(Uuid::now_v7()), false);
        check(&own[..own.len() - 1], false);
        check(&own.replace('-', ""), false);
        for forged in [
            "",
            "1",
            "-",
            "0-0",
            "00000000000000000000000000000000-0000000000000000",
        ] {
            check(forged, false);
        }
        assert!(!mark.is_on(&fields(&[("x-modelmirror-shadow", "1")])));
    }
}
