//! Numbers as the tiles read them: rows and panels of one bfloat16 for each number, or of two, and of bytes.

use super::{INPUTS, steps};
use crate::kernels::amx::SIDE;
use crate::kernels::panels::tile::Place;
use crate::kernels::panels::{Known, PANEL, Precision, Strip, bf16_pair, bytes};
use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _CMP_NLT_UQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEG_INF, _mm512_castsi512_ps,
    _mm512_castsi512_si256, _mm512_cmp_ps_mask, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
    _mm512_extracti64x4_epi64, _mm512_fmadd_ps, _mm512_fmsub_ps, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps,
    _mm512_maskz_scalef_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_ps, _mm512_set1_epi16, _mm512_set1_ps,
    _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512,
    _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

/// Writes `x`, rows of `inputs` numbers, as the kernel of `precision` reads them, each `stride` elements from the last.
pub(crate) fn round(precision: Precision, x: &[f32], inputs: usize, known: &Known, out: &mut [u32]) {
    let stride = steps(precision, inputs).0;
    assert!(x.len() / inputs * stride <= out.len(), "room for the rows; this is a bug");
    let rows = x.len() / inputs;
    let from = Place { first: x.as_ptr(), stride: inputs };
    let to = Place { first: out.as_mut_ptr(), stride };
    // SAFETY: a kernel of tiles is chosen where these instructions are; both have the rows.
    #[allow(unsafe_code)]
    unsafe {
        match precision {
            Precision::F32 | Precision::Bf16x2 => round_rows::<2>(from, rows, inputs, to),
            Precision::Bf16 => round_rows::<1>(from, rows, inputs, to),
            Precision::Int8 => {
                for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(stride)) {
                    bytes_row(x, known, out);
                }
            }
        }
    }
}

/// Writes `rows` rows of `inputs` numbers as [`Brief`] or [`Split`] reads them.
///
/// # Safety
/// `x` must have the rows, and `out` room for them.
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
pub(crate) unsafe fn round_rows<const PARTS: usize>(
    x: Place<*const f32>,
    rows: usize,
    inputs: usize,
    out: Place<*mut u32>,
) {
    for i in 0..rows {
        // SAFETY: the caller has the row, and room for whole tiles of inputs.
        unsafe {
            let row = std::slice::from_raw_parts(x.first.add(i * x.stride), inputs);
            for at in (0..inputs).step_by(INPUTS) {
                put::<PARTS>(inputs_at(row, at), at, out.first.add(i * out.stride));
            }
        }
    }
}

/// The inputs of a tile from `at` on, zeros behind the last.
#[inline]
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
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
fn halves(x: [__m512; 2]) -> __m512i {
    let halves: __m512bh = _mm512_cvtne2ps_pbh(x[1], x[0]);
    // SAFETY: both types are 64 bytes of any content.
    unsafe { std::mem::transmute(halves) }
}

/// The numbers, as bits, whose [`halves`] these are.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened(halves: __m512i) -> [__m512i; 2] {
    let [low, high] = [_mm512_castsi512_si256(halves), _mm512_extracti64x4_epi64::<1>(halves)];
    [_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(low)), _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high))]
}

/// What rounding has left of `x`.
#[inline]
#[target_feature(enable = "avx512f")]
fn less(x: [__m512; 2], rounded: [__m512i; 2]) -> [__m512; 2] {
    [_mm512_sub_ps(x[0], _mm512_castsi512_ps(rounded[0])), _mm512_sub_ps(x[1], _mm512_castsi512_ps(rounded[1]))]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn bytes_row(x: &[f32], known: &Known, out: &mut [u32]) {
    let groups = x.len().div_ceil(bytes::GROUP);
    let (groups, scales) = out.split_at_mut(groups * SIDE);
    for (i, (group, scale)) in groups.as_chunks_mut::<SIDE>().0.iter_mut().zip(scales).enumerate() {
        let x = &x[i * bytes::GROUP..];
        *scale = bytes::round_group::<__m512>(&x[..x.len().min(bytes::GROUP)], known, i, group).to_bits();
    }
}

/// Writes one column of a panel of [`Split`]: a row of weights.
pub(crate) fn pack_split(weights: &[f32], panel: &mut [Strip], column: usize) {
    let upper = |x: f32| f32::from_bits(bf16_pair(x, 0.0) << 16);
    for (weights, strips) in weights.chunks(INPUTS).zip(panel.chunks_exact_mut(2 * SIDE)) {
        for (i, pair) in weights.chunks(2).enumerate() {
            let (x, y) = (pair[0], pair.get(1).copied().unwrap_or(0.0));
            strips[i].0[column] = bf16_pair(x, y);
            strips[SIDE + i].0[column] = bf16_pair(x - upper(x), y - upper(y));
        }
    }
}

/// Writes a panel of up to 32 columns whose inputs are `count` rows, one for each input, zeros behind the last; each number as
/// `PARTS` of bfloat16: one for [`Brief`], two for [`Split`].
#[inline(always)]
pub(crate) fn pack_rows<'a, const PARTS: usize>(rows: impl Fn(usize) -> &'a [f32], count: usize, panel: &mut [Strip]) {
    for (t, strips) in panel.chunks_exact_mut(PARTS * SIDE).take(count.div_ceil(INPUTS)).enumerate() {
        for i in 0..SIDE {
            let row = |at: usize| if at < count { rows(at) } else { &[] };
            let (first, second) = (row(t * INPUTS + 2 * i), row(t * INPUTS + 2 * i + 1));
            // SAFETY: a kernel of bfloat16 is chosen where these instructions are.
            #[allow(unsafe_code)]
            let parts = unsafe { interleave::<PARTS>(first, second) };
            for (part, strip) in parts.into_iter().enumerate() {
                strips[part * SIDE + i] = strip;
            }
        }
    }
}

