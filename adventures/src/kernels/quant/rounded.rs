//! Activations rounded to bytes, exactly as ggml's x86 code rounds them.

use super::format::Rounding;
use crate::kernels::vectorized;
use half::f16;
use rayon::prelude::*;

/// Numbers per group: the granularity at which sums are kept.
const GROUP: usize = 16;
const BLOCK: usize = 32;
const SUPER: usize = 256;

/// How many activation rows are worth laying rows of superblocks side by side for.
pub(crate) const SUPER_PANEL_FROM: usize = 8;

/// Rows of bytes with what the kernels need beside them. Rows are laid end to end in each field.
#[derive(Default)]
pub(crate) struct Rounded {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// `rows x width`.
    pub(crate) bytes: Vec<i8>,
    /// The scale of each 32.
    pub(crate) scale: Vec<f32>,
    /// The sum of the bytes of each 16.
    pub(crate) sums: Vec<i16>,
    /// -128 times the sum of the bytes of each four: what unsigned weights add too much. For the rounding `Q8_0` alone.
    pub(crate) lowered: Vec<i32>,
    /// Scale times sum of the bytes of each 32, in half precision; for the rounding `Q8_1` alone.
    pub(crate) weighted: Vec<f32>,
}

impl Rounded {
    /// Rounds `x`, rows of `width` numbers.
    pub(crate) fn fill(&mut self, x: &[f32], width: usize, rounding: Rounding) {
        self.rows = x.len() / width;
        self.width = width;
        // Resizing keeps what is there: every number is written below.
        self.bytes.resize(x.len(), 0);
        self.scale.resize(x.len() / BLOCK, 0.0);
        self.sums.resize(x.len() / GROUP, 0);
        self.weighted.resize(x.len() / BLOCK, 0.0);
        if rounding == Rounding::Q8_0 {
            self.lowered.resize(x.len() / 4, 0);
        } else {
            self.lowered.clear();
        }
        let blocks = width / BLOCK;
        let rows = x
            .par_chunks_exact(width)
            .zip(self.bytes.par_chunks_exact_mut(width))
            .zip(self.scale.par_chunks_exact_mut(blocks))
            .zip(self.sums.par_chunks_exact_mut(2 * blocks))
            .zip(self.weighted.par_chunks_exact_mut(blocks));
        // A row takes a microsecond; fewer than eight are not worth another thread.
        rows.with_min_len(8).for_each(|((((x, bytes), scale), sums), weighted)| match rounding {
            Rounding::Q8_0 | Rounding::Q8_1 => {
                round_by_32(x, bytes, scale, sums, weighted, rounding == Rounding::Q8_1);
            }
            Rounding::Q8K => round_by_256(x, bytes, scale, sums),
        });
        if !self.lowered.is_empty() {
            let rows = self.lowered.par_chunks_exact_mut(width / 4).zip(self.bytes.par_chunks_exact(width));
            rows.with_min_len(8).for_each(|(lowered, bytes)| lower(bytes, lowered));
        }
    }
}

