//! What kernel memory maps take, held against what the host has.

use bytesize::ByteSize;
use procfs::{Current as _, Meminfo};

use mirror_base::check::Finding;

/// The host's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) available: u64,
}

impl Memory {
    /// This host's; nothing where the kernel does not tell.
    pub(super) fn of_host() -> Option<Self> {
        let found = Meminfo::current().ok()?;
        Some(Self {
            total: found.mem_total,
            available: found.mem_available.unwrap_or(found.mem_free),
        })
    }

    /// What taking `bytes` means here; `what` says what for, and how many.
    pub(super) fn price(self, about: &str, what: &str, bytes: u64, cure: &str) -> Finding {
        if bytes > self.total {
            let total = shown(self.total);
            return Finding::refuse(about, format!("{what}; the host has {total}"), cure);
        }
        if bytes > self.available {
            let free = shown(self.available);
            return Finding::warn(about, format!("{what}; only {free} are free now"), cure);
        }
        Finding::ok(about, what)
    }
}

/// `24.5 MiB`
pub(super) fn shown(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_base::check::Level;

    #[test]
    fn what_the_host_lacks_is_refused_and_what_is_not_free_is_warned_of() {
        let host = Memory {
            total: 1 << 30,
            available: 1 << 20,
        };
        let check = |bytes, level, words: &str| {
            let finding = host.price("ring", "takes it", bytes, "take less");
            assert_eq!((finding.level, finding.what.as_str()), (level, words));
        };
        check(1 << 20, Level::Ok, "takes it");
        check(2 << 20, Level::Warn, "takes it; only 1.0 MiB are free now");
        check(2 << 30, Level::Refuse, "takes it; the host has 1.0 GiB");
    }
}
