//! Transformers over token ids. Nothing here knows what a word is.

pub mod classifier;
pub mod decoder;
pub mod encoder;
mod tensors;

use crate::error::{Error, Result};
use candle_core::{Device, Tensor};
use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};

/// Token sequences laid end to end, without padding.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The ids of all sequences, one after the other.
    pub ids: Vec<u32>,
    /// The length of each sequence; they add up to `ids.len()`.
    pub lengths: Vec<usize>,
    /// The type of each token, where the model tells one text of two from the other; empty where all are of type 0.
    pub types: Vec<u8>,
    /// How many tokens of each sequence are attended to, its first ones; empty where that is all of them. Decoders
    /// refuse others.
    pub attended: Vec<usize>,
}

/// Which tokens' hidden states are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// Those of all tokens.
    All,
    /// That of each sequence's first token.
    First,
}

/// A bidirectional transformer.
pub trait Encoder: Send + Sync {
    /// The width of a hidden state.
    fn hidden_size(&self) -> usize;
    /// The most tokens that one sequence may have.
    fn context(&self) -> usize;
    /// How many types of tokens it tells apart.
    fn token_types(&self) -> usize {
        1
    }
    /// Is called a moment before a short text is to be encoded, so that threads are awake by then.
    fn wake(&self) {}
    /// How many weights a token is multiplied with, where one of few is computed on the caller's thread.
    fn weights(&self) -> Option<usize> {
        None
    }
    /// Returns `(batch.ids.len(), hidden_size)` in f32, rows in the order of `batch.ids`.
    fn encode(&self, batch: &Batch) -> Result<Tensor>;
    /// Returns the rows of [`Self::encode`] that `rows` asks for, as `(rows, hidden_size)`.
    ///
    /// Setting `cancel` from another thread ends the call with [`Error::Cancelled`], at once or at its end.
    fn encode_rows(&self, batch: &Batch, rows: Rows, cancel: &AtomicBool) -> Result<Tensor> {
        let hidden = self.encode(batch)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if rows == Rows::All {
            return Ok(hidden);
        }
        let first: Vec<u32> = batch
            .lengths
            .iter()
            .scan(0, |end, length| {
                *end += *length as u32;
                Some(*end - *length as u32)
            })
            .collect();
        let first = Tensor::from_vec(first, batch.lengths.len(), &Device::Cpu)?;
        Ok(hidden.index_select(&first, 0)?)
    }
}

/// The weights of a causal transformer; shared, never mutated.
///
/// What a run computes is the same to the last bit whichever way it gets there, as long as its prompt is read in pieces that
/// are whole fours, but for the last, and none of which is shorter than [`FEWEST_TOGETHER`].
pub trait CausalLm: Send + Sync {
    /// The most positions that one run may read.
    fn context(&self) -> usize;
    /// The number of logits.
    fn vocab_size(&self) -> usize;
    /// Returns a run with an empty cache of its own.
    fn start(&self) -> Box<dyn Run>;
    /// Returns a run that has read the beginning of `prompt`, as far as earlier runs have left it with [`Self::keep`].
    ///
    /// The rest is at least [`FEWEST_TOGETHER`] tokens.
    fn resume(&self, prompt: &[u32]) -> Box<dyn Run> {
        let _ = prompt;
        self.start()
    }
    /// Leaves what `run` has read of `prompt`, which it began with, to later runs.
    fn keep(&self, run: &mut dyn Run, prompt: &[u32]) {
        let _ = (run, prompt);
    }
    /// Returns how many bytes of memory is used by what [`Self::keep`] was given.
    fn kept_bytes(&self) -> usize {
        0
    }
    /// Runs each of `jobs`, on the threads that compute where there are several.
    fn spread(&self, jobs: Vec<Job<'_>>) {
        for job in jobs {
            job();
        }
    }
    /// Reads the tokens of several runs together; returns for each run the logits after each of its tokens.
    ///
    /// They are those of [`Run::read`] with one token at a time, to the last bit, whatever is read beside them. A run that
    /// fails is left as it was, and does not disturb the others.
    fn step(&self, steps: &mut [Step<'_>]) -> Vec<Result<Vec<Vec<f32>>>> {
        steps.iter_mut().map(Step::alone).collect()
    }
    /// Reads as [`Self::step`] does; returns for each run the id of the highest of the first `vocab` logits after each of its
    /// tokens. `None`, with nothing read, where that is no less work than all logits.
    fn step_best(&self, steps: &mut [Step<'_>], vocab: usize) -> Option<Vec<Result<Vec<u32>>>> {
        let _ = (steps, vocab);
        None
    }
}

/// Work that does not wait for other work.
pub type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// The fewest tokens that a piece of a prompt has, where the prompt has as many: fewer are computed in another order, as
/// llama.cpp computes them.
pub const FEWEST_TOGETHER: usize = 8;

/// Tokens for one run, each to be read as if it were alone.
pub struct Step<'a> {
    /// What reads them.
    pub run: &'a mut dyn Run,
    /// At least one.
    pub ids: &'a [u32],
}

impl Step<'_> {
    fn alone(&mut self) -> Result<Vec<Vec<f32>>> {
        let start = self.run.len();
        let rows: Result<_> = self.ids.iter().map(|id| Ok(self.run.read(&[*id])?.to_vec1()?)).collect();
        rows.or_else(|e| self.run.rewind(start).and(Err(e)))
    }
}

/// One reading of a text by a [`CausalLm`]: its key-value cache.
pub trait Run: Send {
    /// Reads `ids` after all read so far; returns the logits of the next token, `(vocab,)` in f32.
    ///
    /// Fails, with the cache as it was, where `ids` is empty, out of the vocabulary, or longer than the context that is left.
    fn read(&mut self, ids: &[u32]) -> Result<Tensor>;
    /// Reads as [`Self::read`] does. Setting `cancel` from another thread may end the call early with [`Error::Cancelled`], with
    /// the cache as it was.
    fn read_unless(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<Tensor> {
        let _ = cancel;
        self.read(ids)
    }
    /// Returns how many tokens have been read.
    fn len(&self) -> usize;
    /// Returns whether nothing has been read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forgets all but the first `len` tokens.
    ///
    /// Layers with a window forget what is more than 64 tokens behind it: going back further than that fails.
    fn rewind(&mut self, len: usize) -> Result<()>;
    /// Returns the run as what it is, for its own model.
    fn as_any(&mut self) -> &mut dyn Any;
}
