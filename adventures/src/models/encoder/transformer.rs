//! What all encoders share: layers of attention and a feed-forward network, over packed batches.

use super::positions::Rotary;
use crate::error::{Error, Result, invalid};
use crate::kernels::attention::{Distances, Heads, Qkv, Sight, attention};
use crate::kernels::causal::{gelu_erf_gate, gelu_tanh_gate, silu_gate};
use crate::kernels::math::{LayerNorm, accumulate, layer_norm};
use crate::kernels::panels::{Linear, PANEL, Rounded, Then};
use crate::kernels::threads::{Team, Threads};
use crate::kernels::vector::Level;
use crate::models::{Batch, Encoder, Rows};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How many tokens go through the layers together: enough to fill the matrix products, few enough for the caches.
const BLOCK_TOKENS: usize = 256;
/// How many tokens of a longer text go through the feed-forward network together, where all threads compute it.
const LONG_CHUNK_ROWS: usize = 1024;

/// A bidirectional transformer, as its architecture's file describes it.
pub(super) struct Transformer<L> {
    pub(super) heads: Heads,
    pub(super) level: Level,
    pub(super) context: usize,
    pub(super) embeddings: Embeddings,
    /// What is added to the scores of all layers by distance.
    pub(super) distances: Option<Distances>,
    pub(super) layers: Vec<Layer<L>>,
    /// Where norms stand before attention and network, the one behind all layers; otherwise they stand behind both.
    pub(super) last_norm: Option<LayerNorm>,
    pub(super) team: Team,
    /// What computed blocks left behind, for those that come.
    pub(super) arenas: Mutex<Vec<Scratch>>,
}

/// What becomes of a token before the first layer.
pub(super) struct Embeddings {
    pub(super) words: Vec<f32>,
    pub(super) positions: Option<Positions>,
    /// The embeddings of token types; a single text has type 0 alone. Empty where a model has none.
    pub(super) types: Vec<f32>,
    pub(super) norm: LayerNorm,
}

/// Learned positions.
pub(super) struct Positions {
    pub(super) table: Vec<f32>,
    /// Padding's id where positions are counted as RoBERTa does: from `padding + 1`, padding itself staying at `padding`.
    pub(super) padding: Option<u32>,
}

/// One layer.
pub(super) struct Layer<L> {
    /// Queries, keys and values as one product: `(3 * hidden, hidden)`, or the first two.
    pub(super) qkv: L,
    /// Values where another kernel multiplies these: `(hidden, hidden)`.
    pub(super) values: Option<L>,
    pub(super) attention_out: L,
    /// None stands before the first layer's attention in ModernBERT, whose embeddings have a norm.
    pub(super) attention_norm: Option<LayerNorm>,
    pub(super) up: L,
    pub(super) activation: Activation<L>,
    pub(super) down: L,
    pub(super) out_norm: LayerNorm,
    pub(super) rotary: Option<Arc<Rotary>>,
    /// How many tokens away a key may be.
    pub(super) window: Option<usize>,
}

/// What stands between the products of a feed-forward network.
pub(super) enum Activation<L> {
    Plain(Then),
    /// A function of a second product, times the first (Shazeer 2020).
    Gated(Gate, L),
}

/// The function of a gate.
#[derive(Debug, Clone, Copy)]
pub(super) enum Gate {
    GeluErf,
    GeluTanh,
    Silu,
}

/// Space for the intermediate results of one block of tokens.
#[derive(Default)]
pub(super) struct Scratch {
    hidden: Rounded,
    wide: Rounded,
    context: Rounded,
    /// What a norm made of a layer's input, where it stands before.
    normed: Rounded,
    /// The first products of gates; or rows that are rounded as they are computed.
    ups: Rounded,
    rounded: Rounded,
}

/// Whole sequences that go through the layers together.
struct Block<'a> {
    ids: &'a [u32],
    types: &'a [u8],
    lengths: &'a [usize],
    /// As long as `lengths`, or empty.
    attended: &'a [usize],
    /// The rows of their tokens; in the end, of [`Rows::First`] those of the sequences, then anything.
    hidden: &'a mut [f32],
}