/// Writes a panel whose columns are `rows`, up to 32 of the same length, zeros behind the last of each half; numbers as those of
/// [`pack_rows`].
#[inline(always)]
pub(crate) fn pack_columns<'a, const PARTS: usize>(
    rows: impl Fn(usize) -> &'a [f32],
    count: usize,
    panel: &mut [Strip],
) {
    for half in 0..count.div_ceil(SIDE) {
        let mut columns: [&[f32]; SIDE] = [&[]; SIDE];
        for (i, column) in columns.iter_mut().enumerate().take(count - half * SIDE) {
            *column = rows(half * SIDE + i);
        }
        // SAFETY: a kernel of bfloat16 is chosen where these instructions are.
        #[allow(unsafe_code)]
        unsafe {
            pack_sixteen::<PARTS>(&columns, panel, half * SIDE);
        }
    }
}

/// [`pack_rows`] of rows of bfloat16, up to 32 of them in each.
#[inline(always)]
pub(crate) fn pack_rounded_rows<'a>(rows: impl Fn(usize) -> &'a [u16], count: usize, panel: &mut [Strip]) {
    let row = |at: usize| if at < count { rows(at) } else { &[] };
    for (i, strip) in panel.iter_mut().take(count.div_ceil(INPUTS) * SIDE).enumerate() {
        // SAFETY: a kernel of bfloat16 is chosen where these instructions are.
        #[allow(unsafe_code)]
        unsafe {
            *strip = interleave_rounded(row(2 * i), row(2 * i + 1));
        }
    }
}

/// [`pack_columns`] of rows of bfloat16, of which each has a multiple of 32.
#[inline(always)]
pub(crate) fn pack_rounded_columns<'a>(rows: impl Fn(usize) -> &'a [u16], count: usize, panel: &mut [Strip]) {
    for half in 0..count.div_ceil(SIDE) {
        let mut columns: [&[u16]; SIDE] = [&[]; SIDE];
        for (i, column) in columns.iter_mut().enumerate().take(count - half * SIDE) {
            *column = rows(half * SIDE + i);
        }
        // SAFETY: as above.
        #[allow(unsafe_code)]
        unsafe {
            pack_sixteen_rounded(&columns, panel, half * SIDE);
        }
    }
}

/// [`pack_sixteen`] of rows of bfloat16.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_sixteen_rounded(columns: &[&[u16]; SIDE], panel: &mut [Strip], at: usize) {
    for (t, strips) in panel.chunks_exact_mut(SIDE).enumerate() {
        let mut registers = [_mm512_setzero_si512(); SIDE];
        for (register, column) in registers.iter_mut().zip(columns) {
            *register = rounded_at(column, t * INPUTS);
        }
        transpose(&registers, strips, at);
    }
}

/// As many numbers of bfloat16 as a register has from `at` on, zeros behind the last.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn rounded_at(x: &[u16], at: usize) -> __m512i {
    let left = x.len().saturating_sub(at);
    let mask = if left >= INPUTS { u32::MAX } else { (1 << left) - 1 };
    // SAFETY: what is masked is not read.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_maskz_loadu_epi16(mask, x.as_ptr().wrapping_add(at).cast())
    }
}

