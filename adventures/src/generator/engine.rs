//! The engine: one thread that computes all answers of a model, side by side.
//!
//! Each turn reads a piece of one prompt and a token of each answer that is being written (continuous batching, Orca,
//! <https://www.usenix.org/conference/osdi22/presentation/yu>): weights are unpacked once for all of them. An answer is the same
//! to the last bit whatever is computed beside it, as [`CausalLm::step`] promises.

use super::answer::{self, Answer, Choice};
use super::generation::{Finish, Generation};
use super::load::{Counts, EngineLoad, Phase, Place};
use super::stream::{Bell, Stream};
use crate::error::{Error, Result, message};
use crate::models::{CausalLm, Job, Step};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The most rows of a step: beyond them, another row costs as much as a step of its own.
const ROWS: usize = 8;

/// A model's thread. It starts with the first answer, and ends with the last after the engine was dropped.
pub(super) struct Engine {
    lm: Arc<dyn CausalLm>,
    slots: usize,
    inbox: Arc<Inbox>,
    counts: Counts,
}

#[derive(Default)]
struct Inbox {
    bell: Arc<Bell>,
    state: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    jobs: Vec<(answer::Job, Arc<Stream>, Place)>,
    /// Whether there is a thread.
    runs: bool,
    /// Whether no more jobs will come.
    closed: bool,
}

impl Inbox {
    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    pub(super) fn new(lm: Arc<dyn CausalLm>, slots: usize) -> Self {
        Self { lm, slots, inbox: Arc::default(), counts: Counts::default() }
    }

    pub(super) fn load(&self) -> EngineLoad {
        self.counts.now()
    }

    pub(super) fn start(&self, job: answer::Job) -> Result<Generation> {
        let bell = Arc::clone(&self.inbox.bell);
        let stream = Arc::new(Stream::new(bell, job.prompt.len(), job.sampler.seed(), job.logprobs.is_some()));
        let mut waiting = self.inbox.state();
        if !waiting.runs {
            let (lm, inbox) = (Arc::clone(&self.lm), Arc::clone(&self.inbox));
            let worker = Worker { lm, slots: self.slots, inbox, answers: Vec::new(), turns: 0 };
            std::thread::Builder::new()
                .name("engine".into())
                .spawn(move || worker.work())
                .map_err(|e| Error::io("starting the engine's thread", e))?;
            waiting.runs = true;
        }
        waiting.jobs.push((job, Arc::clone(&stream), self.counts.enter()));
        drop(waiting);
        self.inbox.bell.ring();
        Ok(Generation::new(stream))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.inbox.state().closed = true;
        self.inbox.bell.ring();
    }
}

struct Worker {
    lm: Arc<dyn CausalLm>,
    slots: usize,
    inbox: Arc<Inbox>,
    /// In the order in which they came.
    answers: Vec<Answer>,
    turns: u64,
}

impl Worker {
    fn work(mut self) {
        loop {
            let rings = self.inbox.bell.rings();
            {
                let mut waiting = self.inbox.state();
                let jobs = waiting.jobs.drain(..);
                self.answers.extend(jobs.map(|(job, stream, place)| Answer::new(job, stream, place)));
                if waiting.closed && self.answers.is_empty() {
                    return;
                }
            }
            // Dropping an answer frees its cache.
            self.answers.retain(|answer| !answer.stream.is_closed());
            match catch_unwind(AssertUnwindSafe(|| self.read() | self.step())) {
                Ok(true) => {}
                Ok(false) => self.inbox.bell.wait(rings),
                // Nobody may wait for a thread that is gone.
                Err(panic) => {
                    let problem = message(&*panic);
                    for answer in self.answers.drain(..) {
                        answer.end(Err(internal(problem)));
                    }
                }
            }
        }
    }

    /// Reads a piece of the prompt of the first answer that has a slot; returns whether there is one.
    fn read(&mut self) -> bool {
        let lm = self.lm.as_ref();
        // Answers whose readers take their time do not keep others waiting.
        let busy = |answer: &&Answer| answer.has_begun() && answer.stream.has_room();
        let free = self.answers.iter().filter(busy).count() < self.slots;
        let first = self.answers.iter_mut().position(|answer| !answer.is_writing() && (free || answer.has_begun()));
        let Some(i) = first else { return false };
        let answer = &mut self.answers[i];
        answer.place.go_on(Phase::Reading);
        let result = guard(|| answer.read(lm));
        if answer.is_writing() {
            answer.place.go_on(Phase::Writing);
        }
        self.settle(i, result);
        true
    }

