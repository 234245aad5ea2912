//! Elementwise functions and reductions over rows, in f32.

use super::vector::{Level, Vector, at_level, total};
use super::{LANES, vectorized};

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Beyond it, `e^x` is 0 or infinite.
pub(super) const EXP_LIMIT: f32 = 150.0;
/// The natural logarithm of 2 in two parts.
pub(super) const LN_2: [f32; 2] = [f32::from_bits(0x3f31_7200), f32::from_bits(0x35bf_be8e)];
/// The coefficients of `e^x` near 0, of the fifth power first, that of the first power last; the next is 1.
pub(super) const EXP: [f32; 5] = [
    f32::from_bits(0x3c07_2010),
    f32::from_bits(0x3d2b_9f17),
    f32::from_bits(0x3e2a_af33),
    f32::from_bits(0x3eff_fedb),
    f32::from_bits(0x3f7f_fff6),
];

/// `e^x` to 2.5 ulp where `FMA` holds and 3 elsewhere, with the polynomial of Arm's optimized routines, as llama.cpp has it.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer without a library call.
    const MAGIC: f32 = 12_582_912.0;
    // Infinities must not meet their negatives below.
    let x = x.clamp(-EXP_LIMIT, EXP_LIMIT);
    let z = mul_add::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = z - MAGIC;
    let b = mul_add::<FMA>(n, -LN_2[0], x);
    let b = mul_add::<FMA>(n, -LN_2[1], b);
    let square = b * b;
    let [p1, p0, q1, q0, r1] = EXP;
    let p = mul_add::<FMA>(p1, b, p0);
    let q = mul_add::<FMA>(q1, b, q0);
    let r = mul_add::<FMA>(r1, b, 1.0);
    let y = mul_add::<FMA>(mul_add::<FMA>(p, square, q), square, r);
    // The power of two in two factors, so that results too small for a normal number are rounded once.
    let n = z.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    y * power(half) * power(n - half)
}

/// Beyond it, the error function is 1 or -1.
pub(super) const ERF_LIMIT: f32 = 4.0;
/// The coefficients of the error function's numerator, which is odd, and of its denominator: highest powers first.
pub(super) const ERF_P: [f32; 7] =
    [-2.726_142_3e-10, 2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2];
pub(super) const ERF_Q: [f32; 5] = [-1.456_607_2e-5, -2.133_740_5e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2];
pub(super) const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// The error function to 3 ulp: the rational approximation that Eigen and XLA use on [-4, 4].
#[inline(always)]
fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-ERF_LIMIT, ERF_LIMIT);
    let x2 = x * x;
    let (mut p, mut q) = (ERF_P[0], ERF_Q[0]);
    for c in &ERF_P[1..] {
        p = mul_add::<FMA>(p, x2, *c);
    }
    for c in &ERF_Q[1..] {
        q = mul_add::<FMA>(q, x2, *c);
    }
    x * p / q
}

