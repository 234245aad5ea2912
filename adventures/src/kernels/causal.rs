//! What a decoder does between its matrix products: norms, rotary positions, gates, attention over cached keys and values.

use super::math::{exp, gelu_erf, gelu_tanh, map, mul_add, reduce};
use super::{LANES, vectorized};

vectorized! {
    /// `out = x / rms(x) * weight` for each row of as many numbers as `weight` has.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            let inverse = 1.0 / (reduce(x, |x| x * x) / x.len() as f32 + eps).sqrt();
            map(out, |_, i| x[i] * inverse * weight[i]);
        }
    }

    /// `rows = rows / rms(rows) * weight` for each row of as many numbers as `weight` has.
    fn rms_norm_in_place(rows: &mut [f32], weight: &[f32], eps: f32) {
        for row in rows.chunks_exact_mut(weight.len()) {
            let inverse = 1.0 / (reduce(row, |x| x * x) / row.len() as f32 + eps).sqrt();
            map(row, |x, i| x * inverse * weight[i]);
        }
    }

    /// `gate = silu(gate) * up`.
    fn silu_gate(gate: &mut [f32], up: &[f32]) {
        map(gate, |x, i| x / (1.0 + exp::<FMA>(-x)) * up[i]);
    }

    /// `gate = gelu(gate) * up`, the tanh approximation of GELU.
    fn gelu_tanh_gate(gate: &mut [f32], up: &[f32]) {
        map(gate, |x, i| gelu_tanh::<FMA>(x) * up[i]);
    }

    /// `gate = gelu(gate) * up`, the exact GELU.
    fn gelu_erf_gate(gate: &mut [f32], up: &[f32]) {
        map(gate, |x, i| gelu_erf::<FMA>(x) * up[i]);
    }

    /// `x *= factor`.
    fn scale(x: &mut [f32], factor: f32) {
        map(x, |x, _| x * factor);
    }

    /// `x = cap * tanh(x / cap)`.
    fn soft_cap(x: &mut [f32], cap: f32) {
        map(x, |x, _| cap * (1.0 - 2.0 / (exp::<FMA>(2.0 * x / cap) + 1.0)));
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
                head[a] = x * cos - y * sin;
                head[b] = x * sin + y * cos;
            }
        }
    }

    /// Reads one page of keys and values, as in [`Page`], into the running softmax of `rows`.
    fn attend(rows: &mut Rows<'_>, page: Page<'_>) {
        let dim = rows.dim;
        let mut r = 0;
        while r < rows.state.len() {
            let count = (rows.state.len() - r).min(ROWS);
            let mut scores = [[0.0; PAGE]; ROWS];
            let q = &rows.q[r * dim..(r + count) * dim];
            if count == ROWS {
                score::<FMA, ROWS>(q, page.keys, &mut scores);
            } else {
                for (q, scores) in q.chunks_exact(dim).zip(&mut scores) {
                    score::<FMA, 1>(q, page.keys, std::slice::from_mut(scores));
                }
            }
            for (i, scores) in scores[..count].iter_mut().enumerate() {
                let state = &mut rows.state[r + i];
                if let Some(cap) = rows.cap {
                    map(scores, |x, _| cap * (1.0 - 2.0 / (exp::<FMA>(2.0 * x / cap) + 1.0)));
                }
                // Positions outside of the row's window score nothing.
                let from = state.from.saturating_sub(page.start).min(PAGE);
                let to = state.to.saturating_sub(page.start).min(PAGE);
                scores[..from].fill(f32::NEG_INFINITY);
                scores[to..].fill(f32::NEG_INFINITY);
                if from >= to {
                    scores.fill(0.0);
                    continue;
                }
                let max = scores.iter().copied().fold(state.max, f32::max);
                map(scores, |x, _| exp::<FMA>(x - max));
                let shrink = exp::<FMA>(state.max - max);
                state.sum = state.sum * shrink + reduce(scores, |x| x);
                state.max = max;
                if shrink != 1.0 {
                    map(&mut rows.out[(r + i) * dim..(r + i + 1) * dim], |x, _| x * shrink);
                }
            }
            let out = &mut rows.out[r * dim..(r + count) * dim];
            if count == ROWS {
                blend::<FMA, ROWS>(&scores, page.values, out, dim);
            } else {
                for (out, scores) in out.chunks_exact_mut(dim).zip(&scores) {
                    blend::<FMA, 1>(std::slice::from_ref(scores), page.values, out, dim);
                }
            }
            r += count;
        }
    }
}

/// Positions per page of the cache.
pub(crate) const PAGE: usize = 64;

/// Query rows that share each load of a key.
const ROWS: usize = 4;

/// The keys and values of one head at [`PAGE`] positions.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a> {
    /// The first position.
    pub(crate) start: usize,
    /// `(head_dim, PAGE)`: positions are neighbours, so that a vector of scores needs no sum across lanes.
    pub(crate) keys: &'a [f32],
    /// `(PAGE, head_dim)`.
    pub(crate) values: &'a [f32],
}

