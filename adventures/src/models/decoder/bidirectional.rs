//! A decoder as an encoder: each token sees its whole sequence, before it and behind it.
//!
//! `LLM2Vec` (<https://arxiv.org/abs/2404.05961>) trains adapters for this. Sequences lie end to end, without padding, and
//! what is computed of one does not depend, to the last bit, on what lies beside it. Windows are not looked at, as `LLM2Vec`
//! multiplies them into a mask of zeros.

use super::Model;
use super::config::Config;
use super::pass::{ROWS, add_bias, add_normed, embed, norm_rows, place};
use super::weights::{Layer, Weight};
use crate::error::{Result, invalid, unsupported};
use crate::kernels::causal;
use crate::kernels::paged::{self, PAGE, Queries};
use crate::kernels::quant::{Product, Scratch, multiply, multiply_gated};
use crate::models::{Batch, Encoder};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Tokens whose attention one thread computes at a time.
const TILE: usize = 16;

/// The encoder that a decoder's weights make without the causal mask.
pub(super) struct Bidirectional(pub(super) Model);

impl Encoder for Bidirectional {
    fn hidden_size(&self) -> usize {
        self.0.config.hidden
    }

    fn context(&self) -> usize {
        self.0.context
    }

    fn encode(&self, batch: &Batch) -> Result<Tensor> {
        let Model { config, context, pool, .. } = &self.0;
        check(batch, config, *context)?;
        let count = batch.ids.len();
        let hidden = pool.install(|| Pass::new(&self.0, batch).run());
        if let Some(x) = hidden.iter().find(|x| !x.is_finite()) {
            return invalid!("the model computed {x} for a hidden state: its weights are damaged, or too large for it");
        }
        Ok(Tensor::from_vec(hidden, (count, config.hidden), &Device::Cpu)?)
    }
}

/// Fails where `batch` cannot be read.
pub(super) fn check(batch: &Batch, config: &Config, context: usize) -> Result<()> {
    let count = batch.ids.len();
    if batch.lengths.iter().sum::<usize>() != count || batch.lengths.contains(&0) {
        return invalid!("lengths {:?} of {count} tokens", batch.lengths);
    }
    if !batch.attended.is_empty() {
        return unsupported!("a decoder without its mask attends to all tokens");
    }
    if let Some(length) = batch.lengths.iter().find(|length| **length > context) {
        return invalid!("{length} tokens do not fit the context of {context} tokens");
    }
    if let Some(id) = batch.ids.iter().find(|id| **id as usize >= config.vocab) {
        return invalid!("token {id} is outside of the vocabulary of {}", config.vocab);
    }
    Ok(())
}

/// One batch's way through the layers.
struct Pass<'a> {
    model: &'a Model,
    batch: &'a Batch,
    /// `(cos, sin)` of each pair at each position, up to the longest sequence's last, by the kind of layer.
    turns: [Vec<(f32, f32)>; 2],
    /// `(tokens, hidden)`.
    hidden: Vec<f32>,
    scratch: Scratch,
}

/// The keys and values of one head over one sequence, in the pages that the attention kernel reads.
struct Pages {
    /// `(pages, PAGE, dim)`.
    keys: Vec<f32>,
    /// `(pages, dim, PAGE)`.
    values: Vec<f32>,
}

impl<'a> Pass<'a> {
    fn new(model: &'a Model, batch: &'a Batch) -> Self {
        let longest = batch.lengths.iter().copied().max().unwrap_or(0);
        let turns = model.ropes.each_ref().map(|rope| {
            let mut turns = Vec::new();
            rope.turns(0..longest, &mut turns);
            turns
        });
        Self { model, batch, turns, hidden: Vec::new(), scratch: Scratch::default() }
    }

    /// Returns the hidden states, `(tokens, hidden)`.
    fn run(mut self) -> Vec<f32> {
        let Model { config, weights, .. } = self.model;
        self.hidden.resize(self.batch.ids.len() * config.hidden, 0.0);
        embed(self.model, &self.batch.ids, &mut self.hidden);
        for (i, layer) in weights.layers.iter().enumerate() {
            self.attention(i, layer);
            self.feed_forward(layer);
        }
        let eps = config.norm_eps;
        let rows = self.hidden.par_chunks_mut(ROWS * config.hidden);
        rows.for_each(|rows| causal::rms_norm_in_place(rows, &weights.final_norm, eps));
        self.hidden
    }

    fn attention(&mut self, index: usize, layer: &Layer) {
        let Model { config, ropes, .. } = self.model;
        let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let normed = self.normed(&layer.attention_norm);
        let [mut query, mut key, mut value] =
            self.products(&normed, [&layer.query.weight, &layer.key.weight, &layer.value.weight]);
        drop(normed);
        add_bias(&layer.query, &mut query);
        add_bias(&layer.key, &mut key);
        add_bias(&layer.value, &mut value);
        let local = usize::from(config.local_layers[index]);
        let (pairs, turns) = (ropes[local].pairs(), &self.turns[local]);
        let positions: Vec<usize> = self.batch.lengths.iter().flat_map(|length| 0..*length).collect();
        let rows = query.par_chunks_exact_mut(q_width).zip(key.par_chunks_exact_mut(kv_width)).zip(&positions);
        rows.with_min_len(ROWS).for_each(|((query, key), &position)| {
            place(self.model, index, (query, key), &turns[position * pairs..(position + 1) * pairs]);
        });
        let attended = self.attend(&query, &key, &value);
        let [mut projected] = self.products(&attended, [&layer.output]);
        add_normed(&mut self.hidden, &mut projected, layer.post_attention_norm.as_deref(), config.norm_eps);
    }

