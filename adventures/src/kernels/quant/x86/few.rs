//! Products of superblocks with few activation rows: weights are unpacked to registers and never stored.
//!
//! A register of 512 bits holds 64 weights in the order of the activations. The order of additions is that of
//! [`super::super::rows`].

use super::{add_each, add_lanes, load_words, numbers};
use crate::kernels::quant::format::{Order, Q4K, Q6K, SuperBlock};
use crate::kernels::quant::rounded::Rounded;
use crate::kernels::quant::rows::{ROWS, Sums};
use std::arch::x86_64::{
    __m256, __m256i, __m512i, _MM_HINT_T0, _mm_cvtepi32_ps, _mm_cvtph_ps, _mm_cvtsi64_si128, _mm_fmadd_ps,
    _mm_loadu_si128, _mm_mul_ps, _mm_prefetch, _mm_set_epi64x, _mm_set1_ps, _mm_setzero_ps, _mm_sub_ps,
    _mm256_add_epi32, _mm256_castps128_ps256, _mm256_cvtepi8_epi16, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi16,
    _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_permutevar8x32_ps, _mm256_set1_epi32,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32, _mm256_sub_epi32, _mm512_and_si512,
    _mm512_broadcast_i64x4, _mm512_castsi256_si512, _mm512_castsi512_si256, _mm512_dpwssd_epi32,
    _mm512_extracti64x4_epi64, _mm512_loadu_si512, _mm512_maddubs_epi16, _mm512_permutexvar_epi16, _mm512_set1_epi8,
    _mm512_setzero_si512, _mm512_sllv_epi16, _mm512_srli_epi16, _mm512_srlv_epi16, _mm512_ternarylogic_epi64,
};
use std::ops::Range;

/// One superblock in registers.
pub(in crate::kernels::quant) struct Registers {
    /// Unsigned bytes, 64 weights in each.
    u: [__m512i; 4],
    /// What scales of 16 bits are repeated for each of their 16 or 32 weights, two to a lane.
    spread: [__m512i; 4],
    /// The minimum of each 16 weights; the scale, where the format has no minima.
    groups: __m256i,
}

/// A format whose superblocks are unpacked to registers.
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
pub(in crate::kernels::quant) trait InRegisters: SuperBlock {
    /// Where the scale lies, in half precision.
    const SCALE: usize;
    /// Where the minimum lies.
    const MINIMUM: usize;
    /// Unpacks a block.
    ///
    /// # Safety
    /// The CPU has AVX-512 with bytes and words; the block has `BYTES` bytes.
    unsafe fn registers(block: *const u8) -> Registers;
}

/// Which words to take so that each is there `each` times in a row, for the `j`-th 64 weights.
const fn repeated(j: usize, each: usize) -> [i16; 32] {
    let mut out = [0; 32];
    let mut i = 0;
    while i < 32 {
        out[i] = ((32 * j + i) / each) as i16;
        i += 1;
    }
    out
}

/// Scales of 32 weights: a word is two weights.
const OF_32: [[i16; 32]; 4] = [repeated(0, 16), repeated(1, 16), repeated(2, 16), repeated(3, 16)];
/// Scales of 16 weights.
const OF_16: [[i16; 32]; 4] = [repeated(0, 8), repeated(1, 8), repeated(2, 8), repeated(3, 8)];

/// Shifts by nothing in the lower half, by `N` bits in the upper.
const fn upper<const N: i16>() -> [i16; 32] {
    let mut out = [0; 32];
    let mut i = 16;
    while i < 32 {
        out[i] = N;
        i += 1;
    }
    out
}

const UPPER_BY_4: [i16; 32] = upper::<4>();
const UPPER_BY_2: [i16; 32] = upper::<2>();
/// Shifts by 4 bits in the lower half, by 2 in the upper.
const BY_4_AND_2: [i16; 32] = {
    let mut out = [4; 32];
    let mut i = 16;
    while i < 32 {
        out[i] = 2;
        i += 1;
    }
    out
};

/// A word twice in a row.
const TWICE: [i16; 32] = repeated(0, 2);

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn words(words: &[i16; 32]) -> __m512i {
    // SAFETY: the array has 64 bytes; no alignment is asked for.
    unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
}

