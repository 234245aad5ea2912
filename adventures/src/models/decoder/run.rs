//! One reading of a text: the forward pass over its own cache.

use super::cache::{Page, Shape};
use super::config::Activation;
use super::weights::{Layer, Linear};
use super::{Model, Run};
use crate::error::{Result, invalid};
use crate::kernels::causal;
use crate::kernels::paged::{self, Number, PAGE, Queries};
use crate::kernels::quant::{Product, Scratch, multiply};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Tokens that go through the layers together: enough to hide the unpacking of weights, few enough to stay in cache.
/// Whole fours, so that rows are grouped as in one product of all of them.
const CHUNK: usize = 256;
/// Rows that one thread takes at a time where rows are independent.
const ROWS: usize = 8;

/// The cache and the scratch space of one run.
pub(super) struct Reading<N> {
    model: Arc<Model>,
    shape: Shape,
    pages: Vec<Page<N>>,
    len: usize,
    buffers: Buffers,
}

/// Activations of one chunk, a row per token.
#[derive(Default)]
struct Buffers {
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

impl<N: Number> Reading<N> {
    pub(super) fn new(model: Arc<Model>) -> Self {
        let config = &model.config;
        let shape = Shape { layers: config.layers, heads: config.kv_heads, dim: config.head_dim };
        Self { model, shape, pages: Vec::new(), len: 0, buffers: Buffers::default() }
    }

    /// The logits after `ids`, which begin at position `start`.
    fn compute(&mut self, ids: &[u32]) -> Vec<f32> {
        let Self { model, shape, pages, len, buffers } = self;
        let end = *len + ids.len();
        while pages.len() * PAGE < end {
            pages.push(Page::new(*shape));
        }
        let mut logits = Vec::new();
        for (i, chunk) in ids.chunks(CHUNK).enumerate() {
            let start = *len + i * CHUNK;
            let last = start + chunk.len() == end;
            let batch = start - *len + chunk.len();
            let mut pass = Pass { model, shape: *shape, pages, buffers, start, batch, single: ids.len() == 1 };
            if let Some(row) = pass.layers(chunk, last) {
                logits = row;
            }
        }
        logits
    }
}

impl<N: Number> Run for Reading<N> {
    fn read(&mut self, ids: &[u32]) -> Result<Tensor> {
        let (vocab, context) = (self.model.config.vocab, self.model.context);
        if ids.is_empty() {
            return invalid!("no tokens to read");
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            return invalid!("token {id} is outside of the vocabulary of {vocab}");
        }
        if ids.len() > context - self.len {
            return invalid!("{} tokens after {} do not fit the context of {context} tokens", ids.len(), self.len);
        }
        let model = self.model.clone();
        let logits = model.pool.install(|| self.compute(ids));
        if let Some(logit) = logits.iter().find(|x| !x.is_finite()) {
            let len = self.len;
            self.truncate(len);
            return invalid!("the model computed {logit} for a logit: its weights are damaged, or too large for it");
        }
        self.len += ids.len();
        Ok(Tensor::from_vec(logits, vocab, &Device::Cpu)?)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return invalid!("cannot rewind to {len} tokens, {} have been read", self.len);
        }
        self.len = len;
        self.pages.truncate(len.div_ceil(PAGE));
        Ok(())
    }
}

impl<N: Number> Reading<N> {
    /// Drops everything from `len` on; what a failed read wrote must not meet later weights of 0.
    fn truncate(&mut self, len: usize) {
        self.pages.truncate(len.div_ceil(PAGE));
        if !len.is_multiple_of(PAGE) {
            self.pages[len / PAGE].clear_from(self.shape, len % PAGE);
        }
    }
}

/// One chunk's way through the layers.
struct Pass<'a, N> {
    model: &'a Model,
    shape: Shape,
    pages: &'a mut Vec<Page<N>>,
    buffers: &'a mut Buffers,
    start: usize,
    /// How many tokens are read together, up to this chunk's last.
    batch: usize,
    /// Whether that is one token in all.
    single: bool,
}

