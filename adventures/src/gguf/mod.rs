//! GGUF files, memory-mapped, with every count, length and offset checked before anything is used.
//!
//! Follows <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian. A file is hostile
//! until proven otherwise: the checks are one pass in front, so that no reader behind it does arithmetic on raw fields.

#[cfg(test)]
pub(crate) mod build;
mod cursor;
mod dtype;
mod metadata;
mod source;
#[cfg(test)]
mod tests;

pub use dtype::GgmlType;
pub use metadata::{Array, FromValue, Metadata, Value};

use crate::error::{Error, Result, cut, invalid, unsupported};
use cursor::Cursor;
use metadata::{Kind, Slot};
use source::Source;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Real files have tens of keys; the limit bounds the memory that a crafted header can ask for.
const MAX_KEYS: u64 = 65_536;
/// The largest mixtures of experts, one tensor per expert, stay below this.
const MAX_TENSORS: u64 = 262_144;
const MAX_NAME: usize = 65_535;
const MAX_DEPTH: u32 = 4;
const MAX_ALIGNMENT: u32 = 65_536;
const DEFAULT_ALIGNMENT: u32 = 32;

/// An open GGUF file.
pub struct Gguf {
    /// What the file says about itself.
    pub metadata: Metadata,
    source: Arc<Source>,
    names: Vec<String>,
    tensors: HashMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    dtype: GgmlType,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// One tensor, where it lies in the file.
#[derive(Debug, Clone, Copy)]
pub struct GgufTensor<'a> {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// How its numbers are stored.
    pub dtype: GgmlType,
    /// Its dimensions, fastest first: a matrix of `n` rows of `k` weights is `[k, n]`.
    pub shape: &'a [usize],
    /// Its bytes, exactly as many as `dtype` and `shape` need. No alignment is promised.
    pub data: &'a [u8],
}

impl Gguf {
    /// Maps the file at `path` and checks it.
    ///
    /// Fails where the file is missing, is not GGUF, is damaged, or holds a type that is not known here; nothing in it
    /// can make this allocate more than a small multiple of its header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::read(Source::map(path.as_ref())?)
    }

    /// Returns the file whose bytes are `bytes`.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self> {
        Self::read(Source::owned(bytes))
    }

    /// Returns the names of the tensors, in the order of the file.
    pub fn tensor_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Returns whether there is a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Returns the tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<GgufTensor<'_>> {
        let (name, entry) = self
            .tensors
            .get_key_value(name)
            .ok_or_else(|| Error::NotFound(format!("{}: no tensor {name:?}", self.source.name())))?;
        Ok(GgufTensor {
            name,
            dtype: entry.dtype,
            shape: &entry.shape,
            data: &self.source.bytes()[entry.bytes.clone()],
        })
    }

    /// Returns the path of the file, as errors name it.
    pub fn name(&self) -> &str {
        self.source.name()
    }

    /// Runs `work` while another thread asks the system for the pages of the file, which the first token reads all of.
    pub(crate) fn while_touched<T>(&self, work: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Without the thread it is as right, and a little later.
            let _ = std::thread::Builder::new().spawn_scoped(scope, || self.source.touch(&stop));
            let result = work();
            stop.store(true, Ordering::Relaxed);
            result
        })
    }

    fn read(source: Source) -> Result<Self> {
        let source = Arc::new(source);
        let header = Header::read(source.bytes()).map_err(|e| match e {
            Error::Invalid(m) => Error::Invalid(format!("{}: {}", source.name(), cut(m))),
            Error::Unsupported(m) => Error::Unsupported(format!("{}: {}", source.name(), cut(m))),
            other => other,
        })?;
        let metadata = Metadata::new(source.clone(), header.slots);
        if let Some(parts @ 2..) = metadata.find::<u32>("split.count")? {
            return unsupported!(
                "{}: one of {parts} parts of a model; join them with `llama-gguf-split --merge` first",
                source.name()
            );
        }
        Ok(Self { metadata, source, names: header.names, tensors: header.tensors })
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("name", &self.name())
            .field("metadata", &self.metadata)
            .field("tensors", &self.names.len())
            .finish_non_exhaustive()
    }
}

