//! Products with weights in single, half and bfloat16 precision; the activations stay in single precision.

use super::format::{Halves, Portable};
use super::rows::{ROWS, Sums};
use crate::kernels::LANES;

/// How a weight is stored.
pub(super) trait Element: Send + Sync + 'static {
    const BYTES: usize;
    fn read(bytes: &[u8]) -> f32;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct BF16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        Portable::to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

impl Element for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }
}

/// Rows of activations, `width` numbers each.
#[derive(Clone, Copy)]
pub(super) struct Dense<'a> {
    pub(super) x: &'a [f32],
    pub(super) width: usize,
}

impl<'a> Dense<'a> {
    /// Unpacks up to four weight rows; what is left of the four keeps old numbers that nobody reads.
    #[inline(always)]
    pub(super) fn unpack<E: Element>(self, weights: &[u8], unpacked: &mut Vec<f32>) {
        unpacked.resize(ROWS * self.width, 0.0);
        for (w, bytes) in unpacked.iter_mut().zip(weights.chunks_exact(E::BYTES)) {
            *w = E::read(bytes);
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

    /// Calls `store(r, sums)` with the products of up to four weight rows and each activation row, the plain way.
    ///
    /// A product is summed in sixteen lanes, then across them, so that it does not depend on how many rows there are.
    pub(super) fn plain<E: Element>(
        self,
        weights: &[u8],
        unpacked: &mut Vec<f32>,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.unpack::<E>(weights, unpacked);
        for r in 0..self.count() {
            let x = self.row(r);
            let sums = std::array::from_fn(|i| {
                let w = self.weights(unpacked, i);
                let mut lanes = [0.0; LANES];
                for (w, x) in w.0.iter().zip(x.0) {
                    for l in 0..LANES {
                        lanes[l] += w[l] * x[l];
                    }
                }
                total(&lanes, w.1, x.1)
            });
            store(r, &sums);
        }
    }
}

/// The sum of the lanes and of the products that are no whole block.
#[inline(always)]
pub(super) fn total(lanes: &[f32; LANES], w: &[f32], x: &[f32]) -> f32 {
    let tail: f32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
    lanes.iter().sum::<f32>() + tail
}
