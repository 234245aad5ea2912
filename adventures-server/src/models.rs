//! From a model's name to its files on this machine. Nothing is downloaded here: `adventures models pull` does that.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// A model on this machine.
#[derive(Debug, Clone)]
pub struct Located {
    /// Its directory or `.gguf` file.
    pub path: PathBuf,
    /// The catalogue name, the hub id, or the base name of the directory or file.
    pub name: String,
    /// What tells these weights from others of the same name; empty where it is not known.
    pub revision: String,
    /// How the catalogue says to use it; an empty object where it says nothing.
    pub profile: Value,
    /// Directories of `LoRA` adapters, in the order in which they are merged into the weights.
    pub adapters: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Catalogue {
    model: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    repository: String,
    file: Option<String>,
    #[serde(default)]
    profile: Option<Value>,
}

/// The one that the Python package reads.
const CATALOGUE: &str = include_str!("../../python/adventures/models.toml");

/// Finds a model: a directory or a `.gguf` file, a catalogue name that was pulled, or a hub id in the hub's cache;
/// `model+adapter` is a model with an adapter beside it.
pub fn locate(spec: &str) -> Result<Located> {
    ensure!(!spec.is_empty() && !spec.contains('\0'), "a model is a catalogue name, a hub id or a path, not {spec:?}");
    if !is_model(Path::new(spec))
        && let Some((base, adapter)) = spec.split_once('+')
    {
        let (mut found, beside) = (locate(base)?, locate(adapter)?);
        ensure!(beside.path.join("adapter_config.json").is_file(), "{adapter} is no adapter");
        found.name = format!("{}+{}", found.name, beside.name);
        let known = !found.revision.is_empty() && !beside.revision.is_empty();
        found.revision = if known { format!("{}+{}", found.revision, beside.revision) } else { String::new() };
        found.adapters.push(beside.path);
        return Ok(found);
    }
    let catalogue: Catalogue = toml::from_str(CATALOGUE).context("the catalogue of models")?;
    let path = Path::new(spec);
    if is_model(path) {
        return at_path(path, &catalogue);
    }
    if spec.starts_with(['/', '.', '~']) {
        bail!("no model at {spec}: expected a directory with a config.json or one .gguf file, or such a file");
    }
    if spec.contains('/') { from_hub(spec, &catalogue) } else { from_catalogue(spec, &catalogue) }
}

fn from_catalogue(name: &str, catalogue: &Catalogue) -> Result<Located> {
    let name = name.to_lowercase();
    let Some(entry) = catalogue.model.get(&name) else {
        bail!("no model {name:?} in the catalogue: `adventures models list` prints the names");
    };
    let folder = cache_folder()?.join("models").join(&name);
    let Some((_, revision)) = manifest(&folder) else {
        bail!("{name} is not on this machine (looked in {}); run: adventures models pull {name}", folder.display());
    };
    let path = entry.file.as_ref().map_or_else(|| folder.clone(), |file| folder.join(file));
    Ok(Located { path, name, revision, profile: entry.profile(), adapters: Vec::new() })
}

/// `owner/name`, `owner/name@revision`, `owner/name:file.gguf`.
fn from_hub(spec: &str, catalogue: &Catalogue) -> Result<Located> {
    let (repository, file) = spec.split_once(':').map_or((spec, None), |(repository, file)| (repository, Some(file)));
    let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
    let plain = |part: &str| !part.is_empty() && part != ".." && !part.contains(['\\', '\0']);
    let parts: Vec<&str> = repository.split('/').collect();
    let names = parts.len() == 2 && parts.iter().all(|part| plain(part));
    let rest = plain(revision) && !revision.contains("..") && file.is_none_or(|f| plain(f) && !f.contains(".."));
    ensure!(names && rest, "{spec:?} is no hub id: expected owner/name, owner/name@revision or owner/name:file.gguf");
    let folder = hub_folder()?.join(format!("models--{}--{}", parts[0], parts[1]));
    let commit = fs::read_to_string(folder.join("refs").join(revision)).unwrap_or_else(|_| revision.to_owned());
    let snapshot = folder.join("snapshots").join(commit.trim());
    let path = file.map_or_else(|| snapshot.clone(), |file| snapshot.join(file));
    ensure!(
        if file.is_some() { path.is_file() } else { is_model(&path) },
        "{spec} is not on this machine (looked in {}); run: adventures models pull {spec}",
        folder.display()
    );
    let name = file.map_or_else(|| repository.to_owned(), |file| format!("{repository}:{file}"));
    let profile = catalogue.find(file.unwrap_or(parts[1]), repository);
    Ok(Located { path, name, revision: commit.trim().to_owned(), profile, adapters: Vec::new() })
}

fn at_path(path: &Path, catalogue: &Catalogue) -> Result<Located> {
    let what = || format!("the model {}", path.display());
    let mut path = std::path::absolute(path).with_context(what)?;
    if path.is_dir() && !has_config(&path) {
        path = ggufs(&path).swap_remove(0);
    }
    let folder = if path.is_dir() { path.as_path() } else { path.parent().unwrap_or(Path::new("/")) };
    if let Some((name, revision)) = manifest(folder) {
        let profile = catalogue.find(&name, "");
        return Ok(Located { path, name, revision, profile, adapters: Vec::new() });
    }
    let base = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let revision = local_revision(&path).with_context(what)?;
    let profile = catalogue.find(&base, "");
    Ok(Located { path, name: base, revision, profile, adapters: Vec::new() })
}

impl Catalogue {
    /// The profile of the entry that a base name, or a hub id, belongs to.
    fn find(&self, name: &str, repository: &str) -> Value {
        let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
        let of_repository = |entry: &&Entry| {
            same(&entry.repository, repository) && entry.file.as_deref().is_none_or(|file| file == name)
        };
        let of_name = |(known, entry): &(&String, &Entry)| {
            let other = entry.file.as_deref().or_else(|| entry.repository.split('/').next_back());
            same(known, name) || other.is_some_and(|other| same(other, name))
        };
        let found = self.model.values().find(of_repository);
        let found = found.or_else(|| self.model.iter().find(of_name).map(|(_, entry)| entry));
        found.map_or_else(|| Value::Object(serde_json::Map::new()), Entry::profile)
    }
}

impl Entry {
    fn profile(&self) -> Value {
        self.profile.clone().unwrap_or_else(|| Value::Object(serde_json::Map::new()))
    }
}

fn has_config(path: &Path) -> bool {
    ["config.json", "adapter_config.json"].iter().any(|name| path.join(name).is_file())
}

fn is_model(path: &Path) -> bool {
    if path.is_file() { is_gguf(path) } else { path.is_dir() && (has_config(path) || ggufs(path).len() == 1) }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

fn ggufs(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| is_gguf(path)).collect()
}

/// Name and revision of a model that was pulled whole.
fn manifest(folder: &Path) -> Option<(String, String)> {
    let record: Value = serde_json::from_slice(&fs::read(folder.join("adventures.json")).ok()?).ok()?;
    let whole = |(name, size): (&String, &Value)| {
        fs::metadata(folder.join(name)).is_ok_and(|found| size.as_u64() == Some(found.len()))
    };
    if !record.get("files")?.as_object()?.iter().all(whole) {
        return None;
    }
    let text = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned);
    Some((text("name")?, text("revision").unwrap_or_default()))
}

