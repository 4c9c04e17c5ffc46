//! Metrics of services that have a canary: both versions apart.

use mirror_api::CanaryState;
use mirror_common::histogram::Latency;
use mirror_common::tunnel::{Arm, Direction};

use super::{
    ACHIEVED, AFFINITY_KEYS, ARM_BYTES, ARM_PACKETS, CANARY_SHARE, CANARY_UP, COMPLETE,
    CONCENTRATION, CONNECTIONS, FIRST_BODY, FIRST_BYTE, Family, HANDSHAKE, OPEN, RESETS, RESPONSES,
    RETRANSMISSIONS, SERVER_CPU, SERVER_PROCESSES, SERVER_RESIDENT, STEERED, STRAYED, Scrape,
    TRANSLATIONS, TRANSLATIONS_EVICTED, TRANSLATIONS_LIMIT, TRANSLATIONS_USED, UNANSWERED,
    UNTRANSLATED, XDP_PACKETS,
};
use crate::daemon::local_reader::{Tally, Wait};
use crate::daemon::{Snapshot, arms};

/// The kernel's buckets that end one of ours: four to the octave from 65.5 us to 68.7 s. The
/// quantiles of `status` are formed of all.
const FIRST_OCTAVE: usize = 6;
const LAST_OCTAVE: usize = 26;

impl Scrape {
    pub(super) fn canary(
        &mut self,
        now: &Snapshot,
        service: &str,
        stable: &str,
        (row, tally): (u32, Option<&Tally>),
        canary: &CanaryState,
    ) {
        let share = canary.share.effective.into();
        self.gauge(&CANARY_SHARE, &[("service", service)], share);
        if let Some(up) = canary.up {
            self.gauge(&CANARY_UP, &[("service", service)], up.into());
        }
        if let Some(spread) = &canary.concentration {
            let labels = [("service", service)];
            self.gauge(&CONCENTRATION, &labels, spread.busiest_client);
            self.gauge(&AFFINITY_KEYS, &labels, spread.keys(canary.affinity));
        }
        if let Some(found) = &canary.translations {
            let states = [
                ("open", found.open),
                ("handshake", found.handshakes),
                ("closing", found.closing),
            ];
            for (state, count) in states {
                let labels = [("service", service), ("state", state)];
                self.gauge(&TRANSLATIONS, &labels, count as f64);
            }
            let labels = [("service", service)];
            self.gauge(&TRANSLATIONS_LIMIT, &labels, found.limit as f64);
            self.gauge(&TRANSLATIONS_USED, &labels, found.used);
            self.counter(&TRANSLATIONS_EVICTED, &labels, found.evicted);
        }
        let mut canary = canary.clone();
        if arms::fill(now, (row, tally), service, stable, &mut canary).is_err() {
            return;
        }
        let achieved = canary.share.achieved;
        let achieved = [
            ("connections", achieved.connections),
            ("requests", achieved.requests),
            ("bytes", achieved.bytes),
        ];
        for (by, ratio) in achieved {
            if let Some(ratio) = ratio {
                self.gauge(&ACHIEVED, &[("service", service), ("by", by)], ratio);
            }
        }
        if let Some(canary) = canary.arms.last() {
            for direction in [Direction::Request, Direction::Response] {
                let labels = [("service", service), ("direction", direction.label())];
                let side = direction as usize;
                self.counter(&UNTRANSLATED, &labels, canary.untranslated[side]);
                self.counter(&XDP_PACKETS, &labels, canary.early[side]);
            }
            self.counter(&STRAYED, &[("service", service)], canary.strayed);
        }
        for (arm, state) in [Arm::Stable, Arm::Canary].into_iter().zip(&canary.arms) {
            self.arm(service, state);
            if let Ok(handshakes) = now.counts.handshakes(row, arm) {
                self.durations(&HANDSHAKE, service, state, &handshakes);
            }
            let looked = tally.map(|tally| tally.read(arm));
            for (family, wait) in [
                (&FIRST_BYTE, Wait::Header),
                (&FIRST_BODY, Wait::Body),
                (&COMPLETE, Wait::End),
            ] {
                if let Some(looked) = &looked {
                    self.durations(family, service, state, looked.wait(wait));
                }
            }
        }
    }

    fn arm(&mut self, service: &str, arm: &mirror_api::Arm) {
        let labels = labels(service, arm);
        let with = |name, value| [labels[0], labels[1], labels[2], (name, value)];
        self.counter(&CONNECTIONS, &labels, arm.connections);
        self.gauge(&OPEN, &labels, arm.open as f64);
        self.counter(&UNANSWERED, &labels, arm.unanswered);
        for choice in &arm.choices {
            self.counter(
                &STEERED,
                &with("reason", &choice.reason),
                choice.connections,
            );
        }
        for direction in [Direction::Request, Direction::Response] {
            let (side, labels) = (direction as usize, with("direction", direction.label()));
            self.counter(&ARM_PACKETS, &labels, arm.packets[side]);
            self.counter(&ARM_BYTES, &labels, arm.bytes[side]);
            self.counter(&RETRANSMISSIONS, &labels, arm.retransmissions[side]);
        }
        for (by, resets) in ["client", "server"].into_iter().zip(arm.resets) {
            self.counter(&RESETS, &with("by", by), resets);
        }
        let classes = ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter();
        for (class, responses) in classes.zip(arm.responses) {
            self.counter(&RESPONSES, &with("class", class), responses);
        }
        if arm.other_responses > 0 {
            self.counter(&RESPONSES, &with("class", "other"), arm.other_responses);
        }
        if let Some(server) = &arm.server {
            self.seconds(&SERVER_CPU, &labels, server.cpu_seconds);
            self.gauge(&SERVER_PROCESSES, &labels, server.processes as f64);
            if server.processes > 0 {
                self.gauge(&SERVER_RESIDENT, &labels, server.resident_bytes as f64);
            }
        }
    }

    fn durations(
        &mut self,
        family: &Family,
        service: &str,
        arm: &mirror_api::Arm,
        durations: &Latency,
    ) {
        let bounds = (FIRST_OCTAVE * 16 - 1..LAST_OCTAVE * 16).step_by(4);
        let bounds = bounds.map(|index| (index, Latency::upper_bound_ns(index)));
        let labels = labels(service, arm);
        self.histogram(
            family,
            &labels,
            &durations.buckets,
            durations.sum_ns,
            bounds,
        );
    }
}

fn labels<'a>(service: &'a str, arm: &'a mirror_api::Arm) -> [(&'a str, &'a str); 3] {
    [
        ("service", service),
        ("arm", &arm.arm),
        ("version", &arm.version),
    ]
}
