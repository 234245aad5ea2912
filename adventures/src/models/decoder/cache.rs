//! The keys and values of one run, in pages that are added as the text grows.

use crate::kernels::paged::{self, Number, PAGE};

/// The sizes of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) dim: usize,
}

impl Shape {
    /// Numbers that the keys, or the values, of one head take in a page.
    fn block(self) -> usize {
        self.dim * PAGE
    }

    /// Numbers that a page takes.
    pub(super) fn page(self) -> usize {
        2 * self.layers * self.heads * self.block()
    }

    /// Where the keys of a head begin in a page; the values follow.
    fn offset(self, layer: usize, head: usize) -> usize {
        2 * (layer * self.heads + head) * self.block()
    }
}

/// [`PAGE`] positions: for each layer and head, keys `(PAGE, dim)`, then values `(dim, PAGE)`.
#[derive(Clone)]
pub(super) struct Page<N>(Box<[N]>);

impl<N: Number> Page<N> {
    pub(super) fn new(shape: Shape) -> Self {
        Self(vec![N::ZERO; shape.page()].into_boxed_slice())
    }

    /// Stores one position's keys and values, `(heads, dim)` each. `rounded` is scratch space.
    pub(super) fn store(
        &mut self,
        shape: Shape,
        layer: usize,
        slot: usize,
        (keys, values): (&[f32], &[f32]),
        rounded: &mut Vec<N>,
    ) {
        rounded.resize(shape.dim, N::ZERO);
        let rows = keys.chunks_exact(shape.dim).zip(values.chunks_exact(shape.dim));
        for (head, (key, value)) in rows.enumerate() {
            let start = shape.offset(layer, head);
            let (key_block, value_block) = self.0[start..start + 2 * shape.block()].split_at_mut(shape.block());
            N::store(key, &mut key_block[slot * shape.dim..(slot + 1) * shape.dim]);
            N::store(value, rounded);
            for (lane, value) in value_block.chunks_exact_mut(PAGE).zip(&*rounded) {
                lane[slot] = *value;
            }
        }
    }

    /// One head's keys and values.
    pub(super) fn head(&self, shape: Shape, layer: usize, head: usize) -> paged::Page<'_, N> {
        let start = shape.offset(layer, head);
        let (keys, values) = self.0[start..start + 2 * shape.block()].split_at(shape.block());
        paged::Page { keys, values }
    }

    /// Empties the positions from `slot` on, so that nothing that is not a number stays behind.
    pub(super) fn clear_from(&mut self, shape: Shape, slot: usize) {
        for block in self.0.chunks_exact_mut(2 * shape.block()) {
            let (keys, values) = block.split_at_mut(shape.block());
            keys[slot * shape.dim..].fill(N::ZERO);
            for lane in values.chunks_exact_mut(PAGE) {
                lane[slot..].fill(N::ZERO);
            }
        }
    }
}
