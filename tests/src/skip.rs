//! Tests that cannot run here say so, and `cargo xtask test` counts them.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;

/// Names the file that skipped tests are written to, a line each: the test, a tab, why.
const SKIPPED: &str = "MODELMIRROR_SKIPPED";

/// Says that the test which calls it, or a part of that, cannot run here.
///
/// # Panics
/// Where `CI` is set: there, a test that cannot run is a failure.
#[track_caller]
pub fn skip(why: impl Display) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{why}; CI is set: it may not be skipped"
    );
    eprintln!("skipped: {why}");
    let Some(path) = std::env::var_os(SKIPPED) else {
        return;
    };
    // The test runners name a test's thread after it.
    let thread = std::thread::current();
    let line = format!("{}\t{why}\n", thread.name().unwrap_or("a test"));
    let file = OpenOptions::new().append(true).create(true).open(path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(
        written.is_ok(),
        "cannot write that it is skipped: {written:?}"
    );
}
