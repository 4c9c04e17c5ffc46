//! What `mirror-ebpf`, which is no member of the workspace, keeps to all the same.

use std::collections::BTreeMap;
use std::fs;

use toml::Table;

use crate::imports::of_crate;
use crate::process;

/// Modules import from rows of the table in `main.rs` above their own: nobody knows who uses it.
#[test]
fn modules_of_the_ebpf_crate_import_one_way() {
    let folder = process::root().join("mirror-ebpf/src");
    let main = fs::read_to_string(folder.join("main.rs")).unwrap();
    let mut rows = BTreeMap::new();
    let table = main.lines().filter_map(|line| line.strip_prefix("//! | `"));
    for (row, line) in table.enumerate() {
        let (names, _) = line.split_once("` |").unwrap();
        rows.extend(names.split("`, `").map(|name| (name.to_owned(), row)));
    }
    let (mut right, mut wrong) = (0, Vec::new());
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "main" {
            continue;
        }
        let Some(own) = rows.get(&name) else {
            wrong.push(format!("{name} stands in no row"));
            continue;
        };
        for import in of_crate(&fs::read_to_string(&path).unwrap()) {
            if rows.get(&import).is_some_and(|row| row < own) {
                right += 1;
            } else {
                wrong.push(format!("{name} imports {import}, which is not above it"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(right > 50, "only {right} imports were found");
}

#[test]
fn lints_of_the_ebpf_crate_are_the_workspace_s() {
    let read = |path| -> Table {
        let text = fs::read_to_string(process::root().join(path)).unwrap();
        text.parse().unwrap()
    };
    let (workspace, ebpf) = (read("Cargo.toml"), read("mirror-ebpf/Cargo.toml"));
    assert_eq!(workspace["workspace"]["lints"], ebpf["lints"]);
}
