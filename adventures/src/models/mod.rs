//! Transformers over token ids. Nothing here knows what a word is.

pub mod decoder;
pub mod encoder;

use crate::error::Result;
use candle_core::Tensor;

/// Token sequences laid end to end, without padding.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The ids of all sequences, one after the other.
    pub ids: Vec<u32>,
    /// The length of each sequence; they add up to `ids.len()`.
    pub lengths: Vec<usize>,
}

/// A bidirectional transformer.
pub trait Encoder: Send + Sync {
    /// The width of a hidden state.
    fn hidden_size(&self) -> usize;
    /// The most tokens that one sequence may have.
    fn context(&self) -> usize;
    /// Returns `(batch.ids.len(), hidden_size)` in f32, rows in the order of `batch.ids`.
    fn encode(&self, batch: &Batch) -> Result<Tensor>;
}

/// The weights of a causal transformer; shared, never mutated.
pub trait CausalLm: Send + Sync {
    /// The most positions that one run may read.
    fn context(&self) -> usize;
    /// The number of logits.
    fn vocab_size(&self) -> usize;
    /// Returns a run with an empty cache of its own.
    fn start(&self) -> Box<dyn Run>;
}

/// One reading of a text by a [`CausalLm`]: its key-value cache.
pub trait Run: Send {
    /// Reads `ids` after all read so far; returns the logits of the next token, `(vocab,)` in f32.
    ///
    /// Fails, with the cache as it was, where `ids` is empty, out of the vocabulary, or longer than the context that is left.
    fn read(&mut self, ids: &[u32]) -> Result<Tensor>;
    /// Returns how many tokens have been read.
    fn len(&self) -> usize;
    /// Returns whether nothing has been read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forgets all but the first `len` tokens.
    fn rewind(&mut self, len: usize) -> Result<()>;
}