vectorized! {
    fn round_by_32(
        x: &[f32], bytes: &mut [i8], scale: &mut [f32], sums: &mut [i16], weighted: &mut [f32], with_sums: bool,
    ) {
        let (x, bytes) = (x.as_chunks::<BLOCK>().0, bytes.as_chunks_mut::<BLOCK>().0);
        for (b, (x, bytes)) in x.iter().zip(bytes).enumerate() {
            let mut max = 0.0_f32;
            for x in x {
                max = if x.abs() > max { x.abs() } else { max };
            }
            let d = max / 127.0;
            round(x, bytes, if max == 0.0 { 0.0 } else { 127.0 / max });
            sum_groups(bytes, &mut sums[2 * b..2 * b + 2]);
            let sum = f32::from(sums[2 * b] + sums[2 * b + 1]);
            scale[b] = f16::from_f32(d).to_f32();
            // ggml multiplies by the scale that is not yet rounded.
            weighted[b] = if with_sums { f16::from_f32(d * sum).to_f32() } else { 0.0 };
        }
    }

    fn lower(bytes: &[i8], lowered: &mut [i32]) {
        for (four, out) in bytes.as_chunks::<4>().0.iter().zip(lowered) {
            *out = -128 * four.iter().map(|x| i32::from(*x)).sum::<i32>();
        }
    }

    fn round_by_256(x: &[f32], bytes: &mut [i8], scale: &mut [f32], sums: &mut [i16]) {
        let (x, bytes) = (x.as_chunks::<SUPER>().0, bytes.as_chunks_mut::<SUPER>().0);
        for (b, (x, bytes)) in x.iter().zip(bytes).enumerate() {
            let (mut max, mut min) = (0.0_f32, 0.0_f32);
            for x in x {
                max = if *x > max { *x } else { max };
                min = if *x < min { *x } else { min };
            }
            // The number of largest magnitude becomes -127; of two that tie, ggml takes the first.
            let extreme = if max > -min {
                max
            } else if max < -min {
                min
            } else {
                *x.iter().find(|x| x.abs() >= max).unwrap_or(&0.0)
            };
            let inverse = if extreme == 0.0 { 0.0 } else { -127.0 / extreme };
            round(x, bytes, inverse);
            sum_groups(bytes, &mut sums[16 * b..16 * b + 16]);
            let d = if extreme == 0.0 { 0.0 } else { 1.0 / inverse };
            scale[8 * b..8 * b + 8].fill(d);
        }
    }
}

/// Rounds to the nearest, ties to even. A product of `127 / max` is within half a unit of 127, so no clamp is needed.
#[inline(always)]
fn round<const N: usize>(x: &[f32; N], bytes: &mut [i8; N], inverse: f32) {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    for (x, byte) in x.iter().zip(bytes) {
        *byte = (x * inverse + MAGIC).to_bits() as i8;
    }
}

#[inline(always)]
fn sum_groups(bytes: &[i8], sums: &mut [i16]) {
    for (group, sum) in bytes.as_chunks::<GROUP>().0.iter().zip(sums) {
        *sum = group.iter().map(|x| i16::from(*x)).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(x: &[f32], rounding: Rounding) -> Rounded {
        let mut out = Rounded::default();
        out.fill(x, x.len(), rounding);
        out
    }

    #[test]
    fn blocks_of_32_follow_ggml() {
        // Worked by hand: the largest magnitude is 2, so d = 2/127 and 0.0236220 * 63.5 = 1.5 rounds to 2, the even one.
        let mut x = [0.0; 64];
        (x[0], x[1], x[2], x[31]) = (-2.0, 1.0, 1.5 * 2.0 / 127.0, 0.5 * 2.0 / 127.0);
        let got = rounded(&x, Rounding::Q8_1);
        assert_eq!(got.bytes[..3], [-127, 64, 2]);
        assert_eq!(got.bytes[31], 0);
        assert_eq!(got.scale[0], f16::from_f32(2.0 / 127.0).to_f32());
        assert_eq!(got.sums[..2], [-61, 0]);
        assert_eq!(got.weighted[0], f16::from_f32(2.0 / 127.0 * -61.0).to_f32());
        assert_eq!((got.scale[1], got.weighted[1], got.bytes[40]), (0.0, 0.0, 0), "a block of zeros");
    }

    #[test]
    fn blocks_of_256_follow_ggml() {
        let mut x = [0.0; 512];
        (x[3], x[250]) = (4.0, -4.0);
        let got = rounded(&x, Rounding::Q8K);
        assert_eq!((got.bytes[3], got.bytes[250]), (-127, 127), "of a tie, the first is -127");
        assert_eq!(got.scale[7], -4.0 / 127.0);
        assert_eq!((got.sums[0], got.sums[15]), (-127, 127));
        assert_eq!(got.scale[8..], [0.0; 8]);
    }
}
