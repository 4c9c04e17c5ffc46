//! Rollouts for tests of what is said about them, told by the machine itself.

use std::time::Duration;

use jiff::Timestamp;

use super::Share;
use super::machine::Rollout;
use super::plan::{Plan, Target};
use super::record::{Entry, Event, Line, Order, Started, Want};
use super::state::By;
use super::window::{Arm, Window};

/// A rollout of v13 instead of v12, a second at a time, and its record without what was seen.
pub struct Story {
    /// Where it is.
    pub rollout: Rollout,
    /// Its record.
    pub lines: Vec<Line>,
    /// What time it is.
    pub now: Timestamp,
}

impl Story {
    /// With this plan.
    pub fn begin(plan: Plan) -> Self {
        // 12:04:31 UTC on 22 November 2026.
        let now = Timestamp::constant(1795349071, 0);
        let started = Started {
            id: "sentiment-1".to_owned(),
            service: "sentiment".to_owned(),
            stable: "v12".to_owned(),
            canary: Target {
                version: "v13".to_owned(),
                address: ([10, 0, 0, 5], 8001).into(),
            },
            plan,
            by: by("retrained"),
        };
        let event = Event::Started(Box::new(started.clone()));
        let mut story = Self {
            rollout: Rollout::start(started, now),
            lines: Vec::new(),
            now,
        };
        story.tell(event);
        story
    }

    /// Lets something happen now.
    pub fn tell(&mut self, event: Event) {
        let time = self.now;
        let decisions = self.rollout.tell(&event, time);
        let seen = matches!(event, Event::Seen(_));
        let event = (!seen).then_some(Entry::Event(event));
        let decisions = decisions.into_iter().map(Entry::Decision);
        let entries = event.into_iter().chain(decisions);
        self.lines.extend(entries.map(|entry| Line {
            time,
            wall: None,
            up_ms: None,
            entry,
        }));
    }

    /// Lets anna want something.
    pub fn order(&mut self, want: Want) {
        let by = by("lunch");
        self.tell(Event::Ordered(Order { want, by }));
    }

    /// Lets so many seconds pass, each with so many answers, and failures among them, of stable and
    /// of the canary.
    pub fn pass(&mut self, seconds: u32, stable: [u64; 2], canary: [u64; 2]) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.tell(Event::Seen(Box::new(Window {
                stable: arm(stable),
                canary: arm(canary),
                ..Window::default()
            })));
        }
    }
}

fn by(reason: &str) -> By {
    By {
        who: "anna".to_owned(),
        reason: Some(reason.to_owned()),
    }
}

fn arm([responses, errors]: [u64; 2]) -> Arm {
    Arm {
        connections: responses,
        requests: responses,
        responses,
        errors,
        request_bytes: responses * 1_000,
        response_bytes: responses * 1_000,
        sizes: [(200, responses - errors)].into_iter().collect(),
        first_body: [(100, responses)].into_iter().collect(),
        complete: [(100, responses)].into_iter().collect(),
        ..Arm::default()
    }
}

/// A plan of two stages, 10 % and all, each of so many seconds.
pub fn plan(seconds: u64) -> Plan {
    let mut plan = Plan {
        stages: vec![Share::of_parts(1_000), Share::ALL],
        ..Plan::default()
    };
    let canary = &mut plan.canary;
    canary.holdback = Share::NONE;
    canary.warmup = Duration::ZERO;
    canary.min_duration = Duration::from_secs(seconds);
    canary.min_requests = 20;
    plan
}
