//! Matrix products with weights as files hold them: ggml's block formats, and single, half and bfloat16 precision.
//!
//! Weights are read in place, from mapped bytes of any alignment, four rows at a time, or sixteen with AVX-512 and many
//! activation rows; they are unpacked once for all of those. With block formats the activations are rounded to bytes as
//! ggml rounds them, products are sums of integers, and the sums are added in llama.cpp's order, so that results are its own
//! to the last bit wherever it uses the same instructions. A product does not depend on how many activation rows are
//! computed with it, but on how many are said to be read together.

mod dense;
mod format;
mod rounded;
mod rows;
#[cfg(test)]
mod tests;
mod unit;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::gguf::GgmlType;
#[cfg(target_arch = "x86_64")]
use crate::kernels::amx;
use dense::{BF16, Dense, DenseRounded, Element, F16, F32};
use format::{
    Block, IQ4NL, IQ4XS, Portable, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Rounding, SuperBlock,
};
use rayon::prelude::*;
use rounded::Rounded;
use rows::ROWS;
use unit::{Orders, Out, Space, Unit};

/// Weight rows that are handed to a thread together: a panel of them.
const UNIT: usize = 4 * ROWS;

/// A matrix as it lies in a file: `rows` rows of `cols` weights, one row after the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    dtype: GgmlType,
    rows: usize,
    cols: usize,
    /// How many bytes a row takes.
    row_bytes: usize,
    data: &'a [u8],
    /// Whether activations are rounded to the type of dense weights and products are added as ggml does it.
    as_ggml: bool,
}

/// Calls `$blocks!(F)` for the type of a format of blocks, `$packed!(F)` where llama.cpp packs those anew, `$super!(F)` for
/// one of superblocks, `$dense!(E)` for a dense one.
macro_rules! by_dtype {
    ($dtype:expr, $blocks:ident, $packed:ident, $super:ident, $dense:ident) => {
        match $dtype {
            GgmlType::F32 => $dense!(F32),
            GgmlType::F16 => $dense!(F16),
            GgmlType::BF16 => $dense!(BF16),
            GgmlType::Q4_0 => $packed!(Q4_0),
            GgmlType::Q4_1 => $blocks!(Q4_1),
            GgmlType::Q5_0 => $blocks!(Q5_0),
            GgmlType::Q5_1 => $blocks!(Q5_1),
            GgmlType::Q8_0 => $blocks!(Q8_0),
            GgmlType::Q2_K => $super!(Q2K),
            GgmlType::Q3_K => $super!(Q3K),
            GgmlType::Q4_K => $super!(Q4K),
            GgmlType::Q5_K => $super!(Q5K),
            GgmlType::Q6_K => $super!(Q6K),
            GgmlType::IQ4_NL => $packed!(IQ4NL),
            GgmlType::IQ4_XS => $super!(IQ4XS),
            other => unreachable!("{other} was refused when the matrix was made; this is a bug"),
        }
    };
}
use by_dtype;

/// The instructions at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// The same, and the tiles of AMX.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Level {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 && is_x86_feature_detected!("avx512vnni") {
                return if amx::available() { Self::Tiles } else { Self::Vnni };
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Plain
    }

    /// Whether there are instructions for bfloat16.
    #[allow(clippy::unused_self, reason = "where there are no levels")]
    fn brief(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.vnni() && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether there are the byte dot products of AVX-512.
    #[cfg(target_arch = "x86_64")]
    fn vnni(self) -> bool {
        matches!(self, Self::Vnni | Self::Tiles)
    }
}

impl<'a> Matrix<'a> {
    /// Returns whether products with weights of this type are implemented.
    pub(crate) fn supports(dtype: GgmlType) -> bool {
        use GgmlType as T;
        matches!(
            dtype,
            T::F32
                | T::F16
                | T::BF16
                | T::Q4_0
                | T::Q4_1
                | T::Q5_0
                | T::Q5_1
                | T::Q8_0
                | T::Q2_K
                | T::Q3_K
                | T::Q4_K
                | T::Q5_K
                | T::Q6_K
                | T::IQ4_NL
                | T::IQ4_XS
        )
    }

    /// Returns the matrix whose bytes are `data`.
    ///
    /// # Panics
    /// Where the type is not supported or the bytes are not those of such a matrix; the loader checks both.
    pub(crate) fn new(dtype: GgmlType, rows: usize, cols: usize, data: &'a [u8]) -> Self {
        assert!(Self::supports(dtype), "{dtype} is refused by the loader; this is a bug");
        assert_eq!(cols % dtype.block_size(), 0, "a row is whole blocks; this is a bug");
        let row_bytes = cols / dtype.block_size() * dtype.block_bytes();
        assert_eq!(data.len(), rows * row_bytes, "the loader checks the size; this is a bug");
        Self { dtype, rows, cols, row_bytes, data, as_ggml: false }
    }

