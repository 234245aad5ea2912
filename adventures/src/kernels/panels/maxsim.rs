//! Late interaction (Khattab and Zaharia 2020): how well documents fit a query, both given by a vector for each token.
//!
//! A score is the sum over the query's tokens of the largest product with a token of the document. The query is what is
//! packed, documents are read where they lie, and of the products nothing is kept but the largest.

use super::tile::{Place, ROWS, Sums, Tile, at_kernel, share};
use super::{Kernel, Known, Linear, PANEL, Precision, Rounded, Strip};
use crate::error::{Error, Result, invalid};
use crate::kernels::threads::Threads;
use crate::kernels::vector::{Vector, total};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// Document tokens that all queries go over together: they stay in the second cache.
const CHUNK_TOKENS: usize = 512;

/// The token vectors of some queries, packed once.
pub(crate) struct Queries {
    dim: usize,
    kernel: Kernel,
    /// The panels of one query after those of another; the last of each is filled up with zeros.
    strips: Vec<Strip>,
    /// Where the panels of each query end.
    ends: Vec<usize>,
}

/// Documents as `(tokens, dim)` and where each begins: document `i` has the tokens `offsets[i]..offsets[i + 1]`.
#[derive(Clone, Copy)]
pub(crate) struct Documents<'a> {
    pub(crate) vectors: &'a [f32],
    pub(crate) dim: usize,
    pub(crate) offsets: &'a [usize],
}

/// Returns the scores `(queries, documents)`, in f32; queries are `(tokens, dim)` each.
///
/// A document without tokens has negative infinity; one with a number that is not finite has no number. Its neighbours and
/// the number of threads do not change a bit of a score. Setting `cancel` ends the call with [`Error::Cancelled`] within some
/// hundred tokens.
pub(crate) fn maxsim(
    queries: &[&[f32]],
    documents: Documents<'_>,
    threads: Threads<'_>,
    cancel: &AtomicBool,
) -> Result<Vec<f32>> {
    let queries = Queries::pack(queries, documents.dim, Kernel::best(Precision::F32))?;
    queries.scores(documents, threads, cancel)
}

impl Queries {
    /// Packs row-major queries of `(tokens, dim)`.
    pub(crate) fn pack(queries: &[&[f32]], dim: usize, kernel: Kernel) -> Result<Self> {
        let mut packed = Self { dim, kernel, strips: Vec::new(), ends: Vec::new() };
        for (i, query) in queries.iter().enumerate() {
            if dim == 0 || !query.len().is_multiple_of(dim) {
                return invalid!("query {i} has {} numbers, which are no rows of dim={dim}", query.len());
            }
            if let Some(at) = query.iter().position(|x| !x.is_finite()) {
                return invalid!("query {i}: token {} holds {}", at / dim, query[at]);
            }
            if !query.is_empty() {
                packed.strips.extend_from_slice(&Linear::pack(query, &[], dim, kernel)?.strips);
            }
            packed.ends.push(packed.strips.len() / packed.steps());
        }
        Ok(packed)
    }

    /// The strips of a panel.
    fn steps(&self) -> usize {
        self.kernel.steps(self.dim).1
    }

