//! Attention of several query heads over the pages of a run.

use super::cache::{Page, Shape};
use crate::kernels::paged::{self, Number, PAGE, Queries};
use std::ops::Range;
use std::sync::Arc;

/// Rows that lie `stride` numbers apart.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) stride: usize,
}

/// One thread's scratch space for attention.
#[derive(Default)]
pub(super) struct Room {
    query: Vec<f32>,
    out: Vec<f32>,
    windows: Vec<Range<usize>>,
    scratch: paged::Scratch,
}

/// Attention of one layer over the pages.
pub(super) struct Attend<'a, N> {
    /// The position of the first token.
    pub(super) start: usize,
    pub(super) pages: &'a [Arc<Page<N>>],
    pub(super) shape: Shape,
    pub(super) layer: usize,
    pub(super) window: Option<usize>,
    pub(super) scale: f32,
    pub(super) cap: Option<f32>,
    /// Whether each token is read as if it were alone.
    pub(super) single: bool,
}

impl<N: Number> Attend<'_, N> {
    /// Writes what `heads` query heads of each of `tokens` see of one key-value head.
    ///
    /// `q` has a row per token, and so has `out`, with the same stride.
    pub(super) fn rows(
        &self,
        tokens: Range<usize>,
        kv_head: usize,
        heads: usize,
        q: Strided<'_>,
        out: &mut [f32],
        room: &mut Room,
    ) {
        let dim = self.shape.dim;
        let width = heads * dim;
        let sees = |token: usize| {
            let to = self.start + token + 1;
            self.window.map_or(0, |window| to.saturating_sub(window))..to
        };
        let pages = sees(tokens.start).start / PAGE..sees(tokens.end - 1).end.div_ceil(PAGE);
        let first = pages.start * PAGE;
        room.query.clear();
        room.windows.clear();
        for (i, token) in tokens.clone().enumerate() {
            room.query.extend_from_slice(&q.numbers[i * q.stride..i * q.stride + width]);
            let window = sees(token);
            room.windows.extend(std::iter::repeat_n(window.start - first..window.end - first, heads));
        }
        // Every number is written.
        room.out.resize(room.query.len(), 0.0);
        let pages: Vec<_> = self.pages[pages].iter().map(|page| page.head(self.shape, self.layer, kv_head)).collect();
        let queries = Queries {
            dim,
            rows: &room.query,
            windows: &room.windows,
            scale: self.scale,
            cap: self.cap,
            single: self.single,
        };
        paged::attend(&queries, &pages, &mut room.scratch, &mut room.out);
        for i in 0..tokens.len() {
            out[i * q.stride..i * q.stride + width].copy_from_slice(&room.out[i * width..(i + 1) * width]);
        }
    }
}