    /// Returns the same with dense weights treated as those of a GGUF file.
    pub(crate) fn as_ggml(self) -> Self {
        Self { as_ggml: true, ..self }
    }

    fn rounding(&self) -> Option<Rounding> {
        use GgmlType as T;
        match self.dtype {
            T::Q4_0 | T::Q5_0 | T::Q8_0 | T::IQ4_NL => Some(Rounding::Q8_0),
            T::Q4_1 | T::Q5_1 => Some(Rounding::Q8_1),
            T::Q2_K | T::Q3_K | T::Q4_K | T::Q5_K | T::Q6_K | T::IQ4_XS => Some(Rounding::Q8K),
            _ => None,
        }
    }

    /// Whether llama.cpp packs the matrix anew when it loads it, which gives it another order of additions: what
    /// `ggml_repack_get_optimal_repack_type` says of AVX-512.
    fn packed(&self) -> bool {
        use GgmlType as T;
        matches!(self.dtype, T::Q4_0 | T::IQ4_NL | T::Q2_K | T::Q4_K) && self.rows.is_multiple_of(8)
    }

    /// Whether many activation rows are multiplied by tiles: in llama.cpp's order blocks, or parts of them, are one integer.
    #[cfg(target_arch = "x86_64")]
    fn tiled(&self) -> bool {
        self.packed() || self.rounding() == Some(Rounding::Q8K)
    }

    /// Writes the weights of `row` to `out`.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let bytes = &self.data[row * self.row_bytes..(row + 1) * self.row_bytes];
        macro_rules! blocks {
            ($f:ty) => {
                unpack_blocks::<$f>(bytes, out)
            };
        }
        macro_rules! superblocks {
            ($f:ty) => {
                unpack_super::<$f>(bytes, out)
            };
        }
        macro_rules! dense {
            ($e:ty) => {
                for (out, bytes) in out.iter_mut().zip(bytes.chunks_exact(<$e>::BYTES)) {
                    *out = <$e>::read::<Portable>(bytes);
                }
            };
        }
        by_dtype!(self.dtype, blocks, blocks, superblocks, dense);
    }
}

fn unpack_blocks<F: Block>(bytes: &[u8], out: &mut [f32]) {
    let mut u = [0; 32];
    for (block, out) in bytes.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(32)) {
        let (scale, min) = F::unpack::<Portable>(block, &mut u);
        for (out, u) in out.iter_mut().zip(u) {
            *out = scale * (i32::from(u) - i32::from(F::OFFSET)) as f32 + min;
        }
    }
}

fn unpack_super<F: SuperBlock>(bytes: &[u8], out: &mut [f32]) {
    let (mut u, mut scales, mut mins) = ([0; 256], [0; 16], [0; 16]);
    for (block, out) in bytes.chunks_exact(F::BYTES).zip(out.chunks_exact_mut(256)) {
        let (scale, min) = F::unpack::<Portable>(block, &mut u, &mut scales, &mut mins);
        for (i, (out, u)) in out.iter_mut().zip(u).enumerate() {
            let weight = (i32::from(u) - i32::from(F::OFFSET)) as f32;
            *out = scale * f32::from(scales[i / 16]) * weight - min * f32::from(mins[i / 16]);
        }
    }
}

/// Activations rounded for the formats at hand; kept between products to be reused.
#[derive(Default)]
pub(crate) struct Scratch {
    /// By the number of the rounding.
    rounded: [Rounded; 3],
    /// The same for tiles.
    #[cfg(target_arch = "x86_64")]
    turned: [x86::Turned; 3],
    dense: DenseRounded,
}

impl Scratch {
    fn of(&self, rounding: Rounding) -> &Rounded {
        &self.rounded[rounding as usize]
    }
}

/// One product of several with the same activations.
pub(crate) struct Product<'a> {
    pub(crate) matrix: Matrix<'a>,
    /// `(activation rows, matrix rows)`.
    pub(crate) out: &'a mut [f32],
}

