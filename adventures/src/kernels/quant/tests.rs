use super::*;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// Each type with candle's, where candle has it.
const DTYPES: [(GgmlType, Option<GgmlDType>); 15] = [
    (GgmlType::F32, Some(GgmlDType::F32)),
    (GgmlType::F16, Some(GgmlDType::F16)),
    (GgmlType::BF16, Some(GgmlDType::BF16)),
    (GgmlType::Q4_0, Some(GgmlDType::Q4_0)),
    (GgmlType::Q4_1, Some(GgmlDType::Q4_1)),
    (GgmlType::Q5_0, Some(GgmlDType::Q5_0)),
    (GgmlType::Q5_1, Some(GgmlDType::Q5_1)),
    (GgmlType::Q8_0, Some(GgmlDType::Q8_0)),
    (GgmlType::Q2_K, Some(GgmlDType::Q2K)),
    (GgmlType::Q3_K, Some(GgmlDType::Q3K)),
    (GgmlType::Q4_K, Some(GgmlDType::Q4K)),
    (GgmlType::Q5_K, Some(GgmlDType::Q5K)),
    (GgmlType::Q6_K, Some(GgmlDType::Q6K)),
    (GgmlType::IQ4_NL, None),
    (GgmlType::IQ4_XS, None),
];

/// Numbers in [-1, 1) from a linear congruential generator.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// Rows of any steps and scales, and the numbers that we unpack them to: those are ggml's (`ggml_agrees`).
fn steps(dtype: GgmlType, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let mut data = any_bytes(rows * cols / dtype.block_size() * dtype.block_bytes(), rows as u32);
    for (b, block) in data.chunks_exact_mut(dtype.block_bytes()).enumerate() {
        let scale = half::f16::from_f32(0.001 * (b % 7) as f32 - 0.002);
        block[..2].copy_from_slice(&scale.to_le_bytes());
    }
    let mut unpacked = vec![0.0; rows * cols];
    for (row, out) in unpacked.chunks_exact_mut(cols).enumerate() {
        Matrix::new(dtype, rows, cols, &data).read_row(row, out);
    }
    (data, unpacked)
}

fn any_bytes(len: usize, seed: u32) -> Vec<u8> {
    noise(len, seed).iter().map(|x| ((x + 1.0) * 127.9) as u8).collect()
}

/// Rows of candle's own quantization, and the numbers that candle unpacks them to; of any bytes where candle has none.
fn quantized(dtype: GgmlType, rows: usize, cols: usize) -> (Vec<u8>, Vec<f32>) {
    let theirs = DTYPES.iter().find(|row| row.0 == dtype).expect("a row of the table").1;
    let Some(dtype) = theirs else { return steps(dtype, rows, cols) };
    let mut weights = noise(rows * cols, rows as u32);
    if rows > 2 {
        weights[cols..2 * cols].fill(0.0); // a row of blocks whose scale is 0
        weights[2 * cols..2 * cols + cols / 2].fill(0.25);
    }
    let tensor = Tensor::from_vec(weights, (rows, cols), &Device::Cpu).expect("the shape fits");
    let packed = QTensor::quantize(&tensor, dtype).expect("candle quantizes");
    let unpacked = packed.dequantize(&Device::Cpu).expect("candle dequantizes");
    let unpacked = unpacked.flatten_all().expect("flat").to_vec1().expect("f32");
    (packed.data().expect("on the CPU").to_vec(), unpacked)
}

fn levels() -> Vec<Level> {
    let mut levels = vec![Level::Plain];
    #[cfg(target_arch = "x86_64")]
    {
        if Level::detect() != Level::Plain {
            levels.push(Level::Avx2);
        }
        if Level::detect().vnni() {
            levels.push(Level::Vnni);
        }
        if Level::detect() == Level::Tiles {
            levels.push(Level::Tiles);
        }
    }
    levels
}

/// Batches that differ in their order of additions: of one row, and of many whole fours.
const BATCHES: [usize; 2] = [1, 1 << 20];

fn product(level: Level, matrix: Matrix<'_>, x: &[f32], batch: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / matrix.cols * matrix.rows];
    multiply_at(level, x, batch, &mut Scratch::default(), &mut [Product { matrix, out: &mut out }], None);
    out
}

#[test]
fn rows_unpack_as_candle_unpacks_them() {
    for (dtype, _) in DTYPES {
        let (data, want) = quantized(dtype, 5, 512);
        let matrix = Matrix::new(dtype, 5, 512, &data);
        for (row, want) in want.chunks(512).enumerate() {
            let mut got = [0.0; 512];
            matrix.read_row(row, &mut got);
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-3), "{dtype} row {row}: {got} {want}");
            }
        }
    }
}

