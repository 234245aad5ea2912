//! Linear layers whose weights lie in panels, packed once: 32 outputs side by side, input after input.
//!
//! A sum runs over the inputs in their order, whatever is computed beside it: a row's result has the same bits in any batch
//! and on any number of threads.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod bytes;
pub(crate) mod dot;
pub(crate) mod maxsim;
mod rounding;
#[cfg(test)]
mod tests;
pub(crate) mod tile;

use super::threads::Threads;
use super::vector::Level;
use crate::error::{Error, Result, invalid};
use rayon::prelude::*;
pub(crate) use rounding::{Known, Rounded};
use rounding::{bf16_pair, round};
use std::ops::Range;
use std::str::FromStr;
use tile::{Out, Place};

/// Outputs in a panel: two registers of AVX-512.
pub(crate) const PANEL: usize = 32;
/// Rows that go through all panels together: their inputs and one panel stay in the second cache.
const CHUNK_ROWS: usize = 96;
/// The same where tiles multiply: reading the weights takes longer there than multiplying.
#[cfg(target_arch = "x86_64")]
const TILES_ROWS: usize = 256;
/// The fewest rows that are worth a thread of their own: weights are read once for each share.
const SHARE_ROWS: usize = 48;

/// An element of 32 outputs, each of one input or more, or what a kernel has beside them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Strip(pub(crate) [u32; PANEL]);

/// What weights and activations are rounded to before they are multiplied. Sums are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Nothing.
    #[default]
    F32,
    /// Two bfloat16, 16 bits of a number, with AMX; elsewhere nothing.
    Bf16x2,
    /// bfloat16, 8 bits of a number.
    Bf16,
    /// Integers of 8 bits with a scale for 64 of them; what is sensitive to it is rounded less.
    Int8,
}

impl Precision {
    /// Returns the fastest precision on this CPU whose vectors keep a cosine of 0.999 to those of f32, of texts that have words.
    ///
    /// That is `Bf16` with AMX, `Int8` with AVX-512 VNNI, else `Bf16` with AVX-512 BF16, else `F32`: elsewhere the others save
    /// memory, and next to no time.
    pub fn fastest() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Kernel::best(Self::Bf16) == Kernel::Tiles(Self::Bf16) {
                return Self::Bf16;
            }
            if Kernel::best(Self::Int8) == Kernel::Vnni {
                return Self::Int8;
            }
            if Kernel::best(Self::Bf16) == Kernel::Bf16 {
                return Self::Bf16;
            }
        }
        Self::F32
    }

    /// Returns `"f32"`, `"bf16x2"`, `"bf16"` or `"int8"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16x2 => "bf16x2",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl FromStr for Precision {
    type Err = Error;

    /// Reads a name, or `"auto"` for [`Self::fastest`].
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::fastest()),
            "f32" => Ok(Self::F32),
            "bf16x2" => Ok(Self::Bf16x2),
            "bf16" => Ok(Self::Bf16),
            "int8" => Ok(Self::Int8),
            _ => invalid!("precision={name:?}: expected \"auto\", \"f32\", \"bf16x2\", \"bf16\" or \"int8\""),
        }
    }
}

/// What multiplies: a precision on instructions that this CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kernel {
    Floats(Level),
    /// bfloat16 where there are no products of it.
    Widened(Level),
    #[cfg(target_arch = "x86_64")]
    Bf16,
    /// Bytes, at most with AVX2.
    Bytes(Level),
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Those of AMX, which has none of f32.
    #[cfg(target_arch = "x86_64")]
    Tiles(Precision),
}

impl Kernel {
    /// Returns the fastest kernel for `precision` that this CPU has.
    pub(crate) fn best(precision: Precision) -> Self {
        *Self::all(precision).last().expect("every CPU has the plain one; this is a bug")
    }

    /// Returns the fastest kernel that rounds less than bytes.
    pub(crate) fn finer() -> Self {
        #[cfg(target_arch = "x86_64")]
        if !matches!(Self::best(Precision::Bf16), Self::Widened(_)) {
            return Self::best(Precision::Bf16);
        }
        Self::best(Precision::F32)
    }

