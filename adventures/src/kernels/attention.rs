//! Bidirectional attention over one sequence: no padding, and never all scores at a time.

mod softmax;
#[cfg(target_arch = "x86_64")]
mod tiles;

use super::panels::dot::Floats;
use super::panels::tile::{Place, ROWS, Tile, share};
use super::panels::{Kernel, PANEL, Rounded, Strip};
use super::threads::Threads;
use super::vector::{Level, Vector, at_level};
use softmax::{Seen, weigh};
use std::cell::RefCell;
use std::ops::Range;

/// Keys that are scored together; scores of a tile's rows stay in the first cache. Sums over longer sequences are carried from
/// one block to the next, scaled by the largest score so far (Milakov and Gimelshein 2018).
const BLOCK_KEYS: usize = 512;
/// How far a query's scores are from those of the next: an odd number of the cache's lines, which then share no places.
const STRIDE: usize = BLOCK_KEYS + 16;

/// The shape of multi-head attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// How many heads.
    pub(crate) count: usize,
    /// The width of one.
    pub(crate) dim: usize,
}

/// What is added to scores by the distance of key and query.
pub(crate) struct Distances {
    /// The largest distance; sequences are at most one token longer.
    pub(crate) farthest: usize,
    /// `(heads, 2 * farthest + 1)`: for keys that far before the query first.
    pub(crate) values: Vec<f32>,
}

/// Which keys a query sees, and how.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sight<'a> {
    /// How many there are, those of the first tokens; `None` for all. Of the others only queries are read.
    pub(crate) keys: Option<usize>,
    /// How many tokens away they are at most; `None` for all.
    pub(crate) window: Option<usize>,
    /// What is added to their scores.
    pub(crate) distances: Option<&'a Distances>,
}

