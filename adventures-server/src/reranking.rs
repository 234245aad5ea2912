//! Documents to scores, by a model that compares them with the question better than vectors can.

use adventures::{ColBERT, ColBERTOptions, Error, Reranker, RerankerOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::sync::Semaphore;
use tracing::Instrument;

/// How many documents are compared before another request has its turn.
const TURN: usize = 32;
/// How many requests may wait; beyond, clients are told to come back later.
const WAITING: usize = 64;

/// A model that reranks; requests take turns.
pub struct Reranking {
    model: Arc<Model>,
    turn: Arc<Semaphore>,
    waiting: AtomicUsize,
}

enum Model {
    Cross(Reranker),
    Late(ColBERT),
}

/// How well each document answers a question.
#[derive(Debug, Default)]
pub struct Compared {
    /// Higher is better.
    pub scores: Vec<f32>,
    /// How many tokens were read; `None` where the model does not tell.
    pub tokens: Option<usize>,
    /// The indices of the documents that were cut, or whose question was.
    pub truncated: Vec<usize>,
}

impl std::fmt::Debug for Reranking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reranking").finish_non_exhaustive()
    }
}

/// Ends what computes when whoever waits for it is gone.
struct Ends(Arc<AtomicBool>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts who waits.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reranking {
    /// Loads a cross-encoder, or a `ColBERT` model.
    pub fn load(path: &Path, threads: Option<usize>) -> Result<Self, Error> {
        let model = match Reranker::load(path, &RerankerOptions { threads, ..RerankerOptions::default() }) {
            Ok(model) => Model::Cross(model),
            Err(cross) => match ColBERT::load(path, &ColBERTOptions { threads, ..ColBERTOptions::default() }) {
                Ok(model) => Model::Late(model),
                Err(late) => {
                    let place = path.display();
                    return Err(Error::Unsupported(format!(
                        "{place} is no reranker: as a cross-encoder, {cross}; as ColBERT, {late}"
                    )));
                }
            },
        };
        Ok(Self { model: Arc::new(model), turn: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0) })
    }

    /// Compares documents with a question; dropping the future takes back what is not computed yet.
    pub async fn compare(&self, query: &str, documents: Vec<String>) -> Result<Compared, Error> {
        let span = tracing::debug_span!("rerank", documents = documents.len());
        self.turns(query, documents).instrument(span).await
    }

    async fn turns(&self, query: &str, documents: Vec<String>) -> Result<Compared, Error> {
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        if others >= WAITING {
            return Err(Error::Busy("too many requests are waiting to be reranked".into()));
        }
        let ends = Ends(Arc::default());
        let (query, documents): (Arc<str>, Arc<[String]>) = (query.into(), documents.into());
        let mut found = Compared::default();
        let mut at = 0;
        while at < documents.len() {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let (query, documents, model) = (Arc::clone(&query), Arc::clone(&documents), Arc::clone(&self.model));
            let cancel = Arc::clone(&ends.0);
            let part = tokio::task::spawn_blocking(move || {
                let part = &documents[at..documents.len().min(at + TURN)];
                let compared = model.compare(&query, part, &cancel);
                // Only now another may compute.
                drop(turn);
                compared
            });
            let part =
                part.await.unwrap_or_else(|problem| Err(Error::Busy(format!("reranking stopped: {problem}"))))?;
            found.truncated.extend(part.truncated.iter().map(|i| at + i));
            found.tokens = part.tokens.map(|tokens| tokens + found.tokens.unwrap_or(0));
            found.scores.extend(part.scores);
            at += TURN;
        }
        Ok(found)
    }
}

impl Model {
    fn compare(&self, query: &str, documents: &[String], cancel: &AtomicBool) -> Result<Compared, Error> {
        match self {
            Self::Cross(model) => {
                let found = model.score(query, documents, cancel)?;
                let tokens = found.tokens.iter().map(|n| *n as usize).sum();
                Ok(Compared { scores: found.scores, tokens: Some(tokens), truncated: found.truncated })
            }
            Self::Late(model) => {
                let question = model.embed_queries(&[query], None, cancel)?;
                let found = model.embed_documents(documents, None, 1, cancel)?;
                let scores = model.maxsim(&[&question.vectors], &found.vectors, &found.offsets, cancel)?;
                let all = !question.truncated.is_empty();
                let truncated = if all { (0..documents.len()).collect() } else { found.truncated };
                Ok(Compared { scores, tokens: None, truncated })
            }
        }
    }
}
