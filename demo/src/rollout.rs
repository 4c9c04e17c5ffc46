//! The third act: rollouts decide by themselves. A good version goes all the way; a bad one, slower
//! and wrong for one tenant, is caught in the shadow, and where that is left out, before clients.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::interrupt::Interrupt;
use crate::load::{Load, Running};
use crate::screen::Screen;
use crate::stage::{NEXT, STABLE, Stage};

/// The version that nobody should get.
pub(crate) const BAD: &str = "v14";

/// What `rollout start --wait` may end with.
const PROMOTED: i32 = 0;
const ROLLED_BACK: i32 = 3;

/// How long one rollout may take here.
const PATIENCE: &str = "240s";

/// Seconds instead of minutes; the statistics are the same.
pub(crate) fn plan() -> toml::Table {
    toml::toml! {
        stages = [0.01, 0.1, 0.5, 1.0]
        [shadow]
        min_compared = 500
        agreement = 0.85
        max_latency_ratio = 3.0
        max_error_delta = 0.02
        [canary]
        min_duration = "3s"
        min_requests = 20
        max_error_delta = 0.02
        max_latency_ratio = 3.0
        proven_from = 0.5
        bake = "5s"
        warmup = "0s"
    }
}

/// Three rollouts under load; returns what failed for clients.
pub(crate) fn run(
    stage: &mut Stage,
    load: Load,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let mut go = |stage: &Stage, arguments: &[&str], expected| {
        let seen = load.send(stage, |running| {
            follow(stage, arguments, expected, running, screen, interrupt)
        })?;
        failures.extend_from_slice(seen.failures());
        Ok::<_, anyhow::Error>(())
    };
    println!("demo: a rollout of {NEXT}: shadow, then 1 %, 10 %, 50 % and all of the clients\n");
    stage.command(&["mirror", "on"])?;
    go(stage, &["start"], PROMOTED)?;
    println!("\ndemo: {NEXT} is started in the place of {STABLE}, and steering ends");
    stage.replace_stable(NEXT)?;
    stage.finish()?;

    println!(
        "\ndemo: a rollout of {BAD}, which takes longer and reads one tenant's digits upside down\n"
    );
    stage.put_on_trial(BAD)?;
    go(stage, &["start", "--canary-version", BAD], ROLLED_BACK)?;
    println!("\n{}", stage.explain()?);

    println!("demo: the same once more, straight to clients\n");
    let straight = stage.plan_without_shadow(&plan())?;
    let straight = straight.to_str().context("the plan's path is no text")?;
    let again = [
        "start",
        "--canary-version",
        BAD,
        "--again",
        "--plan",
        straight,
    ];
    go(stage, &again, ROLLED_BACK)?;
    println!("\n{}", stage.explain()?);
    Ok(failures)
}

/// Runs `modelmirror rollout ARGUMENTS --wait`, and passes on what it says.
fn follow(
    stage: &Stage,
    arguments: &[&str],
    expected: i32,
    running: &Running,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<()> {
    let arguments = [arguments, &["--wait", "--timeout", PATIENCE]].concat();
    let mut rollout = stage.rollout(&arguments)?;
    let code = loop {
        if let Some(status) = rollout.try_wait()? {
            break status.code();
        }
        running.wait(Duration::from_millis(200), interrupt, || {})?;
    };
    screen.finish();
    ensure!(
        code == Some(expected),
        "the rollout ended with {code:?}, not with {expected}"
    );
    println!("exit code {expected}");
    Ok(())
}
