//! Canaries whose clients fail in ways that a class of 2xx does not show, or that no first byte tells. What
//! the daemon says of them has to be what the clients say.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{
    Client, Connection, Manner, Misbehaving, NUMBER, Request, Trial, eventually, pattern,
    try_within,
};

use super::{LONG, Pilot, judge_latency, set};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// How many clients there are, each with a connection of its own.
const CLIENTS: u64 = 8;

/// How many requests a connection carries.
const LIFETIME: usize = 10;

/// What the daemon says became of requests.
const REQUESTS: &str = "modelmirror_requests_total";

/// What a client got, in the words of the metric's label.
type Outcomes = BTreeMap<u64, &'static str>;

/// A trial with a canary that behaves well so far, on the node; the clients give up after [`PATIENCE`].
struct Broken {
    pilot: Pilot,
    canary: Misbehaving,
    numbers: AtomicU64,
    patience: Duration,
    /// What the daemon calls a request for which that was not enough.
    given_up: &'static str,
}

impl Broken {
    #[track_caller]
    fn new(change: impl FnOnce(&mut toml::Table)) -> Option<Self> {
        Self::with(change, |_| {})
    }

    /// The same, and it must not make clients wait, either.
    #[track_caller]
    fn judged(change: impl FnOnce(&mut toml::Table)) -> Option<Self> {
        Self::with(change, judge_latency)
    }

    #[track_caller]
    fn with(
        change: impl FnOnce(&mut toml::Table),
        plan_too: impl FnOnce(&mut toml::Table),
    ) -> Option<Self> {
        let mut trial = Trial::quiet(|_| {})?;
        trial.stop_canary();
        let node = trial.scene.net.node.clone();
        let canary = Misbehaving::start(&node, "[::]:8001".parse().unwrap(), Manner::Well);
        change(trial.service());
        let pilot = Pilot::of(trial, |plan| {
            plan.insert("stages".into(), vec![0.5, 1.0].into());
            set(plan, "max_error_delta", 0.05);
            set(plan, "max_client_error_delta", 0.05);
            set(plan, "max_redirect_delta", 0.05);
            set(plan, "max_short_delta", 0.05);
            set(plan, "max_aborted_delta", 0.05);
            plan_too(plan);
        });
        Some(Self {
            pilot,
            canary: canary.unwrap(),
            numbers: AtomicU64::new(1),
            patience: PATIENCE,
            given_up: "aborted_by_client",
        })
    }

    /// Requests, one after another over each client's connections, until `is_over`; what came of each.
    fn load(&self, is_over: impl Fn(u64) -> bool + Sync) -> Outcomes {
        let got = Mutex::new(Outcomes::new());
        let client = Client::of_any(
            &self.pilot.trial.scene.net.client,
            "10.0.0.5:8000".parse().unwrap(),
        );
        let send = || {
            let mut open: Option<(Connection, usize)> = None;
            loop {
                let number = self.numbers.fetch_add(1, Ordering::Relaxed);
                if is_over(number) {
                    return;
                }
                let (mut connection, sent) = match open.take().filter(|(_, sent)| *sent < LIFETIME)
                {
                    Some(open) => open,
                    None => (client.connect().unwrap(), 0),
                };
                let outcome = self.ask(&mut connection, number);
                got.lock().unwrap().insert(number, outcome);
                if outcome.ends_with("xx") || outcome == "says_error" {
                    open = Some((connection, sent + 1));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(send);
            }
        });
        got.into_inner().unwrap()
    }

