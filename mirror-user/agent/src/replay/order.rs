//! Whose turn it is: connections in the order in which their next request can be sent, each with one
//! request under way at most. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use mirror_wire::exchange::ConnectionId;

use super::Job;

/// Requests that wait, and how many are under way.
#[derive(Debug)]
pub(super) struct Order {
    /// Of connections that have a request waiting or under way.
    waiting: HashMap<ConnectionId, VecDeque<Job>>,
    /// Connections whose next request waits for nothing but its turn.
    ready: VecDeque<ConnectionId>,
    workers: usize,
    most: usize,
}

impl Order {
    /// At most so many are under way at once.
    pub(super) fn new(most: usize) -> Self {
        Self {
            waiting: HashMap::new(),
            ready: VecDeque::new(),
            workers: 0,
            most,
        }
    }

    /// Queues a request. Whether one more worker is to begin.
    pub(super) fn push(&mut self, connection: ConnectionId, mut job: Job) -> bool {
        match self.waiting.entry(connection) {
            Entry::Occupied(mut queue) => queue.get_mut().push_back(job),
            Entry::Vacant(place) => {
                job.request.saturated = self.workers == self.most;
                place.insert(VecDeque::new()).push_back(job);
                self.ready.push_back(connection);
            }
        }
        let begins = self.workers < self.most && !self.ready.is_empty();
        self.workers += usize::from(begins);
        begins
    }

    /// A worker has done a request of this connection, or has just begun: its next one, or it ends.
    pub(super) fn next(&mut self, done: Option<ConnectionId>) -> Option<(ConnectionId, Job)> {
        self.release(done);
        let next = self.take();
        self.workers -= usize::from(next.is_none());
        next
    }

    /// A worker is gone, in the middle of a request of this connection.
    pub(super) fn abandon(&mut self, done: Option<ConnectionId>) {
        self.release(done);
        self.workers -= 1;
    }

    fn release(&mut self, done: Option<ConnectionId>) {
        let Some(connection) = done else { return };
        let Entry::Occupied(mut queue) = self.waiting.entry(connection) else {
            return;
        };
        let Some(job) = queue.get_mut().front_mut() else {
            queue.remove();
            return;
        };
        job.request.saturated = !self.ready.is_empty();
        self.ready.push_back(connection);
    }

    fn take(&mut self) -> Option<(ConnectionId, Job)> {
        let connection = self.ready.pop_front()?;
        let job = self.waiting.get_mut(&connection)?.pop_front()?;
        Some((connection, job))
    }
}

#[cfg(test)]
mod tests {
    use mirror_wire::message::ExchangeId;
    use uuid::Uuid;

    use super::*;

    fn job(exchange: u64) -> Job {
        Job {
            exchange: ExchangeId(exchange),
            id: Uuid::nil(),
            request: mirror_wire::fixtures::request("GET", "/"),
        }
    }

    /// The next exchange, and whether it had to wait for a place.
    fn next(order: &mut Order, done: Option<u64>) -> Option<(u64, bool)> {
        let (_, job) = order.next(done.map(ConnectionId))?;
        Some((job.exchange.0, job.request.saturated))
    }

    #[test]
    fn a_connection_has_one_request_under_way() {
        let mut order = Order::new(2);
        assert!(order.push(ConnectionId(7), job(1)));
        assert_eq!(next(&mut order, None), Some((1, false)));
        assert!(!order.push(ConnectionId(7), job(2)), "the first is first");
        assert!(order.push(ConnectionId(8), job(3)));
        assert_eq!(next(&mut order, None), Some((3, false)));
        assert_eq!(next(&mut order, Some(7)), Some((2, false)));
        assert_eq!(next(&mut order, Some(7)), None);
        assert_eq!(next(&mut order, Some(8)), None);
        assert_eq!((order.workers, order.waiting.len()), (0, 0));
    }

    #[test]
    fn connections_take_turns_when_all_places_are_taken() {
        let mut order = Order::new(1);
        assert!(order.push(ConnectionId(7), job(1)));
        assert_eq!(next(&mut order, None), Some((1, false)));
        order.push(ConnectionId(7), job(2));
        assert!(!order.push(ConnectionId(8), job(3)));
        assert_eq!(next(&mut order, Some(7)), Some((3, true)));
        assert_eq!(next(&mut order, Some(8)), Some((2, true)));
        assert_eq!(next(&mut order, Some(7)), None);
    }

    #[test]
    fn a_worker_that_is_gone_costs_its_request_alone() {
        let mut order = Order::new(1);
        order.push(ConnectionId(7), job(1));
        order.push(ConnectionId(7), job(2));
        assert_eq!(next(&mut order, None), Some((1, false)));
        order.abandon(Some(ConnectionId(7)));
        assert!(order.push(ConnectionId(8), job(3)), "another one begins");
        assert_eq!(next(&mut order, None), Some((2, false)));
        assert_eq!(next(&mut order, Some(7)), Some((3, false)));
    }
}
