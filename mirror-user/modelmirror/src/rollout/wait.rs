//! Waits for what comes of a rollout, and says what happens meanwhile. Nothing of it depends on the
//! waiting: the daemon decides, and may be restarted.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mirror_api::{RolloutOutcome, RolloutState, StepName, plain};
use mirror_rollout::Share;
use mirror_rollout::gates::Gate;
use mirror_rollout::statistics::Verdict;
use mirror_rollout::words;
use tokio::signal;

use crate::arguments::Output;
use crate::print::{Printer, print_text, write_out};
use mirror_base::control::{Client, ClientError};

/// The version was rolled back, or aborted.
const ROLLED_BACK: u8 = 3;
/// A person is wanted, or the time is over.
const UNDECIDED: u8 = 4;
/// As shells say that Ctrl-C ended a command.
const INTERRUPTED: u8 = 130;

const BETWEEN_QUESTIONS: Duration = Duration::from_secs(1);

/// How long a daemon that has just begun may know nothing of the rollout.
const READING: Duration = Duration::from_secs(10);

pub(super) async fn wait(
    printer: Printer,
    client: &Client,
    service: &str,
    timeout: Option<Duration>,
    mut watch: Watch,
) -> anyhow::Result<ExitCode> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let asked = async {
            let seen = watch.see(super::rollout_of(client, service).await);
            let over = say(printer, seen)?;
            if over.is_none() {
                tokio::time::sleep(BETWEEN_QUESTIONS).await;
            }
            anyhow::Ok(over)
        };
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            over = asked => if let Some(code) = over? {
                return Ok(ExitCode::from(code));
            },
            () = late => {
                printer.info("the time is over; the rollout goes on");
                return Ok(ExitCode::from(UNDECIDED));
            }
            _ = signal::ctrl_c() => {
                printer.info(&format!("no longer waiting; the rollout goes on: `modelmirror rollout status --service {service}`"));
                return Ok(ExitCode::from(INTERRUPTED));
            }
        }
    }
}

/// Says what is new, and returns the exit code when there is nothing to wait for any more.
fn say(printer: Printer, seen: Result<Seen, Lost>) -> anyhow::Result<Option<u8>> {
    match seen? {
        Seen::Same => Ok(None),
        Seen::Away(words) => {
            printer.info(&words);
            Ok(None)
        }
        Seen::New { lines, state } => {
            match printer.0 {
                Output::Text => print_text(&plain::text(&lines.join("\n")))?,
                Output::Json => write_out(&plain::json(&serde_json::to_string(&*state)?))?,
            }
            Ok(code(&state))
        }
    }
}

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// A rollout that had ended before.
    earlier: Option<String>,
    said: Option<RolloutState>,
    /// Whether no daemon answered last.
    away: bool,
    /// Since when the daemon knows of no rollout.
    unknown: Option<Instant>,
}

/// What a question brought.
#[derive(Debug, PartialEq)]
enum Seen {
    /// Nothing new.
    Same,
    /// Something to say, in words and as it is.
    New {
        lines: Vec<String>,
        state: Box<RolloutState>,
    },
    /// No daemon answers, in words.
    Away(String),
}

/// There is nothing to wait for.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Refused(#[from] ClientError),
    #[error("the daemon knows of no rollout of this service")]
    Unknown,
    #[error("another rollout has begun: {0}")]
    Another(String),
}

impl Watch {
    /// Of the rollout that comes after this one, if there was one.
    pub(super) fn new(earlier: Option<String>) -> Self {
        Self {
            earlier,
            ..Self::default()
        }
    }

