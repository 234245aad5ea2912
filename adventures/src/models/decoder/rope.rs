//! Rotary positions (`RoFormer`, <https://arxiv.org/abs/2104.09864>), computed for the positions that are read.

use super::config::{Config, Pairs, Rotary};
use std::ops::Range;

/// The frequencies of one kind of layer.
#[derive(Debug)]
pub(super) struct Rope {
    /// What each pair's angle is divided by.
    factors: Vec<f32>,
    /// What one pair's angle is multiplied by for the next.
    step: f32,
    /// What positions are multiplied by.
    scale: f32,
    pub(super) halves: bool,
}

impl Rope {
    pub(super) fn new(config: &Config, rotary: &Rotary) -> Self {
        let dims = config.rotary_dims;
        let factors = if rotary.factors.is_empty() { vec![1.0; dims / 2] } else { rotary.factors.clone() };
        let step = rotary.base.powf(-2.0 / dims as f32);
        Self { factors, step, scale: 1.0 / rotary.factor, halves: config.pairs == Pairs::Halves }
    }

    /// How many pairs turn.
    pub(super) fn pairs(&self) -> usize {
        self.factors.len()
    }

    /// Appends `(cos, sin)` for each pair at each of `positions`, in single precision throughout: half the angles of
    /// positions beyond 256 would be wrong in bfloat16. Angles follow from one another, as in llama.cpp.
    pub(super) fn turns(&self, positions: Range<usize>, out: &mut Vec<(f32, f32)>) {
        for position in positions {
            let mut angle = position as f32;
            out.extend(self.factors.iter().map(|factor| {
                let (sin, cos) = (self.scale * (angle / factor)).sin_cos();
                angle *= self.step;
                (cos, sin)
            }));
        }
    }
}
