//! A few rows times a panel, sums in registers.

use super::{Kernel, PANEL, Strip, Then};
use crate::kernels::math::{gelu_erf, gelu_tanh};
use crate::kernels::vector::Vector;

/// The most rows of a tile.
pub(crate) const ROWS: usize = 12;

/// Where a row is, and how far from there the next.
#[derive(Clone, Copy)]
pub(crate) struct Place<T> {
    pub(crate) first: T,
    pub(crate) stride: usize,
}

/// The products of a few rows with a panel.
pub(crate) trait Tile {
    /// The most rows.
    const ROWS: usize;
    type V: Vector;
    /// # Safety
    /// `M` must be 1 to [`Self::ROWS`]; each of as many rows of `a` must have an element for each strip that has inputs; each
    /// row of `out` must have room for 32 sums, which nothing else uses.
    #[allow(unsafe_code)]
    unsafe fn tile<const M: usize>(a: Place<*const u32>, panel: &[Strip], out: Place<*mut f32>);
}

/// Rows times panels. `a` and `out` stay inside what the maker of a job has borrowed.
pub(super) struct Job<'a> {
    /// The rows, as the kernel reads them.
    pub(super) a: Place<*const u32>,
    pub(super) rows: usize,
    pub(super) strips: &'a [Strip],
    /// The strips of a panel.
    pub(super) steps: usize,
    /// One for each column of the panels.
    pub(super) bias: &'a [f32],
    pub(super) then: Then,
    /// Where the first row's first column goes; nothing else uses the `columns` of these `rows`.
    pub(super) out: Place<*mut f32>,
    /// How many columns are stored, of the last panel maybe not all.
    pub(super) columns: usize,
}

/// Calls the generic function `$f::<T>` compiled for a [`Kernel`], with the [`Tile`] of that kernel.
///
/// The function must be `#[inline(always)]`. The CPU must have the kernel, which [`Kernel::best`] and [`Kernel::all`] make sure of.
macro_rules! at_kernel {
    ($kernel:expr, $f:ident::<T>($job:ident: $type:ty)) => {{
        use $crate::kernels::panels::bytes::{self, Grouped};
        #[cfg(target_arch = "x86_64")]
        use $crate::kernels::panels::dot::x86::Bf16;
        use $crate::kernels::panels::dot::{Floats, Widened};
        use $crate::kernels::vector::{Level, Vector, at_level};
        #[inline(always)]
        fn floats<V: Vector>($job: $type) {
            $f::<Floats<V>>($job);
        }
        #[inline(always)]
        fn widened<V: Vector>($job: $type) {
            $f::<Widened<V>>($job);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        #[allow(unsafe_code)]
        unsafe fn bf16($job: $type) {
            $f::<Bf16>($job);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
        #[allow(unsafe_code)]
        unsafe fn vnni($job: $type) {
            $f::<Grouped<bytes::x86::Vnni>>($job);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        #[allow(unsafe_code)]
        unsafe fn bytes_avx2($job: $type) {
            $f::<Grouped<bytes::x86::Avx2>>($job);
        }
        match $kernel {
            Kernel::Floats(level) => at_level!(level, floats::<V>($job: $type)),
            Kernel::Widened(level) => at_level!(level, widened::<V>($job: $type)),
            Kernel::Bytes(Level::Plain) => $f::<Grouped<bytes::Plain>>($job),
            // SAFETY: a kernel's instructions are detected before it is chosen, here and below.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Kernel::Bytes(_) => unsafe { bytes_avx2($job) },
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Kernel::Bf16 => unsafe { bf16($job) },
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Kernel::Vnni => unsafe { vnni($job) },
        }
    }};
}
pub(super) use at_kernel;

pub(super) fn run(kernel: Kernel, job: &Job<'_>) {
    at_kernel!(kernel, panels::<T>(job: &Job<'_>));
}

#[inline(always)]
fn panels<T: Tile>(job: &Job<'_>) {
    let mut sums = [[0.0; PANEL]; ROWS];
    for (p, panel) in job.strips.chunks_exact(job.steps).enumerate() {
        let bias = job.bias[p * PANEL..(p + 1) * PANEL].try_into().expect("a panel's bias; this is a bug");
        let columns = PANEL.min(job.columns - p * PANEL);
        let mut row = 0;
        while row < job.rows {
            let count = share::<T>(job.rows - row);
            // SAFETY: the rows are the job's, and the sums have room for all of them.
            #[allow(unsafe_code)]
            unsafe {
                let a = Place { first: job.a.first.add(row * job.a.stride), stride: job.a.stride };
                multiply::<T>(count, a, panel, Place { first: sums.as_mut_ptr().cast(), stride: PANEL });
            }
            for (i, sums) in sums[..count].iter().enumerate() {
                // SAFETY: a row and columns of the job's, which nothing else uses.
                #[allow(unsafe_code)]
                let out = unsafe {
                    let first = job.out.first.add((row + i) * job.out.stride + p * PANEL);
                    std::slice::from_raw_parts_mut(first, columns)
                };
                finish::<T::V>(sums, bias, job.then, out);
            }
            row += count;
        }
    }
}

/// How many of `rows` the next tile has: equal shares, as few rows leave the multipliers waiting.
#[inline(always)]
pub(crate) fn share<T: Tile>(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(T::ROWS))
}

#[inline(always)]
fn finish<V: Vector>(sums: &[f32; PANEL], bias: &[f32; PANEL], then: Then, out: &mut [f32]) {
    let mut y = [0.0; PANEL];
    for i in 0..PANEL {
        y[i] = sums[i] + bias[i];
    }
    match then {
        Then::Store => {}
        Then::Add => {
            for (y, out) in y.iter_mut().zip(out.iter()) {
                *y += *out;
            }
        }
        Then::GeluErf => y = each(y, |x| if V::FMA { gelu_erf::<true>(x) } else { gelu_erf::<false>(x) }),
        Then::GeluTanh => y = each(y, |x| if V::FMA { gelu_tanh::<true>(x) } else { gelu_tanh::<false>(x) }),
        Then::Relu => y = each(y, |x| x.max(0.0)),
    }
    match <&mut [f32; PANEL]>::try_from(&mut *out) {
        Ok(out) => *out = y,
        Err(_) => out.copy_from_slice(&y[..out.len()]),
    }
}

#[inline(always)]
fn each(mut y: [f32; PANEL], f: impl Fn(f32) -> f32) -> [f32; PANEL] {
    for y in &mut y {
        *y = f(*y);
    }
    y
}

/// Writes the products of `count` rows of `a` with a panel.
///
/// # Safety
/// As [`Tile::tile`] with `count` rows.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) unsafe fn multiply<T: Tile>(count: usize, a: Place<*const u32>, panel: &[Strip], out: Place<*mut f32>) {
    macro_rules! rows {
        ($($m:literal)*) => {
            match count {
                // Beyond what the registers hold there is no code.
                $($m if $m <= T::ROWS => T::tile::<$m>(a, panel, out),)*
                _ => unreachable!("a tile of {count} rows; this is a bug"),
            }
        };
    }
    // SAFETY: the caller's promise.
    unsafe { rows!(1 2 3 4 5 6 7 8 9 10 11 12) }
}
