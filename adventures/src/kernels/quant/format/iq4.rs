//! Four bits that name one of sixteen uneven steps: `block_iq4_nl` and `block_iq4_xs` of ggml.

use super::{Block, Halves, Layout, Order, SuperBlock, half, nibbles, take};

/// `kvalues_iq4nl` of ggml, each plus 128.
const STEPS: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// 32 steps and a scale.
pub(crate) struct IQ4NL;

impl Block for IQ4NL {
    const BYTES: usize = 18;
    const OFFSET: u8 = 128;
    const MIN: bool = false;
    const LAYOUT: Layout = Layout::Steps { first: 2, steps: &STEPS };

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 32]) -> (f32, f32) {
        nibbles::<16>(take(block, 2), u);
        H::look_up(&STEPS, u);
        (half::<H>(block, 0), 0.0)
    }
}

/// 256 steps; 6-bit signed scales for each 32.
pub(crate) struct IQ4XS;

impl SuperBlock for IQ4XS {
    const BYTES: usize = 136;
    const OFFSET: u8 = 128;
    const MIN: bool = false;
    const ORDER: Order = Order::Lanes;
    const GROUP: usize = 32;

    #[inline(always)]
    fn unpack<H: Halves>(block: &[u8], u: &mut [u8; 256], scales: &mut [i16; 16], _mins: &mut [i16; 16]) -> (f32, f32) {
        let high = u16::from_le_bytes([block[2], block[3]]);
        for j in 0..8 {
            let low = (block[4 + j / 2] >> (4 * (j % 2))) & 15;
            let scale = i16::from(low) | (((high >> (2 * j)) & 3) << 4).cast_signed();
            scales[2 * j..2 * j + 2].fill(scale - 32);
        }
        for (j, u) in u.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            nibbles::<16>(take(block, 8 + 16 * j), u);
            H::look_up(&STEPS, u);
        }
        (half::<H>(block, 0), 0.0)
    }
}
