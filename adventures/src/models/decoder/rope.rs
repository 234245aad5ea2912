//! Rotary positions (RoFormer, <https://arxiv.org/abs/2104.09864>), computed for the positions that are read.

use super::config::{Config, Pairs, Rotary};
use std::ops::Range;

/// The frequencies of one kind of layer.
#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f32>,
    pub(super) halves: bool,
}

impl Rope {
    pub(super) fn new(config: &Config, rotary: &Rotary) -> Self {
        let dims = config.rotary_dims;
        let frequencies = (0..dims / 2)
            .map(|i| {
                let power = f64::from(rotary.base).powf(-((2 * i) as f64) / dims as f64);
                let divisor = f64::from(rotary.factor) * rotary.factors.get(i).map_or(1.0, |f| f64::from(*f));
                (power / divisor) as f32
            })
            .collect();
        Self { frequencies, halves: config.pairs == Pairs::Halves }
    }

    /// How many pairs turn.
    pub(super) fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Writes `(cos, sin)` for each pair at each of `positions`, in single precision throughout: half the angles of
    /// positions beyond 256 would be wrong in bfloat16.
    pub(super) fn turns(&self, positions: Range<usize>, out: &mut Vec<(f32, f32)>) {
        out.clear();
        for position in positions {
            out.extend(self.frequencies.iter().map(|f| {
                let (sin, cos) = (position as f32 * f).sin_cos();
                (cos, sin)
            }));
        }
    }
}
