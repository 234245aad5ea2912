//! What compresses vectors: the nearest centroid, the nearest level.

use crate::kernels::{LANES, vectorized};

vectorized! {
    /// `best[i]` and `at[i]` become the largest number of row `i` and its column, plus `from`, where it is larger than `best[i]`.
    fn nearest(products: &[f32], columns: usize, from: usize, best: &mut [f32], at: &mut [u32]) {
        for ((row, best), at) in products.chunks_exact(columns).zip(best).zip(at) {
            let (blocks, rest) = row.as_chunks::<LANES>();
            let mut most = [f32::NEG_INFINITY; LANES];
            for block in blocks {
                for (most, x) in most.iter_mut().zip(block) {
                    *most = if *x > *most { *x } else { *most };
                }
            }
            let largest = most.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            if largest > *best {
                // The first of equals, whatever the width of a register.
                let place = blocks.iter().position(|block| block.contains(&largest)).unwrap_or(blocks.len());
                let first = row[place * LANES..].iter().position(|x| *x >= largest).unwrap_or(0);
                (*best, *at) = (largest, (from + place * LANES + first) as u32);
            }
        }
    }

    /// `out[i]` becomes how many of `bounds` are at most `x[i] * factor`.
    fn quantize(x: &[f32], factor: f32, bounds: &[f32], out: &mut [u8]) {
        for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
            let mut scaled = [f32::NEG_INFINITY; LANES];
            for (scaled, x) in scaled.iter_mut().zip(x) {
                *scaled = x * factor;
            }
            let mut codes = [0_u32; LANES];
            for bound in bounds {
                for (code, x) in codes.iter_mut().zip(&scaled) {
                    *code += u32::from(x >= bound);
                }
            }
            for (out, code) in out.iter_mut().zip(codes) {
                *out = code as u8;
            }
        }
    }

    /// `best[j]` becomes the largest number of column `j`, where that is larger.
    fn raise(best: &mut [f32], products: &[f32]) {
        for row in products.chunks_exact(best.len()) {
            for (best, x) in best.iter_mut().zip(row) {
                *best = if *x > *best { *x } else { *best };
            }
        }
    }
}

/// Whether any number is above the edge beside it.
#[inline]
pub(crate) fn any_above(numbers: &[f32], edges: &[f32]) -> bool {
    let above = numbers.iter().zip(edges).map(|(x, edge)| u32::from(x > edge));
    above.sum::<u32>() > 0
}
