//! What our bets make of windows, for `bench/oracle/compare.py`, which asks other people's code the same.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::super::bet::{self, Side};
use super::super::{Counts, Pairs, Rate};
use super::rivals;

const SEQUENCES: usize = 200;

struct Dice(SmallRng);

impl Dice {
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / 2f64.powi(53)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    fn counts(&mut self, trials: u64, rate: f64) -> Counts {
        let events = (0..trials).filter(|_| self.uniform() < rate).count() as u64;
        Counts { events, trials }
    }
}

#[test]
#[ignore = "prints JSON for bench/oracle/compare.py"]
fn dump() {
    let mut dice = Dice(SmallRng::seed_from_u64(23));
    let mut cases = Vec::new();
    for at in 0..SEQUENCES {
        let rate = dice.uniform() * 0.3;
        let trials = 50 + dice.below(500);
        let window = dice.counts(trials, rate);
        let [limit, believed] = [0.02 + dice.uniform() * 0.3, dice.uniform() * 0.5];
        let side = if believed > limit {
            Side::Above
        } else {
            Side::Below
        };
        let Counts { events, trials } = window;
        cases.push(
            json!({"what": "one", "limit": limit, "believed": believed, "events": events,
            "trials": trials, "ln": bet::one_sample(side, limit, believed, window)}),
        );

        let believed = [0.01 + dice.uniform() * 0.3, 0.01 + dice.uniform() * 0.3];
        let arms = believed.map(|rate| {
            let trials = 20 + dice.below(300);
            dice.counts(trials, rate)
        });
        let side = if believed[1] > believed[0] {
            Side::Above
        } else {
            Side::Below
        };
        cases.push(
            json!({"what": "two", "believed": believed, "events": arms.map(|arm| arm.events),
            "trials": arms.map(|arm| arm.trials), "ln": bet::two_arms(side, 0.0, believed, arms)}),
        );

        let [limit, stake] = [dice.uniform() * 0.2 - 0.1, 0.01 + dice.uniform() * 0.9];
        let side = if at % 2 == 0 {
            Side::Above
        } else {
            Side::Below
        };
        let [better, worse, equal] = [20, 30, 300].map(|most| dice.below(most));
        let pairs = Pairs {
            both: 0,
            production_only: better,
            shadow_only: worse,
            neither: equal,
        };
        cases.push(
            json!({"what": "pairs", "limit": limit, "stake": stake, "sign": side.sign(),
            "differences": [better, worse, equal], "ln": bet::paired(side, limit, stake, pairs)}),
        );

        let [gap, variance] = [dice.uniform() * 0.05, 1e-6 + dice.uniform() * 1e-3];
        cases.push(
            json!({"what": "mixture", "gap": gap, "variance": variance, "deviation": 0.01,
            "ln": rivals::mixture(gap, variance, 0.01)}),
        );

        let rate = [0.005, 0.03, 0.15, 0.5][at % 4];
        let mut test = Rate::at_most(0.3, 0.05);
        let windows: Vec<u64> = (0..200)
            .map(|_| {
                let window = dice.counts(10, rate);
                test.observe(window);
                window.events
            })
            .collect();
        let finding = test.finding();
        cases.push(json!({"what": "interval", "rate": rate, "windows": windows,
            "low": finding.low, "high": finding.high}));
    }
    for case in cases {
        println!("oracle {case}");
    }
}