/// Up to 32 numbers of two rows as pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave_rounded(first: &[u16], second: &[u16]) -> Strip {
    let (first, second) = (rounded_at(first, 0), rounded_at(second, 0));
    let low = [_mm512_castsi512_si256(first), _mm512_extracti64x4_epi64::<1>(first)];
    // As the upper half of an element.
    let high = widened(second);
    let mut strip = Strip([0; PANEL]);
    for r in 0..2 {
        // SAFETY: a strip is two registers.
        #[allow(unsafe_code)]
        unsafe {
            let to = strip.0.as_mut_ptr().add(r * SIDE).cast();
            _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu16_epi32(low[r]), high[r]));
        }
    }
    strip
}

/// Writes sixteen columns of a panel, from column `at` on; of an empty one zeros.
#[target_feature(enable = "avx512f,avx512bf16")]
fn pack_sixteen<const PARTS: usize>(columns: &[&[f32]; SIDE], panel: &mut [Strip], at: usize) {
    for (t, strips) in panel.chunks_exact_mut(PARTS * SIDE).enumerate() {
        let mut parts = [[_mm512_setzero_si512(); SIDE]; PARTS];
        for (i, column) in columns.iter().enumerate() {
            if !column.is_empty() {
                for (part, x) in split::<PARTS>(inputs_at(column, t * INPUTS)).into_iter().enumerate() {
                    parts[part][i] = x;
                }
            }
        }
        for (part, strips) in parts.iter().zip(strips.chunks_exact_mut(SIDE)) {
            transpose(part, strips, at);
        }
    }
}

/// Writes sixteen columns of as many elements to strips, from column `at` on.
#[target_feature(enable = "avx512f")]
fn transpose(columns: &[__m512i; SIDE], strips: &mut [Strip], at: usize) {
    // SAFETY: a strip is two registers, of which one begins at `at`.
    #[allow(unsafe_code)]
    unsafe {
        let mut quads = [_mm512_setzero_si512(); SIDE];
        for i in (0..SIDE).step_by(4) {
            let (a, b, c, d) = (columns[i], columns[i + 1], columns[i + 2], columns[i + 3]);
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            quads[i] = _mm512_unpacklo_epi64(ab, cd);
            quads[i + 1] = _mm512_unpackhi_epi64(ab, cd);
            let (ab, cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            quads[i + 2] = _mm512_unpacklo_epi64(ab, cd);
            quads[i + 3] = _mm512_unpackhi_epi64(ab, cd);
        }
        // A quarter of `quads[i + j]` has element `4 * quarter + j` of the columns from `i` on.
        for j in 0..4 {
            let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
            let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let (more_low, more_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            let whole = [
                _mm512_shuffle_i32x4::<0x88>(low, more_low),
                _mm512_shuffle_i32x4::<0xdd>(low, more_low),
                _mm512_shuffle_i32x4::<0x88>(high, more_high),
                _mm512_shuffle_i32x4::<0xdd>(high, more_high),
            ];
            for (quarter, x) in whole.into_iter().enumerate() {
                _mm512_storeu_si512(strips[4 * quarter + j].0.as_mut_ptr().add(at).cast(), x);
            }
        }
    }
}

/// `e^((score - largest) * scale)`, off by a small part of what the products read; exactly 0 of negative infinity.
///
/// # Safety
/// The CPU must have AVX-512 F and DQ.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) unsafe fn weight<const PARTS: usize>(score: __m512, largest: __m512, scale: __m512) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        // As a power of two, whose whole part is what `scalef` takes. What is too small for a normal number is left out: it would
        // take a hundred cycles.
        let scale = _mm512_mul_ps(scale, _mm512_set1_ps(std::f32::consts::LOG2_E));
        let x = _mm512_fmsub_ps(score, scale, _mm512_mul_ps(largest, scale));
        let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(-126.0));
        let part = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(x);
        let polynomial: &[f32] = if PARTS == 1 { &POWER } else { &POWER_FINE };
        let mut power = _mm512_set1_ps(polynomial[0]);
        for c in &polynomial[1..] {
            power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(*c));
        }
        _mm512_maskz_scalef_ps(kept, power, x)
    }
}

/// Coefficients of `2^x` for x from 0 to 1, of the highest power first: off by at most 7.5e-5 of it.
const POWER: [f32; 4] = [0.078_024_52, 0.226_067_16, 0.695_833_56, 0.999_925_2];
/// The same, off by at most 1e-7 of it.
const POWER_FINE: [f32; 6] = [0.001_877_576_7, 0.008_989_34, 0.055_826_318, 0.240_153_61, 0.693_153_1, 0.999_999_94];

