//! An uplink that drops, and programs of somebody else's in its chain, before ours.

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

/// The mirror yields when the uplink's queue drops, whosever the packets were, and comes back.
#[test]
fn its_queue_drops() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let tc = |arguments: &str| {
            let arguments: Vec<_> = arguments.split(' ').collect();
            site.net.node.output("tc", &arguments).map(drop)
        };
        let sent = site.client.load_while(3, 20, small, || {
            tc("qdisc add dev eth1 root tbf rate 1mbit burst 5kb limit 10kb")?;
            site.wait_for("the mirror pauses", |metrics| {
                metrics.sum("modelmirror_mirror_paused", &[]) == 1.0
            });
            tc("qdisc delete dev eth1 root")?;
            eventually("packets are counted", || {
                let paused = site.packets("paused")?;
                ensure!(paused > 100, "{paused}");
                anyhow::Ok(())
            });
            site.wait_for("the mirror goes on", |metrics| {
                metrics.sum("modelmirror_mirror_paused", &[]) == 0.0
            });
            Ok(())
        })?;
        site.account(&sent)?;
        let mut sent = sent;
        mirrors(site, &mut sent)
    });
}
