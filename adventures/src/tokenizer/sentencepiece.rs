//! Byte-pair encoding by scores, as SentencePiece and llama.cpp's `llm_tokenizer_spm` do it.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// A vocabulary whose pieces are merged best score first.
pub(super) struct SentencePiece {
    ids: HashMap<Box<str>, u32, BuildHasherDefault<Fnv>>,
    scores: Vec<f32>,
    byte_ids: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    add_space: bool,
}

/// What a [`SentencePiece`] is made of.
pub(super) struct Parts {
    /// The pieces that text may become: neither control tokens nor bytes.
    pub(super) pieces: Vec<(Box<str>, u32)>,
    /// By id.
    pub(super) scores: Vec<f32>,
    /// The token of each byte, where the vocabulary has all 256.
    pub(super) byte_ids: Option<Box<[u32; 256]>>,
    pub(super) unknown: Option<u32>,
    /// Whether a text starts with a space that it does not have.
    pub(super) add_space: bool,
}

/// FNV-1a: pieces have a few bytes, where it is several times as fast as the default hash. Whoever could make it collide has
/// written the vocabulary, and slows down loading his own file.
#[derive(Clone)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// A stretch of the text; merged ones have no length.
struct Symbol {
    start: usize,
    len: usize,
    previous: usize,
    next: usize,
}

/// Two neighbours that make a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

const NONE: usize = usize::MAX;

impl SentencePiece {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            ids: parts.pieces.into_iter().collect(),
            scores: parts.scores,
            byte_ids: parts.byte_ids,
            unknown: parts.unknown,
            add_space: parts.add_space,
        }
    }

    /// Adds the ids of `text` to `ids`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + 3);
        if self.add_space {
            escaped.push('▁');
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { '▁' } else { c }));
        let text = escaped;

        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), previous: i.wrapping_sub(1), next: i + 1 })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.propose(&text, &symbols, right - 1, right, &mut queue);
        }
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            // One of the two may have been merged with another since.
            if symbols[left].len == 0 || symbols[right].len == 0 || symbols[left].len + symbols[right].len != len {
                continue;
            }
            symbols[left].len = len;
            symbols[right].len = 0;
            let next = symbols[right].next;
            symbols[left].next = next;
            if next != NONE {
                symbols[next].previous = left;
                self.propose(&text, &symbols, left, next, &mut queue);
            }
            let previous = symbols[left].previous;
            if previous != NONE {
                self.propose(&text, &symbols, previous, left, &mut queue);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            self.emit(&text[symbol.start..symbol.start + symbol.len], ids);
        }
    }

    fn propose(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, queue: &mut BinaryHeap<Pair>) {
        let start = symbols[left].start;
        let len = symbols[left].len + symbols[right].len;
        if let Some(id) = self.ids.get(&text[start..start + len]) {
            queue.push(Pair { score: self.scores[*id as usize], left, right, len });
        }
    }

    fn emit(&self, piece: &str, ids: &mut Vec<u32>) {
        if let Some(id) = self.ids.get(piece) {
            ids.push(*id);
        } else if let Some(byte_ids) = &self.byte_ids {
            ids.extend(piece.bytes().map(|b| byte_ids[b as usize]));
        } else {
            ids.extend(self.unknown);
        }
    }
}
