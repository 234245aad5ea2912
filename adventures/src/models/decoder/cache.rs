//! The keys and values of one run, in pages that are added as the text grows.

use crate::kernels::paged::{self, Number, PAGE};
use std::sync::Arc;

/// The sizes of a page.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Of each layer: whether it has a window, and its number among those that have one, or have none.
    layers: Arc<[(bool, usize)]>,
    pub(super) heads: usize,
    pub(super) dim: usize,
    /// How many positions layers with a window see, their own included.
    pub(super) window: Option<usize>,
}

impl Shape {
    pub(super) fn new(local_layers: &[bool], heads: usize, dim: usize, window: Option<usize>) -> Self {
        let mut counts = [0, 0];
        let layers = local_layers.iter().map(|local| {
            let local = *local && window.is_some();
            let count = &mut counts[usize::from(local)];
            *count += 1;
            (local, *count - 1)
        });
        Self { layers: layers.collect(), heads, dim, window }
    }

    /// Numbers that the keys, or the values, of one head take in a page.
    fn block(&self) -> usize {
        self.dim * PAGE
    }

    /// Numbers that the layers with a window, or those without, take in a page.
    fn half(&self, local: bool) -> usize {
        2 * self.layers.iter().filter(|layer| layer.0 == local).count() * self.heads * self.block()
    }

    /// Whether a run of `len` tokens will look at the layers with a window of page `page` again.
    fn sees(&self, page: usize, len: usize) -> bool {
        self.window.is_some_and(|window| (page + 1) * PAGE + window > len)
    }

    /// Whether `pages` hold all that a run of `len` tokens, which they are, looks at.
    pub(super) fn complete<N>(&self, pages: &[Page<N>], len: usize) -> bool {
        pages.iter().enumerate().all(|(i, page)| page.local.is_some() || !self.sees(i, len))
    }

    /// How many of `pages` a run may begin with.
    pub(super) fn usable<N>(&self, pages: &[Page<N>]) -> usize {
        (0..=pages.len()).rev().find(|n| self.complete(&pages[..*n], n * PAGE)).unwrap_or(0)
    }
}

/// Numbers of some layers: for each of them and each head, keys `(PAGE, dim)`, then values `(dim, PAGE)`.
#[derive(Clone)]
struct Half<N>(Box<[N]>);

/// [`PAGE`] positions. What several runs begin with, they share; who writes has a copy.
#[derive(Clone)]
pub(super) struct Page<N> {
    /// Of the layers that see everything.
    global: Arc<Half<N>>,
    /// Of the layers with a window; `None` where there are none, and once nobody looks there.
    local: Option<Arc<Half<N>>>,
}

impl<N: Number> Page<N> {
    pub(super) fn new(shape: &Shape) -> Self {
        let half = |local| Arc::new(Half(vec![N::ZERO; shape.half(local)].into_boxed_slice()));
        Self { global: half(false), local: shape.window.map(|_| half(true)) }
    }

    /// Stores one position's keys and values, `(heads, dim)` each. `rounded` is scratch space.
    pub(super) fn store(
        &mut self,
        shape: &Shape,
        layer: usize,
        slot: usize,
        (keys, values): (&[f32], &[f32]),
        rounded: &mut Vec<N>,
    ) {
        rounded.resize(shape.dim, N::ZERO);
        let (local, index) = shape.layers[layer];
        let half = if local { self.local.as_mut() } else { Some(&mut self.global) };
        let numbers = &mut Arc::make_mut(half.expect("who writes here also looks here; this is a bug")).0;
        let rows = keys.chunks_exact(shape.dim).zip(values.chunks_exact(shape.dim));
        let blocks = numbers.chunks_exact_mut(2 * shape.block()).skip(index * shape.heads);
        for (block, (key, value)) in blocks.zip(rows) {
            let (key_block, value_block) = block.split_at_mut(shape.block());
            N::store(key, &mut key_block[slot * shape.dim..(slot + 1) * shape.dim]);
            N::store(value, rounded);
            for (lane, value) in value_block.chunks_exact_mut(PAGE).zip(&*rounded) {
                lane[slot] = *value;
            }
        }
    }

    /// One head's keys and values.
    pub(super) fn head(&self, shape: &Shape, layer: usize, head: usize) -> paged::Page<'_, N> {
        let (local, index) = shape.layers[layer];
        let half = if local { self.local.as_ref() } else { Some(&self.global) };
        let start = 2 * (index * shape.heads + head) * shape.block();
        let numbers = &half.expect("a window ends before what was dropped; this is a bug").0;
        let (keys, values) = numbers[start..start + 2 * shape.block()].split_at(shape.block());
        paged::Page { keys, values }
    }

    /// Empties the positions from `slot` on, so that nothing that is not a number stays behind.
    pub(super) fn clear_from(&mut self, shape: &Shape, slot: usize) {
        for half in self.local.iter_mut().chain([&mut self.global]) {
            for block in Arc::make_mut(half).0.chunks_exact_mut(2 * shape.block()) {
                let (keys, values) = block.split_at_mut(shape.block());
                keys[slot * shape.dim..].fill(N::ZERO);
                for lane in values.chunks_exact_mut(PAGE) {
                    lane[slot..].fill(N::ZERO);
                }
            }
        }
    }
}

impl<N> Page<N> {
    /// Returns how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        (self.global.0.len() + self.local.as_ref().map_or(0, |local| local.0.len())) * size_of::<N>()
    }

    /// Whether both hold the same memory.
    #[cfg(test)]
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.global, &other.global)
    }
}

/// Drops what a run of `len` tokens does not look at again, as long as it is not rewound by more than a page.
pub(super) fn forget<N>(shape: &Shape, pages: &mut [Page<N>], len: usize) {
    // From the newest that is out of sight back to those that were dropped before.
    for (i, page) in pages.iter_mut().enumerate().rev() {
        if !shape.sees(i, len.saturating_sub(PAGE)) && page.local.take().is_none() {
            return;
        }
    }
}
