//! Elementwise functions and reductions over rows, in f32.

use super::{LANES, vectorized};

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(super) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to 2.5 ulp where `FMA` holds and 3 elsewhere, with the polynomial of Arm's optimized routines, as llama.cpp has it.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer without a library call.
    const MAGIC: f32 = 12_582_912.0;
    // What lies beyond is 0 or infinite, and infinities must not meet their negatives below.
    let x = x.clamp(-150.0, 150.0);
    let z = mul_add::<FMA>(x, std::f32::consts::LOG2_E, MAGIC);
    let n = z - MAGIC;
    let b = mul_add::<FMA>(n, -f32::from_bits(0x3f31_7200), x);
    let b = mul_add::<FMA>(n, -f32::from_bits(0x35bf_be8e), b);
    let square = b * b;
    let p = mul_add::<FMA>(f32::from_bits(0x3c07_2010), b, f32::from_bits(0x3d2b_9f17));
    let q = mul_add::<FMA>(f32::from_bits(0x3e2a_af33), b, f32::from_bits(0x3eff_fedb));
    let r = mul_add::<FMA>(f32::from_bits(0x3f7f_fff6), b, 1.0);
    let y = mul_add::<FMA>(mul_add::<FMA>(p, square, q), square, r);
    // The power of two in two factors, so that results too small for a normal number are rounded once.
    let n = z.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    y * power(half) * power(n - half)
}

/// The error function to 3 ulp: the rational approximation that Eigen and XLA use on [-4, 4].
#[inline(always)]
fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let x2 = x * x;
    let mut p = -2.726_142_3e-10_f32;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = mul_add::<FMA>(p, x2, c);
    }
    let mut q = -1.456_607_2e-5_f32;
    for c in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
        q = mul_add::<FMA>(q, x2, c);
    }
    x * p / q
}

