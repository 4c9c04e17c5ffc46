use std::os::unix::fs::PermissionsExt;

use super::*;

const ALL: [&str; 2] = ["a", "b"];

fn on(overrides: &Overrides, service: &str) -> (bool, Source) {
    let effective = overrides.effective(service, 1.0);
    (effective.on, effective.from)
}

#[test]
fn the_command_line_wins_until_it_is_cleared() {
    let mut set = Overrides::default();
    assert_eq!(on(&set, "a"), (true, Source::File));
    set.change("a", Change::Off, ALL);
    set.change("a", Change::Sample(0.25), ALL);
    let effective = set.effective("a", 0.5);
    assert_eq!(
        (effective.on, effective.sample, effective.sample_set),
        (false, 0.25, Some(0.25))
    );
    assert_eq!(on(&set, "b"), (true, Source::File));
    set.change("a", Change::Clear, ALL);
    assert_eq!(set, Overrides::default());
}

#[test]
fn off_holds_for_every_service_until_each_is_switched_on() {
    let mut set = Overrides::default();
    set.change("a", Change::On, ALL);
    set.switch_off();
    assert_eq!((on(&set, "a"), set.is_off()), ((false, Source::Cli), true));
    set.change("a", Change::Sample(0.5), ALL);
    assert!(set.is_off());
    set.change("a", Change::On, ALL);
    assert_eq!((on(&set, "a"), set.is_off()), ((true, Source::Cli), false));
    assert_eq!(on(&set, "b"), (false, Source::Cli));
    set.change("b", Change::Clear, ALL);
    assert_eq!(on(&set, "b"), (true, Source::File));
}

#[test]
fn a_canary_s_share_lifts_off_for_it_alone() {
    let share = Share::try_from(0.05).unwrap();
    let mut set = Overrides::default();
    set.set_canary("a", Some(share), ALL);
    assert_eq!(
        (set.canary_share("a"), set.canary_share("b")),
        (Some(share), None)
    );
    set.switch_off();
    set.set_canary("a", Some(Share::NONE), ALL);
    assert!(set.is_off());
    set.set_canary("a", Some(share), ALL);
    assert!(!set.is_off());
    assert_eq!(set.canary_share("a"), Some(share));
    assert_eq!(set.canary_share("b"), Some(Share::NONE));
    assert_eq!((on(&set, "a").0, on(&set, "b").0), (false, false));
}

#[test]
fn every_version_has_a_key_of_its_own() {
    let mut set = Overrides::default();
    set.set_salt("a", "v13", [1, 2]);
    assert_eq!(
        (set.salt("a", "v13"), set.salt("b", "v13")),
        (Some([1, 2]), None)
    );
    set.set_salt("a", "v14", [3, 4]);
    assert_eq!(
        (set.salt("a", "v13"), set.salt("a", "v14")),
        (None, Some([3, 4]))
    );
}

#[test]
fn what_is_set_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let mut state = State::open(&state_dir);
    state
        .update(|set| set.change("a", Change::Sample(0.1), ALL))
        .unwrap();
    state.update(Overrides::switch_off).unwrap();

    let again = State::open(&state_dir);
    assert_eq!(
        (again.overrides(), again.trouble()),
        (state.overrides(), None)
    );
    assert!(again.overrides().is_off());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&state_dir), mode(&state_dir.join(FILE))),
        (0o700, 0o600)
    );
    assert_eq!(std::fs::read_dir(&state_dir).unwrap().count(), 1);
}

#[test]
fn a_corrupt_file_switches_off_and_is_kept() {
    let corrupt = [
        "{",
        "{}",
        r#"{"format": 2, "off": false}"#,
        r#"{"format": 1, "off": false, "more": 1}"#,
        r#"{"format": 1, "off": false, "services": {"a": {"sample": 7.0}}}"#,
    ];
    for text in corrupt {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, text).unwrap();
        let mut state = State::open(dir.path());
        let trouble = state.trouble().unwrap().to_string();
        assert!(
            trouble.contains("overrides.json cannot be used"),
            "{trouble}"
        );
        assert!(state.overrides().is_off(), "{text}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

        state
            .update(|set| set.change("a", Change::On, ALL))
            .unwrap();
        assert_eq!(state.trouble(), None);
        let kept = std::fs::read_to_string(dir.path().join("overrides.json.corrupt"));
        assert_eq!(kept.unwrap(), text);
        assert_eq!(
            on(State::open(dir.path()).overrides(), "a"),
            (true, Source::Cli)
        );
    }
}

#[test]
fn overrides_of_unknown_services_are_named() {
    let node = config::Node {
        connections: 1024,
        translation_ports: config::PortRange::DEFAULT,
        translation_addresses: Vec::new(),
        interfaces: Vec::new(),
        state_dir: PathBuf::new(),
        pin_dir: PathBuf::new(),
        control_socket: PathBuf::new(),
        admin: ([127, 0, 0, 1], 1).into(),
        key_file: PathBuf::new(),
        ring: 1 << 20,
        batch_interval: std::time::Duration::from_millis(1),
        sender_cpus: 1.0,
        services: Vec::new(),
    };
    let mut set = Overrides::default();
    set.change("a", Change::Off, ALL);
    assert_eq!(set.strangers(&node), ["a"]);
}
