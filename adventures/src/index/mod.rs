//! An index of documents that are many vectors each, one for a token: `ColBERT`'s late interaction, compressed and on disk.
//!
//! A directory of files that are never changed, and a manifest that says which are the index; a commit replaces the manifest.

mod builder;
mod codec;
mod exact;
mod file;
mod kmeans;
mod lists;
mod manifest;
mod nearest;
mod product;
mod scalar;
mod search;
mod segment;
mod snapshot;
#[cfg(test)]
mod tests;
mod writer;

use crate::device;
use crate::error::{Error, Result, invalid};
use manifest::{Lock, Manifest};
pub use search::{Found, SearchOptions};
use snapshot::Snapshot;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
pub use writer::{Documents, Progress, Writer};

/// The most dimensions of a vector.
const MAX_DIM: usize = 4096;

/// How an index is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexOptions {
    /// Bits of a dimension: 1, 2 (two and a half, to be exact) or 4; 32 keeps the vectors as they are.
    pub nbits: usize,
    /// What the same vectors are compressed the same with.
    pub seed: u64,
    /// Dimensions; 0 for those of the first document.
    pub dim: usize,
    /// Threads, all where it is `None`.
    pub threads: Option<usize>,
    /// What the vectors are made with, in words of who makes them; [`IndexInfo`] tells it to who asks.
    pub model: Option<String>,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { nbits: 4, seed: 42, dim: 0, threads: None, model: None }
    }
}

/// What an index is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexInfo {
    /// Commits before this one.
    pub generation: u64,
    /// Documents that are not deleted.
    pub documents: usize,
    /// Documents that are, and take room until the index is compacted.
    pub deleted: usize,
    /// Tokens, those of deleted documents included.
    pub tokens: usize,
    /// Dimensions; 0 before the first document.
    pub dim: usize,
    /// Bits of a dimension.
    pub nbits: usize,
    /// Centroids; 0 while vectors are kept as they are.
    pub centroids: usize,
    /// Files of documents.
    pub segments: usize,
    /// The bytes of all files.
    pub bytes: u64,
    /// What it was made with.
    pub seed: u64,
    /// As of [`IndexOptions`].
    pub model: Option<String>,
}

/// What an index and its writer share.
struct Shared {
    dir: PathBuf,
    current: Mutex<Arc<Snapshot>>,
    threads: usize,
    pool: OnceLock<rayon::ThreadPool>,
}

impl Shared {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, snapshot: Arc<Snapshot>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    fn pool(&self) -> Result<&rayon::ThreadPool> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let pool = device::pool(self.threads, "index")?;
        Ok(self.pool.get_or_init(|| pool))
    }
}

/// An index of documents of many vectors each.
#[derive(Clone)]
pub struct Index {
    shared: Arc<Shared>,
}

/// The documents that a search found, in the snapshot they were found in.
pub struct Results {
    snapshot: Arc<Snapshot>,
    /// For each query, the best first.
    pub queries: Vec<Vec<Found>>,
}

impl Results {
    /// Returns the id of a document.
    pub fn id(&self, found: &Found) -> &str {
        self.snapshot.id(found.document)
    }

    /// Returns the text of a document, if it has one; fails where it is broken.
    pub fn text(&self, found: &Found) -> Result<Option<&str>> {
        self.snapshot.text(found.document)
    }

    /// Returns the JSON of a document's metadata, if it has any; fails where it is broken.
    pub fn metadata(&self, found: &Found) -> Result<Option<&str>> {
        self.snapshot.metadata(found.document)
    }
}

