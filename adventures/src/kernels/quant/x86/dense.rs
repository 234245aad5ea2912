//! Products with weights in single, half and bfloat16 precision.

use super::F16c;
use crate::kernels::LANES;
use crate::kernels::quant::dense::{BF16, Dense, Element, Lanes, PAIRED, STEP, combine, total};
use crate::kernels::quant::rows::{ROWS, Sums};
use std::arch::x86_64::{
    __m256, __m512, __m512bh, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_dpbf16_ps,
    _mm512_fmadd_ps, _mm512_loadu_epi16, _mm512_loadu_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

/// Activation rows whose sums fit the registers beside each other.
const TOGETHER: usize = 6;

impl Dense<'_> {
    /// As `plain`, with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn avx2<E: Element>(
        self,
        weights: &[u8],
        unpacked: &mut Vec<f32>,
        lanes: Lanes,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.unpack::<E, F16c>(weights, unpacked);
        for r in 0..self.count() {
            match lanes {
                Lanes::One => self.avx2_rows(unpacked, r, store),
                Lanes::Sets => self.avx2_sets::<E>(unpacked, r, store),
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2_rows(self, unpacked: &[f32], r: usize, store: &mut impl FnMut(usize, &Sums)) {
        let rows: [_; ROWS] = std::array::from_fn(|i| self.weights(unpacked, i));
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
        store(r, &std::array::from_fn(|i| total(&halves(sums[i]), rows[i].1, x.1)));
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2_sets<E: Element>(self, unpacked: &[f32], r: usize, store: &mut impl FnMut(usize, &Sums)) {
        let x = self.row(r);
        let sums = std::array::from_fn(|i| {
            let w = self.weights(unpacked, i);
            let mut sums = [[_mm256_setzero_ps(); 2]; STEP];
            for first in (0..self.stepped()).step_by(STEP) {
                for b in 0..STEP {
                    for (half, sum) in sums[b / E::RUN].iter_mut().enumerate() {
                        // SAFETY: each half of a block has eight numbers; no alignment is asked for.
                        #[allow(unsafe_code)]
                        unsafe {
                            let x = _mm256_loadu_ps(x.0[first + b][8 * half..].as_ptr());
                            let w = _mm256_loadu_ps(w.0[first + b][8 * half..].as_ptr());
                            *sum = _mm256_fmadd_ps(w, x, *sum);
                        }
                    }
                }
            }
            self.alone::<E>(&sums.map(|sums| halves(sums)), unpacked, i, r)
        });
        store(r, &sums);
    }

    /// As `plain`, with AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn avx512<E: Element>(
        self,
        weights: &[u8],
        unpacked: &mut Vec<f32>,
        lanes: Lanes,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        self.unpack::<E, F16c>(weights, unpacked);
        let mut r = 0;
        if lanes == Lanes::Sets {
            for r in 0..self.count() {
                self.avx512_sets::<E>(unpacked, r, store);
            }
            return;
        }
        while r + TOGETHER <= self.count() {
            self.avx512_rows::<TOGETHER>(unpacked, r, store);
            r += TOGETHER;
        }
        while r + 2 <= self.count() {
            self.avx512_rows::<2>(unpacked, r, store);
            r += 2;
        }
        if r < self.count() {
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
                let mut w = [_mm512_setzero_ps(); ROWS];
                for i in 0..ROWS {
                    w[i] = _mm512_loadu_ps(rows[i].0[b].as_ptr());
                }
                for r in 0..X {
                    let x = _mm512_loadu_ps(xs[r].0[b].as_ptr());
                    for i in 0..ROWS {
                        sums[i][r] = _mm512_fmadd_ps(w[i], x, sums[i][r]);
                    }
                }
            }
        }
        for r in 0..X {
            let out = std::array::from_fn(|i| total(&stored(sums[i][r]), rows[i].1, xs[r].1));
            store(first + r, &out);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    fn avx512_sets<E: Element>(self, unpacked: &[f32], r: usize, store: &mut impl FnMut(usize, &Sums)) {
        let rows: [_; ROWS] = std::array::from_fn(|i| self.weights(unpacked, i));
        let x = self.row(r);
        let mut sums = [[_mm512_setzero_ps(); STEP]; ROWS];
        for first in (0..self.stepped()).step_by(STEP) {
            for b in 0..STEP {
                // SAFETY: a block has sixteen numbers; no alignment is asked for.
                #[allow(unsafe_code)]
                unsafe {
                    let x = _mm512_loadu_ps(x.0[first + b].as_ptr());
                    for i in 0..ROWS {
                        let w = _mm512_loadu_ps(rows[i].0[first + b].as_ptr());
                        let sum = &mut sums[i][b / E::RUN];
                        *sum = _mm512_fmadd_ps(w, x, *sum);
                    }
                }
            }
        }
        let out = std::array::from_fn(|i| self.alone::<E>(&sums[i].map(|sum| stored(sum)), unpacked, i, r));
        store(r, &out);
    }
}

/// As `Dense::plain` of the same numbers, with the instructions of bfloat16: `x` has `width` of them in a row, as they are
/// stored. Numbers below the normal ones count as 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(in crate::kernels::quant) fn brief(
    weights: &[u8],
    x: &[u16],
    width: usize,
    lanes: Lanes,
    store: &mut impl FnMut(usize, &Sums),
) {
    let count = x.len() / width;
    let mut r = 0;
    if lanes == Lanes::One {
        while r + TOGETHER <= count {
            brief_rows::<TOGETHER>(weights, &x[r * width..], width, r, store);
            r += TOGETHER;
        }
        while r + 2 <= count {
            brief_rows::<2>(weights, &x[r * width..], width, r, store);
            r += 2;
        }
        if r < count {
            brief_rows::<1>(weights, &x[r * width..], width, r, store);
        }
        return;
    }
    for r in 0..count {
        brief_sets(weights, &x[r * width..][..width], width, r, store);
    }
}

/// The weights of each of the four rows; those of a row that is not there are those of the first.
fn weight_rows(weights: &[u8], width: usize) -> [&[u8]; ROWS] {
    let there = weights.len() / (2 * width);
    std::array::from_fn(|i| &weights[2 * width * if i < there { i } else { 0 }..][..2 * width])
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn brief_rows<const X: usize>(
    weights: &[u8],
    x: &[u16],
    width: usize,
    first: usize,
    store: &mut impl FnMut(usize, &Sums),
) {
    let rows = weight_rows(weights, width);
    let mut sums = [[_mm512_setzero_ps(); X]; ROWS];
    for b in (0..width / PAIRED * PAIRED).step_by(PAIRED) {
        let w: [_; ROWS] = std::array::from_fn(|i| pairs(&rows[i][2 * b..]));
        for r in 0..X {
            let x = pairs_of(&x[r * width + b..]);
            for i in 0..ROWS {
                sums[i][r] = _mm512_dpbf16_ps(sums[i][r], w[i], x);
            }
        }
    }
    for r in 0..X {
        store(first + r, &sums.map(|row| total(&stored(row[r]), &[], &[])));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn brief_sets(weights: &[u8], x: &[u16], width: usize, r: usize, store: &mut impl FnMut(usize, &Sums)) {
    let rows = weight_rows(weights, width);
    let whole = width / (STEP * LANES) * STEP * LANES;
    let mut sums = [[_mm512_setzero_ps(); STEP]; ROWS];
    for first in (0..whole).step_by(2 * PAIRED) {
        for (set, b) in [first, first + PAIRED].into_iter().enumerate() {
            let x = pairs_of(&x[b..]);
            for (sums, row) in sums.iter_mut().zip(rows) {
                sums[set] = _mm512_dpbf16_ps(sums[set], pairs(&row[2 * b..]), x);
            }
        }
    }
    let out = std::array::from_fn(|i| {
        let rest = rows[i][2 * whole..].as_chunks::<2>().0.iter().zip(&x[whole..]);
        let rest = rest.map(|(w, x)| BF16::read::<F16c>(w) * BF16::read::<F16c>(&x.to_le_bytes()));
        combine::<BF16>(&sums[i].map(|sum| stored(sum)), rest)
    });
    store(r, &out);
}

/// The first thirty-two numbers of `bytes`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn pairs(bytes: &[u8]) -> __m512bh {
    let bytes: &[u8; 2 * PAIRED] = bytes.first_chunk().expect("a block is whole; this is a bug");
    // SAFETY: the array has 64 bytes; no alignment is asked for, and every pattern of bits is a number.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute(_mm512_loadu_epi16(bytes.as_ptr().cast()))
    }
}

/// The first thirty-two of `numbers`.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
#[inline]
fn pairs_of(numbers: &[u16]) -> __m512bh {
    let numbers: &[u16; PAIRED] = numbers.first_chunk().expect("a block is whole; this is a bug");
    // SAFETY: the array has 64 bytes; no alignment is asked for, and every pattern of bits is a number.
    #[allow(unsafe_code)]
    unsafe {
        std::mem::transmute(_mm512_loadu_epi16(numbers.as_ptr().cast()))
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn halves(sums: [__m256; 2]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    for (half, sum) in sums.into_iter().enumerate() {
        // SAFETY: each half has eight numbers.
        #[allow(unsafe_code)]
        unsafe {
            _mm256_storeu_ps(lanes[8 * half..].as_mut_ptr(), sum);
        }
    }
    lanes
}

#[target_feature(enable = "avx512f")]
#[inline]
fn stored(sums: __m512) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    // SAFETY: the array has sixteen numbers.
    #[allow(unsafe_code)]
    unsafe {
        _mm512_storeu_ps(lanes.as_mut_ptr(), sums);
    }
    lanes
}
