//! A good version goes all the way.

use tests::Trial;

use super::Pilot;

#[test]
fn a_good_version_goes_all_the_way() {
    let Some(pilot) = Pilot::new(|_| {}) else {
        return;
    };
    let traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "100s", "--reason", "a test"]);
    assert_eq!(said.code, Some(0), "{said}");
    for words in [
        "stage 1", "stage 2", "stage 3", "baking", "settling", "promoted",
    ] {
        assert!(said.text.contains(words), "{words} is not in\n{said}");
    }
    assert_eq!(pilot.share(), 1.0);
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let explained = pilot.order(&["explain"]);
    for words in ["v13", "stage 1", "promoted", "a test"] {
        assert!(explained.contains(words), "{words} is not in\n{explained}");
    }
    let history = pilot.order(&["history"]);
    assert!(history.contains("promoted"), "{history}");

    // The new version takes the service's own address, and steering ends.
    let early = pilot.rollout(&["finish"]);
    assert_eq!(early.code, Some(1), "{early}");
    assert!(
        early.text.contains("was started before the rollout"),
        "{early}"
    );
    pilot.order(&["finish", "--force"]);
    assert_eq!(pilot.share(), 0.0);
    let status = pilot.trial.scene.modelmirror(&["status"]);
    assert!(status.contains("version v13"), "{status}");
}

/// The same of one on another host, to which connections are translated.
#[test]
fn a_good_version_elsewhere_goes_all_the_way() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "[::]:8001", "10.1.0.9:8001");
    let pilot = Pilot::of(trial, |_| {});
    pilot.trial.wait_for_canary(1.0);
    let traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "100s"]);
    assert_eq!(said.code, Some(0), "{said}");
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(got.last().unwrap().is_of("v13"), "{:?}", got.last());
    pilot.order(&["abort"]);
    assert_eq!(pilot.share(), 0.0);
}
