//! The products of [`Unpacked`] with AVX2, and with the byte dot products of AVX-512.
//!
//! Registers of 256 bits in both: eight lanes are what llama.cpp's order of additions has.

mod dense;
mod direct;
mod few;
mod panel;
mod round;
mod tiles;
mod turn;

pub(super) use dense::brief;
pub(super) use direct::{DIRECT, direct};
pub(super) use few::few;
pub(super) use panel::{PANEL, Panel};
pub(super) use round::{lower, round_by_32, round_by_256};
pub(super) use tiles::Turned;

use super::format::{Block, Halves, Order, SuperBlock};
use super::rounded::Rounded;
use super::rows::{ROWS, Sums, Unpacked};
use std::arch::x86_64::{
    __m128, __m128i, __m256, __m256i, _MM_HINT_T0, _mm_add_epi32, _mm_add_ps, _mm_add_ss, _mm_cvtepi32_ps,
    _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtsi64_si128, _mm_cvtss_f32, _mm_fmadd_ps, _mm_fnmadd_ps, _mm_loadu_ps,
    _mm_loadu_si128, _mm_movehdup_ps, _mm_movehl_ps, _mm_mul_ps, _mm_prefetch, _mm_set1_ps, _mm_setzero_ps,
    _mm_storeu_ps, _mm_sub_ps, _mm256_abs_epi8, _mm256_add_epi32, _mm256_broadcastsi128_si256, _mm256_castps128_ps256,
    _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cvtepi32_ps, _mm256_dpbusd_epi32, _mm256_dpwssd_epi32,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_hadd_epi32, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_permutevar8x32_ps, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_shuffle_epi8,
    _mm256_shuffle_epi32, _mm256_sign_epi8, _mm256_slli_epi32, _mm256_storeu_si256, _mm256_sub_epi16, _mm256_sub_epi32,
    _mm256_unpackhi_epi64, _mm256_unpacklo_epi64, _mm256_xor_si256,
};
use std::ops::Range;

/// Half precision by the CPU's own instruction.
struct F16c;

impl Halves for F16c {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        // SAFETY: used below alone, where F16C is enabled.
        #[allow(unsafe_code)]
        unsafe {
            _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
        }
    }

    #[inline(always)]
    fn look_up(table: &[u8; 16], u: &mut [u8; 32]) {
        // SAFETY: used below alone, where AVX2 is enabled; the arrays have 16 and 32 bytes.
        #[allow(unsafe_code)]
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            _mm256_storeu_si256(u.as_mut_ptr().cast(), _mm256_shuffle_epi8(table, load(u)));
        }
    }
}

/// Half precision as it is, in the low bits: four numbers are converted at once.
struct Bits;

impl Halves for Bits {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits))
    }

    #[inline(always)]
    fn look_up(table: &[u8; 16], u: &mut [u8; 32]) {
        F16c::look_up(table, u);
    }
}

macro_rules! entry {
    // `together`: activation rows whose sums fit the registers beside each other.
    // `alone`: the products with one activation row, without a detour over memory.
    (
        $name:ident, $features:literal, $vnni:literal, $together:literal,
        $format:ident, $fill:ident, $products:ident $(, $alone:ident)?
    ) => {
        #[target_feature(enable = $features)]
        pub(super) fn $name<F: $format>(
            &mut self,
            weights: &[u8],
            row_bytes: usize,
            x: &Rounded,
            rows: Range<usize>,
            store: &mut impl FnMut(usize, &Sums),
        ) {
            // SAFETY: the instructions are enabled here.
            #[allow(unsafe_code)]
            unsafe {
                $(
                    if rows.len() == 1 && weights.len() == ROWS * row_bytes {
                        return Self::$alone::<F, $vnni>(weights, row_bytes, x, rows.start, store);
                    }
                )?
                self.$fill::<F, F16c>(weights, row_bytes);
                let mut r = rows.start;
                while r + $together <= rows.end {
                    self.$products::<F, $together, $vnni>(x, r, store);
                    r += $together;
                }
                while r < rows.end {
                    self.$products::<F, 1, $vnni>(x, r, store);
                    r += 1;
                }
            }
        }
    };
}

impl Unpacked {
    entry!(avx2_blocks, "avx2,fma,f16c", false, 2, Block, fill_blocks, products_of_blocks, product_of_blocks);
    entry!(avx2_super, "avx2,fma,f16c", false, 2, SuperBlock, fill_super, products_of_super);
    entry!(
        vnni_blocks,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
        true,
        4,
        Block,
        fill_blocks,
        products_of_blocks,
        product_of_blocks
    );
    entry!(
        vnni_super,
        "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
        true,
        2,
        SuperBlock,
        fill_super,
        products_of_super
    );

