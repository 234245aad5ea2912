//! How much an engine has to do.

use std::sync::{Arc, Mutex, PoisonError};

/// How many answers an engine has, by what they do. One that is over, or that the engine has found closed, is in none of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineLoad {
    /// Wait for a slot.
    pub waiting: usize,
    /// Have their prompts read.
    pub reading: usize,
    /// Are written, those among them whose readers take their time.
    pub writing: usize,
}

/// What an answer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    Reading,
    Writing,
}

impl EngineLoad {
    fn of(&mut self, phase: Phase) -> &mut usize {
        match phase {
            Phase::Waiting => &mut self.waiting,
            Phase::Reading => &mut self.reading,
            Phase::Writing => &mut self.writing,
        }
    }
}

/// The load as it is now. One lock, so that an answer which goes on is never seen twice, nor missed; it is taken three times an
/// answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts(Arc<Mutex<EngineLoad>>);

impl Counts {
    pub(super) fn now(&self) -> EngineLoad {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer as waiting, until its place is dropped.
    pub(super) fn enter(&self) -> Place {
        self.change(|load| load.waiting += 1);
        Place { counts: self.clone(), phase: Phase::Waiting }
    }

    fn change(&self, change: impl FnOnce(&mut EngineLoad)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// An answer's place in the load.
#[derive(Debug)]
pub(super) struct Place {
    counts: Counts,
    phase: Phase,
}

impl Place {
    pub(super) fn go_on(&mut self, phase: Phase) {
        if phase != self.phase {
            let before = std::mem::replace(&mut self.phase, phase);
            self.counts.change(|load| {
                *load.of(before) -= 1;
                *load.of(phase) += 1;
            });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.change(|load| *load.of(self.phase) -= 1);
    }
}
