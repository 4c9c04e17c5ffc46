//! Agents that die.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::{Site, eventually, eventually_within, on, privileged};

use super::{mirrors, small};

/// Copying stops within three seconds, and goes on by itself.
fn check(end: Signal) {
    on(Site::start(), |site| {
        let mut sent = site.client.load_while(3, 20, small, || dies(site, end))?;
        site.serves(&sent)?;
        let agent = site.agent.as_mut().context("no agent")?;
        agent.process.signal(Signal::SIGKILL)?;
        agent.process.wait(Duration::from_secs(5))?;
        site.start_agent(&site.home.shadow_config())?;
        site.wait_for_agent();
        let before = site.records()?.len();
        sent.extend(site.client.load(4, 10, small)?);
        eventually("requests are compared again", || {
            let records = site.records()?.len();
            ensure!(records == before + 40, "{records} after {before}");
            Ok(())
        });
        site.serves(&sent)
    });
}

fn dies(site: &Site, end: Signal) -> Result<()> {
    let mirrored = || site.packets("mirrored");
    eventually("copies flow", || {
        let mirrored = mirrored()?;
        ensure!(mirrored > 100, "{mirrored}");
        Ok(())
    });
    let agent = site.agent.as_ref().context("no agent")?;
    agent.process.signal(end)?;
    let death = Instant::now();
    eventually_within(
        Duration::from_secs(3),
        "the agent's death is noticed",
        || {
            let metrics = site.node_metrics()?;
            ensure!(
                metrics.sum("modelmirror_agent_up", &[]) == 0.0,
                "{:?}",
                death.elapsed()
            );
            Ok(())
        },
    );
    let (copied, refused) = (mirrored()?, site.packets("agent_down")?);
    eventually("packets are counted for the dead agent", || {
        let now = site.packets("agent_down")?;
        ensure!(now > refused + 100, "{now} after {refused}");
        Ok(())
    });
    ensure!(mirrored()? == copied, "copied to a dead agent");
    Ok(())
}

#[test]
fn it_is_killed() {
    if privileged() {
        check(Signal::SIGKILL);
    }
}

#[test]
fn it_is_stopped() {
    if privileged() {
        check(Signal::SIGSTOP);
    }
}

/// The same agent wakes up, in the middle of connections that it knows half of.
#[test]
fn it_sleeps_and_wakes_up() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let mut sent = site.client.load_while(3, 20, small, || {
            dies(site, Signal::SIGSTOP)?;
            let agent = site.agent.as_ref().context("no agent")?;
            agent.process.signal(Signal::SIGCONT)?;
            site.wait_for_agent();
            Ok(())
        })?;
        site.account(&sent)?;
        mirrors(site, &mut sent)
    });
}
