//! What the command line set: kept in `state_dir/overrides.json`, it wins over the file until it
//! is cleared.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use mirror_api::{Change, Source};
use mirror_rollout::Share;
use serde::{Deserialize, Serialize};

use crate::config;

const FILE: &str = "overrides.json";
const FORMAT: u32 = 1;

/// What is set for one service; nothing = as the file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Override {
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    canary_share: Option<Share>,
}

/// What a canary's connections are chosen by: another key for each version that is tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Salt {
    version: String,
    key: [u64; 2],
}

/// Everything that the command line set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    format: u32,
    off: bool,
    #[serde(default)]
    services: BTreeMap<String, Override>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    salts: BTreeMap<String, Salt>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    swaps: BTreeMap<String, Swap>,
}

/// A version that a rollout has put into the place of another: it listens at the service's own
/// address, whatever the file still calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Swap {
    /// What the file calls stable.
    pub was: String,
    /// What is stable.
    pub now: String,
}

impl Default for Overrides {
    fn default() -> Self {
        Self {
            format: FORMAT,
            off: false,
            services: BTreeMap::new(),
            salts: BTreeMap::new(),
            swaps: BTreeMap::new(),
        }
    }
}

/// What holds for one service, file and command line together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effective {
    /// Whether it is mirrored.
    pub on: bool,
    /// Who decided that.
    pub from: Source,
    /// The share that the command line set, if any.
    pub sample_set: Option<f64>,
    /// The share that holds, before the budget lowers it.
    pub sample: f64,
}

/// What the file says of a service, as far as the command line can change it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Configured {
    /// The share of connections that is mirrored; 0 without a mirror.
    pub sample: f64,
    /// The canary's share of new connections.
    pub share: Share,
}

impl Override {
    fn sample_of(&self, configured: Configured) -> f64 {
        self.sample.unwrap_or(configured.sample)
    }

    fn share_of(&self, configured: Configured) -> Share {
        self.canary_share.unwrap_or(configured.share)
    }
}

impl Overrides {
    /// What is safe when one of two is on the disk and the other is wanted: of each service the less of
    /// the two. Keys and the names of versions are `self`'s.
    pub fn least<'a>(
        &self,
        other: &Self,
        services: impl IntoIterator<Item = (&'a str, Configured)>,
    ) -> Self {
        let mut least = self.clone();
        least.off |= other.off;
        for (name, configured) in services {
            let [mine, its] = [self.of(name), other.of(name)];
            let mut less = mine;
            if its.mirror == Some(false) {
                less.mirror = its.mirror;
            }
            if its.sample_of(configured) < mine.sample_of(configured) {
                less.sample = its.sample;
            }
            if its.share_of(configured) < mine.share_of(configured) {
                less.canary_share = its.canary_share;
            }
            least.services.insert(name.to_owned(), less);
        }
        least.tidy();
        least
    }

    /// The share of a service's canary, as the file has it configured.
    pub fn share(&self, service: &str, configured: Configured) -> Share {
        match self.off {
            true => Share::NONE,
            false => self.of(service).share_of(configured),
        }
    }

    /// The share of a service's connections that is mirrored: 0 where its mirror is off.
    pub fn mirrored(&self, service: &str, configured: Configured) -> f64 {
        let set = self.of(service);
        match self.off || set.mirror == Some(false) {
            true => 0.0,
            false => set.sample_of(configured),
        }
    }

    fn of(&self, service: &str) -> Override {
        self.services.get(service).copied().unwrap_or_default()
    }

    /// Whether `modelmirror off` holds: nothing is attached.
    pub fn is_off(&self) -> bool {
        self.off
    }

    /// Takes everything away, until a service is switched on again.
    pub fn switch_off(&mut self) {
        self.off = true;
        for service in self.services.values_mut() {
            service.mirror = None;
        }
        self.tidy();
    }

