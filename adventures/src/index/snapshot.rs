//! One commit of an index, in memory: readers keep theirs while others commit.

use super::codec::Codec;
use super::file::{FileRef, Mapped};
use super::manifest::{Manifest, SegmentRef};
use super::segment::Segment;
use crate::error::{Error, Result, invalid};
use hashbrown::HashTable;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// How often a snapshot is opened anew, when its files were replaced meanwhile.
const TRIES: usize = 20;

const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

/// One commit.
pub(crate) struct Snapshot {
    pub(super) manifest: Manifest,
    pub(super) codec: Option<Arc<Codec>>,
    pub(super) parts: Vec<Part>,
    /// Documents, those that are deleted included.
    pub(super) documents: usize,
    live: usize,
    tokens: usize,
    ids: OnceLock<Ids>,
}

/// A segment with what is deleted of it.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) segment: Arc<Segment>,
    pub(super) deleted: Bits,
    /// The number of its first document.
    pub(super) start: usize,
}

/// The numbers of documents, by their ids.
#[derive(Debug)]
struct Ids {
    table: HashTable<u32>,
    hasher: RandomState,
}

/// A set of a segment's documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn has(&self, i: usize) -> bool {
        self.0.get(i / 64).is_some_and(|word| word >> (i % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, i: usize) {
        if self.0.len() <= i / 64 {
            self.0.resize(i / 64 + 1, 0);
        }
        self.0[i / 64] |= 1 << (i % 64);
    }

    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Two letters a byte, up to the last that has a bit.
    pub(super) fn to_hex(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes[..used].iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|half| DIGITS[half as usize]).collect()
    }

    /// Reads what [`Self::to_hex`] wrote of `documents`.
    fn from_hex(text: &str, documents: usize) -> Option<Self> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let mut bits = Self(vec![0; pairs.len().div_ceil(8)]);
        for (i, pair) in pairs.iter().enumerate() {
            let [high, low] = pair.map(|digit| (digit as char).to_digit(16));
            bits.0[i / 8] |= u64::from(high? << 4 | low?) << (i % 8 * 8);
        }
        let beyond = (documents..bits.0.len() * 64).any(|i| bits.has(i));
        (rest.is_empty() && pairs.len() <= documents.div_ceil(8) && !beyond).then_some(bits)
    }
}

impl Snapshot {
    /// A snapshot of an index that has no document.
    pub(super) fn empty(manifest: Manifest) -> Self {
        Self { manifest, codec: None, parts: Vec::new(), documents: 0, live: 0, tokens: 0, ids: OnceLock::new() }
    }

    /// Opens the last commit. What `before` has in memory is not read again.
    pub(super) fn open(dir: &Path, before: Option<&Self>) -> Result<Self> {
        let mut manifest = Manifest::read(dir)?;
        for _ in 0..TRIES {
            match Self::of(dir, manifest.clone(), before) {
                // A commit may have removed what this manifest names.
                Err(e) => {
                    let now = Manifest::read(dir)?;
                    if now == manifest {
                        return Err(e);
                    }
                    manifest = now;
                }
                opened => return opened,
            }
        }
        Err(Error::Busy(format!("{}: the index was replaced {TRIES} times while it was opened", dir.display())))
    }

    pub(super) fn of(dir: &Path, manifest: Manifest, before: Option<&Self>) -> Result<Self> {
        let kept = before.filter(|before| before.manifest.codec == manifest.codec);
        let codec = match (&manifest.codec, kept) {
            (_, Some(kept)) => kept.codec.clone(),
            (None, None) => None,
            (Some(file), None) => Some(Arc::new(open_codec(dir, file, &manifest)?)),
        };
        let (mut parts, mut documents, mut live, mut tokens) = (Vec::new(), 0_usize, 0, 0);
        for reference in &manifest.segments {
            let part = Self::part(dir, reference, kept, &manifest, codec.as_deref(), documents)?;
            live += part.segment.documents() - part.deleted.count();
            tokens += part.segment.token_count();
            documents += part.segment.documents();
            parts.push(part);
        }
        if documents >= u32::MAX as usize {
            return invalid!("{}: {documents} documents", dir.display());
        }
        Ok(Self { manifest, codec, parts, documents, live, tokens, ids: OnceLock::new() })
    }

