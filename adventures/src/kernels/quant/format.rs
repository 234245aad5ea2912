//! The block formats of ggml: how a block's bytes become small integers and their scales.
//!
//! Follows the block structs of `ggml-common.h` and `dequantize_row_*` of `ggml-quants.c`. The loops are plain so that they
//! vectorize with whatever instructions the caller is compiled for.

mod iq4;

pub(crate) use iq4::{IQ4NL, IQ4XS};
use std::marker::PhantomData;

/// How the other operand of a dot product is rounded to bytes, as ggml pairs the formats (`vec_dot_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// Blocks of 32 with a half-precision scale.
    Q8_0,
    /// The same, with the block's sum of weights rounded to half precision.
    Q8_1,
    /// Blocks of 256 with a single-precision scale.
    Q8K,
}

/// In which order the products of a row are summed, block by block. llama.cpp has its own for each format and number of activation
/// rows, and a result in another order differs in its last bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// In eight lanes, which are added at the end, minima apart.
    Lanes,
    /// As one integer that is scaled by both scales at once, minima apart.
    Whole,
    /// The same for each half of it.
    Halves,
    /// The same for each quarter of it.
    Quarters,
    /// As one integer that is scaled by the weights' scale and lowered by the minima, then scaled by the activations'.
    Slab,
}

impl Order {
    /// How many integers a superblock is summed as, where it is not in lanes.
    pub(crate) const fn parts(self) -> usize {
        match self {
            Self::Quarters => 4,
            Self::Halves => 2,
            _ => 1,
        }
    }
}

/// Where the weights of a block of 32 are. Its scale, in half precision, comes first, its minimum next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Low nibbles, then high nibbles, from `first` on; with a fifth bit for each weight in four bytes from `fifths` on.
    Nibbles { first: usize, fifths: Option<usize> },
    /// The same nibbles, which say which of the steps to take.
    Steps { first: usize, steps: &'static [u8; 16] },
    /// Signed bytes from here on.
    Bytes(usize),
}

/// A format of blocks of 32: `weight = scale * (u - OFFSET) + min`, with `u` a byte.
pub(crate) trait Block: Send + Sync + 'static {
    const BYTES: usize;
    /// What is subtracted from each byte.
    const OFFSET: u8;
    /// Whether blocks have a minimum.
    const MIN: bool;
    /// Either in lanes or as a whole.
    const ORDER: Order = Order::Lanes;
    /// Where the bytes of a block are.
    const LAYOUT: Layout;
    /// Unpacks one block; returns scale and minimum.
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32);
}

/// A format of blocks of 256 with integer scales of their own for each 16:
/// `weight = scale * scales[i] * (u - OFFSET) - min * mins[i]`.
pub(crate) trait SuperBlock: Send + Sync + 'static {
    const BYTES: usize;
    /// What is subtracted from each byte: a power of two, 0 where there are minima.
    const OFFSET: u8;
    const MIN: bool;
    const ORDER: Order;
    /// How many weights share a scale and a minimum: 16 or 32.
    const GROUP: usize = 16;
    /// Unpacks one block; returns scale and minimum.
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32);
}

/// Defines a format that is another in a different order.
macro_rules! reordered {
    ($(#[$doc:meta])* $name:ident, $order:expr) => {
        $(#[$doc])*
        pub(crate) struct $name<F>(PhantomData<F>);

        impl<F: SuperBlock> SuperBlock for $name<F> {
            const BYTES: usize = F::BYTES;
            const OFFSET: u8 = F::OFFSET;
            const MIN: bool = F::MIN;
            const ORDER: Order = $order;
            const GROUP: usize = F::GROUP;

            #[inline(always)]
            fn unpack<H: Halves>(
                block: &[u8],
                u: &mut [u8; 256],
                scales: &mut [i16; 16],
                mins: &mut [i16; 16],
            ) -> (f32, f32) {
                F::unpack::<H>(block, u, scales, mins)
            }
        }
    };
}
reordered!(
    /// As llama.cpp sums where it multiplies eight activation rows or more.
    Slab,
    Order::Slab
);
reordered!(
    /// As llama.cpp sums where it multiplies packed weights with four activation rows at a time.
    Quarters,
    Order::Quarters
);
reordered!(
    /// The same of `Q2_K`.
    Halved,
    Order::Halves
);

/// As llama.cpp sums blocks of 32 whose matrix it has packed anew: each block as one integer.
pub(crate) struct Whole<F>(PhantomData<F>);

impl<F: Block> Block for Whole<F> {
    const BYTES: usize = F::BYTES;
    const OFFSET: u8 = F::OFFSET;
    const MIN: bool = F::MIN;
    const ORDER: Order = Order::Whole;
    const LAYOUT: Layout = F::LAYOUT;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        F::unpack::<H>(block, u)
    }
}

/// What formats leave to the CPU: half to single precision, and tables of sixteen bytes.
pub(crate) trait Halves {
    fn to_f32(bits: u16) -> f32;

    /// Replaces each of `u`, which are less than 16, by what the table has there.
    #[inline(always)]
    fn look_up(table: &[u8; 16], u: &mut [u8; 32]) {
        for u in u {
            *u = table[usize::from(*u & 15)];
        }
    }
}

/// Half to single precision in integer arithmetic.
pub(crate) struct Portable;

impl Halves for Portable {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        let sign = u32::from(bits & 0x8000) << 16;
        let magnitude = u32::from(bits & 0x7fff);
        // Multiplication moves the exponent, and makes subnormals right.
        let scaled = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
        let infinite = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(scaled.to_bits() | infinite | sign)
    }
}

