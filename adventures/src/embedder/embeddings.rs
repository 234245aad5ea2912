//! From texts to vectors: windows of texts are tokenized while those before them are computed.

use super::{Embedder, Kind, Pooling, Tokens};
use crate::error::{Error, Result};
use crate::kernels::math::{accumulate, l2_normalize};
use crate::models::{Batch, Rows};
use candle_core::{CpuStorage, Storage, Tensor};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many texts are tokenized and sorted by length at a time.
const WINDOW_TEXTS: usize = 4096;
/// How many of them at first, while there is nothing else to compute.
const FIRST_TEXTS: usize = 256;
/// How many multiplications are little: some milliseconds' worth, of which handing them to other threads would take a good part.
const LITTLE: usize = 1 << 31;

/// The vectors of some texts and what was read to make them.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// `(texts, dim)`, row-major, rows of unit length unless the embedder was asked not to normalize them.
    pub vectors: Vec<f32>,
    /// How many tokens of each text were read, special tokens and prefix included.
    pub tokens: Vec<u32>,
    /// The indices of the texts that were longer than `max_tokens` and were cut.
    pub truncated: Vec<usize>,
}

/// What was read of a text.
#[derive(Clone, Copy, Default)]
struct Read {
    tokens: u32,
    truncated: bool,
}

/// A call that is counted until it is dropped.
struct Call<'a> {
    calls: &'a AtomicUsize,
    /// How many there were before.
    others: usize,
}

