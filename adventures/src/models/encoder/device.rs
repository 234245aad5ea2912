//! Encoders on candle's tensors, for accelerators: what the architectures' files read, copied to a device.
//!
//! Linear layers run over packed tokens, as on the CPU. For attention the sequences of a block are padded to its longest, so
//! that all heads of all of them are one product.

use super::positions::Rotary;
use super::source::Pack;
use super::transformer::{Activation, Gate, Layer, Limits, Positions, Transformer};
use crate::device::name;
use crate::error::{Error, Result, invalid};
use crate::kernels::attention::{Distances, Heads};
use crate::kernels::math::LayerNorm;
use crate::kernels::panels::{Kernel, Known, Then};
use crate::models::tensors::{MOST_SCORES, Scores, attend, upload};
use crate::models::{Batch, Encoder, Rows};
use candle_core::{DType, Device, Tensor};
use candle_nn::ops::layer_norm;
use candle_nn::rotary_emb::rope;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many tokens, padding included, go through the layers together.
const BLOCK_TOKENS: usize = 16_384;

/// A linear layer as its checkpoint has it.
pub(super) struct Plain {
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
}

impl Pack for Plain {
    fn pack(weight: Vec<f32>, bias: Vec<f32>, inputs: usize, _: Kernel, _: Known) -> Result<Self> {
        Ok(Self { weight, bias, inputs })
    }
}

/// A bidirectional transformer whose weights are on a device.
pub(super) struct OnDevice {
    place: Place,
    limits: Limits,
    heads: Heads,
    width: usize,
    words: Tensor,
    positions: Option<(Tensor, Option<u32>)>,
    types: Option<Tensor>,
    norm: Norm,
    /// What is added to the scores of all layers by distance, `(heads, 2 * farthest + 1)`, and that distance.
    distances: Option<(Tensor, usize)>,
    layers: Vec<DeviceLayer>,
    last_norm: Option<Norm>,
}

/// Where and in what precision products are computed; sums and norms are in single precision.
struct Place {
    device: Device,
    products: DType,
}

struct DeviceLayer {
    qkv: Dense,
    attention_out: Dense,
    attention_norm: Option<Norm>,
    up: Dense,
    activation: DeviceActivation,
    down: Dense,
    out_norm: Norm,
    /// Cosines and sines, `(context, pairs)` each.
    rotary: Option<(Tensor, Tensor)>,
    window: Option<usize>,
}

enum DeviceActivation {
    Plain(Then),
    Gated(Gate, Dense),
}

struct Dense {
    /// `(inputs, outputs)`, as a view.
    weight: Tensor,
    bias: Option<Tensor>,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

/// Where the tokens of a block's sequences are when they are padded.
struct Padding {
    /// Of each of the `(sequences, longest)` places, which row is there.
    rows: Tensor,
    /// Of each row, at which of these places it is.
    places: Tensor,
}

/// What the layers of a block have in common.
struct Frame {
    sequences: usize,
    longest: usize,
    /// `None` where all sequences are as long.
    padding: Option<Padding>,
    /// What is added to the scores, which are `(sequences, heads, rows, keys)`: in layers that see everything, and in those
    /// with a window.
    masks: [Option<Tensor>; 2],
}

impl Place {
    fn dense(&self, plain: Plain) -> Result<Dense> {
        let Plain { weight, bias, inputs } = plain;
        let outputs = weight.len() / inputs;
        let weight = upload(&weight, &[outputs, inputs], self.products, &self.device)?.t()?;
        let bias = if bias.is_empty() { None } else { Some(upload(&bias, &[outputs], self.products, &self.device)?) };
        Ok(Dense { weight, bias })
    }

    fn table(&self, numbers: &[f32], width: usize) -> Result<Tensor> {
        upload(numbers, &[numbers.len() / width, width], DType::F32, &self.device)
    }

    fn norm(&self, norm: &LayerNorm) -> Result<Norm> {
        let vector = |numbers: &[f32]| upload(numbers, &[numbers.len()], DType::F32, &self.device);
        Ok(Norm { weight: vector(&norm.weight)?, bias: vector(&norm.bias)?, eps: norm.eps })
    }

    fn ids(&self, ids: Vec<u32>) -> candle_core::Result<Tensor> {
        let count = ids.len();
        Tensor::from_vec(ids, count, &self.device)
    }
}

impl Dense {
    /// Returns `(rows, outputs)` in the precision of products.
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let out = x.to_dtype(self.weight.dtype())?.matmul(&self.weight)?;
        match &self.bias {
            Some(bias) => out.broadcast_add(bias),
            None => Ok(out),
        }
    }
}

impl Norm {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        layer_norm(&x.contiguous()?, &self.weight, &self.bias, self.eps)
    }
}

