//! Activations rounded to bytes, exactly as ggml's x86 code rounds them.

use super::Level;
use super::format::Rounding;
#[cfg(target_arch = "x86_64")]
use super::x86;
use crate::kernels::vectorized;
use half::f16;
use rayon::prelude::*;

/// Numbers per group: the granularity at which sums are kept.
pub(super) const GROUP: usize = 16;
pub(super) const BLOCK: usize = 32;
pub(super) const SUPER: usize = 256;

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
    pub(super) fn fill(&mut self, level: Level, x: &[f32], width: usize, rounding: Rounding) {
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
        // A row takes a moment; fewer than eight are not worth another thread.
        rows.with_min_len(8).for_each(|((((x, bytes), scale), sums), weighted)| {
            round_row(level, rounding, x, bytes, scale, sums, weighted);
        });
        if !self.lowered.is_empty() {
            let rows = self.lowered.par_chunks_exact_mut(width / 4).zip(self.bytes.par_chunks_exact(width));
            rows.with_min_len(8).for_each(|(lowered, bytes)| lower_row(level, bytes, lowered));
        }
    }
}

fn round_row(
    level: Level,
    rounding: Rounding,
    x: &[f32],
    bytes: &mut [i8],
    scale: &mut [f32],
    sums: &mut [i16],
    weighted: &mut [f32],
) {
    let with_sums = rounding == Rounding::Q8_1;
    #[cfg(target_arch = "x86_64")]
    if level.vnni() {
        // SAFETY: the instructions were detected.
        #[allow(unsafe_code)]
        return unsafe {
            match rounding {
                Rounding::Q8_0 | Rounding::Q8_1 => x86::round_by_32(x, bytes, scale, sums, weighted, with_sums),
                Rounding::Q8K => x86::round_by_256(x, bytes, scale, sums),
            }
        };
    }
    match rounding {
        Rounding::Q8_0 | Rounding::Q8_1 => round_by_32(x, bytes, scale, sums, weighted, with_sums),
        Rounding::Q8K => round_by_256(x, bytes, scale, sums),
    }
}

fn lower_row(level: Level, bytes: &[i8], lowered: &mut [i32]) {
    #[cfg(target_arch = "x86_64")]
    if level.vnni() {
        // SAFETY: the instructions were detected.
        #[allow(unsafe_code)]
        return unsafe { x86::lower(bytes, lowered) };
    }
    lower(bytes, lowered);
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
            let (d, inverse) = scale_of_256(x, max, min);
            round(x, bytes, inverse);
            sum_groups(bytes, &mut sums[16 * b..16 * b + 16]);
            scale[8 * b..8 * b + 8].fill(d);
        }
    }
}

/// The scale of a block whose largest and smallest numbers, or 0, are `max` and `min`, and what its numbers are multiplied by.
#[inline(always)]
pub(super) fn scale_of_256(x: &[f32; SUPER], max: f32, min: f32) -> (f32, f32) {
    // The number of largest magnitude becomes -127; of two that tie, ggml takes the first.
    let extreme = if max > -min {
        max
    } else if max < -min {
        min
    } else {
        *x.iter().find(|x| x.abs() >= max).unwrap_or(&0.0)
    };
    let inverse = if extreme == 0.0 { 0.0 } else { -127.0 / extreme };
    (if extreme == 0.0 { 0.0 } else { 1.0 / inverse }, inverse)
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
        out.fill(Level::Plain, x, x.len(), rounding);
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

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn rows_are_rounded_to_the_same_bits_with_avx_512() {
        if !Level::detect().vnni() {
            eprintln!("skipped: this CPU has no byte dot products of AVX-512");
            return;
        }
        let mut seed = 1_u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed
        };
        for (rounding, width) in [Rounding::Q8_0, Rounding::Q8_1, Rounding::Q8K]
            .into_iter()
            .flat_map(|rounding| [32, 64, 96, 256, 512, 544, 1536].map(|width| (rounding, width)))
            .filter(|(rounding, width)| *rounding != Rounding::Q8K || width % SUPER == 0)
        {
            for kind in 0..6 {
                let mut x: Vec<f32> = (0..3 * width)
                    .map(|i| match kind {
                        0 => (next() >> 8) as f32 / 8_388_608.0 - 1.0,
                        // Any bits, infinite ones and what is no number among them.
                        1 => f32::from_bits(next()),
                        2 => 0.0,
                        // Scales that half precision has no steps for.
                        3 => f32::from_bits(next() % 0x3800_0000),
                        4 => ((next() >> 28) as f32 - 7.5) * (i as f32).exp2(),
                        _ => {
                            if next() & 1 == 0 {
                                2.0
                            } else {
                                -2.0
                            }
                        }
                    })
                    .collect();
                x[..width / 2].fill(-0.0);
                let (mut plain, mut vectors) = (Rounded::default(), Rounded::default());
                plain.fill(Level::Plain, &x, width, rounding);
                vectors.fill(Level::Vnni, &x, width, rounding);
                let bits = |x: &[f32]| x.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
                assert_eq!(plain.bytes, vectors.bytes, "{rounding:?} {width} {kind}");
                assert_eq!((&plain.sums, &plain.lowered), (&vectors.sums, &vectors.lowered), "{rounding:?} {width}");
                assert_eq!(bits(&plain.scale), bits(&vectors.scale), "{rounding:?} {width} {kind}");
                assert_eq!(bits(&plain.weighted), bits(&vectors.weighted), "{rounding:?} {width} {kind}");
            }
        }
    }
}
