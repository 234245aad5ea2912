//! What changes an index: one writer at a time, whose commit is seen whole or not at all.

use super::builder::{Builder, Record};
use super::codec::Codec;
use super::file;
use super::kmeans;
use super::manifest::{Lock, Manifest, SUFFIX, SegmentRef};
use super::snapshot::{Bits, Snapshot};
use super::{MAX_DIM, Shared};
use crate::error::{Error, Result, invalid};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An index of fewer tokens keeps its vectors as they are.
pub(super) const EXACT: usize = 1 << 15;
/// Tokens that are compressed together.
const CHUNK: usize = 1 << 14;
/// The most tokens that a codec is trained on.
const SAMPLE: usize = 1 << 20;
/// More segments than this are merged.
const SEGMENTS: usize = 16;
/// A segment of fewer bytes is small.
const SMALL: u64 = 16 << 20;

/// Documents to add.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// Not empty, and unlike all others.
    pub ids: &'a [&'a str],
    /// None, or one for each.
    pub texts: Option<&'a [Option<&'a str>]>,
    /// None, or the JSON of each.
    pub metadata: Option<&'a [Option<&'a str>]>,
    /// `(n, dim)`: the tokens of all, one after the other.
    pub vectors: &'a [f32],
    /// Where the tokens of each end.
    pub ends: &'a [usize],
}

/// Is told what is being done, how much of it is done, and of how much; an error ends it.
pub type Progress<'a> = dyn FnMut(&'static str, usize, usize) -> Result<()> + 'a;

