//! Byte-pair encoding: the best pair of neighbours becomes one, until none may.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A stretch of the text; what was merged into its neighbour has no length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    pub(super) start: usize,
    pub(super) len: usize,
    /// The token that it is, if it is one.
    pub(super) id: Option<u32>,
    previous: u32,
    next: u32,
}

/// Two neighbours that make a token; of those of one rank the leftmost comes first.
struct Pair<R> {
    rank: R,
    left: u32,
    right: u32,
    len: usize,
    id: u32,
}

impl<R: Ord> Ord for Pair<R> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then(other.left.cmp(&self.left))
    }
}
impl<R: Ord> PartialOrd for Pair<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<R: Ord> PartialEq for Pair<R> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<R: Ord> Eq for Pair<R> {}

/// Returns what is left of the stretches `(start, len, token)` once all pairs are merged, the highest rank first. `pair` says what two
/// neighbours become.
pub(super) fn merge<R: Ord>(
    stretches: impl Iterator<Item = (usize, usize, Option<u32>)>,
    pair: impl Fn(&Symbol, &Symbol) -> Option<(R, u32)>,
) -> impl Iterator<Item = Symbol> {
    let mut symbols: Vec<Symbol> = (0..)
        .zip(stretches)
        .map(|(i, (start, len, id)): (u32, _)| Symbol { start, len, id, previous: i.wrapping_sub(1), next: i + 1 })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    let mut queue = BinaryHeap::new();
    let propose = |symbols: &[Symbol], left: u32, right: u32, queue: &mut BinaryHeap<Pair<R>>| {
        let (a, b) = (&symbols[left as usize], &symbols[right as usize]);
        if let Some((rank, id)) = pair(a, b) {
            queue.push(Pair { rank, left, right, len: a.len + b.len, id });
        }
    };
    for right in 1..symbols.len() as u32 {
        propose(&symbols, right - 1, right, &mut queue);
    }
    while let Some(Pair { left, right, len, id, .. }) = queue.pop() {
        let (a, b) = (symbols[left as usize], symbols[right as usize]);
        // One of the two may have been merged with another since.
        if a.len == 0 || b.len == 0 || a.len + b.len != len {
            continue;
        }
        symbols[left as usize] = Symbol { len, id: Some(id), next: b.next, ..a };
        symbols[right as usize].len = 0;
        if b.next != NONE {
            symbols[b.next as usize].previous = left;
            propose(&symbols, left, b.next, &mut queue);
        }
        if a.previous != NONE {
            propose(&symbols, a.previous, left, &mut queue);
        }
    }
    symbols.into_iter().filter(|symbol| symbol.len > 0)
}
