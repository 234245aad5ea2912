//! Sixteen numbers in one register of AVX-512, or in two of AVX2.

#![allow(unsafe_code, reason = "intrinsics; `attend` detects the instructions before it calls here")]

use super::{LANES, Number, Page, Queries, Scratch, Vector, attend_with};
use half::f16;
use std::arch::x86_64::{
    __m256, __m512, _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_cvtph_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_reduce_add_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps,
    _mm512_storeu_ps,
};

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
pub(super) fn attend_avx512<N: Number>(
    queries: &Queries<'_>,
    pages: &[Page<'_, N>],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    attend_with::<Avx512, N>(queries, pages, scratch, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn attend_avx2<N: Number>(
    queries: &Queries<'_>,
    pages: &[Page<'_, N>],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    attend_with::<Avx2, N>(queries, pages, scratch, out);
}

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY, for each block below: the module's functions enable the instructions, and each load and store is of an array
// of its size, without alignment.
impl Vector for Avx512 {
    #[inline(always)]
    fn zero() -> Self {
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
    }

    #[inline(always)]
    fn load_half(x: &[f16; LANES]) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) })
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn total(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    /// Each step adds halves to halves of two registers, into one: after four, a lane is a sum.
    #[inline(always)]
    fn totals(x: &[Self; LANES]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        unsafe {
            let mut eighths = [_mm512_setzero_ps(); 8];
            for (i, eighth) in eighths.iter_mut().enumerate() {
                // Quarters end up four lanes apart: so the `i`-th of them begins with the `4 * i`-th sum.
                let at = |i: usize| x[4 * (i % 4) + i / 4].0;
                let (a, b) = (at(2 * i), at(2 * i + 1));
                let low = _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b);
                *eighth = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
            }
            let mut quarters = [_mm512_setzero_ps(); 4];
            for (i, quarter) in quarters.iter_mut().enumerate() {
                let (a, b) = (eighths[2 * i], eighths[2 * i + 1]);
                let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                *quarter = _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b));
            }
            let mut halves = [_mm512_setzero_ps(); 2];
            for (i, half) in halves.iter_mut().enumerate() {
                let (a, b) = (quarters[2 * i], quarters[2 * i + 1]);
                let low = _mm512_shuffle_ps::<0b01_00_01_00>(a, b);
                *half = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_10_11_10>(a, b));
            }
            let [a, b] = halves;
            let low = _mm512_shuffle_ps::<0b10_00_10_00>(a, b);
            let sums = _mm512_add_ps(low, _mm512_shuffle_ps::<0b11_01_11_01>(a, b));
            _mm512_storeu_ps(out.as_mut_ptr(), sums);
        }
        out
    }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2([__m256; 2]);

impl Vector for Avx2 {
    #[inline(always)]
    fn zero() -> Self {
        Self([unsafe { _mm256_setzero_ps() }; 2])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] })
    }

    #[inline(always)]
    fn load_half(x: &[f16; LANES]) -> Self {
        let half = |i: usize| unsafe { x.as_ptr().add(i) }.cast();
        Self(unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(half(0))), _mm256_cvtph_ps(_mm_loadu_si128(half(8)))] })
    }

    #[inline(always)]
    fn add_product(self, a: Self, b: Self) -> Self {
        let ([a, c], [b, d], [x, y]) = (a.0, b.0, self.0);
        Self(unsafe { [_mm256_fmadd_ps(a, b, x), _mm256_fmadd_ps(c, d, y)] })
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        let ([a, b], [c, d]) = (self.0, other.0);
        Self(unsafe { [_mm256_add_ps(a, c), _mm256_add_ps(b, d)] })
    }

    #[inline(always)]
    fn total(self) -> f32 {
        let mut lanes = [0.0; LANES];
        for (i, half) in self.0.into_iter().enumerate() {
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr().add(8 * i), half) };
        }
        crate::kernels::math::sum(lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_sums_at_once_are_the_sums_one_by_one() {
        #[target_feature(enable = "avx512f,avx2,fma,f16c")]
        fn both(x: &[[f32; LANES]; LANES]) -> [[f32; LANES]; 2] {
            let mut loaded = [Avx512::zero(); LANES];
            for (loaded, x) in loaded.iter_mut().zip(x) {
                *loaded = Avx512::load(x);
            }
            [Avx512::totals(&loaded), loaded.map(Avx512::total)]
        }
        if !is_x86_feature_detected!("avx512f") {
            eprintln!("skipped: this CPU has no AVX-512");
            return;
        }
        let mut bits = 1_u32;
        for round in 0..100 {
            let mut x = [[0.0; LANES]; LANES];
            for x in x.as_flattened_mut() {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Of very different sizes: another order of additions gives another sum.
                *x = ((bits >> 8) as f32 - 8e6) * ((bits >> 3) as f32 % 9.0).exp2();
            }
            // SAFETY: the instructions were just detected.
            let [at_once, alone] = unsafe { both(&x) };
            assert_eq!(at_once, alone, "round {round}");
            assert_eq!(alone, x.map(crate::kernels::math::sum), "round {round}");
        }
    }
}
