use std::fs;

use super::*;

const SERVICES: [&str; 2] = ["one", "two"];

fn open(record_dir: &Path, limit: u64) -> Store {
    let folders: Vec<PathBuf> = SERVICES.iter().map(|name| record_dir.join(name)).collect();
    for folder in &folders {
        fs::create_dir_all(folder).unwrap();
    }
    Store::open(record_dir, folders, limit, Arc::default()).unwrap()
}

/// Every file's name and content, oldest first, of all services together.
fn contents(record_dir: &Path) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for service in SERVICES {
        for entry in fs::read_dir(record_dir.join(service)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            files.push((name, fs::read_to_string(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}

fn line(number: u64, length: usize) -> Vec<u8> {
    format!("{number:0>width$}\n", width = length - 1).into_bytes()
}

#[test]
fn the_oldest_files_of_any_service_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut store = open(folder.path(), 8_000);
    for number in 0..100 {
        store.append((number % 2) as usize, &line(number, 500), now);
        store.flush_all(now);
    }
    drop(store);
    let files = contents(folder.path());
    assert!(files.iter().all(|(_, content)| content.len() <= 1_000));
    let lines: String = files.iter().map(|(_, content)| content.as_str()).collect();
    assert_eq!(lines.len(), 8_000, "{files:?}");
    let mut numbers: Vec<u64> = lines.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (84..100).collect::<Vec<u64>>());
}

#[test]
fn a_new_run_counts_what_is_there_and_begins_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let half = folder.path().join("one/comparisons-20250101T000000.jsonl");
    drop(open(folder.path(), 1_000));
    fs::write(&half, "half a li").unwrap();
    fs::write(folder.path().join("one/notes"), "mine").unwrap();
    let mut store = open(folder.path(), 1_000);
    assert_eq!(store.total, 9);
    store.append(0, &line(1, 100), now);
    store.flush_all(now);
    assert_eq!(fs::read_to_string(&half).unwrap(), "half a li");
    assert_eq!(contents(folder.path()).len(), 3);
    for number in 0..100 {
        store.append(0, &line(number, 100), now);
    }
    assert!(!half.exists());
    assert!(folder.path().join("one/notes").exists());
}

#[test]
fn a_line_too_large_for_the_limit_is_lost_alone() {
    let folder = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut store = open(folder.path(), 1_000);
    store.append(0, &line(1, 100), now);
    store.append(0, &line(2, 600), now);
    store.flush_all(now);
    assert_eq!(
        store.shared.lost.load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    assert_eq!(contents(folder.path()).len(), 1);
}

#[test]
fn what_is_taken_away_under_it_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let records = folder.path().join("records");
    let now = Instant::now();
    let mut store = open(&records, 8_000);
    let mut number = 0;
    let mut write = |store: &mut Store| {
        number += 1;
        store.append(0, &line(number, 100), now);
        store.flush_all(now);
        number
    };
    let held = |number| line(number, 100);
    write(&mut store);
    // Removed.
    fs::remove_file(path_of_one(&records)).unwrap();
    let second = write(&mut store);
    assert_eq!(fs::read(path_of_one(&records)).unwrap(), held(second));
    assert_eq!(store.total, 100);
    // Renamed, and another file put there.
    let old = path_of_one(&records);
    fs::rename(&old, old.with_extension("jsonl.1")).unwrap();
    fs::write(&old, "").unwrap();
    let third = write(&mut store);
    assert_eq!(fs::read(&old).unwrap(), b"");
    assert!(
        contents(&records)
            .iter()
            .any(|(_, text)| text.as_bytes() == held(third))
    );
    // Let go of, without another record.
    fs::remove_dir_all(&records).unwrap();
    store.flush_all(now);
    assert!(store.services[0].open.is_none());
    // The whole folder.
    let fourth = write(&mut store);
    assert_eq!(fs::read(path_of_one(&records)).unwrap(), held(fourth));
    fs::remove_dir_all(&records).unwrap();
    store.ledger(0, b"{}");
    assert_eq!(fs::read(records.join("one").join(LEDGER)).unwrap(), b"{}");
    let mode = fs::metadata(records.join("one")).unwrap().mode() & 0o777;
    assert_eq!(
        (
            mode,
            store
                .shared
                .failed
                .load(std::sync::atomic::Ordering::Relaxed)
        ),
        (0o700, 0)
    );
}

/// The only file of records of the first service.
fn path_of_one(records: &Path) -> PathBuf {
    let mut files = BTreeMap::new();
    list(&records.join("one"), &mut files).unwrap();
    assert_eq!(files.len(), 1);
    let ((name, folder), _) = files.pop_first().unwrap();
    folder.join(name)
}

/// Runs `test` with an empty file system of 64 KiB mounted on a folder, seen by its thread alone.
fn on_a_tiny_disk(test: impl FnOnce(&Path) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    if !nix::unistd::geteuid().is_root() {
        return crate::skip::skip("needs root to mount a tiny file system");
    }
    let thread = std::thread::spawn(move || {
        let folder = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        let size = Some("size=64k");
        mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            size,
        )
        .unwrap();
        test(folder.path());
        nix::mount::umount(folder.path()).unwrap();
    });
    thread.join().unwrap();
}

#[test]
fn a_full_disk_stops_recording_until_there_is_room() {
    on_a_tiny_disk(|disk| {
        let records = disk.join("records");
        let mut store = open(&records, 1 << 30);
        let shared = Arc::clone(&store.shared);
        let state = || {
            use std::sync::atomic::Ordering::Relaxed;
            (
                shared.written.load(Relaxed),
                shared.failed.load(Relaxed),
                shared.stopped.load(Relaxed),
            )
        };
        let ballast = disk.join("ballast");
        fs::write(&ballast, vec![0; 40 << 10]).unwrap();
        let now = Instant::now();
        let mut number = 0;
        while !state().2 {
            store.append(0, &line(number, 1_000), now);
            store.flush_all(now);
            number += 1;
            assert!(number < 64, "64 KiB hold no 64 lines of 1,000 bytes");
        }
        let (written, failed, _) = state();
        assert_eq!((written + failed, failed), (number, 1));

        // Stopped: nothing is tried, everything is counted.
        fs::remove_file(&ballast).unwrap();
        store.append(1, &line(number, 1_000), now + PAUSE / 2);
        store.flush_all(now + PAUSE / 2);
        assert_eq!(state(), (written, 2, true));

        store.append(1, &line(number + 1, 1_000), now + PAUSE);
        assert_eq!(state(), (written + 1, 2, false));

        let files = contents(&records);
        let lines: String = files.iter().map(|(_, content)| content.as_str()).collect();
        assert!(
            lines.lines().all(|line| line.len() == 999),
            "only whole lines"
        );
        assert_eq!(lines.lines().count() as u64, written + 1);
    });
}
