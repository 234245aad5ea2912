//! Spherical k-means: centroids are unit vectors, and the nearest has the largest product.

use crate::error::{Error, Result};
use crate::kernels::late::nearest;
use crate::kernels::panels::{Kernel, Linear, Rounded, Then, Threads};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Vectors whose products are computed together.
const ROWS: usize = 96;
/// Centroids whose products with them stay in the second cache.
const COLUMNS: usize = 1024;
/// Vectors of a sample for each centroid.
pub(super) const PER_CENTROID: usize = 24;
const ROUNDS: usize = 5;

/// Returns how many centroids an index of `tokens` has, of which `sampled` are at hand: PLAID's 16 √n, a power of two below; half
/// as many with 2 bits or fewer, where what a centroid takes is better spent on codes.
pub(super) fn count(tokens: u64, sampled: usize, nbits: usize) -> usize {
    let wanted = (if nbits > 2 { 16.0 } else { 8.0 } * (tokens as f64).sqrt()).max(1.0).log2().floor();
    (1 << wanted as u32).min(sampled.max(1).next_power_of_two() / 8).max(1)
}

/// Centroids, packed to be searched.
pub(super) struct Nearest {
    dim: usize,
    parts: Vec<Linear>,
}

impl Nearest {
    pub(super) fn new(centroids: &[f32], dim: usize) -> Result<Self> {
        let pack = |part: &[f32]| Linear::pack(part, &[], dim, Kernel::finer());
        Ok(Self { dim, parts: centroids.chunks(COLUMNS * dim).map(pack).collect::<Result<_>>()? })
    }

    /// Returns the nearest centroid of each of `(n, dim)` vectors.
    pub(super) fn of(&self, vectors: &[f32], cancel: &AtomicBool) -> Result<Vec<u32>> {
        let mut found = vec![0; vectors.len() / self.dim];
        let chunks = vectors.par_chunks(ROWS * self.dim).zip(found.par_chunks_mut(ROWS));
        chunks.try_for_each_init(
            || (Vec::new(), Rounded::new()),
            |(products, rounded), (rows, found)| {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                let mut best = [f32::NEG_INFINITY; ROWS];
                for (i, part) in self.parts.iter().enumerate() {
                    products.resize(found.len() * part.outputs(), 0.0);
                    part.apply(rows, products, Then::Store, Threads::One, rounded);
                    nearest(products, part.outputs(), i * COLUMNS, &mut best, found);
                }
                Ok(())
            },
        )?;
        Ok(found)
    }
}

/// Returns `count` centroids of `(n, dim)` vectors. The same vectors and `rng` have the same ones on the same instructions.
pub(super) fn train(
    sample: &[f32],
    dim: usize,
    count: usize,
    rng: &mut ChaCha8Rng,
    cancel: &AtomicBool,
) -> Result<Vec<f32>> {
    let n = sample.len() / dim;
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in 0..count.min(n) {
        let other = i + (rng.next_u64() % (n - i) as u64) as usize;
        order.swap(i, other);
    }
    let mut centroids: Vec<f32> = Vec::with_capacity(count * dim);
    for i in 0..count {
        let row = order[i % n] as usize;
        centroids.extend_from_slice(&sample[row * dim..(row + 1) * dim]);
    }
    for _ in 0..ROUNDS {
        let nearest = Nearest::new(&centroids, dim)?.of(sample, cancel)?;
        let mut sums = vec![0.0_f32; count * dim];
        for (row, centroid) in sample.chunks_exact(dim).zip(nearest) {
            let sum = &mut sums[centroid as usize * dim..][..dim];
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        for (centroid, sum) in centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)) {
            let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
            // One that nothing is nearest to stays.
            if length > 0.0 {
                centroid.iter_mut().zip(sum).for_each(|(c, x)| *c = x / length);
            }
        }
    }
    Ok(centroids)
}
