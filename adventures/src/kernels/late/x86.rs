//! The same with AVX2, and with AVX-512 VNNI.

use super::{BLOCK, GROUP, Layout, Query, Tokens, bf16};
#[allow(clippy::wildcard_imports, reason = "the instructions")]
use std::arch::x86_64::*;

/// Tokens of a document that are computed with together.
const TOKENS: usize = 4;

/// # Safety
/// The CPU must have AVX2, and `out` as many bytes as `rows` for each plane.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub(super) unsafe fn expand(layout: Layout, levels: &[u8; 16], rows: &[u8], out: &mut [u8]) {
    let (whole, count) = (rows.len() / 32 * 32, rows.len());
    let mask = (1_u8 << layout.nbits) - 1;
    // SAFETY: the table has 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(levels.as_ptr().cast()) });
    let low = _mm256_set1_epi8(mask as i8);
    for (plane, out) in out.chunks_exact_mut(count).enumerate() {
        let shift = _mm_cvtsi32_si128((plane * layout.nbits) as i32);
        for i in (0..whole).step_by(32) {
            // SAFETY: both have 32 bytes from `i`.
            unsafe {
                let bytes = _mm256_loadu_si256(rows.as_ptr().add(i).cast());
                let codes = _mm256_and_si256(_mm256_srl_epi16(bytes, shift), low);
                _mm256_storeu_si256(out.as_mut_ptr().add(i).cast(), _mm256_shuffle_epi8(table, codes));
            }
        }
        for i in whole..count {
            out[i] = levels[(rows[i] >> (plane * layout.nbits) & mask) as usize];
        }
    }
}

/// Where four tokens begin in a plane; a document's last is repeated, which changes no maximum.
#[inline(always)]
fn four(from: usize, count: usize) -> [usize; TOKENS] {
    std::array::from_fn(|i| (from + i).min(count - 1))
}

/// # Safety
/// The CPU must have AVX-512 F, BW and VNNI; the shapes must be those that [`super::score`] checks, and `levels` what
/// [`expand`] makes of the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(unsafe_code)]
pub(super) unsafe fn products_vnni(query: &Query, table: &[f32], tokens: Tokens<'_>, levels: &[u8], best: &mut [f32]) {
    let (count, row, lanes) = (tokens.scales.len(), query.layout.width, query.lanes());
    let (planes, groups) = (query.layout.planes, query.layout.planes * row / GROUP);
    let last = table.len() / lanes - 1;
    for block in 0..lanes / BLOCK {
        let lane = block * BLOCK;
        // SAFETY: the query has two registers of starts, scales and maxima from `lane`; `groups` times two of bytes from
        // `block`; the levels have `planes` planes of `count` rows of `row` bytes; the table has `lanes` numbers for each of its
        // `last + 1` centroids.
        unsafe {
            let starts = query.starts.as_ptr().add(lane);
            let starts = [_mm512_loadu_si512(starts.cast()), _mm512_loadu_si512(starts.add(16).cast())];
            let scales = query.scales.as_ptr().add(lane);
            let scales = [_mm512_loadu_ps(scales), _mm512_loadu_ps(scales.add(16))];
            let best = best.as_mut_ptr().add(lane);
            let mut most = [_mm512_loadu_ps(best), _mm512_loadu_ps(best.add(16))];
            let bytes = query.bytes.as_ptr().add(block * groups * BLOCK * GROUP);
            for t in (0..count).step_by(TOKENS) {
                let at = four(t, count);
                let mut sums = [starts; TOKENS];
                let mut bytes = bytes;
                for plane in 0..planes {
                    let plane = levels.as_ptr().add(plane * count * row);
                    let rows = [at[0] * row, at[1] * row, at[2] * row, at[3] * row];
                    for d in (0..row).step_by(GROUP) {
                        let q = [_mm512_loadu_si512(bytes.cast()), _mm512_loadu_si512(bytes.add(64).cast())];
                        bytes = bytes.add(BLOCK * GROUP);
                        for i in 0..TOKENS {
                            let x = _mm512_set1_epi32(plane.add(rows[i] + d).cast::<i32>().read_unaligned());
                            sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], x, q[0]);
                            sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], x, q[1]);
                        }
                    }
                }
                for i in 0..TOKENS {
                    let near = table.as_ptr().add(tokens.centroids.get(at[i]).min(last) * lanes + lane);
                    let scale = _mm512_set1_ps(bf16(tokens.scales[at[i]]));
                    for half in 0..2 {
                        let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][half]), scales[half]);
                        let product = _mm512_add_ps(_mm512_mul_ps(sum, scale), _mm512_loadu_ps(near.add(half * 16)));
                        most[half] = _mm512_max_ps(product, most[half]);
                    }
                }
            }
            _mm512_storeu_ps(best, most[0]);
            _mm512_storeu_ps(best.add(16), most[1]);
        }
    }
}

