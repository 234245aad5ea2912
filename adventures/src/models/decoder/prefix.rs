//! Pages of prompts, kept for prompts that begin alike: the same instructions, the same passages, a conversation.

use super::cache::{Page, Shape};
use crate::kernels::paged::PAGE;
use crate::models::FEWEST_TOGETHER;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// Full pages by the tokens that lead to them, shared with the runs that read them.
///
/// A page of a prompt holds the same numbers whatever follows it, as prompts are read in pieces that do not show in what is
/// computed. What an answer adds is not kept: it is read one token at a time, in another order of additions.
pub(super) struct Prefixes<N> {
    /// By the page before, 0 for none, and the tokens of this one.
    pages: HashMap<(u64, Box<[u32]>), Kept<N>>,
    /// The most bytes that the pages may take.
    budget: usize,
    page_bytes: usize,
    /// Counts the prompts that were looked up or kept.
    clock: u64,
    last_id: u64,
}

struct Kept<N> {
    id: u64,
    page: Arc<Page<N>>,
    depth: usize,
    /// When it was last looked up or kept: never later than the pages before it.
    used: u64,
}

impl<N> Prefixes<N> {
    pub(super) fn new(shape: Shape, budget: usize) -> Self {
        Self { pages: HashMap::new(), budget, page_bytes: shape.page() * size_of::<N>(), clock: 0, last_id: 0 }
    }

    /// Returns the pages that `prompt` begins with, but for what is read anew in any case: its last tokens.
    pub(super) fn find(&mut self, prompt: &[u32]) -> Vec<Arc<Page<N>>> {
        self.clock += 1;
        let mut before = 0;
        let mut found = Vec::new();
        let rest = prompt.len().saturating_sub(FEWEST_TOGETHER);
        for tokens in prompt[..rest].chunks_exact(PAGE) {
            let Some(kept) = self.pages.get_mut(&(before, tokens.into())) else { break };
            kept.used = self.clock;
            before = kept.id;
            found.push(Arc::clone(&kept.page));
        }
        found
    }

    /// Keeps the full pages of `prompt`; the longest unused are dropped where there is no room.
    pub(super) fn keep(&mut self, prompt: &[u32], pages: &[Arc<Page<N>>]) {
        self.clock += 1;
        let mut before = 0;
        let room = self.budget / self.page_bytes.max(1);
        for (depth, (tokens, page)) in prompt.chunks_exact(PAGE).zip(pages).take(room).enumerate() {
            let kept = self.pages.entry((before, tokens.into())).or_insert_with(|| {
                self.last_id += 1;
                Kept { id: self.last_id, page: Arc::clone(page), depth, used: 0 }
            });
            kept.used = self.clock;
            before = kept.id;
        }
        while self.pages.len() > room {
            let oldest = self.pages.iter().min_by_key(|(_, kept)| (kept.used, Reverse(kept.depth)));
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            self.pages.remove(&key);
        }
    }

    /// Returns how many bytes the pages take.
    pub(super) fn bytes(&self) -> usize {
        self.pages.len() * self.page_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { layers: 1, heads: 1, dim: 2 };

    fn pages(n: usize) -> Vec<Arc<Page<f32>>> {
        (0..n).map(|_| Arc::new(Page::new(SHAPE))).collect()
    }

    fn prompt(length: u32, changed: Option<usize>) -> Vec<u32> {
        (0..length).map(|i| if changed == Some(i as usize) { u32::MAX } else { i }).collect()
    }

    #[test]
    fn pages_that_both_prompts_begin_with_are_found() {
        let mut prefixes = Prefixes::<f32>::new(SHAPE, 1 << 20);
        let kept = pages(5);
        prefixes.keep(&prompt(300, None), &kept);
        for (length, changed, want) in [
            (300, None, 4),
            (300, Some(299), 4),
            (300, Some(256), 4),
            (300, Some(255), 3),
            (300, Some(0), 0),
            (1000, None, 4),
            (264, None, 4),
            // The rest would be shorter than what is read together.
            (263, None, 3),
            (7, None, 0),
            (0, None, 0),
        ] {
            let found = prefixes.find(&prompt(length, changed));
            assert_eq!(found.len(), want, "{length} {changed:?}");
            assert!(found.iter().zip(&kept).all(|(a, b)| Arc::ptr_eq(a, b)));
        }
        prefixes.keep(&prompt(128, Some(64)), &pages(2));
        assert_eq!(prefixes.pages.len(), 5, "the first page is shared");
        assert_eq!(prefixes.bytes(), 5 * SHAPE.page() * 4);
    }

    #[test]
    fn the_longest_unused_are_dropped_from_the_end() {
        let bytes = SHAPE.page() * 4;
        let mut prefixes = Prefixes::<f32>::new(SHAPE, 4 * bytes + 1);
        prefixes.keep(&prompt(192, None), &pages(3));
        prefixes.keep(&prompt(192, Some(0)), &pages(3));
        assert_eq!(prefixes.bytes(), 4 * bytes);
        assert_eq!(prefixes.find(&prompt(200, None)).len(), 1, "its end went first");
        assert_eq!(prefixes.find(&prompt(200, Some(0))).len(), 3);
        prefixes.keep(&prompt(640, Some(1)), &pages(10));
        assert_eq!(
            prefixes.find(&prompt(640, Some(1))).len(),
            4,
            "of a prompt that is too long, the beginning is kept"
        );
        let mut none = Prefixes::<f32>::new(SHAPE, 0);
        none.keep(&prompt(640, None), &pages(10));
        assert_eq!((none.find(&prompt(640, None)).len(), none.bytes()), (0, 0));
    }
}
