//! What `mirror-ebpf`, which is no member of the workspace, keeps to all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use toml::Table;

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
        for import in imports(&fs::read_to_string(&path).unwrap()) {
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

/// The modules of its own crate that a source names.
fn imports(source: &str) -> BTreeSet<String> {
    let lines = source.lines();
    let code: Vec<_> = lines
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join(" ");
    let of_crate = code.split("crate::").skip(1).flat_map(|rest| {
        let mut depth = 0;
        let end = rest.find(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            depth == 0 && (c == ';' || c == '}' || !rest.starts_with('{'))
        });
        let named = &rest[..end.unwrap_or(rest.len())];
        let named = match named.strip_prefix('{') {
            // `a, b::C, d::{E, F}`: what stands behind `::` is no module of the crate's own.
            Some(list) => outermost(list),
            None => vec![rest],
        };
        named.into_iter().map(|path| {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let path = path.trim();
            path[..path.find(|c| !word(c)).unwrap_or(path.len())].to_owned()
        })
    });
    of_crate.filter(|name| !name.is_empty()).collect()
}

/// The parts of a list between its own commas.
fn outermost(list: &str) -> Vec<&str> {
    let mut depth = 0;
    list.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        depth == 0 && c == ','
    })
    .collect()
}

#[test]
fn imports_are_found() {
    let source =
        "//! crate::no\nuse crate::{a, b::C, d::{E, F}};\nuse crate::g;\nfn h() { crate::i::j() }";
    let found: Vec<_> = imports(source).into_iter().collect();
    assert_eq!(found, ["a", "b", "d", "g", "i"]);
}