/// `a & mask | b`.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn masked_or(a: __m512i, mask: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the callers enable the instructions.
    unsafe { _mm512_ternarylogic_epi64::<0b1110_1010>(a, mask, b) }
}

impl InRegisters for Q4K {
    const SCALE: usize = 0;
    const MINIMUM: usize = 2;

    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn registers(block: *const u8) -> Registers {
        // SAFETY: the callers enable the instructions; all reads are of the block's 144 bytes.
        unsafe {
            // Eight scales and eight minima of six bits, as bytes: the upper four of each have their high bits elsewhere.
            let word = |at: usize| block.add(at).cast::<u32>().read_unaligned();
            let (a, b, c) = (word(4), word(8), word(12));
            let both = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
            let scales = both(a & 0x3f3f_3f3f, (c & 0x0f0f_0f0f) | ((a >> 2) & 0x3030_3030));
            let minima = both(b & 0x3f3f_3f3f, ((c >> 4) & 0x0f0f_0f0f) | ((b >> 2) & 0x3030_3030));
            let wide = _mm256_cvtepu8_epi16(_mm_set_epi64x(minima.cast_signed(), scales.cast_signed()));
            let wide = _mm512_castsi256_si512(wide);
            let (shift, low) = (words(&UPPER_BY_4), _mm512_set1_epi8(15));
            let mut u = [_mm512_setzero_si512(); 4];
            let mut spread = u;
            for j in 0..4 {
                let chunk = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(16 + 32 * j).cast()));
                u[j] = _mm512_and_si512(_mm512_srlv_epi16(chunk, shift), low);
                spread[j] = _mm512_permutexvar_epi16(words(&OF_32[j]), wide);
            }
            // The minima are the upper eight words, each for two groups of 16.
            let minima = _mm512_permutexvar_epi16(words(&MINIMA), wide);
            Registers { u, spread, groups: _mm512_castsi512_si256(minima) }
        }
    }
}

/// Words 8 to 15, twice each.
const MINIMA: [i16; 32] = {
    let mut out = TWICE;
    let mut i = 0;
    while i < 32 {
        out[i] += 8;
        i += 1;
    }
    out
};

impl InRegisters for Q6K {
    const SCALE: usize = 208;
    const MINIMUM: usize = 208;

    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn registers(block: *const u8) -> Registers {
        // SAFETY: the callers enable the instructions; all reads are of the block's 210 bytes.
        unsafe {
            let groups = _mm256_cvtepi8_epi16(_mm_loadu_si128(block.add(192).cast()));
            let wide = _mm512_castsi256_si512(groups);
            let (low, high) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
            let mut u = [_mm512_setzero_si512(); 4];
            let mut spread = u;
            for part in 0..2 {
                // Bits that cross from one byte of a word to the other are masked.
                let four = _mm512_loadu_si512(block.add(64 * part).cast());
                let two = _mm512_broadcast_i64x4(_mm256_loadu_si256(block.add(128 + 32 * part).cast()));
                let first = _mm512_sllv_epi16(two, words(&BY_4_AND_2));
                let second = _mm512_srlv_epi16(two, words(&UPPER_BY_2));
                u[2 * part] = masked_or(first, high, _mm512_and_si512(four, low));
                u[2 * part + 1] = masked_or(second, high, _mm512_and_si512(_mm512_srli_epi16::<4>(four), low));
            }
            for j in 0..4 {
                spread[j] = _mm512_permutexvar_epi16(words(&OF_16[j]), wide);
            }
            Registers { u, spread, groups }
        }
    }
}

