//! Products of a few weight rows with all activation rows: the order that llama.cpp has, and the code that the CPU can run.

use super::dense::{BF16, Dense, Element, F16, F32, Lanes, PAIRED};
use super::format::{
    Block, Halved, IQ4NL, IQ4XS, Order, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Quarters, Rounding,
    Slab, SuperBlock, Whole,
};
use super::rounded::SUPER_PANEL_FROM;
use super::rows::{ROWS, Sums, Unpacked};
#[cfg(target_arch = "x86_64")]
use super::x86::{self, DIRECT, PANEL, Panel};
use super::{Level, Matrix, Scratch, by_dtype};
use crate::gguf::GgmlType;
use crate::kernels::LANES;
#[cfg(target_arch = "x86_64")]
use crate::kernels::amx::{SIDE, Tiles};
use std::ops::Range;

/// What a thread unpacks weights to.
#[derive(Default)]
pub(super) struct Space {
    unpacked: Unpacked,
    dense: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    panel: Panel,
    #[cfg(target_arch = "x86_64")]
    tiles: Tiles,
}

/// What the order of additions depends on: of `rows` activation rows, the last of `batch`, the first `fours` are in whole
/// fours.
#[derive(Clone, Copy)]
pub(super) struct Orders {
    pub(super) rows: usize,
    pub(super) batch: usize,
    pub(super) fours: usize,
}

/// The weight rows `first..last` of a matrix.
pub(super) struct Unit<'a> {
    pub(super) level: Level,
    pub(super) matrix: Matrix<'a>,
    pub(super) out: Out,
    pub(super) first: usize,
    pub(super) last: usize,
}

