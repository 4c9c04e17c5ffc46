//! How many requests a test needs, and what one window costs.

use std::fmt::Write as _;
use std::time::Instant;

use super::*;

/// What each of the eleven parts of a default plan has.
const ALPHA: f64 = 0.01 / 11.0;

/// A test that takes windows in, and says what it knows.
type Watch = Box<dyn FnMut(&Window) -> Verdict>;

fn errors(delta: f64) -> Watch {
    let mut test = RateDifference::new(delta, ALPHA);
    Box::new(move |window| {
        test.observe(window.errors[0], window.errors[1]);
        test.finding().verdict
    })
}

fn ratio(quantile: f64, limit: f64) -> Watch {
    let mut test = QuantileRatio::new(quantile, limit, ALPHA);
    Box::new(move |window| {
        test.observe(&window.latencies[0], &window.latencies[1]);
        test.finding().verdict
    })
}

fn hard(limit: f64) -> Watch {
    let mut test = Rate::at_most(limit, ALPHA);
    Box::new(move |window| {
        test.observe(window.errors[1]);
        test.finding().verdict
    })
}

fn agreement(limit: f64) -> Watch {
    let mut test = Rate::at_least(limit, ALPHA);
    Box::new(move |window| {
        let Counts { events, trials } = window.errors[1];
        test.observe(Counts {
            events: trials - events,
            trials,
        });
        test.finding().verdict
    })
}

/// As many of stable's answers as there are of the canary's are paired with them, by chance.
fn paired_errors(limit: f64) -> Watch {
    let mut test = PairedDifference::new(limit, ALPHA);
    Box::new(move |window| {
        let [production, shadow] = window.errors;
        test.observe(Pairs {
            both: 0,
            production_only: production.events,
            shadow_only: shadow.events,
            neither: shadow
                .trials
                .saturating_sub(production.events + shadow.events),
        });
        test.finding().verdict
    })
}

fn paired_ratio(quantile: f64, limit: f64) -> Watch {
    let mut test = PairedQuantileRatio::new(quantile, limit, ALPHA);
    Box::new(move |window| {
        let pairs = window.drawn[0].iter().zip(&window.drawn[1]);
        let joint: Vec<_> = pairs
            .map(|(production, shadow)| (*production, *shadow, 1))
            .collect();
        test.observe(&joint);
        test.finding().verdict
    })
}

/// The canary's requests until a test says what is wanted: the median and the 90th percentile of the
/// runs, nothing beyond `most`.
fn until(
    [runs, most]: [u64; 2],
    share: f64,
    [stable, canary]: [Version; 2],
    wanted: Verdict,
    test: impl Fn() -> Watch,
) -> [Option<u64>; 2] {
    let mut world = World::new(11, stable, canary);
    let mut needed: Vec<_> = (0..runs)
        .map(|_| {
            let mut watch = test();
            let mut requests = 0;
            while requests < most {
                let window = world.window(window_size(share), share, 1.0);
                requests += window.errors[1].trials;
                if watch(&window) == wanted {
                    return requests;
                }
            }
            u64::MAX
        })
        .collect();
    needed.sort_unstable();
    [runs / 2, runs * 9 / 10]
        .map(|rank| Some(needed[rank as usize]).filter(|needed| *needed < u64::MAX))
}

/// Ten requests of the canary a window, more or less.
fn window_size(share: f64) -> u32 {
    (10.0 / share).clamp(40.0, 1_000.0) as u32
}

const SHARES: [f64; 4] = [0.01, 0.05, 0.25, 0.5];
const RUNS: [u64; 2] = [200, 100_000];

fn cell([median, most]: [Option<u64>; 2]) -> String {
    let text = |value: Option<u64>| match value {
        Some(value) => {
            let unit = 10u64.pow(value.max(1).ilog10().saturating_sub(1));
            (value.div_ceil(unit) * unit).to_string()
        }
        None => format!("> {}", RUNS[1]),
    };
    format!("{} ({})", text(median), text(most))
}