#[inline(always)]
fn half<H: Halves>(bytes: &[u8], at: usize) -> f32 {
    H::to_f32(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// `N` bytes from `at` on, by value: loops over values need no proof that input and output are apart, and vectorize.
#[inline(always)]
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes; this is a bug")
}

/// Splits bytes into low nibbles, then high nibbles.
#[inline(always)]
fn nibbles<const N: usize>(packed: [u8; N], u: &mut [u8]) {
    let (mut low, mut high) = ([0; N], [0; N]);
    for i in 0..N {
        low[i] = packed[i] & 15;
        high[i] = packed[i] >> 4;
    }
    u[..N].copy_from_slice(&low);
    u[N..2 * N].copy_from_slice(&high);
}

/// Adds 16 where the matching one of 32 bits is set.
#[inline(always)]
fn fifth_bits(bits: [u8; 4], u: &mut [u8; 32]) {
    const MASK: [u8; 32] = {
        let mut mask = [0; 32];
        let mut i = 0;
        while i < 32 {
            mask[i] = 1 << (i % 8);
            i += 1;
        }
        mask
    };
    let mut spread = [0; 32];
    for i in 0..4 {
        let eight = (u64::from(bits[i]) * 0x0101_0101_0101_0101).to_le_bytes();
        spread[8 * i..8 * i + 8].copy_from_slice(&eight);
    }
    let low = *u;
    let mut out = [0; 32];
    for i in 0..32 {
        out[i] = if spread[i] & MASK[i] == 0 { low[i] } else { low[i] | 16 };
    }
    *u = out;
}

/// 32 signed 4-bit weights.
pub(crate) struct Q4_0;

impl Block for Q4_0 {
    const BYTES: usize = 18;
    const OFFSET: u8 = 8;
    const MIN: bool = false;
    const LAYOUT: Layout = Layout::Nibbles { first: 2, fifths: None };

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        nibbles::<16>(take(block, 2), u);
        (half::<H>(block, 0), 0.0)
    }
}

/// 32 unsigned 4-bit weights and a minimum.
pub(crate) struct Q4_1;

impl Block for Q4_1 {
    const BYTES: usize = 20;
    const OFFSET: u8 = 0;
    const MIN: bool = true;
    const LAYOUT: Layout = Layout::Nibbles { first: 4, fifths: None };

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        nibbles::<16>(take(block, 4), u);
        (half::<H>(block, 0), half::<H>(block, 2))
    }
}

/// 32 signed 5-bit weights.
pub(crate) struct Q5_0;

impl Block for Q5_0 {
    const BYTES: usize = 22;
    const OFFSET: u8 = 16;
    const MIN: bool = false;
    const LAYOUT: Layout = Layout::Nibbles { first: 6, fifths: Some(2) };

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        nibbles::<16>(take(block, 6), u);
        fifth_bits(take(block, 2), u);
        (half::<H>(block, 0), 0.0)
    }
}

/// 32 unsigned 5-bit weights and a minimum.
pub(crate) struct Q5_1;

impl Block for Q5_1 {
    const BYTES: usize = 24;
    const OFFSET: u8 = 0;
    const MIN: bool = true;
    const LAYOUT: Layout = Layout::Nibbles { first: 8, fifths: Some(4) };

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        nibbles::<16>(take(block, 8), u);
        fifth_bits(take(block, 4), u);
        (half::<H>(block, 0), half::<H>(block, 2))
    }
}

/// 32 signed bytes.
pub(crate) struct Q8_0;

impl Block for Q8_0 {
    const BYTES: usize = 34;
    const OFFSET: u8 = 128;
    const MIN: bool = false;
    const LAYOUT: Layout = Layout::Bytes(2);

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        let q: [u8; 32] = take(block, 2);
        let mut out = [0; 32];
        for i in 0..32 {
            out[i] = q[i] ^ 0x80;
        }
        *u = out;
        (half::<H>(block, 0), 0.0)
    }
}

/// 256 unsigned 2-bit weights; 4-bit scales and minima for each 16.
pub(crate) struct Q2K;