/// Rows of queries, keys and values, side by side: three times as many numbers as a row of all heads has.
#[derive(Clone, Copy)]
pub(crate) enum Qkv<'a> {
    Floats(&'a [f32]),
    /// As [`Linear::apply_rounding`](super::panels::Linear::apply_rounding) returns them; a head's numbers are whole panels.
    Rounded(&'a [u32]),
}

impl Qkv<'_> {
    /// Returns the rows of some tokens, whose heads are `width` numbers wide.
    pub(crate) fn of(self, tokens: Range<usize>, width: usize) -> Self {
        let row = self.row(width);
        let elements = tokens.start * row..tokens.end * row;
        match self {
            Self::Floats(qkv) => Self::Floats(&qkv[elements]),
            Self::Rounded(qkv) => Self::Rounded(&qkv[elements]),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Floats(qkv) => qkv.len(),
            Self::Rounded(qkv) => qkv.len(),
        }
    }

    /// The elements of a token, whose heads are `width` numbers wide.
    fn row(self, width: usize) -> usize {
        match self {
            Self::Floats(_) => 3 * width,
            Self::Rounded(_) => Kernel::rounding(3 * width),
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What attention keeps between calls, to be reused.
#[derive(Default)]
struct Scratch {
    /// Panels of keys, whose inputs are a head's numbers.
    keys: Vec<Strip>,
    /// Panels of values, whose inputs are the tokens.
    values: Vec<Strip>,
    /// Queries as products read them; and weights, where they are not in the place of scores.
    queries: Rounded,
    rounded: Rounded,
    /// `(ROWS, STRIDE)`.
    scores: Rounded,
    /// `(ROWS, dim)`, `dim` filled up to whole panels.
    sums: Rounded,
    /// The same of one more block.
    more: Rounded,
}

/// `out = softmax(q kᵀ / √dim + distances) v`, head by head, over the keys in sight.
///
/// `qkv` has a row for each token. `out` is `(tokens, count * dim)`, or fewer rows:
/// those of the first tokens.
///
/// Products are of f32; where `kernel` is one of bfloat16, and without tiles keys are more than a panel has columns, of one for each
/// number, and of two for tiles of `Bf16x2`.
pub(crate) fn attention(
    kernel: Kernel,
    out: &mut [f32],
    qkv: Qkv<'_>,
    heads: Heads,
    sight: Sight<'_>,
    threads: Threads<'_>,
) {
    let width = heads.count * heads.dim;
    let row = qkv.row(width);
    let (queries, tokens) = (out.len() / width, qkv.len() / row);
    let panels = matches!(qkv, Qkv::Floats(_)) || heads.dim.is_multiple_of(PANEL);
    let whole = out.len() == queries * width && qkv.len() == tokens * row && panels;
    let keys = sight.keys.unwrap_or(tokens);
    // Of keys that are too far away for a query there would be no sum.
    let near = sight.window.is_none_or(|window| queries <= keys + window);
    let fits = queries <= tokens && (1..=tokens).contains(&keys);
    assert!(whole && fits && near, "attention: shapes; this is a bug");
    if let Some(distances) = sight.distances {
        let each = 2 * distances.farthest + 1;
        assert!(
            tokens <= distances.farthest + 1 && distances.values.len() == heads.count * each,
            "distances; this is a bug"
        );
    }
    let job = Job { qkv, out: Place { first: out.as_mut_ptr(), stride: width }, queries, tokens, keys, heads, sight };
    let each = heads.count.div_ceil(threads.pieces());
    threads.share(heads.count.div_ceil(each), |i| {
        let heads = i * each..heads.count.min((i + 1) * each);
        SCRATCH.with_borrow_mut(|scratch| run(kernel, &job, heads, scratch));
    });
}

/// What is asked of all heads.
struct Job<'a> {
    qkv: Qkv<'a>,
    /// It has `queries` rows.
    out: Place<*mut f32>,
    queries: usize,
    tokens: usize,
    keys: usize,
    heads: Heads,
    sight: Sight<'a>,
}

impl<'a> Job<'a> {
    #[inline(always)]
    fn head<T: Operands>(&self, head: usize) -> Head<'a, T::Number> {
        let Self { qkv, out, queries, tokens, keys, heads, sight } = *self;
        let (width, qkv) = (heads.count * heads.dim, T::numbers(qkv));
        let distances = sight.distances.map(|all| all.values.chunks_exact(2 * all.farthest + 1).nth(head));
        Head {
            qkv,
            stride: qkv.len() / tokens,
            out,
            queries,
            tokens,
            keys,
            width,
            dim: heads.dim,
            column: head * heads.dim,
            window: sight.window.unwrap_or(tokens).min(tokens),
            distances: distances.flatten(),
        }
    }
}

struct Head<'a, N> {
    qkv: &'a [N],
    /// How many numbers a token's are from those of the next.
    stride: usize,
    /// It has `queries` rows; no other head uses this one's columns.
    out: Place<*mut f32>,
    queries: usize,
    tokens: usize,
    /// How many tokens, the first ones, have keys and values.
    keys: usize,
    /// Of all heads.
    width: usize,
    dim: usize,
    /// Where the head begins.
    column: usize,
    /// How far keys are away at most.
    window: usize,
    /// What is added to the scores, of a query's own key in the middle.
    distances: Option<&'a [f32]>,
}