/// Writes 32 inputs of a row, the first of which is input `at`; returns them as they are written.
///
/// # Safety
/// `row` must have room for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
pub(crate) unsafe fn put<const PARTS: usize>(x: [__m512; 2], at: usize, row: *mut u32) -> [__m512i; PARTS] {
    let parts = split::<PARTS>(x);
    for (part, x) in parts.into_iter().enumerate() {
        // SAFETY: the caller has the room.
        unsafe {
            _mm512_storeu_si512(row.add((at / INPUTS * PARTS + part) * SIDE).cast(), x);
        }
    }
    parts
}

/// Adds both numbers of each element, bfloat16, to `sums`.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
#[allow(unsafe_code)]
pub(crate) fn add_pairs(sums: __m512, pairs: __m512i) -> __m512 {
    // SAFETY: both types are 64 bytes of any content.
    let [pairs, ones]: [__m512bh; 2] = unsafe { std::mem::transmute([pairs, _mm512_set1_epi16(0x3f80)]) };
    _mm512_dpbf16_ps(sums, pairs, ones)
}

/// Both registers as bfloat16, then what that leaves of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn split<const PARTS: usize>(mut x: [__m512; 2]) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for part in &mut parts {
        *part = halves(x);
        x = less(x, widened(*part));
    }
    parts
}

/// Up to 32 numbers of two rows as pairs: rounded, then what that leaves of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn interleave<const PARTS: usize>(first: &[f32], second: &[f32]) -> [Strip; PARTS] {
    let (first, second) = (inputs_at(first, 0), inputs_at(second, 0));
    let mut strips = [Strip([0; PANEL]); PARTS];
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::x86_64::{_mm512_loadu_ps, _mm512_storeu_ps};

    #[test]
    fn weights_are_powers_of_e() {
        if !crate::kernels::amx::available() {
            return;
        }
        let of = |parts: usize, scores: [f32; SIDE], largest: f32, scale: f32| {
            let mut out = [0.0; SIDE];
            // SAFETY: both are registers, and the CPU has the instructions.
            #[allow(unsafe_code)]
            unsafe {
                let [x, y] = [_mm512_set1_ps(largest), _mm512_set1_ps(scale)];
                let scores = _mm512_loadu_ps(scores.as_ptr());
                let found = if parts == 1 { weight::<1>(scores, x, y) } else { weight::<2>(scores, x, y) };
                _mm512_storeu_ps(out.as_mut_ptr(), found);
            }
            out
        };
        for (parts, tolerance) in [(1, 1e-4), (2, 1e-5)] {
            for i in 0..2000 {
                let (largest, scale) = (i as f32 / 50.0 - 20.0, 0.1 + (i % 7) as f32 / 10.0);
                let scores: [f32; SIDE] = std::array::from_fn(|lane| largest - (i * lane) as f32 / 333.0);
                for (score, found) in scores.into_iter().zip(of(parts, scores, largest, scale)) {
                    let want = ((f64::from(score) - f64::from(largest)) * f64::from(scale)).exp();
                    let error = (f64::from(found) - want).abs();
                    assert!(error <= tolerance * want || want < 1e-37, "{parts} {score} {largest}: {want} {found}");
                }
            }
            assert_eq!(of(parts, [f32::NEG_INFINITY; SIDE], 3.0, 0.2), [0.0; SIDE]);
            assert_eq!(of(parts, [-1e30; SIDE], 3.0, 0.2), [0.0; SIDE]);
            assert!(of(parts, [f32::NAN; SIDE], 3.0, 0.2).iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn columns_are_packed_as_rows_are() {
        if !crate::kernels::amx::available() {
            return;
        }
        let numbers: Vec<f32> = (0..70 * 70).map(|i| ((i * 2_654_435_761_usize) % 1009) as f32 / 77.0 - 6.0).collect();
        for (inputs, count) in [(1, 1), (2, 17), (31, 32), (32, 5), (33, 31), (64, 32), (70, 16)] {
            for precision in [Precision::Bf16, Precision::Bf16x2] {
                let column = |i: usize| &numbers[i * inputs..(i + 1) * inputs];
                let mut found = vec![Strip([7; PANEL]); steps(precision, inputs).1];
                let mut want = vec![Strip([0; PANEL]); found.len()];
                for i in 0..count {
                    if precision == Precision::Bf16 {
                        for (strip, pair) in want.iter_mut().zip(column(i).chunks(2)) {
                            strip.0[i] = bf16_pair(pair[0], pair.get(1).copied().unwrap_or(0.0));
                        }
                        pack_columns::<1>(column, count, &mut found);
                    } else {
                        pack_split(column(i), &mut want, i);
                        pack_columns::<2>(column, count, &mut found);
                    }
                }
                for (want, found) in want.iter().zip(&found) {
                    assert_eq!(want.0[..count], found.0[..count], "{precision:?}: {count} columns of {inputs}");
                }
            }
        }
    }
}
