//! Daemons that end, and those that come after them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use tests::{Daemon, Exchange, Metrics, Request, Site, eventually, on, pattern, privileged};

fn small(connection: usize, index: usize) -> Request {
    Request::post("/echo", &pattern(700, (connection * 1000 + index) as u64))
}

/// Forty requests, which must all be compared.
fn mirrors(site: &Site, sent: &mut Vec<Exchange>) -> Result<()> {
    let before = site.settle().requests("compared");
    sent.extend(site.client.load(4, 10, small)?);
    let outcome = site.account(sent)?;
    let compared = outcome.requests("compared") - before;
    ensure!(
        compared == 40,
        "{compared} of 40 were compared\n{}",
        outcome.metrics
    );
    Ok(())
}

/// Ten requests that nobody copies.
fn is_not_mirrored(site: &Site, sent: &mut Vec<Exchange>) -> Result<()> {
    let before = site.copies()?;
    sent.extend(site.client.load(2, 5, small)?);
    let copies = site.copies()? - before;
    ensure!(copies == 0, "{copies} copies");
    site.serves(sent)
}

fn end(site: &mut Site, signal: Signal) -> Result<()> {
    let mut daemon = site.daemon.take().context("no daemon")?;
    daemon.process.signal(signal)?;
    let status = daemon.process.wait(Duration::from_secs(5))?;
    ensure!(
        signal == Signal::SIGKILL || status.success(),
        "{status}\n{}",
        daemon.process.output()
    );
    Ok(())
}

/// Every counter that was there, and is not smaller.
fn ensure_grown(before: &Metrics, after: &Metrics) -> Result<()> {
    for name in [
        "modelmirror_packets_total",
        "modelmirror_mirrored_packets_total",
        "modelmirror_mirrored_bytes_total",
        "modelmirror_connections_total",
        "modelmirror_tunnel_sent_packets_total",
        "modelmirror_tunnel_sent_bytes_total",
    ] {
        for reason in before.by(name, "reason") {
            let labels = [("reason", &*reason.0)];
            let (then, now) = (before.sum(name, &labels), after.sum(name, &labels));
            ensure!(then <= now, "{name} {}: {now} after {then}", reason.0);
        }
        let (then, now) = (before.sum(name, &[]), after.sum(name, &[]));
        ensure!(then <= now, "{name}: {now} after {then}");
    }
    Ok(())
}

#[test]
fn a_killed_daemon_s_successor_goes_on_counting() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let config = site.node_config();
        let mut daemon = site.daemon.take().context("no daemon")?;
        let (node, home, client) = (site.net.node.clone(), &site.home, site.client.clone());
        let mut successor = None;
        let mut sent = client.load_while(4, 25, small, || {
            let before = eventually("copies flow", || {
                let metrics = daemon.metrics()?;
                let mirrored = metrics.sum("modelmirror_mirrored_packets_total", &[]);
                ensure!(mirrored > 200.0, "{mirrored}");
                anyhow::Ok(metrics)
            });
            daemon.process.signal(Signal::SIGKILL)?;
            daemon.process.wait(Duration::from_secs(5))?;
            let next = Daemon::start(&node, home, &config)?;
            ensure_grown(&before, &next.metrics()?)?;
            next.wait_for_agent()?;
            let mirrored = next
                .metrics()?
                .sum("modelmirror_mirrored_packets_total", &[]);
            eventually("copies flow again", || {
                let now = next
                    .metrics()?
                    .sum("modelmirror_mirrored_packets_total", &[]);
                ensure!(now > mirrored + 200.0, "{now} after {mirrored}");
                anyhow::Ok(())
            });
            successor = Some(next);
            Ok(())
        })?;
        site.daemon = successor;
        site.account(&sent)?;
        let metrics = site.node_metrics()?;
        let opened = metrics.sum("modelmirror_connections_total", &[]) as usize;
        let known: std::collections::HashSet<_> = sent.iter().map(|e| e.local).collect();
        ensure!(
            opened == known.len(),
            "{opened} of {} connections",
            known.len()
        );
        mirrors(site, &mut sent)
    });
}

