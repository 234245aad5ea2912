//! Registers of f32, for kernels that must not depend on what the compiler makes of a loop.

use super::math;

/// The instructions that a kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Those that every CPU has.
    Plain,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// Returns the best level that this CPU has.
    pub(crate) fn best() -> Self {
        *Self::all().last().expect("every CPU has the plain one; this is a bug")
    }

    /// Returns the levels that this CPU has, the best last.
    pub(crate) fn all() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "there is but one"))]
        let mut all = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self::Avx2);
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if wide && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
                all.push(Self::Avx512);
            }
        }
        all
    }
}

/// Calls the generic function `$f::<V, …>` compiled for a [`Level`], with the `Vector` of that level.
///
/// The function must be `#[inline(always)]`. The CPU must have the level, which [`Level::best`] and [`Level::all`] make sure of.
macro_rules! at_level {
    ($level:expr, $f:ident::<$v:ident>($($arg:ident: $type:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        #[allow(unsafe_code)]
        unsafe fn avx512($($arg: $type),*) {
            $f::<std::arch::x86_64::__m512>($($arg),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        #[allow(unsafe_code)]
        unsafe fn avx2($($arg: $type),*) {
            $f::<std::arch::x86_64::__m256>($($arg),*)
        }
        match $level {
            $crate::kernels::vector::Level::Plain => $f::<$crate::kernels::vector::Plain>($($arg),*),
            // SAFETY: the level was detected.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            $crate::kernels::vector::Level::Avx2 => unsafe { avx2($($arg),*) },
            // SAFETY: the level was detected.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            $crate::kernels::vector::Level::Avx512 => unsafe { avx512($($arg),*) },
        }
    }};
}
pub(crate) use at_level;

/// [`Self::LANES`] numbers that are computed with together.
///
/// All methods are inlined where their instructions are enabled, and are used nowhere else. Loops, not closures, hold what
/// calls them: closures have no instructions enabled.
pub(crate) trait Vector: Copy {
    const LANES: usize;
    /// Rows whose sums fit the registers beside each other, with two registers of columns.
    const ROWS: usize;

    fn splat(x: f32) -> Self;
    /// # Safety
    /// `from` must have [`Self::LANES`] numbers.
    #[allow(unsafe_code)]
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` must have room for [`Self::LANES`] numbers.
    #[allow(unsafe_code)]
    unsafe fn store(self, to: *mut f32);
    /// The numbers whose upper halves are in the low and in the high half of each element: bfloat16.
    ///
    /// # Safety
    /// `from` must have [`Self::LANES`] elements.
    #[allow(unsafe_code)]
    unsafe fn load_halves(from: *const u32) -> [Self; 2];
    /// Writes the nearest integers, which are -128 to 127, with 128 added, as bytes.
    ///
    /// # Safety
    /// `to` must have room for [`Self::LANES`] bytes.
    #[allow(unsafe_code)]
    unsafe fn store_bytes(self, to: *mut u8);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    /// `self / other` to an ulp, where `other` is no subnormal number.
    fn div(self, other: Self) -> Self;
    /// `self * a + b`.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// `e^self` as [`math::exp`] computes it.
    fn exp(self) -> Self;

    /// The largest lane.
    #[inline(always)]
    fn largest(self) -> f32 {
        lanes(self)[..Self::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// The sum of the lanes: halves added to halves.
#[inline(always)]
pub(crate) fn total<V: Vector>(x: V) -> f32 {
    let lanes = lanes(x);
    let mut sums = lanes;
    let mut width = V::LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
fn lanes<V: Vector>(x: V) -> [f32; 16] {
    let mut lanes = [0.0; 16];
    // SAFETY: no register has more than sixteen lanes.
    #[allow(unsafe_code)]
    unsafe {
        x.store(lanes.as_mut_ptr());
    }
    lanes
}

/// Sixteen numbers on any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; 16]);

impl Plain {
    #[inline(always)]
    fn each(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for i in 0..16 {
            self.0[i] = f(self.0[i], other.0[i]);
        }
        self
    }
}

impl From<[f32; 16]> for Plain {
    #[inline(always)]
    fn from(x: [f32; 16]) -> Self {
        Self(x)
    }
}

impl Vector for Plain {
    const LANES: usize = 16;
    const ROWS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; 16])
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has sixteen numbers.
        Self(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller has room for sixteen numbers.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load_halves(from: *const u32) -> [Self; 2] {
        // SAFETY: the caller has sixteen elements.
        let pairs = unsafe { from.cast::<[u32; 16]>().read_unaligned() };
        [Self(pairs.map(|pair| f32::from_bits(pair << 16))), Self(pairs.map(|pair| f32::from_bits(pair & 0xffff_0000)))]
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn store_bytes(self, to: *mut u8) {
        // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits.
        let bytes = self.0.map(|x| ((x + 12_582_912.0).to_bits() as u8).wrapping_add(128));
        // SAFETY: the caller has room for sixteen bytes.
        unsafe { to.cast::<[u8; 16]>().write(bytes) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.each(other, f32::max)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.each(other, f32::min)
    }

    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.each(other, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        self.mul(a).add(b)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        self.each(self, |x, _| math::exp::<false>(x))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use crate::kernels::math::{EXP, EXP_LIMIT, LN_2};
    use std::arch::x86_64::{
        __m256, __m512, _CMP_NLT_UQ, _CMP_ORD_Q, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_cvtss_f32,
        _mm_max_ps, _mm_max_ss, _mm_movehdup_ps, _mm_movehl_ps, _mm_packus_epi16, _mm_packus_epi32, _mm_storel_epi64,
        _mm_storeu_si128, _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castps256_ps128,
        _mm256_castsi256_ps, _mm256_castsi256_si128, _mm256_cvtps_epi32, _mm256_div_ps, _mm256_extractf128_ps,
        _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps,
        _mm256_mul_ps, _mm256_round_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_slli_epi32, _mm256_srai_epi32,
        _mm256_storeu_ps, _mm256_sub_epi32, _mm256_sub_ps, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
        _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_epi8, _mm512_cvtps_epi32, _mm512_fmadd_ps,
        _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_fmadd_ps, _mm512_maskz_scalef_ps,
        _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_rcp14_ps, _mm512_reduce_max_ps, _mm512_roundscale_ps,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
    };

    /// Implements [`Vector`] by intrinsics; `$exp` ends [`Vector::exp`] with the power of two.
    macro_rules! vector {
        ($register:ty, $lanes:literal, $rows:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident,
         $mul:ident, $max:ident, $min:ident, $div:ident, $fma:ident, $round:ident, $rounding:expr, $scale:ident,
         $load_bits:ident, $set_bits:ident, $and:ident, $shift:ident, $cast:ident, $store_bytes:ident, $largest:ident) => {
            impl Vector for $register {
                const LANES: usize = $lanes;
                const ROWS: usize = $rows;

                #[inline(always)]
                fn splat(x: f32) -> Self {
                    // SAFETY: inlined where the instructions are enabled, as all of these.
                    #[allow(unsafe_code)]
                    unsafe {
                        $splat(x)
                    }
                }

                #[inline(always)]
                #[allow(unsafe_code)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: as above, and the caller has the numbers.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                #[allow(unsafe_code)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: as above, and the caller has the room.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                #[allow(unsafe_code)]
                unsafe fn load_halves(from: *const u32) -> [Self; 2] {
                    // SAFETY: as above, and the caller has the elements.
                    unsafe {
                        let pairs = $load_bits(from.cast());
                        let high = $and($set_bits(i32::MIN >> 15), pairs);
                        [$cast($shift::<16>(pairs)), $cast(high)]
                    }
                }

                #[inline(always)]
                #[allow(unsafe_code)]
                unsafe fn store_bytes(self, to: *mut u8) {
                    // SAFETY: as above, and the caller has the room.
                    unsafe { $store_bytes(self, to) }
                }

                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $add(self, other)
                    }
                }

                #[inline(always)]
                fn sub(self, other: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $sub(self, other)
                    }
                }

                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $mul(self, other)
                    }
                }

                #[inline(always)]
                fn max(self, other: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $max(self, other)
                    }
                }

                #[inline(always)]
                fn min(self, other: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $min(self, other)
                    }
                }

                #[inline(always)]
                fn div(self, other: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $div(self, other)
                    }
                }

                #[inline(always)]
                fn mul_add(self, a: Self, b: Self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $fma(self, a, b)
                    }
                }

                #[inline(always)]
                fn exp(self) -> Self {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        let [p1, p0, q1, q0, r1] = EXP;
                        // A number that is not one stays so: it is the second operand.
                        let x = $max($splat(-EXP_LIMIT), $min($splat(EXP_LIMIT), self));
                        let n = $round::<{ $rounding }>($mul(x, $splat(std::f32::consts::LOG2_E)));
                        let b = $fma(n, $splat(-LN_2[0]), x);
                        let b = $fma(n, $splat(-LN_2[1]), b);
                        let square = $mul(b, b);
                        let p = $fma($splat(p1), b, $splat(p0));
                        let q = $fma($splat(q1), b, $splat(q0));
                        let r = $fma($splat(r1), b, $splat(1.0));
                        $scale($fma($fma(p, square, q), square, r), n)
                    }
                }

                #[inline(always)]
                fn largest(self) -> f32 {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        $largest(self)
                    }
                }
            }
        };
    }

    vector! {
        __m512, 16, 12, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps,
        _mm512_mul_ps, _mm512_max_ps, _mm512_min_ps, divide, _mm512_fmadd_ps, _mm512_roundscale_ps,
        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC, scale_sixteen,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_and_si512, _mm512_slli_epi32, _mm512_castsi512_ps,
        store_sixteen, _mm512_reduce_max_ps
    }
    vector! {
        __m256, 8, 6, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps,
        _mm256_mul_ps, _mm256_max_ps, _mm256_min_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_round_ps,
        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC, scale,
        _mm256_loadu_si256, _mm256_set1_epi32, _mm256_and_si256, _mm256_slli_epi32, _mm256_castsi256_ps,
        store_eight, largest_of_eight
    }

    /// `a / b` by the reciprocal and a step of Newton's method, in a third of a division's time. Of 0 and what is infinite the
    /// reciprocal is exact, and a step would make it no number.
    #[target_feature(enable = "avx512f")]
    fn divide(a: __m512, b: __m512) -> __m512 {
        let near = _mm512_rcp14_ps(b);
        let error = _mm512_fnmadd_ps(b, near, _mm512_set1_ps(1.0));
        let finite = _mm512_cmp_ps_mask::<_CMP_ORD_Q>(error, error);
        _mm512_mul_ps(a, _mm512_mask_fmadd_ps(near, finite, error, near))
    }

    /// # Safety
    /// `to` must have room for sixteen bytes.
    #[target_feature(enable = "avx512f")]
    #[allow(unsafe_code)]
    unsafe fn store_sixteen(x: __m512, to: *mut u8) {
        let bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128)));
        // SAFETY: the caller has the room.
        unsafe { _mm_storeu_si128(to.cast(), bytes) }
    }

    /// `y * 2^n`. What is too small for any number is left out: it would take a hundred cycles to become 0.
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn scale_sixteen(y: __m512, n: __m512) -> __m512 {
        // SAFETY: as of all that is implemented with AVX-512.
        unsafe {
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(n, _mm512_set1_ps(-150.0));
            _mm512_maskz_scalef_ps(kept, y, n)
        }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn largest_of_eight(x: __m256) -> f32 {
        // SAFETY: as of all that is implemented with AVX2.
        unsafe {
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    /// # Safety
    /// `to` must have room for eight bytes.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    unsafe fn store_eight(x: __m256, to: *mut u8) {
        let x = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(128));
        let halves = _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
        // SAFETY: the caller has the room.
        unsafe { _mm_storel_epi64(to.cast(), _mm_packus_epi16(halves, halves)) }
    }

    /// `y * 2^n` in two steps, so that results too small for a normal number are rounded once.
    #[target_feature(enable = "avx2,fma")]
    fn scale(y: __m256, n: __m256) -> __m256 {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let first = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
        let rest = _mm256_sub_epi32(n, half);
        let second = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
        _mm256_mul_ps(_mm256_mul_ps(y, first), second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exps<V: Vector>(x: &[f32], out: &mut [f32]) {
        for (x, out) in x.chunks_exact(V::LANES).zip(out.chunks_exact_mut(V::LANES)) {
            // SAFETY: the chunks are as long as a register.
            #[allow(unsafe_code)]
            unsafe {
                V::load(x.as_ptr()).exp().store(out.as_mut_ptr());
            }
        }
    }

    #[inline(always)]
    fn all<V: Vector>(x: &[f32], out: &mut [f32]) {
        exps::<V>(x, out);
    }

    #[test]
    fn every_level_has_the_exponential_of_the_plain_one() {
        let mut x: Vec<f32> = (-10_300..8_850).map(|i| i as f32 * 0.01).collect();
        x.extend([f32::NEG_INFINITY, -200.0, 0.0, -0.0, 90.0, f32::INFINITY, 1e-40]);
        x.resize(x.len().next_multiple_of(16), 1.0);
        for level in Level::all() {
            let mut got = vec![f32::NAN; x.len()];
            let (x, out) = (x.as_slice(), got.as_mut_slice());
            at_level!(level, all::<V>(x: &[f32], out: &mut [f32]));
            for (x, got) in x.iter().zip(&got) {
                let want = f64::from(*x).exp();
                let unit = f64::from((want as f32).next_up()) - f64::from(want as f32);
                let near = (want - f64::from(*got)).abs() <= 3.0 * unit;
                assert!(near || want as f32 == *got, "{level:?} exp({x}) = {got}, want {want}");
            }
            let (x, mut out) = ([f32::NAN; 16], [0.0; 16]);
            let (x, out) = (x.as_slice(), out.as_mut_slice());
            at_level!(level, all::<V>(x: &[f32], out: &mut [f32]));
            assert!(out.iter().all(|x| x.is_nan()));
        }
    }

    #[test]
    fn lanes_are_added_and_compared() {
        fn check<V: Vector>() {
            let x: Vec<f32> = (0..V::LANES).map(|i| i as f32 - 3.0).collect();
            // SAFETY: as many numbers as a register has lanes.
            #[allow(unsafe_code)]
            let x = unsafe { V::load(x.as_ptr()) };
            let n = V::LANES as f32;
            assert_eq!(total(x), n * (n - 1.0) / 2.0 - 3.0 * n);
            assert_eq!(x.largest(), n - 4.0);
        }
        #[inline(always)]
        fn at<V: Vector>() {
            check::<V>();
        }
        for level in Level::all() {
            at_level!(level, at::<V>());
        }
    }
}
