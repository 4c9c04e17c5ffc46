//! Both files with every key, its default and what it means.

use super::Kind;

/// The file of one host with every key at its default, and an example where a key has none.
pub fn default_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => include_str!("node.toml"),
        Kind::Shadow => include_str!("shadow.toml"),
    }
}
