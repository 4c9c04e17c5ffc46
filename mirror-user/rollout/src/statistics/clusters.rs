//! Clients, where clients are what is split: how many requests of theirs tell as much as one.
//!
//! A client keeps its version, and brings its own failures and its own slowness along. So the versions differ by whom
//! they serve, and no number of requests makes that smaller: only more clients do. Requests are counted by clusters,
//! which are clients, or connections, put together by a keyed hash. The variance between clusters (the sandwich
//! estimator of Liang and Zeger 1986, of the difference of Mantel and Haenszel), through what independent requests
//! would have, is the design effect.

use serde::{Deserialize, Serialize};

/// So many clusters there are: clients that share one count as one.
pub const CLUSTERS: usize = mirror_common::measure::CLUSTERS;

/// What is counted of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Requests whose end was seen.
    Requests,
    /// Those that the server failed.
    Failed,
    /// Those whose status is 4xx, ...
    ClientErrors,
    /// ... or 3xx.
    Redirects,
    /// Those whose response is among the shortest.
    Short,
    /// Those that the client gave up.
    Aborted,
    /// Those that wait for the body for longer than about half of stable's, ...
    BodyP50,
    /// ... and than 99 % of them.
    BodyP99,
    /// The same of the whole response.
    EndP50,
    /// See above.
    EndP99,
}

impl Sort {
    /// How many sorts there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::Requests,
        Self::Failed,
        Self::ClientErrors,
        Self::Redirects,
        Self::Short,
        Self::Aborted,
        Self::BodyP50,
        Self::BodyP99,
        Self::EndP50,
        Self::EndP99,
    ];
}

/// Counts of one cluster, by [`Sort`].
pub type Row = [u64; Sort::COUNT];

/// What one version did in a window, by cluster; those without a request are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clusters(Vec<(u8, Row)>);

impl Clusters {
    /// What was counted between two looks at counters that only grow.
    pub fn between(before: &[Row; CLUSTERS], after: &[Row; CLUSTERS]) -> Self {
        let since = |(before, after): (&Row, &Row)| {
            std::array::from_fn(|at| after[at].saturating_sub(before[at]))
        };
        let rows = before.iter().zip(after).map(since);
        (0..).zip(rows).collect()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which clusters have some of this, a bit each.
    pub fn mask(&self, sort: Sort) -> u64 {
        let having = self.iter().filter(|(_, row)| row[sort as usize] > 0);
        having.fold(0, |mask, (at, _)| mask | 1 << at)
    }

    fn sum(&self, sort: Sort) -> f64 {
        self.iter().map(|(_, row)| row[sort as usize] as f64).sum()
    }

    /// A record may be from another version, or from nobody.
    fn iter(&self) -> impl Iterator<Item = (usize, &Row)> {
        let rows = self.0.iter().map(|(at, row)| (usize::from(*at), row));
        rows.filter(|(at, _)| *at < CLUSTERS)
    }
}

impl FromIterator<(u8, Row)> for Clusters {
    fn from_iter<I: IntoIterator<Item = (u8, Row)>>(rows: I) -> Self {
        let counted = |(_, row): &(u8, Row)| *row != [0; Sort::COUNT];
        Self(rows.into_iter().filter(counted).collect())
    }
}

/// How much of what was seen is whose: so many equal parts would be as uneven (Kish 1965).
#[derive(Clone, Debug, PartialEq)]
pub struct Served(Box<[f64; CLUSTERS]>);

impl Default for Served {
    fn default() -> Self {
        Self(Box::new([0.0; CLUSTERS]))
    }
}

impl Served {
    /// Takes in what one version did.
    pub fn see(&mut self, window: &Clusters) {
        for (at, row) in window.iter() {
            self.0[at] += row[Sort::Requests as usize] as f64;
        }
    }

    /// How many clusters there are, each counted by its part; 0 where nothing was seen.
    pub fn effective(&self) -> f64 {
        effective(self.0.iter().copied())
    }
}

fn effective(parts: impl Iterator<Item = f64>) -> f64 {
    let [sum, squares] = parts.fold([0.0; 2], |[sum, squares], part| {
        [sum + part, squares + part * part]
    });
    if squares > 0.0 {
        sum * sum / squares
    } else {
        0.0
    }
}

/// Who is behind a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crowd {
    /// So many requests count as one.
    pub effect: f64,
    /// So many clusters the canary serves.
    pub effective: f64,
}

impl Crowd {
    /// What evidence comes to, in nats: that of Student's distribution, as the variance is known from so few clusters.
    pub(super) fn temper(self, nats: f64) -> f64 {
        let freedom = self.effective - 1.0;
        if nats <= 0.0 {
            return nats;
        }
        if freedom <= 0.0 {
            return 0.0;
        }
        (freedom + 1.0) / 2.0 * (2.0 * nats / self.effect / freedom).ln_1p()
    }
}

