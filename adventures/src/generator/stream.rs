//! What an answer's reader and the engine share.

use super::generation::{Finish, GenerationStats, Next};
use super::logprob::TokenLogprob;
use crate::error::Result;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How far the model may run ahead of its reader, in pieces: little, so that it stops with a reader that was interrupted.
const PIECES_AHEAD: usize = 2;

/// Wakes the engine. Rings are counted, so that none is missed between a look around and the wait that follows.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.rung.notify_all();
    }

    pub(super) fn rings(&self) -> u64 {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once it has rung after the count was `seen`.
    pub(super) fn wait(&self, seen: u64) {
        let rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.rung.wait_while(rings, |rings| *rings == seen).unwrap_or_else(PoisonError::into_inner));
    }
}

/// Pieces of text on their way to the reader, and what the answer has cost.
#[derive(Debug)]
pub(super) struct Stream {
    state: Mutex<State>,
    arrived: Condvar,
    /// Nothing more is read. Set with the lock held; a computation looks at it without.
    closed: AtomicBool,
    bell: Arc<Bell>,
    started: Instant,
}

#[derive(Debug)]
struct State {
    pieces: VecDeque<Result<String>>,
    /// Nothing more is written.
    over: bool,
    /// Of the task that waits for a change.
    waker: Option<Waker>,
    stats: GenerationStats,
    /// One for each token generated; `None` where nobody asked.
    logprobs: Option<Vec<TokenLogprob>>,
}

impl Stream {
    pub(super) fn new(bell: Arc<Bell>, prompt_tokens: usize, seed: u64, logprobs: bool) -> Self {
        let stats = GenerationStats {
            prompt_tokens,
            read_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            prompt_seconds: 0.0,
            seconds: 0.0,
            seed,
            finish: None,
        };
        let logprobs = logprobs.then(Vec::new);
        let state = State { pieces: VecDeque::new(), over: false, waker: None, stats, logprobs };
        let (state, closed) = (Mutex::new(state), AtomicBool::new(false));
        Self { state, arrived: Condvar::new(), closed, bell, started: Instant::now() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the reader of a change, in whichever way it waits.
    fn announce(&self, mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        // Woken without the lock: a waker may run its task at once.
        drop(state);
        self.arrived.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    // The reader's side.

    pub(super) fn next(&self, timeout: Duration) -> Result<Next> {
        let waits = |state: &mut State| state.pieces.is_empty() && !state.over && !self.is_closed();
        let (mut state, _) =
            self.arrived.wait_timeout_while(self.state(), timeout, waits).unwrap_or_else(PoisonError::into_inner);
        let Some(piece) = state.pieces.pop_front() else {
            return Ok(if state.over || self.is_closed() { Next::End } else { Next::Waiting });
        };
        drop(state);
        self.bell.ring();
        piece.map(Next::Piece)
    }

    pub(super) fn poll_next(&self, context: &Context<'_>) -> Poll<Option<Result<String>>> {
        let mut state = self.state();
        if let Some(piece) = state.pieces.pop_front() {
            drop(state);
            self.bell.ring();
            return Poll::Ready(Some(piece));
        }
        if state.over || self.is_closed() {
            return Poll::Ready(None);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            let before = state.waker.replace(context.waker().clone());
            // Dropped without the lock: it may be the last that keeps a task, and what that holds.
            drop(state);
            drop(before);
        }
        Poll::Pending
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        state.pieces.clear();
        state.stats.finish.get_or_insert(Finish::Closed);
        self.announce(state);
        self.bell.ring();
    }

    pub(super) fn stats(&self) -> GenerationStats {
        self.state().stats
    }

    pub(super) fn logprobs(&self, skip: usize) -> Option<Vec<TokenLogprob>> {
        self.state().logprobs.as_ref().map(|all| all.iter().skip(skip).cloned().collect())
    }

    // The engine's side.

    /// Returns whether the reader is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// What is set when the reader goes.
    pub(super) fn closed(&self) -> &AtomicBool {
        &self.closed
    }

    /// Returns whether the model may go on before the reader takes what is there.
    pub(super) fn has_room(&self) -> bool {
        self.state().pieces.len() < PIECES_AHEAD
    }

    pub(super) fn send(&self, text: String) {
        let mut state = self.state();
        if !text.is_empty() && !self.is_closed() {
            state.pieces.push_back(Ok(text));
            self.announce(state);
        }
    }

    /// Changes the statistics, and sets the time in them.
    pub(super) fn update(&self, change: impl FnOnce(&mut GenerationStats)) {
        let mut state = self.state();
        change(&mut state.stats);
        state.stats.seconds = self.started.elapsed().as_secs_f64();
    }

    pub(super) fn push_logprob(&self, logprob: Option<TokenLogprob>) {
        if let Some(all) = &mut self.state().logprobs {
            all.extend(logprob);
        }
    }

    /// Ends the answer.
    pub(super) fn end(&self, result: Result<Finish>) {
        let mut state = self.state();
        state.stats.seconds = self.started.elapsed().as_secs_f64();
        let finish = *result.as_ref().unwrap_or(&Finish::Error);
        state.stats.finish.get_or_insert(finish);
        if let Err(error) = result
            && !self.is_closed()
        {
            state.pieces.push_back(Err(error));
        }
        state.over = true;
        self.announce(state);
    }

    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
