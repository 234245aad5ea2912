//! Residual compression: a token is its centroid, a scale, and a level of a few bits for each dimension.
//!
//! As in PLAID (<https://arxiv.org/abs/2205.09707>), but for two things: each token has a scale of its own, so that the levels
//! suit near and far tokens, and the levels are those of the least squared error (Lloyd's), not quantiles.

use super::kmeans;
use crate::error::{Result, invalid};
#[cfg(test)]
use crate::kernels::late::bf16;
use crate::kernels::late::{Layout, ZERO, quantize};
use rand_chacha::ChaCha8Rng;
use std::sync::atomic::AtomicBool;

/// The largest level.
const LARGEST: f32 = (ZERO - 1) as f32;
const MAGIC: &[u8; 8] = b"ADVCODEC";
const VERSION: u32 = 1;
/// The bytes before the scales of the centroids.
const HEADER: usize = 8 + 4 * 4 + 16;
/// The numbers that levels are made from.
const SAMPLE: usize = 1 << 18;
/// The most centroids; a code has 32 bits.
const MAX_CENTROIDS: usize = 1 << 24;

/// What compresses and restores vectors.
pub(crate) struct Codec {
    pub(crate) dim: usize,
    pub(crate) layout: Layout,
    /// `(centroids, dim)`: what the bytes below stand for.
    pub(crate) centroids: Vec<f32>,
    /// The bytes and scales of the centroids, as they are stored.
    packed: Vec<i8>,
    scales: Vec<f32>,
    /// With [`ZERO`] added, rising; as many as `nbits` tell apart.
    pub(crate) levels: [u8; 16],
    /// Between the levels.
    bounds: Vec<f32>,
    searched: kmeans::Nearest,
}

/// A compressed token.
pub(crate) struct Coded<'a> {
    pub(crate) centroid: u32,
    /// bfloat16.
    pub(crate) scale: u16,
    pub(crate) row: &'a [u8],
}

impl Codec {
    /// Trains on `sample`, `(n, dim)` vectors of an index of `tokens`. Runs on the rayon pool it is called in.
    pub(crate) fn train(
        sample: &[f32],
        dim: usize,
        nbits: usize,
        tokens: u64,
        rng: &mut ChaCha8Rng,
        cancel: &AtomicBool,
    ) -> Result<Self> {
        let centroids = kmeans::train(sample, dim, kmeans::count(tokens, sample.len() / dim), rng, cancel)?;
        let (mut packed, mut scales) = (Vec::with_capacity(centroids.len()), Vec::new());
        for row in centroids.chunks_exact(dim) {
            let largest = row.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
            packed.extend(row.iter().map(|x| (x / scale).round() as i8));
            scales.push(scale);
        }
        let layout = Layout::new(dim, nbits);
        let any: Vec<u8> = (0..1 << nbits).map(|i| (i as u8) * 7 + 1).collect();
        let mut codec = Self::new(dim, layout, packed, scales, &any)?;
        // The levels are for residuals from the centroids as they are stored.
        let step = (sample.len() / SAMPLE).max(1);
        let rows: Vec<f32> = sample.chunks_exact(dim).step_by(step).flatten().copied().collect();
        let nearest = codec.searched.of(&rows, cancel)?;
        let mut numbers = Vec::with_capacity(rows.len());
        for (row, centroid) in rows.chunks_exact(dim).zip(nearest) {
            let residual: Vec<f32> = row.iter().zip(codec.centroid(centroid as usize)).map(|(x, c)| x - c).collect();
            let length = residual.iter().map(|x| x * x).sum::<f32>().sqrt();
            if length > 0.0 {
                numbers.extend(residual.iter().map(|x| x / length));
            }
        }
        codec.set_levels(&levels(numbers, 1 << nbits));
        Ok(codec)
    }