#[inline(always)]
pub(super) fn gelu_erf<const FMA: bool>(x: f32) -> f32 {
    0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `tanh` as `1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(super) fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
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

/// Applies `f` to each number of `row`, whole blocks first.
#[inline(always)]
pub(super) fn map(row: &mut [f32], f: impl Fn(f32, usize) -> f32) {
    let (blocks, tail) = row.as_chunks_mut::<LANES>();
    let done = blocks.len() * LANES;
    for (b, block) in blocks.iter_mut().enumerate() {
        for (i, x) in block.iter_mut().enumerate() {
            *x = f(*x, b * LANES + i);
        }
    }
    for (i, x) in tail.iter_mut().enumerate() {
        *x = f(*x, done + i);
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
            map(row, |x, i| x + bias[i]);
        }
    }

    /// Adds `bias` to each row and applies the exact GELU, `x/2 (1 + erf(x/√2))`.
    fn bias_gelu_erf(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            map(row, |x, i| gelu_erf::<FMA>(x + bias[i]));
        }
    }

    /// Adds `bias` to each row and applies the tanh approximation of GELU.
    fn bias_gelu_tanh(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            map(row, |x, i| gelu_tanh::<FMA>(x + bias[i]));
        }
    }

    /// Adds `bias` to each row and applies `max(x, 0)`.
    fn bias_relu(rows: &mut [f32], bias: &[f32]) {
        for row in rows.chunks_exact_mut(bias.len()) {
            map(row, |x, i| (x + bias[i]).max(0.0));
        }
    }

    /// `hidden = layer_norm(hidden + rows + bias)` row by row; `rows` is left with the sums.
    fn add_layer_norm(hidden: &mut [f32], rows: &mut [f32], bias: &[f32], norm: &LayerNorm) {
        let width = bias.len();
        for (hidden, row) in hidden.chunks_exact_mut(width).zip(rows.chunks_exact_mut(width)) {
            map(row, |x, i| x + bias[i] + hidden[i]);
            hidden.copy_from_slice(row);
            normalize_row::<FMA>(hidden, norm);
        }
    }

    /// `hidden = layer_norm(hidden)` row by row.
    fn layer_norm(hidden: &mut [f32], norm: &LayerNorm) {
        for row in hidden.chunks_exact_mut(norm.weight.len()) {
            normalize_row::<FMA>(row, norm);
        }
    }

    /// `row = softmax(scale * row)` for each row of `width` numbers.
    fn softmax(rows: &mut [f32], width: usize, scale: f32) {
        for row in rows.chunks_exact_mut(width) {
            let max = maximum(row);
            map(row, |x, _| exp::<FMA>((x - max) * scale));
            let inverse = 1.0 / reduce(row, |x| x);
            map(row, |x, _| x * inverse);
        }
    }

    /// `sum += row`.
    fn accumulate(sum: &mut [f32], row: &[f32]) {
        map(sum, |x, i| x + row[i]);
    }

    /// `sum += factor * row`.
    fn accumulate_scaled(sum: &mut [f32], row: &[f32], factor: f32) {
        map(sum, |x, i| mul_add::<FMA>(factor, row[i], x));
    }

    /// Divides `row` by its L2 norm, leaves it where that is 0.
    fn l2_normalize(row: &mut [f32]) {
        let norm = reduce(row, |x| x * x).sqrt();
        if norm > 0.0 {
            let inverse = 1.0 / norm;
            map(row, |x, _| x * inverse);
        }
    }
}

/// Layer normalization's learned scale and shift.
pub(crate) struct LayerNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) eps: f32,
}

/// Two passes, mean then variance: one pass of sums of squares loses digits where the mean is large.
#[inline(always)]
fn normalize_row<const FMA: bool>(row: &mut [f32], norm: &LayerNorm) {
    let (weight, bias) = (&norm.weight[..row.len()], &norm.bias[..row.len()]);
    let mean = reduce(row, |x| x) / row.len() as f32;
    let variance = reduce(row, |x| (x - mean) * (x - mean)) / row.len() as f32;
    let inverse = 1.0 / (variance + norm.eps).sqrt();
    map(row, |x, i| mul_add::<FMA>((x - mean) * inverse, weight[i], bias[i]));
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
        let mut row = samples();
        let bias = vec![0.0; row.len()];
        let inputs = row.clone();
        bias_gelu_erf(&mut row, &bias);
        for (x, y) in inputs.iter().zip(&row) {
            let x = f64::from(*x);
            let want = 0.5 * x * (1.0 + erf_f64(x / std::f64::consts::SQRT_2));
            assert!((want - f64::from(*y)).abs() <= 4e-7 * x.abs().max(1.0), "gelu({x}) = {y}, want {want}");
        }
    }

    #[test]
    fn gelu_tanh_follows_its_formula() {
        let mut row = samples();
        let bias = vec![0.0; row.len()];
        let inputs = row.clone();
        bias_gelu_tanh(&mut row, &bias);
        for (x, y) in inputs.iter().zip(&row) {
            let x = f64::from(*x);
            let want = 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
            assert!((want - f64::from(*y)).abs() <= 1e-6 * x.abs().max(1.0), "gelu({x}) = {y}, want {want}");
        }
    }

    #[test]
    fn softmax_sums_to_one_and_survives_extremes() {
        for width in [1, 2, 15, 16, 17, 100, 512] {
            let rows: Vec<f32> = (0..3 * width).map(|i| ((i * 7919 % 1000) as f32 - 500.0) / 20.0).collect();
            let mut got = rows.clone();
            softmax(&mut got, width, 0.5);
            for (row, got) in rows.chunks(width).zip(got.chunks(width)) {
                let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let exps: Vec<f64> = row.iter().map(|x| (f64::from(x - max) * 0.5).exp()).collect();
                let total: f64 = exps.iter().sum();
                for (want, got) in exps.iter().map(|e| e / total).zip(got) {
                    assert!((want - f64::from(*got)).abs() < 1e-6, "{want} {got}");
                }
            }
        }
        let mut row = [1e30, -1e30, 0.0];
        softmax(&mut row, 3, 1.0);
        assert_eq!(row, [1.0, 0.0, 0.0]);
    }

    #[test]
    fn layer_norm_matches_f64_with_a_large_mean() {
        for width in [1, 7, 16, 33, 384] {
            let row: Vec<f32> = (0..width).map(|i| 1000.0 + (i * 31 % 17) as f32).collect();
            let norm = LayerNorm {
                weight: (0..width).map(|i| 1.0 + i as f32 / 100.0).collect(),
                bias: (0..width).map(|i| i as f32 / 10.0).collect(),
                eps: 1e-12,
            };
            let mut got = row.clone();
            layer_norm(&mut got, &norm);
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