/// Query rows of one key-value head, in the middle of their softmax.
pub(crate) struct Rows<'a> {
    pub(crate) dim: usize,
    /// Bounds the scores by `cap * tanh(score / cap)`.
    pub(crate) cap: Option<f32>,
    /// `(rows, dim)`, scaled.
    pub(crate) q: &'a [f32],
    /// One per row.
    pub(crate) state: &'a mut [State],
    /// `(rows, dim)`: weighted sums of values, to be divided by the states' sums.
    pub(crate) out: &'a mut [f32],
}

/// A running softmax over the positions `from..to`.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) from: usize,
    pub(crate) to: usize,
    max: f32,
    sum: f32,
}

impl State {
    pub(crate) fn new(from: usize, to: usize) -> Self {
        Self { from, to, max: f32::NEG_INFINITY, sum: 0.0 }
    }

    /// The sum of the weights: what the blended values are divided by.
    pub(crate) fn sum(&self) -> f32 {
        self.sum
    }
}

/// `scores[r] = q[r] · keys`, half a page at a time so that the sums stay in registers.
#[inline(always)]
#[allow(clippy::inline_always, reason = "part of vectorized bodies")]
fn score<const FMA: bool, const R: usize>(q: &[f32], keys: &[f32], scores: &mut [[f32; PAGE]]) {
    const HALF: usize = PAGE / 2;
    let dim = q.len() / R;
    let rows: [&[f32]; R] = std::array::from_fn(|r| &q[r * dim..(r + 1) * dim]);
    for half in 0..2 {
        let mut sums = [[0.0; HALF]; R];
        for (d, keys) in keys.as_chunks::<PAGE>().0[..dim].iter().enumerate() {
            let keys: &[f32; HALF] =
                keys[half * HALF..(half + 1) * HALF].try_into().expect("half a page; this is a bug");
            for r in 0..R {
                for l in 0..HALF {
                    sums[r][l] = mul_add::<FMA>(rows[r][d], keys[l], sums[r][l]);
                }
            }
        }
        for r in 0..R {
            scores[r][half * HALF..(half + 1) * HALF].copy_from_slice(&sums[r]);
        }
    }
}

/// `out[r] += weights[r] · values`.
#[inline(always)]
#[allow(clippy::inline_always, reason = "part of vectorized bodies")]
fn blend<const FMA: bool, const R: usize>(weights: &[[f32; PAGE]], values: &[f32], out: &mut [f32], dim: usize) {
    let whole = dim / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums = [[0.0; LANES]; R];
        for (p, values) in values.chunks_exact(dim).enumerate() {
            let values: &[f32; LANES] = values[start..start + LANES].try_into().expect("one block; this is a bug");
            for r in 0..R {
                for l in 0..LANES {
                    sums[r][l] = mul_add::<FMA>(weights[r][p], values[l], sums[r][l]);
                }
            }
        }
        for r in 0..R {
            for (out, sum) in out[r * dim + start..][..LANES].iter_mut().zip(sums[r]) {
                *out += sum;
            }
        }
    }
    for r in 0..R {
        for d in whole..dim {
            out[r * dim + d] += values.chunks_exact(dim).zip(weights[r]).map(|(v, w)| v[d] * w).sum::<f32>();
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

    #[test]
    fn attention_over_pages_is_the_softmax_over_the_window() {
        for (dim, cap) in [(4, None), (16, None), (20, Some(2.0)), (64, None)] {
            for rows in [1, 3, 4, 9] {
                let length = 3 * PAGE;
                let (k, v) = (noise(length * dim, 1), noise(length * dim, 2));
                let q = noise(rows * dim, 77);
                let mut state: Vec<State> = (0..rows).map(|r| State::new(11 * r, 70 + 13 * r)).collect();
                let mut out = vec![0.0; rows * dim];
                let mut block = Rows { dim, cap, q: &q, state: &mut state, out: &mut out };
                for page in 0..3 {
                    let values = &v[page * PAGE * dim..(page + 1) * PAGE * dim];
                    let mut keys = vec![0.0; PAGE * dim];
                    for p in 0..PAGE {
                        for d in 0..dim {
                            keys[d * PAGE + p] = k[(page * PAGE + p) * dim + d];
                        }
                    }
                    attend(&mut block, Page { start: page * PAGE, keys: &keys, values });
                }
                for r in 0..rows {
                    let window = state[r].from..state[r].to;
                    let weights: Vec<f64> = window
                        .clone()
                        .map(|p| {
                            let s: f64 = (0..dim).map(|d| f64::from(q[r * dim + d]) * f64::from(k[p * dim + d])).sum();
                            cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh()).exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..dim {
                        let want: f64 =
                            window.clone().zip(&weights).map(|(p, w)| w / total * f64::from(v[p * dim + d])).sum();
                        let got = f64::from(out[r * dim + d] / state[r].sum());
                        assert!((want - got).abs() < 1e-5, "dim {dim} row {r}: {got} {want}");
                    }
                }
            }
        }
    }
}