/// What is asked of all blocks.
struct Task<'a> {
    rows: Rows,
    threads: Threads<'a>,
    cancel: &'a AtomicBool,
}

impl Embeddings {
    pub(super) fn width(&self) -> usize {
        self.norm.weight.len()
    }

    /// Writes the embeddings of one sequence to `out`, before their norm; `types` is empty where all are of type 0.
    fn write(&self, ids: &[u32], types: &[u8], out: &mut [f32]) {
        let width = self.width();
        let row = |i: usize| -> Range<usize> { i * width..(i + 1) * width };
        let padding = self.positions.as_ref().and_then(|positions| positions.padding);
        let positions = Positions::count(ids, padding);
        for (i, ((&id, out), position)) in ids.iter().zip(out.chunks_exact_mut(width)).zip(positions).enumerate() {
            out.copy_from_slice(&self.words[row(id as usize)]);
            if !self.types.is_empty() {
                accumulate(out, &self.types[row(types.get(i).map_or(0, |kind| usize::from(*kind)))]);
            }
            if let Some(positions) = &self.positions {
                accumulate(out, &positions.table[row(position as usize)]);
            }
        }
    }
}

impl Positions {
    /// Returns the position of each of a sequence's tokens.
    pub(super) fn count(ids: &[u32], padding: Option<u32>) -> impl Iterator<Item = u32> {
        let mut next = padding.map_or(0, |padding| padding + 1);
        ids.iter().map(move |id| {
            if Some(*id) == padding {
                return *id;
            }
            next += 1;
            next - 1
        })
    }
}

/// What a model can read.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) context: usize,
    pub(super) vocabulary: usize,
    /// How many types of tokens it tells apart.
    pub(super) types: usize,
    /// How far the layer that sees least sees.
    pub(super) window: usize,
}

impl Limits {
    /// Fails where this model cannot read `batch`.
    pub(super) fn check(&self, batch: &Batch) -> Result<()> {
        let total: usize = batch.lengths.iter().sum();
        if total != batch.ids.len() {
            return invalid!("the lengths of a batch add up to {total}, but it has {} ids", batch.ids.len());
        }
        if let Some(length) = batch.lengths.iter().find(|n| **n > self.context) {
            return invalid!("a sequence of {length} tokens; this model reads at most {}", self.context);
        }
        if !batch.types.is_empty() && batch.types.len() != total {
            return invalid!("a batch of {total} ids has {} token types", batch.types.len());
        }
        self.check_attended(batch)?;
        if let Some(kind) = batch.types.iter().find(|kind| usize::from(**kind) >= self.types) {
            return invalid!("token type {kind}: this model has {}; its tokenizer does not fit", self.types);
        }
        let vocabulary = self.vocabulary;
        if let Some(id) = batch.ids.iter().find(|id| **id as usize >= vocabulary) {
            return invalid!(
                "token id {id}: this model's vocabulary has {vocabulary} entries; its tokenizer does not fit"
            );
        }
        Ok(())
    }

    fn check_attended(&self, batch: &Batch) -> Result<()> {
        let Batch { lengths, attended, .. } = batch;
        if !attended.is_empty() && attended.len() != lengths.len() {
            return invalid!("a batch of {} sequences says of {} what is attended to", lengths.len(), attended.len());
        }
        let window = self.window;
        for (length, attended) in lengths.iter().zip(attended) {
            if !(1..=*length).contains(attended) || *length > attended + window {
                return invalid!(
                    "a sequence of {length} tokens, of which the first {attended} are attended to, from {window} away"
                );
            }
        }
        Ok(())
    }
}

impl<L> Transformer<L> {
    /// Returns what this model can read.
    pub(super) fn limits(&self) -> Limits {
        let (width, embeddings) = (self.embeddings.width(), &self.embeddings);
        Limits {
            context: self.context,
            vocabulary: embeddings.words.len() / width,
            types: (embeddings.types.len() / width).max(1),
            window: self.layers.iter().filter_map(|layer| layer.window).min().unwrap_or(self.context),
        }
    }
}

