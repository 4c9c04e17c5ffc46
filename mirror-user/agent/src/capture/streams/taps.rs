//! All taps that have connected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mirror_wire::memory::Memory;
use mirror_wire::message::TapId;
use tokio::sync::watch;

use super::connection::{Connection, End, Quit, leave};
use super::door::Stream;
use super::error::{Refusal, Refusals, Refused};
use super::keep::{BASE, Got, Keep, Memories};
use super::line::Outlet;
use crate::capture::roster::{Roster, Seat};
use mirror_base::transport::frame::{self, Hello, Kind};

/// What is shared by all connections.
#[derive(Clone)]
pub(crate) struct Taps {
    roster: Roster,
    outlet: Outlet,
    refusals: Arc<Refusals>,
    memories: Memories,
    slots: Arc<Mutex<HashMap<TapId, Arc<Slot>>>>,
    /// How far the agent before this one has got, by the taps' names.
    before: Arc<HashMap<String, Got>>,
}

/// One tap's place, which has one connection at a time.
struct Slot {
    name: String,
    keep: tokio::sync::Mutex<Keep>,
    /// Number of the newest connection.
    newest: watch::Sender<u64>,
}

impl Taps {
    pub(in crate::capture) fn new(
        roster: Roster,
        outlet: Outlet,
        refusals: Arc<Refusals>,
        memory: &Memory,
        before: impl IntoIterator<Item = Got>,
    ) -> Self {
        let before = before.into_iter().map(|got| (got.name.clone(), got));
        Self {
            roster,
            outlet,
            refusals,
            memories: Memories::new(memory),
            slots: Arc::default(),
            before: Arc::new(before.collect()),
        }
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Listens to a tap that has said hello, until its connection is over. Then what it left is
    /// handed on.
    ///
    /// # Errors
    /// When it is to be refused.
    pub(super) async fn serve(
        &self,
        name: &str,
        stream: &mut Box<dyn Stream>,
        hello: Hello,
        stop: watch::Receiver<bool>,
    ) -> Result<(), Refused> {
        let (slot, _seat) = self.slot(name)?;
        let mut mine = 0;
        slot.newest.send_modify(|newest| {
            *newest += 1;
            mine = *newest;
        });
        let mut quit = Quit {
            newest: slot.newest.subscribe(),
            mine,
            stop,
        };
        // The older connection leaves at once.
        let mut keep = tokio::select! {
            keep = slot.keep.lock() => keep,
            () = quit.replaced() => return Ok(()),
        };
        let mut base = self.memories.room();
        if !base.set(BASE) {
            return Err(Refusal::Memory.because("the agent's memory is used up"));
        }
        tracing::info!(
            tap = name,
            program = hello.program,
            transport = hello.transport.label(),
            "tap connected"
        );
        let welcome = frame::message(Kind::Welcome, &keep.hello(hello));
        keep.forward();
        let end = Connection::new(&mut keep, stream, welcome)
            .run(&mut quit)
            .await;
        match &end {
            Ok(End::Closed) => tracing::info!(tap = name, "tap disconnected"),
            Ok(End::Replaced) => tracing::info!(tap = name, "tap reconnected"),
            Ok(End::Stopped) | Err(_) => {}
        }
        drop(base);
        // Its peer sees that it is over, whatever the rest takes; a newer connection need not wait.
        let stopped = matches!(end, Ok(End::Stopped));
        let rest = async move {
            if !stopped {
                leave(&mut keep, &mut quit).await;
            }
            drop(keep);
        };
        let farewell = async {
            match end {
                Err(refused) => super::refuse(stream, &refused, &self.refusals, name).await,
                Ok(_) => super::farewell(stream).await,
            }
        };
        tokio::join!(rest, farewell);
        Ok(())
    }

    /// How far it has got with each tap, once no connection is served any more.
    pub(super) fn got(&self) -> Vec<Got> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let keeps = slots.values().filter_map(|slot| slot.keep.try_lock().ok());
        keeps.filter_map(|mut keep| keep.got()).collect()
    }

    fn slot(&self, name: &str) -> Result<(Arc<Slot>, Seat), Refused> {
        let (id, seat) = self
            .roster
            .connect(name, Instant::now())
            .ok_or_else(|| Refusal::TooManyTaps.because("there are too many taps"))?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|&id, slot| self.roster.is(id, &slot.name));
        let slot = slots.entry(id).or_insert_with(|| {
            Arc::new(Slot {
                name: name.to_owned(),
                keep: Keep::new(
                    id,
                    name,
                    self.outlet.clone(),
                    &self.memories,
                    self.before.get(name),
                )
                .into(),
                newest: watch::Sender::new(0),
            })
        });
        Ok((Arc::clone(slot), seat))
    }
}
