use super::*;

const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::Bf16x2, Precision::Bf16, Precision::Int8];
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 33, 7),
    (2, 32, 64),
    (5, 31, 16),
    (12, 64, 384),
    (13, 96, 33),
    (25, 7, 100),
    (97, 70, 48),
    (200, 130, 65),
];

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i + seed) * 2_654_435_761 % 10_007) as f32 / 5000.0 - 1.0).collect()
}

fn kernels() -> impl Iterator<Item = Kernel> {
    PRECISIONS.into_iter().flat_map(Kernel::all)
}

fn apply(layer: &Linear, x: &[f32], then: Then, threads: Threads) -> Vec<f32> {
    let mut out = vec![0.25; x.len() / layer.inputs() * layer.outputs()];
    layer.apply(x, &mut out, then, threads, &mut Rounded::new());
    out
}

/// What a precision makes of a row: the numbers that it stands for.
fn rounded(precision: Precision, row: &[f32]) -> Vec<f64> {
    match precision {
        Precision::F32 | Precision::Bf16x2 => row.iter().map(|x| f64::from(*x)).collect(),
        Precision::Bf16 => row.iter().map(|x| half::bf16::from_f32(*x).to_f64()).collect(),
        Precision::Int8 => row
            .chunks(bytes::GROUP)
            .flat_map(|group| {
                let scale = f64::from(group.iter().fold(0.0_f32, |a, b| a.max(b.abs()))) / 127.0;
                group.iter().map(move |x| if scale == 0.0 { 0.0 } else { (f64::from(*x) / scale).round() * scale })
            })
            .collect(),
    }
}

#[test]
fn every_kernel_agrees_with_three_loops_over_what_it_rounds() {
    for kernel in kernels() {
        let precision = kernel.precision();
        for (rows, outputs, inputs) in SHAPES {
            let (x, weight, bias) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(outputs, 3));
            let layer = Linear::pack(&weight, &bias, inputs, kernel).expect("it packs");
            let out = apply(&layer, &x, Then::Store, Threads::One);
            let weights: Vec<Vec<f64>> = weight.chunks(inputs).map(|row| rounded(precision, row)).collect();
            for (x, out) in x.chunks(inputs).map(|row| rounded(precision, row)).zip(out.chunks(outputs)) {
                for (j, out) in out.iter().enumerate() {
                    let products = || x.iter().zip(&weights[j]).map(|(x, w)| x * w);
                    let (want, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                    let error = (want + f64::from(bias[j]) - f64::from(*out)).abs();
                    // Of two bytes as near, f32 may choose the other one.
                    let ties = if precision == Precision::Int8 { 2e-2 / (inputs as f64).sqrt() } else { 4e-6 };
                    assert!(error <= ties * (1.0 + size), "{kernel:?} {rows}x{outputs}x{inputs} at {j}: {error}");
                }
            }
        }
    }
}

/// What layers of bytes make of `x`, once for each kernel, and the products in f64.
fn bytes_and_exact(x: &[f32], weight: &[f32], inputs: usize, known: &Known) -> (Vec<Vec<f32>>, Vec<f64>) {
    let bias = numbers(weight.len() / inputs, 3);
    let found = Kernel::all(Precision::Int8).into_iter().map(|kernel| {
        let layer = Linear::pack_for(weight, &bias, inputs, kernel, known.clone()).expect("it packs");
        apply(&layer, x, Then::Store, Threads::One)
    });
    let row = |x: &[f32]| -> Vec<f64> {
        let product = |w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        weight.chunks(inputs).zip(&bias).map(|(w, b)| product(w) + f64::from(*b)).collect()
    };
    (found.collect(), x.chunks(inputs).flat_map(row).collect())
}

/// The mean square of what `found` is off by.
fn loss(found: &[f32], exact: &[f64]) -> f64 {
    found.iter().zip(exact).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>() / exact.len() as f64
}

