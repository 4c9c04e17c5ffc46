//! What the fuzzer feeds.

use std::path::Path;

use mirror_base::config::Report;

/// Any text as the node's config: it is read, or what is said of it can be shown.
pub fn config(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Err(problems) = crate::config::node(text)
    {
        let said = Report::new(Path::new("node.toml"), text, problems).to_string();
        assert!(!said.is_empty());
    }
}
