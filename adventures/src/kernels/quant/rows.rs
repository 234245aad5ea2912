//! Four packed weight rows, unpacked side by side, and their products with rounded activations.
//!
//! A product is the same to the last bit whichever way it is computed: with one activation row or many, plain or with
//! vector instructions. The order of additions is llama.cpp's (AVX2 and up): blocks of 32 are summed in eight lanes of four
//! weights each, which are added at the end, or, where it packs the matrix anew, as one integer; superblocks of 256 are summed
//! as integers first.

use super::format::{Block, Halves, Order, Portable, SuperBlock};
use super::rounded::Rounded;
use std::ops::Range;

/// How many weight rows are unpacked together.
pub(super) const ROWS: usize = 4;

/// Sums of a row's products.
pub(super) type Sums = [f32; ROWS];

/// Four weight rows as bytes, and their scales.
#[derive(Default)]
pub(crate) struct Unpacked {
    width: usize,
    /// `(ROWS, width)`.
    pub(super) u: Vec<u8>,
    /// Of each block, for the four rows.
    pub(super) scale: Vec<Sums>,
    pub(super) min: Vec<Sums>,
    /// Of each superblock and row: a scale for each 16 weights, sixteen times, as the vector instructions want it.
    pub(super) spread: Vec<[[i16; 16]; 8]>,
    /// Of each superblock and row: the minimum of each 16 weights; the scale, where the format has no minima.
    pub(super) groups: Vec<[i16; 16]>,
}

impl Unpacked {
    fn resize(&mut self, width: usize, block: usize) {
        self.width = width;
        self.u.resize(ROWS * width, 0);
        self.scale.resize(width / block, [0.0; ROWS]);
        self.min.resize(width / block, [0.0; ROWS]);
    }

    /// The bytes of row `i`.
    pub(super) fn row(&self, i: usize) -> &[u8] {
        &self.u[i * self.width..(i + 1) * self.width]
    }

    /// Unpacks up to four rows of blocks of 32; what is left of the four keeps old numbers that nobody reads.
    #[inline(always)]
    pub(super) fn fill_blocks<F: Block, H: Halves>(&mut self, weights: &[u8], row_bytes: usize) {
        self.resize(row_bytes / F::BYTES * 32, 32);
        let rows = weights.chunks_exact(row_bytes).zip(self.u.chunks_exact_mut(self.width));
        for (i, (weights, u)) in rows.enumerate() {
            let blocks = weights.chunks_exact(F::BYTES).zip(u.as_chunks_mut::<32>().0);
            for ((block, u), (scale, min)) in blocks.zip(self.scale.iter_mut().zip(&mut self.min)) {
                (scale[i], min[i]) = F::unpack::<H>(block, u);
            }
        }
    }

    /// Unpacks up to four rows of superblocks.
    #[inline(always)]
    pub(super) fn fill_super<F: SuperBlock, H: Halves>(&mut self, weights: &[u8], row_bytes: usize) {
        let count = row_bytes / F::BYTES;
        self.resize(count * 256, 256);
        self.spread.resize(ROWS * count, [[0; 16]; 8]);
        self.groups.resize(ROWS * count, [0; 16]);
        let rows = weights.chunks_exact(row_bytes).zip(self.u.chunks_exact_mut(self.width));
        for (i, (weights, u)) in rows.enumerate() {
            let blocks = weights.chunks_exact(F::BYTES).zip(u.as_chunks_mut::<256>().0);
            for (b, (block, u)) in blocks.enumerate() {
                let (mut scales, mut mins) = ([0; 16], [0; 16]);
                (self.scale[b][i], self.min[b][i]) = F::unpack::<H>(block, u, &mut scales, &mut mins);
                for (j, spread) in self.spread[i * count + b].iter_mut().enumerate() {
                    spread[..8].fill(scales[2 * j]);
                    spread[8..].fill(scales[2 * j + 1]);
                }
                self.groups[i * count + b] = if F::MIN { mins } else { scales };
            }
        }
    }

    /// The products of the four rows with activation row `r`, the plain way.
    fn blocks<F: Block>(&self, x: &Rounded, r: usize) -> Sums {
        std::array::from_fn(|i| {
            let (mut lanes, mut whole, mut minima) = ([0.0_f32; 8], 0.0_f32, 0.0_f32);
            for (b, u) in self.row(i).as_chunks::<32>().0.iter().enumerate() {
                let at = r * x.width + 32 * b;
                let scale = self.scale[b][i] * x.scale[at / 32];
                let dots: [i32; 8] = std::array::from_fn(|lane| {
                    let pairs = u[4 * lane..4 * lane + 4].iter().zip(&x.bytes[at + 4 * lane..at + 4 * lane + 4]);
                    pairs.map(|(u, x)| (i32::from(*u) - i32::from(F::OFFSET)) * i32::from(*x)).sum()
                });
                if F::ORDER == Order::Whole {
                    whole = scale.mul_add(dots.iter().sum::<i32>() as f32, whole);
                } else {
                    for (sum, dot) in lanes.iter_mut().zip(dots) {
                        *sum = scale.mul_add(dot as f32, *sum);
                    }
                }
                if F::MIN {
                    minima = self.min[b][i].mul_add(x.weighted[at / 32], minima);
                }
            }
            if F::ORDER == Order::Whole { whole + minima } else { add_lanes(lanes) + minima }
        })
    }

