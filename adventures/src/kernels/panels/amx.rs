//! Products of rows with panels by the tiles of AMX: 32 rows with 32 columns, in four tiles.

use super::bytes;
use super::tile::{Beside, Place, Sums, Tile};
use super::{PANEL, Precision, Strip};
use crate::kernels::amx::{SIDE, Shapes, Tiles};
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_add_epi32, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepi32_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
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
/// apart: of 32 rows `$both`, of sixteen `$one`.
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
                    "tileloadd tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                ],
                one: [
                    "tileloadd tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 64]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                ]);
                beside.step();
            }
            store(rows, out);
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
                    "tileloadd tmm6, [{b} + {c}*1 + 2048]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 2112]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1]"
                    "tdpbf16ps tmm2, tmm5, tmm6"
                    "tdpbf16ps tmm3, tmm5, tmm7"
                    "tileloadd tmm6, [{b} + {c}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 64]"
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
                    "tileloadd tmm6, [{b} + {c}*1 + 2048]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 2112]"
                    "tdpbf16ps tmm1, tmm4, tmm7"
                    "tileloadd tmm6, [{b} + {c}*1]"
                    "tdpbf16ps tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 64]"
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
                    "tileloadd tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbusd tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 64]"
                    "tdpbusd tmm1, tmm4, tmm7"
                    "tileloadd tmm5, [{a1} + {s}*1]"
                    "tdpbusd tmm2, tmm5, tmm6"
                    "tdpbusd tmm3, tmm5, tmm7"
                ],
                one: [
                    "tileloadd tmm6, [{b} + {c}*1]"
                    "tileloadd tmm4, [{a0} + {s}*1]"
                    "tdpbusd tmm0, tmm4, tmm6"
                    "tileloadd tmm7, [{b} + {c}*1 + 64]"
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

/// Writes `x`, rows of `inputs` numbers, as the kernel of `precision` reads them, each `stride` elements from the last.
pub(crate) fn round(precision: Precision, x: &[f32], inputs: usize, out: &mut [u32]) {
    let stride = steps(precision, inputs).0;
    assert!(x.len() / inputs * stride <= out.len(), "room for the rows; this is a bug");
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(stride)) {
        // SAFETY: a kernel of tiles is chosen where these instructions are.
        #[allow(unsafe_code)]
        unsafe {
            match precision {
                Precision::F32 | Precision::Bf16x2 => split_row(x, out),
                Precision::Bf16 => brief_row(x, out),
                Precision::Int8 => bytes_row(x, out),
            }
        }
    }
}

/// The inputs of a tile from `at` on, zeros behind the last.
#[target_feature(enable = "avx512f")]
fn inputs_at(x: &[f32], at: usize) -> [__m512; 2] {
    let left = x.len() - at;
    let mask = |left: usize| if left >= SIDE { u16::MAX } else { (1 << left) - 1 };
    // SAFETY: what is masked is not read.
    #[allow(unsafe_code)]
    unsafe {
        let x = x.as_ptr().add(at);
        [
            _mm512_maskz_loadu_ps(mask(left), x),
            _mm512_maskz_loadu_ps(mask(left.saturating_sub(SIDE)), x.wrapping_add(SIDE)),
        ]
    }
}

/// Both registers as bfloat16, in their order.
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
fn halves(x: [__m512; 2]) -> __m512i {
    let halves: __m512bh = _mm512_cvtne2ps_pbh(x[1], x[0]);
    // SAFETY: both types are 64 bytes of any content.
    unsafe { std::mem::transmute(halves) }
}

/// The numbers, as bits, whose [`halves`] these are.
#[target_feature(enable = "avx512f")]
fn widened(halves: __m512i) -> [__m512i; 2] {
    let both = [_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves)];
    both.map(|half| _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
}

