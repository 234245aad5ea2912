//! One answer, as its reader has it: a stream of text and what it has cost.

use super::logprob::TokenLogprob;
use super::stream::Stream;
use crate::error::Result;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

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
    /// How many of them have been read so far; those of `cached_tokens` are among them.
    pub read_tokens: usize,
    /// How many of them were not read again, as an earlier answer's prompt began with them too.
    pub cached_tokens: usize,
    /// How many tokens were generated, the end token not counted.
    pub generated_tokens: usize,
    /// How many tokens were guessed from earlier text, to be read together with the one before.
    pub drafted_tokens: usize,
    /// How many of these guesses were right.
    pub accepted_tokens: usize,
    /// How long it took until the prompt was read, in seconds: waiting for a slot is part of it.
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

/// A running answer: pieces of whole UTF-8 that together are the answer. Dropping it stops the model within one step.
#[derive(Debug)]
pub struct Generation {
    stream: Arc<Stream>,
}

impl Generation {
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        Self { stream }
    }

    /// Waits for more text, at most `timeout`.
    ///
    /// An error ends the answer: what comes after it is [`Next::End`].
    pub fn next(&mut self, timeout: Duration) -> Result<Next> {
        self.stream.next(timeout)
    }

    /// Returns more text, `None` at the end; where there is neither yet, the task of `context` is woken when there is.
    ///
    /// No thread waits. Of several tasks that asked in vain, the last is woken. An error ends the answer.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<String>>> {
        self.stream.poll_next(context)
    }

    /// Stops the model within one step, or one piece of the prompt. What was not read yet is dropped.
    pub fn close(&mut self) {
        self.stream.close();
    }

    /// Returns what the answer has cost so far.
    pub fn stats(&self) -> GenerationStats {
        self.stream.stats()
    }

    /// Returns how likely each of the tokens generated so far was, but the first `skip`; `None` where
    /// [`GenerateOptions::logprobs`](super::GenerateOptions::logprobs) did not ask for it.
    ///
    /// They are as many as [`GenerationStats::generated_tokens`]: those of a stop string, which the text lacks, are among them,
    /// and the model may be ahead of its reader.
    pub fn logprobs(&self, skip: usize) -> Option<Vec<TokenLogprob>> {
        self.stream.logprobs(skip)
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.close();
    }
}