fn row(name: &str, cells: impl Iterator<Item = String>) {
    let mut line = format!("| {name} |");
    for cell in cells {
        let _ = write!(line, " {cell} |");
    }
    println!("{line}");
}

fn version(errors: f64, slower: f64) -> Version {
    Version { errors, slower }
}

fn by_share(name: &str, versions: [Version; 2], wanted: Verdict, test: impl Fn() -> Watch) {
    by_share_of(name, |share| until(RUNS, share, versions, wanted, &test));
}

fn by_share_of(name: &str, needed: impl Fn(f64) -> [Option<u64>; 2]) {
    row(name, SHARES.into_iter().map(|share| cell(needed(share))));
}

#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_errors() {
    for base in [0.001, 0.01] {
        for more in [0.01, 0.02, 0.05, 0.1] {
            let name = format!("{} % | +{} %", base * 100.0, more * 100.0);
            let versions = [version(base, 1.0), version(base + more, 1.0)];
            by_share(&name, versions, Verdict::Worse, || errors(0.005));
        }
    }
}

#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_latency() {
    for quantile in [0.5, 0.99] {
        for (limit, slower) in [
            (1.2, 1.5),
            (1.1, 1.2),
            (1.1, 1.5),
            (1.05, 1.1),
            (1.05, 1.2),
            (1.05, 1.5),
            (1.0, 1.1),
            (1.0, 1.2),
            (1.0, 1.5),
        ] {
            let name = format!(
                "p{} | {limit} | {:.0} %",
                quantile * 100.0,
                (slower - 1.0) * 100.0
            );
            let versions = [version(0.01, 1.0), version(0.01, slower)];
            by_share(&name, versions, Verdict::Worse, || ratio(quantile, limit));
        }
    }
}

#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_within() {
    let (rare, usual) = (version(0.001, 1.0), EQUAL);
    by_share("errors, base 0.1 %", [rare; 2], Verdict::Within, || {
        errors(0.005)
    });
    by_share("errors, base 1 %", [usual; 2], Verdict::Within, || {
        errors(0.005)
    });
    by_share("p50", [usual; 2], Verdict::Within, || ratio(0.5, 1.2));
    by_share("p99", [usual; 2], Verdict::Within, || ratio(0.99, 1.2));
    by_share("hard error rate", [usual; 2], Verdict::Within, || hard(0.5));
}

#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_shadow() {
    let line = |name: &str, versions, wanted, test: &dyn Fn() -> Watch| {
        row(
            name,
            [cell(until(RUNS, 0.5, versions, wanted, test))].into_iter(),
        );
    };
    let base = version(0.001, 1.0);
    for more in [0.01, 0.02, 0.05, 0.1] {
        let name = format!("+{} % errors, base 0.1 % | caught", more * 100.0);
        line(
            &name,
            [base, version(0.001 + more, 1.0)],
            Verdict::Worse,
            &|| paired_errors(0.005),
        );
    }
    line(
        "equal errors, base 0.1 % | proven",
        [base; 2],
        Verdict::Within,
        &|| paired_errors(0.005),
    );
    line(
        "equal errors, base 1 % | proven",
        [EQUAL; 2],
        Verdict::Within,
        &|| paired_errors(0.005),
    );
    for different in [0.1, 0.05, 0.03, 0.02] {
        let name = format!("{} % of answers differ | caught", different * 100.0);
        line(
            &name,
            [base, version(different, 1.0)],
            Verdict::Worse,
            &|| agreement(0.99),
        );
    }
    for different in [0.005, 0.001] {
        let name = format!("{} % of answers differ | proven", different * 100.0);
        line(
            &name,
            [base, version(different, 1.0)],
            Verdict::Within,
            &|| agreement(0.99),
        );
    }
    for (quantile, name) in [(0.5, "p50"), (0.99, "p99")] {
        let slower = [base, version(0.001, 1.5)];
        line(
            &format!("{name} 50 % worse | caught"),
            slower,
            Verdict::Worse,
            &|| paired_ratio(quantile, 1.2),
        );
        line(
            &format!("{name} equal | proven"),
            [base; 2],
            Verdict::Within,
            &|| paired_ratio(quantile, 1.2),
        );
    }
}

