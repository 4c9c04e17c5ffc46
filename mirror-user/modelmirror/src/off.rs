//! `modelmirror off`, with a daemon and without.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use mirror_api::Done;
use nix::fcntl::{Flock, FlockArg};

use super::block_on;
use super::commands::print_done;
use crate::arguments::{ConfigFile, Global};
use crate::config_file;
use crate::print::Printer;
use mirror_base::config;
use mirror_base::control::{Client, ClientError};
use mirror_node::dataplane;
use mirror_node::offload;
use mirror_node::state::{Overrides, State};

/// How long the disk may take to have it hold after a restart.
const PATIENCE: Duration = Duration::from_secs(2);

/// What somebody at a terminal is asked.
pub(super) const QUESTION: &str = "Detach all programs from this host, and stay off after restarts? Nothing is mirrored any more, and canaries get no connections.";

/// Nothing was found, and nobody said where to look.
#[derive(Debug, thiserror::Error)]
#[error("nothing is attached to this host, no daemon answers at {}, and there is no usable config in {}: name one with --config; --if-present takes this for success", socket.display(), config_file::FOLDER)]
struct NothingFound {
    socket: PathBuf,
}

/// Asks the daemon; where none answers, or it fails, takes the pins away itself.
pub(super) fn off(
    printer: Printer,
    global: &Global,
    file: &ConfigFile,
    if_present: bool,
) -> anyhow::Result<ExitCode> {
    let (places, trouble) = Places::of(file, global.names_config)?;
    let socket = global.control.as_deref().unwrap_or(&places.control_socket);
    let client = Client::new(socket);
    let ask = || block_on(async { Ok(client.off().await) });
    match ask()? {
        Ok(done) => print_done(printer, &done),
        // Not allowed to ask means not allowed to detach either.
        Err(error @ ClientError::Closed { .. }) => Err(error.into()),
        Err(error) => {
            let knows = if_present || places.file.is_some();
            let (mut done, mut found) = off_without_daemon(&places, &error, knows)?;
            done.warnings.extend(trouble);
            // One that has started meanwhile may have read what was set before.
            if let (ClientError::NoDaemon { .. }, Ok(also)) = (&error, ask()?) {
                done.done.extend(also.done);
                done.warnings.extend(also.warnings);
                found = true;
            }
            let code = print_done(printer, &done)?;
            let lives = !matches!(error, ClientError::NoDaemon { .. });
            match found || knows || lives {
                true => Ok(code),
                false => Err(NothingFound {
                    socket: socket.to_owned(),
                }
                .into()),
            }
        }
    }
}

/// Writes down that everything is off, and puts back what was switched off for it.
pub(super) fn keep(file: &ConfigFile, is_typed: bool) -> anyhow::Result<ExitCode> {
    let (places, _) = Places::of(file, is_typed)?;
    let kept = State::open(&places.state_dir).update(Overrides::switch_off);
    let (done, failures) = offload::put_back(&places.state_dir);
    for line in done {
        writeln!(std::io::stdout(), "{line}")?;
    }
    kept?;
    let failures = failures.iter();
    let failures: Vec<String> = failures
        .map(|(name, why)| format!("LRO of {name}: {why}"))
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(ExitCode::SUCCESS)
}

/// What `off` needs to know when no daemon answers.
struct Places {
    control_socket: PathBuf,
    pin_dir: PathBuf,
    state_dir: PathBuf,
    /// The file that says so; nothing = these are the defaults.
    file: Option<PathBuf>,
    /// Whether somebody typed its name.
    is_typed: bool,
}

impl Places {
    /// A file that was typed has to be usable. One that only stands where it would be does not hold up an emergency: then
    /// the defaults hold, with a warning.
    fn of(file: &ConfigFile, is_typed: bool) -> Result<(Self, Option<String>), config::Error> {
        let default = Self {
            control_socket: config::CONTROL_SOCKET.into(),
            pin_dir: config::PIN_DIR.into(),
            state_dir: config::STATE_DIR.into(),
            file: None,
            is_typed: false,
        };
        let Some(file) = file.node_if_any() else {
            return Ok((default, None));
        };
        match mirror_node::config::read_node(&file) {
            Ok(node) => {
                let places = Self {
                    control_socket: node.control_socket,
                    pin_dir: node.pin_dir,
                    state_dir: node.state_dir,
                    file: Some(file),
                    is_typed,
                };
                Ok((places, None))
            }
            Err(error) if is_typed => Err(error),
            Err(_) => {
                let shown = file.display();
                let check = format!("`modelmirror config check --config {shown}` says why");
                let trouble = format!("{shown} cannot be used, so the defaults hold: {check}");
                Ok((default, Some(trouble)))
            }
        }
    }

