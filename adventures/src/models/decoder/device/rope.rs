//! Rotary positions on a device: the turns that the CPU computes, for the positions that were asked for so far.

use super::super::config::{Config, Rotary};
use super::super::rope::Rope as Plan;
use super::Place;
use crate::error::Result;
use crate::models::tensors::upload;
use candle_core::Tensor;
use candle_nn::rotary_emb::{rope, rope_i};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The fewest positions that are computed.
const FEWEST: usize = 512;

/// The turns of one kind of layer.
pub(super) struct Rope {
    plan: Plan,
    place: Place,
    /// For all positions up to the farthest so far, twice as many where that is not enough.
    known: Mutex<Option<Turns>>,
}

/// Cosines and sines, `(positions, pairs)` each.
#[derive(Clone)]
pub(super) struct Turns {
    cos: Tensor,
    sin: Tensor,
    /// How many numbers of a head turn, and whether pairs are half of them apart.
    dims: usize,
    halves: bool,
}

impl Rope {
    pub(super) fn new(config: &Config, rotary: &Rotary, place: &Place) -> Self {
        Self { plan: Plan::new(config, rotary), place: place.clone(), known: Mutex::new(None) }
    }

    /// Returns the turns of each of `ranges`, one behind the other.
    pub(super) fn turns(&self, ranges: &[Range<usize>]) -> Result<Turns> {
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let all = self.up_to(end)?;
        let pick = |table: &Tensor| -> candle_core::Result<Tensor> {
            let rows = ranges.iter().map(|range| table.narrow(0, range.start, range.len()));
            match &rows.collect::<candle_core::Result<Vec<_>>>()?[..] {
                [one] => Ok(one.clone()),
                several => Tensor::cat(several, 0),
            }
        };
        Ok(Turns { cos: pick(&all.cos)?, sin: pick(&all.sin)?, ..all })
    }

    fn up_to(&self, end: usize) -> Result<Turns> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let pairs = self.plan.pairs();
        if let Some(turns) = known.as_ref()
            && (pairs == 0 || turns.cos.dim(0)? >= end)
        {
            return Ok(turns.clone());
        }
        let positions = end.next_power_of_two().max(FEWEST);
        let mut numbers = Vec::with_capacity(positions * pairs);
        self.plan.turns(0..positions, &mut numbers);
        let (cos, sin): (Vec<f32>, Vec<f32>) = numbers.into_iter().unzip();
        let table = |numbers: &[f32]| upload(numbers, &[positions, pairs], self.place.products, &self.place.device);
        let turns = Turns { cos: table(&cos)?, sin: table(&sin)?, dims: 2 * pairs, halves: self.plan.halves };
        Ok(known.insert(turns).clone())
    }
}

impl Turns {
    /// Returns `x`, `(heads, tokens, dim)`, each token's heads turned.
    pub(super) fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let dim = x.dim(2)?;
        if self.dims == 0 {
            return x.contiguous();
        }
        let part = x.narrow(2, 0, self.dims)?.contiguous()?.unsqueeze(0)?;
        let turned = if self.halves { rope } else { rope_i }(&part, &self.cos, &self.sin)?.squeeze(0)?;
        if self.dims == dim {
            return Ok(turned);
        }
        Tensor::cat(&[turned, x.narrow(2, self.dims, dim - self.dims)?.contiguous()?], 2)
    }
}