    /// Reads a token of each answer that is being written; returns whether there is one.
    fn step(&mut self) -> bool {
        self.turns += 1;
        let lm = Arc::clone(&self.lm);
        let ready = |answer: &Answer| answer.is_writing() && answer.stream.has_room() && !answer.stream.is_closed();
        let mut chosen: Vec<usize> = (0..self.answers.len()).filter(|i| ready(&self.answers[*i])).collect();
        chosen.sort_by_key(|i| self.answers[*i].stepped);
        chosen.truncate(self.slots);
        chosen.sort_unstable();
        if chosen.is_empty() {
            return false;
        }
        let mut choices = self.compute(&chosen, (ROWS / chosen.len()).saturating_sub(1)).into_iter();
        let mut results: Vec<Result<Option<Finish>>> = chosen.iter().map(|_| Ok(None)).collect();
        let answers = self.answers.iter_mut().enumerate().filter(|(i, _)| chosen.contains(i));
        // Choosing from a large vocabulary takes as long as a layer does: not one answer after the other.
        let jobs = answers.zip(&mut choices).zip(&mut results).map(|(((_, answer), choices), result)| -> Job<'_> {
            answer.stepped = self.turns;
            let lm = lm.as_ref();
            Box::new(move || *result = choices.and_then(|choices| guard(|| answer.follow(lm, choices))))
        });
        lm.spread(jobs.collect());
        // From the last on: an answer that ends is taken out.
        for (i, result) in chosen.into_iter().zip(results).rev() {
            self.settle(i, result);
        }
        true
    }

    /// What follows each of what the `chosen` answers read next, with at most `guesses` beside the token that is certain.
    fn compute(&mut self, chosen: &[usize], guesses: usize) -> Vec<Result<Vec<Choice>>> {
        let lm = self.lm.as_ref();
        let plain = chosen.iter().all(|i| self.answers[*i].is_plain());
        let vocab = chosen.first().map_or(0, |i| self.answers[*i].vocab_size());
        let answers = self.answers.iter_mut().enumerate().filter(|(i, _)| chosen.contains(i));
        let mut steps: Vec<Step<'_>> = answers.filter_map(|(_, answer)| answer.step(lm, guesses)).collect();
        let results = catch_unwind(AssertUnwindSafe(|| {
            if let Some(best) = plain.then(|| lm.step_best(&mut steps, vocab)).flatten() {
                let choices = |ids: Vec<u32>| ids.into_iter().map(Choice::Best).collect();
                return best.into_iter().map(|ids| ids.map(choices)).collect::<Vec<Result<Vec<Choice>>>>();
            }
            let choices = |rows: Vec<Vec<f32>>| rows.into_iter().map(Choice::Logits).collect();
            lm.step(&mut steps).into_iter().map(|rows| rows.map(choices)).collect()
        }));
        match results {
            // A guess that leads to what is no number must not end an answer that would never have come there.
            Ok(results) if guesses > 0 && results.iter().any(Result::is_err) => {
                drop(steps);
                let mut again = Vec::with_capacity(chosen.len());
                for (i, result) in chosen.iter().zip(results) {
                    again.push(match result {
                        Ok(choices) => Ok(choices),
                        Err(_) => self.compute(&[*i], 0).pop().unwrap_or_else(|| Err(internal("no step was made"))),
                    });
                }
                again
            }
            Ok(results) => results,
            Err(panic) => chosen.iter().map(|_| Err(internal(message(&*panic)))).collect(),
        }
    }

    /// Takes out an answer that is over.
    fn settle(&mut self, i: usize, result: Result<Option<Finish>>) {
        let end = match result {
            Ok(None) => return,
            Ok(Some(finish)) => Ok(finish),
            Err(error) => Err(error),
        };
        self.answers.remove(i).end(end);
    }
}

/// Runs `f`; a panic becomes an error.
fn guard<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(internal(message(&*panic))))
}

fn internal(problem: &str) -> Error {
    Error::Model(candle_core::Error::Msg(format!("internal error: {problem}; this is a bug in adventures")))
}