struct Header {
    slots: HashMap<String, Slot>,
    names: Vec<String>,
    tensors: HashMap<String, Entry>,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new(bytes);
        if bytes.get(..4) != Some(b"GGUF") {
            return invalid!(
                "not a GGUF file: it starts with {:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(4)])
            );
        }
        cursor.take(4)?;
        let version = cursor.u32()?;
        match version {
            2 | 3 => {}
            _ if (1..=3).contains(&version.swap_bytes()) => return unsupported!("a big-endian GGUF file"),
            _ => return unsupported!("GGUF version {version}; versions 2 and 3 are known"),
        }
        let tensor_count = cursor.u64()?;
        let key_count = cursor.u64()?;
        // A key takes at least 8 + 1 bytes of name, 4 of type and 1 of value; a tensor 8 + 1 of name, 4 of rank, 8 of shape,
        // 4 of type and 8 of offset.
        check_count("metadata keys", key_count, MAX_KEYS, cursor.remaining() / 14)?;
        check_count("tensors", tensor_count, MAX_TENSORS, cursor.remaining() / 33)?;

        let slots = read_metadata(&mut cursor, key_count)?;
        let alignment = alignment(&slots, bytes)?;
        let (names, mut tensors) = read_tensors(&mut cursor, tensor_count, alignment)?;
        place(&names, &mut tensors, cursor.position(), alignment, bytes.len())?;
        Ok(Self { slots, names, tensors })
    }
}

fn check_count(what: &str, count: u64, limit: u64, room: u64) -> Result<()> {
    if count > limit {
        return invalid!("the header counts {count} {what}, at most {limit} are allowed");
    }
    if count > room {
        return invalid!("the header counts {count} {what}, the file has room for {room}");
    }
    Ok(())
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Slot>> {
    let mut slots = HashMap::with_capacity(count as usize);
    for _ in 0..count {
        let key = cursor.name("metadata key", MAX_NAME)?;
        let slot = read_slot(cursor).map_err(|e| match e {
            Error::Invalid(m) => Error::Invalid(format!("metadata key {key:?}: {m}")),
            other => other,
        })?;
        if slots.insert(key.to_owned(), slot).is_some() {
            return invalid!("metadata key {key:?} is there twice");
        }
    }
    Ok(slots)
}

fn read_slot(cursor: &mut Cursor<'_>) -> Result<Slot> {
    let kind = cursor.kind()?;
    if kind == Kind::Array {
        let (element, len) = cursor.array_header()?;
        let start = cursor.position();
        skip_elements(cursor, element, len, 1)?;
        return Ok(Slot::Array { element, len, bytes: start..cursor.position() });
    }
    let start = cursor.position();
    skip_elements(cursor, kind, 1, 0)?;
    Ok(Slot::Scalar(kind, start..cursor.position()))
}

/// Steps over `len` values of `kind`, checking that each is well formed.
fn skip_elements(cursor: &mut Cursor<'_>, kind: Kind, len: usize, depth: u32) -> Result<()> {
    match kind {
        Kind::Array if depth >= MAX_DEPTH => return invalid!("arrays nested more than {MAX_DEPTH} deep"),
        Kind::Array => {
            for _ in 0..len {
                let (element, len) = cursor.array_header()?;
                skip_elements(cursor, element, len, depth + 1)?;
            }
        }
        Kind::Str => {
            for _ in 0..len {
                cursor.string()?;
            }
        }
        Kind::Bool => {
            if let Some(other) = cursor.take(len as u64)?.iter().find(|b| **b > 1) {
                return invalid!("the byte {other} is not a boolean");
            }
        }
        fixed => {
            cursor.take(len as u64 * fixed.min_bytes())?;
        }
    }
    Ok(())
}

fn alignment(slots: &HashMap<String, Slot>, bytes: &[u8]) -> Result<u64> {
    let alignment = match slots.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Slot::Scalar(Kind::U32, range)) => Cursor::new(&bytes[range.clone()]).u32()?,
        Some(Slot::Scalar(kind, _)) => return invalid!("general.alignment must be a u32, it is a {kind}"),
        Some(Slot::Array { .. }) => return invalid!("general.alignment must be a u32, it is an array"),
    };
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return invalid!("general.alignment is {alignment}, it must be a power of two up to {MAX_ALIGNMENT}");
    }
    Ok(u64::from(alignment))
}

