//! A model's directory: `config.json`, `tokenizer.json` and safetensors, as the Hugging Face hub lays them out.

use crate::error::{Error, Result, cut, invalid, message, unsupported};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// The longest added token; the real ones are below 100 bytes.
const MAX_ADDED: usize = 1024;
/// A text of letters, white space and what is neither.
const PROBE: &str = "The cat, 12 é日🐉 \n\n<s>";
/// How many times as long a normalizer may make a text: a space that becomes three bytes is usual.
const MAX_GROWTH: f64 = 64.0;
/// The largest JSON file that is read; the real ones are below 20 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// A model's directory, its weights memory-mapped.
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    shards: Vec<Shard>,
    shard_of: HashMap<String, usize>,
}

struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors start: after the length and the header.
    start: usize,
}

/// One tensor as it lies in the file.
#[derive(Debug, Clone, Copy)]
pub struct RawTensor<'a> {
    /// How the numbers are stored.
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: &'a [usize],
    /// Little-endian numbers, not necessarily aligned.
    pub data: &'a [u8],
}

impl Checkpoint {
    /// Opens `dir`. The weights are one `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::with(dir.as_ref(), "a model", "config.json", weight_files)
    }

    /// Opens the directory of an adapter: [`Self::config`] is its `adapter_config.json`, the tensors are those of its
    /// `adapter_model.safetensors`.
    pub(crate) fn open_adapter(dir: &Path) -> Result<Self> {
        Self::with(dir, "an adapter", "adapter_config.json", |dir| {
            let path = dir.join("adapter_model.safetensors");
            if path.is_file() {
                return Ok(vec![path]);
            }
            if dir.join("adapter_model.bin").exists() {
                return unsupported!(
                    "{}: the weights are a pickle (adapter_model.bin), which can run code; convert them to safetensors",
                    dir.display()
                );
            }
            Err(Error::NotFound(format!("{}: no adapter_model.safetensors", dir.display())))
        })
    }

    fn with(dir: &Path, what: &str, config_file: &str, files: impl Fn(&Path) -> Result<Vec<PathBuf>>) -> Result<Self> {
        let dir = dir.to_path_buf();
        if !dir.is_dir() {
            return Err(Error::NotFound(format!("no directory {}; {what} is one", dir.display())));
        }
        let config = read_json(&dir.join(config_file))?
            .ok_or_else(|| Error::NotFound(format!("{}: no {config_file}; not {what} directory", dir.display())))?;
        if !config.is_object() {
            return invalid!("{}: {config_file} is not a JSON object", dir.display());
        }
        let mut shards = Vec::new();
        let mut shard_of = HashMap::new();
        for path in files(&dir)? {
            let shard = Shard::open(path)?;
            for name in shard.metadata.tensors().into_keys() {
                if shard_of.insert(name.clone(), shards.len()).is_some() {
                    return invalid!("{}: tensor {name:?} is in two shards", shard.path.display());
                }
            }
            shards.push(shard);
        }
        Ok(Self { dir, config, shards, shard_of })
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Returns the JSON file `name` of the directory, `None` where it is absent.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        read_json(&self.dir.join(name))
    }

    /// Returns the tokenizer of `tokenizer.json`, without truncation and padding; fails where it cannot read an empty text.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer(&self.dir)
    }

    /// Fails where a tokenizer has more entries than the model's vocabulary: its ids could be none of the model's.
    pub(crate) fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        let vocabulary = self.config.get("vocab_size").and_then(Value::as_u64).unwrap_or(u64::MAX);
        let entries = tokenizer.get_vocab_size(true);
        if entries as u64 > vocabulary {
            return invalid!(
                "{}: the tokenizer has {entries} entries, the model's vocabulary {vocabulary}; they do not belong together",
                self.dir.display()
            );
        }
        Ok(())
    }

    /// Returns whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    /// Returns the names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shard_of.keys().map(String::as_str)
    }

    /// Returns the tensor `name` as it lies in the file.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let shard = self.shard_of.get(name).map(|&i| &self.shards[i]);
        let info = shard.and_then(|shard| Some((shard, shard.metadata.info(name)?)));
        let Some((shard, info)) = info else {
            return Err(Error::NotFound(format!("{}: no tensor {name:?}", self.dir.display())));
        };
        let (from, to) = info.data_offsets;
        Ok(RawTensor { dtype: info.dtype, shape: &info.shape, data: &shard.map[shard.start + from..shard.start + to] })
    }

    /// Returns the tensor `name` in f32, row-major, from f32, f16 or bf16.
    ///
    /// Fails where it does not have `shape` or holds a number that is not finite.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let raw = self.raw(name)?;
        let place = || format!("{}: tensor {name:?}", self.dir.display());
        if raw.shape != shape {
            return invalid!("{} has shape {:?}, the configuration asks for {shape:?}", place(), raw.shape);
        }
        let halves = || raw.data.chunks_exact(2).map(|b| [b[0], b[1]]);
        let numbers: Vec<f32> = match raw.dtype {
            Dtype::F32 => raw.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            other => return unsupported!("{} is {other:?}; supported are F32, F16 and BF16", place()),
        };
        if let Some(i) = numbers.iter().position(|x| !x.is_finite()) {
            return invalid!("{} holds {} at element {i}", place(), numbers[i]);
        }
        Ok(numbers)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|e| Error::io(format!("opening {}", path.display()), e))?;
        // SAFETY: the mapping is read-only. A file that another process truncates meanwhile raises SIGBUS, as for every
        // program that maps its weights; the cache replaces files by renaming, never in place.
        #[allow(unsafe_code)]
        let map =
            unsafe { Mmap::map(&file) }.map_err(|e| Error::io(format!("memory-mapping {}", path.display()), e))?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::Invalid(format!("{}: not a safetensors file: {e}", path.display())))?;
        Ok(Self { path, map, metadata, start: header + size_of::<u64>() })
    }
}

