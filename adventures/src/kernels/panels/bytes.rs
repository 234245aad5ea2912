//! Products of integers of eight bits, with a scale for each group of inputs: of each activation row, and of each output.
//!
//! The integer sums are exact and the groups are added in their order, so every instruction set gives the same bits.

use super::tile::{Place, Registers};
use super::{Known, PANEL, Strip};
use crate::kernels::vector::{Vector, total};
use std::marker::PhantomData;

/// Inputs that share a scale.
pub(super) const GROUP: usize = 64;
/// An element is four inputs.
const STEPS: usize = GROUP / 4;
/// The byte of an input that is 0, where none is known to be the least.
const ZERO: i32 = 128;
/// The elements of a row's group: its inputs, as bytes from 0 to 255, and its scale.
pub(super) const ROW_STEPS: usize = STEPS + 1;
/// The strips of a panel's group: its inputs, the columns' scales, and where the columns' sums begin.
pub(super) const PANEL_STEPS: usize = STEPS + 2;

/// What multiplies bytes.
pub(super) trait Bytes {
    type V: Vector;
    const ROWS: usize;
    type Int: Copy;
    /// What [`Self::splat`] takes from each byte.
    const TAKEN: i32 = 0;
    /// Four inputs of a row in all lanes.
    fn splat(a: u32) -> Self::Int;
    /// # Safety
    /// `b` must have as many elements as [`Self::V`] has lanes.
    #[allow(unsafe_code)]
    unsafe fn load(b: *const u32) -> Self::Int;
    /// `sum + a · b`, four inputs for each column.
    fn add_product(sum: Self::Int, a: Self::Int, b: Self::Int) -> Self::Int;
    fn to_float(sum: Self::Int) -> Self::V;
}

/// Tiles of [`Bytes`].
pub(super) struct Grouped<B>(PhantomData<B>);

impl<B: Bytes> Registers for Grouped<B> {
    const ROWS: usize = B::ROWS;
    type V = B::V;

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn tile<const M: usize>(a: Place<*const u32>, panel: &[Strip], out: Place<*mut f32>) {
        let lanes = B::V::LANES;
        // SAFETY: the caller has `M` rows of as many groups as the panel, and the room.
        unsafe {
            for column in (0..PANEL).step_by(2 * lanes) {
                let mut total = [[B::V::splat(0.0); 2]; M];
                let mut rows: [*const u32; 2] = std::array::from_fn(|i| a.first.wrapping_add(3 * i * a.stride));
                for group in panel.chunks_exact(PANEL_STEPS) {
                    let b = group.as_ptr().cast::<u32>().add(column);
                    let offset = b.add((STEPS + 1) * PANEL);
                    let begin = [B::load(offset), B::load(offset.add(lanes))];
                    let mut sum = [begin; M];
                    for step in 0..STEPS {
                        let (b0, b1) = (B::load(b.add(step * PANEL)), B::load(b.add(step * PANEL + lanes)));
                        for i in 0..M {
                            let x = B::splat(*rows[i / 3].add(i % 3 * a.stride + step));
                            sum[i][0] = B::add_product(sum[i][0], x, b0);
                            sum[i][1] = B::add_product(sum[i][1], x, b1);
                        }
                    }
                    let scale = b.add(STEPS * PANEL).cast::<f32>();
                    let scale = [B::V::load(scale), B::V::load(scale.add(lanes))];
                    for i in 0..M {
                        let x = B::V::splat(f32::from_bits(*rows[i / 3].add(i % 3 * a.stride + STEPS)));
                        for r in 0..2 {
                            total[i][r] = B::to_float(sum[i][r]).mul_add(x.mul(scale[r]), total[i][r]);
                        }
                    }
                    for row in &mut rows {
                        *row = row.wrapping_add(ROW_STEPS);
                    }
                }
                for (i, total) in total.into_iter().enumerate() {
                    let to = out.first.add(i * out.stride + column);
                    total[0].store(to);
                    total[1].store(to.add(lanes));
                }
            }
        }
    }
}