impl OnDevice {
    /// Copies what was read to `device`.
    pub(super) fn new(model: Transformer<Plain>, products: DType, device: &Device) -> Result<Self> {
        let place = Place { device: device.clone(), products };
        Self::copy(model, place).map_err(|e| match e {
            Error::Model(e) => Error::Busy(format!("copying the weights to {}: {e}", name(Some(device)))),
            other => other,
        })
    }

    fn copy(model: Transformer<Plain>, place: Place) -> Result<Self> {
        let limits = model.limits();
        let width = model.embeddings.width();
        let Transformer { heads, embeddings, distances, layers, last_norm, .. } = model;
        let positions = match &embeddings.positions {
            Some(Positions { table, padding }) => Some((place.table(table, width)?, *padding)),
            None => None,
        };
        let distances = match &distances {
            Some(Distances { farthest, values }) => Some((place.table(values, 2 * farthest + 1)?, *farthest)),
            None => None,
        };
        // Layers share their turns.
        let mut turns: Vec<(*const Rotary, (Tensor, Tensor))> = Vec::new();
        let mut rotary = |rotary: &Arc<Rotary>| -> Result<(Tensor, Tensor)> {
            let key = Arc::as_ptr(rotary);
            if let Some((_, tables)) = turns.iter().find(|(known, _)| *known == key) {
                return Ok(tables.clone());
            }
            let (cos, sin, pairs) = rotary.tables();
            let table = |numbers: &[f32]| place.table(numbers, pairs)?.to_dtype(place.products).map_err(Error::from);
            let tables = (table(&cos)?, table(&sin)?);
            turns.push((key, tables.clone()));
            Ok(tables)
        };
        let mut copied = Vec::with_capacity(layers.len());
        for layer in layers {
            // Values have a product of their own in bytes alone.
            let Layer { qkv, values: _, attention_out, attention_norm, up, activation, down, out_norm, .. } = layer;
            let (turned, window) = (layer.rotary, layer.window);
            copied.push(DeviceLayer {
                qkv: place.dense(qkv)?,
                attention_out: place.dense(attention_out)?,
                attention_norm: attention_norm.as_ref().map(|norm| place.norm(norm)).transpose()?,
                up: place.dense(up)?,
                activation: match activation {
                    Activation::Plain(then) => DeviceActivation::Plain(then),
                    Activation::Gated(gate, gates) => DeviceActivation::Gated(gate, place.dense(gates)?),
                },
                down: place.dense(down)?,
                out_norm: place.norm(&out_norm)?,
                rotary: turned.as_ref().map(&mut rotary).transpose()?,
                window,
            });
        }
        Ok(Self {
            words: place.table(&embeddings.words, width)?,
            types: if embeddings.types.is_empty() { None } else { Some(place.table(&embeddings.types, width)?) },
            norm: place.norm(&embeddings.norm)?,
            last_norm: last_norm.as_ref().map(|norm| place.norm(norm)).transpose()?,
            layers: copied,
            limits,
            heads,
            width,
            positions,
            distances,
            place,
        })
    }

    /// Returns `(tokens, width)`: what the first layer reads.
    fn embed(&self, ids: &[u32], types: &[u8], lengths: &[usize]) -> candle_core::Result<Tensor> {
        let mut hidden = self.words.index_select(&self.place.ids(ids.to_vec())?, 0)?;
        if let Some(table) = &self.types {
            let types = (0..ids.len()).map(|i| types.get(i).map_or(0, |kind| u32::from(*kind))).collect();
            hidden = (hidden + table.index_select(&self.place.ids(types)?, 0)?)?;
        }
        if let Some((table, padding)) = &self.positions {
            let (mut positions, mut rest) = (Vec::with_capacity(ids.len()), ids);
            for &length in lengths {
                let (own, more) = rest.split_at(length);
                positions.extend(Positions::count(own, *padding));
                rest = more;
            }
            hidden = (hidden + table.index_select(&self.place.ids(positions)?, 0)?)?;
        }
        self.norm.apply(&hidden)
    }

