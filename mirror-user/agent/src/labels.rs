//! Labels: what turned out to be right, known hours after both versions were asked. `docs/how-to/join-labels.md`
//! says it for users.
//!
//! ```text
//!   file ── decode ──> id, label ──┐
//!                                  ├── join ──> who was right
//!   records ── id, predictions ────┘
//! ```
//!
//! Pure but for [`mod@file`].

pub mod decode;
pub mod file;
pub mod join;
mod label;

use sha2::{Digest as _, Sha256};

pub use self::decode::{BadLine, Decoder, Unusable};
pub use self::join::{Join, Joined, Unused};
pub use self::label::{Label, is_right};

/// A correlation id, as a digest: each takes the same room, whatever clients make up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; 16]);

impl Id {
    /// The id that a label or a record names, white space around it left out.
    pub fn of(text: &str) -> Self {
        let mut id = [0; 16];
        id.copy_from_slice(&Sha256::digest(text.trim())[..16]);
        Self(id)
    }
}