    /// Whether tiles multiply bfloat16, which is faster than bytes and their scales.
    pub(crate) fn tiles_of_halves(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Tiles(Precision::Bf16);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Returns the kernels for `precision` that this CPU has, the fastest last.
    pub(crate) fn all(precision: Precision) -> Vec<Self> {
        let levels = Level::all().into_iter();
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, reason = "there is but one"))]
        let mut all: Vec<Self> = match precision {
            Precision::F32 | Precision::Bf16x2 => levels.map(Self::Floats).collect(),
            Precision::Bf16 => levels.map(Self::Widened).collect(),
            Precision::Int8 => levels.map(Self::Bytes).collect(),
        };
        #[cfg(target_arch = "x86_64")]
        {
            let wide = Level::best() == Level::Avx512;
            if wide && precision == Precision::Bf16 && is_x86_feature_detected!("avx512bf16") {
                all.push(Self::Bf16);
            }
            if wide && precision == Precision::Int8 {
                // What AVX-512 lacks without them, AVX2 has.
                all.pop();
                if is_x86_feature_detected!("avx512vnni") {
                    all.push(Self::Vnni);
                }
            }
            if precision != Precision::F32 && crate::kernels::amx::available() {
                all.push(Self::Tiles(precision));
            }
        }
        all
    }

    /// The elements that a row of `inputs` numbers has, and the strips of a panel.
    fn steps(self, inputs: usize) -> (usize, usize) {
        #[cfg(target_arch = "x86_64")]
        if let Self::Tiles(precision) = self {
            return amx::steps(precision, inputs);
        }
        match self.precision() {
            Precision::F32 | Precision::Bf16x2 => (inputs, inputs),
            Precision::Bf16 => (inputs.div_ceil(2), inputs.div_ceil(2)),
            Precision::Int8 => {
                let groups = inputs.div_ceil(bytes::GROUP);
                (groups * bytes::ROW_STEPS, groups * bytes::PANEL_STEPS)
            }
        }
    }

    /// The elements of a row of `outputs` numbers that [`Linear::apply_rounding`] returns.
    pub(crate) fn rounding(outputs: usize) -> usize {
        #[cfg(target_arch = "x86_64")]
        return amx::steps(Precision::Bf16, outputs).0;
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("no kernel returns rows of {outputs} rounded numbers here; this is a bug")
    }

    /// What is taken from a byte of a row before it is multiplied.
    fn taken(self) -> i32 {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Bytes(Level::Avx2) {
            return <bytes::x86::Avx2 as bytes::Bytes>::TAKEN;
        }
        0
    }

    fn precision(self) -> Precision {
        match self {
            Self::Floats(_) => Precision::F32,
            Self::Widened(_) => Precision::Bf16,
            Self::Bytes(_) => Precision::Int8,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 => Precision::Bf16,
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => Precision::Int8,
            #[cfg(target_arch = "x86_64")]
            Self::Tiles(precision) => precision,
        }
    }
}

