//! Labels that come while the agent runs: looked for in its records, and told in the summary.
//!
//! A label comes long after its record was written, so it is looked for there; until then nothing
//! is kept of any exchange. What was found stays found when the oldest records are deleted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use mirror_api::summary::LabelSummary;
use mirror_wire::memory::{Lease, Memory};

use crate::compare::Tolerance;
use crate::config;
use crate::labels::file::LabelFile;
use crate::labels::{BadLine, Id, Join, Joined, Label, Unused};
use crate::record::read::read;

/// Labels that are looked for at once.
const BATCH: usize = 100_000;

/// Labels whose ids are remembered, so that a file that is written anew counts once. As many pairs
/// prove whatever can be proven.
const MAX_DONE: usize = 1_000_000;

/// What a label occupies while it is looked for, and its id afterwards, in bytes.
const WAITING: usize = 192;
const DONE: usize = 40;

/// How long a label's record may take until it is written: a label may be fast, the shadow slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// After a look it rests for so many times what that took: 5 % of a CPU at most.
const REST: u32 = 20;

/// Follows the labels of one service.
pub(super) struct Follower {
    file: LabelFile,
    records: PathBuf,
    version: String,
    tolerance: Tolerance,
    since: jiff::Timestamp,
    /// Labels without a record so far.
    waiting: HashMap<Id, Label>,
    /// The same by when they were read.
    batches: VecDeque<(Instant, Vec<Id>)>,
    /// Ids whose label has counted, or said nothing.
    done: HashSet<Id>,
    joined: Joined,
    lease: Lease,
}

impl Follower {
    /// Counts records of `service` from `since` on.
    pub(super) fn new(
        config: &config::Shadow,
        service: &config::ShadowService,
        labels: &config::Labels,
        since: jiff::Timestamp,
        memory: &Memory,
    ) -> Self {
        Self {
            file: LabelFile::new(&labels.file, &labels.columns),
            records: config.record_dir.join(&service.name),
            version: service.version.clone(),
            tolerance: (&service.compare).into(),
            since,
            waiting: HashMap::new(),
            batches: VecDeque::new(),
            done: HashSet::new(),
            joined: Joined::default(),
            lease: memory.empty_lease(),
        }
    }

    /// Reads what is new in the file, and looks for the records of all that have none. Says whether
    /// there is more in the file.
    fn look(&mut self, now: Instant, stop: &AtomicBool) -> anyhow::Result<bool> {
        let read = self.read_labels(now);
        if !self.waiting.is_empty() {
            self.search(stop)?;
        }
        if !stop.load(Ordering::Relaxed) {
            self.give_up(now, *read.as_ref().unwrap_or(&false));
            self.settle();
        }
        read
    }

    fn read_labels(&mut self, now: Instant) -> anyhow::Result<bool> {
        let mut batch = Vec::new();
        let read = self.read_batch(&mut batch);
        if !batch.is_empty() {
            self.batches.push_back((now, batch));
        }
        read
    }

