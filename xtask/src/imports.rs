//! Dependencies point one way: between crates as ARCHITECTURE.md's table says, and between a crate's modules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::process::root;

type Imports = BTreeMap<String, BTreeSet<String>>;

/// What the crate in this folder is called, and which of ours it imports outside of its tests.
fn manifest(folder: &Path) -> (String, BTreeSet<String>) {
    let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let name = table["package"]["name"].as_str().unwrap().to_owned();
    let dependencies = table.get("dependencies").and_then(toml::Value::as_table);
    let dependencies = dependencies.into_iter().flat_map(toml::Table::keys);
    let ours = dependencies.filter(|name| is_ours(name)).cloned();
    (name, ours.collect())
}

fn is_ours(name: &str) -> bool {
    name.starts_with("mirror-") || name == "modelmirror"
}

fn crates() -> Vec<PathBuf> {
    let user = fs::read_dir(root().join("mirror-user")).unwrap();
    let user = user.map(|entry| entry.unwrap().path());
    let kernel = ["mirror-common", "mirror-ebpf"].map(|name| root().join(name));
    user.chain(kernel).collect()
}

/// The rows of the table whose first column is a crate's name and whose last one is what it imports.
fn table(page: &str) -> Imports {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let words = |text: &str| -> BTreeSet<String> {
        let names = text.split('`').skip(1).step_by(2);
        names.map(str::to_owned).collect()
    };
    rows.filter_map(|row| {
        let (name, rest) = row.split_once('`')?;
        let imports = rest.trim_end().strip_suffix('|')?.rsplit('|').next()?;
        is_ours(name).then(|| (name.to_owned(), words(imports)))
    })
    .collect()
}

#[test]
fn crates_import_what_the_table_says() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let found: Imports = crates().iter().map(|folder| manifest(folder)).collect();
    assert_eq!(table(&page), found);
}

/// Modules of a crate by the files that are theirs, without those of tests.
fn modules(source: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut modules = BTreeMap::<String, Vec<PathBuf>>::new();
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if [
                "tests",
                "fixtures",
                "bench",
                "simulation",
                "world",
                "stories",
            ]
            .contains(&name)
            {
                continue;
            }
            let first = path.strip_prefix(source).unwrap().iter().next().unwrap();
            let first = Path::new(first).file_stem().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path);
            } else if !["lib", "main"].contains(&first) {
                modules.entry(first.to_owned()).or_default().push(path);
            }
        }
    }
    modules
}

/// A source without its own tests.
fn without_tests(source: &str) -> &str {
    source
        .split("#[cfg(test)]\nmod ")
        .next()
        .unwrap_or_default()
}

/// The first name after each `super::super::`, as far up as the crate.
fn of_root<'a>(source: &'a str, up: &'a str) -> impl Iterator<Item = &'a str> {
    source.match_indices(up).filter_map(move |(at, _)| {
        let is_whole = !source[..at].ends_with(|c: char| c.is_alphanumeric() || c == ':');
        let rest = &source[at + up.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        is_whole.then(|| &rest[..end.unwrap_or(rest.len())])
    })
}

/// The modules of its own crate that a source names.
pub(crate) fn of_crate(source: &str) -> BTreeSet<String> {
    let lines = source.lines();
    let code: Vec<_> = lines
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let code = code.join(" ");
    let found = code.split("crate::").skip(1).flat_map(|rest| {
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
    found.filter(|name| !name.is_empty()).collect()
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

/// Which modules of a crate name which others.
fn module_imports(source: &Path) -> Imports {
    let modules = modules(source);
    let mut imports = Imports::new();
    for (module, files) in &modules {
        for file in files {
            let text = fs::read_to_string(file).unwrap();
            let depth = file.strip_prefix(source).unwrap().iter().count();
            let up = "super::".repeat(depth - usize::from(file.ends_with("mod.rs")));
            let text = without_tests(&text);
            let named = of_crate(text).into_iter();
            let named = named.chain(of_root(text, &up).map(str::to_owned));
            let others = named.filter(|name| modules.contains_key(name) && name != module);
            imports.entry(module.clone()).or_default().extend(others);
        }
    }
    imports
}

/// Those that remain when whatever imports nothing that remains is taken away, again and again.
fn rings(mut imports: Imports) -> Imports {
    loop {
        let left: BTreeSet<String> = imports.keys().cloned().collect();
        imports.retain(|_, others| others.iter().any(|other| left.contains(other)));
        if imports.len() == left.len() {
            return imports;
        }
    }
}

#[test]
fn modules_import_one_way() {
    for folder in crates() {
        let imports = module_imports(&folder.join("src"));
        let rings = rings(imports);
        assert!(rings.is_empty(), "{}: {rings:#?}", folder.display());
    }
}

#[test]
fn rings_are_found() {
    let imports = |all: &[(&str, &[&str])]| -> Imports {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        all.iter()
            .map(|(module, others)| ((*module).to_owned(), owned(others)))
            .collect()
    };
    assert!(rings(imports(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let ring = imports(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]);
    assert_eq!(rings(ring.clone()), ring);
    let text = "use super::super::a; use super::b; use x::super::super::c";
    assert_eq!(of_root(text, "super::super::").collect::<Vec<_>>(), ["a"]);
}

#[test]
fn imports_are_found() {
    let source =
        "//! crate::no\nuse crate::{a, b::C, d::{E, F}};\nuse crate::g;\nfn h() { crate::i::j() }";
    let found: Vec<_> = of_crate(source).into_iter().collect();
    assert_eq!(found, ["a", "b", "d", "g", "i"]);
}
