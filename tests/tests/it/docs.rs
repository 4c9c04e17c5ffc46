//! The pages are true: links lead somewhere, and a sample of output is what the program prints.
//!
//! A sample is a block of ```` ```console ````. Its lines that begin with `$ modelmirror` are run, and
//! what follows each has to be what comes; `...` stands for any lines. The word behind `console` names a
//! folder of `docs/samples`: its JSON files are answered at the control socket, its records are what
//! `report` reads. `UPDATE_DOCS=1` writes what comes into the pages instead.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use tests::binary;

/// What stands at the end of each command's help, and is told once.
const COMMON: &str = "\nOptions of every command:";

/// What follows it.
const EXAMPLES: &str = "\nExamples:\n";

#[test]
fn samples_are_what_the_program_prints() {
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let (mut shown, mut wrong) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let (checked, samples) = check(&text, &mut wrong, &page);
        shown += samples;
        if update && checked != text {
            fs::write(&page, checked).unwrap();
        }
    }
    assert!(shown > 20, "only {shown} samples were found");
    if !update {
        assert!(
            wrong.is_empty(),
            "{}\nUPDATE_DOCS=1 writes what comes into the pages",
            wrong.join("\n")
        );
    }
}

#[test]
fn links_lead_somewhere() {
    let (mut links, mut dead) = (0, Vec::new());
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| {
            let (target, _) = rest.split_once(')')?;
            (!target.contains("://")).then_some(target)
        }) {
            links += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let leads = if anchor.is_empty() {
                to.exists()
            } else {
                fs::read_to_string(&to).is_ok_and(|text| anchors(&text).contains(anchor))
            };
            if !leads {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 100, "only {links} links were found");
    assert!(dead.is_empty(), "{}", dead.join("\n"));
}

/// Configs and plans that are shown as a whole can be used as they stand.
#[test]
fn configs_are_accepted() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("shown.toml");
    let mut shown = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for block in text.split("\n```toml ").skip(1) {
            let (kind, rest) = block.split_once('\n').unwrap();
            let (config, _) = rest.split_once("\n```").unwrap();
            shown += 1;
            let mut command = Command::new(binary("modelmirror").unwrap());
            let (config, expected) = match kind {
                "node" | "shadow" => (config.to_owned(), 0),
                // What a tutorial adds to the node's file of the page before.
                "canary" => (format!("{}\n{config}", node_of_tutorial()), 0),
                // Read before anybody is asked; then there is nobody.
                "plan" => (config.to_owned(), 1),
                other => panic!("{}: {other}", page.display()),
            };
            fs::write(&file, config).unwrap();
            match expected {
                0 => command.args(["config", "check", "--config"]).arg(&file),
                _ => command
                    .args(["rollout", "start", "--service", "digits", "--plan"])
                    .arg(&file)
                    .arg("--control")
                    .arg(home.path().join("nobody")),
            };
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(
                output.status.code(),
                Some(expected),
                "{}: {said}",
                page.display()
            );
        }
    }
    assert!(shown > 4, "only {shown} were found");
}

fn node_of_tutorial() -> String {
    let page = root().join("docs/tutorial/first-comparison.md");
    let text = fs::read_to_string(page).unwrap();
    let (_, config) = text.split_once("```toml node\n").unwrap();
    let (config, _) = config.split_once("```").unwrap();
    config.to_owned()
}

/// A metric that a page names is one that there is.
#[test]
fn metrics_exist() {
    let known = fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let (mut named, mut wrong) = (0, Vec::new());
    for page in pages() {
        // What changed tells of names that are gone, too.
        if page.ends_with("CHANGELOG.md") {
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("modelmirror_")) {
            named += 1;
            let name = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| word.strip_suffix(end))
                .unwrap_or(word);
            if !known.contains(&format!("| `{name}` |")) {
                wrong.push(format!("{}: {word}", page.display()));
            }
        }
    }
    assert!(named > 100, "only {named} were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The walks through the code name files that there are.
#[test]
fn walks_pass_files_that_exist() {
    let mut folders = vec![
        root().join("mirror-common"),
        root().join("mirror-ebpf"),
        root().join("mirror-user"),
    ];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                // As the page names it.
                files.push(path.to_str().unwrap().replace("/src/", "/"));
            }
        }
    }
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, walks) = page.split_once("\n## Four walks\n").unwrap();
    let named = walks.split('`').filter(|word| word.ends_with(".rs"));
    let mut passed = 0;
    for name in named {
        passed += 1;
        let end = format!("/{name}");
        assert!(
            files.iter().any(|file| file.ends_with(&end)),
            "there is no {name}"
        );
    }
    assert!(passed > 40, "only {passed} were named");
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README and its like, and all under `docs`.
fn pages() -> Vec<PathBuf> {
    let mut folders = vec![root().join("docs")];
    let mut pages: Vec<PathBuf> = [
        "README",
        "ARCHITECTURE",
        "CHANGELOG",
        "CONTRIBUTING",
        "SECURITY",
    ]
    .map(|name| root().join(name).with_extension("md"))
    .into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// The anchors of a page's headings, as GitHub forms them.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let headings = page.lines().filter(|line| {
        fenced ^= line.starts_with("```");
        !fenced && line.starts_with('#')
    });
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The page with what comes in place of what it shows, and how many samples that were.
fn check(text: &str, wrong: &mut Vec<String>, page: &Path) -> (String, usize) {
    let (mut checked, mut samples) = (String::new(), 0);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        checked += &format!("{line}\n");
        let Some(scene) = line.strip_prefix("```console") else {
            continue;
        };
        let scene = Scene::of(scene.trim());
        while let Some(line) = lines.next_if(|line| *line != "```") {
            checked += &format!("{line}\n");
            let Some(command) = line.strip_prefix("$ modelmirror") else {
                panic!("{}: not what a command prints: {line}", page.display());
            };
            samples += 1;
            let mut shown = String::new();
            while let Some(line) = lines.next_if(|line| *line != "```" && !line.starts_with("$ ")) {
                shown += &format!("{line}\n");
            }
            let comes = scene.run(command);
            let is_so = is_like(&shown, &comes);
            if !is_so {
                let page = page.display();
                wrong.push(format!(
                    "{page}: `modelmirror{command}` prints\n{comes}\nand not\n{shown}"
                ));
            }
            let cut = shown.lines().any(|line| line == "...");
            checked += if is_so || cut { &shown } else { &comes };
        }
    }
    (checked, samples)
}

