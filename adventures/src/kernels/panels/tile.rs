//! A few rows times a panel, sums in registers.

use super::{Kernel, PANEL, Strip, Then};
use crate::kernels::math;
use crate::kernels::vector::Vector;
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// The most rows of a tile.
pub(crate) const ROWS: usize = 32;

/// Where a row is, and how far from there the next.
#[derive(Clone, Copy)]
pub(crate) struct Place<T> {
    pub(crate) first: T,
    pub(crate) stride: usize,
}

// SAFETY: parts that threads write to have no element in common, while the maker of a place borrows the matrix.
#[allow(unsafe_code)]
unsafe impl<T> Send for Place<*mut T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T> Sync for Place<*mut T> {}

/// The products of a few rows with a panel.
pub(crate) trait Tile {
    /// The most rows, at most [`ROWS`].
    const ROWS: usize;
    type V: Vector;
    /// What is set up for some products, and ended behind them.
    type State: Default;
    /// Panels that the same rows meet before the next rows do: their bytes, which stay in the second cache.
    const GROUP: usize = 0;
    /// Writes the products of `rows` rows of `a` with a panel, and does what there is to do `beside` it, or some of that.
    ///
    /// # Safety
    /// `rows` must be 1 to [`Self::ROWS`]; each of as many rows of `a` must have an element for each strip that has inputs; each
    /// row of `out` must have room for 32 sums, which nothing else uses.
    #[allow(unsafe_code)]
    unsafe fn multiply<B: Beside>(
        state: &mut Self::State,
        rows: usize,
        a: Place<*const u32>,
        panel: &[Strip],
        out: Place<*mut f32>,
        beside: &mut B,
    );
    /// Writes as many inputs of a row as a panel has columns: a line of the cache.
    ///
    /// # Safety
    /// `x` must have them, and `to` room for as many.
    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn round(_x: *const f32, _to: *mut u32) {
        unreachable!("rows of this kind are not written as they are computed; this is a bug");
    }
}

/// What is done in small pieces while other units of the CPU multiply.
pub(crate) trait Beside {
    /// Is called before the first of `steps`.
    fn begin(&mut self, steps: usize);
    fn step(&mut self);
}

impl Beside for () {
    #[inline(always)]
    fn begin(&mut self, _: usize) {}

    #[inline(always)]
    fn step(&mut self) {}
}

/// A [`Tile`] whose sums are in registers, compiled for each number of rows.
pub(crate) trait Registers {
    /// The most rows, at most twelve.
    const ROWS: usize;
    type V: Vector;
    /// # Safety
    /// As [`Tile::multiply`] with `M` rows.
    #[allow(unsafe_code)]
    unsafe fn tile<const M: usize>(a: Place<*const u32>, panel: &[Strip], out: Place<*mut f32>);
}

impl<R: Registers> Tile for R {
    const ROWS: usize = R::ROWS;
    type V = R::V;
    type State = ();

