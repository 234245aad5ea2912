//! Products of [`Panel`] with sixteen activation rows at a time by the tiles of AMX.
//!
//! A tile has the integer sums of a block of sixteen rows with sixteen columns; what follows is that of [`super::panel`], and its
//! results have the same bits.

use super::panel::{Line, PANEL, Panel, Products, keep, line, numbers, row, two};
use crate::kernels::amx::{SIDE, Shapes, Tiles};
use crate::kernels::quant::format::{Block, Order, Rounding, SuperBlock};
use crate::kernels::quant::rounded::Rounded;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::{
    __m512i, _mm512_add_epi32, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_dpwssd_epi32, _mm512_fmadd_ps,
    _mm512_fnmadd_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_mullo_epi16, _mm512_or_si512, _mm512_set1_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_slli_epi16, _mm512_slli_epi32,
    _mm512_srai_epi16, _mm512_srli_epi16, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_epi16, _mm512_sub_ps,
    _mm512_xor_si512,
};

/// [`Rounded`] activations in groups of sixteen rows, block by block. The rows behind the last group are left out.
#[derive(Default)]
pub(in crate::kernels::quant) struct Turned {
    pub(in crate::kernels::quant) groups: usize,
    /// For each group and block of 32, of superblocks of 64, sixteen rows of as many numbers.
    bytes: Vec<Line<[i8; 64]>>,
    /// For each group and block of 32, the scale of each row.
    scale: Vec<Line<Products>>,
    /// The same of the two sums, which fill an element. Of superblocks alone.
    totals: Vec<Line<[[i16; 2]; SIDE]>>,
}

impl Turned {
    /// Runs on the rayon pool it is called in.
    pub(in crate::kernels::quant) fn fill(&mut self, x: &Rounded, rounding: Rounding) {
        let (groups, blocks) = (x.rows / SIDE, x.width / 32);
        let wide = rounding == Rounding::Q8K;
        self.groups = groups;
        // Resizing keeps what is there: all is written below.
        self.bytes.resize(8 * groups * blocks, Line([0; 64]));
        self.scale.resize(groups * blocks, Line([0.0; SIDE]));
        self.totals.resize(if wide { groups * blocks } else { 0 }, Line([[0; 2]; SIDE]));
        let own = |group: usize| group * SIDE..(group + 1) * SIDE;
        self.bytes.par_chunks_exact_mut(8 * blocks).enumerate().for_each(|(group, lines)| {
            for (r, at) in own(group).enumerate() {
                let bytes = row(&x.bytes, at, x.width);
                if wide {
                    for (tile, from) in lines.chunks_exact_mut(SIDE).zip(bytes.as_chunks::<64>().0) {
                        tile[r].0 = *from;
                    }
                } else {
                    for (tile, from) in lines.chunks_exact_mut(SIDE / 2).zip(bytes.as_chunks::<32>().0) {
                        tile[r / 2].0[r % 2 * 32..][..32].copy_from_slice(from);
                    }
                }
            }
        });
        self.scale.par_chunks_exact_mut(blocks).enumerate().for_each(|(group, scale)| {
            own(group).enumerate().for_each(|(r, at)| put(scale, r, row(&x.scale, at, blocks)));
        });
        if wide {
            self.totals.par_chunks_exact_mut(blocks).enumerate().for_each(|(group, totals)| {
                own(group).enumerate().for_each(|(r, at)| {
                    put(totals, r, row(&x.sums, at, 2 * blocks).as_chunks::<2>().0);
                });
            });
        }
    }
}

/// Makes `from` the column `r` of `lines`.
fn put<T: Copy>(lines: &mut [Line<[T; SIDE]>], r: usize, from: &[T]) {
    for (line, from) in lines.iter_mut().zip(from) {
        line.0[r] = *from;
    }
}

/// Sums of sixteen rows with sixteen columns.
#[repr(align(64))]
struct Sums([[i32; PANEL]; SIDE]);

/// A tile of sums, one of sixteen rows of 32 activations, and one of as many weights of sixteen columns.
const OF_BLOCKS: Shapes = [(16, 64), (16, 32), (8, 64), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)];
/// Four tiles of sums, two of activations and two of weights, of 64 each.
const OF_SUPERBLOCKS: Shapes = [(16, 64); 8];

