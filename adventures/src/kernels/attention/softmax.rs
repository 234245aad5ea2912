//! Scores of a row as weights, a block of keys at a time.

use super::Operands;
use crate::kernels::vector::{Vector, total};

/// What softmax has seen of a row so far.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) largest: f32,
    /// The sum of the weights, which are relative to the largest score.
    pub(super) total: f32,
}

/// Which of two registers' scores count: as many from any place in the first half on as there are to the second.
static LIMITS: [f32; 64] = {
    let mut limits = [f32::INFINITY; 64];
    let mut i = 32;
    while i < 64 {
        limits[i] = f32::NEG_INFINITY;
        i += 1;
    }
    limits
};

/// Two registers of scores, of the last two those that count.
///
/// # Safety
/// `x` must have them.
#[inline(always)]
#[allow(unsafe_code)]
unsafe fn within<V: Vector>(x: *const f32, limits: [V; 2], last: bool) -> [V; 2] {
    // SAFETY: the caller's promise.
    let both = unsafe { [V::load(x), V::load(x.add(V::LANES))] };
    if last { [both[0].min(limits[0]), both[1].min(limits[1])] } else { both }
}

/// Turns `keys` scores into weights; returns what the sums of earlier blocks are to be multiplied by.
///
/// # Safety
/// `x`, the scores, and `weights` must have room for those of the keys, filled up to two registers; they may be the same place.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) unsafe fn weigh<T: Operands>(
    x: *mut f32,
    keys: usize,
    scale: f32,
    seen: &mut Seen,
    weights: *mut u32,
) -> f32 {
    let step = 2 * T::V::LANES;
    let whole = keys.next_multiple_of(step);
    // SAFETY: whole registers of scores and weights, for which the caller has room; and of limits.
    unsafe {
        // What was left of other keys weighs nothing. It is not written over: whole registers could not be read until single
        // numbers had left for the cache.
        let limits = LIMITS.as_ptr().add(LIMITS.len() / 2 - (keys + step - whole));
        let limits = [T::V::load(limits), T::V::load(limits.add(T::V::LANES))];
        let last = whole - step;
        let mut max = [T::V::splat(seen.largest); 2];
        for i in (0..whole).step_by(step) {
            let both = within(x.add(i), limits, i == last);
            max = [max[0].max(both[0]), max[1].max(both[1])];
        }
        let top = max[0].max(max[1]).largest();
        let (max, scale_all) = (T::V::splat(top), T::V::splat(scale));
        let mut sums = [T::V::splat(0.0); 2];
        for i in (0..whole).step_by(step) {
            let both = within(x.add(i), limits, i == last);
            let both = [T::weight(both[0], max, scale_all), T::weight(both[1], max, scale_all)];
            T::put(both, i, weights, &mut sums);
        }
        let carried = ((seen.largest - top) * scale).exp();
        *seen = Seen { largest: top, total: seen.total * carried + total(sums[0].add(sums[1])) };
        carried
    }
}
