//! Files with secrets: for who reads them alone.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use nix::unistd::Uid;

/// Why a file is no place for a secret: others may read or write it. Its group may read it where another user
/// owns it, since that is how it can be read at all: volumes of Kubernetes' secrets are so.
pub fn exposed(about: &Metadata) -> Option<String> {
    exposed_to(about.mode(), about.uid() == Uid::effective().as_raw())
}

fn exposed_to(mode: u32, is_own: bool) -> Option<String> {
    let forbidden = if is_own { 0o077 } else { 0o037 };
    let whom = match mode & forbidden {
        0 => return None,
        bits if bits & 0o007 != 0 => "everybody",
        _ => "its group",
    };
    Some(format!("is open to {whom} (mode {:04o})", mode & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_reader_s_alone() {
        let check = |mode, is_own, expected: Option<&str>| {
            assert_eq!(exposed_to(mode, is_own).as_deref(), expected);
        };
        check(0o100_600, true, None);
        check(0o100_400, true, None);
        check(0o100_640, true, Some("is open to its group (mode 0640)"));
        check(0o100_440, false, None);
        check(0o100_460, false, Some("is open to its group (mode 0460)"));
        check(0o100_444, false, Some("is open to everybody (mode 0444)"));
    }
}