#[test]
fn bytes_lose_less_of_inputs_of_which_something_is_known() {
    for (rows, outputs, inputs) in SHAPES {
        let weight = numbers(outputs * inputs, 2);
        // What an activation makes: nearly all of it is between its least and zero, or positive.
        let x: Vec<f32> = numbers(rows * inputs, 1).iter().map(|x| if *x < 0.0 { 0.17 * x } else { 3.0 * x }).collect();
        // What a norm makes: some inputs are much larger than others.
        let sizes: Vec<f32> = (0..inputs).map(|i| if i % 37 == 5 { 40.0 } else { 1.0 + i as f32 / 400.0 }).collect();
        let uneven: Vec<f32> = numbers(rows * inputs, 1).iter().zip(sizes.iter().cycle()).map(|(x, s)| x * s).collect();
        for (x, known, share) in [(x, Known::at_least(-0.1701), 0.8), (uneven, Known::about(&sizes), 0.85)] {
            let (any, exact) = bytes_and_exact(&x, &weight, inputs, &Known::default());
            let (found, _) = bytes_and_exact(&x, &weight, inputs, &known);
            let size = exact.iter().fold(0.0_f64, |a, b| a.max(b.abs())).max(1.0);
            let first = found[0].clone();
            for (kernel, found) in Kernel::all(Precision::Int8).into_iter().zip(&found) {
                let shape = format!("{kernel:?} {rows}x{outputs}x{inputs}, {known:?}");
                for (a, b) in found.iter().zip(&first) {
                    assert!(f64::from((a - b).abs()) <= 1e-6 * size, "{shape}");
                }
                let largest = found.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(largest <= 0.02 * size, "{shape}: {largest} of {size}");
                if rows * inputs >= 700 {
                    let (now, before) = (loss(found, &exact), loss(&any[0], &exact));
                    assert!(now <= share * before, "{shape}: {now} of {before}");
                }
            }
        }
    }
}

#[test]
fn what_is_known_of_inputs_does_not_hide_what_they_are() {
    for kernel in Kernel::all(Precision::Int8) {
        for known in
            [Known::at_least(0.0), Known::about(&[0.0, 2.0]), Known::about(&[f32::NAN, 1.0]), Known::about(&[0.0; 2])]
        {
            let layer = Linear::pack_for(&[1.0, 1.0], &[], 2, kernel, known.clone()).expect("it packs");
            let apply = |x: [f32; 2]| apply(&layer, &x, Then::Store, Threads::One)[0];
            assert_eq!(apply([0.0, 0.0]), 0.0, "{kernel:?} {known:?}");
            assert!((apply([0.0, 3.0]) - 3.0).abs() < 1e-5, "{kernel:?} {known:?}");
            assert!(apply([f32::NAN, 1.0]).is_nan() && apply([1.0, f32::INFINITY]).is_nan(), "{kernel:?} {known:?}");
        }
        // All of a group at the least.
        let layer = Linear::pack_for(&[2.0; 70], &[0.5], 70, kernel, Known::at_least(-0.17)).expect("it packs");
        let found = apply(&layer, &[-0.17; 70], Then::Store, Threads::One)[0];
        assert!((found - (0.5 - 0.34 * 70.0)).abs() < 0.02, "{kernel:?}: {found}");
    }
}

#[test]
fn two_layers_write_beside_each_other_what_one_writes() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads start");
    for kernel in kernels() {
        for rows in [1, 13, 200] {
            let (x, weight, bias) = (numbers(rows * 70, 1), numbers(100 * 70, 2), numbers(100, 3));
            let pack = |from: usize, to: usize| {
                Linear::pack(&weight[from * 70..to * 70], &bias[from..to], 70, kernel).expect("it packs")
            };
            let (parts, whole) = ([(pack(0, 61), 0), (pack(61, 100), 61)], pack(0, 100));
            for threads in [false, true] {
                let mut out = vec![f32::NAN; rows * 100];
                for (part, column) in &parts {
                    let mut write =
                        |threads| part.apply_beside(&x, &mut out, 100, *column, threads, &mut Rounded::new());
                    if threads {
                        pool.install(|| write(Threads::All));
                    } else {
                        write(Threads::One);
                    }
                }
                assert_eq!(out, apply(&whole, &x, Then::Store, Threads::One), "{kernel:?}");
            }
        }
    }
}