impl<'a> Call<'a> {
    fn begin(calls: &'a AtomicUsize) -> Self {
        Self { calls, others: calls.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Embedder {
    /// Returns the vectors of `texts`, in their order.
    ///
    /// Equal texts are computed once; texts of similar length go through the model together. Setting `cancel` from another
    /// thread ends the call with [`Error::Cancelled`] within a layer of some 256 tokens, a pass of 512 of a decoder.
    pub fn embed(&self, texts: &[impl AsRef<str> + Sync], kind: Kind, cancel: &AtomicBool) -> Result<Embeddings> {
        if let Some(found) = self.embed_here(texts, kind) {
            return found;
        }
        let _call = Call::begin(&self.calls);
        self.pool.install(|| self.embed_all(texts, kind, cancel))
    }

    /// As [`Self::embed`], on the caller's thread, to which those of the pool come: one short text that a small model reads, a
    /// tenth of a millisecond sooner. `None` where that is too much work, or there are other calls.
    pub fn embed_here(&self, texts: &[impl AsRef<str> + Sync], kind: Kind) -> Option<Result<Embeddings>> {
        let [text] = texts else { return None };
        let bytes = self.prefix(kind).len() + text.as_ref().len();
        if self.encoder.weights()?.saturating_mul(bytes) > LITTLE {
            return None;
        }
        let call = Call::begin(&self.calls);
        if call.others > 0 {
            return None;
        }
        self.encoder.wake();
        Some(self.embed_all(texts, kind, &AtomicBool::new(false)))
    }

    fn embed_all(&self, texts: &[impl AsRef<str> + Sync], kind: Kind, cancel: &AtomicBool) -> Result<Embeddings> {
        let dim = self.dim();
        let mut first: HashMap<&str, usize> = HashMap::with_capacity(texts.len());
        let source: Vec<usize> =
            texts.iter().enumerate().map(|(i, text)| *first.entry(text.as_ref()).or_insert(i)).collect();
        let unique: Vec<usize> = (0..texts.len()).filter(|i| source[*i] == *i).collect();
        let (start, rest) = unique.split_at(unique.len().min(FIRST_TEXTS));
        let windows: Vec<&[usize]> = std::iter::once(start).chain(rest.chunks(WINDOW_TEXTS)).collect();
        let mut vectors = vec![0.0; texts.len() * dim];
        let mut reads = vec![Read::default(); texts.len()];
        let tokenize = |window: &[usize]| -> Result<Vec<Tokens>> {
            let one = |i: &usize| self.tokens(texts[*i].as_ref(), kind, cancel);
            if window.len() < 2 { window.iter().map(one).collect() } else { window.par_iter().map(one).collect() }
        };
        let mut tokens = tokenize(start)?;
        for (w, window) in windows.iter().enumerate() {
            for (&i, tokens) in window.iter().zip(&tokens) {
                reads[i] = Read { tokens: tokens.ids.len() as u32, truncated: tokens.truncated };
            }
            let mut compute = || {
                self.compute(&tokens, cancel, |j, vector| {
                    let i = window[j];
                    vectors[i * dim..(i + 1) * dim].copy_from_slice(vector);
                })
            };
            let Some(next) = windows.get(w + 1) else {
                compute()?;
                break;
            };
            // A thread that finds no block to compute tokenizes.
            let (computed, next) = rayon::join(compute, || tokenize(next));
            computed?;
            tokens = next?;
        }
        for (i, &from) in source.iter().enumerate().filter(|(i, from)| i != *from) {
            vectors.copy_within(from * dim..(from + 1) * dim, i * dim);
            reads[i] = reads[from];
        }
        let truncated = (0..texts.len()).filter(|i| reads[*i].truncated).collect();
        Ok(Embeddings { vectors, tokens: reads.into_iter().map(|read| read.tokens).collect(), truncated })
    }

    /// Calls `found` with the index and the vector of each of `texts`, the longest first.
    fn compute(&self, texts: &[Tokens], cancel: &AtomicBool, mut found: impl FnMut(usize, &[f32])) -> Result<()> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&j| std::cmp::Reverse(texts[j].ids.len()));
        let rows = if self.pooling == Pooling::Cls { Rows::First } else { Rows::All };
        let width = self.encoder.hidden_size();
        let mut order = order.as_slice();
        while !order.is_empty() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let mut batch = Batch::default();
            while let Some(&j) = order.get(batch.lengths.len()) {
                if !batch.ids.is_empty() && batch.ids.len() + texts[j].ids.len() > self.call_tokens {
                    break;
                }
                batch.ids.extend_from_slice(&texts[j].ids);
                batch.lengths.push(texts[j].ids.len());
            }
            let (now, later) = order.split_at(batch.lengths.len());
            let hidden = self.encoder.encode_rows(&batch, rows, cancel)?;
            let mut end = 0;
            with_rows(&hidden, |numbers| {
                for (&j, &length) in now.iter().zip(&batch.lengths) {
                    end += if rows == Rows::First { 1 } else { length };
                    let pooled = if rows == Rows::First { 1 } else { texts[j].pooled };
                    found(j, &self.pool_tokens(&numbers[(end - pooled) * width..end * width], width));
                }
            })?;
            order = later;
        }
        Ok(())
    }

    /// Returns the vector of a text whose pooled tokens have the hidden states `rows`.
    fn pool_tokens(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let mut vector = rows[..width].to_vec();
        rows[width..].chunks_exact(width).for_each(|row| accumulate(&mut vector, row));
        let count = rows.len() / width;
        // What is normalized next keeps its direction: the sum will do. What is not linear needs the mean.
        if count > 1 && (self.unnormalized || !self.dense.is_empty()) {
            for x in &mut vector {
                *x /= count as f32;
            }
        }
        for dense in &self.dense {
            vector = dense.apply(&vector);
        }
        vector.truncate(self.dim);
        if !self.unnormalized {
            l2_normalize(&mut vector);
        }
        vector
    }
}

/// Calls `f` with the numbers of a contiguous f32 tensor, copying them only where they are on another device.
pub(crate) fn with_rows<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    if let (Storage::Cpu(CpuStorage::F32(numbers)), Some((from, to))) = (&*storage, layout.contiguous_offsets()) {
        return Ok(f(&numbers[from..to]));
    }
    drop(storage);
    Ok(f(&tensor.flatten_all()?.to_vec1()?))
}
