//! The clsact qdiscs that we have made: an empty directory beside the pins for each, so that whoever
//! detaches, a later process too, takes away ours and no others.

use std::fs;
use std::path::{Path, PathBuf};

use super::Interface;
use super::attach::link_name;
use crate::netlink::Netlink;

/// Where they are remembered, beside `links` and `maps`.
pub(super) const FOLDER: &str = "qdiscs";

fn mark(links: &Path, interface: &Interface) -> PathBuf {
    links
        .with_file_name(FOLDER)
        .join(link_name(interface, "clsact"))
}

/// Remembers that the interface's qdisc is ours.
pub(super) fn remember(links: &Path, interface: &Interface) {
    let _ = fs::create_dir_all(mark(links, interface));
}

/// Takes the interface's qdisc away if it is ours and nobody has a filter there.
pub(super) fn remove(links: &Path, interface: &Interface) {
    let mark = mark(links, interface);
    if mark.exists() && fs::remove_dir(&mark).is_ok() {
        remove_empty(interface.index);
    }
}

/// The same of all that are remembered in a layout's folder. Returns what was removed.
pub(super) fn remove_all(layout: &Path) -> Vec<String> {
    let folder = layout.join(FOLDER);
    let mut removed = Vec::new();
    for mark in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let name = mark.file_name().to_string_lossy().into_owned();
        let index = name.split('@').nth(1).and_then(|index| index.parse().ok());
        if fs::remove_dir(mark.path()).is_ok()
            && let Some(index) = index
            && remove_empty(index)
        {
            removed.push(format!("qdiscs/{name}"));
        }
    }
    let _ = fs::remove_dir(folder);
    removed
}

/// Says whether it is gone. What the kernel does not answer in this thread it does in one of its own: the
/// caller may be within a runtime.
fn remove_empty(index: u32) -> bool {
    let ask = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(runtime) = runtime else { return false };
        runtime.block_on(async {
            let Ok(netlink) = Netlink::open() else {
                return false;
            };
            netlink.remove_empty_clsact(index).await
        })
    };
    std::thread::spawn(ask).join().unwrap_or(false)
}