impl Transformer<Linear> {
    /// Runs whole sequences through all layers, and writes what comes of them to `block.hidden`, unless `cancel` is set.
    fn run(&self, block: Block<'_>, task: &Task<'_>, scratch: &mut Scratch) {
        let Block { ids, types, lengths, attended, hidden: out } = block;
        let (width, tokens, threads) = (self.hidden_size(), ids.len(), task.threads);
        let mut hidden = scratch.hidden.floats(tokens * width);
        let mut start = 0;
        for &length in lengths {
            let end = start + length;
            let types = types.get(start..end).unwrap_or_default();
            self.embeddings.write(&ids[start..end], types, &mut hidden[start * width..end * width]);
            start = end;
        }
        self.normalize(hidden, &self.embeddings.norm, threads);
        let (inner, rows) = self.layers.first().map_or((0, 1), |layer| (layer.up.outputs(), layer.up.chunk_rows()));
        let chunk = if matches!(threads, Threads::One) { rows } else { tokens.min(LONG_CHUNK_ROWS) };
        let before = self.last_norm.is_some();
        let need = |layer: &Layer<Linear>| {
            let qkv = if layer.rounds_qkv(self.heads) { 0 } else { tokens * 3 * width };
            qkv.max(if layer.rounds_between() { 0 } else { chunk.min(tokens) * inner })
        };
        let wide = scratch.wide.floats(self.layers.iter().map(need).max().unwrap_or(0));
        let context = scratch.context.floats(tokens * width);
        let (normed, ups) = (&mut scratch.normed, &mut scratch.ups);
        let rounded = &mut scratch.rounded;
        for (i, layer) in self.layers.iter().enumerate() {
            if task.cancel.load(Ordering::Relaxed) {
                return;
            }
            let read = match &layer.attention_norm {
                Some(norm) if before => {
                    let normed = normed.floats(tokens * width);
                    self.write_normalized(hidden, norm, normed, threads);
                    &*normed
                }
                _ => &*hidden,
            };
            let qkv = if layer.rounds_qkv(self.heads) {
                Qkv::Rounded(layer.qkv.apply_rounding(read, ups, Then::Store, threads, rounded))
            } else {
                let qkv = &mut wide[..tokens * 3 * width];
                layer.qkv.apply_beside(read, qkv, 3 * width, 0, threads, rounded);
                if let Some(values) = &layer.values {
                    values.apply_beside(read, qkv, 3 * width, 2 * width, threads, rounded);
                }
                if let Some(rotary) = &layer.rotary {
                    let mut rest = &mut *qkv;
                    for &length in lengths {
                        let (qkv, more) = rest.split_at_mut(length * 3 * width);
                        rotary.apply(qkv, width, threads);
                        rest = more;
                    }
                }
                Qkv::Floats(qkv)
            };
            // Of the last layer, other tokens are read as keys and values alone.
            let first_alone = task.rows == Rows::First && i + 1 == self.layers.len();
            let mut start = 0;
            for (i, &length) in lengths.iter().enumerate() {
                let rows = start * width..(start + length) * width;
                let queries = if first_alone { 1 } else { length };
                let (out, qkv) = (&mut context[rows.clone()], qkv.of(start..start + length, width));
                let keys = attended.get(i).copied();
                let sight = Sight { keys, window: layer.window, distances: self.distances.as_ref() };
                let kernel = layer.values.as_ref().unwrap_or(&layer.qkv).kernel();
                attention(kernel, &mut out[..queries * width], qkv, self.heads, sight, threads);
                if first_alone {
                    context.copy_within(rows.start..rows.start + width, i * width);
                    hidden.copy_within(rows.start..rows.start + width, i * width);
                }
                start += length;
            }
            if first_alone {
                hidden = &mut hidden[..lengths.len() * width];
            }
            for (hidden, context) in hidden.chunks_mut(chunk * width).zip(context.chunks(chunk * width)) {
                let context = &context[..hidden.len()];
                layer.attention_out.apply(context, hidden, Then::Add, threads, rounded);
                if before {
                    let normed = normed.floats(hidden.len());
                    self.write_normalized(hidden, &layer.out_norm, normed, threads);
                    layer.feed_forward(Some(normed), hidden, wide, ups, threads, rounded);
                } else {
                    if let Some(norm) = &layer.attention_norm {
                        self.normalize(hidden, norm, threads);
                    }
                    layer.feed_forward(None, hidden, wide, ups, threads, rounded);
                    self.normalize(hidden, &layer.out_norm, threads);
                }
            }
        }
        if let Some(norm) = &self.last_norm {
            self.normalize(hidden, norm, threads);
        }
        out[..hidden.len()].copy_from_slice(hidden);
    }

