//! ColBERT (Khattab and Zaharia 2020): texts to a vector for each token, and how well these fit each other.
//!
//! Reads the checkpoints of <https://github.com/stanford-futuredata/ColBERT> and <https://github.com/lightonai/pylate> as these
//! two do. Sequences are packed, never padded, so the vectors of a text do not depend on what is read beside it.

mod pooling;
mod reader;
mod settings;

use crate::device;
use crate::embedder::{Dense, dense, with_rows};
use crate::error::{Error, Result, invalid};
use crate::kernels::math::l2_normalize;
use crate::kernels::panels::Precision;
use crate::kernels::panels::maxsim::{Documents, maxsim};
use crate::kernels::threads::Threads;
use crate::models::{Batch, Encoder, Rows, encoder};
use crate::split;
use rayon::prelude::*;
use reader::{Reader, Tokens};
use settings::Source;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many texts are tokenized and sorted by length at a time.
const WINDOW_TEXTS: usize = 1024;
/// How many tokens go to the encoder in one call: bounds the memory, and how long a cancellation waits.
const CALL_TOKENS: usize = 4096;

/// What to change from what the checkpoint says; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct ColBERTOptions {
    /// `"auto"`, `"cpu"` or `"cuda:N"`; empty is `"auto"`.
    pub device: String,
    /// How many threads compute; all that the cgroup grants by default.
    pub threads: Option<usize>,
    /// How many tokens a query has, mark and special tokens included.
    pub query_maxlen: Option<usize>,
    /// How many tokens of a document are read at most, mark and special tokens included.
    pub doc_maxlen: Option<usize>,
    /// What the encoder's products are rounded to.
    pub precision: Precision,
}

/// The vectors of some texts' tokens, end to end.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenVectors {
    /// `(tokens, dim)`, row-major.
    pub vectors: Vec<f32>,
    /// Where each text begins: text `i` has the rows `offsets[i]..offsets[i + 1]`.
    pub offsets: Vec<usize>,
    /// The indices of the texts that were too long and were cut.
    pub truncated: Vec<usize>,
}

/// A query beside a document, token by token.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// The query's tokens, as the vocabulary has them.
    pub query_tokens: Vec<String>,
    /// Those tokens of the document that have vectors.
    pub doc_tokens: Vec<String>,
    /// `(query_tokens, doc_tokens)`: the product of each pair.
    pub similarities: Vec<f32>,
}

/// A late-interaction model: an encoder, its tokenizer, and the layer that makes a token's vector of its hidden state.
///
/// Shared freely between threads.
pub struct ColBERT {
    reader: Reader,
    encoder: Box<dyn Encoder>,
    projection: Vec<Dense>,
    dim: usize,
    query_maxlen: usize,
    doc_maxlen: usize,
    precision: Precision,
    pool: Arc<rayon::ThreadPool>,
    device: String,
}

impl ColBERT {
    /// Loads the checkpoint in `dir`, of Stanford's layout or of PyLate's.
    ///
    /// Fails where it has no projection, where the tokenizer does not fit, or where an option is out of range.
    pub fn load(dir: impl AsRef<Path>, options: &ColBERTOptions) -> Result<Self> {
        let device = device::accelerator(&options.device)?;
        let pool = Arc::new(device::pool(device::threads(options.threads)?, "colbert")?);
        let root = dir.as_ref();
        let Source { checkpoint, projection, settings } = Source::open(root)?;
        let tokenizer = checkpoint.tokenizer()?;
        checkpoint.check_tokenizer(&tokenizer)?;
        let reader = Reader::new(tokenizer, &settings, root)?;
        let encoder = encoder::load(&checkpoint, options.precision, Arc::clone(&pool), device.as_ref())?;
        let dim = dense::outputs(&projection, encoder.hidden_size(), root)?;
        let context = encoder.context();
        let query_maxlen = options.query_maxlen.unwrap_or(settings.query_maxlen.min(context));
        let doc_maxlen = options.doc_maxlen.unwrap_or(settings.doc_maxlen.min(context));
        let precision = options.precision;
        let device = device::name(device.as_ref());
        let model = Self { reader, encoder, projection, dim, query_maxlen, doc_maxlen, precision, pool, device };
        model.length("query_maxlen", query_maxlen)?;
        model.length("doc_maxlen", doc_maxlen)?;
        Ok(model)
    }