#[inline(always)]
pub(crate) fn gelu_erf<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `tanh` as `1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(crate) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    let inner = SQRT_2_OVER_PI * mul_add::<FMA>(0.044_715 * x * x, x, x);
    let tanh = 1.0 - 2.0 / (exp::<FMA>(2.0 * inner) + 1.0);
    0.5 * x * (1.0 + tanh)
}

#[inline(always)]
pub(super) fn sum(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest number of `row`.
#[inline(always)]
pub(super) fn maximum(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, tail) = row.as_chunks::<LANES>();
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = if *x > *lane { *x } else { *lane };
    }
    lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Applies `f` to each number of `row`.
#[inline(always)]
pub(super) fn map(row: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in row {
        *x = f(*x);
    }
}

/// Applies `f` to each number of `row` and that of `other` at the same place.
///
/// One loop, not one over blocks in another: of blocks the compiler makes a loop over a number of each, gathered from many.
#[inline(always)]
pub(super) fn map_with(row: &mut [f32], other: &[f32], f: impl Fn(f32, f32) -> f32) {
    let other = &other[..row.len()];
    for (x, y) in row.iter_mut().zip(other) {
        *x = f(*x, *y);
    }
}

/// The sum of `f` over `row`: one running sum per lane, so that it vectorizes and loses little precision.
#[inline(always)]
pub(super) fn reduce(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (blocks, tail) = row.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane += f(*x);
    }
    sum(lanes)
}

vectorized! {
    /// Adds `bias` to each row of `rows`, which are as long as it.
    fn add_bias(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            map_with(row, bias, |x, bias| x + bias);
        }
    }

    /// `sum += row`.
    fn accumulate(sum: &mut [f32], row: &[f32]) {
        map_with(sum, row, |x, y| x + y);
    }

    /// `sum += factor * row`.
    fn accumulate_scaled(sum: &mut [f32], row: &[f32], factor: f32) {
        map_with(sum, row, |x, y| mul_add::<FMA>(factor, y, x));
    }

    /// Divides `row` by its L2 norm, leaves it where that is 0.
    fn l2_normalize(row: &mut [f32]) {
        let norm = reduce(row, |x| x * x).sqrt();
        if norm > 0.0 {
            let inverse = 1.0 / norm;
            map(row, |x| x * inverse);
        }
    }
}

/// Layer normalization's learned scale and shift.
pub(crate) struct LayerNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) eps: f32,
}

/// `hidden = layer_norm(hidden)` row by row.
pub(crate) fn layer_norm(level: Level, hidden: &mut [f32], norm: &LayerNorm) {
    assert!(norm.bias.len() == norm.weight.len(), "layer norm: shapes; this is a bug");
    at_level!(level, normalize_rows::<V>(hidden: &mut [f32], norm: &LayerNorm));
}

/// Two passes, mean then variance: one pass of sums of squares loses digits where the mean is large.
#[inline(always)]
fn normalize_rows<V: Vector>(hidden: &mut [f32], norm: &LayerNorm) {
    let width = norm.weight.len();
    let whole = width / V::LANES * V::LANES;
    for row in hidden.chunks_exact_mut(width) {
        let x = row.as_mut_ptr();
        // SAFETY: whole registers within the row, and within weight and bias, which are as long.
        #[allow(unsafe_code)]
        unsafe {
            let mut sum = V::splat(0.0);
            for i in (0..whole).step_by(V::LANES) {
                sum = sum.add(V::load(x.add(i)));
            }
            let mean = (total(sum) + row[whole..].iter().sum::<f32>()) / width as f32;
            let (minus, mut squares) = (V::splat(-mean), V::splat(0.0));
            for i in (0..whole).step_by(V::LANES) {
                let off = V::load(x.add(i)).add(minus);
                squares = off.mul_add(off, squares);
            }
            let rest: f32 = row[whole..].iter().map(|x| (x - mean) * (x - mean)).sum();
            let inverse = 1.0 / ((total(squares) + rest) / width as f32 + norm.eps).sqrt();
            let scale = V::splat(inverse);
            for i in (0..whole).step_by(V::LANES) {
                let off = V::load(x.add(i)).add(minus).mul(scale);
                let weight = V::load(norm.weight.as_ptr().add(i));
                off.mul_add(weight, V::load(norm.bias.as_ptr().add(i))).store(x.add(i));
            }
            let learned = norm.weight[whole..].iter().zip(&norm.bias[whole..]);
            for (x, (weight, bias)) in row[whole..].iter_mut().zip(learned) {
                *x = (*x - mean) * inverse * weight + bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error function by its Taylor series and continued fraction in f64: an independent reference.
    fn erf_f64(x: f64) -> f64 {
        if x.abs() > 3.0 {
            let mut f = 0.0;
            for k in (1..200).rev() {
                f = f64::from(k) / 2.0 / (x.abs() + f);
            }
            let tail = (-x * x).exp() / ((x.abs() + f) * std::f64::consts::PI.sqrt());
            return (1.0 - tail) * x.signum();
        }
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn exp_is_within_its_bounds() {
        let check = |x: f32, got: f32, units: f64| {
            let want = f64::from(x).exp();
            let unit = f64::from((want as f32).next_up()) - f64::from(want as f32);
            let error = (want - f64::from(got)).abs() / unit;
            assert!(error <= units, "{x}: {got}, want {want}, {error} units");
        };
        for x in (-10_300..8_850).map(|i| i as f32 * 0.01) {
            check(x, exp::<false>(x), 3.0);
            check(x, exp::<true>(x), 2.5);
        }
        for (x, want) in
            [(f32::NEG_INFINITY, 0.0), (-200.0, 0.0), (90.0, f32::INFINITY), (f32::INFINITY, f32::INFINITY)]
        {
            assert_eq!(exp::<true>(x), want);
        }
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    fn samples() -> Vec<f32> {
        let mut all: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 2.5e-4).collect();
        all.extend([0.0, -0.0, 1e-30, -1e-30, f32::MIN_POSITIVE, 1e-42, 30.0, -30.0, 1e4, -1e4]);
        all
    }

    #[test]
    fn gelu_is_exact_to_float_precision() {
        for x in samples() {
            let (wide, want) =
                (f64::from(x), 0.5 * f64::from(x) * (1.0 + erf_f64(f64::from(x) / std::f64::consts::SQRT_2)));
            for y in [gelu_erf::<false>(x), gelu_erf::<true>(x)] {
                assert!((want - f64::from(y)).abs() <= 4e-7 * wide.abs().max(1.0), "gelu({x}) = {y}, want {want}");
            }
        }
    }

    #[test]
    fn gelu_tanh_follows_its_formula() {
        for x in samples() {
            let wide = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let want = 0.5 * wide * (1.0 + inner.tanh());
            for y in [gelu_tanh::<false>(x), gelu_tanh::<true>(x)] {
                assert!((want - f64::from(y)).abs() <= 1e-6 * wide.abs().max(1.0), "gelu({x}) = {y}, want {want}");
            }
        }
    }

    #[test]
    fn layer_norm_matches_f64_with_a_large_mean() {
        let widths = [1, 7, 16, 33, 384];
        for (level, width) in Level::all().into_iter().flat_map(|level| widths.map(|width| (level, width))) {
            let row: Vec<f32> = (0..width).map(|i| 1000.0 + (i * 31 % 17) as f32).collect();
            let norm = LayerNorm {
                weight: (0..width).map(|i| 1.0 + i as f32 / 100.0).collect(),
                bias: (0..width).map(|i| i as f32 / 10.0).collect(),
                eps: 1e-12,
            };
            let mut got = row.clone();
            layer_norm(level, &mut got, &norm);
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
            for i in 0..width {
                let want = (f64::from(row[i]) - mean) / (variance + 1e-12).sqrt() * f64::from(norm.weight[i])
                    + f64::from(norm.bias[i]);
                assert!((want - f64::from(got[i])).abs() < 2e-3, "width {width}: {want} {}", got[i]);
            }
        }
    }

    #[test]
    fn l2_rows_are_unit_or_zero() {
        let mut row: Vec<f32> = (0..383).map(|i| i as f32 - 100.0).collect();
        l2_normalize(&mut row);
        assert!((row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() - 1.0).abs() < 1e-6);
        let mut zero = [0.0; 20];
        l2_normalize(&mut zero);
        assert_eq!(zero, [0.0; 20]);
    }
}
