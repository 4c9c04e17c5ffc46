//! The settings with kernel and disk in memory.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 2] = ["a", "b"];

fn known(name: &str) -> Known {
    Known {
        name: name.to_owned(),
        canary: Some("v2".to_owned()),
        mirror: true,
        configured: Configured {
            sample: 0.5,
            share: Share::of_parts(1_000),
        },
    }
}

/// What the kernel has of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Row {
    share: Share,
    sample: f64,
    /// What tells the next daemon that the disk has more.
    is_less: bool,
    is_held: bool,
}

/// The settings, a kernel and a disk.
struct World {
    settings: Settings,
    kernel: [Row; 2],
    attached: bool,
    is_off: bool,
    /// What the disk has, what is on its way, and whether it works.
    disk: Overrides,
    writes: VecDeque<(u64, Overrides)>,
    works: bool,
    rollouts: [bool; 2],
    answers: Vec<(Ticket, Result<Done, Refusal>)>,
    now: Instant,
    tickets: Ticket,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            settings: Settings::new(Overrides::default(), None),
            kernel: Default::default(),
            attached: true,
            is_off: false,
            disk: Overrides::default(),
            writes: VecDeque::new(),
            works: true,
            rollouts: [false; 2],
            answers: Vec::new(),
            now: Instant::now(),
            tickets: 0,
        };
        world.settings.know(NAMES.map(known).to_vec());
        world.settle();
        world
    }

    fn configured(place: usize) -> Configured {
        known(NAMES[place]).configured
    }

    fn settle(&mut self) {
        for (place, row) in self.kernel.iter_mut().enumerate() {
            let (name, configured) = (NAMES[place], Self::configured(place));
            *row = Row {
                share: self.settings.holds().share(name, configured),
                sample: self.settings.holds().mirrored(name, configured),
                is_less: self.settings.owes_share(name),
                is_held: self.settings.owes_mirror(name),
            };
        }
        self.is_off = self.settings.owes_off();
        self.attached = !self.settings.holds().is_off();
    }

    fn order(&mut self, order: Order) -> Ticket {
        self.tickets += 1;
        self.take(Update::Order(self.tickets, order));
        self.tickets
    }

    /// Takes an input in and performs what follows. Whatever lowers a risk must come first.
    fn take(&mut self, input: Update) {
        let effects = self.settings.handle(input, self.now);
        let is_reduction = |effect: &Action| {
            use Action::{Detach, Lower, StopMirror, TakeBack};
            matches!(effect, Lower(..) | TakeBack(..) | StopMirror | Detach)
        };
        assert!(
            effects.is_sorted_by_key(|effect| !is_reduction(effect)),
            "something precedes a reduction: {effects:?}"
        );
        let first_other = effects.iter().position(|effect| !is_reduction(effect));
        for (place, effect) in effects.into_iter().enumerate() {
            if Some(place) == first_other {
                self.assert_low();
            }
            self.perform(effect);
        }
        self.assert_low();
    }

    fn perform(&mut self, effect: Action) {
        let place = |name: &str| NAMES.iter().position(|known| *known == name).unwrap();
        match effect {
            Action::Lower(service, share) => {
                let row = &mut self.kernel[place(&service)];
                assert!(share < row.share, "{share} is not less than {row:?}");
                (row.share, row.is_less) = (share, true);
            }
            Action::TakeBack(service, _) => self.rollouts[place(&service)] = false,
            Action::StopMirror => {
                for (place, row) in self.kernel.iter_mut().enumerate() {
                    row.sample = self
                        .settings
                        .holds()
                        .mirrored(NAMES[place], Self::configured(place));
                    row.is_held = self.settings.owes_mirror(NAMES[place]);
                }
                self.is_off = self.settings.owes_off();
            }
            Action::Detach => self.attached = false,
            Action::Persist(number, overrides) => self.writes.push_back((number, overrides)),
            Action::Settle => self.settle(),
            Action::Answer(ticket, answer) => self.answers.push((ticket, answer)),
            Action::Drain(..) | Action::End(..) => {}
        }
    }

    /// The kernel never has more than what is wanted, nor than what the disk has.
    fn assert_low(&self) {
        for (place, row) in self.kernel.iter().enumerate() {
            let (name, configured) = (NAMES[place], Self::configured(place));
            for limit in [&self.settings.wanted, &self.disk] {
                let share = limit.share(name, configured);
                let sample = limit.mirrored(name, configured);
                assert!(row.share <= share, "{name}: {row:?} beyond {share}");
                assert!(row.sample <= sample, "{name}: {row:?} beyond {sample}");
            }
        }
        let off = self.settings.wanted.is_off() || self.disk.is_off();
        assert!(!(self.attached && off), "attached, though all is off");
    }

    /// The disk does what it can.
    fn write(&mut self) {
        let Some((number, overrides)) = self.writes.back().cloned() else {
            return;
        };
        let failure = match self.works {
            true => {
                self.writes.clear();
                self.disk = overrides;
                None
            }
            false => Some("no space left".to_owned()),
        };
        self.take(Update::Kept(Kept { number, failure }));
    }

    /// The daemon is killed, when the disk may have the first of the writes that it was not told of; the
    /// others are lost, and another daemon starts.
    fn crash(&mut self, lands: bool) {
        if let (Some((_, overrides)), true) = (self.writes.pop_front(), lands) {
            self.disk = overrides;
            self.assert_low();
        }
        self.writes.clear();
        let wanted = self.settings.wanted.clone();
        let (before, was_attached) = (self.kernel, self.attached);
        let had_lost = self.is_off;
        self.settings = Settings::new(self.disk.clone(), None);
        self.settings.know(NAMES.map(known).to_vec());
        let mut effects = Vec::new();
        if had_lost {
            effects.extend(self.settings.recover_off(self.now));
        }
        for (place, row) in before.iter().enumerate() {
            let share = row.is_less.then_some(row.share);
            let sample = row.is_held.then_some(row.sample);
            effects.extend(self.settings.recover(NAMES[place], share, sample, self.now));
        }
        for effect in effects {
            self.perform(effect);
        }
        self.settle();
        self.assert_low();
        for (place, (before, after)) in before.iter().zip(&self.kernel).enumerate() {
            let (name, configured) = (NAMES[place], Self::configured(place));
            let share = before.share.max(wanted.share(name, configured));
            let sample = before.sample.max(wanted.mirrored(name, configured));
            let is_more = after.share > share || after.sample > sample;
            assert!(!is_more, "{after:?} after {before:?} of {wanted:?}");
        }
        let stays_off = !was_attached && wanted.is_off();
        assert!(!(stays_off && self.attached), "attached again");
    }
}

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Order(Order, bool),
    Write,
    Disk(bool),
    Time(u64),
    Crash(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop::sample::select(&NAMES).prop_map(str::to_owned);
    let share = prop::sample::select(&[0, 500, 1_000, 5_000, 10_000]).prop_map(Share::of_parts);
    let canary = prop_oneof![
        share.prop_map(CanaryChange::Share),
        Just(CanaryChange::Off(Rest::Finish)),
        Just(CanaryChange::Off(Rest::Reset)),
        Just(CanaryChange::Clear),
    ];
    let mirror = prop_oneof![
        Just(Change::On),
        Just(Change::Off),
        Just(Change::Clear),
        prop::sample::select(&[0.0, 0.25, 1.0]).prop_map(Change::Sample),
    ];
    let order = prop_oneof![
        4 => (name.clone(), canary).prop_map(|(name, change)| Order::Canary(name, change, None)),
        4 => (name, mirror).prop_map(|(name, change)| Order::Mirror(name, change)),
        1 => Just(Order::Off(Vec::new())),
    ];
    prop_oneof![
        6 => (order, any::<bool>()).prop_map(|(order, rollout)| Step::Order(order, rollout)),
        4 => Just(Step::Write),
        1 => any::<bool>().prop_map(Step::Disk),
        1 => (0_u64..3_000).prop_map(Step::Time),
        1 => any::<bool>().prop_map(Step::Crash),
    ]
}

