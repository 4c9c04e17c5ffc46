//! A failure of one part (a panic) is told and counted, and is not the end of the others: tasks and threads
//! end by themselves, and the daemon's loop goes on with what happens next.

use std::panic::{self, AssertUnwindSafe};

use mirror_api::plain;

use crate::metrics;

/// Has every panic logged and counted, from now on.
pub fn watch_for_panics() {
    panic::set_hook(Box::new(|panic| {
        metrics::panics().inc();
        let said = panic.payload_as_str().unwrap_or("no reason is known");
        let said = plain::line(said, 500);
        let at = panic.location().map(ToString::to_string);
        let at = at.unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("?");
        tracing::error!(
            thread,
            at,
            "a part of modelmirror has failed; please report it: {said}"
        );
    }));
}

/// Does this; nothing = it has panicked.
pub fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).ok()
}