#[test]
fn a_precision_has_the_same_products_on_any_instructions() {
    for precision in PRECISIONS {
        let (x, weight, bias) = (numbers(29 * 200, 4), numbers(70 * 200, 5), numbers(70, 6));
        let results: Vec<Vec<f32>> = Kernel::all(precision)
            .into_iter()
            .map(|kernel| {
                let layer = Linear::pack(&weight, &bias, 200, kernel).expect("it packs");
                apply(&layer, &x, Then::Store, Threads::One)
            })
            .collect();
        for other in &results[1..] {
            assert!(results[0].iter().zip(other).all(|(a, b)| (a - b).abs() <= 2e-4), "{precision:?}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_beside_any_others_and_on_any_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads start");
    for kernel in kernels() {
        for (rows, outputs, inputs) in SHAPES {
            let (x, weight) = (numbers(rows * inputs, 4), numbers(outputs * inputs, 5));
            let layer = Linear::pack(&weight, &[], inputs, kernel).expect("it packs");
            let one = apply(&layer, &x, Then::GeluErf, Threads::One);
            assert_eq!(one, pool.install(|| apply(&layer, &x, Then::GeluErf, Threads::All)));
            for (x, want) in x.chunks_exact(inputs).zip(one.chunks_exact(outputs)) {
                assert_eq!(apply(&layer, x, Then::GeluErf, Threads::One), want);
            }
        }
    }
}

#[test]
fn rows_that_are_rounded_as_they_are_computed_are_those_that_are_rounded_afterwards() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads start");
    for kernel in kernels() {
        for (rows, outputs, inputs) in SHAPES {
            let (x, weight, bias) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(outputs, 3));
            let layer = Linear::pack(&weight, &bias, inputs, kernel).expect("it packs");
            if !layer.rounds() {
                continue;
            }
            let wider = numbers(20 * outputs, 5);
            let next = Linear::pack(&wider, &[], outputs, kernel).expect("it packs");
            let through = |then, threads| {
                let mut between = Rounded::new();
                // What lay there before is nowhere read.
                between.room(rows * (outputs + 64)).fill(u32::MAX);
                let between = layer.apply_rounding(&x, &mut between, then, threads, &mut Rounded::new());
                let mut out = vec![0.5; rows * 20];
                next.apply_rounded(between, &mut out, Then::Add, threads);
                out
            };
            for then in [Then::Store, Then::Relu, Then::GeluTanh, Then::GeluErf] {
                let found = through(then, Threads::One);
                assert_eq!(found, pool.install(|| through(then, Threads::All)), "{kernel:?} {then:?}");
                let mut want = vec![0.5; rows * 20];
                let between = apply(&layer, &x, then, Threads::One);
                next.apply(&between, &mut want, Then::Add, Threads::One, &mut Rounded::new());
                for (i, (want, found)) in want.iter().zip(&found).enumerate() {
                    let brief = |(x, weight): (&f32, &f32)| (x.abs() / 128.0 + 3e-4) * weight.abs();
                    let (row, column) =
                        (&between[i / 20 * outputs..][..outputs], &wider[i % 20 * outputs..][..outputs]);
                    let off = row.iter().zip(column).map(brief).sum::<f32>();
                    let off = if then == Then::GeluErf { off } else { 0.0 };
                    assert!((want - found).abs() <= off, "{kernel:?} {then:?} {rows}x{outputs}: {want} {found}");
                }
            }
        }
    }
}

#[test]
fn the_brief_gelu_is_off_by_less_than_what_rounding_leaves() {
    for kernel in kernels() {
        let layer = Linear::pack(&[1.0], &[], 1, kernel).expect("it packs");
        if !layer.rounds() {
            continue;
        }
        let x: Vec<f32> = (-40_000..40_000).map(|i| half::bf16::from_f32(i as f32 / 2000.0).to_f32()).collect();
        let mut out = Rounded::new();
        let out = layer.apply_rounding(&x, &mut out, Then::GeluErf, Threads::One, &mut Rounded::new());
        for (x, row) in x.iter().zip(out.chunks_exact(out.len() / x.len())) {
            let (want, found) = (crate::kernels::math::gelu_erf::<false>(*x), f32::from_bits(row[0] << 16));
            let off = 2e-4 + want.abs() / 256.0;
            assert!((want - found).abs() <= off, "{kernel:?} of {x}: {want} {found}");
        }
        let extreme = [f32::NAN, f32::INFINITY, -1e4, 1e4];
        let mut out = Rounded::new();
        let out = layer.apply_rounding(&extreme, &mut out, Then::GeluErf, Threads::One, &mut Rounded::new());
        let found: Vec<f32> = out.chunks_exact(out.len() / 4).map(|row| f32::from_bits(row[0] << 16)).collect();
        assert!(found[0].is_nan() && found[1] == f32::INFINITY, "{found:?}");
        assert!(found[2] == 0.0 && (found[3] - 1e4).abs() <= 40.0, "{found:?}");
    }
}