    fn see(&mut self, answer: Result<Option<RolloutState>, ClientError>) -> Result<Seen, Lost> {
        let state = match answer {
            Ok(Some(state)) if self.earlier.as_ref() != Some(&state.id) => state,
            Ok(_) => {
                let since = *self.unknown.get_or_insert_with(Instant::now);
                let gone = since.elapsed() > READING;
                return if gone {
                    Err(Lost::Unknown)
                } else {
                    Ok(Seen::Same)
                };
            }
            Err(
                error @ (ClientError::Closed { .. }
                | ClientError::Refused {
                    unknown_service: true,
                    ..
                }),
            ) => return Err(error.into()),
            // It is stopped, or restarted; it goes on with the rollout when it is back.
            Err(error) => {
                let known = std::mem::replace(&mut self.away, true);
                let words = format!("waiting for the daemon: {error}");
                return Ok(if known { Seen::Same } else { Seen::Away(words) });
            }
        };
        self.away = false;
        self.unknown = None;
        if let Some(said) = &self.said
            && said.id != state.id
        {
            return Err(Lost::Another(state.id));
        }
        let lines = news(self.said.as_ref(), &state);
        if lines.is_empty() {
            return Ok(Seen::Same);
        }
        self.said = Some(state.clone());
        let state = Box::new(state);
        Ok(Seen::New { lines, state })
    }
}

/// What is worth a line since `before`: gates that say something else, and where the rollout is, or
/// what it waits for. The figures of a reason to wait change every second and are not.
fn news(before: Option<&RolloutState>, now: &RolloutState) -> Vec<String> {
    let time = now.time.strftime("%F %TZ");
    let version = &now.canary.version;
    let gates = before.map_or(&[][..], |before| &before.gates);
    let known = |gate: &Gate| {
        let before = gates.iter().find(|other| other.name == gate.name);
        before.map_or(Verdict::Unknown, |before| before.verdict)
    };
    let turned = now.gates.iter().filter(|gate| gate.tells());
    let turned = turned.filter(|gate| gate.verdict != known(gate));
    let mut lines: Vec<String> = turned
        .map(|gate| format!("{time}  {version}: {gate}"))
        .collect();
    let place = |state: &RolloutState| {
        let kinds: Vec<_> = state.waiting.iter().map(|held| held.kind).collect();
        (
            state.state.clone(),
            state.since,
            state.reason.clone(),
            kinds,
        )
    };
    if before.map(place) != Some(place(now)) {
        lines.push(format!("{time}  {version}: {}", sentence(now)));
    }
    lines
}

fn sentence(state: &RolloutState) -> String {
    let mut said = state.state.clone();
    if state.share > Share::NONE && state.outcome.is_none() {
        let [stable, canary] = state.requests;
        let share = words::share(state.share);
        said += &format!(" at {share}, {canary} responses against {stable}");
    }
    let whys: Vec<&str> = state.waiting.iter().map(|held| held.why.as_str()).collect();
    match &state.reason {
        Some(reason) => said += &format!(": {reason}"),
        None if whys.is_empty() => {}
        None => said += &format!("; waits: {}", whys.join("; ")),
    }
    said
}

