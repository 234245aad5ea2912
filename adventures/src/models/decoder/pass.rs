//! The forward pass: tokens of one run, or of several, through all layers.

use super::Model;
use super::attend::{Attend, Room, Strided};
use super::cache::{Page, Shape};
use super::config::Config;
use super::weights::{Layer, Linear};
use crate::kernels::causal;
use crate::kernels::paged::{self, Number, PAGE};
use crate::kernels::quant::{Product, Scratch, multiply, multiply_gated};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows that one thread takes at a time where rows are independent.
pub(super) const ROWS: usize = 8;

/// Activations, a row per token.
#[derive(Default)]
pub(super) struct Buffers {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    projected: Vec<f32>,
    turns: [Vec<(f32, f32)>; 2],
    scratch: Scratch,
}

/// Neighbouring rows of a pass that belong to one run.
pub(super) struct Segment<'a, N> {
    pub(super) pages: &'a mut Vec<Page<N>>,
    /// The position of the first.
    pub(super) start: usize,
    pub(super) tokens: usize,
}

/// In what order sums are made: llama.cpp's depends on how many tokens it reads together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    /// Each token as if it were alone; each has its logits.
    Alone,
    /// Tokens of one run, the last of `batch` that are read together so far. Of the `last`, the last has its logits.
    Read { batch: usize, last: bool },
}

/// What has come of a pass.
pub(super) enum Passed {
    /// The logits that were asked for, `(tokens, vocab)`.
    Logits(Vec<f32>),
    /// None were: the caches are filled.
    Filled,
    /// The caches of some layers are.
    Cancelled,
}

/// Some tokens' way through the layers.
pub(super) struct Pass<'a, 'b, N> {
    model: &'a Model,
    shape: &'a Shape,
    segments: &'a mut [Segment<'b, N>],
    buffers: &'a mut Buffers,
    together: Together,
}

