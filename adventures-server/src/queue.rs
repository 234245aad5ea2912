//! Who may compute now, who waits, and who is told to come back later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tracing::Instrument;

/// Places for `slots` requests that run and `depth` that wait.
///
/// A free slot goes to the client with the fewest running requests; among those, to the one who was given a slot longest ago;
/// of its requests, to the one that has waited longest.
#[derive(Debug, Clone)]
pub struct Queue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    slots: usize,
    depth: usize,
    /// How many of `depth` one client may take, so that another finds room.
    share: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: HashMap<Arc<str>, usize>,
    /// When each client was last given a slot, in slots given; there are as many clients as keys.
    turns: HashMap<Arc<str>, u64>,
    given: u64,
    total: usize,
    waiting: VecDeque<Waiting>,
    next: u64,
    /// How long a request runs, in seconds: the last ones weigh most.
    seconds: f64,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    client: Arc<str>,
    turn: oneshot::Sender<()>,
}

/// All places are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// When one will probably be free.
    pub retry_after: Duration,
}

/// A place of a request; dropping it gives it to the next.
#[derive(Debug)]
pub struct Place {
    queue: Queue,
    client: Arc<str>,
    id: u64,
    turn: Option<oneshot::Receiver<()>>,
    began: Option<Instant>,
}

impl Queue {
    /// `clients` is how many may be told apart.
    pub fn new(slots: usize, depth: usize, clients: usize) -> Self {
        let share = if clients > 1 { depth - depth / 4 } else { depth };
        Self(Arc::new(Inner { slots, depth, share, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for a request of `client`, running or waiting.
    pub fn enter(&self, client: &Arc<str>) -> Result<Place, Full> {
        let mut state = self.state();
        let place = |id, turn, began| Place { queue: self.clone(), client: Arc::clone(client), id, turn, began };
        if state.total < self.0.slots && state.waiting.is_empty() {
            state.start(client);
            return Ok(place(0, None, Some(Instant::now())));
        }
        let own = state.waiting.iter().filter(|waiting| waiting.client == *client).count();
        if state.waiting.len() >= self.0.depth || own >= self.0.share {
            let rounds = (state.waiting.len() + 1) as f64 / self.0.slots as f64;
            let seconds = (state.seconds * rounds).ceil().clamp(1.0, 60.0);
            return Err(Full { retry_after: Duration::from_secs(seconds as u64) });
        }
        state.next += 1;
        let (turn, comes) = oneshot::channel();
        let id = state.next;
        state.waiting.push_back(Waiting { id, client: Arc::clone(client), turn });
        Ok(place(id, Some(comes), None))
    }

    /// Returns how many run and how many wait.
    pub fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.total, state.waiting.len())
    }
}

impl State {
    fn start(&mut self, client: &Arc<str>) {
        *self.running.entry(Arc::clone(client)).or_default() += 1;
        self.given += 1;
        self.turns.insert(Arc::clone(client), self.given);
        self.total += 1;
    }

    fn end(&mut self, client: &Arc<str>) {
        self.total -= 1;
        if let Some(count) = self.running.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(client);
            }
        }
    }

    fn admit(&mut self, slots: usize) {
        while self.total < slots {
            let fewest = |(at, Waiting { client, .. }): &(usize, &Waiting)| {
                (self.running.get(client).copied(), self.turns.get(client).copied(), *at)
            };
            let Some((at, _)) = self.waiting.iter().enumerate().min_by_key(fewest) else { return };
            let Some(next) = self.waiting.remove(at) else { return };
            self.start(&next.client);
            // A place that is dropped is taken out of the queue first, so somebody listens.
            let _ = next.turn.send(());
        }
    }
}

impl Place {
    /// Waits until the request may run.
    pub async fn turn(&mut self) {
        if let Some(turn) = &mut self.turn {
            // The sender is in the queue for as long as this place is.
            let _ = turn.instrument(tracing::debug_span!("queue")).await;
            self.turn = None;
            self.began = Some(Instant::now());
        }
    }

    /// Whether the request may run.
    pub fn runs(&self) -> bool {
        self.began.is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        if let Some(at) = state.waiting.iter().position(|waiting| waiting.id == self.id && self.id > 0) {
            state.waiting.remove(at);
            return;
        }
        // Out of the queue means that it was given a slot, whether or not it noticed.
        state.end(&self.client);
        if let Some(began) = self.began {
            let seconds = began.elapsed().as_secs_f64();
            state.seconds = if state.seconds == 0.0 { seconds } else { 0.8 * state.seconds + 0.2 * seconds };
        }
        state.admit(self.queue.0.slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn beyond_slots_and_depth_nobody_enters() {
        let (queue, a) = (Queue::new(2, 3, 1), client("a"));
        let places: Vec<Place> = (0..5).map(|_| queue.enter(&a).expect("there is room")).collect();
        assert_eq!(queue.load(), (2, 3));
        assert!(queue.enter(&a).expect_err("it is full").retry_after >= Duration::from_secs(1));
        drop(places);
        assert_eq!(queue.load(), (0, 0));
    }

    #[tokio::test]
    async fn a_slot_goes_to_who_has_the_fewest_and_waited_longest() {
        let (queue, a, b) = (Queue::new(2, 8, 2), client("a"), client("b"));
        let first = queue.enter(&a).expect("there is room");
        let second = queue.enter(&a).expect("there is room");
        let mut third = queue.enter(&a).expect("there is room");
        let mut fourth = queue.enter(&b).expect("there is room");
        drop(first);
        fourth.turn().await;
        assert!(!third.runs());
        drop(second);
        third.turn().await;
        assert_eq!(queue.load(), (2, 0));
    }

    #[tokio::test]
    async fn clients_take_turns() {
        let (queue, a, b) = (Queue::new(1, 8, 2), client("a"), client("b"));
        let first = queue.enter(&a).expect("there is room");
        let mut second = queue.enter(&a).expect("there is room");
        let mut third = queue.enter(&b).expect("there is room");
        drop(first);
        third.turn().await;
        assert!(!second.runs());
        drop(third);
        second.turn().await;
        assert_eq!(queue.load(), (1, 0));
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_takes_no_slot() {
        let (queue, a) = (Queue::new(1, 8, 1), client("a"));
        let first = queue.enter(&a).expect("there is room");
        let second = queue.enter(&a).expect("there is room");
        let mut third = queue.enter(&a).expect("there is room");
        drop(second);
        drop(first);
        third.turn().await;
        drop(third);
        assert_eq!(queue.load(), (0, 0));
    }

    #[test]
    fn one_client_leaves_room_for_another() {
        let (queue, a, b) = (Queue::new(1, 4, 2), client("a"), client("b"));
        let _places: Vec<Place> = (0..4).map(|_| queue.enter(&a).expect("there is room")).collect();
        assert!(queue.enter(&a).is_err());
        assert!(queue.enter(&b).is_ok());
    }
}
