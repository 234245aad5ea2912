//! What a decoder does between its matrix products: norms, rotary positions, gates, softmax.
//!
//! The order of operations is llama.cpp's, so that a model computes what it computes there.

use super::math::{exp, gelu_erf, gelu_tanh, map, map_with, maximum, mul_add, sum};
use super::{LANES, vectorized};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;
use std::sync::LazyLock;

vectorized! {
    /// `out = x / rms(x) * weight` for each row of as many numbers as `weight` has.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            let inverse = inverse_rms(x, eps);
            out.copy_from_slice(x);
            map_with(out, weight, |x, weight| x * inverse * weight);
        }
    }

    /// `rows = rows / rms(rows) * weight` for each row of as many numbers as `weight` has.
    fn rms_norm_in_place(rows: &mut [f32], weight: &[f32], eps: f32) {
        for row in rows.chunks_exact_mut(weight.len()) {
            let inverse = inverse_rms(row, eps);
            map_with(row, weight, |x, weight| x * inverse * weight);
        }
    }

    /// `gate = silu(gate) * up`.
    fn silu_gate(gate: &mut [f32], up: &[f32]) {
        map_with(gate, up, |x, up| x / (1.0 + exp::<FMA>(-x)) * up);
    }

    /// `gate = gelu(gate) * up`, the tanh approximation of GELU.
    fn gelu_tanh_gate(gate: &mut [f32], up: &[f32]) {
        map_with(gate, up, |x, up| gelu_tanh::<FMA>(x) * up);
    }

    /// `gate = gelu(gate) * up`, the exact GELU.
    fn gelu_erf_gate(gate: &mut [f32], up: &[f32]) {
        map_with(gate, up, |x, up| gelu_erf::<FMA>(x) * up);
    }

    /// `x *= factor`.
    fn scale(x: &mut [f32], factor: f32) {
        map(x, |x| x * factor);
    }

    /// `x = cap * tanh(x / cap)`.
    fn soft_cap(x: &mut [f32], cap: f32) {
        map(x, |x| cap * (1.0 - 2.0 / (exp::<FMA>(2.0 * x / cap) + 1.0)));
    }

    /// Turns pairs of each head's numbers by the angles of one position.
    ///
    /// `turns` is `(cos, sin)` for each pair. A pair is two neighbours, or, where `halves` is set, two numbers half of the
    /// turned part apart; numbers beyond the pairs stay as they are.
    fn rotate(heads: &mut [f32], head_dim: usize, turns: &[(f32, f32)], halves: bool) {
        let (step, distance) = if halves { (1, turns.len()) } else { (2, 1) };
        for head in heads.chunks_exact_mut(head_dim) {
            for (i, (cos, sin)) in turns.iter().enumerate() {
                let (a, b) = (step * i, step * i + distance);
                let (x, y) = (head[a], head[b]);
                head[a] = mul_add::<FMA>(x, *cos, -(y * sin));
                head[b] = mul_add::<FMA>(x, *sin, y * cos);
            }
        }
    }

    /// Turns the scores in `window` into their softmax and all others into 0.
    ///
    /// Scores are bounded by `cap * tanh(score / cap)` where there is a cap, then multiplied by `scale`.
    fn softmax(scores: &mut [f32], window: Range<usize>, scale: f32, cap: Option<f32>) {
        if let Some(cap) = cap {
            let inverse = 1.0 / cap;
            for score in &mut scores[window.clone()] {
                *score = (*score * inverse).tanh() * cap;
            }
        }
        scores[..window.start].fill(f32::NEG_INFINITY);
        scores[window.end..].fill(f32::NEG_INFINITY);
        map(scores, |x| x * scale);
        let max = maximum(scores);
        map(scores, |x| exp::<FMA>(x - max));
        let (blocks, tail) = scores.as_chunks::<LANES>();
        let mut total: f64 = tail.iter().map(|x| f64::from(*x)).sum();
        for block in blocks {
            total += f64::from(sum(*block));
        }
        let inverse = (1.0 / total) as f32;
        map(scores, |x| x * inverse);
    }
}

