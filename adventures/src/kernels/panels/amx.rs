//! Products of rows with panels by the tiles of AMX: 32 rows with 32 columns, in four tiles.

mod halves;

pub(crate) use halves::{
    add_pairs, pack_columns, pack_rounded_columns, pack_rounded_rows, pack_rows, pack_split, put, round, round_rows,
    weight,
};

use super::bytes;
use super::tile::{Beside, Place, Sums, Tile};
use super::{PANEL, Precision, Strip};
use crate::kernels::amx::{SIDE, Shapes, Tiles};
use std::arch::asm;
use std::arch::x86_64::{
    __m512, _mm512_add_epi32, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::mem::MaybeUninit;

/// [`Tile::GROUP`]: a quarter of the second cache of the CPUs that have tiles.
const GROUP: usize = 1 << 19;
/// Inputs of bfloat16 in a row of a tile.
const INPUTS: usize = 2 * SIDE;

/// The elements of a row of `inputs` numbers, and the strips of a panel, in lines of 64 bytes: tile after tile.
///
/// A row has an odd number of lines, so that the rows of a tile do not share the cache's places.
pub(crate) fn steps(precision: Precision, inputs: usize) -> (usize, usize) {
    let tiles = inputs.div_ceil(INPUTS);
    match precision {
        Precision::F32 | Precision::Bf16x2 => (((2 * tiles) | 1) * SIDE, 2 * tiles * SIDE),
        Precision::Bf16 => ((tiles | 1) * SIDE, tiles * SIDE),
        Precision::Int8 => {
            let groups = inputs.div_ceil(bytes::GROUP);
            (((groups + groups.div_ceil(SIDE)) | 1) * SIDE, groups * bytes::PANEL_STEPS)
        }
    }
}

/// The tiles for `rows` rows, 1 to 32: four of sums, two of rows, two of columns.
#[inline(always)]
fn shapes(rows: usize) -> Shapes {
    let of = |rows: usize| if rows > 0 { (rows as u8, 64) } else { (0, 0) };
    let (first, second) = (of(rows.min(SIDE)), of(rows.saturating_sub(SIDE)));
    [first, first, second, second, first, second, of(SIDE), of(SIDE)]
}

/// Zeroes the tiles of sums.
#[inline(always)]
#[allow(unsafe_code, reason = "the caller has set the tiles up for the rows")]
unsafe fn zero(rows: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, preserves_flags, nomem));
        if rows > SIDE {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags, nomem));
        }
    }
}