impl<N: Number> Pass<'_, N> {
    /// Fills the cache with `ids`; returns the logits after the last of them where `last` asks for them.
    fn layers(&mut self, ids: &[u32], last: bool) -> Option<Vec<f32>> {
        let (model, config) = (self.model, &self.model.config);
        let width = config.hidden;
        let buffers = &mut *self.buffers;
        buffers.hidden.resize(ids.len() * width, 0.0);
        let embedding = model.weights.embedding.matrix();
        for (id, row) in ids.iter().zip(buffers.hidden.chunks_exact_mut(width)) {
            embedding.read_row(*id as usize, row);
        }
        if config.family.scaled_embeddings {
            causal::scale(&mut buffers.hidden, (width as f32).sqrt());
        }
        for (rope, turns) in model.ropes.iter().zip(&mut buffers.turns) {
            rope.turns(self.start..self.start + ids.len(), turns);
        }
        let mut tokens = 0..ids.len();
        for (i, layer) in model.weights.layers.iter().enumerate() {
            self.queries_keys_values(i, layer, ids.len());
            if i + 1 == config.layers {
                if !last {
                    return None;
                }
                // Nothing reads what the last layer makes of the tokens before.
                let buffers = &mut *self.buffers;
                tokens.start = ids.len() - 1;
                keep_last_row(&mut buffers.hidden, width);
                keep_last_row(&mut buffers.query, config.heads * config.head_dim);
            }
            self.attention(i, tokens.clone());
            self.add_attention(layer);
            self.add_feed_forward(layer, if i + 1 == config.layers { 1 } else { self.batch });
        }
        let buffers = &mut *self.buffers;
        buffers.normed.resize(width, 0.0);
        causal::rms_norm(&buffers.hidden, &model.weights.final_norm, config.norm_eps, &mut buffers.normed);
        let mut logits = vec![0.0; config.vocab];
        let head = model.weights.head.as_ref().unwrap_or(&model.weights.embedding);
        let mut product = [Product { matrix: head.matrix(), out: &mut logits }];
        multiply(&buffers.normed, 1, &mut buffers.scratch, &mut product);
        if let Some(cap) = config.logit_cap {
            causal::soft_cap(&mut logits, cap);
        }
        Some(logits)
    }

    fn queries_keys_values(&mut self, index: usize, layer: &Layer, tokens: usize) {
        let (model, config) = (self.model, &self.model.config);
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
        multiply(normed, self.batch, scratch, &mut products);
        for (linear, rows) in [(&layer.query, &mut *query), (&layer.key, &mut *key), (&layer.value, &mut *value)] {
            add_bias(linear, rows);
        }
        let local = usize::from(config.local_layers[index]);
        let rope = &model.ropes[local];
        let rows = query.par_chunks_exact_mut(q_width).zip(key.par_chunks_exact_mut(kv_width)).enumerate();
        rows.with_min_len(ROWS).for_each_init(Vec::new, |halves, (t, (query, key))| {
            if let Some((query_norm, key_norm)) = &layer.qk_norm {
                causal::rms_norm_in_place(query, query_norm, config.norm_eps);
                causal::rms_norm_in_place(key, key_norm, config.norm_eps);
            }
            let turns = &turns[local][t * rope.pairs()..(t + 1) * rope.pairs()];
            causal::rotate(query, dim, turns, rope.halves);
            causal::rotate(key, dim, turns, rope.halves);
            if config.family.scaled_queries {
                causal::scale(query, config.query_scale);
            }
            if N::HALF {
                paged::round_to_half(query, halves);
            }
        });
        // Each page takes the tokens that fall into it.
        let (start, shape) = (self.start, self.shape);
        let first = start / PAGE;
        let pages = self.pages[first..(start + tokens).div_ceil(PAGE)].par_iter_mut().enumerate();
        pages.for_each(|(i, page)| {
            let mut rounded = Vec::new();
            let from = ((first + i) * PAGE).max(start);
            let to = ((first + i + 1) * PAGE).min(start + tokens);
            for position in from..to {
                let row = (position - start) * kv_width..(position - start + 1) * kv_width;
                page.store(shape, index, position % PAGE, (&key[row.clone()], &value[row]), &mut rounded);
            }
        });
    }

    /// Fills `attended` with a row for each of `tokens`, whose queries begin the query buffer.
    fn attention(&mut self, index: usize, tokens: Range<usize>) {
        let config = &self.model.config;
        let (heads, dim) = (config.heads, config.head_dim);
        let group = heads / config.kv_heads;
        let Buffers { query, attended, .. } = &mut *self.buffers;
        attended.resize(tokens.len() * heads * dim, 0.0);
        let window = config.window.filter(|_| config.local_layers[index]);
        let attend = Attend {
            pass_start: self.start,
            pages: self.pages,
            shape: self.shape,
            index,
            window,
            scale: if config.family.scaled_queries { 1.0 } else { config.query_scale },
            cap: config.score_cap,
            single: self.single,
        };
        let threads = rayon::current_num_threads();
        if tokens.len() == 1 {
            // One token: threads share its heads. Heads of a group share the unpacking of their keys.
            let together = if config.kv_heads >= threads { group } else { 1 };
            attended.par_chunks_exact_mut(together * dim).enumerate().for_each_init(Room::default, |room, (i, out)| {
                let first = i * together;
                let q = Strided { numbers: &query[first * dim..], stride: together * dim };
                attend.rows(tokens.clone(), first / group, together, q, out, room);
            });
            return;
        }
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
        let config = &self.model.config;
        let Buffers { hidden, attended, projected, scratch, .. } = &mut *self.buffers;
        projected.resize(hidden.len(), 0.0);
        multiply(attended, self.batch, scratch, &mut [Product { matrix: layer.output.matrix(), out: projected }]);
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
        let mut products =
            [Product { matrix: layer.gate.matrix(), out: gate }, Product { matrix: layer.up.matrix(), out: up }];
        multiply(normed, batch, scratch, &mut products);
        let pieces = gate.par_chunks_mut(config.feed_forward).zip(up.par_chunks(config.feed_forward));
        pieces.with_min_len(ROWS).for_each_init(Vec::new, |halves, (gate, up)| match config.activation {
            Activation::Silu => causal::silu_gate(gate, up),
            Activation::GeluTanh if N::HALF => causal::gelu_half_gate(gate, up, halves),
            Activation::GeluTanh => causal::gelu_tanh_gate(gate, up),
            Activation::GeluErf => causal::gelu_erf_gate(gate, up),
        });
        multiply(gate, batch, scratch, &mut [Product { matrix: layer.down.matrix(), out: projected }]);
        add_normed(hidden, projected, layer.post_feed_forward_norm.as_deref(), config.norm_eps);
    }
}