/// Computes each product's `out = x · matrixᵀ`, where `x` is rows of as many numbers as the matrices have columns.
///
/// The rows are the last of `batch` that are read together: llama.cpp's order of additions, which this follows, depends on
/// how many there are. Runs on the rayon pool that it is called in.
pub(crate) fn multiply(x: &[f32], batch: usize, scratch: &mut Scratch, products: &mut [Product<'_>]) {
    multiply_at(Level::detect(), x, batch, scratch, products, None);
}

/// Computes two products as [`multiply`] does, then `gate(first, second)` with neighbours of each row, which are still at
/// hand: multiples of sixteen, but for the last of a row.
pub(crate) fn multiply_gated(
    x: &[f32],
    batch: usize,
    scratch: &mut Scratch,
    mut products: [Product<'_>; 2],
    gate: Gate<'_>,
) {
    multiply_at(Level::detect(), x, batch, scratch, &mut products, Some(gate));
}

/// What a gate does with numbers of the first product and those of the second.
type Gate<'a> = &'a (dyn Fn(&mut [f32], &[f32]) + Sync);

fn multiply_at(
    level: Level,
    x: &[f32],
    batch: usize,
    scratch: &mut Scratch,
    products: &mut [Product<'_>],
    gate: Option<Gate<'_>>,
) {
    let Some(width) = products.first().map(|p| p.matrix.cols) else { return };
    let rows = x.len() / width;
    // How many of the rows are in whole fours of the batch.
    let fours = (batch / 4 * 4).saturating_sub(batch.saturating_sub(rows)).min(rows);
    for rounding in [Rounding::Q8_0, Rounding::Q8_1, Rounding::Q8K] {
        if products.iter().any(|p| p.matrix.rounding() == Some(rounding)) {
            scratch.rounded[rounding as usize].fill(level, x, width, rounding);
            #[cfg(target_arch = "x86_64")]
            if level == Level::Tiles
                && products.iter().any(|p| p.matrix.rounding() == Some(rounding) && p.matrix.tiled())
            {
                scratch.turned[rounding as usize].fill(&scratch.rounded[rounding as usize], rounding);
            }
        }
    }
    let dense = |dtype| products.iter().any(|p| p.matrix.as_ggml && p.matrix.dtype == dtype);
    if dense(GgmlType::F16) {
        scratch.dense.fill_halves(x, width);
    }
    if dense(GgmlType::BF16) {
        scratch.dense.fill_brief(x, width, level.brief());
    }
    // Work is cut along weight rows; `starts` says which product a unit belongs to.
    let mut starts = Vec::with_capacity(products.len());
    let mut units = 0;
    for product in products.iter_mut() {
        assert_eq!(product.matrix.cols, width, "products share their activations; this is a bug");
        assert_eq!(product.out.len(), rows * product.matrix.rows, "the output fits; this is a bug");
        let out = Out { start: product.out.as_mut_ptr(), stride: product.matrix.rows, len: product.out.len() };
        starts.push((units, product.matrix, out));
        units += product.matrix.rows.div_ceil(UNIT);
    }
    let scratch = &*scratch;
    let one = |space: &mut Space, matrix: Matrix<'_>, out: Out, first: usize| {
        let last = (first + UNIT).min(matrix.rows);
        let orders = Orders { rows, batch, fours };
        Unit { level, matrix, out, first, last }.multiply(Dense { x, width, paired: false }, scratch, orders, space);
        last
    };
    let each = |units: usize, work: &(dyn Fn(&mut Space, usize) + Sync)| {
        // Decoding a token is many short products: few pieces, so that handing them out costs little.
        let pieces = if rows < 8 { 2 * rayon::current_num_threads() } else { units };
        let units = (0..units).into_par_iter().with_min_len(units.div_ceil(pieces.max(1)));
        units.for_each_init(Space::default, work);
    };
    let Some(gate) = gate else {
        return each(units, &|space, unit| {
            let (start, matrix, out) = starts[starts.partition_point(|(start, ..)| *start <= unit) - 1];
            one(space, matrix, out, (unit - start) * UNIT);
        });
    };
    let [(_, a, gated), (half, b, by)] = starts[..] else { unreachable!("a gate has two products; this is a bug") };
    assert_eq!(a.rows, b.rows, "a gate has as many numbers as what it gates; this is a bug");
    each(half, &|space, unit| {
        let first = unit * UNIT;
        let last = one(space, a, gated, first);
        one(space, b, by, first);
        for row in 0..rows {
            // SAFETY: this unit has just written these numbers, and no other reaches them.
            #[allow(unsafe_code)]
            unsafe {
                gate(gated.part(row, first, last), by.part(row, first, last));
            }
        }
    });
}