    /// Fails where a text cannot have `length` tokens.
    fn length(&self, name: &str, length: usize) -> Result<usize> {
        let (least, most) = (self.reader.least(), self.max_tokens());
        if length < least || length > most {
            return invalid!("{name}={length}: this model reads {least} to {most} tokens");
        }
        Ok(length)
    }

    /// Returns the most tokens that a text may have, mark and special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.encoder.context()
    }

    /// Returns the length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Returns how many tokens a query has.
    pub fn query_maxlen(&self) -> usize {
        self.query_maxlen
    }

    /// Returns how many tokens of a document are read at most.
    pub fn doc_maxlen(&self) -> usize {
        self.doc_maxlen
    }

    /// Returns what products are rounded to.
    pub fn precision(&self) -> Precision {
        self.precision
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

    /// Returns the vectors of queries, rows of unit length; `maxlen` other than the model's for this call.
    ///
    /// Setting `cancel` from another thread ends the call with [`Error::Cancelled`] within a layer of some 256 tokens.
    pub fn embed_queries(
        &self,
        texts: &[impl AsRef<str> + Sync],
        maxlen: Option<usize>,
        cancel: &AtomicBool,
    ) -> Result<TokenVectors> {
        let maxlen = self.length("query_maxlen", maxlen.unwrap_or(self.query_maxlen))?;
        self.embed(texts, |text| self.reader.query(text, maxlen), 1, cancel)
    }

    /// Returns the vectors of documents, rows of unit length; with a `pool_factor` above 1 about so many times fewer, similar
    /// tokens being replaced by their mean, which is not of unit length.
    ///
    /// `maxlen` and `cancel` are those of [`Self::embed_queries`].
    pub fn embed_documents(
        &self,
        texts: &[impl AsRef<str> + Sync],
        maxlen: Option<usize>,
        pool_factor: usize,
        cancel: &AtomicBool,
    ) -> Result<TokenVectors> {
        if pool_factor == 0 {
            return invalid!("pool_factor=0: expected 1 or more");
        }
        let maxlen = self.length("doc_maxlen", maxlen.unwrap_or(self.doc_maxlen))?;
        self.embed(texts, |text| self.reader.document(text, maxlen), pool_factor, cancel)
    }

    /// Cuts texts into pieces that are read whole where a document has `maxlen` tokens, at the ends of paragraphs and sentences
    /// where they can be; `overlap` tokens of a piece, at most, begin the next one too.
    pub fn split<'a, S: AsRef<str> + Sync>(
        &self,
        texts: &'a [S],
        maxlen: Option<usize>,
        overlap: usize,
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<&'a str>>> {
        let room = self.reader.room(self.length("doc_maxlen", maxlen.unwrap_or(self.doc_maxlen))?);
        let size = |piece: &str| {
            // Everything fits somebody who has gone away: the splitter ends at once.
            if cancel.load(Ordering::Relaxed) { 0 } else { self.reader.size(piece, room).unwrap_or(usize::MAX) }
        };
        let one = |text: &'a S| split::split(text.as_ref(), room, overlap, size);
        let pieces = self.pool.install(|| texts.par_iter().map(one).collect::<Result<_>>())?;
        if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(pieces) }
    }

    /// Returns `(queries, documents)`: the sum over a query's tokens of the largest product with one of the document's.
    ///
    /// Queries and documents are `(tokens, dim)` each, documents end to end as in [`TokenVectors`]. A document without tokens
    /// has negative infinity; one with a number that is not finite has no number. Setting `cancel` ends the call with
    /// [`Error::Cancelled`] within some hundred tokens.
    pub fn maxsim(
        &self,
        queries: &[&[f32]],
        vectors: &[f32],
        offsets: &[usize],
        cancel: &AtomicBool,
    ) -> Result<Vec<f32>> {
        let documents = Documents { vectors, dim: self.dim, offsets };
        self.pool.install(|| maxsim(queries, documents, Threads::All, cancel))
    }

    /// Returns how each token of a query fits each of a document.
    pub fn heat(&self, query: &str, document: &str, cancel: &AtomicBool) -> Result<HeatMap> {
        let (q, d) = (self.embed_queries(&[query], None, cancel)?, self.embed_documents(&[document], None, 1, cancel)?);
        let tokens: Vec<&[f32]> = q.vectors.chunks_exact(self.dim).collect();
        let each: Vec<usize> = (0..=d.vectors.len() / self.dim).collect();
        Ok(HeatMap {
            query_tokens: self.reader.names(&self.reader.query(query, self.query_maxlen)?),
            doc_tokens: self.reader.names(&self.reader.document(document, self.doc_maxlen)?),
            similarities: self.maxsim(&tokens, &d.vectors, &each, cancel)?,
        })
    }

    fn embed<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        read: impl Fn(&str) -> Result<Tokens> + Sync,
        pool_factor: usize,
        cancel: &AtomicBool,
    ) -> Result<TokenVectors> {
        let mut found = TokenVectors { offsets: vec![0], ..TokenVectors::default() };
        let tokenize = |window: &[S]| -> Result<Vec<Tokens>> {
            let one = |text: &S| {
                if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { read(text.as_ref()) }
            };
            window.par_iter().map(one).collect()
        };
        self.pool.install(|| {
            let mut windows = texts.chunks(WINDOW_TEXTS);
            let mut tokens = tokenize(windows.next().unwrap_or_default())?;
            while !tokens.is_empty() {
                let next = windows.next().unwrap_or_default();
                // A thread that finds nothing to compute tokenizes.
                let (rows, next) = rayon::join(|| self.compute(&tokens, pool_factor, cancel), || tokenize(next));
                for (rows, tokens) in rows?.iter().zip(&tokens) {
                    if tokens.truncated {
                        found.truncated.push(found.offsets.len() - 1);
                    }
                    found.vectors.extend_from_slice(rows);
                    found.offsets.push(found.vectors.len() / self.dim);
                }
                tokens = next?;
            }
            Ok(found)
        })
    }

    /// Returns the vectors of each of `texts`; the longest are computed first, those of similar length together.
    fn compute(&self, texts: &[Tokens], pool_factor: usize, cancel: &AtomicBool) -> Result<Vec<Vec<f32>>> {
        let mut found = vec![Vec::new(); texts.len()];
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(texts[i].ids.len()));
        let mut order = order.as_slice();
        while !order.is_empty() {
            let mut batch = Batch::default();
            while let Some(&i) = order.get(batch.lengths.len()) {
                if !batch.ids.is_empty() && batch.ids.len() + texts[i].ids.len() > CALL_TOKENS {
                    break;
                }
                batch.ids.extend_from_slice(&texts[i].ids);
                batch.lengths.push(texts[i].ids.len());
                batch.attended.push(texts[i].attended);
            }
            let (now, later) = order.split_at(batch.lengths.len());
            if batch.attended == batch.lengths {
                batch.attended.clear();
            }
            let hidden = self.encoder.encode_rows(&batch, Rows::All, cancel)?;
            let width = self.encoder.hidden_size();
            let starts: Vec<usize> = batch
                .lengths
                .iter()
                .scan(0, |end, length| {
                    *end += length;
                    Some(*end - length)
                })
                .collect();
            let rows: Vec<Vec<f32>> = with_rows(&hidden, |hidden| {
                now.par_iter()
                    .zip(&starts)
                    .map(|(&i, start)| {
                        if cancel.load(Ordering::Relaxed) {
                            return Vec::new();
                        }
                        let rows = &hidden[start * width..(start + texts[i].ids.len()) * width];
                        self.finish(rows, &texts[i], pool_factor)
                    })
                    .collect()
            })?;
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            for (&i, rows) in now.iter().zip(rows) {
                found[i] = rows;
            }
            order = later;
        }
        Ok(found)
    }

    /// Returns the vectors of a text whose tokens have the hidden states `rows`.
    fn finish(&self, rows: &[f32], tokens: &Tokens, pool_factor: usize) -> Vec<f32> {
        let width = self.encoder.hidden_size();
        let mut vectors = match &tokens.kept {
            Some(kept) => kept.iter().flat_map(|i| &rows[i * width..(i + 1) * width]).copied().collect(),
            None => rows.to_vec(),
        };
        for dense in &self.projection {
            vectors = dense.apply(&vectors);
        }
        vectors.chunks_exact_mut(self.dim).for_each(l2_normalize);
        if pool_factor > 1 { pooling::pool(&vectors, self.dim, pool_factor) } else { vectors }
    }
}