impl<'a, 'b, N: Number> Pass<'a, 'b, N> {
    pub(super) fn new(
        model: &'a Model,
        segments: &'a mut [Segment<'b, N>],
        buffers: &'a mut Buffers,
        together: Together,
    ) -> Self {
        Self { model, shape: &model.shape, segments, buffers, together }
    }

    fn batch(&self) -> usize {
        match self.together {
            Together::Alone => 1,
            Together::Read { batch, .. } => batch,
        }
    }

    /// Fills the caches with `ids`. Looks at `cancel` before each layer: a piece of a prompt takes a large model seconds.
    pub(super) fn layers(&mut self, ids: &[u32], cancel: &AtomicBool) -> Passed {
        let (model, config) = (self.model, &self.model.config);
        let width = config.hidden;
        let buffers = &mut *self.buffers;
        buffers.hidden.resize(ids.len() * width, 0.0);
        embed(model, ids, &mut buffers.hidden);
        for (rope, turns) in model.ropes.iter().zip(&mut buffers.turns) {
            turns.clear();
            for segment in &*self.segments {
                rope.turns(segment.start..segment.start + segment.tokens, turns);
            }
        }
        let mut tokens = 0..ids.len();
        for (i, layer) in model.weights.layers.iter().enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Passed::Cancelled;
            }
            self.queries_keys_values(i, layer, ids.len());
            if i + 1 == config.layers
                && let Together::Read { last, .. } = self.together
            {
                if !last {
                    return Passed::Filled;
                }
                // Nothing reads what the last layer makes of the tokens before.
                let buffers = &mut *self.buffers;
                tokens.start = ids.len() - 1;
                keep_last_row(&mut buffers.hidden, width);
                keep_last_row(&mut buffers.query, config.heads * config.head_dim);
            }
            self.attention(i, tokens.clone());
            self.add_attention(layer);
            self.add_feed_forward(layer, if i + 1 == config.layers { 1 } else { self.batch() });
        }
        let buffers = &mut *self.buffers;
        buffers.normed.resize(tokens.len() * width, 0.0);
        norm_rows(&buffers.hidden, &model.weights.final_norm, config.norm_eps, &mut buffers.normed);
        let mut logits = vec![0.0; tokens.len() * config.vocab];
        let head = model.weights.head.as_ref().unwrap_or(&model.weights.embedding);
        let mut product = [Product { matrix: head.matrix(), out: &mut logits }];
        multiply(&buffers.normed, 1, &mut buffers.scratch, &mut product);
        if let Some(cap) = config.logit_cap {
            causal::soft_cap(&mut logits, cap);
        }
        Passed::Logits(logits)
    }

    fn queries_keys_values(&mut self, index: usize, layer: &Layer, tokens: usize) {
        let (model, config, batch) = (self.model, &self.model.config, self.batch());
        let dim = config.head_dim;
        let (q_width, kv_width) = (config.heads * dim, config.kv_heads * dim);
        let Buffers { hidden, normed, query, key, value, turns, scratch, .. } = &mut *self.buffers;
        normed.resize(hidden.len(), 0.0);
        norm_rows(hidden, &layer.attention_norm, config.norm_eps, normed);
        query.resize(tokens * q_width, 0.0);
        key.resize(tokens * kv_width, 0.0);
        value.resize(tokens * kv_width, 0.0);
        let mut products = [
            Product { matrix: layer.query.weight.matrix(), out: query },
            Product { matrix: layer.key.weight.matrix(), out: key },
            Product { matrix: layer.value.weight.matrix(), out: value },
        ];
        multiply(normed, batch, scratch, &mut products);
        for (linear, rows) in [(&layer.query, &mut *query), (&layer.key, &mut *key), (&layer.value, &mut *value)] {
            add_bias(linear, rows);
        }
        let local = usize::from(config.local_layers[index]);
        let rope = &model.ropes[local];
        let rows = query.par_chunks_exact_mut(q_width).zip(key.par_chunks_exact_mut(kv_width)).enumerate();
        rows.with_min_len(ROWS).for_each_init(Vec::new, |halves, (t, (query, key))| {
            let turns = &turns[local][t * rope.pairs()..(t + 1) * rope.pairs()];
            place(model, index, (query, key), turns);
            if N::HALF {
                paged::round_to_half(query, halves);
            }
        });
        let (mut keys, mut values) = (key.as_slice(), value.as_slice());
        for segment in &mut *self.segments {
            let own = segment.tokens * kv_width;
            let (key, value) = (&keys[..own], &values[..own]);
            (keys, values) = (&keys[own..], &values[own..]);
            segment.store(self.shape, index, key, value);
        }
    }

    /// Fills `attended` with a row for each of `tokens`, whose queries begin the query buffer.
    fn attention(&mut self, index: usize, tokens: Range<usize>) {
        let config = &self.model.config;
        let (heads, dim) = (config.heads, config.head_dim);
        let group = heads / config.kv_heads;
        let Buffers { query, attended, .. } = &mut *self.buffers;
        attended.resize(tokens.len() * heads * dim, 0.0);
        let (shape, single, segments) = (self.shape, self.together == Together::Alone, &*self.segments);
        let threads = rayon::current_num_threads();
        if single || tokens.len() == 1 {
            // Threads share the heads of all tokens. Heads of a group share the unpacking of their keys where one thread has
            // them; where heads are many, each thread takes two turns, for they do not end at once.
            let count = heads * tokens.len();
            let piece = count.div_ceil(if count < 4 * threads * group { threads } else { 2 * threads });
            // The segment of each row, and its number in it.
            let rows: Vec<_> = segments.iter().flat_map(|s| (0..s.tokens).map(move |t| (s, t))).collect();
            let rows = &rows[tokens];
            attended.par_chunks_mut(piece * dim).enumerate().for_each_init(Room::default, |room, (i, mut out)| {
                let mut head = i * piece;
                while !out.is_empty() {
                    let together = (group - head % group).min(out.len() / dim);
                    let (own, rest) = out.split_at_mut(together * dim);
                    let (segment, token) = rows[head / heads];
                    let q = Strided { numbers: &query[head * dim..], stride: together * dim };
                    let kv_head = head % heads / group;
                    segment.attend(shape, config, index, single).rows(
                        token..token + 1,
                        kv_head,
                        together,
                        q,
                        own,
                        room,
                    );
                    (head, out) = (head + together, rest);
                }
            });
            return;
        }
        let [segment] = segments else { unreachable!("tokens that are read together are of one run; this is a bug") };
        let attend = segment.attend(shape, config, index, single);
        let tile = (tokens.len() / (2 * threads)).clamp(1, 16);
        let tiles = attended.par_chunks_mut(tile * heads * dim).enumerate();
        tiles.for_each_init(Room::default, |room, (i, out)| {
            let from = i * tile;
            let rows = out.len() / (heads * dim);
            for kv_head in 0..config.kv_heads {
                let at = kv_head * group * dim;
                let q = Strided { numbers: &query[from * heads * dim + at..], stride: heads * dim };
                let tokens = tokens.start + from..tokens.start + from + rows;
                attend.rows(tokens, kv_head, group, q, &mut out[at..], room);
            }
        });
    }

    fn add_attention(&mut self, layer: &Layer) {
        let (config, batch) = (&self.model.config, self.batch());
        let Buffers { hidden, attended, projected, scratch, .. } = &mut *self.buffers;
        projected.resize(hidden.len(), 0.0);
        multiply(attended, batch, scratch, &mut [Product { matrix: layer.output.matrix(), out: projected }]);
        add_normed(hidden, projected, layer.post_attention_norm.as_deref(), config.norm_eps);
    }

    fn add_feed_forward(&mut self, layer: &Layer, batch: usize) {
        let config = &self.model.config;
        let Buffers { hidden, normed, gate, up, projected, scratch, .. } = &mut *self.buffers;
        let rows = hidden.len() / config.hidden;
        normed.resize(hidden.len(), 0.0);
        norm_rows(hidden, &layer.feed_forward_norm, config.norm_eps, normed);
        gate.resize(rows * config.feed_forward, 0.0);
        up.resize(rows * config.feed_forward, 0.0);
        let products =
            [Product { matrix: layer.gate.matrix(), out: gate }, Product { matrix: layer.up.matrix(), out: up }];
        multiply_gated(normed, batch, scratch, products, &|gate, up| {
            config.activation.gate(N::HALF, gate, up);
        });
        multiply(gate, batch, scratch, &mut [Product { matrix: layer.down.matrix(), out: projected }]);
        add_normed(hidden, projected, layer.post_feed_forward_norm.as_deref(), config.norm_eps);
    }
}

