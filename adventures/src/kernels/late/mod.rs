//! Late interaction over compressed tokens: how near each token of a query comes to some token of a document, summed.
//!
//! A token is `centroid + scale * level[code]` for each of its dimensions. What a query has with the centroids is computed
//! once, in f32; what it has with the levels is a sum of small integers, the same on every CPU.

mod encode;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use encode::{any_above, nearest, quantize, raise};

/// Tokens of a query that are computed with together.
pub(crate) const BLOCK: usize = 32;
/// What is added to a level, so that it is a byte without a sign. Levels are -63 to 63: two products of a level and a query's
/// byte fit 16 bits, which AVX2 adds them in.
pub(crate) const ZERO: i32 = 64;
/// Dimensions in an element: a 32-bit lane.
const GROUP: usize = 4;

/// How the codes of a token lie: byte `j` of a row holds dimension `j` of each plane, the first plane in the lowest bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of a code: 1, 2 or 4.
    pub(crate) nbits: usize,
    /// Bytes of a row, a multiple of four, which is also how many dimensions a plane has.
    pub(crate) row: usize,
}

impl Layout {
    pub(crate) fn new(dim: usize, nbits: usize) -> Self {
        assert!(matches!(nbits, 1 | 2 | 4), "codes of 1, 2 or 4 bits; this is a bug");
        Self { nbits, row: dim.div_ceil(8 / nbits).next_multiple_of(GROUP) }
    }

    /// How many codes a byte holds.
    pub(crate) fn planes(self) -> usize {
        8 / self.nbits
    }

    /// Puts the codes of one token into a row.
    pub(crate) fn pack(self, codes: &[u8], row: &mut [u8]) {
        row.fill(0);
        for (plane, codes) in codes.chunks(self.row).enumerate() {
            for (byte, code) in row.iter_mut().zip(codes) {
                *byte |= code << (plane * self.nbits);
            }
        }
    }
}

/// A query as the products read it, in blocks of 32 tokens; those that it lacks are zeros.
pub(crate) struct Query {
    rows: usize,
    /// Block, group of four dimensions, token, dimension.
    bytes: Vec<i8>,
    /// What a byte stands for, of each token.
    scales: Vec<f32>,
    /// `-ZERO` times the sum of the bytes of a token.
    starts: Vec<i32>,
    layout: Layout,
}

impl Query {
    /// `vectors` are `(rows, dim)`, finite.
    pub(crate) fn new(vectors: &[f32], dim: usize, layout: Layout) -> Self {
        let rows = vectors.len() / dim;
        let lanes = rows.next_multiple_of(BLOCK);
        let groups = layout.planes() * layout.row / GROUP;
        let mut bytes = vec![0; lanes * groups * GROUP];
        let (mut scales, mut starts) = (vec![0.0; lanes], vec![0; lanes]);
        for (i, row) in vectors.chunks_exact(dim).enumerate() {
            let largest = row.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
            if largest == 0.0 {
                continue;
            }
            scales[i] = largest / 127.0;
            for (d, x) in row.iter().enumerate() {
                let byte = (x * (127.0 / largest)).round() as i8;
                bytes[((i / BLOCK * groups + d / GROUP) * BLOCK + i % BLOCK) * GROUP + d % GROUP] = byte;
                starts[i] -= ZERO * i32::from(byte);
            }
        }
        Self { rows, bytes, scales, starts, layout }
    }

    /// Tokens, those that fill up the last block included.
    pub(crate) fn lanes(&self) -> usize {
        self.scales.len()
    }
}

/// The compressed tokens of a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens<'a> {
    pub(crate) centroids: Centroids<'a>,
    /// bfloat16.
    pub(crate) scales: &'a [u16],
    pub(crate) rows: &'a [u8],
}

/// The centroid of each token.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Centroids<'a> {
    Narrow(&'a [u16]),
    Wide(&'a [u32]),
}

impl Centroids<'_> {
    #[inline(always)]
    pub(crate) fn get(self, i: usize) -> usize {
        match self {
            Self::Narrow(all) => all[i] as usize,
            Self::Wide(all) => all[i] as usize,
        }
    }

    pub(crate) fn len(self) -> usize {
        match self {
            Self::Narrow(all) => all.len(),
            Self::Wide(all) => all.len(),
        }
    }
}