/// # Safety
/// As [`products_vnni`], of a CPU that has AVX2.
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
pub(super) unsafe fn products_avx2(query: &Query, table: &[f32], tokens: Tokens<'_>, levels: &[u8], best: &mut [f32]) {
    const HALF: usize = 16;
    let (count, row, lanes) = (tokens.scales.len(), query.layout.width, query.lanes());
    let (planes, groups) = (query.layout.planes, query.layout.planes * row / GROUP);
    let last = table.len() / lanes - 1;
    let ones = _mm256_set1_epi16(1);
    for lane in (0..lanes).step_by(HALF) {
        // SAFETY: as in `products_vnni`; a register has eight tokens of the query.
        unsafe {
            let starts = query.starts.as_ptr().add(lane);
            let starts = [_mm256_loadu_si256(starts.cast()), _mm256_loadu_si256(starts.add(8).cast())];
            let scales = query.scales.as_ptr().add(lane);
            let scales = [_mm256_loadu_ps(scales), _mm256_loadu_ps(scales.add(8))];
            let best = best.as_mut_ptr().add(lane);
            let mut most = [_mm256_loadu_ps(best), _mm256_loadu_ps(best.add(8))];
            let bytes = query.bytes.as_ptr().add((lane / BLOCK * groups * BLOCK + lane % BLOCK) * GROUP);
            for t in (0..count).step_by(TOKENS) {
                let at = four(t, count);
                let mut sums = [starts; TOKENS];
                let mut bytes = bytes;
                for plane in 0..planes {
                    let plane = levels.as_ptr().add(plane * count * row);
                    let rows = [at[0] * row, at[1] * row, at[2] * row, at[3] * row];
                    for d in (0..row).step_by(GROUP) {
                        let q = [_mm256_loadu_si256(bytes.cast()), _mm256_loadu_si256(bytes.add(32).cast())];
                        bytes = bytes.add(BLOCK * GROUP);
                        for i in 0..TOKENS {
                            let x = _mm256_set1_epi32(plane.add(rows[i] + d).cast::<i32>().read_unaligned());
                            for half in 0..2 {
                                // Levels are below 128, so that two products fit 16 bits.
                                let four = _mm256_madd_epi16(_mm256_maddubs_epi16(x, q[half]), ones);
                                sums[i][half] = _mm256_add_epi32(sums[i][half], four);
                            }
                        }
                    }
                }
                for i in 0..TOKENS {
                    let near = table.as_ptr().add(tokens.centroids.get(at[i]).min(last) * lanes + lane);
                    let scale = _mm256_set1_ps(bf16(tokens.scales[at[i]]));
                    for half in 0..2 {
                        let sum = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][half]), scales[half]);
                        let product = _mm256_add_ps(_mm256_mul_ps(sum, scale), _mm256_loadu_ps(near.add(half * 8)));
                        most[half] = _mm256_max_ps(product, most[half]);
                    }
                }
            }
            _mm256_storeu_ps(best, most[0]);
            _mm256_storeu_ps(best.add(8), most[1]);
        }
    }
}