/// Returns the tokenizer of the `tokenizer.json` in `dir`, without truncation and padding; fails where it cannot read a text.
pub(crate) fn tokenizer(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join("tokenizer.json");
    let bad = |e: &dyn std::fmt::Display| Error::Invalid(format!("{}: {}", path.display(), cut(e.to_string())));
    let Some(bytes) = read(&path)? else {
        return Err(Error::NotFound(format!("{}: no tokenizer.json", dir.display())));
    };
    // The tokenizers crate panics over a broken decoder, and over a start token that is nowhere defined when it first adds
    // it. Both happen here, where the file can be named.
    check_steps(&serde_json::from_slice(&bytes).map_err(|e| bad(&e))?).map_err(|e| bad(&e))?;
    let loaded = catch_unwind(|| -> std::result::Result<Tokenizer, tokenizers::Error> {
        let mut tokenizer = Tokenizer::from_bytes(&bytes)?;
        tokenizer.with_truncation(None)?.with_padding(None);
        // Some steps panic over every text that is not empty.
        for text in ["", PROBE] {
            tokenizer.encode(text, true)?;
        }
        Ok(tokenizer)
    });
    match loaded {
        Ok(loaded) => loaded.map_err(|e| bad(&e)),
        Err(panic) => Err(bad(&format!("not a tokenizer: {}", message(&*panic)))),
    }
}

/// What `tokenizer.json` does to a text before its model reads it.
#[derive(serde::Deserialize)]
struct Steps {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    added_tokens: Value,
}

/// Fails where a step would fill the memory, or a token take seconds to look for: the tokenizers crate trusts them.
fn check_steps(steps: &Steps) -> Result<()> {
    for token in steps.added_tokens.as_array().into_iter().flatten() {
        let length = token.get("content").and_then(Value::as_str).map_or(0, str::len);
        if length > MAX_ADDED {
            return invalid!("an added token of {length} bytes, at most {MAX_ADDED} are allowed");
        }
    }
    check_charsmap(&steps.normalizer)?;
    let growth = growth(&steps.normalizer) * growth(&steps.pre_tokenizer);
    if growth > MAX_GROWTH {
        return invalid!("its steps make a text {growth:.0} times as long");
    }
    Ok(())
}

/// Fails where a table of SentencePiece says that it is longer than it is; it begins with its length.
fn check_charsmap(normalizer: &Value) -> Result<()> {
    for step in normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten() {
        check_charsmap(step)?;
    }
    let Some(table) = normalizer.get("precompiled_charsmap").and_then(Value::as_str) else { return Ok(()) };
    // Six letters of base64 hold the four bytes.
    let digit = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Option<Vec<u8>> = table.bytes().take(6).map(digit).collect();
    let Some([a, b, c, d, e, f]) = digits.and_then(|digits| <[u8; 6]>::try_from(digits).ok()) else {
        return invalid!("its precompiled_charsmap is not a table");
    };
    let length = u32::from_le_bytes([a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d, e << 2 | f >> 4]);
    if length as usize > table.len() {
        return invalid!("its precompiled_charsmap says that it has {length} bytes, it has {}", table.len() / 4 * 3);
    }
    Ok(())
}

/// How many times as long a step makes a text at most, by what it puts in: steps multiply.
fn growth(step: &Value) -> f64 {
    let length = |value: Option<&Value>| value.and_then(Value::as_str).map_or(0.0, |text| text.len() as f64);
    match step.get("type").and_then(Value::as_str) {
        Some("Sequence") => {
            let steps = step.get("normalizers").or_else(|| step.get("pretokenizers")).and_then(Value::as_array);
            steps.into_iter().flatten().map(growth).product()
        }
        Some("Replace") => {
            let content = length(step.get("content"));
            // A regular expression may match a letter, or the nothing between two.
            match length(step.get("pattern").and_then(|pattern| pattern.get("String"))) {
                0.0 => 1.0 + content,
                old => (content / old).max(1.0),
            }
        }
        // A byte becomes a character of two.
        Some("ByteLevel") => 2.0,
        Some("Prepend") => 1.0 + length(step.get("prepend")),
        _ => 1.0,
    }
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let single = dir.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = dir.join("model.safetensors.index.json");
    if let Some(json) = read_json(&index)? {
        let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
            return invalid!("{}: no \"weight_map\" object", index.display());
        };
        let mut names = BTreeSet::new();
        for value in map.values() {
            match value.as_str() {
                // A shard is a file of this directory: a path would let an index read any file.
                Some(name) if Path::new(name).file_name().is_some_and(|f| f == name) => names.insert(name),
                _ => return invalid!("{}: {value} is not a file name", index.display()),
            };
        }
        return Ok(names.into_iter().map(|name| dir.join(name)).collect());
    }
    if dir.join("pytorch_model.bin").exists() {
        return unsupported!(
            "{}: the weights are a pickle (pytorch_model.bin), which can run code; convert them to safetensors",
            dir.display()
        );
    }
    Err(Error::NotFound(format!("{}: no model.safetensors and no model.safetensors.index.json", dir.display())))
}

pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let json =
        serde_json::from_slice(&bytes).map_err(|e| Error::Invalid(format!("{}: not JSON: {e}", path.display())))?;
    Ok(Some(json))
}

/// Returns the bytes of a file of a reasonable size, `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(format!("reading {}", path.display()), e)),
    };
    if size > MAX_JSON_BYTES {
        return invalid!("{}: {size} bytes; at most {MAX_JSON_BYTES} are read", path.display());
    }
    std::fs::read(path).map(Some).map_err(|e| Error::io(format!("reading {}", path.display()), e))
}