    fn new(dim: usize, layout: Layout, packed: Vec<i8>, scales: Vec<f32>, levels: &[u8]) -> Result<Self> {
        let rows = packed.chunks_exact(dim).zip(&scales);
        let centroids: Vec<f32> = rows.flat_map(|(row, s)| row.iter().map(move |x| f32::from(*x) * s)).collect();
        let searched = kmeans::Nearest::new(&centroids, dim)?;
        let mut codec = Self { dim, layout, centroids, packed, scales, levels: [0; 16], bounds: Vec::new(), searched };
        codec.set_levels(levels);
        Ok(codec)
    }

    fn set_levels(&mut self, levels: &[u8]) {
        self.levels = [ZERO as u8; 16];
        self.levels[..levels.len()].copy_from_slice(levels);
        let centered = |level: u8| f32::from(level) - ZERO as f32;
        self.bounds = levels.windows(2).map(|pair| f32::midpoint(centered(pair[0]), centered(pair[1]))).collect();
    }

    pub(crate) fn count(&self) -> usize {
        self.scales.len()
    }

    pub(crate) fn centroid(&self, i: usize) -> &[f32] {
        &self.centroids[i * self.dim..(i + 1) * self.dim]
    }

    /// Compresses `(n, dim)` vectors one after the other. Runs on the rayon pool it is called in.
    pub(crate) fn encode(&self, vectors: &[f32], cancel: &AtomicBool, mut put: impl FnMut(&Coded<'_>)) -> Result<()> {
        let nearest = self.searched.of(vectors, cancel)?;
        let coded: Vec<(u16, Vec<u8>)> = {
            use rayon::prelude::*;
            let rows = vectors.par_chunks_exact(self.dim).zip(nearest.par_iter()).with_min_len(64);
            rows.map(|(x, c)| self.residual(x, *c as usize)).collect()
        };
        for (centroid, (scale, row)) in nearest.iter().zip(&coded) {
            put(&Coded { centroid: *centroid, scale: *scale, row });
        }
        Ok(())
    }

    fn residual(&self, vector: &[f32], centroid: usize) -> (u16, Vec<u8>) {
        let residual: Vec<f32> = vector.iter().zip(self.centroid(centroid)).map(|(x, c)| x - c).collect();
        let length = residual.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut codes = vec![0; self.dim];
        let mut row = vec![0; self.layout.row];
        // The levels were made for residuals of length 1, times what made the largest of them `LARGEST`.
        let mut scale = length / self.unit();
        for _ in 0..ROUNDS {
            let factor = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            quantize(&residual, factor, &self.bounds, &mut codes);
            let (mut across, mut square) = (0.0, 0.0);
            for (x, code) in residual.iter().zip(&codes) {
                let level = f32::from(self.levels[*code as usize]) - ZERO as f32;
                across += x * level;
                square += level * level;
            }
            // The scale of the least squared error for these codes.
            scale = if square > 0.0 { (across / square).max(0.0) } else { 0.0 };
        }
        self.layout.pack(&codes, &mut row);
        (to_bf16(scale), row)
    }

    /// The length of a residual that a scale of 1 suits: the widest level, over what it is of normal numbers of variance 1 (Lloyd,
    /// Max), for each dimension.
    fn unit(&self) -> f32 {
        let used = &self.levels[..1 << self.layout.nbits];
        let widest = used.iter().map(|l| (f32::from(*l) - ZERO as f32).abs()).fold(0.0, f32::max);
        let normal = match self.layout.nbits {
            1 => 0.798,
            2 => 1.510,
            _ => 2.733,
        };
        widest / normal * (self.dim as f32).sqrt()
    }

    /// Appends the vector of a compressed token to `out`.
    #[cfg(test)]
    pub(super) fn decode(&self, coded: &Coded<'_>, out: &mut Vec<f32>) {
        let mask = (1 << self.layout.nbits) - 1;
        let scale = bf16(coded.scale);
        let centroid = (coded.centroid as usize).min(self.count() - 1);
        for (d, c) in self.centroid(centroid).iter().enumerate() {
            let code = coded.row[d % self.layout.row] >> (d / self.layout.row * self.layout.nbits) & mask;
            out.push(c + (f32::from(self.levels[code as usize]) - ZERO as f32) * scale);
        }
    }

    /// Returns the codec as a file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [VERSION, self.dim as u32, self.layout.nbits as u32, self.count() as u32] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.levels);
        out.extend(self.scales.iter().flat_map(|scale| scale.to_le_bytes()));
        out.extend(self.packed.iter().map(|x| *x as u8));
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else {
            return invalid!("{} bytes, a codec has more", bytes.len());
        };
        let number = |i: usize| u32::from_le_bytes(std::array::from_fn(|j| header[8 + 4 * i + j])) as usize;
        let (version, dim, nbits, count) = (number(0), number(1), number(2), number(3));
        if &header[..8] != MAGIC || version != VERSION as usize {
            return invalid!("not a codec of version {VERSION}");
        }
        if !(1..=super::MAX_DIM).contains(&dim) || !matches!(nbits, 1 | 2 | 4) || !(1..=MAX_CENTROIDS).contains(&count)
        {
            return invalid!("a codec of {count} centroids of {dim} dimensions with {nbits} bits");
        }
        if rest.len() != count * (4 + dim) {
            return invalid!("{} bytes for {count} centroids of {dim} dimensions", rest.len());
        }
        let levels = &header[24..24 + (1 << nbits)];
        if !levels.is_sorted_by(|a, b| a < b) || levels[0] == 0 || levels[levels.len() - 1] > 127 {
            return invalid!("levels {levels:?}");
        }
        let (scales, packed) = rest.split_at(count * 4);
        let scales: Vec<f32> = scales.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
            return invalid!("a scale of {scale}");
        }
        let packed = packed.iter().map(|b| *b as i8).collect();
        Self::new(dim, Layout::new(dim, nbits), packed, scales, levels)
    }
}

