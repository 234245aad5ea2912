//! A question and documents to scores, by a model that compares them better than one vector of each can.

mod cross;

pub use cross::CrossEncoder;

use crate::checkpoint::Checkpoint;
use crate::colbert::{ColBERT, ColBERTOptions};
use crate::error::{Error, Result, invalid, unsupported};
use crate::kernels::panels::Precision;
use serde_json::Value;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

/// How a reranker compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RerankerKind {
    /// It reads a question and a document together.
    CrossEncoder,
    /// It compares a vector for each token of both.
    ColBERT,
}

impl RerankerKind {
    /// Returns `"cross-encoder"` or `"colbert"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrossEncoder => "cross-encoder",
            Self::ColBERT => "colbert",
        }
    }

    /// A checkpoint of `ColBERT` has a layer for tokens, beside the weights or as the first module after them.
    fn of(dir: &Path) -> Result<Self> {
        let late = dir.join("1_Dense").is_dir() || Checkpoint::open(dir)?.has("linear.weight");
        Ok(if late { Self::ColBERT } else { Self::CrossEncoder })
    }
}

impl FromStr for RerankerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "cross-encoder" => Ok(Self::CrossEncoder),
            "colbert" => Ok(Self::ColBERT),
            _ => invalid!("model_type={name:?}: expected \"cross-encoder\" or \"colbert\""),
        }
    }
}

/// What makes a score of the model's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `1 / (1 + e^-x)`: scores from 0 to 1.
    Sigmoid,
    /// Nothing: the logit is the score.
    Identity,
}

impl Activation {
    /// Returns `"sigmoid"` or `"none"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigmoid => "sigmoid",
            Self::Identity => "none",
        }
    }

    /// Reads it where sentence-transformers writes it, and before its version 4 wrote it; without, it is the sigmoid.
    fn stated(checkpoint: &Checkpoint) -> Result<Self> {
        let config = checkpoint.config();
        let stated = config
            .get("sentence_transformers")
            .and_then(|config| config.get("activation_fn"))
            .or_else(|| config.get("sbert_ce_default_activation_function"))
            .and_then(Value::as_str)
            .unwrap_or("Sigmoid");
        match stated.rsplit('.').next().unwrap_or_default() {
            "Sigmoid" => Ok(Self::Sigmoid),
            "Identity" => Ok(Self::Identity),
            _ => {
                let place = checkpoint.dir().display();
                unsupported!("{place}: activation {stated:?}; supported are Sigmoid and Identity")
            }
        }
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "sigmoid" => Ok(Self::Sigmoid),
            "none" => Ok(Self::Identity),
            _ => invalid!("activation={name:?}: expected \"sigmoid\" or \"none\""),
        }
    }
}

/// What to change from what the checkpoint says; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct RerankerOptions {
    /// How it compares; what the checkpoint's files show where it is `None`.
    pub kind: Option<RerankerKind>,
    /// `"auto"`, `"cpu"` or `"cuda:N"`; empty is `"auto"`.
    pub device: String,
    /// How many threads compute; all that the cgroup grants by default.
    pub threads: Option<usize>,
    /// The longest question and document together, in tokens, special tokens included; of `ColBERT` the longest document.
    pub max_tokens: Option<usize>,
    /// What products are rounded to.
    pub precision: Precision,
    /// What makes a score of the model's number.
    pub activation: Option<Activation>,
}

/// A model that says how well documents answer a question.
///
/// Shared freely between threads.
pub enum Reranker {
    /// It reads both together.
    Cross(Box<CrossEncoder>),
    /// It compares their tokens.
    Late(Box<ColBERT>),
}

/// How well some documents answer a question, and what was read to tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// Higher is better.
    pub scores: Vec<f32>,
    /// How many tokens were read of each document with its question, special tokens included; of `ColBERT`, how many of both
    /// have vectors.
    pub tokens: Vec<u32>,
    /// The indices of the documents that were longer than `max_tokens` with their question; the longer of both was cut. Of
    /// `ColBERT`, those that were too long themselves, or all where the question was.
    pub truncated: Vec<usize>,
}

