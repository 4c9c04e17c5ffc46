//! Metrics of the daemon's own look at exchanges.

use std::sync::atomic::Ordering;

use mirror_common::tunnel::Arm;

use super::{LOOK_CPU, LOOK_REFUSED, LOOK_SAMPLE, LOOK_WAKEUPS, LOOKED, LOOKED_BEGUN, Scrape};
use crate::daemon::Snapshot;
use crate::daemon::local_reader::Outcome;

impl Scrape {
    pub(super) fn look(&mut self, now: &Snapshot) {
        let figures = &now.local_reader;
        let cpu_seconds = figures.cpu_ns.load(Ordering::Relaxed) as f64 / 1e9;
        self.seconds(&LOOK_CPU, &[], cpu_seconds);
        let wakeups = figures.wakeups.load(Ordering::Relaxed);
        self.counter(&LOOK_WAKEUPS, &[], wakeups);
        if let Some(ring) = &now.look_ring {
            self.counter(&LOOK_REFUSED, &[], ring.refused());
        }
        for (service, tally) in now.status.services.iter().zip(&now.looks) {
            let (Some(tally), Some(look)) = (tally, &service.look) else {
                continue;
            };
            for (state, arm) in look.arms.iter().zip([Arm::Stable, Arm::Canary]) {
                let labels = [("service", service.name.as_str()), ("arm", arm.label())];
                self.gauge(&LOOK_SAMPLE, &labels, state.effective);
                self.counter(&LOOKED_BEGUN, &labels, tally.seen(arm));
                for outcome in Outcome::all() {
                    let count = tally.outcome(arm, outcome);
                    if count > 0 {
                        let labels = [labels[0], labels[1], ("outcome", outcome.label())];
                        self.counter(&LOOKED, &labels, count);
                    }
                }
            }
        }
    }
}