/// Whether a sample is what comes, but for the lines that `...` stands for.
fn is_like(shown: &str, comes: &str) -> bool {
    let shown: Vec<&str> = shown.lines().collect();
    let comes: Vec<&str> = comes.lines().collect();
    let mut rest = comes.as_slice();
    let mut parts = shown.split(|line| *line == "...").enumerate().peekable();
    while let Some((number, part)) = parts.next() {
        let starts = match (number, parts.peek()) {
            (0, None) => return part == rest,
            (0, Some(_)) => rest.starts_with(part).then_some(0),
            (_, None) => return rest.ends_with(part),
            (_, Some(_)) => (0..=rest.len()).find(|&start| rest[start..].starts_with(part)),
        };
        let Some(start) = starts else { return false };
        rest = &rest[start + part.len()..];
    }
    true
}

#[test]
fn dots_stand_for_any_lines() {
    for (shown, expected) in [
        ("a\nb\nc\n", true),
        ("a\nc\n", false),
        ("a\n...\n", true),
        ("...\nc\n", true),
        ("...\nb\n", false),
        ("a\n...\nc\n", true),
        ("b\n...\n", false),
        ("...\nb\n...\n", true),
        ("...\nd\n...\n", false),
    ] {
        assert_eq!(is_like(shown, "a\nb\nc\n"), expected, "{shown}");
    }
}

/// What a sample's commands meet.
struct Scene {
    folder: PathBuf,
    socket: Option<(tempfile::TempDir, PathBuf)>,
}

impl Scene {
    fn of(name: &str) -> Self {
        let folder = root().join("docs/samples").join(name);
        let is_json = |entry: &fs::DirEntry| entry.path().extension().is_some_and(|e| e == "json");
        let mut entries = fs::read_dir(&folder).unwrap().map(Result::unwrap);
        let answers = !name.is_empty() && entries.any(|entry| is_json(&entry));
        let socket = answers.then(|| answer(&folder));
        Self { folder, socket }
    }

    fn run(&self, arguments: &str) -> String {
        let mut command = Command::new(binary("modelmirror").unwrap());
        command.args(words(arguments)).current_dir(&self.folder);
        command.env("COLUMNS", "100");
        match &self.socket {
            Some((_, socket)) => command.arg("--control").arg(socket),
            None if arguments.starts_with(" report ") || arguments == " report" => {
                command.args(["--records", "."])
            }
            None => &mut command,
        };
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        // Told once, with the help of all; examples follow it.
        let text = match text.split_once(COMMON) {
            Some((own, rest)) if arguments != " --help" => {
                let examples = rest.find(EXAMPLES).map_or("", |start| &rest[start..]);
                own.to_owned() + examples
            }
            _ => text,
        };
        let lines = text.lines().map(|line| line.trim_end().to_owned() + "\n");
        lines.collect::<String>()
    }
}

/// A command line's words, of which quotes keep some together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut quoted) = (Vec::new(), false);
    let mut word = String::new();
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// Answers what is asked at a socket of its own with the files of a folder, for as long as this test runs.
fn answer(folder: &Path) -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let socket = home.path().join("control.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let folder = folder.to_owned();
    thread::spawn(move || {
        for connection in listener.incoming() {
            // The program may have gone: then there is nobody to answer.
            let _ = connection.and_then(|connection| reply(connection, &folder));
        }
    });
    (home, socket)
}

/// The file that is called like the last part of the path.
fn reply(mut connection: UnixStream, folder: &Path) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && connection.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default();
    let (status, body) = match fs::read_to_string(folder.join(name).with_extension("json")) {
        Ok(body) => ("200 OK", body),
        Err(_) => ("404 Not Found", "{\"error\": \"no such path\"}".to_owned()),
    };
    let length = body.len();
    write!(
        connection,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}