    /// Asks, and says what came of it as the metric would.
    fn ask(&self, connection: &mut Connection, number: u64) -> &'static str {
        let request = Request::post("/label", &pattern(200, number));
        let request = request.header(NUMBER, &number.to_string());
        let patience = Some(self.patience);
        connection.stream().set_read_timeout(patience).unwrap();
        let before = connection.received();
        match connection.ask(&request) {
            Ok(response) if response.body.starts_with(b"{\"error\"") => "says_error",
            Ok(response) => match response.status / 100 {
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                _ => "5xx",
            },
            Err(error) if is_time_out(&error) => self.given_up,
            Err(_) if connection.received() == before => "unanswered",
            Err(error) if error.to_string().contains("ended") => "incomplete",
            Err(_) => "unreadable",
        }
    }

    /// What the daemon says of both versions' requests is what their clients say.
    #[track_caller]
    fn figures_are_the_clients(&self, got: &Outcomes, before: [Counts; 2]) {
        let asked = self.canary.asked();
        let mut expected = before;
        for (number, outcome) in got {
            let arm = usize::from(asked.contains(number));
            *expected[arm].entry((*outcome).to_owned()).or_default() += 1;
        }
        eventually("the daemon counts what clients count", || {
            let counted = self.counted()?;
            ensure!(counted == expected, "{counted:?}, not {expected:?}");
            Ok(())
        });
    }

    fn counted(&self) -> Result<[Counts; 2]> {
        let metrics = self.pilot.trial.scene.daemon().metrics()?;
        Ok(["stable", "canary"].map(|arm| {
            let outcomes = metrics.by(REQUESTS, "outcome").into_iter();
            let counts = outcomes.map(|(outcome, _)| {
                let labels = [("service", "digits"), ("arm", arm), ("outcome", &*outcome)];
                let count = metrics.sum(REQUESTS, &labels) as u64;
                (outcome, count)
            });
            counts.filter(|(_, count)| *count > 0).collect()
        }))
    }
}

type Counts = BTreeMap<String, u64>;

fn is_time_out(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|error| {
        matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        )
    })
}

/// With half of the connections the canary behaves so: the daemon counts what the clients count, and a
/// rollout takes it back with these words.
#[track_caller]
fn check(manner: Manner, words: &str) {
    let Some(broken) = Broken::judged(|_| {}) else {
        return;
    };
    broken.is_taken_back(manner, words);
}

impl Broken {
    #[track_caller]
    fn is_taken_back(&self, manner: Manner, words: &str) {
        let pilot = &self.pilot;
        self.canary.set(manner);
        pilot.trial.set("0.5");
        let first = self.numbers.load(Ordering::Relaxed);
        let before = self.counted().unwrap();
        let got = self.load(|number| number > first + 150);
        self.figures_are_the_clients(&got, before);
        pilot.trial.command(&["clear"]);
        pilot.order(&["start"]);
        let over = AtomicBool::new(false);
        let state = std::thread::scope(|scope| {
            let load = scope.spawn(|| self.load(|_| over.load(Ordering::Relaxed)));
            let end = try_within(LONG, "the rollout ends", || {
                let state = pilot.state()?;
                ensure!(
                    state["step"] == "rolled_back" || state["step"] == "promoted",
                    "{state:#}"
                );
                Ok(state)
            });
            over.store(true, Ordering::Relaxed);
            load.join().unwrap();
            end.unwrap()
        });
        let reason = state["reason"].as_str().unwrap_or_default();
        assert!(
            state["step"] == "rolled_back" && reason.contains(words),
            "{manner:?}: {state:#}"
        );
    }
}

#[test]
fn only_not_found() {
    check(Manner::Status(404), "client errors exceeds its limit");
}

#[test]
fn only_bad_requests() {
    check(Manner::Status(400), "client errors exceeds its limit");
}

#[test]
fn only_unauthorised() {
    check(Manner::Status(401), "client errors exceeds its limit");
}

#[test]
fn only_too_many_requests() {
    check(Manner::Status(429), "client errors exceeds its limit");
}

#[test]
fn only_redirects() {
    check(Manner::Status(302), "redirects exceeds its limit");
}

#[test]
fn empty_bodies() {
    check(Manner::Empty, "short responses exceeds its limit");
}

#[test]
fn chunks_without_an_end() {
    check(Manner::CutChunks, " failed");
}

#[test]
fn bodies_that_are_cut() {
    check(Manner::CutLength, " failed");
}

#[test]
fn a_seventh_is_closed_without_an_answer() {
    // They are errors, and longer than any answer: whichever is proven first.
    check(Manner::Closes(7), "exceeds its limit");
}

#[test]
fn a_seventh_is_never_answered() {
    // More are given up, and more wait for long: whichever is proven first.
    check(Manner::Silent(7), "exceeds its limit");
}

#[test]
fn heads_without_bodies() {
    check(Manner::HeadOnly, "exceeds its limit");
}

#[test]
fn no_http() {
    check(Manner::Garbage, " failed");
}

#[test]
fn late_first_tokens() {
    let late = Manner::LateBody(Duration::from_millis(100));
    check(late, "exceeds its limit, at most 3 times stable's");
}