    fn normalize(&self, rows: &mut [f32], norm: &LayerNorm, threads: Threads<'_>) {
        threads.share_rows(rows, self.hidden_size(), |_, rows| layer_norm(self.level, rows, norm));
    }

    fn write_normalized(&self, rows: &[f32], norm: &LayerNorm, out: &mut [f32], threads: Threads<'_>) {
        let width = self.hidden_size();
        threads.share_rows(out, width, |first, out| {
            out.copy_from_slice(&rows[first * width..][..out.len()]);
            layer_norm(self.level, out, norm);
        });
    }
}

impl Layer<Linear> {
    fn weights(&self) -> usize {
        let gates = if let Activation::Gated(_, linear) = &self.activation { Some(linear) } else { None };
        let all = [&self.qkv, &self.attention_out, &self.up, &self.down].into_iter();
        all.chain(&self.values).chain(gates).map(|linear| linear.inputs() * linear.outputs()).sum()
    }

    /// Whether queries, keys and values are rounded as they are computed.
    fn rounds_qkv(&self, heads: Heads) -> bool {
        self.qkv.rounds() && self.rotary.is_none() && heads.dim.is_multiple_of(PANEL)
    }

    /// Whether what the second product of the feed-forward network reads is rounded as it is computed.
    fn rounds_between(&self) -> bool {
        matches!(self.activation, Activation::Plain(_)) && self.up.rounds() && self.up.kernel() == self.down.kernel()
    }

    /// Adds what the feed-forward network makes of `x`, or of `hidden` itself, to `hidden`. `wide` and `ups` are for what lies between.
    fn feed_forward(
        &self,
        x: Option<&[f32]>,
        hidden: &mut [f32],
        wide: &mut [f32],
        ups: &mut Rounded,
        threads: Threads<'_>,
        rounded: &mut Rounded,
    ) {
        let read = x.unwrap_or(hidden);
        if let (Activation::Plain(then), true) = (&self.activation, self.rounds_between()) {
            let between = self.up.apply_rounding(read, ups, *then, threads, rounded);
            self.down.apply_rounded(between, hidden, Then::Add, threads);
            return;
        }
        let wide = &mut wide[..read.len() / self.up.inputs() * self.up.outputs()];
        match &self.activation {
            Activation::Plain(then) => self.up.apply(read, wide, *then, threads, rounded),
            Activation::Gated(gate, linear) => {
                let ups = ups.floats(wide.len());
                self.up.apply(read, ups, Then::Store, threads, rounded);
                linear.apply(read, wide, Then::Store, threads, rounded);
                let (width, ups) = (self.up.outputs(), &*ups);
                threads.share_rows(wide, width, |first, wide| {
                    let ups = &ups[first * width..][..wide.len()];
                    match gate {
                        Gate::GeluErf => gelu_erf_gate(wide, ups),
                        Gate::GeluTanh => gelu_tanh_gate(wide, ups),
                        Gate::Silu => silu_gate(wide, ups),
                    }
                });
            }
        }
        self.down.apply(wide, hidden, Then::Add, threads, rounded);
    }
}

