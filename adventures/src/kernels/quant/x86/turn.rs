//! One block of sixteen rows turned into lines, in registers: what [`super::panel`] multiplies.

use super::panel::PANEL;
use crate::kernels::quant::format::{Block, Layout};
use std::arch::x86_64::{
    __m512, __m512i, _mm_loadu_si128, _mm512_add_epi8, _mm512_and_si512, _mm512_broadcast_i32x4,
    _mm512_castsi128_si512, _mm512_cvtepi32_epi16, _mm512_cvtph_ps, _mm512_inserti32x4, _mm512_loadu_si512,
    _mm512_mask_add_epi8, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_epi8, _mm512_srli_epi16, _mm512_srli_epi32, _mm512_test_epi8_mask, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
};

/// For each four bytes the byte `n` of the same four.
const fn byte_of_four(n: u8) -> [u8; 64] {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        // The shuffle counts within sixteen bytes.
        out[i] = (i % 16 / 4 * 4) as u8 + n;
        i += 1;
    }
    out
}

const BYTE_OF_FOUR: [[u8; 64]; 4] = [byte_of_four(0), byte_of_four(1), byte_of_four(2), byte_of_four(3)];

/// Returns the weights of a block of sixteen rows that lie `row_bytes` apart, raised to an offset of 128 where they have one,
/// with their scales and minima.
///
/// # Safety
/// The CPU has AVX-512 with bytes and words; at `block` and each `row_bytes` after it lies a block.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the caller enables the instructions")]
pub(super) unsafe fn turned<F: Block>(block: *const u8, row_bytes: usize) -> ([__m512i; 8], __m512, __m512) {
    // SAFETY: the caller enables the instructions; all reads are within the blocks.
    unsafe {
        // Each format begins with its scale; its minimum, where it has one, is next.
        let halves = four_bytes(block, row_bytes);
        let scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(halves));
        let min = if F::MIN {
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(halves)))
        } else {
            _mm512_setzero_ps()
        };
        let mut u = [_mm512_setzero_si512(); 8];
        let fifths = match F::LAYOUT {
            Layout::Bytes(first) => {
                // Signed bytes become unsigned ones with an offset of 128.
                let sign = _mm512_set1_epi8(-128);
                for half in 0..2 {
                    let four = columns(block.add(first + 16 * half), row_bytes);
                    for k in 0..4 {
                        u[4 * half + k] = _mm512_xor_si512(four[k], sign);
                    }
                }
                None
            }
            Layout::Nibbles { first, fifths } => {
                u = nibbles(block.add(first), row_bytes);
                fifths
            }
            Layout::Steps { first, steps } => {
                let steps = _mm512_broadcast_i32x4(_mm_loadu_si128(steps.as_ptr().cast()));
                u = nibbles(block.add(first), row_bytes).map(|u| _mm512_shuffle_epi8(steps, u));
                None
            }
        };
        if let Some(fifths) = fifths {
            let bits = four_bytes(block.add(fifths), row_bytes);
            let sixteen = _mm512_set1_epi8(16);
            for k in 0..8 {
                let byte = _mm512_shuffle_epi8(bits, _mm512_loadu_si512(BYTE_OF_FOUR[k / 2].as_ptr().cast()));
                let bit = _mm512_set1_epi32(if k % 2 == 0 { 0x0804_0201 } else { 0x8040_2010_u32.cast_signed() });
                u[k] = _mm512_mask_add_epi8(u[k], _mm512_test_epi8_mask(byte, bit), u[k], sixteen);
            }
        }
        if F::OFFSET != 0 && F::OFFSET != 128 {
            let lift = _mm512_set1_epi8((128 - F::OFFSET).cast_signed());
            u = u.map(|u| _mm512_add_epi8(u, lift));
        }
        (u, scale, min)
    }
}

/// The low nibbles of sixteen bytes of each row, then the high ones, four of each row in a register.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the caller enables the instructions")]
unsafe fn nibbles(start: *const u8, row_bytes: usize) -> [__m512i; 8] {
    // SAFETY: the caller enables the instructions, and each row has sixteen bytes there.
    unsafe {
        let low = _mm512_set1_epi8(15);
        let four = columns(start, row_bytes);
        let high = four.map(|x| _mm512_and_si512(_mm512_srli_epi16::<4>(x), low));
        let low = four.map(|x| _mm512_and_si512(x, low));
        [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]]
    }
}

/// The `k`-th four of sixteen bytes of each row, for each `k`.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the caller enables the instructions")]
unsafe fn columns(start: *const u8, row_bytes: usize) -> [__m512i; 4] {
    // SAFETY: the caller enables the instructions, and each row has sixteen bytes there.
    unsafe {
        let mut x = [_mm512_setzero_si512(); 4];
        for (i, x) in x.iter_mut().enumerate() {
            let row = start.add(i * row_bytes);
            let sixteen = |n: usize| row.add(4 * n * row_bytes).cast();
            *x = _mm512_castsi128_si512(_mm_loadu_si128(sixteen(0)));
            *x = _mm512_inserti32x4::<1>(*x, _mm_loadu_si128(sixteen(1)));
            *x = _mm512_inserti32x4::<2>(*x, _mm_loadu_si128(sixteen(2)));
            *x = _mm512_inserti32x4::<3>(*x, _mm_loadu_si128(sixteen(3)));
        }
        // Rows 0, 4, 8 and 12 lie in the first, rows 1, 5, 9 and 13 in the second, and so on.
        let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
        let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
        [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ]
    }
}

/// Four bytes of each row.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the caller enables the instructions")]
unsafe fn four_bytes(start: *const u8, row_bytes: usize) -> __m512i {
    // SAFETY: the caller enables the instructions, and each row has four bytes there.
    unsafe {
        let mut x = [0_u32; PANEL];
        for (i, x) in x.iter_mut().enumerate() {
            *x = start.add(i * row_bytes).cast::<u32>().read_unaligned();
        }
        _mm512_loadu_si512(x.as_ptr().cast())
    }
}