    /// The products of four weight rows with activation row `r`: weights stay in registers.
    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn product_of_blocks<F: Block, const VNNI: bool>(
        weights: &[u8],
        row_bytes: usize,
        x: &Rounded,
        r: usize,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        let blocks = row_bytes / F::BYTES;
        let bytes = x.bytes[r * x.width..][..x.width].as_chunks::<32>().0;
        let scales = &x.scale[r * blocks..][..blocks];
        let weighted = &x.weighted[r * blocks..][..blocks];
        assert!(weights.len() == ROWS * row_bytes && bytes.len() == blocks, "rows are equally wide; this is a bug");
        // SAFETY: the callers enable the instructions; blocks are read within the rows, whose sizes were just checked.
        unsafe {
            let mut sums = [_mm256_setzero_ps(); ROWS];
            let (mut whole, mut minima) = (_mm_setzero_ps(), _mm_setzero_ps());
            for b in 0..blocks {
                let bytes = load_signed(bytes.get_unchecked(b));
                let offset = offset_products::<F, VNNI>(bytes);
                // Four rows are read side by side, which the CPU does not foresee: the next four are asked for in order.
                let next = weights.as_ptr().wrapping_add(2 * weights.len() + b * ROWS * F::BYTES);
                for line in (0..ROWS * F::BYTES).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(line).cast());
                }
                let mut dots = [_mm256_setzero_si256(); ROWS];
                let (mut own, mut min) = (0, 0);
                for (i, product) in dots.iter_mut().enumerate() {
                    let at = i * row_bytes + b * F::BYTES;
                    let mut u = [0; 32];
                    let halves = F::unpack::<Bits>(weights.get_unchecked(at..at + F::BYTES), &mut u);
                    own |= u64::from(halves.0.to_bits()) << (16 * i);
                    min |= u64::from(halves.1.to_bits()) << (16 * i);
                    *product = dot::<F, VNNI>(load(&u), bytes, offset);
                }
                let own = _mm_cvtph_ps(_mm_cvtsi64_si128(own.cast_signed()));
                let scale = _mm_mul_ps(own, _mm_set1_ps(*scales.get_unchecked(b)));
                if F::ORDER == Order::Whole {
                    whole = _mm_fmadd_ps(scale, _mm_cvtepi32_ps(add_each(dots)), whole);
                } else {
                    let scale = _mm256_castps128_ps256(scale);
                    for i in 0..ROWS {
                        let scale = _mm256_permutevar8x32_ps(scale, _mm256_set1_epi32(i as i32));
                        sums[i] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dots[i]), sums[i]);
                    }
                }
                if F::MIN {
                    let min = _mm_cvtph_ps(_mm_cvtsi64_si128(min.cast_signed()));
                    minima = _mm_fmadd_ps(min, _mm_set1_ps(*weighted.get_unchecked(b)), minima);
                }
            }
            let mut out = numbers(_mm_add_ps(whole, minima));
            if F::ORDER != Order::Whole {
                for i in 0..ROWS {
                    out[i] += add_lanes(sums[i]);
                }
            }
            store(r, &out);
        }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn products_of_blocks<F: Block, const R: usize, const VNNI: bool>(
        &self,
        x: &Rounded,
        first: usize,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        let rows: [&[[u8; 32]]; ROWS] = std::array::from_fn(|i| self.row(i).as_chunks::<32>().0);
        let blocks = rows[0].len();
        let bytes: [&[[i8; 32]]; R] =
            std::array::from_fn(|r| x.bytes[(first + r) * x.width..][..x.width].as_chunks::<32>().0);
        let scales: [&[f32]; R] = std::array::from_fn(|r| &x.scale[(first + r) * blocks..][..blocks]);
        let weighted: [&[f32]; R] = std::array::from_fn(|r| &x.weighted[(first + r) * blocks..][..blocks]);
        // SAFETY: the callers enable the instructions; every load is of an array of its size.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); R]; ROWS];
            let mut wholes = [_mm_setzero_ps(); R];
            let mut minima = [_mm_setzero_ps(); R];
            for b in 0..blocks {
                for r in 0..R {
                    let bytes = load_signed(&bytes[r][b]);
                    let scale = _mm256_set1_ps(scales[r][b]);
                    let offset = offset_products::<F, VNNI>(bytes);
                    let mut dots = [_mm256_setzero_si256(); ROWS];
                    for i in 0..ROWS {
                        let dot = dot::<F, VNNI>(load(&rows[i][b]), bytes, offset);
                        if F::ORDER == Order::Whole {
                            dots[i] = dot;
                            continue;
                        }
                        let factor = _mm256_mul_ps(_mm256_set1_ps(self.scale[b][i]), scale);
                        sums[i][r] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(dot), sums[i][r]);
                    }
                    if F::ORDER == Order::Whole {
                        let scale = _mm_mul_ps(_mm_loadu_ps(self.scale[b].as_ptr()), _mm256_castps256_ps128(scale));
                        wholes[r] = _mm_fmadd_ps(scale, _mm_cvtepi32_ps(add_each(dots)), wholes[r]);
                    }
                    if F::MIN {
                        let min = _mm_loadu_ps(self.min[b].as_ptr());
                        minima[r] = _mm_fmadd_ps(min, _mm_set1_ps(weighted[r][b]), minima[r]);
                    }
                }
            }
            for r in 0..R {
                let mut out = numbers(_mm_add_ps(wholes[r], minima[r]));
                if F::ORDER != Order::Whole {
                    for i in 0..ROWS {
                        out[i] += add_lanes(sums[i][r]);
                    }
                }
                store(first + r, &out);
            }
        }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
    unsafe fn products_of_super<F: SuperBlock, const R: usize, const VNNI: bool>(
        &self,
        x: &Rounded,
        first: usize,
        store: &mut impl FnMut(usize, &Sums),
    ) {
        let rows: [&[[u8; 256]]; ROWS] = std::array::from_fn(|i| self.row(i).as_chunks::<256>().0);
        let blocks = rows[0].len();
        let bytes: [&[[i8; 256]]; R] =
            std::array::from_fn(|r| x.bytes[(first + r) * x.width..][..x.width].as_chunks::<256>().0);
        let scales: [&[f32]; R] = std::array::from_fn(|r| &x.scale[(first + r) * x.width / 32..][..8 * blocks]);
        let totals: [&[[i16; 16]]; R] =
            std::array::from_fn(|r| x.sums[(first + r) * x.width / 16..][..16 * blocks].as_chunks::<16>().0);
        // SAFETY: the callers enable the instructions; every load is of an array of its size.
        unsafe {
            let mut lanes = [[_mm256_setzero_ps(); R]; ROWS];
            let mut sums = [_mm_setzero_ps(); R];
            let mut minima = [_mm_setzero_ps(); R];
            for b in 0..blocks {
                for r in 0..R {
                    let totals = load_words(&totals[r][b]);
                    let d = scales[r][8 * b];
                    let scale = _mm_loadu_ps(self.scale[b].as_ptr());
                    let min = _mm_loadu_ps(self.min[b].as_ptr());
                    let both = _mm_mul_ps(scale, _mm_set1_ps(d));
                    let mut dots = [_mm256_setzero_si256(); ROWS];
                    let mut shares = [_mm256_setzero_si256(); ROWS];
                    for i in 0..ROWS {
                        shares[i] = _mm256_madd_epi16(totals, load_words(&self.groups[i * blocks + b]));
                        if F::OFFSET == 32 {
                            dots[i] = _mm256_sub_epi32(dots[i], _mm256_slli_epi32::<5>(shares[i]));
                        }
                    }
                    let parts = F::ORDER.parts();
                    for part in 0..parts {
                        for i in 0..ROWS {
                            let (u, bytes) = (rows[i][b].as_chunks::<32>().0, bytes[r][b].as_chunks::<32>().0);
                            let spread = &self.spread[i * blocks + b];
                            for j in part * 8 / parts..(part + 1) * 8 / parts {
                                let pairs = pairs::<F>(load(&u[j]), load_signed(&bytes[j]));
                                dots[i] = if VNNI {
                                    _mm256_dpwssd_epi32(dots[i], pairs, load_words(&spread[j]))
                                } else {
                                    _mm256_add_epi32(dots[i], _mm256_madd_epi16(pairs, load_words(&spread[j])))
                                };
                            }
                        }
                        if parts > 1 {
                            let total = add_each(dots);
                            sums[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(total), both, sums[r]);
                            dots = [_mm256_setzero_si256(); ROWS];
                        }
                    }
                    let low = _mm_mul_ps(min, _mm_set1_ps(d));
                    match F::ORDER {
                        Order::Lanes => {
                            for i in 0..ROWS {
                                let factor = _mm256_set1_ps(self.scale[b][i] * d);
                                lanes[i][r] = _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(dots[i]), lanes[i][r]);
                            }
                        }
                        Order::Whole => sums[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(add_each(dots)), both, sums[r]),
                        Order::Halves => {
                            let pairs = add_pairs(shares);
                            for half in [_mm_add_epi32(pairs[0], pairs[1]), _mm_add_epi32(pairs[2], pairs[3])] {
                                minima[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(half), low, minima[r]);
                            }
                        }
                        Order::Quarters => {
                            // Neighbouring pairs of shares are a quarter.
                            for quarter in add_pairs(shares) {
                                minima[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(quarter), low, minima[r]);
                            }
                        }
                        Order::Slab => {
                            let mut slab = _mm_mul_ps(scale, _mm_cvtepi32_ps(add_each(dots)));
                            if F::MIN {
                                slab = _mm_fnmadd_ps(min, _mm_cvtepi32_ps(add_each(shares)), slab);
                            }
                            sums[r] = _mm_fmadd_ps(slab, _mm_set1_ps(d), sums[r]);
                        }
                    }
                    if F::MIN && matches!(F::ORDER, Order::Lanes | Order::Whole) {
                        minima[r] = _mm_fmadd_ps(_mm_cvtepi32_ps(add_each(shares)), low, minima[r]);
                    }
                }
            }
            for r in 0..R {
                let mut out = numbers(_mm_sub_ps(sums[r], minima[r]));
                if F::ORDER == Order::Lanes {
                    for i in 0..ROWS {
                        out[i] += add_lanes(lanes[i][r]);
                    }
                }
                store(first + r, &out);
            }
        }
    }
}