/// As the Python package computes it: 64 blocks spread over each file.
fn local_revision(path: &Path) -> std::io::Result<String> {
    const BLOCK: usize = 4096;
    const BLOCKS: u64 = 64;
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = fs::read_dir(path)?.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "safetensors"));
        let described = ["config.json", "tokenizer.json", "adapter_config.json", "llm2vec_config.json"];
        files.extend(described.iter().map(|name| path.join(name)));
        files.sort();
    }
    let mut hasher = Sha256::new();
    for path_ in files.iter().filter(|file| file.is_file()) {
        let mut file = File::open(path_)?;
        let size = file.metadata()?.len();
        let name = path_.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(if path.is_dir() { format!("{name} {size}\n") } else { format!("{size}\n") });
        for block in 0..BLOCKS {
            file.seek(SeekFrom::Start(size.saturating_sub(BLOCK as u64) * block / (BLOCKS - 1)))?;
            let mut bytes = Vec::with_capacity(BLOCK);
            (&mut file).take(BLOCK as u64).read_to_end(&mut bytes)?;
            hasher.update(&bytes);
        }
    }
    let first = hasher.finalize().iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    Ok(format!("local-{first:012x}"))
}

fn home() -> Result<PathBuf> {
    std::env::home_dir().context("no home folder: set ADVENTURES_CACHE")
}

fn folder(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// `$ADVENTURES_CACHE`, else `$XDG_CACHE_HOME/adventures`, else `~/.cache/adventures`.
fn cache_folder() -> Result<PathBuf> {
    if let Some(own) = folder("ADVENTURES_CACHE") {
        return Ok(own);
    }
    // The XDG rules say that a relative path is to be ignored.
    let base = folder("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    Ok(base.map_or_else(|| home().map(|home| home.join(".cache")), Ok)?.join("adventures"))
}

fn hub_folder() -> Result<PathBuf> {
    if let Some(own) = folder("HF_HUB_CACHE") {
        return Ok(own);
    }
    let base = folder("HF_HOME");
    Ok(base.map_or_else(|| home().map(|home| home.join(".cache/huggingface")), Ok)?.join("hub"))
}
