//! Documents to scores, by a model that compares them with the question better than vectors can.

use crate::turns::{Ends, Turns};
use adventures::{Error, Reranker, RerankerOptions, Scores};
use std::path::Path;
use std::sync::Arc;
use tracing::Instrument;

/// How many documents are compared before another request has its turn.
const TURN: usize = 32;

/// A model that reranks; requests take turns.
pub struct Reranking {
    model: Arc<Reranker>,
    turns: Turns,
}

impl std::fmt::Debug for Reranking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reranking").finish_non_exhaustive()
    }
}

impl Reranking {
    /// Loads a cross-encoder, or a `ColBERT` model.
    pub fn load(path: &Path, threads: Option<usize>) -> Result<Self, Error> {
        let model = Reranker::load(path, &RerankerOptions { threads, ..RerankerOptions::default() })?;
        Ok(Self { model: Arc::new(model), turns: Turns::default() })
    }

    /// Compares documents with a question; dropping the future takes back what is not computed yet.
    pub async fn compare(&self, query: &str, documents: Vec<String>) -> Result<Scores, Error> {
        let span = tracing::debug_span!("rerank", documents = documents.len());
        self.turns(query, documents).instrument(span).await
    }

    async fn turns(&self, query: &str, documents: Vec<String>) -> Result<Scores, Error> {
        let _waits = self.turns.enter("be reranked")?;
        let ends = Ends::default();
        let (query, documents): (Arc<str>, Arc<[String]>) = (query.into(), documents.into());
        let mut found = Scores::default();
        let mut at = 0;
        while at < documents.len() {
            let turn = self.turns.next().await;
            let (query, documents, model) = (Arc::clone(&query), Arc::clone(&documents), Arc::clone(&self.model));
            let cancel = ends.flag();
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