/// The sum of squares is kept in double precision.
#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let (blocks, tail) = x.as_chunks::<LANES>();
    let mut lanes = [0.0_f64; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += f64::from(x * x);
        }
    }
    let total = lanes.iter().sum::<f64>() + tail.iter().map(|x| f64::from(x * x)).sum::<f64>();
    1.0 / ((total / x.len() as f64) as f32 + eps).sqrt()
}

/// The tanh approximation of GELU for each number of half precision, as llama.cpp tabulates it.
static GELU: LazyLock<Vec<f16>> = LazyLock::new(|| {
    let gelu = |x: f32| {
        let inner = 0.797_884_6 * x * (0.044_715 * x).mul_add(x, 1.0);
        0.5 * x * (1.0 + inner.tanh())
    };
    (0..=u16::MAX).map(|bits| f16::from_f32(gelu(f16::from_bits(bits).to_f32()))).collect()
});

/// `gate = gelu(gate) * up`, with GELU and its argument rounded to half precision.
pub(crate) fn gelu_half_gate(gate: &mut [f32], up: &[f32]) {
    let table = GELU.as_slice();
    let mut halves = [f16::ZERO; LANES];
    for (gate, up) in gate.chunks_mut(LANES).zip(up.chunks(LANES)) {
        let halves = &mut halves[..gate.len()];
        halves.convert_from_f32_slice(gate);
        for ((gate, up), half) in gate.iter_mut().zip(up).zip(halves) {
            let gelu = if *gate <= -10.0 {
                0.0
            } else if *gate >= 10.0 {
                *gate
            } else {
                table[usize::from(half.to_bits())].to_f32()
            };
            *gate = gelu * up;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 % 2003) as f32 / 1001.0) - 1.0).collect()
    }

    #[test]
    fn rms_norm_matches_f64() {
        for width in [1, 8, 33, 576] {
            let x = noise(2 * width, 3);
            let weight = noise(width, 9);
            let mut out = vec![0.0; 2 * width];
            rms_norm(&x, &weight, 1e-5, &mut out);
            for (x, out) in x.chunks(width).zip(out.chunks(width)) {
                let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for i in 0..width {
                    let want = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                    assert!((want - f64::from(out[i])).abs() < 1e-5);
                }
            }
            let mut in_place = x.clone();
            rms_norm_in_place(&mut in_place, &weight, 1e-5);
            assert_eq!(in_place, out);
        }
    }

    #[test]
    fn gates_follow_their_formulas() {
        let up = noise(37, 4);
        let x: Vec<f32> = noise(37, 5).iter().map(|x| x * 20.0).collect();
        let check = |gate: fn(&mut [f32], &[f32]), f: &dyn Fn(f64) -> f64| {
            let mut got = x.clone();
            gate(&mut got, &up);
            for i in 0..x.len() {
                let want = f(f64::from(x[i])) * f64::from(up[i]);
                assert!((want - f64::from(got[i])).abs() < 2e-5, "{}: {want} {}", x[i], got[i]);
            }
        };
        check(silu_gate, &|x| x / (1.0 + (-x).exp()));
        check(gelu_tanh_gate, &|x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        });
    }

    #[test]
    fn rotation_turns_neighbours_or_halves() {
        let turns = [(0.0, 1.0), (1.0, 0.0)]; // a quarter turn, and none
        let mut head = [1.0, 2.0, 3.0, 4.0, 9.0];
        rotate(&mut head, 5, &turns, false);
        assert_eq!(head, [-2.0, 1.0, 3.0, 4.0, 9.0]);
        let mut head = [1.0, 2.0, 3.0, 4.0, 9.0];
        rotate(&mut head, 5, &turns, true);
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0, 9.0]);
    }
}