    fn read_batch(&mut self, batch: &mut Vec<Id>) -> anyhow::Result<bool> {
        while self.waiting.len() < BATCH {
            if self.done.len() >= MAX_DONE {
                bail!("{MAX_DONE} labels have counted; no more do until the agent starts anew");
            }
            let Self {
                file,
                waiting,
                done,
                joined,
                lease,
                ..
            } = self;
            let end = file.read(false, |line| match new(line, waiting, done) {
                Ok((id, label)) if lease.grow(WAITING) => {
                    waiting.insert(id, label);
                    batch.push(id);
                }
                Ok(_) => joined.unused(Unused::Memory, 1),
                Err(why) => joined.unused(why, 1),
            })?;
            if end {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn search(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let mut join = Join::default();
        read(&self.records, Some(self.since.into()), |record| {
            if let Ok(record) = record
                && record.time >= self.since
                && record.shadow.version == self.version
            {
                join.add(&self.waiting, &record, self.tolerance);
            }
            match stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let found: Vec<Id> = join.ids().collect();
        join.finish(&self.waiting, &mut self.joined);
        for id in found {
            self.waiting.remove(&id);
            self.done.insert(id);
        }
        Ok(())
    }

    /// Gives memory back that is not used any more.
    fn settle(&mut self) {
        let bytes = self.waiting.len() * WAITING + self.done.len() * DONE;
        self.lease.shrink_to(bytes);
    }

    /// Lets go of labels that no record will come for. Where the file goes on, all that was read
    /// is old.
    fn give_up(&mut self, now: Instant, all: bool) {
        while let Some((read, _)) = self.batches.front()
            && (all || now.duration_since(*read) >= PATIENCE)
        {
            let (_, batch) = self.batches.pop_front().unwrap_or((now, Vec::new()));
            let gone = batch.iter().filter(|id| self.waiting.remove(id).is_some());
            let gone = gone.count() as u64;
            self.joined.unused(Unused::NoRecord, gone);
        }
    }

    fn summary(&self, error: Option<String>) -> LabelSummary {
        let unused = self.joined.unused.iter();
        LabelSummary {
            labelled: self.joined.pairs.count(),
            pairs: self.joined.pairs,
            by_label: self.joined.by_label.figures(),
            unused: unused
                .map(|(why, count)| (why.label().to_owned(), *count))
                .collect(),
            time: jiff::Timestamp::now(),
            error,
        }
    }
}

/// A label that is to be looked for, or why it is not. Of ids that have counted the label is not
/// remembered.
fn new(
    line: Result<(Id, Label), BadLine>,
    waiting: &HashMap<Id, Label>,
    done: &HashSet<Id>,
) -> Result<(Id, Label), Unused> {
    let (id, label) = line.map_err(|_| Unused::BadLine)?;
    match waiting.get(&id) {
        Some(earlier) if *earlier != label => Err(Unused::Contradicting),
        Some(_) => Err(Unused::Repeated),
        None if done.contains(&id) => Err(Unused::Repeated),
        None => Ok((id, label)),
    }
}

/// Follows the labels until it is dropped, and tells after every look.
pub(super) async fn follow(
    mut follower: Follower,
    interval: Duration,
    tell: impl Fn(LabelSummary),
) {
    let stop = StopOnDrop(Arc::default());
    let mut said = None;
    loop {
        let begun = Instant::now();
        let asked = Arc::clone(&stop.0);
        let looked = tokio::task::spawn_blocking(move || {
            let looked = follower.look(begun, &asked);
            (follower, looked)
        });
        let Ok((back, looked)) = looked.await else {
            tracing::error!("labels are not followed any more: the search panicked");
            return;
        };
        follower = back;
        let rest = begun.elapsed() * REST;
        let more = *looked.as_ref().unwrap_or(&false);
        let error = looked.err().map(|error| format!("{error:#}"));
        if let Some(error) = error.as_ref().filter(|_| said != error) {
            tracing::warn!("{error}");
        }
        said.clone_from(&error);
        tell(follower.summary(error));
        tokio::time::sleep(if more { rest } else { rest.max(interval) }).await;
    }
}

/// Breaks a search off that nobody waits for.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mirror_api::summary::RightPairs;
    use serde_json::json;

    use super::*;
    use crate::fixtures;

    const SINCE: &str = "2026-11-22T03:00:00Z";

    /// A folder with a service's records, and what follows its labels.
    struct Place {
        folder: tempfile::TempDir,
        follower: Follower,
        begun: Instant,
        memory: Memory,
    }

    impl Place {
        fn new(memory: usize) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let config = config::Shadow {
                record_dir: folder.path().to_owned(),
                ..fixtures::shadow()
            };
            let service = fixtures::service(7, "127.0.0.1:1".parse().unwrap());
            fs::create_dir(folder.path().join(&service.name)).unwrap();
            let labels = config::Labels {
                file: folder.path().join("labels.csv"),
                columns: config::Columns::default(),
                interval: Duration::from_secs(60),
            };
            let memory = Memory::new(memory);
            let since = SINCE.parse().unwrap();
            Self {
                follower: Follower::new(&config, &service, &labels, since, &memory),
                folder,
                begun: Instant::now(),
                memory,
            }
        }

        /// Replaces what is recorded: ids, whether production and the shadow said 1.
        fn record(&self, records: &[(&str, [bool; 2])]) {
            let lines = records.iter().map(|(id, right)| line(id, *right, |_| {}));
            self.write("service-7/comparisons-1.jsonl", &lines.collect::<String>());
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.folder.path().join(name), text).unwrap();
        }

        /// Looks, so many seconds after the start; expects the four figures, and reasons.
        #[track_caller]
        fn look(&mut self, seconds: u64, pairs: [u64; 4], unused: &[(&str, u64)]) {
            let now = self.begun + Duration::from_secs(seconds);
            let looked = self.follower.look(now, &AtomicBool::new(false));
            let summary = self.follower.summary(None);
            let [both_right, production_only, shadow_only, neither] = pairs;
            let expected = RightPairs {
                both_right,
                production_only,
                shadow_only,
                neither,
            };
            assert_eq!(summary.pairs, expected, "{looked:?} {summary:?}");
            let unused: Vec<_> = unused
                .iter()
                .map(|(why, n)| ((*why).to_owned(), *n))
                .collect();
            assert_eq!(summary.unused, unused.into_iter().collect(), "{looked:?}");
        }
    }

    fn line(id: &str, right: [bool; 2], change: impl FnOnce(&mut serde_json::Value)) -> String {
        let leg = |version: &str, right: bool| json!({"version": version, "status": 200, "prediction": u8::from(right)});
        let mut record = json!({
            "id": uuid::Uuid::now_v7(), "request_id": id, "time": SINCE, "service": "service-7",
            "client": "10.0.0.7:41000", "method": "POST", "path": "/", "arm": "stable",
            "request": {"bytes": 1, "sha256": "00"},
            "production": leg("v12", right[0]), "shadow": leg("v13", right[1]),
            "verdict": "match", "score": 1.0,
        });
        change(&mut record);
        format!("{record}\n")
    }

    fn no_stop() -> AtomicBool {
        AtomicBool::new(false)
    }

    #[test]
    fn labels_count_once_however_the_files_change() {
        let mut place = Place::new(1 << 20);
        let missing = place.follower.look(place.begun, &no_stop()).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");

        place.record(&[("a", [true, true]), ("b", [true, false])]);
        place.write("labels.csv", "id,label\na,1\n");
        place.look(0, [1, 0, 0, 0], &[]);
        place.write("labels.csv", "id,label\na,1\nb,1\nb,0\n");
        place.look(1, [1, 1, 0, 0], &[("contradicting", 1)]);
        // Old records go, and what they said stays.
        place.record(&[("c", [false, true]), ("d", [false, false])]);
        place.write("labels.csv", "id,label\na,1\nb,1\nb,0\nc,1\n");
        place.look(2, [1, 1, 1, 0], &[("contradicting", 1)]);
        // The file is written anew, shorter.
        place.write("labels.csv", "id,label\nb,1\nd,1\n");
        place.look(3, [1, 1, 1, 1], &[("contradicting", 1), ("repeated", 1)]);
    }

    #[test]
    fn a_label_waits_for_its_record_for_a_while() {
        let mut place = Place::new(1 << 20);
        place.write("labels.csv", "id,label\na,1\nb,1\n");
        place.look(0, [0; 4], &[]);
        place.record(&[("a", [true, true])]);
        place.look(29, [1, 0, 0, 0], &[]);
        place.look(30, [1, 0, 0, 0], &[("no_record", 1)]);
        assert!(place.follower.waiting.is_empty() && place.follower.batches.is_empty());
        place.record(&[("b", [true, true])]);
        place.look(31, [1, 0, 0, 0], &[("no_record", 1)]);
    }

    #[test]
    fn only_this_run_of_this_version_counts() {
        let mut place = Place::new(1 << 20);
        let right = [true, true];
        let lines = [
            line("a", right, |record| {
                record["shadow"]["version"] = "v14".into()
            }),
            line("b", right, |record| {
                record["time"] = "2026-11-22T02:59:59Z".into()
            }),
            line("c", right, |record| record["arm"] = "canary".into()),
            line("d", right, |_| {}),
        ];
        place.write("service-7/comparisons-1.jsonl", &lines.concat());
        place.write("labels.csv", "id,label\na,1\nb,1\nc,1\nd,1\n");
        place.look(0, [1, 0, 0, 0], &[]);
    }

    #[test]
    fn labels_keep_to_the_agent_s_memory() {
        let mut place = Place::new(100 * WAITING);
        let rows: String = (0..60_000).map(|row| format!("{row},1\n")).collect();
        place.write("labels.csv", &format!("id,label\n{rows}"));
        place.look(0, [0; 4], &[("memory", 59_900)]);
        assert_eq!(place.memory.used(), place.memory.limit());
        place.look(30, [0; 4], &[("memory", 59_900), ("no_record", 100)]);
        assert_eq!(place.memory.used(), 0);
    }

    #[test]
    fn a_search_can_be_broken_off() {
        let mut place = Place::new(1 << 20);
        place.record(&[("a", [true, true])]);
        place.write("labels.csv", "id,label\na,1\n");
        for now in [place.begun, place.begun + 2 * PATIENCE] {
            place.follower.look(now, &AtomicBool::new(true)).unwrap();
            // Nothing is found, nor given up.
            let summary = place.follower.summary(None);
            assert_eq!(summary.pairs, RightPairs::default(), "{summary:?}");
            assert!(summary.unused.is_empty(), "{summary:?}");
        }
        place.look(60, [1, 0, 0, 0], &[]);
    }
}
