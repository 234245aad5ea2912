//! Products of blocks of 32 with few activation rows: sixteen weight rows are turned side by side in registers, multiplied
//! there and never stored. What [`super::panel`] does with many, in the same order of additions.

use super::panel::{PANEL, Products, ask_for_next, four, keep, row};
use super::turn::turned;
use crate::kernels::quant::format::{Block, Order};
use crate::kernels::quant::rounded::Rounded;
use std::arch::x86_64::{
    _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_mul_ps, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
};

/// Up to how many activation rows this is faster than a panel.
pub(in crate::kernels::quant) const DIRECT: usize = 3;

/// Calls `store(r, products)` with the products of sixteen weight rows and each activation row.
///
/// # Panics
/// Where the weights are not sixteen rows as wide as the activations, or those are none or more than [`DIRECT`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(in crate::kernels::quant) fn direct<F: Block>(
    weights: &[u8],
    row_bytes: usize,
    x: &Rounded,
    store: &mut impl FnMut(usize, &Products),
) {
    // SAFETY: the instructions are enabled here.
    #[allow(unsafe_code)]
    unsafe {
        match x.rows {
            1 => rows::<F, 1>(weights, row_bytes, x, store),
            2 => rows::<F, 2>(weights, row_bytes, x, store),
            DIRECT => rows::<F, DIRECT>(weights, row_bytes, x, store),
            n => unreachable!("{n} rows are for a panel; this is a bug"),
        }
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the caller enables the instructions")]
unsafe fn rows<F: Block, const R: usize>(
    weights: &[u8],
    row_bytes: usize,
    x: &Rounded,
    store: &mut impl FnMut(usize, &Products),
) {
    let blocks = row_bytes / F::BYTES;
    assert!(weights.len() == PANEL * row_bytes && x.width == 32 * blocks, "sixteen rows, equally wide; this is a bug");
    let bytes: [&[[i8; 32]]; R] = std::array::from_fn(|r| row(&x.bytes, r, x.width).as_chunks().0);
    let scales: [&[f32]; R] = std::array::from_fn(|r| row(&x.scale, r, blocks));
    let weighted: [&[f32]; R] = std::array::from_fn(|r| row(&x.weighted, r, blocks));
    let lowered: [&[[i32; 8]]; R] =
        std::array::from_fn(
            |r| {
                if F::OFFSET == 0 { [].as_slice() } else { row(&x.lowered, r, 8 * blocks).as_chunks().0 }
            },
        );
    // SAFETY: the caller enables the instructions; the sizes of all rows were just checked.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 8]; R];
        let mut minima = [_mm512_setzero_ps(); R];
        for b in 0..blocks {
            ask_for_next(weights, b * PANEL * F::BYTES, PANEL * F::BYTES);
            let (u, scale, min) = turned::<F>(weights.as_ptr().add(b * F::BYTES), row_bytes);
            for r in 0..R {
                let factor = _mm512_mul_ps(scale, _mm512_set1_ps(*scales[r].get_unchecked(b)));
                // As one integer: what all eight fours are lowered by at once.
                let total: i32 = if F::OFFSET == 0 { 0 } else { lowered[r].get_unchecked(b).iter().sum() };
                let mut whole = _mm512_set1_epi32(total);
                for (k, u) in u.iter().enumerate() {
                    let start = match F::ORDER {
                        Order::Whole => whole,
                        _ if F::OFFSET == 0 => _mm512_setzero_si512(),
                        _ => _mm512_set1_epi32(lowered[r].get_unchecked(b)[k]),
                    };
                    let dot = _mm512_dpbusd_epi32(start, *u, four(bytes[r].get_unchecked(b), k));
                    if F::ORDER == Order::Whole {
                        whole = dot;
                    } else {
                        sums[r][k] = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(dot), sums[r][k]);
                    }
                }
                if F::ORDER == Order::Whole {
                    sums[r][0] = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(whole), sums[r][0]);
                }
                if F::MIN {
                    minima[r] = _mm512_fmadd_ps(min, _mm512_set1_ps(*weighted[r].get_unchecked(b)), minima[r]);
                }
            }
        }
        for r in 0..R {
            let s = &sums[r];
            if F::ORDER == Order::Whole {
                keep(r, s[0], store);
                continue;
            }
            let halves: [_; 4] = std::array::from_fn(|k| _mm512_add_ps(s[k], s[k + 4]));
            let sum = _mm512_add_ps(_mm512_add_ps(halves[0], halves[2]), _mm512_add_ps(halves[1], halves[3]));
            keep(r, _mm512_add_ps(sum, minima[r]), store);
        }
    }
}
