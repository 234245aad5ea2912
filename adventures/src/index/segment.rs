//! A segment: documents that were written together, never changed; what is deleted of them is said beside it.
//!
//! A file is a header, then sections at multiples of 64 bytes, all little-endian. Numbers are read where they lie.

use super::codec::Codec;
use super::file::{FileRef, Mapped};
use super::lists::{self, Lists};
use crate::error::{Error, Result, invalid};
use crate::kernels::late::{Centroids, Tokens};
use std::ops::Range;
use std::path::Path;

pub(super) const MAGIC: &[u8; 8] = b"ADVINDEX";
pub(super) const VERSION: u32 = 2;
pub(super) const ALIGN: usize = 64;

/// What the sections hold, in their order. A column has where its values end, then the values.
pub(super) const COLUMNS: [(usize, usize); 3] = [(0, 1), (2, 3), (4, 5)];
const IDS: (usize, usize) = COLUMNS[0];
const TEXTS: (usize, usize) = COLUMNS[1];
const METADATA: (usize, usize) = COLUMNS[2];
const TOKEN_ENDS: usize = 6;
/// f32 of an index without a codec; else the centroids of the tokens, in 16 bits where those are enough.
const VECTORS: usize = 7;
const SCALES: usize = 8;
const ROWS: usize = 9;
/// Absent from small segments.
const LIST_ENDS: usize = 10;
const LISTS: usize = 11;
pub(super) const SECTIONS: usize = 12;
pub(super) const HEADER: usize = 8 + 2 * 4 + 2 * 8 + 16 * SECTIONS;

/// Before a text and before metadata that are there, so that an empty one is not none.
pub(super) const MARK: char = '+';

/// Whether 16 bits hold a centroid.
pub(super) fn narrow(centroids: usize) -> bool {
    centroids <= 1 << 16
}

/// A segment in memory.
#[derive(Debug)]
pub(crate) struct Segment {
    file: Mapped,
    documents: usize,
    tokens: usize,
    dim: usize,
    /// Bytes of a compressed token; 0 of an index without a codec.
    row: usize,
    /// Whether scales are beside the rows.
    scaled: bool,
    centroids: usize,
    sections: [Range<usize>; SECTIONS],
    /// Where the file has none.
    lists: Option<Lists>,
}

impl Segment {
    /// Opens a segment of an index of `dim` dimensions; `codec` is that of the index, if it has one.
    ///
    /// Where things lie is checked, so that nothing outside the file is read; what they are is not, but for ids.
    pub(crate) fn open(dir: &Path, reference: &FileRef, dim: usize, codec: Option<&Codec>) -> Result<Self> {
        let file = Mapped::open(dir, reference)?;
        let name = file.path().display().to_string();
        let bad = |e: Error| Error::Invalid(format!("{name}: not a segment of this index: {e}"));
        let (documents, tokens, sections) = read_header(file.bytes()).map_err(bad)?;
        let (row, centroids) = codec.map_or((0, 0), |codec| (codec.layout.row, codec.count()));
        let scaled = codec.is_some_and(|codec| codec.layout.scaled());
        let mut segment = Self { file, documents, tokens, dim, row, scaled, centroids, sections, lists: None };
        segment.check().map_err(bad)?;
        if centroids > 0 && segment.section(LIST_ENDS).is_empty() {
            segment.lists = Some(lists::make((0..documents).map(|i| segment.tokens(i).centroids), centroids));
        }
        Ok(segment)
    }

    fn check(&self) -> Result<()> {
        let vector = match self.centroids {
            0 => 4 * self.dim,
            count if narrow(count) => 2,
            _ => 4,
        };
        let scale = if self.scaled { 2 } else { 0 };
        let listed = if self.section(LIST_ENDS).is_empty() { 0 } else { self.centroids + 1 };
        for (section, size, count) in [
            (TOKEN_ENDS, 8, self.documents + 1),
            (VECTORS, vector, self.tokens),
            (SCALES, scale, self.tokens),
            (ROWS, self.row, self.tokens),
            (LIST_ENDS, 4, listed),
        ] {
            if count.checked_mul(size) != Some(self.sections[section].len()) {
                return invalid!("section {section} has {} bytes", self.sections[section].len());
            }
        }
        check_ends(self.numbers::<u64>(TOKEN_ENDS).iter().copied(), self.tokens)?;
        for (ends, values) in COLUMNS {
            let (ends, values): (&[u64], _) = (self.numbers(ends), self.section(values));
            if ends.len() != self.documents + 1 {
                return invalid!("{} ends of {} documents", ends.len(), self.documents);
            }
            check_ends(ends.iter().copied(), values.len())?;
        }
        if let Some(i) = (0..self.documents).find(|i| std::str::from_utf8(self.value(IDS, *i)).is_err()) {
            return invalid!("the id of document {i} is not UTF-8");
        }
        if listed > 0 {
            check_ends(self.numbers::<u32>(LIST_ENDS).iter().map(|end| u64::from(*end)), self.sections[LISTS].len())?;
        }
        Ok(())
    }

    fn section(&self, i: usize) -> &[u8] {
        &self.file.bytes()[self.sections[i].clone()]
    }

