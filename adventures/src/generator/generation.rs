//! One answer: the model's thread on one side, a stream of text on the other.

use super::kept::Kept;
use super::logprob::{Logits, TokenLogprob};
use super::stop::StopFinder;
use crate::error::{Error, Result, message};
use crate::models::{CausalLm, Run};
use crate::sampling::Sampler;
use crate::tokenizer::{TextStream, Tokenizer};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many tokens of a prompt are read between two looks at whether to go on.
const PREFILL_TOKENS: usize = 128;
/// The fewest that are read together where there are more before them: fewer would be computed in another order than in
/// one reading of the whole prompt, which is what llama.cpp does.
const FEWEST_TOKENS: usize = 8;
/// How far the model may run ahead of its reader, in pieces: one, so that it stops with a reader that was interrupted.
const PIECES_AHEAD: usize = 1;

/// The pieces that a prompt of `length` tokens is read in.
pub(super) fn pieces(length: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let many = length - start >= PREFILL_TOKENS + FEWEST_TOKENS;
        let piece = start..if many { start + PREFILL_TOKENS } else { length };
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// A stop string was met.
    StopString,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    Context,
    /// It was closed.
    Closed,
    /// It failed; the reader is told how.
    Error,
}

impl Finish {
    /// Returns `"stop"`, `"stop_string"`, `"length"`, `"context"`, `"closed"` or `"error"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::StopString => "stop_string",
            Self::Length => "length",
            Self::Context => "context",
            Self::Closed => "closed",
            Self::Error => "error",
        }
    }
}

/// What an answer has cost so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerationStats {
    /// How many tokens the prompt has.
    pub prompt_tokens: usize,
    /// How many of them were not read again, as the last answer's prompt began with them too.
    pub cached_tokens: usize,
    /// How many tokens were generated, the end token not counted.
    pub generated_tokens: usize,
    /// How long the prompt took to read, in seconds.
    pub prompt_seconds: f64,
    /// How long all of it took, in seconds.
    pub seconds: f64,
    /// Of the random numbers.
    pub seed: u64,
    /// Why it ended; `None` while it runs.
    pub finish: Option<Finish>,
}

/// What comes next from an answer.
#[derive(Debug)]
pub enum Next {
    /// More text, never empty.
    Piece(String),
    /// Nothing within the time given.
    Waiting,
    /// The answer is over.
    End,
}

/// A running answer: pieces of whole UTF-8 that together are the answer. Dropping it stops the model within one token.
#[derive(Debug)]
pub struct Generation {
    pieces: Option<Receiver<Result<String>>>,
    cancel: Arc<AtomicBool>,
    progress: Arc<Mutex<Progress>>,
}

/// How far the model has come.
#[derive(Debug)]
struct Progress {
    stats: GenerationStats,
    /// One for each token generated; `None` where nobody asked.
    logprobs: Option<Vec<TokenLogprob>>,
}

/// What the model's thread works with.
pub(super) struct Job {
    pub(super) lm: Arc<dyn CausalLm>,
    pub(super) kept: Arc<Kept>,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) prompt: Vec<u32>,
    /// Text that the answer begins with and the prompt ends with.
    pub(super) prefix: String,
    pub(super) sampler: Sampler,
    pub(super) stops: Vec<String>,
    pub(super) max_tokens: usize,
    /// With how many alternatives log probabilities are kept.
    pub(super) logprobs: Option<usize>,
    /// Whether a space before the first word belongs to the vocabulary and not to the answer.
    pub(super) trim_start: bool,
}

impl Generation {
    pub(super) fn start(job: Job) -> Result<Self> {
        let stats = GenerationStats {
            prompt_tokens: job.prompt.len(),
            cached_tokens: 0,
            generated_tokens: 0,
            prompt_seconds: 0.0,
            seconds: 0.0,
            seed: job.sampler.seed(),
            finish: None,
        };
        let progress = Arc::new(Mutex::new(Progress { stats, logprobs: job.logprobs.map(|_| Vec::new()) }));
        let cancel = Arc::new(AtomicBool::new(false));
        let (sender, pieces) = sync_channel(PIECES_AHEAD);
        let writer =
            Writer { sender, cancel: Arc::clone(&cancel), progress: Arc::clone(&progress), started: Instant::now() };
        std::thread::Builder::new()
            .name("generation".into())
            .spawn(move || writer.work(job))
            .map_err(|e| Error::io("starting the thread of a generation", e))?;
        Ok(Self { pieces: Some(pieces), cancel, progress })
    }

    /// Waits for more text, at most `timeout`.
    ///
    /// An error ends the answer: what comes after it is [`Next::End`].
    pub fn next(&mut self, timeout: Duration) -> Result<Next> {
        let Some(pieces) = &self.pieces else { return Ok(Next::End) };
        match pieces.recv_timeout(timeout) {
            Ok(Ok(piece)) => Ok(Next::Piece(piece)),
            Ok(Err(error)) => {
                self.pieces = None;
                Err(error)
            }
            Err(RecvTimeoutError::Timeout) => Ok(Next::Waiting),
            Err(RecvTimeoutError::Disconnected) => {
                self.pieces = None;
                Ok(Next::End)
            }
        }
    }

    /// Stops the model within one token, or one chunk of the prompt. What was not read yet is dropped.
    pub fn close(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        // The model's thread may be waiting for room; without a reader it stops waiting.
        self.pieces = None;
        lock(&self.progress).stats.finish.get_or_insert(Finish::Closed);
    }