    /// Returns the scores as [`maxsim`] does, of what the kernel rounds queries and documents to.
    pub(crate) fn scores(
        &self,
        documents: Documents<'_>,
        threads: Threads<'_>,
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>> {
        let Documents { vectors, dim, offsets } = documents;
        assert!(dim == self.dim, "documents of dim {dim} for queries of {}; this is a bug", self.dim);
        let tokens = vectors.len() / dim;
        if tokens * dim != vectors.len() {
            return invalid!("documents have {} numbers, which are no rows of dim={dim}", vectors.len());
        }
        let Some((&last, count)) = offsets.last().zip(offsets.len().checked_sub(1)) else {
            return invalid!("offsets are empty; they begin with 0, and end with the number of tokens");
        };
        if let Some(i) = (0..count).find(|i| offsets[*i] > offsets[*i + 1]) {
            return invalid!("offsets must not fall: {} comes after {}", offsets[i + 1], offsets[i]);
        }
        if last > tokens {
            return invalid!("offsets end with {last}, and there are {tokens} tokens");
        }
        let chunks = chunks(offsets);
        let one = |rounded: &mut Rounded, chunk: &Range<usize>| -> Result<Vec<f32>> {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let offsets = &offsets[chunk.start..=chunk.end];
            let rows = offsets[0]..offsets[chunk.len()];
            let vectors = &vectors[rows.start * dim..rows.end * dim];
            let a = super::round(self.kernel, vectors, dim, &Known::default(), Threads::One, rounded);
            let stride = self.kernel.steps(self.dim).0;
            assert!(a.len() == rows.len() * stride, "rows are as long as the kernel reads them; this is a bug");
            let mut out = vec![0.0; self.ends.len() * chunk.len()];
            let job = &mut Job { queries: self, a: Place { first: a.as_ptr(), stride }, offsets, out: &mut out };
            at_kernel!(self.kernel, score::<T>(job: &mut Job<'_>));
            Ok(out)
        };
        let found: Vec<Vec<f32>> = match threads {
            Threads::One => {
                let mut rounded = Rounded::new();
                chunks.iter().map(|chunk| one(&mut rounded, chunk)).collect::<Result<_>>()?
            }
            _ => chunks.par_iter().map_init(Rounded::new, one).collect::<Result<_>>()?,
        };
        let mut scores = vec![0.0; self.ends.len() * count];
        for (chunk, found) in chunks.iter().zip(&found) {
            for (query, found) in found.chunks_exact(chunk.len()).enumerate() {
                scores[query * count..][chunk.clone()].copy_from_slice(found);
            }
        }
        Ok(scores)
    }
}

/// Returns runs of documents that have some [`CHUNK_TOKENS`] together.
fn chunks(offsets: &[usize]) -> Vec<Range<usize>> {
    let (mut chunks, mut start) = (Vec::new(), 0);
    for end in 1..offsets.len() {
        if end + 1 == offsets.len() || offsets[end + 1] - offsets[start] > CHUNK_TOKENS {
            chunks.push(start..end);
            start = end;
        }
    }
    chunks
}

/// All queries with some documents.
struct Job<'a> {
    queries: &'a Queries,
    /// The documents' tokens as the kernel reads them, those of the first document first.
    a: Place<*const u32>,
    /// Where each document begins, counted from wherever the first does.
    offsets: &'a [usize],
    /// `(queries, documents)`.
    out: &'a mut [f32],
}

#[inline(always)]
fn score<T: Tile>(job: &mut Job<'_>) {
    let steps = job.queries.steps();
    let documents = job.offsets.len() - 1;
    let mut state = T::State::default();
    let mut sums = Sums([[0.0; PANEL]; ROWS]);
    let mut first = 0;
    for (end, out) in job.queries.ends.iter().zip(job.out.chunks_exact_mut(documents)) {
        // A panel stays in the first cache while the documents go by.
        for panel in job.queries.strips[first * steps..end * steps].chunks_exact(steps) {
            for (span, out) in job.offsets.windows(2).zip(out.iter_mut()) {
                let from = span[0] - job.offsets[0];
                let a = Place { first: job.a.first.wrapping_add(from * job.a.stride), stride: job.a.stride };
                *out += best::<T>(&mut state, &mut sums, a, span[1] - span[0], panel);
            }
        }
        first = *end;
    }
}

/// Asks for `elements` from `first` on, which need not be anybody's.
#[inline(always)]
fn prefetch(first: *const u32, elements: usize) {
    const LINE: usize = 16;
    #[cfg(target_arch = "x86_64")]
    for i in (0..elements).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every CPU has the instruction, and it reads nothing that the program sees.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(i).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, elements, LINE);
}

/// Returns the sum over a panel's columns of the largest product with one of `rows`.
#[inline(always)]
fn best<T: Tile>(state: &mut T::State, sums: &mut Sums, a: Place<*const u32>, rows: usize, panel: &[Strip]) -> f32 {
    const MOST: usize = PANEL / 8;
    let lanes = T::V::LANES;
    let registers = PANEL / lanes;
    let sums = &mut sums.0;
    let mut largest = [T::V::splat(f32::NEG_INFINITY); MOST];
    let mut gap = T::V::splat(0.0);
    let mut row = 0;
    while row < rows {
        let count = share::<T>(rows - row);
        // The next tile's rows are asked for now: of rows side by side, memory's own guesses come late.
        prefetch(a.first.wrapping_add((row + count) * a.stride), count * a.stride);
        // SAFETY: the rows are the document's, the sums have room for all of them and are whole registers.
        #[allow(unsafe_code)]
        unsafe {
            let a = Place { first: a.first.add(row * a.stride), stride: a.stride };
            let to = Place { first: sums.as_mut_ptr().cast(), stride: PANEL };
            T::multiply(state, count, a, panel, to, &mut ());
            for sums in &sums[..count] {
                for (r, largest) in largest[..registers].iter_mut().enumerate() {
                    let x = T::V::load(sums.as_ptr().add(r * lanes));
                    *largest = largest.max(x);
                    if r == 0 {
                        // A maximum would hide what is not a number; it makes all products of its row so.
                        gap = gap.add(x.sub(x));
                    }
                }
            }
        }
        row += count;
    }
    let mut score = 0.0;
    for largest in &largest[..registers] {
        score += total(*largest);
    }
    score + total(gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: [usize; 6] = [1, 7, 16, 96, 100, 128];
    /// How many tokens each document has: of none, of one, of what a tile holds, more than a chunk.
    const LENGTHS: [usize; 12] = [0, 1, 2, 11, 12, 13, 0, 25, 300, CHUNK_TOKENS + 90, 1, 0];

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i + seed) * 2_654_435_761 % 10_007) as f32 / 5000.0 - 1.0).collect()
    }

    fn offsets(lengths: &[usize]) -> Vec<usize> {
        let mut end = 0;
        std::iter::once(0)
            .chain(lengths.iter().map(|length| {
                end += length;
                end
            }))
            .collect()
    }

    fn kernels() -> Vec<Kernel> {
        [Precision::F32, Precision::Bf16x2, Precision::Bf16, Precision::Int8]
            .into_iter()
            .flat_map(Kernel::all)
            .collect()
    }

    /// What the kernels are to compute, in f64 and by three loops.
    fn plain(query: &[f32], documents: Documents<'_>) -> Vec<f64> {
        let dim = documents.dim;
        let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
        let score = |span: &[usize]| {
            let rows = || documents.vectors[span[0] * dim..span[1] * dim].chunks_exact(dim);
            query
                .chunks_exact(dim)
                .map(|token| rows().map(|row| dot(token, row)).fold(f64::NEG_INFINITY, f64::max))
                .sum()
        };
        documents.offsets.windows(2).map(score).collect()
    }

    #[test]
    fn every_kernel_agrees_with_three_loops() {
        let offsets = offsets(&LENGTHS);
        let tokens = *offsets.last().expect("there are some");
        for dim in DIMS {
            let vectors = numbers(tokens * dim, 3);
            let documents = Documents { vectors: &vectors, dim, offsets: &offsets };
            let queries = [1, 5, 32, 33, 0, 70].map(|tokens| numbers(tokens * dim, tokens));
            for kernel in kernels() {
                let error = match kernel.precision() {
                    Precision::F32 => 1e-6,
                    Precision::Bf16x2 => 1e-5,
                    Precision::Bf16 => 8e-3,
                    Precision::Int8 => 2e-2,
                };
                let packed = Queries::pack(&queries.each_ref().map(Vec::as_slice), dim, kernel).expect("it packs");
                let scores = packed.scores(documents, Threads::One, &AtomicBool::new(false)).expect("it scores");
                for (query, scores) in queries.iter().zip(scores.chunks_exact(LENGTHS.len())) {
                    for (i, (want, got)) in plain(query, documents).into_iter().zip(scores).enumerate() {
                        let same = want == f64::from(*got); // infinite
                        let allowed = error * query.len() as f64;
                        let near = (want - f64::from(*got)).abs() <= allowed;
                        assert!(same || near, "{kernel:?} dim {dim}, document {i}: {want} {got}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_score_has_the_same_bits_beside_any_others_and_on_any_threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads start");
        let (dim, offsets) = (96, offsets(&LENGTHS));
        let vectors = numbers(offsets[LENGTHS.len()] * dim, 3);
        let documents = Documents { vectors: &vectors, dim, offsets: &offsets };
        let cancel = AtomicBool::new(false);
        let queries = [32, 7].map(|tokens| numbers(tokens * dim, tokens));
        for kernel in kernels() {
            let both = Queries::pack(&queries.each_ref().map(Vec::as_slice), dim, kernel).expect("it packs");
            let want = both.scores(documents, Threads::One, &cancel).expect("it scores");
            assert_eq!(pool.install(|| both.scores(documents, Threads::All, &cancel)).expect("it scores"), want);
            for (query, want) in queries.iter().zip(want.chunks_exact(LENGTHS.len())) {
                let alone = Queries::pack(&[query], dim, kernel).expect("it packs");
                for (span, want) in offsets.windows(2).zip(want) {
                    let documents = Documents { vectors: &vectors, dim, offsets: span };
                    assert_eq!(alone.scores(documents, Threads::One, &cancel).expect("it scores"), [*want]);
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_is_not_hidden_by_a_maximum() {
        let (dim, offsets) = (24, offsets(&[30, 30]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 17 * dim + 3, 30 * dim - 1] {
                let mut vectors = numbers(60 * dim, 3);
                vectors[at] = bad;
                let documents = Documents { vectors: &vectors, dim, offsets: &offsets };
                for kernel in kernels() {
                    let query = numbers(5 * dim, 1);
                    let packed = Queries::pack(&[&query], dim, kernel).expect("it packs");
                    let scores = packed.scores(documents, Threads::One, &AtomicBool::new(false)).expect("it scores");
                    assert!(scores[0].is_nan() && scores[1].is_finite(), "{kernel:?} {bad} at {at}: {scores:?}");
                }
            }
        }
        let e = Queries::pack(&[&[1.0, 2.0, f32::NAN]], 1, Kernel::best(Precision::F32)).err().expect("it is refused");
        assert_eq!(e.to_string(), "query 0: token 2 holds NaN");
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let score = |query: &[f32], dim: usize, vectors: &[f32], offsets: &[usize]| {
            let documents = Documents { vectors, dim, offsets };
            maxsim(&[query], documents, Threads::One, &AtomicBool::new(false)).map_err(|e| e.to_string())
        };
        let (two, six) = ([1.0; 2], [1.0; 6]);
        assert_eq!(score(&two, 2, &six, &[0, 1, 3]), Ok(vec![2.0, 2.0]));
        assert_eq!(score(&two, 2, &[], &[0]), Ok(vec![]));
        for (found, want) in [
            (score(&two, 0, &six, &[0]), "dim=0"),
            (score(&six[..3], 2, &six, &[0]), "query 0 has 3 numbers"),
            (score(&two, 2, &six[..5], &[0]), "documents have 5 numbers"),
            (score(&two, 2, &six, &[]), "offsets are empty"),
            (score(&two, 2, &six, &[0, 2, 1]), "offsets must not fall: 1 comes after 2"),
            (score(&two, 2, &six, &[0, 4]), "offsets end with 4, and there are 3 tokens"),
        ] {
            assert!(found.as_ref().is_err_and(|e| e.contains(want)), "{found:?}: {want}");
        }
    }

    #[test]
    fn a_call_can_be_cancelled() {
        let query = Queries::pack(&[&[1.0, 2.0]], 2, Kernel::best(Precision::F32)).expect("it packs");
        let documents = Documents { vectors: &[1.0; 8], dim: 2, offsets: &[0, 4] };
        let found = query.scores(documents, Threads::One, &AtomicBool::new(true));
        assert!(matches!(found, Err(Error::Cancelled)), "{found:?}");
    }
}