/// How the operands of a tile's products lie.
trait Operands: Tile {
    /// What queries, keys and values are.
    type Number: Copy;
    /// Returns all rows.
    fn numbers(qkv: Qkv<'_>) -> &[Self::Number];
    /// The elements of a row of `inputs` numbers, and the strips of a panel; of 32 and their multiples there are no others
    /// between them.
    fn steps(inputs: usize) -> (usize, usize);
    /// Returns rows of `inputs` numbers as products read them.
    ///
    /// # Safety
    /// `x` must have the rows, for as long as the result is used.
    #[allow(unsafe_code)]
    unsafe fn rows(
        x: Place<*const Self::Number>,
        rows: usize,
        inputs: usize,
        rounded: &mut Rounded,
    ) -> Place<*const u32>;
    /// Writes a panel of up to 32 columns whose inputs are `rows`, zeros behind the last.
    fn pack<'a>(rows: impl Fn(usize) -> &'a [Self::Number], count: usize, panel: &mut [Strip])
    where
        Self::Number: 'a;
    /// Writes a panel whose columns are `rows`, up to 32.
    fn pack_columns<'a>(rows: impl Fn(usize) -> &'a [Self::Number], count: usize, panel: &mut [Strip])
    where
        Self::Number: 'a;
    /// Returns where the weights go that `scores`, [`STRIDE`] apart, become.
    fn weights(scores: *mut f32, rows: usize, keys: usize, rounded: &mut Rounded) -> Place<*mut u32>;
    /// `e^((score - largest) * scale)`, as exactly as products read it; exactly 0 of a score of negative infinity.
    fn weight(score: Self::V, largest: Self::V, scale: Self::V) -> Self::V;
    /// Writes two registers of a row's weights, which begin with that of key `at`, a multiple of their lanes, and adds them to the
    /// lanes of `sums` as products read them.
    ///
    /// # Safety
    /// `row` must have room for them.
    #[allow(unsafe_code)]
    unsafe fn put(weights: [Self::V; 2], at: usize, row: *mut u32, sums: &mut [Self::V; 2]);
}

impl<V: Vector> Operands for Floats<V> {
    type Number = f32;

    #[inline(always)]
    fn numbers(qkv: Qkv<'_>) -> &[f32] {
        match qkv {
            Qkv::Floats(qkv) => qkv,
            Qkv::Rounded(_) => unreachable!("only tiles read rounded rows; this is a bug"),
        }
    }

    #[inline(always)]
    fn steps(inputs: usize) -> (usize, usize) {
        (inputs, inputs)
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn rows(x: Place<*const f32>, _: usize, _: usize, _: &mut Rounded) -> Place<*const u32> {
        Place { first: x.first.cast(), stride: x.stride }
    }

    #[inline(always)]
    fn pack<'a>(rows: impl Fn(usize) -> &'a [f32], count: usize, panel: &mut [Strip]) {
        for (i, strip) in panel[..count].iter_mut().enumerate() {
            for (to, x) in strip.0.iter_mut().zip(rows(i)) {
                *to = x.to_bits();
            }
        }
    }

    #[inline(always)]
    fn pack_columns<'a>(rows: impl Fn(usize) -> &'a [f32], count: usize, panel: &mut [Strip]) {
        for column in 0..count {
            for (strip, x) in panel.iter_mut().zip(rows(column)) {
                strip.0[column] = x.to_bits();
            }
        }
    }

    #[inline(always)]
    fn weights(scores: *mut f32, _: usize, _: usize, _: &mut Rounded) -> Place<*mut u32> {
        Place { first: scores.cast(), stride: STRIDE }
    }

    #[inline(always)]
    fn weight(score: V, largest: V, scale: V) -> V {
        score.sub(largest).mul(scale).exp()
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn put(weights: [V; 2], at: usize, row: *mut u32, sums: &mut [V; 2]) {
        *sums = [sums[0].add(weights[0]), sums[1].add(weights[1])];
        let row = row.cast::<f32>();
        // SAFETY: the caller's promise.
        unsafe {
            weights[0].store(row.add(at));
            weights[1].store(row.add(at + V::LANES));
        }
    }
}

