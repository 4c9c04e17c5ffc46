//! Whether a shadow answers, and whether it keeps up: said when that changes, and not for every request.
//! Pure.

use std::time::{Duration, Instant};

use mirror_wire::message::ShadowError;

/// So many requests in a row without an answer, and the shadow is down.
const FAILURES: u32 = 3;

/// It is up again when it answers and has not failed for so long; so is it no longer saturated when
/// nothing has had to wait for so long. Whoever goes up and down is not said to at every turn.
const CALM: Duration = Duration::from_secs(5);

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It gives no answers any more.
    Down(ShadowError),
    /// It answers again, after so long.
    Up(Duration),
    /// It gets more than it takes: so many requests were dropped since the last look.
    Saturated(u64),
    /// It keeps up again, after so long.
    Eased(Duration),
}

/// A service's queue, as it is now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queue {
    /// Requests that wait.
    pub waiting: usize,
    /// How many may.
    pub limit: usize,
    /// Requests that found it full, since the agent's start.
    pub dropped: u64,
}

/// One service's shadow.
#[derive(Clone, Debug, Default)]
pub struct Health {
    failures: u32,
    failed: Option<Instant>,
    answered: Option<Instant>,
    down: Option<Instant>,
    dropped: u64,
    pressed: Option<Instant>,
    saturated: Option<Instant>,
}

impl Health {
    /// A request has been answered, or not.
    pub fn heard(&mut self, answer: Result<(), ShadowError>, now: Instant) -> Option<News> {
        // Whoever answers nonsense, or too much, is there.
        let gone = answer.err().filter(|error| {
            use ShadowError::{Closed, Connect, Timeout};
            matches!(error, Connect | Timeout | Closed)
        });
        let Some(error) = gone else {
            self.failures = 0;
            self.answered = Some(now);
            return None;
        };
        self.failures += 1;
        self.failed = Some(now);
        if self.failures < FAILURES || self.down.is_some() {
            return None;
        }
        self.down = Some(now);
        Some(News::Down(error))
    }

    /// Looks about once a second.
    pub fn look(&mut self, queue: Queue, now: Instant) -> [Option<News>; 2] {
        [self.look_up(now), self.look_at(queue, now)]
    }

    fn look_up(&mut self, now: Instant) -> Option<News> {
        let down = self.down?;
        let failed = self.failed.unwrap_or(down);
        let is_up = self.answered.is_some_and(|answered| answered > failed)
            && now.duration_since(failed) >= CALM;
        if !is_up {
            return None;
        }
        self.down = None;
        Some(News::Up(now.duration_since(down)))
    }

    fn look_at(&mut self, queue: Queue, now: Instant) -> Option<News> {
        let dropped = queue.dropped.saturating_sub(self.dropped);
        self.dropped = queue.dropped;
        let is_pressed = dropped > 0 || queue.waiting * 2 >= queue.limit;
        if is_pressed {
            self.pressed = Some(now);
        }
        match self.saturated {
            // One that is down is said to be so: more at once would not help.
            None if is_pressed && self.down.is_none() => {
                self.saturated = Some(now);
                Some(News::Saturated(dropped))
            }
            Some(since) => {
                let pressed = self.pressed.unwrap_or(since);
                let is_over = now.duration_since(pressed) >= CALM;
                is_over.then(|| {
                    self.saturated = None;
                    News::Eased(now.duration_since(since))
                })
            }
            None => None,
        }
    }

    /// Since when it is down.
    pub fn down(&self) -> Option<Instant> {
        self.down
    }

    /// Since when it is saturated.
    pub fn saturated(&self) -> Option<Instant> {
        self.saturated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn down_and_up_are_said_once() {
        let start = Instant::now();
        let mut health = Health::default();
        let calm = Queue {
            limit: 10,
            ..Queue::default()
        };
        let fails = Err(ShadowError::Connect);
        assert_eq!(health.heard(fails, start), None);
        assert_eq!(health.heard(fails, start), None);
        assert_eq!(health.heard(Ok(()), start), None);
        assert_eq!(health.heard(fails, start), None);
        assert_eq!(health.heard(fails, start), None);
        let down = Some(News::Down(ShadowError::Connect));
        assert_eq!(health.heard(fails, start), down);
        for second in 0..100 {
            let now = after(start, second);
            assert_eq!(health.heard(fails, now), None);
            assert_eq!(health.look(calm, now), [None, None]);
        }
        // It answers now and then, and fails again.
        assert_eq!(health.heard(Ok(()), after(start, 100)), None);
        assert_eq!(health.look(calm, after(start, 101)), [None, None]);
        assert_eq!(health.heard(fails, after(start, 102)), None);
        assert_eq!(
            health.heard(Err(ShadowError::Malformed), after(start, 103)),
            None
        );
        assert_eq!(health.look(calm, after(start, 106)), [None, None]);
        let up = Some(News::Up(Duration::from_secs(107)));
        assert_eq!(health.look(calm, after(start, 107)), [up, None]);
        assert_eq!(health.look(calm, after(start, 108)), [None, None]);
        assert_eq!(health.down(), None);
    }

    #[test]
    fn saturated_is_said_once() {
        let start = Instant::now();
        let mut health = Health::default();
        let queue = |waiting, dropped| Queue {
            waiting,
            limit: 10,
            dropped,
        };
        assert_eq!(health.look(queue(4, 0), start), [None, None]);
        let saturated = Some(News::Saturated(0));
        assert_eq!(health.look(queue(5, 0), start), [None, saturated]);
        assert_eq!(health.look(queue(9, 7), after(start, 60)), [None, None]);
        assert_eq!(health.look(queue(0, 7), after(start, 64)), [None, None]);
        let eased = Some(News::Eased(Duration::from_secs(65)));
        assert_eq!(health.look(queue(0, 7), after(start, 65)), [None, eased]);
        let saturated = Some(News::Saturated(3));
        assert_eq!(
            health.look(queue(0, 10), after(start, 66)),
            [None, saturated]
        );
        // A dead one is not saturated.
        let mut health = Health::default();
        for _ in 0..3 {
            health.heard(Err(ShadowError::Timeout), start);
        }
        assert_eq!(health.look(queue(10, 100), start), [None, None]);
    }
}