/// Writes the sums of a block's products.
///
/// # Safety
/// The tiles are set up [`OF_BLOCKS`]; there are sixteen rows of 32 activations and eight lines of weights.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn block(x: *const Line<[i8; 64]>, u: *const Line<[u8; 64]>, sums: &mut Sums) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm1, [{x} + {row}*1]",
            "tileloadd tmm2, [{u} + {line}*1]",
            "tdpbssd tmm0, tmm1, tmm2",
            "tilestored [{sums} + {line}*1], tmm0",
            x = in(reg) x,
            u = in(reg) u,
            sums = in(reg) sums.0.as_mut_ptr(),
            row = in(reg) 32_usize,
            line = in(reg) 64_usize,
            options(nostack, preserves_flags),
        );
    }
}

/// Writes the sums of products of one group or two with low and with high parts of weights: `steps` times 64 of them.
///
/// # Safety
/// The tiles are set up [`OF_SUPERBLOCKS`]; there are `SIDE * steps` lines of each.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn superblock(
    x: [Option<*const Line<[i8; 64]>>; 2],
    parts: [*const Line<[u8; 64]>; 2],
    steps: usize,
    sums: &mut [[Sums; 2]; 2],
) {
    let Some(first) = x[0] else { return };
    let lines = |sums: &mut Sums| sums.0.as_mut_ptr();
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, preserves_flags, nomem));
        if let Some(second) = x[1] {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, preserves_flags, nomem));
            for step in 0..steps {
                let at = step * SIDE;
                asm!(
                    "tileloadd tmm4, [{x} + {line}*1]",
                    "tileloadd tmm6, [{low} + {line}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{high} + {line}*1]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{y} + {line}*1]",
                    "tdpbssd tmm2, tmm5, tmm6",
                    "tdpbssd tmm3, tmm5, tmm7",
                    x = in(reg) first.add(at),
                    y = in(reg) second.add(at),
                    low = in(reg) parts[0].add(at),
                    high = in(reg) parts[1].add(at),
                    line = in(reg) 64_usize,
                    options(nostack, preserves_flags, readonly),
                );
            }
            asm!(
                "tilestored [{low} + {line}*1], tmm2",
                "tilestored [{high} + {line}*1], tmm3",
                low = in(reg) lines(&mut sums[1][0]),
                high = in(reg) lines(&mut sums[1][1]),
                line = in(reg) 64_usize,
                options(nostack, preserves_flags),
            );
        } else {
            for step in 0..steps {
                let at = step * SIDE;
                asm!(
                    "tileloadd tmm4, [{x} + {line}*1]",
                    "tileloadd tmm6, [{low} + {line}*1]",
                    "tdpbssd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{high} + {line}*1]",
                    "tdpbssd tmm1, tmm4, tmm7",
                    x = in(reg) first.add(at),
                    low = in(reg) parts[0].add(at),
                    high = in(reg) parts[1].add(at),
                    line = in(reg) 64_usize,
                    options(nostack, preserves_flags, readonly),
                );
            }
        }
        asm!(
            "tilestored [{low} + {line}*1], tmm0",
            "tilestored [{high} + {line}*1], tmm1",
            low = in(reg) lines(&mut sums[0][0]),
            high = in(reg) lines(&mut sums[0][1]),
            line = in(reg) 64_usize,
            options(nostack, preserves_flags),
        );
    }
}

#[inline(always)]
#[allow(unsafe_code, reason = "intrinsics; the callers enable the instructions")]
unsafe fn integers(sums: &Sums, r: usize) -> __m512i {
    // SAFETY: the array has 64 bytes; no alignment is asked for.
    unsafe { _mm512_loadu_si512(sums.0[r].as_ptr().cast()) }
}