impl SuperBlock for Q2K {
    const BYTES: usize = 84;
    const OFFSET: u8 = 0;
    const MIN: bool = true;
    const ORDER: Order = Order::Whole;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        for (i, byte) in block[..16].iter().enumerate() {
            scales[i] = i16::from(byte & 15);
            mins[i] = i16::from(byte >> 4);
        }
        for part in 0..2 {
            let q: [u8; 32] = take(block, 16 + 32 * part);
            for j in 0..4 {
                let mut out = [0; 32];
                for i in 0..32 {
                    out[i] = (q[i] >> (2 * j)) & 3;
                }
                let at = 128 * part + 32 * j;
                u[at..at + 32].copy_from_slice(&out);
            }
        }
        (half::<H>(block, 80), half::<H>(block, 82))
    }
}

/// 256 signed 3-bit weights; 6-bit signed scales for each 16.
pub(crate) struct Q3K;

impl SuperBlock for Q3K {
    const BYTES: usize = 110;
    const OFFSET: u8 = 4;
    const MIN: bool = false;
    const ORDER: Order = Order::Lanes;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], _mins: &mut [i16; 16]) -> (f32, f32) {
        let packed = &block[96..108];
        for i in 0..16 {
            let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
            let high = (packed[8 + i % 4] >> (2 * (i / 4))) & 3;
            scales[i] = i16::from(low | (high << 4)) - 32;
        }
        let mask: [u8; 32] = take(block, 0);
        for part in 0..2 {
            let q: [u8; 32] = take(block, 32 + 32 * part);
            for j in 0..4 {
                let mut out = [0; 32];
                for i in 0..32 {
                    out[i] = ((q[i] >> (2 * j)) & 3) | (((mask[i] >> (4 * part + j)) & 1) << 2);
                }
                let at = 128 * part + 32 * j;
                u[at..at + 32].copy_from_slice(&out);
            }
        }
        (half::<H>(block, 108), 0.0)
    }
}

/// The eight 6-bit scales and minima that `Q4_K` and `Q5_K` pack into twelve bytes, each for two groups.
#[inline(always)]
fn scales_and_minima(packed: &[u8], scales: &mut [i16; 16], mins: &mut [i16; 16]) {
    for i in 0..4 {
        let low = (packed[i] & 63, packed[i + 4] & 63);
        let high = ((packed[i + 8] & 15) | ((packed[i] >> 6) << 4), (packed[i + 8] >> 4) | ((packed[i + 4] >> 6) << 4));
        scales[2 * i..2 * i + 2].fill(i16::from(low.0));
        mins[2 * i..2 * i + 2].fill(i16::from(low.1));
        scales[2 * i + 8..2 * i + 10].fill(i16::from(high.0));
        mins[2 * i + 8..2 * i + 10].fill(i16::from(high.1));
    }
}

/// 256 unsigned 4-bit weights; 6-bit scales and minima for each 32.
pub(crate) struct Q4K;

impl SuperBlock for Q4K {
    const BYTES: usize = 144;
    const OFFSET: u8 = 0;
    const MIN: bool = true;
    const ORDER: Order = Order::Whole;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        scales_and_minima(&block[4..16], scales, mins);
        for j in 0..4 {
            nibbles::<32>(take(block, 16 + 32 * j), &mut u[64 * j..]);
        }
        (half::<H>(block, 0), half::<H>(block, 2))
    }
}

/// 256 unsigned 5-bit weights; 6-bit scales and minima for each 32.
pub(crate) struct Q5K;

impl SuperBlock for Q5K {
    const BYTES: usize = 176;
    const OFFSET: u8 = 0;
    const MIN: bool = true;
    const ORDER: Order = Order::Lanes;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], mins: &mut [i16; 16]) -> (f32, f32) {
        scales_and_minima(&block[4..16], scales, mins);
        let high: [u8; 32] = take(block, 16);
        for j in 0..8 {
            let low: [u8; 32] = take(block, 48 + 32 * (j / 2));
            let mut out = [0; 32];
            for i in 0..32 {
                out[i] = ((low[i] >> (4 * (j % 2))) & 15) | (((high[i] >> j) & 1) << 4);
            }
            u[32 * j..32 * j + 32].copy_from_slice(&out);
        }
        (half::<H>(block, 0), half::<H>(block, 2))
    }
}

/// 256 signed 6-bit weights; signed byte scales for each 16.
pub(crate) struct Q6K;

impl SuperBlock for Q6K {
    const BYTES: usize = 210;
    const OFFSET: u8 = 32;
    const MIN: bool = false;
    const ORDER: Order = Order::Lanes;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], _mins: &mut [i16; 16]) -> (f32, f32) {
        for (scale, byte) in scales.iter_mut().zip(&block[192..208]) {
            *scale = i16::from(*byte as i8);
        }
        for part in 0..2 {
            let high: [u8; 32] = take(block, 128 + 32 * part);
            for j in 0..4 {
                let low: [u8; 32] = take(block, 64 * part + 32 * (j % 2));
                let mut out = [0; 32];
                for i in 0..32 {
                    out[i] = ((low[i] >> (4 * (j / 2))) & 15) | (((high[i] >> (2 * j)) & 3) << 4);
                }
                let at = 128 * part + 32 * j;
                u[at..at + 32].copy_from_slice(&out);
            }
        }
        (half::<H>(block, 208), 0.0)
    }
}
