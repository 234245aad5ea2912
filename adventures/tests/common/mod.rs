//! What several tests need.

use serde_json::Value;
use std::path::PathBuf;

/// The model's file in the cache, `None` where it has not been pulled.
pub(crate) fn file(golden: &Value) -> Option<PathBuf> {
    let cache = std::env::var_os("ADVENTURES_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/adventures")))?;
    let name = golden["model"].as_str().expect("a name");
    let path = cache.join("models").join(name).join(golden["file"].as_str().expect("a file"));
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent; `adventures models pull {name}` fetches it", path.display());
    None
}