    fn part(
        dir: &Path,
        reference: &SegmentRef,
        kept: Option<&Self>,
        manifest: &Manifest,
        codec: Option<&Codec>,
        start: usize,
    ) -> Result<Part> {
        let old = kept.and_then(|kept| {
            let i = kept.manifest.segments.iter().position(|old| old.file == reference.file)?;
            Some(kept.parts[i].segment.clone())
        });
        let segment = match old {
            Some(segment) => segment,
            None => Arc::new(Segment::open(dir, &reference.file, manifest.dim, codec)?),
        };
        if (segment.documents(), segment.token_count()) != (reference.documents, reference.tokens) {
            return invalid!("{}: {:?} is not as the manifest says", dir.display(), reference.file.file);
        }
        let deleted = match &reference.deleted {
            Some(text) => Bits::from_hex(text, segment.documents()).ok_or_else(|| {
                let (shown, documents) = (dir.display(), segment.documents());
                Error::Invalid(format!("{shown}: {:?}: not which of {documents} are deleted", reference.file.file))
            })?,
            None => Bits::default(),
        };
        Ok(Part { segment, deleted, start })
    }

    /// Documents that are not deleted.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Tokens, those of deleted documents included.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The segment and the place in it of a document.
    pub(super) fn place(&self, document: usize) -> (&Part, usize) {
        let part = &self.parts[self.parts.partition_point(|part| part.start <= document) - 1];
        (part, document - part.start)
    }

    /// Returns which part has a document, and its place in it.
    pub(super) fn part_of(&self, document: usize) -> (usize, usize) {
        let part = self.parts.partition_point(|part| part.start <= document) - 1;
        (part, document - self.parts[part].start)
    }

    /// The numbers of the documents that are not deleted, rising.
    pub(crate) fn live(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().flat_map(|part| {
            let own = (0..part.segment.documents()).filter(|i| !part.deleted.has(*i));
            own.map(|i| part.start + i)
        })
    }

    pub(crate) fn id(&self, document: usize) -> &str {
        let (part, i) = self.place(document);
        part.segment.id(i)
    }

    pub(crate) fn text(&self, document: usize) -> Result<Option<&str>> {
        let (part, i) = self.place(document);
        part.segment.text(i)
    }

    /// JSON.
    pub(crate) fn metadata(&self, document: usize) -> Result<Option<&str>> {
        let (part, i) = self.place(document);
        part.segment.metadata(i)
    }

    /// Returns the number of the document that has this id. The first call reads all ids.
    pub(crate) fn find(&self, id: &str) -> Option<usize> {
        let ids = self.ids.get_or_init(|| {
            let (mut table, hasher) = (HashTable::with_capacity(self.live), RandomState::new());
            for document in self.live() {
                let hash = hasher.hash_one(self.id(document));
                table.insert_unique(hash, document as u32, |other| hasher.hash_one(self.id(*other as usize)));
            }
            Ids { table, hasher }
        });
        let same = |document: &u32| self.id(*document as usize) == id;
        ids.table.find(ids.hasher.hash_one(id), same).map(|document| *document as usize)
    }
}

fn open_codec(dir: &Path, file: &FileRef, manifest: &Manifest) -> Result<Codec> {
    let mapped = Mapped::open(dir, file)?;
    mapped.verify()?;
    let bad = |e: &dyn std::fmt::Display| Error::Invalid(format!("{}: {e}", mapped.path().display()));
    let codec = Codec::from_bytes(mapped.bytes()).map_err(|e| bad(&e))?;
    if (codec.dim, codec.layout.nbits) != (manifest.dim, manifest.nbits) {
        return Err(bad(&format!("a codec of {} dimensions with {} bits", codec.dim, codec.layout.nbits)));
    }
    Ok(codec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_as_they_were_written() {
        for gone in [&[][..], &[0], &[3, 8, 64, 99], &[99]] {
            let mut bits = Bits::default();
            for i in gone {
                bits.insert(*i);
            }
            let read = Bits::from_hex(&bits.to_hex(), 100).expect("they are read");
            assert_eq!((0..200).filter(|i| read.has(*i)).collect::<Vec<_>>(), gone);
        }
        assert_eq!(Bits::from_hex("0", 100), None, "half a byte");
        assert_eq!(Bits::from_hex("x0", 100), None);
        assert_eq!(Bits::from_hex("ff1f", 12), None, "a document that is not there");
    }
}
