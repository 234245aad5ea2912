//! A library's token vectors: a `ColBERT` index beside the table, of each published version its own.

use adventures::{Error, Index, Precision};
use serde::Deserialize;
use serde_json::Value;
use std::path::{Component, Path};

/// Which model made token vectors, as the Python package records it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Made {
    name: String,
    #[serde(default)]
    revision: String,
    dim: usize,
}

/// The token vectors of one version.
pub struct Late {
    /// What made them.
    pub made: Made,
    /// Where the model was when they were made.
    path: Option<String>,
    /// `None` where it cannot be read: the library's other vectors can be.
    index: Option<Index>,
}

impl std::fmt::Debug for Late {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Late").field("made", &self.made).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Made {
    /// The length of a vector.
    pub(super) fn dim(&self) -> usize {
        self.dim
    }

    /// The name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fails where a question's vectors, of the model of this name and revision, cannot be compared. An unknown revision is no
    /// evidence of a difference.
    pub fn check(&self, name: &str, revision: &str, dim: usize) -> Result<(), String> {
        let known = !self.revision.is_empty() && !revision.is_empty();
        if self.name != name || self.dim != dim || (known && self.revision != revision) {
            return Err(format!(
                "the library's token vectors were made by {} {} ({} dimensions), not by {name} {revision} ({dim} dimensions)",
                self.name, self.revision, self.dim
            ));
        }
        Ok(())
    }
}

impl Late {
    /// Opens what the record of a version names, in the library's folder; `None` where it names nothing.
    pub(super) fn open(library: &Path, table: &str, source: &Value, threads: Option<usize>) -> Option<Self> {
        let made = Made::deserialize(source.get("colbert")?).ok()?;
        let place = source.get("colbert_at")?;
        let text = |key: &str| place.get(key).and_then(Value::as_str);
        let folder = Path::new(text("folder")?);
        // A path would lead out of the library.
        let plain = matches!(folder.components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
        let dir = library.join(format!("{table}.colbert")).join(folder);
        let opened = if plain { Index::open(&dir, threads) } else { Err(Error::Invalid("no name of a folder".into())) };
        let index = opened
            .inspect_err(|problem| {
                tracing::error!(folder = %dir.display(), "the library's token vectors cannot be read: {problem}");
            })
            .ok();
        Some(Self { made, path: text("path").map(str::to_owned), index })
    }

    /// What to load so that questions can be compared: the model's name or path, and what its products were rounded to.
    pub fn recipe(&self) -> (String, Precision) {
        let (commit, rounded) = self.made.revision.split_once('+').unwrap_or((&self.made.revision, ""));
        let spec = match &self.path {
            _ if self.made.name.contains('/') && commit.is_empty() => self.made.name.clone(),
            _ if self.made.name.contains('/') => format!("{}@{commit}", self.made.name),
            Some(path) => path.clone(),
            None => self.made.name.clone(),
        };
        (spec, rounded.parse().unwrap_or(Precision::F32))
    }

    /// Returns the index. That it cannot be read is not the client's fault, nor where it is the client's business.
    pub(super) fn index(&self) -> Result<&Index, Error> {
        self.index.as_ref().ok_or_else(|| {
            let more = "the next sync makes them anew; the service's log says more";
            Error::io("the library's token vectors cannot be read", std::io::Error::other(more))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn late(name: &str, revision: &str) -> Late {
        let made = Made { name: name.into(), revision: revision.into(), dim: 8 };
        Late { made, path: Some("/models/one".into()), index: None }
    }

    #[test]
    fn a_model_is_taken_as_it_was() {
        for (name, revision, spec, precision) in [
            ("one", "local-01", "/models/one", Precision::F32),
            ("one", "local-01+int8", "/models/one", Precision::Int8),
            ("owner/name", "abc", "owner/name@abc", Precision::F32),
            ("owner/name", "abc+bf16", "owner/name@abc", Precision::Bf16),
            ("owner/name", "", "owner/name", Precision::F32),
        ] {
            assert_eq!(late(name, revision).recipe(), (spec.to_owned(), precision), "{name} {revision}");
        }
    }

    #[test]
    fn vectors_of_another_model_are_refused() {
        let made = late("one", "a").made;
        assert_eq!((made.check("one", "a", 8), made.check("one", "", 8)), (Ok(()), Ok(())));
        for (name, revision, dim) in [("two", "a", 8), ("one", "b", 8), ("one", "a", 9)] {
            let problem = made.check(name, revision, dim).expect_err("it is another");
            assert!(problem.contains(&format!("not by {name} {revision} ({dim} dimensions)")), "{problem}");
        }
    }

    #[test]
    fn a_folder_is_a_name() {
        for folder in ["../other", "/etc", "a/b", ""] {
            let source = json!({
                "colbert": {"name": "one", "revision": "", "dim": 8},
                "colbert_at": {"folder": folder, "path": "/models/one"},
            });
            let late = Late::open(Path::new("/none"), "passages", &source, None).expect("it has some");
            let problem = late.index().map(|_| ()).expect_err("it is no folder").to_string();
            assert!(!problem.contains('/'), "{problem}");
        }
        assert!(Late::open(Path::new("/none"), "passages", &json!({}), None).is_none());
    }
}