/// What a product reads.
#[derive(Clone, Copy)]
enum Input<'a> {
    Floats(&'a [f32]),
    /// Rows as the kernel reads them.
    Rounded(&'a [u32]),
}

/// What is done with `x wᵀ + b` before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// Nothing.
    Store,
    /// What is there is added.
    Add,
    /// The exact GELU, `x/2 (1 + erf(x/√2))`; where [`Linear::apply_rounding`] rounds it, off by up to 2e-4.
    GeluErf,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A linear layer.
pub(crate) struct Linear {
    inputs: usize,
    outputs: usize,
    /// Panel by panel; the last is filled up with zeros.
    strips: Vec<Strip>,
    /// As long as all panels.
    bias: Vec<f32>,
    known: Known,
    kernel: Kernel,
}

impl Linear {
    /// Packs row-major `weight` of `(outputs, inputs)`. Without a bias, `bias` is empty. Runs on the rayon pool it is called in.
    pub(crate) fn pack(weight: &[f32], bias: &[f32], inputs: usize, kernel: Kernel) -> Result<Self> {
        Self::pack_for(weight, bias, inputs, kernel, Known::default())
    }

    /// [`Self::pack`] for inputs of which something is known.
    pub(crate) fn pack_for(weight: &[f32], bias: &[f32], inputs: usize, kernel: Kernel, known: Known) -> Result<Self> {
        if inputs == 0 || weight.is_empty() {
            return invalid!("a linear layer of {inputs} inputs and {} weights", weight.len());
        }
        let outputs = weight.len() / inputs;
        assert!(weight.len() == outputs * inputs && (bias.is_empty() || bias.len() == outputs), "a layer's shape");
        let (panels, (_, steps)) = (outputs.div_ceil(PANEL), kernel.steps(inputs));
        let mut strips = vec![Strip([0; PANEL]); panels * steps];
        let mut padded = vec![0.0; panels * PANEL];
        padded[..bias.len()].copy_from_slice(bias);
        let parts = strips.par_chunks_exact_mut(steps).zip(padded.par_chunks_exact_mut(PANEL));
        parts.zip(weight.par_chunks(PANEL * inputs)).for_each(|((panel, bias), rows)| {
            for (column, row) in rows.chunks_exact(inputs).enumerate() {
                match kernel.precision() {
                    #[cfg(target_arch = "x86_64")]
                    Precision::Bf16x2 => amx::pack_split(row, panel, column),
                    #[cfg(not(target_arch = "x86_64"))]
                    Precision::Bf16x2 => unreachable!("it has no kernel here; this is a bug"),
                    Precision::F32 => {
                        for (strip, x) in panel.iter_mut().zip(row) {
                            strip.0[column] = x.to_bits();
                        }
                    }
                    Precision::Bf16 => {
                        for (strip, pair) in panel.iter_mut().zip(row.chunks(2)) {
                            strip.0[column] = bf16_pair(pair[0], pair.get(1).copied().unwrap_or(0.0));
                        }
                    }
                    Precision::Int8 => bias[column] += bytes::pack(row, &known, kernel.taken(), panel, column),
                }
            }
        });
        Ok(Self { inputs, outputs, strips, bias: padded, known, kernel })
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// How many rows go through all panels together.
    pub(crate) fn chunk_rows(&self) -> usize {
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Tiles(_) => TILES_ROWS,
            _ => CHUNK_ROWS,
        }
    }

    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// `out = then(x wᵀ + b)` for row-major `x` of `(rows, inputs)` and `out` of `(rows, outputs)`.
    pub(crate) fn apply(&self, x: &[f32], out: &mut [f32], then: Then, threads: Threads<'_>, rounded: &mut Rounded) {
        let rows = x.len() / self.inputs;
        assert!(x.len() == rows * self.inputs && out.len() == rows * self.outputs, "a product's shapes; this is a bug");
        let out = Out::Floats(Place { first: out.as_mut_ptr(), stride: self.outputs });
        self.apply_to(Input::Floats(x), rows, out, then, threads, rounded);
    }

    /// As [`Self::apply`], but `out` has rows of `width` numbers, of which the outputs are those from `column` on.
    pub(crate) fn apply_beside(
        &self,
        x: &[f32],
        out: &mut [f32],
        width: usize,
        column: usize,
        threads: Threads<'_>,
        rounded: &mut Rounded,
    ) {
        let rows = x.len() / self.inputs;
        let fits = x.len() == rows * self.inputs && out.len() == rows * width && column + self.outputs <= width;
        assert!(fits, "a product's shapes; this is a bug");
        let out = Out::Floats(Place { first: out.as_mut_ptr().wrapping_add(column), stride: width });
        self.apply_to(Input::Floats(x), rows, out, Then::Store, threads, rounded);
    }

    /// Whether this layer has [`Self::apply_rounding`].
    pub(crate) fn rounds(&self) -> bool {
        self.kernel.tiles_of_halves()
    }

    /// As [`Self::apply`], but returns rows as layers of the same kernel read them, rounded as they are computed.
    pub(crate) fn apply_rounding<'a>(
        &self,
        x: &[f32],
        out: &'a mut Rounded,
        then: Then,
        threads: Threads<'_>,
        rounded: &mut Rounded,
    ) -> &'a [u32] {
        let (rows, stride) = (x.len() / self.inputs, Kernel::rounding(self.outputs));
        let fits = x.len() == rows * self.inputs && self.rounds() && then != Then::Add;
        assert!(fits, "a product's shapes; this is a bug");
        let out = out.room(rows * stride);
        let place = Out::Rounded(Place { first: out.as_mut_ptr(), stride });
        self.apply_to(Input::Floats(x), rows, place, then, threads, rounded);
        out
    }

    /// As [`Self::apply`], of rows that are rounded already.
    pub(crate) fn apply_rounded(&self, a: &[u32], out: &mut [f32], then: Then, threads: Threads<'_>) {
        let steps = self.kernel.steps(self.inputs).0;
        let rows = a.len() / steps;
        assert!(a.len() == rows * steps && out.len() == rows * self.outputs, "a product's shapes; this is a bug");
        let out = Out::Floats(Place { first: out.as_mut_ptr(), stride: self.outputs });
        self.apply_to(Input::Rounded(a), rows, out, then, threads, &mut Rounded::new());
    }

    /// `out` has room for the rows.
    fn apply_to(&self, x: Input<'_>, rows: usize, out: Out, then: Then, threads: Threads<'_>, rounded: &mut Rounded) {
        let panels = self.outputs.div_ceil(PANEL);
        let steps = self.kernel.steps(self.inputs).0;
        let count = threads.count();
        if count == 1 {
            let chunk = self.chunk_rows();
            for row in (0..rows).step_by(chunk) {
                let range = row..rows.min(row + chunk);
                let a = match x {
                    Input::Floats(x) => {
                        let x = &x[range.start * self.inputs..range.end * self.inputs];
                        self.round(x, Threads::One, rounded)
                    }
                    Input::Rounded(a) => &a[range.start * steps..range.end * steps],
                };
                self.piece(a, out, range, 0..panels, then);
            }
            return;
        }
        let a = match x {
            Input::Floats(x) => self.round(x, threads, rounded),
            Input::Rounded(a) => a,
        };
        // Many rows are shared out; of few, each thread computes a part of the outputs, and reads its weights alone.
        let by_rows = rows >= count * SHARE_ROWS;
        let most = count * self.chunk_rows();
        let chunk = if by_rows { rows.div_ceil(rows.div_ceil(most) * count) } else { rows.max(1) };
        let group = if by_rows { panels } else { panels.div_ceil(threads.pieces()) };
        let (chunks, groups) = (rows.div_ceil(chunk), panels.div_ceil(group));
        threads.share(chunks * groups, |i| {
            let (row, panel) = (i / groups * chunk, i % groups * group);
            let range = row..rows.min(row + chunk);
            let a = &a[range.start * steps..range.end * steps];
            self.piece(a, out, range, panel..panels.min(panel + group), then);
        });
    }

    fn round<'a>(&self, x: &'a [f32], threads: Threads<'_>, rounded: &'a mut Rounded) -> &'a [u32] {
        round(self.kernel, x, self.inputs, &self.known, threads, rounded)
    }

    /// Appends rows of `x` as [`Self::apply_rounded`] reads them.
    pub(crate) fn round_rows(&self, x: &[f32], rounded: &mut Rounded, out: &mut Vec<u32>) {
        out.extend_from_slice(self.round(x, Threads::One, rounded));
    }

    /// `a` are the elements of `rows`.
    fn piece(&self, a: &[u32], out: Out, rows: Range<usize>, panels: Range<usize>, then: Then) {
        let (stride, steps) = self.kernel.steps(self.inputs);
        assert_eq!(a.len(), rows.len() * stride, "rows are as long as the kernel reads them; this is a bug");
        let column = panels.start * PANEL;
        let job = tile::Job {
            a: Place { first: a.as_ptr(), stride },
            rows: rows.len(),
            strips: &self.strips[panels.start * steps..panels.end * steps],
            steps,
            bias: &self.bias[column..panels.end * PANEL],
            then,
            // The rows and panels lie in `out`, as its maker has checked; no two pieces share rows and panels.
            out: out.at(rows.start, panels.start),
            columns: self.outputs.min(panels.end * PANEL) - column,
        };
        tile::run(self.kernel, &job);
    }
}
