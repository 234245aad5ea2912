//! What multiplies an element of an activation row with the columns of a panel, for each precision and instruction set.

use super::Strip;
use super::tile::{Place, Registers};
use crate::kernels::vector::Vector;
use std::marker::PhantomData;

/// One precision on one instruction set.
///
/// An element is four bytes: one f32, or two bfloat16, the first in the low half. Methods are inlined where the instructions
/// are enabled, and are used nowhere else.
pub(crate) trait Dot {
    /// Rows whose sums fit the registers beside each other, with two registers of columns.
    const ROWS: usize;
    /// Of f32.
    type Sum: Vector;
    type Operand: Copy;

    /// One element in all lanes.
    fn splat(a: u32) -> Self::Operand;
    /// # Safety
    /// `b` must have as many elements as a sum has lanes.
    #[allow(unsafe_code)]
    unsafe fn load(b: *const u32) -> Self::Operand;
    /// `sum + a * b`.
    fn add_product(sum: Self::Sum, a: Self::Operand, b: Self::Operand) -> Self::Sum;
}

/// f32.
pub(crate) struct Floats<V>(PhantomData<V>);

impl<V: Vector> Dot for Floats<V> {
    const ROWS: usize = V::ROWS;
    type Sum = V;
    type Operand = V;

    #[inline(always)]
    fn splat(a: u32) -> V {
        V::splat(f32::from_bits(a))
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load(b: *const u32) -> V {
        // SAFETY: the caller has the elements, each an f32.
        unsafe { V::load(b.cast()) }
    }

    #[inline(always)]
    fn add_product(sum: V, a: V, b: V) -> V {
        a.mul_add(b, sum)
    }
}

/// bfloat16 as the f32 that it is the upper half of: for CPUs that do not multiply it.
pub(crate) struct Widened<V>(PhantomData<V>);

impl<V: Vector> Dot for Widened<V> {
    const ROWS: usize = if V::ROWS > 4 { V::ROWS - 2 } else { V::ROWS };
    type Sum = V;
    type Operand = [V; 2];

    #[inline(always)]
    fn splat(a: u32) -> [V; 2] {
        [V::splat(f32::from_bits(a << 16)), V::splat(f32::from_bits(a & 0xffff_0000))]
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn load(b: *const u32) -> [V; 2] {
        // SAFETY: the caller has the elements.
        unsafe { V::load_halves(b) }
    }

    #[inline(always)]
    fn add_product(sum: V, a: [V; 2], b: [V; 2]) -> V {
        a[1].mul_add(b[1], a[0].mul_add(b[0], sum))
    }
}

impl<D: Dot> Registers for D {
    const ROWS: usize = D::ROWS;
    type V = D::Sum;

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn tile<const M: usize>(a: Place<*const u32>, panel: &[Strip], out: Place<*mut f32>) {
        let lanes = D::Sum::LANES;
        // SAFETY: the caller has `M` rows of as many elements as there are strips, and the room.
        unsafe {
            for column in (0..super::PANEL).step_by(2 * lanes) {
                let mut sum = [[D::Sum::splat(0.0); 2]; M];
                let mut b = panel.as_ptr().cast::<u32>().add(column);
                // Every third row has a pointer, and the two behind it are found from there by adding the stride: twelve
                // pointers are more than there are registers.
                let mut rows: [*const u32; 4] = std::array::from_fn(|i| a.first.wrapping_add(3 * i * a.stride));
                for _ in 0..panel.len() {
                    let (b0, b1) = (D::load(b), D::load(b.add(lanes)));
                    for i in 0..M {
                        let x = D::splat(*rows[i / 3].add(i % 3 * a.stride));
                        sum[i][0] = D::add_product(sum[i][0], x, b0);
                        sum[i][1] = D::add_product(sum[i][1], x, b1);
                    }
                    b = b.wrapping_add(super::PANEL);
                    for row in &mut rows {
                        *row = row.wrapping_add(1);
                    }
                }
                for (i, sum) in sum.into_iter().enumerate() {
                    let to = out.first.add(i * out.stride + column);
                    sum[0].store(to);
                    sum[1].store(to.add(lanes));
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Dot;
    use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32};

    /// bfloat16 by the products of AVX-512.
    pub(crate) struct Bf16;

    impl Dot for Bf16 {
        const ROWS: usize = 12;
        type Sum = __m512;
        type Operand = __m512bh;

        #[inline(always)]
        fn splat(a: u32) -> __m512bh {
            // SAFETY: inlined where the instructions are enabled; both types are 64 bytes of any content.
            #[allow(unsafe_code)]
            unsafe {
                std::mem::transmute(_mm512_set1_epi32(a.cast_signed()))
            }
        }

        #[inline(always)]
        #[allow(unsafe_code)]
        unsafe fn load(b: *const u32) -> __m512bh {
            // SAFETY: as above, and the caller has sixteen elements.
            unsafe { std::mem::transmute(_mm512_loadu_si512(b.cast())) }
        }

        #[inline(always)]
        fn add_product(sum: __m512, a: __m512bh, b: __m512bh) -> __m512 {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_dpbf16_ps(sum, a, b)
            }
        }
    }
}