#[test]
#[ignore = "measures"]
fn cost_of_a_window() {
    let mut world = World::new(3, EQUAL, EQUAL);
    let windows: Vec<_> = (0..5_000).map(|_| world.window(1_000, 0.25, 1.0)).collect();
    let tests: [(&str, Watch); 6] = [
        ("RateDifference", errors(0.005)),
        ("QuantileRatio", ratio(0.99, 1.2)),
        ("Rate", hard(0.5)),
        ("PairedDifference", paired_errors(0.005)),
        ("PairedQuantileRatio", paired_ratio(0.99, 1.2)),
        ("agreement", agreement(0.99)),
    ];
    for (name, mut watch) in tests {
        let start = Instant::now();
        for window in &windows {
            watch(window);
        }
        println!(
            "{name}: {:?} a window",
            start.elapsed() / windows.len() as u32
        );
    }
}

/// An hour of good service at every share, then more errors.
#[test]
#[ignore = "prints a table of docs/decisions.md; minutes"]
fn table_change() {
    for more in [0.01, 0.02, 0.05, 0.1] {
        by_share_of(&format!("+{} %", more * 100.0), |share| {
            let good = || {
                let mut world = World::new(5, EQUAL, EQUAL);
                let mut watch = errors(0.005);
                for _ in 0..3_600 {
                    watch(&world.window(window_size(share), share, 1.0));
                }
                watch
            };
            until(
                [50, RUNS[1]],
                share,
                [EQUAL, version(0.01 + more, 1.0)],
                Verdict::Worse,
                good,
            )
        });
    }
}

/// Forecasts are used to warn of plans that cannot be decided: a factor of two is good enough.
#[test]
fn a_forecast_is_about_right() {
    let check = |name: &str, share: f64, forecast: Option<u64>, test: &dyn Fn() -> Watch| {
        let [needed, _] = until([15, 100_000], share, [EQUAL; 2], Verdict::Within, test);
        let ratio = forecast.unwrap() as f64 / needed.unwrap() as f64;
        println!("{name} at {share}: {forecast:?} for {needed:?}");
        assert!(
            (0.5..2.0).contains(&ratio),
            "{name} at {share}: {forecast:?} for {needed:?}"
        );
    };
    let latencies: Latencies = lognormal(1.0)
        .into_iter()
        .map(|bucket| (bucket, 1))
        .collect();
    for share in [0.1, 0.5] {
        let of_stable = (1.0 - share) / share;
        let forecast = RateDifference::new(0.02, ALPHA).needed_for_within(0.01, of_stable);
        check("errors", share, forecast, &|| errors(0.02));
        for quantile in [0.5, 0.99] {
            let forecast =
                QuantileRatio::new(quantile, 1.2, ALPHA).needed_for_within(&latencies, of_stable);
            check("latency", share, forecast, &|| ratio(quantile, 1.2));
        }
    }
    check(
        "rate",
        0.5,
        Rate::at_most(0.03, ALPHA).needed_for_within(0.01),
        &|| hard(0.03),
    );
    let forecast = PairedDifference::new(0.02, ALPHA).needed_for_within(0.02);
    check("pairs", 0.5, forecast, &|| paired_errors(0.02));
    let forecast = PairedQuantileRatio::new(0.99, 1.2, ALPHA).needed_for_within(&latencies);
    check("paired latency", 0.5, forecast, &|| paired_ratio(0.99, 1.2));
}

/// What can never be proven has no forecast.
#[test]
fn no_forecast_for_what_is_not_within() {
    assert_eq!(
        RateDifference::new(0.0, ALPHA).needed_for_within(0.01, 1.0),
        None
    );
    assert_eq!(
        RateDifference::new(0.005, ALPHA).needed_for_within(0.01, 0.0),
        None
    );
    assert_eq!(Rate::at_least(0.99, ALPHA).needed_for_within(0.98), None);
    assert_eq!(
        PairedDifference::new(0.0, ALPHA).needed_for_within(0.01),
        None
    );
}
