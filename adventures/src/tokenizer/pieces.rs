//! Texts by number, and numbers by text.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// A text for each id, in one piece of memory.
#[derive(Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Pieces {
    /// Returns no pieces, with room for `count` of `bytes` together.
    pub(super) fn with_capacity(count: usize, bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ends: Vec::with_capacity(count) }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Adds a piece of some bytes.
    pub(super) fn extend(&mut self, piece: impl IntoIterator<Item = u8>) {
        self.bytes.extend(piece);
        self.ends.push(self.bytes.len() as u32);
    }

    /// Returns the bytes of `id`; none for an id that is not there.
    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends.get(id - 1).map_or(self.bytes.len(), |end| *end as usize) };
        let end = self.ends.get(id).map_or(start, |end| *end as usize);
        &self.bytes[start..end]
    }
}

/// Which piece has which bytes. Holds numbers only: a vocabulary of 262,144 pieces is read in a fraction of the time that as many
/// texts of their own would take.
#[derive(Default)]
pub(super) struct Index {
    ids: HashTable<u32>,
    // Seeded at random: a vocabulary cannot be written so that its pieces collide.
    hasher: DefaultHashBuilder,
}

impl Index {
    pub(super) fn with_capacity(count: usize) -> Self {
        Self { ids: HashTable::with_capacity(count), hasher: DefaultHashBuilder::default() }
    }

    /// Makes `id` the piece of its bytes, instead of whichever was before.
    pub(super) fn insert(&mut self, pieces: &Pieces, id: u32) {
        let (bytes, hasher) = (pieces.get(id), &self.hasher);
        let entry = self.ids.entry(
            hasher.hash_one(bytes),
            |other| pieces.get(*other) == bytes,
            |other| hasher.hash_one(pieces.get(*other)),
        );
        *entry.insert(id).get_mut() = id;
    }

    /// Returns the piece of these bytes.
    pub(super) fn find(&self, pieces: &Pieces, bytes: &[u8]) -> Option<u32> {
        self.ids.find(self.hasher.hash_one(bytes), |id| pieces.get(*id) == bytes).copied()
    }
}