/// The bytes, the weights and the dot product that `tools/goldens_quant.py` had from ggml itself.
#[test]
fn ggml_agrees() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/quant.json");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("the goldens are there")).expect("JSON");
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let (cols, every) = (number(&golden["width"]) as usize, number(&golden["every"]) as usize);
    let x = noise(cols, 2);
    for (dtype, _) in DTYPES.into_iter().skip(3) {
        let want = &golden["formats"][dtype.to_string()];
        let hex = want["bytes"].as_str().expect("a format of the goldens");
        let byte = |i: usize| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hexadecimal");
        let data: Vec<u8> = (0..hex.len() / 2).map(byte).collect();
        let matrix = Matrix::new(dtype, 1, cols, &data);
        let mut weights = vec![0.0; cols];
        matrix.read_row(0, &mut weights);
        for (got, want) in weights.iter().step_by(every).zip(want["weights"].as_array().expect("weights")) {
            assert!((f64::from(*got) - number(want)).abs() <= 1e-7, "{dtype}: weight {got}, ggml has {want}");
        }
        for level in levels() {
            let dot = product(level, matrix, &x, 1)[0];
            // ggml sums the blocks of some formats in another order where a matrix is not packed.
            let want = number(&want["dot"]);
            assert!((f64::from(dot) - want).abs() <= 3e-6, "{dtype} {level:?}: {dot}, ggml has {want}");
        }
    }
}

