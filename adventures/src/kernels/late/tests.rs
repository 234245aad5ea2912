use super::*;

fn bytes(count: usize, seed: u32) -> Vec<u8> {
    (0..count as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i + seed) * 2_654_435_761 % 10_007) as f32 / 5000.0 - 1.0).collect()
}

const SCALAR: [u8; 16] = [1, 8, 17, 25, 33, 42, 50, 60, 64, 70, 79, 88, 96, 105, 116, 127];

fn books(dim: usize) -> Vec<i8> {
    bytes(dim * codebooks::CODES, 8).iter().map(|b| (*b % 127) as i8 - 63).collect()
}

/// What codes of `nbits` stand for.
fn levels(dim: usize, nbits: usize) -> Levels {
    if nbits == 2 { Levels::Product(Codebooks::new(dim, &books(dim), 1.0 / 64.0)) } else { Levels::Scalar(SCALAR) }
}

#[test]
fn every_kernel_has_the_bits_of_the_plain_one() {
    for (dim, rows, count) in [(96, 32, 5), (96, 3, 1), (128, 33, 18), (7, 64, 4), (40, 1, 9), (384, 32, 3)] {
        for nbits in [1, 2, 4] {
            let layout = Layout::new(dim, nbits);
            let query = Query::new(&numbers(rows * dim, 1), dim, layout);
            let table = numbers(10 * query.lanes(), 2);
            let centroids: Vec<u16> = bytes(count, 3).iter().map(|b| u16::from(*b) % 10).collect();
            let mut scales: Vec<u16> = (0..count).map(|i| 0x3c00 + 3 * i as u16).collect();
            if nbits == 2 {
                scales.clear();
            }
            let (packed, levels) = (bytes(count * layout.row, 4), levels(dim, nbits));
            let tokens = Tokens { centroids: Centroids::Narrow(&centroids), scales: &scales, rows: &packed };
            let of = |kernel| score(kernel, &query, &table, &levels, tokens, &mut Scratch::default());
            for kernel in Kernel::all() {
                assert_eq!(of(kernel).to_bits(), of(Kernel::Plain).to_bits(), "{kernel:?} {dim} {nbits}");
            }
        }
    }
}

#[test]
fn a_score_is_that_of_the_decoded_vectors() {
    let (dim, rows, count) = (24, 5, 7);
    for nbits in [1, 2, 4] {
        let layout = Layout::new(dim, nbits);
        let (vectors, centroids) = (numbers(rows * dim, 1), numbers(4 * dim, 9));
        let query = Query::new(&vectors, dim, layout);
        let mut table = vec![0.0; 4 * query.lanes()];
        for c in 0..4 {
            for q in 0..rows {
                table[c * query.lanes() + q] = (0..dim).map(|d| centroids[c * dim + d] * vectors[q * dim + d]).sum();
            }
        }
        let scale = 1.0 / 64.0;
        // Levels of all tokens, and their codes packed.
        let (mut all, mut packed) = (Vec::new(), vec![0; count * layout.row]);
        if nbits == 2 {
            let (starts, books) = (codebooks::starts(dim), books(dim));
            for (row, codes) in packed.chunks_mut(layout.row).zip(bytes(count * layout.row, 5).chunks(layout.row)) {
                row.copy_from_slice(codes);
                row[0] = 255;
                for (pair, code) in starts.windows(2).zip(&codes[1..]) {
                    let own = &books[pair[0] * codebooks::CODES + *code as usize * (pair[1] - pair[0])..];
                    all.extend(own[..pair[1] - pair[0]].iter().map(|level| f32::from(*level)));
                }
            }
        } else {
            let codes: Vec<u8> = bytes(count * dim, 5).iter().map(|b| b % (1 << nbits)).collect();
            for (codes, row) in codes.chunks(dim).zip(packed.chunks_mut(layout.row)) {
                layout.pack(codes, row);
            }
            all.extend(codes.iter().map(|code| (i32::from(SCALAR[*code as usize]) - ZERO) as f32));
        }
        let levels = levels(dim, nbits);
        let own: Vec<u32> = (0..count as u32).map(|t| t % 4).collect();
        let scales = if nbits == 2 { vec![] } else { vec![0x3c80; count] };
        let mut want = 0.0;
        for q in 0..rows {
            let products = (0..count).map(|t| {
                (0..dim)
                    .map(|d| (centroids[t % 4 * dim + d] + all[t * dim + d] * scale) * vectors[q * dim + d])
                    .sum::<f32>()
            });
            want += products.fold(f32::NEG_INFINITY, f32::max);
        }
        let tokens = Tokens { centroids: Centroids::Wide(&own), scales: &scales, rows: &packed };
        let got = score(Kernel::best(), &query, &table, &levels, tokens, &mut Scratch::default());
        assert!((got - want).abs() < 0.3 * rows as f32 / 10.0, "{nbits}: {got} is not {want}");
    }
}

#[test]
fn a_centroid_out_of_range_is_the_last() {
    let layout = Layout::new(8, 4);
    let query = Query::new(&numbers(8, 1), 8, layout);
    let table = numbers(2 * query.lanes(), 2);
    let packed = bytes(layout.row, 1);
    for kernel in Kernel::all() {
        let of = |c: u16| {
            let tokens = Tokens { centroids: Centroids::Narrow(&[c]), scales: &[0x3c00], rows: &packed };
            score(kernel, &query, &table, &Levels::Scalar(SCALAR), tokens, &mut Scratch::default())
        };
        assert_eq!(of(1), of(u16::MAX));
        assert_ne!(of(0), of(1));
    }
}

#[test]
fn the_nearest_is_the_first_of_the_largest() {
    for columns in [1, 5, 16, 40] {
        let products = numbers(3 * columns, 7);
        let (mut best, mut at) = ([0.0, f32::NEG_INFINITY, 5.0], [9; 3]);
        nearest(&products, columns, 100, &mut best, &mut at);
        let row = &products[columns..2 * columns];
        let want = (0..columns).fold(0, |a, b| if row[b] > row[a] { b } else { a });
        assert_eq!((at[1] as usize, best[1]), (100 + want, row[want]));
        assert_eq!((at[2], best[2]), (9, 5.0), "none is larger");
    }
    let (mut best, mut at) = ([f32::NEG_INFINITY], [0]);
    nearest(&[1.0; 50], 50, 0, &mut best, &mut at);
    assert_eq!(at[0], 0);
}

#[test]
fn a_code_counts_the_bounds_below() {
    let mut out = [9; 4];
    quantize(&[-3.0, 0.0, 0.25, 9.0], 2.0, &[-1.0, 0.5, 4.0], &mut out);
    assert_eq!(out, [0, 1, 2, 3]);
}
