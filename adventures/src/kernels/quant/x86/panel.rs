//! Products with several activation rows, of superblocks with eight and more: sixteen weight rows side by side, one in
//! each lane of a register of 512 bits.
//!
//! Four weights of each of the sixteen rows are one register, four activations are repeated in all lanes: a sum needs no
//! addition across lanes, and a scale serves sixteen rows. The order of additions is that of [`super::super::rows`].

use super::F16c;
use super::turn::turned;
use crate::kernels::quant::format::{Block, Order, SuperBlock};
use crate::kernels::quant::rounded::Rounded;
use std::arch::x86_64::{
    __m256i, __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm256_loadu_si256, _mm256_permute2x128_si256,
    _mm256_storeu_si256, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm512_add_epi32, _mm512_add_ps, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps,
    _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_mullo_epi32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srai_epi32, _mm512_storeu_ps,
    _mm512_storeu_si512, _mm512_sub_epi32, _mm512_sub_ps,
};
use std::ops::Range;

/// How many weight rows lie side by side.
pub(in crate::kernels::quant) const PANEL: usize = 16;

/// Products of the sixteen rows.
pub(super) type Products = [f32; PANEL];

/// What fills one register; a load across two cache lines costs two.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line<T>(pub(super) T);

/// Sixteen weight rows as bytes, and their scales.
#[derive(Default)]
pub(in crate::kernels::quant) struct Panel {
    /// Four weights of each row.
    pub(super) u: Vec<Line<[u8; 64]>>,
    /// The high bits of weights that are multiplied by their scales; `u` has the low ones then.
    pub(super) high: Vec<Line<[u8; 64]>>,
    /// Of each block or superblock.
    pub(super) scale: Vec<Line<Products>>,
    pub(super) min: Vec<Line<Products>>,
    /// Of each superblock: the scales of two groups of 16 of each row, and the same of the minima.
    pub(super) scales: Vec<Line<[u8; 64]>>,
    pub(super) mins: Vec<Line<[u8; 64]>>,
}

/// How many activation rows are multiplied together: their sums fit the 32 registers.
const BY_LANES: usize = 2;
const BY_WHOLE: usize = 4;

/// Asks for `count` bytes of the weights after these, `start` from their beginning: sixteen rows are read side by side, which
/// the CPU does not foresee.
#[inline(always)]
pub(super) fn ask_for_next(weights: &[u8], start: usize, count: usize) {
    let next = weights.as_ptr().wrapping_add(weights.len() + start);
    for line in (0..count).step_by(64) {
        // SAFETY: asking for memory touches nothing, whatever the address.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
        }
    }
}