impl Reranker {
    /// Loads the checkpoint in `dir`, laid out as Hugging Face, sentence-transformers, Stanford's ColBERT or `PyLate` save it.
    ///
    /// Fails where it is no reranker, where the tokenizer does not fit, or where an option is out of range.
    pub fn load(dir: impl AsRef<Path>, options: &RerankerOptions) -> Result<Self> {
        let dir = dir.as_ref();
        match options.kind.map_or_else(|| RerankerKind::of(dir), Ok)? {
            RerankerKind::CrossEncoder => Ok(Self::Cross(Box::new(CrossEncoder::load(dir, options)?))),
            RerankerKind::ColBERT => {
                if let Some(activation) = options.activation.filter(|activation| *activation != Activation::Identity) {
                    return invalid!(
                        "activation={:?}: the scores of ColBERT are sums, and are not changed",
                        activation.name()
                    );
                }
                let late = ColBERTOptions {
                    device: options.device.clone(),
                    threads: options.threads,
                    query_maxlen: None,
                    doc_maxlen: options.max_tokens,
                    precision: options.precision,
                };
                Ok(Self::Late(Box::new(ColBERT::load(dir, &late)?)))
            }
        }
    }

    /// Returns how it compares.
    pub fn kind(&self) -> RerankerKind {
        match self {
            Self::Cross(_) => RerankerKind::CrossEncoder,
            Self::Late(_) => RerankerKind::ColBERT,
        }
    }

    /// Returns how many tokens of a question and a document are read at most, special tokens included; of `ColBERT`, of a
    /// document.
    pub fn max_tokens(&self) -> usize {
        match self {
            Self::Cross(model) => model.max_tokens(),
            Self::Late(model) => model.doc_maxlen(),
        }
    }

    /// Returns what products are rounded to.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Cross(model) => model.precision(),
            Self::Late(model) => model.precision(),
        }
    }

    /// Returns what makes a score of the model's number.
    pub fn activation(&self) -> Activation {
        match self {
            Self::Cross(model) => model.activation(),
            Self::Late(_) => Activation::Identity,
        }
    }

    /// Returns what computes: `"cpu"` or `"cuda:N"`.
    pub fn device(&self) -> &str {
        match self {
            Self::Cross(model) => model.device(),
            Self::Late(model) => model.device(),
        }
    }

    /// Returns the threads that compute: what calls these functions from there saves a change of threads.
    pub fn pool(&self) -> &rayon::ThreadPool {
        match self {
            Self::Cross(model) => model.pool(),
            Self::Late(model) => model.pool(),
        }
    }

    /// Returns how many threads compute.
    pub fn threads(&self) -> usize {
        match self {
            Self::Cross(model) => model.threads(),
            Self::Late(model) => model.threads(),
        }
    }

    /// Returns how well each of `documents` answers `query`.
    ///
    /// A score does not depend on the documents beside its own. Setting `cancel` from another thread ends the call with
    /// [`Error::Cancelled`].
    pub fn score(&self, query: &str, documents: &[impl AsRef<str> + Sync], cancel: &AtomicBool) -> Result<Scores> {
        let model = match self {
            Self::Cross(model) => return model.score(query, documents, cancel),
            Self::Late(model) => model,
        };
        let question = model.embed_queries(&[query], None, cancel)?;
        let found = model.embed_documents(documents, None, 1, cancel)?;
        let scores = model.maxsim(&[&question.vectors], &found.vectors, &found.offsets, cancel)?;
        let own = question.vectors.len() / model.dim();
        let tokens = found.offsets.windows(2).map(|ends| (own + ends[1] - ends[0]) as u32).collect();
        let all = !question.truncated.is_empty();
        let truncated = if all { (0..documents.len()).collect() } else { found.truncated };
        if let Some(i) = scores.iter().position(|score| !score.is_finite()) {
            return invalid!("document {i} has the score {}; the model's weights are out of range", scores[i]);
        }
        Ok(Scores { scores, tokens, truncated })
    }
}