impl Encoder for Transformer<Linear> {
    fn hidden_size(&self) -> usize {
        self.embeddings.width()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn token_types(&self) -> usize {
        self.limits().types
    }

    fn wake(&self) {
        self.team.wake();
    }

    fn weights(&self) -> Option<usize> {
        Some(self.layers.iter().map(Layer::weights).sum())
    }

    fn encode(&self, batch: &Batch) -> Result<Tensor> {
        self.encode_rows(batch, Rows::All, &AtomicBool::new(false))
    }

    fn encode_rows(&self, batch: &Batch, rows: Rows, cancel: &AtomicBool) -> Result<Tensor> {
        self.limits().check(batch)?;
        let (total, width) = (batch.ids.len(), self.hidden_size());
        let mut hidden = vec![0.0; total * width];
        let mut blocks = Vec::new();
        let (mut ids, mut types, mut lengths) =
            (batch.ids.as_slice(), batch.types.as_slice(), batch.lengths.as_slice());
        let (mut attended, mut rest) = (batch.attended.as_slice(), hidden.as_mut_slice());
        while !lengths.is_empty() {
            let (sequences, tokens) = next_block(lengths, total.div_ceil(self.team.pool().current_num_threads()));
            let (block_lengths, more_lengths) = lengths.split_at(sequences);
            let (block_ids, more_ids) = ids.split_at(tokens);
            let (block_types, more_types) = types.split_at(tokens.min(types.len()));
            let (block_attended, more_attended) = attended.split_at(sequences.min(attended.len()));
            let (block_hidden, more_hidden) = rest.split_at_mut(tokens * width);
            blocks.push(Block {
                ids: block_ids,
                types: block_types,
                lengths: block_lengths,
                attended: block_attended,
                hidden: block_hidden,
            });
            (ids, types, lengths, rest) = (more_ids, more_types, more_lengths, more_hidden);
            attended = more_attended;
        }
        let found: Vec<(usize, usize)> = blocks.iter().map(|block| (block.ids.len(), block.lengths.len())).collect();
        let run = |block: Block<'_>, threads: Threads<'_>| {
            // A panic while it is locked leaves a list as good as any other.
            let arenas = || self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
            let mut scratch = arenas().pop().unwrap_or_default();
            self.run(block, &Task { rows, threads, cancel }, &mut scratch);
            arenas().push(scratch);
        };
        let pass = self.team.pass();
        // One block cannot be shared out, so its products are: among threads that wait for them, unless that is for long.
        match blocks.pop() {
            Some(block) if blocks.is_empty() && total <= BLOCK_TOKENS => {
                run(block, pass.threads());
            }
            Some(block) if blocks.is_empty() => self.team.pool().install(|| run(block, Threads::All)),
            last => {
                blocks.extend(last);
                self.team.pool().install(|| blocks.into_par_iter().for_each(|block| run(block, Threads::One)));
            }
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if rows == Rows::All {
            return Ok(Tensor::from_vec(hidden, (total, width), &Device::Cpu)?);
        }
        let (mut from, mut to) = (0, 0);
        for (tokens, sequences) in found {
            hidden.copy_within(from..from + sequences * width, to);
            from += tokens * width;
            to += sequences * width;
        }
        hidden.truncate(to);
        Ok(Tensor::from_vec(hidden, (batch.lengths.len(), width), &Device::Cpu)?)
    }
}

/// Returns how many sequences make the next block, and their tokens: at least one, then up to the budget, which is
/// smaller where that lets every thread have a block.
fn next_block(lengths: &[usize], fair_share: usize) -> (usize, usize) {
    let budget = BLOCK_TOKENS.min(fair_share);
    let (mut sequences, mut tokens) = (1, lengths[0]);
    while let Some(&length) = lengths.get(sequences).filter(|n| tokens + **n <= budget) {
        sequences += 1;
        tokens += length;
    }
    (sequences, tokens)
}
