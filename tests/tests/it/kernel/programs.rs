//! Whether this kernel takes the programs at all.

use mirror_node::dataplane::{Sizes, load_each};
use tests::{Home, privileged};

/// Of the verifier's log, what says why.
const TAIL: usize = 12;

/// The daemon loads some of them when they are first needed, and goes on without: no other test would tell.
#[test]
fn every_program_loads_by_itself() {
    if !privileged() {
        return;
    }
    let home = Home::new().unwrap();
    let loaded = load_each(mirror_programs::OBJECT, home.pins(), Sizes::small(1024)).unwrap();
    assert_eq!(loaded.len(), 9, "{loaded:?}");
    let refused = loaded.into_iter().filter_map(|(name, loaded)| {
        let said = loaded.err()?;
        let lines: Vec<_> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        Some(format!("{name}:\n{tail}"))
    });
    let refused: Vec<_> = refused.collect();
    assert!(refused.is_empty(), "{}", refused.join("\n\n"));
}
