//! The manifest: which files are the index. A commit replaces it by renaming, and nothing else is ever replaced.

use super::IndexOptions;
use super::file::{self, FileRef};
use crate::error::{Error, Result, cut, invalid};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::path::Path;

pub(super) const NAME: &str = "manifest.json";
const NEXT: &str = "manifest.next";
const LOCK: &str = "write.lock";
const FORMAT: &str = "adventures-colbert-index-2";
const MAX_BYTES: u64 = 64 << 20;
/// What the names of all other files end with.
pub(super) const SUFFIX: &str = ".part";

/// An index, as its manifest says that it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: String,
    /// Commits before this one.
    pub(super) generation: u64,
    /// 0 before the first document.
    pub(super) dim: usize,
    /// 1, 2 or 4; 32 where vectors stay as they are.
    pub(super) nbits: usize,
    pub(super) seed: u64,
    /// What the vectors are made with.
    pub(super) model: Option<String>,
    /// Absent where all segments hold vectors as they are.
    pub(super) codec: Option<FileRef>,
    pub(super) segments: Vec<SegmentRef>,
}

/// What every format of a manifest says.
#[derive(Deserialize)]
struct Format {
    format: String,
}

/// A segment, and what is deleted of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SegmentRef {
    pub(super) file: FileRef,
    pub(super) documents: usize,
    pub(super) tokens: usize,
    /// A bit for each document up to the last that is deleted, in hexadecimal: here, so that a commit that deletes writes no file
    /// but this.
    pub(super) deleted: Option<String>,
}

impl Manifest {
    pub(super) fn new(options: &IndexOptions) -> Self {
        let &IndexOptions { nbits, seed, dim, ref model, .. } = options;
        let (format, model) = (FORMAT.to_owned(), model.clone());
        Self { format, generation: 0, dim, nbits, seed, model, codec: None, segments: Vec::new() }
    }

    /// Reads the manifest of `dir`.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let shown = path.display();
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotFound(format!("{}: no index there: no {NAME}", dir.display())));
            }
            Err(e) => return Err(Error::io(format!("reading {shown}"), e)),
        };
        if metadata.len() > MAX_BYTES {
            return invalid!("{shown}: {} bytes; at most {MAX_BYTES} are read", metadata.len());
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(format!("reading {shown}"), e))?;
        let text = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n')?.split_once('\n'));
        let Some((json, checksum)) = text else { return invalid!("{shown}: not the manifest of an index") };
        if format!("{:016x}", file::hash(json.as_bytes())) != checksum {
            return invalid!("{shown}: corrupt: its checksum is not that of its text");
        }
        let bad = |e: serde_json::Error| Error::Invalid(format!("{shown}: {}", cut(e.to_string())));
        // First, for the fields of another format may be others.
        let Format { format } = serde_json::from_str(json).map_err(bad)?;
        if format != FORMAT {
            return invalid!("{shown}: format {:?}, this version reads {FORMAT:?}; make the index anew", cut(format));
        }
        let manifest: Self = serde_json::from_str(json).map_err(bad)?;
        if manifest.dim > super::MAX_DIM || !matches!(manifest.nbits, 1 | 2 | 4 | 32) {
            return invalid!("{shown}: {} dimensions of {} bits", manifest.dim, manifest.nbits);
        }
        if manifest.dim == 0 && !(manifest.segments.is_empty() && manifest.codec.is_none()) {
            return invalid!("{shown}: segments of no dimensions");
        }
        Ok(manifest)
    }

    /// Makes this the index of `dir`, all whose files the disk has already.
    pub(super) fn commit(&self, dir: &Path) -> Result<()> {
        let json = serde_json::to_string(self).map_err(|e| Error::Invalid(format!("a manifest: {e}")))?;
        let checksum = format!("\n{:016x}\n", file::hash(json.as_bytes()));
        file::write(dir, NEXT, &[json.as_bytes(), checksum.as_bytes()])?;
        std::fs::rename(dir.join(NEXT), dir.join(NAME))
            .map_err(|e| Error::io(format!("replacing {}", dir.join(NAME).display()), e))?;
        file::sync_dir(dir)
    }

    fn files(&self) -> impl Iterator<Item = &FileRef> {
        self.codec.iter().chain(self.segments.iter().map(|segment| &segment.file))
    }

    /// The bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    /// Removes what no manifest names: what a commit replaced, and what a writer that died has left. Who reads a file meanwhile
    /// keeps it.
    pub(super) fn clean(&self, dir: &Path) {
        let used: HashSet<&str> = self.files().map(|file| file.file.as_str()).collect();
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name == NEXT || (name.ends_with(SUFFIX) && !used.contains(name)) {
                // What cannot be removed now is removed after the next commit.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Whether a file of this name is one that a writer left who did not commit.
pub(super) fn is_left_over(name: &str) -> bool {
    name == LOCK || name == NEXT || name.ends_with(SUFFIX)
}

/// The right to write; the system takes it back when its holder dies.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code, reason = "held for what closing it does")] File);

impl Lock {
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join(LOCK);
        let fail = |e| Error::io(format!("locking {}", path.display()), e);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Busy(format!(
                "{}: the index is being written by another; wait for it to end",
                dir.display()
            ))),
            Err(TryLockError::Error(e)) => Err(fail(e)),
        }
    }
}
