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
    /// How much of each pair's angle is that of positions that are not.
    kept: Vec<f32>,
    /// What sines and cosines are multiplied by.
    magnitude: f32,
    pub(super) halves: bool,
}

impl Rope {
    pub(super) fn new(config: &Config, rotary: &Rotary) -> Self {
        let dims = config.rotary_dims;
        let factors = if rotary.factors.is_empty() { vec![1.0; dims / 2] } else { rotary.factors.clone() };
        let step = rotary.base.powf(-2.0 / dims as f32);
        let kept = if rotary.kept.is_empty() { vec![0.0; dims / 2] } else { rotary.kept.clone() };
        let (scale, magnitude) = (1.0 / rotary.factor, rotary.magnitude);
        Self { factors, step, scale, kept, magnitude, halves: config.pairs == Pairs::Halves }
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
            out.extend(self.factors.iter().zip(&self.kept).map(|(factor, kept)| {
                let plain = angle / factor;
                let (sin, cos) = (self.scale * plain * (1.0 - kept) + plain * kept).sin_cos();
                angle *= self.step;
                (cos * self.magnitude, sin * self.magnitude)
            }));
        }
    }
}

/// Positions stretched by `YaRN` (<https://arxiv.org/abs/2309.00071>): long waves by all of `factor`, short ones not at all.
#[derive(Debug)]
pub(super) struct Yarn {
    pub(super) factor: f32,
    /// How many positions the model was first trained for.
    pub(super) original: f32,
    /// A pair that turns so often over them is left as it is; one that turns as seldom as `slow` times is stretched.
    pub(super) fast: f32,
    pub(super) slow: f32,
    /// Whether the pairs between the two are counted from whole ones.
    pub(super) truncate: bool,
    /// What sines and cosines are multiplied by.
    pub(super) magnitude: f32,
}

impl Yarn {
    /// What transformers and llama.cpp take where a file does not say.
    pub(super) const FAST: f32 = 32.0;
    pub(super) const SLOW: f32 = 1.0;

    /// Returns what attention over stretched positions is made sharper by: the root of the paper's `1 / t`.
    pub(super) fn sharpness(factor: f32, share: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { 0.1 * share * factor.ln() + 1.0 }
    }

    /// Returns the positions of heads of which `dims` numbers turn.
    pub(super) fn rotary(&self, base: f32, dims: usize) -> Rotary {
        let pair =
            |turns: f32| dims as f32 * (self.original / (turns * std::f32::consts::TAU)).ln() / (2.0 * base.ln());
        let (first, last) = (pair(self.fast), pair(self.slow));
        let (first, last) = if self.truncate { (first.floor(), last.ceil()) } else { (first, last) };
        let (first, last) = (first.max(0.0), last.min(dims as f32 - 1.0));
        let kept = |i: usize| 1.0 - ((i as f32 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
        Rotary {
            factor: self.factor,
            kept: (0..dims / 2).map(kept).collect(),
            magnitude: self.magnitude,
            ..Rotary::new(base)
        }
    }
}
