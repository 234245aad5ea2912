//! Residual compression: a token is its centroid, a scale, and a level for each dimension.
//!
//! As in PLAID (<https://arxiv.org/abs/2205.09707>), but for three things: each token has a scale of its own, so that the levels
//! suit near and far tokens; the levels are those of the least squared error (Lloyd's), not quantiles; and codes are chosen so
//! that little of the error lies along the vector itself, where the queries that find it lie (anisotropic quantization,
//! <https://arxiv.org/abs/1908.10396>).

use super::kmeans;
use super::nearest::{Nearest, Probes};
use super::product::{self, Product};
use super::scalar::{self, Scalar};
use crate::error::{Result, invalid};
use crate::kernels::late::{Layout, Levels, codebooks::CODES};
#[cfg(test)]
use crate::kernels::late::{ZERO, bf16, codebooks};
use rand_chacha::ChaCha8Rng;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

const MAGIC: &[u8; 8] = b"ADVCODEC";
const VERSION: u32 = 2;
/// The bytes before the scales of the centroids.
const HEADER: usize = 8 + 4 * 4 + 16 + 2 * 4;
/// The most centroids; a code has 32 bits.
const MAX_CENTROIDS: usize = 1 << 24;
/// How much more an error counts along the vector than across it, for each dimension: a query's token that is near has about
/// this share of its square along it.
const ALONG: f32 = 0.2;

/// What compresses and restores vectors.
pub(crate) struct Codec {
    pub(crate) dim: usize,
    pub(crate) layout: Layout,
    /// `(centroids, dim)`: what the bytes below stand for.
    pub(crate) centroids: Vec<f32>,
    /// The bytes and scales of the centroids, as they are stored.
    packed: Vec<i8>,
    scales: Vec<f32>,
    pub(crate) levels: Levels,
    coder: Coder,
    /// Made when it is first wanted: an index that is searched alone does without.
    searched: OnceLock<Nearest>,
}

enum Coder {
    /// With its levels as they are stored.
    Scalar(Scalar, [u8; 16]),
    Product(Product),
}

/// A compressed token.
pub(crate) struct Coded<'a> {
    pub(crate) centroid: u32,
    /// bfloat16, where the row has none.
    pub(crate) scale: Option<u16>,
    pub(crate) row: &'a [u8],
}

/// What codes are to come near to.
pub(super) struct Toward<'a> {
    pub(super) vector: &'a [f32],
    /// What it lacks to its centroid.
    pub(super) residual: &'a [f32],
    /// How much more an error counts along the vector.
    pub(super) weight: f32,
}

impl Toward<'_> {
    /// The scale of the least error for these levels, where an error along the vector counts `weight` more.
    pub(super) fn scale(&self, levels: impl Iterator<Item = f32>, weight: f32) -> f32 {
        let (mut across, mut square, mut along, mut left) = (0.0, 0.0, 0.0, 0.0);
        for ((z, x), level) in self.residual.iter().zip(self.vector).zip(levels) {
            across += z * level;
            square += level * level;
            along += x * level;
            left += x * z;
        }
        let (over, under) = (across + weight * along * left, square + weight * along * along);
        if under > 0.0 { (over / under).max(0.0) } else { 0.0 }
    }
}

impl Coder {
    fn levels(&self) -> Levels {
        match self {
            Self::Scalar(_, levels) => Levels::Scalar(*levels),
            Self::Product(product) => Levels::Product(product.codebooks()),
        }
    }
}

