//! Documents to segment files.

use super::codec::{Codec, Coded};
use super::file::{self, FileRef};
use super::lists;
use super::manifest::SegmentRef;
use super::segment::{ALIGN, COLUMNS, HEADER, MAGIC, MARK, SECTIONS, Segment, VERSION, narrow};
use crate::error::Result;
use crate::kernels::late::Centroids;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Fewer tokens than this have their lists made when they are opened: the ends of lists are as many as centroids.
const LISTED: usize = 1 << 15;
/// What a segment has at most in memory before it is written, about.
const MOST: usize = 128 << 20;

/// What is said of a document beyond its vectors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a> {
    pub(crate) id: &'a str,
    pub(crate) text: Option<&'a str>,
    /// JSON.
    pub(crate) metadata: Option<&'a str>,
}

impl<'a> Record<'a> {
    pub(super) fn of(segment: &'a Segment, document: usize) -> Result<Self> {
        let (text, metadata) = (segment.text(document)?, segment.metadata(document)?);
        Ok(Self { id: segment.id(document), text, metadata })
    }
}

/// A segment that is being made.
#[derive(Default)]
pub(super) struct Builder {
    columns: [(Vec<u64>, Vec<u8>); 3],
    token_ends: Vec<u64>,
    vectors: Vec<f32>,
    centroids: Vec<u32>,
    scales: Vec<u16>,
    rows: Vec<u8>,
}

impl Builder {
    pub(super) fn documents(&self) -> usize {
        self.token_ends.len()
    }

    fn tokens(&self, dim: usize) -> usize {
        self.centroids.len() + self.vectors.len() / dim.max(1)
    }

    /// Whether it is time to write it.
    pub(super) fn is_full(&self) -> bool {
        let text: usize = self.columns.iter().map(|(_, values)| values.len()).sum();
        text + 4 * (self.vectors.len() + self.centroids.len()) + 2 * self.scales.len() + self.rows.len() >= MOST
    }

    /// Ends a document whose tokens were just put in.
    fn end(&mut self, record: Record<'_>, dim: usize) {
        let marked = |value: Option<&str>| value.map_or_else(String::new, |value| format!("{MARK}{value}"));
        let values = [record.id.to_owned(), marked(record.text), marked(record.metadata)];
        for ((ends, bytes), value) in self.columns.iter_mut().zip(values) {
            bytes.extend_from_slice(value.as_bytes());
            ends.push(bytes.len() as u64);
        }
        self.token_ends.push(self.tokens(dim) as u64);
    }

    /// Adds a document of an index without a codec.
    pub(super) fn push(&mut self, record: Record<'_>, vectors: &[f32], dim: usize) {
        self.vectors.extend_from_slice(vectors);
        self.end(record, dim);
    }

    /// Compresses and adds documents; `ends` say where the tokens of each end.
    pub(super) fn encode(
        &mut self,
        records: &[Record<'_>],
        vectors: &[f32],
        ends: &[usize],
        codec: &Codec,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let (mut token, mut next) = (0, 0);
        let mut records = records.iter();
        let this = &mut *self;
        codec.encode(vectors, cancel, |coded| {
            while ends.get(next).is_some_and(|end| *end <= token) {
                this.end(*records.next().expect("as many records as ends; this is a bug"), codec.dim);
                next += 1;
            }
            this.put(coded);
            token += 1;
        })?;
        for record in records {
            self.end(*record, codec.dim);
        }
        Ok(())
    }

    fn put(&mut self, coded: &Coded<'_>) {
        self.centroids.push(coded.centroid);
        self.scales.extend(coded.scale);
        self.rows.extend_from_slice(coded.row);
    }

    /// Adds a document of another segment of the same index as it is.
    pub(super) fn copy(&mut self, segment: &Segment, document: usize, codec: Option<&Codec>, dim: usize) -> Result<()> {
        let record = Record::of(segment, document)?;
        let Some(codec) = codec else {
            self.push(record, segment.vectors(segment.range(document)), dim);
            return Ok(());
        };
        let tokens = segment.tokens(document);
        for (i, row) in tokens.rows.chunks_exact(codec.layout.row).enumerate() {
            let scale = tokens.scales.get(i).copied();
            self.put(&Coded { centroid: tokens.centroids.get(i) as u32, scale, row });
        }
        self.end(record, dim);
        Ok(())
    }

    /// Writes the segment, and begins a new one.
    pub(super) fn flush(&mut self, dir: &Path, name: &str, dim: usize, codec: Option<&Codec>) -> Result<SegmentRef> {
        let this = std::mem::take(self);
        let (documents, tokens) = (this.documents(), this.tokens(dim));
        let ends = |ends: &[u64]| -> Vec<u8> {
            std::iter::once(0).chain(ends.iter().copied()).flat_map(u64::to_le_bytes).collect()
        };
        let mut sections: Vec<Vec<u8>> = Vec::with_capacity(SECTIONS);
        for (own, bytes) in &this.columns {
            sections.push(ends(own));
            sections.push(bytes.clone());
        }
        debug_assert_eq!(sections.len(), 2 * COLUMNS.len(), "the sections of columns");
        sections.push(ends(&this.token_ends));
        let mut listed = lists::Lists::default();
        if let Some(codec) = codec {
            let short = narrow(codec.count());
            let bytes = this.centroids.iter().flat_map(|c| c.to_le_bytes().into_iter().take(if short { 2 } else { 4 }));
            sections.push(bytes.collect());
            if tokens >= LISTED {
                let starts = std::iter::once(&0).chain(&this.token_ends);
                let own = starts.zip(&this.token_ends);
                let own = own.map(|(from, to)| Centroids::Wide(&this.centroids[*from as usize..*to as usize]));
                listed = lists::make(own, codec.count());
            }
        } else {
            sections.push(this.vectors.iter().flat_map(|x| x.to_le_bytes()).collect());
        }
        sections.push(this.scales.iter().flat_map(|x| x.to_le_bytes()).collect());
        sections.push(this.rows);
        sections.push(listed.ends.iter().flat_map(|x| x.to_le_bytes()).collect());
        sections.push(listed.bytes);
        let mut header = MAGIC.to_vec();
        header.extend(u64::from(VERSION).to_le_bytes());
        header.extend((documents as u64).to_le_bytes());
        header.extend((tokens as u64).to_le_bytes());
        let mut at = HEADER.next_multiple_of(ALIGN);
        for section in &sections {
            header.extend((at as u64).to_le_bytes());
            header.extend(((at + section.len()) as u64).to_le_bytes());
            at = (at + section.len()).next_multiple_of(ALIGN);
        }
        let gap = [0; ALIGN];
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in std::iter::once(&header).chain(&sections) {
            parts.push(part);
            parts.push(&gap[..part.len().next_multiple_of(ALIGN) - part.len()]);
        }
        let file: FileRef = file::write(dir, name, &parts)?;
        Ok(SegmentRef { file, documents, tokens, deleted: None })
    }
}
