//! Files of a name, a length and a checksum; written whole, then made durable.

use crate::error::{Error, Result, invalid};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a manifest says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRef {
    pub(super) file: String,
    pub(super) bytes: u64,
    /// XXH64, in hexadecimal.
    pub(super) checksum: String,
}

/// Writes `parts` end to end to a new file `name` in `dir`, and waits until the disk has it.
pub(super) fn write(dir: &Path, name: &str, parts: &[&[u8]]) -> Result<FileRef> {
    let path = dir.join(name);
    let put = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.sync_all()
    };
    put().map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
    let mut hash = Hash::new();
    for part in parts {
        hash.update(part);
    }
    let bytes = parts.iter().map(|part| part.len() as u64).sum();
    Ok(FileRef { file: name.to_owned(), bytes, checksum: format!("{:016x}", hash.finish()) })
}

/// Waits until the disk has the names in `dir`.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let sync = File::open(dir).and_then(|dir| dir.sync_all());
    sync.map_err(|e| Error::io(format!("writing {}", dir.display()), e))
}

/// A file in memory, as its manifest says that it is.
#[derive(Debug)]
pub(super) struct Mapped {
    path: PathBuf,
    checksum: String,
    /// An empty file cannot be mapped.
    map: Option<Mmap>,
}

impl Mapped {
    /// Maps the file, which must have the length that it was written with; what it holds is read when it is used.
    pub(super) fn open(dir: &Path, file: &FileRef) -> Result<Self> {
        // A path would let a manifest read any file.
        if Path::new(&file.file).file_name().is_none_or(|name| name != file.file.as_str()) {
            return invalid!("{}: {:?} is not a file name", dir.display(), file.file);
        }
        let path = dir.join(&file.file);
        let fail = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound(format!("{}: a part of the index is gone", path.display())),
            _ => Error::io(format!("memory-mapping {}", path.display()), e),
        };
        let handle = File::open(&path).map_err(fail)?;
        let metadata = handle.metadata().map_err(fail)?;
        if !metadata.is_file() || metadata.len() != file.bytes {
            return invalid!("{}: {} bytes, the index was written with {}", path.display(), metadata.len(), file.bytes);
        }
        let map = if file.bytes == 0 {
            None
        } else {
            // SAFETY: the mapping is read-only, and no file of an index is written to once its manifest names it. A file that
            // another program truncates meanwhile raises SIGBUS, as for every program that maps its data.
            #[allow(unsafe_code)]
            let map = unsafe { Mmap::map(&handle) }.map_err(fail)?;
            Some(map)
        };
        Ok(Self { path, checksum: file.checksum.clone(), map })
    }

    /// Reads all of the file, and fails where it is not what was written.
    pub(super) fn verify(&self) -> Result<()> {
        if format!("{:016x}", hash(self.bytes())) != self.checksum {
            return invalid!("{}: corrupt: its checksum is not that of the index", self.path.display());
        }
        Ok(())
    }

    /// Lets the system take back the memory of what was read; reading it again is as before.
    pub(super) fn release(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: a mapping of a file that nobody writes to: its pages come back as they were. A hint, which may fail.
            #[allow(unsafe_code)]
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

const PRIMES: [u64; 5] =
    [0x9e37_79b1_85eb_ca87, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0x85eb_ca77_c2b2_ae63, 0x27d4_eb2f_1656_67c5];

/// XXH64 with seed 0 (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>).
pub(super) struct Hash {
    lanes: [u64; 4],
    rest: [u8; 32],
    length: u64,
}

impl Hash {
    pub(super) fn new() -> Self {
        let [p1, p2, ..] = PRIMES;
        Self { lanes: [p1.wrapping_add(p2), p2, 0, 0_u64.wrapping_sub(p1)], rest: [0; 32], length: 0 }
    }

    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        let held = (self.length % 32) as usize;
        self.length += bytes.len() as u64;
        if held + bytes.len() < 32 {
            self.rest[held..held + bytes.len()].copy_from_slice(bytes);
            return;
        }
        if held > 0 {
            let (first, others) = bytes.split_at(32 - held);
            self.rest[held..].copy_from_slice(first);
            let rest = self.rest;
            self.stripe(&rest);
            bytes = others;
        }
        let (stripes, rest) = bytes.as_chunks::<32>();
        for stripe in stripes {
            self.stripe(stripe);
        }
        self.rest[..rest.len()].copy_from_slice(rest);
    }

    fn stripe(&mut self, stripe: &[u8; 32]) {
        for (lane, word) in self.lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
            *lane = round(*lane, u64::from_le_bytes(*word));
        }
    }

    pub(super) fn finish(&self) -> u64 {
        let [p1, p2, p3, p4, p5] = PRIMES;
        let mut hash = if self.length < 32 {
            p5
        } else {
            let [a, b, c, d] = self.lanes;
            let sum = a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12));
            self.lanes.iter().fold(sum.wrapping_add(d.rotate_left(18)), |hash, lane| {
                (hash ^ round(0, *lane)).wrapping_mul(p1).wrapping_add(p4)
            })
        };
        hash = hash.wrapping_add(self.length);
        let (words, rest) = self.rest[..(self.length % 32) as usize].as_chunks::<8>();
        for word in words {
            hash = (hash ^ round(0, u64::from_le_bytes(*word))).rotate_left(27).wrapping_mul(p1).wrapping_add(p4);
        }
        let (halves, rest) = rest.as_chunks::<4>();
        for half in halves {
            let half = u64::from(u32::from_le_bytes(*half)).wrapping_mul(p1);
            hash = (hash ^ half).rotate_left(23).wrapping_mul(p2).wrapping_add(p3);
        }
        for byte in rest {
            hash = (hash ^ u64::from(*byte).wrapping_mul(p5)).rotate_left(11).wrapping_mul(p1);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(p2);
        hash = (hash ^ (hash >> 29)).wrapping_mul(p3);
        hash ^ (hash >> 32)
    }
}

/// Returns the hash of `bytes`.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hash = Hash::new();
    hash.update(bytes);
    hash.finish()
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_xxh64() {
        // xxhash 3.7.0 of Python, of the letters "abc…zabc…".
        let letters: Vec<u8> = (b'a'..=b'z').cycle().take(100).collect();
        for (length, want) in [
            (0, 0xef46_db37_51d8_e999),
            (1, 0xd24e_c4f1_a98c_6e5b),
            (3, 0x44bc_2cf5_ad77_0999),
            (26, 0xcfe1_f278_fa89_835c),
        ] {
            assert_eq!(hash(&letters[..length]), want, "{length}");
        }
        for cut in [0, 1, 31, 32, 33, 64, 99] {
            let mut parts = Hash::new();
            parts.update(&letters[..cut]);
            parts.update(&letters[cut..]);
            assert_eq!(parts.finish(), hash(&letters));
        }
    }
}