impl Panel {
    /// Unpacks sixteen rows of blocks of 32.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn fill_blocks<F: Block>(&mut self, weights: &[u8], row_bytes: usize) {
        let blocks = row_bytes / F::BYTES;
        self.resize(8 * blocks, blocks, 0);
        assert!(weights.len() == PANEL * row_bytes && row_bytes == blocks * F::BYTES, "sixteen rows; this is a bug");
        for (b, lines) in self.u.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            ask_for_next(weights, b * PANEL * F::BYTES, PANEL * F::BYTES);
            // SAFETY: the instructions are enabled here; a block lies there in each of the sixteen rows; lines have 64 bytes.
            #[allow(unsafe_code)]
            unsafe {
                let (u, scale, min) = turned::<F>(weights.as_ptr().add(b * F::BYTES), row_bytes);
                for (line, u) in lines.iter_mut().zip(u) {
                    _mm512_storeu_si512(line.0.as_mut_ptr().cast(), u);
                }
                _mm512_storeu_ps(self.scale[b].0.as_mut_ptr(), scale);
                if F::MIN {
                    _mm512_storeu_ps(self.min[b].0.as_mut_ptr(), min);
                }
            }
        }
    }

    /// Unpacks sixteen rows of superblocks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn fill_super<F: SuperBlock>(&mut self, weights: &[u8], row_bytes: usize) {
        let count = row_bytes / F::BYTES;
        self.resize(64 * count, count, 8 * count);
        let mut rows = [[0; 256]; PANEL];
        let (mut scales, mut mins) = ([[0; 16]; PANEL], [[0; 16]; PANEL]);
        for b in 0..count {
            ask_for_next(weights, b * PANEL * F::BYTES, PANEL * F::BYTES);
            for (i, weights) in weights.chunks_exact(row_bytes).enumerate() {
                let block = &weights[b * F::BYTES..(b + 1) * F::BYTES];
                (self.scale[b].0[i], self.min[b].0[i]) =
                    F::unpack::<F16c>(block, &mut rows[i], &mut scales[i], &mut mins[i]);
            }
            for (j, lines) in self.u[64 * b..64 * b + 64].as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let part = rows.each_ref().map(|row| row.as_chunks::<32>().0[j]);
                interleave(&part, lines);
            }
            interleave(&scales.map(bytes_of), &mut self.scales.as_chunks_mut::<8>().0[b]);
            interleave(&mins.map(bytes_of), &mut self.mins.as_chunks_mut::<8>().0[b]);
        }
    }

    fn resize(&mut self, lines: usize, scales: usize, groups: usize) {
        self.u.resize(lines, Line([0; 64]));
        self.scale.resize(scales, Line([0.0; PANEL]));
        self.min.resize(scales, Line([0.0; PANEL]));
        self.scales.resize(groups, Line([0; 64]));
        self.mins.resize(groups, Line([0; 64]));
    }

    /// Calls `store(r, products)` for each activation row, after `fill_blocks`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn blocks<F: Block>(
        &self,
        x: &Rounded,
        rows: Range<usize>,
        store: &mut impl FnMut(usize, &Products),
    ) {
        assert_eq!(self.scale.len(), x.width / 32, "rows are equally wide; this is a bug");
        let mut r = rows.start;
        // SAFETY: the instructions are enabled here.
        #[allow(unsafe_code)]
        unsafe {
            if F::ORDER == Order::Whole {
                while r + BY_WHOLE <= rows.end {
                    self.whole::<F, BY_WHOLE>(x, r, store);
                    r += BY_WHOLE;
                }
                while r < rows.end {
                    self.whole::<F, 1>(x, r, store);
                    r += 1;
                }
            } else {
                while r + BY_LANES <= rows.end {
                    self.lanes::<F, BY_LANES>(x, r, store);
                    r += BY_LANES;
                }
                while r < rows.end {
                    self.lanes::<F, 1>(x, r, store);
                    r += 1;
                }
            }
        }
    }

    /// The same for superblocks, after `fill_super`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn superblocks<F: SuperBlock>(
        &self,
        x: &Rounded,
        rows: Range<usize>,
        store: &mut impl FnMut(usize, &Products),
    ) {
        assert_eq!(self.scale.len(), x.width / 256, "rows are equally wide; this is a bug");
        let mut r = rows.start;
        // SAFETY: the instructions are enabled here.
        #[allow(unsafe_code)]
        unsafe {
            while r + BY_WHOLE <= rows.end {
                self.integers::<F, BY_WHOLE>(x, r, store);
                r += BY_WHOLE;
            }
            while r < rows.end {
                self.integers::<F, 1>(x, r, store);
                r += 1;
            }
        }
    }

    /// Blocks of 32 in eight lanes: a register of sums for each lane.
    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn lanes<F: Block, const R: usize>(
        &self,
        x: &Rounded,
        first: usize,
        store: &mut impl FnMut(usize, &Products),
    ) {
        let blocks = self.scale.len();
        let bytes: [&[[i8; 32]]; R] = std::array::from_fn(|r| row(&x.bytes, first + r, x.width).as_chunks().0);
        let scales: [&[f32]; R] = std::array::from_fn(|r| row(&x.scale, first + r, blocks));
        let weighted: [&[f32]; R] = std::array::from_fn(|r| row(&x.weighted, first + r, blocks));
        let lowered: [&[[i32; 8]]; R] = std::array::from_fn(|r| {
            if F::OFFSET == 0 { [].as_slice() } else { row(&x.lowered, first + r, 8 * blocks).as_chunks().0 }
        });
        // SAFETY: the callers enable the instructions; every load is of an array of its size.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); 8]; R];
            let mut minima = [_mm512_setzero_ps(); R];
            for (b, u) in self.u.as_chunks::<8>().0.iter().enumerate() {
                let scale = numbers(&self.scale[b]);
                let factors: [__m512; R] = std::array::from_fn(|r| _mm512_mul_ps(scale, _mm512_set1_ps(scales[r][b])));
                for k in 0..8 {
                    let u = line(&u[k]);
                    for r in 0..R {
                        let start =
                            if F::OFFSET == 0 { _mm512_setzero_si512() } else { _mm512_set1_epi32(lowered[r][b][k]) };
                        let dot = _mm512_dpbusd_epi32(start, u, four(&bytes[r][b], k));
                        sums[r][k] = _mm512_fmadd_ps(factors[r], _mm512_cvtepi32_ps(dot), sums[r][k]);
                    }
                }
                if F::MIN {
                    let min = numbers(&self.min[b]);
                    for r in 0..R {
                        minima[r] = _mm512_fmadd_ps(min, _mm512_set1_ps(weighted[r][b]), minima[r]);
                    }
                }
            }
            for r in 0..R {
                let s = &sums[r];
                let halves: [__m512; 4] = std::array::from_fn(|k| _mm512_add_ps(s[k], s[k + 4]));
                let sum = _mm512_add_ps(_mm512_add_ps(halves[0], halves[2]), _mm512_add_ps(halves[1], halves[3]));
                keep(first + r, _mm512_add_ps(sum, minima[r]), store);
            }
        }
    }

    /// Blocks of 32 as one integer each.
    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn whole<F: Block, const R: usize>(
        &self,
        x: &Rounded,
        first: usize,
        store: &mut impl FnMut(usize, &Products),
    ) {
        debug_assert!(!F::MIN, "no format with minima is summed so");
        let blocks = self.scale.len();
        let bytes: [&[[i8; 32]]; R] = std::array::from_fn(|r| row(&x.bytes, first + r, x.width).as_chunks().0);
        let scales: [&[f32]; R] = std::array::from_fn(|r| row(&x.scale, first + r, blocks));
        let totals: [&[[i16; 2]]; R] = std::array::from_fn(|r| row(&x.sums, first + r, 2 * blocks).as_chunks().0);
        // SAFETY: the callers enable the instructions; every load is of an array of its size.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); R];
            for (b, u) in self.u.as_chunks::<8>().0.iter().enumerate() {
                let scale = numbers(&self.scale[b]);
                let mut dots: [__m512i; R] = std::array::from_fn(|r| {
                    let total = i32::from(totals[r][b][0]) + i32::from(totals[r][b][1]);
                    _mm512_set1_epi32(if F::OFFSET == 0 { 0 } else { -128 * total })
                });
                for k in 0..8 {
                    let u = line(&u[k]);
                    for r in 0..R {
                        dots[r] = _mm512_dpbusd_epi32(dots[r], u, four(&bytes[r][b], k));
                    }
                }
                for r in 0..R {
                    let factor = _mm512_mul_ps(scale, _mm512_set1_ps(scales[r][b]));
                    sums[r] = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(dots[r]), sums[r]);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                keep(first + r, *sums, store);
            }
        }
    }

    /// Superblocks, or their quarters, as one integer each.
    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn integers<F: SuperBlock, const R: usize>(
        &self,
        x: &Rounded,
        first: usize,
        store: &mut impl FnMut(usize, &Products),
    ) {
        debug_assert!(F::MIN || F::ORDER.parts() == 1, "parts are of a format with minima");
        let count = self.scale.len();
        let bytes: [&[[i8; 32]]; R] = std::array::from_fn(|r| row(&x.bytes, first + r, x.width).as_chunks().0);
        let scales: [&[f32]; R] = std::array::from_fn(|r| row(&x.scale, first + r, 8 * count));
        let totals: [&[[i16; 2]]; R] = std::array::from_fn(|r| row(&x.sums, first + r, 16 * count).as_chunks().0);
        // SAFETY: the callers enable the instructions; every load is of an array of its size.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); R];
            let mut minima = [_mm512_setzero_ps(); R];
            for (b, u) in self.u.as_chunks::<64>().0.iter().enumerate() {
                let (scale, min) = (numbers(&self.scale[b]), numbers(&self.min[b]));
                let (groups, mins) = (&self.scales[8 * b..8 * b + 8], &self.mins[8 * b..8 * b + 8]);
                let d: [__m512; R] = std::array::from_fn(|r| _mm512_set1_ps(scales[r][8 * b]));
                let mut dots = [_mm512_setzero_si512(); R];
                let mut shares = [_mm512_setzero_si512(); R];
                for j in 0..8 {
                    let pair = line(&groups[j]);
                    for half in 0..32 / F::GROUP {
                        let mut group = [_mm512_setzero_si512(); R];
                        for k in half * F::GROUP / 4..(half + 1) * F::GROUP / 4 {
                            let u = line(&u[8 * j + k]);
                            for r in 0..R {
                                group[r] = _mm512_dpbusd_epi32(group[r], u, four(&bytes[r][8 * b + j], k));
                            }
                        }
                        // Of two groups of 32 that are one, either half will do.
                        let low = F::GROUP == 16 && half == 0;
                        let scale = _mm512_srai_epi32::<16>(if low { _mm512_slli_epi32::<16>(pair) } else { pair });
                        for r in 0..R {
                            dots[r] = _mm512_add_epi32(dots[r], _mm512_mullo_epi32(group[r], scale));
                        }
                    }
                    let share = if F::MIN { line(&mins[j]) } else { pair };
                    for r in 0..R {
                        shares[r] = _mm512_dpwssd_epi32(shares[r], share, two(&totals[r][8 * b + j]));
                    }
                    if F::ORDER.parts() > 1 && (j + 1) % (8 / F::ORDER.parts()) == 0 {
                        for r in 0..R {
                            let (both, low) = (_mm512_mul_ps(scale, d[r]), _mm512_mul_ps(min, d[r]));
                            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), both, sums[r]);
                            minima[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(shares[r]), low, minima[r]);
                        }
                        dots = [_mm512_setzero_si512(); R];
                        shares = [_mm512_setzero_si512(); R];
                    }
                }
                for r in 0..R {
                    if !F::MIN {
                        let offset = _mm512_set1_epi32(i32::from(F::OFFSET));
                        dots[r] = _mm512_sub_epi32(dots[r], _mm512_mullo_epi32(shares[r], offset));
                    }
                    match F::ORDER {
                        Order::Quarters | Order::Halves => {}
                        Order::Slab => {
                            let mut slab = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dots[r]));
                            if F::MIN {
                                slab = _mm512_fnmadd_ps(min, _mm512_cvtepi32_ps(shares[r]), slab);
                            }
                            sums[r] = _mm512_fmadd_ps(slab, d[r], sums[r]);
                        }
                        Order::Whole => {
                            let both = _mm512_mul_ps(scale, d[r]);
                            sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), both, sums[r]);
                            if F::MIN {
                                let low = _mm512_mul_ps(min, d[r]);
                                minima[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(shares[r]), low, minima[r]);
                            }
                        }
                        Order::Lanes => unreachable!("many rows are never summed in lanes; this is a bug"),
                    }
                }
            }
            for r in 0..R {
                keep(first + r, _mm512_sub_ps(sums[r], minima[r]), store);
            }
        }
    }
}

