//! Matrix products in f32, by the `gemm` crate (AVX-512 or AVX2, chosen at run time).

/// Whether a product may use all threads of the current pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The caller's thread alone: the caller runs several products side by side.
    One,
    /// All of the current rayon pool.
    All,
}

/// A matrix inside a slice: row `r`, column `c` is at `offset + r * rows + c * columns`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl View {
    /// A row-major matrix whose rows are `stride` apart.
    pub(crate) fn row_major(offset: usize, stride: usize) -> Self {
        Self { offset, rows: stride, columns: 1 }
    }

    /// The transpose of a row-major matrix whose rows are `stride` apart.
    pub(crate) fn transposed(offset: usize, stride: usize) -> Self {
        Self { offset, rows: 1, columns: stride }
    }

    /// How long a slice must be to hold an `m × n` matrix seen so.
    fn end(self, m: usize, n: usize) -> usize {
        if m == 0 || n == 0 { 0 } else { self.offset + (m - 1) * self.rows + (n - 1) * self.columns + 1 }
    }
}

/// `out = a b`, with `a` of `m × k`, `b` of `k × n` and `out` of `m × n` numbers.
pub(crate) fn gemm(
    (m, n, k): (usize, usize, usize),
    (out, out_view): (&mut [f32], View),
    (a, a_view): (&[f32], View),
    (b, b_view): (&[f32], View),
    threads: Threads,
) {
    assert!(out_view.end(m, n) <= out.len(), "gemm: out is too short; this is a bug");
    assert!(a_view.end(m, k) <= a.len() && b_view.end(k, n) <= b.len(), "gemm: operand too short; this is a bug");
    let parallelism = match threads {
        Threads::One => gemm::Parallelism::None,
        Threads::All => gemm::Parallelism::Rayon(0),
    };
    // SAFETY: the views lie inside their slices, as was just asserted, and `out` is borrowed mutably, so nothing aliases it.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr().add(out_view.offset),
            out_view.columns as isize,
            out_view.rows as isize,
            false,
            a.as_ptr().add(a_view.offset),
            a_view.columns as isize,
            a_view.rows as isize,
            b.as_ptr().add(b_view.offset),
            b_view.columns as isize,
            b_view.rows as isize,
            0.0_f32,
            1.0_f32,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out = x wᵀ` for row-major `x` of `m × k` and `w` of `n × k`: a linear layer without its bias.
pub(crate) fn linear(out: &mut [f32], x: &[f32], w: &[f32], k: usize, threads: Threads) {
    let (m, n) = (x.len() / k, w.len() / k);
    gemm((m, n, k), (out, View::row_major(0, n)), (x, View::row_major(0, k)), (w, View::transposed(0, k)), threads);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_agrees_with_three_loops() {
        let number = |i: usize| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0;
        for (m, n, k) in [(1, 1, 1), (1, 7, 3), (5, 1, 16), (3, 33, 17), (64, 48, 96), (130, 70, 33)] {
            let x: Vec<f32> = (0..m * k).map(number).collect();
            let w: Vec<f32> = (0..n * k).map(|i| number(i + 17)).collect();
            for threads in [Threads::One, Threads::All] {
                let mut out = vec![f32::NAN; m * n];
                linear(&mut out, &x, &w, k, threads);
                for i in 0..m {
                    for j in 0..n {
                        let products = || (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l]));
                        let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                        let error = (want - f64::from(out[i * n + j])).abs();
                        assert!(error <= 1e-6 * size, "{m}x{n}x{k} at {i},{j}: off by {error}");
                    }
                }
            }
        }
    }
}
