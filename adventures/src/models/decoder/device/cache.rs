//! The keys and values of one run on a device: room for more than was read, so that nothing is copied for each token.

use super::Model;
use crate::device::name;
use crate::error::{Error, Result};
use candle_core::Tensor;
use std::ops::Range;

/// The fewest positions that there is room for.
const FEWEST: usize = 256;

/// Keys and values of each layer, `(key-value heads, positions, dim)` each.
///
/// Layers with a window keep all positions, so that a run can be rewound to any of them.
#[derive(Default)]
pub(super) struct Cache {
    layers: Vec<[Tensor; 2]>,
    room: usize,
}

impl Cache {
    /// Makes room for `positions`, of which the first `used` are kept: for twice as many as there was room for.
    ///
    /// Fails with [`Error::Busy`], leaving everything as it was, where the device has no room.
    pub(super) fn reserve(&mut self, model: &Model, positions: usize, used: usize) -> Result<()> {
        if positions <= self.room {
            return Ok(());
        }
        let room = positions.max(2 * self.room).max(FEWEST).min(model.context);
        let (config, place) = (&model.config, &model.place);
        let grown = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
            let new = Tensor::zeros((config.kv_heads, room, config.head_dim), place.products, &place.device)?;
            if let Some(old) = old.filter(|_| used > 0) {
                new.slice_set(&old.narrow(1, 0, used)?.contiguous()?, 1, 0)?;
            }
            Ok(new)
        };
        let layers = (0..config.layers).map(|i| {
            let old = self.layers.get(i);
            Ok([grown(old.map(|old| &old[0]))?, grown(old.map(|old| &old[1]))?])
        });
        let layers: candle_core::Result<Vec<_>> = layers.collect();
        self.layers = layers.map_err(|e| {
            let device = name(Some(&place.device));
            Error::Busy(format!("no room on {device} for the keys and values of {room} tokens: {e}"))
        })?;
        self.room = room;
        Ok(())
    }

    /// Writes keys and values, `(key-value heads, tokens, dim)` each, from position `start` on.
    pub(super) fn store(&self, layer: usize, [keys, values]: [&Tensor; 2], start: usize) -> candle_core::Result<()> {
        let [all_keys, all_values] = &self.layers[layer];
        all_keys.slice_set(&keys.contiguous()?, 1, start)?;
        all_values.slice_set(&values.contiguous()?, 1, start)
    }

    /// Returns the keys and values of `positions`, where they lie.
    pub(super) fn view(&self, layer: usize, positions: &Range<usize>) -> candle_core::Result<[Tensor; 2]> {
        let [keys, values] = &self.layers[layer];
        Ok([keys.narrow(1, positions.start, positions.len())?, values.narrow(1, positions.start, positions.len())?])
    }
}