/// The instructions that a kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Kernel {
    pub(crate) fn best() -> Self {
        *Self::all().last().expect("every CPU has the plain one; this is a bug")
    }

    /// Returns the kernels that this CPU has, the fastest last.
    pub(crate) fn all() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "there is but one"))]
        let mut all = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            all.push(Self::Avx2);
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if wide && is_x86_feature_detected!("avx512vnni") {
                all.push(Self::Vnni);
            }
        }
        all
    }
}

/// What a thread keeps between documents.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Plane, token, dimension: levels with [`ZERO`] added.
    levels: Vec<u8>,
    best: Vec<f32>,
}

/// Returns the sum, over the tokens of `query`, of the largest product that each has with a token.
///
/// `table` is `(centroids, lanes)`: the products of the centroids with the query. A centroid that it lacks is read as the last.
/// Nothing comes near a document without tokens: its score is 0.
pub(crate) fn score(
    kernel: Kernel,
    query: &Query,
    table: &[f32],
    levels: &[u8; 16],
    tokens: Tokens<'_>,
    scratch: &mut Scratch,
) -> f32 {
    let (count, layout) = (tokens.scales.len(), query.layout);
    let shapes = tokens.centroids.len() == count && tokens.rows.len() == count * layout.row;
    assert!(shapes && table.len() >= query.lanes() && !query.scales.is_empty(), "a document's shapes; this is a bug");
    if count == 0 {
        return 0.0;
    }
    scratch.levels.resize(tokens.rows.len() * layout.planes(), 0);
    scratch.best.clear();
    scratch.best.resize(query.lanes(), f32::NEG_INFINITY);
    match kernel {
        Kernel::Plain => {
            expand(layout, levels, tokens.rows, &mut scratch.levels);
            products(query, table, tokens, &scratch.levels, &mut scratch.best);
        }
        // SAFETY: the instructions were detected, and the shapes are checked above.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Kernel::Avx2 => unsafe {
            x86::expand(layout, levels, tokens.rows, &mut scratch.levels);
            x86::products_avx2(query, table, tokens, &scratch.levels, &mut scratch.best);
        },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Kernel::Vnni => unsafe {
            x86::expand(layout, levels, tokens.rows, &mut scratch.levels);
            x86::products_vnni(query, table, tokens, &scratch.levels, &mut scratch.best);
        },
    }
    scratch.best[..query.rows].iter().sum()
}

/// The levels of packed codes, plane by plane.
fn expand(layout: Layout, levels: &[u8; 16], rows: &[u8], out: &mut [u8]) {
    let mask = (1 << layout.nbits) - 1;
    for (plane, out) in out.chunks_exact_mut(rows.len()).enumerate() {
        for (byte, out) in rows.iter().zip(out) {
            *out = levels[(byte >> (plane * layout.nbits) & mask) as usize];
        }
    }
}

/// The largest product of each token of the query.
fn products(query: &Query, table: &[f32], tokens: Tokens<'_>, levels: &[u8], best: &mut [f32]) {
    let (count, row, lanes) = (tokens.scales.len(), query.layout.row, query.lanes());
    let groups = query.layout.planes() * row / GROUP;
    let last = table.len() / lanes - 1;
    for block in 0..lanes / BLOCK {
        for t in 0..count {
            let mut sums = [0; BLOCK];
            sums.copy_from_slice(&query.starts[block * BLOCK..(block + 1) * BLOCK]);
            for group in 0..groups {
                let d = group * GROUP;
                let from = d / row * count * row + t * row + d % row;
                let four = &levels[from..from + GROUP];
                let bytes = &query.bytes[(block * groups + group) * BLOCK * GROUP..][..BLOCK * GROUP];
                for (sum, bytes) in sums.iter_mut().zip(bytes.chunks_exact(GROUP)) {
                    *sum += bytes.iter().zip(four).map(|(q, x)| i32::from(*q) * i32::from(*x)).sum::<i32>();
                }
            }
            let scale = bf16(tokens.scales[t]);
            let near = &table[tokens.centroids.get(t).min(last) * lanes + block * BLOCK..][..BLOCK];
            for (lane, sum) in sums.iter().enumerate() {
                // Not fused, so that every CPU has the same bits.
                let product = *sum as f32 * query.scales[block * BLOCK + lane] * scale + near[lane];
                let best = &mut best[block * BLOCK + lane];
                *best = if product > *best { product } else { *best };
            }
        }
    }
}

/// A bfloat16.
#[inline(always)]
pub(crate) fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