impl<N: Number> Segment<'_, N> {
    fn attend<'a>(&'a self, shape: &'a Shape, config: &Config, layer: usize, single: bool) -> Attend<'a, N> {
        Attend {
            start: self.start,
            pages: self.pages,
            shape,
            layer,
            window: config.window.filter(|_| config.local_layers[layer]),
            scale: if config.family.scaled_queries { 1.0 } else { config.query_scale },
            cap: config.score_cap,
            single,
        }
    }

    /// Stores keys and values, a row per token, for one layer: each page takes the tokens that fall into it.
    fn store(&mut self, shape: &Shape, layer: usize, keys: &[f32], values: &[f32]) {
        let (start, end, width) = (self.start, self.start + self.tokens, shape.heads * shape.dim);
        let first = start / PAGE;
        let pages = self.pages[first..end.div_ceil(PAGE)].par_iter_mut().enumerate();
        pages.with_min_len(if self.tokens < ROWS { self.tokens } else { 1 }).for_each(|(i, page)| {
            let mut rounded = Vec::new();
            for position in ((first + i) * PAGE).max(start)..((first + i + 1) * PAGE).min(end) {
                let row = (position - start) * width..(position - start + 1) * width;
                page.store(shape, layer, position % PAGE, (&keys[row.clone()], &values[row]), &mut rounded);
            }
        });
    }
}

fn keep_last_row(rows: &mut Vec<f32>, width: usize) {
    let last = rows.len() - width;
    rows.copy_within(last.., 0);
    rows.truncate(width);
}

/// Writes the embeddings of `ids` to `hidden`, a row for each.
pub(super) fn embed(model: &Model, ids: &[u32], hidden: &mut [f32]) {
    let (config, embedding) = (&model.config, model.weights.embedding.matrix());
    for (id, row) in ids.iter().zip(hidden.chunks_exact_mut(config.hidden)) {
        embedding.read_row(*id as usize, row);
    }
    if config.family.scaled_embeddings {
        causal::scale(hidden, (config.hidden as f32).sqrt());
    }
}

/// Makes one token's queries and keys of layer `index` what attention compares: normed, turned by its position, scaled.
pub(super) fn place(model: &Model, index: usize, (query, key): (&mut [f32], &mut [f32]), turns: &[(f32, f32)]) {
    let config = &model.config;
    if let Some((query_norm, key_norm)) = &model.weights.layers[index].qk_norm {
        causal::rms_norm_in_place(query, query_norm, config.norm_eps);
        causal::rms_norm_in_place(key, key_norm, config.norm_eps);
    }
    if !config.unturned_layers[index] {
        let halves = model.ropes[usize::from(config.local_layers[index])].halves;
        causal::rotate(query, config.head_dim, turns, halves);
        causal::rotate(key, config.head_dim, turns, halves);
    }
    if config.family.scaled_queries {
        causal::scale(query, config.query_scale);
    }
}

pub(super) fn norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let piece = ROWS * weight.len();
    x.par_chunks(piece).zip(out.par_chunks_mut(piece)).for_each(|(x, out)| causal::rms_norm(x, weight, eps, out));
}

/// `hidden += norm(rows)`, or `rows` as they are where there is no norm.
pub(super) fn add_normed(hidden: &mut [f32], rows: &mut [f32], norm: Option<&[f32]>, eps: f32) {
    if let Some(norm) = norm {
        rows.par_chunks_mut(ROWS * norm.len()).for_each(|rows| causal::rms_norm_in_place(rows, norm, eps));
    }
    crate::kernels::math::accumulate(hidden, rows);
}

pub(super) fn add_bias(linear: &Linear, rows: &mut [f32]) {
    if let Some(bias) = &linear.bias {
        crate::kernels::math::add_bias(rows, bias);
    }
}