proptest! {
    #[test]
    fn nothing_precedes_a_reduction_and_the_disk_has_what_was_raised(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Order(mut order, has_rollout) => {
                    if let Order::Canary(service, _, rollout) = &mut order {
                        let place = usize::from(service == "b");
                        world.rollouts[place] = has_rollout;
                        *rollout = has_rollout.then(|| "a rollout has it".to_owned());
                    }
                    let is_off = matches!(
                        &order,
                        Order::Off(_) | Order::Canary(_, CanaryChange::Off(_), Some(_))
                    );
                    let place = matches!(&order, Order::Canary(service, ..) if service == "b");
                    world.order(order);
                    prop_assert!(!(is_off && world.rollouts[usize::from(place)]));
                }
                Step::Write => world.write(),
                Step::Disk(works) => world.works = works,
                Step::Time(milliseconds) => {
                    world.now += Duration::from_millis(milliseconds);
                    world.take(Update::Tick);
                }
                Step::Crash(lands) => world.crash(lands),
            }
        }
        // Once the disk works, it has what is wanted, and that holds.
        world.works = true;
        world.write();
        prop_assert_eq!(&world.disk, &world.settings.wanted);
        let marks = world.kernel.iter().any(|row| row.is_less || row.is_held);
        prop_assert!(!marks && !world.is_off && world.settings.unkept().is_none());
        world.now += Duration::from_secs(60);
        world.take(Update::Tick);
        prop_assert!(world.settings.waiting.is_empty() && world.settings.deadline().is_none());
    }
}