    /// What was typed: whoever names no config may have another `pin_dir`.
    fn typed(&self) -> Option<&Path> {
        self.file.as_deref().filter(|_| self.is_typed)
    }
}

/// Less risk first, the disk after. Says also whether anything was attached.
/// Who knows neither that nor where to look is not told "off".
fn off_without_daemon(
    places: &Places,
    asked: &ClientError,
    knows: bool,
) -> anyhow::Result<(Done, bool)> {
    let mut done = Done::default();
    if !matches!(asked, ClientError::NoDaemon { .. }) {
        done.warnings
            .push(format!("the daemon could not do it: {asked}"));
    }
    if is_held(&places.pin_dir) {
        let pins = places.pin_dir.display();
        done.warnings.push(format!(
            "a daemon that does not answer still has {pins}: what is removed now stays away, but stop it"
        ));
    }
    detach(&places.pin_dir, &mut done)?;
    if places.typed().is_none() {
        for pin_dir in dataplane::find_pins(&dataplane::attached()?) {
            detach(&pin_dir, &mut done)?;
        }
    }
    let found = !done.done.is_empty();
    if !found {
        done.done.push("nothing was attached".to_owned());
    }
    let state = places.state_dir.display();
    let mut said = "off".to_owned();
    match keep_apart(places.file.as_deref()) {
        Ok(also) => {
            done.done.extend(also);
            said = match found || knows {
                true => format!("off, also after a restart (kept in {state})"),
                false => format!("a daemon that starts with {state} will attach nothing"),
            };
        }
        Err(why) => {
            done.warnings.push(format!(
                "it is not kept in {state}, so a daemon that starts attaches again: {why:#}"
            ));
        }
    }
    let left = still_attached()?;
    if left.is_empty() {
        done.done.push(said);
        return Ok((done, found));
    }
    let left: Vec<&str> = left.keys().map(String::as_str).collect();
    let left = format!("still attached, of another pin_dir: {}", left.join(", "));
    match places.typed() {
        // That one is off.
        Some(_) => {
            done.done.push(said);
            done.warnings.push(left);
            Ok((done, found))
        }
        None => bail!("{left}; name its config with --config"),
    }
}

/// Takes away what is pinned, and says what that was.
fn detach(pin_dir: &Path, done: &mut Done) -> anyhow::Result<()> {
    let pins = pin_dir.display();
    let detached = dataplane::detach_all(pin_dir)
        .with_context(|| format!("cannot remove what is pinned in {pins}"))?;
    let removed = detached.iter().map(|pin| format!("removed {pin} ({pins})"));
    done.done.extend(removed);
    Ok(())
}

/// What is attached when the kernel has had a moment: it detaches a program after its link's pin has gone.
fn still_attached() -> anyhow::Result<BTreeMap<String, u32>> {
    let begun = Instant::now();
    loop {
        let left = dataplane::attached()?;
        if left.is_empty() || begun.elapsed() > PATIENCE {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a daemon runs that has these pins.
fn is_held(pin_dir: &Path) -> bool {
    let Ok(opened) = File::open(pin_dir) else {
        return false;
    };
    Flock::lock(opened, FlockArg::LockExclusiveNonblock).is_err()
}

/// [`keep`] in a process of its own, which goes on when this one no longer waits: one that a disk holds
/// up cannot even end. Says what was put back.
fn keep_apart(file: Option<&Path>) -> anyhow::Result<Vec<String>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(["off", "--only-keep"]);
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.stderr(Stdio::piped()).spawn()?;
    let (said, ended) = channel();
    std::thread::spawn(move || said.send(child.wait_with_output()));
    let output = ended
        .recv_timeout(PATIENCE)
        .context("the disk does not answer; it is written when it does")??;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{}", why.trim().trim_start_matches("error: "));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.lines().map(str::to_owned).collect())
}
