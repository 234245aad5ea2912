//! What a checkpoint says of how it reads texts: Stanford's `artifact.metadata`, or the files of PyLate.

use crate::checkpoint::{Checkpoint, read_json};
use crate::embedder::{Dense, Layout};
use crate::error::{Error, Result, invalid, unsupported};
use serde_json::Value;
use std::path::Path;

/// The marks that say which side a text is on, where the checkpoint does not say: of a query and of a document, as Stanford's
/// ColBERT has it, and as PyLate does.
const STANFORD_MARKS: [[&str; 3]; 2] = [["[unused0]", "[Q]", "[Q] "], ["[unused1]", "[D]", "[D] "]];
const PYLATE_MARKS: [[&str; 3]; 2] = [["[Q] ", "[Q]", "[unused0]"], ["[D] ", "[D]", "[unused1]"]];

/// How queries and documents are read, of either layout.
pub(super) struct Settings {
    /// The tokens that mark a query and a document; the first that the vocabulary has counts.
    pub(super) query_marks: Vec<String>,
    pub(super) doc_marks: Vec<String>,
    /// Mark and special tokens included.
    pub(super) query_maxlen: usize,
    pub(super) doc_maxlen: usize,
    /// Whether a query is filled up with `[MASK]`.
    pub(super) expands: bool,
    /// Whether these are attended to.
    pub(super) attends: bool,
    /// What documents have no vectors of.
    pub(super) skiplist: Vec<String>,
    pub(super) lower_case: bool,
}

/// A checkpoint of either layout, opened.
pub(super) struct Source {
    pub(super) checkpoint: Checkpoint,
    pub(super) projection: Vec<Dense>,
    pub(super) settings: Settings,
}

impl Source {
    /// Opens a directory of Stanford's layout (`linear.weight` beside the transformer's weights) or PyLate's (a Dense module).
    pub(super) fn open(root: &Path) -> Result<Self> {
        if root.is_file() {
            return unsupported!("{}: a ColBERT model is a directory of safetensors, not a file", root.display());
        }
        let layout = Layout::read(root)?;
        let checkpoint = Checkpoint::open(root.join(&layout.transformer))?;
        let settings = match read_json(&root.join("artifact.metadata"))? {
            Some(metadata) if layout.dense.is_empty() => Settings::stanford(&metadata, root),
            None if layout.dense.is_empty() => Settings::stanford(&Value::Null, root),
            _ => Settings::pylate(&checkpoint, root),
        }?;
        if layout.dense.is_empty() {
            if !checkpoint.has("linear.weight") {
                return invalid!(
                    "{}: no tensor \"linear.weight\" and no Dense module; this is not a ColBERT model",
                    root.display()
                );
            }
            let projection = vec![Dense::identity(&checkpoint, "linear.weight")?];
            return Ok(Self { checkpoint, projection, settings });
        }
        if layout.pools {
            return invalid!(
                "{}: modules.json pools the vectors of tokens; this is an embedder, not a ColBERT model",
                root.display()
            );
        }
        let projection = layout.dense.iter().map(|folder| Dense::load(&root.join(folder))).collect::<Result<_>>()?;
        Ok(Self { checkpoint, projection, settings })
    }
}

impl Settings {
    fn stanford(metadata: &Value, root: &Path) -> Result<Self> {
        let read = Reader { json: metadata, place: format!("{}: artifact.metadata", root.display()) };
        if let Some(other) = read.text("similarity")?.filter(|name| *name != "cosine") {
            return unsupported!("{}: similarity {other:?}; supported is \"cosine\"", read.place);
        }
        let skips = read.flag("mask_punctuation")?.unwrap_or(true);
        Ok(Self {
            query_marks: marks(read.text("query_token_id")?, STANFORD_MARKS[0]),
            doc_marks: marks(read.text("doc_token_id")?, STANFORD_MARKS[1]),
            query_maxlen: read.count("query_maxlen")?.unwrap_or(32),
            doc_maxlen: read.count("doc_maxlen")?.unwrap_or(220),
            expands: true,
            attends: read.flag("attend_to_mask_tokens")?.unwrap_or(false),
            skiplist: if skips { punctuation() } else { Vec::new() },
            lower_case: false,
        })
    }

    fn pylate(checkpoint: &Checkpoint, root: &Path) -> Result<Self> {
        let config = read_json(&root.join("config_sentence_transformers.json"))?.unwrap_or_default();
        let read = Reader { json: &config, place: format!("{}: config_sentence_transformers.json", root.display()) };
        if let Some(other) = read.text("similarity_fn_name")?.filter(|name| *name != "MaxSim") {
            return unsupported!("{}: similarity_fn_name {other:?}; supported is \"MaxSim\"", read.place);
        }
        let bert = checkpoint.json("sentence_bert_config.json")?.unwrap_or_default();
        Ok(Self {
            query_marks: marks(read.text("query_prefix")?, PYLATE_MARKS[0]),
            doc_marks: marks(read.text("document_prefix")?, PYLATE_MARKS[1]),
            query_maxlen: read.count("query_length")?.unwrap_or(32),
            doc_maxlen: read.count("document_length")?.unwrap_or(180),
            expands: read.flag("do_query_expansion")?.unwrap_or(true),
            attends: read.flag("attend_to_expansion_tokens")?.unwrap_or(false),
            skiplist: read.texts("skiplist_words")?.unwrap_or_else(punctuation),
            lower_case: bert.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false),
        })
    }
}

fn marks(stated: Option<&str>, usual: [&str; 3]) -> Vec<String> {
    stated.map_or_else(|| usual.map(str::to_owned).to_vec(), |mark| vec![mark.to_owned()])
}

fn punctuation() -> Vec<String> {
    (0..128_u8).map(char::from).filter(char::is_ascii_punctuation).map(String::from).collect()
}

/// Fields of a file, each of which may be absent or null.
struct Reader<'a> {
    json: &'a Value,
    place: String,
}

impl<'a> Reader<'a> {
    fn field(&self, name: &str) -> Option<&'a Value> {
        self.json.get(name).filter(|value| !value.is_null())
    }

    fn read<T>(&self, name: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let wrong = |value| Error::Invalid(format!("{}: {name} is {value}, not {what}", self.place));
        self.field(name).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, "a text", Value::as_str)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, "true or false", Value::as_bool)
    }

    fn count(&self, name: &str) -> Result<Option<usize>> {
        self.read(name, "a count", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        let all = |value: &Value| -> Option<Vec<String>> {
            value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect()
        };
        self.read(name, "a list of texts", all)
    }
}