    /// Returns what a block's layers have in common; of each sequence the first `attended` tokens are keys.
    fn frame(&self, lengths: &[usize], attended: &[usize]) -> candle_core::Result<Frame> {
        let (sequences, longest) = (lengths.len(), lengths.iter().copied().max().unwrap_or(0));
        let mut padding = None;
        if lengths.iter().any(|length| *length != longest) {
            let (mut rows, mut places, mut start) = (Vec::new(), Vec::new(), 0);
            for (i, &length) in lengths.iter().enumerate() {
                // What stands for padding is seen by nobody.
                rows.extend((0..longest).map(|t| if t < length { (start + t) as u32 } else { 0 }));
                places.extend((0..length).map(|t| (i * longest + t) as u32));
                start += length;
            }
            padding = Some(Padding { rows: self.place.ids(rows)?, places: self.place.ids(places)? });
        }
        let tensor = |numbers: Vec<f32>, shape: [usize; 4]| Tensor::from_vec(numbers, &shape[..], &self.place.device);
        let hidden = |is: bool| if is { f32::NEG_INFINITY } else { 0.0 };
        let mut mask = None;
        if attended.iter().any(|keys| *keys != longest) {
            let keys = attended.iter().flat_map(|keys| (0..longest).map(|t| hidden(t >= *keys)));
            mask = Some(tensor(keys.collect(), [sequences, 1, 1, longest])?);
        }
        if let Some((table, farthest)) = &self.distances {
            let columns = (0..longest).flat_map(|row| (0..longest).map(move |key| (farthest + key - row) as u32));
            let values = table.index_select(&self.place.ids(columns.collect())?, 1)?;
            let values = values.reshape((1, self.heads.count, longest, longest))?;
            mask = Some(mask.map_or_else(|| Ok(values.clone()), |mask: Tensor| mask.broadcast_add(&values))?);
        }
        let mut masks = [mask.clone(), mask];
        if let Some(window) = self.layers.iter().find_map(|layer| layer.window).filter(|window| *window < longest) {
            let far = (0..longest).flat_map(|row| (0..longest).map(move |key| hidden(row.abs_diff(key) > window)));
            let far = tensor(far.collect(), [1, 1, longest, longest])?;
            masks[1] = Some(masks[1].as_ref().map_or_else(|| Ok(far.clone()), |mask| mask.broadcast_add(&far))?);
        }
        Ok(Frame { sequences, longest, padding, masks })
    }

    /// Runs a block through all layers; returns the rows that are asked for.
    fn run(&self, batch: &Batch, starts: &[usize], block: &[usize], rows: Rows, cancel: &AtomicBool) -> Result<Tensor> {
        let lengths: Vec<usize> = block.iter().map(|i| batch.lengths[*i]).collect();
        let keys = block.iter().map(|i| batch.attended.get(*i).copied().unwrap_or(batch.lengths[*i]));
        let ranges: Vec<Range<usize>> = block.iter().map(|i| starts[*i]..starts[*i] + batch.lengths[*i]).collect();
        let ids: Vec<u32> = ranges.iter().flat_map(|range| &batch.ids[range.clone()]).copied().collect();
        let types = ranges.iter().flat_map(|range| batch.types.get(range.clone()).unwrap_or_default());
        let types: Vec<u8> = types.copied().collect();
        let frame = self.frame(&lengths, &keys.collect::<Vec<_>>())?;
        let mut hidden = self.embed(&ids, &types, &lengths)?;
        let before = self.last_norm.is_some();
        for (i, layer) in self.layers.iter().enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let normed = match &layer.attention_norm {
                Some(norm) if before => norm.apply(&hidden)?,
                _ => hidden.clone(),
            };
            // Of the last layer, other tokens are read as keys and values alone.
            let first = rows == Rows::First && i + 1 == self.layers.len();
            let seen = self.attention(layer, &layer.qkv.apply(&normed)?, &frame, first)?;
            if first {
                let firsts = lengths.iter().scan(0, |end, length| {
                    *end += *length as u32;
                    Some(*end - *length as u32)
                });
                hidden = hidden.index_select(&self.place.ids(firsts.collect())?, 0)?;
            }
            hidden = (hidden + layer.attention_out.apply(&seen)?.to_dtype(DType::F32)?)?;
            if before {
                hidden = (&hidden + layer.network(&layer.out_norm.apply(&hidden)?)?)?;
            } else {
                if let Some(norm) = &layer.attention_norm {
                    hidden = norm.apply(&hidden)?;
                }
                hidden = layer.out_norm.apply(&(&hidden + layer.network(&hidden)?)?)?;
            }
        }
        Ok(match &self.last_norm {
            Some(norm) => norm.apply(&hidden)?,
            None => hidden,
        })
    }

    /// Returns what each token sees, or each sequence's first token where `first` is set: `(rows, width)`.
    fn attention(&self, layer: &DeviceLayer, qkv: &Tensor, frame: &Frame, first: bool) -> candle_core::Result<Tensor> {
        let (Heads { count, dim }, Frame { sequences, longest, padding, masks }) = (self.heads, frame);
        let (sequences, longest) = (*sequences, *longest);
        let padded = match padding {
            Some(padding) => qkv.index_select(&padding.rows, 0)?,
            None => qkv.clone(),
        };
        let padded = padded.reshape((sequences, longest, 3, count, dim))?;
        let part = |i: usize| padded.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        let (mut query, mut key, value) = (part(0)?, part(1)?, part(2)?);
        if let Some((cos, sin)) = &layer.rotary {
            let (cos, sin) = (cos.narrow(0, 0, longest)?, sin.narrow(0, 0, longest)?);
            query = rope(&query, &cos, &sin)?;
            key = rope(&key, &cos, &sin)?;
        }
        let all = sequences * count;
        let queries = if first { 1 } else { longest };
        let (key, value) = (key.reshape((all, longest, dim))?, value.reshape((all, longest, dim))?);
        let scores = Scores { scale: (dim as f32).sqrt().recip(), cap: None };
        let mask = masks[usize::from(layer.window.is_some())].as_ref();
        // Fewer queries at a time where there are more scores than are to be in memory.
        let tile = (MOST_SCORES / (all * longest)).clamp(1, queries);
        let mut found = Vec::new();
        for from in (0..queries).step_by(tile) {
            let rows = tile.min(queries - from);
            let part = query.narrow(2, from, rows)?.reshape((all, rows, dim))?;
            let mask = match mask {
                Some(mask) if mask.dim(2)? > 1 => Some(mask.narrow(2, from, rows)?),
                other => other.cloned(),
            };
            let seen = [sequences, count, rows, longest];
            found.push(attend([&part, &key, &value], scores, mask.as_ref().map(|mask| (mask, &seen[..])))?);
        }
        let out = match &found[..] {
            [one] => one.clone(),
            several => Tensor::cat(several, 1)?,
        };
        let out = out.reshape((sequences, count, queries, dim))?.transpose(1, 2)?;
        let out = out.reshape((sequences * queries, self.width))?;
        match padding {
            Some(padding) if !first => out.index_select(&padding.places, 0),
            _ => Ok(out),
        }
    }
}

