//! Documents to scores, by a model that compares them with the question better than vectors can.

use adventures::{Error, Reranker, RerankerOptions, Scores};
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
    model: Arc<Reranker>,
    turn: Arc<Semaphore>,
    waiting: AtomicUsize,
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
        let model = Reranker::load(path, &RerankerOptions { threads, ..RerankerOptions::default() })?;
        Ok(Self { model: Arc::new(model), turn: Arc::new(Semaphore::new(1)), waiting: AtomicUsize::new(0) })
    }

    /// Compares documents with a question; dropping the future takes back what is not computed yet.
    pub async fn compare(&self, query: &str, documents: Vec<String>) -> Result<Scores, Error> {
        let span = tracing::debug_span!("rerank", documents = documents.len());
        self.turns(query, documents).instrument(span).await
    }

    async fn turns(&self, query: &str, documents: Vec<String>) -> Result<Scores, Error> {
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        if others >= WAITING {
            return Err(Error::Busy("too many requests are waiting to be reranked".into()));
        }
        let ends = Ends(Arc::default());
        let (query, documents): (Arc<str>, Arc<[String]>) = (query.into(), documents.into());
        let mut found = Scores::default();
        let mut at = 0;
        while at < documents.len() {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let (query, documents, model) = (Arc::clone(&query), Arc::clone(&documents), Arc::clone(&self.model));
            let cancel = Arc::clone(&ends.0);
            let part = tokio::task::spawn_blocking(move || {
                let part = &documents[at..documents.len().min(at + TURN)];
                let compared = model.score(&query, part, &cancel);
                // Only now another may compute.
                drop(turn);
                compared
            });
            let part =
                part.await.unwrap_or_else(|problem| Err(Error::Busy(format!("reranking stopped: {problem}"))))?;
            found.truncated.extend(part.truncated.iter().map(|i| at + i));
            found.tokens.extend(part.tokens);
            found.scores.extend(part.scores);
            at += TURN;
        }
        Ok(found)
    }
}