/// Rounds rows of `inputs` numbers to groups of bytes and their scale.
#[inline(always)]
pub(super) fn round<V: Vector>(x: &[f32], inputs: usize, known: &Known, out: &mut [u32]) {
    let groups = inputs.div_ceil(GROUP);
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(groups * ROW_STEPS)) {
        for (i, (x, out)) in x.chunks(GROUP).zip(out.as_chunks_mut::<ROW_STEPS>().0).enumerate() {
            let (bytes, scale) = out.split_at_mut(STEPS);
            scale[0] =
                round_group::<V>(x, known, i, bytes.try_into().expect("a group's bytes; this is a bug")).to_bits();
        }
    }
}

/// Rounds the numbers of a row's group `i`, of the last one maybe fewer; returns their scale.
#[inline(always)]
pub(super) fn round_group<V: Vector>(x: &[f32], known: &Known, i: usize, out: &mut [u32; STEPS]) -> f32 {
    if let Ok(x) = x.try_into() {
        return round_known::<V>(x, known, i, out);
    }
    let mut padded = [0.0; GROUP];
    padded[..x.len()].copy_from_slice(x);
    round_known::<V>(&padded, known, i, out)
}

#[inline(always)]
fn round_known<V: Vector>(x: &[f32; GROUP], known: &Known, i: usize, out: &mut [u32; STEPS]) -> f32 {
    if let Some(least) = known.least {
        return round_above::<V>(x, least, out);
    }
    let Some(inverses) = known.inverses.as_chunks::<GROUP>().0.get(i) else {
        return round_whole::<V>(x, out);
    };
    let mut even = [0.0; GROUP];
    for i in (0..GROUP).step_by(V::LANES) {
        // SAFETY: a group is whole registers.
        #[allow(unsafe_code)]
        unsafe {
            V::load(x.as_ptr().add(i)).mul(V::load(inverses.as_ptr().add(i))).store(even.as_mut_ptr().add(i));
        }
    }
    round_whole::<V>(&even, out)
}

/// Bytes from 1 to 255, 128 for 0.
#[inline(always)]
fn round_whole<V: Vector>(x: &[f32; GROUP], out: &mut [u32; STEPS]) -> f32 {
    let zero = V::splat(0.0);
    let (mut most, mut gap) = (zero, zero);
    // SAFETY: a group is whole registers, and its elements are as many bytes.
    #[allow(unsafe_code)]
    unsafe {
        for i in (0..GROUP).step_by(V::LANES) {
            let x = V::load(x.as_ptr().add(i));
            most = most.max(x.max(zero.sub(x)));
            // Not a number where one of them is not finite: the maximum would not tell.
            gap = gap.add(x.sub(x));
        }
        let most = most.largest();
        let scale = V::splat(if most > 0.0 { 127.0 / most } else { 0.0 });
        for i in (0..GROUP).step_by(V::LANES) {
            V::load(x.as_ptr().add(i)).mul(scale).store_bytes(out.as_mut_ptr().cast::<u8>().add(i));
        }
        most / 127.0 + total(gap)
    }
}

/// Bytes from 0, for `least`, to 255, for the largest.
#[inline(always)]
fn round_above<V: Vector>(x: &[f32; GROUP], least: f32, out: &mut [u32; STEPS]) -> f32 {
    let (first, middle) = (V::splat(least), V::splat(ZERO as f32));
    let (mut most, mut gap) = (first, V::splat(0.0));
    // SAFETY: as above.
    #[allow(unsafe_code)]
    unsafe {
        for i in (0..GROUP).step_by(V::LANES) {
            let x = V::load(x.as_ptr().add(i));
            most = most.max(x);
            gap = gap.add(x.sub(x));
        }
        let range = most.largest() - least;
        let scale = V::splat(if range > 0.0 { 255.0 / range } else { 0.0 });
        for i in (0..GROUP).step_by(V::LANES) {
            let x = V::load(x.as_ptr().add(i)).max(first).sub(first);
            x.mul(scale).sub(middle).store_bytes(out.as_mut_ptr().cast::<u8>().add(i));
        }
        range / 255.0 + total(gap)
    }
}

