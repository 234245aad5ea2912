//! Cross-encoders, which read a question and a document together (Nogueira and Cho 2019).

use super::{Activation, RerankerOptions, Scores};
use crate::checkpoint::Checkpoint;
use crate::device;
use crate::error::{Error, Result, cut, invalid};
use crate::kernels::panels::Precision;
use crate::models::Batch;
use crate::models::classifier::Classifier;
use crate::reading::read;
use rayon::prelude::*;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationParams, TruncationStrategy};

/// How many tokens go through the model in one call: bounds the memory, and how long a cancellation waits.
const CALL_TOKENS: usize = 4096;
/// How many documents are tokenized and sorted by length at a time.
const WINDOW_DOCUMENTS: usize = 4096;

/// A cross-encoder with one label, as sentence-transformers' `CrossEncoder` has it: ms-marco-MiniLM, bge-reranker.
///
/// Shared freely between threads.
pub struct CrossEncoder {
    tokenizer: Tokenizer,
    classifier: Classifier,
    max_tokens: usize,
    /// How many of them are special.
    special: usize,
    precision: Precision,
    activation: Activation,
    pool: Arc<rayon::ThreadPool>,
    device: String,
}

/// A question with one document, as the model reads them.
struct Pair {
    ids: Vec<u32>,
    types: Vec<u8>,
    truncated: bool,
}

impl CrossEncoder {
    /// Loads the checkpoint in `dir`, laid out as Hugging Face saves it.
    pub fn load(dir: impl AsRef<Path>, options: &RerankerOptions) -> Result<Self> {
        let device = device::accelerator(&options.device)?;
        let pool = Arc::new(device::pool(device::threads(options.threads)?, "reranker")?);
        let checkpoint = Checkpoint::open(dir)?;
        let tokenizer = checkpoint.tokenizer()?;
        checkpoint.check_tokenizer(&tokenizer)?;
        let activation = options.activation.map_or_else(|| Activation::stated(&checkpoint), Ok)?;
        let classifier = Classifier::load(&checkpoint, options.precision, Arc::clone(&pool), device.as_ref())?;
        let context = classifier.context();
        let special = tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(true));
        let max_tokens = match options.max_tokens {
            None => {
                let settings = checkpoint.json("tokenizer_config.json")?.unwrap_or_default();
                // Where a tokenizer has no limit, transformers writes 10^30, which is no u64.
                let stated = settings.get("model_max_length").and_then(Value::as_u64);
                stated.map_or(context, |stated| context.min(usize::try_from(stated).unwrap_or(usize::MAX)))
            }
            Some(asked) if asked == 0 || asked > context => {
                return invalid!("max_tokens={asked}: this model reads 1 to {context}");
            }
            Some(asked) => asked,
        };
        if max_tokens < special + 2 {
            return invalid!("max_tokens={max_tokens}: special tokens alone take {special}");
        }
        Ok(Self {
            tokenizer,
            classifier,
            max_tokens,
            special,
            precision: options.precision,
            activation,
            pool,
            device: device::name(device.as_ref()),
        })
    }

    /// Returns how many tokens of a question and a document are read at most, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Returns what products are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns what makes a score of the model's number.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// Returns what computes: `"cpu"` or `"cuda:N"`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Returns the threads that compute: what calls these functions from there saves a change of threads.
    pub fn pool(&self) -> &rayon::ThreadPool {
        &self.pool
    }

    /// Returns how many threads compute.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Returns how well each of `documents` answers `query`.
    ///
    /// A score does not depend on the documents beside its own. Setting `cancel` from another thread ends the call with
    /// [`Error::Cancelled`].
    pub fn score(&self, query: &str, documents: &[impl AsRef<str> + Sync], cancel: &AtomicBool) -> Result<Scores> {
        let question = read(&self.tokenizer, query, self.max_tokens)?;
        let mut found = Scores::default();
        for window in documents.chunks(WINDOW_DOCUMENTS) {
            let pair = |document: &_| {
                if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { self.pair(&question, document) }
            };
            let pairs = window.par_iter().map(|document| pair(document.as_ref()));
            let pairs: Vec<Pair> = self.pool.install(|| pairs.collect::<Result<_>>())?;
            let first = found.scores.len();
            found.scores.resize(first + pairs.len(), 0.0);
            found.tokens.extend(pairs.iter().map(|pair| pair.ids.len() as u32));
            found.truncated.extend(pairs.iter().enumerate().filter(|(_, pair)| pair.truncated).map(|(i, _)| first + i));
            self.compute(&pairs, cancel, &mut found.scores[first..])?;
        }
        if let Some(i) = found.scores.iter().position(|score| !score.is_finite()) {
            return invalid!("document {i} has the score {}; the model's weights are out of range", found.scores[i]);
        }
        Ok(found)
    }

    /// Writes the score of each of `pairs`.
    fn compute(&self, pairs: &[Pair], cancel: &AtomicBool, scores: &mut [f32]) -> Result<()> {
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(pairs[i].ids.len()));
        let mut order = order.as_slice();
        while !order.is_empty() {
            let mut batch = Batch::default();
            while let Some(&i) = order.get(batch.lengths.len()) {
                if !batch.ids.is_empty() && batch.ids.len() + pairs[i].ids.len() > CALL_TOKENS {
                    break;
                }
                batch.ids.extend_from_slice(&pairs[i].ids);
                batch.types.extend_from_slice(&pairs[i].types);
                batch.lengths.push(pairs[i].ids.len());
            }
            let (now, later) = order.split_at(batch.lengths.len());
            for (&i, logit) in now.iter().zip(self.classifier.score(&batch, cancel)?) {
                scores[i] = match self.activation {
                    Activation::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
                    Activation::Identity => logit,
                };
            }
            order = later;
        }
        Ok(())
    }

    /// Puts a question, and whether there is more of it, before a document; cuts the longer of both where they do not fit.
    fn pair(&self, (question, more): &(Encoding, bool), document: &str) -> Result<Pair> {
        let failed = |e: tokenizers::Error| Error::Tokenizer(cut(e.to_string()));
        let (mut document, more_document) = read(&self.tokenizer, document, self.max_tokens)?;
        // Some templates state the types, others leave them as they are.
        document.set_type_ids(vec![1; document.len()]);
        let room = self.max_tokens - self.special;
        let truncated = *more || more_document || question.len() + document.len() > room;
        let params = TruncationParams {
            max_length: room,
            strategy: TruncationStrategy::LongestFirst,
            ..TruncationParams::default()
        };
        let (question, document) = truncate_encodings(question.clone(), Some(document), &params).map_err(failed)?;
        let both = self.tokenizer.post_process(question, document, true).map_err(failed)?;
        let types = if self.classifier.token_types() > 1 { both.get_type_ids() } else { &[] };
        Ok(Pair { ids: both.get_ids().to_vec(), types: types.iter().map(|kind| *kind as u8).collect(), truncated })
    }
}