/// How often codes and scale are fitted to each other.
const ROUNDS: usize = 3;

/// The nearest bfloat16 of a number that is not negative.
fn to_bf16(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}

/// Returns the `count` levels of the least squared error for `numbers`, the largest 63, with [`ZERO`] added.
fn levels(mut numbers: Vec<f32>, count: usize) -> Vec<u8> {
    let step = (numbers.len() / SAMPLE).max(1);
    numbers = numbers.into_iter().step_by(step).collect();
    numbers.sort_unstable_by(f32::total_cmp);
    if numbers.is_empty() {
        numbers = vec![-1.0, 1.0];
    }
    let mut sums = vec![0.0_f64];
    sums.extend(numbers.iter().scan(0.0, |sum, x| {
        *sum += f64::from(*x);
        Some(*sum)
    }));
    let at = |i: usize| f64::from(numbers[((i as f64 + 0.5) / count as f64 * numbers.len() as f64) as usize]);
    let mut means: Vec<f64> = (0..count).map(at).collect();
    for _ in 0..100 {
        let mut from = 0;
        for i in 0..count {
            let bound = means.get(i + 1).map_or(f64::INFINITY, |next| f64::midpoint(means[i], *next));
            let to = numbers.partition_point(|x| f64::from(*x) < bound).max(from);
            if to > from {
                means[i] = (sums[to] - sums[from]) / (to - from) as f64;
            }
            from = to;
        }
    }
    let widest = means.iter().fold(0.0_f64, |a, b| a.max(b.abs())).max(f64::MIN_POSITIVE);
    let mut out: Vec<u8> = Vec::with_capacity(count);
    for (i, mean) in means.iter().enumerate() {
        let level = (mean / widest * f64::from(LARGEST)).round() as i32 + ZERO;
        // Numbers that are all alike still have levels that rise.
        let least = out.last().map_or(1, |last| i32::from(*last) + 1);
        out.push(level.clamp(least, 127 - (count - 1 - i) as i32) as u8);
    }
    out
}