fn set(share: u32) -> Order {
    let share = CanaryChange::Share(Share::of_parts(share));
    Order::Canary("a".to_owned(), share, None)
}

#[test]
fn a_raise_waits_for_the_disk_and_a_reduction_does_not() {
    let mut world = World::new();
    let ticket = world.order(set(5_000));
    assert_eq!(world.kernel[0].share, Share::of_parts(1_000));
    assert!(world.answers.is_empty());
    world.write();
    assert_eq!(world.kernel[0].share, Share::of_parts(5_000));
    let (of, answer) = world.answers.pop().unwrap();
    assert!(of == ticket && answer.unwrap().warnings.is_empty());

    world.order(set(200));
    let lowered = world.kernel[0];
    assert!(lowered.share == Share::of_parts(200) && lowered.is_less);
    world.write();
    assert!(!world.kernel[0].is_less);
}

/// The disk hangs, and then works again.
#[test]
fn what_the_disk_does_not_have_is_said_and_shown() {
    let mut world = World::new();
    let off = CanaryChange::Off(Rest::Finish);
    world.order(Order::Canary("a".to_owned(), off, None));
    world.order(set(5_000));
    assert_eq!(
        world.settings.deadline(),
        Some(world.now + waiting::PATIENCE)
    );
    world.now += waiting::PATIENCE;
    world.take(Update::Tick);
    let [(_, off), (_, raised)] = &world.answers[..] else {
        panic!("{:?}", world.answers);
    };
    let warnings = &off.as_ref().unwrap().warnings;
    assert!(warnings[0].contains("not on the disk yet"), "{warnings:?}");
    let refusal = raised.as_ref().unwrap_err().to_string();
    assert!(refusal.contains("not yet"), "{refusal}");
    assert!(world.settings.unkept().is_some());
    assert_eq!(world.kernel[0].share, Share::NONE);
    world.write();
    assert_eq!(world.kernel[0].share, Share::of_parts(5_000));
    assert_eq!(world.settings.unkept(), None);
}

#[test]
fn a_disk_that_fails_is_not_waited_for() {
    let mut world = World::new();
    world.works = false;
    world.order(Order::Off(vec!["detached from eth0".to_owned()]));
    assert!(
        !world.attached
            && world.kernel
                == [Row {
                    is_less: true,
                    is_held: true,
                    ..Row::default()
                }; 2]
    );
    world.write();
    let (_, answer) = world.answers.pop().unwrap();
    let Done { done, warnings } = answer.unwrap();
    assert_eq!(done[0], "detached from eth0");
    assert!(warnings[0].contains("no space left"), "{warnings:?}");
    world.crash(false);
    assert!(
        !world.attached && world.settings.holds().is_off(),
        "the kernel wins"
    );
}

#[test]
fn an_answer_waits_for_what_it_names() {
    let mut world = World::new();
    let reset = CanaryChange::Off(Rest::Reset);
    let ticket = world.order(Order::Canary("a".to_owned(), reset, None));
    world.write();
    assert!(
        world.answers.is_empty(),
        "its connections are not ended yet"
    );
    world.take(Update::Ended(ticket, Ok(7)));
    let (_, answer) = world.answers.pop().unwrap();
    let done = answer.unwrap().done;
    assert_eq!(done[1], "7 of its connections were reset");

    world.take(Update::Told(9, Done::default(), Some(("a".to_owned(), 3))));
    world.take(Update::Recorded("a".to_owned(), 2));
    world.take(Update::Recorded("b".to_owned(), 3));
    assert!(world.answers.is_empty());
    world.take(Update::Recorded("a".to_owned(), 3));
    assert_eq!(world.answers.pop(), Some((9, Ok(Done::default()))));
}

#[test]
fn what_cannot_be_is_refused() {
    let mut world = World::new();
    let refused = |world: &mut World, order| {
        world.order(order);
        let (_, answer) = world.answers.pop().unwrap();
        answer.unwrap_err().to_string()
    };
    let unknown = Order::Mirror("c".to_owned(), Change::On);
    assert!(refused(&mut world, unknown).contains("known: a, b"));
    let rollout = Some("a rollout of v2 has it".to_owned());
    let taken = Order::Canary("a".to_owned(), CanaryChange::Clear, rollout);
    assert!(refused(&mut world, taken).contains("a rollout of v2"));
    let mut bare = known("b");
    (bare.canary, bare.mirror) = (None, false);
    world.settings.know(vec![known("a"), bare]);
    let mirror = Order::Mirror("b".to_owned(), Change::On);
    assert!(refused(&mut world, mirror).contains("has no [service.mirror]"));
    let canary = Order::Canary("b".to_owned(), CanaryChange::Clear, None);
    assert!(refused(&mut world, canary).contains("has no [service.canary]"));
    assert!(world.writes.is_empty());
}