impl Unit<'_> {
    pub(super) fn multiply(&self, x: Dense<'_>, scratch: &Scratch, orders: Orders, space: &mut Space) {
        #[cfg(target_arch = "x86_64")]
        if self.level.vnni() && self.last - self.first == PANEL {
            // SAFETY: the instructions were detected.
            #[allow(unsafe_code)]
            if unsafe { self.panel(scratch, orders, space) } {
                return;
            }
        }
        let (level, matrix, Orders { rows, batch, .. }) = (self.level, self.matrix, orders);
        let fours = orders.fours;
        for row in (self.first..self.last).step_by(ROWS) {
            let last = (row + ROWS).min(self.last);
            let weights = &matrix.data[row * matrix.row_bytes..last * matrix.row_bytes];
            let unpacked = &mut space.unpacked;
            let mut store = |r: usize, sums: &Sums| self.out.set(r, row, &sums[..last - row]);
            #[cfg(target_arch = "x86_64")]
            if level.vnni() && batch < 8 && fours == 0 && last - row == ROWS {
                // SAFETY: the instructions were detected.
                #[allow(unsafe_code)]
                if unsafe { few(matrix, weights, scratch, 0..rows, &mut store) } {
                    continue;
                }
            }
            macro_rules! blocks {
                ($f:ty) => {
                    blocks::<$f>(level, unpacked, weights, matrix, scratch, 0..rows, &mut store)
                };
            }
            macro_rules! packed {
                ($f:ty) => {
                    if matrix.packed() { blocks!(Whole<$f>) } else { blocks!($f) }
                };
            }
            macro_rules! superblocks {
                ($f:ty) => {
                    if matrix.packed() {
                        if fours > 0 && matrix.dtype == GgmlType::Q2_K {
                            superblocks::<Halved<$f>>(level, unpacked, weights, matrix, scratch, 0..fours, &mut store);
                        } else if fours > 0 {
                            superblocks::<Quarters<$f>>(
                                level,
                                unpacked,
                                weights,
                                matrix,
                                scratch,
                                0..fours,
                                &mut store,
                            );
                        }
                        if fours < rows {
                            superblocks::<$f>(level, unpacked, weights, matrix, scratch, fours..rows, &mut store);
                        }
                    } else if batch >= 8 {
                        superblocks::<Slab<$f>>(level, unpacked, weights, matrix, scratch, 0..rows, &mut store);
                    } else {
                        superblocks::<$f>(level, unpacked, weights, matrix, scratch, 0..rows, &mut store);
                    }
                };
            }
            macro_rules! dense {
                ($e:ty) => {
                    dense::<$e>(level, matrix, weights, x, scratch, lanes(matrix, batch), &mut space.dense, &mut store)
                };
            }
            by_dtype!(matrix.dtype, blocks, packed, superblocks, dense);
        }
    }

    /// The same with the rows side by side; returns whether that is implemented for their type.
    ///
    /// # Safety
    /// The CPU has the instructions of [`Level::Vnni`].
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code, reason = "the instructions were detected by the caller")]
    unsafe fn panel(&self, scratch: &Scratch, orders: Orders, space: &mut Space) -> bool {
        let Space { panel, tiles, .. } = space;
        let (matrix, rows, row_bytes) = (self.matrix, orders.rows, self.matrix.row_bytes);
        let Some(rounding) = matrix.rounding() else { return false };
        let (x, turned) = (scratch.of(rounding), &scratch.turned[rounding as usize]);
        // Rows that tiles have, from the first on.
        let tiled = if self.level == Level::Tiles { turned.groups * SIDE } else { 0 };
        let weights = &matrix.data[self.first * row_bytes..self.last * row_bytes];
        let fours = orders.fours;
        let mut store = |r: usize, products: &[f32; PANEL]| self.out.set(r, self.first, products);
        // SAFETY: the caller has detected the instructions.
        unsafe {
            macro_rules! blocks {
                ($f:ty) => {{
                    if rows <= DIRECT {
                        x86::direct::<$f>(weights, row_bytes, x, &mut store);
                        return true;
                    }
                    panel.fill_blocks::<$f>(weights, row_bytes);
                    let tiled = if <$f>::ORDER == Order::Whole { tiled } else { 0 };
                    panel.blocks::<$f>(x, tiled..rows, &mut store);
                    if tiled > 0 {
                        panel.lower::<$f>();
                        panel.tiles_of_blocks::<$f>(turned, tiles, &mut store);
                    }
                }};
            }
            macro_rules! packed {
                ($f:ty) => {
                    if matrix.packed() { blocks!(Whole<$f>) } else { blocks!($f) }
                };
            }
            macro_rules! superblocks_of {
                ($f:ty, $rows:expr) => {{
                    let groups = tiled.min($rows) / SIDE;
                    panel.superblocks::<$f>(x, groups * SIDE..$rows, &mut store);
                    if groups > 0 {
                        panel.split::<$f>();
                        panel.tiles_of_superblocks::<$f>(turned, groups, tiles, &mut store);
                    }
                }};
            }
            macro_rules! superblocks {
                ($f:ty) => {{
                    // The order of few rows that are not packed is none of whole integers.
                    if rows < SUPER_PANEL_FROM || (!matrix.packed() && orders.batch < 8) {
                        return false;
                    }
                    panel.fill_super::<$f>(weights, row_bytes);
                    if matrix.packed() {
                        panel.superblocks::<$f>(x, fours..rows, &mut store);
                        if matrix.dtype == GgmlType::Q2_K {
                            superblocks_of!(Halved<$f>, fours);
                        } else {
                            superblocks_of!(Quarters<$f>, fours);
                        }
                    } else {
                        superblocks_of!(Slab<$f>, rows);
                    }
                }};
            }
            macro_rules! dense {
                ($e:ty) => {
                    return false
                };
            }
            by_dtype!(matrix.dtype, blocks, packed, superblocks, dense);
        }
        true
    }
}

/// The products of four rows of superblocks whose order is that of few activation rows; returns whether that is implemented
/// for their type.
///
/// # Safety
/// The CPU has the instructions of [`Level::Vnni`].
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "the instructions were detected by the caller")]
unsafe fn few(
    matrix: Matrix<'_>,
    weights: &[u8],
    scratch: &Scratch,
    rows: Range<usize>,
    store: &mut impl FnMut(usize, &Sums),
) -> bool {
    let x = scratch.of(Rounding::Q8K);
    // SAFETY: as above.
    unsafe {
        match matrix.dtype {
            GgmlType::Q4_K => x86::few::<Q4K>(weights, matrix.row_bytes, x, rows, store),
            GgmlType::Q6_K => x86::few::<Q6K>(weights, matrix.row_bytes, x, rows, store),
            _ => return false,
        }
    }
    true
}

/// Where the products of one matrix go; each unit writes columns of its own.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
    pub(super) len: usize,
}