/// Calls `store(r, sums)` with the products of four weight rows and each activation row.
///
/// # Panics
/// Where the weights are not four rows as wide as the activations.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels::quant) fn few<F: InRegisters>(
    weights: &[u8],
    row_bytes: usize,
    x: &Rounded,
    rows: Range<usize>,
    store: &mut impl FnMut(usize, &Sums),
) {
    let blocks = row_bytes / F::BYTES;
    assert!(weights.len() == ROWS * row_bytes && x.width == 256 * blocks, "rows are equally wide; this is a bug");
    assert!(rows.end <= x.rows, "there are as many rows; this is a bug");
    let mut r = rows.start;
    // SAFETY: the instructions are enabled here, and the sizes were just checked.
    #[allow(unsafe_code)]
    unsafe {
        while r + 4 <= rows.end {
            together::<F, 4>(weights, row_bytes, x, r, store);
            r += 4;
        }
        if r + 2 <= rows.end {
            together::<F, 2>(weights, row_bytes, x, r, store);
            r += 2;
        }
        if r < rows.end {
            together::<F, 1>(weights, row_bytes, x, r, store);
        }
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the caller enables the instructions and checks the sizes")]
unsafe fn together<F: InRegisters, const R: usize>(
    weights: &[u8],
    row_bytes: usize,
    x: &Rounded,
    first: usize,
    store: &mut impl FnMut(usize, &Sums),
) {
    let blocks = row_bytes / F::BYTES;
    // SAFETY: the caller enables the instructions; blocks are read within the rows, whose sizes it has checked.
    unsafe {
        let mut lanes = [[_mm256_setzero_ps(); ROWS]; R];
        let mut sums = [_mm_setzero_ps(); R];
        let mut minima = [_mm_setzero_ps(); R];
        for b in 0..blocks {
            // Four rows are read side by side, which the CPU does not foresee: the next are asked for in order.
            let next = weights.as_ptr().wrapping_add(2 * weights.len() + b * ROWS * F::BYTES);
            for line in (0..ROWS * F::BYTES).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
            }
            let mut dots = [[_mm256_setzero_si256(); ROWS]; R];
            let mut shares = [[_mm256_setzero_si256(); ROWS]; R];
            let (mut own, mut min) = (0, 0);
            for i in 0..ROWS {
                let block = weights.as_ptr().add(i * row_bytes + b * F::BYTES);
                let half = |at: usize| u64::from(block.add(at).cast::<u16>().read_unaligned()) << (16 * i);
                own |= half(F::SCALE);
                min |= half(F::MINIMUM);
                let Registers { u, spread, groups } = F::registers(block);
                for r in 0..R {
                    let bytes = x.bytes.as_ptr().add((first + r) * x.width + 256 * b);
                    let totals = x.sums.as_ptr().add((first + r) * x.width / 16 + 16 * b);
                    let mut dot = _mm512_setzero_si512();
                    for j in 0..4 {
                        let pairs = _mm512_maddubs_epi16(u[j], _mm512_loadu_si512(bytes.add(64 * j).cast()));
                        dot = _mm512_dpwssd_epi32(dot, pairs, spread[j]);
                    }
                    dots[r][i] = _mm256_add_epi32(_mm512_castsi512_si256(dot), _mm512_extracti64x4_epi64::<1>(dot));
                    shares[r][i] = _mm256_madd_epi16(load_words(&*totals.cast()), groups);
                }
            }
            let scale = _mm_cvtph_ps(_mm_cvtsi64_si128(own.cast_signed()));
            let min = _mm_cvtph_ps(_mm_cvtsi64_si128(min.cast_signed()));
            for r in 0..R {
                let d = _mm_set1_ps(*x.scale.as_ptr().add((first + r) * x.width / 32 + 8 * b));
                let both = _mm_mul_ps(scale, d);
                if F::ORDER == Order::Whole {
                    sums[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(add_each(dots[r])), both, sums[r]);
                    minima[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(add_each(shares[r])), _mm_mul_ps(min, d), minima[r]);
                    continue;
                }
                // What unsigned bytes add too much: the offset is 32.
                for i in 0..ROWS {
                    let dot = _mm256_sub_epi32(dots[r][i], _mm256_slli_epi32::<5>(shares[r][i]));
                    let factor: __m256 =
                        _mm256_permutevar8x32_ps(_mm256_castps128_ps256(both), _mm256_set1_epi32(i as i32));
                    lanes[r][i] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(dot), lanes[r][i]);
                }
            }
        }
        for r in 0..R {
            let mut out = numbers(_mm_sub_ps(sums[r], minima[r]));
            if F::ORDER != Order::Whole {
                for i in 0..ROWS {
                    out[i] = add_lanes(lanes[r][i]);
                }
            }
            store(first + r, &out);
        }
    }
}
