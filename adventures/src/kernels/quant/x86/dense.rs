//! Products with weights in single, half and bfloat16 precision.

use crate::kernels::LANES;
use crate::kernels::quant::dense::{Dense, Element, total};
use crate::kernels::quant::rows::{ROWS, Sums};
use std::arch::x86_64::{
    _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

impl Dense<'_> {
    /// As `plain`, with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn avx2<E: Element>(
        self,
        weights: &[u8],
        unpacked: &mut Vec<f32>,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.unpack::<E>(weights, unpacked);
        let rows: [_; ROWS] = std::array::from_fn(|i| self.weights(unpacked, i));
        for r in 0..self.count() {
            let x = self.row(r);
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            for (b, x) in x.0.iter().enumerate() {
                for half in 0..2 {
                    // SAFETY: each half of a block has eight numbers; no alignment is asked for.
                    #[allow(unsafe_code)]
                    unsafe {
                        let x = _mm256_loadu_ps(x[8 * half..].as_ptr());
                        for i in 0..ROWS {
                            let w = _mm256_loadu_ps(rows[i].0[b][8 * half..].as_ptr());
                            sums[i][half] = _mm256_fmadd_ps(w, x, sums[i][half]);
                        }
                    }
                }
            }
            let sums = std::array::from_fn(|i| {
                let mut lanes = [0.0; LANES];
                for half in 0..2 {
                    // SAFETY: each half has eight numbers; no alignment is asked for.
                    #[allow(unsafe_code)]
                    unsafe {
                        _mm256_storeu_ps(lanes[8 * half..].as_mut_ptr(), sums[i][half]);
                    }
                }
                total(&lanes, rows[i].1, x.1)
            });
            store(r, &sums);
        }
    }

    /// As `plain`, with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn avx512<E: Element>(
        self,
        weights: &[u8],
        unpacked: &mut Vec<f32>,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.unpack::<E>(weights, unpacked);
        let mut r = 0;
        while r + 4 <= self.count() {
            self.avx512_rows::<4>(unpacked, r, store);
            r += 4;
        }
        for r in r..self.count() {
            self.avx512_rows::<1>(unpacked, r, store);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn avx512_rows<const X: usize>(self, unpacked: &[f32], first: usize, store: &mut impl FnMut(usize, &Sums)) {
        let rows: [_; ROWS] = std::array::from_fn(|i| self.weights(unpacked, i));
        let xs: [_; X] = std::array::from_fn(|r| self.row(first + r));
        let mut sums = [[_mm512_setzero_ps(); X]; ROWS];
        for b in 0..self.width / LANES {
            // SAFETY: a block has sixteen numbers; no alignment is asked for.
            #[allow(unsafe_code)]
            unsafe {
                let mut x = [_mm512_setzero_ps(); X];
                for r in 0..X {
                    x[r] = _mm512_loadu_ps(xs[r].0[b].as_ptr());
                }
                for i in 0..ROWS {
                    let w = _mm512_loadu_ps(rows[i].0[b].as_ptr());
                    for r in 0..X {
                        sums[i][r] = _mm512_fmadd_ps(w, x[r], sums[i][r]);
                    }
                }
            }
        }
        for r in 0..X {
            let out = std::array::from_fn(|i| {
                let mut lanes = [0.0; LANES];
                // SAFETY: the array has sixteen numbers.
                #[allow(unsafe_code)]
                unsafe {
                    _mm512_storeu_ps(lanes.as_mut_ptr(), sums[i][r]);
                }
                total(&lanes, rows[i].1, xs[r].1)
            });
            store(first + r, &out);
        }
    }
}
