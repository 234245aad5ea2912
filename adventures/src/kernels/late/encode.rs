//! What compresses vectors: the nearest centroid, the nearest level.

use crate::kernels::{LANES, vectorized};

/// What an entry of a book is to come near to.
pub(crate) struct Target<'a> {
    pub(crate) residual: &'a [f32],
    pub(crate) vector: &'a [f32],
    pub(crate) scale: f32,
    pub(crate) weight: f32,
    pub(crate) rest: f32,
}

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

    /// `out[j]` becomes by how much the squared error falls with entry `j` of a book in the place of zeros.
    ///
    /// `book` is `(dimensions, 256)`, `squares` are the squared lengths of its entries; the error is of `residual` where an entry
    /// counts `scale` times, and `weight` times that along `vector`, of which all other dimensions have `rest`.
    fn gains(book: &[f32], squares: &[f32], target: &Target<'_>, out: &mut [f32]) {
        let (scale, weight, rest) = (target.scale, target.weight, target.rest);
        for (block, out) in out.chunks_exact_mut(LANES).enumerate() {
            let (mut near, mut along) = ([0.0_f32; LANES], [0.0_f32; LANES]);
            for ((row, z), x) in book.chunks_exact(squares.len()).zip(target.residual).zip(target.vector) {
                let row = &row[block * LANES..][..LANES];
                for lane in 0..LANES {
                    near[lane] += z * row[lane];
                    along[lane] += x * row[lane];
                }
            }
            let squares = &squares[block * LANES..][..LANES];
            for lane in 0..LANES {
                let left = rest - scale * along[lane];
                out[lane] = scale * (2.0 * near[lane] - scale * squares[lane]) - weight * left * left;
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