fn run(kernel: Kernel, job: &Job<'_>, heads: Range<usize>, scratch: &mut Scratch) {
    #[inline(always)]
    fn each<T: Operands>(job: &Job<'_>, heads: Range<usize>, scratch: &mut Scratch) {
        // Once for all heads: of short sequences, setting tiles up takes as long as a product.
        let mut state = T::State::default();
        for head in heads {
            attend::<T>(&mut state, &job.head::<T>(head), scratch);
        }
    }
    #[inline(always)]
    fn floats<V: Vector>(job: &Job<'_>, heads: Range<usize>, scratch: &mut Scratch) {
        each::<Floats<V>>(job, heads, scratch);
    }
    #[cfg(target_arch = "x86_64")]
    {
        use super::panels::{Precision, amx, dot};
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        fn of_halves<T: Operands>(job: &Job<'_>, heads: Range<usize>, scratch: &mut Scratch) {
            each::<T>(job, heads, scratch);
        }
        if let Kernel::Tiles(precision) = kernel {
            // SAFETY: a kernel's instructions are detected before it is chosen.
            #[allow(unsafe_code)]
            return match precision {
                Precision::Bf16 if matches!(job.qkv, Qkv::Rounded(_)) => unsafe {
                    of_halves::<tiles::Halves>(job, heads, scratch);
                },
                Precision::F32 | Precision::Bf16x2 => unsafe { of_halves::<amx::Split>(job, heads, scratch) },
                Precision::Bf16 | Precision::Int8 => unsafe { of_halves::<amx::Brief>(job, heads, scratch) },
            };
        }
        // Of few keys, products are too little of the time to be worth what rounding loses.
        if kernel == Kernel::Bf16 && job.keys > PANEL {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            return unsafe { of_halves::<dot::x86::Bf16>(job, heads, scratch) };
        }
    }
    let level = if let Kernel::Floats(level) = kernel { level } else { Level::best() };
    at_level!(level, floats::<V>(job: &Job<'_>, heads: Range<usize>, scratch: &mut Scratch));
}

#[inline(always)]
fn attend<T: Operands>(tiles: &mut T::State, head: &Head<'_, T::Number>, scratch: &mut Scratch) {
    let Head { qkv, stride, out, queries, keys: tokens, dim, column, window, .. } = *head;
    scratch.pack::<T>(head);
    let value_panels = dim.div_ceil(PANEL);
    let sum_stride = value_panels * PANEL;
    // A pointer, as weights may take the place of scores.
    let scores = scratch.scores.floats(ROWS * STRIDE).as_mut_ptr();
    let [sums, more] = [&mut scratch.sums, &mut scratch.more].map(|sums| sums.floats(ROWS * sum_stride));
    let mut first = 0;
    while first < queries {
        let count = share::<T>(queries - first);
        let mut seen = [Seen { largest: f32::NEG_INFINITY, total: 0.0 }; ROWS];
        // SAFETY: the queries of `count` tokens lie a stride apart.
        #[allow(unsafe_code)]
        let rows = unsafe {
            let rows = Place { first: qkv[first * stride + column..].as_ptr(), stride };
            T::rows(rows, count, dim, &mut scratch.queries)
        };
        // What one of these queries sees, from a whole panel on.
        let nearest = first.saturating_sub(window) / PANEL * PANEL;
        let farthest = tokens.min(first + count + window);
        for start in (nearest..farthest).step_by(BLOCK_KEYS) {
            let keys = BLOCK_KEYS.min(farthest - start);
            let of = T::steps(dim).1;
            let key_panels = scratch.keys[start / PANEL * of..].chunks_exact(of).take(keys.div_ceil(PANEL));
            for (p, panel) in key_panels.enumerate() {
                // SAFETY: the queries are as long as the panel, and there are `BLOCK_KEYS` scores, whole panels, for each.
                #[allow(unsafe_code)]
                unsafe {
                    let to = Place { first: scores.add(p * PANEL), stride: STRIDE };
                    T::multiply(tiles, count, rows, panel, to, &mut ());
                }
            }
            let mut carried = [0.0; ROWS];
            let weights = T::weights(scores, count, keys, &mut scratch.rounded);
            for i in 0..count {
                // SAFETY: there is a row of `STRIDE` scores for each of a tile's, which nothing else uses meanwhile, and of weights.
                #[allow(unsafe_code)]
                unsafe {
                    let scores = scores.add(i * STRIDE);
                    let scale = head.look(std::slice::from_raw_parts_mut(scores, keys), first + i, start);
                    carried[i] = weigh::<T>(scores, keys, scale, &mut seen[i], weights.first.add(i * weights.stride));
                }
            }
            // The sums of the blocks before are scaled to the new largest score, and those of this one added.
            let to = if start == nearest { &mut *sums } else { &mut *more };
            let weights = Place { first: weights.first.cast_const(), stride: weights.stride };
            for p in 0..value_panels {
                let panel = &scratch.values[p * T::steps(tokens).1 + T::steps(start).1..][..T::steps(keys).1];
                // SAFETY: the rows are as long as the panel, and there is room for their sums.
                #[allow(unsafe_code)]
                unsafe {
                    let to = Place { first: to.as_mut_ptr().add(p * PANEL), stride: sum_stride };
                    T::multiply(tiles, count, weights, panel, to, &mut ());
                }
            }
            if start > nearest {
                let sums = sums.chunks_exact_mut(sum_stride).zip(more.chunks_exact(sum_stride));
                for ((sums, more), carried) in sums.zip(&carried[..count]) {
                    for (sum, more) in sums.iter_mut().zip(more) {
                        *sum = *sum * carried + more;
                    }
                }
            }
        }
        for (i, sums) in sums.chunks_exact(sum_stride).take(count).enumerate() {
            let inverse = 1.0 / seen[i].total;
            // SAFETY: the head's columns of one of its rows.
            #[allow(unsafe_code)]
            let to = unsafe { std::slice::from_raw_parts_mut(out.first.add((first + i) * out.stride + column), dim) };
            for (to, x) in to.iter_mut().zip(sums) {
                *to = x * inverse;
            }
        }
        first += count;
    }
}

impl<N> Head<'_, N> {
    /// Adds to a query's scores of the keys from `start` on what distances add, and hides those out of sight. Returns what scores
    /// are still to be multiplied by.
    #[inline(always)]
    fn look(&self, scores: &mut [f32], query: usize, start: usize) -> f32 {
        let mut scale = 1.0 / (self.dim as f32).sqrt();
        if let Some(distances) = self.distances {
            for (score, distance) in scores.iter_mut().zip(&distances[distances.len() / 2 + start - query..]) {
                *score = *score * scale + distance;
            }
            scale = 1.0;
        }
        if self.window < self.tokens {
            let keys = scores.len();
            let place = |token: usize| token.saturating_sub(start).min(keys);
            scores[..place(query.saturating_sub(self.window))].fill(f32::NEG_INFINITY);
            scores[place(query + self.window + 1)..].fill(f32::NEG_INFINITY);
        }
        scale
    }
}

impl Scratch {
    /// Makes panels of a head's keys and values. What is left of others gives scores that are overwritten, and columns of
    /// sums that are not read.
    #[inline(always)]
    fn pack<T: Operands>(&mut self, head: &Head<'_, T::Number>) {
        let Head { qkv, stride, keys: tokens, width, dim, column, .. } = *head;
        let row = |token: usize, part: usize| &qkv[token * stride + part * width + column..][..dim];
        let value_panels = dim.div_ceil(PANEL);
        let key_panel = T::steps(dim).1;
        let value_panel = T::steps(tokens).1;
        self.keys.resize(tokens.div_ceil(PANEL) * key_panel, Strip([0; PANEL]));
        self.values.resize(value_panels * value_panel, Strip([0; PANEL]));
        for (p, panel) in self.keys.chunks_exact_mut(key_panel).enumerate() {
            T::pack_columns(|lane| row(p * PANEL + lane, 1), PANEL.min(tokens - p * PANEL), panel);
        }
        for (p, panel) in self.values.chunks_exact_mut(value_panel).enumerate() {
            let columns = p * PANEL..dim.min((p + 1) * PANEL);
            T::pack(|token| &row(token, 2)[columns.clone()], tokens, panel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::panels::{Known, Precision};

    /// From -2 to 2, each of which bfloat16 has.
    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 2_654_435_761) % 257) as f32 / 64.0 - 2.0).collect()
    }

    fn kernels() -> Vec<Kernel> {
        let brief = Kernel::best(Precision::Bf16);
        let mut all = Kernel::all(Precision::Bf16x2);
        all.extend(Some(brief).filter(|kernel| !matches!(kernel, Kernel::Widened(_))));
        all
    }

    /// How far from the formula: numbers are up to 2, and weights add up to 1, which bfloat16 rounds by up to a 512th.
    fn tolerance(kernel: Kernel) -> f64 {
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Bf16 | Kernel::Tiles(Precision::Bf16) => 4e-3,
            #[cfg(target_arch = "x86_64")]
            Kernel::Tiles(_) => 3e-5,
            _ => 1e-5,
        }
    }

    /// The formula in f64.
    fn plain(qkv: &[f32], heads: Heads, sight: Sight<'_>) -> Vec<f64> {
        let Heads { count, dim } = heads;
        let width = count * dim;
        let tokens = qkv.len() / (3 * width);
        let at = |t: usize, part: usize, h: usize, i: usize| f64::from(qkv[t * 3 * width + part * width + h * dim + i]);
        let mut out = vec![0.0; tokens * width];
        for (h, q) in (0..count).flat_map(|h| (0..tokens).map(move |q| (h, q))) {
            let weights: Vec<f64> = (0..tokens)
                .map(|t| {
                    let product: f64 = (0..dim).map(|i| at(q, 0, h, i) * at(t, 1, h, i)).sum();
                    let distance = sight
                        .distances
                        .map_or(0.0, |all| f64::from(all.values[h * (2 * all.farthest + 1) + all.farthest + t - q]));
                    let beyond = sight.keys.is_some_and(|keys| t >= keys);
                    let hidden = beyond || sight.window.is_some_and(|window| q.abs_diff(t) > window);
                    if hidden { 0.0 } else { (product / (dim as f64).sqrt() + distance).exp() }
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for i in 0..dim {
                out[q * width + h * dim + i] = (0..tokens).map(|t| weights[t] / total * at(t, 2, h, i)).sum();
            }
        }
        out
    }

    #[test]
    fn every_level_agrees_with_the_formula_in_f64() {
        let shapes = [(1, 1, 1), (1, 2, 4), (2, 3, 5), (17, 4, 32), (65, 2, 64), (33, 1, 40), (BLOCK_KEYS + 70, 1, 16)];
        let windows = [None, Some(0), Some(1), Some(20), Some(BLOCK_KEYS - 7)];
        for (tokens, count, dim) in shapes {
            let (heads, width) = (Heads { count, dim }, count * dim);
            let qkv = numbers(tokens * 3 * width);
            let farthest = tokens + 3;
            let distances = Distances { farthest, values: numbers(count * (2 * farthest + 1)) };
            for (window, distances) in windows.into_iter().flat_map(|w| [(w, None), (w, Some(&distances))]) {
                let sight = Sight { keys: None, window, distances };
                let want = plain(&qkv, heads, sight);
                for kernel in kernels() {
                    let run = |rows: usize, threads: Threads| {
                        let mut out = vec![f32::NAN; rows * width];
                        attention(kernel, &mut out, Qkv::Floats(&qkv), heads, sight, threads);
                        out
                    };
                    let out = run(tokens, Threads::One);
                    assert_eq!(out, run(tokens, Threads::All));
                    assert_eq!(run(1, Threads::One), out[..width]);
                    for (want, got) in want.iter().zip(&out) {
                        let error = (want - f64::from(*got)).abs();
                        assert!(
                            error < tolerance(kernel),
                            "{kernel:?} {tokens} tokens, window {window:?}: {want} {got}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn tokens_without_keys_still_see_those_of_others() {
        let heads = Heads { count: 2, dim: 24 };
        let (tokens, keys, width) = (70, 33, 48);
        let qkv = numbers(tokens * 3 * width);
        let farthest = tokens;
        let distances = Distances { farthest, values: numbers(2 * (2 * farthest + 1)) };
        for kernel in kernels() {
            for (window, distances) in
                [(None, None), (Some(40), None), (None, Some(&distances)), (Some(50), Some(&distances))]
            {
                let run = |qkv: &[f32], queries: usize, keys: Option<usize>| {
                    let mut out = vec![f32::NAN; queries * width];
                    let sight = Sight { keys, window, distances };
                    attention(kernel, &mut out, Qkv::Floats(qkv), heads, sight, Threads::One);
                    out
                };
                let part = run(&qkv, tokens, Some(keys));
                // Those that have keys are as if alone.
                assert_eq!(part[..keys * width], run(&qkv[..keys * 3 * width], keys, None));
                // Others' keys and values do not matter.
                let mut other = qkv.clone();
                for row in other[keys * 3 * width..].chunks_exact_mut(3 * width) {
                    row[width..].fill(f32::NAN);
                }
                assert_eq!(part, run(&other, tokens, Some(keys)));
                let want = plain(&qkv, heads, Sight { keys: Some(keys), window, distances });
                for (want, got) in want.iter().zip(&part) {
                    assert!(
                        (want - f64::from(*got)).abs() < tolerance(kernel),
                        "{kernel:?} window {window:?}: {want} {got}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_other_sequences_left_behind_does_not_matter() {
        let heads = Heads { count: 2, dim: 24 };
        let qkv = numbers(21 * 3 * 48);
        for kernel in kernels() {
            let run = |tokens: usize, qkv: &[f32]| {
                let mut out = vec![0.0; tokens * 48];
                attention(kernel, &mut out, Qkv::Floats(qkv), heads, Sight::default(), Threads::One);
                out
            };
            SCRATCH.take();
            let fresh = run(21, &qkv);
            SCRATCH.take();
            run(90, &vec![f32::NAN; 90 * 3 * 48]);
            assert_eq!(fresh, run(21, &qkv), "{kernel:?}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn rows_that_are_rounded_already_give_the_same_bits() {
        let kernel = Kernel::Tiles(Precision::Bf16);
        if !kernels().contains(&kernel) {
            return;
        }
        let shapes = [(1, 1, 32), (2, 3, 64), (17, 4, 32), (31, 1, 96), (65, 2, 64), (BLOCK_KEYS + 70, 1, 32)];
        for (tokens, count, dim) in shapes {
            let (heads, width) = (Heads { count, dim }, count * dim);
            // Not those that bfloat16 has.
            let qkv: Vec<f32> = numbers(tokens * 3 * width).iter().map(|x| x * 1.000_7).collect();
            let mut rounded = Rounded::new();
            let rounded = rounded.room(tokens * Kernel::rounding(3 * width));
            rounded.fill(u32::MAX);
            crate::kernels::panels::amx::round(Precision::Bf16, &qkv, 3 * width, &Known::default(), rounded);
            for (keys, window, first) in
                [(tokens, None, tokens), (tokens.div_ceil(2), Some(tokens), tokens), (tokens, Some(3), 1)]
            {
                let run = |qkv: Qkv<'_>| {
                    let sight = Sight { keys: Some(keys), window, distances: None };
                    let mut out = vec![f32::NAN; first * width];
                    attention(kernel, &mut out, qkv, heads, sight, Threads::One);
                    out
                };
                let want = run(Qkv::Floats(&qkv));
                assert!(want.iter().all(|x| x.is_finite()));
                SCRATCH.take();
                assert_eq!(want, run(Qkv::Rounded(rounded)), "{tokens} of {count} x {dim}");
                // What was packed of others does not matter.
                run(Qkv::Floats(&vec![f32::NAN; qkv.len()]));
                assert_eq!(want, run(Qkv::Rounded(rounded)), "{tokens} of {count} x {dim}");
            }
        }
    }
}
