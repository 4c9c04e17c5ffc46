//! Either config file, for commands that take both.

use std::path::Path;

use mirror_agent::config::{Shadow, shadow};
use mirror_base::config::{Error, Kind, kind_of, read};
use mirror_node::config::{Node, node};

/// Either file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum File {
    /// The inference node's.
    Node(Node),
    /// The shadow host's.
    Shadow(Shadow),
}

/// Reads a file of the given kind, or of the kind that its keys tell.
///
/// # Errors
/// When it cannot be read, and with every problem that was found in it.
pub(crate) fn read_either(file: &Path, kind: Option<Kind>) -> Result<File, Error> {
    read(file, |text| match kind.unwrap_or_else(|| kind_of(text)) {
        Kind::Node => node(text).map(File::Node),
        Kind::Shadow => shadow(text).map(File::Shadow),
    })
}

/// The file of one host with every key at its default, and an example where a key has none.
pub(crate) const fn default_text(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => mirror_node::config::DEFAULT,
        Kind::Shadow => mirror_agent::config::DEFAULT,
    }
}

#[cfg(test)]
mod tests;
