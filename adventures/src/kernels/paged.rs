//! Attention over cached keys and values, in half or in single precision.
//!
//! Sums are made in llama.cpp's order, as it has it without flash attention: sixteen running sums where several tokens are
//! read together, four times sixteen where it is one, then a tree. Positions are counted from the first page's first.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::LANES;
use super::causal::softmax;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Positions per page of the cache.
pub(crate) const PAGE: usize = 64;

/// A number of the cache.
///
/// The methods are generic over what loads sixteen of them, and inlined where its instructions are enabled.
pub(crate) trait Number: Copy + Send + Sync + 'static {
    /// Whether queries and weights are rounded to this precision too, as llama.cpp rounds them.
    const HALF: bool;
    const ZERO: Self;
    /// Rounds `from` to `to`.
    fn store(from: &[f32], to: &mut [Self]);
    fn to_f32(self) -> f32;
    fn load<V: Vector>(x: &[Self; LANES]) -> V;
}

impl Number for f16 {
    const HALF: bool = true;
    const ZERO: Self = Self::ZERO;

    fn store(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn load<V: Vector>(x: &[Self; LANES]) -> V {
        V::load_half(x)
    }
}

impl Number for f32 {
    const HALF: bool = false;
    const ZERO: Self = 0.0;

    fn store(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<V: Vector>(x: &[Self; LANES]) -> V {
        V::load(x)
    }
}

/// Rounds `x` to half precision and back. `halves` is scratch space.
pub(crate) fn round_to_half(x: &mut [f32], halves: &mut Vec<f16>) {
    halves.resize(x.len(), f16::ZERO);
    halves.convert_from_f32_slice(x);
    halves.convert_to_f32_slice(x);
}

/// The keys and values of one head at [`PAGE`] positions.
#[derive(Clone, Copy)]
pub(crate) struct Page<'a, N> {
    /// `(PAGE, head_dim)`.
    pub(crate) keys: &'a [N],
    /// `(head_dim, PAGE)`: a weighted sum of values is a product with a row of weights.
    pub(crate) values: &'a [N],
}

/// Query rows of one key-value head.
pub(crate) struct Queries<'a> {
    pub(crate) dim: usize,
    /// `(rows, dim)`.
    pub(crate) rows: &'a [f32],
    /// The positions that each row sees: at least one.
    pub(crate) windows: &'a [Range<usize>],
    /// What scores are multiplied by.
    pub(crate) scale: f32,
    /// Bounds the scores by `cap * tanh(score / cap)`, before they are scaled.
    pub(crate) cap: Option<f32>,
    /// Whether a single token is read.
    pub(crate) single: bool,
}

/// What attention keeps between calls, to be reused.
#[derive(Default)]
pub(crate) struct Scratch {
    /// `(rows, positions)`.
    scores: Vec<f32>,
    halves: Vec<f16>,
}

/// Writes to `out`, `(rows, dim)`, the values that each row sees, weighted by the softmax of its scores.
pub(crate) fn attend<N: Number>(queries: &Queries<'_>, pages: &[Page<'_, N>], scratch: &mut Scratch, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the instructions were just detected.
            #[allow(unsafe_code)]
            return unsafe { x86::attend_avx512(queries, pages, scratch, out) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            // SAFETY: the instructions were just detected.
            #[allow(unsafe_code)]
            return unsafe { x86::attend_avx2(queries, pages, scratch, out) };
        }
    }
    attend_with::<Plain, N>(queries, pages, scratch, out);
}

/// Sixteen numbers that are computed with together.
///
/// Implementations for vector instructions are only used where these are enabled.
pub(crate) trait Vector: Copy {
    fn zero() -> Self;
    fn load(x: &[f32; LANES]) -> Self;
    fn load_half(x: &[f16; LANES]) -> Self;
    /// `self + a * b`.
    fn add_product(self, a: Self, b: Self) -> Self;
    fn add(self, other: Self) -> Self;
    /// The sum of the lanes: halves added to halves.
    fn total(self) -> f32;
    /// The same of sixteen.
    #[inline(always)]
    fn totals(x: &[Self; LANES]) -> [f32; LANES] {
        x.map(Self::total)
    }
}

#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

impl Vector for Plain {
    fn zero() -> Self {
        Self([0.0; LANES])
    }

    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }

    fn load_half(x: &[f16; LANES]) -> Self {
        Self(x.map(f16::to_f32))
    }

    fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }

    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    fn total(self) -> f32 {
        super::math::sum(self.0)
    }
}