/// Row `r` of rows of `width`.
#[inline(always)]
pub(super) fn row<T>(x: &[T], r: usize, width: usize) -> &[T] {
    &x[r * width..(r + 1) * width]
}

fn bytes_of(words: [i16; 16]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (two, word) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        *two = word.to_le_bytes();
    }
    bytes
}

/// Lays fours of bytes of sixteen rows side by side.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave(rows: &[[u8; 32]; PANEL], lines: &mut [Line<[u8; 64]>; 8]) {
    for half in 0..2 {
        // SAFETY: the arrays have 32 and 64 bytes; no alignment is asked for.
        #[allow(unsafe_code)]
        let x: [__m256i; 8] =
            std::array::from_fn(|i| unsafe { _mm256_loadu_si256(rows[8 * half + i].as_ptr().cast()) });
        let mut pairs = [x[0]; 8];
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        }
        for k in 0..4 {
            // Columns `k` and `k + 4` of four rows, and of the next four.
            let (a, b, c, d) = (pairs[k / 2], pairs[k / 2 + 2], pairs[k / 2 + 4], pairs[k / 2 + 6]);
            let (low, high) = if k % 2 == 0 {
                (_mm256_unpacklo_epi64(a, b), _mm256_unpacklo_epi64(c, d))
            } else {
                (_mm256_unpackhi_epi64(a, b), _mm256_unpackhi_epi64(c, d))
            };
            // SAFETY: half a line has 32 bytes; no alignment is asked for.
            #[allow(unsafe_code)]
            unsafe {
                let near = _mm256_permute2x128_si256::<0x20>(low, high);
                let far = _mm256_permute2x128_si256::<0x31>(low, high);
                _mm256_storeu_si256(lines[k].0[32 * half..].as_mut_ptr().cast(), near);
                _mm256_storeu_si256(lines[k + 4].0[32 * half..].as_mut_ptr().cast(), far);
            }
        }
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
pub(super) unsafe fn line(line: &Line<[u8; 64]>) -> __m512i {
    // SAFETY: the array has 64 bytes; no alignment is asked for.
    unsafe { _mm512_loadu_si512(line.0.as_ptr().cast()) }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
pub(super) unsafe fn numbers(line: &Line<Products>) -> __m512 {
    // SAFETY: the array has sixteen numbers; no alignment is asked for.
    unsafe { _mm512_loadu_ps(line.0.as_ptr()) }
}

/// The `k`-th four activations, in all lanes.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
pub(super) unsafe fn four(x: &[i8; 32], k: usize) -> __m512i {
    let four = x.as_chunks::<4>().0[k].map(i8::cast_unsigned);
    // SAFETY: the caller enables AVX-512.
    unsafe { _mm512_set1_epi32(i32::from_le_bytes(four)) }
}

/// Two sums, in all lanes.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
pub(super) unsafe fn two(x: &[i16; 2]) -> __m512i {
    let (low, high) = (u32::from(x[0].cast_unsigned()), u32::from(x[1].cast_unsigned()));
    // SAFETY: the caller enables AVX-512.
    unsafe { _mm512_set1_epi32((low | (high << 16)).cast_signed()) }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
pub(super) unsafe fn keep(r: usize, sums: __m512, store: &mut impl FnMut(usize, &Products)) {
    let mut out = [0.0; PANEL];
    // SAFETY: the array has sixteen numbers; no alignment is asked for.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums) };
    store(r, &out);
}