#[test]
fn slow_tokens() {
    let slow = Manner::SlowChunks(Duration::from_millis(30));
    check(slow, "complete p");
}

/// Clients wait for longer than anybody should have to: their requests have failed before they give up.
#[test]
fn a_seventh_is_never_answered_and_clients_are_patient() {
    let look = toml::toml! { unanswered_after = "300ms" };
    let change = |service: &mut toml::Table| {
        service.insert("look".into(), look.into());
    };
    let Some(mut broken) = Broken::judged(change) else {
        return;
    };
    broken.patience = Duration::from_secs(1);
    broken.given_up = "unanswered";
    broken.is_taken_back(Manner::Silent(7), "exceeds its limit");
}

/// Only whoever knows where errors stand can tell.
#[test]
fn bodies_that_say_that_they_are_errors() {
    let look = toml::toml! { fail_if = "/error" };
    let change = |service: &mut toml::Table| {
        service.insert("look".into(), look.into());
    };
    let Some(broken) = Broken::judged(change) else {
        return;
    };
    broken.is_taken_back(Manner::SaysError, " failed");
}

/// What nobody can read nobody can judge, whoever promises HTTP/1 there.
#[test]
fn http2_is_held_by_its_name() {
    let Some(broken) = Broken::new(|_| {}) else {
        return;
    };
    let pilot = &broken.pilot;
    pilot.order(&["start"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let client = Client::of_any(
                    &pilot.trial.scene.net.client,
                    "10.0.0.5:8000".parse().unwrap(),
                );
                let mut connection = client.connect().unwrap();
                // RFC 9113, section 3.4.
                let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
                connection.stream().write_all(preface).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let why = pilot.wait_until_held_by("not_seen");
        over.store(true, Ordering::Relaxed);
        assert!(why.contains("http2"), "{why}");
    });
    assert_eq!(pilot.state().unwrap()["stage"], 0);
}

/// No requests can be read of it.
#[test]
fn no_rollout_begins_where_nothing_can_be_read() {
    let change = |service: &mut toml::Table| {
        service.insert("protocol".into(), "grpc".into());
    };
    let Some(broken) = Broken::new(change) else {
        return;
    };
    let said = broken.pilot.rollout(&["start"]);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.text.contains("protocol = \"grpc\""), "{said}");
    assert!(said.text.contains("cannot be read"), "{said}");
}

/// Keep-alive connections of the canary before outlive `canary off`; what they come to is not the next one's.
#[test]
fn another_canary_s_connections_are_no_evidence() {
    let Some(broken) = Broken::new(|_| {}) else {
        return;
    };
    let (pilot, trial) = (&broken.pilot, &broken.pilot.trial);
    let client = Client::of_any(&trial.scene.net.client, "10.0.0.5:8000".parse().unwrap());
    trial.set("1");
    let mut old: Vec<_> = (0..10).map(|_| client.connect().unwrap()).collect();
    for (number, connection) in (1..).zip(&mut old) {
        assert_eq!(broken.ask(connection, number), "2xx");
    }
    trial.command(&["off"]);
    let before = Counts::from([("2xx".to_owned(), 10)]);
    broken.figures_are_the_clients(&Outcomes::new(), [Counts::new(), before.clone()]);
    pilot.order(&["start", "--canary-version", "v14"]);
    // It fails whoever has stayed, and is good to those who come.
    broken.canary.set(Manner::Status(500));
    for (number, connection) in (11..).zip(&mut old) {
        assert_eq!(broken.ask(connection, number), "5xx");
    }
    broken.canary.set(Manner::Well);
    drop(old);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| broken.load(|_| over.load(Ordering::Relaxed)));
        pilot.wait_for("promoted");
        over.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    let [_, canary] = broken.counted().unwrap();
    assert!(!canary.contains_key("5xx"), "{canary:?}");
}

/// A healthy one, held against the same figures: what is checked above can pass.
#[test]
fn a_good_one_is_promoted() {
    let Some(broken) = Broken::new(|_| {}) else {
        return;
    };
    let pilot = &broken.pilot;
    pilot.order(&["start"]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| broken.load(|_| over.load(Ordering::Relaxed)));
        pilot.wait_for("promoted");
        over.store(true, Ordering::Relaxed);
        let got = load.join().unwrap();
        let failed = got.values().filter(|outcome| **outcome != "2xx").count();
        assert_eq!(failed, 0, "{got:?}");
    });
}
