//! Texts to vectors: prefix, tokenize, pack, encode, pool, normalize.

pub(crate) mod dense;
mod embeddings;
mod layout;
mod llm2vec;
mod revision;

pub(crate) use dense::Dense;
pub use embeddings::Embeddings;
pub(crate) use embeddings::with_rows;
pub(crate) use layout::Layout;

use crate::checkpoint::{self, Checkpoint};
use crate::error::{Error, Result, invalid, unsupported};
use crate::kernels::panels::Precision;
use crate::models::decoder::{self, DecoderOptions, Quantize};
use crate::models::{Encoder, encoder};
use crate::{device, reading, split};
use layout::Prompts;
use llm2vec::{Framed, TextPath};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokenizers::{Tokenizer, TruncationDirection};

/// How many tokens go to the encoder in one call: bounds the memory, and how long a cancellation waits.
const CALL_TOKENS: usize = 4096;
/// The same for a decoder, which has a hundred times the weights.
const DECODER_CALL_TOKENS: usize = 512;
/// How many tokens more than its own a piece of a text may have where something stands before and behind it.
const SEAM_TOKENS: usize = 2;

/// What a text is to a retrieval model that treats questions and documents differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A question.
    Query,
    /// A text to be found.
    Passage,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The first token.
    Cls,
}

impl Pooling {
    /// Returns `"mean"` or `"cls"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
        }
    }
}

/// What to change from what the checkpoint says; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct EmbedderOptions {
    /// `"auto"`, `"cpu"` or `"cuda:N"`; empty is `"auto"`.
    pub device: String,
    /// How many threads compute; all that the cgroup grants by default.
    pub threads: Option<usize>,
    /// The longest text in tokens, prefix and special tokens included.
    pub max_tokens: Option<usize>,
    /// What is put before a query; a model of `LLM2Vec` calls it an instruction.
    pub query_prefix: Option<String>,
    /// What is put before a passage.
    pub passage_prefix: Option<String>,
    /// `"mean"` or `"cls"`.
    pub pooling: Option<String>,
    /// Directories of `LLM2Vec`'s adapters, which are added to a decoder's weights in this order.
    pub adapters: Vec<PathBuf>,
    /// What a decoder's matrices are rounded to; as they are where it is `None`.
    pub quantize: Option<Quantize>,
    /// What an encoder's products are rounded to.
    pub precision: Precision,
    /// How many numbers of a vector are kept, the first ones: for models trained so that they suffice (Kusupati et al. 2022).
    pub dim: Option<usize>,
    /// Whether vectors are left as long as the model makes them; they are of unit length otherwise.
    pub unnormalized: bool,
}

/// A sentence embedding model: a BERT-family encoder, or a decoder with the adapters of `LLM2Vec`
/// (<https://arxiv.org/abs/2404.05961>), with its tokenizer, pooling and prompts.
///
/// Shared freely between threads.
pub struct Embedder {
    tokenizer: Tokenizer,
    encoder: Box<dyn Encoder>,
    pooling: Pooling,
    /// What comes after pooling.
    dense: Vec<Dense>,
    dim: usize,
    precision: Precision,
    unnormalized: bool,
    /// How an `LLM2Vec` model reads a text; `None` for the others.
    path: Option<TextPath>,
    call_tokens: usize,
    max_tokens: usize,
    lower_case: bool,
    query_prefix: String,
    passage_prefix: String,
    pool: Arc<rayon::ThreadPool>,
    /// How many calls embed texts at the moment.
    calls: AtomicUsize,
    device: String,
}

/// The ids of one text as the encoder reads them.
struct Tokens {
    ids: Vec<u32>,
    /// How many of the last are pooled.
    pooled: usize,
    truncated: bool,
}