    /// Sets the share of a service's canary; nothing = as the file says. Any share but none lifts
    /// `off`, as [`Overrides::change`] does.
    pub fn set_canary<'a>(
        &mut self,
        service: &str,
        share: Option<Share>,
        all: impl IntoIterator<Item = &'a str>,
    ) {
        if share != Some(Share::NONE) {
            self.lift(all);
        }
        let entry = self.services.entry(service.to_owned()).or_default();
        entry.canary_share = share;
        self.tidy();
    }

    /// Sets the share of a service's canary, and lifts nothing.
    pub fn lower_share(&mut self, service: &str, share: Share) {
        let entry = self.services.entry(service.to_owned()).or_default();
        entry.canary_share = Some(share);
    }

    /// What the command line set as the share of a service's canary.
    pub fn canary_share(&self, service: &str) -> Option<Share> {
        self.services.get(service)?.canary_share
    }

    /// The key by which connections of a service are chosen for this version.
    pub fn salt(&self, service: &str, version: &str) -> Option<[u64; 2]> {
        let salt = self.salts.get(service)?;
        (salt.version == version).then_some(salt.key)
    }

    /// Whether `other` has the same key for a service.
    pub fn has_same_salt(&self, other: &Self, service: &str) -> bool {
        self.salts.get(service) == other.salts.get(service)
    }

    /// Keeps a key for a version. The one for an earlier version is forgotten.
    pub fn set_salt(&mut self, service: &str, version: &str, key: [u64; 2]) {
        let version = version.to_owned();
        self.salts.insert(service.to_owned(), Salt { version, key });
    }

    /// Which version of a service is stable, though the file may say otherwise.
    pub fn swap(&self, service: &str) -> Option<&Swap> {
        self.swaps.get(service)
    }

    /// A version has taken the other's place.
    pub fn set_swap(&mut self, service: &str, swap: Swap) {
        self.swaps.insert(service.to_owned(), swap);
    }

    /// Changes one service.
    ///
    /// Switching a service on, or back to the file, lifts `off` for it alone: every other one of
    /// `all` is then off by itself, as `status` shows, and can be switched on or cleared in turn.
    pub fn change<'a>(
        &mut self,
        service: &str,
        change: Change,
        all: impl IntoIterator<Item = &'a str>,
    ) {
        if matches!(change, Change::On | Change::Clear) {
            self.lift(all);
        }
        let entry = self.services.entry(service.to_owned()).or_default();
        match change {
            Change::On => entry.mirror = Some(true),
            Change::Off => entry.mirror = Some(false),
            Change::Sample(share) => entry.sample = Some(share),
            Change::Clear => {
                *entry = Override {
                    canary_share: entry.canary_share,
                    ..Override::default()
                }
            }
        }
        self.tidy();
    }

    /// Ends `off`. What it held back stays so, each by itself.
    fn lift<'a>(&mut self, all: impl IntoIterator<Item = &'a str>) {
        if !std::mem::take(&mut self.off) {
            return;
        }
        for service in all {
            let entry = self.services.entry(service.to_owned()).or_default();
            entry.mirror = Some(false);
            entry.canary_share = Some(Share::NONE);
        }
    }

    fn tidy(&mut self) {
        self.services.retain(|_, set| *set != Override::default());
    }

    /// What holds for a service that the file wants mirrored with `sample`.
    pub fn effective(&self, service: &str, sample: f64) -> Effective {
        let set = self.of(service);
        let (on, from) = match set.mirror {
            _ if self.off => (false, Source::Cli),
            Some(on) => (on, Source::Cli),
            None => (true, Source::File),
        };
        Effective {
            on,
            from,
            sample_set: set.sample,
            sample: set.sample.unwrap_or(sample),
        }
    }

    /// Names for which something is set and that the file does not know.
    pub fn strangers(&self, node: &config::Node) -> Vec<String> {
        let known = |name: &str| node.services.iter().any(|service| service.name == name);
        self.services
            .keys()
            .filter(|name| !known(name))
            .cloned()
            .collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let overrides: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if overrides.format != FORMAT {
            return Err(format!("format {} is not {FORMAT}", overrides.format));
        }
        let fit = |set: &Override| set.sample.is_none_or(|share| (0.0..=1.0).contains(&share));
        match overrides.services.iter().find(|(_, set)| !fit(set)) {
            Some((name, _)) => Err(format!("the sample of {name} is not from 0 to 1")),
            None => Ok(overrides),
        }
    }
}

/// Why the file cannot be used. Meanwhile nothing is mirrored, and the file stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {cure}")]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub cure: String,
}

/// The overrides with their file.
#[derive(Debug)]
pub struct State {
    path: PathBuf,
    overrides: Overrides,
    trouble: Option<Trouble>,
}

impl State {
    /// Reads what is set. What cannot be understood switches mirroring off, and is said by
    /// [`State::trouble`]; the file stays as it is.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let read = match std::fs::read_to_string(&path) {
            Ok(text) => Overrides::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Overrides::default()),
            Err(error) => Err(error.to_string()),
        };
        let (overrides, trouble) = match read {
            Ok(overrides) => (overrides, None),
            Err(why) => {
                let mut off = Overrides::default();
                off.switch_off();
                let shown = path.display();
                let aside = aside(&path);
                let trouble = Trouble {
                    what: format!("{shown} cannot be used ({why}), so nothing is mirrored"),
                    cure: format!(
                        "mend or remove it and restart, or run `modelmirror mirror on --service NAME`, which keeps it as {}",
                        aside.display()
                    ),
                };
                (off, Some(trouble))
            }
        };
        Self {
            path,
            overrides,
            trouble,
        }
    }

    /// What is set.
    pub fn overrides(&self) -> &Overrides {
        &self.overrides
    }

    /// Why the file could not be used, and the cure.
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Changes what is set, now and for the next start.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn update(&mut self, change: impl FnOnce(&mut Overrides)) -> anyhow::Result<()> {
        change(&mut self.overrides);
        if self.trouble.is_some() && self.path.exists() {
            let aside = aside(&self.path);
            std::fs::rename(&self.path, &aside)
                .with_context(|| format!("cannot keep {} aside", self.path.display()))?;
        }
        self.write()
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.trouble = None;
        Ok(())
    }

    /// Writes a whole file beside the old one and puts it in its place, so that a crash at any
    /// moment leaves one of the two.
    fn write(&self) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // Mode 0600 from its creation on.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        serde_json::to_writer_pretty(&mut file, &self.overrides)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        File::open(dir)?.sync_all()
    }
}

/// Where an unusable file is kept: the first free name.
fn aside(path: &Path) -> PathBuf {
    let name = |number: u32| match number {
        0 => path.with_extension("json.corrupt"),
        number => path.with_extension(format!("json.corrupt.{number}")),
    };
    (0..)
        .map(name)
        .find(|path| !path.exists())
        .unwrap_or_else(|| name(0))
}

#[cfg(test)]
mod tests;