/// What an orphaned tap does, and that a daemon can be stopped without anybody noticing.
#[test]
fn without_a_daemon_copying_ends_after_five_seconds() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        site.count_copies()?;
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        end(site, Signal::SIGTERM)?;
        let stopped = Instant::now();
        ensure!(
            site.home.pins().join("v1/links").read_dir()?.count() > 0,
            "no link is left"
        );
        let before = site.copies()?;
        sent.extend(site.client.load(1, 5, small)?);
        ensure!(
            site.copies()? > before,
            "an ended daemon took its programs away"
        );
        // A request every now and then, until none is copied any more.
        eventually("copying has ended", || {
            let before = site.copies()?;
            sent.extend(site.client.load(1, 1, small)?);
            ensure!(
                site.copies()? == before,
                "{:?} after its end",
                stopped.elapsed()
            );
            anyhow::Ok(())
        });
        let after = stopped.elapsed();
        ensure!(
            after > Duration::from_secs(4),
            "it ended after {after:?} already"
        );
        is_not_mirrored(site, &mut sent)?;
        site.start_daemon(&site.node_config())?;
        site.wait_for_agent();
        ensure!(site.packets("stale")? > 20, "{}", site.node_metrics()?);
        mirrors(site, &mut sent)
    });
}

#[test]
fn detach_on_exit_takes_everything_away() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        site.count_copies()?;
        end(site, Signal::SIGTERM)?;
        let config = site.node_config();
        let arguments = ["--detach-on-exit"];
        let daemon = Daemon::start_with(&site.net.node, &site.home, &config, &arguments)?;
        site.daemon = Some(daemon);
        site.wait_for_agent();
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        end(site, Signal::SIGTERM)?;
        ensure!(!site.home.pins().exists(), "pins are left");
        is_not_mirrored(site, &mut sent)
    });
}

fn switch(site: &Site, arguments: &[&str]) -> Result<String> {
    site.home.modelmirror(&site.net.node, arguments)
}

#[test]
fn off_survives_a_restart_and_on_lifts_it() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        site.count_copies()?;
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        let said = switch(site, &["off"])?;
        ensure!(said.contains("mirror on"), "{said}");
        is_not_mirrored(site, &mut sent)?;
        end(site, Signal::SIGKILL)?;
        site.start_daemon(&site.node_config())?;
        is_not_mirrored(site, &mut sent)?;
        switch(site, &["mirror", "on", "--service", "digits"])?;
        site.wait_for_agent();
        mirrors(site, &mut sent)?;
        switch(site, &["mirror", "off", "--service", "digits"])?;
        is_not_mirrored(site, &mut sent)?;
        ensure!(site.packets("off")? > 0, "{}", site.node_metrics()?);
        switch(site, &["mirror", "on", "--service", "digits"])?;
        mirrors(site, &mut sent)
    });
}

#[test]
fn off_works_without_a_daemon() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        site.count_copies()?;
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        let config = site
            .daemon
            .as_ref()
            .context("no daemon")?
            .config()
            .to_owned();
        end(site, Signal::SIGKILL)?;
        let said = switch(site, &["off", "--config", &config.to_string_lossy()])?;
        ensure!(said.contains("removed links/eth0"), "{said}");
        ensure!(!site.home.pins().exists(), "pins are left");
        is_not_mirrored(site, &mut sent)?;
        site.start_daemon(&site.node_config())?;
        is_not_mirrored(site, &mut sent)?;
        switch(site, &["mirror", "on", "--service", "digits"])?;
        site.wait_for_agent();
        // The counters are new ones, too.
        sent.extend(site.client.load(4, 10, small)?);
        eventually("all are compared", || {
            let records = site.records()?.len();
            ensure!(records == 80, "{records} of 80");
            anyhow::Ok(())
        });
        site.serves(&sent)
    });
}

