//! Late interaction over compressed tokens: how near each token of a query comes to some token of a document, summed.
//!
//! A token is `centroid + scale * level[code]` for each of its dimensions. What a query has with the centroids is computed
//! once, in f32; what it has with the levels is a sum of small integers, the same on every CPU.

pub(crate) mod codebooks;
mod encode;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use codebooks::Codebooks;
pub(crate) use encode::{Target, any_above, gains, nearest, quantize};

/// Tokens of a query that are computed with together.
pub(crate) const BLOCK: usize = 32;
/// What is added to a level, so that it is a byte without a sign. Levels are -63 to 63: two products of a level and a query's
/// byte fit 16 bits, which AVX2 adds them in.
pub(crate) const ZERO: i32 = 64;
/// Dimensions in an element: a 32-bit lane.
const GROUP: usize = 4;

/// The largest level.
pub(crate) const LARGEST: i32 = ZERO - 1;

/// How the codes of a token lie. Of 1 or 4 bits, byte `j` of a row holds dimension `j` of each plane, the first plane in the
/// lowest bits; of two, a row is as [`Codebooks`] read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bits of a code, about: 1, 2 or 4.
    pub(crate) nbits: usize,
    /// Bytes of a row.
    pub(crate) row: usize,
    /// How many dimensions a plane has, a multiple of four.
    width: usize,
    planes: usize,
}

impl Layout {
    pub(crate) fn new(dim: usize, nbits: usize) -> Self {
        match nbits {
            1 | 4 => {
                let row = dim.div_ceil(8 / nbits).next_multiple_of(GROUP);
                Self { nbits, row, width: row, planes: 8 / nbits }
            }
            2 => Self { nbits, row: 1 + codebooks::count(dim), width: dim.next_multiple_of(GROUP), planes: 1 },
            _ => unreachable!("codes of {nbits} bits; this is a bug"),
        }
    }

    /// Puts the codes of one token into a row, of 1 or 4 bits.
    pub(crate) fn pack(self, codes: &[u8], row: &mut [u8]) {
        row.fill(0);
        for (plane, codes) in codes.chunks(self.row).enumerate() {
            for (byte, code) in row.iter_mut().zip(codes) {
                *byte |= code << (plane * self.nbits);
            }
        }
    }

    /// Whether rows have scales beside them, not in them.
    pub(crate) fn scaled(self) -> bool {
        self.planes > 1
    }

    /// Levels of `rows` bytes of rows.
    fn levels(self, rows: usize) -> usize {
        rows / self.row * self.width * self.planes
    }
}

/// What codes stand for.
#[derive(Debug)]
pub(crate) enum Levels {
    /// With [`ZERO`] added; a code for each dimension, the scales apart.
    Scalar([u8; 16]),
    Product(Codebooks),
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
        let groups = layout.planes * layout.width / GROUP;
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
    /// bfloat16; none where rows begin with them.
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
    scales: Vec<u16>,
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
    levels: &Levels,
    tokens: Tokens<'_>,
    scratch: &mut Scratch,
) -> f32 {
    let (count, layout) = (tokens.centroids.len(), query.layout);
    assert!(tokens.rows.len() == count * layout.row, "a row for each token; this is a bug");
    assert!(table.len() >= query.lanes() && !query.scales.is_empty(), "a query with its table; this is a bug");
    if count == 0 {
        return 0.0;
    }
    let size = layout.levels(tokens.rows.len());
    // The rest is what an entry of a codebook has beyond its dimensions.
    scratch.levels.resize(size + codebooks::DIMS, 0);
    scratch.best.clear();
    scratch.best.resize(query.lanes(), f32::NEG_INFINITY);
    let tokens = match levels {
        Levels::Product(books) => {
            books.expand(tokens.rows, layout.width, &mut scratch.levels, &mut scratch.scales);
            Tokens { scales: &scratch.scales, ..tokens }
        }
        Levels::Scalar(levels) => {
            let levels_of = &mut scratch.levels[..size];
            match kernel {
                Kernel::Plain => expand(layout, levels, tokens.rows, levels_of),
                // SAFETY: the instructions were detected, and the room is that of the rows.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Kernel::Avx2 | Kernel::Vnni => unsafe { x86::expand(layout, levels, tokens.rows, levels_of) },
            }
            tokens
        }
    };
    assert!(tokens.scales.len() == count, "a scale for each token; this is a bug");
    match kernel {
        Kernel::Plain => products(query, table, tokens, &scratch.levels, &mut scratch.best),
        // SAFETY: the instructions were detected, and the shapes are checked above.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Kernel::Avx2 => unsafe { x86::products_avx2(query, table, tokens, &scratch.levels, &mut scratch.best) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Kernel::Vnni => unsafe { x86::products_vnni(query, table, tokens, &scratch.levels, &mut scratch.best) },
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
    let (count, row, lanes) = (tokens.scales.len(), query.layout.width, query.lanes());
    let groups = query.layout.planes * row / GROUP;
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
