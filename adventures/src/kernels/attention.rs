//! Bidirectional attention over one sequence: no mask, no padding.

use super::gemm::{Threads, View, gemm};
use super::math::softmax;

/// The shape of multi-head attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// How many heads.
    pub(crate) count: usize,
    /// The width of one.
    pub(crate) dim: usize,
}

/// `out = softmax(q kᵀ / √dim) v`, head by head.
///
/// `qkv` is `(tokens, 3 * count * dim)`: queries, keys and values side by side. `out` is `(tokens, count * dim)`.
/// `scores` is scratch space.
pub(crate) fn attention(out: &mut [f32], qkv: &[f32], heads: Heads, scores: &mut Vec<f32>, threads: Threads) {
    let width = heads.count * heads.dim;
    // Sharing out a product this small costs more than the product.
    let threads = if out.len() / width < 128 { Threads::One } else { threads };
    let tokens = out.len() / width;
    scores.resize(tokens * tokens, 0.0);
    let scale = 1.0 / (heads.dim as f32).sqrt();
    for head in 0..heads.count {
        let column = head * heads.dim;
        gemm(
            (tokens, tokens, heads.dim),
            (scores, View::row_major(0, tokens)),
            (qkv, View::row_major(column, 3 * width)),
            (qkv, View::transposed(width + column, 3 * width)),
            threads,
        );
        softmax(scores, tokens, scale);
        gemm(
            (tokens, heads.dim, tokens),
            (out, View::row_major(column, width)),
            (scores, View::row_major(0, tokens)),
            (qkv, View::row_major(2 * width + column, 3 * width)),
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_formula_in_f64() {
        for (tokens, count, dim) in [(1, 1, 1), (1, 2, 4), (2, 3, 5), (17, 4, 32), (65, 2, 64)] {
            let width = count * dim;
            let number = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 250.0 - 2.0;
            let qkv: Vec<f32> = (0..tokens * 3 * width).map(number).collect();
            let mut out = vec![f32::NAN; tokens * width];
            attention(&mut out, &qkv, Heads { count, dim }, &mut Vec::new(), Threads::One);
            let at =
                |t: usize, part: usize, h: usize, i: usize| f64::from(qkv[t * 3 * width + part * width + h * dim + i]);
            for h in 0..count {
                for q in 0..tokens {
                    let weights: Vec<f64> = (0..tokens)
                        .map(|t| {
                            ((0..dim).map(|i| at(q, 0, h, i) * at(t, 1, h, i)).sum::<f64>() / (dim as f64).sqrt()).exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..dim {
                        let want: f64 = (0..tokens).map(|t| weights[t] / total * at(t, 2, h, i)).sum();
                        let got = f64::from(out[q * width + h * dim + i]);
                        assert!((want - got).abs() < 1e-5, "tokens {tokens} head {h}: {want} {got}");
                    }
                }
            }
        }
    }
}