impl Embedder {
    /// Loads the checkpoint in `dir`, laid out as Hugging Face or sentence-transformers save it.
    ///
    /// A decoder becomes an embedder by the adapters of `LLM2Vec`, or, where these are part of its weights already, by
    /// `llm2vec_config.json`. Fails where a module of `modules.json` is not supported, where the tokenizer does not fit the
    /// weights, or where an option is out of range.
    pub fn load(dir: impl AsRef<Path>, options: &EmbedderOptions) -> Result<Self> {
        let device = device::accelerator(&options.device)?;
        let pool = Arc::new(device::pool(device::threads(options.threads)?, "embedder")?);
        let root = dir.as_ref();
        if root.is_file() {
            return unsupported!(
                "{}: an embedder is a directory of safetensors; a file's weights are rounded, and adapters cannot be \
                 merged into them",
                root.display()
            );
        }
        let layout = Layout::read(root)?;
        let checkpoint = Arc::new(Checkpoint::open(root.join(&layout.transformer))?);
        let path = TextPath::find(&checkpoint, options)?;
        // An adapter's own tokenizer is the one that it was trained with.
        let trained = options.adapters.iter().find(|dir| dir.join("tokenizer.json").is_file());
        let tokenizer = checkpoint::tokenizer(trained.map_or(checkpoint.dir(), PathBuf::as_path))?;
        checkpoint.check_tokenizer(&tokenizer)?;
        let encoder = if path.is_some() {
            if options.precision != Precision::F32 {
                let name = options.precision.name();
                return unsupported!(
                    "{}: precision={name:?} is for encoders; quantize rounds a decoder",
                    root.display()
                );
            }
            let options = DecoderOptions {
                adapters: options.adapters.clone(),
                quantize: options.quantize,
                device: device.clone(),
                ..DecoderOptions::default()
            };
            decoder::bidirectional(Arc::clone(&checkpoint), &options, Arc::clone(&pool))?
        } else {
            encoder::load(&checkpoint, options.precision, Arc::clone(&pool), device.as_ref())?
        };
        let settings = checkpoint.json("sentence_bert_config.json")?.unwrap_or_default();
        let own = path.as_ref().map(|path| path.max);
        let max_tokens = max_tokens(&checkpoint, &settings, own, encoder.context(), options.max_tokens)?;
        let path = path.map(|path| path.within(max_tokens));
        let pooling = match options.pooling.as_deref() {
            None if path.is_some() => Pooling::Mean,
            None => layout.pooling,
            Some("mean") => Pooling::Mean,
            Some("cls") if path.is_none() => Pooling::Cls,
            Some("cls") => return unsupported!("pooling \"cls\": a model of LLM2Vec has no token of the text's own"),
            Some(other) => return invalid!("pooling {other:?}: expected \"mean\" or \"cls\""),
        };
        let dense = layout.dense.iter().map(|folder| Dense::load(&root.join(folder))).collect::<Result<Vec<_>>>()?;
        let whole = dense::outputs(&dense, encoder.hidden_size(), root)?;
        let dim = options.dim.unwrap_or(whole);
        if dim == 0 || dim > whole {
            return invalid!("dim={dim}: this model's vectors have {whole} numbers, of which 1 to {whole} can be kept");
        }
        let prompts = Prompts::read(root)?;
        let embedder = Self {
            tokenizer,
            encoder,
            pooling,
            dense,
            dim,
            precision: options.precision,
            unnormalized: options.unnormalized,
            call_tokens: if path.is_some() { DECODER_CALL_TOKENS } else { CALL_TOKENS },
            path,
            max_tokens,
            lower_case: settings.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false),
            query_prefix: options.query_prefix.clone().or(prompts.query).unwrap_or_default(),
            passage_prefix: options.passage_prefix.clone().or(prompts.passage).unwrap_or_default(),
            pool,
            calls: AtomicUsize::new(0),
            device: device::name(device.as_ref()),
        };
        for kind in [Kind::Query, Kind::Passage] {
            let taken = embedder.count(&[""], kind)?[0];
            if taken >= max_tokens {
                return invalid!("max_tokens={max_tokens}: the prefix {:?} alone takes {taken}", embedder.prefix(kind));
            }
        }
        Ok(embedder)
    }

    /// Returns the length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns what products are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Returns whether vectors are of unit length.
    pub fn normalizes(&self) -> bool {
        !self.unnormalized
    }

    /// Returns how many tokens of a text are read at most, prefix and special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// Returns how token vectors become one.
    pub fn pooling(&self) -> Pooling {
        self.pooling
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

    /// Returns what is put before a text of this kind.
    pub fn prefix(&self, kind: Kind) -> &str {
        match kind {
            Kind::Query => &self.query_prefix,
            Kind::Passage => &self.passage_prefix,
        }
    }

    /// Returns how many tokens each text has, uncut, prefix and special tokens included.
    pub fn count(&self, texts: &[impl AsRef<str> + Sync], kind: Kind) -> Result<Vec<usize>> {
        let special = self.special_tokens();
        self.pool.install(|| {
            let count = |text: &str| Ok(self.encode_text(text, kind, usize::MAX)?.0.len() + special);
            texts.par_iter().map(|text| count(text.as_ref())).collect()
        })
    }

    /// Cuts each text into pieces of at most `max_tokens` (`None`: what the model reads), neighbours sharing up to `overlap` tokens.
    ///
    /// A text that fits is one piece, unchanged. Setting `cancel` ends the call with [`Error::Cancelled`].
    pub fn split<'a, S: AsRef<str> + Sync>(
        &self,
        texts: &'a [S],
        max_tokens: Option<usize>,
        overlap: usize,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<&'a str>>> {
        let limit = max_tokens.unwrap_or(self.max_tokens);
        if limit > self.max_tokens {
            return invalid!("max_tokens={limit}: this model reads at most {}", self.max_tokens);
        }
        let taken = self.count(&[""], Kind::Passage)?[0] + if self.path.is_some() { SEAM_TOKENS } else { 0 };
        let Some(capacity) = limit.checked_sub(taken).filter(|n| *n > 0) else {
            return invalid!("max_tokens={limit}: prefix and special tokens alone take {taken}");
        };
        let capacity = self.path.as_ref().map_or(capacity, |path| capacity.min(path.doc_max));
        // The prefix ends in a space or is empty, so a piece has the same tokens with and without it.
        let size = |piece: &str| {
            // Everything fits somebody who has gone away: the splitter ends at once.
            if cancel.load(Ordering::Relaxed) {
                return 0;
            }
            self.encode_until(piece, capacity).map_or(usize::MAX, |(tokens, _)| tokens.len())
        };
        let split = |text: &'a S| split::split(text.as_ref(), capacity, overlap, size);
        let pieces = self.pool.install(|| texts.par_iter().map(split).collect::<Result<_>>())?;
        if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(pieces) }
    }

    /// Returns where the pieces of [`Self::split`] are in each text, in characters: the first, and the one after the last.
    pub fn split_spans<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        max_tokens: Option<usize>,
        overlap: usize,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<(usize, usize)>>> {
        let pieces = self.split(texts, max_tokens, overlap, cancel)?;
        Ok(texts.iter().zip(pieces).map(|(text, pieces)| split::spans(text.as_ref(), &pieces)).collect())
    }

    fn special_tokens(&self) -> usize {
        use tokenizers::PostProcessor;
        self.tokenizer.get_post_processor().map_or(0, |post| post.added_tokens(false))
    }

    /// Tokenizes prefix and text as sentence-transformers does: outer white space off, lower case where the model says so; or
    /// as `LLM2Vec` does.
    ///
    /// `enough` and what is returned are those of [`encode_until`].
    fn encode_text(&self, text: &str, kind: Kind, enough: usize) -> Result<(tokenizers::Encoding, bool)> {
        let prefix = self.prefix(kind);
        if let Some(path) = &self.path {
            return self.encode_until(&path.frame(prefix, text).whole, enough);
        }
        let whole;
        let mut text = if prefix.is_empty() {
            text.trim()
        } else {
            whole = format!("{prefix}{text}");
            whole.trim()
        };
        let lower;
        if self.lower_case {
            lower = text.to_lowercase();
            text = &lower;
        }
        self.encode_until(text, enough)
    }

    /// As [`reading::read`] does.
    fn encode_until(&self, text: &str, enough: usize) -> Result<(tokenizers::Encoding, bool)> {
        reading::read(&self.tokenizer, text, enough)
    }

    fn tokens(&self, text: &str, kind: Kind, cancel: &AtomicBool) -> Result<Tokens> {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        let room = self.max_tokens - self.special_tokens();
        let ((mut encoding, more), end, cut) = match &self.path {
            None => (self.encode_text(text, kind, room)?, None, false),
            Some(path) => {
                let short = path.shorten(text, |text| Ok(self.encode_until(text, path.max)?.0.len()))?;
                let Framed { whole, pooled } = path.frame(self.prefix(kind), short.as_deref().unwrap_or(text));
                (self.encode_until(&whole, room)?, pooled, short.is_some())
            }
        };
        let truncated = cut || more || encoding.len() > room;
        encoding.truncate(room, 0, TruncationDirection::Right);
        let encoding =
            self.tokenizer.post_process(encoding, None, true).map_err(|e| Error::Tokenizer(e.to_string()))?;
        if encoding.is_empty() {
            return invalid!("a text has no tokens, and this tokenizer adds none");
        }
        let ids = encoding.get_ids().to_vec();
        let pooled = match end {
            Some(end) => self.encode_until(&end, self.max_tokens)?.0.len().min(ids.len()),
            None => ids.len(),
        };
        // Of an empty text outside of a turn nothing is left but its start token.
        Ok(Tokens { pooled: if pooled == 0 { ids.len() } else { pooled }, ids, truncated })
    }
}

/// `own` is what the model itself states, where it does not leave that to the files.
fn max_tokens(
    checkpoint: &Checkpoint,
    settings: &Value,
    own: Option<usize>,
    context: usize,
    asked: Option<usize>,
) -> Result<usize> {
    if let Some(asked) = asked {
        if asked == 0 || asked > context {
            return invalid!("max_tokens={asked}: this model reads 1 to {context}");
        }
        return Ok(asked);
    }
    let tokenizer = checkpoint.json("tokenizer_config.json")?.unwrap_or_default();
    let stated = own
        .map(|own| own as u64)
        .or_else(|| settings.get("max_seq_length").and_then(Value::as_u64))
        // Where a tokenizer has no limit, transformers writes 10^30, which is no u64.
        .or_else(|| tokenizer.get("model_max_length").and_then(Value::as_u64));
    match stated {
        Some(0) => invalid!("{}: max_seq_length is 0", checkpoint.dir().display()),
        Some(stated) => Ok(context.min(usize::try_from(stated).unwrap_or(usize::MAX))),
        None => Ok(context),
    }
}
