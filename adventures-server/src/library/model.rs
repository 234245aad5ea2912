//! Which model a library was made with.

use adventures::EmbedderOptions;
use serde::Deserialize;
use serde_json::Value;

/// Which model made a library's vectors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Model {
    /// The name it was opened by.
    pub name: String,
    /// Its weights; empty where they are not known.
    #[serde(default)]
    pub revision: Option<String>,
    /// The length of a vector.
    pub dim: usize,
    /// How the vectors of tokens became one.
    pub pooling: String,
    /// What was put before a text, by its kind.
    pub prompts: Value,
}

impl Model {
    /// What to load so that its vectors can be compared with the library's: the model's name, with the commits of hubs that it
    /// was made with, and how it was used.
    pub fn recipe(&self) -> (String, EmbedderOptions) {
        let (weights, options) = EmbedderOptions::of_revision(self.revision.as_deref().unwrap_or_default());
        let mut commits = weights.split('+');
        let part = |part: &str| match commits.next() {
            // Only a hub has several commits of a name; a path and a name of the catalogue are what they are.
            Some(commit) if part.contains('/') && !commit.is_empty() => match part.split_once(':') {
                Some((repository, file)) => format!("{repository}@{commit}:{file}"),
                None => format!("{part}@{commit}"),
            },
            _ => part.to_owned(),
        };
        let spec = self.name.split('+').map(part).collect::<Vec<_>>().join("+");
        let prompt = |kind: &str| self.prompts.get(kind).and_then(Value::as_str).map(str::to_owned);
        let (query_prefix, passage_prefix) = (prompt("query"), prompt("passage"));
        (spec, EmbedderOptions { query_prefix, passage_prefix, dim: Some(self.dim), ..options })
    }

    /// Whether vectors of both can be compared. An unknown revision is no evidence of a difference.
    pub(super) fn fits(&self, other: &Self) -> bool {
        let known = |model: &Self| model.revision.clone().filter(|revision| !revision.is_empty());
        let revisions = known(self).zip(known(other)).is_none_or(|(a, b)| a == b);
        let same =
            |a: &Self, b: &Self| (&a.name, a.dim, &a.pooling, &a.prompts) == (&b.name, b.dim, &b.pooling, &b.prompts);
        revisions && same(self, other)
    }

    pub(super) fn spell(&self) -> String {
        let revision = self.revision.as_deref().filter(|revision| !revision.is_empty());
        let revision = revision.map_or_else(String::new, |revision| format!(" at revision {revision}"));
        format!("{}{revision} ({} dimensions, {} pooling, prompts {})", self.name, self.dim, self.pooling, self.prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn recipe(name: &str, revision: &str) -> (String, EmbedderOptions) {
        let prompts = json!({"query": "query: ", "passage": ""});
        Model { name: name.into(), revision: Some(revision.into()), dim: 8, pooling: "mean".into(), prompts }.recipe()
    }

    #[test]
    fn a_model_of_a_hub_is_taken_at_its_commit() {
        for (name, revision, expected) in [
            ("all-minilm-l6-v2", "1110a243", "all-minilm-l6-v2"),
            ("folder", "local-0123", "folder"),
            ("owner/name", "", "owner/name"),
            ("owner/name", "abc", "owner/name@abc"),
            ("owner/name:file.gguf", "abc+q8_0", "owner/name@abc:file.gguf"),
            ("owner/base+owner/adapter", "abc+def+q4_k", "owner/base@abc+owner/adapter@def"),
        ] {
            assert_eq!(recipe(name, revision).0, expected, "{name} {revision}");
        }
    }

    #[test]
    fn a_model_is_used_as_it_was() {
        let (_, options) = recipe("m", "abc+int8+unnormalized");
        assert_eq!((options.precision.name(), options.unnormalized), ("int8", true));
        assert_eq!((options.query_prefix.as_deref(), options.passage_prefix.as_deref()), (Some("query: "), Some("")));
        assert_eq!(options.dim, Some(8));
    }
}
