//! The bytes of a file: mapped, or already in memory.

use crate::error::{Error, Result, invalid};
#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::Mmap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// So many bytes are asked for at a time: some tenths of a millisecond.
const STRETCH: usize = 4 << 20;

/// Read-only bytes with the name that error messages use.
pub(super) struct Source {
    name: String,
    bytes: Bytes,
}

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Source {
    /// Maps the file at `path`.
    pub(super) fn map(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => Error::NotFound(format!("{name}: no such file")),
            _ => Error::io(format!("opening {name}"), e),
        })?;
        let metadata = file.metadata().map_err(|e| Error::io(format!("reading {name}"), e))?;
        if !metadata.is_file() {
            return invalid!("{name}: not a file");
        }
        if metadata.len() == 0 {
            return invalid!("{name}: the file is empty");
        }
        // SAFETY: the map is read-only and private. Another process that truncates the file while it is in use can still
        // stop this one with SIGBUS, as with every engine that maps its weights; a pulled model is moved into place whole
        // and never written again.
        #[allow(unsafe_code, reason = "weights are used where they lie")]
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(format!("mapping {name}"), e))?;
        Ok(Self { name, bytes: Bytes::Mapped(map) })
    }

    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        Self { name: "gguf bytes".to_owned(), bytes: Bytes::Owned(bytes) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Puts the file's pages into this process's tables, a stretch at a time, until `stop` says so.
    pub(super) fn touch(&self, stop: &AtomicBool) {
        #[cfg(target_os = "linux")]
        if let Bytes::Mapped(map) = &self.bytes {
            for start in (0..map.len()).step_by(STRETCH) {
                let len = STRETCH.min(map.len() - start);
                // Only a hint: kernels before 5.14 do not know it.
                if stop.load(Ordering::Relaxed) || map.advise_range(Advice::PopulateRead, start, len).is_err() {
                    return;
                }
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (stop, STRETCH);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