#[inline(always)]
fn attend_with<V: Vector, N: Number>(
    queries: &Queries<'_>,
    pages: &[Page<'_, N>],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    if queries.single || !queries.dim.is_multiple_of(LANES) {
        // Three heads to a key are frequent.
        if queries.windows.len().is_multiple_of(3) {
            attend_in::<V, N, 4, 3, 2>(queries, pages, scratch, out);
        } else {
            attend_in::<V, N, 4, 2, 2>(queries, pages, scratch, out);
        }
    } else {
        attend_in::<V, N, 1, 4, 4>(queries, pages, scratch, out);
    }
}

/// Asks for memory that will be read soon.
#[inline(always)]
fn ask_for<N>(numbers: &[N]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(numbers)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every x86-64 CPU has the instruction, and asking for memory touches nothing.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(numbers.as_ptr().cast::<i8>().wrapping_add(line));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

/// `S` times sixteen running sums per product; `R` query rows and `P` keys or values at a time.
#[inline(always)]
fn attend_in<V: Vector, N: Number, const S: usize, const R: usize, const P: usize>(
    queries: &Queries<'_>,
    pages: &[Page<'_, N>],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let (count, span) = (queries.windows.len(), pages.len() * PAGE);
    // Resizing keeps what is there: every score that is read was written.
    scratch.scores.resize(count * span, 0.0);
    let mut r = 0;
    while r + R <= count {
        attend_rows::<V, N, S, R, P>(queries, pages, scratch, r, out);
        r += R;
    }
    while r < count {
        attend_rows::<V, N, S, 1, P>(queries, pages, scratch, r, out);
        r += 1;
    }
}

#[inline(always)]
fn attend_rows<V: Vector, N: Number, const S: usize, const R: usize, const P: usize>(
    queries: &Queries<'_>,
    pages: &[Page<'_, N>],
    scratch: &mut Scratch,
    first_row: usize,
    out: &mut [f32],
) {
    let (dim, span) = (queries.dim, pages.len() * PAGE);
    let windows = &queries.windows[first_row..first_row + R];
    let from = windows.iter().map(|w| w.start).min().unwrap_or(0) / PAGE;
    let to = windows.iter().map(|w| w.end).max().unwrap_or(0).div_ceil(PAGE);
    let q: [&[f32]; R] = std::array::from_fn(|r| &queries.rows[(first_row + r) * dim..][..dim]);
    let scores = &mut scratch.scores[first_row * span..(first_row + R) * span];
    for page in from..to {
        for p in (0..PAGE).step_by(LANES) {
            // The CPU foresees no step from page to page, nor the way through the values.
            if page + 1 < to {
                ask_for(&pages[page + 1].keys[p * dim..][..LANES * dim]);
            }
            ask_for(&pages[page].values[p * dim..][..LANES * dim]);
            let keys = &pages[page].keys[p * dim..][..LANES * dim];
            let products = if dim.is_multiple_of(S * LANES) {
                products_of_keys::<V, N, S, R>(q, keys)
            } else {
                let mut all = [[0.0; LANES]; R];
                for p in (0..LANES).step_by(P) {
                    let keys: [&[N]; P] = std::array::from_fn(|i| &keys[(p + i) * dim..][..dim]);
                    let products = products::<V, N, S, R, P>(0..1, |_| q, |_| keys);
                    for (all, products) in all.iter_mut().zip(products) {
                        all[p..p + P].copy_from_slice(&products);
                    }
                }
                all
            };
            for (r, products) in products.iter().enumerate() {
                scores[r * span + page * PAGE + p..][..LANES].copy_from_slice(products);
            }
        }
    }
    for (scores, window) in scores.chunks_exact_mut(span).zip(windows) {
        let scores = &mut scores[from * PAGE..to * PAGE];
        let window = window.start - from * PAGE..window.end - from * PAGE;
        softmax(scores, window, queries.scale, queries.cap);
        if N::HALF {
            round_to_half(scores, &mut scratch.halves);
        }
    }
    let weights = |r: usize, page: usize| &scores[r * span + page * PAGE..][..PAGE];
    let value = |d: usize, page: usize| &pages[page].values[d * PAGE..][..PAGE];
    let mut d = 0;
    while d + P <= dim {
        let rows = |page| std::array::from_fn(|r| weights(r, page));
        let sums = products::<V, N, S, R, P>(from..to, rows, |page| std::array::from_fn(|i| value(d + i, page)));
        for (r, sums) in sums.iter().enumerate() {
            out[(first_row + r) * dim + d..][..P].copy_from_slice(sums);
        }
        d += P;
    }
    for d in d..dim {
        let rows = |page| std::array::from_fn(|r| weights(r, page));
        let sums = products::<V, N, S, R, 1>(from..to, rows, |page| [value(d, page)]);
        for (r, sums) in sums.iter().enumerate() {
            out[(first_row + r) * dim + d] = sums[0];
        }
    }
}

/// The sum of running sums: halves added to halves.
#[inline(always)]
fn tree<V: Vector, const S: usize>(mut sums: [V; S]) -> V {
    let mut width = S;
    while width > 1 {
        width /= 2;
        for s in 0..width {
            sums[s] = sums[s].add(sums[s + width]);
        }
    }
    sums[0]
}

/// The products of `R` rows with sixteen keys, whose width is a multiple of `S` times sixteen: as [`products`] has them, but
/// the lanes of sixteen sums are added together.
#[inline(always)]
fn products_of_keys<V: Vector, N: Number, const S: usize, const R: usize>(
    q: [&[f32]; R],
    keys: &[N],
) -> [[f32; LANES]; R] {
    let dim = keys.len() / LANES;
    assert!(q.iter().all(|q| q.len() == dim), "rows are equally long");
    let q = q.map(|q| q.as_chunks::<LANES>().0);
    let mut all = [[V::zero(); LANES]; R];
    for (i, key) in keys.chunks_exact(dim).enumerate() {
        let mut sums = [[V::zero(); S]; R];
        let key = key.as_chunks::<LANES>().0;
        for step in 0..key.len() / S {
            for s in 0..S {
                let b = N::load(&key[step * S + s]);
                for r in 0..R {
                    sums[r][s] = sums[r][s].add_product(V::load(&q[r][step * S + s]), b);
                }
            }
        }
        for r in 0..R {
            all[r][i] = tree(sums[r]);
        }
    }
    let mut out = [[0.0; LANES]; R];
    for r in 0..R {
        out[r] = V::totals(&all[r]);
        for x in &mut out[r] {
            // As in `products`: a sum of -0 is 0.
            *x += 0.0;
        }
    }
    out
}

/// The products of `R` rows with `P` of the cache, which come in segments of equal length.
///
/// Vectors are handled in loops, not in closures: these have no instructions enabled, and would call each intrinsic.
#[inline(always)]
fn products<'a, 'b, V: Vector, N: Number, const S: usize, const R: usize, const P: usize>(
    segments: Range<usize>,
    a: impl Fn(usize) -> [&'a [f32]; R],
    b: impl Fn(usize) -> [&'b [N]; P],
) -> [[f32; P]; R] {
    let mut sums = [[[V::zero(); P]; R]; S];
    let mut rest = [[0.0_f64; P]; R];
    for segment in segments {
        let (a, b) = (a(segment), b(segment));
        let length = a[0].len();
        assert!(a.iter().all(|a| a.len() == length) && b.iter().all(|b| b.len() == length), "rows are equally long");
        let (a_blocks, b_blocks) = (a.map(|a| a.as_chunks::<LANES>().0), b.map(|b| b.as_chunks::<LANES>().0));
        let steps = length / (LANES * S);
        for step in 0..steps {
            for (s, sums) in sums.iter_mut().enumerate() {
                let block = step * S + s;
                let mut b = [V::zero(); P];
                for p in 0..P {
                    b[p] = N::load(&b_blocks[p][block]);
                }
                for r in 0..R {
                    let a = V::load(&a_blocks[r][block]);
                    for p in 0..P {
                        sums[r][p] = sums[r][p].add_product(a, b[p]);
                    }
                }
            }
        }
        for i in steps * S * LANES..length {
            for r in 0..R {
                for p in 0..P {
                    rest[r][p] += f64::from(a[r][i] * b[p][i].to_f32());
                }
            }
        }
    }
    let mut out = [[0.0; P]; R];
    for r in 0..R {
        for p in 0..P {
            let mut own = [V::zero(); S];
            for s in 0..S {
                own[s] = sums[s][r][p];
            }
            out[r][p] = (f64::from(tree(own).total()) + rest[r][p]) as f32;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| f16::from_f32(((i + seed) * 7919 % 2003) as f32 / 1001.0 - 1.0).to_f32()).collect()
    }

    /// Keys and values, `(positions, dim)` each, as pages.
    fn pages<N: Number>(k: &[f32], v: &[f32], dim: usize) -> Vec<(Vec<N>, Vec<N>)> {
        let page = |(k, v): (&[f32], &[f32])| {
            let turned: Vec<f32> = (0..PAGE * dim).map(|i| v[i % PAGE * dim + i / PAGE]).collect();
            let (mut keys, mut values) = (vec![N::ZERO; PAGE * dim], vec![N::ZERO; PAGE * dim]);
            N::store(k, &mut keys);
            N::store(&turned, &mut values);
            (keys, values)
        };
        k.chunks_exact(PAGE * dim).zip(v.chunks_exact(PAGE * dim)).map(page).collect()
    }

    #[test]
    fn attention_over_pages_is_the_softmax_over_the_window() {
        for (dim, cap) in [(4, None), (16, None), (20, Some(2.0)), (64, None), (80, Some(0.5)), (256, None)] {
            for (rows, single) in [(1, true), (1, false), (3, true), (4, false), (9, false), (9, true)] {
                let length = 3 * PAGE;
                let (k, v) = (noise(length * dim, 1), noise(length * dim, 2));
                let q = noise(rows * dim, 77);
                let windows: Vec<_> = (0..rows).map(|r| 11 * r..70 + 13 * r).collect();
                let (singles, halves) = (pages::<f32>(&k, &v, dim), pages::<f16>(&k, &v, dim));
                let singles: Vec<_> = singles.iter().map(|(keys, values)| Page { keys, values }).collect();
                let halves: Vec<_> = halves.iter().map(|(keys, values)| Page { keys, values }).collect();
                let queries = Queries { dim, rows: &q, windows: &windows, scale: 0.7, cap, single };
                let run = |attend: &dyn Fn(&mut Scratch, &mut [f32])| {
                    let mut out = vec![0.0; rows * dim];
                    attend(&mut Scratch::default(), &mut out);
                    out
                };
                let all = [
                    (run(&|scratch, out| attend(&queries, &singles, scratch, out)), 1e-5),
                    (run(&|scratch, out| attend_with::<Plain, f32>(&queries, &singles, scratch, out)), 1e-5),
                    (run(&|scratch, out| attend(&queries, &halves, scratch, out)), 1e-3),
                    (run(&|scratch, out| attend_with::<Plain, f16>(&queries, &halves, scratch, out)), 1e-3),
                ];
                for r in 0..rows {
                    let score = |p: usize| {
                        let s: f64 = (0..dim).map(|d| f64::from(q[r * dim + d]) * f64::from(k[p * dim + d])).sum();
                        (cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh()) * f64::from(0.7_f32)).exp()
                    };
                    let weights: Vec<f64> = windows[r].clone().map(score).collect();
                    let total: f64 = weights.iter().sum();
                    for d in 0..dim {
                        let values = windows[r].clone().map(|p| f64::from(v[p * dim + d]));
                        let want: f64 = values.zip(&weights).map(|(v, w)| v * w / total).sum();
                        let i = r * dim + d;
                        for (out, tolerance) in &all {
                            let got = out[i];
                            assert!((want - f64::from(got)).abs() < *tolerance, "dim {dim} row {r}: {got} {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let (dim, rows) = (64, 7);
        let (k, v, q) = (noise(2 * PAGE * dim, 1), noise(2 * PAGE * dim, 2), noise(rows * dim, 3));
        let pages = pages::<f16>(&k, &v, dim);
        let pages: Vec<_> = pages.iter().map(|(keys, values)| Page { keys, values }).collect();
        let windows: Vec<_> = (0..rows).map(|r| r..60 + 3 * r).collect();
        let run = |rows: Range<usize>, single| {
            let queries = Queries {
                dim,
                rows: &q[rows.start * dim..rows.end * dim],
                windows: &windows[rows.clone()],
                scale: 0.125,
                cap: None,
                single,
            };
            let mut out = vec![0.0; rows.len() * dim];
            attend(&queries, &pages, &mut Scratch::default(), &mut out);
            out
        };
        for single in [false, true] {
            let together = run(0..rows, single);
            for r in 0..rows {
                assert_eq!(run(r..r + 1, single), together[r * dim..(r + 1) * dim]);
            }
        }
    }
}
