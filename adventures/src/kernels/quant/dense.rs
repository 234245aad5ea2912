//! Products with weights in single, half and bfloat16 precision.
//!
//! Of a checkpoint the activations stay in single precision. Of a GGUF file they are rounded to the type of the weights and
//! the products are added as ggml does it with AVX-512: one order for a prompt (`tinyBLAS`), another for a token alone
//! (`ggml_vec_dot_f16` and its like).

use super::format::{Halves, Portable};
use super::rows::{ROWS, Sums};
use crate::kernels::{LANES, vectorized};
use half::{bf16, f16};
use rayon::prelude::*;

/// How a weight is stored.
pub(super) trait Element: Send + Sync + 'static {
    const BYTES: usize;
    /// How many sets of sixteen lanes a token alone is added in, and how many blocks of sixteen each takes before the next
    /// does; together they make [`STEP`].
    const SETS: usize;
    const RUN: usize;
    fn read<H: Halves>(bytes: &[u8]) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Element for F32 {
    const BYTES: usize = 4;
    const SETS: usize = 4;
    const RUN: usize = 1;
    #[inline(always)]
    fn read<H: Halves>(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    const SETS: usize = 4;
    const RUN: usize = 1;
    #[inline(always)]
    fn read<H: Halves>(bytes: &[u8]) -> f32 {
        H::to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;
    const SETS: usize = 2;
    const RUN: usize = 2;
    #[inline(always)]
    fn read<H: Halves>(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

/// In which lanes products are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lanes {
    /// In sixteen.
    One,
    /// In the sets of the weights' type.
    Sets,
}

/// The blocks of sixteen numbers that all sets take together.
pub(super) const STEP: usize = 4;
/// The numbers whose products the instructions of bfloat16 add in pairs, the second of each pair first.
pub(super) const PAIRED: usize = 2 * LANES;

/// Rows of activations, `width` numbers each.
#[derive(Clone, Copy)]
pub(super) struct Dense<'a> {
    pub(super) x: &'a [f32],
    pub(super) width: usize,
    /// Whether of each whole [`PAIRED`] numbers the second of each pair come before the first: sums of blocks are then those
    /// of the instructions that add in pairs.
    pub(super) paired: bool,
}

impl<'a> Dense<'a> {
    /// Unpacks up to four weight rows; what is left of the four keeps old numbers that nobody reads.
    #[inline(always)]
    pub(super) fn unpack<E: Element, H: Halves>(self, weights: &[u8], unpacked: &mut Vec<f32>) {
        unpacked.resize(ROWS * self.width, 0.0);
        let rows = weights.chunks_exact(self.width * E::BYTES).zip(unpacked.chunks_exact_mut(self.width));
        for (bytes, row) in rows {
            let mut whole = 0;
            if self.paired {
                let blocks = bytes.as_chunks::<{ 2 * PAIRED }>().0.iter().zip(row.as_chunks_mut::<PAIRED>().0);
                whole = blocks.len() * PAIRED;
                for (bytes, row) in blocks {
                    let (second, first) = row.split_at_mut(LANES);
                    for ((second, first), pair) in second.iter_mut().zip(first).zip(bytes.as_chunks::<4>().0) {
                        let pair = u32::from_le_bytes(*pair);
                        *second = f32::from_bits(pair & 0xffff_0000);
                        *first = f32::from_bits(pair << 16);
                    }
                }
            }
            for (w, bytes) in row[whole..].iter_mut().zip(bytes[whole * E::BYTES..].chunks_exact(E::BYTES)) {
                *w = E::read::<H>(bytes);
            }
        }
    }

    /// Row `i` of the unpacked weights, in blocks of sixteen and the rest.
    pub(super) fn weights(self, unpacked: &[f32], i: usize) -> (&[[f32; LANES]], &[f32]) {
        unpacked[i * self.width..(i + 1) * self.width].as_chunks()
    }

    /// Activation row `r`, likewise.
    pub(super) fn row(self, r: usize) -> (&'a [[f32; LANES]], &'a [f32]) {
        self.x[r * self.width..(r + 1) * self.width].as_chunks()
    }

    pub(super) fn count(self) -> usize {
        self.x.len() / self.width
    }

    /// How many blocks of sixteen are added in sets.
    pub(super) fn stepped(self) -> usize {
        self.width / (STEP * LANES) * STEP
    }

    /// Calls `store(r, sums)` with the products of up to four weight rows and each activation row, the plain way.
    pub(super) fn plain<E: Element>(
        self,
        weights: &[u8],
        unpacked: &mut Vec<f32>,
        lanes: Lanes,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.unpack::<E, Portable>(weights, unpacked);
        for r in 0..self.count() {
            let x = self.row(r);
            let sums = std::array::from_fn(|i| {
                let w = self.weights(unpacked, i);
                let mut sets = [[0.0; LANES]; STEP];
                let (blocks, set): (usize, fn(usize) -> usize) = match lanes {
                    Lanes::One => (w.0.len(), |_| 0),
                    Lanes::Sets => (self.stepped(), |b| b / E::RUN % E::SETS),
                };
                for (b, (w, x)) in w.0.iter().zip(x.0).enumerate().take(blocks) {
                    let sums = &mut sets[set(b)];
                    for l in 0..LANES {
                        sums[l] += w[l] * x[l];
                    }
                }
                match lanes {
                    Lanes::One => total(&sets[0], w.1, x.1),
                    Lanes::Sets => self.alone::<E>(&sets, unpacked, i, r),
                }
            });
            store(r, &sums);
        }
    }

    /// The product of weight row `i` and activation row `r` of which `sets` has the whole steps.
    pub(super) fn alone<E: Element>(self, sets: &[[f32; LANES]; STEP], unpacked: &[f32], i: usize, r: usize) -> f32 {
        let done = self.stepped() * LANES;
        let w = &unpacked[i * self.width + done..(i + 1) * self.width];
        let x = &self.x[r * self.width + done..(r + 1) * self.width];
        let paired = if self.paired { w.len() / PAIRED * PAIRED } else { 0 };
        let products = (0..w.len()).map(|at| {
            let place = if at < paired { at / PAIRED * PAIRED + at % PAIRED / 2 + LANES * (1 - at % 2) } else { at };
            w[place] * x[place]
        });
        combine::<E>(sets, products)
    }
}

/// The sum of the lanes of all sets and of the products that are no whole step.
pub(super) fn combine<E: Element>(sets: &[[f32; LANES]; STEP], rest: impl Iterator<Item = f32>) -> f32 {
    let add = |a: &[f32; LANES], b: &[f32; LANES]| std::array::from_fn(|l| a[l] + b[l]);
    let mut sum = if E::SETS == STEP {
        f64::from(add_lanes(&add(&add(&sets[0], &sets[2]), &add(&sets[1], &sets[3]))))
    } else {
        f64::from(add_lanes(&sets[0])) + f64::from(add_lanes(&sets[1]))
    };
    for product in rest {
        sum += f64::from(product);
    }
    sum as f32
}

/// Adds sixteen lanes as `_mm512_reduce_add_ps` does.
#[inline(always)]
fn add_lanes(x: &[f32; LANES]) -> f32 {
    let x: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    let x: [f32; 4] = std::array::from_fn(|i| x[i] + x[i + 4]);
    (x[0] + x[2]) + (x[1] + x[3])
}

/// The sum of the lanes and of the products that are no whole block.
#[inline(always)]
pub(super) fn total(lanes: &[f32; LANES], w: &[f32], x: &[f32]) -> f32 {
    let tail: f32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
    add_lanes(lanes) + tail
}

/// Activations as ggml rounds them for dense weights.
#[derive(Default)]
pub(super) struct DenseRounded {
    /// To half precision.
    pub(super) halves: Vec<f32>,
    /// To bfloat16, in the order of [`Dense::paired`]; and as they are stored. One of the two is filled.
    pub(super) brief: Vec<f32>,
    pub(super) bits: Vec<u16>,
}

impl DenseRounded {
    pub(super) fn fill_halves(&mut self, x: &[f32], width: usize) {
        self.halves.resize(x.len(), 0.0);
        let rows = x.par_chunks_exact(width).zip(self.halves.par_chunks_exact_mut(width));
        rows.with_min_len(8).for_each(|(x, out)| round_halves(x, out));
    }

    /// Fills what is stored where the CPU has instructions for it, or the numbers.
    pub(super) fn fill_brief(&mut self, x: &[f32], width: usize, stored: bool) {
        if stored {
            self.bits.resize(x.len(), 0);
            let rows = x.par_chunks_exact(width).zip(self.bits.par_chunks_exact_mut(width));
            rows.with_min_len(8).for_each(|(x, out)| round_bits(x, out));
            return;
        }
        self.brief.resize(x.len(), 0.0);
        let rows = x.par_chunks_exact(width).zip(self.brief.par_chunks_exact_mut(width));
        rows.with_min_len(8).for_each(|(x, out)| {
            let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<PAIRED>(), out.as_chunks_mut::<PAIRED>());
            for (x, out) in x.iter().zip(out) {
                for i in 0..LANES {
                    out[i] = bf16::from_f32(x[2 * i + 1]).to_f32();
                    out[LANES + i] = bf16::from_f32(x[2 * i]).to_f32();
                }
            }
            for (x, out) in x_rest.iter().zip(out_rest) {
                *out = bf16::from_f32(*x).to_f32();
            }
        });
    }
}

fn round_halves(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.iter().zip(out) {
        *out = f16::from_f32(*x).to_f32();
    }
}

vectorized! {
    fn round_bits(x: &[f32], out: &mut [u16]) {
        for (x, out) in x.iter().zip(out) {
            let bits = x.to_bits();
            let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
            // What is no number stays so, and infinity is not reached by rounding up its bits.
            *out = if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded };
        }
    }
}
