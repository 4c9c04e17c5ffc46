use std::sync::mpsc;

use bytes::Bytes;
use mirror_wire::memory::{Lease, Memory};
use mirror_wire::message::{ShadowError, TapId};

use super::*;
use crate::fixtures;
use crate::noise::Seconds;
use crate::record::LedgerFile;
use crate::requests::Balance;

const ID: u32 = 101;

/// A judge of one service, its folder, and the memory that exchanges are paid from.
struct Scene {
    judge: Arc<Judge>,
    folder: tempfile::TempDir,
    memory: Memory,
}

/// Lengths of an exchange's bodies.
#[derive(Clone, Copy)]
struct Lengths {
    request: usize,
    production: usize,
    shadow: usize,
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let target = "127.0.0.1:1".parse().unwrap();
        let config = config::Shadow {
            record_dir: folder.path().join("records"),
            services: vec![fixtures::service(ID, target)],
            ..fixtures::shadow()
        };
        Self {
            judge: Arc::new(Judge::new(&config, metrics::Agent::new()).unwrap()),
            folder,
            memory: Memory::new(1 << 30),
        }
    }

    fn body(&self, length: usize) -> (Bytes, Lease) {
        (
            vec![b'x'; length].into(),
            self.memory.lease(length).unwrap(),
        )
    }

    fn pair(&self, lengths: Lengths) -> Pair {
        let mut shadow = fixtures::answered(ExchangeId(1), 200);
        let mut production = mirror_wire::fixtures::empty_response(200);
        let request = &mut shadow.job.request;
        (request.body, request.lease) = self.body(lengths.request);
        (production.body, production.lease) = self.body(lengths.production);
        let answer = shadow.shadow.as_mut().unwrap();
        (answer.body, answer.lease) = self.body(lengths.shadow);
        let origin = Origin {
            service: 0,
            tap: TapId(1),
            client: "10.0.0.7:4000".parse().unwrap(),
            arm: Arm::Stable,
            time: jiff::Timestamp::UNIX_EPOCH,
        };
        self.judge.seen(0);
        Pair {
            origin,
            shadow,
            production,
            seconds: Seconds::default(),
        }
    }

    fn balance(&self) -> Balance {
        self.judge.services[0].ledger.balance()
    }

    /// Keeps all workers busy until what it returns is dropped.
    fn occupy(&self) -> mpsc::Sender<()> {
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let workers = Arc::clone(&self.judge.workers);
        for _ in 0..workers.most() {
            let (released, judge) = (Arc::clone(&released), Arc::clone(&self.judge));
            let job = Job {
                job: self.pair(SMALL),
                group: None,
            };
            workers.run(job, move |pair| {
                let _ = lock(&released).recv();
                judge.judge(pair);
            });
        }
        release
    }

    fn records(self) -> usize {
        self.judge.finish();
        drop(self.judge);
        let folder = self.folder.path().join("records").join("service-101");
        let files = std::fs::read_dir(folder).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let records = files.filter(|path| path.extension().is_some_and(|name| name == "jsonl"));
        records
            .map(|path| std::fs::read_to_string(path).unwrap().lines().count())
            .sum()
    }
}

const SMALL: Lengths = Lengths {
    request: 2_000,
    production: 500,
    shadow: 500,
};

/// Such an exchange leaves the runtime's thread to others.
async fn check(lengths: Lengths) {
    let scene = Scene::new();
    let release = scene.occupy();
    let (busy, before) = (scene.judge.workers.pending(), scene.memory.used());
    scene.judge.complete(scene.pair(lengths));
    assert_eq!(scene.judge.workers.pending() - busy, 1);
    assert_eq!(scene.balance().compared, 0);
    // It is paid for until it is judged.
    let bytes = lengths.request + lengths.production + lengths.shadow;
    assert!(scene.memory.used() >= before + bytes);
    drop(release);
    scene.judge.idle().await;
    assert_eq!(scene.balance().in_flight(), 0);
    let compared = scene.balance().compared;
    let memory = scene.memory.clone();
    assert_eq!(scene.records() as u64, compared);
    assert_eq!(memory.used(), 0);
}

#[tokio::test]
async fn exchanges_are_judged_elsewhere() {
    check(SMALL).await;
    check(Lengths {
        shadow: 5 << 20,
        ..SMALL
    })
    .await;
}

#[tokio::test]
async fn a_request_without_an_answer_is_judged_elsewhere() {
    let scene = Scene::new();
    let release = scene.occupy();
    let mut pair = scene.pair(SMALL);
    pair.shadow.shadow = Err(ShadowError::Timeout);
    scene.judge.complete(pair);
    assert_eq!(scene.balance().compared, 0);
    drop(release);
    scene.judge.idle().await;
    assert_eq!(scene.balance().in_flight(), 0);
}

#[tokio::test]
async fn what_no_worker_has_begun_at_the_end_is_dropped() {
    let scene = Scene::new();
    let release = scene.occupy();
    let large = Lengths {
        request: 5 << 20,
        ..SMALL
    };
    for _ in 0..3 {
        scene.judge.complete(scene.pair(large));
    }
    scene.judge.finish();
    assert_eq!(scene.balance().drops[DropReason::Shutdown as usize], 3);
    drop(release);
    scene.judge.idle().await;
    assert_eq!(scene.balance().in_flight(), 0);
}

/// An idle agent writes nothing: a ledger is written when it changes.
#[tokio::test]
async fn a_ledger_that_stays_the_same_is_not_written_again() {
    let scene = Scene::new();
    let folder = scene.folder.path().join("records").join("service-101");
    let ledger = folder.join("ledger.json");
    let written = |seen| {
        // Whoever drops the judge waits until all is written.
        let text = std::fs::read_to_string(&ledger).ok();
        let read = text.map(|text| serde_json::from_str::<LedgerFile>(&text).unwrap().seen);
        assert_eq!(read, seen);
    };
    scene.judge.write_ledgers();
    scene.judge.write_ledgers();
    let first = scene.judge.services[0].written.lock().unwrap().clone();
    scene.judge.write_ledgers();
    let second = scene.judge.services[0].written.lock().unwrap().clone();
    assert_eq!(first, second, "its time would be another");
    scene.judge.seen(0);
    scene.judge.write_ledgers();
    let Scene {
        judge,
        folder: _folder,
        ..
    } = scene;
    drop(judge);
    written(Some(1));
}