fn scalar(layout: Layout, levels: &[u8]) -> Coder {
    let mut stored = [0; 16];
    stored[..levels.len()].copy_from_slice(levels);
    Coder::Scalar(Scalar::new(layout, levels), stored)
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
        let count = kmeans::count(tokens, sample.len() / dim, nbits);
        let centroids = kmeans::train(sample, dim, count, kmeans::ROUNDS, rng, cancel)?;
        let (mut packed, mut scales) = (Vec::with_capacity(centroids.len()), Vec::new());
        for row in centroids.chunks_exact(dim) {
            let largest = row.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
            packed.extend(row.iter().map(|x| (x / scale).round() as i8));
            scales.push(scale);
        }
        let layout = Layout::new(dim, nbits);
        // The levels are for residuals from the centroids as they are stored.
        let centroids = restored(&packed, &scales, dim);
        let searched = Nearest::new(&centroids, dim, cancel)?;
        let rows = if nbits == 2 { product::SAMPLE } else { scalar::SAMPLE / dim };
        let step = (sample.len() / dim / rows.max(1)).max(1);
        let rows: Vec<f32> = sample.chunks_exact(dim).step_by(step).flatten().copied().collect();
        let nearest = searched.of(&rows, Probes::Many, cancel)?;
        let mut residuals = rows;
        for (row, centroid) in residuals.chunks_exact_mut(dim).zip(nearest) {
            let centroid = &centroids[centroid as usize * dim..][..dim];
            row.iter_mut().zip(centroid).for_each(|(x, c)| *x -= c);
        }
        let coder = if nbits == 2 {
            Coder::Product(Product::train(&residuals, dim, rng, cancel)?)
        } else {
            scalar(layout, &scalar::levels(residuals, dim, 1 << nbits))
        };
        Ok(Self {
            dim,
            layout,
            centroids,
            packed,
            scales,
            levels: coder.levels(),
            coder,
            searched: OnceLock::from(searched),
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.scales.len()
    }

    pub(crate) fn centroid(&self, i: usize) -> &[f32] {
        &self.centroids[i * self.dim..(i + 1) * self.dim]
    }

    fn searched(&self, cancel: &AtomicBool) -> Result<&Nearest> {
        if let Some(searched) = self.searched.get() {
            return Ok(searched);
        }
        let searched = Nearest::new(&self.centroids, self.dim, cancel)?;
        Ok(self.searched.get_or_init(|| searched))
    }

    /// Compresses `(n, dim)` vectors one after the other. Runs on the rayon pool it is called in.
    pub(crate) fn encode(&self, vectors: &[f32], cancel: &AtomicBool, mut put: impl FnMut(&Coded<'_>)) -> Result<()> {
        let nearest = self.searched(cancel)?.of(vectors, Probes::Many, cancel)?;
        let coded: Vec<(Option<u16>, Vec<u8>)> = {
            use rayon::prelude::*;
            let rows = vectors.par_chunks_exact(self.dim).zip(nearest.par_iter()).with_min_len(64);
            rows.map(|(x, c)| self.code(x, *c as usize)).collect()
        };
        for (centroid, (scale, row)) in nearest.iter().zip(&coded) {
            put(&Coded { centroid: *centroid, scale: *scale, row });
        }
        Ok(())
    }

    fn code(&self, vector: &[f32], centroid: usize) -> (Option<u16>, Vec<u8>) {
        let residual: Vec<f32> = vector.iter().zip(self.centroid(centroid)).map(|(x, c)| x - c).collect();
        let square = vector.iter().map(|x| x * x).sum::<f32>();
        let weight = if square > 0.0 { ALONG * self.dim as f32 / square } else { 0.0 };
        let toward = Toward { vector, residual: &residual, weight };
        let mut row = vec![0; self.layout.row];
        let scale = match &self.coder {
            Coder::Scalar(scalar, _) => Some(scalar.encode(&toward, &mut row)),
            Coder::Product(product) => {
                product.encode(&toward, &mut row);
                None
            }
        };
        (scale, row)
    }

    /// Appends the vector of a compressed token to `out`.
    #[cfg(test)]
    pub(super) fn decode(&self, coded: &Coded<'_>, out: &mut Vec<f32>) {
        let centroid = self.centroid((coded.centroid as usize).min(self.count() - 1));
        match &self.coder {
            Coder::Scalar(_, levels) => {
                let mask = (1 << self.layout.nbits) - 1;
                let scale = bf16(coded.scale.expect("a scale"));
                for (d, c) in centroid.iter().enumerate() {
                    let code = coded.row[d % self.layout.row] >> (d / self.layout.row * self.layout.nbits) & mask;
                    out.push(c + (f32::from(levels[code as usize]) - ZERO as f32) * scale);
                }
            }
            Coder::Product(product) => {
                let scale = codebooks::scale(product.largest, coded.row[0]);
                let starts = codebooks::starts(self.dim);
                for (pair, code) in starts.windows(2).zip(&coded.row[1..]) {
                    let size = pair[1] - pair[0];
                    let entry = &product.levels[pair[0] * CODES + *code as usize * size..][..size];
                    out.extend(entry.iter().zip(&centroid[pair[0]..]).map(|(x, c)| c + f32::from(*x) * scale));
                }
            }
        }
    }

    /// Returns the codec as a file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for number in [VERSION, self.dim as u32, self.layout.nbits as u32, self.count() as u32] {
            out.extend(number.to_le_bytes());
        }
        let (levels, numbers, books): ([u8; 16], [f32; 2], &[i8]) = match &self.coder {
            Coder::Scalar(_, levels) => (*levels, [0.0; 2], &[]),
            Coder::Product(product) => ([0; 16], [product.step, product.largest], &product.levels),
        };
        out.extend(levels);
        out.extend(numbers.iter().chain(&self.scales).flat_map(|number| number.to_le_bytes()));
        out.extend(self.packed.iter().chain(books).map(|x| *x as u8));
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
        let books = if nbits == 2 { CODES * dim } else { 0 };
        if rest.len() != count * (4 + dim) + books {
            return invalid!("{} bytes for {count} centroids of {dim} dimensions", rest.len());
        }
        let (scales, rest) = rest.split_at(count * 4);
        let floats =
            |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
        let (scales, numbers) = (floats(scales), floats(&header[40..48]));
        if let Some(scale) = scales.iter().chain(&numbers).find(|scale| !scale.is_finite()) {
            return invalid!("a scale of {scale}");
        }
        let mut packed: Vec<i8> = rest.iter().map(|b| *b as i8).collect();
        let books = packed.split_off(count * dim);
        let layout = Layout::new(dim, nbits);
        let coder = if nbits == 2 {
            Coder::Product(Product::new(dim, books, numbers[0], numbers[1]))
        } else {
            let levels = &header[24..24 + (1 << nbits)];
            if !levels.is_sorted_by(|a, b| a < b) || levels[0] == 0 || levels[levels.len() - 1] > 127 {
                return invalid!("levels {levels:?}");
            }
            scalar(layout, levels)
        };
        let centroids = restored(&packed, &scales, dim);
        let (levels, searched) = (coder.levels(), OnceLock::new());
        Ok(Self { dim, layout, centroids, packed, scales, levels, coder, searched })
    }
}

/// The centroids that bytes and scales stand for.
fn restored(packed: &[i8], scales: &[f32], dim: usize) -> Vec<f32> {
    let rows = packed.chunks_exact(dim).zip(scales);
    rows.flat_map(|(row, scale)| row.iter().map(move |x| f32::from(*x) * scale)).collect()
}