    /// A section as numbers: sections are aligned in a mapping, which is aligned itself.
    fn numbers<T: bytemuck::AnyBitPattern>(&self, i: usize) -> &[T] {
        bytemuck::try_cast_slice(self.section(i)).unwrap_or_default()
    }

    fn all_centroids(&self) -> Centroids<'_> {
        if narrow(self.centroids) {
            Centroids::Narrow(self.numbers(VECTORS))
        } else {
            Centroids::Wide(self.numbers(VECTORS))
        }
    }

    pub(crate) fn documents(&self) -> usize {
        self.documents
    }

    pub(crate) fn token_count(&self) -> usize {
        self.tokens
    }

    /// The tokens of a document.
    pub(crate) fn range(&self, document: usize) -> Range<usize> {
        let ends: &[u64] = self.numbers(TOKEN_ENDS);
        ends[document] as usize..ends[document + 1] as usize
    }

    fn value(&self, (ends, values): (usize, usize), document: usize) -> &[u8] {
        let ends: &[u64] = self.numbers(ends);
        &self.section(values)[ends[document] as usize..ends[document + 1] as usize]
    }

    pub(crate) fn id(&self, document: usize) -> &str {
        std::str::from_utf8(self.value(IDS, document)).expect("checked when the segment was opened; this is a bug")
    }

    fn marked(&self, column: (usize, usize), document: usize) -> Result<Option<&str>> {
        let Ok(value) = std::str::from_utf8(self.value(column, document)) else {
            let (name, id) = (self.file.path().display(), self.id(document));
            return invalid!("{name}: corrupt: what document {id:?} says is not UTF-8");
        };
        Ok(value.strip_prefix(MARK))
    }

    pub(crate) fn text(&self, document: usize) -> Result<Option<&str>> {
        self.marked(TEXTS, document)
    }

    /// JSON.
    pub(crate) fn metadata(&self, document: usize) -> Result<Option<&str>> {
        self.marked(METADATA, document)
    }

    /// Reads all of it, and fails where it is not what was written.
    pub(crate) fn verify(&self) -> Result<()> {
        self.file.verify()
    }

    /// As [`Mapped::release`]: for those that read all of an index, part by part.
    pub(super) fn release(&self) {
        self.file.release();
    }

    /// The vectors of tokens, of an index without a codec.
    pub(crate) fn vectors(&self, tokens: Range<usize>) -> &[f32] {
        &self.numbers(VECTORS)[tokens.start * self.dim..tokens.end * self.dim]
    }

    /// The compressed tokens of a document, of an index with a codec.
    pub(crate) fn tokens(&self, document: usize) -> Tokens<'_> {
        let range = self.range(document);
        let centroids = match self.all_centroids() {
            Centroids::Narrow(all) => Centroids::Narrow(&all[range.clone()]),
            Centroids::Wide(all) => Centroids::Wide(&all[range.clone()]),
        };
        let scales = if self.scaled { &self.numbers(SCALES)[range.clone()] } else { &[] };
        Tokens { centroids, scales, rows: &self.section(ROWS)[range.start * self.row..range.end * self.row] }
    }

    /// The documents that have a token of `centroid`.
    pub(crate) fn list(&self, centroid: usize) -> impl Iterator<Item = usize> {
        let (ends, bytes): (&[u32], &[u8]) = match &self.lists {
            Some(lists) => (&lists.ends, &lists.bytes),
            None => (self.numbers(LIST_ENDS), self.section(LISTS)),
        };
        // A list that is broken names no document that is not there.
        lists::read(&bytes[ends[centroid] as usize..ends[centroid + 1] as usize]).take_while(|i| *i < self.documents)
    }
}

/// Returns documents, tokens, and where the sections are.
fn read_header(bytes: &[u8]) -> Result<(usize, usize, [Range<usize>; SECTIONS])> {
    let Some(header) = bytes.get(..HEADER) else { return invalid!("{} bytes", bytes.len()) };
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
    let version = word(8) as u32;
    if &header[..8] != MAGIC || version != VERSION {
        return invalid!("no magic of version {VERSION}");
    }
    let (documents, tokens) = (word(16), word(24));
    // Each document has bytes of its own, so that no sum below overflows.
    if documents >= u64::from(u32::MAX) || documents > bytes.len() as u64 || tokens > 1 << 40 {
        return invalid!("{documents} documents of {tokens} tokens");
    }
    let mut sections = [const { 0..0 }; SECTIONS];
    for (i, section) in sections.iter_mut().enumerate() {
        let (from, to) = (word(32 + 16 * i), word(40 + 16 * i));
        if from > to || to > bytes.len() as u64 || !from.is_multiple_of(ALIGN as u64) {
            return invalid!("section {i} from {from} to {to}");
        }
        *section = from as usize..to as usize;
    }
    Ok((documents as usize, tokens as usize, sections))
}

/// Fails where `ends` do not begin with 0, rise, and end with `last`.
fn check_ends(ends: impl Iterator<Item = u64>, last: usize) -> Result<()> {
    let mut before = None;
    for end in ends {
        if end < before.unwrap_or(0) || (before.is_none() && end != 0) {
            return invalid!("an end at {end} after {before:?}");
        }
        before = Some(end);
    }
    if before != Some(last as u64) {
        return invalid!("the last end is {before:?}, not {last}");
    }
    Ok(())
}