    /// Returns what the answer has cost so far.
    pub fn stats(&self) -> GenerationStats {
        lock(&self.progress).stats
    }

    /// Returns how likely each of the tokens generated so far was, but the first `skip`; `None` where
    /// [`GenerateOptions::logprobs`](super::GenerateOptions::logprobs) did not ask for it.
    ///
    /// They are as many as [`GenerationStats::generated_tokens`]: those of a stop string, which the text lacks, are among them,
    /// and the model may be ahead of its reader.
    pub fn logprobs(&self, skip: usize) -> Option<Vec<TokenLogprob>> {
        lock(&self.progress).logprobs.as_ref().map(|all| all.iter().skip(skip).cloned().collect())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.close();
    }
}

fn lock(progress: &Mutex<Progress>) -> std::sync::MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The model's side of the stream.
struct Writer {
    sender: SyncSender<Result<String>>,
    cancel: Arc<AtomicBool>,
    progress: Arc<Mutex<Progress>>,
    started: Instant,
}

impl Writer {
    fn work(self, job: Job) {
        let result = catch_unwind(AssertUnwindSafe(|| self.generate(job))).unwrap_or_else(|panic| {
            let message = message(&*panic);
            Err(Error::Model(candle_core::Error::Msg(format!(
                "internal error: {message}; this is a bug in adventures"
            ))))
        });
        {
            let stats = &mut lock(&self.progress).stats;
            stats.seconds = self.started.elapsed().as_secs_f64();
            stats.finish.get_or_insert(result.as_ref().copied().unwrap_or(Finish::Error));
        }
        if let Err(error) = result {
            // Nobody is left to tell where this fails.
            let _ = self.sender.send(Err(error));
        }
    }

    fn stopped(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// Sends text; returns whether there is still a reader.
    fn send(&self, text: String) -> bool {
        text.is_empty() || self.sender.send(Ok(text)).is_ok()
    }

    fn generate(&self, job: Job) -> Result<Finish> {
        let (kept, prompt) = (Arc::clone(&job.kept), job.prompt.clone());
        let mut run = kept.take(job.lm.as_ref(), &prompt);
        lock(&self.progress).stats.cached_tokens = run.len();
        let finish = self.answer(job, run.as_mut())?;
        if run.len() >= prompt.len() {
            kept.put(prompt, run);
        }
        Ok(finish)
    }

    /// Reads what `run` has not read of the prompt, and writes.
    fn answer(&self, job: Job, run: &mut dyn Run) -> Result<Finish> {
        let Job { lm, tokenizer, prompt, prefix, mut sampler, stops, max_tokens, logprobs, mut trim_start, .. } = job;
        let cached = run.len();
        // A table that is padded to a round number has more rows than there are tokens; what they say means nothing.
        let known = |mut logits: Vec<f32>| {
            logits.truncate(tokenizer.vocab_size());
            logits
        };
        let mut logits = Vec::new();
        for piece in pieces(prompt.len()).skip_while(|piece| piece.start < cached) {
            if self.stopped() {
                return Ok(Finish::Closed);
            }
            logits = known(run.read(&prompt[piece])?.to_vec1()?);
        }
        lock(&self.progress).stats.prompt_seconds = self.started.elapsed().as_secs_f64();
        if !self.send(prefix) {
            return Ok(Finish::Closed);
        }
        let prompt_tokens = prompt.len();
        let mut history = prompt;
        let mut text = TextStream::default();
        let mut stop = StopFinder::new(stops);
        if sampler.is_done() {
            return Ok(Finish::Stop);
        }
        for generated in 1.. {
            if self.stopped() {
                return Ok(Finish::Closed);
            }
            let said = logprobs.map(|n| (n, Logits::new(&logits)));
            let id = sampler.sample(&mut logits, &history, prompt_tokens)?;
            if tokenizer.is_end(id) {
                return Ok(self.end(&mut text, &mut stop, Finish::Stop));
            }
            history.push(id);
            let logprob = said.map(|(n, logits)| logits.logprob(id, n, &tokenizer));
            {
                let mut progress = lock(&self.progress);
                progress.stats.generated_tokens = generated;
                progress.stats.seconds = self.started.elapsed().as_secs_f64();
                if let Some(all) = &mut progress.logprobs {
                    all.extend(logprob);
                }
            }
            let mut bytes = tokenizer.bytes(id);
            if trim_start && !bytes.is_empty() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                trim_start = false;
            }
            let (piece, stopped) = stop.push(&text.push(bytes));
            if !self.send(piece) {
                return Ok(Finish::Closed);
            }
            if stopped {
                return Ok(Finish::StopString);
            }
            if sampler.is_done() {
                return Ok(self.end(&mut text, &mut stop, Finish::Stop));
            }
            if generated == max_tokens {
                return Ok(self.end(&mut text, &mut stop, Finish::Length));
            }
            if run.len() == lm.context() {
                return Ok(self.end(&mut text, &mut stop, Finish::Context));
            }
            logits = known(run.read(&[id])?.to_vec1()?);
        }
        unreachable!("max_tokens is at least 1; this is a bug")
    }

    /// Sends what was held back.
    fn end(&self, text: &mut TextStream, stop: &mut StopFinder, finish: Finish) -> Finish {
        let (piece, stopped) = stop.push(&text.finish());
        let rest = if stopped { String::new() } else { stop.finish() };
        if !self.send(piece + &rest) {
            return Finish::Closed;
        }
        if stopped { Finish::StopString } else { finish }
    }
}
