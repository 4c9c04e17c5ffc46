//! Metrics of rollouts.

use mirror_api::{RolloutState, StepName};
use mirror_rollout::held::Kind;
use mirror_rollout::statistics::Verdict;

use super::{
    ROLLOUT_EVIDENCE, ROLLOUT_GATE, ROLLOUT_SECONDS, ROLLOUT_STAGE, ROLLOUT_STATE, ROLLOUT_WAITING,
    Scrape,
};

impl Scrape {
    pub(super) fn rollout(&mut self, service: &str, rollout: &RolloutState) {
        let of = ("service", service);
        for step in StepName::ALL {
            let labels = [of, ("state", step.label())];
            self.gauge(&ROLLOUT_STATE, &labels, (*step == rollout.step).into());
        }
        let seconds = rollout.time.duration_since(rollout.since).as_secs_f64();
        self.gauge(&ROLLOUT_SECONDS, &[of], seconds);
        if rollout.ended {
            return;
        }
        if let Some(stage) = rollout.stage {
            self.gauge(&ROLLOUT_STAGE, &[of], (stage + 1) as f64);
        }
        for kind in Kind::ALL {
            let waits = rollout.waiting.iter().any(|held| held.kind == *kind);
            let labels = [of, ("reason", kind.label())];
            self.gauge(&ROLLOUT_WAITING, &labels, waits.into());
        }
        for gate in &rollout.gates {
            let labels = [of, ("gate", gate.name.as_str())];
            let verdict = match gate.verdict {
                Verdict::Within => 1.0,
                Verdict::Unknown => 0.0,
                Verdict::Worse => -1.0,
            };
            self.gauge(&ROLLOUT_GATE, &labels, verdict);
            if let Some(finding) = &gate.finding {
                for (verdict, found) in [("within", finding.within), ("worse", finding.worse)] {
                    let labels = [labels[0], labels[1], ("verdict", verdict)];
                    let part = (found / finding.needed).max(0.0);
                    self.gauge(&ROLLOUT_EVIDENCE, &labels, part);
                }
            }
        }
    }
}
