//! Activations as products read them.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::{Kernel, Precision, bytes};
use crate::kernels::threads::Threads;
use crate::kernels::vector::{Level, Vector, at_level};

/// Rounded activations; kept between calls, to be reused.
#[derive(Default)]
pub(crate) struct Rounded(Vec<Line>);

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Rounded {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Makes room for `count` elements, in whole lines; of what lies there nothing is known.
    pub(crate) fn room(&mut self, count: usize) -> &mut [u32] {
        if self.0.len() * 16 < count {
            self.0.resize(count.div_ceil(16), Line([0; 16]));
        }
        // SAFETY: a line is sixteen elements.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), count)
        }
    }

    /// [`Self::room`] for numbers.
    pub(crate) fn floats(&mut self, count: usize) -> &mut [f32] {
        let room = self.room(count);
        // SAFETY: both have four bytes and the same alignment, and every four bytes are a number.
        #[allow(unsafe_code)]
        unsafe {
            std::slice::from_raw_parts_mut(room.as_mut_ptr().cast(), count)
        }
    }
}

/// The share of a difference in size that is moved to weights, as an exponent: with 0.5 and 1 more short texts' vectors are off by
/// more, of `MiniLM` and E5.
const MOVED: f32 = 0.75;

/// What is known of the inputs of a layer before there are any. Rounding to bytes makes use of it; other products are as exact
/// without.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// No input is less.
    pub(super) least: Option<f32>,
    /// What inputs are multiplied by before they are rounded, and their weights divided by: whole groups, or none.
    pub(super) inverses: Vec<f32>,
}

impl Known {
    /// Of inputs that are at least `least`: bytes are then for what lies between it and the largest, not for numbers of both signs.
    pub(crate) fn at_least(least: f32) -> Self {
        Self { least: Some(least), inverses: Vec::new() }
    }

    /// Of inputs about as large as `sizes`: of what a large one takes from the digits of those that share its scale, most is moved
    /// to its weights (Xiao et al. 2023, "`SmoothQuant`").
    pub(crate) fn about(sizes: &[f32]) -> Self {
        let largest = sizes.iter().fold(0.0_f32, |a, b| a.max(*b));
        if !(largest.is_normal() && sizes.iter().all(|size| size.is_finite())) {
            return Self::default();
        }
        // One that is hardly there would have weights that are.
        let mut inverses: Vec<f32> = sizes.iter().map(|size| size.max(largest * 1e-3).powf(-MOVED)).collect();
        inverses.resize(sizes.len().next_multiple_of(bytes::GROUP), 1.0);
        Self { least: None, inverses }
    }
}

/// Returns the rows of `x`, of `inputs` numbers each, as the kernel reads them.
pub(super) fn round<'a>(
    kernel: Kernel,
    x: &'a [f32],
    inputs: usize,
    known: &Known,
    threads: Threads<'_>,
    rounded: &'a mut Rounded,
) -> &'a [u32] {
    if let Kernel::Floats(_) = kernel {
        // SAFETY: both have four bytes and the same alignment, and every four bytes are a number.
        #[allow(unsafe_code)]
        return unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) };
    }
    let stride = kernel.steps(inputs).0;
    let out = rounded.room(x.len() / inputs * stride);
    threads.share_rows(out, stride, |first, out| {
        round_rows(kernel, &x[first * inputs..][..out.len() / stride * inputs], inputs, known, out);
    });
    out
}

fn round_rows(kernel: Kernel, x: &[f32], inputs: usize, known: &Known, out: &mut [u32]) {
    let level = Level::best();
    match kernel.precision() {
        #[cfg(target_arch = "x86_64")]
        precision if kernel == Kernel::Tiles(precision) => amx::round(precision, x, inputs, known, out),
        Precision::Bf16 => at_level!(level, round_pairs::<V>(x: &[f32], inputs: usize, out: &mut [u32])),
        Precision::Int8 => {
            at_level!(level, round_bytes::<V>(x: &[f32], inputs: usize, known: &Known, out: &mut [u32]));
        }
        Precision::F32 | Precision::Bf16x2 => unreachable!("floats are not rounded; this is a bug"),
    }
}

/// Two numbers as bfloat16, to the nearest, the even one of two as near.
#[inline(always)]
pub(super) fn bf16_pair(first: f32, second: f32) -> u32 {
    let round = |x: f32| {
        let bits = x.to_bits();
        // What is not a number would become another one.
        if x.is_nan() { bits | 0x40_0000 } else { bits + 0x7fff + (bits >> 16 & 1) }
    };
    round(first) >> 16 | round(second) & 0xffff_0000
}

#[inline(always)]
fn round_pairs<V: Vector>(x: &[f32], inputs: usize, out: &mut [u32]) {
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(inputs.div_ceil(2))) {
        let (pairs, last) = x.as_chunks::<2>();
        for (pair, out) in pairs.iter().zip(out.iter_mut()) {
            *out = bf16_pair(pair[0], pair[1]);
        }
        if let Some(last) = last.first() {
            out[inputs / 2] = bf16_pair(*last, 0.0);
        }
    }
}

#[inline(always)]
fn round_bytes<V: Vector>(x: &[f32], inputs: usize, known: &Known, out: &mut [u32]) {
    bytes::round::<V>(x, inputs, known, out);
}