    /// The same for superblocks.
    fn superblocks<F: SuperBlock>(&self, x: &Rounded, r: usize) -> Sums {
        let count = self.width / 256;
        std::array::from_fn(|i| {
            let (mut lanes, mut sum, mut minima) = ([0.0_f32; 8], 0.0_f32, 0.0_f32);
            for (b, u) in self.row(i).as_chunks::<256>().0.iter().enumerate() {
                let at = r * x.width + 256 * b;
                let d = x.scale[at / 32];
                let (scale, min) = (self.scale[b][i], self.min[b][i]);
                let (groups, totals) = (&self.groups[i * count + b], &x.sums[at / 16..at / 16 + 16]);
                let share = |group: usize| i32::from(groups[group]) * i32::from(totals[group]);
                // Most offsets are taken away product by product; `Q6_K`'s 32 is once for each group, in a lane of its own.
                let (inner, outer) = if F::OFFSET == 32 { (0, 32) } else { (i32::from(F::OFFSET), 0) };
                // Of each 16 weights: lane by lane, and what the minima take.
                let dots: [[i32; 4]; 16] = std::array::from_fn(|group| {
                    std::array::from_fn(|lane| {
                        let first = 16 * group + 4 * lane;
                        let pairs = u[first..first + 4].iter().zip(&x.bytes[at + first..at + first + 4]);
                        let dot: i32 = pairs.map(|(u, x)| (i32::from(*u) - inner) * i32::from(*x)).sum();
                        i32::from(self.spread[i * count + b][group / 2][group % 2 * 8]) * dot
                    })
                });
                let taken = |group| if F::MIN { 0 } else { outer * share(group) };
                let total = |groups: Range<usize>| {
                    groups.map(|group| dots[group].iter().sum::<i32>() - taken(group)).sum::<i32>() as f32
                };
                let low = |groups: Range<usize>| {
                    if F::MIN { groups.map(share).sum::<i32>() as f32 } else { 0.0 }
                };
                match F::ORDER {
                    Order::Lanes => {
                        for (k, lane) in lanes.iter_mut().enumerate() {
                            let mut dot: i32 = dots.iter().skip(k / 4).step_by(2).map(|dots| dots[k % 4]).sum();
                            dot -= taken(2 * k) + taken(2 * k + 1);
                            *lane = (scale * d).mul_add(dot as f32, *lane);
                        }
                        minima = low(0..16).mul_add(min * d, minima);
                    }
                    Order::Whole | Order::Halves | Order::Quarters => {
                        let groups = 16 / F::ORDER.parts();
                        for first in (0..16).step_by(groups) {
                            sum = total(first..first + groups).mul_add(scale * d, sum);
                            minima = low(first..first + groups).mul_add(min * d, minima);
                        }
                    }
                    Order::Slab => sum = low(0..16).mul_add(-min, scale * total(0..16)).mul_add(d, sum),
                }
            }
            (if F::ORDER == Order::Lanes { add_lanes(lanes) } else { sum }) - minima
        })
    }

    /// Calls `store(r, sums)` with the products of each activation row, for blocks of 32.
    pub(super) fn plain_blocks<F: Block>(
        &mut self,
        weights: &[u8],
        row_bytes: usize,
        x: &Rounded,
        rows: Range<usize>,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.fill_blocks::<F, Portable>(weights, row_bytes);
        for r in rows {
            store(r, &self.blocks::<F>(x, r));
        }
    }

    /// Calls `store(r, sums)` with the products of each activation row, for superblocks.
    pub(super) fn plain_super<F: SuperBlock>(
        &mut self,
        weights: &[u8],
        row_bytes: usize,
        x: &Rounded,
        rows: Range<usize>,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.fill_super::<F, Portable>(weights, row_bytes);
        for r in rows {
            store(r, &self.superblocks::<F>(x, r));
        }
    }
}

/// Adds eight lanes as `hsum_float_8` of ggml does.
fn add_lanes(x: [f32; 8]) -> f32 {
    let x: [f32; 4] = std::array::from_fn(|i| x[i] + x[i + 4]);
    (x[0] + x[2]) + (x[1] + x[3])
}