/// Sums of two products each, less their offset; `Q6_K`'s is still to be taken away.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn pairs<F: SuperBlock>(w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller enables AVX2.
    unsafe {
        if F::OFFSET == 128 {
            // As in `dot`: 2 * 255 * 127 is more than 16 bits hold.
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        }
        let pairs = _mm256_maddubs_epi16(w, x);
        if F::OFFSET == 4 {
            return _mm256_sub_epi16(pairs, _mm256_maddubs_epi16(_mm256_set1_epi8(4), x));
        }
        pairs
    }
}

/// `OFFSET` times each four activations, to be taken from the products with unsigned bytes.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn offset_products<F: Block, const VNNI: bool>(x: __m256i) -> __m256i {
    // SAFETY: the caller enables AVX2, and VNNI where `VNNI` is set.
    unsafe {
        let zero = _mm256_setzero_si256();
        if F::OFFSET == 0 || (F::OFFSET == 128 && !VNNI) {
            return zero;
        }
        let offset = _mm256_set1_epi8(F::OFFSET as i8);
        let products = if VNNI {
            _mm256_dpbusd_epi32(zero, offset, x)
        } else {
            _mm256_madd_epi16(_mm256_maddubs_epi16(offset, x), _mm256_set1_epi16(1))
        };
        _mm256_sub_epi32(zero, products)
    }
}