/// The exit code, once it is known.
fn code(state: &RolloutState) -> Option<u8> {
    match (state.outcome, state.step) {
        (Some(RolloutOutcome::Promoted), _) => Some(0),
        (Some(RolloutOutcome::RolledBack | RolloutOutcome::Aborted), _) => Some(ROLLED_BACK),
        (None, StepName::Held) => Some(UNDECIDED),
        (None, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use mirror_rollout::record::{Event, Want};
    use mirror_rollout::stories::Story;

    use super::*;

    fn state(story: &Story) -> RolloutState {
        RolloutState::of(&story.rollout, story.now)
    }

    /// What is said of a story now; nothing = nothing new.
    fn check(watch: &mut Watch, story: &Story, expected: &[&str], over: Option<u8>) {
        let seen = watch.see(Ok(Some(state(story)))).unwrap();
        let said = match &seen {
            Seen::New { lines, .. } => lines.clone(),
            _ => Vec::new(),
        };
        assert_eq!(said.len(), expected.len(), "{said:#?}");
        for (said, expected) in said.iter().zip(expected) {
            assert!(said.contains(expected), "{expected:?} is not in {said:?}");
        }
        assert_eq!(code(&state(story)), over);
    }

    /// A plan of seconds.
    fn plan() -> mirror_rollout::plan::Plan {
        let mut plan = mirror_rollout::stories::plan(3);
        let canary = &mut plan.canary;
        (canary.proven_from, canary.bake) = (1.0, Duration::ZERO);
        canary.max_duration = Duration::from_secs(60);
        plan
    }

    #[test]
    fn what_is_new_is_said_once() {
        let mut watch = Watch::default();
        let mut story = Story::begin(plan());
        story.pass(1, [90, 0], [10, 0]);
        let first =
            "2026-11-22 12:04:32Z  v13: stage 1 of 2 at 10 %, 10 responses against 90; waits: ";
        check(&mut watch, &story, &[first], None);
        check(&mut watch, &story, &[], None);
        story.order(Want::Pause);
        let paused = "v13: paused at stage 1 at 10 %, 10 responses against 90: anna: lunch";
        check(&mut watch, &story, &[paused], None);
        story.order(Want::Resume);
        check(&mut watch, &story, &["v13: stage 1 of 2 at 10 %"], None);
        story.pass(3, [90, 0], [10, 10]);
        story.tell(Event::TakenBack);
        let said = ["v13: rolled back: 30 of the canary's last 30 requests failed"];
        check(&mut watch, &story, &said, Some(ROLLED_BACK));
    }

    #[test]
    fn each_end_has_its_code() {
        let check = |end: &dyn Fn(&mut Story), expected| {
            let mut story = Story::begin(plan());
            end(&mut story);
            assert_eq!(
                code(&state(&story)),
                expected,
                "{:?}",
                story.rollout.state()
            );
        };
        check(&|_| {}, None);
        check(&|story| story.order(Want::Pause), None);
        check(&|story| story.order(Want::Abort), Some(3));
        check(&|story| story.pass(70, [90, 0], [0, 0]), Some(4));
        let promote = |story: &mut Story| (0..4).for_each(|_| story.order(Want::PromoteAll));
        check(&promote, Some(0));
    }

    #[test]
    fn a_daemon_that_is_restarted_is_waited_for() {
        let story = Story::begin(plan());
        let mut watch = Watch::default();
        watch.see(Ok(Some(state(&story)))).unwrap();
        let socket = std::path::PathBuf::from("/run/control.sock");
        let gone = || {
            Err(ClientError::NoDaemon {
                socket: socket.clone(),
            })
        };
        let Ok(Seen::Away(words)) = watch.see(gone()) else {
            panic!("it was not said");
        };
        assert!(
            words.starts_with("waiting for the daemon: no daemon answers at /run"),
            "{words}"
        );
        assert_eq!(watch.see(gone()).unwrap(), Seen::Same);
        // It has not read its records yet.
        assert_eq!(watch.see(Ok(None)).unwrap(), Seen::Same);
        assert_eq!(watch.see(Ok(Some(state(&story)))).unwrap(), Seen::Same);
    }

    #[test]
    fn what_came_of_an_earlier_one_is_not_what_comes_of_this_one() {
        let mut story = Story::begin(plan());
        story.order(Want::Abort);
        let mut watch = Watch::new(Some("sentiment-1".to_owned()));
        assert_eq!(watch.see(Ok(Some(state(&story)))).unwrap(), Seen::Same);
        let mut now = state(&Story::begin(plan()));
        now.id = "sentiment-2".to_owned();
        let seen = watch.see(Ok(Some(now))).unwrap();
        assert!(matches!(seen, Seen::New { .. }), "{seen:?}");
    }

    #[test]
    fn what_cannot_come_any_more_is_not_waited_for() {
        let mut watch = Watch::default();
        let mut other = state(&Story::begin(plan()));
        watch.see(Ok(Some(other.clone()))).unwrap();
        other.id = "sentiment-2".to_owned();
        let lost = watch.see(Ok(Some(other))).unwrap_err();
        assert_eq!(lost.to_string(), "another rollout has begun: sentiment-2");
        let unknown = ClientError::Refused {
            unknown_service: true,
            said: "there is no service".to_owned(),
        };
        assert!(watch.see(Err(unknown)).is_err());
    }
}