    /// Returns `(tokens, heads * dim)`: what each query head sees of its sequence.
    fn attend(&self, query: &[f32], key: &[f32], value: &[f32]) -> Vec<f32> {
        let config = &self.model.config;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let (q_width, kv_width, group) = (heads * dim, kv_heads * dim, heads / kv_heads);
        let starts = self.batch.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - length)
        });
        let sequences: Vec<(usize, usize)> = starts.zip(self.batch.lengths.iter().copied()).collect();
        // For each sequence, one for each key-value head.
        let pages: Vec<Pages> = (0..sequences.len() * kv_heads)
            .into_par_iter()
            .map(|i| {
                let ((start, length), head) = (sequences[i / kv_heads], i % kv_heads);
                let rows = start * kv_width..(start + length) * kv_width;
                Pages::new(&key[rows.clone()], &value[rows], kv_width, head * dim..(head + 1) * dim)
            })
            .collect();
        let mut attended = vec![0.0; query.len()];
        let mut tiles = Vec::new();
        let mut rest = attended.as_mut_slice();
        for (i, (start, length)) in sequences.iter().enumerate() {
            for from in (0..*length).step_by(TILE) {
                let (tile, behind) = rest.split_at_mut(TILE.min(length - from) * q_width);
                tiles.push((i, start + from, tile));
                rest = behind;
            }
        }
        tiles.into_par_iter().for_each_init(Room::default, |room, (i, first, tile)| {
            let tokens = tile.len() / q_width;
            room.windows.clear();
            room.windows.resize(tokens * group, 0..sequences[i].1);
            // Every number is written.
            room.out.resize(tokens * group * dim, 0.0);
            for (head, pages) in pages[i * kv_heads..(i + 1) * kv_heads].iter().enumerate() {
                let columns = head * group * dim..(head + 1) * group * dim;
                room.query.clear();
                for row in query[first * q_width..(first + tokens) * q_width].chunks_exact(q_width) {
                    room.query.extend_from_slice(&row[columns.clone()]);
                }
                let queries = Queries {
                    dim,
                    rows: &room.query,
                    windows: &room.windows,
                    scale: if config.family.scaled_queries { 1.0 } else { config.query_scale },
                    cap: config.score_cap,
                    single: false,
                };
                paged::attend(&queries, &pages.list(dim), &mut room.scratch, &mut room.out);
                for (row, out) in tile.chunks_exact_mut(q_width).zip(room.out.chunks_exact(group * dim)) {
                    row[columns.clone()].copy_from_slice(out);
                }
            }
        });
        attended
    }

    fn feed_forward(&mut self, layer: &Layer) {
        let config = &self.model.config;
        let normed = self.normed(&layer.feed_forward_norm);
        let tokens = self.batch.ids.len();
        let mut both = [0, 1].map(|_| vec![0.0; tokens * config.feed_forward]);
        let [gate, up] = &mut both;
        let products =
            [Product { matrix: layer.gate.matrix(), out: gate }, Product { matrix: layer.up.matrix(), out: up }];
        multiply_gated(&normed, batch(tokens), &mut self.scratch, products, &|gate, up| {
            config.activation.gate(false, gate, up);
        });
        let [mut projected] = self.products(&both[0], [&layer.down]);
        add_normed(&mut self.hidden, &mut projected, layer.post_feed_forward_norm.as_deref(), config.norm_eps);
    }

    fn normed(&self, weight: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; self.hidden.len()];
        norm_rows(&self.hidden, weight, self.model.config.norm_eps, &mut normed);
        normed
    }

    /// Returns the products of the rows of `x`, one for each token, with each of `weights`.
    fn products<const N: usize>(&mut self, x: &[f32], weights: [&Weight; N]) -> [Vec<f32>; N] {
        let tokens = self.batch.ids.len();
        let mut outs = weights.map(|weight| vec![0.0; tokens * weight.rows]);
        let mut products: Vec<_> =
            weights.iter().zip(&mut outs).map(|(weight, out)| Product { matrix: weight.matrix(), out }).collect();
        multiply(x, batch(tokens), &mut self.scratch, &mut products);
        outs
    }
}

/// How many tokens are said to be read together: whole fours, so that each row is added up in the same order, however many
/// there are.
fn batch(tokens: usize) -> usize {
    tokens.next_multiple_of(4).max(8)
}

/// One thread's scratch space for attention.
#[derive(Default)]
struct Room {
    query: Vec<f32>,
    out: Vec<f32>,
    windows: Vec<Range<usize>>,
    scratch: paged::Scratch,
}

impl Pages {
    /// Takes `columns` out of rows of `width` numbers.
    fn new(key: &[f32], value: &[f32], width: usize, columns: Range<usize>) -> Self {
        let dim = columns.len();
        let len = (key.len() / width).next_multiple_of(PAGE) * dim;
        let mut pages = Self { keys: vec![0.0; len], values: vec![0.0; len] };
        for (t, (key, value)) in key.chunks_exact(width).zip(value.chunks_exact(width)).enumerate() {
            pages.keys[t * dim..(t + 1) * dim].copy_from_slice(&key[columns.clone()]);
            let page = &mut pages.values[t / PAGE * PAGE * dim..];
            for (lane, x) in page.chunks_exact_mut(PAGE).zip(&value[columns.clone()]) {
                lane[t % PAGE] = *x;
            }
        }
        pages
    }

    fn list(&self, dim: usize) -> Vec<paged::Page<'_, f32>> {
        let pages = self.keys.chunks_exact(PAGE * dim).zip(self.values.chunks_exact(PAGE * dim));
        pages.map(|(keys, values)| paged::Page { keys, values }).collect()
    }
}