/// Writes one column of a panel: a row of weights. `taken` is what the kernel takes from bytes; returns what is to be added to the
/// column's bias.
pub(super) fn pack(weights: &[f32], known: &Known, taken: i32, panel: &mut [Strip], column: usize) -> f32 {
    let zero = if known.least.is_some() { 0 } else { ZERO };
    let mut sum = 0.0;
    for (g, (weights, group)) in weights.chunks(GROUP).zip(panel.chunks_exact_mut(PANEL_STEPS)).enumerate() {
        let mut scaled = [0.0; GROUP];
        scaled[..weights.len()].copy_from_slice(weights);
        if let Some(inverses) = known.inverses.as_chunks::<GROUP>().0.get(g) {
            for (weight, inverse) in scaled.iter_mut().zip(inverses) {
                *weight /= inverse;
            }
        }
        let largest = scaled.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let bytes = scaled.map(|x| (x * inverse).round_ties_even() as i8);
        for (strip, bytes) in group.iter_mut().zip(bytes.as_chunks::<4>().0) {
            strip.0[column] = u32::from_le_bytes(bytes.map(i8::cast_unsigned));
        }
        let total = bytes.iter().map(|b| i32::from(*b)).sum::<i32>();
        group[STEPS].0[column] = (largest / 127.0).to_bits();
        group[STEPS + 1].0[column] = ((taken - zero) * total).cast_unsigned();
        sum += f64::from(largest / 127.0) * f64::from(total);
    }
    known.least.map_or(0.0, |least| (f64::from(least) * sum) as f32)
}

/// On any CPU.
pub(super) struct Plain;

impl Bytes for Plain {
    type V = crate::kernels::vector::Plain;
    const ROWS: usize = 2;
    type Int = [i32; 16];

    #[inline(always)]
    fn splat(a: u32) -> [i32; 16] {
        [a.cast_signed(); 16]
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load(b: *const u32) -> [i32; 16] {
        // SAFETY: the caller has sixteen elements.
        unsafe { b.cast::<[i32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    fn add_product(mut sum: [i32; 16], a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        for i in 0..16 {
            for (a, b) in a[i].to_le_bytes().into_iter().zip(b[i].to_le_bytes()) {
                sum[i] += i32::from(a) * i32::from(b.cast_signed());
            }
        }
        sum
    }

    #[inline(always)]
    fn to_float(sum: [i32; 16]) -> Self::V {
        crate::kernels::vector::Plain::from(sum.map(|x| x as f32))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::Bytes;
    use std::arch::x86_64::{
        __m256, __m256i, __m512, __m512i, _mm256_abs_epi8, _mm256_add_epi32, _mm256_cvtepi32_ps, _mm256_loadu_si256,
        _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32,
        _mm256_sign_epi8, _mm256_xor_si256, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_loadu_si512,
        _mm512_set1_epi32,
    };

    /// The byte products of AVX-512.
    pub(in super::super) struct Vnni;

    impl Bytes for Vnni {
        type V = __m512;
        const ROWS: usize = 6;
        type Int = __m512i;

        #[inline(always)]
        fn splat(a: u32) -> __m512i {
            // SAFETY: inlined where the instructions are enabled, as all of these.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_set1_epi32(a.cast_signed())
            }
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        unsafe fn load(b: *const u32) -> __m512i {
            // SAFETY: as above, and the caller has sixteen elements.
            unsafe { _mm512_loadu_si512(b.cast()) }
        }

        #[inline(always)]
        fn add_product(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_dpbusd_epi32(sum, a, b)
            }
        }

        #[inline(always)]
        fn to_float(sum: __m512i) -> __m512 {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_cvtepi32_ps(sum)
            }
        }
    }

    /// The products of AVX2, which would saturate with an unsigned operand beyond 127: signs go to the other side.
    pub(in super::super) struct Avx2;

    impl Bytes for Avx2 {
        type V = __m256;
        const ROWS: usize = 2;
        const TAKEN: i32 = 128;
        type Int = __m256i;

        #[inline(always)]
        fn splat(a: u32) -> __m256i {
            // SAFETY: inlined where the instructions are enabled, as all of these.
            #[allow(unsafe_code)]
            unsafe {
                // Less the 128 that was added.
                _mm256_xor_si256(_mm256_set1_epi32(a.cast_signed()), _mm256_set1_epi8(-128))
            }
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        unsafe fn load(b: *const u32) -> __m256i {
            // SAFETY: as above, and the caller has eight elements.
            unsafe { _mm256_loadu_si256(b.cast()) }
        }

        #[inline(always)]
        fn add_product(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                // No byte is -128, so 2 * 127 * 127 is the most, and fits.
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
                _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
            }
        }

        #[inline(always)]
        fn to_float(sum: __m256i) -> __m256 {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                _mm256_cvtepi32_ps(sum)
            }
        }
    }
}