impl Panel {
    /// Lowers unsigned weights with an offset of 128 to signed ones, for [`Self::tiles_of_blocks`].
    #[target_feature(enable = "avx512f")]
    pub(in crate::kernels::quant) fn lower<F: Block>(&mut self) {
        if F::OFFSET == 0 {
            return;
        }
        let sign = _mm512_set1_epi32(i32::from_ne_bytes([0x80; 4]));
        for u in &mut self.u {
            // SAFETY: a line has 64 bytes.
            #[allow(unsafe_code)]
            unsafe {
                _mm512_storeu_si512(u.0.as_mut_ptr().cast(), _mm512_xor_si512(line(u), sign));
            }
        }
    }

    /// Calls `store(r, products)` for each activation row of the groups, after `fill_blocks` and [`Self::lower`]. Blocks are summed
    /// as one integer each.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn tiles_of_blocks<F: Block>(
        &self,
        x: &Turned,
        tiles: &mut Tiles,
        store: &mut impl FnMut(usize, &Products),
    ) {
        let blocks = self.scale.len();
        assert!(x.bytes.len() == x.groups * self.u.len() && self.u.len() == 8 * blocks, "equally wide; this is a bug");
        tiles.fit(OF_BLOCKS);
        let mut sums = [Sums([[0; PANEL]; SIDE]), Sums([[0; PANEL]; SIDE])];
        for group in 0..x.groups {
            let (bytes, scales) = (row(&x.bytes, group, 8 * blocks), row(&x.scale, group, blocks));
            // SAFETY: the instructions are enabled here, and the tiles are set up; a block is eight lines of both.
            #[allow(unsafe_code)]
            unsafe {
                let mut totals = [_mm512_setzero_ps(); SIDE];
                block(bytes.as_ptr(), self.u.as_ptr(), &mut sums[0]);
                for b in 0..blocks {
                    // The next block's are computed while this one's are scaled.
                    if b + 1 < blocks {
                        let next = 8 * (b + 1);
                        block(bytes[next..].as_ptr(), self.u[next..].as_ptr(), &mut sums[(b + 1) % 2]);
                    }
                    let scale = numbers(&self.scale[b]);
                    for (r, total) in totals.iter_mut().enumerate() {
                        let factor = _mm512_mul_ps(scale, _mm512_set1_ps(scales[b].0[r]));
                        *total = _mm512_fmadd_ps(factor, _mm512_cvtepi32_ps(integers(&sums[b % 2], r)), *total);
                    }
                }
                for (r, total) in totals.into_iter().enumerate() {
                    keep(group * SIDE + r, total, store);
                }
            }
        }
    }

    /// Multiplies weights by their groups' scales, of which there are low bits and high ones, for
    /// [`Self::tiles_of_superblocks`]: sums then go over groups, and are the integers that they were.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(in crate::kernels::quant) fn split<F: SuperBlock>(&mut self) {
        self.high.resize(self.u.len(), Line([0; 64]));
        let byte = _mm512_set1_epi16(0xff);
        let offset = _mm512_set1_epi16(i16::from(F::OFFSET));
        let offset = if F::MIN { _mm512_setzero_si512() } else { offset };
        let low = _mm512_set1_epi16(0x7f);
        // SAFETY: the instructions are enabled here; a line has 64 bytes.
        #[allow(unsafe_code)]
        unsafe {
            let lines = self.u.as_chunks_mut::<8>().0.iter_mut().zip(self.high.as_chunks_mut::<8>().0);
            for ((u, high), pair) in lines.zip(&self.scales) {
                let pair = line(pair);
                for (k, (u, high)) in u.iter_mut().zip(high).enumerate() {
                    // A row's lane has the scales of two groups; of two groups of 32 that are one, either half will do.
                    let scale = if F::GROUP == 16 && k < 4 {
                        let lower = _mm512_and_si512(pair, _mm512_set1_epi32(0xffff));
                        _mm512_or_si512(lower, _mm512_slli_epi32::<16>(lower))
                    } else {
                        let upper = _mm512_srli_epi32::<16>(pair);
                        _mm512_or_si512(upper, _mm512_slli_epi32::<16>(upper))
                    };
                    let both = line(u);
                    let [even, odd] = [_mm512_and_si512(both, byte), _mm512_srli_epi16::<8>(both)]
                        .map(|w| _mm512_mullo_epi16(_mm512_sub_epi16(w, offset), scale));
                    let join = |even, odd| _mm512_or_si512(_mm512_and_si512(even, byte), _mm512_slli_epi16::<8>(odd));
                    let lows = join(_mm512_and_si512(even, low), _mm512_and_si512(odd, low));
                    let highs = join(_mm512_srai_epi16::<7>(even), _mm512_srai_epi16::<7>(odd));
                    _mm512_storeu_si512(u.0.as_mut_ptr().cast(), lows);
                    _mm512_storeu_si512(high.0.as_mut_ptr().cast(), highs);
                }
            }
        }
    }

    /// As [`Self::tiles_of_blocks`] of the first `groups` for superblocks, after `fill_super` and [`Self::split`], in the order of
    /// `F`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub(in crate::kernels::quant) fn tiles_of_superblocks<F: SuperBlock>(
        &self,
        x: &Turned,
        groups: usize,
        tiles: &mut Tiles,
        store: &mut impl FnMut(usize, &Products),
    ) {
        const LINES: usize = 64;
        let count = self.scale.len();
        let lines = LINES * count;
        let wide = x.bytes.len() == x.groups * lines && self.u.len() == lines && self.high.len() == lines;
        assert!(groups <= x.groups && wide, "equally wide; this is a bug");
        tiles.fit(OF_SUPERBLOCKS);
        let mut sums: [[Sums; 2]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| Sums([[0; PANEL]; SIDE])));
        let part = 8 / F::ORDER.parts();
        for first in (0..groups).step_by(2) {
            let pair = 2.min(groups - first);
            // SAFETY: the instructions are enabled here, and the tiles are set up; a superblock is 64 lines of both.
            #[allow(unsafe_code)]
            unsafe {
                let mut totals = [[_mm512_setzero_ps(); SIDE]; 2];
                let mut minima = [[_mm512_setzero_ps(); SIDE]; 2];
                for b in 0..count {
                    let (scale, min) = (numbers(&self.scale[b]), numbers(&self.min[b]));
                    for from in (0..8).step_by(part) {
                        let at = LINES * b + 8 * from;
                        let rows = |g: usize| (g < pair).then(|| x.bytes[(first + g) * lines + at..].as_ptr());
                        let parts = [self.u[at..].as_ptr(), self.high[at..].as_ptr()];
                        superblock([rows(0), rows(1)], parts, part / 2, &mut sums);
                        for g in 0..pair {
                            let group = first + g;
                            let d = &x.scale[8 * (group * count + b)].0;
                            let both = &x.totals[8 * (group * count + b)..][..8];
                            for r in 0..SIDE {
                                let (low, high) = (integers(&sums[g][0], r), integers(&sums[g][1], r));
                                let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(low, _mm512_slli_epi32::<7>(high)));
                                let d = _mm512_set1_ps(d[r]);
                                let share = if F::MIN {
                                    let mut share = _mm512_setzero_si512();
                                    let mins = self.mins[8 * b + from..].iter().zip(&both[from..]);
                                    for (min, both) in mins.take(part) {
                                        share = _mm512_dpwssd_epi32(share, line(min), two(&both.0[r]));
                                    }
                                    _mm512_cvtepi32_ps(share)
                                } else {
                                    _mm512_setzero_ps()
                                };
                                let total = &mut totals[g][r];
                                if F::ORDER == Order::Slab {
                                    let mut slab = _mm512_mul_ps(scale, dot);
                                    if F::MIN {
                                        slab = _mm512_fnmadd_ps(min, share, slab);
                                    }
                                    *total = _mm512_fmadd_ps(slab, d, *total);
                                    continue;
                                }
                                *total = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, d), *total);
                                if F::MIN {
                                    minima[g][r] = _mm512_fmadd_ps(share, _mm512_mul_ps(min, d), minima[g][r]);
                                }
                            }
                        }
                    }
                }
                for (g, r) in (0..pair).flat_map(|g| (0..SIDE).map(move |r| (g, r))) {
                    keep((first + g) * SIDE + r, _mm512_sub_ps(totals[g][r], minima[g][r]), store);
                }
            }
        }
    }
}