/// The one that changes an index. Without [`Self::commit`], nothing changes.
pub struct Writer {
    shared: Arc<Shared>,
    base: Arc<Snapshot>,
    manifest: Manifest,
    builder: Builder,
    new: HashSet<String>,
    deleted: BTreeMap<usize, Bits>,
    upsert: bool,
    files: usize,
    committed: bool,
    _lock: Lock,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, base: Arc<Snapshot>, lock: Lock, upsert: bool) -> Self {
        let mut manifest = base.manifest.clone();
        manifest.generation += 1;
        Self {
            shared,
            base,
            manifest,
            builder: Builder::default(),
            new: HashSet::new(),
            deleted: BTreeMap::new(),
            upsert,
            files: 0,
            committed: false,
            _lock: lock,
        }
    }

    fn name(&mut self, kind: &str) -> String {
        self.files += 1;
        format!("{kind}-{}-{}{SUFFIX}", self.manifest.generation, self.files)
    }

    /// Adds documents of vectors of `dim` dimensions. Fails where one is there already, unless this writer replaces them.
    pub fn push(&mut self, documents: &Documents<'_>, dim: usize, cancel: &AtomicBool) -> Result<()> {
        self.check(documents, dim)?;
        for id in documents.ids {
            if !self.new.insert((*id).to_owned()) {
                return invalid!("id {id:?} is given twice");
            }
            if let Some(old) = self.base.find(id) {
                if !self.upsert {
                    return invalid!("id {id:?} is in the index already; upsert replaces it");
                }
                self.mark(old);
            }
        }
        self.manifest.dim = dim;
        let records: Vec<Record<'_>> = (0..documents.ids.len())
            .map(|i| Record {
                id: documents.ids[i],
                text: documents.texts.and_then(|texts| texts[i]),
                metadata: documents.metadata.and_then(|metadata| metadata[i]),
            })
            .collect();
        let (mut first, mut token) = (0, 0);
        while first < records.len() {
            // At least one document; of many, as many as are compressed together.
            let end = documents.ends[first..].partition_point(|end| *end <= token + CHUNK).max(1) + first;
            let ends: Vec<usize> = documents.ends[first..end].iter().map(|end| end - token).collect();
            let last = token + ends[ends.len() - 1];
            self.put(&records[first..end], &documents.vectors[token * dim..last * dim], &ends, cancel)?;
            (first, token) = (end, last);
        }
        Ok(())
    }

    fn check(&self, documents: &Documents<'_>, dim: usize) -> Result<()> {
        let Documents { ids, texts, metadata, vectors, ends } = documents;
        let count = ids.len();
        for (name, length) in [("text", texts.map(<[_]>::len)), ("metadata", metadata.map(<[_]>::len))] {
            if length.is_some_and(|length| length != count) {
                return invalid!("{} of {name} for {count} ids", length.unwrap_or_default());
            }
        }
        if ends.len() != count {
            return invalid!("{} documents' vectors for {count} ids", ends.len());
        }
        check_dim(dim, self.manifest.dim)?;
        if !ends.is_sorted() || ends.last().copied().unwrap_or(0).checked_mul(dim) != Some(vectors.len()) {
            return invalid!("{} numbers are not the tokens of {count} documents of {dim} dimensions", vectors.len());
        }
        if let Some(i) = ids.iter().position(|id| id.is_empty()) {
            return invalid!("the id of document {i} is empty");
        }
        if let Some(i) = vectors.iter().position(|x| !x.is_finite()) {
            let document = ends.partition_point(|end| end * dim <= i);
            return invalid!("the vectors of document {:?} hold {}", ids[document], vectors[i]);
        }
        Ok(())
    }

    fn put(&mut self, records: &[Record<'_>], vectors: &[f32], ends: &[usize], cancel: &AtomicBool) -> Result<()> {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let codec = self.base.codec.clone();
        if let Some(codec) = &codec {
            let builder = &mut self.builder;
            self.shared.pool()?.install(|| builder.encode(records, vectors, ends, codec, cancel))?;
        } else {
            let dim = self.manifest.dim;
            let starts = std::iter::once(&0).chain(ends);
            for (record, (from, to)) in records.iter().zip(starts.zip(ends)) {
                self.builder.push(*record, &vectors[from * dim..to * dim], dim);
            }
        }
        if self.builder.is_full() { self.flush(codec.as_deref()) } else { Ok(()) }
    }

    fn flush(&mut self, codec: Option<&Codec>) -> Result<()> {
        if self.builder.documents() > 0 {
            let name = self.name("segment");
            let segment = self.builder.flush(&self.shared.dir, &name, self.manifest.dim, codec)?;
            self.manifest.segments.push(segment);
        }
        Ok(())
    }

    fn mark(&mut self, document: usize) {
        let (part, place) = self.base.part_of(document);
        self.deleted.entry(part).or_insert_with(|| self.base.parts[part].deleted.clone()).insert(place);
    }

    /// Deletes the document that has this id; returns whether there is one.
    pub fn delete(&mut self, id: &str) -> bool {
        let found = self.base.find(id);
        if let Some(document) = found {
            self.mark(document);
        }
        found.is_some()
    }

    /// Makes all this the index, and returns how many documents it has.
    pub fn commit(mut self, progress: &mut Progress<'_>, cancel: &AtomicBool) -> Result<usize> {
        let codec = self.base.codec.clone();
        self.flush(codec.as_deref())?;
        self.write_deleted();
        if codec.is_none() && self.manifest.nbits < 32 {
            self.compress(progress, cancel)?;
        }
        if self.manifest.segments.len() > SEGMENTS {
            self.merge(|segment| segment.file.bytes < SMALL, cancel)?;
        }
        self.finish()
    }

    /// As [`Self::commit`], with the room of deleted documents given back, and small segments merged.
    pub fn compact(mut self, cancel: &AtomicBool) -> Result<usize> {
        let codec = self.base.codec.clone();
        self.flush(codec.as_deref())?;
        self.write_deleted();
        let small = self.manifest.segments.iter().filter(|segment| segment.file.bytes < SMALL).count();
        self.merge(|segment| segment.deleted.is_some() || (small > 1 && segment.file.bytes < SMALL), cancel)?;
        self.finish()
    }

    fn finish(mut self) -> Result<usize> {
        if self.files > 0 {
            file::sync_dir(&self.shared.dir)?;
        }
        // What cannot be opened must not become the index.
        let snapshot = Snapshot::of(&self.shared.dir, self.manifest.clone(), Some(&self.base))?;
        self.manifest.commit(&self.shared.dir)?;
        self.committed = true;
        self.manifest.clean(&self.shared.dir);
        let count = snapshot.len();
        self.shared.replace(Arc::new(snapshot));
        Ok(count)
    }

    fn write_deleted(&mut self) {
        for (part, bits) in std::mem::take(&mut self.deleted) {
            self.manifest.segments[part].deleted = Some(bits.to_hex());
            // Nothing is left of it; taken out below, where places no longer matter.
            if bits.count() == self.manifest.segments[part].documents {
                self.manifest.segments[part].documents = 0;
            }
        }
        self.manifest.segments.retain(|segment| segment.documents > 0);
    }

    /// Trains a codec and compresses all segments with it, where there are tokens enough.
    fn compress(&mut self, progress: &mut Progress<'_>, cancel: &AtomicBool) -> Result<()> {
        let tokens: usize = self.manifest.segments.iter().map(|segment| segment.tokens).sum();
        if tokens < EXACT {
            return Ok(());
        }
        let (dim, nbits, seed) = (self.manifest.dim, self.manifest.nbits, self.manifest.seed);
        let whole = Snapshot::of(&self.shared.dir, self.manifest.clone(), Some(&self.base))?;
        progress("train", 0, tokens)?;
        let wanted =
            (kmeans::count(tokens as u64, usize::MAX / 4, nbits) * kmeans::PER_CENTROID).min(SAMPLE).min(tokens);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut sample = Vec::with_capacity(wanted * dim);
        let lengths: Vec<usize> = whole.parts.iter().map(|part| part.segment.token_count()).collect();
        let mut before = 0;
        for (part, token) in sampled(&lengths, wanted, &mut rng) {
            if part != before {
                whole.parts[before].segment.release();
                before = part;
            }
            sample.extend_from_slice(whole.parts[part].segment.vectors(token..token + 1));
        }
        let shared = self.shared.clone();
        let pool = shared.pool()?;
        let codec = pool.install(|| Codec::train(&sample, dim, nbits, tokens as u64, &mut rng, cancel))?;
        drop(sample);
        self.manifest.segments.clear();
        let mut done = 0;
        for part in &whole.parts {
            let (segment, mut document) = (&part.segment, 0);
            segment.verify()?;
            while document < segment.documents() {
                let (mut records, mut vectors, mut ends) = (Vec::new(), Vec::new(), Vec::new());
                while document < segment.documents() && vectors.len() < CHUNK * dim {
                    if !part.deleted.has(document) {
                        records.push(Record::of(segment, document)?);
                        vectors.extend_from_slice(segment.vectors(segment.range(document)));
                        ends.push(vectors.len() / dim);
                    }
                    document += 1;
                }
                let builder = &mut self.builder;
                pool.install(|| builder.encode(&records, &vectors, &ends, &codec, cancel))?;
                if self.builder.is_full() {
                    self.flush(Some(&codec))?;
                }
                done += vectors.len() / dim;
                progress("compress", done, tokens)?;
            }
            segment.release();
        }
        self.flush(Some(&codec))?;
        let name = self.name("codec");
        self.manifest.codec = Some(file::write(&self.shared.dir, &name, &[&codec.to_bytes()])?);
        Ok(())
    }

    /// Copies what is left of segments to new ones.
    fn merge(&mut self, which: impl Fn(&SegmentRef) -> bool, cancel: &AtomicBool) -> Result<()> {
        if !self.manifest.segments.iter().any(&which) {
            return Ok(());
        }
        let whole = Snapshot::of(&self.shared.dir, self.manifest.clone(), Some(&self.base))?;
        let old = std::mem::take(&mut self.manifest.segments);
        for (part, segment) in whole.parts.iter().zip(old) {
            if !which(&segment) {
                self.manifest.segments.push(segment);
                continue;
            }
            // What is broken must not get a checksum that is right.
            part.segment.verify()?;
            for document in (0..segment.documents).filter(|document| !part.deleted.has(*document)) {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Error::Cancelled);
                }
                self.builder.copy(&part.segment, document, whole.codec.as_deref(), whole.manifest.dim)?;
                if self.builder.is_full() {
                    self.flush(whole.codec.as_deref())?;
                }
            }
            part.segment.release();
        }
        self.flush(whole.codec.as_deref())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // A commit that failed at its very end may be the index all the same: what counts is the manifest that is there.
        match Manifest::read(&self.shared.dir) {
            Ok(manifest) => manifest.clean(&self.shared.dir),
            Err(Error::NotFound(_)) => self.base.manifest.clean(&self.shared.dir),
            Err(_) => {}
        }
    }
}

/// One token of each of `wanted` stretches, as long as each other, of parts of so many tokens: which part, and which of its tokens.
pub(super) fn sampled(lengths: &[usize], wanted: usize, rng: &mut ChaCha8Rng) -> Vec<(usize, usize)> {
    let total: usize = lengths.iter().sum();
    let (mut part, mut before) = (0, 0);
    (0..wanted)
        .map(|i| {
            let (from, to) = (i * total / wanted, (i + 1) * total / wanted);
            let token = from + (rng.next_u64() % (to - from) as u64) as usize;
            while token >= before + lengths[part] {
                before += lengths[part];
                part += 1;
            }
            (part, token - before)
        })
        .collect()
}

/// Fails where vectors of `dim` dimensions do not fit an index of `known`, if those are known.
pub(super) fn check_dim(dim: usize, known: usize) -> Result<()> {
    if !(1..=MAX_DIM).contains(&dim) {
        return invalid!("vectors of {dim} dimensions; 1 to {MAX_DIM} are supported");
    }
    if known != 0 && known != dim {
        return invalid!("vectors of {dim} dimensions, the index has {known}");
    }
    Ok(())
}