type Tensors = (Vec<String>, HashMap<String, Entry>);

/// Reads the tensor table; each entry's bytes are relative to the start of the data until [`place`] has moved them.
fn read_tensors(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<Tensors> {
    let mut names = Vec::with_capacity(count as usize);
    let mut tensors = HashMap::with_capacity(count as usize);
    for _ in 0..count {
        let name = cursor.name("tensor name", MAX_NAME)?;
        let entry = read_entry(cursor, alignment).map_err(|e| match e {
            Error::Invalid(m) => Error::Invalid(format!("tensor {name:?}: {m}")),
            Error::Unsupported(m) => Error::Unsupported(format!("tensor {name:?}: {m}")),
            other => other,
        })?;
        names.push(name.to_owned());
        if tensors.insert(name.to_owned(), entry).is_some() {
            return invalid!("tensor {name:?} is there twice");
        }
    }
    Ok((names, tensors))
}

fn read_entry(cursor: &mut Cursor<'_>, alignment: u64) -> Result<Entry> {
    let rank = cursor.u32()?;
    if !(1..=4).contains(&rank) {
        return invalid!("it has {rank} dimensions, 1 to 4 are allowed");
    }
    let dims = (0..rank).map(|_| cursor.u64()).collect::<Result<Vec<_>>>()?;
    if dims.contains(&0) {
        return invalid!("a dimension of {dims:?} is 0");
    }
    let number = cursor.u32()?;
    let Some(dtype) = GgmlType::from_number(number) else {
        return unsupported!("unknown type {number}");
    };
    if dims[0] % dtype.block_size() as u64 != 0 {
        return invalid!("rows of {} weights do not divide into {dtype} blocks of {}", dims[0], dtype.block_size());
    }
    let bytes = dims
        .iter()
        .try_fold(1u64, |a, b| a.checked_mul(*b))
        .and_then(|weights| (weights / dtype.block_size() as u64).checked_mul(dtype.block_bytes() as u64));
    let Some(bytes) = bytes else {
        return invalid!("its shape {dims:?} is too large");
    };
    let offset = cursor.u64()?;
    if offset % alignment != 0 {
        return invalid!("its offset {offset} is not a multiple of the alignment {alignment}");
    }
    let Some(end) = offset.checked_add(bytes) else {
        return invalid!("its offset {offset} is too large");
    };
    let (Ok(start), Ok(end)) = (usize::try_from(offset), usize::try_from(end)) else {
        return invalid!("its end, byte {end} of the data, is beyond this machine's address space");
    };
    let shape = dims.iter().map(|d| *d as usize).collect();
    Ok(Entry { dtype, shape, bytes: start..end })
}

/// Moves the entries to where the data starts and refuses those that leave the file or overlap.
fn place(
    names: &[String],
    tensors: &mut HashMap<String, Entry>,
    header_end: usize,
    alignment: u64,
    file_len: usize,
) -> Result<()> {
    let data_start = header_end.next_multiple_of(alignment as usize);
    for name in names {
        let entry = tensors.get_mut(name).expect("every name has its entry; this is a bug");
        match entry.bytes.end.checked_add(data_start) {
            Some(end) if end <= file_len => entry.bytes = entry.bytes.start + data_start..end,
            _ => {
                return invalid!(
                    "tensor {name:?} needs {} bytes from byte {} on, the file has {file_len}: is it cut short?",
                    entry.bytes.len(),
                    entry.bytes.start.saturating_add(data_start)
                );
            }
        }
    }
    let mut order: Vec<&str> = names.iter().map(String::as_str).collect();
    order.sort_unstable_by_key(|name| tensors[*name].bytes.start);
    for pair in order.windows(2) {
        if tensors[pair[0]].bytes.end > tensors[pair[1]].bytes.start {
            return invalid!("tensors {:?} and {:?} overlap", pair[0], pair[1]);
        }
    }
    Ok(())
}
