//! A daemon that is held up mirrors on; one that is dead for good, in a process that goes on, does
//! not.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::{Request, Site, eventually, eventually_within, on, pattern, privileged};

fn small(connection: usize, index: usize) -> Request {
    Request::post("/echo", &pattern(700, (connection * 1000 + index) as u64))
}

#[test]
fn a_loop_that_is_held_up_is_borne_and_a_dead_one_is_not() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let daemon = site.daemon.as_ref().context("no daemon")?;
        let config = daemon.config();
        let text = fs::read_to_string(config)?;
        // Whoever reads it waits until somebody writes it: the daemon's loop, told to read it again.
        fs::remove_file(config)?;
        mkfifo(config, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let sent = site.client.load_while(3, 20, small, || {
            daemon.process.signal(Signal::SIGHUP)?;
            let start = Instant::now();
            let patience = Duration::from_secs(20);
            eventually_within(patience, "the programs' own patience is over", || {
                let held_up = start.elapsed();
                ensure!(held_up > Duration::from_secs(7), "{held_up:?}");
                anyhow::Ok(())
            });
            let before = site.packets("mirrored")?;
            eventually("copies flow", || {
                let now = site.packets("mirrored")?;
                ensure!(now > before + 100, "{now} after {before}");
                anyhow::Ok(())
            });
            let stale = site.packets("stale")?;
            ensure!(stale == 0, "{stale} after {:?}", start.elapsed());
            eventually_within(patience, "the heartbeat has ended", || {
                let stale = site.packets("stale")?;
                ensure!(stale > 100, "{stale} after {:?}", start.elapsed());
                anyhow::Ok(())
            });
            fs::write(config, &text)?;
            let before = site.packets("mirrored")?;
            eventually("copies flow again", || {
                let now = site.packets("mirrored")?;
                ensure!(now > before + 100, "{now} after {before}");
                anyhow::Ok(())
            });
            Ok(())
        })?;
        site.serves(&sent)
    });
}