/// Sums of four products each.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn dot<F: Block, const VNNI: bool>(w: __m256i, x: __m256i, start: __m256i) -> __m256i {
    // SAFETY: the caller enables AVX2, and VNNI where `VNNI` is set.
    unsafe {
        if VNNI {
            return _mm256_dpbusd_epi32(start, w, x);
        }
        let one = _mm256_set1_epi16(1);
        if F::OFFSET == 128 {
            // Products of unsigned bytes overflow the 16-bit sums: the activations take the sign of the weights.
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), one);
        }
        _mm256_add_epi32(start, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), one))
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the array has 32 bytes; no alignment is asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn load_signed(bytes: &[i8; 32]) -> __m256i {
    // SAFETY: the array has 32 bytes; no alignment is asked for.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn load_words(words: &[i16; 16]) -> __m256i {
    // SAFETY: the array has 32 bytes; no alignment is asked for.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn numbers(x: __m128) -> Sums {
    let mut out = [0.0; ROWS];
    // SAFETY: the array has four numbers; no alignment is asked for.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), x) };
    out
}

/// Adds neighbouring lanes of each register: four sums of pairs, each for the four registers.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn add_pairs(x: [__m256i; ROWS]) -> [__m128i; 4] {
    // SAFETY: the caller enables AVX2.
    unsafe {
        let (a, b) = (_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
        // Each half holds two pairs of one register, then two of the next: the pairs of the four are brought together.
        let even =
            _mm256_unpacklo_epi64(_mm256_shuffle_epi32::<0b11_01_10_00>(a), _mm256_shuffle_epi32::<0b11_01_10_00>(b));
        let odd =
            _mm256_unpackhi_epi64(_mm256_shuffle_epi32::<0b11_01_10_00>(a), _mm256_shuffle_epi32::<0b11_01_10_00>(b));
        [
            _mm256_castsi256_si128(even),
            _mm256_castsi256_si128(odd),
            _mm256_extracti128_si256::<1>(even),
            _mm256_extracti128_si256::<1>(odd),
        ]
    }
}

/// Adds the lanes of each register.
#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn add_each(x: [__m256i; ROWS]) -> __m128i {
    // SAFETY: the caller enables AVX2.
    unsafe {
        let x = _mm256_hadd_epi32(_mm256_hadd_epi32(x[0], x[1]), _mm256_hadd_epi32(x[2], x[3]));
        _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn add_lanes(x: __m256) -> f32 {
    // SAFETY: the caller enables AVX2.
    unsafe {
        let x = _mm_add_ps(_mm256_extractf128_ps::<1>(x), _mm256_castps256_ps128(x));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
}
