//! Requests that take turns at a model.

use adventures::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// How many requests may wait; beyond, clients are told to come back later.
const WAITING: usize = 64;

/// One computes at a time; whoever has waited longest is next.
#[derive(Debug, Clone)]
pub struct Turns {
    turn: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// Somebody's turn; dropping it gives it to the next.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "held, not read")] Result<OwnedSemaphorePermit, AcquireError>);

/// A request that takes turns; counted until it is dropped.
#[derive(Debug)]
pub struct Waits(Arc<AtomicUsize>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Ends what computes when whoever waits for it is gone.
#[derive(Debug, Default)]
pub struct Ends(Arc<AtomicBool>);

impl Ends {
    /// What to look at to know that nobody waits any more.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), waiting: Arc::default() }
    }
}

impl Turns {
    /// Lets a request wait for turns, if there is room; `what` is what it wants.
    pub fn enter(&self, what: &str) -> Result<Waits, Error> {
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Waits(Arc::clone(&self.waiting));
        if others >= WAITING { Err(Error::Busy(format!("too many requests are waiting to {what}"))) } else { Ok(waits) }
    }

    /// Returns a turn, when it comes.
    pub async fn next(&self) -> Turn {
        Turn(Arc::clone(&self.turn).acquire_owned().await)
    }
}
