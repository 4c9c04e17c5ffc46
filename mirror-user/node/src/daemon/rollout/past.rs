//! What the records tell of earlier rollouts. Reading them may take long: the loop has it done, and goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use mirror_api::{RolloutSummary, Start};
use mirror_rollout::machine::Rollout;
use mirror_rollout::record::Line;

use super::clock::Moment;
use super::records::{self, Records};
use crate::control::{Refusal, Reply};
use crate::daemon::core::{Core, Effect};
use crate::daemon::settings::Ticket;

/// The last rollout of each service, or why it cannot be read.
pub(in crate::daemon) type Past = BTreeMap<String, Result<Option<Last>, String>>;

/// The last rollout of a service.
#[derive(Debug)]
pub(in crate::daemon) struct Last {
    pub(super) rollout: Rollout,
    /// Where its record is.
    pub(super) path: PathBuf,
    /// When its last line was written.
    pub(super) written: Option<Moment>,
}

/// What somebody wants to know.
#[derive(Debug)]
pub(in crate::daemon) enum Query {
    /// The record of a service's rollout, for people.
    Record {
        service: String,
        id: String,
        path: PathBuf,
    },
    /// The rollouts of these services, the last one first.
    History(Vec<String>),
    /// What was before the one that is to begin.
    Before(Beginning),
}

/// A rollout that is to begin.
#[derive(Debug)]
pub(in crate::daemon) struct Beginning {
    pub(in crate::daemon) service: String,
    pub(in crate::daemon) start: Box<Start>,
    /// Whether it only is to be said what would be done.
    pub(in crate::daemon) is_dry_run: bool,
}

/// What was found out.
#[derive(Debug)]
pub(in crate::daemon) enum Found {
    Answer(Result<Reply, Refusal>),
    LookedBack(LookedBack),
}

/// What was before a rollout that is to begin.
#[derive(Debug)]
pub(in crate::daemon) struct LookedBack {
    pub(in crate::daemon) beginning: Beginning,
    pub(in crate::daemon) earlier: Result<Earlier, String>,
}

/// A service's rollouts.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Earlier {
    /// All there are.
    pub(in crate::daemon) ids: BTreeSet<String>,
    /// Those that can be understood.
    pub(in crate::daemon) rollouts: Vec<RolloutSummary>,
}

impl Last {
    /// What the lines of its record come to; nothing where none was written.
    pub(in crate::daemon) fn replay(path: &Path, lines: &[Line]) -> Result<Option<Self>, String> {
        let Some(last) = lines.last() else {
            return Ok(None);
        };
        let rollout = Rollout::replay(lines).map_err(|why| format!("{}: {why}", path.display()))?;
        Ok(Some(Self {
            rollout,
            path: path.to_owned(),
            written: Some(Moment {
                time: last.time,
                up: last.up_ms.map(Duration::from_millis),
            }),
        }))
    }
}

#[cfg(test)]
impl Last {
    /// The share that it allows.
    pub(in crate::daemon) fn share(&self) -> mirror_rollout::Share {
        self.rollout.share()
    }
}

impl Records {
    /// The last rollouts of these services.
    pub(in crate::daemon) fn past<'a>(&self, services: impl Iterator<Item = &'a str>) -> Past {
        let last = services.map(|service| {
            let last = self.last(service).map_err(|error| format!("{error:#}"));
            (service.to_owned(), last)
        });
        last.collect()
    }

    fn last(&self, service: &str) -> anyhow::Result<Option<Last>> {
        let Some(path) = self.of(service)?.pop() else {
            return Ok(None);
        };
        match Last::replay(&path, &records::read(&path)?) {
            Ok(None) => {
                // The daemon was ended before it could write how this began: nothing did.
                std::fs::remove_file(&path)?;
                self.last(service)
            }
            last => last.map_err(anyhow::Error::msg),
        }
    }

    /// Reads what is asked for.
    pub(in crate::daemon) fn find(&self, query: Query) -> Found {
        let failed = |error: anyhow::Error| Refusal::Failed(format!("{error:#}"));
        match query {
            Query::Record { service, id, path } => {
                if !path.exists() {
                    let cure =
                        format!("`modelmirror rollout history --service {service}` lists them");
                    let why = format!("{service} has no rollout {id}: {cure}");
                    return Found::Answer(Err(Refusal::Invalid(why)));
                }
                let lines = records::told(&path).map_err(failed);
                Found::Answer(lines.map(Reply::Record))
            }
            Query::History(services) => {
                let found = services.iter().map(|service| self.summaries(service));
                let rollouts = found.collect::<anyhow::Result<Vec<_>>>().map_err(failed);
                Found::Answer(rollouts.map(|rollouts| {
                    let mut rollouts = rollouts.concat();
                    rollouts.sort_by_key(|rollout| std::cmp::Reverse(rollout.started));
                    Reply::Rollouts(rollouts)
                }))
            }
            Query::Before(beginning) => {
                let earlier = self.earlier(&beginning.service);
                Found::LookedBack(LookedBack {
                    beginning,
                    earlier: earlier.map_err(|error| format!("{error:#}")),
                })
            }
        }
    }

    fn earlier(&self, service: &str) -> anyhow::Result<Earlier> {
        let paths = self.of(service)?;
        let ids = paths.iter().filter_map(|path| path.file_stem());
        Ok(Earlier {
            ids: ids.map(|id| id.to_string_lossy().into_owned()).collect(),
            rollouts: self.summaries(service)?,
        })
    }

    fn summaries(&self, service: &str) -> anyhow::Result<Vec<RolloutSummary>> {
        let paths = self.of(service).context("the rollouts' records")?;
        // One that cannot be understood is no reason to hide the others.
        let read = paths.iter().filter_map(|path| {
            let said = records::summary(path);
            said.inspect_err(|error| tracing::warn!(service, "{error:#}"))
                .ok()
        });
        Ok(read.collect())
    }
}

impl Core {
    /// The rollouts of a service, or of all; the last one first.
    pub(in crate::daemon) fn history(
        &mut self,
        ticket: Ticket,
        service: Option<String>,
    ) -> Result<(), Refusal> {
        let services = match service {
            Some(service) => {
                self.find(&service)?;
                vec![service]
            }
            None => self.names(),
        };
        self.effect(Effect::Read(ticket, Query::History(services)));
        Ok(())
    }

    /// A rollout's record, for people: the last one's unless another is named.
    pub(in crate::daemon) fn told(
        &mut self,
        ticket: Ticket,
        service: String,
        id: Option<String>,
    ) -> Result<(), Refusal> {
        self.find(&service)?;
        let id = match id {
            Some(id) => id,
            None => self.running(&service)?.rollout.started().id.clone(),
        };
        if !is_file_name(&id) {
            return Err(Refusal::Invalid(format!("{id:?} is no rollout's id")));
        }
        let path = self.rollouts.records.path(&service, &id);
        self.effect(Effect::Read(ticket, Query::Record { service, id, path }));
        Ok(())
    }
}

/// Whether a file of this name can be there.
fn is_file_name(id: &str) -> bool {
    Path::new(id).file_name().is_some_and(|name| name == id)
}
