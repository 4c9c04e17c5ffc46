//! A program of somebody else's in the uplink's chain, before ours.

use anyhow::{Context, Result, ensure};
use tests::{Fate, ForeignProgram, Site, eventually, on, privileged};

use super::{mirrors, small};

/// Somebody does so with all that leaves by the uplink, then no more.
fn check(fate: Fate, during: impl Fn(&Site) -> Result<()>) {
    on(Site::start(), |site| {
        let mut sent = site.client.load_while(3, 20, small, || {
            eventually("copies flow", || {
                let mirrored = site.packets("mirrored")?;
                ensure!(mirrored > 100, "{mirrored}");
                anyhow::Ok(())
            });
            let _foreign = ForeignProgram::first_at_egress(&site.net.node, "eth1", fate)?;
            during(site)
        })?;
        site.account(&sent)?;
        site.wait_for_agent();
        mirrors(site, &mut sent)
    });
}

/// Clones that are dropped cost nothing but themselves, and then the agent seems dead.
#[test]
fn it_drops_everything() {
    if !privileged() {
        return;
    }
    check(Fate::Drop, |site| {
        for reason in ["clone_failed", "agent_down"] {
            eventually(reason, || {
                let packets = site.packets(reason)?;
                ensure!(packets > 50, "{packets}");
                anyhow::Ok(())
            });
        }
        Ok(())
    });
}

/// A clone that leaves as it is stops copying at once, until our program is the first again.
#[test]
fn it_lets_clones_go_as_they_are() {
    if !privileged() {
        return;
    }
    check(Fate::Pass, |site| {
        let daemon = site.daemon.as_ref().context("no daemon")?;
        eventually("it is noticed", || {
            let said = daemon.process.output();
            ensure!(said.contains("without their tunnel headers"), "{said}");
            anyhow::Ok(())
        });
        ensure!(
            site.packets("clone_failed")? > 0,
            "{}",
            site.node_metrics()?
        );
        let mirrored = site.packets("mirrored")?;
        eventually("copies flow again", || {
            let now = site.packets("mirrored")?;
            ensure!(now > mirrored + 100, "{now} after {mirrored}");
            anyhow::Ok(())
        });
        Ok(())
    });
}