/// How a difference of rates between the versions, or one rate of the canary's, varies between clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct Clustering {
    sort: Sort,
    /// Of each version, stable and the canary, by cluster: weighted events beyond what both together do in the same
    /// window, weights, and weights times how much of a difference between the versions lies on this one's side.
    sums: Box<[[[f64; 3]; CLUSTERS]; 2]>,
    /// The mean rate of both, weighted.
    mean: f64,
    /// The variance of each version's mean, but for the rate's own part.
    variance: [f64; 2],
}

impl Clustering {
    /// Of one sort of requests.
    pub fn of(sort: Sort) -> Self {
        Self {
            sort,
            sums: Box::new([[[0.0; 3]; CLUSTERS]; 2]),
            mean: 0.0,
            variance: [0.0; 2],
        }
    }

    /// Takes one window in, in which both versions are compared.
    pub fn observe(&mut self, window: [&Clusters; 2]) {
        let trials = window.map(|arm| arm.sum(Sort::Requests));
        let [stable, canary] = trials;
        if stable <= 0.0 || canary <= 0.0 {
            return;
        }
        let weight = super::rates::weight(stable, canary);
        let events: f64 = window.iter().map(|arm| arm.sum(self.sort)).sum();
        let rate = events / (stable + canary);
        self.mean += weight * rate;
        for (arm, window) in window.into_iter().enumerate() {
            // The mean of both lies nearer to the version that has more requests.
            let side = trials[1 - arm] / (stable + canary);
            self.add(arm, window, weight / trials[arm], [rate, side]);
        }
    }

    /// The same, of the canary's rate by itself.
    pub fn observe_alone(&mut self, canary: &Clusters) {
        self.add(1, canary, 1.0, [0.0, 1.0]);
    }

    fn add(&mut self, arm: usize, window: &Clusters, each: f64, [rate, side]: [f64; 2]) {
        for (at, row) in window.iter() {
            let trials = row[Sort::Requests as usize] as f64;
            let [beyond, weight, sided] = &mut self.sums[arm][at];
            *beyond += each * (row[self.sort as usize] as f64 - rate * trials);
            *weight += each * trials;
            *sided += each * trials * side;
            self.variance[arm] += each * each * trials;
        }
    }