impl Index {
    /// Begins an index in `dir`, which is made if it is not there; it is one once the writer commits.
    pub fn create(dir: impl AsRef<Path>, options: &IndexOptions) -> Result<(Self, Writer)> {
        let (dir, nbits) = (dir.as_ref(), options.nbits);
        if !matches!(nbits, 1 | 2 | 4 | 32) {
            return invalid!("nbits={nbits}: expected 1, 2, 4, or 32 for vectors as they are");
        }
        if options.dim > 0 {
            writer::check_dim(options.dim, 0)?;
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("making {}", dir.display()), e))?;
        let lock = Lock::take(dir)?;
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(format!("reading {}", dir.display()), e))?.flatten() {
            if !manifest::is_left_over(&entry.file_name().to_string_lossy()) {
                return invalid!("{}: not empty; an index is made in a directory of its own", dir.display());
            }
        }
        let base = Arc::new(Snapshot::empty(Manifest::new(options)));
        let index = Self::with(dir, base.clone(), options.threads)?;
        let writer = Writer::new(index.shared.clone(), base, lock, false);
        Ok((index, writer))
    }

    /// Opens the last commit of the index in `dir`. Its files are memory-mapped, so that processes share them: what lies where is
    /// checked, and the rest is read when it is used. [`Self::verify`] reads it all.
    pub fn open(dir: impl AsRef<Path>, threads: Option<usize>) -> Result<Self> {
        let snapshot = Snapshot::open(dir.as_ref(), None)?;
        Self::with(dir.as_ref(), Arc::new(snapshot), threads)
    }

    /// Returns whether an index has been committed in `dir`; it may be broken.
    pub fn is_at(dir: impl AsRef<Path>) -> bool {
        dir.as_ref().join(manifest::NAME).is_file()
    }

    fn with(dir: &Path, snapshot: Arc<Snapshot>, threads: Option<usize>) -> Result<Self> {
        let dir = std::path::absolute(dir).map_err(|e| Error::io(format!("finding {}", dir.display()), e))?;
        let (current, threads) = (Mutex::new(snapshot), device::threads(threads)?);
        Ok(Self { shared: Arc::new(Shared { dir, current, threads, pool: OnceLock::new() }) })
    }

    /// Reads all files, and fails where one is not what was written.
    pub fn verify(&self) -> Result<()> {
        self.shared.snapshot().parts.iter().try_for_each(|part| part.segment.verify())
    }

    /// Reads what others have committed; returns whether there is any.
    pub fn refresh(&self) -> Result<bool> {
        let now = self.shared.snapshot();
        if Manifest::read(&self.shared.dir)? == now.manifest {
            return Ok(false);
        }
        self.shared.replace(Arc::new(Snapshot::open(&self.shared.dir, Some(&now))?));
        Ok(true)
    }

    /// Returns the one that changes the index; `upsert` where documents replace those of the same id.
    ///
    /// Fails with [`Error::Busy`] while there is another, in this process or any.
    pub fn writer(&self, upsert: bool) -> Result<Writer> {
        let lock = Lock::take(&self.shared.dir)?;
        self.refresh()?;
        Ok(Writer::new(self.shared.clone(), self.shared.snapshot(), lock, upsert))
    }

    /// Returns the documents nearest to each of some queries, whose vectors end at `ends`; of those with `ids` only, if given.
    pub fn search(
        &self,
        vectors: &[f32],
        dim: usize,
        ends: &[usize],
        options: &SearchOptions,
        ids: Option<&[&str]>,
        cancel: &AtomicBool,
    ) -> Result<Results> {
        let snapshot = self.shared.snapshot();
        writer::check_dim(dim, snapshot.manifest.dim)?;
        if ends.last().copied().unwrap_or(0).checked_mul(dim) != Some(vectors.len()) || !ends.is_sorted() {
            return invalid!("{} numbers are not queries of {dim} dimensions", vectors.len());
        }
        let mut allowed = match ids {
            Some(ids) => {
                let find = |id: &&str| {
                    snapshot.find(id).ok_or_else(|| Error::Invalid(format!("id {id:?} is not in the index")))
                };
                Some(ids.iter().map(find).collect::<Result<Vec<_>>>()?)
            }
            None => None,
        };
        if let Some(allowed) = &mut allowed {
            allowed.sort_unstable();
            allowed.dedup();
        }
        let queries: Vec<&[f32]> =
            std::iter::once(&0).chain(ends).zip(ends).map(|(from, to)| &vectors[from * dim..to * dim]).collect();
        for (i, query) in queries.iter().enumerate() {
            let rows = query.len() / dim;
            if rows == 0 || rows > search::MAX_QUERY {
                return invalid!("query {i} has {rows} vectors; 1 to {} are read", search::MAX_QUERY);
            }
            if let Some(x) = query.iter().find(|x| !x.is_finite()) {
                return invalid!("the vectors of query {i} hold {x}");
            }
        }
        let search = || snapshot.search(&queries, options, allowed.as_deref(), cancel);
        let found = self.shared.pool()?.install(search)?;
        Ok(Results { queries: found, snapshot })
    }

    /// Returns the ids of all documents, in the order in which they lie.
    pub fn ids(&self) -> Vec<String> {
        let snapshot = self.shared.snapshot();
        snapshot.live().map(|document| snapshot.id(document).to_owned()).collect()
    }

    /// Returns how many documents there are.
    pub fn len(&self) -> usize {
        self.shared.snapshot().len()
    }

    /// Returns whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether there is a document of this id.
    pub fn contains(&self, id: &str) -> bool {
        self.shared.snapshot().find(id).is_some()
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Returns what the index is made of.
    pub fn info(&self) -> IndexInfo {
        let snapshot = self.shared.snapshot();
        let manifest = &snapshot.manifest;
        IndexInfo {
            generation: manifest.generation,
            documents: snapshot.len(),
            deleted: snapshot.documents - snapshot.len(),
            tokens: snapshot.tokens(),
            dim: manifest.dim,
            nbits: manifest.nbits,
            centroids: snapshot.codec.as_ref().map_or(0, |codec| codec.count()),
            segments: manifest.segments.len(),
            bytes: manifest.bytes(),
            seed: manifest.seed,
            model: manifest.model.clone(),
        }
    }
}