    #[inline(always)]
    #[allow(unsafe_code)]
    unsafe fn multiply<B: Beside>(
        (): &mut (),
        rows: usize,
        a: Place<*const u32>,
        panel: &[Strip],
        out: Place<*mut f32>,
        _: &mut B,
    ) {
        macro_rules! rows {
            ($($m:literal)*) => {
                match rows {
                    // Beyond what the registers hold there is no code.
                    $($m if $m <= R::ROWS => R::tile::<$m>(a, panel, out),)*
                    _ => unreachable!("a tile of {rows} rows; this is a bug"),
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe { rows!(1 2 3 4 5 6 7 8 9 10 11 12) }
    }
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
    /// Nothing else uses the `columns` of these `rows`.
    pub(super) out: Out,
    /// How many columns are stored, of the last panel maybe not all.
    pub(super) columns: usize,
}

/// Where the first row's first column goes.
#[derive(Clone, Copy)]
pub(super) enum Out {
    Floats(Place<*mut f32>),
    /// As the kernel reads rows, where that is a line of the cache for a panel's columns.
    Rounded(Place<*mut u32>),
}

impl Out {
    /// The place `rows` rows and `panels` panels away.
    #[inline(always)]
    pub(super) fn at(self, rows: usize, panels: usize) -> Self {
        match self {
            Self::Floats(Place { first, stride }) => {
                Self::Floats(Place { first: first.wrapping_add(rows * stride + panels * PANEL), stride })
            }
            Self::Rounded(Place { first, stride }) => {
                Self::Rounded(Place { first: first.wrapping_add(rows * stride + panels * PANEL / 2), stride })
            }
        }
    }
}

/// Calls the generic function `$f::<T>` compiled for a [`Kernel`], with the [`Tile`] of that kernel.
///
/// The function must be `#[inline(always)]`. The CPU must have the kernel, which [`Kernel::best`] and [`Kernel::all`] make sure of.
macro_rules! at_kernel {
    ($kernel:expr, $f:ident::<T>($job:ident: $type:ty)) => {{
        use $crate::kernels::panels::bytes::{self, Grouped};
        #[cfg(target_arch = "x86_64")]
        use $crate::kernels::panels::{Precision, amx, dot::x86::Bf16};
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
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        #[allow(unsafe_code)]
        unsafe fn tiles(precision: Precision, $job: $type) {
            match precision {
                Precision::F32 | Precision::Bf16x2 => $f::<amx::Split>($job),
                Precision::Bf16 => $f::<amx::Brief>($job),
                Precision::Int8 => $f::<amx::Bytes>($job),
            }
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
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Kernel::Tiles(precision) => unsafe { tiles(precision, $job) },
        }
    }};
}
pub(super) use at_kernel;

pub(super) fn run(kernel: Kernel, job: &Job<'_>) {
    at_kernel!(kernel, panels::<T>(job: &Job<'_>));
}

/// Sums of a tile, in whole lines of the cache.
#[repr(align(64))]
pub(super) struct Sums(pub(super) [[f32; PANEL]; ROWS]);

#[inline(always)]
fn panels<T: Tile>(job: &Job<'_>) {
    let mut sums = [const { MaybeUninit::<Sums>::uninit() }; 2];
    let mut state = T::State::default();
    let mut which = 0;
    // What follows the products of a tile is done beside those of the next.
    let mut last = Finish::<T>::none(job);
    let group = (T::GROUP / (job.steps * size_of::<Strip>())).max(1);
    for (g, panels) in job.strips.chunks(group * job.steps).enumerate() {
        let mut row = 0;
        while row < job.rows {
            let count = share::<T>(job.rows - row);
            for (i, panel) in panels.chunks_exact(job.steps).enumerate() {
                let p = g * group + i;
                which = 1 - which;
                let sums = sums[which].as_mut_ptr().cast();
                // SAFETY: the rows are the job's, and the sums have room for all of them; the other ones are finished before
                // they are written to again.
                #[allow(unsafe_code)]
                unsafe {
                    let a = Place { first: job.a.first.add(row * job.a.stride), stride: job.a.stride };
                    T::multiply(&mut state, count, a, panel, Place { first: sums, stride: PANEL }, &mut last);
                    last.rest();
                    let out = job.out.at(row, p);
                    let bias = job.bias[p * PANEL..(p + 1) * PANEL].as_ptr();
                    let columns = PANEL.min(job.columns - p * PANEL);
                    last = Finish { rows: count, sums, bias, out, columns, ..Finish::none(job) };
                }
            }
            row += count;
        }
    }
    last.rest();
}

/// What follows the products of a tile, row by row.
///
/// Its maker has sums of `rows` rows and the biases of as many columns as a panel has, and room for `columns` of each row, which
/// nothing else uses, until it is done.
struct Finish<T> {
    rows: usize,
    sums: *const f32,
    bias: *const f32,
    then: Then,
    out: Out,
    columns: usize,
    /// Rows that are done.
    done: usize,
    /// Rows of a step.
    each: usize,
    tile: PhantomData<T>,
}

impl<T: Tile> Finish<T> {
    #[inline(always)]
    fn none(job: &Job<'_>) -> Self {
        let (sums, bias) = (std::ptr::null(), std::ptr::null());
        let (then, out) = (job.then, job.out);
        Self { rows: 0, sums, bias, then, out, columns: 0, done: 0, each: 0, tile: PhantomData }
    }

    /// Does the rows that are left.
    #[inline(always)]
    fn rest(&mut self) {
        while self.done < self.rows {
            self.row();
        }
    }

    #[inline(always)]
    fn row(&mut self) {
        // SAFETY: the maker's promise.
        #[allow(unsafe_code)]
        unsafe {
            let sums = self.sums.add(self.done * PANEL);
            match self.out.at(self.done, 0) {
                Out::Floats(Place { first: out, .. }) if self.columns == PANEL => {
                    finish::<T, false>(sums, self.bias, self.then, out);
                }
                Out::Floats(Place { first: out, .. }) => {
                    let mut whole = [0.0; PANEL];
                    whole.as_mut_ptr().copy_from_nonoverlapping(out, self.columns);
                    finish::<T, false>(sums, self.bias, self.then, whole.as_mut_ptr());
                    out.copy_from_nonoverlapping(whole.as_ptr(), self.columns);
                }
                // Columns behind the last are zeros, as their weights and biases are.
                Out::Rounded(Place { first: out, .. }) => {
                    let mut whole = [0.0; PANEL];
                    finish::<T, true>(sums, self.bias, self.then, whole.as_mut_ptr());
                    T::round(whole.as_ptr(), out);
                }
            }
        }
        self.done += 1;
    }
}

impl<T: Tile> Beside for Finish<T> {
    #[inline(always)]
    fn begin(&mut self, steps: usize) {
        self.each = (self.rows - self.done).div_ceil(steps);
    }

    #[inline(always)]
    fn step(&mut self) {
        for _ in 0..self.each.min(self.rows - self.done) {
            self.row();
        }
    }
}

/// How many of `rows` the next tile has: equal shares, as few rows leave the multipliers waiting.
#[inline(always)]
pub(crate) fn share<T: Tile>(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(T::ROWS))
}

/// # Safety
/// Each must have a panel's columns.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn finish<T: Tile, const ROUNDED: bool>(sums: *const f32, bias: *const f32, then: Then, out: *mut f32) {
    for i in (0..PANEL).step_by(T::V::LANES) {
        // SAFETY: a panel is whole registers.
        unsafe {
            let x = T::V::load(sums.add(i)).add(T::V::load(bias.add(i)));
            let y = match then {
                Then::Store => x,
                Then::Add => x.add(T::V::load(out.add(i))),
                Then::GeluErf if ROUNDED => gelu_brief(x),
                Then::GeluErf => gelu_erf(x),
                Then::GeluTanh => gelu_tanh(x),
                Then::Relu => x.max(T::V::splat(0.0)),
            };
            y.store(out.add(i));
        }
    }
}

/// [`math::gelu_erf`].
#[inline(always)]
fn gelu_erf<V: Vector>(x: V) -> V {
    let y = x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
    let y = y.max(V::splat(-math::ERF_LIMIT)).min(V::splat(math::ERF_LIMIT));
    let square = y.mul(y);
    let (mut p, mut q) = (V::splat(math::ERF_P[0]), V::splat(math::ERF_Q[0]));
    for c in &math::ERF_P[1..] {
        p = p.mul_add(square, V::splat(*c));
    }
    for c in &math::ERF_Q[1..] {
        q = q.mul_add(square, V::splat(*c));
    }
    let half = x.mul(V::splat(0.5));
    y.mul(p).div(q).mul_add(half, half)
}

/// The normal distribution up to x, less a half, by x: a polynomial in its square up to [`NEAR`], where it is exactly a half by
/// that. [`gelu_brief`] is off by at most 1.9e-4 with it.
const NORMAL: [f32; 7] =
    [2.258_815e-8, -1.588_824_1e-6, 4.776_382_8e-5, -8.121_869e-4, 8.763_69e-3, -6.455_441_6e-2, 3.978_701_8e-1];
const NEAR: f32 = 4.0;

/// [`gelu_erf`] for numbers that are rounded to bfloat16 next, in half its time.
#[inline(always)]
fn gelu_brief<V: Vector>(x: V) -> V {
    // A number that is not one stays so: it is multiplied with what comes of it.
    let y = x.max(V::splat(-NEAR)).min(V::splat(NEAR));
    let square = y.mul(y);
    let mut p = V::splat(NORMAL[0]);
    for c in &NORMAL[1..] {
        p = p.mul_add(square, V::splat(*c));
    }
    x.mul(p.mul_add(y, V::splat(0.5)))
}

/// [`math::gelu_tanh`].
#[inline(always)]
fn gelu_tanh<V: Vector>(x: V) -> V {
    let cube = x.mul(x).mul(x);
    let inner = cube.mul_add(V::splat(0.044_715), x).mul(V::splat(2.0 * math::SQRT_2_OVER_PI));
    // x (1 + tanh(y)) / 2 is x (1 - 1 / (e^2y + 1)).
    let one = V::splat(1.0);
    x.mul(one.sub(one.div(inner.exp().add(one))))
}