    /// Who is behind what was seen; nothing where no clusters were.
    pub fn crowd(&self) -> Option<Crowd> {
        let served = effective(self.sums[1].iter().map(|[_, weight, _]| *weight));
        if served <= 0.0 {
            return None;
        }
        let totals = [0, 1].map(|arm| {
            let sums = self.sums[arm].iter();
            sums.fold([0.0; 2], |[a, b], [c, d, _]| [a + c, b + d])
        });
        let mean = self.mean / totals[1][1];
        let difference = (totals[1][0] - totals[0][0]) / totals[1][1];
        let mut independent = 0.0;
        let mut residuals = [0.0; CLUSTERS];
        for (arm, sign) in [(0, -1.0), (1, 1.0)] {
            let [beyond, weight] = totals[arm];
            if weight <= 0.0 {
                continue;
            }
            let gap = beyond / weight;
            let rate = (mean + gap).clamp(0.0, 1.0);
            independent += self.variance[arm] * rate * (1.0 - rate);
            for (residual, [beyond, _, sided]) in residuals.iter_mut().zip(&self.sums[arm]) {
                *residual += sign * beyond - difference * sided;
            }
        }
        let squares: f64 = residuals.iter().map(|residual| residual * residual).sum();
        let few = if served > 1.0 {
            served / (served - 1.0)
        } else {
            1.0
        };
        // Where all fail, or none, rounding leaves a little of nothing.
        let effect = if independent > 1e-6 * (self.variance[0] + self.variance[1]) {
            (squares * few / independent).max(1.0)
        } else {
            1.0
        };
        Some(Crowd {
            effect,
            effective: served,
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn row(requests: u64, failed: u64) -> Row {
        let mut row = [0; Sort::COUNT];
        row[Sort::Requests as usize] = requests;
        row[Sort::Failed as usize] = failed;
        row
    }

    fn uniform(rng: &mut SmallRng) -> f64 {
        (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// So many clients, of which every other one meets the canary; each fails at a rate of its own.
    fn after(clients: u8, windows: u32, rate: impl Fn(u8) -> f64) -> Crowd {
        let mut rng = SmallRng::seed_from_u64(3);
        let mut clustering = Clustering::of(Sort::Failed);
        for _ in 0..windows {
            let mut arm = |of: u8| -> Clusters {
                let clients = (0..clients).filter(|client| client % 2 == of);
                clients
                    .map(|client| {
                        let failed = (0..4).filter(|_| uniform(&mut rng) < rate(client)).count();
                        (client, row(4, failed as u64))
                    })
                    .collect()
            };
            let window = [arm(0), arm(1)];
            clustering.observe(window.each_ref());
        }
        clustering.crowd().unwrap()
    }

    #[test]
    fn clients_that_are_alike_count_by_their_requests() {
        for rate in [0.01, 0.3] {
            let crowd = after(60, 300, |_| rate);
            assert!(crowd.effect < 1.6, "{crowd:?}");
            assert!((29.9..30.1).contains(&crowd.effective), "{crowd:?}");
        }
    }

    #[test]
    fn clients_that_differ_count_once_however_often_they_ask() {
        let differ = |client: u8| if client % 10 < 2 { 0.2 } else { 0.01 };
        let [early, late] = [50, 800].map(|windows| after(60, windows, differ).effect);
        assert!(early > 5.0 && late > 8.0 * early, "{early}, {late}");
    }

    #[test]
    fn what_happens_to_all_says_nothing_of_clients() {
        let mut clustering = Clustering::of(Sort::Failed);
        for window in 0..200 {
            let failed = if window % 50 < 5 { 3 } else { 0 };
            let arm: Clusters = (0..30).map(|client| (client, row(4, failed))).collect();
            clustering.observe([&arm, &arm]);
        }
        assert_eq!(clustering.crowd().unwrap().effect, 1.0);
    }

    /// Shares change, and chance spreads connections unevenly: the versions differ all the same.
    #[test]
    fn a_difference_is_none_between_clients() {
        for [of_stable, of_canary] in [[0.0, 1.0], [0.0, 0.999], [0.1, 0.9], [0.02, 0.3]] {
            let mut rng = SmallRng::seed_from_u64(7);
            let mut clustering = Clustering::of(Sort::Failed);
            for window in 0..40 {
                let share = if window < 20 { 0.3 } else { 0.9 };
                let mut rows = [[[0; Sort::COUNT]; CLUSTERS]; 2];
                for _ in 0..40 {
                    let cluster = (rng.next_u64() % CLUSTERS as u64) as usize;
                    let arm = usize::from(uniform(&mut rng) < share);
                    let rate = [of_stable, of_canary][arm];
                    for _ in 0..10 {
                        let row = &mut rows[arm][cluster];
                        row[Sort::Requests as usize] += 1;
                        row[Sort::Failed as usize] += u64::from(uniform(&mut rng) < rate);
                    }
                }
                let arms = rows.map(|rows| (0..).zip(rows).collect::<Clusters>());
                clustering.observe(arms.each_ref());
            }
            let crowd = clustering.crowd().unwrap();
            assert!(crowd.effect < 1.7, "{of_stable}, {of_canary}: {crowd:?}");
            assert!(
                crowd.temper(30.0) > 15.0,
                "{of_stable}, {of_canary}: {crowd:?}"
            );
        }
    }

    #[test]
    fn one_client_that_fails_is_one() {
        let mut clustering = Clustering::of(Sort::Failed);
        let mut alone = Clustering::of(Sort::Failed);
        for _ in 0..14 {
            let stable: Clusters = (0..30).map(|client| (client, row(4, 0))).collect();
            let canary = (30..60).map(|client| (client, row(1, u64::from(client == 30))));
            let canary: Clusters = canary.collect();
            clustering.observe([&stable, &canary]);
            alone.observe_alone(&canary);
        }
        for clustering in [clustering, alone] {
            let crowd = clustering.crowd().unwrap();
            assert!(crowd.effect > 12.0, "{crowd:?}");
            assert!(crowd.temper(25.0) < 2.0, "{crowd:?}");
        }
    }

    #[test]
    fn few_clusters_prove_less() {
        let crowd = |effective| Crowd {
            effect: 1.0,
            effective,
        };
        let tempered = [0.5, 1.0, 2.0, 5.0, 30.0, 1e6].map(|many| crowd(many).temper(10.0));
        assert_eq!(tempered[..2], [0.0, 0.0]);
        assert!(tempered.is_sorted(), "{tempered:?}");
        assert!((tempered[5] - 10.0).abs() < 1e-3, "{tempered:?}");
        assert_eq!(crowd(5.0).temper(-3.0), -3.0);
        assert_eq!(Clustering::of(Sort::Failed).crowd(), None);
    }

    #[test]
    fn a_window_is_what_was_counted_since() {
        let mut before = [[0; Sort::COUNT]; CLUSTERS];
        before[3] = row(5, 1);
        let mut after = before;
        (after[3], after[63]) = (row(7, 2), row(1, 0));
        let window = Clusters::between(&before, &after);
        assert_eq!(window.mask(Sort::Requests), 1 << 3 | 1 << 63);
        assert_eq!(window.mask(Sort::Failed), 1 << 3);
        let text = serde_json::to_string(&window).unwrap();
        assert_eq!(
            text,
            "[[3,[2,1,0,0,0,0,0,0,0,0]],[63,[1,0,0,0,0,0,0,0,0,0]]]"
        );
        assert_eq!(serde_json::from_str::<Clusters>(&text).unwrap(), window);
        assert!(Clusters::between(&after, &before).is_empty());
        let foreign: Clusters = serde_json::from_str("[[200,[2,1,0,0,0,0,0,0,0,0]]]").unwrap();
        assert_eq!(
            (foreign.mask(Sort::Requests), foreign.sum(Sort::Requests)),
            (0, 0.0)
        );
    }
}