/// What rounding has left of `x`.
#[target_feature(enable = "avx512f")]
fn less(x: [__m512; 2], rounded: [__m512i; 2]) -> [__m512; 2] {
    [_mm512_sub_ps(x[0], _mm512_castsi512_ps(rounded[0])), _mm512_sub_ps(x[1], _mm512_castsi512_ps(rounded[1]))]
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn brief_row(x: &[f32], out: &mut [u32]) {
    for (i, out) in out.as_chunks_mut::<SIDE>().0[..x.len().div_ceil(INPUTS)].iter_mut().enumerate() {
        let x = halves(inputs_at(x, i * INPUTS));
        // SAFETY: sixteen elements are 64 bytes.
        #[allow(unsafe_code)]
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), x);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn split_row(x: &[f32], out: &mut [u32]) {
    for (i, out) in out.as_chunks_mut::<INPUTS>().0[..x.len().div_ceil(INPUTS)].iter_mut().enumerate() {
        let x = inputs_at(x, i * INPUTS);
        let first = halves(x);
        let rest = halves(less(x, widened(first)));
        // SAFETY: 32 elements are 128 bytes.
        #[allow(unsafe_code)]
        unsafe {
            _mm512_storeu_si512(out.as_mut_ptr().cast(), first);
            _mm512_storeu_si512(out.as_mut_ptr().add(SIDE).cast(), rest);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn bytes_row(x: &[f32], out: &mut [u32]) {
    let groups = x.len().div_ceil(bytes::GROUP);
    let (groups, scales) = out.split_at_mut(groups * SIDE);
    for (i, (group, scale)) in groups.as_chunks_mut::<SIDE>().0.iter_mut().zip(scales).enumerate() {
        let x = &x[i * bytes::GROUP..];
        *scale = bytes::round_group::<__m512>(&x[..x.len().min(bytes::GROUP)], group).to_bits();
    }
}

/// Writes one column of a panel of [`Split`]: a row of weights.
pub(super) fn pack_split(weights: &[f32], panel: &mut [Strip], column: usize) {
    let upper = |x: f32| f32::from_bits(super::bf16_pair(x, 0.0) << 16);
    for (weights, strips) in weights.chunks(INPUTS).zip(panel.chunks_exact_mut(2 * SIDE)) {
        for (i, pair) in weights.chunks(2).enumerate() {
            let (x, y) = (pair[0], pair.get(1).copied().unwrap_or(0.0));
            strips[i].0[column] = super::bf16_pair(x, y);
            strips[SIDE + i].0[column] = super::bf16_pair(x - upper(x), y - upper(y));
        }
    }
}

/// Writes a panel of [`Split`] of up to 32 columns whose inputs are `count` rows, one for each input, zeros behind the last.
pub(crate) fn pack_split_rows<'a>(rows: impl Fn(usize) -> &'a [f32], count: usize, panel: &mut [Strip]) {
    for (t, strips) in panel[..steps(Precision::Bf16x2, count).1].chunks_exact_mut(2 * SIDE).enumerate() {
        for i in 0..SIDE {
            let row = |at: usize| if at < count { rows(at) } else { &[] };
            let (first, second) = (row(t * INPUTS + 2 * i), row(t * INPUTS + 2 * i + 1));
            // SAFETY: a kernel of tiles is chosen where these instructions are.
            #[allow(unsafe_code)]
            let both = unsafe { interleave(first, second) };
            [strips[i], strips[SIDE + i]] = both;
        }
    }
}

/// Up to 32 numbers of two rows as pairs: rounded, and what that leaves of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleave(first: &[f32], second: &[f32]) -> [Strip; 2] {
    let (first, second) = (inputs_at(first, 0), inputs_at(second, 0));
    let mut strips = [Strip([0; PANEL]); 2];
    for r in 0..2 {
        let (mut x, mut y) = (first[r], second[r]);
        for strip in &mut strips {
            let both = halves([x, y]);
            let upper = widened(both);
            let pair = _mm512_or_si512(_mm512_srli_epi32::<16>(upper[0]), upper[1]);
            // SAFETY: a strip is two registers.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_storeu_si512(strip.0.as_mut_ptr().add(r * SIDE).cast(), pair);
            }
            [x, y] = less([x, y], upper);
        }
    }
    strips
}