/// Stores the sums.
#[inline(always)]
#[allow(unsafe_code, reason = "the caller has room for the rows, which the tiles are set up for")]
unsafe fn store<T>(rows: usize, out: Place<*mut T>) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilestored [{o} + {s}*1], tmm0",
            "tilestored [{o} + {s}*1 + 64], tmm1",
            o = in(reg) out.first,
            s = in(reg) 4 * out.stride,
            options(nostack, preserves_flags),
        );
        if rows > SIDE {
            asm!(
                "tilestored [{o} + {s}*1], tmm2",
                "tilestored [{o} + {s}*1 + 64], tmm3",
                o = in(reg) out.first.wrapping_add(SIDE * out.stride),
                s = in(reg) 4 * out.stride,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Runs instructions on rows at `a0` and, the second sixteen, at `a1`, each `s` bytes from the last, and columns at `b`, `c` bytes
/// apart: of 32 rows `$both`, of sixteen `$one`. Columns are read past the first cache (`tileloaddt1`), where rows stay.
macro_rules! products {
    ($rows:expr, $a:expr, $stride:expr, $b:expr, both: [$($both:literal)*], one: [$($one:literal)*]) => {
        if $rows > SIDE {
            asm!(
                $($both,)*
                a0 = in(reg) $a,
                a1 = in(reg) $a.wrapping_add(SIDE * $stride),
                s = in(reg) 4 * $stride,
                b = in(reg) $b,
                c = in(reg) 4 * PANEL,
                options(nostack, preserves_flags, readonly),
            );
        } else {
            asm!(
                $($one,)*
                a0 = in(reg) $a,
                s = in(reg) 4 * $stride,
                b = in(reg) $b,
                c = in(reg) 4 * PANEL,
                options(nostack, preserves_flags, readonly),
            );
        }
    };
}

/// bfloat16.
pub(crate) struct Brief;

impl Tile for Brief {
    const ROWS: usize = 2 * SIDE;
    type V = __m512;
    type State = Tiles;
    const GROUP: usize = GROUP;

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply<B: Beside>(
        tiles: &mut Tiles,
        rows: usize,
        a: Place<*const u32>,
        panel: &[Strip],
        out: Place<*mut f32>,
        beside: &mut B,
    ) {
        tiles.fit(shapes(rows));
        beside.begin(panel.len() / SIDE);
        // SAFETY: the tiles are set up for the rows; the caller has them, as long as the panel, and room for the sums.
        unsafe {
            zero(rows);
            for (i, strips) in panel.chunks_exact(SIDE).enumerate() {
                let a0 = a.first.wrapping_add(i * SIDE);
                products!(rows, a0, a.stride, strips.as_ptr(),
                both: [
                    "tileloaddt1 tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                ],
                one: [
                    "tileloaddt1 tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                ]);
                beside.step();
            }
            store(rows, out);
        }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn round(x: *const f32, to: *mut u32) {
        // SAFETY: inlined where the instructions are enabled; the caller has the numbers and the room.
        unsafe {
            put::<1>([_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(SIDE))], 0, to);
        }
    }
}

/// f32, each number as the sum of two of bfloat16, which has sixteen of its bits: of the four products of two sums, the
/// smallest is left out (Henry, Tang and Heinecke 2019).
pub(crate) struct Split;

impl Tile for Split {
    const ROWS: usize = 2 * SIDE;
    type V = __m512;
    type State = Tiles;
    const GROUP: usize = GROUP;

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply<B: Beside>(
        tiles: &mut Tiles,
        rows: usize,
        a: Place<*const u32>,
        panel: &[Strip],
        out: Place<*mut f32>,
        beside: &mut B,
    ) {
        tiles.fit(shapes(rows));
        beside.begin(panel.len() / (2 * SIDE));
        // SAFETY: as of `Brief`.
        unsafe {
            zero(rows);
            for (i, strips) in panel.chunks_exact(2 * SIDE).enumerate() {
                let a0 = a.first.wrapping_add(i * 2 * SIDE);
                products!(rows, a0, a.stride, strips.as_ptr(),
                both: [
                    "tileloaddt1 tmm6, [{b} + {c}*1 + 2048]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 2112]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                    "tileloaddt1 tmm6, [{b} + {c}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm4, [{a0} + {s}*1 + 64]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1 + 64]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                ],
                one: [
                    "tileloaddt1 tmm6, [{b} + {c}*1 + 2048]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 2112]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloaddt1 tmm6, [{b} + {c}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm4, [{a0} + {s}*1 + 64]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                ]);
                beside.step();
            }
            store(rows, out);
        }
    }
}

/// Bytes in the groups of [`bytes`], whose rows have all scales behind all bytes.
pub(crate) struct Bytes;

impl Tile for Bytes {
    const ROWS: usize = 2 * SIDE;
    type V = __m512;
    type State = Tiles;
    const GROUP: usize = GROUP;

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply<B: Beside>(
        tiles: &mut Tiles,
        rows: usize,
        a: Place<*const u32>,
        panel: &[Strip],
        out: Place<*mut f32>,
        beside: &mut B,
    ) {
        tiles.fit(shapes(rows));
        // Integers here, each of which a tile stores before it is read.
        let mut sums = MaybeUninit::<Sums>::uninit();
        let sums = Place { first: sums.as_mut_ptr().cast::<i32>(), stride: PANEL };
        let groups = panel.len() / bytes::PANEL_STEPS;
        beside.begin(groups);
        // SAFETY: the tiles are set up for the rows; the caller has them, as long as the panel, and room for the sums.
        unsafe {
            for (g, group) in panel.chunks_exact(bytes::PANEL_STEPS).enumerate() {
                zero(rows);
                products!(rows, a.first.wrapping_add(g * SIDE), a.stride, group.as_ptr(),
                both: [
                    "tileloaddt1 tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbusd tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 64]"
                    "tdpbusd tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1]"
                    "tdpbusd tmm2, tmm5, tmm6"
                    "tdpbusd tmm3, tmm5, tmm7"
                ],
                one: [
                    "tileloaddt1 tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbusd tmm0, tmm4, tmm6"
                    "tileloaddt1 tmm7, [{b} + {c}*1 + 64]"
                    "tdpbusd tmm1, tmm4, tmm7"
                ]);
                store(rows, sums);
                beside.step();
                let of = |strip: usize| group[strip].0.as_ptr();
                let (scale, offset) = (of(SIDE).cast::<f32>(), of(SIDE + 1));
                let scale = [_mm512_loadu_ps(scale), _mm512_loadu_ps(scale.add(SIDE))];
                let offset = [_mm512_loadu_si512(offset.cast()), _mm512_loadu_si512(offset.add(SIDE).cast())];
                for i in 0..rows {
                    let x = _mm512_set1_ps(a.first.add(i * a.stride + groups * SIDE + g).cast::<f32>().read());
                    for r in 0..2 {
                        let sum = _mm512_loadu_si512(sums.first.add(i * PANEL + r * SIDE).cast());
                        let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, offset[r]));
                        let to = out.first.add(i * out.stride + r * SIDE);
                        let total = if g == 0 { _mm512_setzero_ps() } else { _mm512_loadu_ps(to) };
                        _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, _mm512_mul_ps(x, scale[r]), total));
                    }
                }
            }
        }
    }
}