impl DeviceLayer {
    /// Returns what the feed-forward network makes of the rows of `x`, in single precision.
    fn network(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let up = self.up.apply(x)?;
        let wide = match &self.activation {
            DeviceActivation::Plain(Then::GeluErf) => up.gelu_erf()?,
            DeviceActivation::Plain(Then::GeluTanh) => up.gelu()?,
            DeviceActivation::Plain(Then::Relu) => up.relu()?,
            DeviceActivation::Plain(Then::Store | Then::Add) => up,
            DeviceActivation::Gated(gate, gates) => {
                let gates = gates.apply(x)?;
                let gates = match gate {
                    Gate::GeluErf => gates.gelu_erf()?,
                    Gate::GeluTanh => gates.gelu()?,
                    Gate::Silu => gates.silu()?,
                };
                (gates * up)?
            }
        };
        self.down.apply(&wide)?.to_dtype(DType::F32)
    }
}

impl Encoder for OnDevice {
    fn hidden_size(&self) -> usize {
        self.width
    }

    fn context(&self) -> usize {
        self.limits.context
    }

    fn token_types(&self) -> usize {
        self.limits.types
    }

    fn encode(&self, batch: &Batch) -> Result<Tensor> {
        self.encode_rows(batch, Rows::All, &AtomicBool::new(false))
    }

    fn encode_rows(&self, batch: &Batch, rows: Rows, cancel: &AtomicBool) -> Result<Tensor> {
        self.limits.check(batch)?;
        if batch.lengths.contains(&0) {
            return invalid!("a batch with a sequence of no tokens");
        }
        let starts: Vec<usize> = batch
            .lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end - length)
            })
            .collect();
        let count = if rows == Rows::All { batch.ids.len() } else { batch.lengths.len() };
        let mut hidden = vec![0.0; count * self.width];
        for block in blocks(&batch.lengths) {
            let found: Vec<f32> = self.run(batch, &starts, &block, rows, cancel)?.flatten_all()?.to_vec1()?;
            let mut found = found.as_slice();
            for i in block {
                let (start, tokens) = if rows == Rows::All { (starts[i], batch.lengths[i]) } else { (i, 1) };
                let (own, rest) = found.split_at(tokens * self.width);
                hidden[start * self.width..(start + tokens) * self.width].copy_from_slice(own);
                found = rest;
            }
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        Ok(Tensor::from_vec(hidden, (count, self.width), &Device::Cpu)?)
    }
}

/// Returns which sequences are read together, by their numbers: those of like length, so that little is padding.
fn blocks(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| lengths[*i]);
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    for i in order {
        match blocks.last_mut() {
            Some(block) if (block.len() + 1) * lengths[i] <= BLOCK_TOKENS => {
                block.push(i);
            }
            _ => blocks.push(vec![i]),
        }
    }
    blocks
}