#[test]
fn every_level_gives_the_product_with_the_rounded_activations() {
    for (dtype, _) in DTYPES {
        // One row, tails of a tile, more rows than one; widths that are one block and many, also of no multiple of 256.
        let block = dtype.block_size();
        for (rows, cols) in [(1, block), (3, 2 * block), (16, 3 * block), (17, block), (40, 768), (33, 5 * block)] {
            let (data, weights) = quantized(dtype, rows, cols);
            let matrix = Matrix::new(dtype, rows, cols, &data);
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 23, 50] {
                let mut x = noise(m * cols, 7 + m as u32);
                if m > 2 {
                    x[cols..2 * cols].fill(0.0);
                }
                // The activations as the formats round them, in double precision from there on.
                let rounded: Vec<f64> = match matrix.rounding() {
                    None => x.iter().map(|x| f64::from(*x)).collect(),
                    Some(rounding) => {
                        let mut rounded = Rounded::default();
                        rounded.fill(Level::Plain, &x, cols, rounding);
                        let scale = |i: usize| f64::from(rounded.scale[i / 32]);
                        rounded.bytes.iter().enumerate().map(|(i, b)| f64::from(*b) * scale(i)).collect()
                    }
                };
                let want = |r: usize, i: usize| -> (f64, f64) {
                    let terms = || {
                        let row = &rounded[r * cols..(r + 1) * cols];
                        row.iter().zip(&weights[i * cols..(i + 1) * cols]).map(|(x, w)| x * f64::from(*w))
                    };
                    (terms().sum(), terms().map(f64::abs).sum())
                };
                for (level, batch) in levels().into_iter().flat_map(|level| BATCHES.map(|batch| (level, batch))) {
                    let got = product(level, matrix, &x, batch);
                    if matrix.rounding().is_some() {
                        assert_eq!(
                            got,
                            product(Level::Plain, matrix, &x, batch),
                            "{dtype} {level:?} {m}x{cols}x{rows}"
                        );
                    }
                    for r in 0..m {
                        let alone = product(level, matrix, &x[r * cols..(r + 1) * cols], batch);
                        assert_eq!(got[r * rows..(r + 1) * rows], alone, "{dtype} {level:?}: row {r} of {m}");
                        for i in 0..rows {
                            let (want, size) = want(r, i);
                            let got = f64::from(got[r * rows + i]);
                            // Q8_1 rounds the sums that meet the minima to half precision: 2^-11 of them.
                            let halves = matrix.rounding() == Some(Rounding::Q8_1);
                            let tolerance = if halves { 1e-3 } else { 3e-6 } * size + 1e-9;
                            assert!(
                                (got - want).abs() <= tolerance,
                                "{dtype} {level:?} {m}x{cols}x{rows} at ({r}, {i}): {got}, want {want}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn levels_agree_on_any_bytes() {
    // Of 40 rows, llama.cpp packs those of some types; two panels of sixteen and a rest.
    for (dtype, rows) in DTYPES.into_iter().skip(3).flat_map(|(dtype, _)| [(dtype, 19), (dtype, 40)]) {
        let cols = 1024;
        let len = rows * cols / dtype.block_size() * dtype.block_bytes();
        let mut data = any_bytes(len, 99);
        // Keeps scales finite, whichever byte of the block they begin at.
        for byte in &mut data {
            if *byte & 0x7c == 0x7c {
                *byte &= !0x40;
            }
        }
        let matrix = Matrix::new(dtype, rows, cols, &data);
        for (m, batch) in [(1, 1), (4, 4), (9, 9), (1, 9), (9, 500), (19, 19), (18, 21), (37, 40)] {
            let x = noise(m * cols, 3);
            let want = product(Level::Plain, matrix, &x, batch);
            assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|x| *x != 0.0));
            for level in levels() {
                assert_eq!(product(level, matrix, &x, batch), want, "{dtype} {level:?} {m}");
            }
        }
    }
}

#[test]
fn dense_weights_of_any_width_and_alignment() {
    for (dtype, bytes) in [(GgmlType::F32, 4), (GgmlType::F16, 2), (GgmlType::BF16, 2)] {
        for cols in [1, 8, 15, 17, 172] {
            let rows = 18;
            let weights = noise(rows * cols, 5);
            let mut data = vec![0_u8]; // one byte off
            for w in &weights {
                match dtype {
                    GgmlType::F32 => data.extend(w.to_le_bytes()),
                    GgmlType::F16 => data.extend(half::f16::from_f32(*w).to_le_bytes()),
                    _ => data.extend(half::bf16::from_f32(*w).to_le_bytes()),
                }
            }
            assert_eq!(data.len(), 1 + rows * cols * bytes);
            let matrix = Matrix::new(dtype, rows, cols, &data[1..]);
            for m in [1, 3, 11] {
                let x = noise(m * cols, 6);
                for level in levels() {
                    let got = product(level, matrix, &x, m);
                    for r in 0..m {
                        for i in 0..rows {
                            let want: f32 = (0..cols).map(|k| x[r * cols + k] * weights[i * cols + k]).sum();
                            let tolerance = if dtype == GgmlType::F32 { 1e-5 } else { 0.05 };
                            assert!((got[r * rows + i] - want).abs() <= tolerance, "{dtype} {level:?} {m}x{cols}");
                        }
                    }
                }
            }
        }
    }
}

/// Activations are rounded as the weights are; all levels add in one order, and the plain one without fused steps.
#[test]
fn dense_weights_of_a_gguf_file() {
    for dtype in [GgmlType::F32, GgmlType::F16, GgmlType::BF16] {
        let round = |x: f32| match dtype {
            GgmlType::F32 => x,
            GgmlType::F16 => half::f16::from_f32(x).to_f32(),
            _ => half::bf16::from_f32(x).to_f32(),
        };
        for (rows, cols) in [(20, 192), (20, 96), (20, 576), (18, 64), (20, 41)] {
            let weights: Vec<f32> = noise(rows * cols, 5).into_iter().map(round).collect();
            let mut data = vec![0_u8]; // one byte off
            for w in &weights {
                match dtype {
                    GgmlType::F32 => data.extend(w.to_le_bytes()),
                    GgmlType::F16 => data.extend(half::f16::from_f32(*w).to_le_bytes()),
                    _ => data.extend(half::bf16::from_f32(*w).to_le_bytes()),
                }
            }
            let matrix = Matrix::new(dtype, rows, cols, &data[1..]).as_ggml();
            for (m, batch) in [(1, 1), (3, 1), (2, 2), (11, 11), (5, 500)] {
                let x = noise(m * cols, 6);
                let plain = product(Level::Plain, matrix, &x, batch);
                for (at, got) in plain.iter().enumerate() {
                    let (r, i) = (at / rows, at % rows);
                    let exact: f64 =
                        (0..cols).map(|k| f64::from(round(x[r * cols + k])) * f64::from(weights[i * cols + k])).sum();
                    assert!((f64::from(*got) - exact).abs() < 2e-5, "{dtype} {m}x{cols}: {got}, want {exact}");
                }
                let vectors: Vec<_> = levels().into_iter().skip(1).map(|l| product(l, matrix, &x, batch)).collect();
                for (got, want) in vectors.iter().flat_map(|got| got.iter().zip(&plain)) {
                    assert!((got - want).abs() < 2e-5, "{dtype} {m} of {batch}, {rows}x{cols}: {got}, plain {want}");
                }
                assert!(vectors.windows(2).all(|pair| pair[0] == pair[1]), "{dtype} {m} of {batch}, {rows}x{cols}");
                // A row is the same whatever is computed beside it.
                let last = product(Level::detect(), matrix, &x[(m - 1) * cols..], batch);
                assert_eq!(last, product(Level::detect(), matrix, &x, batch)[(m - 1) * rows..], "{dtype} {m}");
            }
        }
    }
}

#[test]
fn half_precision_covers_subnormals_and_infinity() {
    for bits in 0..=u16::MAX {
        let (got, want) = (<Portable as format::Halves>::to_f32(bits), half::f16::from_bits(bits).to_f32());
        assert!(got == want || (got.is_nan() && want.is_nan()), "{bits:#x}: {got} {want}");
    }
}

#[test]
fn products_share_their_activations() {
    let cols = 256;
    let (a, _) = quantized(GgmlType::Q4_1, 20, cols);
    let (b, _) = quantized(GgmlType::Q6_K, 7, cols);
    let (a, b) = (Matrix::new(GgmlType::Q4_1, 20, cols, &a), Matrix::new(GgmlType::Q6_K, 7, cols, &b));
    for m in [1, 9] {
        let x = noise(m * cols, 1);
        let (mut first, mut second) = (vec![0.0; m * 20], vec![0.0; m * 7]);
        multiply(
            &x,
            m,
            &mut Scratch::default(),
            &mut [Product { matrix: a, out: &mut first }, Product { matrix: b, out: &mut second }],
        );
        assert_eq!(first, product(Level::detect(), a, &x, m));
        assert_eq!(second, product(Level::detect(), b, &x, m));
    }
}

#[test]
fn gated_products_are_the_products_gated() {
    let cols = 64;
    for (dtype, rows) in [(GgmlType::Q4_1, 40), (GgmlType::Q8_0, 16), (GgmlType::F32, 21), (GgmlType::Q4_0, 7)] {
        let (a, _) = quantized(dtype, rows, cols);
        let b: Vec<u8> = a.chunks_exact(a.len() / rows).rev().flatten().copied().collect();
        let (a, b) = (Matrix::new(dtype, rows, cols, &a), Matrix::new(dtype, rows, cols, &b));
        for m in [1, 2, 11] {
            let x = noise(m * cols, 1);
            let (mut gated, mut by) = (vec![0.0; m * rows], vec![0.0; m * rows]);
            let products = [Product { matrix: a, out: &mut gated }, Product { matrix: b, out: &mut by }];
            multiply_gated(&x, m, &mut Scratch::default(), products, &|gate, up| {
                assert_eq!(gate.len(), up.len());
                for (gate, up) in gate.iter_mut().zip(up) {
                    *gate = 2.0 * *gate - up;
                }
            });
            let (first, second) = (product(Level::detect(), a, &x, m), product(Level::detect(), b, &x, m));
            assert_eq!(by, second, "{dtype} {m}");
            let want: Vec<_> = first.iter().zip(&second).map(|(a, b)| 2.0 * a - b).collect();
            assert_eq!(gated, want, "{dtype} {m}");
        }
    }
}

/// Prints what one product costs; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("threads start");
    for (dtype, _) in DTYPES {
        let (rows, cols) = (1536, 1536);
        let (data, _) = quantized(dtype, rows, cols);
        let matrix = Matrix::new(dtype, rows, cols, &data).as_ggml();
        for level in levels().into_iter().skip(1) {
            for (m, batch) in [(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (8, 8), (16, 16), (256, 256), (512, 512)] {
                let x = noise(m * cols, 6);
                let mut out = vec![0.0; m * rows];
                let mut scratch = Scratch::default();
                let mut best = f64::INFINITY;
                for _ in 0..20 {
                    let start = std::time::Instant::now();
                    pool.install(|| {
                        multiply_at(level, &x, batch, &mut scratch, &mut [Product { matrix, out: &mut out }], None);
                    });
                    best = best.min(start.elapsed().as_secs_f64());
                }
                eprintln!(
                    "{dtype:?} {level:?} m={m} of {batch}: {:.0} us, {:.1} GB/s, {:.0} GOP/s",
                    best * 1e6,
                    data.len() as f64 / best / 1e9,
                    2.0 * (m * rows * cols) as f64 / best / 1e9
                );
            }
        }
    }
}
