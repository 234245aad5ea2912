//! How a token knows where it is: turned by its position, or told by its distance to another.

use crate::error::{Result, invalid};
use crate::kernels::attention::Distances;
use crate::kernels::causal::rotate;
use crate::kernels::threads::Threads;

/// The most turns that are made: 64 MB. Those of 8,192 positions of real heads are 2 MB.
const MOST: usize = 1 << 23;
/// `MPNet`'s distances are told apart up to it; those beyond fall into ranges.
const EXACT: usize = 8;
/// The ranges of each side, `EXACT` of one distance included.
const RANGES: usize = 16;

/// What queries and keys are turned by (`RoFormer`, <https://arxiv.org/abs/2104.09864>): pairs of numbers half a head apart.
pub(super) struct Rotary {
    /// `(cos, sin)`: `(context, pairs)`.
    turns: Vec<(f32, f32)>,
    pairs: usize,
}

impl Rotary {
    /// Returns the turns of `context` positions for heads of `dim`, in single precision as transformers computes them: pair `i`
    /// turns by the position times `base^(-2i/dim) / divisor`.
    ///
    /// Fails where heads do not split into pairs, or a number is out of range.
    pub(super) fn new(context: usize, dim: usize, base: f32, divisor: f32) -> Result<Self> {
        if !dim.is_multiple_of(2) {
            return invalid!("heads of {dim} numbers do not split into pairs for rotary positions");
        }
        if context == 0 || context.saturating_mul(dim / 2) > MOST {
            return invalid!("max_position_embeddings {context}: expected 1 to {}", MOST / (dim / 2).max(1));
        }
        if !(base.is_finite() && base > 0.0 && divisor.is_finite() && divisor > 0.0) {
            return invalid!("rotary positions of base {base} over {divisor}");
        }
        let frequency = |i: usize| 1.0 / base.powf((2 * i) as f32 / dim as f32) / divisor;
        let frequencies: Vec<f32> = (0..dim / 2).map(frequency).collect();
        let turns = (0..context).flat_map(|position| {
            frequencies.iter().map(move |frequency| {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                (cos, sin)
            })
        });
        Ok(Self { turns: turns.collect(), pairs: dim / 2 })
    }

    /// Returns the cosines and the sines, `(context, pairs)` each, and the pairs.
    pub(super) fn tables(&self) -> (Vec<f32>, Vec<f32>, usize) {
        let (cos, sin) = self.turns.iter().copied().unzip();
        (cos, sin, self.pairs)
    }

    /// Turns the queries and keys of one sequence; `qkv` is `(tokens, 3 * width)`.
    pub(super) fn apply(&self, qkv: &mut [f32], width: usize, threads: Threads<'_>) {
        threads.share_rows(qkv, 3 * width, |first, rows| {
            let turns = &self.turns[first * self.pairs..];
            for (row, turns) in rows.chunks_exact_mut(3 * width).zip(turns.chunks_exact(self.pairs)) {
                rotate(&mut row[..2 * width], 2 * self.pairs, turns, true);
            }
        });
    }
}

/// Returns what `MPNet` adds to the scores of tokens by their distance, of `(2 * RANGES, heads)` learned numbers, for sequences of
/// up to `context` tokens (Song et al. 2020, as T5 has it: Raffel et al. 2020).
pub(super) fn distances(learned: &[f32], heads: usize, context: usize) -> Distances {
    let farthest = context - 1;
    let range = |distance: usize| match distance {
        0..EXACT => distance,
        // Two ranges each time that the distance doubles.
        _ => (EXACT + (distance * distance / (EXACT * EXACT)).ilog2() as usize).min(RANGES - 1),
    };
    let one = |head: usize| {
        let behind = (1..=farthest).rev().map(range);
        let ahead = (1..=farthest).map(|distance| RANGES + range(distance));
        behind.chain([0]).chain(ahead).map(move |range| learned[range * heads + head])
    };
    Distances { farthest, values: (0..heads).flat_map(one).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_the_logarithm() {
        let learned: Vec<f32> = (0..2 * RANGES).map(|i| i as f32).collect();
        let found = distances(&learned, 1, 600).values;
        assert_eq!(found.len(), 1199);
        let starts: Vec<usize> = (1..600).filter(|n| found[599 + n] > found[599 + n - 1]).collect();
        // Where transformers' logarithm of the distance passes a whole number.
        assert_eq!(starts, [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]);
        for n in 1..600 {
            assert_eq!(found[599 - n] + 16.0, found[599 + n], "{n} tokens ahead and behind");
        }
        assert_eq!(found[599], 0.0);
    }
}
