//! Byte-pair encoding by scores, as SentencePiece and llama.cpp's `llm_tokenizer_spm` do it.

use super::merge::merge;
use super::pieces::{Index, Pieces};
use std::cmp::Ordering;

/// A vocabulary whose pieces are merged best score first.
pub(super) struct SentencePiece {
    pieces: Pieces,
    ids: Index,
    scores: Vec<f32>,
    byte_ids: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    add_space: bool,
}

/// What a [`SentencePiece`] is made of.
pub(super) struct Parts {
    /// By id; those that text never becomes, control tokens and bytes, are empty.
    pub(super) pieces: Pieces,
    /// By id.
    pub(super) scores: Vec<f32>,
    /// The token of each byte, where the vocabulary has all 256.
    pub(super) byte_ids: Option<Box<[u32; 256]>>,
    pub(super) unknown: Option<u32>,
    /// Whether a text starts with a space that it does not have.
    pub(super) add_space: bool,
}

/// A score, in the order of its numbers.
#[derive(PartialEq)]
struct Score(f32);

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Eq for Score {}

impl SentencePiece {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { pieces, scores, byte_ids, unknown, add_space } = parts;
        let mut ids = Index::with_capacity(pieces.len());
        for id in (0..pieces.len() as u32).filter(|id| !pieces.get(*id).is_empty()) {
            ids.insert(&pieces, id);
        }
        Self { pieces, ids, scores, byte_ids, unknown, add_space }
    }

    fn id(&self, piece: &str) -> Option<u32> {
        self.ids.find(&self.pieces, piece.as_bytes())
    }

    /// Adds the ids of `text` to `ids`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + 3);
        if self.add_space {
            escaped.push('▁');
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { '▁' } else { c }));
        let text = escaped;
        let characters = text.char_indices().map(|(start, c)| (start, c.len_utf8(), None));
        let merged = merge(characters, |left, right| {
            let id = self.id(&text[left.start..left.start + left.len + right.len])?;
            Some((Score(self.scores[id as usize]), id))
        });
        for symbol in merged {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            if let Some(id) = symbol.id.or_else(|| self.id(piece)) {
                ids.push(id);
            } else if let Some(byte_ids) = &self.byte_ids {
                ids.extend(piece.bytes().map(|b| byte_ids[b as usize]));
            } else {
                ids.extend(self.unknown);
            }
        }
    }
}
