//! Spherical k-means: centroids are unit vectors, and the nearest has the largest product.

use super::nearest::{Nearest, Probes};
use crate::error::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use std::sync::atomic::AtomicBool;

/// Vectors of a sample for each centroid.
pub(super) const PER_CENTROID: usize = 24;
/// Rounds that make an index's centroids.
pub(super) const ROUNDS: usize = 5;

/// Returns how many centroids an index of `tokens` has, of which `sampled` are at hand: PLAID's 16 √n, a power of two below; half
/// as many with 2 bits or fewer, where what a centroid takes is better spent on codes.
pub(super) fn count(tokens: u64, sampled: usize, nbits: usize) -> usize {
    let wanted = (if nbits > 2 { 16.0 } else { 8.0 } * (tokens as f64).sqrt()).max(1.0).log2().floor();
    (1 << wanted as u32).min(sampled.max(1).next_power_of_two() / 8).max(1)
}

/// Returns `count` centroids of `(n, dim)` vectors, after so many rounds. The same vectors and `rng` have the same ones on the same
/// instructions.
pub(super) fn train(
    sample: &[f32],
    dim: usize,
    count: usize,
    rounds: usize,
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
    for _ in 0..rounds {
        let nearest = Nearest::new(&centroids, dim, cancel)?.of(sample, Probes::Few, cancel)?;
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