#[test]
fn a_config_is_read_again_and_a_bad_one_refused() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        site.count_copies()?;
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        let daemon = site.daemon.as_ref().context("no daemon")?;
        let path = daemon.config().to_owned();
        let good = fs::read_to_string(&path)?;
        fs::write(&path, good.replace("sample", "simple"))?;
        daemon.process.signal(Signal::SIGHUP)?;
        eventually("the bad config is refused", || {
            let status = switch(site, &["status"])?;
            ensure!(
                status.contains("was not taken") && status.contains("simple"),
                "{status}"
            );
            Ok(())
        });
        mirrors(site, &mut sent)?;
        let mut config = site.node_config();
        config["service"][0]["mirror"]["sample"] = 0.0.into();
        fs::write(&path, config.to_string())?;
        daemon.process.signal(Signal::SIGHUP)?;
        site.wait_for("the sample is 0", |metrics| {
            metrics.sum("modelmirror_mirror_sample_ratio", &[("of", "effective")]) == 0.0
        });
        is_not_mirrored(site, &mut sent)?;
        ensure!(site.packets("not_sampled")? > 0, "{}", site.node_metrics()?);
        let status = switch(site, &["status"])?;
        ensure!(!status.contains("was not taken"), "{status}");
        fs::write(&path, &good)?;
        site.daemon
            .as_ref()
            .context("no daemon")?
            .process
            .signal(Signal::SIGHUP)?;
        site.wait_for("the sample is 1", |metrics| {
            metrics.sum("modelmirror_mirror_sample_ratio", &[("of", "effective")]) == 1.0
        });
        mirrors(site, &mut sent)
    });
}

/// A daemon that does not start, and what it says.
fn refusal(site: &Site) -> Result<String> {
    match Daemon::start(&site.net.node, &site.home, &site.node_config()) {
        Ok(_) => bail!("it has started"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

#[test]
fn pins_of_another_layout_are_refused() {
    if !privileged() {
        return;
    }
    on(Site::quiet(), |site| {
        site.start_agent(&site.home.shadow_config())?;
        let (pins, config) = (
            site.home.pins().to_owned(),
            site.home.path().join("node.toml"),
        );
        fs::create_dir_all(pins.join("v999/maps"))?;
        let said = refusal(site)?;
        ensure!(
            said.contains("v999") && said.contains("modelmirror off"),
            "{said}"
        );
        switch(site, &["off", "--config", &config.to_string_lossy()])?;
        ensure!(!pins.exists(), "`off` has left {}", pins.display());

        // A map that is not what its name says.
        site.start_daemon(&site.node_config())?;
        end(site, Signal::SIGTERM)?;
        let maps = pins.join("v1/maps");
        fs::remove_file(maps.join("TAP"))?;
        fs::rename(maps.join("AGENTS"), maps.join("TAP"))?;
        let said = refusal(site)?;
        ensure!(
            said.contains("TAP: pinned map is") && said.contains("modelmirror off"),
            "{said}"
        );
        switch(site, &["off", "--config", &config.to_string_lossy()])?;
        site.start_daemon(&site.node_config())?;
        switch(site, &["mirror", "on", "--service", "digits"])?;
        site.wait_for_agent();
        mirrors(site, &mut Vec::new())
    });
}

fn mode(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

#[test]
fn files_are_for_their_owner_alone() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        mirrors(site, &mut Vec::new())?;
        ensure!(
            mode(&site.home.control())? == 0o600,
            "{:o}",
            mode(&site.home.control())?
        );
        let pins = site.home.pins();
        ensure!(mode(pins)? == 0o700, "{:o}", mode(pins)?);
        let mut folders = vec![site.home.record_dir()];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            ensure!(
                mode(&folder)? == 0o700,
                "{}: {:o}",
                folder.display(),
                mode(&folder)?
            );
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    ensure!(
                        mode(&path)? == 0o600,
                        "{}: {:o}",
                        path.display(),
                        mode(&path)?
                    );
                    files += 1;
                }
            }
        }
        ensure!(files > 0, "there are no records");
        Ok(())
    });
}