fn keep_last_row(rows: &mut Vec<f32>, width: usize) {
    let last = rows.len() - width;
    rows.copy_within(last.., 0);
    rows.truncate(width);
}

fn norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let piece = ROWS * weight.len();
    x.par_chunks(piece).zip(out.par_chunks_mut(piece)).for_each(|(x, out)| causal::rms_norm(x, weight, eps, out));
}

/// `hidden += norm(rows)`, or `rows` as they are where there is no norm.
fn add_normed(hidden: &mut [f32], rows: &mut [f32], norm: Option<&[f32]>, eps: f32) {
    if let Some(norm) = norm {
        rows.par_chunks_mut(ROWS * norm.len()).for_each(|rows| causal::rms_norm_in_place(rows, norm, eps));
    }
    crate::kernels::math::accumulate(hidden, rows);
}

fn add_bias(linear: &Linear, rows: &mut [f32]) {
    if let Some(bias) = &linear.bias {
        crate::kernels::math::add_bias(rows, bias);
    }
}

/// Rows that lie `stride` numbers apart.
#[derive(Clone, Copy)]
struct Strided<'a> {
    numbers: &'a [f32],
    stride: usize,
}

/// One thread's scratch space for attention.
#[derive(Default)]
struct Room {
    query: Vec<f32>,
    out: Vec<f32>,
    windows: Vec<Range<usize>>,
    scratch: paged::Scratch,
}

/// Attention of one layer over the pages.
struct Attend<'a, N> {
    pass_start: usize,
    pages: &'a [Page<N>],
    shape: Shape,
    index: usize,
    window: Option<usize>,
    scale: f32,
    cap: Option<f32>,
    single: bool,
}

impl<N: Number> Attend<'_, N> {
    /// Writes what `heads` query heads of each of `tokens` see of one key-value head.
    ///
    /// `q` has a row per token, and so has `out`, with the same stride.
    fn rows(
        &self,
        tokens: Range<usize>,
        kv_head: usize,
        heads: usize,
        q: Strided<'_>,
        out: &mut [f32],
        room: &mut Room,
    ) {
        let dim = self.shape.dim;
        let width = heads * dim;
        let sees = |token: usize| {
            let to = self.pass_start + token + 1;
            self.window.map_or(0, |window| to.saturating_sub(window))..to
        };
        let pages = sees(tokens.start).start / PAGE..sees(tokens.end - 1).end.div_ceil(PAGE);
        let first = pages.start * PAGE;
        room.query.clear();
        room.windows.clear();
        for (i, token) in tokens.clone().enumerate() {
            room.query.extend_from_slice(&q.numbers[i * q.stride..i * q.stride + width]);
            let window = sees(token);
            room.windows.extend(std::iter::repeat_n(window.start - first..window.end - first, heads));
        }
        // Every number is written.
        room.out.resize(room.query.len(), 0.0);
        let pages: Vec<_> = self.pages[pages].iter().map(|page| page.head(self.shape, self.index, kv_head)).collect();
        let queries = Queries {
            dim,
            rows: &room.query,
            windows: &room.windows,
            scale: self.scale,
            cap: self.cap,
            single: self.single,
        };
        paged::attend(&queries, &pages, &mut room.scratch, &mut room.out);
        for i in 0..tokens.len() {
            out[i * q.stride..i * q.stride + width].copy_from_slice(&room.out[i * width..(i + 1) * width]);
        }
    }
}