// SAFETY: the pointer is to an exclusive slice that outlives the parallel loop, and no two units write the same column.
#[allow(unsafe_code)]
unsafe impl Send for Out {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Out {}

impl Out {
    /// Neighbouring columns of one row.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the slice is there.
    #[inline(always)]
    #[allow(unsafe_code, clippy::mut_from_ref, reason = "as the caller says")]
    pub(super) unsafe fn part(&self, row: usize, first: usize, last: usize) -> &mut [f32] {
        assert!(first <= last && last <= self.stride && row * self.stride + last <= self.len, "a part; this is a bug");
        // SAFETY: the numbers are there, as was just checked; they are nobody else's, as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + first), last - first) }
    }

    /// Writes neighbouring columns of one row.
    #[inline(always)]
    fn set(self, row: usize, column: usize, values: &[f32]) {
        let at = row * self.stride + column;
        debug_assert!(column + values.len() <= self.stride && at + values.len() <= self.len);
        // SAFETY: rows and columns come from the shapes that `multiply` has checked against the slice.
        #[allow(unsafe_code)]
        unsafe {
            self.start.add(at).copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
    }
}

macro_rules! by_level {
    ($name:ident, $format:ident, $plain:ident, $avx2:ident, $vnni:ident) => {
        fn $name<F: $format>(
            level: Level,
            unpacked: &mut Unpacked,
            weights: &[u8],
            matrix: Matrix<'_>,
            scratch: &Scratch,
            rows: Range<usize>,
            store: &mut impl FnMut(usize, &Sums),
        ) {
            let row_bytes = matrix.row_bytes;
            let rounding = matrix.rounding().expect("a block format has its rounding; this is a bug");
            let x = scratch.of(rounding);
            match level {
                Level::Plain => unpacked.$plain::<F>(weights, row_bytes, x, rows, store),
                // SAFETY: the instructions were detected.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Level::Avx2 => unsafe { unpacked.$avx2::<F>(weights, row_bytes, x, rows, store) },
                // SAFETY: the instructions were detected.
                #[cfg(target_arch = "x86_64")]
                #[allow(unsafe_code)]
                Level::Vnni | Level::Tiles => unsafe { unpacked.$vnni::<F>(weights, row_bytes, x, rows, store) },
            }
        }
    };
}
by_level!(blocks, Block, plain_blocks, avx2_blocks, vnni_blocks);
by_level!(superblocks, SuperBlock, plain_super, avx2_super, vnni_super);

/// How ggml adds the products of a dense matrix: `tinyBLAS` takes several rows whose sizes are whole blocks.
fn lanes(matrix: Matrix<'_>, batch: usize) -> Lanes {
    let block = if matrix.dtype == GgmlType::BF16 { PAIRED } else { LANES };
    let blocks = matrix.cols.is_multiple_of(block) && matrix.rows.is_multiple_of(4);
    if !matrix.as_ggml || (batch > 1 && blocks) { Lanes::One } else { Lanes::Sets }
}

#[allow(clippy::too_many_arguments, reason = "what a unit has, and no more")]
fn dense<E: Element>(
    level: Level,
    matrix: Matrix<'_>,
    weights: &[u8],
    x: Dense<'_>,
    scratch: &Scratch,
    lanes: Lanes,
    unpacked: &mut Vec<f32>,
    store: &mut impl FnMut(usize, &Sums),
) {
    let rounded = &scratch.dense;
    let x = match matrix.dtype {
        GgmlType::F16 if matrix.as_ggml => Dense { x: &rounded.halves, ..x },
        #[cfg(target_arch = "x86_64")]
        GgmlType::BF16 if matrix.as_ggml && level.brief() => {
            // SAFETY: the instructions were detected.
            #[allow(unsafe_code)]
            unsafe {
                x86::brief(weights, &rounded.bits, matrix.cols, lanes, store);
            }
            return;
        }
        GgmlType::BF16 if matrix.as_ggml => Dense { x: &rounded.brief, paired: true, ..x },
        _ => x,
    };
    match level {
        Level::Plain => x.plain::<E>(weights, unpacked, lanes, store),
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Level::Avx2 => unsafe { x.avx2::<E>(weights, unpacked, lanes, store) },
        // SAFETY: the instructions were detected.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Level::Vnni | Level::Tiles => unsafe { x.avx512::<E>(weights, unpacked, lanes, store) },
    }
}