#[test]
fn what_follows_a_product_is_applied_to_it() {
    for kernel in kernels() {
        let (x, weight, bias) = (numbers(14 * 20, 6), numbers(40 * 20, 7), numbers(40, 8));
        let layer = Linear::pack(&weight, &bias, 20, kernel).expect("it packs");
        let plain = apply(&layer, &x, Then::Store, Threads::One);
        let check = |then, f: &dyn Fn(f32) -> f32| {
            for (x, y) in plain.iter().zip(apply(&layer, &x, then, Threads::One)) {
                assert!((f(*x) - y).abs() < 1e-6, "{kernel:?} {then:?} of {x}: {y}");
            }
        };
        check(Then::Add, &|x| x + 0.25);
        check(Then::Relu, &|x| x.max(0.0));
        check(Then::GeluErf, &crate::kernels::math::gelu_erf::<false>);
        check(Then::GeluTanh, &crate::kernels::math::gelu_tanh::<false>);
    }
}

#[test]
fn activations_of_large_numbers_are_those_numbers_or_nothing() {
    let x = [-1e4, -300.0, -30.0, -12.0, -10.2, -9.9, -4.0, -1e-3, 0.0, 1e-3, 4.0, 9.9, 10.2, 12.0, 30.0, 300.0, 1e4];
    for kernel in kernels() {
        let layer = Linear::pack(&[1.0], &[], 1, kernel).expect("it packs");
        let plain = apply(&layer, &x, Then::Store, Threads::One);
        let check = |then, f: fn(f32) -> f32| {
            for (x, y) in plain.iter().zip(apply(&layer, &x, then, Threads::One)) {
                assert!((f(*x) - y).abs() <= 1e-6 * x.abs().max(1.0), "{kernel:?} {then:?} of {x}: {y}");
            }
        };
        check(Then::GeluErf, crate::kernels::math::gelu_erf::<false>);
        check(Then::GeluTanh, crate::kernels::math::gelu_tanh::<false>);
    }
}

#[test]
fn extremes_go_through() {
    for kernel in kernels() {
        let layer = Linear::pack(&[1.0, 0.0, 0.0, 1.0, 1.0, -1.0], &[], 2, kernel).expect("it packs");
        let apply = |x: [f32; 2]| apply(&layer, &x, Then::Store, Threads::One);
        assert_eq!(apply([0.0, 0.0]), [0.0; 3]);
        assert!(apply([f32::INFINITY, f32::INFINITY])[2].is_nan(), "{kernel:?}");
        assert!(apply([f32::NAN, 1.0])[2].is_nan(), "{kernel:?}");
        if matches!(kernel, Kernel::Floats(_)) {
            assert_eq!(apply([1e-42, 0.0]), [1e-42, 0.0, 1e-42]);
            assert_eq!(apply([f32::INFINITY, 1.0])[2], f32::INFINITY);
            assert_eq!(apply([f32::MAX, -f32::MAX])[2], f32::INFINITY);
        }
    }
}

/// Prints what products of an encoder cost; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn speed() {
    for (kernel, (inputs, outputs, then)) in kernels().flat_map(|kernel| {
        [(384, 1152, Then::Store), (384, 1536, Then::Store), (384, 1536, Then::GeluErf), (1536, 384, Then::Add)]
            .map(|shape| (kernel, shape))
    }) {
        let rows = 256;
        let (x, weight) = (numbers(rows * inputs, 4), numbers(outputs * inputs, 5));
        let layer = Linear::pack(&weight, &[], inputs, kernel).expect("it packs");
        let (mut out, mut rounded) = (vec![0.0; rows * outputs], Rounded::new());
        let mut best = f64::INFINITY;
        for _ in 0..30 {
            let start = std::time::Instant::now();
            layer.apply(&x, &mut out, then, Threads::One, &mut rounded);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let products = 2.0 * (rows * inputs * outputs) as f64;
        eprintln!(
            "{kernel:?} {inputs} -> {outputs} {then:?}: {:.0} us, {:.0} GOP/s",
            best * 1e6,
            products / best / 1e9
        );
    }
}
