//! The forward pass on a device: tokens of one run, or of several, through all layers.

use super::super::config::Activation;
use super::Model;
use super::cache::Cache;
use super::rope::Turns;
use super::weights::Layer;
use crate::error::Result;
use crate::models::tensors::{Scores, attend, norm};
use candle_core::{DType, Tensor};
use std::ops::Range;

/// Neighbouring rows of a pass that belong to one sequence.
pub(super) struct Segment<'a> {
    /// What it has read so far; `None` where its tokens see each other and nothing else.
    pub(super) cache: Option<&'a Cache>,
    /// The position of the first.
    pub(super) start: usize,
    pub(super) tokens: usize,
}

/// What is made of the last layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Nothing: the caches are to be filled.
    Nothing,
    /// The logits of the last row, `(1, vocab)`.
    Last,
    /// The logits of each row, `(rows, vocab)`.
    Each,
    /// The hidden states behind the last norm, `(rows, hidden)`.
    Hidden,
}

/// Returns what is `wanted` of `ids`, in single precision; the caches are filled. Of [`Wanted::Last`] there is one segment.
pub(super) fn run(model: &Model, ids: &[u32], segments: &[Segment<'_>], wanted: Wanted) -> Result<Option<Tensor>> {
    let (config, place) = (&model.config, &model.place);
    let ids = Tensor::from_slice(ids, ids.len(), &place.device)?;
    let mut hidden = model.embedding.rows(&ids)?.to_dtype(place.sums)?;
    if config.family.scaled_embeddings {
        hidden = (hidden * f64::from((config.hidden as f32).sqrt()))?;
    }
    let ranges: Vec<Range<usize>> =
        segments.iter().map(|segment| segment.start..segment.start + segment.tokens).collect();
    let turns = [model.ropes[0].turns(&ranges)?, model.ropes[1].turns(&ranges)?];
    for (index, layer) in model.layers.iter().enumerate() {
        let turns = Some(&turns[usize::from(config.local_layers[index])]).filter(|_| !config.unturned_layers[index]);
        let mut qkv = queries_keys_values(model, layer, &hidden, turns)?;
        let mut row = 0;
        for segment in segments {
            if let Some(cache) = segment.cache {
                let own = |x: &Tensor| x.narrow(1, row, segment.tokens);
                cache.store(index, [&own(&qkv[1])?, &own(&qkv[2])?], segment.start)?;
            }
            row += segment.tokens;
        }
        if index + 1 == config.layers && wanted == Wanted::Nothing {
            return Ok(None);
        }
        let mut behind = 0;
        if index + 1 == config.layers && wanted == Wanted::Last {
            // Nothing reads what the last layer makes of the tokens before.
            behind = hidden.dim(0)? - 1;
            hidden = hidden.narrow(0, behind, 1)?;
            qkv[0] = qkv[0].narrow(1, behind, 1)?;
        }
        let attended = attention(model, index, &qkv, segments, behind)?;
        let out = layer.output.multiply(&attended)?;
        hidden = add(model, &hidden, &out, layer.post_attention_norm.as_ref())?;
        let out = feed_forward(model, layer, &hidden)?;
        hidden = add(model, &hidden, &out, layer.post_feed_forward_norm.as_ref())?;
    }
    let normed = norm(&hidden, &model.final_norm, config.norm_eps)?;
    let Some(head) = model.head.as_ref().filter(|_| wanted != Wanted::Hidden) else {
        return Ok(Some(normed.to_dtype(DType::F32)?));
    };
    let mut logits = head.multiply(&normed.to_dtype(place.products)?)?.to_dtype(DType::F32)?;
    if let Some(cap) = config.logit_cap {
        logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
    }
    Ok(Some(logits))
}

/// Returns queries, keys and values as attention compares them, `(heads, tokens, dim)` each.
fn queries_keys_values(
    model: &Model,
    layer: &Layer,
    hidden: &Tensor,
    turns: Option<&Turns>,
) -> candle_core::Result<[Tensor; 3]> {
    let (config, place) = (&model.config, &model.place);
    let normed = norm(hidden, &layer.attention_norm, config.norm_eps)?.to_dtype(place.products)?;
    let tokens = hidden.dim(0)?;
    let [query, key, value] = layer.qkv.multiply(&normed)?;
    let split = |x: Tensor, heads| x.reshape((tokens, heads, config.head_dim));
    let turn = |x: Tensor, heads: usize, weight: Option<&Tensor>| {
        let mut x = split(x, heads)?;
        if let Some(weight) = weight {
            x = norm(&x, weight, config.norm_eps)?.to_dtype(place.products)?;
        }
        let x = x.transpose(0, 1)?;
        turns.map_or_else(|| x.contiguous(), |turns| turns.apply(&x))
    };
    let norms = layer.qk_norm.as_ref();
    Ok([
        turn(query, config.heads, norms.map(|norms| &norms.0))?,
        turn(key, config.kv_heads, norms.map(|norms| &norms.1))?,
        split(value, config.kv_heads)?.transpose(0, 1)?.contiguous()?,
    ])
}

/// Returns what the queries see, `(rows, heads * dim)`; those of the first `behind` rows are not among them.
fn attention(
    model: &Model,
    index: usize,
    qkv: &[Tensor; 3],
    segments: &[Segment<'_>],
    behind: usize,
) -> candle_core::Result<Tensor> {
    let config = &model.config;
    let [query, keys, values] = qkv;
    let group = config.heads / config.kv_heads;
    let scores = Scores { scale: config.query_scale, cap: config.score_cap };
    let mut found = Vec::with_capacity(segments.len());
    let mut row = 0;
    for segment in segments {
        let tokens = segment.tokens - behind;
        let query = query.narrow(1, row, tokens)?.contiguous()?;
        let first = segment.start + behind;
        let (seen, [keys, values]) = match segment.cache {
            None => {
                let part = |x: &Tensor| x.narrow(1, row, tokens);
                (None, [part(keys)?, part(values)?])
            }
            Some(cache) => {
                let window = config.window.filter(|_| config.local_layers[index]);
                let from = window.map_or(0, |window| (first + 1).saturating_sub(window));
                let range = from..first + tokens;
                (Some((range.clone(), window)), cache.view(index, &range)?)
            }
        };
        let count = keys.dim(1)?;
        // Heads of a group see the same keys.
        let query = query.reshape((config.kv_heads, group * tokens, config.head_dim))?;
        let mask = match seen {
            // One token sees all that the range holds.
            Some((range, window)) if tokens > 1 => Some(causal(first..first + tokens, range, window, query.device())?),
            _ => None,
        };
        let shape = [config.kv_heads, group, tokens, count];
        let out = attend([&query, &keys, &values], scores, mask.as_ref().map(|mask| (mask, &shape[..])))?;
        let out = out.reshape((config.heads, tokens, config.head_dim))?.transpose(0, 1)?;
        found.push(out.reshape((tokens, config.heads * config.head_dim))?);
        row += tokens;
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        several => Tensor::cat(several, 0),
    }
}

/// Returns 0 where a token of `rows` sees one of `keys`, and else what leaves nothing of its weight.
fn causal(
    rows: Range<usize>,
    keys: Range<usize>,
    window: Option<usize>,
    device: &candle_core::Device,
) -> candle_core::Result<Tensor> {
    let shape = (rows.len(), keys.len());
    let mask = rows.flat_map(|row| {
        let from = window.map_or(0, |window| (row + 1).saturating_sub(window));
        keys.clone().map(move |key| if (from..=row).contains(&key) { 0.0 } else { f32::NEG_INFINITY })
    });
    Tensor::from_vec(mask.collect::<Vec<f32>>(), shape, device)
}

fn feed_forward(model: &Model, layer: &Layer, hidden: &Tensor) -> candle_core::Result<Tensor> {
    let normed = norm(hidden, &layer.feed_forward_norm, model.config.norm_eps)?.to_dtype(model.place.products)?;
    let [gate, up] = layer.gate_up.multiply(&normed)?;
    let gate = match model.config.activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::GeluErf => gate.gelu_erf()?,
    };
    layer.down.multiply(&(gate * up)?)
}

/// Returns `hidden + norm(rows)`, or `rows` as they are where there is no norm.
fn add(model: &Model, hidden: &Tensor, rows: &Tensor, weight: Option<&Tensor>) -> candle_core::Result<Tensor> {
    match weight {
        Some(weight) => hidden + norm(rows, weight, model.config.norm_eps)?,
        None => hidden + rows.to_dtype(model.place.sums)?,
    }
}
