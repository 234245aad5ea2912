//! A code of a byte for each few dimensions: product quantization, with codes chosen together.

use super::codec::Toward;
use crate::error::{Error, Result};
use crate::kernels::late::codebooks::{self, CODES, Codebooks};
use crate::kernels::late::{LARGEST, Target, gains, nearest};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// Residuals that books are made from.
pub(super) const SAMPLE: usize = 1 << 15;
const ROUNDS: usize = 12;
/// How often codes and scale are fitted to each other, and then to what the vector has along itself.
const FITS: usize = 2;
const MOVES: usize = 2;

/// A book: its entries, dimension by dimension, and their squared lengths.
struct Book {
    from: usize,
    to: usize,
    entries: Vec<f32>,
    squares: Vec<f32>,
}

/// What compresses residuals.
pub(super) struct Product {
    dim: usize,
    /// As they are stored: book, code, dimension.
    pub(super) levels: Vec<i8>,
    /// What a level stands for, of a residual as long as the root of `dim`.
    pub(super) step: f32,
    /// The largest scale.
    pub(super) largest: f32,
    books: Vec<Book>,
}

impl Product {
    /// Trains on residuals, `(n, dim)`. Runs on the rayon pool it is called in.
    pub(super) fn train(residuals: &[f32], dim: usize, rng: &mut ChaCha8Rng, cancel: &AtomicBool) -> Result<Self> {
        let (mut units, mut longest) = (Vec::with_capacity(residuals.len()), 0.0_f32);
        for row in residuals.chunks_exact(dim) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt() / (dim as f32).sqrt();
            longest = longest.max(length);
            if length > 0.0 {
                units.extend(row.iter().map(|x| x / length));
            }
        }
        if units.is_empty() {
            units.resize(dim, 0.0);
        }
        let starts = codebooks::starts(dim);
        let seeded: Vec<(&[usize], u64)> = starts.windows(2).map(|pair| (pair, rng.next_u64())).collect();
        let trained: Result<Vec<Vec<f32>>> =
            seeded.into_par_iter().map(|(pair, seed)| book(&units, dim, pair[0]..pair[1], seed, cancel)).collect();
        let trained = trained?;
        let widest = trained.iter().flatten().fold(f32::MIN_POSITIVE, |a, b| a.max(b.abs()));
        let step = widest / LARGEST as f32;
        let mut levels = Vec::with_capacity(dim * CODES);
        for (entries, pair) in trained.iter().zip(starts.windows(2)) {
            let size = pair[1] - pair[0];
            levels.extend((0..CODES * size).map(|i| (entries[i % size * CODES + i / size] / step).round() as i8));
        }
        // Others may be longer than those of the sample.
        Ok(Self::new(dim, levels, step, longest * step * 1.25))
    }

    pub(super) fn new(dim: usize, levels: Vec<i8>, step: f32, largest: f32) -> Self {
        let starts = codebooks::starts(dim);
        let books = starts.windows(2).map(|pair| {
            let size = pair[1] - pair[0];
            let own = &levels[pair[0] * CODES..pair[1] * CODES];
            let entries: Vec<f32> = (0..size * CODES).map(|i| f32::from(own[i % CODES * size + i / CODES])).collect();
            Book { from: pair[0], to: pair[1], squares: squares(&entries), entries }
        });
        let books = books.collect();
        Self { dim, levels, step, largest, books }
    }

    pub(super) fn codebooks(&self) -> Codebooks {
        Codebooks::new(self.dim, &self.levels, self.largest)
    }

    /// Compresses a vector into `row`.
    pub(super) fn encode(&self, toward: &Toward<'_>, row: &mut [u8]) {
        let residual = toward.residual;
        let length = residual.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut scale = length / (self.dim as f32).sqrt() * self.step;
        let mut levels = vec![0.0; self.dim];
        for _ in 0..FITS {
            for (book, code) in self.books.iter().zip(&mut row[1..]) {
                let own = &residual[book.from..book.to];
                *code = book.nearest(&Target { residual: own, vector: own, scale, weight: 0.0, rest: 0.0 });
                book.read(*code, &mut levels);
            }
            scale = toward.scale(levels.iter().copied(), 0.0);
        }
        for _ in 0..MOVES {
            row[0] = codebooks::scale_byte(self.largest, toward.scale(levels.iter().copied(), toward.weight));
            scale = codebooks::scale(self.largest, row[0]);
            let error = |from: usize, to: usize, levels: &[f32]| -> f32 {
                let rows = toward.vector[from..to].iter().zip(&residual[from..to]).zip(&levels[from..to]);
                rows.map(|((x, z), level)| x * (z - scale * level)).sum()
            };
            let mut along = error(0, self.dim, &levels);
            for (book, code) in self.books.iter().zip(&mut row[1..]) {
                let (vector, own) = (&toward.vector[book.from..book.to], &residual[book.from..book.to]);
                let others = along - error(book.from, book.to, &levels);
                let rest = others + vector.iter().zip(own).map(|(x, z)| x * z).sum::<f32>();
                *code = book.nearest(&Target { residual: own, vector, scale, weight: toward.weight, rest });
                book.read(*code, &mut levels);
                along = others + error(book.from, book.to, &levels);
            }
        }
    }
}

impl Book {
    fn nearest(&self, target: &Target<'_>) -> u8 {
        let (mut out, mut best, mut at) = ([0.0; CODES], [f32::NEG_INFINITY], [0]);
        gains(&self.entries, &self.squares, target, &mut out);
        nearest(&out, CODES, 0, &mut best, &mut at);
        at[0] as u8
    }

    /// Puts the levels of a code where its dimensions are.
    fn read(&self, code: u8, levels: &mut [f32]) {
        for (level, row) in levels[self.from..self.to].iter_mut().zip(self.entries.chunks_exact(CODES)) {
            *level = row[code as usize];
        }
    }
}

fn squares(entries: &[f32]) -> Vec<f32> {
    (0..CODES).map(|i| entries.chunks_exact(CODES).map(|row| row[i] * row[i]).sum()).collect()
}

/// Returns the entries of one book, dimension by dimension: the means of k-means of some dimensions of `(n, dim)` rows.
fn book(rows: &[f32], dim: usize, own: std::ops::Range<usize>, seed: u64, cancel: &AtomicBool) -> Result<Vec<f32>> {
    let (mut rng, size, n) = (ChaCha8Rng::seed_from_u64(seed), own.len(), rows.len() / dim);
    let points: Vec<&[f32]> = rows.chunks_exact(dim).map(|row| &row[own.clone()]).collect();
    let mut book = Book { from: 0, to: size, entries: vec![0.0; size * CODES], squares: Vec::new() };
    for code in 0..CODES {
        let point = points[(rng.next_u64() % n as u64) as usize];
        (0..size).for_each(|d| book.entries[d * CODES + code] = point[d]);
    }
    for _ in 0..ROUNDS {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        book.squares = squares(&book.entries);
        let (mut sums, mut counts) = (vec![0.0_f32; size * CODES], [0_u32; CODES]);
        for point in &points {
            let target = Target { residual: point, vector: point, scale: 1.0, weight: 0.0, rest: 0.0 };
            let code = book.nearest(&target) as usize;
            (0..size).for_each(|d| sums[d * CODES + code] += point[d]);
            counts[code] += 1;
        }
        for (i, (entry, sum)) in book.entries.iter_mut().zip(&sums).enumerate() {
            // One that nothing is nearest to stays.
            if counts[i % CODES] > 0 {
                *entry = sum / counts[i % CODES] as f32;
            }
        }
    }
    Ok(book.entries)
}
