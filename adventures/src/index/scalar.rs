//! A code of 1 or 4 bits for each dimension.

use super::codec::Toward;
use crate::kernels::late::{LARGEST, Layout, ZERO, quantize};

/// The numbers that levels are made from.
pub(super) const SAMPLE: usize = 1 << 18;
/// How often codes and scale are fitted to each other.
const ROUNDS: usize = 3;
/// How often each code is then moved to where the error along the vector is less.
const MOVES: usize = 2;

/// What compresses residuals.
pub(super) struct Scalar {
    layout: Layout,
    /// Rising.
    levels: Vec<f32>,
    /// Between the levels.
    bounds: Vec<f32>,
}

impl Scalar {
    /// `levels` have [`ZERO`] added and rise.
    pub(super) fn new(layout: Layout, levels: &[u8]) -> Self {
        let levels: Vec<f32> = levels.iter().map(|level| f32::from(*level) - ZERO as f32).collect();
        let bounds = levels.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
        Self { layout, levels, bounds }
    }

    /// Compresses a vector into `row`, and returns its scale, a bfloat16.
    pub(super) fn encode(&self, toward: &Toward<'_>, row: &mut [u8]) -> u16 {
        let residual = toward.residual;
        let length = residual.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut codes = vec![0; residual.len()];
        // The levels were made for residuals of length 1, times what made the largest of them `LARGEST`.
        let mut scale = length / self.unit(residual.len());
        for _ in 0..ROUNDS {
            let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            quantize(residual, factor, &self.bounds, &mut codes);
            scale = toward.scale(codes.iter().map(|code| self.levels[*code as usize]), 0.0);
        }
        for _ in 0..MOVES {
            scale = toward.scale(codes.iter().map(|code| self.levels[*code as usize]), toward.weight);
            scale = half::bf16::from_f32(scale).to_f32();
            self.shift(toward, scale, &mut codes);
        }
        self.layout.pack(&codes, row);
        half::bf16::from_f32(scale).to_bits()
    }

    /// Moves each code to the one beside it where that is less of an error.
    fn shift(&self, toward: &Toward<'_>, scale: f32, codes: &mut [u8]) {
        let level = |code: u8| self.levels[code as usize] * scale;
        let rows = toward.residual.iter().zip(toward.vector);
        let mut along: f32 = rows.clone().zip(&*codes).map(|((z, x), code)| x * (z - level(*code))).sum();
        for ((z, x), code) in rows.zip(codes) {
            let own = z - level(*code);
            let mut best = (own * own + toward.weight * along * along, *code, along);
            for other in [code.wrapping_sub(1), *code + 1] {
                if usize::from(other) < self.levels.len() {
                    let error = z - level(other);
                    let left = along + x * (error - own);
                    let sum = error * error + toward.weight * left * left;
                    if sum < best.0 {
                        best = (sum, other, left);
                    }
                }
            }
            (*code, along) = (best.1, best.2);
        }
    }

    /// The length of a residual that a scale of 1 suits: the widest level, over what it is of normal numbers of variance 1 (Lloyd,
    /// Max), for each dimension.
    fn unit(&self, dim: usize) -> f32 {
        let widest = self.levels.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let normal = if self.layout.nbits == 1 { 0.798 } else { 2.733 };
        widest / normal * (dim as f32).sqrt()
    }
}

/// Returns the `count` levels of the least squared error for residuals, `(n, dim)`, scaled to length 1; the largest is 63, with
/// [`ZERO`] added.
pub(super) fn levels(residuals: Vec<f32>, dim: usize, count: usize) -> Vec<u8> {
    let mut numbers = residuals;
    for row in numbers.chunks_exact_mut(dim) {
        let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in row {
            *x = if length > 0.0 { *x / length } else { 0.0 };
        }
    }
    let step = (numbers.len() / SAMPLE).max(1);
    numbers = numbers.into_iter().step_by(step).collect();
    numbers.sort_unstable_by(f32::total_cmp);
    if numbers.is_empty() {
        numbers = vec![-1.0, 1.0];
    }
    let mut sums = vec![0.0_f64];
    sums.extend(numbers.iter().scan(0.0, |sum, x| {
        *sum += f64::from(*x);
        Some(*sum)
    }));
    let at = |i: usize| f64::from(numbers[((i as f64 + 0.5) / count as f64 * numbers.len() as f64) as usize]);
    let mut means: Vec<f64> = (0..count).map(at).collect();
    for _ in 0..100 {
        let mut from = 0;
        for i in 0..count {
            let bound = means.get(i + 1).map_or(f64::INFINITY, |next| f64::midpoint(means[i], *next));
            let to = numbers.partition_point(|x| f64::from(*x) < bound).max(from);
            if to > from {
                means[i] = (sums[to] - sums[from]) / (to - from) as f64;
            }
            from = to;
        }
    }
    let widest = means.iter().fold(0.0_f64, |a, b| a.max(b.abs())).max(f64::MIN_POSITIVE);
    let mut out: Vec<u8> = Vec::with_capacity(count);
    for (i, mean) in means.iter().enumerate() {
        let level = (mean / widest * f64::from(LARGEST)).round() as i32 + ZERO;
        // Numbers that are all alike still have levels that rise.
        let least = out.last().map_or(1, |last| i32::from(*last) + 1);
        out.push(level.clamp(least, 127 - (count - 1 - i) as i32) as u8);
    }
    out
}
