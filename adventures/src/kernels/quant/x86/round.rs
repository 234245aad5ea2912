//! Activations rounded as [`super::super::rounded`] rounds them, to the same bits.

use crate::kernels::quant::rounded::{BLOCK, GROUP, SUPER, scale_of_256};
use std::arch::x86_64::{
    __m512, __mmask16, _MM_FROUND_TO_NEAREST_INT, _mm_storeu_si64, _mm_storeu_si128, _mm256_castsi256_si128,
    _mm512_abs_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512, _mm512_cvtepi32_epi8, _mm512_cvtepi32_epi16,
    _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_madd_epi16,
    _mm512_mask_storeu_epi32, _mm512_mask_storeu_ps, _mm512_maskz_compress_epi32, _mm512_maskz_loadu_epi32,
    _mm512_maskz_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_max_ps, _mm512_reduce_min_ps,
    _mm512_set1_epi8, _mm512_set1_epi16, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_epi32,
    _mm512_slli_epi32, _mm512_sub_epi32,
};

/// Numbers of a register.
const LANES: usize = 16;

/// Rounds blocks of 32; `weighted` is 0 where `with_sums` is not set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels::quant) fn round_by_32(
    x: &[f32],
    bytes: &mut [i8],
    scale: &mut [f32],
    sums: &mut [i16],
    weighted: &mut [f32],
    with_sums: bool,
) {
    let (x, rows) = (x.as_chunks::<BLOCK>().0, bytes.as_chunks_mut::<BLOCK>().0);
    for ((x, bytes), scale) in x.iter().zip(rows).zip(&mut *scale) {
        let (low, high) = x.split_at(GROUP);
        // SAFETY: the instructions are enabled here; halves of a block are sixteen numbers.
        #[allow(unsafe_code)]
        unsafe {
            let (low, high) = (_mm512_loadu_ps(low.as_ptr()), _mm512_loadu_ps(high.as_ptr()));
            // Of what is no number, the second operand is the result.
            let max = _mm512_max_ps(_mm512_abs_ps(low), _mm512_setzero_ps());
            let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(high), max));
            let inverse = if max == 0.0 { 0.0 } else { 127.0 / max };
            *scale = max / 127.0;
            round([low, high], inverse, bytes);
        }
    }
    sum(bytes, sums);
    for (at, scale) in scale.chunks_mut(LANES).enumerate() {
        let mask = first(scale.len());
        let (sums, weighted) = (&sums[2 * LANES * at..][..2 * scale.len()], &mut weighted[LANES * at..][..scale.len()]);
        // SAFETY: the instructions are enabled here; the masks are of the slices' lengths.
        #[allow(unsafe_code)]
        unsafe {
            let own = _mm512_maskz_loadu_ps(mask, scale.as_ptr());
            if with_sums {
                let sums = _mm512_maskz_loadu_epi32(mask, sums.as_ptr().cast());
                let sums = _mm512_cvtepi32_ps(_mm512_madd_epi16(sums, _mm512_set1_epi16(1)));
                // ggml multiplies by the scale that is not yet rounded.
                _mm512_mask_storeu_ps(weighted.as_mut_ptr(), mask, to_half(_mm512_mul_ps(own, sums)));
            } else {
                weighted.fill(0.0);
            }
            _mm512_mask_storeu_ps(scale.as_mut_ptr(), mask, to_half(own));
        }
    }
}

/// Rounds blocks of 256.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels::quant) fn round_by_256(x: &[f32], bytes: &mut [i8], scale: &mut [f32], sums: &mut [i16]) {
    let (blocks, rows) = (x.as_chunks::<SUPER>().0, bytes.as_chunks_mut::<SUPER>().0);
    for ((x, bytes), scale) in blocks.iter().zip(rows).zip(scale.as_chunks_mut::<{ SUPER / BLOCK }>().0) {
        // SAFETY: the instructions are enabled here; groups are sixteen numbers.
        #[allow(unsafe_code)]
        unsafe {
            let (mut max, mut min) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            for x in x.as_chunks::<GROUP>().0 {
                let x = _mm512_loadu_ps(x.as_ptr());
                // Of what is no number, the second operand is the result.
                (max, min) = (_mm512_max_ps(x, max), _mm512_min_ps(x, min));
            }
            let (own, inverse) = scale_of_256(x, _mm512_reduce_max_ps(max), _mm512_reduce_min_ps(min));
            for (x, bytes) in x.as_chunks::<BLOCK>().0.iter().zip(bytes.as_chunks_mut::<BLOCK>().0) {
                let (low, high) = x.split_at(GROUP);
                round([_mm512_loadu_ps(low.as_ptr()), _mm512_loadu_ps(high.as_ptr())], inverse, bytes);
            }
            scale.fill(own);
        }
    }
    sum(bytes, sums);
}

/// -128 times the sum of each four bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels::quant) fn lower(bytes: &[i8], lowered: &mut [i32]) {
    for (bytes, lowered) in bytes.chunks(4 * LANES).zip(lowered.chunks_mut(LANES)) {
        let mask = first(lowered.len());
        // SAFETY: the instructions are enabled here; the mask is of both lengths.
        #[allow(unsafe_code)]
        unsafe {
            let fours = fours(bytes, mask);
            let out = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(fours));
            _mm512_mask_storeu_epi32(lowered.as_mut_ptr(), mask, out);
        }
    }
}

/// The sum of each sixteen bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn sum(bytes: &[i8], sums: &mut [i16]) {
    for (bytes, sums) in bytes.chunks(4 * LANES).zip(sums.chunks_mut(4)) {
        // SAFETY: the instructions are enabled here; the mask is of the slice's length; four sums have eight bytes.
        #[allow(unsafe_code)]
        unsafe {
            let x = fours(bytes, first(bytes.len() / 4));
            let x = _mm512_add_epi32(x, _mm512_shuffle_epi32::<0b10_11_00_01>(x));
            let x = _mm512_add_epi32(x, _mm512_shuffle_epi32::<0b01_00_11_10>(x));
            // The first of each four.
            let x = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(0x1111, x));
            let mut out = [0_i16; 4];
            _mm_storeu_si64(out.as_mut_ptr().cast(), _mm256_castsi256_si128(x));
            sums.copy_from_slice(&out[..sums.len()]);
        }
    }
}

/// A mask of the first `n` lanes, of all where there are more.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// The sum of each four bytes.
///
/// # Safety
/// The CPU has the byte dot products of AVX-512; there are four bytes for each bit of the mask.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn fours(bytes: &[i8], mask: __mmask16) -> std::arch::x86_64::__m512i {
    // SAFETY: as the caller says.
    unsafe {
        let bytes = _mm512_maskz_loadu_epi32(mask, bytes.as_ptr().cast());
        _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes)
    }
}

/// Rounds to the nearest, ties to even.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn round(x: [__m512; 2], inverse: f32, bytes: &mut [i8; BLOCK]) {
    // SAFETY: as the caller says; halves of a block are sixteen bytes.
    unsafe {
        // Adding 1.5 * 2^23 leaves the rounded integer in the low bits.
        let (inverse, magic) = (_mm512_set1_ps(inverse), _mm512_set1_ps(12_582_912.0));
        for (x, bytes) in x.into_iter().zip(bytes.as_chunks_mut::<GROUP>().0) {
            let x = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(x, inverse), magic));
            _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x));
        }
    }
}

/// Rounds to half precision, ties to even.
///
/// # Safety
/// The CPU has AVX-512.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn to_half(x: __m512) -> __m512 {
    // SAFETY: as the caller says.
    unsafe { _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
}
